"""Several blobs at once: the threads of a transfer."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

from lamella.errors import Cancelled
from lamella.tracing import in_context
from lamella.transfer.progress import INTERVAL, Reporter

PARALLEL = 5
"""Blobs that are transferred at once."""

Job = TypeVar("Job")


class Workers:
    """Threads that do the jobs of one transfer. The first failure (or Ctrl-C) stops all of them within a second.

    ``interrupt`` ends what they wait for; jobs call :meth:`check` now and then.
    """

    def __init__(self, what: str, reporter: Reporter, interrupt: Callable[[], None]) -> None:
        self._what = what
        self._reporter = reporter
        self._interrupt = interrupt
        self._cancelled = threading.Event()

    def check(self) -> None:
        """Raise Cancelled once the transfer was stopped."""
        if self._cancelled.is_set():
            raise Cancelled(f"{self._what} was stopped")

    def run(self, jobs: Iterable[Job], work: Callable[[Job], None], *, parallel: int = PARALLEL) -> None:
        """Do all jobs, in this order, and raise the first error that was not the consequence of another.

        Meanwhile this thread hands the reports on.
        """
        pending: queue.SimpleQueue[Job] = queue.SimpleQueue()
        for job in jobs:
            pending.put(job)
        failures: list[BaseException] = []

        def loop() -> None:
            while not self._cancelled.is_set():
                try:
                    job = pending.get_nowait()
                except queue.Empty:
                    return
                try:
                    work(job)
                except BaseException as error:
                    failures.append(error)
                    self._cancel()

        threads = [
            threading.Thread(target=in_context(loop), name=f"lamella-transfer-{number}", daemon=True)
            for number in range(min(parallel, pending.qsize()))
        ]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    thread.join(INTERVAL)
                    self._reporter.deliver()
            self._reporter.deliver()
        finally:
            if any(thread.is_alive() for thread in threads):
                self._cancel()
                for thread in threads:
                    thread.join()
        if failures:
            raise next((error for error in failures if not isinstance(error, Cancelled)), failures[0])

    def _cancel(self) -> None:
        self._cancelled.set()
        self._interrupt()
