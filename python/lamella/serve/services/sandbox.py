"""``containerd.services.sandbox.v1.Store``: records of sandboxes, of which there are none.

A sandbox is what a sandboxer runs, such as a pod's pause container or a virtual machine; lamella has no sandboxer, so that
nothing could be done with a record of one. Clients that look for sandboxes find none, those that make one are refused. The
service ``Controller`` is not there at all: Unimplemented, by name.
"""

from __future__ import annotations

from typing import NoReturn

from lamella.errors import NotFound, Unsupported
from lamella.filters import compile_filters
from lamella.serve.api import sandbox_pb2
from lamella.serve.call import Call
from lamella.serve.service import Service


class Store(Service):
    """Records of sandboxes. Every call needs a namespace: FailedPrecondition."""

    descriptor = sandbox_pb2.DESCRIPTOR.services_by_name["Store"]

    def List(self, request: sandbox_pb2.StoreListRequest, call: Call) -> sandbox_pb2.StoreListResponse:
        """Give no sandboxes. InvalidArgument for filters that are none."""
        assert call.client
        compile_filters(request.filters)
        return sandbox_pb2.StoreListResponse()

    def Get(self, request: sandbox_pb2.StoreGetRequest, call: Call) -> sandbox_pb2.StoreGetResponse:
        """NotFound."""
        _missing(request.sandbox_id, call)

    def Update(self, request: sandbox_pb2.StoreUpdateRequest, call: Call) -> sandbox_pb2.StoreUpdateResponse:
        """NotFound."""
        _missing(request.sandbox.sandbox_id, call)

    def Delete(self, request: sandbox_pb2.StoreDeleteRequest, call: Call) -> sandbox_pb2.StoreDeleteResponse:
        """NotFound."""
        _missing(request.sandbox_id, call)

    def Create(self, request: sandbox_pb2.StoreCreateRequest, call: Call) -> sandbox_pb2.StoreCreateResponse:
        """Unsupported: nothing could run it."""
        assert call.client
        raise Unsupported(f"there is no sandboxer {request.sandbox.sandboxer[:200]!r} for a sandbox")


def _missing(id: str, call: Call) -> NoReturn:
    raise NotFound(f"sandbox {id[:200]!r} is not in namespace {call.client.config.namespace}")
