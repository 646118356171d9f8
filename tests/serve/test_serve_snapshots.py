"""Snapshots over the socket are those of the library."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from lamella.serve import Server
from lamella.serve.api import content_pb2, leases_pb2
from lamella.serve.api import snapshots_pb2 as pb
from rpc import refusal

CODES = grpc.StatusCode
OVERLAY = "overlayfs"


class Snapshots:
    """The service with one snapshotter, and an RPC's fields as keywords."""

    def __init__(self, stub: Any, snapshotter: str) -> None:
        self.stub, self.snapshotter = stub, snapshotter

    def prepare(self, key: str, parent: str = "", labels: Any = None, **options: Any) -> Any:
        return self.stub.Prepare(
            pb.PrepareSnapshotRequest(
                snapshotter=self.snapshotter, key=key, parent=parent, labels=labels or {}
            ),
            **options,
        ).mounts

    def view(self, key: str, parent: str = "", labels: Any = None, **options: Any) -> Any:
        return self.stub.View(
            pb.ViewSnapshotRequest(snapshotter=self.snapshotter, key=key, parent=parent, labels=labels or {}),
            **options,
        ).mounts

    def commit(self, name: str, key: str, labels: Any = None, parent: str = "", **options: Any) -> Any:
        return self.stub.Commit(
            pb.CommitSnapshotRequest(
                snapshotter=self.snapshotter, name=name, key=key, labels=labels or {}, parent=parent
            ),
            **options,
        )

    def stat(self, key: str) -> Any:
        return self.stub.Stat(pb.StatSnapshotRequest(snapshotter=self.snapshotter, key=key)).info

    def mounts(self, key: str) -> Any:
        return self.stub.Mounts(pb.MountsRequest(snapshotter=self.snapshotter, key=key)).mounts

    def remove(self, key: str) -> Any:
        return self.stub.Remove(pb.RemoveSnapshotRequest(snapshotter=self.snapshotter, key=key))

    def update(self, name: str, labels: dict[str, str], paths: list[str]) -> dict[str, str]:
        info = pb.Info(name=name, labels=labels)
        request = pb.UpdateSnapshotRequest(
            snapshotter=self.snapshotter, info=info, update_mask=FieldMask(paths=paths)
        )
        return dict(self.stub.Update(request).info.labels)

    def list(self, *filters: str) -> list[str]:
        request = pb.ListSnapshotsRequest(snapshotter=self.snapshotter, filters=filters)
        return [info.name for part in self.stub.List(request) for info in part.info]

    def usage(self, key: str) -> Any:
        return self.stub.Usage(pb.UsageRequest(snapshotter=self.snapshotter, key=key))


@pytest.fixture(params=["overlayfs", "native"])
def snapshots(served: Any, request: pytest.FixtureRequest) -> Snapshots:
    return Snapshots(served.stub(pb, "Snapshots"), request.param)


@pytest.fixture
def library(served: Any, snapshots: Snapshots) -> Any:
    return served.client.using(snapshots.snapshotter).snapshots


def test_a_snapshot_made_here_is_the_librarys_and_the_reverse(snapshots, library) -> None:
    mounts = snapshots.prepare("work", labels={"a": "b"})
    assert [(each.type, each.source, list(each.options)) for each in mounts] == [
        (each.type, each.source, each.options) for each in library.mounts("work")
    ]
    assert snapshots.mounts("work") == mounts
    snapshots.commit("base", "work", labels={"c": "d"})
    assert library.stat("base").labels == {"c": "d"}
    library.prepare("next", "base")
    info = snapshots.stat("next")
    assert (info.name, info.parent, info.kind) == ("next", "base", pb.ACTIVE)
    snapshots.view("look", "base")
    assert (snapshots.stat("look").kind, snapshots.stat("base").kind) == (pb.VIEW, pb.COMMITTED)
    assert snapshots.list() == ["base", "next", "look"]
    for key in ("next", "look", "base"):
        snapshots.remove(key)
    assert not list(library.walk())


def test_nothing_becomes_a_root_by_itself(served, snapshots, library) -> None:
    snapshots.prepare("work")
    snapshots.commit("base", "work")
    snapshots.view("look", "base")
    snapshots.prepare("left", parent="base")
    snapshots.prepare("kept", labels={"containerd.io/gc.root": "now"})
    library.prepare("own")
    assert not library.stat("base").labels
    assert not snapshots.stat("left").labels
    assert snapshots.update("left", {"a": "b"}, []) == {"a": "b"}
    served.client.gc()
    assert sorted(each.name for each in library.walk()) == ["kept", "own"]


