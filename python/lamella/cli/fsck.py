"""``lamella fsck``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lamella.cli import EXIT_ERROR
from lamella.cli.parser import Arguments, Command, Parser
from lamella.cli.pull import add_progress_option
from lamella.cli.registry_options import add_registry_options

if TYPE_CHECKING:
    from lamella.cli.session import Session


def _arguments(parser: Parser) -> None:
    add = parser.add_argument
    add("--repair", action="store_true", help="Mend what can be mended.")
    add("--no-fetch", action="store_true", help="Mend with what is here; ask no registry.")
    add("--verify-layers", action="store_true", help="Compare unpacked layers with their blobs, too.")
    add("--jobs", type=int, default=2, metavar="N", help="How many threads hash and fetch (default: 2).")
    add_progress_option(parser)
    add_registry_options(parser)


def _fsck(arguments: Arguments, session: Session) -> int:
    from lamella.cli.progress import watch

    with watch(session, arguments) as callback:
        report = session.client.fsck(
            repair=arguments.repair,
            verify_layers=arguments.verify_layers,
            fetch=not arguments.no_fetch,
            jobs=arguments.jobs,
            progress=callback,
        )
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
    "it. With --repair, damaged and missing blobs are fetched from the registries that they came from, layers are unpacked "
    "anew, and what nothing refers to is removed; what cannot be had is named with its images. --verify-layers unpacks every "
    "layer once more, beside the other, and takes as long as that.",
    examples=[
        ("only look", "lamella fsck"),
        ("mend what can be mended", "lamella fsck --repair"),
        ("a disk that loses bits", "lamella fsck --repair --verify-layers"),
    ],
)
