"""A store for tests: everything that a namespace has, opened on one folder; and the fixtures that give one.

A test module imports the fixtures: ``from stores import open_store, store  # noqa: F401``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec
import pytest

from lamella import _core
from lamella.config import Config
from lamella.content import ContentStore
from lamella.digest import Digest, digest_of
from lamella.gc import GcReport, collect
from lamella.leases import Leases
from lamella.metadata import Database, timestamp
from lamella.namespaces import Namespaces
from lamella.snapshots.layers import Layer, LayerStore
from lamella.snapshots.native import NativeSnapshotter
from lamella.snapshots.overlayfs import OverlaySnapshotter
from lamella.snapshots.recorded import RecordedSnapshotter

SNAPSHOTTERS: dict[str, type[RecordedSnapshotter]] = {
    "overlayfs": OverlaySnapshotter,
    "native": NativeSnapshotter,
}


class Store:
    def __init__(self, root: Path, namespace: str = "default", snapshotter: str = "overlayfs") -> None:
        self.root = root
        self.config = Config(
            root=root, state=root.parent / "state", namespace=namespace, snapshotter=snapshotter
        )
        self.database = Database(self.config)
        self.content = ContentStore(self.database, self.config)
        self.layers = LayerStore(self.database, self.config)
        self.snapshots = SNAPSHOTTERS[snapshotter](self.database, self.config)
        self.leases = Leases(self.database, self.config)
        self.namespaces = Namespaces(self.database)

    def close(self) -> None:
        self.database.close()

    def put(self, data: bytes, labels: Mapping[str, str] | None = None) -> Digest:
        digest = digest_of(data)
        self.content.write(f"put-{digest}", data, digest=digest, size=len(data), labels=labels)
        return digest

    def layer(
        self,
        files: Mapping[str, str],
        *,
        opaque_root: bool = False,
        diff_id: Digest | None = None,
        parent: str = "",
    ) -> Layer:
        """Unpack a layer of some text files, as a pull does; if layers do not stack, on what ``parent`` shows."""
        diff_id = diff_id or digest_of(repr(sorted(files.items())).encode() + os.urandom(8))
        chain_id = None if self.snapshots.stacks else digest_of(f"{parent} {diff_id}".encode())
        with self.layers.stage(self.config.snapshotter, diff_id) as staging:
            if chain_id is not None and parent:
                _core.copy_tree(str(self.snapshots.layer_paths(parent)[0]), str(staging.path))
            for name, text in files.items():
                path = staging.path / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            return staging.commit(
                diff_id=diff_id,
                chain_id=chain_id,
                disk_bytes=4096,
                inodes=1 + len(files),
                opaque_root=opaque_root or chain_id is not None,
            )

    def stack(self, name: str, *layers: Mapping[str, str]) -> str:
        """Record committed snapshots over layers, bottom first; return the name of the top one."""
        parent = ""
        for number, files in enumerate(layers):
            self.snapshots.add_committed(f"{name}-{number}", parent, self.layer(files, parent=parent))
            parent = f"{name}-{number}"
        return parent

    def image(self, name: str, digest: Digest, labels: str = "{}") -> None:
        """Record an image that points at a digest."""
        with self.database.write() as db:
            db.execute(
                "INSERT INTO images (namespace, name, media_type, digest, size, labels, created_at, updated_at) "
                "VALUES (?, ?, 'application/vnd.oci.image.manifest.v1+json', ?, 1, ?, ?, ?)",
                (self.config.namespace, name, digest, labels, timestamp(), timestamp()),
            )

    def remove_image(self, name: str) -> None:
        with self.database.write() as db:
            db.execute("DELETE FROM images WHERE namespace = ? AND name = ?", (self.config.namespace, name))

    def container(self, name: str, snapshot_key: str) -> None:
        with self.database.write() as db:
            db.execute(
                "INSERT INTO containers (namespace, id, name, snapshotter, snapshot_key, created_at, updated_at) "
                "VALUES (?, ?, ?, 'overlayfs', ?, ?, ?)",
                (self.config.namespace, name, name, snapshot_key, timestamp(), timestamp()),
            )

    def gc(self, *, dry_run: bool = False, ingest_seconds: float = 24 * 3600.0) -> GcReport:
        return collect(self.database, self.config, dry_run=dry_run, ingest_seconds=ingest_seconds)

    # What is on disk

    def blob_files(self) -> set[str]:
        return {
            f"{algorithm.name}:{file.name}"
            for algorithm in self.root.glob("blobs/*")
            for file in algorithm.iterdir()
        }

    def layer_folders(self) -> set[str]:
        return {path.name for path in self.root.glob("snapshots/*/*")}

    def ingest_entries(self) -> set[str]:
        return {path.name for path in self.root.glob("ingest/*")}

    def check_events(self) -> None:
        """What is there is what events since the beginning say: what they created and did not remove."""
        there = set()
        with self.database.read() as db:
            events = db.execute(
                "SELECT number, namespace, topic, data FROM events ORDER BY number"
            ).fetchall()
            rows = db.execute(
                """
                SELECT 'namespaces', name, name FROM namespaces UNION ALL SELECT 'images', namespace, name FROM images
                UNION ALL SELECT 'content', namespace, digest FROM content
                UNION ALL SELECT snapshotter || ' snapshot', namespace, name FROM snapshots
                UNION ALL SELECT 'containers', namespace, id FROM containers
                """
            ).fetchall()
        assert [event[0] for event in events] == list(range(1, len(events) + 1))
        for _, namespace, topic, data in events:
            _, kind, change = topic.split("/")
            fields = msgspec.json.decode(data)
            keys = {"content": "digest", "containers": "id", "snapshot": "key"}
            if kind == "tasks" or change == "update":
                continue
            key = fields[keys.get(kind, "name")]
            kind = f"{fields['snapshotter']} snapshot" if kind == "snapshot" else kind
            thing = (kind, namespace, key)
            if change in ("create", "prepare"):
                assert thing not in there
                there.add(thing)
            elif thing[2] or change != "commit":
                there.remove(thing)
            if change == "commit":
                there.add((kind, namespace, fields["name"]))
        assert there == set(rows)

    def check(self, *, clean: bool = False, events: bool = True) -> None:
        """Every row has its file, whole, and its events; with ``clean`` every file has its row too."""
        with self.database.read() as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert db.execute("PRAGMA foreign_key_check").fetchall() == []
            blobs = dict(db.execute("SELECT digest, size FROM blobs").fetchall())
            layers = dict(db.execute("SELECT id, snapshotter FROM layers").fetchall())
            assert (
                db.execute(
                    "SELECT 1 FROM blobs WHERE digest NOT IN (SELECT digest FROM content) "
                    "AND digest NOT IN (SELECT resource FROM lease_resources)"
                ).fetchall()
                == []
            )
        if events:
            self.check_events()
        for digest, size in blobs.items():
            algorithm, _, encoded = digest.partition(":")
            data = (self.root / "blobs" / algorithm / encoded).read_bytes()
            assert len(data) == size
            assert digest_of(data, algorithm) == digest
        for layer, snapshotter in layers.items():
            assert (self.root / "snapshots" / snapshotter / layer / "fs").is_dir()
        if clean:
            assert self.blob_files() == set(blobs)
            assert self.layer_folders() == set(layers)
            assert self.ingest_entries() == set()


@pytest.fixture
def open_store(tmp_path: Path) -> Iterator[Callable[..., Store]]:
    """``open_store(namespace)`` opens the test's store once more."""
    opened: list[Store] = []

    def opener(namespace: str = "default", snapshotter: str = "overlayfs") -> Store:
        opened.append(Store(tmp_path / "root", namespace, snapshotter))
        return opened[-1]

    yield opener
    for each in opened:
        each.close()


@pytest.fixture
def store(open_store: Callable[..., Store]) -> Store:
    return open_store()
