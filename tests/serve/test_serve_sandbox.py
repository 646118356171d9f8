"""There are no sandboxes, and clients are told so."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from lamella.serve.api import sandbox_pb2 as pb
from lamella.serve.api import types_pb2
from rpc import refusal

CODES = grpc.StatusCode
SANDBOX = types_pb2.Sandbox(sandbox_id="one", sandboxer="shim")


def test_no_sandboxes_are_listed(served: Any) -> None:
    stub = served.stub(pb, "Store")
    assert stub.List(pb.StoreListRequest()) == pb.StoreListResponse()
    assert stub.List(pb.StoreListRequest(filters=["id==one"])) == pb.StoreListResponse()
    assert refusal(stub.List, pb.StoreListRequest(filters=["id="])) is CODES.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("method", "request_", "code"),
    [
        ("Get", pb.StoreGetRequest(sandbox_id="one"), CODES.NOT_FOUND),
        ("Get", pb.StoreGetRequest(sandbox_id="x" * 100_000), CODES.NOT_FOUND),
        ("Update", pb.StoreUpdateRequest(sandbox=SANDBOX), CODES.NOT_FOUND),
        ("Delete", pb.StoreDeleteRequest(sandbox_id="../one"), CODES.NOT_FOUND),
        ("Create", pb.StoreCreateRequest(sandbox=SANDBOX), CODES.UNIMPLEMENTED),
    ],
)
def test_a_sandbox_is_refused(served: Any, method: str, request_: Any, code: grpc.StatusCode) -> None:
    assert refusal(getattr(served.stub(pb, "Store"), method), request_) is code
    without = getattr(served.stub(pb, "Store", namespace=None), method)
    assert refusal(without, request_) is CODES.FAILED_PRECONDITION


def test_nothing_controls_sandboxes(served: Any) -> None:
    stub = served.stub(pb, "Controller")
    assert refusal(stub.Start, pb.ControllerStartRequest(sandbox_id="one")) is CODES.UNIMPLEMENTED
