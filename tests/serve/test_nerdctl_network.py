"""nerdctl's bridge network and published ports, which its hooks make and take away, on a machine of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import lamella
from waiting import until

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.needs_program("/usr/lib/cni/bridge"),
    pytest.mark.needs_program("iptables"),
    pytest.mark.needs_program("busybox"),
]
MACHINE = """
set -e
ip link set lo up
sysctl -qw net.ipv4.conf.all.route_localnet=1
mkdir -p /var/lib/cni
mount -t tmpfs addresses /var/lib/cni
exec "$@"
"""
SERVE = ["/bin/busybox", "nc", "-ll", "-p", "80", "-e", "/bin/busybox", "echo", "hello"]


@pytest.fixture
def nerdctl(nerdctl_program: Path, small_image: str) -> Iterator[Callable[..., str]]:
    """Run commands of nerdctl, or with ``program`` another, beside a server in a network namespace of their own."""
    with tempfile.TemporaryDirectory(prefix="lamella-nerdctl-") as name:
        folder = Path(name)
        with lamella.Client(root=folder / "root", state=folder / "state") as client:
            client.images.pull(small_image)
        serve = [
            sys.executable,
            "-m",
            "lamella",
            "--root",
            f"{name}/root",
            "--state",
            f"{name}/state",
            "serve",
        ]
        server = subprocess.Popen(
            ["unshare", "-n", "-m", "sh", "-c", MACHINE, "sh", *serve, "--address", f"{name}/c.sock"],
            stdout=subprocess.PIPE,
        )
        assert server.stdout is not None
        with server.stdout:
            assert server.stdout.readline()
            options = [
                "--address",
                f"{name}/c.sock",
                "--data-root",
                f"{name}/nerdctl",
                "--cgroup-manager",
                "cgroupfs",
            ]
            options += ["--cni-path", "/usr/lib/cni", "--cni-netconfpath", f"{name}/netconf"]

            def call(*words: str, program: list[str] | None = None) -> str:
                command = program or [str(nerdctl_program), *options]
                done = subprocess.run(
                    ["nsenter", "-t", str(server.pid), "-n", "-m", *command, *words],
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    text=True,
                    check=True,
                    timeout=60,
                    env=os.environ | {"HOME": name},
                )
                return done.stdout.strip()

            try:
                yield call
            finally:
                for box in call("ps", "-aq").split():
                    call("rm", "-f", box)
                server.terminate()
                assert server.wait(30) == 0


def test_ports_are_published_on_a_bridge_until_the_container_is_removed(nerdctl, small_image) -> None:
    box = ["-v", "/bin/busybox:/bin/busybox:ro", small_image]
    ask = ["/bin/busybox", "nc", "-w", "30"]

    def answers() -> bool:
        try:
            return bool(nerdctl("127.0.0.1", "8099", program=ask) == "hello")
        except subprocess.CalledProcessError:
            return False  # nobody listens yet

    nerdctl("run", "-d", "--name", "web", "-p", "8099:80", *box, *SERVE)
    until(answers)
    assert nerdctl("port", "web") == "80/tcp -> 0.0.0.0:8099"
    assert nerdctl("run", "--rm", *box, *ask, "web", "80") == "hello", "by its name, from another container"
    links = ["ip", "-o", "link", "show", "type", "veth"]
    # The other one's goes with its network namespace, which the kernel takes away in its own time.
    until(lambda: len(nerdctl(program=links).splitlines()) == 1)
    nerdctl("stop", "-t", "1", "web")
    nerdctl("start", "web")
    until(answers)
    nerdctl("rm", "-f", "web")
    until(lambda: nerdctl(program=links) == "")
    assert "8099" not in nerdctl(program=["iptables-save"])
