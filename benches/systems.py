"""The systems that are measured beside each other, each on a disk of its own, none with a trace outside it.

A system is a context manager: entering starts what it needs (a daemon), leaving ends it. ``pull`` is a cold pull with
unpacking; ``run`` starts /bin/true in a container of the pulled image and waits until it is gone again.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from measure import CommandFailed, Cost, environment, median_wall, process_cpu, run

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
import new_containerd

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self

    from users import OrdinaryUser

Identity = Literal["root", "user", "single"]
"""Root; an ordinary user with ranges of ids for user namespaces, or with one's own alone."""
TRUE = "/bin/true"
LIBRARY_PULL = """
import sys, time, resource
import lamella
root, state, reference = sys.argv[1:]
with lamella.Client(root=root, state=state) as client:
    before = time.perf_counter()
    client.images.pull(reference)
    print(time.perf_counter() - before)
"""
LIBRARY_RUN = """
import statistics, sys, time
import lamella
root, state, reference, times = sys.argv[1:]
with lamella.Client(root=root, state=state) as client:
    image, costs = client.images.get(reference), []
    for _ in range(int(times) + 3):
        before = time.perf_counter()
        result = client.containers.run(image, ["/bin/true"], remove=True)
        costs.append(time.perf_counter() - before)
        assert result.exit_code == 0, result
    print(statistics.median(costs[3:]))
"""


class System:
    """What a bench asks of a system; ``name`` is its line in the table."""

    name: ClassVar[str]
    programs: ClassVar[tuple[str, ...]] = ()
    """What has to be on PATH."""
    runs: ClassVar[bool] = True
    """Whether it can run a container, not only unpack."""
    again: ClassVar[bool] = True
    """Whether a second pull means something."""
    identity: ClassVar[Identity] = "root"
    """As whom it runs."""
    as_root: ClassVar[str | None] = None
    """The name of the same system as root."""

    def __init__(self, disk: Path, reference: str, layout: Path, user: OrdinaryUser | None = None) -> None:
        """Take a fresh disk, the image's reference in the registry, and the same image as an OCI layout.

        ``user`` is who runs it, and gets the disk.
        """
        self.disk, self.reference, self.layout, self.user = disk, reference, layout, user
        if user is not None:
            (disk / "run").mkdir(mode=0o700)
            for folder in (disk, disk / "run"):
                os.chown(folder, user.uid, user.gid)

    def measured(self, command: Sequence[str | Path]) -> Cost:
        """Run a command as who runs the system."""
        return run(self.as_user(command), env=self.environment(), cwd=self.disk)

    def median(self, command: Sequence[str | Path], times: int) -> float:
        """Give the median of a command's wall time in seconds."""
        return median_wall(self.as_user(command), times, env=self.environment(), cwd=self.disk)

    def as_user(self, command: Sequence[str | Path]) -> list[str]:
        """Give what runs a command as who runs the system."""
        words = [str(word) for word in command]
        return words if self.user is None else self.user.command(*words)

    def environment(self) -> dict[str, str]:
        """Give the environment of its programs: a user's home is the disk."""
        if self.user is None:
            return environment()
        kept = {**self.user.environment(), "HOME": str(self.disk), "XDG_RUNTIME_DIR": f"{self.disk}/run"}
        kept.pop("PYTHONDONTWRITEBYTECODE", None)
        return kept | {"LC_ALL": "C"}

    def __enter__(self) -> Self:
        """Start what the system needs."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End what was started."""

    @classmethod
    def missing(cls) -> list[str]:
        """Give the programs that are not installed."""
        return [program for program in cls.programs if shutil.which(program) is None]

    def pull(self) -> Cost:
        """Pull and unpack."""
        raise NotImplementedError

    def run(self, times: int) -> float:
        """Give the median seconds of a container that runs /bin/true, from nothing to nothing."""
        raise NotImplementedError


class LamellaCommand(System):
    """``lamella pull`` and ``lamella run --rm`` as commands, the interpreter's start included."""

    name = "lamella"

    def command(self, *arguments: str) -> list[str]:
        """Give the command line on this disk's store."""
        program = str(Path(sys.executable).with_name("lamella"))
        return [program, "--root", f"{self.disk}/root", "--state", f"{self.disk}/state", *arguments]

    def pull(self) -> Cost:
        """Pull and unpack."""
        return self.measured(self.command("pull", self.reference))

    def run(self, times: int) -> float:
        """Run /bin/true."""
        return self.median(self.command("run", "--rm", self.reference, TRUE), times)


