"""What every snapshotter promises (lamella.snapshots), as tests that a subclass runs with its own factory.

A subclass overrides the fixtures ``snapshots``, a snapshotter of an empty store, ``reopen``, which opens that once more, and
``committed``, which records a committed snapshot with some files (:func:`committer`). It says what its mounts cannot do. Tests
that mount need root.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import pytest

from lamella import _core
from lamella.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from lamella.snapshots import Mount, Snapshotter, Usage
from stores import Store
from tree import differences, read_tree

CHAIN = 128


class Committed(Protocol):
    def __call__(self, name: str, parent: str = "", files: Mapping[str, str] | None = None) -> str: ...


def committer(store: Store) -> Committed:
    """Give the function that records a committed snapshot as a pull does: over an unpacked layer."""

    def make(name: str, parent: str = "", files: Mapping[str, str] | None = None) -> str:
        store.snapshots.add_committed(name, parent, store.layer(files or {}, parent=parent))
        return name

    return make


@contextmanager
def mounted(mounts: Sequence[Mount], target: Path) -> Iterator[Path]:
    """Mount for the length of a block."""
    target.mkdir(exist_ok=True)
    _core.mount([(mount.type, mount.source, mount.options) for mount in mounts], str(target))
    try:
        yield target
    finally:
        _core.unmount(str(target))


def tree(top: Path) -> dict[str, str]:
    """Give all files below a folder with their text, and folders with a slash."""
    found = {}
    for path in sorted(top.rglob("*")):
        name = str(path.relative_to(top))
        if path.is_dir() and not path.is_symlink():
            found[f"{name}/"] = ""
        else:
            found[name] = path.read_text()
    return found


class SnapshotterContract:
    renames_folders = True
    """Whether a folder that lies in a parent can be renamed; else rename(2) gives EXDEV, and a copy is up to the caller."""

    # Fixtures of the implementation

    @pytest.fixture
    def snapshots(self) -> Snapshotter:
        raise NotImplementedError

    @pytest.fixture
    def reopen(self) -> Callable[..., Snapshotter]:
        """Give a function that opens the same store again, perhaps in another namespace."""
        raise NotImplementedError

    @pytest.fixture
    def committed(self, snapshots: Snapshotter) -> Committed:
        raise NotImplementedError

    # prepare and view

    @pytest.mark.parametrize("method", ["prepare", "view"])
    def test_a_new_snapshot_is_there_with_its_kind_parent_and_labels(self, snapshots, committed, method):
        committed("base")
        getattr(snapshots, method)("key", "base", {"a": "b"})
        info = snapshots.stat("key")
        assert (info.name, info.parent, info.labels) == ("key", "base", {"a": "b"})
        assert info.kind == {"prepare": "active", "view": "view"}[method]
        assert info.created_at == info.updated_at

    @pytest.mark.parametrize("method", ["prepare", "view"])
    def test_a_snapshot_needs_no_parent(self, snapshots, method):
        mounts = getattr(snapshots, method)("key")
        assert snapshots.stat("key").parent == ""
        assert mounts == snapshots.mounts("key")

    @pytest.mark.parametrize("method", ["prepare", "view"])
    def test_a_missing_parent_is_not_found_and_nothing_is_left(self, snapshots, method):
        with pytest.raises(NotFound, match="'nobody'"):
            getattr(snapshots, method)("key", "nobody")
        assert list(snapshots.walk()) == []

    @pytest.mark.parametrize("method", ["prepare", "view"])
    @pytest.mark.parametrize("parent_method", ["prepare", "view"])
    def test_a_parent_that_is_not_committed_is_an_invalid_argument(self, snapshots, method, parent_method):
        getattr(snapshots, parent_method)("parent")
        with pytest.raises(InvalidArgument, match="'parent'"):
            getattr(snapshots, method)("key", "parent")
        with pytest.raises(NotFound):
            snapshots.stat("key")

    @pytest.mark.parametrize("method", ["prepare", "view"])
    def test_a_key_that_is_taken_already_exists(self, snapshots, committed, method):
        committed("base")
        snapshots.prepare("active")
        snapshots.view("view")
        for taken in ("base", "active", "view"):
            with pytest.raises(AlreadyExists, match=f"'{taken}'"):
                getattr(snapshots, method)(taken, "base")
        assert snapshots.stat("active").kind == "active"

    def test_a_key_can_be_used_again_after_remove(self, snapshots):
        snapshots.prepare("key")
        snapshots.remove("key")
        snapshots.view("key")
        assert snapshots.stat("key").kind == "view"

    @pytest.mark.parametrize("key", ["a/b", "..", "sha256:abc", "with space", "ü\n", "-", "x" * 4096])
    def test_a_key_may_be_any_text_without_nul(self, snapshots, key):
        snapshots.prepare(key)
        snapshots.commit(f"{key[:-1]}!", key)
        assert snapshots.stat(f"{key[:-1]}!").kind == "committed"

    @pytest.mark.parametrize("key", ["", "a\0b", "x" * 4097, "\ud800"])
    def test_a_key_that_cannot_be_kept_is_an_invalid_argument(self, snapshots, key):
        snapshots.prepare("active")
        for attempt in (
            lambda: snapshots.prepare(key),
            lambda: snapshots.view(key),
            lambda: snapshots.commit(key, "active"),
            lambda: snapshots.commit("name", key),
            lambda: snapshots.mounts(key),
            lambda: snapshots.stat(key),
            lambda: snapshots.remove(key),
            lambda: snapshots.usage(key),
            lambda: snapshots.update(key, {}),
        ):
            with pytest.raises(InvalidArgument):
                attempt()

    def test_labels_over_the_limit_are_an_invalid_argument_and_nothing_is_left(self, snapshots):
        with pytest.raises(InvalidArgument):
            snapshots.prepare("key", "", {"k": "v" * 4096})
        with pytest.raises(NotFound):
            snapshots.stat("key")
        snapshots.prepare("key", "", {"k": "v" * 4095})
        for attempt in (
            lambda: snapshots.commit("name", "key", {"k": "v" * 4096}),
            lambda: snapshots.update("key", {"k": "v" * 4096}),
        ):
            with pytest.raises(InvalidArgument):
                attempt()
        assert snapshots.stat("key").labels == {"k": "v" * 4095}

    # commit

    def test_commit_freezes_under_the_name_and_the_key_vanishes(self, snapshots, committed):
        committed("base")
        snapshots.prepare("key", "base")
        created = snapshots.stat("key").created_at
        snapshots.commit("name", "key")
        info = snapshots.stat("name")
        assert (info.kind, info.parent) == ("committed", "base")
        assert info.updated_at == info.created_at > created
        with pytest.raises(NotFound):
            snapshots.stat("key")
        snapshots.prepare("key", "name")

    def test_commit_replaces_the_labels(self, snapshots):
        snapshots.prepare("one", "", {"a": "1", "b": "2"})
        snapshots.commit("first", "one", {"b": "3"})
        assert snapshots.stat("first").labels == {"b": "3"}
        snapshots.prepare("two", "", {"a": "1"})
        snapshots.commit("second", "two")
        assert snapshots.stat("second").labels == {}

    def test_commit_to_a_name_that_is_taken_already_exists(self, snapshots, committed):
        committed("base")
        snapshots.view("view")
        snapshots.prepare("key")
        for taken in ("base", "view", "key"):
            with pytest.raises(AlreadyExists, match=f"'{taken}'"):
                snapshots.commit(taken, "key")
        assert snapshots.stat("key").kind == "active"

    def test_commit_of_a_missing_key_is_not_found(self, snapshots):
        with pytest.raises(NotFound, match="'key'"):
            snapshots.commit("name", "key")

    def test_commit_of_what_is_not_active_is_a_failed_precondition(self, snapshots, committed):
        committed("base")
        snapshots.view("view", "base")
        for key in ("base", "view"):
            with pytest.raises(FailedPrecondition, match=f"'{key}'"):
                snapshots.commit("name", key)
        with pytest.raises(NotFound):
            snapshots.stat("name")

    # freeze and copy

    def test_freeze_commits_and_prepares_the_key_anew_on_top(self, snapshots, committed):
        committed("base", files={"low": "1"})
        snapshots.prepare("key", "base", {"a": "1"})
        (snapshots.layer_paths("key")[0] / "file").write_text("frozen")
        snapshots.freeze("name", "key", {"b": "2"})
        name, key = snapshots.stat("name"), snapshots.stat("key")
        assert (name.kind, name.parent, name.labels) == ("committed", "base", {"b": "2"})
        assert (key.kind, key.parent, key.labels) == ("active", "name", {"a": "1"})
        assert [info.name for info in snapshots.walk()] == ["base", "name", "key"]
        (snapshots.layer_paths("key")[0] / "file").write_text("later")
        assert (snapshots.layer_paths("name")[0] / "file").read_text() == "frozen"

    def test_a_frozen_snapshot_is_measured_when_somebody_asks(self, snapshots):
        snapshots.prepare("key")
        folder = snapshots.layer_paths("key")[0]
        (folder / "file").write_bytes(b"x" * 100_000)
        snapshots.freeze("name", "key")
        expected = Usage(*_core.disk_usage(str(folder)))
        assert snapshots.usage("name") == snapshots.usage("name") == expected
        assert expected.size >= 100_000

    def test_copy_commits_a_sibling_and_the_key_stays_as_it_is(self, snapshots, committed):
        committed("base", files={"low": "1"})
        snapshots.prepare("key", "base", {"a": "1"})
        before, folder = snapshots.stat("key"), snapshots.layer_paths("key")[0]
        (folder / "file").write_text("copied")
        snapshots.copy("name", "key", {"b": "2"})
        assert snapshots.stat("key") == before
        assert snapshots.layer_paths("key")[0] == folder
        name = snapshots.stat("name")
        assert (name.kind, name.parent, name.labels) == ("committed", "base", {"b": "2"})
        assert snapshots.usage("name").inodes == snapshots.usage("key").inodes
        (folder / "file").write_text("later")
        assert (snapshots.layer_paths("name")[0] / "file").read_text() == "copied"
        snapshots.prepare("other", "name")
        snapshots.remove("key")

    @pytest.mark.parametrize("method", ["freeze", "copy"])
    def test_freeze_and_copy_refuse_what_commit_refuses(self, snapshots, committed, method):
        committed("base")
        snapshots.prepare("key", "base")
        snapshots.view("view", "base")
        for taken in ("base", "view", "key"):
            with pytest.raises(AlreadyExists, match=f"'{taken}'"):
                getattr(snapshots, method)(taken, "key")
        for other in ("base", "view"):
            with pytest.raises(FailedPrecondition, match=f"'{other}'"):
                getattr(snapshots, method)("name", other)
        with pytest.raises(NotFound, match="'absent'"):
            getattr(snapshots, method)("name", "absent")
        assert sorted(info.name for info in snapshots.walk()) == ["base", "key", "view"]

    @pytest.mark.privileged
    def test_what_is_written_after_a_freeze_is_in_no_branch_of_it(self, snapshots, committed, tmp_path):
        committed("base", files={"gone": "1", "kept": "1"})
        snapshots.prepare("key", "base")
        with mounted(snapshots.mounts("key"), tmp_path / "m") as root:
            (root / "gone").unlink()
            (root / "made").write_text("1")
        snapshots.freeze("name", "key")
        for branch in ("one", "two"):
            snapshots.prepare(branch, "name")
            with mounted(snapshots.mounts(branch), tmp_path / "m") as root:
                assert tree(root) == {"kept": "1", "made": "1"}
                (root / "made").write_text(branch)
                (root / branch).touch()
        with mounted(snapshots.mounts("key"), tmp_path / "m") as root:
            assert tree(root) == {"kept": "1", "made": "1"}

    # mounts and stat

    def test_mounts_are_those_that_the_creation_returned(self, snapshots, committed):
        parent = committed("top", committed("base"))
        assert snapshots.prepare("active", parent) == snapshots.mounts("active")
        assert snapshots.view("view", parent) == snapshots.mounts("view")

    def test_mounts_of_a_committed_snapshot_are_a_failed_precondition(self, snapshots, committed):
        committed("base")
        with pytest.raises(FailedPrecondition, match="'base'"):
            snapshots.mounts("base")

    @pytest.mark.parametrize("method", ["mounts", "stat", "usage", "remove", "layer_paths"])
    def test_a_key_that_is_not_there_is_not_found(self, snapshots, method):
        with pytest.raises(NotFound, match="'key'"):
            getattr(snapshots, method)("key")

    def test_snapshots_are_there_when_the_store_is_opened_again(self, snapshots, committed, reopen):
        committed("base")
        mounts = snapshots.prepare("key", "base", {"a": "b"})
        again = reopen()
        assert again.stat("key") == snapshots.stat("key")
        assert again.mounts("key") == mounts

    def test_namespaces_have_keys_of_their_own(self, snapshots, committed, reopen):
        committed("base")
        other = reopen(namespace="other")
        with pytest.raises(NotFound):
            other.stat("base")
        with pytest.raises(NotFound):
            other.prepare("key", "base")
        other.prepare("base")
        assert [info.kind for info in other.walk()] == ["active"]
        assert [info.kind for info in snapshots.walk()] == ["committed"]

    # update

    def test_update_sets_and_removes_labels_and_nothing_else(self, snapshots, committed):
        committed("base")
        snapshots.prepare("key", "base", {"a": "1", "b": "2"})
        before = snapshots.stat("key")
        after = snapshots.update("key", {"b": "", "c": "3", "never": ""})
        assert after == snapshots.stat("key")
        assert after.labels == {"a": "1", "c": "3"}
        assert (after.name, after.parent, after.kind, after.created_at) == (
            before.name,
            before.parent,
            before.kind,
            before.created_at,
        )
        assert after.updated_at >= before.updated_at

    def test_update_works_on_every_kind(self, snapshots, committed):
        committed("base")
        snapshots.prepare("active")
        snapshots.view("view")
        for key in ("base", "active", "view"):
            assert snapshots.update(key, {"a": key}).labels["a"] == key
        with pytest.raises(NotFound):
            snapshots.update("nobody", {"a": "b"})

    # walk

    def test_walk_gives_every_snapshot_parents_before_children(self, snapshots, committed):
        assert list(snapshots.walk()) == []
        committed("z", committed("y", committed("x")))
        snapshots.view("a", "z")
        snapshots.prepare("b", "x")
        found = [info.name for info in snapshots.walk()]
        assert sorted(found) == ["a", "b", "x", "y", "z"]
        for info in snapshots.walk():
            assert not info.parent or found.index(info.parent) < found.index(info.name)
            assert info == snapshots.stat(info.name)

    def test_walk_filters_by_kind_parent_and_labels(self, snapshots, committed):
        committed("top", committed("base"))
        snapshots.view("view", "top", {"a": "1"})
        snapshots.prepare("active", "top", {"a": "1", "b": "2"})

        def names(**arguments):
            return {info.name for info in snapshots.walk(**arguments)}

        assert names(kind="view") == {"view"}
        assert names(kind="committed") == {"base", "top"}
        assert names(parent="top") == {"view", "active"}
        assert names(parent="") == {"base"}
        assert names(parent="nobody") == set()
        assert names(labels={"a": "1"}) == {"view", "active"}
        assert names(labels={"a": "1", "b": "2"}, kind="active", parent="top") == {"active"}
        assert names(labels={"a": "2"}) == set()
        assert names(filters=["name==base", 'kind==view,labels.a=="1"']) == {"base", "view"}
        assert names(filters=["parent==top,kind!=view"]) == {"active"}
        assert names(filters=['parent==""']) == {"base"}
        assert names(filters=["name~=^(top|view)$"]) == {"top", "view"}
        assert names(filters=["labels.b"]) == {"active"}
        with pytest.raises(InvalidArgument):
            names(filters=["name="])

    def test_walk_goes_on_while_snapshots_come_and_go(self, snapshots):
        for number in range(5):
            snapshots.prepare(f"key-{number}")
        seen = []
        for info in snapshots.walk():
            seen.append(info.name)
            snapshots.remove(info.name)
        assert seen == [f"key-{number}" for number in range(5)]

    # usage

    def test_usage_is_live_for_active_stored_for_committed_and_zero_for_a_view(self, snapshots, committed):
        committed("base", files={"big": "x" * 100_000})
        snapshots.prepare("key", "base")
        empty = snapshots.usage("key")
        own = snapshots.layer_paths("key")[0]
        (own / "file").write_bytes(b"x" * 50_000)
        used = snapshots.usage("key")
        assert used.inodes == empty.inodes + 1
        assert 50_000 <= used.size - empty.size < 100_000  # the parent's 100,000 bytes are not in it
        snapshots.commit("name", "key")
        assert snapshots.usage("name") == used
        (own / "late").write_bytes(b"x" * 50_000)
        assert snapshots.usage("name") == used
        snapshots.view("view", "name")
        assert snapshots.usage("view") == Usage(size=0, inodes=0)
        snapshots.view("empty view")
        assert snapshots.usage("empty view") == Usage(size=0, inodes=0)

    # remove

    def test_remove_takes_any_kind_that_has_no_children(self, snapshots, committed):
        committed("base")
        snapshots.prepare("active", "base")
        snapshots.view("view", "base")
        for key in ("active", "view", "base"):
            snapshots.remove(key)
            with pytest.raises(NotFound):
                snapshots.stat(key)
        assert list(snapshots.walk()) == []

    @pytest.mark.parametrize("method", ["prepare", "view"])
    def test_remove_of_a_parent_is_a_failed_precondition(self, snapshots, committed, method):
        committed("base")
        getattr(snapshots, method)("key", "base")
        with pytest.raises(FailedPrecondition, match="'base'"):
            snapshots.remove("base")
        snapshots.remove("key")
        snapshots.remove("base")

    def test_remove_leaves_nothing_of_an_active_snapshot_on_disk(self, snapshots, committed):
        committed("base")
        snapshots.prepare("key", "base")
        own = snapshots.layer_paths("key")[0]
        (own / "folder").mkdir()
        (own / "folder" / "file").write_text("x")
        before = set(own.parent.parent.iterdir())
        snapshots.remove("key")
        assert set(own.parent.parent.iterdir()) == before - {own.parent}

    def test_close_is_harmless_twice(self, snapshots):
        snapshots.close()
        snapshots.close()

    # What the mounts show

    @pytest.mark.privileged
    def test_what_an_active_snapshot_writes_is_in_its_commit_and_not_in_its_parent(
        self, snapshots, committed, tmp_path
    ):
        committed("base", files={"a": "1", "b": "2", "folder/c": "3"})
        with mounted(snapshots.prepare("key", "base"), tmp_path / "mnt") as top:
            assert tree(top) == {"a": "1", "b": "2", "folder/": "", "folder/c": "3"}
            (top / "a").write_text("changed")
            (top / "b").unlink()
            (top / "d").write_text("new")
        snapshots.commit("name", "key")
        with mounted(snapshots.view("after", "name"), tmp_path / "mnt") as top:
            assert tree(top) == {"a": "changed", "d": "new", "folder/": "", "folder/c": "3"}
        with mounted(snapshots.view("before", "base"), tmp_path / "mnt") as top:
            assert tree(top) == {"a": "1", "b": "2", "folder/": "", "folder/c": "3"}

    @pytest.mark.privileged
    @pytest.mark.parametrize("parents", [0, 1, 2])
    def test_a_view_cannot_be_written(self, snapshots, committed, tmp_path, parents):
        parent = ""
        for number in range(parents):
            parent = committed(f"layer-{number}", parent, {f"file-{number}": ""})
        with mounted(snapshots.view("view", parent), tmp_path / "mnt") as top:
            assert len(tree(top)) == parents
            with pytest.raises(OSError, match=r"[Rr]ead-only"):
                (top / "new").write_text("x")

    @pytest.mark.privileged
    def test_active_snapshots_on_one_parent_do_not_see_each_other(self, snapshots, committed, tmp_path):
        committed("top", committed("base", files={"a": "1"}), {"b": "2"})
        first, second = snapshots.prepare("first", "top"), snapshots.prepare("second", "top")
        with mounted(first, tmp_path / "one") as one, mounted(second, tmp_path / "two") as two:
            (one / "c").write_text("3")
            (two / "a").unlink()
            assert tree(one) == {"a": "1", "b": "2", "c": "3"}
            assert tree(two) == {"b": "2"}

    @pytest.mark.privileged
    def test_an_active_snapshot_without_a_parent_can_be_written(self, snapshots, tmp_path):
        with mounted(snapshots.prepare("key"), tmp_path / "mnt") as top:
            (top / "file").write_text("x")
        snapshots.commit("name", "key")
        with mounted(snapshots.view("view", "name"), tmp_path / "mnt") as top:
            assert tree(top) == {"file": "x"}

    @pytest.mark.privileged
    def test_folders_of_several_layers_are_merged_renamed_and_removed(self, snapshots, committed, tmp_path):
        committed("top", committed("base", files={"d/a": "1", "e/x": "1"}), {"d/b": "2"})
        with mounted(snapshots.prepare("key", "top"), tmp_path / "mnt") as top:
            shutil.move(top / "d", top / "moved")  # with a copy where the kernel gives EXDEV
            shutil.rmtree(top / "e")
            (top / "e").mkdir()
            (top / "e" / "y").write_text("new")
            assert tree(top) == {"e/": "", "e/y": "new", "moved/": "", "moved/a": "1", "moved/b": "2"}
            expected = tree(top)
        snapshots.commit("name", "key")
        with mounted(snapshots.view("view", "name"), tmp_path / "mnt") as top:
            assert tree(top) == expected

    @pytest.mark.privileged
    def test_a_file_may_take_the_place_of_a_folder_and_the_reverse(self, snapshots, committed, tmp_path):
        committed("base", files={"folder/a": "1", "file": "2"})
        with mounted(snapshots.prepare("key", "base"), tmp_path / "mnt") as top:
            shutil.rmtree(top / "folder")
            (top / "folder").write_text("a file now")
            (top / "file").unlink()
            (top / "file").mkdir()
            expected = tree(top)
        snapshots.commit("name", "key")
        with mounted(snapshots.view("view", "name"), tmp_path / "mnt") as top:
            assert tree(top) == expected == {"folder": "a file now", "file/": ""}

    @pytest.mark.privileged
    def test_a_folder_of_a_parent_is_renamed_or_gives_exdev(self, snapshots, committed, tmp_path):
        committed("top", committed("base", files={"d/a": "1", "file": "1"}), {"d/b": "2"})
        with mounted(snapshots.prepare("key", "top"), tmp_path / "mnt") as top:
            (top / "own").mkdir()
            (top / "own").rename(top / "own, renamed")
            (top / "file").rename(top / "own, renamed/file")
            if self.renames_folders:
                (top / "d").rename(top / "e")
                expected = {"e/": "", "e/a": "1", "e/b": "2"}
            else:
                with pytest.raises(OSError, match="cross-device") as caught:
                    (top / "d").rename(top / "e")
                assert caught.value.errno == errno.EXDEV
                expected = {"d/": "", "d/a": "1", "d/b": "2"}
            expected |= {"own, renamed/": "", "own, renamed/file": "1"}
            assert tree(top) == expected
        snapshots.commit("name", "key")
        with mounted(snapshots.view("view", "name"), tmp_path / "mnt") as top:
            assert tree(top) == expected

    @pytest.mark.privileged
    def test_a_folder_that_comes_back_holds_nothing_of_what_it_held(self, snapshots, committed, tmp_path):
        committed("base", files={"d/e/a": "1", "d/b": "1"})
        with mounted(snapshots.prepare("one", "base"), tmp_path / "mnt") as top:
            shutil.rmtree(top / "d")
        snapshots.commit("without", "one")
        with mounted(snapshots.prepare("two", "without"), tmp_path / "mnt") as top:
            assert tree(top) == {}
            (top / "d/e").mkdir(parents=True)
            (top / "d/e/new").write_text("2")
        snapshots.commit("with", "two")
        for name, expected in [
            ("base", {"d/": "", "d/b": "1", "d/e/": "", "d/e/a": "1"}),
            ("without", {}),
            ("with", {"d/": "", "d/e/": "", "d/e/new": "2"}),
        ]:
            with mounted(snapshots.view(f"view of {name}", name), tmp_path / "mnt") as top:
                assert tree(top) == expected

    @pytest.mark.privileged
    def test_each_snapshot_of_a_chain_shows_what_was_changed_up_to_it(self, snapshots, tmp_path):
        parent, expected, states = "", {}, {}
        for number in range(5):
            with mounted(snapshots.prepare(f"key-{number}", parent), tmp_path / "mnt") as top:
                (top / f"file-{number}").write_text(str(number))
                (top / "last").write_text(str(number))
                expected |= {f"file-{number}": str(number), "last": str(number)}
                if number > 1:
                    (top / f"file-{number - 2}").unlink()
                    del expected[f"file-{number - 2}"]
            parent = f"name-{number}"
            snapshots.commit(parent, f"key-{number}")
            states[parent] = dict(expected)
        for name, state in states.items():
            with mounted(snapshots.view(f"view of {name}", name), tmp_path / "mnt") as top:
                assert tree(top) == state

    @pytest.mark.privileged
    def test_owners_and_modes_that_a_child_changes_are_its_own_and_its_childrens(
        self, snapshots, committed, tmp_path
    ):
        committed("base", files={"folder/file": "1", "folder/other": "1"})

        def owners(key: str) -> dict[str, tuple[int, int, int]]:
            with snapshots.mounted(key) as top:
                found = {name: (top / name).stat() for name in ("folder", "folder/file", "folder/other")}
                return {
                    name: (item.st_uid, item.st_gid, stat.S_IMODE(item.st_mode))
                    for name, item in found.items()
                }

        before = owners("base")
        with mounted(snapshots.prepare("key", "base"), tmp_path / "mnt") as top:
            os.chown(top / "folder", 12, 100_000)
            (top / "folder").chmod(0o2710)
            os.chown(top / "folder/file", 70_000, 13)
            (top / "folder/file").chmod(0o4711)
        snapshots.commit("name", "key")
        after = owners("name")
        assert after == {
            **before,
            "folder": (12, 100_000, 0o2710),
            "folder/file": (70_000, 13, 0o4711),
        }
        snapshots.prepare("next", "name")
        snapshots.commit("next name", "next")
        assert owners("next name") == after
        assert owners("base") == before

    @pytest.mark.privileged
    @pytest.mark.parametrize("method", ["prepare", "view"])
    def test_owners_are_seen_through_the_map_that_the_labels_say(
        self, snapshots, committed, tmp_path, method
    ):
        committed("base", files={"file": "1"})
        maps = {
            f"containerd.io/snapshot/{kind}mapping": f"0:{start}:65536"
            for kind, start in (("uid", 100_000), ("gid", 200_000))
        }
        with mounted(getattr(snapshots, method)("key", "base", maps), tmp_path / "mnt") as top:
            found = (top / "file").stat()
        assert (found.st_uid, found.st_gid) == (100_000, 200_000)
        with snapshots.mounted("base") as top:
            assert (top / "file").stat().st_uid == 0
        with pytest.raises(InvalidArgument):
            getattr(snapshots, method)("other", "base", {"containerd.io/snapshot/uidmapping": "x"})

    @pytest.mark.privileged
    def test_attributes_of_every_kind_are_in_the_commit(self, snapshots, tmp_path):
        with mounted(snapshots.prepare("key"), tmp_path / "mnt") as top:
            (top / "file").write_bytes(b"x")
            (top / "file").chmod(0o6755)
            os.setxattr(top / "file", "user.note", b"\0\xff")
            os.setxattr(top / "file", "security.capability", b"\1\0\0\2\0\4" + bytes(14))
            os.link(top / "file", top / "same")
            (top / "link").symlink_to("/nowhere")
            os.lchown(top / "link", 5, 70_000)
            os.mkfifo(top / "fifo", 0o620)
            os.mknod(top / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
            (top / "closed").mkdir(mode=0o000)
            with (top / "sparse").open("wb") as file:
                file.truncate(1 << 30)
            for number, name in enumerate(sorted(path.name for path in top.iterdir()), 1):
                os.utime(top / name, ns=(number, number * 1_000_000_007), follow_symlinks=False)
            before = read_tree(top)
        snapshots.commit("name", "key")
        with mounted(snapshots.view("view", "name"), tmp_path / "mnt") as top:
            assert differences(before, read_tree(top)) == []
        with mounted(snapshots.prepare("next", "name"), tmp_path / "mnt") as top:
            after = read_tree(top)
            del before["."], after["."]  # of the top folder, owner and mode are what is promised
            assert differences(before, after) == []
            assert (top / "sparse").stat().st_blocks == 0

    @pytest.mark.privileged
    def test_what_is_in_use_outlives_the_removal_of_what_is_not(self, snapshots, committed, tmp_path):
        committed("base", files={"a": "1"})
        with mounted(snapshots.prepare("key", "base"), tmp_path / "mnt") as top:
            (top / "b").write_text("2")
        snapshots.commit("middle", "key")
        with mounted(snapshots.prepare("upper", "middle"), tmp_path / "mnt") as top:
            (top / "a").unlink()
        snapshots.commit("top", "upper")
        snapshots.view("view", "top")
        for name in ("base", "middle", "top"):
            with pytest.raises(FailedPrecondition):
                snapshots.remove(name)
        with mounted(snapshots.mounts("view"), tmp_path / "mnt") as top:
            assert tree(top) == {"b": "2"}
        for name in ("view", "top", "middle"):
            snapshots.remove(name)
        with mounted(snapshots.view("view", "base"), tmp_path / "mnt") as top:
            assert tree(top) == {"a": "1"}

    @pytest.mark.privileged
    def test_changes_are_those_against_the_parent_or_another_snapshot(self, snapshots, committed, tmp_path):
        committed("top", committed("base", files={"d/a": "1", "gone": "1"}), {"d/b": "2"})
        with mounted(snapshots.prepare("key", "top"), tmp_path / "mnt") as top:
            (top / "d/a").write_text("changed")
            (top / "d/new").write_text("3")
            (top / "gone").unlink()
        expected = ["C /d", "C /d/a", "A /d/new", "D /gone"]
        assert [line for line in map(str, snapshots.changes("key")) if line != "C /"] == expected
        snapshots.commit("name", "key")
        assert [line for line in map(str, snapshots.changes("name")) if line != "C /"] == expected
        against = [line for line in map(str, snapshots.changes("name", "base")) if line != "C /"]
        assert against == ["C /d", "C /d/a", "A /d/b", "A /d/new", "D /gone"]
        snapshots.view("view", "name")
        assert snapshots.changes("view") == []
        with pytest.raises(FailedPrecondition), snapshots.diff("view"):
            pass

    @pytest.mark.privileged
    def test_a_snapshot_of_any_kind_can_be_mounted_for_a_while(self, snapshots, committed):
        committed("top", committed("base", files={"a": "1"}), {"b": "2"})
        snapshots.prepare("active", "top")
        snapshots.view("view", "top")
        with snapshots.mounted("active") as top:
            (top / "c").write_text("3")
        for key, expected in [
            ("active", {"a": "1", "b": "2", "c": "3"}),
            ("view", {"a": "1", "b": "2"}),
            ("top", {"a": "1", "b": "2"}),
            ("base", {"a": "1"}),
        ]:
            with snapshots.mounted(key) as top:
                assert tree(top) == expected
        assert len(list(snapshots.walk())) == 4

    # Many at once

    def test_of_many_who_prepare_one_key_one_does(self, snapshots, committed, reopen):
        committed("base", files={"a": "1"})
        others = [reopen() for _ in range(4)]

        def attempt(number: int) -> str:
            try:
                others[number % 4].prepare("key", "base", {"number": str(number)})
            except AlreadyExists:
                return ""
            return str(number)

        with ThreadPoolExecutor(8) as pool:
            done = [number for number in pool.map(attempt, range(16)) if number]
        assert done == [snapshots.stat("key").labels["number"]]
        own = snapshots.layer_paths("key")[0]
        folders = {path for path in own.parent.parent.iterdir() if path.name != "lost+found"}
        assert folders == {own.parent, snapshots.layer_paths("base")[0].parent}

    def test_many_prepare_view_commit_and_remove_on_one_parent(self, snapshots, committed, reopen):
        committed("base", files={"a": "1"})
        others = [reopen() for _ in range(4)]

        def work(number: int) -> None:
            mine = others[number % 4]
            for turn in range(3):
                key = f"{number}-{turn}"
                mine.prepare(key, "base")
                mine.commit(f"{key}, committed", key)
                mine.view(f"{key}, view", f"{key}, committed")
                mine.remove(f"{key}, view")
                mine.remove(f"{key}, committed")
            mine.prepare(str(number), "base")

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))
        assert sorted(info.name for info in snapshots.walk()) == sorted(["base", *map(str, range(8))])
        folders = {snapshots.layer_paths(str(number))[0] for number in range(8)}
        assert len(folders) == 8

    @pytest.mark.privileged
    @pytest.mark.parametrize(
        ("uid", "gid", "mode"), [(0, 0, 0o755), (12, 100_000, 0o2711), (70_000, 0, 0o1777)]
    )
    def test_the_top_folder_has_owner_and_mode_of_the_parents(
        self, snapshots, committed, tmp_path, uid, gid, mode
    ):
        committed("base")
        top = snapshots.layer_paths("base")[0]
        os.chown(top, uid, gid)
        top.chmod(mode)
        with mounted(snapshots.prepare("key", "base"), tmp_path / "mnt") as root:
            found = root.stat()
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (uid, gid, mode)
        snapshots.commit("name", "key")
        with mounted(snapshots.prepare("next", "name"), tmp_path / "mnt") as root:
            found = root.stat()
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (uid, gid, mode)

    @pytest.mark.privileged
    def test_the_umask_does_not_matter(self, snapshots, tmp_path):
        before = os.umask(0o777)
        try:
            snapshots.prepare("key")
        finally:
            os.umask(before)
        with mounted(snapshots.mounts("key"), tmp_path / "mnt") as root:
            assert stat.S_IMODE(root.stat().st_mode) == 0o755

    @pytest.mark.privileged
    def test_128_layers_can_be_mounted(self, snapshots, committed, tmp_path):
        parent = ""
        for number in range(CHAIN):
            parent = committed(
                f"layer-{number}", parent, {f"file-{number:03}": str(number), "last": str(number)}
            )
        expected = {f"file-{number:03}": str(number) for number in range(CHAIN)} | {"last": str(CHAIN - 1)}
        with mounted(snapshots.view("view", parent), tmp_path / "mnt") as top:
            assert tree(top) == expected
        with mounted(snapshots.prepare("active", parent), tmp_path / "mnt") as top:
            (top / "last").write_text("mine")
            assert tree(top) == {**expected, "last": "mine"}
