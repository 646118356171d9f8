"""The network of another container: its namespace, and its hosts, hostname and resolv.conf, which are bound into both."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lamella.containers.id_maps import check_sharing
from lamella.containers.networks import Connection
from lamella.containers.networks.attachment import Attachment, Record, Release, pin_path, release
from lamella.containers.networks.joining import join, own_maps
from lamella.errors import FailedPrecondition, NotFound

if TYPE_CHECKING:
    from lamella.client import Client
    from lamella.containers.container import Container, ContainerRecord


def connect_shared(client: Client, record: ContainerRecord) -> Connection:
    """Join the namespace of a running container, kept on a file of this one's own.

    So it is surely that container's: the number of its first process may be another's by the time it is used.
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


def _running(other: Container) -> int:
    pid = other.pid
    if pid is None:
        raise FailedPrecondition(
            f"container {other.name} is not running, so that its network cannot be shared",
            hint="Start it first.",
        )
    return pid
