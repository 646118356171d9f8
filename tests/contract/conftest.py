"""Fixtures of the contract suites; the suites themselves are in ``*_contract.py`` and take a factory."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("snapshotter_contract", "content_contract", "stores")

from stores import open_store, store  # noqa: F401
