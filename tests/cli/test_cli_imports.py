"""What a command doesn't need it doesn't import. By names of modules: an import's time depends on the machine."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from program import Program

HEAVY = {
    "requests",
    "urllib3",
    "rich",
    "prometheus_client",
    "opentelemetry",
    "apsw",
    "sqlite3",
    "zstandard",
    "ssl",
    "logging",
    "asyncio",
    "dataclasses",
}
CLIENT = {"lamella.client", "lamella.metadata", "lamella.images"}


@pytest.mark.parametrize(
    "words", [["--help"], ["run", "--help"], ["images", "--help"], ["images", "ls", "--help"]]
)
def test_help_imports_neither_the_client_nor_anything_heavy(
    words: list[str], modules_after: Callable[..., set[str]]
) -> None:
    assert not modules_after(*words) & (HEAVY | CLIENT | {"msgspec", "lamella._core"})


def test_version_imports_neither_the_client_nor_anything_heavy(
    modules_after: Callable[..., set[str]],
) -> None:
    assert not modules_after("version") & (HEAVY | CLIENT)


def test_a_command_imports_no_other_commands(modules_after: Callable[..., set[str]]) -> None:
    loaded = {name for name in modules_after("run", "--help") if name.startswith("lamella.cli.")}
    assert loaded == {
        f"lamella.cli.{name}"
        for name in (
            "argparser",
            "commands",
            "create",
            "options",
            "output",
            "parser",
            "pull",
            "registry_options",
            "run",
            "session",
            "values",
        )
    }


def test_listing_images_needs_neither_network_nor_progress(
    modules_after: Callable[..., set[str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("store")
    loaded = modules_after("--root", f"{folder}/root", "--state", f"{folder}/state", "images", "ls")
    assert "lamella.client" in loaded
    assert not loaded & {
        "requests",
        "urllib3",
        "rich",
        "ssl",
        "logging",
        "prometheus_client",
        "opentelemetry",
        "lamella.metrics.scrape",
        "lamella.registry.client",
        "zstandard",
    }


OURS = """
    _core client config content digest disk durability errors images ingest labels lazy locks logs oci operations ownership
    platforms reference reserve sizes state structs tracing typings
    cli cli.commands cli.create cli.options cli.output cli.parser cli.pull cli.registry_options cli.run cli.session cli.streams
    cli.values
    containers containers.collection containers.container containers.defaults containers.detach_keys containers.emulation
    containers.id_maps containers.limits containers.log_config containers.monitor containers.networks containers.networks.files
    containers.networks.ports containers.options containers.record containers.restart_policy containers.result
    containers.runtime_spec containers.seccomp containers.spec containers.task containers.user
    events events.spool
    metadata metadata.boot metadata.clock metadata.database metadata.schema
    metrics metrics.table
    snapshots snapshots.folders snapshots.overlayfs snapshots.recorded
"""
OTHERS = """
    apsw collections contextlib errno fcntl functools math pathlib re select threading _json _socket _weakrefset
    copyreg enum fnmatch glob grp importlib ipaddress itertools keyword ntpath operator pwd reprlib types urllib warnings
    __future__ _collections _functools _operator _sre
"""
"""What ours import, and, in the second and third line, what that imports, in one version of Python or the other."""


@pytest.mark.privileged
def test_running_a_container_imports_just_what_it_needs(
    modules_after: Callable[..., set[str]], pulled: tuple[Program, str]
) -> None:
    """Each module is 0.1 to 0.5 ms of a command that takes 50; whoever adds one here says in the commit what it is for."""
    lamella, image = pulled
    python = subprocess.run(
        [sys.executable, "-c", "import sys; print(' '.join(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = modules_after(*lamella.options, "run", "--rm", image, "true") - set(python.stdout.split())
    ours = {name for name in loaded if name.startswith("lamella")}
    assert ours == {"lamella", *(f"lamella.{name}" for name in OURS.split())}
    assert {name.partition(".")[0] for name in loaded - ours} <= set(OTHERS.split())
