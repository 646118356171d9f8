"""Durability without waiting: what another boot left without the mark of a sync is verified before it is used.

Another boot is made by changing the recorded one; what a power cut does to files is done by hand.
"""

from __future__ import annotations

import errno
import os
import shutil

import pytest

from lamella import durability
from lamella.digest import digest_of
from lamella.durability import Unverified
from lamella.errors import DataLoss, FailedPrecondition, NotFound, Unavailable
from lamella.metadata.boot import boot_id
from lamella.registry.server import RegistryServer
from layers import Built, file, folder, tar

pytestmark = [pytest.mark.privileged, pytest.mark.rootless]

FILES = {"etc": None, "etc/name": b"value\n", "upper": b"u" * 5000}


@pytest.fixture
def server():
    with RegistryServer() as running:
        yield running


@pytest.fixture
def reference(server):
    return Built(
        tar(folder("etc"), file("etc/name", FILES["etc/name"])), tar(file("upper", FILES["upper"]))
    ).push(server)


def restart(client):
    """Make everything that was recorded look like what an earlier boot recorded."""
    with client.database.write() as db:
        db.execute("UPDATE blobs SET boot_id = 'an earlier one'")
        db.execute("UPDATE layers SET boot_id = 'an earlier one'")


def marks(client, table):
    with client.database.read() as db:
        return db.execute(f"SELECT boot_id, synced FROM {table}").fetchall()


def blob_file(client, digest):
    return client.config.root / "blobs" / digest.replace(":", "/")


def blob_gets(server):
    return [r.path for r in server.requests if "/blobs/" in r.path and r.method == "GET"]


def seen(client, image):
    """Give the files of an image, as its layers have them."""
    found = {}
    for layer in reversed(client.snapshots.layer_paths(image.chain_id)):
        for path in layer.rglob("*"):
            found[str(path.relative_to(layer))] = path.read_bytes() if path.is_file() else None
    return found


def test_a_pull_with_sync_marks_what_it_brought_and_the_next_boot_believes_it(client, reference, server):
    image = client.images.pull(reference, sync=True)
    assert set(marks(client, "blobs")) == set(marks(client, "layers")) == {(boot_id(), 1)}
    restart(client)
    paths = client.snapshots.layer_paths(image.chain_id)
    before = len(server.requests)
    client.images.pull(reference)
    assert len(server.requests) == before + 1
    assert client.snapshots.layer_paths(image.chain_id) == paths


def test_a_durable_client_syncs_every_pull_unless_told_otherwise(tmp_path, reference):
    import lamella

    with lamella.Client(tmp_path / "root", tmp_path / "state", durable=True) as client:
        client.images.pull(reference, sync=False)
        assert {synced for _, synced in marks(client, "blobs")} == {0}
        client.images.pull(reference)
        assert {synced for _, synced in marks(client, "blobs")} == {1}


def test_what_is_written_while_a_sync_runs_is_not_marked(store, monkeypatch):
    store.put(b"before")
    real = durability.sync_file_systems

    def meanwhile(root):
        real(root)
        store.put(b"after")
        store.content.delete(digest_of(b"before"))
        store.put(b"before")  # the same row again, with a file that the sync did not see

    monkeypatch.setattr(durability, "sync_file_systems", meanwhile)
    durability.sync(store.database, store.config)
    assert {synced for _, synced in marks(store, "blobs")} == {0}
    monkeypatch.undo()
    assert durability.sync(store.database, store.config) == 2
    assert durability.sync(store.database, store.config) == 0


def test_an_active_snapshot_is_not_marked_and_a_committed_one_is(store):
    store.snapshots.prepare("active")
    assert durability.sync(store.database, store.config) == 0
    store.snapshots.commit("committed", "active")
    assert durability.sync(store.database, store.config) == 1


def test_old_rows_are_synced_by_gc_and_by_a_pull_that_writes(client, reference, server):
    client.images.pull(reference)
    assert not durability.sync_if_due(client.database, client.config)

    def age():
        with client.database.write() as db:
            db.execute("UPDATE blobs SET synced = 0, created_at = '2001-01-01T00:00:00.000000Z'")

    age()
    client.gc()
    assert {synced for _, synced in marks(client, "blobs")} == {1}
    age()
    other = Built(tar(file("other"))).push(server, "other")
    client.images.pull(other)
    assert sorted(synced for _, synced in marks(client, "blobs")) == [0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize("read", ["exists", "read", "open", "path"])
def test_an_unverified_blob_that_is_whole_is_hashed_once_and_believed(store, read, monkeypatch):
    digest = store.put(b"data")
    restart(store)
    found = getattr(store.content, read)(digest)
    assert found
    if read == "open":
        found.close()
    assert marks(store, "blobs") == [(boot_id(), 1)]
    monkeypatch.setattr("lamella.content.is_whole", None)  # not called again
    assert store.content.read(digest) == b"data"


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: os.truncate(path, 2),
        lambda path: path.write_bytes(bytes(4)),
        lambda path: path.unlink(),
    ],
    ids=["empty", "cut", "zeroed", "gone"],
)
def test_an_unverified_blob_that_is_damaged_counts_as_absent_until_it_is_written_again(store, damage):
    digest = store.put(b"data", {"label": "kept"})
    restart(store)
    blob_file(store, digest).chmod(0o600)  # for who is not root
    damage(blob_file(store, digest))
    assert not store.content.exists(digest)
    for read in (store.content.read, store.content.open):
        with pytest.raises(DataLoss, match=digest):
            read(digest).close()
    store.put(b"data")
    assert store.content.read(digest) == b"data"
    assert marks(store, "blobs") == [(boot_id(), 0)]
    assert store.content.info(digest).labels == {"label": "kept"}


