"""Fixtures of the programs that try things from inside containers, and a registry for their images."""

from __future__ import annotations

from crashes import server
from probes import bait, compiled

__all__ = ["bait", "compiled", "server"]
