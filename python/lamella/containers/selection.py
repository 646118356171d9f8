"""Which containers a listing shows, by docker's words (:mod:`lamella.docker_filters`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from lamella.docker_filters import has_label, matching
from lamella.errors import InvalidArgument, Unsupported
from lamella.structs import Struct, decode
from lamella.typings import TYPE_CHECKING

if TYPE_CHECKING:
    from lamella.client import Client
    from lamella.containers.container import Container

Selection = Callable[["Container"], bool]
_ENDED = {"exited": "stopped", "dead": "unknown"}
"""docker's words for statuses that are called otherwise here."""
_STATUSES = ("created", "running", "paused", "restarting", "stopped", "unknown", *_ENDED)


def shows_all(filters: Mapping[str, Sequence[str]]) -> bool:
    """Say whether what does not run is meant, too, because the filters ask for that."""
    return bool(filters.keys() & {"status", "exited"})


def select(client: Client, filters: Mapping[str, Sequence[str]]) -> Selection:
    """Make one predicate of docker's filters. InvalidArgument, NotFound (before, since), Unsupported for what there is not."""
    for word in filters:
        if word in ("health", "is-task", "isolation"):
            raise Unsupported(
                f"containers cannot be filtered by {word}: there is none here",
                hint=f"Known: {', '.join(_WORDS)}.",
            )
    return matching(filters, {word: partial(make, client) for word, make in _WORDS.items()})


def _id(_: Client, value: str) -> Selection:
    return lambda container: container.id.startswith(value)


def _name(_: Client, value: str) -> Selection:
    try:
        pattern = re.compile(value.removeprefix("/"))
    except re.error as error:
        raise InvalidArgument(f"the name {value!r} of a filter is no pattern: {error}") from None
    return lambda container: pattern.search(container.name) is not None


def _label(_: Client, value: str) -> Selection:
    return lambda container: has_label(container.labels, value)


def _status(_: Client, value: str) -> Selection:
    if value not in _STATUSES:
        raise InvalidArgument(f"there is no status {value!r}", hint=f"Known: {', '.join(_STATUSES)}.")
    if value in ("running", "paused"):
        return lambda container: (
            container.status == "running" and container.task.paused() == (value == "paused")
        )
    status = _ENDED.get(value, value)
    return lambda container: container.status == status


def _exited(_: Client, value: str) -> Selection:
    if not value.isdecimal():
        raise InvalidArgument(f"{value!r} is no exit status")
    code = int(value)
    return lambda container: container.exit_code == code


def _ancestor(_: Client, value: str) -> Selection:
    from lamella.reference import Reference

    digest = value if value.startswith("sha256:") else f"sha256:{value}"
    name = None
    if not value.startswith("sha256:"):
        name = str(Reference.parse(value))
    return lambda container: (
        container.image == name
        or (len(digest) > len("sha256:") + 3 and container.record.extra.manifest.startswith(digest))
    )


def _before(client: Client, value: str) -> Selection:
    other = client.containers.get(value)
    return lambda container: container.created_at < other.created_at


def _since(client: Client, value: str) -> Selection:
    other = client.containers.get(value)
    return lambda container: container.created_at > other.created_at


def _volume(_: Client, value: str) -> Selection:
    def uses(container: Container) -> bool:
        mounts = decode(container.record.spec, _Mounts).mounts
        return value in container.record.extra.volumes or any(
            mount.type == "bind" and value in (mount.source, mount.destination) for mount in mounts
        )

    return uses


def _network(_: Client, value: str) -> Selection:
    def is_in(container: Container) -> bool:
        extra = container.record.extra
        return value == extra.network or any(value == endpoint.network for endpoint in extra.networks)

    return is_in


class _Mount(Struct, frozen=True):
    destination: str = ""
    type: str = ""
    source: str = ""


class _Mounts(Struct, frozen=True):
    mounts: list[_Mount] = []


_WORDS: dict[str, Callable[[Client, str], Selection]] = {
    "id": _id,
    "name": _name,
    "label": _label,
    "status": _status,
    "exited": _exited,
    "ancestor": _ancestor,
    "before": _before,
    "since": _since,
    "volume": _volume,
    "network": _network,
}
