"""What a command doesn't need it doesn't import. By names of modules: an import's time depends on the machine."""

from __future__ import annotations

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


@pytest.mark.privileged
def test_running_a_container_needs_no_network_no_logs_no_traces_and_no_scrape(
    modules_after: Callable[..., set[str]], pulled: tuple[Program, str]
) -> None:
    lamella, image = pulled
    loaded = modules_after(*lamella.options, "run", "--rm", image, "true")
    assert "lamella.containers.container" in loaded
    assert not loaded & {
        "_hashlib",  # and no inspect, but where typing_extensions is installed: msgspec takes it along
        "locale",
        "selectors",
        "shlex",
        "socket",
        "ssl",
        "subprocess",
        "tempfile",
        "requests",
        "urllib3",
        "rich",
        "logging",
        "prometheus_client",
        "opentelemetry",
        "lamella.metrics.scrape",
    }
