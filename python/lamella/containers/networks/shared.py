"""The network of another container: its namespace, and its hosts, hostname and resolv.conf, which are bound into both."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from lamella.containers.id_maps import check_sharing
from lamella.containers.networks import Connection
from lamella.containers.networks.attachment import Attachment, Record, Release, pin_path, release
from lamella.containers.networks.joining import join, own_maps
from lamella.disk import translated
from lamella.errors import FailedPrecondition, NotFound

if TYPE_CHECKING:
    from lamella.client import Client
    from lamella.containers.container import Container
from lamella.containers.record import ContainerRecord


def connect_shared(client: Client, record: ContainerRecord) -> Connection:
    """Join the namespace of a running container, kept on a file of this one's own.

    So it is surely that container's: the number of its first process may be another's by the time it is used. Who is not root
    can keep none, and hands over descriptors.
    """
    config = client.config
    identifier = record.extra.network.partition(":")[2]
    try:
        other = client.containers.get(identifier)
    except NotFound:
        raise FailedPrecondition(
            f"container {identifier[:12]}, whose network {record.name} was to share, was removed",
            hint="Create the container anew, with another's network.",
        ) from None
    if os.geteuid() != 0:
        return Connection(record.spec.encode(), {}, namespaces=_open_namespaces(other))
    maps = own_maps(record.spec)
    check_sharing(record.extra.network, maps, own_maps(other.record.spec))
    plugged = Record(
        container=record.id,
        attachments=[Attachment(network=record.extra.network)],
        release=Release(namespace=pin_path(config, record.id)),
    )
    spec = join(record.spec, plugged.release.namespace)
    path = plugged.write(config)
    try:
        plugged.take(config, _running(other), with_owner=maps is not None)
        _running(other)
    except BaseException:
        release(path)
        raise
    return Connection(spec, {})


def _open_namespaces(other: Container) -> tuple[int, int]:
    """Open the user namespace that another container was made in, and its network namespace."""
    pid = _running(other)
    opened: list[int] = []
    try:
        for name in ("user", "net"):
            with translated(f"open the {name} namespace of container {other.name}"):
                opened.append(os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC))
        if _running(other) != pid:
            raise FailedPrecondition(f"container {other.name} ended meanwhile", hint="Try again.")
    except BaseException:
        for descriptor in opened:
            os.close(descriptor)
        raise
    return opened[0], opened[1]


def _running(other: Container) -> int:
    pid = other.pid
    if pid is None:
        raise FailedPrecondition(
            f"container {other.name} is not running, so that its network cannot be shared",
            hint="Start it first.",
        )
    return pid
