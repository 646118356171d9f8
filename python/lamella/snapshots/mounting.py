"""Snapshots mounted for the length of a ``with`` block.

On disk::

    <state>/mounts/<id>/   0700  flock: held while something is mounted there; id: 16 random hex digits
        snapshot                 the mount point

A committed snapshot is mounted through a view of its own, which keeps it, whatever is removed meanwhile; a label on the view
names the folder. Who is killed leaves all of that, until the next collection sees that nobody holds the folder.

Who is not root may not mount where other programs see it. Such a user is given a snapshot's own folder where that holds all it
shows and may be written to (``native``), and else a copy, read-only in effect: a draft beside the layers, which goes at the end.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from lamella import _core
from lamella.config import Config
from lamella.disk import make_private_folder, make_state_folder, names_in, translated
from lamella.errors import FailedPrecondition, NotFound, PermissionDenied
from lamella.labels import decode_labels
from lamella.locks import FolderLock, is_locked
from lamella.logs import Log
from lamella.metadata import Database
from lamella.snapshots import Mount, mount, unmount
from lamella.structs import replace
from lamella.typings import TYPE_CHECKING

if TYPE_CHECKING:
    from lamella.snapshots.recorded import RecordedSnapshotter

MOUNTED = "lamella.dev/mounted"
"""On a view: the folder it is mounted at. It goes when nobody holds that."""
_POINT = "snapshot"
_log = Log("lamella.snapshots")


@contextmanager
def mounted(
    snapshots: RecordedSnapshotter, config: Config, key: str, *, read_only: bool = False
) -> Iterator[Path]:
    """Mount a snapshot and give the folder; see :meth:`lamella.snapshots.Snapshotter.mounted`.

    ``read_only`` shows an active snapshot without the means to write: also while it is mounted elsewhere.
    """
    with (
        _mounts_of(snapshots, config, key, read_only=read_only) as (folder, mounts),
        (
            _mounted_in(folder, mounts)
            if _core.helper_maps() is None
            else _without_mounting(snapshots, key, mounts)
        ) as point,
    ):
        yield point


@contextmanager
def opened(
    snapshots: RecordedSnapshotter,
    config: Config,
    key: str,
    *,
    read_only: bool = False,
    ids: tuple[str, str] | None = None,
) -> Iterator[_core.Files]:
    """Open the files of a snapshot; ``ids`` as for ``_core.Files``, the rest as for :func:`mounted`.

    For who is not root the helper makes the mount, which is attached nowhere.
    """
    if os.geteuid() == 0:
        with (
            mounted(snapshots, config, key, read_only=read_only) as point,
            closing(_core.Files(str(point), ids=ids)) as files,  # before it is unmounted
        ):
            yield files
        return
    with _mounts_of(snapshots, config, key, read_only=read_only) as (_, mounts):
        [only] = mounts
        with closing(_core.Files.of_mount((only.type, only.source, only.options))) as files:
            yield files


@contextmanager
def _mounts_of(
    snapshots: RecordedSnapshotter, config: Config, key: str, *, read_only: bool
) -> Iterator[tuple[Path, list[Mount]]]:
    """Give a folder that is held, and what is to be mounted, which is kept as long."""
    kind = snapshots.stat(key).kind
    with _folder(config, f"the snapshot {key!r}") as folder:
        view = f"mounted-{folder.name}" if kind == "committed" else None
        try:
            if view is not None:
                mounts = snapshots.view(view, key, {MOUNTED: str(folder)})
            else:
                mounts = snapshots.read_only_mounts(key) if read_only else snapshots.mounts(key)
            yield folder, mounts
        finally:
            if view is not None:
                with suppress(NotFound):
                    snapshots.remove(view)


@contextmanager
def _without_mounting(snapshots: RecordedSnapshotter, key: str, mounts: Sequence[Mount]) -> Iterator[Path]:
    """Give a folder that shows what mounts would, to who may not mount."""
    if _is_writable(mounts):
        if len(mounts) > 1 or mounts[0].type != "bind":
            raise PermissionDenied(
                f"the snapshot {key!r} can be written to in a user namespace only, and you are not root",
                hint="Enter one: lamella snapshots mounts says how. A view of it can be read from here, as a copy.",
            )
        _log.info("the snapshot %(snapshot)s is shown as its own folder", snapshot=key)
        yield Path(mounts[0].source)
        return
    with snapshots.copied(mounts) as copy:
        _log.info("the snapshot %(snapshot)s is shown as a copy, which takes no root", snapshot=key)
        yield copy


def _is_writable(mounts: Sequence[Mount]) -> bool:
    return any("rw" in m.options or any(o.startswith("upperdir=") for o in m.options) for m in mounts)


def entering(mounts: Sequence[Mount], point: str = "/mnt") -> str:
    """Give a line for the shell of a user who is not root: a shell in a user namespace, with these mounts at ``point``.

    It takes util-linux 2.38, and uidmap's newuidmap where the user has ranges of ids. All ends with the shell.
    """
    import shlex

    maps = _core.helper_maps()
    ranges = ["--map-auto"] if maps is not None and len(maps[0]) > 1 else []
    steps = []
    for mounted in mounts:
        kind = [] if mounted.type == "bind" else ["-t", mounted.type]
        options = ["-o", ",".join(mounted.options)] if mounted.options else []
        steps.append(shlex.join(["mount", *kind, *options, mounted.source, point]))
    inside = " && ".join([*steps, f"cd {shlex.quote(point)}", 'exec "${SHELL:-/bin/sh}"'])
    return shlex.join(["unshare", "--user", "--map-root-user", *ranges, "--mount", "sh", "-c", inside])


@contextmanager
def shown(config: Config, mounts: Sequence[Mount], what: str) -> Iterator[Path]:
    """Mount anything and give the folder; ``what`` it is, for messages. Errors as :func:`lamella.snapshots.mount`."""
    with _folder(config, what) as folder, _mounted_in(folder, mounts) as point:
        yield point


@contextmanager
def _folder(config: Config, what: str) -> Iterator[Path]:
    """Give a folder for a mount point, held until everything in it is gone."""
    lock = _make_folder(config, what)
    try:
        yield lock.path
    finally:
        try:
            _take_down(lock.path)
        finally:
            lock.release()


@contextmanager
def _mounted_in(folder: Path, mounts: Sequence[Mount]) -> Iterator[Path]:
    point = folder / _POINT
    make_private_folder(point)
    try:
        mount(mounts, point)
        yield point
    finally:
        unmount(point)


def _make_folder(config: Config, what: str) -> FolderLock:
    """Make a folder and hold it."""
    with translated(f"make a mount point for {what}"):
        make_state_folder(config.state)
        while True:
            folder = config.state / "mounts" / os.urandom(8).hex()
            make_private_folder(folder)
            lock = FolderLock(folder, what=f"the mount of {what}")
            if lock.try_acquire():
                return lock
            # A collection found it before it was held.


def _take_down(folder: Path) -> None:
    """Unmount what is there and remove the folder. Harmless twice."""
    point = folder / _POINT
    if point.is_dir():
        unmount(point)
    with translated(f"remove the mount point {point}"):
        for path in (point, folder):
            with suppress(FileNotFoundError):
                path.rmdir()


def remove_stale_mounts(database: Database, config: Config, *, dry_run: bool) -> int:
    """Take down what killed processes left mounted; return how many there were."""
    count = 0
    for name in names_in(config.state / "mounts"):
        folder = config.state / "mounts" / name
        lock = FolderLock(folder, what=f"the mount point {folder}")
        if is_locked(folder) or (not dry_run and not lock.try_acquire()):
            continue
        count += 1
        if not dry_run:
            try:
                _take_down(folder)
            finally:
                lock.release()
    if not dry_run:
        _remove_stale_views(database, config)
    return count


def _remove_stale_views(database: Database, config: Config) -> None:
    from lamella.snapshots import snapshotter

    with database.read() as db:
        rows = db.execute(
            "SELECT namespace, snapshotter, name, labels FROM snapshots WHERE kind = 'view' AND instr(labels, ?)",
            (f'"{MOUNTED}"',),
        ).fetchall()
    for namespace, name, key, labels in rows:
        if is_locked(Path(decode_labels(labels)[MOUNTED])):
            continue
        own = replace(config, namespace=namespace, snapshotter=name)
        with suppress(NotFound, FailedPrecondition):  # somebody did, or made a snapshot on it
            snapshotter(database, own).remove(key)
