"""The native snapshotter: plain copies, for file systems and kernels where overlayfs does not work.

========================================  ==================================================================
snapshot                                  mounts
========================================  ==================================================================
active                                    bind of its own ``fs``, rw: a copy of its parent's, or empty
view                                      read-only bind of its parent's ``fs``, which never changes; of its own, empty one
                                          without a parent
========================================  ==================================================================

Each folder holds all that the snapshot shows, and is opaque: what is beneath it is of no interest. So a layer's folder is right
on top of one chain only, begins as a copy of that chain's folder, and is made after it (:mod:`lamella.transfer.pull`). A
snapshot's own changes are found by comparing its folder with its parent's.

A copy takes time and space: none to speak of where the file system shares blocks between files (btrfs, XFS), else as much as
``cp -a``. So it is made before the transaction that records the snapshot, in a :class:`lamella.snapshots.folders.Draft`; if the
parent's folder was removed or replaced meanwhile, that transaction sees it and nothing is recorded. The row counts the copy's
inodes, by which :mod:`lamella.durability` knows that there is something to sync.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lamella import _core
from lamella.errors import Aborted, DataLoss, LamellaError, NotFound
from lamella.snapshots import Mount, SnapshotKind, Whiteouts
from lamella.snapshots.folders import Draft
from lamella.snapshots.recorded import RecordedSnapshotter


class NativeSnapshotter(RecordedSnapshotter):
    """Snapshots as copies; see :class:`lamella.snapshots.Snapshotter`."""

    name = "native"
    stacks = False

    @property
    def whiteouts(self) -> Whiteouts:
        """None: what a layer deletes is not in its folder."""
        return "plain"

    @contextmanager
    def _filled_folder(self, parent: str, key: str | None = None) -> Iterator[Draft | None]:
        source = self._layer_of(parent, key)
        if source is None:
            yield None
            return
        with Draft(self._database, self._folders, copy_of=source) as draft:
            try:
                _core.copy_tree(self._folders.fs(source), draft.path)
            except LamellaError as error:
                if self._layer_of(parent, key) != source:
                    raise self._replaced(parent) from error
                if isinstance(error, NotFound):
                    raise DataLoss(error.message, hint="Look for damage: lamella fsck.") from None
                raise
            draft.usage = _core.disk_usage(draft.path)
            yield draft

    def _layer_of(self, parent: str, key: str | None) -> str | None:
        """Give the layer of a parent; None without one."""
        with self._database.read() as db:
            if key is not None:
                self._check_free(db, key)
            return next(iter(self._usable_layers(self._parents(db, parent), parent)), None)

    def _create_folder(self, kind: SnapshotKind, parents: list[str], filled: Draft | None) -> str | None:
        if not parents:
            return self._folders.create(work=False)
        if kind == "view":
            return None
        if filled is None or filled.copy_of != parents[0]:
            raise self._replaced(parents[0])
        return filled.keep()

    def _mounts(self, kind: SnapshotKind, own: str | None, parents: list[str]) -> list[Mount]:
        access = "rw" if kind == "active" else "ro"
        return [Mount(type="bind", source=self._folders.fs(own or parents[0]), options=[access, "rbind"])]

    def _diff(self, own: str, parents: list[str], *, opaque: bool) -> _core.Changes:
        before = self._folders.fs(parents[0]) if parents else None
        return _core.diff_trees(self._folders.fs(own), before)

    def _replaced(self, what: str) -> Aborted:
        return Aborted(
            f"the folder of the parent {what!r} was replaced while it was copied", hint="Try again."
        )
