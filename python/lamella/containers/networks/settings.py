"""The options of a network, parsed and held against what each kind of network can do."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from lamella.containers.networks import PER_NETWORK, Endpoint, Kind, Settings, Settled, kind_of
from lamella.containers.networks.files import HOST_GATEWAY
from lamella.containers.networks.ports import Port, parse_ports
from lamella.containers.options import Networks, Options, several
from lamella.errors import InvalidArgument
from lamella.structs import replace
from lamella.typings import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lamella.client import Client

_ITEMS_MAX = 1024
_NAME = re.compile(r"[A-Za-z0-9_.]([A-Za-z0-9_.-]{0,253})")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_WHY = {
    "none": "a container without a network has none",
    "host": "in the host's network it is the host's",
    "container": "it is the other container's",
    "pasta": "pasta takes it from the host",
}


def settle_options(client: Client, options: Options, exposed: Iterable[Port]) -> Settled:
    """See :func:`lamella.containers.networks.settle`."""
    first, *more = _networks(options)
    settings = parse_settings(options, exposed)
    for name in PER_NETWORK:
        if value := getattr(first, name):
            if getattr(settings, name):
                raise InvalidArgument(f"{name} is given for network {first.network}, and for all")
            settings = replace(settings, **{name: value})
    kind = kind_of(first.network)
    check(kind, first.network, options, settings)
    kept = settings if settings != Settings() else None
    if kind == "container":
        other = client.containers.get(first.network.partition(":")[2])
        extra = other.record.extra
        return Settled(f"container:{other.id}", (), kept, other.id, extra.hostname, extra.domainname)
    if kind == "cni":
        from lamella.containers.networks.configuration import find

        for endpoint in (first, *more):
            find(client.config, endpoint.network)
    return Settled(
        first.network, tuple(more), kept, hostname=options.hostname, domainname=options.domainname or ""
    )


def _networks(options: Options) -> list[Endpoint]:
    """Give the networks that were asked for, one at least."""
    endpoints = parse_networks(options.networks)
    if not endpoints:
        return [Endpoint(network=options.network)]
    if options.network != "none":
        raise InvalidArgument("network and networks are given both", hint="Name them all in networks.")
    names = [endpoint.network for endpoint in endpoints]
    for name in names:
        if len(names) > 1 and kind_of(name) != "cni":
            raise InvalidArgument(
                f"network {name!r} cannot be had together with another",
                hint="Several can be those of CNI: bridge, and what `lamella networks ls` lists.",
            )
        if names.count(name) > 1:
            raise InvalidArgument(f"network {name} is named twice")
    return endpoints


def parse_networks(value: Networks | None) -> list[Endpoint]:
    """Parse several networks: names, docker's ``name=web,alias=db,ip=10.0.0.2``, or mappings of the same words.

    InvalidArgument for what is malformed.
    """
    if isinstance(value, Mapping):
        return [_endpoint({"name": name, **(words or {})}) for name, words in value.items()]
    return [
        _endpoint(item) if isinstance(item, Mapping) else _endpoint_of_text(item)
        for item in ([value] if isinstance(value, str) else value or ())
    ]


def _endpoint_of_text(text: str) -> Endpoint:
    if not isinstance(text, str):
        raise InvalidArgument(f"network {text!r} is no text")
    if not text.startswith("name="):
        return Endpoint(network=text)
    words: dict[str, Any] = {}
    for item in text.split(","):
        key, equals, value = item.partition("=")
        key = key.replace("-", "_")
        if key == "alias":
            words.setdefault("aliases", []).append(value)
        elif not equals or key in words:
            raise InvalidArgument(
                f"network {text!r} is malformed", hint="Write name=NAME,alias=ALIAS,ip=ADDRESS."
            )
        else:
            words[key] = value
    return _endpoint(words)


def _endpoint(words: Mapping[str, Any]) -> Endpoint:
    unknown = words.keys() - {"name", *PER_NETWORK}
    name = words.get("name")
    if unknown or not isinstance(name, str):
        raise InvalidArgument(
            f"network {name!r}: {', '.join(sorted(map(str, unknown)))} is not known"
            if unknown
            else "a network has no name",
            hint=f"Known: name, {', '.join(PER_NETWORK)}.",
        )
    return make_endpoint(name, **{key: value for key, value in words.items() if key != "name"})


def make_endpoint(
    network: str,
    *,
    ip: str | None = None,
    ip6: str | None = None,
    mac_address: str | None = None,
    aliases: Sequence[str] | None = None,
) -> Endpoint:
    """Parse what is asked of one network. InvalidArgument."""
    kind_of(network)
    return Endpoint(
        network=network,
        ip=_address(ip, "ip") if ip else "",
        ip6=_address(ip6, "ip6", version=6) if ip6 else "",
        mac_address=_mac(mac_address) if mac_address else "",
        aliases=tuple(_name(text, "network alias") for text in _limited(several(aliases), "aliases")),
    )


def parse_settings(options: Options, exposed: Iterable[Port] = ()) -> Settings:
    """Parse the options that concern the network. InvalidArgument for one that is malformed."""
    ports = parse_ports(options.ports)
    if options.publish_all_ports:
        published = {port.name for port in ports}
        ports += tuple(port for port in exposed if port.name not in published)
    endpoint = make_endpoint(
        options.network,
        ip=options.ip,
        ip6=options.ip6,
        mac_address=options.mac_address,
        aliases=options.network_aliases,
    )
    return Settings(
        ports=ports,
        dns=tuple(_address(text, "dns") for text in _limited(several(options.dns), "dns")),
        dns_search=tuple(
            _word(text, "dns_search") for text in _limited(several(options.dns_search), "dns_search")
        ),
        dns_options=tuple(
            _word(text, "dns_options") for text in _limited(several(options.dns_options), "dns_options")
        ),
        extra_hosts=tuple(_extra_hosts(options.extra_hosts)),
        **{name: getattr(endpoint, name) for name in PER_NETWORK},
    )


def check(kind: Kind, network: str, options: Options, settings: Settings) -> None:
    """Refuse what a kind of network cannot do, rather than drop it. InvalidArgument."""
    refused = {
        "none": ("ports", *PER_NETWORK),
        "host": ("ports", *PER_NETWORK),
        "container": ("ports", *PER_NETWORK, "dns", "dns_search", "dns_options", "extra_hosts"),
        "pasta": PER_NETWORK,
        "cni": (),
    }[kind]
    for name in refused:
        if getattr(settings, name):
            hint = (
                "Name a network to publish ports: bridge, or pasta."
                if name == "ports" and kind == "none"
                else None
            )
            raise InvalidArgument(f"{name} cannot be set with network {network!r}: {_WHY[kind]}", hint=hint)
    if kind == "container":
        changed = [name for name in options.sysctls or () if name.replace("/", ".").startswith("net.")]
        names = [name for name in ("hostname", "domainname") if getattr(options, name)]
        for name in (*names, *changed):
            raise InvalidArgument(f"{name} cannot be set with network {network!r}: {_WHY[kind]}")
    for port in settings.ports if kind == "cni" else ():
        if port.host_ip == "::1":
            raise InvalidArgument(
                f"port {port.name} cannot be published at ::1: the kernel routes nothing from IPv6's loopback",
                hint="Publish it at 127.0.0.1, or with network='pasta'.",
            )
    if kind in ("none", "pasta"):
        for name, address in settings.extra_hosts:
            if address == HOST_GATEWAY:
                raise InvalidArgument(
                    f"extra host {name!r}: with network {network!r} the host has no address of its own",
                    hint=f"{HOST_GATEWAY} is for CNI networks and for host.",
                )


def _limited(items: list[str], what: str) -> list[str]:
    if len(items) > _ITEMS_MAX:
        raise InvalidArgument(f"{what} has {len(items)} entries, at most {_ITEMS_MAX} can be")
    return items


def _extra_hosts(value: Sequence[str] | Mapping[str, str] | None) -> list[tuple[str, str]]:
    if isinstance(value, Mapping):
        pairs = [(name, address) for name, address in value.items()]
    else:
        pairs = []
        for text in several(value):
            name, separator, address = text.partition("=" if "=" in text else ":")
            if not separator:
                raise InvalidArgument(
                    f"extra host {text!r} is malformed", hint="Write NAME:ADDRESS or NAME:host-gateway."
                )
            pairs.append((name, address))
    if len(pairs) > _ITEMS_MAX:
        raise InvalidArgument(f"extra_hosts has {len(pairs)} entries, at most {_ITEMS_MAX} can be")
    return [
        (
            _name(name, "extra host"),
            address if address == HOST_GATEWAY else _address(address.strip("[]"), f"extra host {name!r}"),
        )
        for name, address in pairs
    ]


def _address(text: str, what: str, *, version: int | None = None) -> str:
    import ipaddress

    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise InvalidArgument(f"{what}: {text!r} is not an IP address") from None
    if version not in (None, address.version):
        raise InvalidArgument(f"{what}: {text!r} is not an address of IPv{version}")
    return str(address)


def _name(text: str, what: str) -> str:
    if not isinstance(text, str) or not _NAME.fullmatch(text):
        raise InvalidArgument(f"{what} {text!r} is not a name of a machine")
    return text


def _word(text: str, what: str) -> str:
    if not isinstance(text, str) or not text.isascii() or not text.isprintable() or not text or " " in text:
        raise InvalidArgument(f"{what} {text!r} is not one word")
    return text


def _mac(text: str) -> str:
    lower = text.lower().replace("-", ":")
    if not _MAC.fullmatch(lower) or int(lower[:2], 16) & 1:
        raise InvalidArgument(
            f"mac_address {text!r} is not one of a single device", hint="Write 02:42:ac:11:00:02."
        )
    return lower
