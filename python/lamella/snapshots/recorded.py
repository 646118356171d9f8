"""What all snapshotters share: the metadata of snapshots, and the semantics that follow from it.

A snapshotter adds three things: which folder a new snapshot gets, which mounts show it, and how its changes are found. Every
operation is one transaction; the folder of a new snapshot is made inside it, or before it where that takes long, and that of a
removed one goes after it (folders.py).

A layer with ``opaque_root`` hides what is beneath it, so that no stack goes below it. Where a snapshotter does not *stack*
(:attr:`RecordedSnapshotter.stacks`) that is every layer: its folder holds all that the snapshot shows.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import TracebackType

from lamella import _core, oci
from lamella.config import Config, check_key
from lamella.disk import make_private_folder
from lamella.durability import Unverified
from lamella.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unsupported,
)
from lamella.labels import GID_MAPPING, UID_MAPPING, check_labels, decode_labels, encode_labels, merge_labels
from lamella.logs import Log
from lamella.metadata import Database, Transaction, timestamp
from lamella.metadata.boot import boot_id
from lamella.metrics.table import PREPARE_SECONDS, SNAPSHOTS
from lamella.operations import INFO, Operation, when_ok
from lamella.reserve import frees_space
from lamella.snapshots import Change, Mount, SnapshotInfo, SnapshotKind, Usage, Whiteouts
from lamella.snapshots.folders import Draft, LayerFolders
from lamella.structs import Struct, replace
from lamella.typings import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from lamella.snapshots.layers import Layer

"""Bytes of a key or name."""
_PAGE = 1000
_UNMEASURED = (0, 1)
"""Bytes and inodes of a layer that was frozen and not looked at since: a folder and what may be in it."""

# The snapshot of a name and its ancestors, nearest first, as far as they can be seen; the last column says whether a
# layer can be used (lamella.durability). Active snapshots' own folders, and what was committed from one, always can.
_USABLE = "l.synced OR l.diff_id IS NULL OR l.boot_id = ?1"
_STACK = f"""
WITH RECURSIVE stack (depth, number, kind, parent, layer, opaque_root, usable, labels) AS (
    SELECT 0, s.number, s.kind, s.parent, s.layer, coalesce(l.opaque_root, 0), {_USABLE}, s.labels
    FROM snapshots s LEFT JOIN layers l ON l.id = s.layer
    WHERE s.namespace = ?2 AND s.snapshotter = ?3 AND s.name = ?4
    UNION ALL
    SELECT depth + 1, s.number, s.kind, s.parent, s.layer, l.opaque_root, {_USABLE}, NULL
    FROM stack JOIN snapshots s ON s.number = stack.parent JOIN layers l ON l.id = s.layer
    WHERE NOT stack.opaque_root
)
SELECT number, kind, layer, usable, labels FROM stack ORDER BY depth
"""  # noqa: S608 (constants)
_Row = tuple[int, SnapshotKind, str | None, int, str | None]
_LOG = "lamella.snapshots"
_log = Log(_LOG)
_PREPARE, _VIEW = (
    Operation(
        name,
        f"made the {kind} snapshot %(snapshot)r on %(parent)r",
        log=_LOG,
        counts={"ok": SNAPSHOTS.cell(name)},
        durations=when_ok(PREPARE_SECONDS, kind),
    )
    for kind, name in (("active", "prepare"), ("view", "view"))
)
_COMMIT = Operation(
    "commit",
    "committed the snapshot %(snapshot)r as %(committed)r",
    log=_LOG,
    level=INFO,
    counts={"ok": SNAPSHOTS.cell("commit")},
)
_FREEZE = Operation(
    "freeze",
    "froze what the snapshot %(snapshot)r holds as %(committed)r",
    log=_LOG,
    level=INFO,
    counts={"ok": SNAPSHOTS.cell("commit")},
)
_REMOVE = Operation(
    "remove", "removed the snapshot %(snapshot)r", log=_LOG, counts={"ok": SNAPSHOTS.cell("remove")}
)
_MOUNTS = SNAPSHOTS.cell("mounts")
_OF_CHAIN = """
SELECT DISTINCT s.layer, l.diff_id FROM snapshots s JOIN layers l ON l.id = s.layer LEFT JOIN snapshots p ON p.number = s.parent
WHERE s.name = ? AND s.snapshotter = ? AND coalesce(p.name, '') = ? AND s.kind = 'committed'
    AND l.diff_id IS NOT NULL AND (l.synced OR l.boot_id = ?)
