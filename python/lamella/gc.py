"""Garbage collection: remove what nothing refers to, while others go on working.

What is kept within a namespace, and why, is said in :mod:`lamella.metadata.reachability`: roots, and what they lead to. Beneath
the namespaces a blob goes with the last content row, unless a lease of any namespace names it; a layer folder with the last
snapshot, unless a lease names its diffID or whoever unpacked it still holds it; then ingests older than a day that nobody
writes to, and what crashes left on disk: files and folders that no row names, trash, lock files. Expired leases and images
are deleted.

How it runs beside others: marking reads one state of the database in a read transaction, which holds nobody up. Sweeping
takes the garbage in small write transactions, each followed by a pause in which others get their turn. Meanwhile somebody
may have found a use for a piece of garbage, so each transaction looks again, from the other end: who leads to these few
rows, and does a root? The youngest rows come first, that is, referrers before what they refer to, so that this is quick.
Files and folders are renamed away when no row names them any more, and deleted outside all locks.

One collection at a time: ``<root>/locks/gc``. A dry run takes no lock and writes nothing. What the last one did is kept in
``<root>/gc.json``, written whole by the holder of that lock (:func:`last_report`); when one runs by itself is said in
:mod:`lamella.autogc`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from lamella import _core
from lamella.config import Config
from lamella.content import delete_blob_row, unlink_blobs
from lamella.digest import HEX_LENGTHS, Digest, split_digest
from lamella.disk import TRASH, names_in, translated
from lamella.errors import LamellaError
from lamella.ingest import ingest_folders, read_ingest, remove_ingest
from lamella.locks import FileLock, is_locked
from lamella.metadata import Database, Transaction, timestamp
from lamella.metadata.reachability import CONTENT, IMAGE, SNAPSHOT, condemned, is_past, mark
from lamella.metrics.table import GC_FREED, GC_PAUSE, GC_REMOVED, GC_RUNS, GC_SECONDS
from lamella.operations import INFO, Operation, by_result, when_ok
from lamella.sizes import format_size
from lamella.snapshots.folders import LayerFolders

INGEST_SECONDS = 24 * 3600.0
"""How long an unfinished ingest may wait to be resumed."""
NAMES_MAX = 1000

_BATCH_SECONDS = 0.005
_BATCH_FIRST = 32
_BATCH_MAX = 1024
_PAUSE_SECONDS = 0.005  # longer than the others sleep between two looks (metadata.database)

_LEASED_LAYERS = """
    SELECT r.resource FROM leases x JOIN lease_resources r ON r.lease = x.number AND r.type = 'layers'
    WHERE x.expires_at IS NULL OR x.expires_at > :now
"""
_UNUSED_BLOBS = """
SELECT digest, size FROM blobs
WHERE NOT EXISTS (SELECT 1 FROM content c WHERE c.digest = blobs.digest AND c.number * 4 NOT IN temp.garbage)
    AND NOT EXISTS (
        SELECT 1 FROM lease_resources r CROSS JOIN leases x ON x.number = r.lease
        WHERE r.type = 'content' AND r.resource = blobs.digest AND (x.expires_at IS NULL OR x.expires_at > :now))
"""
_UNUSED_LAYERS = f"""
SELECT id, snapshotter, disk_bytes FROM layers
WHERE NOT EXISTS (SELECT 1 FROM snapshots s WHERE s.layer = layers.id AND s.number * 4 + 1 NOT IN temp.garbage)
    AND (diff_id IS NULL OR diff_id NOT IN ({_LEASED_LAYERS}))
"""  # noqa: S608 (constants)
_DELETE_LAYER = """
DELETE FROM layers WHERE id = :id AND NOT EXISTS (SELECT 1 FROM snapshots WHERE layer = :id)
    AND (diff_id IS NULL OR NOT EXISTS (
        SELECT 1 FROM lease_resources r JOIN leases x ON x.number = r.lease
        WHERE r.type = 'layers' AND r.resource = diff_id AND (x.expires_at IS NULL OR x.expires_at > :now)))
