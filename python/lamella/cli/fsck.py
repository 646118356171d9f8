"""``lamella fsck``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from lamella.cli import EXIT_ERROR
from lamella.cli.parser import Command, Parser

if TYPE_CHECKING:
    from lamella.cli.session import Session


def _arguments(parser: Parser) -> None:
    parser.add_argument("--repair", action="store_true", help="Mend what can be mended.")
    parser.add_argument(
        "--jobs", type=int, default=2, metavar="N", help="How many threads hash blobs (default: 2)."
    )


def _fsck(arguments: argparse.Namespace, session: Session) -> int:
    report = session.client.fsck(repair=arguments.repair, jobs=arguments.jobs)
    if session.json:
        session.document(report)
    else:
        for finding in report.findings:
            mark = "mended" if finding.mended else "wrong"
            session.line(f"{mark}: {finding.kind} {finding.name}")
            session.line(f"    {finding.detail}")
            session.line(f"    {finding.action}")
        for leftover in report.leftovers:
            mark = "removed" if leftover.mended else "left over"
            session.line(f"{mark}: {leftover.kind} {leftover.name}")
        if not session.quiet:
            session.line(str(report))
    return 0 if report.clean else EXIT_ERROR


FSCK = Command(
    "fsck",
    "Look for damage and mend it.",
    _fsck,
    _arguments,
    description="Database and disk are compared both ways, in all namespaces, and every blob is hashed. The exit status is 1 "
    "when something is wrong that was not mended. What killed processes left behind is named too, but is not wrong: gc takes "
    "it. With --repair, what nothing refers to is removed, layers are unpacked anew from their blobs, and damaged blobs are "
    "forgotten, so that the pull that is named fetches them.",
    examples=[
        ("only look", "lamella fsck"),
        ("mend what can be mended", "lamella fsck --repair"),
    ],
)
