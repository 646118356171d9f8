"""tests/containerd, in Go, against ``lamella serve`` and against containerd 2.4: its client, and the suites that it exports.

Each of its tests is one here; what it prints stands in the failure.
"""

from __future__ import annotations

import re
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from daemons import Daemon

import containerd_contract
import machine_image
from chance import NIGHTLY
from lamella.registry.server import RegistryServer

NAMES = [
    name
    for file in sorted(containerd_contract.SOURCES.glob("*_test.go"))
    for name in re.findall(r"(?m)^func (Test(?!Main)\w+)\(t \*testing\.T\)", file.read_text())
]
INTENDED: dict[str, dict[str, str]] = {
    "lamella": {
        "TestContentSuite/CrossNamespaceAppend": "an ingest gets no more bytes than it was to have",
    },
    "containerd": {},
}
"""Parts of tests that a server is not to pass, each with the reason, as ``-test.skip`` takes them."""
LOAD_SECONDS = 60 if NIGHTLY else 10
TIMEOUT = 300.0

pytestmark = [pytest.mark.needs_root, pytest.mark.beside]


@pytest.fixture(scope="session")
def contract_program(require_program: Callable[[str], str]) -> Path:
    program = containerd_contract.contract()
    if not program.exists():
        require_program("go")
        containerd_contract.ensure_contract()
    return program


@pytest.fixture(scope="module")
def registry() -> Iterator[str]:
    """Serve the small image to 64 clients at once, each of which may leave several connections open; give the address."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))
    try:
        with RegistryServer(connections=8192) as server:
            machine_image.build().push(server.address, "machine", "latest")
            yield server.address
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


LEFT_OUT = {
    "TestTransferEchoesAStream": "what is no archive is not passed on",
}


@pytest.mark.parametrize(
    ("daemon", "name"),
    [
        (daemon, name)
        for daemon in ("lamella", "containerd")
        for name in NAMES
        if daemon == "containerd" or name not in LEFT_OUT
    ],
    indirect=["daemon"],
)
def test_go(daemon: Daemon, contract_program: Path, name: str, registry: str) -> None:
    options = {
        "address": daemon.address,
        "image": f"{registry}/machine:latest",
        "push": f"{registry}/contract",
        "load": f"{LOAD_SECONDS}s",
        "test.v": "true",
        "test.run": f"^{name}$",
        "test.skip": "|".join(INTENDED[daemon.name]),
    }
    done = subprocess.run(
        [contract_program, *(f"-{option}={value}" for option, value in options.items())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert f"--- PASS: {name} (" in done.stdout, done.stdout
