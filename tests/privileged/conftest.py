"""Fixtures that tests of the contract suites and privileged ones share."""

from __future__ import annotations

from crashes import alone, server
from networking import cni, fake, machine, start
from probes import bait, compiled

__all__ = ["alone", "bait", "cni", "compiled", "fake", "machine", "server", "start"]
