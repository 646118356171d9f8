"""What takes the disk: images, each alone and shared, snapshots, containers, and what garbage collection would free.

What an image leads to is what garbage collection follows for it (:mod:`lamella.metadata.reachability`): its documents,
layers, and the committed snapshots of its config. A blob or layer folder counts as *alone* when nothing else in the store leads
there, in whatever namespace: no other image, container, active snapshot, lease or gc.root label. So what an image has alone is
what removing it and collecting would free.

Compressed bytes are lengths of blobs, as registries count; everything else counts as du(1) does, in 512-byte blocks. It is read
from the database, but for what changes without it: the folders of active snapshots, logs and ingests are looked at. What a file
system adds to a blob (the rest of its last block) and to a layer (the folder around it) is not counted: some kilobytes each.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from lamella import _core
from lamella.errors import LamellaError
from lamella.gc import collect
from lamella.metadata import Database, Transaction, timestamp
from lamella.metadata.reachability import ACTIVE_ROOT
from lamella.snapshots.folders import LayerFolders

if TYPE_CHECKING:
    from lamella.client import Client

# Pairs of a root and a node (a row of content or snapshots) that it leads to. A root is an image's number, or 0 for all
# that is no image. CROSS JOIN keeps the order of the tables, as in metadata/reachability.py.
_REACH = f"""
CREATE TEMP TABLE reach AS WITH RECURSIVE reach (root, node) AS (
    SELECT i.number, c.number * 4 FROM images i CROSS JOIN content c ON c.namespace = i.namespace AND c.digest = i.digest
    UNION SELECT 0, s.number * 4 + 1 FROM snapshots s WHERE {ACTIVE_ROOT}
    UNION SELECT 0, s.number * 4 + 1 FROM containers k
        CROSS JOIN snapshots s ON s.namespace = k.namespace AND s.snapshotter = k.snapshotter AND s.name = k.snapshot_key
    UNION SELECT 0, owner FROM gc_labels WHERE kind = 'root' AND owner & 3 < 2
    UNION SELECT 0, c.number * 4 FROM leases x CROSS JOIN lease_resources r ON r.lease = x.number AND r.type = 'content'
        CROSS JOIN content c ON c.namespace = x.namespace AND c.digest = r.resource
        WHERE x.expires_at IS NULL OR x.expires_at > :now
    UNION SELECT 0, s.number * 4 + 1 FROM leases x
        CROSS JOIN lease_resources r ON r.lease = x.number AND r.type GLOB 'snapshots/*'
        CROSS JOIN snapshots s ON s.namespace = x.namespace AND s.snapshotter = substr(r.type, 11) AND s.name = r.resource
        WHERE x.expires_at IS NULL OR x.expires_at > :now
    UNION SELECT reach.root, s.parent * 4 + 1 FROM reach CROSS JOIN snapshots s ON s.number = reach.node >> 2
        WHERE reach.node & 3 = 1 AND s.parent IS NOT NULL
    UNION SELECT reach.root, c.number * 4 FROM reach
        CROSS JOIN gc_labels g ON g.owner = reach.node AND g.kind = 'content'
        CROSS JOIN content c ON c.namespace = g.namespace AND c.digest = g.named
    UNION SELECT reach.root, s.number * 4 + 1 FROM reach
        CROSS JOIN gc_labels g ON g.owner = reach.node AND g.kind = 'snapshot'
        CROSS JOIN snapshots s ON s.namespace = g.namespace AND s.snapshotter = g.scope AND s.name = g.named
) SELECT root, node FROM reach
"""  # noqa: S608 (a constant)
# The same for what is shared beneath the namespaces: bytes of each blob or layer folder (thing), once for each root. An image is
# of one namespace, where a blob has one row; only what is no image may come to a thing several times.
_BLOBS = """
SELECT reach.root, c.digest AS thing, b.size AS bytes FROM temp.reach AS reach
    CROSS JOIN content c ON c.number = reach.node >> 2 CROSS JOIN blobs b ON b.digest = c.digest
    WHERE reach.node & 3 = 0 AND reach.root > 0
UNION ALL
SELECT DISTINCT 0, c.digest, 0 FROM temp.reach AS reach CROSS JOIN content c ON c.number = reach.node >> 2
    WHERE reach.node & 3 = 0 AND reach.root = 0
"""
_LAYERS = """
SELECT DISTINCT reach.root AS root, l.id AS thing, l.disk_bytes AS bytes FROM temp.reach AS reach
    CROSS JOIN snapshots s ON s.number = reach.node >> 2 CROSS JOIN layers l ON l.id = s.layer
    WHERE reach.node & 3 = 1 AND s.kind = 'committed'
"""
_BY_ROOT = """
WITH pairs AS MATERIALIZED ({pairs})
SELECT root, sum(alone), sum(total) FROM (
    SELECT root, 0 AS alone, bytes AS total FROM pairs
    UNION ALL SELECT min(root), min(bytes), 0 FROM pairs GROUP BY thing HAVING count(*) = 1
) WHERE root > 0 GROUP BY root
"""
_COUNTED = frozenset({"blobs", "snapshots", "containers", "ingest", "reserve", "volumes"})
_FOLDERS = """
SELECT s.namespace, s.snapshotter, s.name, s.kind, s.layer, l.disk_bytes, k.id
FROM snapshots s JOIN layers l ON l.id = s.layer LEFT JOIN containers k
    ON k.namespace = s.namespace AND k.snapshotter = s.snapshotter AND k.snapshot_key = s.name
