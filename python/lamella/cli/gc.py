"""``lamella gc``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lamella.cli import output
from lamella.cli.parser import Arguments, Command, Parser

if TYPE_CHECKING:
    from lamella.cli.session import Session
    from lamella.gc import GcTimes


def _arguments(parser: Parser) -> None:
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="Only say what would be removed.")
    what.add_argument("--last", action="store_true", help="Show what the last collection did, and when.")


def _gc(arguments: Arguments, session: Session) -> int:
    report = session.client.last_gc() if arguments.last else session.client.gc(dry_run=arguments.dry_run)
    if session.json:
        session.document(report)
    elif report is None:
        session.line("nothing was collected yet")
    else:
        if arguments.dry_run or session.verbose:
            for name in report.names:
                session.line(name)
        when = f"{output.age(report.times.finished_at)}: " if arguments.last and report.times else ""
        session.line(f"{when}{report}")
        if session.verbose and report.times:
            session.line(_times(report.times))
    return 0


def _times(times: GcTimes) -> str:
    return (
        f"marked in {times.mark * 1000:.1f} ms, swept in {times.sweep * 1000:.1f} ms; longest transaction "
        f"{times.longest_transaction * 1000:.1f} ms, waited for others {times.lock_wait * 1000:.1f} ms"
    )


GC = Command(
    "gc",
    "Remove what nothing refers to.",
    _gc,
    _arguments,
    description="Kept is what images, containers, unexpired leases, snapshots that somebody made, and blobs with a "
    "containerd.io/gc.root label refer to, and writes in progress that are younger than a day. Others may go on working "
    "meanwhile. With LAMELLA_GC=auto in the environment, removing images and pulling collect by themselves.",
    examples=[
        ("what would go", "lamella gc --dry-run"),
        ("clean up after removing images", "lamella gc"),
        ("when that was done last, and what it cost", "lamella -v gc --last"),
    ],
)
