"""Durability without waiting: what is promised at which moment, and what makes up for what is not.

A pull does not wait for the disk: a sync of the file system costs as much as the pull itself. So a row of ``blobs`` or
``layers`` says under which boot of the machine its files were written (``boot_id``) and whether they were synced since
(``synced``). While that boot lasts the page cache holds what the disk may not, and the row can be believed. After another
boot a row without the mark is *unverified*: a power cut may have taken the bytes of its files. Before it is used again

- a blob is read and hashed once (:mod:`lamella.content`); one that is damaged loses its file and counts as not there, so that
  the next pull fetches it;
- an unpacked layer counts as not there (:mod:`lamella.snapshots.layers`) and is unpacked anew from its blob, since nothing but
  the blob can tell what was in it. A snapshot on such a layer raises :class:`Unverified`; creating and starting a
  container mends it by itself;
- a snapshot that somebody committed, and an active one that began as a copy, cannot be checked by anything: it stays usable,
  and ``lamella fsck`` names it.

:func:`sync` sets the mark: one syncfs, which brings the database's log to disk too, then one small transaction that is
flushed as well. Only rows that were there before the syncfs began are marked. It runs when asked for (``pull(sync=True)``,
``Client(durable=True)``), with garbage collection, and before a later pull writes, if there are rows older than
DUE_SECONDS: by then the kernel has written most of it and the wait is short. Where a sync fails, what it was for is unverified
from then on.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from lamella.config import Config
from lamella.disk import translated
from lamella.errors import FailedPrecondition, LamellaError
from lamella.metadata import Database, timestamp
from lamella.metadata.boot import boot_id
from lamella.tracing import span

DUE_SECONDS = 60.0
"""How old rows are when whoever comes by syncs them. The kernel itself starts writing after 30 s (vm.dirty_expire_centisecs)."""
_BATCH = 1000

# A layer that an active snapshot writes to is never done; its inodes are counted when it is committed, and those of the copy that
# it may have begun as (snapshots.native).
_UNSYNCED_LAYERS = """
    SELECT id FROM layers
    WHERE synced = 0 AND (diff_id IS NOT NULL OR inodes > 0) AND boot_id = :boot AND created_at <= :before
"""
_UNSYNCED_BLOBS = (
    "SELECT digest, created_at FROM blobs WHERE synced = 0 AND boot_id = :boot AND created_at <= :before"
)


class Unverified(FailedPrecondition):
    """A snapshot stands on layers that an earlier boot left without the mark of a sync; they are to be unpacked anew."""


def sync(database: Database, config: Config) -> int:
    """Wait until all that is complete in the store now is on disk, and mark it; return how many rows were marked.

    What was committed before survives a power cut from then on. Twice is harmless. Errors: Unavailable when the disk fails.
    """
    # A connection of its own, so that other threads of the caller need not wait for the disk.
    with Database(config, busy_seconds=database.busy_seconds) as own:
        values = {"boot": boot_id(), "before": "9999"}
        with own.read() as db:
            blobs = db.execute(_UNSYNCED_BLOBS, values).fetchall()
            layers = db.execute(_UNSYNCED_LAYERS, values).fetchall()
        try:
            with span("lamella.sync"), translated(f"sync the store {config.root}"):
                sync_file_systems(_parts(config.root))
        except LamellaError:
            with suppress(LamellaError):
                _distrust(own, blobs, layers)
            raise
        for at in range(0, len(blobs), _BATCH):
            # created_at: the row may have been deleted meanwhile, and come back with a file that was not synced.
            with own.write() as db:
                db.executemany(
                    "UPDATE blobs SET synced = 1 WHERE digest = ? AND created_at = ?", blobs[at : at + _BATCH]
                )
        for at in range(0, len(layers), _BATCH):
            with own.write() as db:
                db.executemany("UPDATE layers SET synced = 1 WHERE id = ?", layers[at : at + _BATCH])
        if blobs or layers:
            own.flush()
        return len(blobs) + len(layers)


def sync_if_due(database: Database, config: Config) -> bool:
    """Sync if something has waited for it longer than DUE_SECONDS; tell whether it was."""
    values = {"boot": boot_id(), "before": timestamp(-DUE_SECONDS)}
    with database.read() as db:
        due = any(
            db.execute(f"{query} LIMIT 1", values).fetchone() is not None
            for query in (_UNSYNCED_BLOBS, _UNSYNCED_LAYERS)
        )
    if due:
        sync(database, config)
    return due


def _distrust(database: Database, blobs: list[tuple[str, str]], layers: list[tuple[str]]) -> None:
    """Take what could not be synced for unverified: the kernel tells of a failed write once, the next sync would succeed."""
    with database.write() as db:
        db.executemany(
            "UPDATE blobs SET boot_id = 'failed' WHERE digest = ? AND created_at = ? AND synced = 0", blobs
        )
        db.executemany("UPDATE layers SET boot_id = 'failed' WHERE id = ? AND synced = 0", layers)


def _parts(root: Path) -> list[Path]:
    """Give the folders of a store that somebody may have put on file systems of their own."""
    return [root, root / "blobs", root / "snapshots", *root.glob("snapshots/*")]


def sync_file_systems(folders: Iterable[str | Path]) -> None:
    """Sync the file systems of folders, each once; one that is not there is passed over. OSError."""
    import ctypes  # 3 ms, which only those pay who wait for the disk anyway

    libc = ctypes.CDLL(None, use_errno=True)
    done = set()
    for folder in folders:
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            device = os.fstat(descriptor).st_dev
            if device not in done and libc.syncfs(descriptor):
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
            done.add(device)
        finally:
            os.close(descriptor)
