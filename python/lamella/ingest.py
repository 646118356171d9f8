"""Ingests: writes to the content store that are in progress, and can be taken up again.

On disk::

    <root>/ingest/<id>/   0700  one ingest; id = SHA-256 of namespace, NUL, ref; of NUL, digest for a shared one
        data                    what has been written so far
        ref.json                namespace, ref, expected total and digest, when it was started
        lock                    flock: held by whoever writes

The folder belongs to the holder of its lock; everything in it may be looked at without. :mod:`lamella.content` opens
ingests and turns their data into blobs.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from lamella import _core
from lamella.config import check_key
from lamella.digest import Digest, parse_digest, split_digest
from lamella.disk import TRASH, translated
from lamella.errors import DataLoss, FailedPrecondition, InvalidArgument
from lamella.labels import check_labels
from lamella.locks import FileLock
from lamella.metadata.clock import format_time
from lamella.structs import Malformed, Struct, decode, encode

_UNLIMITED = (1 << 63) - 1


class IngestStatus(Struct, frozen=True):
    """How far an ingest is: ``offset`` bytes of ``total`` (0 when unknown), ``expected`` digest or empty."""

    ref: str
    offset: int
    total: int
    expected: str
    started_at: str
    updated_at: str


class IngestRecord(Struct, frozen=True):
    """What ``ref.json`` holds."""

    namespace: str
    ref: str
    total: int
    expected: str
    started_at: str


Publish = Callable[["Ingest", Digest, int, Mapping[str, str]], None]
"""What makes an ingest's data the blob of a digest and size that were checked, with labels."""


