"""Leases over the socket are those of the library."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from lamella.serve.api import leases_pb2 as pb
from rpc import refusal

CODES = grpc.StatusCode
DIGEST = "sha256:" + "1" * 64


@pytest.fixture
def leases(served: Any) -> Any:
    return served.stub(pb, "Leases")


def test_a_lease_made_here_is_the_librarys_and_the_reverse(served, leases) -> None:
    made = leases.Create(pb.CreateRequest(id="here", labels={"a": "b"})).lease
    assert (made.id, dict(made.labels)) == ("here", {"a": "b"})
    assert served.client.leases.get("here").labels == {"a": "b"}
    served.client.leases.create("there")
    assert [each.id for each in leases.List(pb.ListRequest()).leases] == ["here", "there"]
    assert [each.id for each in leases.List(pb.ListRequest(filters=["labels.a==b"])).leases] == ["here"]
    assert not leases.List(pb.ListRequest(), namespace="other").leases
    leases.Delete(pb.DeleteRequest(id="here"))
    assert [each.id for each in served.client.leases.list()] == ["there"]


def test_a_lease_without_an_id_gets_one(leases) -> None:
    first, second = (leases.Create(pb.CreateRequest()).lease.id for _ in range(2))
    assert first
    assert first != second


@pytest.mark.parametrize("name", ["476439881-Epc_", "../up", "a b"])
def test_an_id_is_taken_as_it_stands(leases, name) -> None:
    assert leases.Create(pb.CreateRequest(id=name)).lease.id == name
    leases.Delete(pb.DeleteRequest(id=name))
    assert not leases.List(pb.ListRequest()).leases


def test_an_expiry_is_a_label(served, leases) -> None:
    leases.Create(pb.CreateRequest(id="old", labels={"containerd.io/gc.expire": "2020-01-01T00:00:00Z"}))
    assert served.client.leases.get("old").expired


def test_resources_are_held_and_let_go(served, leases) -> None:
    leases.Create(pb.CreateRequest(id="l"))
    resource = pb.Resource(id="snap", type="snapshots/overlayfs")
    for _ in range(2):
        leases.AddResource(pb.AddResourceRequest(id="l", resource=resource))
    leases.AddResource(pb.AddResourceRequest(id="l", resource=pb.Resource(id=DIGEST, type="content")))
    listed = leases.ListResources(pb.ListResourcesRequest(id="l")).resources
    assert [(each.type, each.id) for each in listed] == [("content", DIGEST), ("snapshots/overlayfs", "snap")]
    for _ in range(2):
        leases.DeleteResource(pb.DeleteResourceRequest(id="l", resource=resource))
    assert [each.type for each in served.client.leases.resources("l")] == ["content"]


@pytest.mark.parametrize(
    ("type", "id", "code"),
    [
        ("content", "nonsense", CODES.INVALID_ARGUMENT),
        ("content/x", DIGEST, CODES.INVALID_ARGUMENT),
        ("ingests/x", "r", CODES.INVALID_ARGUMENT),
        ("snapshots", "s", CODES.INVALID_ARGUMENT),
        ("snapshots/a/b", "s", CODES.INVALID_ARGUMENT),
        ("snapshots/overlayfs", "", CODES.INVALID_ARGUMENT),
        ("nonsense", "x", CODES.UNIMPLEMENTED),
        ("", "", CODES.UNIMPLEMENTED),
    ],
)
def test_resources_that_are_refused(leases, type, id, code) -> None:
    leases.Create(pb.CreateRequest(id="l"))
    request = pb.AddResourceRequest(id="l", resource=pb.Resource(id=id, type=type))
    assert refusal(leases.AddResource, request) is code


def test_refusals_are_those_of_containerd(leases) -> None:
    leases.Create(pb.CreateRequest(id="l"))
    assert refusal(leases.Create, pb.CreateRequest(id="l")) is CODES.ALREADY_EXISTS
    for name in ("a" * 5000, "nul\0"):
        assert refusal(leases.Create, pb.CreateRequest(id=name)) is CODES.INVALID_ARGUMENT
    expire = {"containerd.io/gc.expire": "soon"}
    assert refusal(leases.Create, pb.CreateRequest(labels=expire)) is CODES.INVALID_ARGUMENT
    for call, request in [
        (leases.Delete, pb.DeleteRequest(id="none")),
        (leases.ListResources, pb.ListResourcesRequest(id="none")),
        (leases.AddResource, pb.AddResourceRequest(id="none", resource=pb.Resource(id="r", type="ingests"))),
        (leases.DeleteResource, pb.DeleteResourceRequest(id="none", resource=pb.Resource(id="r", type="ingests"))),
    ]:  # fmt: skip
        assert refusal(call, request) is CODES.NOT_FOUND
    assert refusal(leases.List, pb.ListRequest(filters=["=="])) is CODES.INVALID_ARGUMENT
