"""The overlayfs snapshotter: the contract of all snapshotters, and which mounts it gives."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from snapshotter_contract import Committed, SnapshotterContract, committer, mounted, tree

from lamella.errors import Aborted, AlreadyExists, InvalidArgument, NotFound
from lamella.snapshots import Mount, Usage, folders, overlayfs
from stores import Store

pytestmark = pytest.mark.beside

ALWAYS = ["index=off", "userxattr"] if folders.needs_user_attributes() else ["index=off"]


@pytest.fixture(autouse=True)
def plain_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare options with those of a kernel that has redirect_dir and metacopy off."""
    monkeypatch.setattr(overlayfs, "_is_on", lambda parameter: False)
    overlayfs._overlay_options.cache_clear()


class TestOverlayfs(SnapshotterContract):
    renames_folders = False

    @pytest.fixture
    def snapshots(self, store: Store):
        return store.snapshots

    @pytest.fixture
    def reopen(self, open_store: Callable[..., Store]):
        return lambda **arguments: open_store(**arguments).snapshots

    @pytest.fixture
    def committed(self, store: Store) -> Committed:
        return committer(store)


def fs(store: Store, key: str) -> str:
    return str(store.snapshots.layer_paths(key)[0])


class TestCommitsOntoAParent:
    """containerd's capability ``rebase``: layers are unpacked beside each other, each on nothing, and stacked in the end."""

    def test_what_was_prepared_on_nothing_gets_its_parent(self, store):
        labels = {"containerd.io/gc.root": "1"}
        store.snapshots.prepare("above", labels=labels)
        folder = Path(fs(store, "above"))
        (folder / "new").write_text("new")
        store.snapshots.prepare("below")
        (Path(fs(store, "below")) / "old").write_text("old")
        store.snapshots.commit("base", "below")
        store.snapshots.commit("top", "above", labels, parent="base")
        assert store.snapshots.stat("top").parent == "base"
        assert [path.name for path in folder.parent.iterdir()] == ["fs"]
        assert [info.name for info in store.snapshots.walk()] == ["base", "top"]  # though it was there first
        assert ("added", "/new") in [(change.kind, change.path) for change in store.snapshots.changes("top")]
        store.gc()
        assert [info.name for info in store.snapshots.walk()] == ["base", "top"]
        store.snapshots.update("top", {"containerd.io/gc.root": ""})
        store.gc()
        assert [*store.snapshots.walk()] == []
        store.check(clean=True)

    @pytest.mark.privileged
    def test_what_it_deletes_is_gone_in_what_stands_on_it(self, store, tmp_path):
        base = store.stack("base", {"stays": "1", "goes": "2"})
        store.snapshots.prepare("work")
        os.mknod(Path(fs(store, "work"), "goes"), stat.S_IFCHR, 0)
        store.snapshots.commit("top", "work", parent=base)
        with mounted(store.snapshots.view("view", "top"), tmp_path / "mnt") as top:
            assert tree(top) == {"stays": "1"}

    def test_the_parent_has_to_be_there_and_committed_and_the_only_one(self, store):
        base = store.stack("base", {})
        store.snapshots.prepare("active")
        store.snapshots.prepare("work")
        with pytest.raises(NotFound):
            store.snapshots.commit("top", "work", parent="nobody")
        with pytest.raises(InvalidArgument):
            store.snapshots.commit("top", "work", parent="active")
        store.snapshots.prepare("child", base)
        other = store.stack("other", {})
        with pytest.raises(InvalidArgument):
            store.snapshots.commit("top", "child", parent=other)
        assert store.snapshots.stat("child").kind == store.snapshots.stat("work").kind == "active"
        store.snapshots.commit("top", "child", parent=base)
        assert store.snapshots.stat("top").parent == base


