"""The content store: blobs by digest, immutable. What is being written is an ingest (:mod:`lamella.ingest`).

On disk::

    <root>/blobs/<algorithm>/<hex>   0444  a blob; the layout of an OCI image layout's blobs
    <root>/ingest/trash-<id>               a blob that is being removed

A blob is one file and one row in ``blobs``, shared by all namespaces, and a row in ``content`` for each namespace that sees it,
with that namespace's labels. It goes when no namespace sees it and no lease, of whatever namespace, names it. A file under
blobs/ is put there, replaced or removed only inside a metadata write transaction, which puts in or looks for its row: so a
blob that comes back while its old self is being deleted is never lost. Readers take no lock; a file that was opened stays
readable when its blob is deleted.

Durability: a commit is one rename and one transaction. After the death of any process what was committed is complete, and an
ingest keeps what was written. Nothing waits for the disk: ``boot_id`` and ``synced`` of a blob's row say under which boot
it was written and whether it was synced since (:mod:`lamella.durability`). What was written under this boot is complete. For
what is left from an earlier one without the mark a power cut may have taken the file's bytes: it is hashed before it is used
again. One that is damaged loses its file; its rows stay, with the labels, until a pull brings the bytes back.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from io import BufferedReader
from pathlib import Path

from lamella.config import Config
from lamella.digest import Digest, digest_of, parse_digest, split_digest
from lamella.disk import TRASH, make_private_folder, storage_error, translated
from lamella.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    LamellaError,
    NotFound,
    PermissionDenied,
)
from lamella.ingest import (
    Ingest,
    IngestRecord,
    IngestStatus,
    check_ref,
    file_length,
    ingest_folders,
    ingest_status,
    read_ingest,
    remove_ingest,
    write_record,
)
from lamella.labels import adopt_labels, check_labels, decode_labels, encode_labels, merge_labels
from lamella.locks import FileLock
from lamella.logs import Log
from lamella.metadata import Database, Transaction, timestamp
from lamella.metadata.boot import boot_id
from lamella.reserve import frees_space
from lamella.structs import Struct, replace
from lamella.typings import BinaryIO

__all__ = [
    "ContentInfo",
    "ContentStore",
    "Ingest",
    "IngestStatus",
    "delete_blob_row",
    "file_digest",
    "is_whole",
    "unlink_blobs",
]

_log = Log("lamella")
_READ_MAX = 64 * 1024 * 1024
_PAGE = 1000
_UNVERIFIED = "(b.synced = 0 AND b.boot_id <> ?)"
_INFO = (
    "SELECT c.digest, b.size, c.labels, c.created_at, c.updated_at FROM content c JOIN blobs b USING (digest)"
)

# An image whose manifest, or an index that leads to it, says that it was pulled without keeping this layer.
_DISCARDED = """
SELECT (
    SELECT i.name FROM images i WHERE i.namespace = :namespace AND i.digest IN (
        SELECT m.digest UNION SELECT x.digest FROM gc_labels g CROSS JOIN content x ON x.number = g.owner >> 2
            WHERE g.kind = 'content' AND g.namespace = :namespace AND g.scope = '' AND g.named = m.digest AND g.owner & 3 = 0)
    ORDER BY i.name LIMIT 1
)
FROM content m
WHERE m.namespace = :namespace AND instr(labels, '"lamella.dev/layers-discarded"') AND instr(m.labels, '"' || :digest || '"')
LIMIT 1
"""


class ContentInfo(Struct, frozen=True):
    """A blob as one namespace sees it. ``size`` in bytes, times RFC 3339."""

    digest: Digest
    size: int
    labels: dict[str, str]
    created_at: str
    updated_at: str


class ContentStore:
    """The content of one namespace."""

    def __init__(self, database: Database, config: Config) -> None:
        self._database = database
        self._namespace = config.namespace
        self._blobs = config.root / "blobs"
        self._ingests = config.root / "ingest"

    # What is here

    def info(self, digest: str) -> ContentInfo:
        """Return size, labels and times of a blob. NotFound; InvalidArgument or Unsupported for no digest."""
        with self._database.read() as db:
            row = db.execute(
                f"{_INFO} WHERE namespace = ? AND c.digest = ?", (self._namespace, parse_digest(digest))
            ).fetchone()
        if row is None:
            raise self._missing(digest)
        return _info(*row)

    def exists(self, digest: str) -> bool:
        """Tell whether a blob is in the store, seen by this namespace or not (then :meth:`adopt` it).

        False also when its file is gone, has another size or, left unverified by another boot, another digest, so that who
        needs it fetches it again.
        """
        parsed = parse_digest(digest)
        with self._database.read() as db:
            row = db.execute(
                f"SELECT size, {_UNVERIFIED} FROM blobs b WHERE digest = ?",  # noqa: S608 (a constant)
                (boot_id(), parsed),
            ).fetchone()
        with translated(f"look at the blob {digest}"):
            if row is None or file_length(self._file(parsed)) != row[0]:
                return False
        return not row[1] or self._verify(parsed)

    def path(self, digest: str) -> Path:
        """Return where a blob's file is. It is not to be written. Errors as :meth:`info`; DataLoss if it proves damaged."""
        return self._file(self._locate(digest)[0])

    def open(self, digest: str) -> BinaryIO:
        """Open a blob for reading; it stays readable when it is deleted. Errors as :meth:`info`; DataLoss."""
        return os.fdopen(self.descriptor(digest)[0], "rb")

    def descriptor(self, digest: str) -> tuple[int, int]:
        """Open a blob's file; give the descriptor, which the caller closes, and its size in bytes. Errors as :meth:`open`."""
        parsed, size = self._locate(digest)
        try:
            return os.open(self._file(parsed), os.O_RDONLY | os.O_CLOEXEC), size
        except FileNotFoundError:
            raise self._lost(digest) from None
        except OSError as error:
            raise storage_error(error, f"open the blob {digest}") from error

    def read(self, digest: str, *, offset: int = 0, size: int | None = None) -> bytes:
        """Read ``size`` bytes (all by default, fewer at the end) from ``offset``. Errors as :meth:`open`.

        InvalidArgument for a negative offset or size; an offset past the end gives nothing.
        """
        if offset < 0 or (size is not None and size < 0):
            raise InvalidArgument(f"cannot read {size} bytes at offset {offset}: neither may be negative")
        descriptor, length = self.descriptor(digest)
        wanted = max(0, min(length - offset, length if size is None else size))
        try:
            with translated(f"read the blob {digest}"):
                parts = []
                while wanted:
                    part = os.pread(descriptor, min(wanted, _READ_MAX), offset)
                    if not part:
                        raise DataLoss(
                            f"the blob {digest} is shorter than it was when it was stored",
                            hint="Look for damage: lamella fsck.",
                        )
                    parts.append(part)
                    offset += len(part)
                    wanted -= len(part)
        finally:
            os.close(descriptor)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def walk(self, *, filters: Sequence[str] = ()) -> Iterator[ContentInfo]:
        """Go through the namespace's content, sorted by digest. Filters know ``digest``, ``size`` and ``labels``.

        What is added or deleted meanwhile may appear or not.
        """
        from lamella.filters import compile_filters

        match = compile_filters(filters)
        after = ""
        while True:
            with self._database.read() as db:
                rows = db.execute(
                    f"{_INFO} WHERE namespace = ? AND c.digest > ? ORDER BY c.digest LIMIT ?",
                    (self._namespace, after, _PAGE),
                ).fetchall()
            for row in rows:
                info = _info(*row)
                if match({"digest": info.digest, "size": str(info.size), "labels": info.labels}):
                    yield info
            if len(rows) < _PAGE:
                return
            after = rows[-1][0]

    def _locate(self, digest: str) -> tuple[Digest, int]:
        """Give digest and size of a blob that this namespace sees and whose bytes can be believed."""
        parsed = parse_digest(digest)
        with self._database.read() as db:
            row = db.execute(
                f"SELECT b.size, {_UNVERIFIED} FROM content c JOIN blobs b USING (digest) "  # noqa: S608 (a constant)
                "WHERE c.namespace = ? AND c.digest = ?",
                (boot_id(), self._namespace, parsed),
            ).fetchone()
        if row is None:
            raise self._missing(digest)
        if row[1] and not self._verify(parsed):
            raise self._lost(digest)
        return parsed, row[0]

    def _verify(self, digest: Digest) -> bool:
        """Hash a blob that another boot left without the mark of a sync, and note what came out; see "Durability"."""
        if not is_whole(self._database, self._blobs, digest):
            return False
        with suppress(PermissionDenied), self._database.write() as db:  # who only reads hashes it at each use
            # What was read came from the disk: there is nothing left to be synced.
            db.execute(
                "UPDATE blobs SET boot_id = ?, synced = 1 WHERE digest = ? AND synced = 0",
                (boot_id(), digest),
            )
        return True

    # Changes

    def update_labels(self, digest: str, changes: Mapping[str, str]) -> ContentInfo:
        """Set labels; an empty value removes one. Errors as :meth:`info`; InvalidArgument. Twice is harmless."""
        with self._database.write() as db:
            if not self._merge_labels(db, parse_digest(digest), changes):
                raise self._missing(digest)
            return self.info(digest)

    def adopt(self, digest: str, labels: Mapping[str, str] | None = None) -> ContentInfo:
        """Let this namespace see a blob of the store, adding labels (:func:`lamella.labels.adopt_labels`).

        NotFound when it is nowhere. Twice is harmless.
        """
        parsed = parse_digest(digest)
        changes = labels or {}
        with self._database.write() as db:
            if not self._merge_labels(db, parsed, changes, adopt_labels):
                if db.execute("SELECT 1 FROM blobs WHERE digest = ?", (parsed,)).fetchone() is None:
                    raise self._missing(digest)
                self._insert(db, parsed, check_labels(changes))
            return self.info(digest)

    @frees_space
    def delete(self, digest: str) -> None:
        """Take a blob out of this namespace, and off the disk when no other one sees it and no lease names it. NotFound."""
        parsed = parse_digest(digest)
        with self._database.write() as db:
            row = db.execute(
                "DELETE FROM content WHERE namespace = ? AND digest = ? RETURNING digest",
                (self._namespace, parsed),
            ).fetchone()
            if row is None:
                raise self._missing(digest)
            if delete_blob_row(db, parsed, timestamp()) is not None:
                self._database.after_commit(lambda: self._unlink(parsed))

    def _unlink(self, digest: Digest) -> None:
        """Remove the file of a deleted blob. Where that fails it is an orphan, which garbage collection removes or reports."""
        with suppress(LamellaError):
            unlink_blobs(self._database, self._blobs, [digest])

    def _merge_labels(
        self,
        db: Transaction,
        digest: Digest,
        changes: Mapping[str, str],
        merge: Callable[[Mapping[str, str], Mapping[str, str]], dict[str, str]] = merge_labels,
    ) -> bool:
        """Change the labels of a content row; False when there is none. Nothing is written when nothing changes."""
        row = db.execute(
            "SELECT labels FROM content WHERE namespace = ? AND digest = ?", (self._namespace, digest)
        ).fetchone()
        if row is None:
            return False
        text = encode_labels(merge(decode_labels(row[0]), changes))
        if text != row[0]:
            db.execute(
                "UPDATE content SET labels = ?, updated_at = ? WHERE namespace = ? AND digest = ?",
                (text, timestamp(), self._namespace, digest),
            )
        return True

    def _insert(self, db: Transaction, digest: Digest, labels: Mapping[str, str]) -> None:
        now = timestamp()
        db.execute(
            "INSERT INTO content (namespace, digest, labels, created_at, updated_at) VALUES (?, ?, ?, ?, ?)",
            (self._namespace, digest, encode_labels(labels), now, now),
        )

    # Ingests

    def writer(
        self,
        ref: str,
        *,
        size: int = 0,
        digest: str | None = None,
        wait: bool = False,
        waiting: Callable[[], object] | None = None,
        shared: bool = False,
        adopt: bool = True,
    ) -> Ingest:
        """Open the ingest of a ref, or the one that was left unfinished, to go on at its offset.

        ``size`` and ``digest`` are what is expected in the end (0 and None: unknown). An unfinished ingest that was
        to have another size or digest starts over; what was expected of it counts no more where nothing is now.
        ``shared``, with a digest: there is one such ingest for all namespaces, whatever its ref; it is listed in the
        namespace of its last writer. ``waiting`` is called while another writes, see
        :meth:`lamella.locks.FileLock.acquire`. Errors: InvalidArgument for an empty ref; Unavailable while another
        writes to it, unless ``wait``; AlreadyExists when the digest is in the store: one that only other namespaces
        see becomes visible in this one. Without ``adopt`` that takes a commit: the ingest begins as a copy of it, as
        a client of containerd expects.
        """
        check_ref(ref)
        if shared and digest is None:
            raise InvalidArgument(f"ingest {ref!r}: only one whose digest is known can be shared")
        if size < 0:
            raise InvalidArgument(f"ingest {ref!r}: the size {size} is negative")
        expected = parse_digest(digest) if digest else None
        if expected is not None:
            self._refuse_present(expected, adopt)
        folder = self._shared_folder(expected) if shared and expected else self._folder(ref)
        waits = self._database.metrics.waits("ingest")
        lock = FileLock(folder / "lock", what=f"ingest {ref!r}", waited=waits)
        lock.acquire(wait=wait, waiting=waiting)
        try:
            if expected is not None:  # its writer may just have committed it
                self._refuse_present(expected, adopt)
            with translated(f"open the ingest {ref!r}"):
                record = self._resume(
                    folder, IngestRecord(self._namespace, ref, size, expected or "", timestamp())
                )
                if expected is not None and not adopt and self.exists(expected):
                    import shutil

                    with suppress(FileNotFoundError):  # collected meanwhile
                        shutil.copyfile(self._file(expected), folder / "data")
                return Ingest(folder, lock, record, self._publish)
        except BaseException as error:
            with suppress(OSError, LamellaError):
                if isinstance(error, AlreadyExists) or read_ingest(folder) is None:
                    remove_ingest(folder)
            lock.release()
            raise

    def write(
        self, ref: str, data: bytes, *, digest: str, size: int, labels: Mapping[str, str] | None = None
    ) -> None:
        """Store a small blob in one go. Content that is here already gets the labels. Twice is harmless.

        FailedPrecondition when ``data`` has another size or digest; else errors as :meth:`writer`.
        """
        try:
            with self.writer(ref, size=size, digest=digest, wait=True) as ingest:
                ingest.truncate(0)
                try:
                    ingest.write(data)
                    ingest.commit(size=size, digest=digest, labels=labels)
                except FailedPrecondition:
                    ingest.discard()
                    raise
        except AlreadyExists:
            self.adopt(digest, labels)

    def ingests(self, *, filters: Sequence[str] = ()) -> list[IngestStatus]:
        """Return this namespace's ingests, sorted by ref, whether somebody writes to them or not. Filters know ``ref``."""
        from lamella.filters import compile_filters

        match = compile_filters(filters)
        found = []
        with translated("list the ingests"):
            for folder in ingest_folders(self._ingests):
                record = read_ingest(folder)
                if record is not None and record.namespace == self._namespace and match({"ref": record.ref}):
                    found.append(ingest_status(folder, record))
        return sorted(found, key=lambda status: status.ref)

    def status(self, ref: str) -> IngestStatus:
        """Return how far one ingest is. NotFound."""
        return ingest_status(*self._find_ingest(ref))

    def received(self, digest: str) -> int:
        """Say how many bytes of a blob are here, of whole ones or in its shared ingest."""
        parsed = parse_digest(digest)
        with translated(f"look at the blob {digest}"):
            return file_length(self._file(parsed)) or file_length(self._shared_folder(parsed) / "data")

    def abort(self, ref: str) -> None:
        """Throw an ingest away. NotFound; Unavailable while somebody writes to it."""
        folder, _ = self._find_ingest(ref)
        lock = FileLock(folder / "lock", what=f"ingest {ref!r}")
        lock.acquire(wait=False)
        try:
            remove_ingest(folder)
        finally:
            lock.release()

    def _resume(self, folder: Path, wanted: IngestRecord) -> IngestRecord:
        """Give the record of the ingest to go on with; what is on disk fits it."""
        data = folder / "data"
        record = read_ingest(folder)
        if record is not None:
            total = wanted.total or record.total
            same = total == (record.total or total) and wanted.expected in (
                "",
                record.expected or wanted.expected,
            )
            if same and (not total or file_length(data) <= total):
                found = replace(wanted, total=total, started_at=record.started_at)
                if found != record:
                    write_record(folder, found)
                return found
        data.unlink(missing_ok=True)
        write_record(folder, wanted)
        return wanted

    def _refuse_present(self, digest: Digest, adopt: bool) -> None:
        if self.exists(digest):
            try:
                if adopt:
                    self.adopt(digest)
                else:
                    self.info(digest)
            except NotFound:  # deleted between the two
                return
            raise AlreadyExists(f"content {digest} is in the store")

    def _publish(self, ingest: Ingest, digest: Digest, size: int, labels: Mapping[str, str]) -> None:
        """Make an ingest's data the blob ``digest``; the caller has checked it."""
        target = self._file(digest)
        data = ingest.data_path
        database = self._database
        with database.write() as db:
            row = db.execute(
                f"SELECT size, EXISTS (SELECT 1 FROM content WHERE namespace = ? AND digest = b.digest), {_UNVERIFIED} "  # noqa: S608
                "FROM blobs b WHERE digest = ?",
                (self._namespace, boot_id(), digest),
            ).fetchone()
            ingest.settle()
            database.on_rollback(ingest.reopen)
            database.after_commit(ingest.finish)
            intact = row is not None and not row[2] and file_length(target) == row[0]
            if not intact:
                try:
                    data.rename(target)
                except FileNotFoundError:
                    make_private_folder(target.parent)
                    data.rename(target)
                database.on_rollback(lambda exclusive: _put_back(target, data, exclusive))
                target.chmod(0o444)
                if row is not None:
                    db.execute(
                        "UPDATE blobs SET size = ?, synced = 0, boot_id = ?, created_at = ? WHERE digest = ?",
                        (size, boot_id(), timestamp(), digest),
                    )
                else:
                    db.execute(
                        "INSERT INTO blobs (digest, size, created_at, boot_id) VALUES (?, ?, ?, ?)",
                        (digest, size, timestamp(), boot_id()),
                    )
            seen = row is not None and row[1]
            if not seen:
                self._insert(db, digest, labels)
        if seen and intact:
            raise AlreadyExists(f"content {digest} is in namespace {self._namespace}")

    # Places and errors

    def _file(self, digest: Digest) -> Path:
        return self._blobs.joinpath(*split_digest(digest))

    def _folder(self, ref: str) -> Path:
        return self._ingests / _folder_name(f"{self._namespace}\0{ref}")

    def _shared_folder(self, digest: Digest) -> Path:
        return self._ingests / _folder_name(f"\0{digest}")

    def _find_ingest(self, ref: str) -> tuple[Path, IngestRecord]:
        """Find an ingest of this namespace; its folder is named by the ref, or by a digest if it is shared. NotFound."""
        own = self._folder(check_ref(ref))
        with translated(f"look at the ingest {ref!r}"):
            for folder in (own, *ingest_folders(self._ingests)):
                record = read_ingest(folder)
                if record is not None and (record.namespace, record.ref) == (self._namespace, ref):
                    return folder, record
        raise NotFound(f"there is no ingest {ref!r} in namespace {self._namespace}")

    def _missing(self, digest: str) -> NotFound:
        return NotFound(
            f"there is no content {digest} in namespace {self._namespace}", hint=self._discarded_hint(digest)
        )

    def _discarded_hint(self, digest: str) -> str | None:
        """Say how to get a layer back whose image was pulled with ``keep_layers=False``."""
        with self._database.read() as db:
            row = db.execute(_DISCARDED, {"namespace": self._namespace, "digest": digest}).fetchone()
        if row is None:
            return None
        name = row[0] or "its image"
        return f"The compressed layers of {name} were dropped once they were unpacked; fetch them again: lamella pull {name}"

    def _lost(self, digest: str) -> DataLoss:
        return DataLoss(
            f"the file of the blob {digest} is gone or damaged",
            hint="Pull its image again; lamella fsck says which one it is.",
        )


