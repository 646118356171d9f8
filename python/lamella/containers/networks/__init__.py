"""Networks: what a container is plugged into, and the files of /etc that follow from it.

| network | what it is |
|---|---|
| ``none`` | a network namespace of its own with loopback up; the default, as with ctr |
| ``host`` | the host's |
| ``container:X`` | that of a running container, by name, identifier or prefix; its hosts, hostname and resolv.conf, too |
| ``pasta[:OPTION,...]`` | a namespace that pasta(1) connects to the host's network, without privileges there |
| any other name | a CNI network: a file of plugins in /etc/cni/net.d, or one that :class:`Networks` made; several at once |

The life of a network that is neither ``none`` nor ``host``: a *record* is written, then the namespace is made and kept on a file
(a *pin*), then it is plugged in, and the record completed. The container joins the namespace by its path. When it
has ended its monitor does what the record says (``rust/launcher/src/network``): runs the CNI plugins backwards, lets go
of the pin, and removes the record. Whoever is killed in between leaves the record, and with it all that is needed to do the
rest: the container's next start or its removal does it, ``containers.list()``, and ``gc``. After a restart of the machine the
record is still there, since it is what addresses are given back by::

    <root>/networks/lock                               flock: choosing host ports, making and removing networks
    <root>/networks/NAME.conflist                      networks made here
    <root>/networks/attached/<namespace>.<id>.json     records (0600); guarded by the lock on the task's folder
    <state>/networks/<id>                              pins
    <state>/networks/<id>.lock                         flock: a running container is plugged in or out, or let go of at its end
    <state>/networks/names/<namespace>/<id>            what containers of the same networks call it
    <state>/networks/leases/                           addresses given by networks made here: gone after a restart

This module is what every start needs; it imports the rest where a network needs it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from lamella.containers.networks.files import Names, host_files, isolated_files
from lamella.containers.networks.ports import Port
from lamella.disk import is_there
from lamella.errors import InvalidArgument
from lamella.structs import Struct, replace
from lamella.typings import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from lamella.client import Client
    from lamella.config import Config
    from lamella.containers.options import Options
    from lamella.containers.record import ContainerRecord, Extra

Kind = Literal["none", "host", "container", "pasta", "cni"]
PER_NETWORK = ("ip", "ip6", "mac_address", "aliases")
"""What is asked of one network: the fields of Endpoint, which Settings has for the first one."""
_UNFINISHED = ".new"


class Settings(Names, frozen=True, kw_only=True, omit_defaults=True):
    """What was asked of the network, parsed: kept with the container. ``ports``: see :mod:`.ports`.

    What is said of addresses and aliases is for the first network.
    """

    ports: tuple[Port, ...] = ()
    ip: str = ""
    ip6: str = ""
    mac_address: str = ""
    aliases: tuple[str, ...] = ()


class Endpoint(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A network that a container is to be plugged into, and what was asked for there."""

    network: str
    ip: str = ""
    ip6: str = ""
    mac_address: str = ""
    aliases: tuple[str, ...] = ()


class Settled(Struct, frozen=True):
    """The network of a container that is to be made, parsed and checked."""

    network: str
    """In the form that is kept."""
    more: tuple[Endpoint, ...] = ()
    """Further ones."""
    settings: Settings | None = None
    """None: nothing was asked for."""
    shared: str = ""
    """The identifier of the container whose files of /etc it has; '' for its own."""
    hostname: str | None = None
    """What was asked for, or that container's."""
    domainname: str = ""


class Connection(Struct, frozen=True):
    """What a start needs of its network: config.json, the files of /etc, and what is to be told to others of its networks."""

    spec: bytes
    files: dict[str, bytes]
    tell: Callable[[], None] = lambda: None
    """Called when the files are in place."""
    alone: bool = False
    """Nothing but loopback, in a namespace that nobody has to make for it."""
    namespaces: tuple[int, int] | None = None
    """For who is not root, and can keep none on a file: descriptors of a user namespace, and of the network namespace in it."""

    def close(self) -> None:
        """Let go of the descriptors, once the container has what they stand for."""
        for descriptor in self.namespaces or ():
            os.close(descriptor)


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


def settle(client: Client, options: Options, exposed: Iterable[Port]) -> Settled:
    """Parse and check the network of a container to be made, before anything is; ``exposed`` are the ports that it serves.

    Errors: InvalidArgument, NotFound for a network or container that is not there.
    """
    if options.network == "none" and not options.networks and not _asks(options):
        return Settled(options.network, hostname=options.hostname, domainname=options.domainname or "")
    from lamella.containers.networks.settings import settle_options

    return settle_options(client, options, exposed)


def _asks(options: Options) -> bool:
    return bool(
        options.ports
        or options.publish_all_ports
        or options.ip6
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
        files = isolated_files(extra.hostname, extra.domainname, settings)
        return Connection(spec, files, alone=extra.id_maps is None)
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


def endpoints_of(extra: Extra) -> list[Endpoint]:
    """Give the CNI networks of a container, the first one first."""
    if kind_of(extra.network) != "cni":
        return []
    settings = extra.network_settings or Settings()
    fields = {name: getattr(settings, name) for name in PER_NETWORK}
    return [Endpoint(network=extra.network, **fields), *extra.networks]


def with_endpoints(extra: Extra, endpoints: Sequence[Endpoint]) -> Extra:
    """Give the same for other CNI networks; without any the container has none."""
    first = endpoints[0] if endpoints else Endpoint(network="none")
    settings = replace(
        extra.network_settings or Settings(), **{name: getattr(first, name) for name in PER_NETWORK}
    )
    return replace(
        extra,
        network=first.network,
        network_settings=settings if settings != Settings() else None,
        networks=list(endpoints[1:]),
    )


def describe(config: Config, record: ContainerRecord) -> dict[str, Any]:
    """Give what ``inspect`` says of a container's networks: names, and while it is plugged in where it is reached.

    ``networks`` has them all by name, and the rest is of the first one and what they have in common.
    """
    extra = record.extra
    found: dict[str, Any] = {"name": extra.network}
    networks: dict[str, Any] = {endpoint.network: {} for endpoint in endpoints_of(extra)}
    path = record_path(config, record.id)
    if extra.network != "host" and path.exists():
        from lamella.containers.networks.attachment import describe_record, read

        plugged = read(path)
        if plugged is not None:
            told = describe_record(plugged)
            networks |= told.pop("networks")
            found |= told
    return found | ({"networks": networks} if networks else {})


def published(config: Config, record: ContainerRecord) -> list[Port]:
    """Give the ports that a container has published just now."""
    settings = record.extra.network_settings
    if settings is None or not settings.ports:
        return []
    from lamella.containers.networks.attachment import read

    plugged = read(record_path(config, record.id))
    return plugged.ports if plugged is not None else []


def record_path(config: Config, container: str) -> Path:
    """Say where the record of a container's network is while it is plugged in."""
    return config.root / f"networks/attached/{config.namespace}.{container}.json"


def unfinished_path(record: Path) -> Path:
    """Say where a record is written before it takes its place; a killed process may leave it there."""
    return record.with_suffix(_UNFINISHED)


def is_recorded(record: Path) -> bool:
    """Tell whether there is anything to take away: a record, or what a killed process has written of one."""
    path = str(record)
    return is_there(path) or is_there(path.removesuffix(record.suffix) + _UNFINISHED)