class LamellaLibrary(System):
    """The same in a Python process that has imported lamella already."""

    name = "lamella (library)"

    def pull(self) -> Cost:
        """Pull and unpack."""
        cost, seconds = self._script(LIBRARY_PULL, self.reference)
        return cost._replace(wall=seconds)

    def run(self, times: int) -> float:
        """Run /bin/true."""
        return self._script(LIBRARY_RUN, self.reference, str(times * 3))[1]

    def _script(self, script: str, *arguments: str) -> tuple[Cost, float]:
        """Run a script; give its cost, and the seconds that its last line says: warnings stand before that."""
        where = [f"{self.disk}/root", f"{self.disk}/state"]
        cost = self.measured([sys.executable, "-c", script, *where, *arguments])
        return cost, float(cost.output.splitlines()[-1])


class UserCommand(LamellaCommand):
    """The command, of a user with ranges of ids."""

    name = "lamella, user"
    identity = "user"
    as_root = LamellaCommand.name


class UserLibrary(LamellaLibrary):
    """The library, of a user with ranges of ids."""

    name = "lamella (library), user"
    identity = "user"
    as_root = LamellaLibrary.name


class SingleLibrary(LamellaLibrary):
    """The library, of a user who has one id only."""

    name = "lamella (lib.), one id"
    identity = "single"
    as_root = LamellaLibrary.name


