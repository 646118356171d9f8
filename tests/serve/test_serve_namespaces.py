"""Namespaces over the socket are those of the library."""

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from lamella.serve.api import namespaces_pb2 as pb
from rpc import refusal


@pytest.fixture
def namespaces(served):
    return served.stub(pb, "Namespaces", namespace=None)


def test_a_namespace_made_here_is_there_and_the_reverse(served, namespaces) -> None:
    namespaces.Create(pb.CreateNamespaceRequest(namespace=pb.Namespace(name="here", labels={"a": "b"})))
    served.client.namespaces.create("there", labels={"c": "d"})
    assert served.client.namespaces.get("here").labels == {"a": "b"}
    listed = namespaces.List(pb.ListNamespacesRequest()).namespaces
    assert {each.name: dict(each.labels) for each in listed} == {"here": {"a": "b"}, "there": {"c": "d"}}
    assert namespaces.Get(pb.GetNamespaceRequest(name="there")).namespace.labels["c"] == "d"
    namespaces.Delete(pb.DeleteNamespaceRequest(name="here"))
    assert [each.name for each in served.client.namespaces.list()] == ["there"]


@pytest.mark.parametrize(
    ("paths", "expected"),
    [((), {"new": "1"}), (("labels.new",), {"old": "1", "new": "1"}), (("labels.old",), {})],
    ids=["all", "one", "removed"],
)
def test_labels_are_updated_by_mask(namespaces, paths, expected) -> None:
    namespaces.Create(pb.CreateNamespaceRequest(namespace=pb.Namespace(name="n", labels={"old": "1"})))
    wanted = pb.Namespace(name="n", labels={"new": "1"})
    answer = namespaces.Update(
        pb.UpdateNamespaceRequest(namespace=wanted, update_mask=FieldMask(paths=paths))
    )
    assert dict(answer.namespace.labels) == expected


def test_refusals_are_those_of_containerd(namespaces) -> None:
    codes = grpc.StatusCode
    make = lambda name: pb.CreateNamespaceRequest(namespace=pb.Namespace(name=name))  # noqa: E731
    namespaces.Create(make("n"))
    assert refusal(namespaces.Create, make("n")) is codes.ALREADY_EXISTS
    for name in ("", "../up", "a" * 77, "a/b"):
        assert refusal(namespaces.Create, make(name)) is codes.INVALID_ARGUMENT
    assert namespaces.Get(pb.GetNamespaceRequest(name="none")).namespace == pb.Namespace(name="none")
    assert refusal(namespaces.Delete, pb.DeleteNamespaceRequest(name="none")) is codes.NOT_FOUND
    update = pb.UpdateNamespaceRequest(
        namespace=pb.Namespace(name="n"), update_mask=FieldMask(paths=["name"])
    )
    assert refusal(namespaces.Update, update) is codes.INVALID_ARGUMENT


def test_a_namespace_in_use_is_not_deleted(served, namespaces) -> None:
    client = served.server.client_of("full")
    client.snapshots.prepare("s")
    assert (
        refusal(namespaces.Delete, pb.DeleteNamespaceRequest(name="full"))
        is grpc.StatusCode.FAILED_PRECONDITION
    )
