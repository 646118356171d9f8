"""Putting the path of a network namespace into a container's config.json."""

from __future__ import annotations

import msgspec

from lamella.errors import FailedPrecondition


def join(spec: str, path: str) -> bytes:
    """Return config.json with the network namespace that is to be joined.

    FailedPrecondition when the spec, changed by its owner, has none of its own or names another.
    """
    document = msgspec.json.decode(spec)
    for namespace in document.get("linux", {}).get("namespaces", []):
        if namespace.get("type") == "network" and not namespace.get("path"):
            namespace["path"] = path
            return msgspec.json.encode(document)
    raise FailedPrecondition(
        "the container's spec has no network namespace of its own to plug in",
        hint="Leave linux.namespaces as it is, or use network='none'.",
    )
