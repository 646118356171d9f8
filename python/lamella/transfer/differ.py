"""A differ, in containerd's word: a layer applied to what mounts show, and what two sets of mounts differ in as a layer.

Mounts come from a snapshotter, of this store or of another one, and say by themselves where a layer belongs: into an overlay's
upper folder while nothing is in it, with overlayfs's own marks for what it deletes; into the source of a single bind; else into a
mount of them all, where deletions happen. What two sets differ in is read from the upper folder of the one, where that stands on
what the other shows, and is else found by a walk over both.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lamella import _core, oci
from lamella.digest import Digest
from lamella.disk import translated
from lamella.durability import sync_file_systems
from lamella.errors import Unsupported
from lamella.snapshots import Mount, Whiteouts
from lamella.snapshots.mounting import shown
from lamella.transfer.commit import LAYER_TYPES, LayerCompression, store_packed
from lamella.transfer.unpack import unpack_blob

if TYPE_CHECKING:
    from lamella.client import Client

_TYPES: dict[str, LayerCompression] = {
    kind: compression for compression, kinds in LAYER_TYPES.items() for kind in kinds
}


def apply(
    client: Client, descriptor: oci.Descriptor, mounts: Sequence[Mount], *, sync: bool = False
) -> oci.Descriptor:
    """Apply a layer of the content store to what mounts show; give the archive in it: its diffID, its size.

    With ``sync`` the file system is synced afterwards. Errors: NotFound (blob, a path of the mounts), Unsupported for a media
    type that is no layer, FailedPrecondition and DataLoss for a damaged blob, which may have been applied in part;
    PermissionDenied for who may not mount. Twice is harmless.
    """
    oci.compression_of(descriptor)  # which may refuse, as may the next, before anything is mounted
    client.content.path(descriptor.digest)
    with ExitStack() as stack:
        layered = _Layered.of(mounts)
        if layered is not None and layered.is_fresh():
            folder, whiteouts, lowers = layered.folders[0], layered.whiteouts, layered.folders[1:]
            os.utime(folder, (0, 0))  # what a tar does not say of the root is the same each time
        else:
            folder, whiteouts, lowers = stack.enter_context(_tree(client, mounts)), "plain", []
        unpacked = unpack_blob(client, descriptor, folder, whiteouts=whiteouts)
        _core.resolve(folder, lowers, unpacked.deferred)
        if unpacked.opaque_root and layered is not None and lowers:
            layered.hide_lowers()
        if sync:
            with translated(f"sync {folder}"):
                sync_file_systems([folder])
    assert unpacked.diff_id is not None
    return oci.Descriptor(media_type=oci.OCI_LAYER, digest=Digest(unpacked.diff_id), size=unpacked.tar_size)


def diff(
    client: Client,
    left: Sequence[Mount],
    right: Sequence[Mount],
    *,
    media_type: str = oci.OCI_LAYER_GZIP,
    ref: str | None = None,
    labels: Mapping[str, str] | None = None,
    latest: int | None = None,
    lease: str | None = None,
) -> oci.Descriptor:
    """Put what ``right`` changes of ``left`` into the content store, as a layer; ``left`` may be nothing.

    ``ref``: of the ingest, one of its own by default. ``labels`` go on the blob, with its diffID. Nothing in it is younger than
    ``latest`` (seconds since 1970). The same trees give the same bytes. Errors: Unsupported for a media type that is no layer,
    NotFound for a path of the mounts, Unavailable when somebody writes meanwhile, ResourceExhausted; PermissionDenied for who
    may not mount.
    """
    compression = _TYPES.get(media_type)
    if compression is None:
        raise Unsupported(f"a difference cannot have the media type {media_type[:200]!r}")

    def pack(target: str) -> _core.Packed:
        return changes.pack(target, compression=compression, threads=os.cpu_count() or 1, latest=latest)

    with _changes(client, left, right) as changes:
        packed = store_packed(client, ref or f"diff-{os.urandom(8).hex()}", pack, lease=lease, labels=labels)
    return oci.Descriptor(media_type=media_type, digest=Digest(packed.digest), size=packed.size)


class _Layered(NamedTuple):
    """What one overlay or bind shows: folders, nearest first; whether the nearest takes the changes; overlayfs's own options.

    An overlay may have an upper folder alone: what is to be put on lower ones later.
    """

    folders: list[str]
    writable: bool
    options: list[str]
    is_overlay: bool

    @classmethod
    def of(cls, mounts: Sequence[Mount]) -> _Layered | None:
        """Read what a single mount shows; None for anything that takes more than looking at folders, mapped ids for one."""
        if len(mounts) != 1:
            return None
        (mount,) = mounts
        if mount.type == "bind":
            if {*mount.options} - {"bind", "rbind", "rw", "ro"}:
                return None
            return cls([mount.source], "ro" not in mount.options, [], is_overlay=False)
        if mount.type != "overlay":
            return None
        upper, lowers, others = [], [], []
        for option in mount.options:
            key, _, value = option.partition("=")
            if key == "upperdir":
                upper = [_plain(value)]
            elif key == "lowerdir":
                lowers = [_plain(part) for part in re.split(r"(?<!\\):", value)]
            elif key in ("uidmap", "gidmap") or key.startswith("lowerdir+") or key == "datadir+":
                return None
            elif key != "workdir":
                others.append(option)
        return cls([*upper, *lowers], bool(upper), others, is_overlay=True)

    @property
    def whiteouts(self) -> Whiteouts:
        """How overlayfs has deletions marked in the upper folder; a bind has none."""
        if not self.is_overlay:
            return "plain"
        return "overlay-userxattr" if "userxattr" in self.options else "overlay"

    def is_fresh(self) -> bool:
        """Tell whether the nearest folder takes changes and nothing is in it."""
        with translated(f"look at {self.folders[0]}"):
            return self.writable and not any(Path(self.folders[0]).iterdir())

    def hide_lowers(self) -> None:
        """Hide all that is beneath, name by name: overlayfs does not look for an opaque mark at the top."""
        upper, *lowers = map(Path, self.folders)
        attribute = "user.overlay.opaque" if "userxattr" in self.options else "trusted.overlay.opaque"
        with translated(f"hide what is beneath {upper}"):
            for name in {path.name for lower in lowers for path in lower.iterdir()}:
                path = upper / name
                if path.is_symlink() or path.is_file():
                    continue
                if path.is_dir():
                    os.setxattr(path, attribute, b"y", follow_symlinks=False)
                elif not os.path.lexists(path):
                    os.mknod(path, stat.S_IFCHR | 0o600, 0)


def _plain(path: str) -> str:
    return re.sub(r"\\(.)", r"\1", path)


@contextmanager
def _tree(client: Client, mounts: Sequence[Mount]) -> Iterator[str]:
    """Give a folder in which what mounts show can be seen: the source of a bind as it is."""
    layered = _Layered.of(mounts)
    if layered is not None and len(layered.folders) == 1 and mounts[0].type == "bind":
        yield layered.folders[0]
        return
    with shown(client.config, mounts, "a layer") as point:
        yield str(point)


@contextmanager
def _changes(client: Client, left: Sequence[Mount], right: Sequence[Mount]) -> Iterator[_core.Changes]:
    after, before = _Layered.of(right), _Layered.of(left)
    if after is not None and before is not None and after.writable and after.folders[1:] == before.folders:
        yield _core.diff_upper(after.folders[0], before.folders, whiteouts=after.whiteouts)
        return
    with ExitStack() as stack:
        old = stack.enter_context(_tree(client, _read_only(left))) if left else None
        yield _core.diff_trees(stack.enter_context(_tree(client, _read_only(right))), old)


def _read_only(mounts: Sequence[Mount]) -> list[Mount]:
    """Give mounts that show the same and take no changes, so that they can stand beside others of the same upper folder."""
    layered = _Layered.of(mounts)
    if layered is None or not layered.writable or len(layered.folders) == 1:
        return [*mounts]
    lowers = ":".join(re.sub(r"([\\:])", r"\\\1", folder) for folder in layered.folders)
    return [Mount(type="overlay", source="overlay", options=[*layered.options, f"lowerdir={lowers}"])]
