"""How one blob is sent (distribution spec 1.1, "Pushing Blobs"): begun, sent, finished, and gone on with where it broke off.

Begun: one request asks for an upload session; it may ask to mount the blob from another repository, and be done. Sent: the
whole in one request that also finishes it, as nearly always; where that breaks off, or is too large for the registry (413),
the rest goes in pieces, from where the registry says that it stands. A registry that does not know the session any more, or
anything that cannot be true of it, gets a new one. All of that is paid from one count of attempts, which begins anew only
when more of the blob is there than ever before, so that a registry cannot make it go on for ever.

What streams through is hashed: of a blob that is not what its descriptor says the last piece is never sent. What comes from the
content store was hashed before (that would be a seventh of the CPU time of a push); it is once a registry calls it wrong.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import urlencode, urljoin, urlsplit, urlunsplit

import requests

from lamella.digest import parse_digest, split_digest
from lamella.errors import (
    DataLoss,
    InvalidArgument,
    LamellaError,
    NotFound,
    Unavailable,
    Unsupported,
)
from lamella.oci import Descriptor
from lamella.reference import Reference
from lamella.registry.auth import repository_scope
from lamella.registry.exchange import Exchange
from lamella.registry.failures import RETRY_STATUSES, discard, is_page, page_error
from lamella.registry.patience import Patience
from lamella.registry.sending import FilePart, SourceFailed
from lamella.registry.targets import Origin
from lamella.registry.transport import Transport

if TYPE_CHECKING:
    from lamella.transfer.endpoints import BlobReader

PIECE = 1024 * 1024
"""Bytes given to the connection at once at most."""
CHUNK = 64 * 1024 * 1024
"""Bytes of one request at most once the whole was too much for one; half of it if that still is, down to CHUNK_MIN."""
CHUNK_MIN = 1024 * 1024
PROGRESS = 64 * 1024
"""Bytes more than ever before after which a broken connection counts as the first failure again."""
SETTLING_RATE = 10 * 1024 * 1024
"""Bytes a second at which a registry may put away what it has received, before its answer counts as missing."""

_RANGE = re.compile(r"(?:bytes[ =])?0-([0-9]{1,19})\Z")


class Upload:
    """One blob on its way into the repository of ``reference``. Use it once.

    ``open_at`` and ``sent`` are those of :meth:`lamella.transfer.endpoints.Destination.put_blob`; ``mount``: a repository of the
    same registry that may have the blob.
    """

    def __init__(
        self,
        exchange: Exchange,
        reference: Reference,
        descriptor: Descriptor,
        open_at: Callable[[int], BlobReader],
        sent: Callable[[int], None],
        *,
        mount: str | None = None,
    ) -> None:
        self._exchange = exchange
        self._reference = reference
        self._descriptor = descriptor
        self._content = _Content(descriptor, open_at, sent, exchange.transport)
        self._mount = mount
        self._what = f"blob {descriptor.digest} of {reference.name}"
        self._scopes = (repository_scope(reference.path, "pull", "push"),)
        self._patience = exchange.transport.patience()
        self._session: str | None = None
        self._stands_at = 0  # bytes that the registry has
        self._furthest = 0
        self._limit: int | None = None  # of bytes a request; None: the whole
        self._limit_max: int | None = None  # what the registry takes, as far as that is known
        self._limit_min = CHUNK_MIN
        self._piece = CHUNK  # after the next break
        self._spoiled = False

    def run(self) -> str:
        """Do it, and say how: ``sent`` or ``mounted``.

        Errors: DataLoss when the source or the registry has other bytes than the descriptor says; ResourceExhausted (too large, a
        quota), Unsupported (read-only), NotFound (no such repository), Unauthenticated, PermissionDenied, Unavailable,
        Cancelled; those of the source. Twice is harmless.
        """
        transport = self._exchange.transport
        with transport.limits.sending(transport.check_interrupted):
            return self._run()

    def _run(self) -> str:
        while True:
            try:
                if self._session is None and self._begin():
                    return "mounted"
                self._send()
                return "sent"
            except _Again as again:
                if again.wait:
                    self._patience.spend(again.error)
                if self._is_there(again):
                    return "sent"
                self._look()

    # Begin

    def _begin(self) -> bool:
        """Ask for a session, once for a mount; say whether the blob is there instead."""
        mount, self._mount = self._mount, None
        query = ""
        scopes: tuple[str, ...] = self._scopes
        if mount:
            query = "?" + urlencode({"mount": self._descriptor.digest, "from": mount})
            scopes = (*scopes, repository_scope(mount, "pull"))
        try:
            response = self._exchange.request(
                "POST",
                self._reference,
                f"blobs/uploads/{query}",
                {},
                what=self._what,
                scopes=scopes,
                patience=self._patience,
            )
            if mount and response.status_code == 201:
                discard(response)
                self._check_digest(response)
                return True
            if is_page(response):
                raise _Again(page_error(response, self._what))
            if response.status_code != 202:
                raise self._exchange.error(response, self._reference, self._what)
        except LamellaError as error:
            if mount and not self._exchange.transport.interrupted:
                # Who may not read there, or asks a registry without mounts, sends the blob.
                raise _Again(error, wait=False) from None
            raise
        self._stands_at = 0
        self._note_session(response)
        minimum = response.headers.get("OCI-Chunk-Min-Length", "")
        if re.fullmatch(r"[0-9]{1,12}", minimum):
            self._limit_min = max(int(minimum), CHUNK_MIN)
        return False

    def _note_session(self, response: requests.Response) -> None:
        location = response.headers.get("Location")
        discard(response)
        if location:
            try:
                self._session = urljoin(response.url, location)
                Origin.of(self._session)
            except ValueError:
                self._session = None
        if self._session is None:
            host = Origin.of(response.url).netloc
            raise Unavailable(
                f"{self._what}: {host} does not say where to send it", hint="Is this an OCI registry?"
            )

    # Send

    def _send(self) -> None:
        """Send what is missing, and finish."""
        size = self._descriptor.size
        if self._stands_at == 0 and (self._limit is None or size <= self._limit):
            self._finish(0)
            return
        while self._stands_at < size:
            self._send_chunk()
        self._finish(size)

    def _send_chunk(self) -> None:
        start, size = self._stands_at, self._descriptor.size
        stop = size if self._limit is None else min(size, start + self._limit)
        headers = {"Content-Type": "application/octet-stream", "Content-Range": f"{start}-{stop - 1}"}
        response = self._request("PATCH", start, stop, headers)
        if response.status_code != 202 or is_page(response):
            self._refused(response, stop - start)
        said = _stand(response)
        self._note_session(response)
        self._advance(stop if said is None else said, sent=stop)

    def _finish(self, start: int) -> None:
        """Send the whole from its start, or nothing more, and have the digest checked."""
        size = self._descriptor.size
        response = self._request("PUT", start, size, {"Content-Type": "application/octet-stream"})
        if response.status_code not in {200, 201, 204} or is_page(response):
            self._refused(response, size - start)
        discard(response)
        self._check_digest(response)

    def _request(self, method: str, start: int, stop: int, headers: dict[str, str]) -> requests.Response:
        assert self._session is not None
        address = self._session
        if method == "PUT":
            parts = urlsplit(address)
            query = f"{parts.query}&" if parts.query else ""
            address = urlunsplit(parts._replace(query=query + urlencode({"digest": self._descriptor.digest})))
        try:
            with _Extent(self._content, start, stop) as extent:
                return self._exchange.request(
                    method,
                    self._reference,
                    address,
                    headers,
                    what=self._what,
                    scopes=self._scopes,
                    body=extent if len(extent) else None,
                    silence=self._descriptor.size / SETTLING_RATE,
                    patience=self._once(),
                )
        except Unavailable as error:
            if self._content.failed or self._exchange.transport.interrupted:
                raise
            self._smaller()
            raise _Again(error, finishing=method == "PUT") from None

    def _once(self) -> Patience:
        """Give what makes a request be tried once: here it is decided whether and from where the next one goes on."""
        return self._exchange.transport.patience(attempts=1)

    def _refused(self, response: requests.Response, size: int) -> None:
        """Raise _Again where another try may help, else the error."""
        status = response.status_code
        finishing = response.request.method == "PUT"
        if is_page(response):
            raise _Again(page_error(response, self._what), finishing=finishing)
        if status in RETRY_STATUSES:
            if not self._patience.spend_status(response.raw):
                raise self._exchange.error(response, self._reference, self._what)
            discard(response)
            raise _Again(Unavailable(f"{self._what}: {status}"), wait=False, finishing=finishing)
        error = self._exchange.error(response, self._reference, self._what)
        if status == 413 and self._shrink(size):
            raise _Again(error, wait=False)
        if status in {202, 409, 416}:
            raise _Again(error, finishing=finishing)
        if isinstance(error, NotFound | InvalidArgument | Unavailable) and status in {400, 404, 410}:
            self._session = None
            raise _Again(error)
        if isinstance(error, DataLoss) and not self._spoiled:
            # The source was right: what was put together of several requests, or came over a bad line, may be right next time.
            self._spoiled, self._session = True, None
            self._content.distrust()
            raise _Again(error)
        raise error

    def _shrink(self, size: int) -> bool:
        """Send less in one request from now on, as ``size`` bytes were too many; False if there is no less."""
        least = self._limit_min
        if size <= least:
            return False
        self._piece = self._limit = self._limit_max = max(min(CHUNK, size // 2), least)
        return True

    def _smaller(self) -> None:
        """After a break send pieces, smaller ones each time: each is progress where the registry keeps it."""
        if self._limit is not None:
            self._piece //= 2
        self._limit = self._piece = max(self._piece, self._limit_min)

    def _forgotten(self) -> None:
        """After a break that took the session, and with it pieces that had come (docker-registry), take the whole once more."""
        self._session = None
        if self._stands_at:
            self._limit = self._limit_max

    # How far it is

    def _advance(self, stand: int, *, sent: int) -> None:
        """Take in that the registry has ``stand`` bytes; _Again unless that is all that was ``sent``."""
        if stand > self._content.given:
            self._session = None
            raise _Again(Unavailable(f"{self._what}: the registry says that it has more than it was sent"))
        if stand - self._furthest >= min(PROGRESS, self._descriptor.size - self._furthest) > 0:
            self._furthest = stand
            self._patience.renew()
        self._stands_at = stand
        if stand != sent:
            raise _Again(Unavailable(f"{self._what}: the registry keeps {stand} of {sent} bytes"))

    def _look(self) -> None:
        """Ask how far the session is; without an answer that can be used there is none any more."""
        if self._session is None:
            return
        while True:
            response = self._exchange.request(
                "GET",
                self._reference,
                self._session,
                {},
                what=self._what,
                scopes=self._scopes,
                patience=self._patience,
            )
            if not is_page(response):
                break
            self._patience.spend(page_error(response, self._what))
        stand = _stand(response) if response.status_code in {200, 202, 204} else None
        if stand is None or stand > self._content.given:
            discard(response)
            self._forgotten()
            return
        self._note_session(response)
        self._advance(stand, sent=stand)

    def _is_there(self, again: _Again) -> bool:
        """Look whether the blob is there after all: its registry finished, and only the answer was lost."""
        return (
            again.finishing
            and self._content.given == self._descriptor.size
            and has_blob(self._exchange, self._reference, self._descriptor)
        )

    def _check_digest(self, response: requests.Response) -> None:
        said = response.headers.get("Docker-Content-Digest")
        if said is None:
            return
        try:
            wrong = parse_digest(said) != self._descriptor.digest
        except (InvalidArgument, Unsupported):
            wrong = True
        if wrong:
            host = Origin.of(response.url).netloc
            raise DataLoss(
                f"{host} stored {self._what} under another digest",
                hint="The registry or something on the way to it changed the blob.",
            )


def has_blob(exchange: Exchange, reference: Reference, descriptor: Descriptor) -> bool:
    """Say whether the reference's repository has a blob of this digest and size. Errors as those of a push."""
    what = f"blob {descriptor.digest} of {reference.name}"
    scopes = (repository_scope(reference.path, "pull", "push"),)
    response = exchange.request("HEAD", reference, f"blobs/{descriptor.digest}", {}, what=what, scopes=scopes)
    discard(response)
    if response.status_code == 200:
        return response.headers.get("Content-Length") == str(descriptor.size) and not is_page(response)
    if response.status_code in {404, 405}:
        return False
    raise exchange.error(response, reference, what)


