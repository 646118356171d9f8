"""``client.networks``: the CNI networks that there are, and making and removing one's own.

A network that is made here is a bridge, as docker, podman and nerdctl make it: addresses from a subnet that nothing of the
machine uses, out by masquerading, ports in by portmap. Its file belongs to the store; the addresses that were given are in
the state folder, so that a restart of the machine, which ends all containers, frees them.
"""

from __future__ import annotations

import builtins
import ipaddress
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from lamella import _core
from lamella.config import Config, check_identifier
from lamella.containers.networks.attachment import Attachment, attached, read
from lamella.containers.networks.configuration import (
    NetworkConfiguration,
    configurations,
    find,
    own_folder,
    parse,
)
from lamella.containers.networks.leases import leases_folder
from lamella.containers.networks.publishing import networks_lock
from lamella.containers.orphans import release_stale_networks
from lamella.disk import make_private_folder, translated
from lamella.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
)
from lamella.structs import encode
from lamella.typings import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lamella.client import Client
    from lamella.containers.container import Container
    from lamella.containers.networks.checking import Problem

RESERVED = frozenset({"none", "host", "container", "pasta", "default"})
POOL = "10.89.0.0/16"
"""Where subnets are taken from when none is named, each of 256 addresses; podman takes its own from there, too."""
POOL_NEXT = "10.90.0.0/15"
SUBNET_PREFIX = 24
VERSION = "1.0.0"
MTU_MIN, MTU_MAX = 68, 65535


class Network:
    """One CNI network: its configuration as it was read, and who is plugged in now."""

    def __init__(self, client: Client, configuration: NetworkConfiguration) -> None:
        self._client = client
        self.configuration = configuration

    def __repr__(self) -> str:
        return f"<lamella.Network {self.name}>"

    @property
    def name(self) -> str:
        """The name."""
        return self.configuration.name

    @property
    def path(self) -> Path:
        """The file that describes it."""
        return self.configuration.path

    @property
    def own(self) -> bool:
        """Whether it was made here and can be removed here."""
        return self.configuration.own

    @property
    def plugins(self) -> list[str]:
        """The types of its plugins, in order."""
        return [plugin.type for plugin in self.configuration.plugins]

    @property
    def subnets(self) -> list[str]:
        """The subnets that its plugins name."""
        return [str(subnet) for plugin in self.configuration.plugins for subnet in _subnets(plugin.document)]

    @property
    def attachments(self) -> list[tuple[str, Attachment]]:
        """Who is plugged in, of all namespaces of the store: identifiers of containers, and how."""
        found = [read(path) for _, _, path in attached(self._client.config)]
        return [
            (plugged.container, attachment)
            for plugged in found
            if plugged is not None and (attachment := plugged.find(self.name)) is not None
        ]

    def connect(
        self,
        container: Container | str,
        *,
        aliases: Sequence[str] | None = None,
        ip: str | None = None,
        ip6: str | None = None,
        mac_address: str | None = None,
    ) -> None:
        """Plug a container in: at once if it runs, and at its further starts.

        It gets one more interface (``eth1``...), and is found by its name and ``aliases``. Its ports stay published where they
        are. Errors: AlreadyExists when it is connected; FailedPrecondition for one with the network of the host or of another, or
        by pasta; NotFound, InvalidArgument, and what a plugin reports (NetworkFailed). After one nothing has changed.
        """
        from lamella.containers.networks.connecting import connect_network
        from lamella.containers.networks.settings import make_endpoint

        endpoint = make_endpoint(self.name, ip=ip, ip6=ip6, mac_address=mac_address, aliases=aliases)
        connect_network(self._client, self._container(container), endpoint)

    def disconnect(self, container: Container | str, *, force: bool = False) -> None:
        """Unplug a container: at once if it runs, and for its further starts. The ports that were published here are free then.

        With ``force`` also when a plugin fails. Errors: NotFound when it is not connected, and what a plugin reports;
        the next look tries that again.
        """
        from lamella.containers.networks.connecting import disconnect_network

        disconnect_network(self._client, self._container(container), self.name, force=force)

    def _container(self, container: Container | str) -> Container:
        return self._client.containers.get(container) if isinstance(container, str) else container

    def inspect(self) -> dict[str, Any]:
        """Everything known about it as plain data."""
        configuration = self.configuration
        return {
            "name": self.name,
            "cni_version": configuration.version,
            "path": str(self.path),
            "own": self.own,
            "plugins": [plugin.document for plugin in configuration.plugins],
            "subnets": self.subnets,
            "containers": [
                {
                    "id": container,
                    "interface": attachment.interface,
                    "addresses": attachment.addresses,
                    "mac_address": attachment.mac_address,
                    "aliases": attachment.aliases,
                }
                for container, attachment in self.attachments
            ],
        }

    def remove(self) -> None:
        """Remove the network, its bridge and its given addresses.

        FailedPrecondition while a container is plugged in, and for one that was not made here.
        """
        config = self._client.config
        if not self.own:
            raise FailedPrecondition(
                f"network {self.name} belongs to the machine, by {self.path}", hint="Remove that file."
            )
        release_stale_networks(self._client.database, config)
        with networks_lock(config):
            users = self.attachments
            if users:
                raise FailedPrecondition(
                    f"network {self.name} is used by {len(users)} containers, such as {users[0][0][:12]}",
                    hint="Stop them first, or disconnect them.",
                )
            for plugin in self.configuration.plugins:
                if plugin.type == "bridge" and isinstance(plugin.document.get("bridge"), str):
                    from lamella.containers.networks.links import remove_link

                    remove_link(plugin.document["bridge"])
            with translated(f"remove {self.path}"), suppress(FileNotFoundError):
                self.path.unlink()
            _core.remove_tree(str(leases_folder(config) / self.name))


