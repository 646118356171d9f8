"""Fixtures that tests of the contract suites and privileged ones share."""

from __future__ import annotations

import contextlib
import uuid
from typing import TYPE_CHECKING

import pytest

from crashes import alone, server
from monitors import hierarchies
from networking import cni, fake, machine, start
from probes import bait, compiled
from users import user

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from launcher_box import Box

__all__ = ["alone", "bait", "cni", "compiled", "fake", "machine", "server", "start", "user"]

pytest.register_assert_rewrite("launcher_box", "oci_bundle")


@pytest.fixture
def parent() -> Iterator[str]:
    """Give a name for a cgroup; what is made under it in any hierarchy is removed after the test."""
    name = f"parent-{uuid.uuid4().hex[:8]}"
    yield name
    for top in hierarchies():
        for folder in sorted((top / name).rglob("*"), reverse=True):
            if folder.is_dir():
                folder.rmdir()
        with contextlib.suppress(FileNotFoundError):
            (top / name).rmdir()


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    """Give a bundle for the launcher, whose container is ended after the test."""
    from launcher_box import Box

    box = Box(tmp_path)
    yield box
    box.end()
