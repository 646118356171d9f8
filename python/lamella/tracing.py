"""OpenTelemetry spans, where the program that embeds the library uses OpenTelemetry.

Only a program that has imported ``opentelemetry.trace`` can have a tracer provider, so that looking whether it was is all that
a program without pays, and the library does not depend on it. Names of spans are ``lamella.pull``, ``lamella.container.start``
and so on; attributes follow OpenTelemetry's semantic conventions where those have one. An error that leaves a span is recorded
in it and sets its status.

Threads: a span is the parent of what runs in its context (contextvars). A thread that works for a caller runs in a copy of the
caller's, see :func:`in_context`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

from lamella.typings import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from opentelemetry.trace import Span

_T = TypeVar("_T")

ATTRIBUTES = {
    "blob": "lamella.layer.blob",
    "blobs": "lamella.gc.blobs",
    "bytes": "lamella.bytes",
    "committed": "lamella.snapshot.committed",
    "container": "container.id",
    "container_name": "container.name",
    "content": "lamella.content",
    "digest": "oci.manifest.digest",
    "error": "error.type",
    "folder": "lamella.layer.folder",
    "host": "server.address",
    "image": "container.image.name",
    "layer": "lamella.layer.digest",
    "layers": "lamella.gc.layers",
    "lock": "lamella.lock",
    "finding": "lamella.fsck.finding",
    "method": "http.request.method",
    "namespace": "lamella.namespace",
    "operation": "lamella.operation",
    "parent": "lamella.snapshot.parent",
    "path": "url.path",
    "program": "process.executable.name",
    "reason": "lamella.reason",
    "result": "lamella.result",
    "seconds": "lamella.seconds",
    "snapshot": "lamella.snapshot.key",
    "snapshots": "lamella.gc.snapshots",
    "status": "http.response.status_code",
    "target": "lamella.target",
}
"""All fields of log records, and how spans call them."""

_NOTHING: AbstractContextManager[None] = nullcontext()


def tracing() -> bool:
    """Tell whether this program uses OpenTelemetry."""
    return "opentelemetry.trace" in sys.modules


def span(name: str, /, **fields: Any) -> AbstractContextManager[Span | None]:
    """Open a span around a block; without OpenTelemetry a shared context that does nothing."""
    get_tracer = getattr(sys.modules.get("opentelemetry.trace"), "get_tracer", None)
    if get_tracer is None:
        return _NOTHING
    from lamella._core import __version__

    opened: AbstractContextManager[Span] = get_tracer("lamella", __version__).start_as_current_span(
        name, attributes=attributes(fields)
    )
    return opened


def attributes(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Give the attributes of a span for the fields of a log record."""
    return {ATTRIBUTES[name]: value for name, value in fields.items() if value is not None}


def in_context(work: Callable[[], _T]) -> Callable[[], _T]:
    """Give a function that does ``work`` in the present context, for another thread. Each thread needs its own."""
    from contextvars import copy_context

    context = copy_context()
    return lambda: context.run(work)
