"""How slowly an answer may come: no time-out on the whole, but one on a drip, as on silence.

A socket's time-out begins anew with each byte: a server that sends one now and then would hold a transfer, or a header, for
ever. So the time spent waiting for bytes is counted, and in as much of it as the read time-out allows for silence at least
:data:`RATE_MIN` times its seconds must have come (curl's ``--speed-limit`` and ``--speed-time``). Time in which nobody
reads, because the reader is busy or limits itself, does not count, nor does the wait for an answer's first byte.
"""

from __future__ import annotations

import http.client
import io
import socket
import time
from typing import Any

RATE_MIN = 1024
"""Bytes a second."""
HEADERS_MAX = 256 * 1024
"""Bytes before the body; http.client bounds each line and each block, but not the number of blocks (100 Continue)."""


class TooSlow(TimeoutError):
    """A server sends, but less than :data:`RATE_MIN`."""


class PacedResponse(http.client.HTTPResponse):
    """An answer whose bytes have to come at a pace."""

    def __init__(self, sock: socket.socket, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self._pace = _Pace(self.fp.detach(), sock.gettimeout())
        self.fp = io.BufferedReader(self._pace)

    def begin(self) -> None:
        """Read the status and the headers, all of them: http.client takes a connection that breaks for their end."""
        self._pace.allowance = HEADERS_MAX
        super().begin()
        self._pace.allowance = None
        if self._pace.ended:
            raise http.client.RemoteDisconnected("the connection ended in the headers")

    def readinto1(self, buffer: Any) -> int:
        """Read what is there, waiting only where nothing is; of a body that is not chunked without a copy (read1 makes one)."""
        if self.fp is None or self.chunked:
            return super().readinto1(buffer)
        view = memoryview(buffer)[: self.length]
        count: int = self.fp.readinto1(view)
        if self.length is not None:
            self.length -= count
        if self.length == 0 or (view and not count):
            self._close_conn()  # type: ignore[attr-defined]
        return count


class _Pace(io.RawIOBase):
    """Reads from a socket and looks at the clock."""

    def __init__(self, source: io.RawIOBase, seconds: float | None) -> None:
        super().__init__()
        self._source = source
        self._window = seconds
        self._waited = 0.0
        self._came = 0
        self._began = False
        self.ended = False
        self.allowance: int | None = None

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """Read from the socket once. TimeoutError for silence and for a drip."""
        started = time.monotonic()
        count: int | None = self._source.readinto(buffer)
        waited, count = time.monotonic() - started, count or 0
        self.ended = not count
        if self.allowance is not None:
            self.allowance -= count
            if self.allowance < 0:
                raise http.client.HTTPException(f"more than {HEADERS_MAX} bytes of headers")
        if not self._began:
            self._began = True
            return count
        self._waited += waited
        self._came += count
        if self._window is not None and self._waited >= self._window:
            if count and self._came < RATE_MIN * self._waited:
                raise TooSlow(f"less than {RATE_MIN} bytes a second")
            self._waited, self._came = 0.0, 0
        return count

    def close(self) -> None:
        """Close the socket's file, too."""
        if not self.closed:
            self._source.close()
        super().close()
