"""What the reports of single blobs add up to: how far a transfer is, how fast, and how long it will take.

The rate is that of the last seconds, measured while blobs are moved: time in which there is nothing but waiting, for another
pull or for the disk, does not slow it down, and bytes that were here before, or that somebody else brings, do not speed it up. A
server that falls silent in the middle of a blob does slow it down.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from lamella.transfer.progress import Progress

MOVING = frozenset({"downloading", "uploading", "reading"})
ENDED = frozenset({"mounted", "exists", "done"})
WINDOW = 5.0
"""Seconds over which the rate is taken."""
SETTLED = 0.5
"""Seconds of moving before which there is no rate: what a buffer gave at once would be taken for one."""
_STEP = 0.25
_PAUSE = 1.0
"""Seconds without any moving after which the rate is that of nothing."""


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """Where a transfer stands as a whole, as far as is known by now: referrers and files of an archive are found on the way.

    ``blobs`` are layers, and in a push or copy configs; ``done`` of them have come to their end, or were there. ``received`` of
    ``size`` bytes are there; ``moved`` is what this transfer brought itself, without what it resumed or found. ``rate`` is in
    bytes a second, 0 where nothing is moved or it is too early to tell; ``seconds_left`` is None where it is unknown.
    """

    blobs: int = 0
    done: int = 0
    received: int = 0
    size: int = 0
    moved: int = 0
    rate: float = 0.0
    seconds_left: float | None = None


class _Blob(msgspec.Struct, gc=False):
    """One blob as it was reported last. What has ended once stays so, though it may be unpacked after that."""

    received: int = 0
    size: int = 0
    ended: bool = False
    moving: bool = False


class Tally:
    """Adds reports up, at times that the caller gives (seconds of a clock that never goes back). For one thread at a time."""

    def __init__(self) -> None:
        self._blobs: dict[str, _Blob] = {}
        self._planned = False
        self._done = self._received = self._size = self._moved = 0
        self._moving = 0
        # The clock of the rate runs while blobs are moved: it stood at _ran at the time _since.
        self._ran = self._since = 0.0
        self._samples = deque([(0.0, 0.0)])  # of that clock, and what was moved by then

    def __contains__(self, name: str) -> bool:
        return name in self._blobs

    @property
    def moving(self) -> bool:
        """Whether a blob is on its way."""
        return self._moving > 0

    def plan(self) -> None:
        """Take it that the blobs that are known are those that there will be, so that the time left can be told."""
        self._planned = True

    def rename(self, name: str, digest: str) -> None:
        """Call a blob by its digest from now on, which may be that of another one that is known."""
        blob = self._blobs.pop(name, None)
        if blob is None:
            return
        if digest not in self._blobs:
            self._blobs[digest] = blob
            return
        self._received -= blob.size if blob.ended else blob.received
        self._size -= blob.size
        self._done -= blob.ended

    def add(self, progress: Progress, now: float) -> None:
        """Take a blob's report in. It costs some tenths of a microsecond."""
        phase, received, size = progress.phase, progress.received, progress.size
        blob = self._blobs.get(progress.digest)
        if blob is None:
            blob = self._blobs[progress.digest] = _Blob()
        moving = phase in MOVING
        if blob.moving:
            more = (size if phase == "done" else received) - blob.received
            if more > 0 and (moving or phase == "done"):
                self._moved += more
        if moving is not blob.moving:
            self._turn(moving, now)
            blob.moving = moving
        self._received -= blob.size if blob.ended else blob.received
        self._size += size - blob.size
        if not blob.ended and phase in ENDED:
            blob.ended = True
            self._done += 1
        blob.received, blob.size = received, size
        self._received += size if blob.ended else received
        if self._moving:
            self._sample(now)

    def totals(self, now: float) -> Totals:
        """Say where the transfer stands."""
        rate = self._rate(now)
        left = None
        if self._done == len(self._blobs):
            left = 0.0 if self._planned else None
        elif self._planned and rate and self._size > self._received:
            left = (self._size - self._received) / rate
        return Totals(
            blobs=len(self._blobs),
            done=self._done,
            received=self._received,
            size=self._size,
            moved=self._moved,
            rate=rate,
            seconds_left=left,
        )

    def _turn(self, moving: bool, now: float) -> None:
        """Let the clock of the rate start with the first blob that is moved, and stop with the last."""
        if self._moving == (0 if moving else 1):
            if not moving:
                self._ran += now - self._since
            self._since = now
        self._moving += 1 if moving else -1

    def _rate(self, now: float) -> float:
        if not self._moving and now - self._since > _PAUSE:
            return 0.0
        ran = self._sample(now)
        (began, moved), start = self._samples[0], max(ran - WINDOW, 0.0)
        if began < start and len(self._samples) > 1:
            upper, more = self._samples[1]
            moved += (more - moved) * (start - began) / (upper - began)
        return (self._moved - moved) / (ran - start) if ran >= SETTLED else 0.0

    def _sample(self, now: float) -> float:
        """Note what is moved by now, and let go of what the window has left behind; give the time on the clock of the rate."""
        ran, samples = self._ran, self._samples
        if self._moving:
            ran += now - self._since
        if ran - samples[-1][0] >= _STEP:
            samples.append((ran, self._moved))
            while samples[1][0] <= ran - WINDOW:
                samples.popleft()
        return ran
