"""What the library does, watched: one ``with`` block measures an operation, traces it and logs how it ended.

::

    with _PREPARE(database.metrics, snapshot=key) as prepare:
        ...

counts it by its result, puts its duration into a histogram (:mod:`lamella.metrics`), is a span where the program uses
OpenTelemetry (:mod:`lamella.tracing`) and a log record where it listens (:mod:`lamella.logs`). An :class:`Operation` says under
which names. An error is counted by its class and logged as DEBUG: whoever catches it decides what it is worth.

Where nobody traces or listens a block costs 1.3 us.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from time import perf_counter
from types import TracebackType

from lamella.logs import DEBUG, INFO, Log
from lamella.metrics.table import ERRORS, Counter, Histogram, Series, kind_of
from lamella.tracing import attributes, span, tracing
from lamella.typings import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from lamella.metrics import Recorder

__all__ = ["DEBUG", "INFO", "Operation", "Running", "by_result", "when_ok"]


class Operation:
    """What one kind of operation is called in metrics, traces and logs.

    ``name`` is its label in ``lamella_errors_total``, if it is one (what is a part of another operation is none). ``counts`` and
    ``durations`` say which cell and which histogram each result goes to; a result without one goes to none. ``message`` is
    logged at ``level`` and may name fields, ``seconds`` and ``result``.
    """

    def __init__(
        self,
        name: str,
        message: str,
        *,
        log: str,
        level: int = DEBUG,
        span: str | None = None,
        counts: Mapping[str, int] | None = None,
        durations: Mapping[str, Series] | None = None,
    ) -> None:
        self.name = name
        self.message = message
        self.log = Log(log)
        self.level = level
        self.span = span or f"lamella.{name}"
        self.counts = counts or {}
        self.durations = durations or {}

    def __call__(self, recorder: Recorder, **fields: Any) -> Running:
        """Begin one when the block that this is for is entered."""
        return Running(self, recorder, fields)


class Running:
    """One operation that goes on. Set ``result`` if it is not ``ok``; :meth:`note` what comes to light."""

    __slots__ = ("_began", "_context", "_operation", "_recorder", "_span", "fields", "result")

    def __init__(self, operation: Operation, recorder: Recorder, fields: dict[str, Any]) -> None:
        self._operation = operation
        self._recorder = recorder
        self._context: AbstractContextManager[Span | None] | None = None
        self._span: Span | None = None
        self.fields = fields
        self.result = "ok"

    def __enter__(self) -> Running:
        if tracing():
            self._context = span(self._operation.span, **self.fields)
            self._span = self._context.__enter__()
        self._began = perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        seconds = perf_counter() - self._began
        operation, recorder = self._operation, self._recorder
        try:
            if error is not None:
                self._failed(error, seconds)
                return
            cell = operation.counts.get(self.result)
            if cell is not None:
                recorder.add(cell)
            series = operation.durations.get(self.result)
            if series is not None:
                recorder.observe(series, seconds)
            if operation.log.listened(operation.level):
                fields = {**self.fields, "seconds": seconds, "result": self.result}
                operation.log.write(operation.level, operation.message, fields)
        finally:
            if self._context is not None:
                self._context.__exit__(kind, error, traceback)

    def _failed(self, error: BaseException, seconds: float) -> None:
        operation, kind = self._operation, kind_of(error)
        for cell in (ERRORS.cells.get((operation.name, kind)), operation.counts.get("error")):
            if cell is not None:
                self._recorder.add(cell)
        self.note(error=kind)
        if operation.log.listened(DEBUG):
            fields = {**self.fields, "operation": operation.name, "reason": str(error), "seconds": seconds}
            operation.log.write(DEBUG, "%(operation)s failed: %(error)s: %(reason)s", fields, stacklevel=4)

    def note(self, **fields: Any) -> None:
        """Add fields to the span and to the log record at the end."""
        self.fields.update(fields)
        if self._span is not None:
            self._span.set_attributes(attributes(fields))


def by_result(row: Counter) -> dict[str, int]:
    """Give the cells of a counter whose one label is the result."""
    return {values[0]: cell for values, cell in row.cells.items()}


def when_ok(row: Histogram, *values: str) -> dict[str, Series]:
    """Give the histogram for operations that succeed."""
    return {"ok": row.series(*values)}
