"""One check of one store, from beginning to end; and what is neither blobs nor layers: database, ingests, references, tasks."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lamella import _core, oci
from lamella.digest import Digest
from lamella.disk import TRASH, names_in, translated
from lamella.errors import LamellaError, NotFound
from lamella.fsck.blobs import BlobCheck
from lamella.fsck.layers import LayerCheck
from lamella.fsck.mounts import mount_points, unmount
from lamella.fsck.report import FsckReport
from lamella.fsck.sources import Sources, image_sources
from lamella.fsck.store import CheckedStore, NotMended, pull_command
from lamella.ingest import ingest_folders, read_ingest, remove_ingest
from lamella.locks import FileLock, is_locked
from lamella.tracing import span
from lamella.transfer.progress import ProgressCallback, Reporter

if TYPE_CHECKING:
    from lamella.client import Client
    from lamella.containers.task import Task
    from lamella.images import Image


def check(
    client: Client,
    *,
    repair: bool = False,
    verify_layers: bool = False,
    fetch: bool = True,
    plain_http: bool = False,
    jobs: int = 2,
    progress: ProgressCallback | None = None,
) -> FsckReport:
    """Check the store of a client, all its namespaces; ``jobs`` threads hash blobs, and fetch them.

    With ``repair``, mend; with ``fetch`` from the registries that content came from too, for which ``plain_http`` allows HTTP
    without TLS to others than this machine (a store does not remember with which options it was pulled). With
    ``verify_layers``, unpack each blob once more and compare. What is mended or wrong is in the report; an error is raised
    only where the store cannot be looked at. Twice is harmless, and so is running it beside others.
    """
    report = FsckReport(repair=repair)
    reporter = Reporter(progress)
    sources = Sources(client, reporter, fetch=fetch, plain_http=plain_http)
    try:
        with (
            span("lamella.fsck"),
            translated(f"check the store {client.config.root}"),
            CheckedStore(client, report, sources, reporter, jobs) as store,
        ):
            _Check(store).run(verify_layers=verify_layers)
    finally:
        sources.close()
    return report


class _Check:
    """One check of one store."""

    def __init__(self, store: CheckedStore) -> None:
        self._store = store
        self._database = store.database
        self._root = store.root

    def run(self, *, verify_layers: bool) -> None:
        """Do it. Mounts first: they keep folders from being removed; layers after the blobs that they are unpacked from."""
        self._check_database()
        self._check_mounts()
        self._check_tasks()
        self._check_networks()
        self._check_volumes()
        layers = LayerCheck(self._store)
        layers.look()
        BlobCheck(self._store).run()
        self._check_ingests()
        self._check_images()
        layers.judge()
        if verify_layers:
            layers.verify()
        layers.check_orphans()
        self._check_containers()

    # The database

    def _check_database(self) -> None:
        with self._database.read() as db:
            for (problem,) in db.execute("PRAGMA integrity_check").fetchall():
                if problem != "ok":
                    self._store.found(
                        "database", "metadata.db", problem, "restore it from a copy, or pull anew"
                    )
            for table, _, parent, _ in db.execute("PRAGMA foreign_key_check").fetchall():
                self._store.found(
                    "database", table, f"a row refers to one of {parent} that is gone", "report this defect"
                )
            self._store.report.snapshots = db.execute("SELECT count(*) FROM snapshots").fetchone()[0]

    # Ingests

    def _check_ingests(self) -> None:
        ingests = self._root / "ingest"

        def trash() -> set[str]:
            return {name for name in names_in(ingests) if name.startswith(TRASH)}

        def damaged() -> set[tuple[str, str]]:
            """Give each with the time of its last change: another one of the same ref is another one."""
            found = set()
            for folder in ingest_folders(ingests):
                if read_ingest(folder) is None and not is_locked(folder / "lock"):
                    with suppress(FileNotFoundError):
                        found.add((folder.name, str(folder.stat().st_mtime_ns)))
            return found

        for name in self._store.lasting(trash):
            self._store.left(
                "damaged-ingest",
                name,
                "a blob whose removal was cut off",
                lambda path=ingests / name: _unlink(path),  # type: ignore[misc]
            )
        for name, _ in self._store.lasting(damaged):
            self._store.left(
                "damaged-ingest",
                name,
                "its record is missing or cannot be read, so that nobody can resume it",
                lambda folder=ingests / name: _remove_ingest(folder),  # type: ignore[misc]
            )

    # References

    def _check_images(self) -> None:
        for client, image in self._suspects():
            missing = _missing_content(client, image)
            if missing and _is_the_same(client, image):
                fetch = pull_command(client, image)
                self._store.found(
                    "dangling-image",
                    f"{client.config.namespace}/{image.name}",
                    f"{missing} is not here",
                    f"lamella fsck --repair fetches it, or: {fetch}"
                    if self._store.sources.fetch
                    else f"fetch it: {fetch}",
                    lambda client=client, image=image: self._complete(client, image),  # type: ignore[misc]
                )

    def _suspects(self) -> list[tuple[Client, Image]]:
        """Give the images whose target has no row, or that lead to a label which names content without one."""
        with self._database.read() as db:
            nodes = db.execute(
                """
                SELECT number * 4 + 2 FROM images i WHERE NOT EXISTS (
                    SELECT 1 FROM content c WHERE c.namespace = i.namespace AND c.digest = i.digest)
                UNION
                SELECT owner FROM gc_labels g WHERE kind = 'content' AND NOT EXISTS (
                    SELECT 1 FROM content c WHERE c.namespace = g.namespace AND c.digest = g.named)
                """
            ).fetchall()
        return self._store.images_above([node for (node,) in nodes]) if nodes else []

    def _complete(self, client: Client, image: Image) -> str:
        """Fetch what an image lacks; unpack it if it was, which puts the labels right that keep its snapshots."""
        sources = self._store.sources
        advice = f"fetch it: {pull_command(client, image)}"
        if not sources.fetch:
            raise NotMended(f"it was not to be fetched; {advice}")
        try:
            keep_layers = not image.layers_discarded
        except LamellaError:
            keep_layers = True
        try:
            source = sources.complete(
                client, image, image_sources(client, image), unpack=False, keep_layers=keep_layers
            )
        except NotFound as error:
            raise NotMended(f"it could not be fetched: {error.message}; {advice}") from None
        fresh = client.images.get(image.name)
        with suppress(NotFound):  # it was pulled without unpacking
            for name in fresh.chain_ids[-1:]:
                client.snapshots.stat(name)
                client.images.unpack(image.name)
        return f"fetched it from {source}"

    def _check_containers(self) -> None:
        with self._database.read() as db:
            rows = db.execute(
                """
                SELECT namespace, name, key FROM (
                    SELECT namespace, name, snapshotter, snapshot_key AS key FROM containers
                    UNION ALL SELECT k.namespace, k.name, k.snapshotter, json_extract(v.value, '$.snapshot')
                        FROM containers k, json_each(k.extra, '$.sources') v
                ) c WHERE key <> '' AND NOT EXISTS (
                    SELECT 1 FROM snapshots s WHERE s.namespace = c.namespace AND s.snapshotter = c.snapshotter
                        AND s.name = c.key)
                """
            ).fetchall()
        for namespace, name, key in rows:
            self._store.found(
                "dangling-container",
                f"{namespace}/{name}",
                f"its snapshot {key} is gone",
                f"remove it: lamella -n {namespace} containers rm {name}",
            )

        self._check_volumes_of_containers()

    def _check_volumes_of_containers(self) -> None:
        with self._database.read() as db:
            rows = db.execute(
                "SELECT k.namespace, k.name, v.value FROM containers k, json_each(k.extra, '$.volumes') v ORDER BY 1, 2, 3"
            ).fetchall()
        for namespace, name, volume in rows:
            if not (self._root / "volumes" / namespace / volume).is_dir():
                self._store.found(
                    "dangling-container",
                    f"{namespace}/{name}",
                    f"its volume {volume} is gone",
                    f"make an empty one: lamella -n {namespace} volumes create {volume}; or remove the container",
                )

    # Mounts, tasks, volumes

    def _check_mounts(self) -> None:
        state = self._store.config.state
        places = (f"{self._root}/snapshots/", f"{state}/tasks/", f"{state}/mounts/")
        for point in reversed(mount_points()):  # the latest first: it may lie in an earlier one
            # A folder under mounts/ is held by whoever has a snapshot mounted there (snapshots.mounting).
            if point.startswith(places) and not is_locked(Path(point).parent):
                self._store.found(
                    "mount",
                    point,
                    "what it was for has ended: containers are mounted in their own namespaces",
                    f"lamella fsck --repair unmounts it, or: umount {point}",
                    lambda point=point: unmount(point),  # type: ignore[misc]
                )

    def _check_tasks(self) -> None:
        from lamella.containers.orphans import orphaned_tasks

        def orphans() -> set[tuple[Path, Path]]:
            return {
                (task.folder, task.log_folder) for task in orphaned_tasks(self._database, self._store.config)
            }

        lasting = {folder for folder, _ in self._store.lasting(orphans)}
        for task in orphaned_tasks(self._database, self._store.config):
            if task.folder not in lasting:
                continue
            name = f"{task.folder.parent.name}/{task.folder.name}"
            if task.running():
                self._store.found(
                    "unknown-task",
                    name,
                    "a container runs that has no record",
                    f"kill its processes (the monitor's socket is {task.folder}/control.sock)",
                )
                continue

            def mend(task: Task = task) -> str | None:
                if any(point.startswith(f"{task.folder.parent}") for point in mount_points()):
                    return None  # removing would reach into what is mounted there
                task.remove()
                return "removed it"

            self._store.left("stale-task", name, "there is no container of that name", mend)

    def _check_networks(self) -> None:
        from lamella.containers.orphans import finish_network, stale_networks, unfinished_networks

        config = self._store.config

        def stale() -> set[tuple[Path, Path]]:
            return {(task.folder, task.log_folder) for task in stale_networks(config)}

        for folder, _ in self._store.lasting(stale):
            for task in stale_networks(config):
                if task.folder == folder:
                    self._store.left(
                        "stale-network",
                        f"{folder.parent.name}/{folder.name}",
                        "the container has ended, and nobody let go of its network",
                        lambda task=task: "let go of it" if task.release_network() else None,  # type: ignore[misc]
                    )

        for namespace, container in unfinished_networks(config):

            def mend(namespace: str = namespace, container: str = container) -> str | None:
                done = finish_network(self._store.database, config, namespace, container)
                return "finished it or took it back" if done else None

            self._store.left(
                "stale-network",
                f"{namespace}/{container}",
                "a process was killed while it connected the container, or disconnected it",
                mend,
            )

    def _check_volumes(self) -> None:
        from lamella.containers.volumes import leftovers

        def remove(folder: str) -> str:
            _core.remove_tree(folder)
            return "removed it"

        for folder in self._store.lasting(lambda: set(map(str, leftovers(self._store.config)))):
            name = str(Path(folder).relative_to(self._root / "volumes"))
            self._store.left(
                "stale-volume", name, "nobody makes or removes it any more", partial(remove, folder)
            )


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
