"""Bundles for the launcher's own tests: started without the rest of lamella, on this machine's own programs.

The launcher is the one that ``lamella._core`` carries, or the executable that LAMELLA_LAUNCHER names. A root file system is an
overlay over an empty folder into which the machine's /usr (and the running Python, if it lies elsewhere) is bound read-only.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import struct
import sys
import time
import uuid
from pathlib import Path
from typing import Any, NamedTuple

import lamella._core as core

PYTHON = os.path.realpath(sys.executable)
CONTROL, STDIN, STDOUT, STDERR = range(4)
# waiting.PATIENCE is out of reach where a container has this module alone.
DEADLINE = 30.0 * float(os.environ.get("LAMELLA_TEST_PATIENCE", "1"))
DOCKER_CAPABILITIES = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
]


def launch(request: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
    """Start the launcher with a request and give its reply."""
    document = json.dumps(request).encode()
    path = os.environ.get("LAMELLA_LAUNCHER")
    reply = _spawn(path, document, descriptors) if path else core.launch(document, descriptors)
    return dict(json.loads(reply))


def _spawn(path: str, document: bytes, descriptors: list[int]) -> bytes:
    request = os.memfd_create("request")
    os.write(request, document)
    reading, writing = os.pipe()
    null = os.open(os.devnull, os.O_RDWR)
    high = [
        fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, 200)
        for one in (null, null, null, request, writing, *descriptors)
    ]
    actions = [(os.POSIX_SPAWN_DUP2, one, target) for target, one in enumerate(high)]
    pid = os.posix_spawn(path, [path], {}, file_actions=actions)
    for one in (*high, request, writing, null):
        os.close(one)
    os.waitpid(pid, 0)
    with os.fdopen(reading, "rb") as file:
        return file.read()


class Result(NamedTuple):
    """How a container ended and what it wrote."""

    exit: dict[str, Any]
    stdout: bytes
    stderr: bytes

    @property
    def code(self) -> int:
        return int(self.exit["exit_code"])


class Connection:
    """Whole frames over a monitor's socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        sock.settimeout(DEADLINE)

    def _exactly(self, count: int) -> bytes | None:
        data = b""
        while len(data) < count:
            piece = self.socket.recv(count - len(data))
            if not piece:
                return None
            data += piece
        return data

    def frame(self) -> tuple[int, bytes] | None:
        header = self._exactly(5)
        if header is None:
            return None
        kind, length = struct.unpack("<BI", header)
        return kind, self._exactly(length) or b""

    def send(self, kind: int, payload: bytes) -> None:
        self.socket.sendall(struct.pack("<BI", kind, len(payload)) + payload)

    def request(self, **document: Any) -> None:
        self.send(CONTROL, json.dumps(document).encode())

    def ask(self, **document: Any) -> dict[str, Any]:
        self.request(**document)
        return self.document()

    def document(self) -> dict[str, Any]:
        frame = self.frame()
        assert frame is not None and frame[0] == CONTROL, frame
        return dict(json.loads(frame[1]))

    def collect(self) -> Result:
        """Read until the exit is told."""
        output = {STDOUT: bytearray(), STDERR: bytearray()}
        while (frame := self.frame()) is not None:
            kind, payload = frame
            if kind != CONTROL:
                output[kind] += payload
                continue
            document = json.loads(payload)
            assert "error" not in document, document
            if "exit" in document:
                return Result(document["exit"], bytes(output[STDOUT]), bytes(output[STDERR]))
        raise AssertionError(f"the monitor hung up; so far: {output}")

    def close(self) -> None:
        self.socket.close()


