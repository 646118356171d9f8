"""A stretch of a blob: exactly the bytes from one offset to another, over as many connections as it takes.

The bytes go from the socket into the reader's buffer without a copy in Python (requests receives 240 MB in five threads in
0.11 s that way; ``iter_content`` takes four times as long). A connection that breaks is replaced by one that goes on where it
broke, a bounded number of times in a row. What a server says of the extent of its answer is held against what was asked for.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import requests

from lamella.errors import Cancelled, DataLoss, LamellaError, Unavailable, Unsupported
from lamella.oci import Descriptor
from lamella.registry.failures import TRANSPORT_ERRORS, explain, is_page, page_error
from lamella.registry.pace import PacedResponse
from lamella.registry.patience import Patience
from lamella.registry.targets import Origin
from lamella.registry.transport import Transport

SKIP = 1024 * 1024
"""Bytes skipped at once at most."""
PROGRESS = 64 * 1024
"""Bytes after which a connection that breaks counts as the first failure again."""

_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/(?:([0-9]{1,19})|\*)\Z")


class Way(NamedTuple):
    """How a blob is come by.

    ``open_at`` asks for it from one offset to another and gives an answer with status 200 or 206. ``pass_over`` is told of an
    answer that was wrong, or broke off, and says whether the next one comes from another host.
    """

    transport: Transport
    open_at: Callable[[int, int, Patience], requests.Response]
    pass_over: Callable[[requests.Response, LamellaError], bool]


class Stretch:
    """Reads a part of one blob; a context manager. One thread reads, any other may :meth:`interrupt`.

    ``ranged``: Unsupported where a server answers with the whole blob; without it the start of that is read over.
    """

    def __init__(
        self,
        descriptor: Descriptor,
        start: int,
        end: int,
        way: Way,
        *,
        ranged: bool = False,
    ) -> None:
        self.descriptor = descriptor
        self.offset = start
        self.end = end
        self.waited = 0.0
        """Seconds spent waiting for bytes."""
        self._way = way
        self._transport = way.transport
        self._ranged = ranged
        self._patience = way.transport.patience()
        self._response: requests.Response | None = None
        self._since_failure = 0
        self._interrupted = False

    def __enter__(self) -> Stretch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def connect(self) -> None:
        """Ask for it, if that was not done."""
        if self._response is None and self.offset < self.end:
            self._connect()

    def readinto(self, view: memoryview) -> int:
        """Put what there is at the start of ``view`` and give the count of bytes; 0 at the end of the stretch.

        It waits only where there is nothing, so that progress and interruption stay lively on a slow connection.
        Errors: as :meth:`lamella.registry.blob.BlobStream.readinto`.
        """
        view = view[: min(self.end - self.offset, self._transport.limits.piece)]
        while view.nbytes:
            self.check()
            response = self._response or self._connect()
            began = time.monotonic()
            try:
                count = _source(response).readinto1(view)
            except TRANSPORT_ERRORS as error:
                self._lost(self._explained(error, response))
                continue
            finally:
                self.waited += time.monotonic() - began
            if not count:
                host = Origin.of(response.url).netloc
                self._lost(
                    Unavailable(f"{host} broke off after {self.offset} of {self.descriptor.size} bytes")
                )
                continue
            self._advance(count)
            self._transport.limits.pay(count, self.check)
            return count
        return 0

    def check(self) -> None:
        """Raise Cancelled after an interruption, FailedPrecondition in a process that was forked off."""
        if self._interrupted or self._transport.interrupted:
            raise Cancelled(f"the download of {self.descriptor.digest} was stopped")
        self._transport.check_interrupted()

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
        """Give the connection back, or close it if its answer was not read to the end. Harmless twice."""
        response, self._response = self._response, None
        if response is not None:
            response.close()

    def _advance(self, count: int) -> None:
        self.offset += count
        self._since_failure += count
        if self._since_failure >= PROGRESS:
            self._patience.renew()
        if self.offset == self.end:
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
        self.check()
        self._since_failure = 0
        if response is None or not self._way.pass_over(response, error):
            self._patience.spend(error)

    def _explained(self, error: BaseException, response: requests.Response) -> LamellaError:
        return explain(error, Origin.of(response.url), self._transport.timeouts).error

    def _connect(self) -> requests.Response:
        while True:
            response = self._response = self._way.open_at(self.offset, self.end, self._patience)
            try:
                self.check()  # what came meanwhile found no connection to end
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
                self._lost(self._explained(error, response))
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
            if not matched or int(matched[1]) != self.offset or int(matched[2]) >= self.end:
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
        if response.status_code == 200 and self._ranged:
            raise Unsupported(f"{host} gives no ranges of {digest}")

    def _skip(self, response: requests.Response, count: int) -> None:
        """Read over the start of the blob for a server that ignores Range."""
        scratch = memoryview(bytearray(min(count, SKIP)))
        while count:
            received = _source(response).readinto1(scratch[: min(count, len(scratch))])
            if not received:
                raise ConnectionResetError
            count -= received


def _source(response: requests.Response) -> PacedResponse:
    # urllib3 would copy; this reads from the socket into the buffer.
    source = response.raw._fp
    assert isinstance(source, PacedResponse)
    return source
