"""Fixtures of the programs that try things from inside containers."""

from __future__ import annotations

from probes import bait, compiled

__all__ = ["bait", "compiled"]
