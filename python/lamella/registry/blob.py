"""A blob as a stream: exactly the bytes from an offset to the descriptor's size, over as many connections as it takes.

The bytes go from the socket into the reader's buffer without a copy in Python (requests receives 240 MB in five threads in
0.11 s that way; ``iter_content`` takes four times as long). Their digest is for the reader to check: the pipeline hashes
them anyway.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPResponse

import requests

from lamella.errors import Cancelled, DataLoss, LamellaError, Unavailable
from lamella.oci import Descriptor
from lamella.registry.config import Timeouts
from lamella.registry.failures import TRANSPORT_ERRORS, explain
from lamella.registry.targets import Origin
from lamella.registry.transport import Patience

PIECE_MAX = 1024 * 1024
"""Bytes read at once at most."""
PIECE_MIN = 16 * 1024
SLOW = 0.25
"""Seconds for a piece above which smaller ones are read, so that progress and interruption stay lively."""
QUICK = 0.05
PROGRESS = 64 * 1024
"""Bytes after which a connection that breaks counts as the first failure again."""

_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/(?:([0-9]{1,19})|\*)\Z")

Opener = Callable[[int, Patience], requests.Response]
"""Asks for the blob from an offset on and gives an answer with status 200 or 206."""


class BlobStream:
    """Reads one blob; a context manager. One thread reads, any other may :meth:`interrupt`.

    A connection that breaks is replaced by another that goes on where it broke, a bounded number of times in a row.
    """

    def __init__(
        self, descriptor: Descriptor, offset: int, opener: Opener, patience: Patience, timeouts: Timeouts
    ) -> None:
        self.descriptor = descriptor
        self.offset = offset
        self._open_at = opener
        self._patience = patience
        self._timeouts = timeouts
        self._response: requests.Response | None = None
        self._piece = PIECE_MAX
        self._since_failure = 0
        self._interrupted = False
        if offset < descriptor.size:
            self._connect()

    def __enter__(self) -> BlobStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"BlobStream({self.descriptor.digest}, {self.offset} of {self.descriptor.size} bytes)"

    def readinto(self, buffer: bytearray | memoryview) -> int:
        """Fill ``buffer`` from its start and give the count of bytes; 0 at the end of the blob.

        Errors: DataLoss when the registry has another blob than the descriptor says, Unavailable when it cannot be
        had to its end, Cancelled.
        """
        remaining = self.descriptor.size - self.offset
        view = memoryview(buffer)
        while remaining and view.nbytes:
            if self._interrupted:
                raise Cancelled(f"the download of {self.descriptor.digest} was stopped")
            response = self._response or self._connect()
            wanted = view[: min(remaining, self._piece)]
            started = time.monotonic()
            try:
                count = _receive(response, wanted)
            except TRANSPORT_ERRORS as error:
                self._lost(explain(error, Origin.of(response.url), self._timeouts).error)
                continue
            if not count:
                host = Origin.of(response.url).netloc
                self._lost(
                    Unavailable(f"{host} broke off after {self.offset} of {self.descriptor.size} bytes")
                )
                continue
            self._advance(count, time.monotonic() - started)
            return count
        return 0

    def interrupt(self) -> None:
        """Make a read in another thread, and every later one, raise Cancelled. Harmless twice."""
        self._interrupted = True
        response = self._response
        if response is not None:
            connection = response.raw.connection
            sock = connection.sock if connection is not None else None
            if sock is not None:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the connection back, or close it if the blob was not read to its end. Harmless twice."""
        response, self._response = self._response, None
        if response is not None:
            response.close()

    def _advance(self, count: int, seconds: float) -> None:
        self.offset += count
        self._since_failure += count
        if self._since_failure >= PROGRESS:
            self._patience.renew()
        if seconds > SLOW:
            self._piece = max(self._piece // 2, PIECE_MIN)
        elif seconds < QUICK:
            self._piece = min(self._piece * 2, PIECE_MAX)
        if self.offset == self.descriptor.size:
            self._finish()

    def _finish(self) -> None:
        response, self._response = self._response, None
        if response is None:
            return
        source = response.raw._fp
        if isinstance(source, HTTPResponse) and source.isclosed():
            response.raw.release_conn()
        else:
            # Chunked, or more than the size that was asked for: nothing beyond it is read.
            response.close()

    def _lost(self, error: LamellaError) -> None:
        self.close()
        if self._interrupted:
            raise Cancelled(f"the download of {self.descriptor.digest} was stopped")
        self._since_failure = 0
        self._patience.spend(error)

    def _connect(self) -> requests.Response:
        response = self._open_at(self.offset, self._patience)
        self._response = response
        try:
            self._check_extent(response)
            if response.status_code == 200 and self.offset:
                self._skip(response, self.offset)
        except TRANSPORT_ERRORS as error:
            if isinstance(error, LamellaError):
                self.close()
                raise
            self._lost(explain(error, Origin.of(response.url), self._timeouts).error)
            return self._connect()
        except BaseException:
            self.close()
            raise
        return response

    def _check_extent(self, response: requests.Response) -> None:
        """Compare what the answer says of its extent with what was asked for."""
        digest, size = self.descriptor.digest, self.descriptor.size
        host = Origin.of(response.url).netloc
        expected = size
        if response.status_code == 206:
            matched = _CONTENT_RANGE.match(response.headers.get("Content-Range", "").strip())
            if not matched or int(matched[1]) != self.offset or int(matched[2]) >= size:
                raise DataLoss(
                    f"{host} answers the request for {digest} from byte {self.offset} with another range"
                )
            if matched[3] is not None and int(matched[3]) != size:
                raise DataLoss(f"{digest} has {matched[3]} bytes at {host}, its descriptor says {size}")
            expected = int(matched[2]) + 1 - self.offset
        length = response.headers.get("Content-Length")
        if length is not None and "Transfer-Encoding" not in response.headers and length != str(expected):
            raise DataLoss(f"{host} has {length[:20]} bytes of {digest}, {expected} were expected")

    def _skip(self, response: requests.Response, count: int) -> None:
        """Read over the start of the blob for a server that ignores Range."""
        scratch = memoryview(bytearray(min(count, PIECE_MAX)))
        while count:
            if self._interrupted:
                raise Cancelled(f"the download of {self.descriptor.digest} was stopped")
            received = _receive(response, scratch[: min(count, len(scratch))])
            if not received:
                raise ConnectionResetError
            count -= received


def _receive(response: requests.Response, view: memoryview) -> int:
    source = response.raw._fp
    # urllib3's own readinto copies; http.client's reads from the socket into the buffer.
    if isinstance(source, HTTPResponse):
        return source.readinto(view)
    count: int = response.raw.readinto(view)
    return count
