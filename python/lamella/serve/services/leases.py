"""``containerd.services.leases.v1.Leases``: what protects from garbage collection."""

from __future__ import annotations

from google.protobuf.empty_pb2 import Empty

from lamella import leases
from lamella.errors import Unsupported
from lamella.serve.api import leases_pb2
from lamella.serve.call import Call
from lamella.serve.messages import from_digest, to_timestamp
from lamella.serve.service import Service


class Leases(Service):
    """What protects from garbage collection."""

    descriptor = leases_pb2.DESCRIPTOR.services_by_name["Leases"]

    def Create(self, request: leases_pb2.CreateRequest, call: Call) -> leases_pb2.CreateResponse:
        """Create a lease; without an id it gets a random one. AlreadyExists, InvalidArgument."""
        made = call.client.leases.create(request.id or None, labels=dict(request.labels))
        return leases_pb2.CreateResponse(lease=_lease(made))

    def Delete(self, request: leases_pb2.DeleteRequest, call: Call) -> Empty:
        """Delete a lease; with ``sync`` what it protected is collected before the answer. NotFound."""
        call.client.leases.delete(request.id, synchronous=request.sync)
        return Empty()

    def List(self, request: leases_pb2.ListRequest, call: Call) -> leases_pb2.ListResponse:
        """Give the leases that match the filters, by ``id`` and ``labels``."""
        found = call.client.leases.list(filters=request.filters)
        return leases_pb2.ListResponse(leases=map(_lease, found))

    def AddResource(self, request: leases_pb2.AddResourceRequest, call: Call) -> Empty:
        """Protect something. NotFound for the lease; InvalidArgument, Unimplemented for a type."""
        call.client.leases.add(request.id, *_resource(request.resource))
        return Empty()

    def DeleteResource(self, request: leases_pb2.DeleteResourceRequest, call: Call) -> Empty:
        """Protect something no longer. NotFound for the lease."""
        call.client.leases.remove(request.id, *_resource(request.resource))
        return Empty()

    def ListResources(
        self, request: leases_pb2.ListResourcesRequest, call: Call
    ) -> leases_pb2.ListResourcesResponse:
        """Say what a lease protects. NotFound."""
        return leases_pb2.ListResourcesResponse(
            resources=[
                leases_pb2.Resource(id=each.id, type=each.type)
                for each in call.client.leases.resources(request.id)
            ]
        )


def _lease(lease: leases.Lease) -> leases_pb2.Lease:
    return leases_pb2.Lease(id=lease.id, labels=lease.labels, created_at=to_timestamp(lease.created_at))


def _resource(resource: leases_pb2.Resource) -> tuple[str, str]:
    if resource.type.partition("/")[0] not in leases.KINDS:
        raise Unsupported(f"resource type {resource.type[:200]!r} is not supported")
    if resource.type == "content":
        from_digest(resource.id)  # one of an unknown algorithm is none
    return resource.type, resource.id
