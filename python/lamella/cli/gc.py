"""``lamella gc``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from lamella.cli import output
from lamella.cli.parser import Command, Parser

if TYPE_CHECKING:
    from lamella.cli.session import Session


def _arguments(parser: Parser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="Only say what would be removed.")


def _gc(arguments: argparse.Namespace, session: Session) -> int:
    import msgspec

    report = session.client.gc(dry_run=arguments.dry_run)
    document = msgspec.to_builtins(report)
    if session.json:
        session.document(document | {"dry_run": arguments.dry_run})
        return 0
    rows = []
    for name, value in document.items():
        if isinstance(value, list):
            rows += [(name.removesuffix("s"), str(item)) for item in value]
    if rows and (arguments.dry_run or session.verbose):
        session.table(("KIND", "NAME"), sorted(rows))
    verb = "would be freed" if arguments.dry_run else "freed"
    session.line(f"{output.size(report.bytes_freed)} {verb}")
    return 0


GC = Command(
    "gc",
    "Remove what nothing refers to.",
    _gc,
    _arguments,
    description="Kept is what images, containers, unexpired leases, snapshots that somebody made, and blobs with a "
    "containerd.io/gc.root label refer to, and writes in progress that are younger than a day.",
    examples=[
        ("what would go", "lamella gc --dry-run"),
        ("clean up after removing images", "lamella gc"),
    ],
)
