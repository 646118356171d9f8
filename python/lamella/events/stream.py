"""Following events: an iterator over the table, which waits for what comes.

A stream has a connection of its own and no transaction between two looks, so that it holds up neither its client's threads nor
SQLite's checkpoints. It looks every POLL_SECONDS, which costs some tenths of a percent of a core.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from types import TracebackType
from typing import Any

import msgspec

from lamella.config import Config
from lamella.errors import DataLoss, DeadlineExceeded, FailedPrecondition, InvalidArgument, LamellaError
from lamella.events.spool import drain
from lamella.filters import compile_filters
from lamella.metadata import Database, timestamp
from lamella.metadata.clock import parse_time

POLL_SECONDS = 0.04
_PAGE = 500


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened. ``timestamp`` is RFC 3339 in UTC; ``event`` holds the fields of its topic."""

    number: int
    timestamp: str
    namespace: str
    topic: str
    event: dict[str, Any]


class EventStream(Iterator[Event]):
    """Events as :meth:`lamella.Client.events` was asked for, in their order. Also a context, which closes it.

    One thread iterates; ``close`` may be called from another and ends the iteration.
    """

    position: int
    """The number of the last event that was looked at, shown or not: ``since=position`` goes on after it."""

    def __init__(
        self,
        config: Config,
        *,
        filters: Sequence[str] = (),
        since: int | str | datetime | None = None,
        until: str | datetime | None = None,
        follow: bool = True,
        all_namespaces: bool = False,
        timeout: float | None = None,
    ) -> None:
        self._match = compile_filters(filters) if filters else None
        self._namespace = None if all_namespaces else config.namespace
        self._since = None if isinstance(since, int) else _time(since)
        self._until = _time(until)
        self._timeout = timeout
        self._pending: deque[tuple[int, str, str, str, str]] = deque()
        self._closed = threading.Event()
        self._database = Database(config)
        try:
            self._take_in()
            with self._database.read() as db:
                oldest, newest = db.execute(
                    "SELECT coalesce(min(number), 1), coalesce(max(number), 0) FROM events"
                ).fetchone()
            self._end = None if follow else newest
            if isinstance(since, int):
                self.position = _check_number(since, oldest, newest)
            else:
                self.position = newest if since is None and follow else oldest - 1
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> EventStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the stream. Harmless twice."""
        self._closed.set()
        self._database.close()

    def __iter__(self) -> EventStream:
        return self

    def __next__(self) -> Event:
        """Wait for the next event.

        Errors: DataLoss when the stream fell so far behind that events were dropped; going on iterating gives those that
        are left. DeadlineExceeded when none came for ``timeout`` seconds; iterating may go on after that, too.
        """
        deadline = None if self._timeout is None else time.monotonic() + self._timeout
        while not self._closed.is_set():
            while self._pending:
                event = self._show(*self._pending.popleft())
                if event is not None:
                    return event
            over = self._is_over()
            if self._read():
                continue
            if over:
                self.close()
            elif deadline is not None and time.monotonic() >= deadline:
                raise DeadlineExceeded(f"no event came within {self._timeout} s")
            else:
                self._closed.wait(POLL_SECONDS)
        raise StopIteration

    def _is_over(self) -> bool:
        """Say whether nothing that is to be shown can come any more but what is there."""
        if self._end is not None:
            return True
        return self._until is not None and timestamp() > self._until

    def _read(self) -> bool:
        """Take the next events from the table; tell whether there were some."""
        if self._end is not None and self.position >= self._end:
            return False
        try:
            self._take_in()
            with self._database.read() as db:
                rows = db.execute(
                    "SELECT number, at, namespace, topic, data FROM events WHERE number > ? ORDER BY number LIMIT ?",
                    (self.position, _PAGE),
                ).fetchall()
        except FailedPrecondition:
            if self._closed.is_set():
                return False
            raise
        if rows and rows[0][0] > self.position + 1:
            first, self.position = self.position + 1, rows[0][0] - 1
            raise DataLoss(
                f"events {first} to {self.position} were dropped before they were read",
                hint="Read faster, or look at the store's present state; events that are left can be read on.",
            )
        self._pending.extend(rows)
        return bool(rows)

    def _take_in(self) -> None:
        with suppress(LamellaError):  # a full disk or a busy database: it is tried again
            drain(self._database, self._database.config)

    def _show(self, number: int, at: str, namespace: str, topic: str, data: str) -> Event | None:
        """Give an event if it was asked for."""
        if self._end is not None and number > self._end:
            self._pending.clear()
            return None
        self.position = number
        if self._namespace is not None and namespace != self._namespace:
            return None
        if (self._since is not None and at < self._since) or (self._until is not None and at > self._until):
            return None
        fields = msgspec.json.decode(data, type=dict[str, Any])
        if self._match is not None and not self._match(
            {"namespace": namespace, "topic": topic, "event": dict(flat(fields))}
        ):
            return None
        return Event(number=number, timestamp=at, namespace=namespace, topic=topic, event=fields)


def flat(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Give the fields as filters see them: ``labels.key``, numbers and truth values as text."""
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        elif isinstance(value, bool):
            yield prefix + name, "true" if value else "false"
        elif isinstance(value, str | int | float):
            yield prefix + name, str(value)


def _time(value: str | datetime | None) -> str | None:
    if isinstance(value, datetime):
        return parse_time(value.isoformat())
    return None if value is None else parse_time(value)


def _check_number(since: int, oldest: int, newest: int) -> int:
    """Return the number of an event that the next one is known of."""
    if isinstance(since, bool) or since < 0:
        raise InvalidArgument(f"{since} is not the number of an event")
    if since > newest:
        raise DataLoss(
            f"there is no event {since} yet, the newest is {newest}: the store is another one, or a power cut took the last",
            hint="Look at the store's present state, and follow from now on.",
        )
    if since < oldest - 1:
        raise DataLoss(
            f"events {since + 1} to {oldest - 1} were dropped, the oldest that is kept is {oldest}",
            hint="Look at the store's present state, and follow from now on.",
        )
    return since
