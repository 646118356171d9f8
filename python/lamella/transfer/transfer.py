"""A transfer as an iterator over its progress, for callers that would rather loop than be called back.

The transfer runs in a thread of its own while the caller loops; what it reports waits in a table with a row a blob, so that a
slow loop misses what was overtaken and memory does not grow. Leaving the loop is cancelling: requests to registries end, the rest
at its next report, and the thread has ended when the loop is left.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextvars import copy_context
from functools import partial
from types import TracebackType
from typing import Any, Generic, ParamSpec, TypeVar, cast

from lamella.errors import Cancelled
from lamella.transfer.cancellation import Cancellation, current
from lamella.transfer.progress import Progress

_P = ParamSpec("_P")
_Result = TypeVar("_Result")


class Transfer(Generic[_Result]):
    """A call of ``call(*args, progress=..., **kwargs)`` that is an iterator over what it reports.

    ::

        transfer = lamella.Transfer(client.images.pull, "nginx:latest")
        for progress in transfer:
            print(progress)
        image = transfer.result()

    ``call`` is any method that takes ``progress``: pull, push, copy, import_, export and convert of
    :class:`lamella.images.Images`, or :meth:`lamella.Client.fsck`. It begins with the loop, or with :meth:`result`. Its errors
    are raised where the loop would end. A loop that is left early (break, an error, Ctrl-C) cancels it and waits until it has
    cleaned up; so does the end of a ``with`` block around it. For one thread; use it once.
    """

    def __init__(self, call: Callable[_P, _Result], *args: _P.args, **kwargs: _P.kwargs) -> None:
        self._call: Callable[[], _Result] = partial(cast(Any, call), *args, progress=self._take, **kwargs)
        self._cancellation = Cancellation()
        self._changed = threading.Condition()
        self._unseen: dict[str, Progress] = {}
        self._thread: threading.Thread | None = None
        self._ended = False
        self._result: _Result | None = None
        self._error: BaseException | None = None

    def __iter__(self) -> Iterator[Progress]:
        """Give each report, the latest of a blob, until there are no more; then raise the error, if there was one.

        Cancelled after :meth:`close`. Where blobs are moved a report comes at least once a second.
        """
        self._start()
        try:
            while (progress := self._next()) is not None:
                yield progress
        finally:
            self.close()
        self.result()

    def result(self) -> _Result:
        """Wait for the end and give what the call returned. Raises what that raised; Cancelled after :meth:`close`."""
        self._start()
        try:
            self._join()
        except BaseException:  # Ctrl-C
            self.close()
            raise
        if self._error is not None:
            raise self._error
        return cast(_Result, self._result)

    def close(self) -> None:
        """Cancel the transfer unless it has ended, and wait until it has cleaned up. Harmless twice, and after the end.

        The store is left as after Ctrl-C: nothing has a name that is not whole, and what had come helps the next try. What cannot
        be interrupted is waited for: the recompression of a layer, a read or write of a pipe that the caller gave.
        """
        self._cancellation.cancel()
        if self._thread is None:
            self._error, self._ended = Cancelled("the transfer was cancelled before it began"), True
        else:
            self._join()

    def __enter__(self) -> Transfer[_Result]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> None:
        if self._thread is None and not self._ended:
            context = copy_context()
            context.run(current.set, self._cancellation)
            self._thread = threading.Thread(
                target=context.run, args=(self._run,), name="lamella-transfer", daemon=True
            )
            self._thread.start()

    def _run(self) -> None:
        try:
            self._result = self._call()
        except BaseException as error:
            self._error = error
        with self._changed:
            self._ended = True
            self._changed.notify()

    def _take(self, progress: Progress) -> None:
        """Keep a report for the loop; in the transfer's thread."""
        with self._changed:
            self._unseen.pop(progress.digest, None)  # the order is that of the latest reports
            self._unseen[progress.digest] = progress
            self._changed.notify()

    def _next(self) -> Progress | None:
        """Wait for a report; None once there will be no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._unseen or self._ended)
            return self._unseen.pop(next(iter(self._unseen))) if self._unseen else None

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
