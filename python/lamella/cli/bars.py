"""Progress on a terminal: a bar for each blob, and a line for the whole. Only who shows it imports this, and with it rich.

The cursor is never hidden: a process that is killed could not bring it back. An empty line below the last one keeps it, so that
the prompt after a killed process stands where it belongs.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lamella.cli.output import clean, short
from lamella.cli.progress import ENDED, WORDS, Whole
from lamella.sizes import format_size

if TYPE_CHECKING:
    from lamella.transfer.progress import Progress, ProgressCallback

_NAME = 19  # of a short digest
_PHASE = 13
_BYTES = 19  # 99.9 MB of 99.9 MB
_BAR = 10  # the least that says something
_BLANK = Text()


class _Terminal(Console):
    """stderr as a terminal whose cursor nobody hides."""

    def show_cursor(self, show: bool = True) -> bool:
        """Leave it as it is."""
        return False


@contextmanager
def shown() -> Iterator[ProgressCallback]:
    """Show what the callback gets, until the end of the block, and leave nothing of it."""
    console = _Terminal(stderr=True, force_terminal=True, highlight=False)
    board = Board(console)
    with Live(
        get_renderable=board.render,
        console=console,
        refresh_per_second=10,
        transient=True,
        redirect_stdout=False,
        vertical_overflow="crop",
    ):
        yield board.show


class Board:
    """What is shown, as large as the terminal is at the moment. Safe to use from several threads."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lock = threading.Lock()
        self._blobs: dict[str, Progress] = {}
        self._whole = Whole()

    def show(self, progress: Progress) -> None:
        """Take one report of the library."""
        with self._lock:
            self._whole.take(progress)
            if progress.digest or progress.phase == "checking":
                self._blobs[progress.digest] = progress

    def render(self) -> RenderableType:
        """Give the lines that fit."""
        width, height = self._console.size
        with self._lock:
            rows = self._chosen(
                height - 3
            )  # beside the whole, the empty line, and the one that the last frame ends with
            line = self._whole.line(width - 1)
        if not line:
            return Text()
        table = Table.grid(padding=(0, 1))
        table.add_column(no_wrap=True, width=min(_NAME, width - 1))
        wide = width - _NAME - 1
        with_phase = wide > _PHASE
        with_bytes = wide > _PHASE + _BYTES + 2
        bar = wide - _PHASE - _BYTES - 4
        for each in (with_phase, bar >= _BAR, with_bytes):
            if each:
                table.add_column(no_wrap=True)
        for row in rows:
            received = row.size if row.phase in ENDED else row.received
            cells: list[RenderableType] = [Text(clean(short(row.digest) if row.digest else "blobs")[:_NAME])]
            if with_phase:
                cells.append(Text(f"{WORDS[row.phase]:<{_PHASE}}"))
            if bar >= _BAR:
                cells.append(ProgressBar(total=row.size or 1, completed=received, width=bar))
            if with_bytes:
                text = f"{format_size(received)} of {format_size(row.size)}" if row.size else ""
                cells.append(Text(f"{text:>{_BYTES}}"))
            table.add_row(*cells)
        whole = Text(line, style="bold", no_wrap=True, overflow="crop")
        return Group(*([table] if rows else []), whole, _BLANK)

    def _chosen(self, count: int) -> list[Progress]:
        """Choose the blobs to show: where there is no room for all, those at work first, then those that wait for their turn."""
        if len(self._blobs) <= count:
            return list(self._blobs.values())

        def rank(progress: Progress) -> int:
            return 2 if progress.phase in ENDED else progress.phase == "queued"

        chosen = sorted(self._blobs.values(), key=rank)[: max(count, 0)]
        kept = {progress.digest for progress in chosen}
        return [progress for name, progress in self._blobs.items() if name in kept]
