"""Putting the paths of a network namespace, and of the user namespace that it belongs to, into a container's config.json."""

from __future__ import annotations

from lamella import _core
from lamella.containers.id_maps import IdMaps, maps_of
from lamella.errors import FailedPrecondition
from lamella.structs import encode, read_json
from lamella.typings import Any


def join(spec: str, path: str) -> bytes:
    """Return config.json with the network namespace that is to be joined, and its user namespace where ids are mapped.

    FailedPrecondition when the spec, changed by its owner, has none of its own or names another.
    """
    document = read_json(spec)
    network = _own(document, "network")
    if network is None:
        raise FailedPrecondition(
            "the container's spec has no network namespace of its own to plug in",
            hint="Leave linux.namespaces as it is, or use network='none'.",
        )
    network["path"] = path
    user = _own(document, "user")
    if user is not None:
        user["path"] = _core.network_owner(path)
    return encode(document)


def own_maps(spec: str) -> IdMaps | None:
    """Give the maps of the user namespace that a config.json has made; None where it has none made."""
    document = read_json(spec)
    return maps_of(document["linux"]) if _own(document, "user") is not None else None


def _own(document: dict[str, Any], kind: str) -> dict[str, Any] | None:
    namespaces: list[dict[str, Any]] = document.get("linux", {}).get("namespaces", [])
    return next((each for each in namespaces if each.get("type") == kind and not each.get("path")), None)