def test_a_damaged_blob_of_this_boot_is_not_hashed_at_every_read(store, monkeypatch):
    digest = store.put(b"data")
    monkeypatch.setattr("lamella.content.is_whole", None)
    assert store.content.read(digest) == b"data"
    assert store.content.exists(digest)


def test_unverified_layers_are_not_used_and_a_pull_unpacks_them_from_the_blobs(client, reference, server):
    image = client.images.pull(reference)
    client.snapshots.prepare("before", image.chain_id)
    restart(client)
    for path in client.config.root.glob("snapshots/overlayfs/*/fs/upper"):
        path.write_bytes(b"")  # what a power cut leaves
    snapshots = client.snapshots
    for use in (
        lambda: snapshots.prepare("work", image.chain_id),
        lambda: snapshots.view("view", image.chain_id),
        lambda: snapshots.mounts("before"),
        lambda: snapshots.layer_paths(image.chain_id),
    ):
        with pytest.raises(Unverified, match="never synced") as caught:
            use()
        assert isinstance(caught.value, FailedPrecondition)
        assert "pull" in caught.value.hint
    with pytest.raises(NotFound):
        snapshots.stat("work")
    fetched = len(blob_gets(server))
    client.images.pull(reference)
    assert len(blob_gets(server)) == fetched
    assert seen(client, image) == FILES
    assert len(snapshots.mounts("before")) == 1
    assert client.fsck().findings == []


def test_after_a_power_cut_a_pull_fetches_the_damaged_blob_alone(client, reference, server):
    image = client.images.pull(reference)
    restart(client)
    damaged = image.layers[1].digest
    path = blob_file(client, damaged)
    path.chmod(0o600)
    path.write_bytes(bytes(path.stat().st_size))
    fetched = len(blob_gets(server))
    client.images.pull(reference)
    assert [path.rpartition("/")[2] for path in blob_gets(server)[fetched:]] == [damaged]
    assert seen(client, image) == FILES
    assert client.fsck().findings == []


def test_creating_and_starting_a_container_unpacks_unverified_layers(client, small_image):
    image = client.images.pull(small_image)
    box = client.containers.create(image, ["sh", "-c", "echo alive"], name="before")

    def power_cut():
        restart(client)
        for path in client.config.root.glob("snapshots/overlayfs/*/fs/**/*"):
            if path.is_file() and not path.is_symlink():
                path.write_bytes(b"")

    power_cut()
    box.start()
    assert box.wait(timeout=60) == 0
    power_cut()
    result = client.containers.run(image, ["sh", "-c", "echo alive"], remove=True, timeout=20)
    assert result.stdout == b"alive\n"
    box.remove()


def test_fsck_unpacks_unverified_layers_and_names_what_it_cannot_check(client, reference):
    image = client.images.pull(reference)
    client.snapshots.prepare("work", image.chain_id)
    client.snapshots.commit("mine", "work")
    restart(client)
    assert sorted(f.kind for f in client.fsck().findings) == [
        "unverifiable",
        "unverified-layer",
        "unverified-layer",
    ]
    assert client.fsck(repair=True).clean
    assert client.fsck().findings == []
    assert seen(client, image) == FILES
    client.snapshots.prepare("next", "mine")


def test_unpacking_without_the_blobs_says_what_to_pull(client, reference):
    image = client.images.pull(reference)
    restart(client)
    shutil.rmtree(client.config.root / "blobs")
    with pytest.raises((NotFound, DataLoss)) as caught:
        client.images.unpack(reference)
    assert "ull" in caught.value.hint
    client.images.pull(reference)
    assert seen(client, image) == FILES


@pytest.mark.parametrize("unpack", [True, False])
@pytest.mark.parametrize("whole", [0, 20, 400])
def test_a_pull_that_finds_holes_in_what_it_resumes_fetches_the_layer_from_its_beginning(
    client, server, unpack, whole
):
    built = Built(tar(file("random", os.urandom(3000))))
    reference = built.push(server)
    layer = built.descriptors[0]
    with client.content.writer(
        f"layer-{layer.digest}", size=layer.size, digest=layer.digest, shared=True
    ) as ingest:
        ingest.write(built.layers[0][:whole] + bytes(1000 - whole))
    image = client.images.pull(reference, unpack=unpack)
    gets = [r for r in server.requests if r.path.endswith(layer.digest) and r.method == "GET"]
    assert [request.range for request in gets] == ["bytes=1000-", None]
    assert client.content.read(layer.digest) == built.layers[0]
    if unpack:
        assert set(seen(client, image)) == {"random"}
    assert client.fsck().findings == []