class Networks:
    """List, make, check and remove networks."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def list(self) -> list[Network]:
        """Give the CNI networks, by name; ``none``, ``host`` and ``pasta`` need no description and are always there.

        What killed monitors have left of containers' networks is let go of first.
        """
        release_stale_networks(self._client.database, self._client.config)
        return [Network(self._client, found) for found in configurations(self._client.config)]

    def get(self, name: str) -> Network:
        """Give a network by its name. NotFound."""
        return Network(self._client, find(self._client.config, name))

    def create(
        self,
        name: str,
        *,
        subnet: str | Iterable[str] | None = None,
        gateway: str | None = None,
        ip_range: str | None = None,
        internal: bool = False,
        mtu: int | None = None,
    ) -> Network:
        """Make a bridge network.

        ``subnet``: one, or one each of IPv4 and IPv6; a free one without it. ``gateway`` and ``ip_range`` (of the first) are
        chosen from it otherwise. ``internal``: nothing leads out of it, and no port in. Errors: AlreadyExists for the name,
        InvalidArgument, FailedPrecondition for a subnet in use.
        """
        subnets = [subnet] if isinstance(subnet, str) else list(subnet or ())
        return Network(
            self._client,
            create(
                self._client.config,
                name,
                subnets=subnets,
                gateway=gateway,
                ip_range=ip_range,
                internal=internal,
                mtu=mtu,
            ),
        )

    def prune(self) -> builtins.list[str]:
        """Remove the networks that were made here and that nobody is plugged into; return their names. Twice is harmless.

        A container that does not run keeps the name of its network, and cannot be started until there is one of that name.
        """
        removed = []
        for network in self.list():
            if network.own:
                with suppress(FailedPrecondition):
                    network.remove()
                    removed.append(network.name)
        return removed

    def check(self) -> builtins.list[Problem]:
        """Ask the plugins whether the running containers of this namespace are connected as they were (CNI spec, CHECK).

        Give what is wrong; networks of before version 0.4.0, and those with ``disableCheck``, cannot be asked.
        """
        from lamella.containers.networks.checking import check_networks

        return check_networks(self._client)


_AnyNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


def create(
    config: Config,
    name: str,
    *,
    subnets: Iterable[str] = (),
    gateway: str | None = None,
    ip_range: str | None = None,
    internal: bool = False,
    mtu: int | None = None,
    exist_ok: bool = False,
) -> NetworkConfiguration:
    """Write a network's file; see :meth:`Networks.create`. ``exist_ok`` gives the one that is there by now."""
    check_identifier(name, "network's name")
    if name in RESERVED:
        raise InvalidArgument(f"{name!r} is no name for a network: it has a meaning of its own")
    if mtu is not None and not MTU_MIN <= mtu <= MTU_MAX:
        raise InvalidArgument(f"mtu {mtu} is not between {MTU_MIN} and {MTU_MAX}")
    wanted = [_subnet(text) for text in subnets]
    if len({subnet.version for subnet in wanted}) != len(wanted):
        raise InvalidArgument("a network has at most one subnet each of IPv4 and IPv6")
    with networks_lock(config):
        others = configurations(config)
        for other in others:
            if other.name == name:
                if exist_ok:
                    return other
                raise AlreadyExists(f"network {name} is there already, by {other.path}")
        used = list(_used(others))
        for subnet in wanted:
            _check_free(subnet, used)
        chosen = wanted or [_free_subnet(config, used)]
        ranges = [
            [_range(subnet, gateway if number == 0 else None, ip_range if number == 0 else None)]
            for number, subnet in enumerate(chosen)
        ]
        path = own_folder(config) / f"{name}.conflist"
        document = _document(config, name, _bridge(config, name), ranges, chosen, internal=internal, mtu=mtu)
        text = msgspec.json.format(encode(document), indent=2)
        with translated(f"write {path}"):
            make_private_folder(path.parent)
            fresh = path.with_suffix(".new")
            fresh.write_bytes(text + b"\n")
            fresh.replace(path)
    return parse(path, text, own=True)


