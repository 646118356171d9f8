"""The native snapshotter: the contract of all snapshotters, its mounts, and copies that are cut off or come too late."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from snapshotter_contract import Committed, SnapshotterContract, committer, mounted, tree

from lamella import _core
from lamella.errors import Aborted, DataLoss, NotFound, Unsupported
from lamella.snapshots import SNAPSHOTTERS, Mount, snapshotter
from lamella.structs import replace
from stores import Store

pytestmark = pytest.mark.beside


@pytest.fixture
def store(open_store: Callable[..., Store]) -> Store:
    return open_store(snapshotter="native")


class TestNative(SnapshotterContract):
    @pytest.fixture
    def snapshots(self, store: Store):
        return store.snapshots

    @pytest.fixture
    def reopen(self, open_store: Callable[..., Store]):
        return lambda **arguments: open_store(**arguments, snapshotter="native").snapshots

    @pytest.fixture
    def committed(self, store: Store) -> Committed:
        return committer(store)


def fs(store: Store, key: str) -> Path:
    (path,) = store.snapshots.layer_paths(key)
    return path


def bind(path: Path, access: str) -> list[Mount]:
    return [Mount(type="bind", source=str(path), options=[access, "rbind"])]


class TestMounts:
    def test_an_active_snapshot_is_a_bind_of_its_own_copy(self, store):
        top = store.stack("s", {"a": "1"}, {"b": "2"})
        assert store.snapshots.prepare("key", top) == bind(fs(store, "key"), "rw")
        assert store.snapshots.prepare("empty") == bind(fs(store, "empty"), "rw")
        assert tree(fs(store, "key")) == {"a": "1", "b": "2"}
        assert len({fs(store, "key"), fs(store, "empty"), fs(store, top)}) == 3

    def test_a_view_is_a_read_only_bind_of_its_parents_folder(self, store):
        top = store.stack("s", {"a": "1"}, {"b": "2"})
        folders = store.layer_folders()
        assert store.snapshots.view("view", top) == bind(fs(store, top), "ro")
        assert store.layer_folders() == folders
        assert store.snapshots.view("empty") == bind(fs(store, "empty"), "ro")

    def test_a_snapshot_is_one_folder_whatever_it_stands_on(self, store):
        top = store.stack("s", *({str(number): ""} for number in range(3)))
        for name in (top, "s-1", "s-0"):
            assert len(store.snapshots.layer_paths(name)) == 1
        assert tree(fs(store, "s-1")) == {"0": "", "1": ""}

    def test_layers_are_unpacked_without_whiteouts(self, store):
        assert store.snapshots.whiteouts == "plain"
        assert not store.snapshots.stacks


class TestCopies:
    """What becomes of a copy while which something else happens."""

    @pytest.fixture
    def meanwhile(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
        """Have something happen when a copy begins, or when it is done and not recorded."""

        def arrange(action: Callable[[], object], *, done: bool = False) -> None:
            copy = _core.copy_tree

            def copy_tree(source: str, target: str) -> list[str]:
                monkeypatch.undo()
                if not done:
                    action()
                notes = copy(source, target)
                if done:
                    action()
                return notes

            monkeypatch.setattr(_core, "copy_tree", copy_tree)

        return arrange

    def test_garbage_collection_leaves_it_alone(self, store, open_store, meanwhile):
        top = store.stack("s", {"a": "1"})
        store.snapshots.view("root", top, {"containerd.io/gc.root": "now"})
        meanwhile(lambda: open_store(snapshotter="native").gc())
        store.snapshots.prepare("key", top)
        assert tree(fs(store, "key")) == {"a": "1"}

    def test_others_can_write_to_the_store(self, store, open_store, meanwhile):
        top = store.stack("s", {"a": "1"})
        meanwhile(lambda: open_store().snapshots.prepare("other"))
        store.snapshots.prepare("key", top)

    @pytest.mark.parametrize("done", [False, True])
    def test_a_parent_that_is_removed_is_not_found(self, store, meanwhile, done):
        top = store.stack("s", {"a": "1"})
        meanwhile(lambda: (store.snapshots.remove(top), store.gc()), done=done)
        with pytest.raises(NotFound):
            store.snapshots.prepare("key", top)
        assert store.layer_folders() == set()

    @pytest.mark.parametrize("done", [False, True])
    def test_a_parent_that_is_replaced_aborts(self, store, meanwhile, done):
        store.snapshots.prepare("active")
        store.snapshots.commit("base", "active")

        def replace() -> None:
            store.snapshots.remove("base")
            store.snapshots.prepare("another")
            store.snapshots.commit("base", "another")

        meanwhile(replace, done=done)
        with pytest.raises(Aborted):
            store.snapshots.prepare("key", "base")
        assert [info.name for info in store.snapshots.walk()] == ["base"]
        assert store.layer_folders() == {fs(store, "base").parent.name}

    @pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
    def test_nothing_is_left_of_one_that_is_cut_off(self, store, meanwhile, error):
        top = store.stack("s", {"a": "1"})
        folders = store.layer_folders()

        def fail() -> None:
            raise error

        meanwhile(fail)
        with pytest.raises(error):
            store.snapshots.prepare("key", top)
        assert [info.name for info in store.snapshots.walk()] == [top]
        assert store.layer_folders() == folders

    def test_nothing_is_left_of_one_whose_transaction_is_rolled_back(self, store):
        top = store.stack("s", {"a": "1"})
        folders = store.layer_folders()
        with (
            pytest.raises(ZeroDivisionError),
            store.snapshots.preparing("key", top) as prepare,
            store.database.write(),
        ):
            prepare()
            raise ZeroDivisionError
        assert [info.name for info in store.snapshots.walk()] == [top]
        assert store.layer_folders() == folders

    def test_a_folder_that_is_gone_is_damage(self, store):
        top = store.stack("s", {"a": "1"})
        _core.remove_tree(str(fs(store, top)))
        with pytest.raises(DataLoss):
            store.snapshots.prepare("key", top)

    def test_an_active_snapshot_whose_folder_is_lost_begins_anew(self, store):
        top = store.stack("s", {"a": "1"})
        store.snapshots.prepare("key", top)
        _core.remove_tree(str(fs(store, "key").parent))
        store.snapshots.renew("key")
        assert tree(fs(store, "key")) == {"a": "1"}
        before = fs(store, "key")
        store.snapshots.renew("key")
        assert fs(store, "key") == before
        store.check(clean=True)


def test_a_whole_copy_gets_no_other_parent(store):
    base = store.stack("base", {"a": "1"})
    store.snapshots.prepare("work")
    with pytest.raises(Unsupported):
        store.snapshots.commit("top", "work", parent=base)
    assert store.snapshots.stat("work").kind == "active"


def test_a_snapshotter_that_there_is_not_is_unsupported(store):
    config = replace(store.config, snapshotter="zfs")
    with pytest.raises(Unsupported, match="'zfs'") as caught:
        snapshotter(store.database, config)
    assert caught.value.hint == "There are overlayfs and native."
    assert {
        name: type(snapshotter(store.database, replace(config, snapshotter=name))).name
        for name in SNAPSHOTTERS
    } == {name: name for name in SNAPSHOTTERS}


@pytest.mark.privileged
def test_both_snapshotters_share_one_store(store, open_store, tmp_path):
    other = open_store()
    assert other.stack("s", {"a": "overlay"}) == store.stack("s", {"a": "native"})
    for each, text in ((other, "overlay"), (store, "native")):
        with mounted(each.snapshots.prepare("key", "s-0"), tmp_path / "mnt") as top:
            assert tree(top) == {"a": text}
    store.snapshots.remove("key")
    assert other.snapshots.stat("key").kind == "active"
    store.gc()
    store.check(clean=True)
