"""The services of containerd's API, one module each."""

from __future__ import annotations

SERVICES = (
    "lamella.serve.services.containers:Containers",
    "lamella.serve.services.content:Content",
    "lamella.serve.services.diff:Diff",
    "lamella.serve.services.events:Events",
    "lamella.serve.services.health:Health",
    "lamella.serve.services.images:Images",
    "lamella.serve.services.introspection:Introspection",
    "lamella.serve.services.leases:Leases",
    "lamella.serve.services.namespaces:Namespaces",
    "lamella.serve.services.reflection:ReflectionV1",
    "lamella.serve.services.reflection:ReflectionV1Alpha",
    "lamella.serve.services.sandbox:Store",
    "lamella.serve.services.snapshots:Snapshots",
    "lamella.serve.services.streaming:Streaming",
    "lamella.serve.services.tasks:Tasks",
    "lamella.serve.services.transfer:Transfer",
    "lamella.serve.services.version:Version",
)
"""All that are served: the class's module and name."""
