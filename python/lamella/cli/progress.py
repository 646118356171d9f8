"""What a person sees of a transfer, on stderr: bars on a terminal, or lines for a log."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lamella.cli.output import clean, short
from lamella.cli.parser import Arguments
from lamella.sizes import format_size

if TYPE_CHECKING:
    from lamella.cli.session import Session
    from lamella.transfer.progress import Progress, ProgressCallback

WORDS = {
    "resolving": "resolving",
    "queued": "queued",
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
ENDED = frozenset({"mounted", "exists", "done"})
_TOLD = ENDED | {"waiting", "unpacking", "compressing"}
"""Phases that are an event for a log."""
INTERVAL = 5.0
"""Seconds between two lines that say where the whole stands."""
_CONFIGS = ("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json")


@contextmanager
def watch(session: Session, arguments: Arguments) -> Iterator[ProgressCallback | None]:
    """Give the callback that shows progress on stderr, as ``--progress`` says; None where nobody would see it.

    Bars need a terminal that moves its cursor: on one that does not (TERM=dumb) they are lines. ``--quiet`` is none in any case.
    """
    kind = arguments.progress
    if kind == "auto":
        kind = "tty" if sys.stderr.isatty() else "none"
    if kind == "tty" and os.environ.get("TERM", "").lower() in ("dumb", "unknown"):
        kind = "plain"
    if session.quiet or kind == "none":
        yield None
    elif kind == "plain":
        lines = Lines(session.note)
        yield lines.show
        lines.end()
    else:
        from lamella.cli.bars import shown

        with shown() as show:
            yield show


class Lines:
    """Progress as lines: one a blob that ended, or waits for something; where the whole stands, now and then and at the end."""

    def __init__(self, write: Callable[[str], object], clock: Callable[[], float] = time.monotonic) -> None:
        self._write = write
        self._clock = clock
        self._began = self._said = clock()
        self._phases: dict[str, str] = {}
        self._whole = Whole()

    def show(self, progress: Progress) -> None:
        """Take one report of the library."""
        self._whole.take(progress)
        name, phase = progress.digest, progress.phase
        before = self._phases.get(name)
        if name and phase != before and not (before in ENDED and phase in ENDED):
            self._phases[name] = phase
            if phase in _TOLD:
                bytes_ = f", {format_size(progress.size)}" if phase == "done" else ""
                self._write(f"{clean(short(name))}: {WORDS[phase]}{bytes_}")
        now = self._clock()
        if now - self._said >= INTERVAL:
            self._said = now
            if line := self._whole.line():
                self._write(line)

    def end(self) -> None:
        """Say what came of it all, and how fast that was on the whole."""
        seconds = self._clock() - self._began
        parts = self._whole.parts(rate=self._whole.moved / seconds if seconds else 0.0)
        if parts:
            self._write(_total([*parts, f"in {seconds:.1f} s"]))


class Whole:
    """Where a transfer stands as a whole, in words."""

    def __init__(self) -> None:
        self._latest: Progress | None = None
        self._noun = "layers"

    def take(self, progress: Progress) -> None:
        """Take one report of the library."""
        self._latest = progress
        if progress.media_type in _CONFIGS:
            self._noun = "blobs"

    @property
    def moved(self) -> int:
        """How many bytes the transfer brought itself."""
        return 0 if self._latest is None else self._latest.total.moved

    def parts(self, rate: float | None = None) -> list[str]:
        """Give bytes, layers, rate and time left, as far as they are known; with ``rate`` that of all, at the end."""
        if self._latest is None:
            return []
        progress, total = self._latest, self._latest.total
        if progress.phase == "checking":
            return (
                []
                if rate is not None
                else [f"{format_size(progress.received)} of {format_size(progress.size)} checked"]
            )
        if not total.blobs:
            return []
        parts = [
            f"{format_size(total.received)} of {format_size(total.size)}",
            f"{total.done}/{total.blobs} {self._noun}",
        ]
        left = total.seconds_left if rate is None and total.done < total.blobs else None
        rate = total.rate if rate is None else rate
        if rate >= 1:
            parts.append(f"{format_size(int(rate))}/s")
        if left is not None:
            parts.append(f"{duration(left)} left")
        return parts

    def line(self, width: int | None = None) -> str:
        """Put the parts on a line; where that is too wide a percentage stands for the bytes, and the last ones are left out."""
        parts = self.parts()
        if width is not None and len(_total(parts)) > width and self._latest is not None:
            total = self._latest.total
            if total.size:
                parts[0] = f"{total.received * 100 // total.size}%"
            while len(_total(parts)) > width and len(parts) > 1:
                parts.pop()
        return _total(parts) if parts else ""


def _total(parts: Sequence[str]) -> str:
    return f"total: {', '.join(parts)}"


def duration(seconds: float) -> str:
    """Show seconds in two units at most: ``45s``, ``3m20s``, ``1h05m``, ``2d03h``."""
    whole = max(1, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"