class TestMounts:
    def test_without_a_parent_it_is_a_bind_of_its_own_folder(self, store):
        active, view = store.snapshots.prepare("active"), store.snapshots.view("view")
        assert active == [Mount(type="bind", source=fs(store, "active"), options=["rw", "rbind"])]
        assert view == [Mount(type="bind", source=fs(store, "view"), options=["ro", "rbind"])]
        assert fs(store, "active") != fs(store, "view")

    def test_a_view_of_one_layer_is_a_read_only_bind_of_it(self, store):
        base = store.stack("base", {})
        assert store.snapshots.view("view", base) == [
            Mount(type="bind", source=fs(store, base), options=["ro", "rbind"])
        ]

    def test_a_view_of_several_layers_is_an_overlay_of_them_nearest_first(self, store):
        top = store.stack("s", {}, {}, {})
        lower = ":".join(fs(store, f"s-{number}") for number in (2, 1, 0))
        assert store.snapshots.view("view", top) == [
            Mount(type="overlay", source="overlay", options=[*ALWAYS, f"lowerdir={lower}"])
        ]

    @pytest.mark.parametrize("layers", [1, 3])
    def test_an_active_snapshot_has_work_upper_and_lower_folders(self, store, layers):
        top = store.stack("s", *[{}] * layers)
        lower = ":".join(fs(store, f"s-{number}") for number in reversed(range(layers)))
        mounts = store.snapshots.prepare("active", top)
        upper = Path(fs(store, "active"))
        assert mounts == [
            Mount(
                type="overlay",
                source="overlay",
                options=[
                    *ALWAYS,
                    f"workdir={upper.parent / 'work'}",
                    f"upperdir={upper}",
                    f"lowerdir={lower}",
                ],
            )
        ]
        assert (upper.parent / "work").is_dir()

    @pytest.mark.needs_root  # for another the kernel switches them off
    def test_redirect_dir_and_metacopy_are_off_where_the_kernel_has_them_on(self, store, monkeypatch):
        monkeypatch.setattr(overlayfs, "_is_on", lambda parameter: parameter == "metacopy")
        overlayfs._overlay_options.cache_clear()
        options = store.snapshots.prepare("active", store.stack("base", {}))[0].options
        assert options[:2] == ["index=off", "metacopy=off"]

    def test_in_a_user_namespace_user_attributes_are_asked_for(self, store, monkeypatch):
        for module in (overlayfs, folders):
            monkeypatch.setattr(module, "needs_user_attributes", lambda: True)
        options = store.snapshots.prepare("active", store.stack("base", {}))[0].options
        assert options[:2] == ["index=off", "userxattr"]
        assert store.snapshots.whiteouts == "overlay-userxattr"

    def test_nothing_beneath_an_opaque_root_is_mounted(self, store):
        add = store.snapshots.add_committed
        add("base", "", store.layer({"a": "1"}))
        add("middle", "base", store.layer({"b": "2"}, opaque_root=True))
        add("top", "middle", store.layer({"c": "3"}))
        base, middle, top = (Path(fs(store, name)) for name in ("base", "middle", "top"))
        assert store.snapshots.layer_paths("top") == [top, middle]
        assert store.snapshots.layer_paths("middle") == [middle]
        assert store.snapshots.layer_paths("base") == [base]
        view = store.snapshots.view("view", "top")
        assert view[0].options[-1] == f"lowerdir={top}:{middle}"
        assert store.snapshots.prepare("active", "top")[0].options[-1] == f"lowerdir={top}:{middle}"
        assert store.snapshots.layer_paths("active")[1:] == [top, middle]
        assert store.snapshots.view("bound", "middle") == [
            Mount(type="bind", source=str(middle), options=["ro", "rbind"])
        ]
        assert store.snapshots.prepare("on opaque", "middle")[0].options[-1] == f"lowerdir={middle}"
        assert store.snapshots.stat("top").parent == "middle"

    @pytest.mark.privileged
    def test_an_opaque_root_hides_the_layers_beneath(self, store, tmp_path):
        add = store.snapshots.add_committed
        add("base", "", store.layer({"a": "1", "folder/x": "1"}))
        add("middle", "base", store.layer({"folder/y": "2"}, opaque_root=True))
        add("top", "middle", store.layer({"c": "3"}))
        with mounted(store.snapshots.prepare("active", "top"), tmp_path / "mnt") as top:
            assert tree(top) == {"c": "3", "folder/": "", "folder/y": "2"}

    @pytest.mark.privileged
    def test_a_layer_that_stands_twice_in_a_chain_is_mounted_once(self, store, tmp_path):
        twice = store.layer({"a": "1"})
        add = store.snapshots.add_committed
        add("bottom", "", twice)
        add("middle", "bottom", store.layer({"a": "2", "b": "2"}))
        add("top", "middle", twice)
        assert store.snapshots.layer_paths("top") == [twice.path, Path(fs(store, "middle"))]
        with mounted(store.snapshots.view("view", "top"), tmp_path / "mnt") as top:
            assert tree(top) == {"a": "1", "b": "2"}

    @pytest.mark.privileged
    @pytest.mark.parametrize("name", ["with:colon", "with,comma", "with\\backslash", "a\\:b,c=d"])
    def test_the_root_folder_may_have_any_name(self, tmp_path, name):
        (tmp_path / name).mkdir()
        store = Store(tmp_path / name / "root")
        top = store.stack("s", {"a": "1"}, {"b": "2"})
        try:
            with mounted(store.snapshots.prepare("active", top), tmp_path / "mnt") as root:
                (root / "c").write_text("3")
                assert tree(root) == {"a": "1", "b": "2", "c": "3"}
            assert tree(store.snapshots.layer_paths("active")[0]) == {"c": "3"}
            with mounted(store.snapshots.view("view", top), tmp_path / "mnt") as root:
                assert tree(root) == {"a": "1", "b": "2"}
        finally:
            store.close()


