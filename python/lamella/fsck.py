"""fsck: walk the database and the disk, both ways, and name what does not fit; mend what can be mended.

There are two sorts of it. *Findings* are wrong: something that was promised is not there. *Leftovers* are what a process leaves
that is killed, at whichever moment: files and folders that no row names. They are invisible, harm nobody and go with the next
garbage collection. A store on which processes were killed has leftovers, never findings.

Findings:

==================  =================================================  ====================================================
kind                what it is                                         what --repair does
==================  =================================================  ====================================================
database            SQLite finds the metadata damaged                  nothing
damaged-blob        a blob's bytes have another digest                 forgets it; a pull fetches it
missing-blob        a blob has a row and no file                       forgets it; a pull fetches it
missing-layer       the folder of a layer is gone                      unpacks it anew from its blob; gives an active
                                                                       snapshot an empty one; forgets a committed one
                                                                       that nothing stands on
unverified-layer    another boot left a layer without a sync           unpacks it anew from its blob
unverifiable        the same for what somebody committed               keeps it: only its owner can tell
dangling-image      an image points at content that is not here        nothing; a pull fetches it
dangling-container  a container's snapshot is gone                     nothing; remove the container
mount               something is mounted in the store or at a task     unmounts it
unknown-task        a task runs that has no container                  nothing; stop it
==================  =================================================  ====================================================

Leftovers:

==================  =================================================  ====================================================
kind                what it is                                         what --repair and gc do
==================  =================================================  ====================================================
orphan-blob         a file under blobs/ has no row                     remove it
orphan-folder       a folder under snapshots/ has no row               remove it
damaged-ingest      an ingest has no record, or is being removed       remove it
stale-task          a task or log folder has no container              remove it
==================  =================================================  ====================================================

What is in use is never taken for damage: files that are being written are locked, and what has no row is looked at again in a
write transaction before it goes (as garbage collection does, gc.py). Blobs are hashed in several threads; hashing takes
seconds a gigabyte and holds nobody up.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import msgspec

from lamella import _core, oci
from lamella.content import file_digest, is_whole, unlink_blobs
from lamella.digest import HEX_LENGTHS, Digest, split_digest
from lamella.disk import TRASH
from lamella.errors import LamellaError
from lamella.ingest import ingest_folders, read_ingest, remove_ingest
from lamella.locks import FileLock, is_locked
from lamella.metadata import Database
from lamella.metadata.boot import boot_id
from lamella.snapshots.folders import LayerFolders

if TYPE_CHECKING:
    from lamella.client import Client
    from lamella.containers.task import Task
    from lamella.images import Image

FindingKind = Literal[
    "database",
    "damaged-blob",
    "missing-blob",
    "missing-layer",
    "unverified-layer",
    "unverifiable",
    "dangling-image",
    "dangling-container",
    "mount",
    "unknown-task",
]
LeftoverKind = Literal["orphan-blob", "orphan-folder", "damaged-ingest", "stale-task"]
_T = TypeVar("_T", str, Digest, tuple[str, str], tuple[Path, Path])
_MOMENT_SECONDS = 0.05
_SOURCE = "containerd.io/distribution.source."


class Finding(msgspec.Struct, kw_only=True):
    """One thing that does not fit: its kind, which one, what exactly, what was or can be done, and whether it is right now."""

    kind: FindingKind | LeftoverKind
    name: str
    detail: str
    action: str
    mended: bool = False


class FsckReport(msgspec.Struct, kw_only=True):
    """What a check found, and how much it looked at. ``bytes_hashed`` in bytes.

    ``findings`` are wrong, ``leftovers`` only take room (see the head of the module).
    """

    repair: bool
    findings: list[Finding] = []
    leftovers: list[Finding] = []
    blobs: int = 0
    layers: int = 0
    snapshots: int = 0
    bytes_hashed: int = 0

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong, or nothing is left that is. Leftovers are not wrong."""
        return all(finding.mended for finding in self.findings)

    def __str__(self) -> str:
        text = f"{self.blobs} blobs, {self.layers} layers, {self.snapshots} snapshots: "
        if self.findings:
            mended = sum(finding.mended for finding in self.findings)
            text += f"{len(self.findings)} problems, {mended} mended"
        else:
            text += "nothing is wrong"
        if self.leftovers:
            removed = sum(finding.mended for finding in self.leftovers)
            text += f"; {len(self.leftovers)} leftovers of killed processes, {removed} removed"
        return text


