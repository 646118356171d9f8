"""Fixtures that tests of the contract suites and privileged ones share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from crashes import alone, server
from networking import cni, fake, machine, start
from probes import bait, compiled

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from launcher_box import Box

__all__ = ["alone", "bait", "cni", "compiled", "fake", "machine", "server", "start"]

pytest.register_assert_rewrite("launcher_box", "oci_bundle")


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    """Give a bundle for the launcher, whose container is ended after the test."""
    from launcher_box import Box

    box = Box(tmp_path)
    yield box
    box.end()
