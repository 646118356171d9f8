"""Progress of a pull on a terminal: one bar a layer, with bytes. rich is imported only where there is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lamella.cli.output import short

if TYPE_CHECKING:
    from rich.progress import TaskID

    from lamella.transfer.progress import Progress, ProgressCallback

_WIDTH = 19  # of a short digest
_WORDS = {
    "resolving": "resolving",
    "downloading": "fetching",
    "uploading": "sending",
    "reading": "reading",
    "waiting": "waiting",
    "checking": "checking",
    "unpacking": "unpacking",
    "compressing": "compressing",
    "mounted": "mounted",
    "exists": "there already",
    "done": "done",
}


@contextmanager
def watch(*, quiet: bool) -> Iterator[ProgressCallback | None]:
    """Give the callback that shows progress on stderr, None where nobody would see it."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    with Progress(
        TextColumn(f"{{task.description:<{_WIDTH}}}"),
        TextColumn("{task.fields[phase]:<12}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as display:
        yield _Board(display).show


class _Board:
    """Keeps the bar of each blob."""

    def __init__(self, display: object) -> None:
        from rich.progress import Progress

        assert isinstance(display, Progress)
        self._display = display
        self._bars: dict[str, TaskID] = {}

    def show(self, progress: Progress) -> None:
        """Take one report of the library; safe to call from any thread, as rich's Progress is."""
        if not progress.digest and progress.phase != "checking":
            return
        bar = self._bars.get(progress.digest)
        phase = _WORDS.get(progress.phase, progress.phase)
        if bar is None:
            bar = self._bars[progress.digest] = self._display.add_task(
                short(progress.digest)[:_WIDTH] if progress.digest else "blobs",
                total=progress.size or None,
                phase=phase,
            )
        complete = progress.size if progress.phase in ("mounted", "exists", "done") else progress.received
        self._display.update(bar, completed=complete, total=progress.size or None, phase=phase)
