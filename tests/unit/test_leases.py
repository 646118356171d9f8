"""Leases and namespaces: what they keep, what they refuse."""

from __future__ import annotations

import pytest

from lamella.digest import digest_of
from lamella.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unsupported
from lamella.leases import Resource
from lamella.metadata import timestamp

DIGEST = digest_of(b"x")


class TestLeases:
    def test_a_lease_is_created_listed_and_deleted(self, store):
        lease = store.leases.create("mine", labels={"a": "b"})
        assert (lease.id, lease.labels, lease.expires_at, lease.expired) == ("mine", {"a": "b"}, None, False)
        assert store.leases.list() == [lease] == [store.leases.get("mine")]
        store.leases.delete("mine")
        assert store.leases.list() == []
        with pytest.raises(NotFound, match="mine"):
            store.leases.delete("mine")
        with pytest.raises(NotFound):
            store.leases.get("mine")

    def test_a_lease_without_a_name_gets_one(self, store):
        assert store.leases.create().id != store.leases.create().id

    def test_a_lease_that_is_there_already_exists(self, store):
        store.leases.create("mine")
        with pytest.raises(AlreadyExists):
            store.leases.create("mine")

    def test_namespaces_have_leases_of_their_own(self, store, open_store):
        other = open_store("other")
        store.leases.create("mine")
        other.leases.create("mine")
        other.leases.delete("mine")
        assert [lease.id for lease in store.leases.list()] == ["mine"]

    @pytest.mark.parametrize("name", ["", "nul\0", "x" * 5000])
    def test_a_malformed_name_is_an_invalid_argument(self, store, name):
        with pytest.raises(InvalidArgument):
            store.leases.create(name)

    @pytest.mark.parametrize("name", ["a b", "../x", "476439881-Epc_"])
    def test_any_other_text_is_a_name(self, store, name):
        assert store.leases.create(name).id == name
        store.leases.delete(name)
        assert store.leases.list() == []

    def test_it_expires_after_so_many_seconds(self, store):
        before = timestamp(59)
        lease = store.leases.create(expires_in=60)
        assert before < lease.expires_at < timestamp(61)
        assert not lease.expired
        assert store.leases.create(expires_in=1e-6).expired

    @pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 1e30])
    def test_a_time_that_is_none_is_an_invalid_argument(self, store, seconds):
        with pytest.raises(InvalidArgument):
            store.leases.create(expires_in=seconds)
        assert store.leases.list() == []

    def test_the_label_of_containerd_sets_the_end(self, store):
        lease = store.leases.create(labels={"containerd.io/gc.expire": "2020-01-01T01:00:00+01:00"})
        assert lease.expires_at == "2020-01-01T00:00:00.000000Z"
        assert lease.expired
        with pytest.raises(InvalidArgument):
            store.leases.create(labels={"containerd.io/gc.expire": "soon"})

    def test_resources_are_added_listed_and_removed(self, store):
        store.leases.create("mine")
        store.leases.add("mine", "content", DIGEST)
        store.leases.add("mine", "content", DIGEST)
        store.leases.add_all(
            "mine",
            [
                ("snapshots/overlayfs", "any/key"),
                ("layers", DIGEST),
                ("ingests", "ref"),
                ("images", "docker.io/library/nginx:latest"),
            ],
        )
        assert store.leases.resources("mine") == [
            Resource("content", DIGEST),
            Resource("images", "docker.io/library/nginx:latest"),
            Resource("ingests", "ref"),
            Resource("layers", DIGEST),
            Resource("snapshots/overlayfs", "any/key"),
        ]
        store.leases.remove("mine", "content", DIGEST)
        store.leases.remove("mine", "content", DIGEST)
        assert Resource("content", DIGEST) not in store.leases.resources("mine")

    @pytest.mark.parametrize(
        ("type", "resource"),
        [
            ("", "x"),
            ("blob", DIGEST),
            ("snapshots", "x"),
            ("snapshots/", "x"),
            ("content", "x"),
            ("ingests", ""),
        ],
    )
    def test_a_resource_that_is_none_is_an_invalid_argument(self, store, type, resource):
        store.leases.create("mine")
        with pytest.raises(InvalidArgument):
            store.leases.add_all("mine", [("content", DIGEST), (type, resource)])
        assert store.leases.resources("mine") == []

    def test_a_digest_of_a_resource_is_validated(self, store):
        store.leases.create("mine")
        with pytest.raises(Unsupported):
            store.leases.add("mine", "content", "md5:" + "0" * 32)

    def test_resources_of_a_lease_that_is_not_there_are_not_found(self, store):
        for attempt in (
            lambda: store.leases.add("nobody", "content", DIGEST),
            lambda: store.leases.remove("nobody", "content", DIGEST),
            lambda: store.leases.resources("nobody"),
        ):
            with pytest.raises(NotFound, match="nobody"):
                attempt()

    def test_leases_are_filtered(self, store):
        store.leases.create("a", labels={"x": "1"})
        store.leases.create("b")
        assert [lease.id for lease in store.leases.list(filters=["labels.x==1"])] == ["a"]
        assert [lease.id for lease in store.leases.list(filters=["id==b", "id==c"])] == ["b"]

    def test_hold_gives_one_for_the_block_even_when_it_fails(self, store):
        with pytest.raises(ZeroDivisionError), store.leases.hold(expires_in=60) as lease:
            assert store.leases.list() == [lease]
            raise ZeroDivisionError
        assert store.leases.list() == []

    def test_hold_does_not_mind_that_it_was_deleted(self, store):
        with store.leases.hold() as lease:
            store.leases.delete(lease.id)

    def test_a_synchronous_delete_collects_what_it_protected(self, store):
        digest = store.put(b"x")
        store.leases.create("mine")
        store.leases.add("mine", "content", digest)
        store.gc()
        assert store.content.exists(digest)
        store.leases.delete("mine", synchronous=True)
        assert not store.content.exists(digest)


