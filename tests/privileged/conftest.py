"""Fixtures that tests of the contract suites and privileged ones share."""

from __future__ import annotations

from crashes import alone, server
from probes import bait, compiled

__all__ = ["alone", "bait", "compiled", "server"]
