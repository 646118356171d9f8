"""A blob as a stream: exactly the bytes from an offset to the descriptor's size, over as many connections as it takes.

The bytes go from the socket into the reader's buffer without a copy in Python (requests receives 240 MB in five threads in
0.11 s that way; ``iter_content`` takes four times as long). Their digest is for the reader to check: the pipeline hashes
them anyway.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from contextlib import suppress

import requests

from lamella.errors import Cancelled, DataLoss, LamellaError, Unavailable
from lamella.oci import Descriptor
from lamella.registry.config import Timeouts
from lamella.registry.failures import TRANSPORT_ERRORS, explain, is_page, page_error
from lamella.registry.pace import PacedResponse
from lamella.registry.targets import Origin
from lamella.registry.transport import Patience

PIECE_MAX = 1024 * 1024
"""Bytes skipped at once at most."""
PROGRESS = 64 * 1024
"""Bytes after which a connection that breaks counts as the first failure again."""

_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/(?:([0-9]{1,19})|\*)\Z")

Opener = Callable[[int, Patience], requests.Response]
"""Asks for the blob from an offset on and gives an answer with status 200 or 206."""
PassOver = Callable[[requests.Response, LamellaError], bool]
"""Is told of an answer that was wrong, or broke off, and says whether the next one comes from another host."""


class BlobStream:
    """Reads one blob; a context manager. One thread reads, any other may :meth:`interrupt`.

    A connection that breaks is replaced by another that goes on where it broke, a bounded number of times in a row.
    """

    def __init__(  # noqa: PLR0917
        self,
        descriptor: Descriptor,
        offset: int,
        opener: Opener,
        patience: Patience,
        timeouts: Timeouts,
        pass_over: PassOver = lambda *_: False,
    ) -> None:
        self.descriptor = descriptor
        self.offset = offset
        self._open_at = opener
        self._patience = patience
        self._timeouts = timeouts
        self._pass_over = pass_over
        self._response: requests.Response | None = None
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
        """Put what there is at the start of ``buffer`` and give the count of bytes; 0 at the end of the blob.

        It waits only where there is nothing, so that progress and interruption stay lively on a slow connection.

        Errors: DataLoss when the registry has another blob than the descriptor says, Unavailable when it cannot be
        had to its end, Cancelled.
        """
        remaining = self.descriptor.size - self.offset
        view = memoryview(buffer)
        while remaining and view.nbytes:
            if self._interrupted:
                raise Cancelled(f"the download of {self.descriptor.digest} was stopped")
            response = self._response or self._connect()
            try:
                count = _receive(response, view[:remaining])
            except TRANSPORT_ERRORS as error:
                self._lost(explain(error, Origin.of(response.url), self._timeouts).error)
                continue
            if not count:
                host = Origin.of(response.url).netloc
                self._lost(
                    Unavailable(f"{host} broke off after {self.offset} of {self.descriptor.size} bytes")
                )
                continue
            self._advance(count)
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

    def _advance(self, count: int) -> None:
        self.offset += count
        self._since_failure += count
        if self._since_failure >= PROGRESS:
            self._patience.renew()
        if self.offset == self.descriptor.size:
            self._finish()

    def _finish(self) -> None:
        response, self._response = self._response, None
        if response is None:
            return
        if _source(response).isclosed():
            response.raw.release_conn()
        else:
            # Chunked, or more than the size that was asked for: nothing beyond it is read.
            response.close()

    def _lost(self, error: LamellaError) -> None:
        response = self._response
        self.close()
        if self._interrupted:
            raise Cancelled(f"the download of {self.descriptor.digest} was stopped")
        self._since_failure = 0
        if response is None or not self._pass_over(response, error):
            self._patience.spend(error)

    def _connect(self) -> requests.Response:
        while True:
            response = self._response = self._open_at(self.offset, self._patience)
            try:
                self._check_extent(response)
                if response.status_code == 200 and self.offset:
                    self._skip(response, self.offset)
                return response
            except (
                DataLoss,
                Unavailable,
            ) as error:  # another server behind the same name may have the right one
                self._lost(error)
            except TRANSPORT_ERRORS as error:
                self._lost(explain(error, Origin.of(response.url), self._timeouts).error)
            except BaseException:
                self.close()
                raise

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
            if is_page(response):
                raise page_error(response, f"blob {digest}")
            raise DataLoss(f"{host} has {length[:20]} bytes of {digest}, {expected} were expected")

    def _skip(self, response: requests.Response, count: int) -> None:
        """Read over the start of the blob for a server that ignores Range."""
        scratch = memoryview(bytearray(min(count, PIECE_MAX)))
        while count:
            received = _receive(response, scratch[: min(count, len(scratch))])
            if not received:
                raise ConnectionResetError
            count -= received


def _source(response: requests.Response) -> PacedResponse:
    source = response.raw._fp
    assert isinstance(source, PacedResponse)
    return source


def _receive(response: requests.Response, view: memoryview) -> int:
    # urllib3 would copy; this reads from the socket into the buffer.
    return _source(response).readinto1(view)