def file_digest(path: Path, like: Digest) -> Digest:
    """Hash a file with the algorithm of ``like``. The GIL is not held meanwhile. NotFound; Unavailable."""
    with translated(f"read the blob {like}"), path.open("rb") as file:
        return _hash(file, like)


def is_whole(database: Database, blobs: Path, digest: Digest) -> bool:
    """Hash a blob's file, and remove it if it is damaged; its rows stay. False also when it is gone."""
    path = blobs.joinpath(*split_digest(digest))
    with translated(f"read the blob {digest}"):
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return False
        with file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # what counts is what the disk has
            if _hash(file, digest) == digest:
                return True
            with suppress(PermissionDenied), database.write(), suppress(FileNotFoundError):
                # A pull may have put the right file there meanwhile. This one is open, so that its inode is not used again.
                if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                    path.unlink()
                    _log.warning("the blob %(content)s is damaged; its file was removed", content=digest)
    return False


def _folder_name(ref: str) -> str:
    return split_digest(digest_of(ref.encode()))[1]


def _hash(file: BufferedReader, like: Digest) -> Digest:
    import hashlib

    algorithm, _ = split_digest(like)
    return Digest(f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}")


_BLOB_IS_UNUSED = """
NOT EXISTS (SELECT 1 FROM content WHERE digest = blobs.digest) AND NOT EXISTS (
    SELECT 1 FROM lease_resources r CROSS JOIN leases x ON x.number = r.lease
    WHERE r.type = 'content' AND r.resource = blobs.digest AND (x.expires_at IS NULL OR x.expires_at > :now))
"""
"""An SQL condition on ``blobs``. A lease of any namespace counts: its owner may have found the blob and adopt it next."""


