"""Fixtures of the contract suites; the suites themselves are in ``*_contract.py`` and take a factory."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest

from crashes import alone, server
from networking import cni, machine, start
from stores import open_store, store

if TYPE_CHECKING:
    from collections.abc import Iterator

    import user_mode

__all__ = ["alone", "cni", "machine", "open_store", "server", "start", "store"]

pytest.register_assert_rewrite("container_contract", "content_contract", "snapshotter_contract")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Look last at what has long been running."""
    items.sort(key=_is_of_another_machine)


def _is_of_another_machine(item: pytest.Item) -> bool:
    return item.path.name == "test_unified.py"


@pytest.fixture(scope="session", autouse=True)
def machines(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[user_mode.Tests, ...]]:
    """Start the machines of test_unified.py before the first test of this folder, where they are asked for and can be started."""
    import user_mode

    wanted = any(map(_is_of_another_machine, request.session.items))
    if not wanted or os.geteuid() != 0 or not all(map(shutil.which, user_mode.PROGRAMS)):
        yield ()
        return
    import test_unified

    started = test_unified.start(tmp_path_factory.mktemp("machines"))
    yield started
    for each in started:
        each.end()