RETURNING id
"""
_COLLECT = Operation(
    "gc",
    "collected garbage: %(snapshots)d snapshots, %(blobs)d blobs, %(layers)d layers, %(bytes)d bytes in %(seconds).3f s",
    log="lamella",
    level=INFO,
    counts=by_result(GC_RUNS),
    durations=when_ok(GC_SECONDS),
)


class GcTimes(msgspec.Struct, kw_only=True):
    """What a collection cost, in seconds, and when it was (RFC 3339).

    ``mark``: finding the garbage, which holds nobody up. ``sweep``: removing it. ``longest_transaction``: the longest that
    others who wanted to write may have had to wait for it; ``lock_wait``: what it waited for them, all in all.
    """

    started_at: str
    finished_at: str = ""
    mark: float = 0.0
    sweep: float = 0.0
    longest_transaction: float = 0.0
    lock_wait: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return self.mark + self.sweep


class GcReport(msgspec.Struct, kw_only=True):
    """What a collection removed, or would remove.

    ``images``, ``content``, ``snapshots`` and ``leases`` count rows of namespaces; ``blobs`` and ``layers`` what went from the
    disk with them; ``orphans`` files and folders that no row named. ``names`` has the first 1000, as ``blob sha256:...``.
    """

    dry_run: bool
    leases: int = 0
    images: int = 0
    content: int = 0
    blobs: int = 0
    snapshots: int = 0
    layers: int = 0
    ingests: int = 0
    orphans: int = 0
    bytes_freed: int = 0
    names: list[str] = []
    times: GcTimes | None = None

    def __str__(self) -> str:
        counts = [
            f"{count} {what}" if count != 1 else f"1 {what.removesuffix('s')}"
            for what in ("leases", "images", "blobs", "snapshots", "layers", "ingests", "orphans")
            if (count := getattr(self, what))
        ]
        verb = "would remove" if self.dry_run else "removed"
        text = f"{verb} {', '.join(counts) or 'nothing'} ({format_size(self.bytes_freed)})"
        if self.times is not None and not self.dry_run:
            text += f" in {self.times.total:.2f} s"
        return text

    def note(self, what: str, name: str, freed: int = 0) -> None:
        """Count one thing."""
        self.bytes_freed += freed
        if len(self.names) < NAMES_MAX:
            self.names.append(f"{what} {name}")


def collect(
    database: Database,
    config: Config,
    *,
    dry_run: bool = False,
    ingest_seconds: float = INGEST_SECONDS,
    wait: bool = True,
    leftovers_only: bool = False,
) -> GcReport:
    """Remove what nothing refers to, in all namespaces of the store; with ``dry_run`` only say what would go.

    With ``leftovers_only``: what is on disk and has no row, as a crash leaves it, and ingests that are too old.

    Waits for another collection to end; Unavailable without ``wait``. Where something cannot be deleted from disk the rest is,
    and the error is raised at the end. Other errors are those of the database. Twice is harmless.
    """
    # A connection of its own, so that the threads of the caller need not wait for it.
    with _TimedDatabase(config, busy_seconds=database.busy_seconds) as own:
        if dry_run:
            return _Collection(own, config, ingest_seconds, leftovers_only).preview()
        lock = FileLock(
            config.root / "locks" / "gc",
            what="garbage collection",
            transient=True,
            waited=own.metrics.waits("gc"),
        )
        lock.acquire(wait=wait)
        try:
            report = _watched(own, _Collection(own, config, ingest_seconds, leftovers_only))
            _remember(config.root, report)
        finally:
            lock.release()
        return report


def last_report(root: Path) -> GcReport | None:
    """Give the report of the store's last collection that came to its end; None when there was none."""
    try:
        return msgspec.json.decode((root / "gc.json").read_bytes(), type=GcReport)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None


def _remember(root: Path, report: GcReport) -> None:
    fresh = root / "gc.json.new"
    with suppress(OSError):  # on a full disk; who looks finds the one before
        fresh.write_bytes(msgspec.json.encode(msgspec.structs.replace(report, names=[])))
        fresh.replace(root / "gc.json")


class _TimedDatabase(Database):
    """A connection that notes how long it held the write lock and how long it waited for it."""

    longest = waited = 0.0

    def _note_held(self, seconds: float) -> None:
        super()._note_held(seconds)
        self.longest = max(self.longest, seconds)

    def _note_wait(self, seconds: float, reason: str) -> None:
        super()._note_wait(seconds, reason)
        self.waited += seconds


def _watched(database: Database, collection: _Collection) -> GcReport:
    """Collect, and count what went, also where the end is an error."""
    report = GcReport(dry_run=False)
    database.held = GC_PAUSE.series()
    with _COLLECT(database.metrics) as running:
        try:
            collection.run(report)
        finally:
            for (kind,), cell in GC_REMOVED.cells.items():
                database.metrics.add(cell, getattr(report, kind))
            database.metrics.add(GC_FREED.cell(), report.bytes_freed)
            running.note(
                snapshots=report.snapshots, blobs=report.blobs, layers=report.layers, bytes=report.bytes_freed
            )
    return report


