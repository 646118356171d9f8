"""Fixtures of the unit tests: a store in tmp_path, opened as often as a test likes."""

from __future__ import annotations

from stores import open_store, store
from traces import spans

__all__ = ["open_store", "spans", "store"]
