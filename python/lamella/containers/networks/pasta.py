"""pasta(1), from the passt project: a process that carries a container's connections by sockets of the host's.

It is called as podman does: the container gets the address and routes of the host's first interface, nothing of the host's
loopback, and the ports that are published. Words behind ``pasta:`` are options for pasta, as podman has them. The process
goes into the background once all is set up, and ends when the file goes on which the namespace is kept.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from lamella import _core
from lamella.containers.networks import Connection, Settings
from lamella.containers.networks.attachment import Attachment, Record, Release, pin_path, release
from lamella.containers.networks.execution import Program, connect_by, run_program
from lamella.containers.networks.files import Resolvers, connected_files, host_resolvers, own_lines
from lamella.containers.networks.joining import join, own_maps
from lamella.containers.networks.ports import Port
from lamella.containers.networks.publishing import choose_ports
from lamella.disk import translated
from lamella.errors import FailedPrecondition, NetworkFailed, NotFound, Unsupported

if TYPE_CHECKING:
    from lamella.client import Client
    from lamella.containers.record import ContainerRecord

FORWARDED_RESOLVER = "169.254.1.1"
"""An address of no machine, at which the host's own resolver is found; podman takes the same."""
START_SECONDS = 20.0


def connect_pasta(client: Client, record: ContainerRecord, settings: Settings) -> Connection:
    """Have pasta connect a container; see :func:`lamella.containers.networks.connect`."""
    import shutil

    config = client.config
    program = shutil.which("pasta")
    if program is None:
        raise NotFound("pasta is not on PATH", hint="Install it (Debian: passt).")
    options = [word for word in record.extra.network.partition(":")[2].split(",") if word]
    attachment = Attachment(network="pasta", publishes=bool(settings.ports))
    plugged = Record(
        container=record.id,
        attachments=[attachment],
        release=Release(namespace=pin_path(config, record.id)),
    )
    host = host_resolvers()
    forwards = not host.nameservers and not settings.dns
    with choose_ports(config, record.id, settings.ports) as ports:
        plugged.ports = list(ports)
        path = plugged.write(config)
    # Beside the pin: the process writes it before it locks itself in.
    pid_file = Path(f"{plugged.release.namespace}.pid")
    namespaces = None
    try:
        words = arguments(plugged.release.namespace, plugged.ports, options, forwards=forwards)
        start = Program(args=[program, "--pid", str(pid_file), *words])
        if os.geteuid() == 0:
            spec = join(record.spec, plugged.release.namespace)
            plugged.pin(config, own_maps(record.spec))
        else:
            spec = record.spec.encode()
            plugged.mark(config)
            namespaces = _core.make_network()
        try:
            if namespaces is None:
                run_program(start, patience=START_SECONDS, inherit=True)
            else:
                connect_by(start, namespaces[1], plugged.release.namespace, patience=START_SECONDS)
        except NetworkFailed as error:
            raise NetworkFailed(
                str(error),
                plugin="pasta",
                hint="pasta needs an interface of the host with a default route, and /dev/net/tun.",
            ) from None
        with translated("read the number of the process of pasta"):
            plugged.release.process = int(pid_file.read_text())
            pid_file.unlink()
        attachment.addresses = host_addresses()
        plugged.write(config)
        own = own_lines(
            attachment.addresses or ["127.0.1.1"],
            record.extra.hostname,
            record.extra.domainname,
            [record.name],
        )
        files = connected_files(
            record.extra.hostname,
            settings,
            "".join(f"{line}\n" for line in own),
            host=Resolvers(nameservers=(FORWARDED_RESOLVER,), search=host.search, options=host.options)
            if forwards
            else host,
        )
    except BaseException:
        for descriptor in namespaces or ():
            os.close(descriptor)
        pid_file.unlink(missing_ok=True)
        release(path)
        raise
    return Connection(spec, files, namespaces=namespaces)


def arguments(namespace: str, ports: list[Port], options: list[str], *, forwards: bool) -> list[str]:
    """Give pasta's arguments. What ``options`` say of a direction replaces its default of forwarding nothing.

    Unsupported for a protocol that pasta does not carry, FailedPrecondition for options that are not for users.
    """
    # It could not enter a namespace of root's as another user; of root it keeps the number and hardly a capability. For who is
    # not root it is the root of his user namespace, in which the helper starts it.
    words = ["--config-net", "--runas", "0:0", "--netns-only"]
    given = {flag for word in options for flag in (word.partition("=")[0],)}
    for word in given & {
        "--netns",
        "--userns",
        "--pid",
        "-P",
        "--runas",
        "-f",
        "--foreground",
        "--no-netns-quit",
    }:
        raise FailedPrecondition(f"pasta's option {word} is set by lamella")
    for flag, long, protocol in (("-t", "--tcp-ports", "tcp"), ("-u", "--udp-ports", "udp")):
        mine = [port for port in ports if port.protocol == protocol]
        for port in mine:
            address = f"{port.host_ip}/" if port.host_ip else ""
            words += [flag, f"{address}{port.host_port}:{port.container_port}"]
        if not mine and not given & {flag, long}:
            words += [flag, "none"]
    for flag, long in (("-T", "--tcp-ns"), ("-U", "--udp-ns")):
        if not given & {flag, long}:
            words += [flag, "none"]
    for port in ports:
        if port.protocol not in ("tcp", "udp"):
            raise Unsupported(f"port {port.name} cannot be published: pasta carries tcp and udp")
    if "--map-gw" in options:  # podman's word for leaving the next one out
        options = [word for word in options if word != "--map-gw"]
    else:
        words.append("--no-map-gw")
    if forwards:
        words += ["--dns-forward", FORWARDED_RESOLVER]
    return [*words, *options, "--quiet", "--netns", namespace]


def host_addresses() -> list[str]:
    """Give the address that the host sends from, which is the one that pasta takes over. Nothing is sent."""
    found = []
    for family, target in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as sock:
                sock.connect((target, 9))
                address = sock.getsockname()[0]
        except OSError:
            continue
        if address not in ("127.0.0.1", "::1"):
            found.append(address)
    return found
