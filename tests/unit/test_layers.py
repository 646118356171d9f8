"""Unpacked layers: one who unpacks, others who wait or find."""

from __future__ import annotations

import shutil
import threading
import time

import pytest

from lamella.digest import digest_of
from lamella.errors import FailedPrecondition, InvalidArgument, Unavailable
from lamella.locks import FolderLock
from lamella.snapshots.folders import LayerFolders

DIFF = digest_of(b"diff")
CHAIN, OTHER_CHAIN = digest_of(b"chain"), digest_of(b"other chain")
FACTS = {"disk_bytes": 4096, "inodes": 3, "opaque_root": True}


def test_a_layer_that_was_committed_is_found(store):
    assert store.layers.find("overlayfs", DIFF) is None
    with store.layers.stage("overlayfs", DIFF) as staging:
        (staging.path / "file").write_text("x")
        layer = staging.commit(diff_id=DIFF, **FACTS)
    assert store.layers.find("overlayfs", DIFF) == layer == store.layers.find("overlayfs", DIFF, CHAIN)
    assert (layer.diff_id, layer.chain_id, layer.disk_bytes, layer.inodes, layer.opaque_root) == (
        DIFF,
        None,
        4096,
        3,
        True,
    )
    assert (layer.path / "file").read_text() == "x"
    assert layer.path.stat().st_mode & 0o7777 == 0o755
    assert store.layers.find("native", DIFF) is None


def test_a_layer_bound_to_a_chain_is_found_for_that_chain_alone(store):
    with store.layers.stage("overlayfs", DIFF) as staging:
        layer = staging.commit(diff_id=DIFF, chain_id=CHAIN, **FACTS)
    assert store.layers.find("overlayfs", DIFF, CHAIN) == layer
    assert store.layers.find("overlayfs", DIFF) is None
    assert store.layers.find("overlayfs", DIFF, OTHER_CHAIN) is None
    with store.layers.stage("overlayfs", DIFF) as staging:
        other = staging.commit(diff_id=DIFF, chain_id=OTHER_CHAIN, **FACTS)
    assert store.layers.find("overlayfs", DIFF, OTHER_CHAIN) == other != layer


def test_leaving_without_commit_removes_the_folder(store):
    with pytest.raises(ZeroDivisionError), store.layers.stage("overlayfs", DIFF) as staging:
        (staging.path / "file").write_text("x")
        raise ZeroDivisionError
    assert store.layer_folders() == set()
    assert list(store.root.glob("locks/*")) == []
    with pytest.raises(FailedPrecondition, match="closed"):
        staging.path  # noqa: B018
    staging.close()


def test_a_folder_is_made_only_when_it_is_asked_for(store):
    with store.layers.stage("overlayfs", DIFF):
        assert store.layer_folders() == set()


def test_only_one_unpacks_a_layer(store):
    with store.layers.stage("overlayfs", DIFF):
        with pytest.raises(Unavailable, match=DIFF):
            store.layers.stage("overlayfs", DIFF, wait=False)
        with pytest.raises(ZeroDivisionError):
            store.layers.stage("overlayfs", DIFF, waiting=lambda: 1 / 0)
        store.layers.stage("overlayfs", CHAIN, wait=False).close()
        store.layers.stage("native", DIFF, wait=False).close()
    store.layers.stage("overlayfs", DIFF, wait=False).close()


def test_who_waited_finds_what_the_first_one_committed(store):
    first = store.layers.stage("overlayfs", DIFF)
    found = []

    def second() -> None:
        with store.layers.stage("overlayfs", DIFF):
            found.append(store.layers.find("overlayfs", DIFF))

    thread = threading.Thread(target=second)
    thread.start()
    time.sleep(0.02)
    assert found == []
    layer = first.commit(diff_id=DIFF, **FACTS)
    thread.join()
    assert found == [layer]
    first.close()


def test_an_unlocked_staging_keeps_its_folder_and_the_first_commit_wins(store):
    with store.layers.stage("overlayfs", DIFF) as first:
        first.unlock()
        with store.layers.stage("overlayfs", DIFF, wait=False) as second:
            assert second.path != first.path
            layer = second.commit(diff_id=DIFF, **FACTS)
        assert first.path.is_dir()
        assert first.commit(diff_id=DIFF, **FACTS) == layer
    assert store.layer_folders() == {layer.id}
    store.check(clean=True)


def test_a_row_whose_folder_is_gone_is_not_found_and_gets_the_new_folder(store):
    lost = store.layer({"a": "1"}, diff_id=DIFF)
    store.snapshots.add_committed("base", "", lost)
    shutil.rmtree(lost.path.parent)
    assert store.layers.find("overlayfs", DIFF) is None
    again = store.layer({"a": "1"}, diff_id=DIFF)
    assert store.layers.find("overlayfs", DIFF) == again
    assert store.snapshots.layer_paths("base") == [again.path]
    store.check(clean=True)


def test_commit_happens_once(store):
    with store.layers.stage("overlayfs", DIFF) as staging:
        staging.commit(diff_id=DIFF, **FACTS)
        with pytest.raises(FailedPrecondition, match="already"):
            staging.commit(diff_id=DIFF, **FACTS)


def test_a_commit_that_is_rolled_back_leaves_nothing(store):
    with store.layers.stage("overlayfs", DIFF) as staging:
        with pytest.raises(ZeroDivisionError), store.database.write():
            staging.commit(diff_id=DIFF, **FACTS)
            raise ZeroDivisionError
        assert store.layers.find("overlayfs", DIFF) is None
    assert store.layer_folders() == set()


def test_a_folder_that_somebody_else_deletes_is_left_to_him(store):
    layer = store.layer({"a": "1"})
    folders = LayerFolders(store.root, "overlayfs")
    trash = folders.discard(layer.id)
    with FolderLock(trash, what="it"):
        assert not folders.destroy(trash)
        assert trash.is_dir()
    assert folders.destroy(trash)
    assert not folders.destroy(trash)
    assert not trash.exists()


def test_garbage_collection_leaves_alone_what_is_being_unpacked(store):
    with store.layers.stage("overlayfs", DIFF) as staging:
        (staging.path / "file").write_text("x")
        staging.unlock()
        assert store.gc().orphans == 0
        layer = staging.commit(diff_id=DIFF, **FACTS)
        assert store.gc(dry_run=True).layers == store.gc().layers == 0
        store.snapshots.add_committed("base", "", layer, {"containerd.io/gc.root": "x"})
    assert store.gc().layers == 0
    assert (layer.path / "file").read_text() == "x"


@pytest.mark.parametrize("snapshotter", ["", "../x", "a/b"])
def test_a_malformed_snapshotter_is_an_invalid_argument(store, snapshotter):
    for method in (store.layers.find, store.layers.stage):
        with pytest.raises(InvalidArgument):
            method(snapshotter, DIFF)


def test_a_malformed_diff_id_is_an_invalid_argument(store):
    for method in (store.layers.find, store.layers.stage):
        with pytest.raises(InvalidArgument):
            method("overlayfs", "sha256:../..")
    with store.layers.stage("overlayfs", DIFF) as staging, pytest.raises(InvalidArgument):
        staging.commit(diff_id="x", **FACTS)
