"""Layer folders on disk: making and removing them.

::

    <root>/snapshots/<snapshotter>/<id>/   0700  id: 16 random hex digits, never used twice
        fs/                                      the layer's files, or what an active snapshot has written; of "linked-..."
                                                 a symlink into an additional store (additional.py)
        work/                              0700  overlayfs' scratch folder, beside the fs of an active snapshot
        kept.tar                           0600  entries that fs cannot hold in a user namespace (rust/core/src/layer/kept.rs)
    <root>/snapshots/<snapshotter>/trash-<id>/   being removed

A folder that no row of ``layers`` names is invisible. It is one of:

- being filled, with a layer or a copy: its :class:`Draft` holds the folder's flock;
- being made by a transaction that is not committed: garbage collection looks in a write transaction of its own,
  when there is none;
- left behind by a crash or a failure: garbage collection removes it. Whoever deletes trash holds its flock.

So rows come after folders and go before them. Where trusted.* attributes are out of reach (for who is not root of the initial
user namespace), overlayfs keeps its own in user.*: ``user.lamella.userxattr`` on ``<root>/snapshots/<snapshotter>`` says that all
layers there have that form. Whoever makes the folder decides; a folder is made in a write transaction.

FS_TOPDIR_FL on ``<root>/snapshots/<snapshotter>`` makes ext4 spread layer
folders over its block groups, which keeps unpacking fast after deletes (1.3 s where it took 15).
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import TracebackType

from lamella import _core
from lamella.disk import TRASH, make_private_folder, translated
from lamella.errors import DataLoss, LamellaError
from lamella.locks import FolderLock
from lamella.typings import TYPE_CHECKING

if TYPE_CHECKING:
    from lamella.metadata import Database

_USERXATTR = "user.lamella.userxattr"
LINKED = "linked-"
"""What the id of a layer begins with whose ``fs`` is a symlink into an additional store (:mod:`lamella.additional`)."""


@cache
def needs_user_attributes() -> bool:
    """Tell whether this process is not root of the initial user namespace."""
    if os.geteuid() != 0:
        return True
    try:
        inside, outside, count = Path("/proc/self/uid_map").read_text(encoding="utf-8").split()[:3]
    except (OSError, ValueError):
        return False
    return (inside, outside, count) != ("0", "0", "4294967295")


def is_linked(layer_id: str) -> bool:
    """Tell by its id whether a layer's files are in an additional store."""
    return layer_id.startswith(LINKED)


