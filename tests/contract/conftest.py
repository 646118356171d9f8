"""Fixtures of the contract suites; the suites themselves are in ``*_contract.py`` and take a factory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("snapshotter_contract", "content_contract")

from stores import Store


@pytest.fixture
def open_store(tmp_path: Path) -> Iterator[Callable[..., Store]]:
    """``open_store(namespace)`` opens the test's store once more."""
    opened: list[Store] = []

    def opener(namespace: str = "default") -> Store:
        opened.append(Store(tmp_path / "root", namespace))
        return opened[-1]

    yield opener
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: Callable[..., Store]) -> Store:
    return open_store()
