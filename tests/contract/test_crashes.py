"""kill -9 at every step of what content, snapshots, layers and collections are made of (tests/steps.py).

After each the store must be whole, hold all that it held for sure, and let the operation be done again; and what was left on disk
without a row must be gone after a collection.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest

from lamella.digest import digest_of
from lamella.errors import AlreadyExists, NotFound
from lamella.events import spool
from lamella.metadata import schema
from steps import kills, patience
from stores import Store

pytestmark = patience
ROOT = {"containerd.io/gc.root": "x"}
KEPT = b"kept"
DATA = b"x" * 3000
DIGEST = digest_of(DATA)
POINTS = 12


def crashes(
    folder: Path, before: Callable[[Store], None], operation: Callable[[Store], None]
) -> Iterator[Store]:
    """Give the store, opened again, after a crash at chosen steps of ``operation``."""
    roots = (folder / str(number) / "root" for number in count(1))
    root = folder

    def scene() -> Callable[[], None]:
        nonlocal root
        root = next(roots)
        root.parent.mkdir()
        store = Store(root)
        store.put(KEPT, ROOT)
        store.snapshots.add_committed("base", "", store.layer({"kept": "1"}), ROOT)
        before(store)
        store.close()
        return lambda: operation(Store(root))

    for outcome in kills(scene, points=POINTS):
        # Without root a step may be one of the helper's start: then that is killed, and the operation fails, or does with less.
        killed = {-signal.SIGKILL} if os.geteuid() == 0 else {-signal.SIGKILL, 1, 0}
        assert outcome.status in (killed if outcome.prevented else {0})
        store = Store(root)
        try:
            store.check()
            yield store
            store.gc(ingest_seconds=0)
            store.check(clean=True)
            assert store.content.read(digest_of(KEPT)) == KEPT
            assert (store.snapshots.layer_paths("base")[0] / "kept").read_text() == "1"
            assert [path for path in store.root.glob("locks/*") if path.name != "gc"] == []
        finally:
            store.close()


def nothing(store: Store) -> None:
    pass


def test_writing_content(tmp_path):
    def write(store: Store) -> None:
        with store.content.writer("ref", size=len(DATA), digest=DIGEST) as ingest:
            ingest.write(DATA[ingest.offset :])
            ingest.commit(labels=ROOT)

    for store in crashes(tmp_path, nothing, write):
        try:
            write(store)
        except AlreadyExists:
            assert store.content.info(DIGEST).labels == ROOT
        assert store.content.read(DIGEST) == DATA


def test_writing_content_that_another_namespace_has(tmp_path):
    def before(store: Store) -> None:
        other = Store(store.root, "other")
        other.put(DATA, ROOT)
        other.close()

    def write(store: Store) -> None:
        with store.content.writer("ref") as ingest:
            ingest.write(DATA[ingest.offset :])
            ingest.commit(labels=ROOT)

    for store in crashes(tmp_path, before, write):
        with suppress(AlreadyExists):
            write(store)
        assert store.content.info(DIGEST).labels == ROOT


def test_deleting_content(tmp_path):
    def delete(store: Store) -> None:
        store.content.delete(DIGEST)

    for store in crashes(tmp_path, lambda store: store.put(DATA), delete):
        with suppress(NotFound):
            delete(store)
        assert not store.content.exists(DIGEST)
        store.put(DATA, ROOT)
        assert store.content.read(DIGEST) == DATA


def test_discarding_an_ingest(tmp_path):
    def before(store: Store) -> None:
        with store.content.writer("ref") as ingest:
            ingest.write(DATA)

    def abort(store: Store) -> None:
        store.content.abort("ref")

    for store in crashes(tmp_path, before, abort):
        with suppress(NotFound):
            abort(store)
        assert store.content.ingests() == []


@pytest.mark.parametrize("parent", ["", "base"])
@pytest.mark.parametrize("method", ["prepare", "view"])
def test_creating_a_snapshot(tmp_path, method, parent):
    def create(store: Store) -> None:
        getattr(store.snapshots, method)("key", parent, ROOT)

    for store in crashes(tmp_path, nothing, create):
        try:
            create(store)
        except AlreadyExists:
            assert store.snapshots.stat("key").labels == ROOT
        assert store.snapshots.mounts("key")


def test_committing_a_snapshot(tmp_path):
    def before(store: Store) -> None:
        store.snapshots.prepare("key", "base")
        (store.snapshots.layer_paths("key")[0] / "file").write_text("x")

    def commit(store: Store) -> None:
        store.snapshots.commit("name", "key", ROOT)

    for store in crashes(tmp_path, before, commit):
        try:
            commit(store)
        except AlreadyExists:
            with pytest.raises(NotFound):
                store.snapshots.stat("key")
        assert (store.snapshots.layer_paths("name")[0] / "file").read_text() == "x"
        assert store.snapshots.stat("name").labels == ROOT


@pytest.mark.parametrize("method", ["freeze", "copy"])
def test_freezing_a_snapshot(tmp_path, method):
    def before(store: Store) -> None:
        store.snapshots.prepare("key", "base")
        (store.snapshots.layer_paths("key")[0] / "file").write_text("x")

    def freeze(store: Store) -> None:
        getattr(store.snapshots, method)("name", "key", ROOT)

    for store in crashes(tmp_path, before, freeze):
        with suppress(AlreadyExists):
            freeze(store)
        assert store.snapshots.stat("name").labels == ROOT
        assert store.snapshots.stat("key").parent == ("name" if method == "freeze" else "base")
        assert (store.snapshots.layer_paths("name")[0] / "file").read_text() == "x"
        assert store.snapshots.mounts("key")


def test_removing_a_snapshot(tmp_path):
    def before(store: Store) -> None:
        store.snapshots.prepare("key", "base")
        (store.snapshots.layer_paths("key")[0] / "file").write_text("x")

    def remove(store: Store) -> None:
        store.snapshots.remove("key")

    for store in crashes(tmp_path, before, remove):
        with suppress(NotFound):
            remove(store)
        assert [info.name for info in store.snapshots.walk()] == ["base"]
        store.snapshots.prepare("key", "base")


def test_unpacking_a_layer(tmp_path):
    def unpack(store: Store) -> None:
        with store.layers.stage("overlayfs", DIGEST, wait=False) as staging:
            layer = store.layers.find("overlayfs", DIGEST)
            if layer is None:
                (staging.path / "file").write_text("x")
                layer = staging.commit(diff_id=DIGEST, disk_bytes=1, inodes=2, opaque_root=False)
            store.snapshots.add_committed("top", "base", layer, ROOT)

    for store in crashes(tmp_path, nothing, unpack):
        unpack(store)
        assert [(path / "file").exists() for path in store.snapshots.layer_paths("top")] == [True, False]


def test_one_transaction_for_a_whole_image(tmp_path):
    def pull(store: Store) -> None:
        ingest = store.content.writer("ref", size=len(DATA))
        ingest.write(DATA[ingest.offset :])
        with store.layers.stage("overlayfs", DIGEST) as staging, store.database.write():
            (staging.path / "file").write_text("x")
            ingest.commit(digest=DIGEST)
            layer = staging.commit(diff_id=DIGEST, disk_bytes=1, inodes=2, opaque_root=False)
            store.snapshots.add_committed("top", "base", layer, ROOT)
            store.image("image", DIGEST)
        ingest.close()

    for store in crashes(tmp_path, nothing, pull):
        visible = {
            bool(list(store.snapshots.walk(kind="committed", parent="base"))),
            store.content.exists(DIGEST),
        }
        assert len(visible) == 1
        if visible == {False}:
            pull(store)
        assert store.content.read(DIGEST) == DATA


def test_collecting(tmp_path):
    def before(store: Store) -> None:
        store.put(DATA, {"containerd.io/gc.ref.content.x": store.put(b"below")})
        store.stack("chain", {"a": "1"}, {"b": "2"})
        store.layer({"c": "3"})
        store.leases.create("old", labels={"containerd.io/gc.expire": "2020-01-01T00:00:00Z"})
        with store.content.writer("ref") as ingest:
            ingest.write(DATA)
        (store.root / "blobs/sha256" / ("0" * 64)).write_bytes(b"x")
        (store.root / "snapshots/overlayfs/0123456789abcdef").mkdir()

    def collect(store: Store) -> None:
        store.gc(ingest_seconds=0)

    for store in crashes(tmp_path, before, collect):
        collect(store)
        store.check(clean=True)
        assert [info.digest for info in store.content.walk()] == [digest_of(KEPT)]
        assert [info.name for info in store.snapshots.walk()] == ["base"]
        assert store.leases.list() == []


def test_taking_events_in(tmp_path):
    lines = "".join(
        f'{{"at":"2026-01-01T00:00:00Z","namespace":"n","topic":"/tasks/exit","event":{{"container_id":"{number}"}}}}\n'
        for number in range(5)
    )

    def before(store: Store) -> None:
        path = spool.spool_path(store.root)
        path.parent.mkdir()
        path.write_text(lines)
        spool.take(store.root)  # by one who was killed then
        path.write_text(lines)

    def take_in(store: Store) -> None:
        spool.drain(store.database, store.config)

    for store in crashes(tmp_path, before, take_in):
        take_in(store)
        with store.database.read() as db:
            told = db.execute(
                "SELECT data ->> 'container_id' FROM events WHERE topic = '/tasks/exit' ORDER BY number"
            ).fetchall()
        assert "".join(row[0] for row in told) == "0123401234"
        assert list((store.root / "events").iterdir()) == []


def test_handing_over_from_one_lease_to_another(tmp_path):
    def before(store: Store) -> None:
        store.leases.create("old")
        store.leases.add("old", "content", store.put(DATA))
        store.put(b"unheld")

    def hand_over(store: Store) -> None:
        with suppress(AlreadyExists):
            store.leases.create("new")
        store.leases.add_all("new", [("content", DIGEST), ("snapshots/overlayfs", "base")])
        with suppress(NotFound):
            store.leases.delete("old", synchronous=True)

    for store in crashes(tmp_path, before, hand_over):
        store.gc(ingest_seconds=0)
        assert store.content.read(DIGEST) == DATA
        hand_over(store)
        assert [lease.id for lease in store.leases.list()] == ["new"]
        assert store.content.read(DIGEST) == DATA
        store.gc(ingest_seconds=0)
        assert not store.content.exists(digest_of(b"unheld"))


def test_making_a_new_store(tmp_path):
    roots = (tmp_path / str(number) / "root" for number in count(1))
    root = tmp_path

    def scene() -> Callable[[], None]:
        nonlocal root
        root = next(roots)
        return lambda: Store(root).close()

    for _ in kills(scene, points=POINTS):
        store = Store(root)
        store.put(DATA)
        store.check(clean=True)
        store.close()


def test_migrating_a_store(tmp_path, monkeypatch):
    roots = (tmp_path / str(number) / "root" for number in count(1))
    root = tmp_path

    def scene() -> Callable[[], None]:
        nonlocal root
        root = next(roots)
        root.parent.mkdir()
        with monkeypatch.context() as earlier:
            earlier.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:1])
            earlier.setattr(schema, "VERSION", 1)
            old = Store(root)
            old.put(DATA)
            old.close()
        return lambda: Store(root).close()

    for _ in kills(scene, points=POINTS):
        store = Store(root)
        assert store.content.read(DIGEST) == DATA
        store.put(KEPT)
        with store.database.read() as db:
            assert db.execute("SELECT topic FROM events").fetchall() == [("/content/create",)]
        store.check(clean=True, events=False)  # those of version 1 were not recorded
        store.close()
