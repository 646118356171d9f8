"""``containerd.services.version.v1.Version``: which server this is."""

from __future__ import annotations

from google.protobuf.empty_pb2 import Empty

from lamella import __version__
from lamella.serve.api import version_pb2
from lamella.serve.call import Call
from lamella.serve.service import Service


class Version(Service):
    """Which server this is."""

    descriptor = version_pb2.DESCRIPTOR.services_by_name["Version"]

    def Version(self, request: Empty, call: Call) -> version_pb2.VersionResponse:
        """Give lamella's version; the revision names the program, for there is no other place for that."""
        return version_pb2.VersionResponse(version=f"v{__version__}", revision="lamella")
