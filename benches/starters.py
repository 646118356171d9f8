"""The programs that start containers, each on a disk of its own: what benches/containers.py measures beside lamella.

All of them run /bin/true in the machine's own small image (examples/machine_image.py). containerd and podman pull it from a
registry on loopback; runc and kern get its root ready made: no snapshot, nothing to remove but the container.
kern is the command of kern-sandbox (PyPI), the nearest to a library that starts containers; it makes no cgroup where v2 has no
controllers, as on hybrid machines.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from measure import CommandFailed, environment
from systems import TRUE, Containerd, Podman

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType
    from typing import Self

SLEEP = ["/bin/sleep", "1000"]


class Starter(ABC):
    """A program that starts containers; ``name`` is its line in the table.

    A context manager: entering makes ready what a start needs, leaving takes it away.
    """

    name: ClassVar[str]
    programs: ClassVar[tuple[str, ...]] = ()
    """What has to be on PATH, or beside this interpreter."""
    needs_root: ClassVar[bool] = False
    """It has no images: the image's root is mounted for it."""

    def __init__(self, disk: Path, reference: str, root: Path) -> None:
        """Take a fresh disk, the image's reference in a registry on loopback, and its root if it needs one."""
        self.disk, self.reference, self.root = disk, reference, root
        self.env = environment()

    def __enter__(self) -> Self:
        """Make ready."""
        return self

    def __exit__(  # noqa: B027 (most have nothing to take away)
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take away."""

    @classmethod
    def missing(cls) -> list[str]:
        """Give the programs that are not installed."""
        return [program for program in cls.programs if which(program) is None]

    @abstractmethod
    def start(self, name: str, command: Sequence[str]) -> list[str | Path]:
        """Give the command line that runs a container to its end and removes it."""

    @abstractmethod
    def exec(self, name: str) -> list[str | Path]:
        """Give the command line that runs /bin/true in a container that runs."""

    @abstractmethod
    def end(self, name: str) -> list[str | Path]:
        """Give the command line that kills a container."""

    def run(self, name: str) -> None:
        """Run /bin/true in a container. CommandFailed."""
        quietly(self.start(name, [TRUE]), self.env)

    def idle(self, name: str) -> subprocess.Popen[bytes]:
        """Start a container that sleeps, and wait until something can be run in it; its end is the caller's matter."""
        with (self.disk / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                self.start(name, SLEEP), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.env
            )
        deadline = time.monotonic() + 20
        while True:
            try:
                quietly(self.exec(name), self.env)
            except CommandFailed as error:
                if time.monotonic() > deadline or process.poll() is not None:
                    process.kill()
                    process.wait()
                    said = (self.disk / f"{name}.log").read_text(errors="replace")
                    raise CommandFailed(
                        f"{error}\nThe container: {process.returncode}: {said[-2000:]}"
                    ) from None
                time.sleep(0.05)
            else:
                return process

    def stop(self, name: str, process: subprocess.Popen[bytes]) -> None:
        """End what :meth:`idle` started."""
        subprocess.run(self.end(name), check=False, capture_output=True, env=self.env)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class RuncStarter(Starter):
    """runc itself, on a bundle that is there."""

    name = "runc, bare"
    programs = ("runc",)
    needs_root = True

    def __enter__(self) -> Self:
        """Write its spec once."""
        subprocess.run(["runc", "spec", "--bundle", self.disk], check=True)
        self._spec = json.loads((self.disk / "config.json").read_text())
        self._spec["root"]["path"] = str(self.root)
        return self

    def start(self, name: str, command: Sequence[str]) -> list[str | Path]:
        """Give the command line; each container has a bundle of its own, for its arguments stand there."""
        bundle = self.disk / name
        if not bundle.is_dir():
            bundle.mkdir()
            self._spec["process"] |= {"args": list(command), "terminal": False}
            (bundle / "config.json").write_text(json.dumps(self._spec))
        return ["runc", "--root", self.disk / "runc", "run", "--bundle", bundle, name]

    def exec(self, name: str) -> list[str | Path]:
        """Give the command line."""
        return ["runc", "--root", self.disk / "runc", "exec", name, TRUE]

    def end(self, name: str) -> list[str | Path]:
        """Give the command line."""
        return ["runc", "--root", self.disk / "runc", "kill", name, "KILL"]


class KernStarter(Starter):
    """kern, by its command."""

    name = "kern (kern-sandbox)"
    programs = ("kern",)
    needs_root = True

    def __enter__(self) -> Self:
        """Give it folders of its own."""
        for variable in ("HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR"):
            folder = self.disk / variable.lower()
            folder.mkdir()
            self.env[variable] = str(folder)
        return self

    def start(self, name: str, command: Sequence[str]) -> list[str | Path]:
        """Give the command line."""
        return [_program("kern"), "box", name, "--rm", "--rootfs", self.root, "--", *command]

    def exec(self, name: str) -> list[str | Path]:
        """Give the command line."""
        return [_program("kern"), "exec", name, "--", TRUE]

    def end(self, name: str) -> list[str | Path]:
        """Give the command line."""
        return [_program("kern"), "kill", name]


class SystemStarter(Starter):
    """One of the systems that the pulls are measured with."""

    system: ClassVar[type[Containerd | Podman]]

    def __enter__(self) -> Self:
        """Start what it needs, and pull."""
        with ExitStack() as stack:
            self._running = stack.enter_context(self.system(self.disk, self.reference, Path()))
            self._running.pull()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it, or wait for what it leaves running."""
        self._stack.__exit__(kind, error, trace)


class ContainerdStarter(SystemStarter):
    """ctr on the machine's containerd."""

    name = "containerd, ctr"
    system = Containerd
    programs = Containerd.programs

    def start(self, name: str, command: Sequence[str]) -> list[str | Path]:
        """Give the command line."""
        return [*self._running.run_command(self.reference, name, *command)]

    def exec(self, name: str) -> list[str | Path]:
        """Give the command line."""
        options = ("--fifo-dir", f"{self.disk}/fifo", "--exec-id", f"exec-{time.monotonic_ns()}")
        return [*self._running.ctr("task", "exec", *options, name, TRUE)]

    def end(self, name: str) -> list[str | Path]:
        """Give the command line."""
        return [*self._running.ctr("task", "kill", "--signal", "KILL", name)]


class PodmanStarter(SystemStarter):
    """podman, without a network as all of these."""

    name = "podman"
    system = Podman
    programs = Podman.programs

    def start(self, name: str, command: Sequence[str]) -> list[str | Path]:
        """Give the command line."""
        return [*self._running.run_command("--name", name, self.reference, *command)]

    def exec(self, name: str) -> list[str | Path]:
        """Give the command line."""
        return [*self._running.command("exec", name, TRUE)]

    def end(self, name: str) -> list[str | Path]:
        """Give the command line."""
        return [*self._running.command("kill", name)]


STARTERS: tuple[type[Starter], ...] = (RuncStarter, KernStarter, ContainerdStarter, PodmanStarter)


def quietly(line: Sequence[str | Path], env: Mapping[str, str]) -> None:
    """Run a command to its end, in any thread; CommandFailed with what it said when it fails."""
    done = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, env=env, check=False)
    if done.returncode:
        text = (done.stdout + done.stderr).decode(errors="replace")[-2000:]
        raise CommandFailed(f"{' '.join(map(str, line))} exited with {done.returncode}:\n{text}")


def which(program: str) -> str | None:
    """Find a program on PATH, or where pip puts those of this interpreter's packages."""
    return shutil.which(program) or shutil.which(program, path=str(Path(sys.executable).parent))


def _program(name: str) -> str:
    return which(name) or name


def is_realtime() -> bool:
    """Say whether this process has real-time priority (chrt), with which runc's containers cannot join their cgroups."""
    return os.sched_getscheduler(0) != os.SCHED_OTHER