class _Again(Exception):
    """This try came to nothing; ``wait``: before the next one. ``finishing``: the registry may have got it all."""

    def __init__(self, error: LamellaError, *, wait: bool = True, finishing: bool = False) -> None:
        super().__init__(error)
        self.error = error
        self.wait = wait
        self.finishing = finishing


class _Content:
    """The blob as its source gives it, hashed once from its start to its end, whatever is sent twice."""

    def __init__(
        self,
        descriptor: Descriptor,
        open_at: Callable[[int], BlobReader],
        sent: Callable[[int], None],
        transport: Transport,
    ) -> None:
        self._descriptor = descriptor
        self._open_at = open_at
        self._sent = sent
        self._transport = transport
        self.given = 0
        self.failed = False
        self._believes = True
        self._begin_hash()

    def _begin_hash(self) -> None:
        self._hash = hashlib.new(split_digest(self._descriptor.digest)[0])
        self._hashed = 0

    def distrust(self) -> None:
        """Hash it from now on, from its start, whoever has checked it before."""
        self._believes = False
        self._begin_hash()

    def pieces(self, start: int, stop: int) -> Iterator[memoryview | FilePart]:
        """Give the bytes from ``start`` to ``stop``, read anew. DataLoss for bytes that the descriptor does not mean."""
        size, limits = self._descriptor.size, self._transport.limits
        most = min(PIECE, limits.piece, stop - start)
        with self._open_at(start) as reader:
            believed = self._believes and getattr(reader, "verified", False)
            file: BinaryIO | None = getattr(reader, "file", None) if believed else None
            if file is not None and os.fstat(file.fileno()).st_size < size:
                file = None  # its reader says so
            buffer = memoryview(bytearray(0 if file is not None else most))
            piece: memoryview | FilePart
            while start < stop:
                if file is not None:
                    piece = FilePart(file, start, min(most, stop - start))
                else:
                    piece = buffer[: reader.readinto(buffer[: stop - start])]
                    if not piece:
                        raise DataLoss(
                            f"{self._descriptor.digest} ends at its source after {start} of {size} bytes"
                        )
                    if not believed:
                        self._learn(start, piece)
                start += len(piece)
                self.given = max(self.given, start)
                yield piece
                self._sent(start)
                limits.pay(len(piece), self._transport.check_interrupted)

    def _learn(self, start: int, piece: memoryview) -> None:
        """Hash what of a piece was not hashed before. DataLoss at the end of a blob with another digest."""
        if start <= self._hashed < start + len(piece):
            self._hash.update(piece[self._hashed - start :])
            self._hashed = start + len(piece)
            if self._hashed == self._descriptor.size:
                self._check()

    def _check(self) -> None:
        algorithm, encoded = split_digest(self._descriptor.digest)
        actual = self._hash.hexdigest()
        if actual != encoded:
            raise DataLoss(
                f"the blob {self._descriptor.digest} is damaged at its source: its digest is {algorithm}:{actual}"
            )


