"""``lamella registry serve``: what it serves, to whom, and what it refuses."""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING

import pytest
import requests

import machine_image
from lamella.registry.server import RegistryServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from program import Program

pytestmark = pytest.mark.privileged


@contextlib.contextmanager
def serving(lamella: Program, *options: str, number: int = signal.SIGTERM) -> Iterator[str]:
    """Run ``lamella registry serve`` on a free port and give its address. A signal ends it in peace."""
    with lamella.start("registry", "serve", "--listen", "127.0.0.1:0", *options) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().decode().strip()
        finally:
            server.send_signal(number)
        assert server.wait(timeout=20) == 0


def test_an_image_pushed_to_the_served_folder_can_be_pulled(lamella: Program, tmp_path: Path) -> None:
    with serving(lamella, "--dir", str(tmp_path / "served")) as address:
        machine_image.build().push(address, "machine", "latest")
        lamella("-q", "pull", f"{address}/machine:latest").ok()
    with RegistryServer(tmp_path / "served") as again:
        lamella("-q", "pull", f"{again.address}/machine:latest").ok()


def test_the_images_of_one_machine_are_pulled_and_pushed_by_the_next(
    lamella: Program, tmp_path: Path
) -> None:
    other = ("--root", str(tmp_path / "other"), "--state", str(tmp_path / "other-state"))
    with serving(lamella, "--writable", "--name", "registry.example") as address:
        machine_image.build().push(address, "team/machine", "1")
        assert "registry.example/team/machine:1" in lamella("images", "ls").ok().out
        ran = lamella("run", "--rm", "registry.example/team/machine:1", "/bin/sh", "-c", "echo ran").ok()
        assert ran.out == "ran\n"
        lamella("-q", *other, "pull", f"{address}/team/machine:1").ok()
        lamella("-q", *other, "pull", f"{address}/registry.example/team/machine:1").ok()
    with serving(lamella) as address:  # read-only, and named by its address
        lamella("-q", *other, "pull", f"{address}/registry.example/team/machine:1").ok()
        with pytest.raises(requests.HTTPError, match="405"):
            machine_image.build().push(address, "team/machine", "2")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--writable", "--listen", "0.0.0.0:0"], "anybody who reaches 0.0.0.0 could push images"),
        (["--dir", "x", "--listen", "[::]:0"], "anybody who reaches :: could push images"),
        (
            ["--user", "ann", "--password-stdin", "--listen", "0.0.0.0:0"],
            "passwords would go to 0.0.0.0 without",
        ),
        (["--tls-cert", "/dev/null"], "the certificate, its key or the authority cannot be used"),
        (["--name", "nodot"], "'nodot' is not the name of a registry"),
    ],
)
def test_serve_refuses_what_would_leave_the_registry_open(
    options: list[str], message: str, lamella: Program
) -> None:
    done = lamella.process("registry", "serve", *options, input=b"secret\n")
    assert (done.returncode, done.stdout) == (1, b"")
    assert message in done.stderr.decode()
