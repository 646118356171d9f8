"""Fixtures of the contract suites; the suites themselves are in ``*_contract.py`` and take a factory."""

from __future__ import annotations

import pytest

from stores import open_store, store

__all__ = ["open_store", "store"]

pytest.register_assert_rewrite("snapshotter_contract", "content_contract")