def _document(
    config: Config,
    name: str,
    bridge: str,
    ranges: list[list[dict[str, str]]],
    subnets: list[_AnyNetwork],
    *,
    internal: bool,
    mtu: int | None,
) -> dict[str, Any]:
    everywhere = {4: "0.0.0.0/0", 6: "::/0"}
    plugins: list[dict[str, Any]] = [
        {
            "type": "bridge",
            "bridge": bridge,
            "isGateway": not internal,
            "ipMasq": not internal,
            "hairpinMode": True,
            "ipam": {
                "type": "host-local",
                "dataDir": str(leases_folder(config)),
                "ranges": ranges,
                "routes": [] if internal else [{"dst": everywhere[subnet.version]} for subnet in subnets],
            },
            "capabilities": {"ips": True, "mac": True},
        },
    ]
    if mtu is not None:
        plugins[0]["mtu"] = mtu
    if not internal:
        plugins.append({"type": "portmap", "capabilities": {"portMappings": True}})
    plugins.append({"type": "firewall"})
    return {"cniVersion": VERSION, "name": name, "plugins": plugins}


def _subnet(text: str) -> _AnyNetwork:
    try:
        subnet = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise InvalidArgument(f"{text!r} is not a subnet", hint="Write 10.90.0.0/24.") from None
    if subnet.num_addresses < 4:
        raise InvalidArgument(f"subnet {subnet} has no room for a container")
    return subnet


def _range(subnet: _AnyNetwork, gateway: str | None, ip_range: str | None) -> dict[str, str]:
    found = {"subnet": str(subnet)}
    try:
        address = ipaddress.ip_address(gateway) if gateway else subnet[1]
        part = ipaddress.ip_network(ip_range, strict=False) if ip_range else None
    except ValueError as error:
        raise InvalidArgument(f"{error}") from None
    if address not in subnet:
        raise InvalidArgument(f"gateway {address} is not in the subnet {subnet}")
    found["gateway"] = str(address)
    if part is not None:
        if part.version != subnet.version or not part.subnet_of(subnet):  # type: ignore[arg-type]
            raise InvalidArgument(f"ip_range {part} is not in the subnet {subnet}")
        first, last = part[0], part[-1]
        found["rangeStart"] = str(first + 1 if first == subnet[0] else first)
        found["rangeEnd"] = str(last - 1 if last == subnet[-1] and subnet.version == 4 else last)
    return found


def _subnets(document: dict[str, Any]) -> Iterator[_AnyNetwork]:
    """Find the subnets in a plugin's address management, as far as it has the form of host-local's."""
    management = document.get("ipam")
    if not isinstance(management, dict):
        return
    entries = [management]
    for group in management.get("ranges") or []:
        entries += [entry for entry in group if isinstance(entry, dict)] if isinstance(group, list) else []
    for entry in entries:
        with suppress(ValueError):
            if isinstance(entry.get("subnet"), str):
                yield ipaddress.ip_network(entry["subnet"], strict=False)


def _used(others: list[NetworkConfiguration]) -> Iterator[_AnyNetwork]:
    """Give what other networks have, and what the machine has routes to."""
    for network in others:
        for plugin in network.plugins:
            yield from _subnets(plugin.document)
    with suppress(OSError):
        for line in Path("/proc/net/route").read_text().splitlines()[1:]:
            fields = line.split()
            destination, mask = (int.from_bytes(bytes.fromhex(fields[i])[::-1], "big") for i in (1, 7))
            if mask:
                yield ipaddress.ip_network((destination, mask.bit_count()), strict=False)
    with suppress(OSError):
        for line in Path("/proc/net/ipv6_route").read_text().splitlines():
            destination6, prefix = line.split()[:2]
            if int(prefix, 16):
                address = ipaddress.IPv6Address(bytes.fromhex(destination6))
                yield ipaddress.ip_network((int(address), int(prefix, 16)), strict=False)


def _overlap(one: _AnyNetwork, other: _AnyNetwork) -> bool:
    return one.version == other.version and one.overlaps(other)


def _check_free(subnet: _AnyNetwork, used: list[_AnyNetwork]) -> None:
    for other in used:
        if _overlap(subnet, other):
            raise FailedPrecondition(
                f"subnet {subnet} is in use: {other} is of another network, or the machine has a route there",
                hint="Leave it out for a free one.",
            )


def _free_subnet(config: Config, used: list[_AnyNetwork]) -> _AnyNetwork:
    """Choose one; stores begin at different places, since none sees another's before its bridge is there."""
    for pool in (POOL, POOL_NEXT):
        subnets: list[_AnyNetwork] = list(ipaddress.ip_network(pool).subnets(new_prefix=SUBNET_PREFIX))
        first = zlib.crc32(str(config.root).encode()) % len(subnets)
        for subnet in subnets[first:] + subnets[:first]:
            if not any(_overlap(subnet, other) for other in used):
                return subnet
    raise ResourceExhausted("no subnet is free", hint="Name one.")


def _bridge(config: Config, name: str) -> str:
    """Give the bridge's name: another for each store and network, in the 15 characters that a device's may have."""
    return f"lamella{zlib.crc32(f'{config.root} {name}'.encode()):08x}"
