"""Parts of a blob fetched ahead of its reader, on further connections: for networks on which one connection is slow.

A reader needs a blob's bytes in order, and gets them on a connection of its own. Where that one is slower than the reader (its
window divided by the latency; a content delivery network's limit for each), helpers fetch the parts that come next into memory.
Where the reader comes to a part that a helper has, or is fetching, it takes the bytes from there, and leaves its place among the
connections to one more helper; where there is none it takes a helper's place and reads on by itself. So a helper owes nobody
anything: it may fail, stop, or find no memory, and the reader meets whatever was the matter itself, with its own retries and its
own errors.

More connections are tried while the reader does little but wait and the rest would take a while; what brings no gain is
the last try. On loopback the reader is the slower one, and there are no helpers.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from lamella.errors import LamellaError
from lamella.registry.limits import TURN, Check, Limits, Share
from lamella.registry.stretch import Stretch

HELPERS_MAX = 8
"""Of one blob."""
FIRST_HELPERS = 4
WINDOW = 0.5
"""Seconds over which a rate is measured. After a change one window passes, in which connections begin."""
GAIN = 1.15
"""What more connections have to bring: so many times the rate."""
WORTH = 1.0
"""Seconds that the rest of a blob has to take at the present rate."""
PART_MIN, PART_MAX = 1024 * 1024, 4 * 1024 * 1024
"""Bytes of a part: what a connection brings in a second, within these. A part costs a request, and memory until it is read."""
PART_LAST = 256 * 1024
"""Towards the end parts become as small as this, so that all helpers end at about the same time."""


class Part:
    """Some bytes of a blob, the first ``filled`` of which are here."""

    def __init__(self, start: int, end: int) -> None:
        self.start = start
        self.end = end
        self.data = bytearray(end - start)
        self.filled = 0
        self.given_up = False


class Ahead:
    """The helpers of one reader. ``open_part`` gives the stretch from one offset to another.

    ``leave`` ends what the reader reads by itself; it is called before another has its place among the connections.
    """

    def __init__(
        self,
        size: int,
        open_part: Callable[[int, int], Stretch],
        share: Share,
        limits: Limits,
        leave: Callable[[], None],
    ) -> None:
        self._size = size
        self._open_part = open_part
        self._share = share
        self._limits = limits
        self._leave = leave
        self._changed = threading.Condition()
        self._parts: deque[Part] = deque()
        self._stretches: set[Stretch] = set()
        self._threads: list[threading.Thread] = []
        self._helpers = 0
        self._part_size = PART_MIN
        self._reader = 0
        self._alone = True
        self._has_place = True  # among the share's connections, which has one for each helper besides
        self._stopped = False
        # What is measured
        self._since = time.monotonic()
        self._waited = 0.0
        self._arrived = 0
        self._rate = 0.0
        self._fresh = False

    def gap(self, offset: int) -> int:
        """Give the bytes from ``offset`` that no helper has."""
        with self._changed:
            return (self._parts[0].start if self._parts else self._size) - offset

    def take(self, offset: int, view: memoryview, check: Check) -> int:
        """Copy the bytes at ``offset`` that a helper has or is about to get; 0 where no helper is at work on them."""
        if not self._threads:
            return 0
        began = time.monotonic()
        with self._changed:
            part = self._part_at(offset, check)
            self._waited += time.monotonic() - began
            if part is None:
                self._alone = True
                self._take_place(check)
                return 0
            if self._alone:
                self._leave()
                self._alone = False
                self._has_place = not self._start()
            at = offset - part.start
            count = min(part.filled - at, view.nbytes)
            view[:count] = memoryview(part.data)[at : at + count]
            self._reader = offset + count
            if self._reader == part.end:
                self._drop_first()
        return count

    def _part_at(self, offset: int, check: Check) -> Part | None:
        """Wait for the part at ``offset`` to have it; None when it is left to the reader."""
        patience = time.monotonic() + TURN  # for a helper that looks for memory
        while True:
            if self._parts:
                part = self._parts[0]
                if offset < part.start or offset - part.start < part.filled:
                    return part if offset >= part.start else None
                if part.given_up:
                    self._drop_first()
                    continue
            elif self._alone or not self._helpers or time.monotonic() > patience:
                return None
            check()
            self._changed.wait(TURN)

    def _take_place(self, check: Check) -> None:
        """Wait for a place among the connections: one that is free, or that of the next helper who ends."""
        while not self._has_place and not self._share.more():
            check()
            self._changed.wait(TURN)
        self._has_place = True

    def look(self, offset: int, waited: float, arrived: int) -> None:
        """Look whether more helpers would pay. The reader is at ``offset``, and has ``waited`` seconds for bytes of its own."""
        now = time.monotonic()
        with self._changed:
            self._reader = offset
            self._waited += waited
            self._arrived += arrived
            seconds = now - self._since
            if seconds < WINDOW or self._stopped:
                return
            rate, slow = self._arrived / seconds, self._waited > seconds / 2
            self._since, self._waited, self._arrived = now, 0.0, 0
            fresh, self._fresh = self._fresh, False
        if fresh or not slow or self._size - offset < max(rate * WORTH, 2 * self._part_size):
            return
        if self._helpers and rate < self._rate * GAIN:
            return
        if not self._helpers:
            self._part_size = int(min(max(rate, PART_MIN), PART_MAX))
        self._grow(min(max(self._helpers * 2, FIRST_HELPERS), HELPERS_MAX))
        self._rate = rate

    def interrupt(self) -> None:
        """End what the helpers are doing. Harmless twice."""
        with self._changed:
            self._stopped = True
            stretches = list(self._stretches)
            self._changed.notify_all()
        for stretch in stretches:
            stretch.interrupt()

    def close(self) -> None:
        """End the helpers and give their memory back. Harmless twice."""
        self.interrupt()
        deadline = time.monotonic() + 1
        for thread in self._threads:  # one that is only just connecting ends when it has
            thread.join(max(deadline - time.monotonic(), 0))
        with self._changed:
            while self._parts:
                self._drop_first()

    def _grow(self, wanted: int) -> None:
        for _ in range(wanted - self._helpers):  # some of which may end while others begin
            if not self._share.more():
                return
            with self._changed:
                self._fresh = True
                if not self._start():
                    self._share.less()
                    return

    def _start(self) -> bool:
        """Start a helper for a connection that the share holds; False where no thread can be had."""
        thread = threading.Thread(target=self._help, name="lamella-ahead", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            return False
        self._helpers += 1
        self._threads.append(thread)
        return True

    def _help(self) -> None:
        try:
            while (part := self._next()) is not None:
                self._fill(part)
        finally:
            with self._changed:
                self._helpers -= 1
                # The last one leaves its place to the reader even if that needs none now: another blob could take it.
                if self._has_place or (self._helpers and not self._alone):
                    self._share.less()
                else:
                    self._has_place = True
                self._changed.notify_all()

    def _next(self) -> Part | None:
        """Choose what to fetch next, once there is room for it; None if nothing is to be done any more."""
        with self._changed:
            while not self._stopped and not self._share.crowded() and (self._has_place or not self._alone):
                # A reader that is alone will be busy for as long as the first helper is with the next part.
                lead = self._part_size if self._alone else 0
                start = self._parts[-1].end if self._parts else self._reader + lead
                share = (self._size - start) // (2 * self._helpers)
                end = min(start + max(min(self._part_size, share), PART_LAST), self._size)
                if start >= end:
                    return None
                if len(self._parts) < 2 * self._helpers and self._limits.reserve_ahead(end - start):
                    try:
                        self._parts.append(Part(start, end))
                    except MemoryError:
                        self._limits.release_ahead(end - start)
                        return None
                    return self._parts[-1]
                self._changed.wait(TURN)
        return None

    def _fill(self, part: Part) -> None:
        try:
            with self._open_part(part.start, part.end) as stretch, memoryview(part.data) as room:
                with self._changed:
                    self._stretches.add(stretch)
                try:
                    while not self._stopped and (count := stretch.readinto(room[part.filled :])):
                        with self._changed:
                            part.filled += count
                            self._arrived += count
                            self._changed.notify_all()
                finally:
                    with self._changed:
                        self._stretches.discard(stretch)
        except LamellaError:
            self.interrupt()  # the reader will see what the matter is
        finally:
            with self._changed:
                part.given_up = part.filled < part.end - part.start
                self._changed.notify_all()

    def _drop_first(self) -> None:
        part = self._parts.popleft()
        self._limits.release_ahead(part.end - part.start)
        self._changed.notify_all()