class TestNamespaces:
    def test_a_namespace_is_created_listed_and_deleted(self, store):
        created = store.namespaces.create("mine", labels={"a": "b"})
        assert (created.name, created.labels) == ("mine", {"a": "b"})
        assert store.namespaces.list() == [created] == [store.namespaces.get("mine")]
        store.namespaces.delete("mine")
        assert store.namespaces.list() == []

    def test_one_that_is_there_already_exists(self, store):
        store.namespaces.create("mine")
        with pytest.raises(AlreadyExists):
            store.namespaces.create("mine")

    def test_it_comes_with_the_first_thing_in_it(self, store, open_store):
        open_store("other").put(b"x")
        store.snapshots.prepare("key")
        assert [each.name for each in store.namespaces.list()] == ["default", "other"]

    def test_what_was_put_into_it_keeps_its_labels(self, store):
        store.namespaces.create("default", labels={"a": "b"})
        store.put(b"x")
        assert store.namespaces.get("default").labels == {"a": "b"}

    def test_labels_are_set_and_removed(self, store):
        store.namespaces.create("mine", labels={"a": "1", "b": "2"})
        assert store.namespaces.update_labels("mine", {"a": "", "c": "3"}).labels == {"b": "2", "c": "3"}
        with pytest.raises(InvalidArgument):
            store.namespaces.update_labels("mine", {"k": "v" * 4096})
        assert store.namespaces.get("mine").labels == {"b": "2", "c": "3"}

    @pytest.mark.parametrize("name", ["", "a/b", "x" * 77])
    def test_a_malformed_name_is_an_invalid_argument(self, store, name):
        with pytest.raises(InvalidArgument):
            store.namespaces.create(name)

    def test_one_that_is_not_there_is_not_found(self, store):
        for attempt in (
            lambda: store.namespaces.get("nobody"),
            lambda: store.namespaces.delete("nobody"),
            lambda: store.namespaces.update_labels("nobody", {}),
        ):
            with pytest.raises(NotFound, match="nobody"):
                attempt()

    @pytest.mark.parametrize("what", ["images", "containers", "snapshots", "content", "leases"])
    def test_deleting_one_that_is_not_empty_is_a_failed_precondition(self, store, what):
        {
            "images": lambda: store.image("name", DIGEST),
            "containers": lambda: store.container("name", "key"),
            "snapshots": lambda: store.snapshots.prepare("key"),
            "content": lambda: store.put(b"x"),
            "leases": store.leases.create,
        }[what]()
        with pytest.raises(FailedPrecondition, match=what):
            store.namespaces.delete("default")
        assert [each.name for each in store.namespaces.list()] == ["default"]


def test_labels_are_changed_and_the_end_stays(store):
    lease = store.leases.create("a", expires_in=60, labels={"x": "1", "y": "2"})
    changed = store.leases.update_labels("a", {"x": "", "z": "3"})
    assert changed.labels == {"y": "2", "z": "3"}
    assert changed.expires_at == lease.expires_at
    with pytest.raises(NotFound):
        store.leases.update_labels("b", {})


def test_leases_are_deleted_by_a_label_of_their_namespace(open_store):
    store, other = open_store(), open_store("other")
    for each in (store, other):
        each.leases.create("a", labels={"x": "1"})
        each.leases.create("b", labels={"x": "2"})
    store.leases.delete_labelled("x", "1")
    store.leases.delete_labelled("x", "1")
    assert [lease.id for lease in store.leases.list()] == ["b"]
    assert [lease.id for lease in other.leases.list()] == ["a", "b"]
