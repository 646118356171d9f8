"""Shows what a snapshot changes of its parent: for ``snapshots diff`` and ``containers diff``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lamella.cli.session import Session
    from lamella.snapshots import Change


def show_changes(session: Session, changes: Sequence[Change]) -> int:
    """Print one line a change, with docker's letters, or JSON. Bytes that are no UTF-8 are shown by their number."""
    if session.json:
        session.document([{"kind": change.kind, "path": _text(change.path)} for change in changes])
    else:
        for change in changes:
            session.line(_text(str(change)))
    return 0


def _text(path: str) -> str:
    return os.fsencode(path).decode(errors="backslashreplace")
