"""Databases of earlier versions become the present one: with all that is in them, together with others, or not at all."""

from __future__ import annotations

import hashlib
import os
import traceback
from pathlib import Path

import apsw
import pytest

from lamella import durability
from lamella.config import Config
from lamella.errors import FailedPrecondition
from lamella.metadata import Database, schema
from lamella.metadata.boot import boot_id
from stores import Store

VERSION_1_SHA256 = "1e7f203fe96519b7bdf3c0390a097472d5dc7d17e668509aa0b6bfc9c1c765dd"
AT = "2026-01-02T03:04:05.000006Z"
DIGEST = "sha256:" + "a" * 64


def make_version_1(config: Config) -> dict[str, list[tuple[object, ...]]]:
    """Make a store as version 1 left it, something in each table; return its rows by table."""
    config.root.mkdir(mode=0o700, parents=True)
    db = apsw.Connection(str(config.root / "metadata.db"))
    db.execute("PRAGMA journal_mode = WAL; PRAGMA foreign_keys = ON")
    db.execute(schema.MIGRATIONS[0])
    db.execute("PRAGMA user_version = 1")
    for number in range(3):
        values = {
            "n": number,
            "at": AT,
            "digest": DIGEST[:-1] + str(number),
            "boot": boot_id(),
            "labels": f'{{"containerd.io/gc.ref.content.x":"{DIGEST}","a":"{number}"}}',
        }
        db.execute(
            """
            INSERT INTO blobs VALUES (:digest, :n, :at, :boot, 0);
            INSERT INTO content (namespace, digest, labels, created_at, updated_at)
                VALUES ('one', :digest, :labels, :at, :at);
            INSERT INTO images (namespace, name, media_type, digest, size, labels, created_at, updated_at)
                VALUES ('one', 'image-' || :n, 'type', :digest, :n, :labels, :at, :at);
            INSERT INTO layers (id, snapshotter, diff_id, created_at, boot_id)
                VALUES ('layer-' || :n, 'overlayfs', :digest, :at, :boot);
            INSERT INTO snapshots (namespace, snapshotter, name, kind, layer, labels, created_at, updated_at)
                VALUES ('two', 'overlayfs', 'snapshot-' || :n, 'committed', 'layer-' || :n, :labels, :at, :at);
            INSERT INTO containers (namespace, id, name, labels, created_at, updated_at)
                VALUES ('two', 'id-' || :n, 'name-' || :n, :labels, :at, :at);
            INSERT INTO leases (namespace, id, labels, created_at) VALUES ('two', 'lease-' || :n, :labels, :at);
            INSERT INTO lease_resources VALUES (:n + 1, 'content', :digest);
            """,
            values,
        )
    found = rows(db)
    db.close()
    return found


def rows(db: apsw.Connection) -> dict[str, list[tuple[object, ...]]]:
    tables = db.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name").fetchall()
    return {name: db.execute(f"SELECT * FROM {name} ").fetchall() for (name,) in tables}


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(root=tmp_path / "root", state=tmp_path / "state")


def test_version_1_is_what_was_released():
    assert hashlib.sha256(schema.MIGRATIONS[0].encode()).hexdigest() == VERSION_1_SHA256


def test_all_that_a_version_1_store_held_is_there(config):
    before = make_version_1(config)
    assert all(before.values())
    Database(config).close()
    db = apsw.Connection(str(config.root / "metadata.db"))
    after = rows(db)
    assert {name: after[name] for name in before} == before
    assert after["events"] == []
    assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    db.close()


def test_what_happens_after_the_migration_is_an_event(config):
    make_version_1(config)
    store = Store(config.root, "two")
    store.snapshots.update("snapshot-1", {"b": "c"})
    store.snapshots.prepare("key")
    with store.database.read() as db:
        topics = [row[0] for row in db.execute("SELECT topic FROM events ORDER BY number")]
    assert topics == ["/snapshot/update", "/snapshot/prepare"]
    store.close()


def test_a_process_of_version_1_that_has_the_store_open_causes_events_too(config, monkeypatch):
    make_version_1(config)
    with monkeypatch.context() as earlier:
        earlier.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:1])
        earlier.setattr(schema, "VERSION", 1)
        old = Store(config.root, "two")
    new = Store(config.root, "two")
    old.snapshots.prepare("key")
    with new.database.read() as db:
        assert db.execute("SELECT topic FROM events").fetchall() == [("/snapshot/prepare",)]
    old.close()
    new.close()


def test_version_1_refuses_the_present_store(config, monkeypatch):
    Database(config).close()
    monkeypatch.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:1])
    monkeypatch.setattr(schema, "VERSION", 1)
    with pytest.raises(FailedPrecondition, match=f"version {schema.VERSION + 1}, this lamella knows 1"):
        Database(config)


def test_many_may_open_a_version_1_store_at_once(config):
    make_version_1(config)
    children = []
    for number in range(8):
        pid = os.fork()
        if pid == 0:
            try:
                store = Store(config.root, "two")
                store.snapshots.prepare(f"key-{number}")
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        children.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0] * 8
    store = Store(config.root, "two")
    with store.database.read() as db:
        numbers = [row[0] for row in db.execute("SELECT number FROM events ORDER BY number")]
    assert numbers == list(range(1, 9))
    store.close()


@pytest.mark.parametrize(
    ("query", "index"),
    [(durability._UNSYNCED_BLOBS, "blobs_unsynced"), (durability._UNSYNCED_LAYERS, "layers_unsynced")],
)
def test_looking_for_what_is_not_synced_uses_an_index(config, query, index):
    with Database(config) as database, database.read() as db:
        plan = db.execute(f"EXPLAIN QUERY PLAN {query}", {"boot": "x", "before": "y"}).fetchall()
    assert [row[3] for row in plan] == [plan[0][3]]
    assert f"INDEX {index} (boot_id=? AND created_at<?)" in plan[0][3]
