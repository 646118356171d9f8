"""Snapshots: how layers combine into file systems, and what to mount to see one.

Words
-----
A *snapshot* says how layers combine. It is of one of three kinds:

- *active*: writable. What is written goes into a folder of its own; its parent is never changed.
- *view*: read-only.
- *committed*: frozen, the parent that others stand on. It cannot be mounted; make a view of it.

An active snapshot or a view has a *key*, a committed one a *name*; keys and names share one space, and each belongs to one
namespace and one snapshotter. The *parent* is the name of a committed snapshot, or ``""``. A snapshot holds no blob: the
committed snapshots of an image are named by the chainID of their layers, and whoever knows the name may stand on it.
*Mounts* are what mount(8) needs, in containerd's form; mounting is the caller's business (:func:`mount` and
:func:`unmount`).

The labels ``containerd.io/snapshot/uidmapping`` and ``gidmapping`` of an active snapshot or view
(``containerID:hostID:size``, several with commas between them) become options of its mounts: owners are seen through that
map, and stored without it.

A life
------
An image with two layers is pulled. Each layer's folder is unpacked once (:mod:`lamella.snapshots.layers`), whatever images
share it, and two committed snapshots are recorded over them::

    snapshots.add_committed(chain_1, "", layer_1, {})
    snapshots.add_committed(chain_2, chain_1, layer_2, {})

A container gets an active snapshot, which is mounted on its root folder::

    snapshots.prepare("nginx-container-abc123", parent=chain_2)
    mounts = snapshots.mounts("nginx-container-abc123")

Somebody wants to look at the image without changing it::

    snapshots.view("nginx-readonly-snapshot", parent=chain_2)

What the container changed shall be a base for others: the key vanishes, the name appears, nothing is copied::

    snapshots.commit("nginx-patched", "nginx-container-abc123")
    snapshots.prepare("next", parent="nginx-patched")

When the last container is gone its snapshot goes, and nothing else does; a parent can only go after its children::

    snapshots.remove("next")

Committed snapshots that no image, lease, container or snapshot needs are left to garbage collection (:mod:`lamella.gc`).
Active snapshots, and what carries ``containerd.io/gc.root``, are not.

The semantics are those of containerd's snapshots.Snapshotter; ``tests/contract/snapshotter_contract.py`` spells them out and
runs for every implementation.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from importlib import import_module
from pathlib import Path

from lamella.errors import Unsupported
from lamella.structs import Struct
from lamella.typings import TYPE_CHECKING, Final, Literal, Protocol

if TYPE_CHECKING:
    from lamella import _core
    from lamella.config import Config
    from lamella.metadata import Database
    from lamella.snapshots.layers import Layer
    from lamella.snapshots.recorded import RecordedSnapshotter

SnapshotKind = Literal["view", "active", "committed"]
Whiteouts = Literal["overlay", "overlay-userxattr", "plain"]
SNAPSHOTTERS: Final = {
    "overlayfs": ("lamella.snapshots.overlayfs", "OverlaySnapshotter"),
    "native": ("lamella.snapshots.native", "NativeSnapshotter"),
}
"""Where each snapshotter is; only the one that is asked for is imported."""


class Mount(Struct, frozen=True):
    """One mount: type, source, options, as in fstab.

    A path inside ``upperdir=``, ``workdir=`` or ``lowerdir=`` has a backslash before each backslash, and in the list of
    ``lowerdir=`` before each colon too (kernel, filesystems/overlayfs.rst): split at bare colons, then remove the backslashes.
    """

    type: str
    source: str
    options: list[str]


class SnapshotInfo(Struct, frozen=True):
    """A snapshot as it was when it was read. ``parent`` is ``""`` where there is none; times are RFC 3339."""

    name: str
    parent: str
    kind: SnapshotKind
    labels: dict[str, str]
    created_at: str
    updated_at: str


class Usage(Struct, frozen=True):
    """What a snapshot takes on disk by itself, without its parents: bytes (512-byte blocks, as du counts) and inodes."""

    size: int
    inodes: int


class Change(Struct, frozen=True):
    """What became of a path (absolute, in the snapshot): it was added, modified or deleted.

    Bytes that are no UTF-8 stand as surrogates (PEP 383), as in Python's own file functions.
    """

    kind: Literal["added", "modified", "deleted"]
    path: str

    def __str__(self) -> str:
        return f"{self.kind[0].upper() if self.kind != 'modified' else 'C'} {self.path}"


class Snapshotter(Protocol):
    """What every snapshotter does, for one namespace.

    All methods raise InvalidArgument for an empty key, one with a NUL or of more than 4096 bytes, or a label over the
    limit, and NotFound for a key or name that is not there.
    """

    @property
    def whiteouts(self) -> Whiteouts:
        """How layers are unpacked, so that what they delete is gone in the mounts of this process."""
        ...

    @property
    def stacks(self) -> bool:
        """Whether mounts lay a layer over those beneath it.

        Where not, a layer's folder holds what is beneath it too: it is right on top of one chain only, and unpacked after it.
        """
        ...

    def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        """Create an active snapshot and return its mounts.

        NotFound for a missing parent, InvalidArgument for one that is not committed, AlreadyExists for a key that is there,
        FailedPrecondition for a parent of more layers than can be mounted (overlayfs: 500), InvalidArgument for labels that
        are no maps of ids.
        """
        ...

    def preparing(
        self, key: str, parent: str = "", labels: Mapping[str, str] | None = None
    ) -> AbstractContextManager[Callable[[], list[Mount]]]:
        """Prepare in two steps, for who records more than the snapshot: what takes long before the block, the rest inside it.

        The block gets the function that does the rest, to be called in the caller's transaction. Errors of either step are
        those of :meth:`prepare`; Aborted when the parent was replaced between them.
        """
        ...

    def view(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        """Create a view and return its mounts. Errors as :meth:`prepare`."""
        ...

    def commit(
        self, name: str, key: str, labels: Mapping[str, str] | None = None, *, parent: str = ""
    ) -> None:
        """Freeze the active snapshot ``key`` under ``name``; the key vanishes, ``labels`` replace those it had.

        ``parent``: what it stands on from now on, if it was prepared on nothing, so that layers can be unpacked in any order,
        each with overlayfs's marks for what it deletes (containerd's capability ``rebase``).
        AlreadyExists for a name that is taken (by the key itself too), FailedPrecondition when it is not active; of ``parent``
        NotFound, InvalidArgument for what is not committed or not the one that it has, Unsupported where snapshots are whole
        copies. Whoever writes to its mounts should have stopped.
        """
        ...

    def freeze(self, name: str, key: str, labels: Mapping[str, str] | None = None) -> None:
        """Commit the active snapshot ``key`` as ``name``, and prepare ``key`` anew on top of it; both or neither.

        Nobody may write through older mounts of ``key`` any more. Errors as :meth:`commit` and :meth:`prepare`.
        """
        ...

    def copy(self, name: str, key: str, labels: Mapping[str, str] | None = None) -> None:
        """Commit as ``name`` a copy of what the active snapshot ``key`` holds, which stays as it is. Errors as :meth:`commit`.

        Whoever writes to its mounts should stand still meanwhile.
        """
        ...

    def mounts(self, key: str) -> list[Mount]:
        """Return what to mount for an active snapshot or a view. FailedPrecondition for a committed one."""
        ...

    def stat(self, key: str) -> SnapshotInfo:
        """Return what is known about a snapshot of any kind."""
        ...

    def update(self, name: str, labels: Mapping[str, str]) -> SnapshotInfo:
        """Set labels, nothing else; an empty value removes one. Twice is harmless."""
        ...

    def usage(self, key: str) -> Usage:
        """Return the disk usage: measured now for an active snapshot, as recorded for a committed one, zero for a view."""
        ...

    def walk(
        self,
        *,
        kind: SnapshotKind | None = None,
        parent: str | None = None,
        labels: Mapping[str, str] | None = None,
        filters: Sequence[str] = (),
    ) -> Iterator[SnapshotInfo]:
        """Go through the snapshots, parents before their children.

        With arguments only through those of a kind, on a parent (``""``: on none), with all of some labels, or
        matching one of ``filters`` (:mod:`lamella.filters`; fields name, parent, kind, labels). What changes meanwhile
        may appear or not.
        """
        ...

    def remove(self, key: str) -> None:
        """Remove a snapshot. FailedPrecondition while it has children. Nothing must be mounted from it any more."""
        ...

    def add_committed(
        self, name: str, parent: str, layer: Layer, labels: Mapping[str, str] | None = None
    ) -> None:
        """Record a committed snapshot over an unpacked layer.

        Harmless twice; another snapshot of that name is AlreadyExists. Aborted when the layer was collected meanwhile.
        """
        ...

    def mounted(self, key: str) -> AbstractContextManager[Path]:
        """Mount a snapshot of any kind for the length of a ``with`` block, which gets the folder.

        An active one can be written to; a committed one stays readable, whatever is removed meanwhile. Others see the mount
        too, but no container. Who is killed leaves it to the next garbage collection.

        A user who is not root gets a copy, which takes time and space, without files' true owners as far as they have no ids;
        of an active snapshot that is one folder (``native``) that folder. PermissionDenied for one that is an overlay: it can
        be written to in a user namespace only (``lamella snapshots mounts`` says how).
        """
        ...

    def changes(self, key: str, base: str | None = None) -> list[Change]:
        """Return what a snapshot changes of its parent, or of another one, ``base``, which takes root.

        Sorted, folders before what is in them; a folder is there when something in it is. A view changes nothing of its parent.
        """
        ...

    def diff(self, key: str, base: str | None = None) -> AbstractContextManager[_core.Changes]:
        """Give the same for the length of a ``with`` block in the core's form, which can be packed as a layer.

        What no layer can hold (sockets) is left out, as ``notes`` and a warning in the log say. FailedPrecondition for a view
        without ``base``.
        """
        ...

    def layer_paths(self, key: str) -> list[Path]:
        """Return the folders whose stack is the snapshot, nearest first: its own, then its parents'."""
        ...

    def close(self) -> None:
        """Let go of what the snapshotter holds. Harmless twice."""
        ...


