"""Which containers a listing shows, in docker's words: ``status=exited``, ``label=job=7``, or docker-py's mapping of them.

Of one word several values are alternatives, but for labels, which are all to be there; what is said by different words holds
together. Source: docker's reference of ``docker ps --filter``. The other language is containerd's (:mod:`lamella.filters`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from lamella.errors import InvalidArgument, Unsupported

if TYPE_CHECKING:
    from lamella.client import Client
    from lamella.containers.container import Container

Filters = Sequence[str] | Mapping[str, Any]
Selection = Callable[["Container"], bool]
_FORM = re.compile(r"([a-z-]+)=(?!=)(.*)", re.DOTALL)
"""What is no filter of containerd: that has two signs for an operator, ``name==box``."""
_ENDED = {"exited": "stopped", "dead": "unknown"}
"""docker's words for statuses that are called otherwise here."""
_STATUSES = ("created", "running", "paused", "restarting", "stopped", "unknown", *_ENDED)


def docker_filters(filters: Filters) -> dict[str, list[str]] | None:
    """Return filters by their words where they are docker's, None where they are containerd's. InvalidArgument for both."""
    if isinstance(filters, Mapping):
        return {word: _values(value) for word, value in filters.items()}
    texts = [filters] if isinstance(filters, str) else list(filters)
    matched = [_FORM.fullmatch(text) for text in texts]
    if not any(matched):
        return None
    found: dict[str, list[str]] = {}
    for text, match in zip(texts, matched, strict=True):
        if match is None:
            raise InvalidArgument(
                f"the filter {text!r} is not of the same language as the others",
                hint="Write all of them as docker's (status=running) or as containerd's (status==running).",
            )
        found.setdefault(match[1], []).append(match[2])
    return found


def shows_all(filters: Mapping[str, Sequence[str]]) -> bool:
    """Say whether what does not run is meant, too, because the filters ask for that."""
    return bool(filters.keys() & {"status", "exited"})


def select(client: Client, filters: Mapping[str, Sequence[str]]) -> Selection:
    """Make one predicate of docker's filters. InvalidArgument, NotFound (before, since), Unsupported for what there is not."""
    predicates = []
    for word, values in filters.items():
        if word in ("health", "is-task", "isolation"):
            raise Unsupported(
                f"containers cannot be filtered by {word}: there is none here",
                hint=f"Known: {', '.join(_WORDS)}.",
            )
        if word not in _WORDS:
            raise InvalidArgument(f"there is no filter {word!r}", hint=f"Known: {', '.join(_WORDS)}.")
        choices = [_WORDS[word](client, value) for value in values]
        predicates.append((all if word == "label" else any, choices))
    return lambda container: all(
        join(choice(container) for choice in choices) for join, choices in predicates
    )


def _values(value: object) -> list[str]:
    if isinstance(value, bool):
        return [str(value).lower()]
    if isinstance(value, str | int):
        return [str(value)]
    if isinstance(value, Iterable):
        return [str(item) for item in value]
    raise InvalidArgument(f"{value!r} is no value of a filter", hint="Give text, or a list of texts.")


def _id(_: Client, value: str) -> Selection:
    return lambda container: container.id.startswith(value)


def _name(_: Client, value: str) -> Selection:
    try:
        pattern = re.compile(value.removeprefix("/"))
    except re.error as error:
        raise InvalidArgument(f"the name {value!r} of a filter is no pattern: {error}") from None
    return lambda container: pattern.search(container.name) is not None


def _label(_: Client, value: str) -> Selection:
    key, equals, wanted = value.partition("=")
    if equals:
        return lambda container: container.labels.get(key) == wanted
    return lambda container: key in container.labels


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
        mounts = msgspec.json.decode(container.record.spec, type=_Mounts).mounts
        return value in container.record.extra.volumes or any(
            mount.type == "bind" and value in (mount.source, mount.destination) for mount in mounts
        )

    return uses


def _network(_: Client, value: str) -> Selection:
    def is_in(container: Container) -> bool:
        extra = container.record.extra
        return value == extra.network or any(value == endpoint.network for endpoint in extra.networks)

    return is_in


class _Mount(msgspec.Struct, frozen=True):
    destination: str = ""
    type: str = ""
    source: str = ""


class _Mounts(msgspec.Struct, frozen=True):
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