WHERE s.kind = 'active' OR s.kind = 'committed' AND l.diff_id IS NULL
ORDER BY s.name
"""


class ImageUsage(msgspec.Struct, frozen=True):
    """What one image takes, in bytes: its blobs, and its unpacked layers; alone and together with others."""

    name: str
    compressed_alone: int
    compressed_shared: int
    unpacked_alone: int
    unpacked_shared: int


class SnapshotUsage(msgspec.Struct, frozen=True):
    """Bytes of an active or a committed snapshot that somebody made, without its parents."""

    name: str
    kind: str
    size: int


class ContainerUsage(msgspec.Struct, frozen=True):
    """Bytes that a container has written: its writable layer and its log."""

    id: str
    name: str
    image: str
    writable: int
    logs: int


class StoreUsage(msgspec.Struct, frozen=True):
    """Bytes of the whole store, all namespaces.

    ``blobs`` and ``layers`` (unpacked ones) are shared by the images; ``snapshots`` have what was written on top, by containers
    and others; ``volumes`` is what is in them, ``metadata`` the database with its log, and small files beside it; ``reserve`` is
    kept free for those who free space (:mod:`lamella.reserve`).
    """

    blobs: int
    layers: int
    snapshots: int
    logs: int
    volumes: int
    ingests: int
    metadata: int
    reserve: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(msgspec.structs.astuple(self))


class DiskUsage(msgspec.Struct, frozen=True):
    """What one namespace and the store beneath it take. ``reclaimable``: bytes that garbage collection would free now."""

    namespace: str
    images: list[ImageUsage]
    snapshots: list[SnapshotUsage]
    containers: list[ContainerUsage]
    store: StoreUsage
    reclaimable: int


def usage(client: Client) -> DiskUsage:
    """Measure. Changes nothing and keeps nobody waiting; what others do meanwhile may be in it or not."""
    config = client.config
    # A connection of its own, so that the threads of the caller need not wait for it.
    with Database(config, busy_seconds=client.database.busy_seconds) as database:
        with database.read() as db:
            db.execute("PRAGMA cache_size = -65536").fetchall()
            images = _images(db, config.namespace)
            blobs = db.execute("SELECT coalesce(sum(size), 0) FROM blobs").fetchone()[0]
            layers = db.execute(
                "SELECT coalesce(sum(disk_bytes), 0) FROM layers WHERE diff_id IS NOT NULL"
            ).fetchone()[0]
            folders = db.execute(_FOLDERS).fetchall()
            containers = db.execute(
                "SELECT id, name, image FROM containers WHERE namespace = ? ORDER BY name",
                (config.namespace,),
            ).fetchall()
        written = 0
        snapshots: list[SnapshotUsage] = []
        writable: dict[str, int] = {}
        for namespace, snapshotter, name, kind, layer, recorded, container in folders:
            folder = LayerFolders(config.root, snapshotter).fs(layer)
            size = recorded if kind == "committed" and recorded else _measured(Path(folder))
            written += size
            if namespace == config.namespace:
                if container is None:
                    snapshots.append(SnapshotUsage(name=name, kind=kind, size=size))
                else:
                    writable[container] = size
        logs = config.root / "containers"
        return DiskUsage(
            namespace=config.namespace,
            images=images,
            snapshots=snapshots,
            containers=[
                ContainerUsage(
                    id=identifier,
                    name=name,
                    image=image,
                    writable=writable.get(identifier, 0),
                    logs=_measured(logs / config.namespace / identifier),
                )
                for identifier, name, image in containers
            ],
            store=StoreUsage(
                blobs=blobs,
                layers=layers,
                snapshots=written,
                logs=_measured(logs),
                volumes=_measured(config.root / "volumes"),
                ingests=_measured(config.root / "ingest"),
                metadata=_beside(config.root),
                reserve=_length(config.root / "reserve"),
            ),
            reclaimable=collect(database, config, dry_run=True).bytes_freed,
        )


def _images(db: Transaction, namespace: str) -> list[ImageUsage]:
    db.execute(_REACH, {"now": timestamp()})
    try:
        compressed, unpacked = (
            {root: (alone, total) for root, alone, total in db.execute(_BY_ROOT.format(pairs=pairs))}
            for pairs in (_BLOBS, _LAYERS)
        )
    finally:
        db.execute("DROP TABLE temp.reach").fetchall()
    rows = db.execute("SELECT number, name FROM images WHERE namespace = ? ORDER BY name", (namespace,))
    images = []
    for number, name in rows:
        stored_alone, stored = compressed.get(number, (0, 0))
        layers_alone, layers = unpacked.get(number, (0, 0))
        images.append(
            ImageUsage(
                name=name,
                compressed_alone=stored_alone,
                compressed_shared=stored - stored_alone,
                unpacked_alone=layers_alone,
                unpacked_shared=layers - layers_alone,
            )
        )
    return images


def _measured(folder: Path) -> int:
    """Give the bytes of a tree; 0 when it is not there, or somebody is removing it."""
    try:
        return _core.disk_usage(str(folder))[0] if folder.is_dir() else 0
    except LamellaError:
        return 0


def _beside(root: Path) -> int:
    """Give the bytes of what lies in the store's folder beside those that are counted by themselves."""
    with os.scandir(root) as entries:
        return sum(
            _measured(Path(entry.path)) if entry.is_dir(follow_symlinks=False) else _length(Path(entry.path))
            for entry in entries
            if entry.name not in _COUNTED
        )


def _length(path: Path) -> int:
    try:
        return os.lstat(path).st_blocks * 512
    except FileNotFoundError:
        return 0
