"""What a snapshot changes of its parent: shown (``snapshots diff``, ``containers diff``), and made a layer or an image of."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lamella.cli.parser import Parser
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


def add_commit_options(parser: Parser, *, instructions: str) -> None:
    """Add what is said of a new image; ``instructions``: how help goes on about those of a Dockerfile."""
    add = parser.add_argument
    add(
        "-m", "--message", default="", metavar="TEXT", help="What was done; it goes into the image's history."
    )
    add("-a", "--author", default="", metavar="NAME", help="Who did it.")
    add(
        "-c",
        "--change",
        dest="changes",
        action="append",
        default=[],
        metavar="INSTRUCTION",
        help=f"Change the config by an instruction of a Dockerfile{instructions}. Repeat it for several.",
    )


def add_compression_option(parser: Parser, *, what: str) -> None:
    """Add how new layers are compressed."""
    parser.add_argument(
        "--compression",
        choices=("gzip", "zstd", "none"),
        default="gzip",
        help=f"Of {what} (default: gzip).",
    )
