"""``grpc.health.v1.Health``: whether the services are there. They are while the server is."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from lamella.errors import NotFound
from lamella.serve.api import health_pb2
from lamella.serve.call import Call
from lamella.serve.service import Service

_SERVING = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)
_UNKNOWN = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)


class Health(Service):
    """Whether the services are there; the name "" is the server as a whole."""

    descriptor = health_pb2.DESCRIPTOR.services_by_name["Health"]

    def Check(self, request: health_pb2.HealthCheckRequest, call: Call) -> health_pb2.HealthCheckResponse:
        """Say that a service is served. NotFound."""
        if request.service not in self._names():
            raise NotFound(f"unknown service {request.service[:200]}")
        return _SERVING

    def List(self, request: health_pb2.HealthListRequest, call: Call) -> health_pb2.HealthListResponse:
        """Say it of all."""
        return health_pb2.HealthListResponse(statuses=dict.fromkeys(self._names(), _SERVING))

    def Watch(
        self, request: health_pb2.HealthCheckRequest, call: Call
    ) -> Iterator[health_pb2.HealthCheckResponse]:
        """Say it once: nothing changes until the server stops, which ends the stream."""
        gone = threading.Event()
        call.on_cancel(gone.set)
        yield _SERVING if request.service in self._names() else _UNKNOWN
        gone.wait()

    def _names(self) -> set[str]:
        return {"", *(service.descriptor.full_name for service in self.server.services)}
