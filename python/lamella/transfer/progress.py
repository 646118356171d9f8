"""What a transfer tells its caller while it runs.

A callback gets one Progress at a time, in the thread that called for the transfer. That thread has nothing else to do
meanwhile, so that a slow callback holds up nobody: it misses what was overtaken before it came to it. A blob reports at
most ten times a second and once at its end; while blobs are moved and none has anything to say, the whole does, once a second.
A callback that raises stops the transfer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Literal

import msgspec

from lamella import oci
from lamella.transfer.cancellation import current
from lamella.transfer.totals import MOVING, Tally, Totals

Phase = Literal[
    "resolving",
    "queued",
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
"""``queued``: its turn will come. ``waiting``: another pull, of whatever process, brings it; ``received`` grows with what that
one has got."""
INTERVAL = 0.1
"""Seconds between two reports of one blob."""
PULSE = 1.0
"""Seconds after which silence is told, too."""


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """Where one blob, or the whole transfer (``digest`` empty), stands. Sizes are bytes.

    A blob that comes in an archive and whose digest nothing tells yet goes by its name there. ``total``: the whole of it, at
    the moment at which the callback gets this.
    """

    phase: Phase
    digest: str = ""
    media_type: str = ""
    received: int = 0
    size: int = 0
    unpacked: int = 0
    total: Totals = Totals()

    def __str__(self) -> str:
        what = self.digest[:19] or "image"
        return f"{what}: {self.phase} {self.received}/{self.size}" if self.size else f"{what}: {self.phase}"


ProgressCallback = Callable[[Progress], None]


class Reporter:
    """Takes reports from any thread and hands them to the callback in the thread that made the reporter, the owner.

    Whoever transfers only leaves them: that costs 2 us a report. ``clock`` gives seconds and never goes back.
    """

    def __init__(
        self, callback: ProgressCallback | None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._callback = callback
        self._clock = clock
        self._owner = threading.get_ident()
        self._cancellation = current.get()
        self._lock = threading.Lock()
        self._unseen: dict[str, Progress] = {}
        self._last: dict[str, float] = {}
        self._tally = Tally()
        self._moving: Phase = "resolving"
        self._delivered = 0.0

    @staticmethod
    def of(progress: ProgressCallback | Reporter | None) -> Reporter:
        """Give a reporter for a callback; the one of a transfer for a part of it, so that both are added up."""
        return progress if isinstance(progress, Reporter) else Reporter(progress)

    def expect(self, blobs: Iterable[oci.Descriptor]) -> None:
        """Report blobs whose turn will come, those apart that were reported already. For the owner."""
        if self._callback is None:
            return
        for blob in blobs:
            if blob.digest not in self._tally:
                self._leave(
                    Progress(phase="queued", digest=blob.digest, media_type=blob.media_type, size=blob.size)
                )
        self._tally.plan()
        self.deliver()

    def rename(self, name: str, digest: str) -> None:
        """Call by its digest what was reported by a name."""
        with self._lock:
            self._tally.rename(name, digest)

    def say(self, progress: Progress) -> None:
        """Report: at once in the owner, at its next :meth:`deliver` from elsewhere, unless the blob's next one comes first."""
        if self._callback is None:
            return
        self._leave(progress)
        if threading.get_ident() == self._owner:
            self.deliver()

    def _leave(self, progress: Progress) -> None:
        digest = progress.digest
        with self._lock:
            now = self._last[digest] = self._clock()
            if digest:
                self._tally.add(progress, now)
                if progress.phase in MOVING:
                    self._moving = progress.phase
            self._unseen.pop(digest, None)  # the order is that of the latest reports
            self._unseen[digest] = progress

    def deliver(self) -> None:
        """Call the callback with what waits. The owner does so, every :data:`INTERVAL` while others transfer, and at the end.

        Cancelled when another thread has stopped the transfer; what the callback raises.
        """
        if self._cancellation is not None:
            self._cancellation.check()
        if self._callback is None:
            return
        now = self._clock()
        if not self._unseen and not (self._tally.moving and now - self._delivered >= PULSE):
            return
        with self._lock:
            reports, self._unseen = self._unseen, {}
            total = self._tally.totals(now)
        self._delivered = now
        if not reports:
            reports = {"": Progress(phase=self._moving, received=total.received, size=total.size)}
        for progress in reports.values():
            self._callback(msgspec.structs.replace(progress, total=total))

    def due(self, digest: str) -> bool:
        """Say whether a blob's next report is wanted: from the owner, which delivers it at once, every :data:`INTERVAL`.

        From others always: what comes last before a connection goes silent is to be told, too.
        """
        if self._callback is None:
            return False
        if threading.get_ident() != self._owner:
            return True
        return self._clock() - self._last.get(digest, 0.0) >= INTERVAL