def test_usage_is_that_of_the_library(snapshots, library) -> None:
    snapshots.prepare("work")
    library.layer_paths("work")[0].joinpath("file").write_bytes(b"x" * 100_000)
    usage = snapshots.usage("work")
    assert (usage.size, usage.inodes) == (library.usage("work").size, library.usage("work").inodes)
    assert usage.size >= 100_000


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["labels.new"], {"old": "1", "new": "2"}),
        (["labels.old"], {}),
        (["labels"], {"new": "2"}),
        ([], {"new": "2"}),
    ],
)
def test_labels_are_updated_by_mask(snapshots, paths, expected) -> None:
    snapshots.prepare("work", labels={"old": "1"})
    new = {"new": "2"} if paths != ["labels.old"] else {}
    assert snapshots.update("work", new, paths) == expected
    assert refusal(snapshots.update, "work", labels={}, paths=["parent"]) is CODES.INVALID_ARGUMENT


def test_listing_is_filtered(snapshots) -> None:
    for number in range(120):
        snapshots.prepare(f"s{number}", labels={"odd": str(number % 2)})
    assert len(snapshots.list()) == 120
    assert len(snapshots.list("labels.odd==1")) == 60
    assert snapshots.list("name==s7") == ["s7"]
    assert refusal(snapshots.list, "==") is CODES.INVALID_ARGUMENT


def test_refusals_are_those_of_containerd(snapshots) -> None:
    snapshots.prepare("active")
    snapshots.prepare("work")
    snapshots.commit("base", "work")
    snapshots.prepare("child", parent="base")
    assert refusal(snapshots.prepare, "active") is CODES.ALREADY_EXISTS
    assert refusal(snapshots.view, "base") is CODES.ALREADY_EXISTS
    assert refusal(snapshots.prepare, "x", parent="none") is CODES.NOT_FOUND
    assert refusal(snapshots.prepare, "x", parent="active") is CODES.INVALID_ARGUMENT
    assert refusal(snapshots.commit, "base", key="active") is CODES.ALREADY_EXISTS
    assert refusal(snapshots.commit, "x", key="none") is CODES.NOT_FOUND
    assert refusal(snapshots.commit, "x", key="base") is CODES.FAILED_PRECONDITION
    assert refusal(snapshots.commit, "x", key="child", parent="none") is CODES.NOT_FOUND
    assert refusal(snapshots.commit, "x", key="child", parent="active") is CODES.INVALID_ARGUMENT
    assert refusal(snapshots.mounts, "base") is CODES.FAILED_PRECONDITION
    assert refusal(snapshots.remove, "base") is CODES.FAILED_PRECONDITION
    for call in (snapshots.stat, snapshots.mounts, snapshots.remove, snapshots.usage):
        assert refusal(call, "none") is CODES.NOT_FOUND
    snapshots.commit("y", "child", parent="base")


@pytest.mark.parametrize("key", ["", "nul\0", "k" * 5000])
def test_keys_that_are_none_are_refused(snapshots, key) -> None:
    snapshots.prepare("work")
    for call in (
        snapshots.prepare,
        snapshots.view,
        snapshots.stat,
        snapshots.mounts,
        snapshots.remove,
        snapshots.usage,
    ):
        assert refusal(call, key) is CODES.INVALID_ARGUMENT
    assert refusal(snapshots.commit, key, key="work") is CODES.INVALID_ARGUMENT
    assert refusal(snapshots.prepare, "x", labels={"k": "v" * 5000}) is CODES.INVALID_ARGUMENT
    assert snapshots.list() == ["work"]


@pytest.mark.parametrize("key", ["../../up", "/etc/passwd", "a b", "sha256:" + "0" * 64, "default/12/x"])
def test_a_key_is_no_path(snapshots, key) -> None:
    snapshots.prepare(key)
    assert snapshots.stat(key).name == key
    snapshots.remove(key)


def test_namespaces_do_not_see_each_other(served, snapshots) -> None:
    snapshots.prepare("work")
    other = Snapshots(served.stub(pb, "Snapshots", namespace="other"), snapshots.snapshotter)
    assert other.list() == []
    assert refusal(other.mounts, "work") is CODES.NOT_FOUND
    assert refusal(other.remove, "work") is CODES.NOT_FOUND