def delete_blob_row(db: Transaction, digest: Digest, now: str) -> int | None:
    """Delete the row of a blob that nobody uses, and return its size; None when somebody does. The file is next."""
    row = db.execute(
        f"DELETE FROM blobs WHERE digest = :digest AND {_BLOB_IS_UNUSED} RETURNING size",  # noqa: S608 (a constant)
        {"digest": digest, "now": now},
    ).fetchone()
    return None if row is None else row[0]


def unlink_blobs(database: Database, blobs: Path, digests: Sequence[Digest]) -> list[tuple[Digest, int]]:
    """Remove the files of blobs that no row names; those that came back stay. Return what went, with its bytes.

    The rename away happens inside a write transaction (see the head of this module), the slow part after it. That the
    rows are gone is on disk before: else a power cut could bring back a row that says its blob is complete.
    """
    database.flush()
    gone = []
    doomed = []
    trash = blobs.parent / "ingest"
    with database.write() as db, translated("remove blobs"):
        make_private_folder(trash)
        for digest in digests:
            if db.execute("SELECT 1 FROM blobs WHERE digest = ?", (digest,)).fetchone() is not None:
                continue
            moved = trash / f"{TRASH}{os.urandom(8).hex()}"
            try:
                blobs.joinpath(*split_digest(digest)).rename(moved)
            except FileNotFoundError:
                continue
            doomed.append(moved)
            gone.append((digest, moved.lstat().st_size))
    with translated("remove blobs"):
        for path in doomed:
            path.unlink(missing_ok=True)
    return gone


def _put_back(target: Path, data: Path, exclusive: bool) -> None:
    """Undo the rename of a commit that is rolled back; without the write lock it may be another one's blob by now."""
    if exclusive:
        target.chmod(0o600)
        target.rename(data)


def _info(digest: str, size: int, labels: str, created_at: str, updated_at: str) -> ContentInfo:
    return ContentInfo(
        digest=Digest(digest),
        size=size,
        labels=decode_labels(labels),
        created_at=created_at,
        updated_at=updated_at,
    )
