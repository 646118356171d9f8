"""Networks: what a container is plugged into, and the files of /etc that follow from it.

| network | what it is |
|---|---|
| ``none`` | a network namespace of its own with loopback up; the default, as with ctr |
| ``host`` | the host's |
| ``container:X`` | that of a running container, by name, identifier or prefix; its hosts, hostname and resolv.conf, too |
| ``pasta[:OPTION,...]`` | a namespace that pasta(1) connects to the host's network, without privileges there |
| any other name | a CNI network: a file of plugins in /etc/cni/net.d, or one that :class:`Networks` made |

The life of a network that is neither ``none`` nor ``host``: a *record* is written, then the namespace is made and kept on a file
(a *pin*), then it is plugged in, and the record completed. The container joins the namespace by its path. When it
has ended its monitor does what the record says (``rust/launcher/src/network.rs``): runs the CNI plugins backwards, lets go
of the pin, and removes the record. Whoever is killed in between leaves the record, and with it all that is needed to do the
rest: the container's next start or its removal does it, ``containers.list()``, and ``gc``. After a restart of the machine the
record is still there, since it is what addresses are given back by::

    <root>/networks/lock                               flock: choosing host ports, making and removing networks
    <root>/networks/NAME.conflist                      networks made here
    <root>/networks/attached/<namespace>.<id>.json     records (0600); guarded by the lock on the task's folder
    <state>/networks/<id>                              pins
    <state>/networks/leases/                           addresses given by networks made here: gone after a restart

This module is what every start needs; it imports the rest where a network needs it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from lamella.containers.networks.files import Names, host_files, isolated_files
from lamella.containers.networks.ports import Port
from lamella.errors import InvalidArgument

if TYPE_CHECKING:
    from lamella.client import Client
    from lamella.config import Config
    from lamella.containers.container import ContainerRecord
    from lamella.containers.options import Options

Kind = Literal["none", "host", "container", "pasta", "cni"]


class Settings(Names, frozen=True, kw_only=True, omit_defaults=True):
    """What was asked of the network, parsed: kept with the container. ``ports``: see :mod:`.ports`."""

    ports: tuple[Port, ...] = ()
    ip: str = ""
    mac_address: str = ""
    aliases: tuple[str, ...] = ()


class Settled(msgspec.Struct, frozen=True):
    """The network of a container that is to be made, parsed and checked."""

    network: str
    """In the form that is kept."""
    settings: Settings | None = None
    """None: nothing was asked for."""
    shared: str = ""
    """The identifier of the container whose files of /etc it has; '' for its own."""
    hostname: str | None = None
    """What was asked for, or that container's."""


class Connection(msgspec.Struct, frozen=True):
    """What a start needs of its network: config.json, the files of /etc, and the record if there is one."""

    spec: bytes
    files: dict[str, bytes]
    record: Path | None = None


def kind_of(network: str) -> Kind:
    """Tell which kind of network a text names. InvalidArgument for an empty name."""
    if network in ("none", "host"):
        return network  # type: ignore[return-value]
    word, colon, rest = network.partition(":")
    if word == "pasta":
        return "pasta"
    if word == "container" and colon:
        if not rest:
            raise InvalidArgument("network 'container:' names no container", hint="Write container:NAME.")
        return "container"
    if not network:
        raise InvalidArgument("the network's name is empty", hint="Leave it out for none.")
    return "cni"


def namespace_path(network: str) -> str:
    """Return what :func:`lamella.containers.spec.build_spec` wants: 'host', or '' for one that is made."""
    return "host" if network == "host" else ""


def settle(client: Client, options: Options) -> Settled:
    """Parse and check the network of a container to be made, before anything is.

    Errors: InvalidArgument, NotFound for a network or container that is not there.
    """
    kind = kind_of(options.network)
    if kind == "none" and not _asks(options):
        return Settled(options.network, hostname=options.hostname)
    from lamella.containers.networks.settings import check, parse_settings

    settings = parse_settings(options)
    check(kind, options, settings)
    kept = settings if settings != Settings() else None
    if kind == "container":
        other = client.containers.get(options.network.partition(":")[2])
        return Settled(f"container:{other.id}", kept, other.id, other.record.extra.hostname)
    if kind == "cni":
        from lamella.containers.networks.configuration import find

        find(client.config, options.network)
    return Settled(options.network, kept, hostname=options.hostname)


def _asks(options: Options) -> bool:
    return bool(
        options.ports
        or options.dns
        or options.dns_search
        or options.dns_options
        or options.extra_hosts
        or options.ip
        or options.mac_address
        or options.network_aliases
    )


def connect(client: Client, record: ContainerRecord) -> Connection:
    """Plug a container in that is about to start; whoever calls holds its task's folder.

    After an error nothing is left. Errors: NotFound for the network, a plugin or a program; FailedPrecondition when the other
    container does not run or a port is taken; NetworkFailed for what a plugin reports.
    """
    extra, spec = record.extra, record.spec.encode()
    kind = kind_of(extra.network)
    settings = extra.network_settings or Settings()
    if kind == "none":
        return Connection(spec, isolated_files(extra.hostname, settings))
    if kind == "host":
        return Connection(spec, host_files(extra.hostname, settings))
    if kind == "container":
        from lamella.containers.networks.shared import connect_shared

        return connect_shared(client, record)
    if kind == "pasta":
        from lamella.containers.networks.pasta import connect_pasta

        return connect_pasta(client, record, settings)
    from lamella.containers.networks.cni import connect_cni

    return connect_cni(client, record, settings)


def describe(config: Config, record: ContainerRecord) -> dict[str, Any]:
    """Give what ``inspect`` says of a container's network: its name, and while it is plugged in where it is reached."""
    path = record_path(config, record.id)
    found: dict[str, Any] = {"name": record.extra.network}
    if kind_of(record.extra.network) in ("none", "host") or not path.exists():
        return found
    from lamella.containers.networks.attachment import read

    attachment = read(path)
    if attachment is not None:
        found |= {
            "interface": attachment.interface,
            "addresses": attachment.addresses,
            "gateways": attachment.gateways,
            "mac_address": attachment.mac_address,
            "namespace": attachment.release.namespace,
            "ports": [
                {
                    "container_port": port.container_port,
                    "protocol": port.protocol,
                    "host_ip": port.host_ip,
                    "host_port": port.host_port,
                }
                for port in attachment.ports
            ],
        }
    return found


def published(config: Config, record: ContainerRecord) -> dict[str, list[dict[str, str]]]:
    """Give the ports that a container has published just now, in docker-py's form."""
    settings = record.extra.network_settings
    if settings is None or not settings.ports:
        return {}
    from lamella.containers.networks.attachment import read
    from lamella.containers.networks.ports import bindings

    attachment = read(record_path(config, record.id))
    return bindings(attachment.ports) if attachment is not None else {}


def record_path(config: Config, container: str) -> Path:
    """Say where the record of a container's network is while it is plugged in."""
    return config.root / "networks" / "attached" / f"{config.namespace}.{container}.json"


def unfinished_path(record: Path) -> Path:
    """Say where a record is written before it takes its place; a killed process may leave it there."""
    return record.with_suffix(".new")


def is_recorded(record: Path) -> bool:
    """Tell whether there is anything to take away: a record, or what a killed process has written of one."""
    return record.exists() or unfinished_path(record).exists()
