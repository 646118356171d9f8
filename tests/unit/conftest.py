"""Fixtures of the unit tests: a store in tmp_path, opened as often as a test likes. No example of a property has to be quick."""

from __future__ import annotations

import hypothesis

from stores import open_store, store
from traces import spans

__all__ = ["open_store", "spans", "store"]

hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")
