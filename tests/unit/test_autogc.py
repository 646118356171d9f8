"""Garbage collection by itself: when, how often, and what it says afterwards."""

from __future__ import annotations

import os
import re
import threading
import time

import msgspec
import pytest

import lamella
from lamella import autogc
from lamella.errors import InvalidArgument, PermissionDenied
from lamella.gc import GcReport
from lamella.locks import FileLock
from lamella.metadata import Database, timestamp
from stores import Store


@pytest.fixture
def make_client(store, monkeypatch):
    monkeypatch.delenv("LAMELLA_GC", raising=False)
    opened = []

    def make(**options):
        opened.append(lamella.Client(store.root, store.root.parent / "state", **options))
        return opened[-1]

    yield make
    for client in opened:
        client.close()


def image(store: Store, name: str) -> str:
    """Record an image with a layer; give its name."""
    layer = store.put(os.urandom(1000))
    name = f"docker.io/library/{name}:latest"
    store.image(name, store.put(name.encode(), {"containerd.io/gc.ref.content.l.0": layer}))
    return name


def blobs(store: Store) -> int:
    return len(store.blob_files())


def long_ago(store: Store, *, total: float = 0.0, seconds: float = -3600.0) -> None:
    """Have the last collection be another."""
    report = GcReport(dry_run=False)
    path = store.root / "gc.json"
    report = msgspec.json.decode(path.read_bytes(), type=GcReport) if path.exists() else report
    assert report.times is not None
    report.times.finished_at = timestamp(seconds)
    report.times.sweep = total
    path.write_bytes(msgspec.json.encode(report))


def test_nothing_is_collected_by_itself_unless_somebody_wants_that(store, make_client):
    client = make_client()
    client.images.remove(image(store, "one"))
    assert blobs(store) == 2
    assert client.last_gc() is None


def test_removing_an_image_collects_what_it_alone_had(store, make_client):
    client = make_client(auto_gc=True)
    kept = image(store, "kept")
    client.images.remove(image(store, "one"))
    assert blobs(store) == 2
    assert client.images.get(kept)


@pytest.mark.parametrize(("value", "left"), [("auto", 0), ("manual", 2), ("", 2)])
def test_the_environment_says_it_for_all(store, make_client, monkeypatch, value, left):
    monkeypatch.setenv("LAMELLA_GC", value)
    make_client().images.remove(image(store, "one"))
    assert blobs(store) == left


def test_an_argument_wins_over_the_environment(store, make_client, monkeypatch):
    monkeypatch.setenv("LAMELLA_GC", "auto")
    make_client(auto_gc=False).images.remove(image(store, "one"))
    assert blobs(store) == 2


def test_another_value_in_the_environment_is_refused(make_client, monkeypatch):
    monkeypatch.setenv("LAMELLA_GC", "always")
    with pytest.raises(InvalidArgument, match="always"):
        make_client()


def test_it_takes_a_small_share_of_the_time(store, make_client):
    client = make_client(auto_gc=True)
    client.gc()
    long_ago(store, total=60.0, seconds=-60 / autogc.SHARE + 30)
    client.images.remove(image(store, "one"))
    assert blobs(store) == 2
    long_ago(store, total=60.0, seconds=-60 / autogc.SHARE - 1)
    client.images.remove(image(store, "two"))
    assert blobs(store) == 0


def test_a_clock_that_was_set_back_does_not_stop_it(store, make_client):
    client = make_client(auto_gc=True)
    client.gc()
    long_ago(store, seconds=+1e6)
    client.images.remove(image(store, "one"))
    assert blobs(store) == 0


def test_it_does_not_wait_for_another_collection_and_says_nothing(store, make_client, caplog):
    client = make_client(auto_gc=True)
    with FileLock(store.root / "locks" / "gc", what="gc", transient=True):
        client.images.remove(image(store, "one"))
    assert blobs(store) == 2
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_a_failure_is_logged_and_the_call_has_done_its_work(store, make_client, monkeypatch, caplog):
    client = make_client(auto_gc=True)

    def fail(**_):
        raise PermissionDenied("not today")

    monkeypatch.setattr(client, "gc", fail)
    name = image(store, "one")
    client.images.remove(name)
    assert "not today" in caplog.text
    assert client.images.list() == []


def test_inside_a_transaction_nothing_is_collected(store, make_client):
    client = make_client(auto_gc=True)
    name = image(store, "one")
    with client.database.write():
        client.images.remove(name)
    assert blobs(store) == 2


def test_removing_synchronously_collects_at_once(store, make_client):
    client = make_client()
    client.images.remove(image(store, "one"), sync=True)
    assert blobs(store) == 0


def test_the_report_says_what_the_collection_cost_and_the_store_keeps_it(store, make_client):
    client = make_client()
    client.images.remove(image(store, "one"))
    report = client.gc()
    times = report.times
    assert times.mark > 0
    assert times.sweep > 0
    assert 0 < times.longest_transaction <= times.total
    assert 0 <= times.lock_wait <= times.total
    assert times.started_at <= times.finished_at <= timestamp()
    assert report.names
    kept = client.last_gc()
    assert kept == msgspec.structs.replace(report, names=[])
    assert re.fullmatch(r"removed 2 blobs \(1\.03 kB\) in \d+\.\d\d s", str(kept))
    assert client.gc(dry_run=True).times is None
    assert client.last_gc() == kept


def test_a_record_that_cannot_be_read_is_no_record(store, make_client):
    client = make_client(auto_gc=True)
    (store.root / "gc.json").write_bytes(b"{")
    assert client.last_gc() is None
    client.images.remove(image(store, "one"))
    assert blobs(store) == 0


def test_the_time_that_was_waited_for_others_is_counted(store, make_client, open_store, monkeypatch):
    client, other = make_client(), open_store()
    client.images.remove(image(store, "one"))
    locked, waits = threading.Event(), threading.Event()
    wait = Database._wait
    monkeypatch.setattr(Database, "_wait", lambda self, attempts: waits.set() or wait(self, attempts))

    def hold():
        with other.database.write():
            locked.set()
            assert waits.wait(60)
            time.sleep(0.5)

    thread = threading.Thread(target=hold)
    thread.start()
    locked.wait()
    try:
        times = client.gc().times
    finally:
        waits.set()
        thread.join()
    assert times.lock_wait > 0.4
    assert times.longest_transaction + times.lock_wait <= times.total  # it is no part of a transaction
