"""A machine for tests of networks: a network namespace of the test's own, in which everything happens that would on the host's.

Bridges, veths and firewall rules are made there, and are gone with it, so that tests see exactly what is left of them, and
nobody else on the machine sees anything.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lamella import _core
from lamella.errors import NotFound
from waiting import until

BUSYBOX = ["/bin/busybox:/bin/busybox:ro"]
SERVE = ["/bin/busybox", "nc", "-ll", "-p", "80", "-e", "/bin/busybox", "echo", "hello"]
CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class Machine:
    """The calling thread's network namespace, from :meth:`enter` to :meth:`leave`."""

    def enter(self) -> None:
        self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        _checked(_libc.unshare(CLONE_NEWNET))
        self.ip("link", "set", "lo", "up")
        # A way out, which leads nowhere: pasta wants one, and CNI's masquerading, too.
        self.ip("link", "add", "up0", "type", "veth", "peer", "name", "up1")
        self.ip("address", "add", "192.0.2.2/24", "dev", "up0")
        for name in ("up0", "up1"):
            self.ip("link", "set", name, "up")
        self.ip("route", "add", "default", "via", "192.0.2.1")

    def neighbour(self, folder: Path) -> Neighbour:
        """Put another machine at the other end of the way out."""
        return Neighbour(self, folder / "neighbour")

    def leave(self) -> None:
        _checked(_libc.setns(self._home, CLONE_NEWNET))
        os.close(self._home)

    def ip(self, *words: str) -> None:
        subprocess.run(["ip", *words], check=True)

    def links(self) -> set[str]:
        done = subprocess.run(["ip", "-j", "link"], check=True, capture_output=True)
        return {link["ifname"] for link in json.loads(done.stdout)}

    def rules(self) -> list[str]:
        """Give the firewall's rules, but for counters and the chains that plugins keep for all containers."""
        done = subprocess.run(["iptables-save"], check=True, capture_output=True, text=True)
        return sorted(line for line in done.stdout.splitlines() if line.startswith("-A"))


class Neighbour:
    """A machine beside another, 192.0.2.1 and 2001:db8::1, which asks that one's ports."""

    def __init__(self, machine: Machine, path: Path) -> None:
        self._path = str(path)
        _core.pin_network(self._path)
        machine.ip("address", "add", "2001:db8::2/64", "dev", "up0", "nodad")
        machine.ip("link", "set", "up1", "netns", self._path)
        for words in (
            ("address", "add", "192.0.2.1/24", "dev", "up1"),
            ("address", "add", "2001:db8::1/64", "dev", "up1", "nodad"),
            ("link", "set", "up1", "up"),
        ):
            self.run("ip", *words)
        machine.ip("route", "add", "default", "via", "2001:db8::1")

    def run(self, *words: str, data: bytes = b"") -> bytes:
        """Run a command there, with some input; give its output."""
        command = ["nsenter", f"--net={self._path}", *words]
        return subprocess.run(command, input=data, check=True, capture_output=True, timeout=60).stdout

    def leave(self) -> None:
        _core.unpin_network(self._path)


def pins(config) -> list[str]:
    """Give what is left of namespaces and records."""
    found = []
    for folder in (config.state / "networks", config.root / "networks" / "attached"):
        if folder.is_dir():
            found += [str(path) for path in folder.iterdir() if path.name not in ("leases", "names")]
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    return found + [line for line in mounts if f"{config.state}/networks" in line]


def leases(config, network: str) -> list[str]:
    """Give the addresses that a network has given."""
    folder = config.state / "networks" / "leases" / network
    return sorted(path.name for path in folder.glob("*.*.*.*") if path.is_file())