def mount(mounts: Iterable[Mount], target: str | os.PathLike[str]) -> None:
    """Mount what a snapshotter gave on a folder, one after another; when one fails, none stays.

    It takes root, or a user namespace in which the caller is root: PermissionDenied. NotFound where the folder or a source is
    not there, Unsupported where the kernel or the file system cannot do it, InvalidArgument for other options that it refuses.
    A symlink is followed: not for a path that somebody else controls. Twice mounts twice, one on top of the other.
    """
    from lamella import _core

    _core.mount([(each.type, each.source, each.options) for each in mounts], os.fspath(target))


def unmount(target: str | os.PathLike[str]) -> None:
    """Unmount everything that is mounted on a folder; what is busy goes when its last user lets go of it. Harmless twice.

    PermissionDenied for who may not.
    """
    from lamella import _core

    _core.unmount(os.fspath(target))


def snapshotter(database: Database, config: Config, *, roots: bool = True) -> RecordedSnapshotter:
    """Give the snapshotter that ``config`` names. Unsupported for a name that is not known.

    As clients use it, and as ctr does, it marks the views and commits that are made through it as roots
    (``containerd.io/gc.root``): they stay until somebody removes them. Without ``roots`` it marks nothing.
    """
    from lamella.labels import GC_ROOT
    from lamella.metadata import timestamp

    if config.snapshotter not in SNAPSHOTTERS:
        raise Unsupported(
            f"there is no snapshotter {config.snapshotter!r}", hint=f"There are {' and '.join(SNAPSHOTTERS)}."
        )
    module, name = SNAPSHOTTERS[config.snapshotter]
    made: RecordedSnapshotter = getattr(import_module(module), name)(
        database, config, default_labels={GC_ROOT: timestamp()} if roots else None
    )
    return made