class TestSharedLayers:
    def test_one_layer_folder_serves_names_chains_and_namespaces(self, store, open_store):
        layer = store.layer({"a": "1"})
        other = open_store("other")
        store.snapshots.add_committed("one", "", layer)
        store.snapshots.add_committed("two", store.stack("base", {}), layer)
        other.snapshots.add_committed("one", "", layer)
        assert fs(store, "one") == fs(store, "two") == fs(other, "one") == str(layer.path)

    def test_add_committed_is_harmless_twice(self, store):
        base, top = store.layer({}), store.layer({})
        for _ in range(2):
            store.snapshots.add_committed("base", "", base, {"a": "b"})
            store.snapshots.add_committed("top", "base", top)
        assert [info.name for info in store.snapshots.walk()] == ["base", "top"]
        assert store.snapshots.stat("base").labels == {"a": "b"}

    def test_add_committed_refuses_a_name_of_something_else(self, store):
        layer = store.layer({})
        store.snapshots.add_committed("base", "", layer)
        store.snapshots.add_committed("top", "base", layer)
        store.snapshots.prepare("active", "base")
        for name, parent in (("top", ""), ("base", "top"), ("active", "base")):
            with pytest.raises(AlreadyExists):
                store.snapshots.add_committed(name, parent, layer)

    def test_add_committed_wants_a_committed_parent(self, store):
        layer = store.layer({})
        with pytest.raises(NotFound):
            store.snapshots.add_committed("top", "nobody", layer)
        store.snapshots.prepare("active")
        with pytest.raises(InvalidArgument):
            store.snapshots.add_committed("top", "active", layer)

    def test_add_committed_over_a_collected_layer_is_aborted(self, store):
        layer = store.layer({})
        assert store.gc().layers == 1
        with pytest.raises(Aborted):
            store.snapshots.add_committed("base", "", layer)

    def test_usage_of_a_committed_snapshot_is_what_the_layer_says(self, store):
        store.snapshots.add_committed("base", "", store.layer({"a": "1"}))
        assert store.snapshots.usage("base") == Usage(size=4096, inodes=2)

    def test_remove_leaves_a_shared_layer_to_garbage_collection(self, store):
        layer = store.layer({})
        store.snapshots.add_committed("one", "", layer)
        store.snapshots.remove("one")
        assert layer.path.is_dir()
        assert store.layers.find("overlayfs", layer.diff_id) == layer
        store.snapshots.add_committed("two", "", layer)

    def test_remove_deletes_at_once_what_a_user_committed(self, store):
        store.snapshots.prepare("key")
        store.snapshots.commit("name", "key")
        folder = store.snapshots.layer_paths("name")[0].parent
        store.snapshots.remove("name")
        assert not folder.exists()
        assert store.layer_folders() == set()

    def test_folders_are_for_the_owner_alone(self, store):
        store.snapshots.prepare("key", store.stack("base", {}))
        own = store.snapshots.layer_paths("key")[0].parent
        for folder in (own, own / "work", *own.parents):
            if folder == store.root.parent:
                break
            assert folder.stat().st_mode & 0o7777 == 0o700, folder


class TestDefaultLabels:
    def test_views_and_commits_get_them_and_the_callers_win(self, store):
        snapshots = overlayfs.OverlaySnapshotter(
            store.database, store.config, default_labels={"a": "default", "b": "default"}
        )
        snapshots.view("view", "", {"a": "mine"})
        snapshots.prepare("active", "", {"c": "mine"})
        assert snapshots.stat("view").labels == {"a": "mine", "b": "default"}
        assert snapshots.stat("active").labels == {"c": "mine"}
        snapshots.commit("name", "active", {"b": ""})
        assert snapshots.stat("name").labels == {"a": "default"}
