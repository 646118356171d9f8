"""``lamella registry serve``: what it serves, to whom, and what it refuses."""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import socket
import ssl
import subprocess
import warnings
from typing import TYPE_CHECKING

import pytest
import requests

import machine_image
from lamella.registry.server import RegistryServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from program import Program

pytestmark = [pytest.mark.privileged, pytest.mark.rootless]


@contextlib.contextmanager
def serving(
    lamella: Program, *options: str, number: int = signal.SIGTERM, password: bytes = b""
) -> Iterator[str]:
    """Run ``lamella registry serve`` on a free port and give its address. A signal ends it in peace."""
    with lamella.start("registry", "serve", "--listen", "127.0.0.1:0", *options) as server:
        assert server.stdout is not None
        assert server.stdin is not None
        server.stdin.write(password)
        server.stdin.close()
        try:
            yield server.stdout.readline().decode().strip()
        finally:
            server.send_signal(number)
        assert server.wait(timeout=60) == 0


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


def test_as_many_files_may_be_open_as_the_system_allows(lamella: Program) -> None:
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1000, allowed), most))
    try:
        with lamella.start("registry", "serve", "--listen", "127.0.0.1:0") as server:
            assert server.stdout is not None
            server.stdout.readline()
            assert resource.prlimit(server.pid, resource.RLIMIT_NOFILE) == (most, most)
            server.send_signal(signal.SIGTERM)
            assert server.wait(60) == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, most))


@pytest.fixture
def certificate(tmp_path: Path, require_program: Callable[[str], str]) -> tuple[str, str]:
    """Make a certificate for loopback; give its file and the key's."""
    make = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test -addext subjectAltName=IP:127.0.0.1"
    files = [str(tmp_path / name) for name in ("cert.pem", "key.pem")]
    command = [require_program("openssl"), *make.split(), "-out", files[0], "-keyout", files[1]]
    subprocess.run(command, check=True, capture_output=True)
    return files[0], files[1]


def test_who_is_let_in_over_tls_is_said_by_options(
    lamella: Program, certificate: tuple[str, str], tmp_path: Path
) -> None:
    cert, key = certificate
    right = ("ann", "hunter2")
    (tmp_path / "users").write_text("ann:$2y$05$GjowGl.EJeQMGxoYeAu/vuMXAVNeg5hW/.OC52ps.yQhTOcjqROyC\n")
    for access in (["--user", "ann", "--password-stdin"], ["--htpasswd", str(tmp_path / "users")]):
        options = ["--tls-cert", cert, "--tls-key", key, *access]
        with serving(lamella, *options, number=signal.SIGINT, password=b"hunter2\n") as address:
            url = f"https://{address}/v2/_catalog"
            assert requests.get(url, auth=right, verify=cert, timeout=20).json() == {"repositories": []}
            assert requests.get(url, auth=("ann", "wrong"), verify=cert, timeout=20).status_code == 401
            assert requests.get(url, verify=cert, timeout=20).headers["WWW-Authenticate"].startswith("Basic")
            host, port = address.split(":")
            old = ssl.create_default_context(cafile=cert)
            old.set_ciphers("ALL:@SECLEVEL=0")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
            with socket.create_connection((host, int(port)), 20) as plain, pytest.raises(OSError):
                old.wrap_socket(plain, server_hostname="127.0.0.1")
    with serving(lamella, "--tls-cert", cert, "--tls-key", key, "--tls-client-ca", cert) as address:
        url = f"https://{address}/v2/"
        assert requests.get(url, verify=cert, cert=(cert, key), timeout=20).ok
        with pytest.raises(requests.ConnectionError):
            requests.get(url, verify=cert, timeout=20)


@pytest.mark.parametrize(
    "options",
    [
        ["--user", "ann"],
        ["--password-stdin"],
        ["--user", "ann", "--password-stdin", "--htpasswd", "x"],
        ["--tls-key", "x"],
        ["--tls-client-ca", "x"],
    ],
)
def test_options_that_need_or_exclude_another_are_wrong_usage(options: list[str], lamella: Program) -> None:
    done = lamella("registry", "serve", *options)
    assert (done.status, done.out) == (2, "")


def test_json_says_where_and_under_which_name(lamella: Program) -> None:
    words = ["--json", "registry", "serve", "--listen", "127.0.0.1:0", "--name", "registry.example"]
    with lamella.start(*words) as server:
        assert server.stdout is not None
        document, _ = json.JSONDecoder().raw_decode(
            "".join(server.stdout.readline().decode() for _ in range(5))
        )
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
    assert document == {"address": document["address"], "name": "registry.example", "writable": False}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--writable", "--listen", "0.0.0.0:0"], "anybody who reaches 0.0.0.0 could push images"),
        (["--writable", "--listen", ":0"], "anybody who reaches 0.0.0.0 could push images"),
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
