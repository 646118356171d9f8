"""``containerd.services.introspection.v1.Introspection``: what the server consists of, in containerd's words for it."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from google.protobuf.empty_pb2 import Empty

from lamella import __version__
from lamella.containers.restart_policy import NAMES as RESTART_POLICIES
from lamella.errors import NotFound, Unsupported
from lamella.filters import Fields, compile_filters
from lamella.platforms import own_platform
from lamella.serve.api import introspection_pb2, types_pb2
from lamella.serve.call import Call
from lamella.serve.messages import any_as, any_of
from lamella.serve.service import Service
from lamella.snapshots import SNAPSHOTTERS, snapshotter

_GRPC = "io.containerd.grpc.v1"
_PLUGINS: tuple[tuple[str, str, str], ...] = (
    ("io.containerd.content.v1", "content", ""),
    ("io.containerd.differ.v1", "walking", ""),
    ("io.containerd.event.v1", "exchange", ""),
    ("io.containerd.gc.v1", "scheduler", ""),
    ("io.containerd.lease.v1", "manager", ""),
    ("io.containerd.metadata.v1", "bolt", ""),
    ("io.containerd.runtime.v2", "task", ""),
    ("io.containerd.sandbox.controller.v1", "shim", "containerd.services.sandbox.v1.Controller"),
    ("io.containerd.sandbox.store.v1", "local", "containerd.services.sandbox.v1.Store"),
    ("io.containerd.streaming.v1", "manager", "containerd.services.streaming.v1.Streaming"),
    ("io.containerd.transfer.v1", "local", "containerd.services.transfer.v1.Transfer"),
    (_GRPC, "containers", "containerd.services.containers.v1.Containers"),
    (_GRPC, "content", "containerd.services.content.v1.Content"),
    (_GRPC, "diff", "containerd.services.diff.v1.Diff"),
    (_GRPC, "events", "containerd.services.events.v1.Events"),
    (_GRPC, "healthcheck", "grpc.health.v1.Health"),
    (_GRPC, "images", "containerd.services.images.v1.Images"),
    (_GRPC, "introspection", "containerd.services.introspection.v1.Introspection"),
    (_GRPC, "leases", "containerd.services.leases.v1.Leases"),
    (_GRPC, "namespaces", "containerd.services.namespaces.v1.Namespaces"),
    (_GRPC, "sandbox-controllers", "containerd.services.sandbox.v1.Controller"),
    (_GRPC, "sandboxes", "containerd.services.sandbox.v1.Store"),
    (_GRPC, "snapshots", "containerd.services.snapshots.v1.Snapshots"),
    (_GRPC, "streaming", "containerd.services.streaming.v1.Streaming"),
    (_GRPC, "tasks", "containerd.services.tasks.v1.Tasks"),
    (_GRPC, "transfer", "containerd.services.transfer.v1.Transfer"),
    (_GRPC, "version", "containerd.services.version.v1.Version"),
)
"""Type and id that clients look for, and the service without which it is not listed."""


class Introspection(Service):
    """What the server consists of."""

    descriptor = introspection_pb2.DESCRIPTOR.services_by_name["Introspection"]

    def Plugins(
        self, request: introspection_pb2.PluginsRequest, call: Call
    ) -> introspection_pb2.PluginsResponse:
        """Give the parts that match the filters, by ``type``, ``id`` and ``platforms``. InvalidArgument."""
        matches = compile_filters(request.filters)
        return introspection_pb2.PluginsResponse(
            plugins=[plugin for plugin in self._plugins() if matches(_fields(plugin))]
        )

    def Server(self, request: Empty, call: Call) -> introspection_pb2.ServerResponse:
        """Give what tells servers apart: the id is that of the store on this machine."""
        return introspection_pb2.ServerResponse(
            uuid=str(uuid.uuid5(_machine(), str(self.server.client.config.root))),
            pid=os.getpid(),
            pidns=Path("/proc/self/ns/pid").stat().st_ino,
        )

    def PluginInfo(
        self, request: introspection_pb2.PluginInfoRequest, call: Call
    ) -> introspection_pb2.PluginInfoResponse:
        """Give one part; of the runtime also what it is called and which version it has. NotFound, Unsupported."""
        for plugin in self._plugins():
            if (plugin.type, plugin.id) == (request.type, request.id):
                break
        else:
            raise NotFound(f"plugin {request.type[:200]!r} {request.id[:200]!r} not found")
        if plugin.type != "io.containerd.runtime.v2":
            raise Unsupported(f"plugin {plugin.type} {plugin.id} gives no information")
        asked = any_as(request.options, types_pb2.RuntimeRequest)
        information = types_pb2.RuntimeInfo(
            name=(asked.runtime_path if asked else "") or "io.containerd.runc.v2",
            version=types_pb2.RuntimeVersion(version=__version__, revision="lamella"),
        )
        return introspection_pb2.PluginInfoResponse(plugin=plugin, extra=any_of(information))

    def _plugins(self) -> list[introspection_pb2.Plugin]:
        machine = own_platform()
        platforms = [
            types_pb2.Platform(
                os=machine.os, architecture=machine.architecture, variant=machine.variant or ""
            )
        ]
        served = {service.descriptor.full_name for service in self.server.services}
        plugins = [
            introspection_pb2.Plugin(type=kind, id=name, platforms=platforms)
            for kind, name, needs in _PLUGINS
            if not needs or needs in served
        ]
        plugins += [
            introspection_pb2.Plugin(
                type="io.containerd.snapshotter.v1",
                id=name,
                platforms=platforms,
                capabilities=["rebase"] if self._rebases(name) else [],
            )
            for name in SNAPSHOTTERS
        ]
        # What nerdctl asks for before it takes a restart policy, which each container's monitor follows here.
        plugins.append(
            introspection_pb2.Plugin(
                type="io.containerd.monitor.container.v1", id="restart", capabilities=RESTART_POLICIES
            )
        )
        return sorted(plugins, key=lambda plugin: (plugin.type, plugin.id))

    def _rebases(self, name: str) -> bool:
        """Tell whether layers may be unpacked beside each other, each into a snapshot of its own, as containerd's client does it.

        It marks what a layer deletes as overlayfs does for root.
        """
        client = self.server.client
        return snapshotter(client.database, client.using(name).config).whiteouts == "overlay"


def _fields(plugin: introspection_pb2.Plugin) -> Fields:
    return {
        "type": plugin.type,
        "id": plugin.id,
        "platforms": ",".join(f"{each.os}/{each.architecture}" for each in plugin.platforms),
    }


def _machine() -> uuid.UUID:
    """Give this machine's id (machine-id(5)); where it has none, its name's."""
    try:
        return uuid.UUID(Path("/etc/machine-id").read_text().strip())
    except (OSError, ValueError):
        return uuid.uuid5(uuid.NAMESPACE_DNS, os.uname().nodename)
