"""What commands that serve until Ctrl-C have in common."""

from __future__ import annotations

import resource
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def until_signalled() -> Iterator[Callable[[], None]]:
    """Let SIGINT and SIGTERM end a wait in this block, which gets the function that waits.

    Once that returns signals act as before, so that a second one ends the process at once. There may be as many descriptors as
    the process is allowed: most systems start programs with 1024, less than two for each connection.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    signalled = threading.Event()
    previous = {
        number: signal.signal(number, lambda *_: signalled.set())
        for number in (signal.SIGINT, signal.SIGTERM)
    }

    def as_before() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def wait() -> None:
        signalled.wait()
        as_before()

    try:
        yield wait
    finally:
        as_before()
