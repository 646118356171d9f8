"""Unpacked layers, shared by every chain, name and namespace that has their diffID.

A layer's folder (folders.py) depends on its own tar only, and then serves wherever that diffID stands in an image. Where it
cannot (a hard link into a lower layer, a parent folder that the tar does not name) it is bound to one chainID.

Who unpacks a layer stages it: a lock named by the diffID, ``<root>/locks/layer-...``, keeps others from doing the
same work; they wait, and then find it done, or, when the first one died, do it themselves. The folder being filled is
locked too, until the Staging is closed, so that garbage collection leaves it alone: also in the time between
:meth:`Staging.commit` and the first snapshot that stands on it. A layer that was found, not staged, is protected by a lease.

Durability: a row says under which boot its folder was filled and whether it was synced since (:mod:`lamella.durability`). A
folder that another boot left without the mark counts as not there; who unpacks the layer anew gives the snapshots on it
the new folder.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from lamella.config import Config, check_identifier
from lamella.digest import parse_digest, split_digest
from lamella.disk import translated
from lamella.errors import FailedPrecondition
from lamella.locks import FileLock
from lamella.metadata import Database, timestamp
from lamella.metadata.boot import boot_id
from lamella.snapshots.folders import Draft, LayerFolders, is_linked
from lamella.structs import Struct
from lamella.typings import Any

_COLUMNS = "id, diff_id, chain_id, disk_bytes, inodes, opaque_root"
_VERIFIED = "(synced OR boot_id = ?)"


class Layer(Struct, frozen=True):
    """An unpacked layer. ``path`` is its ``fs`` folder; bytes count 512-byte blocks.

    ``opaque_root``: it hides everything beneath it. ``chain_id``: None for one that is right in any chain that it :meth:`fits`.
    """

    id: str
    path: Path
    diff_id: str | None
    chain_id: str | None
    disk_bytes: int
    inodes: int
    opaque_root: bool

    def fits(self, lowers: Sequence[str]) -> bool:
        """Tell whether it is right on top of these folders, nearest first, if it is not bound to them.

        The root of a layer that does not name it is the same in every chain where no layer does; in another chain it would
        hide what the root is there.
        """
        if self.chain_id is not None or not lowers:
            return True
        with translated(f"read the layer {self.diff_id}"):
            return not _is_unnamed(str(self.path)) or _is_unnamed(lowers[0])


class LayerStore:
    """The unpacked layers of a store, of all snapshotters."""

    def __init__(self, database: Database, config: Config) -> None:
        self._database = database
        self._root = config.root

    def find(self, snapshotter: str, diff_id: str, chain_id: str | None = None) -> Layer | None:
        """Return the folder of a layer, or None: the one for ``chain_id``, else one that does not depend on a chain.

        One whose folder is gone or unverified counts as not there, so that it is unpacked again.
        """
        parse_digest(diff_id)
        folders = self._folders(snapshotter)
        with self._database.read() as db:
            rows = db.execute(
                f"""
                SELECT {_COLUMNS} FROM layers
                WHERE snapshotter = ? AND diff_id = ? AND coalesce(chain_id, '') IN ('', ?) AND {_VERIFIED}
                ORDER BY coalesce(chain_id, '') DESC
                """,  # noqa: S608 (a constant)
                (snapshotter, diff_id, chain_id or "", boot_id()),
            ).fetchall()
        found = (_layer(folders, row) for row in rows)
        with translated(f"look at the layer {diff_id}"):
            return next((layer for layer in found if layer.path.is_dir()), None)

    def stage(
        self,
        snapshotter: str,
        diff_id: str,
        *,
        wait: bool = True,
        waiting: Callable[[], object] | None = None,
    ) -> Staging:
        """Become the one who unpacks a layer; then look with :meth:`find` whether somebody just did.

        Unavailable when somebody is at it and ``wait`` is false; ``waiting`` as in :meth:`lamella.locks.FileLock.acquire`.
        """
        check_identifier(snapshotter, "snapshotter")
        algorithm, encoded = split_digest(parse_digest(diff_id))
        path = self._root / "locks" / f"layer-{snapshotter}-{algorithm}-{encoded}"
        waits = self._database.metrics.waits("layer")
        lock = FileLock(path, what=f"the layer {diff_id}", transient=True, waited=waits)
        lock.acquire(wait=wait, waiting=waiting)
        return Staging(self._database, self._folders(snapshotter), snapshotter, lock)

    def _folders(self, snapshotter: str) -> LayerFolders:
        return LayerFolders(self._root, check_identifier(snapshotter, "snapshotter"))


class Staging:
    """A layer being unpacked, which nobody sees and nobody else unpacks meanwhile.

    Leaving its ``with`` block without :meth:`commit` removes the folder.
    """

    def __init__(self, database: Database, folders: LayerFolders, snapshotter: str, lock: FileLock) -> None:
        self._database = database
        self._folders = folders
        self._snapshotter = snapshotter
        self._lock = lock
        self._draft: Draft | None = None

    def __enter__(self) -> Staging:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def path(self) -> Path:
        """The empty folder to unpack to; it is made at the first look."""
        return Path(self._folder.path)

    def link(self, source: Path) -> None:
        """Have the layer's files where they are, in an additional store, in place of a folder to unpack to."""
        assert self._draft is None
        self._draft = Draft(self._database, self._folders, link=str(source))

    @property
    def _folder(self) -> Draft:
        if self._draft is None:
            if not self._lock.held:
                raise FailedPrecondition("the staging is closed")
            self._draft = Draft(self._database, self._folders)
            os.utime(self._draft.path, (0, 0))  # what a tar does not say of the root is the same each time
        return self._draft

    def commit(
        self, *, diff_id: str, chain_id: str | None = None, disk_bytes: int, inodes: int, opaque_root: bool
    ) -> Layer:
        """Make the folder the layer ``diff_id``, right everywhere or, with ``chain_id``, on top of that chain alone.

        When an equal layer was committed meanwhile (after :meth:`unlock`) that one is returned and this folder dropped. A
        row whose folder is gone or unverified gets this one, and so do the snapshots that stand on it. Only once.
        """
        parse_digest(diff_id)
        if chain_id is not None:
            parse_digest(chain_id)
        draft = self._folder
        if draft.kept:
            raise FailedPrecondition("the staging is committed already")
        with self._database.write() as db:
            row = db.execute(
                f"""
                SELECT {_COLUMNS}, {_VERIFIED} FROM layers
                WHERE snapshotter = ? AND diff_id = ? AND coalesce(chain_id, '') = ?
                """,  # noqa: S608 (a constant)
                (boot_id(), self._snapshotter, diff_id, chain_id or ""),
            ).fetchone()
            if row is not None:
                layer = _layer(self._folders, row[:-1])
                if row[-1] and layer.path.is_dir():
                    return layer
                db.execute("UPDATE layers SET diff_id = NULL WHERE id = ?", (layer.id,))
            db.execute(
                """
                INSERT INTO layers
                    (id, snapshotter, diff_id, chain_id, disk_bytes, inodes, opaque_root, created_at, boot_id, synced)
                VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
                """,
                (
                    draft.id, self._snapshotter, diff_id, chain_id, disk_bytes, inodes, int(opaque_root),
                    timestamp(), boot_id(), int(is_linked(draft.id)),
                ),
            )  # fmt: skip
            if row is not None:
                db.execute("UPDATE snapshots SET layer = ? WHERE layer = ?", (draft.id, row[0]))
                db.execute("DELETE FROM layers WHERE id = ?", (row[0],))
                self._database.after_commit(lambda: self._folders.remove(row[0]))
            draft.keep()
        self._lock.release()
        return Layer(
            id=draft.id,
            path=Path(draft.path),
            diff_id=diff_id,
            chain_id=chain_id,
            disk_bytes=disk_bytes,
            inodes=inodes,
            opaque_root=opaque_root,
        )

    def unlock(self) -> None:
        """Let others unpack the diffID too, and keep the folder: for one who waits for something else meanwhile."""
        self._folder  # noqa: B018 (it is made under the lock)
        self._lock.release()

    def close(self) -> None:
        """Remove the folder if it was not committed, and let go. Harmless twice."""
        draft, self._draft = self._draft, None
        try:
            self._lock.release()
        finally:
            if draft is not None:
                draft.close()


def _is_unnamed(folder: str) -> bool:
    """Tell whether a root is as the applier leaves one that no layer names (rust/core/src/layer/finish.rs)."""
    status = os.stat(folder)  # noqa: PTH116 (twice a layer that is shared)
    attributes = (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns)
    return attributes == (0o755, os.geteuid(), os.getegid(), 0) and not os.listxattr(folder)


def _layer(folders: LayerFolders, row: tuple[Any, ...]) -> Layer:
    layer_id, diff_id, chain_id, disk_bytes, inodes, opaque_root = row
    return Layer(
        id=layer_id,
        path=Path(folders.fs(layer_id)),
        diff_id=diff_id,
        chain_id=chain_id,
        disk_bytes=disk_bytes,
        inodes=inodes,
        opaque_root=bool(opaque_root),
    )