class LayerFolders:
    """The layer folders of one snapshotter."""

    def __init__(self, root: Path, snapshotter: str) -> None:
        self.top = root / "snapshots" / snapshotter
        self._top = str(self.top)

    def fs(self, layer_id: str) -> str:
        """Give the path of a layer's files; of a linked one where they are, in an additional store."""
        path = f"{self._top}/{layer_id}/fs"
        if is_linked(layer_id):
            with suppress(OSError):  # it is gone, which is noticed where it is used
                return os.readlink(path)  # noqa: PTH115 (hot)
        return path

    def work(self, layer_id: str) -> str:
        """Give the path of an active snapshot's work folder."""
        return f"{self._top}/{layer_id}/work"

    def create(self, *, like: str | None = None, work: bool, link: str | None = None) -> str:
        """Make a fresh folder and return its id.

        Its ``fs`` takes owner and mode of the folder ``like``, or belongs to this process with mode 0755; or it is a symlink to
        ``link``.
        """
        layer_id = os.urandom(8).hex() if link is None else LINKED + os.urandom(8).hex()
        folder = f"{self._top}/{layer_id}"
        with translated("create a layer folder"):
            try:
                os.mkdir(folder, 0o700)  # noqa: PTH102 (hot, as are the calls below)
            except FileNotFoundError:
                self._create_top()
                os.mkdir(folder, 0o700)  # noqa: PTH102
            try:
                if work:
                    os.mkdir(f"{folder}/work", 0o700)  # noqa: PTH102
                if link is not None:
                    os.symlink(link, f"{folder}/fs")  # noqa: PTH211
                    return layer_id
                fs = f"{folder}/fs"  # last, so that where it is, the other is, after a power cut, too
                os.mkdir(fs, 0o700)  # noqa: PTH102
                mode, owner = 0o755, (os.geteuid(), os.getegid())
                if like is not None:
                    try:
                        parent = os.stat(like)  # noqa: PTH116
                    except FileNotFoundError:
                        raise DataLoss(
                            f"the layer folder {like} is gone", hint="Look for damage: lamella fsck."
                        ) from None
                    mode, owner = parent.st_mode & 0o7777, (parent.st_uid, parent.st_gid)
                # What is in an additional store belongs to another user.
                ours = like is not None and like.startswith(self._top)
                if ours and like is not None and owner != (os.geteuid(), os.getegid()):
                    _core.copy_owner(like, fs)
                else:
                    os.chmod(fs, mode)  # noqa: PTH101
            except BaseException:
                self.remove(layer_id)
                raise
        return layer_id

    def remove(self, layer_id: str) -> None:
        """Remove a folder whose row is gone. What cannot be removed stays as trash for garbage collection to try again."""
        with suppress(LamellaError):
            self.destroy(self.discard(layer_id))

    def discard(self, layer_id: str) -> Path:
        """Rename a folder that no row names, so that it says what it is: trash. Return where it is; twice is harmless."""
        trash = f"{self._top}/{TRASH}{layer_id}"
        with translated(f"remove the layer folder {layer_id}"), suppress(FileNotFoundError):
            os.rename(f"{self._top}/{layer_id}", trash)  # noqa: PTH104
        return Path(trash)

    def destroy(self, trash: Path) -> bool:
        """Delete what :meth:`discard` renamed. False when it is gone, or somebody else is deleting it."""
        lock = FolderLock(trash, what=f"layer folder {trash.name}")
        if not lock.try_acquire():
            return False
        try:
            _core.remove_tree(str(trash))
        finally:
            lock.release()
        return True

    def has_user_attributes(self) -> bool | None:
        """Tell whether the layers here keep overlayfs's attributes in user.*; None where nobody has decided that."""
        with translated(f"look at {self.top}"):
            try:
                return os.getxattr(self._top, _USERXATTR) == b"y"
            except OSError as error:
                if error.errno == errno.ENODATA:
                    return False
                if error.errno in (errno.ENOENT, errno.ENOTSUP):
                    return None
                raise

    def folder(self, layer_id: str) -> Path:
        """Give the path of a layer's folder."""
        return self.top / layer_id

    def lock(self, layer_id: str) -> FolderLock:
        """Give the lock that whoever fills, moves or removes a folder without a row holds."""
        return FolderLock(self.top / layer_id, what=f"layer folder {layer_id}")

    def _create_top(self) -> None:
        """Make the folder of all layers with what is said of them at once: who is killed in between must not leave it to root."""
        fresh = f"{self._top}.new"  # a killed one's is gone on with
        make_private_folder(fresh)
        # Every file of a layer, or of a container, would inherit it from there.
        with suppress(OSError):
            os.removexattr(fresh, "system.posix_acl_default")
        if needs_user_attributes():
            try:
                os.setxattr(fresh, _USERXATTR, b"y")
            except OSError as error:
                if error.errno != errno.ENOTSUP:
                    raise
        _core.set_top_directory(fresh)
        os.rename(fresh, self._top)  # noqa: PTH104


class Draft:
    """A folder being filled, which takes longer than a transaction may: nobody sees it, and garbage collection leaves it alone.

    Leaving its ``with`` block removes the folder, unless it was kept. ``copy_of``: the layer that it is a copy of; ``usage``:
    the bytes and inodes of that copy.
    """

    def __init__(
        self,
        database: Database,
        folders: LayerFolders,
        *,
        copy_of: str | None = None,
        link: str | None = None,
    ) -> None:
        with database.write():  # keeps garbage collection away until the folder is locked
            self.id = folders.create(work=False, link=link)
            self._lock = folders.lock(self.id)
            self._lock.acquire(wait=False)
        self.path = folders.fs(self.id)
        self.copy_of = copy_of
        self.usage = (0, 0)
        self.kept = False
        self._database = database
        self._folders = folders
        self._closed = False

    def __enter__(self) -> Draft:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def keep(self) -> str:
        """Keep the folder if this transaction, which is to name it in a row, is committed; return its id."""
        self.kept = True
        self._database.on_rollback(self._take_back)
        return self.id

    def close(self) -> None:
        """Remove the folder if it was not kept, and let go. Harmless twice."""
        if self._closed:
            return
        self._closed = True
        try:
            if not self.kept:
                self._folders.discard(self.id)
        finally:
            self._lock.release()
        if not self.kept:
            self._folders.remove(self.id)

    def _take_back(self, exclusive: bool) -> None:
        self.kept = False