def check(client: Client, *, repair: bool = False, jobs: int = 2) -> FsckReport:
    """Check the store of a client, all its namespaces; ``jobs`` threads hash blobs.

    With ``repair``, mend. What is mended or wrong is in the report; an error is raised only where the store cannot be looked at.
    Twice is harmless, and so is running it beside others.
    """
    return _Check(client, repair=repair, jobs=max(1, jobs)).run()


class _Check:
    """One check of one store."""

    def __init__(self, client: Client, *, repair: bool, jobs: int) -> None:
        self._client = client
        self._database: Database = client.database
        self._root = client.config.root
        self._blobs = self._root / "blobs"
        self._repair = repair
        self._jobs = jobs
        self._report = FsckReport(repair=repair)

    def run(self) -> FsckReport:
        """Do it. Mounts first: they keep folders from being removed; layers after the blobs that they are unpacked from."""
        self._check_database()
        self._check_mounts()
        self._check_tasks()
        self._check_blobs()
        self._check_orphan_blobs()
        self._check_ingests()
        self._check_layers()
        self._check_orphan_folders()
        self._check_images()
        self._check_containers()
        return self._report

    def _found(
        self,
        kind: FindingKind,
        name: str,
        detail: str,
        possible: str,
        mend: Callable[[], str | None] | None = None,
    ) -> None:
        """Note what is wrong. ``mend`` says what it did, or None where it could not."""
        self._report.findings.append(self._mended(kind, name, detail, possible, mend))

    def _left(self, kind: LeftoverKind, name: str, detail: str, mend: Callable[[], str | None]) -> None:
        """Note what a killed process left."""
        possible = "lamella gc or lamella fsck --repair removes it"
        self._report.leftovers.append(self._mended(kind, name, detail, possible, mend))

    def _mended(
        self,
        kind: FindingKind | LeftoverKind,
        name: str,
        detail: str,
        possible: str,
        mend: Callable[[], str | None] | None,
    ) -> Finding:
        finding = Finding(kind=kind, name=name, detail=detail, action=possible)
        if self._repair and mend is not None:
            try:
                done = mend()
            except (LamellaError, OSError) as error:
                finding.action = f"{possible} (it failed: {error})"
            else:
                if done is not None:
                    finding.action, finding.mended = done, True
        return finding

    # The database

    def _check_database(self) -> None:
        with self._database.read() as db:
            for (problem,) in db.execute("PRAGMA integrity_check").fetchall():
                if problem != "ok":
                    self._found("database", "metadata.db", problem, "restore it from a copy, or pull anew")
            for table, _, parent, _ in db.execute("PRAGMA foreign_key_check").fetchall():
                self._found(
                    "database", table, f"a row refers to one of {parent} that is gone", "report this defect"
                )
            self._report.snapshots = db.execute("SELECT count(*) FROM snapshots").fetchone()[0]

    # Blobs

    def _check_blobs(self) -> None:
        from concurrent.futures import ThreadPoolExecutor

        with self._database.read() as db:
            rows = db.execute("SELECT digest, size FROM blobs ORDER BY digest").fetchall()
        self._report.blobs = len(rows)
        with ThreadPoolExecutor(self._jobs, thread_name_prefix="lamella-fsck") as pool:
            for (digest, size), problem in zip(rows, pool.map(self._examine, rows), strict=True):
                if problem is None:
                    self._report.bytes_hashed += size
                elif self._is_there_still(digest):
                    self._blob_is_bad(Digest(digest), problem)

    def _examine(self, row: tuple[str, int]) -> str | None:
        """Hash one blob; say what is wrong with it."""
        digest, size = Digest(row[0]), row[1]
        path = self._path(digest)
        try:
            length = path.stat().st_size
            if length != size:
                return f"it has {length} bytes instead of {size}"
            found = file_digest(path, digest)
        except FileNotFoundError:
            return "its file is gone"
        except (OSError, LamellaError) as error:
            return f"it cannot be read: {error}"
        return None if found == digest else f"its bytes have the digest {found}"

    def _is_there_still(self, digest: str) -> bool:
        with self._database.read() as db:
            return db.execute("SELECT 1 FROM blobs WHERE digest = ?", (digest,)).fetchone() is not None

    def _blob_is_bad(self, digest: Digest, problem: str) -> None:
        missing = not self._path(digest).exists()
        users = self._users(digest)
        sources = self._sources(digest)
        detail = problem
        if users:
            detail += f"; needed by {', '.join(users)}"
        if sources:
            detail += f"; it came from {', '.join(sources)}"
        fetch = "; ".join(f"lamella pull {name.partition('/')[2]}" for name in users)

        def mend() -> str | None:
            if is_whole(self._database, self._blobs, digest):
                return "a pull has fetched it meanwhile"
            self._forget(digest)
            return "forgot it" + (f"; fetch it: {fetch}" if fetch else "")

        self._found(
            "missing-blob" if missing else "damaged-blob",
            digest,
            detail,
            f"fetch it: {fetch}" if fetch else "lamella fsck --repair forgets it",
            mend,
        )

    def _forget(self, digest: Digest) -> None:
        """Delete the rows of a blob whose file is gone."""
        with self._database.write() as db:
            if not self._path(digest).exists():
                db.execute("DELETE FROM content WHERE digest = ?", (digest,))
                db.execute("DELETE FROM blobs WHERE digest = ?", (digest,))

    def _users(self, digest: Digest) -> list[str]:
        """Give the images, as NAMESPACE/NAME, that lead to a blob, found from the blob's side by the labels of pulls."""
        with self._database.read() as db:
            return [
                f"{namespace}/{name}"
                for namespace, name in db.execute(
                    """
                    WITH RECURSIVE up (namespace, digest) AS (
                        SELECT namespace, digest FROM content WHERE digest = ?
                        UNION
                        SELECT c.namespace, c.digest FROM up
                            JOIN gc_labels g ON g.kind = 'content' AND g.namespace = up.namespace AND g.named = up.digest
                            JOIN content c ON c.number = g.owner >> 2 AND g.owner & 3 = 0
                    )
                    SELECT DISTINCT i.namespace, i.name FROM up
                        JOIN images i ON i.namespace = up.namespace AND i.digest = up.digest ORDER BY 1, 2
                    """,
                    (digest,),
                )
            ]

    def _sources(self, digest: Digest) -> list[str]:
        """Give the repositories that a blob came from, from its labels."""
        with self._database.read() as db:
            rows = db.execute("SELECT labels FROM content WHERE digest = ?", (digest,)).fetchall()
        found = set()
        for (text,) in rows:
            for key, value in msgspec.json.decode(text, type=dict[str, str]).items():
                if key.startswith(_SOURCE):
                    found |= {f"{key.removeprefix(_SOURCE)}/{name}" for name in value.split(",")}
        return sorted(found)

    def _check_orphan_blobs(self) -> None:
        def orphans() -> set[Digest]:
            found = {
                Digest(f"{algorithm}:{path.name}")
                for algorithm, length in HEX_LENGTHS.items()
                for path in _entries(self._blobs / algorithm)
                if len(path.name) == length
            }
            with self._database.read() as db:
                return found - {row[0] for row in db.execute("SELECT digest FROM blobs")}

        for digest in self._lasting(orphans):
            self._left(
                "orphan-blob",
                digest,
                f"{_size(self._path(digest))} bytes that no row names",
                lambda digest=digest: self._unlink(digest),  # type: ignore[misc]
            )

    def _lasting(self, look: Callable[[], set[_T]]) -> list[_T]:
        """Give what is found at two looks, a little apart: what is being made or removed looks like damage for a moment."""
        first = look()
        if not first:
            return []
        time.sleep(_MOMENT_SECONDS)
        with self._database.write():  # whoever made something has its row by now
            pass
        return sorted(first & look())

    def _unlink(self, digest: Digest) -> str:
        unlink_blobs(self._database, self._blobs, [digest])
        return "removed it"

    # Ingests

    def _check_ingests(self) -> None:
        ingests = self._root / "ingest"

        def trash() -> set[str]:
            return {path.name for path in _entries(ingests) if path.name.startswith(TRASH)}

        def damaged() -> set[tuple[str, str]]:
            """Give each with the time of its last change: another one of the same ref is another one."""
            found = set()
            for folder in ingest_folders(ingests):
                if read_ingest(folder) is None and not is_locked(folder / "lock"):
                    with suppress(FileNotFoundError):
                        found.add((folder.name, str(folder.stat().st_mtime_ns)))
            return found

        for name in self._lasting(trash):
            self._left(
                "damaged-ingest",
                name,
                "a blob whose removal was cut off",
                lambda path=ingests / name: _unlink(path),  # type: ignore[misc]
            )
        for name, _ in self._lasting(damaged):
            self._left(
                "damaged-ingest",
                name,
                "its record is missing or cannot be read, so that nobody can resume it",
                lambda folder=ingests / name: _remove_ingest(folder),  # type: ignore[misc]
            )

    # Layers

    def _check_layers(self) -> None:
        with self._database.read() as db:
            rows = db.execute(
                """
                SELECT id, snapshotter, diff_id, synced OR boot_id = ?,
                    EXISTS (SELECT 1 FROM snapshots WHERE layer = layers.id AND kind = 'committed')
                FROM layers ORDER BY diff_id IS NULL, id
                """,  # those with a diffID first: others stand on them
                (boot_id(),),
            ).fetchall()
        self._report.layers = len(rows)
        for layer_id, snapshotter, diff_id, verified, committed in rows:
            there = Path(LayerFolders(self._root, snapshotter).fs(layer_id)).is_dir()
            if there and (verified or not (diff_id or committed)):
                continue
            if not self._has_row(layer_id):
                continue  # it was removed while we looked
            self._layer_is_bad(layer_id, snapshotter, diff_id, there=there)

    def _layer_is_bad(self, layer_id: str, snapshotter: str, diff_id: str | None, *, there: bool) -> None:
        stands = self._snapshots_on(layer_id)
        detail = "its folder is gone" if not there else "it was not synced before the machine restarted"
        detail += f"; under {', '.join(stands[:3])}{' ...' if len(stands) > 3 else ''}" if stands else ""
        name = f"{snapshotter}/{layer_id}"
        if diff_id is None:
            if there:
                self._found(
                    "unverifiable",
                    name,
                    detail,
                    "look at it, and remove its snapshot if it is damaged; lamella fsck --repair accepts it",
                    lambda: self._accept(layer_id),
                )
            else:
                self._found(
                    "missing-layer",
                    name,
                    detail,
                    "remove its snapshot, what it held is lost; lamella fsck --repair empties it, if it was active",
                    lambda: self._renew(layer_id, snapshotter),
                )
            return
        self._found(
            "unverified-layer" if there else "missing-layer",
            name,
            f"{detail}; diffID {diff_id}",
            "lamella fsck --repair unpacks it anew",
            lambda: self._unpack(layer_id, snapshotter, diff_id),
        )

    def _renew(self, layer_id: str, snapshotter: str) -> str | None:
        """Give what may be written to an empty folder; forget what somebody committed, unless something stands on it.

        A power cut leaves such rows: the database's log may get to disk before the folder does.
        """
        from lamella.client import Client

        config = self._client.config
        with self._database.read() as db:
            rows = db.execute(
                """
                SELECT namespace, name, kind, EXISTS (SELECT 1 FROM snapshots c WHERE c.parent = s.number)
                FROM snapshots s WHERE layer = ?
                """,
                (layer_id,),
            ).fetchall()
        done = "forgot it"
        for namespace, name, kind, has_children in rows:
            with Client(config.root, config.state, namespace, snapshotter) as client:
                if kind != "committed":
                    client.snapshots.renew(name)
                    done = "gave it an empty folder: what it held is lost"
                elif has_children:
                    return None
                else:
                    client.snapshots.remove(name)
        return done

    def _accept(self, layer_id: str) -> str:
        """Believe what cannot be checked, so that it is named once."""
        with self._database.write() as db:
            db.execute("UPDATE layers SET boot_id = ? WHERE id = ?", (boot_id(), layer_id))
        return "kept it as it is"

    def _unpack(self, layer_id: str, snapshotter: str, diff_id: str) -> str | None:
        """Unpack a layer anew by way of an image that has it, or forget it when nothing stands on it."""
        if not self._has_row(layer_id):
            return "unpacked it anew, with another layer of its image"
        if not self._snapshots_on(layer_id):
            with self._database.write() as db:
                db.execute(
                    "DELETE FROM layers WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM snapshots WHERE layer = ?1)",
                    (layer_id,),
                )
            LayerFolders(self._root, snapshotter).remove(layer_id)
            return "forgot it: nothing stands on it"
        failure: LamellaError | None = None
        for client, image in self._images():
            try:
                if diff_id not in image.diff_ids:
                    continue
                client.images.unpack(image.name)
            except LamellaError as error:
                failure = error
                continue
            if not self._has_row(layer_id):
                return f"unpacked {image.familiar_name} anew"
        if failure is not None:
            raise failure
        return None

    def _snapshots_on(self, layer_id: str) -> list[str]:
        with self._database.read() as db:
            rows = db.execute("SELECT namespace, name FROM snapshots WHERE layer = ?", (layer_id,)).fetchall()
        return [f"{namespace}/{name}" for namespace, name in rows]

    def _has_row(self, layer_id: str) -> bool:
        with self._database.read() as db:
            return db.execute("SELECT 1 FROM layers WHERE id = ?", (layer_id,)).fetchone() is not None

    def _check_orphan_folders(self) -> None:
        def orphans() -> set[tuple[str, str]]:
            found = {
                (top.name, path.name)
                for top in _entries(self._root / "snapshots")
                for path in _entries(top)
                if not is_locked(path)
            }
            with self._database.read() as db:
                return found - set(db.execute("SELECT snapshotter, id FROM layers").fetchall())

        for snapshotter, name in self._lasting(orphans):
            self._left(
                "orphan-folder",
                f"{snapshotter}/{name}",
                "no row names it",
                lambda top=snapshotter, name=name: self._remove_folder(top, name),  # type: ignore[misc]
            )

    def _remove_folder(self, snapshotter: str, name: str) -> str | None:
        folders = LayerFolders(self._root, snapshotter)
        if name.startswith(TRASH):
            trash = folders.folder(name)
        else:
            with self._database.write():  # nobody is making a folder meanwhile
                if self._has_row(name) or is_locked(folders.folder(name)):
                    return "it came into use"
                trash = folders.discard(name)
        folders.destroy(trash)
        return "removed it"

    # References

    def _images(self) -> Iterator[tuple[Client, Image]]:
        """Give the images of all namespaces, each with a client that sees it."""
        from lamella.client import Client

        with self._database.read() as db:
            names = [row[0] for row in db.execute("SELECT DISTINCT namespace FROM images ORDER BY 1")]
        config = self._client.config
        for namespace in names:
            with Client(config.root, config.state, namespace, config.snapshotter) as client:
                for image in client.images.list():
                    yield client, image

    def _check_images(self) -> None:
        for client, image in self._images():
            missing = _missing_content(client, image)
            if missing and _is_the_same(client, image):
                self._found(
                    "dangling-image",
                    f"{client.config.namespace}/{image.name}",
                    f"{missing} is not here",
                    f"fetch it: lamella -n {client.config.namespace} pull {image.familiar_name}",
                )

    def _check_containers(self) -> None:
        with self._database.read() as db:
            rows = db.execute(
                """
                SELECT namespace, name, snapshot_key FROM containers c
                WHERE snapshot_key <> '' AND NOT EXISTS (
                    SELECT 1 FROM snapshots s WHERE s.namespace = c.namespace AND s.snapshotter = c.snapshotter
                        AND s.name = c.snapshot_key)
                """
            ).fetchall()
        for namespace, name, key in rows:
            self._found(
                "dangling-container",
                f"{namespace}/{name}",
                f"its snapshot {key} is gone",
                f"remove it: lamella -n {namespace} containers rm {name}",
            )

    # Mounts and tasks

    def _check_mounts(self) -> None:
        places = [f"{self._root}/snapshots/", f"{self._client.config.state}/tasks/"]
        for point in reversed(_mount_points()):  # the latest first: it may lie in an earlier one
            if any(point.startswith(place) for place in places):
                self._found(
                    "mount",
                    point,
                    "containers are mounted in their own namespaces, so that this was left behind",
                    f"lamella fsck --repair unmounts it, or: umount {point}",
                    lambda point=point: _unmount(point),  # type: ignore[misc]
                )

    def _check_tasks(self) -> None:
        from lamella.containers.orphans import orphaned_tasks

        def orphans() -> set[tuple[Path, Path]]:
            return {
                (task.folder, task.log_folder) for task in orphaned_tasks(self._database, self._client.config)
            }

        lasting = {folder for folder, _ in self._lasting(orphans)}
        for task in orphaned_tasks(self._database, self._client.config):
            if task.folder not in lasting:
                continue
            name = f"{task.folder.parent.name}/{task.folder.name}"
            if task.running():
                self._found(
                    "unknown-task",
                    name,
                    "a container runs that has no record",
                    f"kill its processes (the monitor's socket is {task.folder}/control.sock)",
                )
                continue

            def mend(task: Task = task) -> str | None:
                if any(point.startswith(f"{task.folder.parent}") for point in _mount_points()):
                    return None  # removing would reach into what is mounted there
                task.remove()
                return "removed it"

            self._left("stale-task", name, "there is no container of that name", mend)

    def _path(self, digest: Digest) -> Path:
        return self._blobs.joinpath(*split_digest(digest))