@pytest.mark.parametrize("name", ["", "zfs", "../native"])
def test_a_snapshotter_has_to_be_named(served, name) -> None:
    snapshots = Snapshots(served.stub(pb, "Snapshots"), name)
    assert refusal(snapshots.prepare, "k") is CODES.INVALID_ARGUMENT
    assert refusal(snapshots.list, "") is CODES.INVALID_ARGUMENT


def test_a_lease_holds_what_is_made(served, snapshots, library) -> None:
    leases = served.stub(leases_pb2, "Leases")
    lease = leases.Create(leases_pb2.CreateRequest()).lease.id
    snapshots.prepare("work", lease=lease)
    snapshots.commit("base", "work", lease=lease)
    snapshots.view("look", "base", lease=lease)
    served.client.gc()
    assert [each.name for each in library.walk()] == ["base", "look"]
    leases.Delete(leases_pb2.DeleteRequest(id=lease, sync=True))
    assert not list(library.walk())
    assert refusal(snapshots.prepare, "x", lease="none") is CODES.NOT_FOUND
    assert snapshots.list() == []


def test_cleanup_removes_leftovers_and_nothing_else(served, snapshots, library) -> None:
    snapshots.prepare("work")
    leftover = library.layer_paths("work")[0].parents[1] / "leftover" / "fs"
    leftover.mkdir(parents=True)
    snapshots.stub.Cleanup(pb.CleanupRequest(snapshotter=snapshots.snapshotter))
    assert snapshots.list() == ["work"]
    assert not leftover.exists()


class TestTargets:
    """``containerd.io/snapshot.ref``: what is here already need not be fetched."""

    REF = "containerd.io/snapshot.ref"

    @pytest.fixture
    def image(self, served: Any, small_image: str) -> Any:
        return served.server.client_of("pulled").images.pull(small_image)

    @pytest.fixture
    def overlay(self, served: Any) -> Snapshots:
        return Snapshots(served.stub(pb, "Snapshots"), OVERLAY)

    def test_what_another_namespace_has_unpacked_is_here_at_once(self, served, overlay, image) -> None:
        parent = ""
        for chain in image.chain_ids:
            assert (
                refusal(overlay.prepare, "extract", parent=parent, labels={self.REF: chain})
                is CODES.ALREADY_EXISTS
            )
            info = overlay.stat(chain)
            assert (info.kind, info.parent, info.labels[self.REF]) == (pb.COMMITTED, parent, chain)
            assert chain in overlay.list(f'labels."{self.REF}"=={chain},parent=="{parent}"')
            parent = chain
        overlay.prepare("work", parent=image.chain_id)
        with served.client.snapshots.mounted(image.chain_id) as root:  # as a copy, without root
            assert (root / "bin/sh").exists()

    def test_what_stands_on_another_parent_is_not(self, overlay, image) -> None:
        overlay.prepare("extract", labels={self.REF: image.chain_ids[1]})
        assert overlay.list() == ["extract"]

    def test_what_a_client_called_by_a_chain_id_does_not_reach_other_namespaces(
        self, served, overlay
    ) -> None:
        chain = "sha256:" + "1" * 64
        overlay.prepare("work")
        overlay.commit(chain, "work")
        assert refusal(overlay.prepare, "x", labels={self.REF: chain}) is CODES.ALREADY_EXISTS
        other = Snapshots(served.stub(pb, "Snapshots", namespace="other"), OVERLAY)
        other.prepare("x", labels={self.REF: chain})
        assert other.list() == ["x"]

    def test_a_lease_holds_what_was_found(self, served, overlay, image) -> None:
        leases = served.stub(leases_pb2, "Leases")
        lease = leases.Create(leases_pb2.CreateRequest()).lease.id
        first = image.chain_ids[0]
        assert refusal(overlay.prepare, "x", labels={self.REF: first}, lease=lease) is CODES.ALREADY_EXISTS
        served.client.gc()
        assert overlay.list() == [first]


def test_what_a_backend_keeps_is_kept_until_it_is_removed(served, tmp_path) -> None:
    blob = b"layer"
    with Server(client=served.client, address=tmp_path / "b", backend=True) as server:
        backend = type(served)(server)
        snapshots = Snapshots(backend.stub(pb, "Snapshots"), OVERLAY)
        snapshots.prepare("work")
        snapshots.commit("base", "work")
        snapshots.view("look", "base")
        commit = content_pb2.WriteContentRequest(action=content_pb2.COMMIT, ref="r", data=blob)
        (written,) = backend.stub(content_pb2, "Content").Write(iter([commit]))
        served.client.gc()
        assert snapshots.list() == ["base", "look"]
        assert served.client.content.read(written.digest) == blob
        backend.channel.close()