class Ingest:
    """A write in progress, which nobody else can open. Used by one thread at a time.

    Leaving its ``with`` block, or :meth:`close`, keeps what was written for the next :meth:`ContentStore.writer` of the
    ref; :meth:`discard` does not. Somebody else (the core's pipeline) may append to ``data_path`` instead of calling
    :meth:`write`, and then says with ``commit(verified=...)`` what digest it found.
    """

    def __init__(self, folder: Path, lock: FileLock, record: IngestRecord, publish: Publish) -> None:
        self._publish = publish
        self._folder = folder
        self._lock = lock
        self._record = record
        self.data_path = folder / "data"
        self._data = _core.Appender(str(self.data_path))
        if record.expected:
            self._expect(record.expected)
        self._pending = False
        self._abandoned = False
        self._written_at = 0

    def __repr__(self) -> str:
        return f"<lamella.content.Ingest {self._record.ref!r} {self.offset} of {self._record.total or '?'} bytes>"

    def __enter__(self) -> Ingest:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def ref(self) -> str:
        """The name of the ingest in its namespace."""
        return self._record.ref

    @property
    def offset(self) -> int:
        """Bytes that are there, from an earlier try or written by this object."""
        return self._data.offset

    def digest(self) -> Digest:
        """Give the digest of the bytes up to :attr:`offset`; reads back those that this object did not write."""
        with translated(f"read the ingest {self.ref!r}"):
            digest = self._data.digest()
        if digest is None:
            raise DataLoss(f"ingest {self.ref!r} was cut short by somebody else")
        return Digest(digest)

    def status(self) -> IngestStatus:
        """Return how far it is, counting what others wrote to ``data_path``."""
        self._check_open()
        return ingest_status(self._folder, self._record, self._written_at)

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Append bytes. ResourceExhausted when the disk is full; what was written before stays."""
        self._check_open()
        if not isinstance(data, bytes):
            data = memoryview(data).cast("B")
        size = len(data)
        total = self._record.total
        if total and self.offset + size > total:
            raise FailedPrecondition(
                f"ingest {self.ref!r} was to have {total} bytes and gets at least {self.offset + size}"
            )
        with translated(f"write to the ingest {self.ref!r}"):
            self._data.append(data)
        self._written_at = time.time_ns()
        return size

    @property
    def room(self) -> int:
        """Bytes that may be written at most."""
        total = self._record.total
        return max(0, total - self.offset) if total else _UNLIMITED

    @property
    def appender(self) -> _core.Appender:
        """What a server may have bytes appended to, at most :attr:`room`; :meth:`poured` tells of them."""
        return self._data

    def poured(self) -> int:
        """Give how many bytes the appender was given since the last call. Errors as those of :meth:`write`."""
        self._check_open()
        with translated(f"write to the ingest {self.ref!r}"):
            poured = self._data.poured()
        if poured:
            self._written_at = time.time_ns()
        return poured

    def truncate(self, size: int = 0) -> None:
        """Cut back to ``size`` bytes, at most the offset. InvalidArgument otherwise."""
        self._check_open()
        offset = self.offset
        if not 0 <= size <= offset:
            raise InvalidArgument(f"ingest {self.ref!r} has {offset} bytes, it cannot be cut back to {size}")
        if size != offset or size == 0:
            with translated(f"truncate the ingest {self.ref!r}"):
                self._data.cut(size)
            self._written_at = time.time_ns()

    def commit(
        self,
        *,
        size: int = 0,
        digest: str | None = None,
        labels: Mapping[str, str] | None = None,
        verified: str | None = None,
    ) -> None:
        """Make what was written a blob of the store, visible in this namespace with ``labels``.

        ``size`` and ``digest`` are checked; without them, what :meth:`ContentStore.writer` was told. ``verified`` is the digest
        that somebody computed over the file just now, which is believed instead of reading it again. Errors:
        FailedPrecondition when a size or digest is wrong: the ingest stays, open, to be continued, cut back or
        discarded; InvalidArgument for a label; AlreadyExists when the namespace has that content, the ingest is gone then.
        """
        self._check_open()
        checked = check_labels(labels or {})
        expected = parse_digest(digest) if digest else None
        promised = self._record.expected
        if expected and promised and expected != promised:
            raise FailedPrecondition(f"ingest {self.ref!r} is for {promised}, not for {expected}")
        expected = expected or (Digest(promised) if promised else None)
        with translated(f"commit the ingest {self.ref!r}"):
            there = self._data.length
            wanted = size or self._record.total
            if wanted and there != wanted:
                raise FailedPrecondition(
                    f"ingest {self.ref!r} has {there} bytes, {wanted} were expected",
                    hint="Go on writing, or discard it and start over.",
                )
            if verified is not None:
                found = parse_digest(verified)
            else:
                if expected is not None:
                    self._expect(expected)
                if there != self.offset:
                    self._data.count(there)
                found = self.digest()
            if expected is not None and found != expected:
                raise FailedPrecondition(
                    f"ingest {self.ref!r} has the digest {found}, {expected} was expected",
                    hint="Discard it and fetch it again.",
                )
            self._publish(self, found, there, checked)

    def close(self) -> None:
        """Let go; what was written stays for another try. Harmless twice, and after commit or discard."""
        if self._pending:
            self._abandoned = True  # the transaction around the commit decides
        else:
            if self._written_at and self._lock.held:
                # The kernel gave the file the time of its last tick, up to 10 ms before.
                with suppress(OSError):
                    os.utime(self.data_path, ns=(self._written_at, self._written_at))
            self._close()

    def discard(self) -> None:
        """Throw away what was written. Harmless twice; nothing happens after commit."""
        if not self._pending and self._lock.held:
            remove_ingest(self._folder)
            self._close()

    def _expect(self, digest: str) -> None:
        """Hash with the algorithm of ``digest`` from now on."""
        self._data.hash_with(split_digest(Digest(digest))[0])

    # What the content store calls while it commits

    def settle(self) -> None:
        """Wait for the outermost transaction: the data is no longer here."""
        self._pending = True

    def reopen(self, exclusive: bool) -> None:
        """Go on as before: the transaction around the commit was rolled back, the data is back if that was possible."""
        self._pending = False
        if self._abandoned or not exclusive:
            self._close()

    def finish(self) -> None:
        """Remove the empty ingest: the blob is visible."""
        self._pending = False
        remove_ingest(self._folder)
        self._close()

    def _close(self) -> None:
        self._data.close()
        self._lock.release()

    def _check_open(self) -> None:
        if self._pending or not self._lock.held:
            raise FailedPrecondition(f"ingest {self.ref!r} is closed", hint="Open a new writer.")


def ingest_folders(ingests: Path) -> Iterator[Path]:
    """Go through the folders of all ingests, of all namespaces."""
    try:
        entries = os.scandir(ingests)
    except FileNotFoundError:
        return
    with entries:
        for entry in entries:
            if not entry.name.startswith(TRASH):
                yield Path(entry.path)


def read_ingest(folder: Path) -> IngestRecord | None:
    """Read an ingest's ``ref.json``; None when it is not there or not whole."""
    try:
        return decode((folder / "ref.json").read_bytes(), IngestRecord)
    except (FileNotFoundError, NotADirectoryError, Malformed):
        return None


def write_record(folder: Path, record: IngestRecord) -> None:
    """Write an ingest's ``ref.json``, whole or not at all."""
    fresh = folder / "ref.json.new"
    fresh.write_bytes(encode(record))
    fresh.replace(folder / "ref.json")


def remove_ingest(folder: Path) -> None:
    """Remove an ingest's folder; the caller holds its lock. A next holder may have put its own lock file there meanwhile."""
    with translated("remove an ingest"):
        for name in ("data", "ref.json", "ref.json.new", "lock"):
            (folder / name).unlink(missing_ok=True)
        try:
            folder.rmdir()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
                raise


def ingest_status(folder: Path, record: IngestRecord, written_at: int = 0) -> IngestStatus:
    """Look how far an ingest is. ``written_at``: of its writer, in nanoseconds; the file has the time of the last tick."""
    try:
        found = (folder / "data").stat()
        offset, updated_at = found.st_size, format_time(max(found.st_mtime_ns, written_at) // 1000)
    except FileNotFoundError:
        offset, updated_at = 0, record.started_at
    return IngestStatus(
        ref=record.ref,
        offset=offset,
        total=record.total,
        expected=record.expected,
        started_at=record.started_at,
        updated_at=updated_at,
    )


def file_length(path: Path) -> int:
    """Give a file's length in bytes; 0 when it is not there."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def check_ref(ref: str) -> str:
    """Return a ref that may name an ingest; InvalidArgument otherwise (:func:`lamella.config.check_key`)."""
    return check_key(ref, "ref", "the ref of an ingest")
