"""Micro-benchmarks of snapshots and containers on a small image. They print and never judge."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import lamella
from lamella.registry.server import RegistryServer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
import machine_image

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any, str]]:
    """Give a client with a small three-layer image, the image, and its reference in a running registry."""
    folder = tmp_path_factory.mktemp("store")
    with RegistryServer() as server, lamella.Client(root=folder / "root", state=folder / "state") as client:
        machine_image.build().push(server.address, "machine", "latest")
        reference = f"{server.address}/machine:latest"
        yield client, client.images.pull(reference), reference


def test_prepare_mounts_and_remove(benchmark: Any, small: tuple[Any, Any, str]) -> None:
    client, image, _ = small
    benchmark(lambda: _cycle(client, image.chain_id))


def test_prepare_mounts_and_remove_among_ten_thousand(benchmark: Any, small: tuple[Any, Any, str]) -> None:
    client, image, _ = small
    keys = [f"other-{number}" for number in range(10_000)]
    for key in keys:
        client.snapshots.view(key, parent=image.chain_id)
    try:
        benchmark(lambda: _cycle(client, image.chain_id))
    finally:
        for key in keys:
            client.snapshots.remove(key)


def _cycle(client: Any, parent: str) -> None:
    client.snapshots.prepare("work", parent=parent)
    client.snapshots.mounts("work")
    client.snapshots.remove("work")


def test_pull_of_what_is_here(benchmark: Any, small: tuple[Any, Any, str]) -> None:
    client, _, reference = small
    benchmark(lambda: client.images.pull(reference))


def test_run_true(benchmark: Any, small: tuple[Any, Any, str]) -> None:
    client, image, _ = small
    benchmark(lambda: client.containers.run(image, ["/bin/true"], remove=True))


def test_open_and_close_a_store(benchmark: Any, small: tuple[Any, Any, str]) -> None:
    config = small[0].config

    def cycle() -> None:
        with lamella.Client(root=config.root, state=config.state) as client:
            client.images.list()

    benchmark(cycle)
