"""What transfers take of the network: connections at once and bytes a second, for all transfers of a client together.

One :class:`Limits` is shared by downloads and uploads, of whatever thread. Each blob under way has a :class:`Share` of the
connections; the first of them is its own, and what is left over is divided evenly. A blob that streams from one registry to
another has one at each end, and counts once: were it to wait for the second while it holds the first, all could wait for each
other. Documents and tokens take no part: they are small, and others wait for them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from lamella.errors import InvalidArgument

CONNECTIONS = 16
PIECE_MAX = 1024 * 1024
TURN = 0.1
"""Seconds of the bandwidth that one blob takes before the others have their turn; and between two looks at an interruption."""
AHEAD_MAX = 24 * 1024 * 1024
"""Bytes of memory for parts of blobs that were fetched ahead of their turn, over all blobs."""

Check = Callable[[], None]
"""Raises when whoever waits was interrupted."""


class Limits:
    """At most ``connections`` for blobs at once, and at most ``bandwidth`` bytes a second (None: unlimited).

    Errors: InvalidArgument for what is not positive.
    """

    def __init__(self, *, connections: int = CONNECTIONS, bandwidth: float | None = None) -> None:
        if connections < 1:
            raise InvalidArgument(f"{connections} connections are too few to transfer anything")
        if bandwidth is not None and not bandwidth > 0:
            raise InvalidArgument(f"a bandwidth of {bandwidth} bytes a second would not transfer anything")
        self.connections = connections
        self.bandwidth = bandwidth
        self._changed = threading.Condition()
        self._shares = 0
        self._used = 0
        self._ahead = 0
        self._paid_until = 0.0
        self._sending = threading.local()

    def __repr__(self) -> str:
        return f"Limits(connections={self.connections}, bandwidth={self.bandwidth})"

    @property
    def piece(self) -> int:
        """The bytes to move at most before they are paid for."""
        if self.bandwidth is None:
            return PIECE_MAX
        return max(1, min(PIECE_MAX, int(self.bandwidth * TURN)))

    def pay(self, count: int, check: Check) -> None:
        """Wait as long as ``count`` bytes, which were just moved, take at the bandwidth after all that was moved before.

        ``check`` is called while it waits, ten times a second. Who pays in :attr:`piece` after piece takes turns with others.
        """
        if self.bandwidth is None:
            return
        with self._changed:
            self._paid_until = until = max(self._paid_until, time.monotonic()) + count / self.bandwidth
        while (left := until - time.monotonic()) > 0:
            check()
            time.sleep(min(left, TURN))

    def share(self, check: Check) -> Share:
        """Wait until a blob may have a connection; a context that gives it back. ``check`` as in :meth:`pay`.

        In a thread that is :meth:`sending` it is the one that is sent, and has its connection beside that one's.
        """
        if getattr(self._sending, "now", False):
            return Share(self, beside=True)
        with self._changed:
            self._shares += 1  # from now on the others have a smaller one
            try:
                while self._used >= self.connections:
                    check()
                    self._changed.wait(TURN)
            except BaseException:
                self._shares -= 1
                raise
            self._used += 1
        return Share(self)

    @contextmanager
    def sending(self, check: Check) -> Iterator[None]:
        """Wait until a blob may have a connection on which this thread sends it. ``check`` as in :meth:`pay`."""
        with self.share(check):
            self._sending.now = True
            try:
                yield
            finally:
                self._sending.now = False

    def reserve_ahead(self, count: int) -> bool:
        """Take memory for ``count`` bytes that are fetched ahead of their turn; False if there is none left."""
        with self._changed:
            if self._ahead + count > AHEAD_MAX:
                return False
            self._ahead += count
            return True

    def release_ahead(self, count: int) -> None:
        """Give back what :meth:`reserve_ahead` took."""
        with self._changed:
            self._ahead -= count


class Share:
    """The connections of one blob: one at first, which does not count ``beside`` that of the same blob at its other end."""

    def __init__(self, limits: Limits, *, beside: bool = False) -> None:
        self._limits = limits
        self._beside = beside
        self._held = 0 if beside else 1
        self._closed = False

    def __enter__(self) -> Share:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def more(self) -> bool:
        """Take one more connection, if there is one that no other blob has a better right to."""
        limits = self._limits
        with limits._changed:
            if self._closed or limits._used >= limits.connections or self._held >= self._fair():
                return False
            limits._used += 1
            self._held += 1
            return True

    def crowded(self) -> bool:
        """Say whether other blobs began since, so that one connection too many is held."""
        with self._limits._changed:
            return self._closed or self._held > self._fair()

    def less(self) -> None:
        """Give one connection back."""
        self._give_back(1)

    def close(self) -> None:
        """Give all connections back. Harmless twice."""
        with self._limits._changed:
            if not self._closed:
                self._closed = True
                if not self._beside:
                    self._limits._shares -= 1
                self._give_back(self._held)

    def _fair(self) -> int:
        return max(1, self._limits.connections // max(self._limits._shares, 1))

    def _give_back(self, count: int) -> None:
        limits = self._limits
        with limits._changed:
            count = min(count, self._held)
            self._held -= count
            limits._used -= count
            limits._changed.notify_all()