@pytest.mark.parametrize("record", [b"", b'{"name', bytes(200)])
def test_an_ingest_whose_record_a_power_cut_emptied_starts_over(client, server, record):
    built = Built(tar(file("random", os.urandom(3000))))
    layer = built.descriptors[0]
    with client.content.writer(
        f"layer-{layer.digest}", size=layer.size, digest=layer.digest, shared=True
    ) as ingest:
        ingest.write(bytes(1000))
    (path,) = client.config.root.glob("ingest/*/ref.json")
    path.write_bytes(record)
    assert client.content.ingests() == []
    client.images.pull(built.push(server))
    assert client.content.read(layer.digest) == built.layers[0]
    assert client.fsck().findings == []


def test_what_was_synced_goes_from_the_disk_after_its_row_has(store, monkeypatch):
    """Else a power cut could bring back a row that says that what it names is complete."""
    store.put(b"data")
    store.snapshots.prepare("work")
    store.snapshots.commit("mine", "work")
    store.layer({"a": "1"})
    durability.sync(store.database, store.config)
    flushed = []
    monkeypatch.setattr(
        "lamella.metadata.Database.flush",
        lambda self: flushed.append((len(store.blob_files()), len(store.layer_folders()), len(rows()))),
    )

    def rows():
        return marks(store, "blobs") + marks(store, "layers")

    store.snapshots.remove("mine")
    assert flushed == [(1, 2, 2)]
    flushed.clear()
    store.content.delete(digest_of(b"data"))
    assert flushed == [(1, 1, 1)]
    flushed.clear()
    store.gc()
    assert flushed[0] == (0, 1, 0)
    assert store.layer_folders() == store.blob_files() == set()


def test_fsck_gives_active_snapshots_that_a_power_cut_took_an_empty_folder(store, client):
    base = store.stack("base", {"a": "1"})
    for key, parent in (("active", base), ("alone", ""), ("below", base)):
        store.snapshots.prepare(key, parent)
    store.snapshots.commit("mine", "below")
    store.snapshots.prepare("on-mine", "mine")
    store.snapshots.view("view")
    lost = {store.snapshots.layer_paths(key)[0] for key in ("active", "alone", "on-mine", "view", "mine")}
    for path in lost:
        shutil.rmtree(path.parent)
    left = [finding for finding in client.fsck(repair=True).findings if not finding.mended]
    assert {finding.kind for finding in left} == {"missing-layer"}
    assert "default/mine" in left[0].detail + left[1].detail
    for key in ("active", "alone", "view"):
        (path, *_) = store.snapshots.layer_paths(key)
        assert path not in lost and list(path.iterdir()) == []
        assert path.stat().st_mode & 0o777 == 0o755
    assert (store.snapshots.layer_paths("active")[0].parent / "work").is_dir()
    store.snapshots.remove("on-mine")
    assert client.fsck(repair=True).clean
    with pytest.raises(NotFound):
        store.snapshots.stat("mine")
    assert client.fsck().findings == []
    assert len(store.layer_folders()) == 4


def test_what_a_failed_sync_was_for_is_unverified(client, reference, monkeypatch):
    """The kernel tells of a failed write once: a second sync would succeed, and the bytes would not be there."""
    image = client.images.pull(reference)

    def fail(root):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(durability, "sync_file_systems", fail)
    with pytest.raises(Unavailable, match="sync the store") as caught:
        client.sync()
    assert "kernel's log" in caught.value.hint
    monkeypatch.undo()
    assert client.sync() == 0
    assert {synced for _, synced in marks(client, "blobs") + marks(client, "layers")} == {0}
    with pytest.raises(Unverified):
        client.snapshots.prepare("work", image.chain_id)
    client.images.pull(reference, sync=True)
    assert {synced for _, synced in marks(client, "blobs") + marks(client, "layers")} == {1}
    client.snapshots.prepare("work", image.chain_id)


@pytest.mark.parametrize("record", [b"", b'{"exit', bytes(50)], ids=["empty", "cut", "zeroed"])
def test_a_container_whose_exit_record_a_power_cut_spoiled_can_be_started_and_removed(
    client, small_image, record
):
    image = client.images.pull(small_image)
    box = client.containers.create(image, ["sh", "-c", "exit 7"], name="box")
    box.start()
    assert box.wait(timeout=60) == 7
    box.task._await_monitor()
    box.task.folder.joinpath("exit.json").write_bytes(record)
    assert box.status in ("created", "unknown")
    assert [each.name for each in client.containers.list(all=True)] == ["box"]
    box.start()
    assert box.wait(timeout=60) == 7
    box.task._await_monitor()
    box.task.folder.joinpath("exit.json").write_bytes(record)
    box.remove()
