"""Records of containers over the socket are those of the library, with containerd's rules."""

import grpc
import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.field_mask_pb2 import FieldMask

from lamella.serve.api import containers_pb2 as pb
from lamella.serve.messages import SPEC_TYPE
from rpc import refusal

SPEC = Any(type_url=SPEC_TYPE, value=b'{ "ociVersion":"1.0.2",\n "process": {"args": ["a"]} }')
OPTIONS = Any(type_url="containerd.runc.v1.Options", value=b"\x10\x01")


@pytest.fixture
def containers(served):
    return served.stub(pb, "Containers")


def record(**changes) -> pb.Container:
    fields = {
        "id": "box",
        "image": "docker.io/library/a:1",
        "runtime": pb.Container.Runtime(name="io.containerd.runc.v2", options=OPTIONS),
        "spec": SPEC,
        "snapshotter": "overlayfs",
        "snapshot_key": "key",
        "labels": {"a": "1"},
        "extensions": {"e": Any(type_url="x/y", value=b"\xff\0")},
        "sandbox": "pod",
    }
    return pb.Container(**fields | changes)


def make(containers, **changes) -> pb.Container:
    return containers.Create(pb.CreateContainerRequest(container=record(**changes))).container


def update(containers, paths=(), **changes) -> pb.Container:
    asked = pb.UpdateContainerRequest(container=record(**changes), update_mask=FieldMask(paths=paths))
    return containers.Update(asked).container


def test_a_record_is_given_back_as_it_was_made(containers) -> None:
    made = make(containers)
    assert made.created_at.seconds and made.created_at == made.updated_at
    got = containers.Get(pb.GetContainerRequest(id="box")).container
    assert got == made
    got.ClearField("created_at")
    got.ClearField("updated_at")
    assert got == record()


@pytest.mark.parametrize(
    "value", [b"", b"\xff\xfe", b"[1]", b'"text"', b"{", b'{"a":"\\u0000"}', b'{"process":5}']
)
def test_a_spec_that_is_none_is_kept_byte_by_byte(served, containers, value) -> None:
    spec = Any(type_url="example.com/own", value=value)
    make(containers, spec=spec)
    assert containers.Get(pb.GetContainerRequest(id="box")).container.spec == spec
    (box,) = served.client.containers.list(all=True)
    assert (box.name, box.command, box.mounts, box.status) == ("box", [], [], "created")


@pytest.mark.parametrize("snapshotter", ["overlayfs", "none-of-ours"])
def test_the_library_lists_what_was_made_here_and_the_reverse(served, containers, snapshotter) -> None:
    make(containers, snapshotter=snapshotter)
    box = served.client.containers.get("box")
    assert (box.id, box.image, box.command) == ("box", "docker.io/library/a:1", ["a"])
    assert box.labels == {"a": "1"} and box.snapshot_key == "key"
    assert [each.id for each in containers.List(pb.ListContainersRequest()).containers] == ["box"]
    box.remove()
    assert refusal(containers.Get, pb.GetContainerRequest(id="box")) is grpc.StatusCode.NOT_FOUND


def test_filters_are_containerds_and_the_stream_gives_the_same(containers) -> None:
    for name in ("one", "two"):
        make(containers, id=name, labels={"n": name})
    make(containers, id="three", labels={}, image="other")

    def ids(*filters: str) -> list[str]:
        request = pb.ListContainersRequest(filters=filters)
        listed = [each.id for each in containers.List(request).containers]
        assert [each.container.id for each in containers.ListStream(request)] == listed
        return sorted(listed)

    assert ids() == ["one", "three", "two"]
    assert ids("id==one") == ["one"]
    assert ids("labels.n~=t") == ["two"]
    assert ids("image==other", "id==one") == ["one", "three"]
    assert ids("runtime.name==io.containerd.runc.v2,labels.n") == ["one", "two"]
    assert ids("runtime.name==x") == []
    bad = pb.ListContainersRequest(filters=["id=="])
    assert refusal(containers.List, bad) is grpc.StatusCode.INVALID_ARGUMENT


def test_an_update_changes_what_its_mask_names(containers) -> None:
    made = make(containers, labels={"a": "1", "b": "2"})
    other = Any(type_url=SPEC_TYPE, value=b'{"x":1}')
    new = {"labels": {"a": "9"}, "image": "new", "spec": other, "snapshot_key": "k2"}
    assert update(containers, ["labels.a"], **new).labels == {"a": "9", "b": "2"}
    assert update(containers, ["labels.b"], **new).labels == {"a": "9"}
    assert update(containers, ["spec"], **new).spec == other
    assert update(containers, ["image", "snapshotkey"], **new).image == "new"
    changed = update(containers, ["extensions.e", "extensions.f"], extensions={"f": OPTIONS})
    assert dict(changed.extensions) == {"f": OPTIONS}
    assert changed.snapshot_key == "k2" and changed.created_at == made.created_at
    assert changed.updated_at.ToNanoseconds() > made.updated_at.ToNanoseconds()
    replaced = update(containers, labels={"c": "3"}, extensions={})
    assert (dict(replaced.labels), dict(replaced.extensions)) == ({"c": "3"}, {})
    assert replaced.spec == SPEC and replaced.runtime.options == OPTIONS


def test_refusals_are_those_of_containerd(containers) -> None:
    codes = grpc.StatusCode
    make(containers)
    assert refusal(make, containers) is codes.ALREADY_EXISTS
    for changes in (
        *({"id": name} for name in ("", "../up", "a/b", "a" * 77, "-a")),
        {"id": "x", "runtime": pb.Container.Runtime()},
        {"id": "x", "spec": None},
        {"id": "x", "snapshotter": ""},
        {"id": "x", "labels": {"k": "v" * 4096}},
        {"id": "x", "extensions": {"": OPTIONS}},
    ):
        assert refusal(make, containers, **changes) is codes.INVALID_ARGUMENT, changes
    for paths, changes in (
        (["id"], {}),
        (["labels."], {}),
        (["spec"], {"spec": None}),
        (["created_at"], {}),
        (["a" * 100_000], {}),
        ([], {"snapshotter": "native"}),
        ([], {"runtime": pb.Container.Runtime(name="other")}),
        ([], {"id": ""}),
    ):
        assert refusal(update, containers, paths, **changes) is codes.INVALID_ARGUMENT, paths
    for call, request in (
        (containers.Get, pb.GetContainerRequest(id="none")),
        (containers.Get, pb.GetContainerRequest(id="../box")),
        (containers.Delete, pb.DeleteContainerRequest(id="none")),
        (containers.Delete, pb.DeleteContainerRequest()),
    ):
        assert refusal(call, request) is codes.NOT_FOUND
    assert refusal(update, containers, ["labels"], id="none") is codes.NOT_FOUND
    assert containers.Get(pb.GetContainerRequest(id="box")).container.labels == {"a": "1"}


def test_namespaces_do_not_see_each_others_containers(containers) -> None:
    make(containers)
    assert not containers.List(pb.ListContainersRequest(), namespace="other").containers
    with pytest.raises(grpc.RpcError) as caught:
        containers.Delete(pb.DeleteContainerRequest(id="box"), namespace="other")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    containers.Delete(pb.DeleteContainerRequest(id="box"))
    assert not containers.List(pb.ListContainersRequest()).containers
