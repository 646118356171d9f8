"""``lamella gc``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from lamella.cli.parser import Command, Parser

if TYPE_CHECKING:
    from lamella.cli.session import Session


def _arguments(parser: Parser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="Only say what would be removed.")


def _gc(arguments: argparse.Namespace, session: Session) -> int:
    report = session.client.gc(dry_run=arguments.dry_run)
    if session.json:
        session.document(report)
    else:
        if arguments.dry_run or session.verbose:
            for name in report.names:
                session.line(name)
        session.line(str(report))
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
