"""What commands that serve until Ctrl-C have in common."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from select import POLLIN, poll


@contextmanager
def until_signalled() -> Iterator[Callable[[], None]]:
    """Let SIGINT and SIGTERM end a wait in this block, which gets the function that waits.

    Once that returns signals act as before, so that a second one ends the process at once. There may be as many descriptors as
    the process is allowed: most systems start programs with 1024, less than two for each connection.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    signalled: list[int] = []
    # A signal may come right before the system call that is to wait, which it then does not interrupt, and a lock that its
    # handler wants may be held at that moment: once in a thousand signals an Event was not set. What is waited for is
    # therefore a byte, which the interpreter writes before it calls any handler.
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    waiter = poll()
    waiter.register(reading, POLLIN)
    written_before = signal.set_wakeup_fd(writing)
    previous = {
        number: signal.signal(number, lambda number, _: signalled.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }

    def as_before() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def wait() -> None:
        while not signalled:
            if waiter.poll():
                os.read(reading, 64)
        as_before()

    try:
        yield wait
    finally:
        as_before()
        signal.set_wakeup_fd(written_before)
        os.close(reading)
        os.close(writing)