def _missing_content(client: Client, image: Image) -> str | None:
    """Say which document or layer of an image has no row; of an index, one platform is enough."""
    try:
        if not _seen(client, image.target.digest):
            return f"its manifest {image.target.digest}"
        manifest = image.manifest
        parts = [manifest.config, *([] if image.layers_discarded else manifest.layers)]
    except LamellaError as error:
        return str(error)
    for part in parts:
        if not _seen(client, part.digest):
            what = "its config" if part.media_type in oci.CONFIG_TYPES else "the layer"
            return f"{what} {part.digest}"
    return None


def _is_the_same(client: Client, image: Image) -> bool:
    """Tell whether an image is still there and points where it did."""
    try:
        return client.images.get(image.name) == image
    except LamellaError:
        return False


def _seen(client: Client, digest: Digest) -> bool:
    try:
        client.content.info(digest)
    except LamellaError:
        return False
    return True


def _mount_points() -> list[str]:
    try:
        lines = (
            Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        )
    except OSError:
        return []
    points = [line.split(" ")[4] for line in lines]
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):  # proc(5)
        points = [point.replace(code, char) for point in points]
    return points


def _unmount(point: str) -> str:
    _core.unmount(point)
    return "unmounted it"


def _unlink(path: Path) -> str:
    path.unlink(missing_ok=True)
    return "removed it"


def _remove_ingest(folder: Path) -> str | None:
    lock = FileLock(folder / "lock", what=f"ingest {folder.name}")
    if not lock.try_acquire():
        return None
    try:
        if read_ingest(folder) is None:
            remove_ingest(folder)
    finally:
        lock.release()
    return "removed it"


def _entries(folder: Path) -> list[Path]:
    try:
        return [folder / name for name in sorted(os.listdir(folder))]  # noqa: PTH208 (names are wanted)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0