class Containerd(System):
    """containerd as Debian packages it, driven by ctr."""

    name = "containerd (Debian)"
    programs = ("containerd", "ctr", "runc")
    folder: ClassVar[Path | None] = None
    disabled: ClassVar[tuple[str, ...]] = (
        "io.containerd.grpc.v1.cri",
        "io.containerd.cri.v1.images",
        "io.containerd.cri.v1.runtime",
        "io.containerd.internal.v1.opt",
    )
    """Plugins that are left out."""
    version: ClassVar[int] = 2
    """Of the configuration."""
    settings: ClassVar[str] = ""
    """More of it."""

    def __enter__(self) -> Self:
        """Start a containerd of its own."""
        self._sockets = _shim_sockets()
        self.address = f"{self.disk}/s/c.sock"
        config = self.disk / "config.toml"
        config.write_text(
            f'version = {self.version}\nroot = "{self.disk}/root"\nstate = "{self.disk}/s"\n'
            f"disabled_plugins = {json.dumps(self.disabled)}\n"
            f'[grpc]\naddress = "{self.address}"\n{self.settings}'
        )
        with (self.disk / "containerd.log").open("wb") as log:
            self._daemon = subprocess.Popen(
                [self._program("containerd"), "--config", config, "--log-level", "warn"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment(),
            )
        deadline = time.monotonic() + 60
        while subprocess.run(self.ctr("version"), capture_output=True, check=False).returncode:
            if self._daemon.poll() is not None or time.monotonic() > deadline:
                self.__exit__(None, None, None)
                raise CommandFailed(
                    "containerd does not start:\n" + (self.disk / "containerd.log").read_text()[-2000:]
                )
            time.sleep(0.05)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the daemon; remove what shims leave in /run."""
        self._daemon.terminate()
        try:
            self._daemon.wait(20)
        except subprocess.TimeoutExpired:
            self._daemon.kill()
            self._daemon.wait()
        for left in _shim_sockets() - self._sockets:
            left.unlink(missing_ok=True)
        for folder in (
            Path("/run/containerd/s"),
            Path("/run/containerd/runc/default"),
            Path("/run/containerd/runc"),
        ):
            with contextlib.suppress(OSError):
                folder.rmdir()
        with contextlib.suppress(OSError):
            Path("/run/containerd").rmdir()

    def pull(self) -> Cost:
        """Pull and unpack."""
        before = process_cpu(self._daemon.pid)
        cost = run(self.ctr("images", "pull", "--plain-http", self.reference), env=self.environment())
        return cost._replace(
            cpu=cost.cpu + process_cpu(self._daemon.pid) - before, peak=_peak(self._daemon.pid)
        )

    def run(self, times: int) -> float:
        """Run /bin/true."""
        costs = []
        for number in range(times + 2):
            costs.append(run(self.run_command(self.reference, f"bench-{number}", TRUE)).wall)
        return sorted(costs[2:])[times // 2]

    def run_command(self, *arguments: str) -> list[str]:
        """Give the command line that runs a container, which is removed at its end."""
        return self.ctr("run", "--rm", "--fifo-dir", f"{self.disk}/fifo", *arguments)

    def ctr(self, *arguments: str) -> list[str]:
        """Give the command line of its client."""
        return [self._program("ctr"), "--address", self.address, *arguments]

    def _program(self, name: str) -> str:
        return str(self.folder / name) if self.folder else name

    def environment(self) -> dict[str, str]:
        """Give the environment of its programs."""
        path = os.environ["PATH"]
        return environment(PATH=f"{self.folder}:{path}" if self.folder else path)


class NewContainerd(Containerd):
    """containerd 2.4 (built here when it is missing), which inflates with igzip where that is on PATH."""

    name = "containerd 2.4"
    programs = ("igzip", "runc")
    folder = new_containerd.folder()

    @classmethod
    def missing(cls) -> list[str]:
        """Give what is not installed, and cannot be built."""
        absent = super().missing()
        if not absent and not new_containerd.folder().is_dir():
            return [] if new_containerd.can_build() else ["go, to build containerd 2.4"]
        return absent

    def __enter__(self) -> Self:
        """Start a containerd of its own."""
        new_containerd.ensure()
        return super().__enter__()


class TunedContainerd(NewContainerd):
    """containerd 2.4 that unpacks four layers at once."""

    name = "containerd 2.4 tuned"
    settings = '[plugins."io.containerd.transfer.v1.local"]\nmax_concurrent_unpacks = 4\n'


class Podman(System):
    """podman as Debian packages it, with the overlay driver."""

    name = "podman"
    programs = ("podman", "conmon", "runc")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for what runs on after a container's end: conmon, and the podman that it starts to clean up."""
        deadline = time.monotonic() + 60
        while pids := _processes_that_name(str(self.disk)):
            if time.monotonic() > deadline:
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
        end_pause(self.disk / "tmp")

    def command(self, *arguments: str) -> list[str]:
        """Give the command line on this disk's store."""
        where = [
            "--root",
            f"{self.disk}/root",
            "--runroot",
            f"{self.disk}/r",  # of at most 50 characters
            "--tmpdir",
            f"{self.disk}/tmp",
        ]
        how = ["--storage-driver", "overlay", "--cgroup-manager", "cgroupfs", "--events-backend", "none"]
        return ["podman", *where, *how, "--runtime", "runc", *arguments]

    def pull(self) -> Cost:
        """Pull and unpack."""
        return self.measured(self.command("pull", "--quiet", "--tls-verify=false", self.reference))

    def run_command(self, *arguments: str) -> list[str]:
        """Give the command line that starts a container without a network, which is removed at its end."""
        # Its default limits cannot be raised everywhere, not even by root.
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        options = (
            "--rm",
            "--network",
            "none",
            "--ulimit",
            f"nofile={limit}:{limit}",
            "--ulimit",
            "nproc=1024:1024",
        )
        return self.command("run", *options, *arguments)

    def run(self, times: int) -> float:
        """Run /bin/true."""
        return self.median(self.run_command(self.reference, TRUE), times)


class UserPodman(Podman):
    """podman of a user with ranges of ids."""

    name = "podman, user"
    identity = "user"
    as_root = Podman.name
    programs = (*Podman.programs, "newuidmap")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process that keeps the user namespace, too."""
        for pid in _processes_of(self.user):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        super().__exit__(kind, error, trace)
        if self.user is not None:
            Path(f"/dev/shm/libpod_rootless_lock_{self.user.uid}").unlink(missing_ok=True)


class UserUdocker(System):
    """udocker (PyPI), which unpacks layers over each other with tar, all files the user's; it runs them with PRoot."""

    name = "udocker, user"
    programs = ("udocker",)
    identity = "user"
    again = False

    def environment(self) -> dict[str, str]:
        """Have it not look for its tools in the internet."""
        return {**super().environment(), "UDOCKER_TARBALL": ""}

    def pull(self) -> Cost:
        """Pull, and unpack into a container's folder."""
        address, _, image = self.reference.partition("/")
        pulled = self.measured(["udocker", "pull", f"--registry=http://{address}", image])
        made = self.measured(["udocker", "create", "--name=bench", image])
        return Cost(pulled.wall + made.wall, pulled.cpu + made.cpu, max(pulled.peak, made.peak), made.output)

    def run(self, times: int) -> float:
        """Run /bin/true in that folder."""
        return self.median(["udocker", "--quiet", "run", "--nobanner", "bench", TRUE], times)


class UserKern(System):
    """kern (PyPI: kern-sandbox), which unpacks as the user alone."""

    name = "kern, user"
    programs = ("kern",)
    identity = "user"
    again = False

    def pull(self) -> Cost:
        """Pull and unpack."""
        return self.measured(["kern", "pull", "--quiet", self.reference])

    def run(self, times: int) -> float:
        """Run /bin/true."""
        return self.median(["kern", "box", "bench", "--rm", "--image", self.reference, "--", TRUE], times)


class Umoci(System):
    """umoci unpack of the layout: no registry, no content store; then runc on what it unpacked."""

    name = "umoci unpack"
    programs = ("umoci", "runc")
    again = False

    def pull(self) -> Cost:
        """Unpack."""
        return run(["umoci", "unpack", "--image", f"{self.layout}:latest", self.disk / "bundle"])

    def run(self, times: int) -> float:
        """Run /bin/true with runc itself: no overlay, no snapshot, nothing to remove but the container."""
        config = self.disk / "bundle" / "config.json"
        spec = json.loads(config.read_text())
        spec["process"].update(args=[TRUE], terminal=False)
        config.write_text(json.dumps(spec))
        command = ["runc", "--root", self.disk / "runc", "run", "--bundle", self.disk / "bundle", "bench"]
        return median_wall(command, times)


SYSTEMS: tuple[type[System], ...] = (
    LamellaLibrary,
    LamellaCommand,
    Containerd,
    NewContainerd,
    TunedContainerd,
    Podman,
    Umoci,
    UserLibrary,
    UserCommand,
    SingleLibrary,
    UserPodman,
    UserUdocker,
    UserKern,
)


class Registry:
    """Debian's docker-registry on loopback, for the length of a ``with`` block.

    With an image in it under each of ``names``, unless ``layout`` is None; what it stores is in ``folder``.
    """

    def __init__(self, folder: Path, layout: Path | None, names: Sequence[str] = ("debian-real",)) -> None:
        """Start it and push with skopeo."""
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        self.references = [f"{self.address}/{name}:latest" for name in names]
        settings = folder / "registry.yml"
        settings.write_text(
            f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {folder}/registry}}}}\n"
            f"http: {{addr: '{self.address}'}}\n"
        )
        self._log = folder / "registry.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ["docker-registry", "serve", settings], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        # As they are: without being told so, skopeo compresses plain layers on the way.
        push = [
            "skopeo",
            "copy",
            "--quiet",
            "--preserve-digests",
            "--retry-times",
            "3",
            "--dest-tls-verify=false",
        ]
        try:
            wait_until_listening(port, self._process)
            for reference in self.references if layout is not None else ():
                run([*push, f"oci:{layout}:latest", f"docker://{reference}"])
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Self:
        """Do nothing more."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(10)

    def requests(self) -> int:
        """Count the requests that it has answered, by its log."""
        return self._log.read_bytes().count(b' HTTP/1.1" ')


def wait_until_listening(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait for a server on loopback; CommandFailed if it ends, or takes a minute."""
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise CommandFailed(f"nothing listens on port {port}") from None
            time.sleep(0.02)
        else:
            return


def free_port() -> int:
    """Give a port on loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _shim_sockets() -> set[Path]:
    return set(Path("/run/containerd/s").glob("*"))


def _processes_that_name(folder: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if folder.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found


def end_pause(folder: Path) -> None:
    """End the process with which podman keeps the user namespace of who is not root; ``folder``: its ``--tmpdir``."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        os.kill(int((folder / "pause.pid").read_text()), signal.SIGKILL)


def _processes_of(user: OrdinaryUser | None) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if user is not None and entry.name.isdigit():
            with contextlib.suppress(OSError):
                if entry.stat().st_uid == user.uid:
                    found.append(int(entry.name))
    return found


def _peak(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
