"""Does an installed lamella work? Run by `make test`, and by .ci/run on the wheel, outside the source tree."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import lamella
from lamella import _core

SERVES = bool(importlib.util.find_spec("google") and importlib.util.find_spec("google.protobuf"))
"""Whether the extra of `lamella serve` is installed."""


def test_the_package_is_the_installed_one() -> None:
    if os.environ.get("LAMELLA_SMOKE") == "installed":
        assert Path(lamella.__file__).is_relative_to(sys.prefix), lamella.__file__
    assert lamella.__version__ == importlib.metadata.version("lamella") == _core.__version__


def test_every_module_can_be_imported() -> None:
    names = [info.name for info in pkgutil.walk_packages(lamella.__path__, "lamella.", lambda _: None)]
    for name in names:
        if not name.endswith("__main__") and (SERVES or not name.startswith("lamella.serve")):
            importlib.import_module(name)
    assert {"lamella.client", "lamella.registry.server", "lamella.cli"} <= set(names)


def test_the_command_says_its_version() -> None:
    program = Path(sys.executable).with_name("lamella")
    done = subprocess.run([program, "version"], capture_output=True, text=True, timeout=30, check=True)
    assert lamella.__version__ in done.stdout


def test_serve_says_what_it_needs_where_that_is_not_installed() -> None:
    program = Path(sys.executable).with_name("lamella")
    done = subprocess.run(
        [program, "serve", "--help"], capture_output=True, text=True, timeout=30, check=True
    )
    assert "lamella[serve]" in done.stdout
    if not SERVES:
        done = subprocess.run([program, "serve"], capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 1
        assert "pip install 'lamella[serve]'" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_pull_and_run_from_the_in_process_registry(tmp_path: Path) -> None:
    import machine_image
    from lamella.registry.server import RegistryServer

    with (
        RegistryServer() as server,
        lamella.Client(root=tmp_path / "root", state=tmp_path / "state") as client,
    ):
        machine_image.build().push(server.address, "machine", "latest")
        image = client.images.pull(f"{server.address}/machine:latest")
        result = client.containers.run(image, ["/app/hello"], remove=True)
        assert (result.exit_code, result.stderr) == (0, b"")
        assert result.stdout.startswith(b"hello from ")
        client.images.remove(image.name)
        client.gc()
        assert list(client.images.list()) == []
