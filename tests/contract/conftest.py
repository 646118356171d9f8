"""Fixtures of the contract suites; the suites themselves are in ``*_contract.py`` and take a factory."""

from __future__ import annotations

import pytest

from crashes import alone, server
from networking import cni, machine, start
from stores import open_store, store

__all__ = ["alone", "cni", "machine", "open_store", "server", "start", "store"]

pytest.register_assert_rewrite("container_contract", "content_contract", "snapshotter_contract")
