"""Fixtures that tests of the contract suites and privileged ones share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from launcher_box import Box

from crashes import alone, server
from networking import cni, fake, machine, start
from probes import bait, compiled

__all__ = ["alone", "bait", "cni", "compiled", "fake", "machine", "server", "start"]


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    """Give a bundle for the launcher, whose container is ended after the test."""
    box = Box(tmp_path)
    yield box
    box.end()
