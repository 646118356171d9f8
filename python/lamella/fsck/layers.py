"""Unpacked layers: a folder that is gone, unverified or damaged is unpacked anew; a folder that no row names is removed.

Whether a folder still is what its blob says can only be told by unpacking the blob once more, beside it: that is done where it is
asked for (``verify_layers``), a layer at a time, and costs what unpacking the images costs. A folder that differs is replaced
by the fresh one unless something is mounted on it: what a running container reads is not taken away beneath it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lamella import _core, oci
from lamella.digest import Digest
from lamella.disk import TRASH, names_in
from lamella.errors import LamellaError, NotFound
from lamella.fsck.mounts import user_of_layer
from lamella.fsck.sources import image_sources
from lamella.fsck.store import CheckedStore, NotMended
from lamella.locks import is_locked
from lamella.metadata.boot import boot_id
from lamella.metadata.reachability import IMAGE, SNAPSHOT
from lamella.snapshots.folders import LayerFolders, is_linked
from lamella.transfer.unpack import copy_beneath, unpack_blob

if TYPE_CHECKING:
    from lamella.client import Client
    from lamella.images import Image
    from lamella.snapshots.layers import Layer


class _Row(NamedTuple):
    """A row of ``layers``, and whether all or part of it was complete at some time (see lamella.durability)."""

    id: str
    snapshotter: str
    diff_id: Digest | None
    chain_id: Digest | None
    verified: bool
    counted: bool

    @property
    def name(self) -> str:
        return f"{self.snapshotter}/{self.id}"


class LayerCheck:
    """The layers of one store. :meth:`look` first, then :meth:`judge`: in between the blobs that they need are mended."""

    def __init__(self, store: CheckedStore) -> None:
        self._store = store
        self._bad: list[tuple[_Row, bool]] = []

    def look(self) -> None:
        """Find the rows whose folder is gone or cannot be believed."""
        with self._store.database.read() as db:
            rows = [
                _Row(*row)
                for row in db.execute(
                    """
                    SELECT id, snapshotter, diff_id, chain_id, synced OR boot_id = ?, inodes > 0
                    FROM layers ORDER BY diff_id IS NULL, id
                    """,  # those with a diffID first: others stand on them
                    (boot_id(),),
                )
            ]
        self._store.report.layers = len(rows)
        for row in rows:
            there = Path(self._folders(row).fs(row.id)).is_dir()
            if not (there and (row.verified or not (row.diff_id or row.counted))) and self._has_row(row.id):
                self._bad.append((row, there))

    def judge(self) -> None:
        """Name what was found, and mend it."""
        for row, there in self._bad:
            self._is_bad(row, there=there)

    def _is_bad(self, row: _Row, *, there: bool) -> None:
        store = self._store
        detail = "its folder is gone" if not there else "it was not synced before the machine restarted"
        detail += self._under(row.id)
        if row.diff_id is None and there:
            store.found(
                "unverifiable",
                row.name,
                detail,
                "look at it, and remove its snapshot if it is damaged; lamella fsck --repair accepts it",
                lambda: self._accept(row.id),
            )
        elif row.diff_id is None:
            store.found(
                "missing-layer",
                row.name,
                detail,
                "remove its snapshot, what it held is lost; lamella fsck --repair empties it, if it was active",
                lambda: self._renew(row),
            )
        else:
            store.found(
                "unverified-layer" if there else "missing-layer",
                row.name,
                f"{detail}; diffID {row.diff_id}",
                "lamella fsck --repair unpacks it anew",
                lambda: self._unpack(row),
            )

    def _renew(self, row: _Row) -> str | None:
        """Give what may be written to an empty folder; forget what somebody committed, unless something stands on it.

        A power cut leaves such rows: the database's log may get to disk before the folder does.
        """
        with self._store.database.read() as db:
            rows = db.execute(
                """
                SELECT namespace, name, kind, EXISTS (SELECT 1 FROM snapshots c WHERE c.parent = s.number)
                FROM snapshots s WHERE layer = ?
                """,
                (row.id,),
            ).fetchall()
        done = "forgot it"
        for namespace, name, kind, has_children in rows:
            snapshots = self._store.client(namespace, row.snapshotter).snapshots
            if kind != "committed":
                snapshots.renew(name)
                done = "gave it an empty folder: what it held is lost"
            elif has_children:
                return None
            else:
                snapshots.remove(name)
        return done

    def _accept(self, layer_id: str) -> str:
        """Believe what cannot be checked, so that it is named once."""
        with self._store.database.write() as db:
            db.execute("UPDATE layers SET boot_id = ? WHERE id = ?", (boot_id(), layer_id))
        return "kept it as it is"

    def _unpack(self, row: _Row) -> str | None:
        """Unpack a layer anew by way of an image that has it, or forget it when nothing stands on it."""
        if not self._has_row(row.id):
            return "unpacked it anew, with another layer of its image"
        if not self._snapshots_on(row.id):
            with self._store.database.write() as db:
                db.execute(
                    "DELETE FROM layers WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM snapshots WHERE layer = ?1)",
                    (row.id,),
                )
            self._folders(row).remove(row.id)
            return "forgot it: nothing stands on it"
        failures: list[str] = []
        for client, image in self._images_on(row):
            try:
                if row.diff_id not in image.diff_ids:
                    continue
                done = self._unpack_image(client, image)
            except LamellaError as error:
                failures.append(error.message)
                continue
            if not self._has_row(row.id):
                return done
        if failures:
            raise NotMended(f"it could not be unpacked anew: {'; '.join(failures)}")
        return None

    def _unpack_image(self, client: Client, image: Image) -> str:
        """Unpack from the blobs that are here, else from where the image came."""
        try:
            client.images.unpack(image.name)
        except NotFound as missing:
            sources = self._store.sources
            if not sources.fetch:
                raise
            try:
                source = sources.complete(
                    client,
                    image,
                    image_sources(client, image),
                    unpack=True,
                    keep_layers=not image.layers_discarded,
                )
            except NotFound as error:
                raise NotFound(f"{missing.message}, and could not be fetched: {error.message}") from None
            return f"unpacked it anew, fetched from {source}"
        return f"unpacked {image.familiar_name} anew"

    # Folders against blobs

    def verify(self) -> None:
        """Unpack each layer whose blob is here once more and compare it with its folder."""
        done: set[str] = set()
        damaged: set[str] = set()
        for client, image in self._images():
            try:
                manifest, config = image.manifest, image.config
                compared = not image.layers_discarded
            except LamellaError:  # it is dangling, which is said elsewhere
                continue
            lowers: list[str] = []
            stack = zip(
                manifest.layers, config.rootfs.diff_ids, oci.chain_ids(config.rootfs.diff_ids), strict=False
            )
            for descriptor, diff_id, chain_id in stack:
                layer = client.layers.find(client.config.snapshotter, diff_id, chain_id)
                if layer is None:  # it was not unpacked, or is missing
                    break
                path = str(layer.path)
                if (
                    compared
                    and path not in done
                    and not is_linked(layer.id)
                    and client.content.exists(descriptor.digest)
                ):
                    path, same = self._compare(
                        client, descriptor, layer, lowers, sound=damaged.isdisjoint(lowers)
                    )
                    done.add(path)
                    if not same:
                        damaged.add(path)
                rest = (lower for lower in lowers if lower != path)
                lowers = [path] if layer.opaque_root else [path, *rest]

    def _compare(
        self, client: Client, descriptor: oci.Descriptor, layer: Layer, lowers: list[str], *, sound: bool
    ) -> tuple[str, bool]:
        """Compare one layer with its blob; give the path that it has afterwards, and whether it is right now.

        Where what lies beneath is not ``sound``, a layer that takes something from there cannot be judged.
        """
        store = self._store
        assert layer.diff_id is not None
        snapshotter = client.config.snapshotter
        if not (sound or client.snapshots.stacks):
            return str(layer.path), True
        with client.layers.stage(snapshotter, layer.diff_id) as staging:
            copy_beneath(client, staging, lowers)
            unpacked = unpack_blob(client, descriptor, str(staging.path), diff_id=layer.diff_id)
            if unpacked.deferred:
                if not sound:
                    return str(layer.path), True
                _core.resolve(str(staging.path), lowers, unpacked.deferred)
            try:
                difference = _core.first_difference(str(staging.path), str(layer.path))
            except LamellaError as error:
                difference = f"it cannot be read: {error.message}"
            store.report.layers_compared += 1
            if difference is None or not self._has_row(layer.id):
                return str(layer.path), True
            replaced: list[Layer] = []

            def mend() -> str:
                user = user_of_layer(store.database, store.config, layer.id)
                if user is not None:
                    raise NotMended(
                        f"{user} uses it; stop that, then run lamella fsck --repair --verify-layers again"
                    )
                with client.database.write() as db:
                    # A layer that cannot be believed gives way to the next one of its diffID.
                    db.execute("UPDATE layers SET boot_id = '', synced = 0 WHERE id = ?", (layer.id,))
                    fresh = staging.commit(
                        diff_id=str(layer.diff_id),
                        chain_id=layer.chain_id,
                        disk_bytes=unpacked.disk_bytes,
                        inodes=unpacked.inodes,
                        opaque_root=unpacked.opaque_root,
                    )
                replaced.append(fresh)
                return "replaced it by what its blob holds"

            store.found(
                "damaged-layer",
                f"{snapshotter}/{layer.id}",
                f"{difference}{self._under(layer.id)}; diffID {layer.diff_id}",
                "lamella fsck --repair --verify-layers unpacks it anew",
                mend,
            )
            return str(replaced[0].path if replaced else layer.path), bool(replaced)

    def _images(self) -> Iterator[tuple[Client, Image]]:
        """Give all images, for each of the snapshotters that have layers."""
        with self._store.database.read() as db:
            nodes = [number * 4 + IMAGE for (number,) in db.execute("SELECT number FROM images").fetchall()]
            used = db.execute("SELECT DISTINCT snapshotter FROM layers ORDER BY snapshotter").fetchall()
        for (snapshotter,) in used:
            yield from self._store.images_above(nodes, snapshotter)

    # Rows

    def _images_on(self, row: _Row) -> list[tuple[Client, Image]]:
        with self._store.database.read() as db:
            numbers = db.execute("SELECT number FROM snapshots WHERE layer = ?", (row.id,)).fetchall()
        return self._store.images_above([number * 4 + SNAPSHOT for (number,) in numbers], row.snapshotter)

    def _snapshots_on(self, layer_id: str) -> list[str]:
        with self._store.database.read() as db:
            rows = db.execute("SELECT namespace, name FROM snapshots WHERE layer = ?", (layer_id,)).fetchall()
        return [f"{namespace}/{name}" for namespace, name in rows]

    def _under(self, layer_id: str) -> str:
        """Say what stands on a layer, for a finding."""
        stands = self._snapshots_on(layer_id)
        return f"; under {', '.join(stands[:3])}{' ...' if len(stands) > 3 else ''}" if stands else ""

    def _has_row(self, layer_id: str) -> bool:
        with self._store.database.read() as db:
            return db.execute("SELECT 1 FROM layers WHERE id = ?", (layer_id,)).fetchone() is not None

    def _folders(self, row: _Row) -> LayerFolders:
        return LayerFolders(self._store.root, row.snapshotter)

    # Folders without a row

    def check_orphans(self) -> None:
        """Find folders that no row names."""
        store = self._store

        def orphans() -> set[tuple[str, str]]:
            found = {
                (top, name)
                for top in names_in(store.root / "snapshots")
                for name in names_in(store.root / "snapshots" / top)
            }
            with store.database.read() as db:
                found -= set(db.execute("SELECT snapshotter, id FROM layers").fetchall())
            return {
                (top, name) for top, name in found if not is_locked(store.root / "snapshots" / top / name)
            }

        for snapshotter, name in store.lasting(orphans):
            store.left(
                "orphan-folder",
                f"{snapshotter}/{name}",
                "no row names it",
                lambda top=snapshotter, name=name: self._remove_folder(top, name),  # type: ignore[misc]
            )

    def _remove_folder(self, snapshotter: str, name: str) -> str | None:
        folders = LayerFolders(self._store.root, snapshotter)
        if name.startswith(TRASH):
            trash = folders.folder(name)
        else:
            with self._store.database.write():  # nobody is making a folder meanwhile
                if self._has_row(name) or is_locked(folders.folder(name)):
                    return "it came into use"
                trash = folders.discard(name)
        folders.destroy(trash)
        return "removed it"
