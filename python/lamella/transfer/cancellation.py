"""Ending a transfer from another thread than the one that does it.

A thread that waits for a server, a lock or a pipe cannot be sent an exception. So what such a thread is going to wait for is
noted in the :class:`Cancellation` of its context, and asks there now and then.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import ContextVar

from lamella.errors import Cancelled


class Cancellation:
    """Whether one transfer was cancelled, and what ends its waits. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._interrupts: list[Callable[[], None]] = []
        self._cancelled = False

    def add(self, interrupt: Callable[[], None]) -> None:
        """Have this called, once, by :meth:`cancel`; at once after it."""
        with self._lock:
            if not self._cancelled:
                self._interrupts.append(interrupt)
                return
        interrupt()

    def cancel(self) -> None:
        """Cancel it. Harmless twice."""
        with self._lock:
            self._cancelled = True
            interrupts, self._interrupts = self._interrupts, []
        for interrupt in interrupts:
            interrupt()

    def check(self) -> None:
        """Raise Cancelled after :meth:`cancel`."""
        if self._cancelled:
            raise Cancelled("the transfer was cancelled")


current: ContextVar[Cancellation | None] = ContextVar("current", default=None)
"""That of the transfer which the calling thread does; None where nobody could cancel it."""
