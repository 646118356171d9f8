"""Choosing host ports, so that no two containers of a store, and no program of the host, have the same.

A port is taken by a record that names it; records are written under the lock of :func:`choose_ports`.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from lamella.config import Config
from lamella.containers.networks.attachment import attached, read
from lamella.containers.networks.ports import Port
from lamella.errors import AlreadyExists, FailedPrecondition, LamellaError, ResourceExhausted
from lamella.locks import FileLock
from lamella.structs import replace

_ATTEMPTS = 64
_SCTP = 132
"""The number of the protocol (IANA), for which Python has a name on some machines alone."""


def networks_lock(config: Config) -> FileLock:
    """Give the lock under which ports are chosen and networks are made and removed."""
    return FileLock(config.root / "networks" / "lock", what="the networks")


@contextmanager
def choose_ports(config: Config, container: str, wanted: Sequence[Port]) -> Iterator[list[Port]]:
    """Give the ports with those that were left open chosen; nobody else chooses until the block ends.

    AlreadyExists when one is published by another container, FailedPrecondition when a program of the host has it.
    """
    if not wanted:
        yield []
        return
    with networks_lock(config):
        taken = _taken(config, container, wanted)
        chosen: list[Port] = []
        for port in wanted:
            chosen.append(_check(port, taken) if port.host_port else _free(port, [*wanted, *taken, *chosen]))
        yield chosen


def _taken(config: Config, container: str, wanted: Sequence[Port]) -> dict[Port, str]:
    """Give what other containers have published, after those were let go of that have ended and stand in the way."""
    from lamella.containers.task import Task

    taken: dict[Port, str] = {}
    for namespace, other, path in attached(config):
        if other == container or (plugged := read(path)) is None:
            continue
        if any(port.overlaps(mine) for port in plugged.ports for mine in wanted if mine.host_port):
            task = Task(replace(config, namespace=namespace), other)
            if not task.monitored():
                with suppress(LamellaError):
                    task.release_network()
                if read(path) is None:
                    continue
        taken.update(dict.fromkeys(plugged.ports, other))
    return taken


def _check(port: Port, taken: dict[Port, str]) -> Port:
    for other, container in taken.items():
        if port.overlaps(other):
            raise AlreadyExists(
                f"port {port.host_port}/{port.protocol} is published by the container {container[:12]}",
                hint="Stop that one, or publish another port.",
            )
    try:
        _bind(port)
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            raise FailedPrecondition(
                f"port {port.host_port}: the host has no address {port.host_ip}"
            ) from None
        if error.errno == errno.EADDRINUSE:
            raise FailedPrecondition(
                f"port {port.host_port}/{port.protocol} is in use by a program of the host",
                hint="End that one, or publish another port.",
            ) from None
    return port


def _free(port: Port, others: Sequence[Port]) -> Port:
    for _ in range(_ATTEMPTS):
        number = _bind(port)
        found = replace(port, host_port=number)
        if number and not any(found.overlaps(other) for other in others):
            return found
    raise ResourceExhausted(f"no free port of the host was found for {port.name}")


def _bind(port: Port) -> int:
    """Take a port for a moment, as the kernel alone knows what is free; return its number.

    A kernel without SCTP has nobody who could have such a port; of which numbers are there TCP knows as much.
    """
    kind = socket.SOCK_DGRAM if port.protocol == "udp" else socket.SOCK_STREAM
    family = socket.AF_INET6 if ":" in port.host_ip else socket.AF_INET
    number = port.host_port
    try:
        sock = socket.socket(family, kind, _SCTP if port.protocol == "sctp" else 0)
    except OSError as error:
        if error.errno != errno.EPROTONOSUPPORT:
            raise
        sock, number = socket.socket(family, kind), 0
    with sock:
        if kind == socket.SOCK_STREAM:  # connections that linger hold nobody up
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((port.host_ip, number))
        return int(sock.getsockname()[1])