class Box:
    """One bundle. Change ``spec`` before it is started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / f"box-{uuid.uuid4().hex[:8]}"
        self.cgroup = f"/lamella/launcher-tests/{self.folder.name}"
        self.connections: list[Connection] = []
        for name in ("rootfs", "lower", "upper", "work"):
            (self.folder / name).mkdir(parents=True)
        self.lower = self.folder / "lower"
        self.log = self.folder / "log.jsonl"
        self.spec = self._spec()
        self._fill(self.lower)

    def _fill(self, root: Path) -> None:
        for name in ("etc", "proc", "sys", "dev", "tmp", "usr"):
            (root / name).mkdir()
        (root / "tmp").chmod(0o1777)
        mounts = self.spec["mounts"]
        mounts.append(_bind("/usr"))
        for name in ("bin", "sbin", "lib", "lib64"):
            path = Path("/", name)
            if path.is_symlink():
                (root / name).symlink_to(path.readlink())
            elif path.is_dir():
                mounts.append(_bind(str(path)))
        prefix = os.path.realpath(sys.base_prefix)
        if not prefix.startswith("/usr"):
            mounts.append(_bind(prefix))

    def _spec(self) -> dict[str, Any]:
        usual = ["nosuid", "noexec", "nodev"]
        return {
            "ociVersion": "1.1.0",
            "root": {"path": "rootfs"},
            "hostname": "box",
            "process": {
                "args": ["/bin/true"],
                "env": ["PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "LC_ALL=C"],
                "cwd": "/",
                "user": {"uid": 0, "gid": 0},
                "capabilities": {
                    "bounding": DOCKER_CAPABILITIES,
                    "effective": DOCKER_CAPABILITIES,
                    "permitted": DOCKER_CAPABILITIES,
                },
                "noNewPrivileges": True,
            },
            "mounts": [
                _mount("/proc", "proc", usual),
                _mount("/dev", "tmpfs", ["nosuid", "nodev", "mode=755", "size=64k"]),
                _mount(
                    "/dev/pts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]
                ),
                _mount("/dev/shm", "tmpfs", [*usual, "mode=1777", "size=1m"]),
                _mount("/dev/mqueue", "mqueue", usual),
                _mount("/sys", "sysfs", [*usual, "ro"]),
            ],
            "linux": {
                "cgroupsPath": self.cgroup,
                "namespaces": [
                    {"type": kind} for kind in ("mount", "pid", "uts", "ipc", "network", "cgroup")
                ],
                "maskedPaths": [
                    "/proc/keys",
                    "/proc/timer_list",
                    "/proc/acpi",
                    "/sys/firmware",
                    "/proc/not-there",
                ],
                "readonlyPaths": ["/proc/sys", "/proc/bus", "/proc/irq"],
                "seccomp": json.loads(core.default_seccomp(DOCKER_CAPABILITIES)),
                "resources": {},
            },
        }

    @property
    def process(self) -> dict[str, Any]:
        return dict.__getitem__(self.spec, "process")  # type: ignore[no-any-return]

    @property
    def linux(self) -> dict[str, Any]:
        return dict.__getitem__(self.spec, "linux")  # type: ignore[no-any-return]

    def set_capabilities(self, *names: str) -> None:
        self.process["capabilities"] = {key: list(names) for key in ("bounding", "effective", "permitted")}

    def without_namespace(self, kind: str) -> None:
        self.linux["namespaces"] = [one for one in self.linux["namespaces"] if one["type"] != kind]

    def request(self, **changes: Any) -> dict[str, Any]:
        overlay = [f"{key}dir={self.folder / key}" for key in ("lower", "upper", "work")]
        mounts = [{"type": "overlay", "source": "overlay", "options": overlay}]
        log = {"path": str(self.log)}
        return {"version": 2, "bundle": str(self.folder), "rootfs": mounts, "log": log, **changes}

    def launch(
        self, *args: str, attach: bool = True, **changes: Any
    ) -> tuple[dict[str, Any], Connection | None]:
        """Start it; give the launcher's reply and the attached connection."""
        if args:
            self.process["args"] = list(args)
        (self.folder / "config.json").write_text(json.dumps(self.spec))
        request = self.request(attach=attach, **changes)
        if not attach:
            return launch(request, []), None
        ours, theirs = socket.socketpair()
        try:
            reply = launch(request, [theirs.fileno()])
        finally:
            theirs.close()
        connection = Connection(ours)
        self.connections.append(connection)
        return reply, connection

    def start(self, *args: str, **changes: Any) -> Connection:
        """Start it, attached; it must work."""
        reply, connection = self.launch(*args, **changes)
        assert "error" not in reply, reply
        assert connection is not None
        return connection

    def run(self, *args: str, **changes: Any) -> Result:
        """Run a command to its end."""
        connection = self.start(*args, **changes)
        result = connection.collect()
        connection.close()
        self.await_end()
        return result

    def sh(self, script: str, **changes: Any) -> Result:
        return self.run("/bin/sh", "-c", script, **changes)

    def python(self, code: str, **changes: Any) -> Any:
        """Run Python in it; give what ``print`` wrote as JSON."""
        result = self.run(PYTHON, "-I", "-S", "-c", PRELUDE + code, **changes)
        assert result.code == 0, result
        return json.loads(result.stdout)

    def error(self, *args: str, **changes: Any) -> dict[str, Any]:
        """Start it; it must fail. Nothing may be left."""
        reply, connection = self.launch(*args, **changes)
        assert "error" in reply, reply
        if connection is not None:
            connection.close()
        self.await_end()
        assert not (self.folder / "control.sock").exists()
        assert self.cgroup_folders() == []
        return dict(reply["error"])

    def connect(self) -> Connection:
        sock = socket.socket(socket.AF_UNIX)
        folder = os.open(self.folder, os.O_PATH)
        try:
            sock.connect(f"/proc/self/fd/{folder}/control.sock")
        except OSError:
            sock.close()
            raise
        finally:
            os.close(folder)
        connection = Connection(sock)
        self.connections.append(connection)
        return connection

    def ask(self, **document: Any) -> dict[str, Any]:
        """Ask one thing on a connection of its own."""
        connection = self.connect()
        try:
            return connection.ask(**document)
        finally:
            connection.close()

    def exec(self, *args: str, stdin: bool = False, **changes: Any) -> Connection:
        """Ask for a further process; the first document on the connection is the answer."""
        connection = self.connect()
        process = {**self.process, "args": list(args), **changes}
        connection.request(op="exec", process=process, stdin=stdin)
        return connection

    def monitored(self) -> bool:
        with contextlib.suppress(FileNotFoundError), (self.folder / "lock").open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def await_end(self) -> None:
        deadline = time.monotonic() + DEADLINE
        while self.monitored():
            assert time.monotonic() < deadline, "the monitor does not end"
            time.sleep(0.002)

    def record(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "exit.json").read_text()))

    def log_records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def cgroup_folders(self) -> list[Path]:
        tops = [Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir()]
        return [folder for top in tops if (folder := top / self.cgroup.strip("/")).is_dir()]

    def cgroup_file(self, controller: str, name: str) -> str:
        return Path("/sys/fs/cgroup", controller, self.cgroup.strip("/"), name).read_text().strip()

    def end(self) -> None:
        """Kill what runs and hang up."""
        if self.monitored():
            with contextlib.suppress(OSError, AssertionError):
                self.ask(op="kill", signal=9, all=True)
        for connection in self.connections:
            connection.close()
        self.await_end()


def _mount(destination: str, kind: str, options: list[str]) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": kind, "options": options}


def _bind(path: str) -> dict[str, Any]:
    return {
        "destination": path,
        "type": "bind",
        "source": path,
        "options": ["rbind", "ro", "nosuid", "nodev"],
    }


PRELUDE = """
import ctypes, errno, json, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    "Make a system call; give its result or the name of its error."
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(x) if isinstance(x, int) else x for x in arguments])
    return result if result >= 0 else errno.errorcode[ctypes.get_errno()]
def attempt(function, *arguments, **options):
    try:
        function(*arguments, **options)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "ok"
"""