PLUGIN = f"""#!{sys.executable}
# A CNI plugin that writes down how it is called, and does what the file beside it says.
import json, os, sys, time
from pathlib import Path

folder, name = Path(__file__).resolve().parent, Path(__file__).name
document = json.load(sys.stdin)
command = os.environ["CNI_COMMAND"]
env = {{key: value for key, value in os.environ.items() if key.startswith("CNI_")}}
call = {{"plugin": name, "command": command, "document": document, "env": env}}
with (folder / "calls").open("a") as calls:
    calls.write(json.dumps(call) + "\\n")
behaviour = folder / f"{{name}}.{{command}}"
if behaviour.exists():
    exec(behaviour.read_text())
if command == "ADD":
    result = document.get("prevResult") or {{
        "cniVersion": document["cniVersion"],
        "interfaces": [{{"name": os.environ["CNI_IFNAME"], "mac": "02:00:00:00:00:01", "sandbox": os.environ["CNI_NETNS"]}}],
        "ips": [{{"address": "10.66.0.2/24", "gateway": "10.66.0.1", "interface": 0}}],
        "dns": {{"nameservers": ["10.66.0.53"], "search": ["fake.test"]}},
    }}
    print(json.dumps(result))
"""


class FakePlugins:
    """CNI plugins in a folder of the test's own, and a network made of them."""

    def __init__(self, folder: Path, monkeypatch) -> None:
        self.folder = folder
        folder.mkdir()
        self.configurations = folder / "net.d"
        self.configurations.mkdir()
        monkeypatch.setenv("CNI_PATH", str(folder))
        monkeypatch.setenv("NETCONFPATH", str(self.configurations))

    def network(self, name: str, *plugins: dict[str, object], version: str = "1.0.0", **more: object) -> Path:
        for plugin in plugins:
            program = self.folder / str(plugin["type"])
            program.write_text(PLUGIN)
            program.chmod(0o755)
        path = self.configurations / f"{name}.conflist"
        path.write_text(json.dumps({"cniVersion": version, "name": name, "plugins": plugins, **more}))
        return path

    def behave(self, plugin: str, command: str, script: str) -> None:
        """Let a plugin run a piece of Python when it gets a command."""
        (self.folder / f"{plugin}.{command}").write_text(script)

    def calls(self) -> list[dict[str, object]]:
        path = self.folder / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def commands(self) -> list[tuple[object, object]]:
        return [(call["plugin"], call["command"]) for call in self.calls()]


@pytest.fixture
def machine(image):
    machine = Machine()
    machine.enter()
    yield machine
    machine.leave()


@pytest.fixture
def cni(machine):
    for kind in ("bridge", "portmap", "host-local", "firewall"):
        if not any(
            Path(folder, kind).exists() for folder in ("/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni")
        ):
            pytest.skip(f"needs the CNI plugin {kind}")
    return machine


@pytest.fixture
def start(client, image):
    started = []

    def call(*command, more_volumes=(), **options):
        volumes = [*BUSYBOX, *more_volumes]
        container = client.containers.run(image, list(command), detach=True, volumes=volumes, **options)
        started.append(container)
        return container

    yield call
    for container in started:
        with contextlib.suppress(NotFound):
            container.remove(force=True)


@pytest.fixture
def fake(tmp_path, monkeypatch, machine):
    return FakePlugins(tmp_path / "plugins", monkeypatch)


def ask(host: str, port: int) -> bytes:
    """Read what a server of a container says; it may not listen yet."""
    deadline = time.monotonic() + 60
    while True:
        try:
            with socket.create_connection((host, port), 5) as sock:
                answer = sock.recv(100)
            if answer:
                return answer
        except OSError:  # a time-out, too, of a machine with much to do
            if time.monotonic() >= deadline:
                raise
        assert time.monotonic() < deadline
        time.sleep(0.02)


def inside(container, *command, check=True):
    return container.exec(["/bin/busybox", *command], check=check).stdout.decode()


def heard(container, host="127.0.0.1", port=80):
    """Give what a server says whom a container asks; it may not listen yet."""
    return until(lambda: inside(container, "nc", "-w", "20", host, str(port), check=False))