"""
_INFO = """
SELECT s.number, s.name, coalesce(p.name, ''), s.kind, s.labels, s.created_at, s.updated_at
FROM snapshots s LEFT JOIN snapshots p ON p.number = s.parent
"""


class Prepared(Struct, frozen=True):
    """An active snapshot that was made."""

    layers: list[str]
    """The folders of its stack, nearest first."""
    mounts: list[Mount]


class RecordedSnapshotter(ABC):
    """The snapshots of one namespace and one snapshotter; see :class:`lamella.snapshots.Snapshotter` for the methods.

    ``default_labels`` are put on views and commits beside those that are passed.
    """

    name: ClassVar[str]
    stacks: ClassVar[bool] = True
    """Whether mounts lay a layer over those beneath it. Where not, its folder begins as a copy of the one beneath."""

    def __init__(
        self, database: Database, config: Config, *, default_labels: Mapping[str, str] | None = None
    ) -> None:
        self._database = database
        self._scope = (config.namespace, self.name)
        self._config = config
        self._folders = LayerFolders(config.root, self.name)
        self._default_labels = check_labels(default_labels or {})

    def __enter__(self) -> RecordedSnapshotter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<lamella.{type(self).__name__} namespace={self._scope[0]!r}>"

    # What a snapshotter decides

    @property
    @abstractmethod
    def whiteouts(self) -> Whiteouts:
        """How layers are unpacked, so that what they delete is gone in the mounts of this process."""

    @abstractmethod
    def _diff(self, own: str, parents: list[str], *, opaque: bool) -> _core.Changes:
        """Find what the layer ``own`` changes of ``parents``; ``opaque`` hides them all."""

    def _filled_folder(self, parent: str, key: str | None = None) -> AbstractContextManager[Draft | None]:
        """Fill the folder of a new active snapshot before the transaction that records it, if ``key`` is free.

        None where that takes no time.
        """
        return nullcontext()

    @abstractmethod
    def _create_folder(self, kind: SnapshotKind, parents: list[str], filled: Draft | None) -> str | None:
        """Make the folder of a new snapshot on top of ``parents`` (layer ids, nearest first), or keep the ``filled`` one.

        None if it needs none.
        """

    @abstractmethod
    def _mounts(self, kind: SnapshotKind, own: str | None, parents: list[str]) -> list[Mount]:
        """Give the mounts of a snapshot with the layer ``own``, on top of ``parents``."""

    # Life

    def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        """Create an active snapshot and return its mounts."""
        with _PREPARE(self._database.metrics, snapshot=key, parent=parent):
            text = encode_labels(check_labels(labels or {}))
            with self._filled_folder(parent, key) as filled:
                return self._create("active", key, parent, text, filled)

    @contextmanager
    def preparing(
        self, key: str, parent: str = "", labels: Mapping[str, str] | None = None
    ) -> Iterator[Callable[[], Prepared]]:
        """Prepare in two steps, for who records more than the snapshot.

        What takes long is done before the block; the rest by the function that it gets, inside the caller's transaction.
        """
        text = encode_labels(check_labels(labels or {}))
        maps = _id_maps(text)  # which may refuse

        def prepare() -> Prepared:
            with _PREPARE(self._database.metrics, snapshot=key, parent=parent):
                own, parents = self._record("active", key, parent, text, filled)
                assert own is not None
                layers = [self._folders.fs(layer) for layer in (own, *(parents if self.stacks else ()))]
                return Prepared(layers, _mapped(self._mounts("active", own, parents), maps))

        with self._filled_folder(parent, key) as filled:
            yield prepare

    def view(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        """Create a view and return its mounts."""
        with _VIEW(self._database.metrics, snapshot=key, parent=parent):
            text = self._labels(labels)
            return self._create("view", key, parent, text, None)

    def commit(
        self, name: str, key: str, labels: Mapping[str, str] | None = None, *, parent: str = ""
    ) -> None:
        """Freeze the active snapshot ``key`` under ``name``; ``parent``: put it on that."""
        with _COMMIT(self._database.metrics, snapshot=key, committed=name):
            self._commit(name, key, labels, parent)

    def _commit(self, name: str, key: str, labels: Mapping[str, str] | None, parent: str) -> None:
        _check_key(name)
        text = self._labels(labels)
        with self._database.read() as db:
            layer = self._committable(db, name, key)
        size, inodes = _core.disk_usage(self._folders.fs(layer))  # outside the lock: it may take a while
        with self._database.write() as db:
            layer = self._committable(db, name, key)
            if parent:
                self._put_on(db, key, parent)
            self._make_committed(db, name, key, layer, labels=text, usage=(size, inodes))

    def _put_on(self, db: Transaction, key: str, parent: str) -> None:
        """Give an active snapshot its parent, and a number after that one's."""
        number, present = db.execute(
            "SELECT number, parent FROM snapshots WHERE namespace = ? AND snapshotter = ? AND name = ?",
            (*self._scope, key),
        ).fetchone()
        above = self._parents(db, parent)[0][0]
        if present == above:
            return
        if present is not None:
            raise InvalidArgument(f"the snapshot {key!r} stands on another parent than {parent!r} already")
        if not self.stacks:
            raise Unsupported(
                f"snapshotter {self.name} puts no snapshot on a parent that it was not made from"
            )
        if number < above:
            from lamella.metadata.reachability import SNAPSHOT

            (after,) = db.execute("SELECT max(number) + 1 FROM snapshots").fetchone()
            db.execute(
                "UPDATE gc_labels SET owner = ? WHERE owner = ?",
                (after * 4 + SNAPSHOT, number * 4 + SNAPSHOT),
            )
        else:
            after = number
        db.execute("UPDATE snapshots SET number = ?, parent = ? WHERE number = ?", (after, above, number))

    def _labels(self, labels: Mapping[str, str] | None) -> str:
        """Check the labels of a new snapshot, and encode them with those that all get."""
        return encode_labels(check_labels({**self._default_labels, **(labels or {})}))

    def _make_committed(
        self, db: Transaction, name: str, key: str, layer: str, *, labels: str, usage: tuple[int, int]
    ) -> None:
        """Turn the active snapshot ``key`` into the committed one ``name``; ``usage``: bytes on disk and inodes."""
        db.execute(
            "UPDATE layers SET disk_bytes = ?, inodes = ?, boot_id = ?, synced = 0 WHERE id = ?",
            (*usage, boot_id(), layer),
        )
        db.execute(
            """
            UPDATE snapshots SET name = ?1, kind = 'committed', labels = ?2, created_at = ?3, updated_at = ?3
            WHERE namespace = ?4 AND snapshotter = ?5 AND name = ?6
            """,
            (name, labels, timestamp(), *self._scope, key),
        )

    def freeze(self, name: str, key: str, labels: Mapping[str, str] | None = None) -> None:
        """Commit the active snapshot ``key`` as ``name``, and prepare ``key`` anew on top of it, in one transaction.

        Where snapshots stack this is a folder and a few rows, however much was written; what it takes on disk is measured when
        somebody asks. Nobody may write to ``key`` through older mounts any more: overlayfs does not define what becomes of a
        lower folder that changes. Errors: those of :meth:`commit` and :meth:`prepare`; after one nothing has changed.
        """
        with _FREEZE(self._database.metrics, snapshot=key, committed=name):
            text = self._labels(labels)
            with self._database.read() as db:
                layer = self._committable(db, name, key)
            with (
                nullcontext(None) if self.stacks else self._copied(layer) as copy,
                self._database.write() as db,
            ):
                self._check_unchanged(layer, self._committable(db, name, key), key)
                (own,) = db.execute(
                    "SELECT labels FROM snapshots WHERE namespace = ? AND snapshotter = ? AND name = ?",
                    (*self._scope, key),
                ).fetchone()
                # Where snapshots are copies both were measured when they were made, or are as the copy is now.
                usage = copy.usage if copy is not None else _UNMEASURED
                self._make_committed(db, _check_key(name), key, layer, labels=text, usage=usage)
                self._create("active", key, name, own, copy)

    def copy(self, name: str, key: str, labels: Mapping[str, str] | None = None) -> None:
        """Commit as ``name`` a copy of what the active snapshot ``key`` holds, which stays as it is.

        For one that is mounted and written to, whose writers stand still meanwhile. Costs as much as was written, less where the
        file system shares blocks (btrfs, XFS); sockets are left out. Errors: those of :meth:`commit`.
        """
        with _FREEZE(self._database.metrics, snapshot=key, committed=name):
            text = self._labels(labels)
            with self._database.read() as db:
                layer = self._committable(db, name, key)
            with self._copied(layer) as copy, self._database.write() as db:
                self._check_unchanged(layer, self._committable(db, name, key), key)
                stack = self._parents(db, self.stat(key).parent)
                own = copy.keep()
                self._insert_layer(db, own, copy)
                self._insert(db, name=_check_key(name), kind="committed", stack=stack, layer=own, labels=text)

    @contextmanager
    def _copied(self, layer: str) -> Iterator[Draft]:
        """Give a copy of what an active snapshot has written."""
        with Draft(self._database, self._folders, copy_of=layer) as draft:
            for note in _core.copy_tree(self._folders.fs(layer), draft.path):
                _log.warning("layer folder %(layer)s: %(reason)s", layer=layer, reason=note)
            draft.usage = _core.disk_usage(draft.path)
            yield draft

    @contextmanager
    def copied(self, mounts: Sequence[Mount]) -> Iterator[Path]:
        """Give a copy of what mounts show for the length of a ``with`` block: for who may not mount them where it is called."""
        with Draft(self._database, self._folders) as draft:
            point = Path(draft.path).with_name("point")
            make_private_folder(point)
            for note in _core.copy_mounts(
                [(m.type, m.source, m.options) for m in mounts], str(point), draft.path
            ):
                _log.warning("a copy of a snapshot: %(reason)s", reason=note)
            yield Path(draft.path)

    @staticmethod
    def _check_unchanged(before: str, now: str, key: str) -> None:
        if before != now:
            raise Aborted(f"the snapshot {key!r} was replaced meanwhile", hint="Try again.")

    @frees_space
    def remove(self, key: str) -> None:
        """Remove a snapshot and, if nothing else has it, its folder."""
        with _REMOVE(self._database.metrics, snapshot=key), self._database.write() as db:
            row = db.execute(
                """
                SELECT number, layer, EXISTS (SELECT 1 FROM snapshots c WHERE c.parent = s.number)
                FROM snapshots s WHERE namespace = ? AND snapshotter = ? AND name = ?
                """,
                (*self._scope, _check_key(key)),
            ).fetchone()
            if row is None:
                raise self._missing(key)
            number, layer, has_children = row
            if has_children:
                raise FailedPrecondition(
                    f"cannot remove snapshot {key!r}: it is the parent of others",
                    hint=f"Remove those first; lamella snapshots ls --filter 'parent==\"{key}\"' lists them.",
                )
            db.execute("DELETE FROM snapshots WHERE number = ?", (number,))
            if layer is not None:
                self._drop_layer(db, layer)

    def add_committed(
        self, name: str, parent: str, layer: Layer, labels: Mapping[str, str] | None = None
    ) -> None:
        """Record a committed snapshot over an unpacked layer. Harmless twice."""
        text = encode_labels(check_labels(labels or {}))
        with self._database.write() as db:
            there = self._row(db, name)
            if there is not None:
                if there[2:4] != (parent, "committed"):
                    raise self._taken(name)
                return
            stack = self._parents(db, parent)
            if db.execute("SELECT 1 FROM layers WHERE id = ?", (layer.id,)).fetchone() is None:
                raise Aborted(
                    f"the layer folder {layer.id} of snapshot {name} was collected meanwhile",
                    hint="Unpack it again; a lease on the layer keeps it.",
                )
            self._insert(db, name=name, kind="committed", stack=stack, layer=layer.id, labels=text)

    def adopt(self, name: str, parent: str, labels: Mapping[str, str] | None = None) -> bool:
        """Let this namespace see the committed snapshot of a chain that any other one has unpacked; tell whether it is here.

        ``name`` is a chainID, and says all that is in it; so only layers count that were unpacked from verified blobs. ``labels``
        are added, also to one that this namespace has already. False where the parent is another one. Twice is harmless.
        """
        with self._database.write() as db:
            there = self._row(db, name)
            if there is not None:
                if there[2:4] != (parent, "committed"):
                    return False
                if labels and not labels.items() <= decode_labels(there[4]).items():
                    self.update(name, labels)
                return True
            rows = db.execute(_OF_CHAIN, (name, self.name, parent, boot_id())).fetchall()
            for layer, diff_id in rows:
                if oci.chain_id(parent, diff_id) == name:
                    self._insert(
                        db,
                        name=name,
                        kind="committed",
                        stack=self._parents(db, parent),
                        layer=layer,
                        labels=encode_labels(check_labels(labels or {})),
                    )
                    return True
        return False

    def renew(self, key: str) -> None:
        """Give an active snapshot or view whose folder is gone a new one, as it began. Harmless where it is there."""
        parent = self.stat(key).parent
        with self._filled_folder(parent) as filled, self._database.write() as db:
            _, kind, lost, *_ = self._stack(db, key)[0]
            if lost is None or Path(self._folders.fs(lost)).is_dir():
                return
            if kind == "committed":
                raise FailedPrecondition(
                    f"what the committed snapshot {key!r} held is lost", hint="Remove it."
                )
            own = self._create_folder(kind, self._usable_layers(self._parents(db, parent), key), filled)
            assert own is not None
            self._database.on_rollback(lambda _: self._folders.remove(own))
            self._insert_layer(db, own, filled)
            db.execute("UPDATE snapshots SET layer = ? WHERE layer = ?", (own, lost))
            db.execute("DELETE FROM layers WHERE id = ?", (lost,))
            self._database.after_commit(lambda: self._folders.remove(lost))

    # Looking

    def mounts(self, key: str) -> list[Mount]:
        """Return what to mount for an active snapshot or a view."""
        with self._database.read() as db:
            stack = self._stack(db, key)
        _, kind, own, _, labels = stack[0]
        if kind == "committed":
            raise FailedPrecondition(
                f"snapshot {key!r} is committed, it cannot be mounted itself",
                hint=f"Make a view of it: lamella snapshots view KEY {key}",
            )
        mounts = self._mounts(kind, own, self._usable_layers(stack[1:], key))
        self._database.metrics.add(_MOUNTS)
        return _mapped(mounts, _id_maps(labels or ""))

    def read_only_mounts(self, key: str) -> list[Mount]:
        """Return mounts that show a view or an active snapshot and take no changes, also beside its own mounts.

        They show ids as they are stored, so that any two can be compared.
        """
        with self._database.read() as db:
            stack = self._stack(db, key)
        _, kind, own, *_ = stack[0]
        layers = self._usable_layers(stack, key)
        return self._mounts("view", own if len(layers) == 1 and kind == "view" else None, layers)

    def mounted(self, key: str) -> AbstractContextManager[Path]:
        """Mount a snapshot for the length of a ``with`` block."""
        from lamella.snapshots.mounting import mounted

        return mounted(self, self._config, key)

    def changes(self, key: str, base: str | None = None) -> list[Change]:
        """Return what a snapshot changes of its parent, or of another snapshot."""
        if base is None and self.stat(key).kind == "view":
            return []
        with self.diff(key, base) as changes:
            return [Change(kind=kind, path=os.fsdecode(b"/" + path)) for kind, path in changes.list()]

    @contextmanager
    def diff(self, key: str, base: str | None = None) -> Iterator[_core.Changes]:
        """Give what a snapshot changes of its parent, or of another snapshot, to be packed as a layer."""
        with nullcontext(self._own_changes(key)) if base is None else self._compare(key, base) as changes:
            for note in changes.notes:
                _log.warning("snapshot %(snapshot)s: %(reason)s", snapshot=key, reason=note)
            yield changes

    @contextmanager
    def _compare(self, key: str, base: str) -> Iterator[_core.Changes]:
        from lamella.snapshots.mounting import mounted

        with (
            mounted(self, self._config, key, read_only=True) as after,
            mounted(self, self._config, base, read_only=True) as before,
        ):
            yield _core.diff_trees(str(after), str(before))

    def _own_changes(self, key: str) -> _core.Changes:
        with self._database.read() as db:
            stack = self._stack(db, key)
            _, kind, own, *_ = stack[0]
            if kind == "view" or own is None:
                raise FailedPrecondition(f"snapshot {key!r} is a view, which changes nothing")
            row = db.execute("SELECT opaque_root FROM layers WHERE id = ?", (own,)).fetchone()
            parent = self.stat(key).parent
            beneath = self._parents(db, parent)
        self._usable_layers(stack, key)
        parents = [layer for layer in self._usable_layers(beneath, parent) if layer != own]
        return self._diff(own, parents, opaque=bool(row[0]))

    def stat(self, key: str) -> SnapshotInfo:
        """Return what is known about a snapshot."""
        with self._database.read() as db:
            row = self._row(db, key)
        if row is None:
            raise self._missing(key)
        return _info(row)

    def update(self, name: str, labels: Mapping[str, str]) -> SnapshotInfo:
        """Set labels; an empty value removes one."""
        with self._database.write() as db:
            merged = merge_labels(self.stat(name).labels, labels)
            text = encode_labels(merged)
            _id_maps(text)  # which may refuse
            db.execute(
                "UPDATE snapshots SET labels = ?, updated_at = ? WHERE namespace = ? AND snapshotter = ? AND name = ?",
                (text, timestamp(), *self._scope, name),
            )
            return self.stat(name)

    def usage(self, key: str) -> Usage:
        """Return what a snapshot takes on disk, without its parents."""
        with self._database.read() as db:
            row = db.execute(
                """
                SELECT kind, layer, disk_bytes, inodes FROM snapshots s LEFT JOIN layers l ON l.id = s.layer
                WHERE namespace = ? AND s.snapshotter = ? AND name = ?
                """,
                (*self._scope, _check_key(key)),
            ).fetchone()
        if row is None:
            raise self._missing(key)
        kind, layer, size, inodes = row
        if kind == "view":
            return Usage(size=0, inodes=0)
        if kind == "active":
            size, inodes = _core.disk_usage(self._folders.fs(layer))
        elif (size, inodes) == _UNMEASURED:
            size, inodes = _core.disk_usage(self._folders.fs(layer))
            with self._database.write() as db:
                db.execute("UPDATE layers SET disk_bytes = ?, inodes = ? WHERE id = ?", (size, inodes, layer))
        return Usage(size=size, inodes=inodes)

    def walk(
        self,
        *,
        kind: SnapshotKind | None = None,
        parent: str | None = None,
        labels: Mapping[str, str] | None = None,
        filters: Sequence[str] = (),
    ) -> Iterator[SnapshotInfo]:
        """Go through the snapshots, parents before their children."""
        from lamella.filters import compile_filters

        match = compile_filters(filters)
        wanted = labels or {}
        # "+" keeps SQLite from sorting each page anew: the rows come in the order of their numbers.
        where = ["+s.namespace = ?", "+s.snapshotter = ?"]
        values: list[Any] = [*self._scope]
        if kind is not None:
            where.append("s.kind = ?")
            values.append(kind)
        if parent:
            where.append(
                "s.parent = (SELECT number FROM snapshots WHERE namespace = ? AND snapshotter = ? AND name = ?)"
            )
            values += [*self._scope, parent]
        elif parent is not None:
            where.append("s.parent IS NULL")
        query = f"{_INFO} WHERE {' AND '.join(where)} AND s.number > ? ORDER BY s.number LIMIT {_PAGE}"
        after = 0
        while True:
            with self._database.read() as db:
                rows = db.execute(query, (*values, after)).fetchall()
            for row in rows:
                info = _info(row)
                if wanted.items() <= info.labels.items() and match(
                    {"name": info.name, "parent": info.parent, "kind": info.kind, "labels": info.labels}
                ):
                    yield info
            if len(rows) < _PAGE:
                return
            after = rows[-1][0]

    def layer_paths(self, key: str) -> list[Path]:
        """Return the folders whose stack is the snapshot, nearest first."""
        with self._database.read() as db:
            stack = self._stack(db, key)
        return [Path(self._folders.fs(layer)) for layer in self._usable_layers(stack, key)]

    def close(self) -> None:
        """Let go of what the snapshotter holds: nothing; the database belongs to the client."""
        return

    # Rows

    def _row(self, db: Transaction, key: str) -> tuple[Any, ...] | None:
        """Give the row of a snapshot, whatever its kind."""
        row: tuple[Any, ...] | None = db.execute(
            f"{_INFO} WHERE s.namespace = ? AND s.snapshotter = ? AND s.name = ?",
            (*self._scope, _check_key(key)),
        ).fetchone()
        return row

    def _create(
        self, kind: SnapshotKind, key: str, parent: str, labels: str, filled: Draft | None
    ) -> list[Mount]:
        maps = _id_maps(labels)
        own, parents = self._record(kind, key, parent, labels, filled)
        return _mapped(self._mounts(kind, own, parents), maps)

    def _record(
        self, kind: SnapshotKind, key: str, parent: str, labels: str, filled: Draft | None
    ) -> tuple[str | None, list[str]]:
        """Record a new snapshot, its folder made; give its own layer, if it has one, and those beneath, nearest first."""
        with self._database.write() as db:
            self._check_free(db, key)
            stack = self._parents(db, parent)
            parents = self._usable_layers(stack, parent)
            own = self._create_folder(kind, parents, filled)
            if own is not None:
                self._database.on_rollback(lambda _: self._folders.remove(own))
                self._insert_layer(db, own, filled)
            self._insert(db, name=key, kind=kind, stack=stack, layer=own, labels=labels)
        return own, parents

    def _insert_layer(self, db: Transaction, layer: str, filled: Draft | None) -> None:
        size, inodes = filled.usage if filled is not None else (0, 0)
        db.execute(
            """
            INSERT INTO layers (id, snapshotter, disk_bytes, inodes, opaque_root, created_at, boot_id)
            VALUES (?, ?, ?, ?, ?, ?, ?)
            """,
            (layer, self.name, size, inodes, not self.stacks, timestamp(), boot_id()),
        )

    def _insert(
        self,
        db: Transaction,
        *,
        name: str,
        kind: SnapshotKind,
        stack: list[_Row],
        layer: str | None,
        labels: str,
    ) -> None:
        now = timestamp()
        db.execute(
            """
            INSERT INTO snapshots
                (namespace, snapshotter, name, kind, parent, layer, labels, created_at, updated_at)
            VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
            """,
            (*self._scope, name, kind, stack[0][0] if stack else None, layer, labels, now, now),
        )

    def _check_free(self, db: Transaction, key: str) -> None:
        taken = db.execute(
            "SELECT 1 FROM snapshots WHERE namespace = ? AND snapshotter = ? AND name = ?",
            (*self._scope, _check_key(key)),
        ).fetchone()
        if taken is not None:
            raise self._taken(key)

    def _parents(self, db: Transaction, parent: str) -> list[_Row]:
        """Give the stack of a parent that something may stand on; an empty one for no parent."""
        if not parent:
            return []
        try:
            stack = self._stack(db, parent)
        except NotFound:
            raise NotFound(
                f"there is no snapshot {parent!r} to be the parent",
                hint="lamella snapshots ls shows those there are.",
            ) from None
        if stack[0][1] != "committed":
            raise InvalidArgument(
                f"snapshot {parent!r} cannot be a parent, it is {stack[0][1]}", hint="Commit it first."
            )
        return stack

    def _stack(self, db: Transaction, key: str) -> list[_Row]:
        """Give number, kind and layer of a snapshot and of its ancestors, nearest first."""
        stack = db.execute(_STACK, (boot_id(), *self._scope, _check_key(key))).fetchall()
        if not stack:
            raise self._missing(key)
        return stack

    def _usable_layers(self, stack: list[_Row], key: str) -> list[str]:
        """Give the layers of a stack, each once: a layer that stands twice (an empty one, often) is hidden by its upper self.

        Unverified when some of them are (see lamella.durability).
        """
        layers: dict[str, None] = {}
        for _, _, layer, usable, *_ in stack:
            if not usable:
                raise Unverified(
                    f"layers of snapshot {key!r} were unpacked before the machine restarted and never synced to disk",
                    hint="Unpack them again: pull the image, or run lamella fsck --repair.",
                )
            if layer is not None:
                layers[layer] = None
        return list(layers)

    def _committable(self, db: Transaction, name: str, key: str) -> str:
        """Give the layer of ``key`` if it may be committed as ``name``."""
        rows: dict[Any, tuple[Any, Any]] = {
            row[0]: row[1:]
            for row in db.execute(
                "SELECT name, kind, layer FROM snapshots WHERE namespace = ? AND snapshotter = ? AND name IN (?, ?)",
                (*self._scope, name, _check_key(key)),
            )
        }
        if name in rows:
            raise self._taken(name)
        if key not in rows:
            raise self._missing(key)
        kind, layer = rows[key]
        if kind != "active":
            raise FailedPrecondition(f"snapshot {key!r} is not active but {kind}, it cannot be committed")
        return str(layer)

    def _drop_layer(self, db: Transaction, layer: str) -> None:
        """Delete a layer that belonged to a snapshot alone. Shared ones are left to garbage collection."""
        gone = db.execute(
            """
            DELETE FROM layers WHERE id = ? AND diff_id IS NULL
                AND NOT EXISTS (SELECT 1 FROM snapshots WHERE layer = layers.id)
            RETURNING synced
            """,
            (layer,),
        ).fetchone()
        if gone is not None:
            if gone[0]:  # as in content.unlink_blobs
                self._database.after_commit(self._database.flush)
            self._database.after_commit(lambda: self._folders.remove(layer))

    def _missing(self, key: str) -> NotFound:
        return NotFound(f"there is no snapshot {key!r} in namespace {self._scope[0]} of {self.name}")

    def _taken(self, key: str) -> AlreadyExists:
        return AlreadyExists(
            f"snapshot {key!r} exists in namespace {self._scope[0]} of {self.name}",
            hint="Remove it, or take another name.",
        )


def _info(row: tuple[Any, ...]) -> SnapshotInfo:
    _, name, parent, kind, labels, created_at, updated_at = row
    return SnapshotInfo(
        name=name,
        parent=parent,
        kind=kind,
        labels=decode_labels(labels),
        created_at=created_at,
        updated_at=updated_at,
    )


def _id_maps(labels: str) -> list[str]:
    """Give the mount options that map ids, from containerd's labels. InvalidArgument where they are no maps."""
    if "containerd.io/snapshot/" not in labels:
        return []
    found = decode_labels(labels)
    names = (("uidmap", UID_MAPPING), ("gidmap", GID_MAPPING))
    options = [f"{name}={found[label]}" for name, label in names if label in found]
    _core.check_mount_options(options)
    return options


def _mapped(mounts: list[Mount], maps: list[str]) -> list[Mount]:
    if not maps:
        return mounts
    return [replace(mount, options=[*maps, *mount.options]) for mount in mounts]


def _check_key(key: str) -> str:
    return check_key(key, "key", "the key or name of a snapshot")
