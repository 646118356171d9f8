"""Published ports are read as podman reads them, which takes docker's forms."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from typing import TYPE_CHECKING

import pytest

from lamella.containers.networks.ports import bindings, parse_ports
from lamella.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = [pytest.mark.integration, pytest.mark.needs_root, pytest.mark.needs_program("podman")]


@pytest.fixture
def podman(tmp_path: Path, small_image: str) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Give the command on a storage of the test's own that has the small image."""
    # It takes no run folder whose path is longer than 50 characters.
    folder = tempfile.mkdtemp(prefix="lamella-")
    program = [
        "podman",
        "--root",
        f"{tmp_path}/root",
        "--runroot",
        folder,
        "--storage-driver",
        "vfs",
    ]

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*program, *words], capture_output=True, text=True, check=False)

    assert run("pull", "-q", "--tls-verify=false", small_image).returncode == 0
    yield run
    shutil.rmtree(folder)


def test_texts_mean_the_same_and_the_same_are_refused(podman, small_image: str) -> None:
    for text in [
        "8080:80", "127.0.0.1:8080:80", "8080:80/udp", "8000-8002:80-82", "[::1]:8080:80", "127.0.0.1:8000-8001:80-81/tcp",
        "65535:65535", "8080:80/sctp",
    ]:  # fmt: skip
        made = podman("create", "-p", text, small_image)
        assert made.returncode == 0, made.stderr
        shown = podman("inspect", "--format", "{{json .HostConfig.PortBindings}}", made.stdout.strip())
        theirs = {
            name: [{**entry, "HostIp": entry["HostIp"] or "0.0.0.0"} for entry in entries]
            for name, entries in json.loads(shown.stdout).items()
        }
        assert bindings(parse_ports([text])) == theirs, text
    for text in [
        "0", "65536", "-1", "a:80", "8080:", "1-2:80", "1-3:1-2", "80-79", "80/icmp", "1:2:3:4", "nowhere:1:2",
    ]:  # fmt: skip
        with pytest.raises(InvalidArgument):
            parse_ports([text])
        assert podman("create", "-p", text, small_image).returncode != 0, text
