"""Disk usage: what an image has alone and shared, what was written on top, what gc would free."""

from __future__ import annotations

import pytest

import lamella
from lamella import _core
from lamella.du import DiskUsage, ImageUsage
from stores import Store

LAYER = 4096  # what Store.layer records for each layer


def image(store: Store, name: str, layers: list[bytes], chain: str) -> None:
    """Record an image as a pull does."""
    config = store.put(f"config of {name}".encode(), {"containerd.io/gc.ref.snapshot.overlayfs": chain})
    references = {
        f"containerd.io/gc.ref.content.l.{number}": store.put(data) for number, data in enumerate(layers)
    }
    references["containerd.io/gc.ref.content.config"] = config
    store.image(name, store.put(f"manifest of {name}".encode(), references))


@pytest.fixture
def two(store: Store) -> Store:
    """Two images with one layer in common."""
    base = store.layer({"a": "1"})
    for name in ("one", "two"):
        store.snapshots.add_committed(f"{name}-0", "", base)
        store.snapshots.add_committed(f"{name}-1", f"{name}-0", store.layer({name: "2"}))
        image(store, name, [b"base" * 100, name.encode() * 50], f"{name}-1")
    return store


def du(store: Store) -> DiskUsage:
    with lamella.Client(
        root=store.root, state=store.root.parent / "state", namespace=store.config.namespace
    ) as client:
        return client.du()


def documents(name: str) -> int:
    return len(f"config of {name}") + len(f"manifest of {name}")


def test_what_two_images_have_in_common_is_shared_and_the_rest_alone(two):
    usage = du(two)
    assert usage.images == [
        ImageUsage(
            name=name,
            compressed_alone=150 + documents(name),
            compressed_shared=400,
            unpacked_alone=LAYER,
            unpacked_shared=LAYER,
        )
        for name in ("one", "two")
    ]
    assert usage.store.blobs == 400 + 2 * 150 + documents("one") + documents("two")
    assert usage.store.layers == 3 * LAYER
    assert usage.reclaimable == 0


@pytest.mark.parametrize("name", ["one", "two"])
def test_alone_is_what_removing_the_image_and_gc_free(two, name):
    (cost,) = (each for each in du(two).images if each.name == name)
    two.remove_image(name)
    assert du(two).reclaimable == cost.compressed_alone + cost.unpacked_alone
    assert two.gc().bytes_freed == cost.compressed_alone + cost.unpacked_alone
    (left,) = du(two).images
    assert (left.compressed_shared, left.unpacked_shared) == (0, 0)


def test_two_names_of_one_image_share_all_of_it(two):
    with two.database.read() as db:
        ((digest,),) = db.execute("SELECT digest FROM images WHERE name = 'one'").fetchall()
    two.image("again", digest)
    costs = {each.name: each for each in du(two).images}
    for name in ("one", "again"):
        assert (costs[name].compressed_alone, costs[name].unpacked_alone) == (0, 0)
        assert costs[name].compressed_shared == 550 + documents("one")


def test_an_image_of_another_namespace_shares_too_and_is_not_listed(two, open_store):
    other = open_store("other")
    other.content.adopt(two.put(b"base" * 100))
    image(other, "three", [b"base" * 100], "none")
    two.remove_image("two")
    usage = du(two)
    assert [each.name for each in usage.images] == ["one"]
    assert usage.images[0].compressed_shared == 400
    assert [each.name for each in du(other).images] == ["three"]


@pytest.mark.parametrize("holder", ["active", "container", "root", "lease"])
def test_layers_that_something_else_stands_on_are_not_the_images_alone(two, holder):
    if holder == "root":
        two.snapshots.view("mine", "one-1", {"containerd.io/gc.root": "x"})
    elif holder == "lease":
        lease = two.leases.create("mine")
        two.leases.add(lease.id, "snapshots/overlayfs", "one-1")
    else:
        two.snapshots.prepare("mine", "one-1")
        if holder == "container":
            two.container("box", "mine")
    one = du(two).images[0]
    assert (one.unpacked_alone, one.unpacked_shared) == (0, 2 * LAYER)
    assert one.compressed_alone == 150 + documents("one")


def test_what_was_written_counts_for_its_snapshot_or_container(two):
    for key in ("work", "box"):
        two.snapshots.prepare(key, "one-1")
        (two.snapshots.layer_paths(key)[0] / "file").write_bytes(b"x" * 100_000)
    two.container("box", "box")
    log = two.root / "containers" / "default" / "box" / "log.jsonl"
    log.parent.mkdir(parents=True)
    log.write_bytes(b"y" * 10_000)
    usage = du(two)
    (work,), (box,) = usage.snapshots, usage.containers
    assert (work.name, work.kind, work.size) == ("work", "active", two.snapshots.usage("work").size)
    assert (box.name, box.writable) == ("box", two.snapshots.usage("box").size)
    assert work.size >= 100_000
    assert box.logs == _core.disk_usage(str(log.parent))[0] >= 10_000
    assert usage.store.snapshots == work.size + box.writable
    assert usage.store.logs >= box.logs


def test_a_committed_snapshot_that_somebody_made_is_listed_and_those_of_images_are_not(two):
    two.snapshots.prepare("work", "one-1")
    (two.snapshots.layer_paths("work")[0] / "file").write_bytes(b"x" * 50_000)
    two.snapshots.commit("made", "work", {"containerd.io/gc.root": "x"})
    usage = du(two)
    assert [(each.name, each.kind, each.size) for each in usage.snapshots] == [
        ("made", "committed", two.snapshots.usage("made").size)
    ]


def test_unfinished_downloads_and_metadata_count(two):
    with two.content.writer("half", size=200_000) as ingest:
        ingest.write(b"z" * 100_000)
    usage = du(two)
    assert usage.store.ingests >= 100_000
    assert usage.store.metadata > 0
    assert usage.store.total == sum(getattr(usage.store, name) for name in usage.store.__struct_fields__)


def test_an_empty_store_has_an_answer(store):
    usage = du(store)
    assert (usage.images, usage.snapshots, usage.containers, usage.reclaimable) == ([], [], [], 0)
    assert usage.store.blobs == usage.store.layers == 0


def test_measuring_changes_nothing(two):
    before = (two.blob_files(), two.layer_folders())
    two.remove_image("one")
    du(two)
    assert (two.blob_files(), two.layer_folders()) == before


def test_a_layer_that_an_image_has_twice_counts_once(store):
    empty = store.layer({})
    store.snapshots.add_committed("twice-0", "", empty)
    store.snapshots.add_committed("twice-1", "twice-0", empty)
    image(store, "twice", [b"same", b"same"], "twice-1")
    (usage,) = du(store).images
    assert (usage.unpacked_alone, usage.unpacked_shared) == (LAYER, 0)
    assert usage.compressed_alone == len(b"same") + documents("twice")
