"""Progress: on a terminal only, on stderr, a bar for each blob."""

from __future__ import annotations

import os
import pty
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from program import Program

pytestmark = pytest.mark.privileged


def _pull(lamella: Program, *words: str) -> tuple[bytes, bytes]:
    """Run a pull with a terminal for stderr; give what went to stdout and to the terminal."""
    ours, theirs = pty.openpty()
    done = subprocess.Popen(
        lamella.argv(*words),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 65536):
            shown += piece
    except OSError:  # EIO: the last writer has gone
        pass
    os.close(ours)
    out, _ = done.communicate(timeout=60)
    assert done.returncode == 0, shown
    return out, shown


def test_a_terminal_shows_every_layer_with_its_bytes(lamella: Program, small_image: str) -> None:
    out, shown = _pull(lamella, "--json", "pull", small_image)
    document = lamella("images", "inspect", small_image).ok().document
    assert out.startswith(b"{")
    for layer in document["layers"]:
        assert layer["digest"][:19].encode() in shown
    assert b"MB" in shown


def test_quiet_shows_nothing(lamella: Program, small_image: str) -> None:
    out, shown = _pull(lamella, "-q", "pull", small_image)
    assert (out.decode(), shown) == (f"{small_image}\n", b"")