class _Extent:
    """A part of the blob as the body of a request; a context manager.

    At its end, and when it is iterated over anew, what was open of the source is closed. Else the frames in the traceback of a
    request that failed would keep it open until the garbage collector comes.
    """

    def __init__(self, content: _Content, start: int, stop: int) -> None:
        self._content = content
        self._start = start
        self._stop = stop
        self._opened: Generator[memoryview | FilePart] | None = None

    def __enter__(self) -> _Extent:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def __len__(self) -> int:
        return self._stop - self._start

    def __iter__(self) -> Iterator[memoryview | FilePart]:
        self._close()
        self._opened = self._pieces()
        return self._opened

    def _pieces(self) -> Generator[memoryview | FilePart]:
        try:
            yield from self._content.pieces(self._start, self._stop)
        except Exception as error:
            self._content.failed = True
            raise SourceFailed(error) from error

    def _close(self) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.close()


def _stand(response: requests.Response) -> int | None:
    """Read how many bytes an upload has (the Range header); None if that is not said."""
    said = response.headers.get("Range")
    if said is None:
        return None
    matched = _RANGE.match(said.strip())
    # 0-0 is what registries say of nothing, too; a byte that is sent twice is refused and leads to a new session.
    return 0 if matched is None or matched[1] == "0" else int(matched[1]) + 1