class _Collection:
    """One run over one store."""

    def __init__(
        self, database: _TimedDatabase, config: Config, ingest_seconds: float, leftovers_only: bool
    ) -> None:
        self._database = database
        self._leftovers_only = leftovers_only
        self._root = config.root
        self._blobs = config.root / "blobs"
        self._ingest_seconds = ingest_seconds
        self._now = timestamp()
        self._failure: LamellaError | None = None
        with database.read() as db:
            db.execute("PRAGMA cache_size = -65536").fetchall()

    def preview(self) -> GcReport:
        """Count without touching anything."""
        report = GcReport(dry_run=True)
        if self._leftovers_only:
            self._sweep_disk(report)
            return report
        with self._database.read() as db:
            mark(db, self._now)
            self._count(db, report)
            layers = db.execute(_UNUSED_LAYERS, {"now": self._now}).fetchall()
        for layer_id, snapshotter, disk_bytes in layers:
            if not is_locked(LayerFolders(self._root, snapshotter).folder(layer_id)):
                report.layers += 1
                report.note("layer", layer_id, disk_bytes)
        self._sweep_disk(report)
        return report

    def run(self, report: GcReport) -> None:
        """Collect."""
        times = GcTimes(started_at=self._now)
        report.times = times
        started = time.perf_counter()
        if self._leftovers_only:
            self._sweep_disk(report)
        else:
            rows = self._mark()
            times.mark = time.perf_counter() - started
            self._sweep(rows, report)
        times.sweep = time.perf_counter() - started - times.mark
        times.longest_transaction, times.lock_wait = self._database.longest, self._database.waited
        times.finished_at = timestamp()
        if self._failure is not None:
            raise self._failure

    def _mark(self) -> list[tuple[int]]:
        with self._database.read() as db:
            mark(db, self._now)
            return db.execute("SELECT node FROM temp.garbage ORDER BY node >> 2 DESC").fetchall()

    def _sweep(self, rows: Sequence[tuple[int]], report: GcReport) -> None:
        garbage: dict[int, list[int]] = {IMAGE: [], CONTENT: [], SNAPSHOT: []}
        for (node,) in rows:
            garbage[node & 3].append(node)
        self._sweep_leases(report)
        self._in_batches(garbage[IMAGE], lambda batch: self._sweep_images(batch, report))
        self._in_batches(garbage[CONTENT], lambda batch: self._sweep_content(batch, report))
        self._in_batches(garbage[SNAPSHOT], lambda batch: self._sweep_snapshots(batch, report))
        with self._database.read() as db:
            blobs = [row[0] for row in db.execute(_UNUSED_BLOBS, {"now": self._now})]
            layers = db.execute(_UNUSED_LAYERS, {"now": self._now}).fetchall()
        self._in_batches(blobs, lambda batch: self._sweep_blobs(batch, report))
        self._in_batches(layers, lambda batch: self._sweep_layers(batch, report))
        self._sweep_disk(report)

    def _in_batches(self, items: Sequence[Any], sweep: Callable[[Sequence[Any]], None]) -> None:
        """Sweep in transactions that are as large as they may be without anybody noticing."""
        size = _BATCH_FIRST
        at = 0
        while at < len(items):
            start = time.perf_counter()
            sweep(items[at : at + size])
            at += size
            seconds = time.perf_counter() - start
            size = max(1, min(_BATCH_MAX, size * 2, int(size * _BATCH_SECONDS / max(seconds, 1e-6))))
            time.sleep(_PAUSE_SECONDS)

    # Rows

    def _count(self, db: Transaction, report: GcReport) -> None:
        """Say what sweeping the marked rows would remove."""
        for (name,) in db.execute("SELECT id FROM leases WHERE expires_at <= ?", (self._now,)):
            report.leases += 1
            report.note("lease", str(name))
        for name, expire in db.execute(
            """
            SELECT name, (SELECT named FROM gc_labels WHERE owner = g.node AND kind = 'expire')
            FROM temp.garbage g JOIN images i ON i.number = g.node >> 2 WHERE g.node & 3 = 2
            """
        ):
            if is_past(expire, self._now):
                report.images += 1
                report.note("image", str(name))
        for (count,) in db.execute(
            """
            SELECT count(*) FROM temp.garbage WHERE node & 3 = 0
            """
        ):
            report.content = int(count)
        for digest, size in db.execute(_UNUSED_BLOBS, {"now": self._now}):
            report.blobs += 1
            report.note("blob", digest, size)
        for namespace, name in db.execute(
            """
            SELECT namespace, name FROM temp.garbage g JOIN snapshots s ON s.number = g.node >> 2
            WHERE g.node & 3 = 1
            """
        ):
            report.snapshots += 1
            report.note("snapshot", f"{namespace}/{name}")

    def _sweep_leases(self, report: GcReport) -> None:
        with self._database.write() as db:
            rows = db.execute(
                "DELETE FROM leases WHERE expires_at <= ? RETURNING id", (self._now,)
            ).fetchall()
        for (name,) in rows:
            report.leases += 1
            report.note("lease", name)

    def _sweep_images(self, batch: Sequence[int], report: GcReport) -> None:
        with self._database.write() as db:
            for node in condemned(db, batch, self._now):
                row = db.execute(
                    "DELETE FROM images WHERE number = ? RETURNING name", (node >> 2,)
                ).fetchone()
                if row is not None:
                    report.images += 1
                    report.note("image", row[0])

    def _sweep_content(self, batch: Sequence[int], report: GcReport) -> None:
        gone: list[Digest] = []
        with self._database.write() as db:
            for node in condemned(db, batch, self._now):
                row = db.execute(
                    "DELETE FROM content WHERE number = ? RETURNING digest", (node >> 2,)
                ).fetchone()
                if row is None:
                    continue
                report.content += 1
                self._delete_blob(db, row[0], gone, report)
        self._unlink(gone)

    def _sweep_blobs(self, batch: Sequence[Digest], report: GcReport) -> None:
        """Delete blobs that a lease outlived their last content row."""
        gone: list[Digest] = []
        with self._database.write() as db:
            for digest in batch:
                self._delete_blob(db, digest, gone, report)
        self._unlink(gone)

    def _delete_blob(self, db: Transaction, digest: Digest, gone: list[Digest], report: GcReport) -> None:
        size = delete_blob_row(db, digest, self._now)
        if size is not None:
            report.blobs += 1
            report.note("blob", digest, size)
            gone.append(digest)

    def _unlink(self, digests: list[Digest]) -> None:
        if digests:
            with self._failures():
                unlink_blobs(self._database, self._blobs, digests)

    def _sweep_snapshots(self, batch: Sequence[int], report: GcReport) -> None:
        with self._database.write() as db:
            for node in condemned(db, batch, self._now):  # children first: their numbers are higher
                row = db.execute(
                    """
                    DELETE FROM snapshots
                    WHERE number = ?1 AND NOT EXISTS (SELECT 1 FROM snapshots c WHERE c.parent = ?1)
                    RETURNING namespace, name
                    """,
                    (node >> 2,),
                ).fetchone()
                if row is not None:
                    report.snapshots += 1
                    report.note("snapshot", f"{row[0]}/{row[1]}")

    def _sweep_layers(self, batch: Sequence[tuple[str, str, int]], report: GcReport) -> None:
        gone: list[tuple[str, str]] = []
        with self._database.write() as db:
            for layer_id, snapshotter, disk_bytes in batch:
                if is_locked(LayerFolders(self._root, snapshotter).folder(layer_id)):
                    continue  # it was unpacked just now, the snapshot on it comes next
                if db.execute(_DELETE_LAYER, {"id": layer_id, "now": self._now}).fetchone() is not None:
                    report.layers += 1
                    report.note("layer", layer_id, disk_bytes)
                    gone.append((snapshotter, layer_id))
        if gone:
            self._database.flush()  # as in content.unlink_blobs
        for snapshotter, layer_id in gone:
            folders = LayerFolders(self._root, snapshotter)
            with self._failures():
                folders.destroy(folders.discard(layer_id))

    # What is on disk

    def _sweep_disk(self, report: GcReport) -> None:
        with translated("look for what nothing refers to"):
            self._sweep_orphan_blobs(report)
            for snapshotter in sorted(names_in(self._root / "snapshots")):
                self._sweep_orphan_folders(snapshotter, report)
            self._sweep_ingests(report)
            if not report.dry_run:
                self._sweep_locks()

    def _sweep_orphan_blobs(self, report: GcReport) -> None:
        for algorithm, length in HEX_LENGTHS.items():
            names = names_in(self._blobs / algorithm)
            with self._database.read() as db:
                known = {
                    row[0]
                    for row in db.execute("SELECT digest FROM blobs WHERE digest GLOB ?", (f"{algorithm}:*",))
                }
            digests = [Digest(f"{algorithm}:{name}") for name in names if len(name) == length]
            orphans = sorted(digest for digest in digests if digest not in known)
            if report.dry_run:
                for digest in orphans:
                    with suppress(FileNotFoundError):  # it was being removed just now
                        size = self._blobs.joinpath(*split_digest(digest)).lstat().st_size
                        report.orphans += 1
                        report.note("orphan", digest, size)
            else:
                self._in_batches(orphans, lambda batch: self._unlink_orphans(batch, report))

    def _unlink_orphans(self, batch: Sequence[Digest], report: GcReport) -> None:
        for digest, size in unlink_blobs(self._database, self._blobs, batch):
            report.orphans += 1
            report.note("orphan", digest, size)

    def _sweep_orphan_folders(self, snapshotter: str, report: GcReport) -> None:
        folders = LayerFolders(self._root, snapshotter)
        names = names_in(folders.top)
        with self._database.read() as db:
            known = {
                row[0] for row in db.execute("SELECT id FROM layers WHERE snapshotter = ?", (snapshotter,))
            }
        for name in sorted(set(names) - known):
            if is_locked(folders.folder(name)):
                continue
            trash: Path | None = folders.folder(name)
            if not report.dry_run and not name.startswith(TRASH):
                trash = self._discard_orphan(folders, name)
            if trash is None:
                continue
            with self._failures():
                freed = self._usage(trash)
                if report.dry_run or folders.destroy(trash):
                    report.orphans += 1
                    report.note("orphan", f"{snapshotter}/{name}", freed)

    def _discard_orphan(self, folders: LayerFolders, name: str) -> Path | None:
        """Rename a folder away if it still has no row and no holder; where it is then."""
        with self._database.write() as db:
            if db.execute("SELECT 1 FROM layers WHERE id = ?", (name,)).fetchone() is not None:
                return None
            return None if is_locked(folders.folder(name)) else folders.discard(name)

    def _sweep_ingests(self, report: GcReport) -> None:
        with self._database.read() as db:
            leased = set(
                db.execute(
                    """
                    SELECT x.namespace, r.resource FROM leases x
                    JOIN lease_resources r ON r.lease = x.number AND r.type = 'ingests'
                    WHERE x.expires_at IS NULL OR x.expires_at > ?
                    """,
                    (self._now,),
                ).fetchall()
            )
        for trash in _entries(self._root / "ingest"):
            if trash.name.startswith(TRASH):
                size = _size(trash)
                report.orphans += 1
                report.note("orphan", trash.name, size)
                if not report.dry_run:
                    trash.unlink(missing_ok=True)
        for folder in ingest_folders(self._root / "ingest"):
            record = read_ingest(folder)
            if record is not None and (record.namespace, record.ref) in leased:
                continue
            if record is not None and time.time() - _last_change(folder) < self._ingest_seconds:
                continue  # somebody may resume it; without a record nobody can
            lock = FileLock(folder / "lock", what=f"ingest {folder.name}")
            if is_locked(lock.path) or (not report.dry_run and not lock.try_acquire()):
                continue
            if read_ingest(folder) == record:  # else its writer has just made it, and let go of it
                report.ingests += 1
                report.note("ingest", record.ref if record else folder.name, _size(folder / "data"))
                if not report.dry_run:
                    remove_ingest(folder)
            lock.release()

    def _sweep_locks(self) -> None:
        """Remove the lock files that killed processes left: taking and releasing one removes it."""
        for path in _entries(self._root / "locks"):
            if path.name.startswith(("layer-", "image-", "pool-")):
                lock = FileLock(path, what=path.name, transient=True)
                if lock.try_acquire():
                    lock.release()

    def _usage(self, folder: Path) -> int:
        try:
            return _core.disk_usage(str(folder))[0]
        except LamellaError:  # somebody is removing it
            return 0

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Go on when something cannot be deleted; keep the first failure for the end."""
        try:
            yield
        except LamellaError as error:
            self._failure = self._failure or error


def _entries(folder: Path) -> list[Path]:
    return [folder / name for name in sorted(names_in(folder))]


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0


def _last_change(folder: Path) -> float:
    """Give when an ingest was last written to (seconds since 1970)."""
    newest = 0.0
    for path in (folder, folder / "data", folder / "ref.json"):
        try:
            newest = max(newest, os.stat(path, follow_symlinks=False).st_mtime)  # noqa: PTH116
        except (FileNotFoundError, NotADirectoryError):
            continue
    return newest
