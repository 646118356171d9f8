"""What a transfer tells its caller while it runs.

A callback gets one Progress at a time, in the thread that called for the transfer. That thread has nothing else to do
meanwhile, so that a slow callback holds up nobody: it misses what was overtaken before it came to it. A blob reports at
most ten times a second and once at its end. A callback that raises stops the transfer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Literal

import msgspec

Phase = Literal[
    "resolving",
    "downloading",
    "uploading",
    "reading",
    "waiting",
    "checking",
    "unpacking",
    "compressing",
    "mounted",
    "exists",
    "done",
]
"""``waiting``: another pull, of whatever process, brings it; ``received`` grows with what that one has got."""
INTERVAL = 0.1
"""Seconds between two reports of one blob."""


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """Where one blob, or the whole transfer (``digest`` empty), stands. Sizes are bytes.

    A blob that comes in an archive and whose digest nothing tells yet goes by its name there.
    """

    phase: Phase
    digest: str = ""
    media_type: str = ""
    received: int = 0
    size: int = 0
    unpacked: int = 0

    def __str__(self) -> str:
        what = self.digest[:19] or "image"
        return f"{what}: {self.phase} {self.received}/{self.size}" if self.size else f"{what}: {self.phase}"


ProgressCallback = Callable[[Progress], None]


class Reporter:
    """Takes reports from any thread and hands them to the callback in the thread that made the reporter, the owner.

    Whoever transfers only leaves them: that costs 2 us a report.
    """

    def __init__(self, callback: ProgressCallback | None) -> None:
        self._callback = callback
        self._owner = threading.get_ident()
        self._lock = threading.Lock()
        self._unseen: dict[str, Progress] = {}
        self._last: dict[str, float] = {}

    def say(self, progress: Progress) -> None:
        """Report: at once in the owner, at its next :meth:`deliver` from elsewhere, unless the blob's next one comes first."""
        if self._callback is None:
            return
        with self._lock:
            self._last[progress.digest] = time.monotonic()
            self._unseen.pop(progress.digest, None)  # the order is that of the latest reports
            self._unseen[progress.digest] = progress
        if threading.get_ident() == self._owner:
            self.deliver()

    def deliver(self) -> None:
        """Call the callback with what waits. The owner does so, every :data:`INTERVAL` while others transfer, and at the end."""
        if self._callback is None or not self._unseen:
            return
        with self._lock:
            reports, self._unseen = self._unseen, {}
        for progress in reports.values():
            self._callback(progress)

    def due(self, digest: str) -> bool:
        """Say whether a blob's next report is wanted: from the owner, which delivers it at once, every :data:`INTERVAL`.

        From others always: what comes last before a connection goes silent is to be told, too.
        """
        if self._callback is None:
            return False
        if threading.get_ident() != self._owner:
            return True
        return time.monotonic() - self._last.get(digest, 0.0) >= INTERVAL
