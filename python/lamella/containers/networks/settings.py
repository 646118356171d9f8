"""The options of a network, parsed and held against what each kind of network can do."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from lamella.containers.networks import Kind, Settings
from lamella.containers.networks.files import HOST_GATEWAY
from lamella.containers.networks.ports import parse_ports
from lamella.containers.options import Options, several
from lamella.errors import InvalidArgument

_ITEMS_MAX = 1024
_NAME = re.compile(r"[A-Za-z0-9_.]([A-Za-z0-9_.-]{0,253})")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_WHY = {
    "none": "a container without a network has none",
    "host": "in the host's network it is the host's",
    "container": "it is the other container's",
    "pasta": "pasta takes it from the host",
}


def parse_settings(options: Options) -> Settings:
    """Parse the options that concern the network. InvalidArgument for one that is malformed."""
    return Settings(
        ports=parse_ports(options.ports),
        dns=tuple(_address(text, "dns") for text in _limited(several(options.dns), "dns")),
        dns_search=tuple(
            _word(text, "dns_search") for text in _limited(several(options.dns_search), "dns_search")
        ),
        dns_options=tuple(
            _word(text, "dns_options") for text in _limited(several(options.dns_options), "dns_options")
        ),
        extra_hosts=tuple(_extra_hosts(options.extra_hosts)),
        ip=_address(options.ip, "ip") if options.ip else "",
        mac_address=_mac(options.mac_address) if options.mac_address else "",
        aliases=tuple(
            _name(text, "network alias")
            for text in _limited(several(options.network_aliases), "network_aliases")
        ),
    )


def check(kind: Kind, options: Options, settings: Settings) -> None:
    """Refuse what a kind of network cannot do, rather than drop it. InvalidArgument."""
    refused = {
        "none": ("ports", "ip", "mac_address", "aliases"),
        "host": ("ports", "ip", "mac_address", "aliases"),
        "container": (
            "ports",
            "ip",
            "mac_address",
            "aliases",
            "dns",
            "dns_search",
            "dns_options",
            "extra_hosts",
        ),
        "pasta": ("ip", "mac_address", "aliases"),
        "cni": (),
    }[kind]
    for name in refused:
        if getattr(settings, name):
            hint = (
                "Name a network to publish ports: bridge, or pasta."
                if name == "ports" and kind == "none"
                else None
            )
            raise InvalidArgument(
                f"{name} cannot be set with network {options.network!r}: {_WHY[kind]}", hint=hint
            )
    if kind == "container":
        changed = [name for name in options.sysctls or () if name.replace("/", ".").startswith("net.")]
        for name in (*(["hostname"] if options.hostname else []), *changed):
            raise InvalidArgument(f"{name} cannot be set with network {options.network!r}: {_WHY[kind]}")
    if kind in ("none", "pasta"):
        for name, address in settings.extra_hosts:
            if address == HOST_GATEWAY:
                raise InvalidArgument(
                    f"extra host {name!r}: with network {options.network!r} the host has no address of its own",
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


def _address(text: str, what: str) -> str:
    import ipaddress

    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise InvalidArgument(f"{what}: {text!r} is not an IP address") from None


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
