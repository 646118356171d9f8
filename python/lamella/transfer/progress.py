"""What a transfer tells its caller while it runs.

A callback gets one Progress at a time, never two at once, from whichever thread made the progress; a blob reports at
most ten times a second and once at its end. A callback that raises stops the transfer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Literal

import msgspec

Phase = Literal["resolving", "downloading", "waiting", "checking", "unpacking", "exists", "done"]
"""``waiting``: another pull, of whatever process, brings it; ``received`` grows with what that one has got."""
INTERVAL = 0.1
"""Seconds between two reports of one blob."""


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """Where one blob, or the whole transfer (``digest`` empty), stands. Sizes are bytes."""

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
    """Serializes reports to a callback and thins them out; costs one clock reading when there is nothing to say."""

    def __init__(self, callback: ProgressCallback | None) -> None:
        self._callback = callback
        self._lock = threading.Lock()
        self._last: dict[str, float] = {}

    def __bool__(self) -> bool:
        return self._callback is not None

    def say(self, progress: Progress) -> None:
        """Report now."""
        if self._callback is None:
            return
        with self._lock:
            self._last[progress.digest] = time.monotonic()
            self._callback(progress)

    def due(self, digest: str) -> bool:
        """Say whether the blob has been silent long enough for its next report."""
        if self._callback is None:
            return False
        return time.monotonic() - self._last.get(digest, 0.0) >= INTERVAL
