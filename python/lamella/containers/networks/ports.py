"""Published ports: which port of the host leads to which port of a container.

Forms: docker's text, ``[[HOST_IP:][HOST_PORT]:]CONTAINER_PORT[/PROTOCOL]``, with ranges ``8000-8002:80-82``; docker-py's
mapping, ``{"80/tcp": 8080}``, where the value is a port, None for a free one, ``(HOST_IP, HOST_PORT)``, or a list of those.
Parsing does no I/O: a host port that is left open is 0, and chosen when the container starts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

from lamella.errors import InvalidArgument, NotFound
from lamella.structs import Struct, replace
from lamella.typings import Any

PROTOCOLS = ("tcp", "udp", "sctp")
PORT_MAX = 65535
EVERYWHERE = "0.0.0.0"  # noqa: S104 (shown, not bound)
PORTS_MAX = 4096
"""A firewall rule stands behind each of them."""
_HINT = (
    "Write [[HOST_IP:][HOST_PORT]:]CONTAINER_PORT[/tcp|udp|sctp], such as 8080:80 or 127.0.0.1:5353:53/udp."
)


class Port(Struct, frozen=True, omit_defaults=True):
    """One published port. ``host_ip`` "" stands for all addresses, ``host_port`` 0 for one that is free."""

    container_port: int
    host_port: int = 0
    protocol: str = "tcp"
    host_ip: str = ""

    @property
    def name(self) -> str:
        """Give the container's port as docker names it: ``80/tcp``."""
        return f"{self.container_port}/{self.protocol}"

    @property
    def shown_host_ip(self) -> str:
        """Give the host's address as it stands in front of a port."""
        return f"[{self.host_ip}]" if ":" in self.host_ip else self.host_ip or EVERYWHERE

    def overlaps(self, other: Port) -> bool:
        """Tell whether two of them cannot be published at once."""
        return (
            self.host_port == other.host_port
            and self.protocol == other.protocol
            and (self._everywhere or other._everywhere or self.host_ip == other.host_ip)
        )

    @property
    def _everywhere(self) -> bool:
        return self.host_ip in ("", "0.0.0.0", "::")  # noqa: S104 (compared, not bound)


def parse_ports(value: Mapping[Any, Any] | Sequence[str | int] | None) -> tuple[Port, ...]:
    """Parse either form. InvalidArgument for what is malformed, published twice, or too much."""
    if not value:
        return ()
    ports: list[Port] = []
    if isinstance(value, Mapping):
        for key, target in value.items():
            container_port, protocol = _container_port(key)
            ports += _bindings(key, target, container_port, protocol)
    else:
        for text in [value] if isinstance(value, str) else value:
            ports += _parse(str(text))
    if len(ports) > PORTS_MAX:
        raise InvalidArgument(f"{len(ports)} ports are published, at most {PORTS_MAX} can be")
    taken: dict[tuple[int, str], list[Port]] = {}
    unique: list[Port] = []
    for port in dict.fromkeys(ports):
        others = taken.setdefault((port.host_port, port.protocol), [])
        if port.host_port and any(port.overlaps(other) for other in others):
            raise InvalidArgument(f"the host's port {port.host_port}/{port.protocol} is published twice")
        others.append(port)
        unique.append(port)
    return tuple(unique)


def _bindings(key: Any, target: Any, container_port: int, protocol: str) -> list[Port]:
    found = []
    for item in target if isinstance(target, list) else [target]:
        address, port = item if isinstance(item, tuple) and len(item) == 2 else ("", item)
        if (port is not None and not isinstance(port, int | str)) or isinstance(port, bool):
            raise InvalidArgument(
                f"port {key!r}: {item!r} is not a port of the host",
                hint="Give 8080, None or ('127.0.0.1', 8080).",
            )
        number = 0 if port in (None, "") else _number(str(port), str(key))
        found.append(Port(container_port, number, protocol, _address(str(address or ""), str(key))))
    return found


def _container_port(key: Any) -> tuple[int, str]:
    number, slash, protocol = str(key).partition("/")
    protocol = protocol.lower() if slash else "tcp"
    _check_protocol(protocol, str(key))
    return _number(number, str(key), lowest=1), protocol


def _parse(text: str) -> list[Port]:
    rest, slash, protocol = text.partition("/")
    protocol = protocol.lower() if slash else "tcp"
    _check_protocol(protocol, text)
    address = ""
    if rest.startswith("["):  # an IPv6 address stands in brackets
        address, bracket, rest = rest[1:].partition("]")
        if not bracket or not rest.startswith(":"):
            raise InvalidArgument(f"port {text!r} is malformed", hint=_HINT)
        rest = rest[1:]
        if ":" not in rest:
            raise InvalidArgument(f"port {text!r} is malformed", hint=_HINT)
    elif rest.count(":") == 2:
        address, _, rest = rest.partition(":")
    host, colon, container = rest.rpartition(":")
    if ":" in host:
        raise InvalidArgument(f"port {text!r} is malformed", hint=_HINT)
    address = _address(address, text)
    inside = _range(container, text)
    if not colon or not host:
        return [Port(port, 0, protocol, address) for port in inside]
    outside = _range(host, text, lowest=0)
    if len(outside) != len(inside):
        if len(inside) == 1:
            raise InvalidArgument(
                f"port {text!r} has a range for one port",
                hint="Name the port, or leave it out for a free one.",
            )
        raise InvalidArgument(
            f"port {text!r} has ranges of {len(outside)} and {len(inside)} ports", hint=_HINT
        )
    return [Port(inner, outer, protocol, address) for inner, outer in zip(inside, outside, strict=True)]


def _range(text: str, whole: str, *, lowest: int = 1) -> range:
    first, dash, last = text.partition("-")
    start = _number(first, whole, lowest=lowest)
    end = _number(last, whole, lowest=lowest) if dash else start
    if end < start:
        raise InvalidArgument(f"port {whole!r} has a range that ends before it begins", hint=_HINT)
    return range(start, end + 1)


def _number(text: str, whole: str, *, lowest: int = 0) -> int:
    if text.isascii() and text.isdigit() and len(text) <= 5 and lowest <= int(text) <= PORT_MAX:
        return int(text)
    raise InvalidArgument(f"port {whole!r} is malformed", hint=_HINT)


def _check_protocol(protocol: str, whole: str) -> None:
    if protocol not in PROTOCOLS:
        raise InvalidArgument(f"port {whole!r}: the protocol is none of {', '.join(PROTOCOLS)}", hint=_HINT)


def _address(text: str, whole: str) -> str:
    if not text:
        return ""
    import ipaddress

    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise InvalidArgument(f"port {whole!r}: {text!r} is not an address of the host", hint=_HINT) from None


def parse_exposed(image: Iterable[str] | None, expose: Sequence[str | int] | None) -> tuple[Port, ...]:
    """Parse the ports that an image and ``expose`` name, ``80``, ``53/udp`` or ``8000-8010``, without a port of the host.

    What an image has that is malformed is left out; InvalidArgument for the rest.
    """
    found: list[Port] = []
    for text in image or ():
        with suppress(InvalidArgument):
            found += _exposed(text)
    for item in [expose] if isinstance(expose, str | int) else expose or ():
        found += _exposed(str(item))
    if len(found) > PORTS_MAX:
        raise InvalidArgument(f"{len(found)} ports are exposed, at most {PORTS_MAX} can be")
    return tuple(dict.fromkeys(found))


def _exposed(text: str) -> list[Port]:
    if ":" in text:
        raise InvalidArgument(f"port {text!r} names one of the host", hint="Publish it by ports (-p).")
    return _parse(text)


def show_ports(published: Iterable[Port], exposed: Iterable[str] = ()) -> list[str]:
    """Give ports as ``docker ps`` shows them: ``0.0.0.0:8080->80/tcp``, ``80/tcp`` for one that is not published.

    Ports that follow each other on both sides are one range: ``0.0.0.0:8000-8002->80-82/tcp``.
    """
    ranges: list[tuple[Port, int]] = []
    for port in sorted(published, key=lambda each: (each.host_ip, each.protocol, each.container_port)):
        if ranges:
            first, size = ranges[-1]
            follows = replace(
                first, container_port=first.container_port + size, host_port=first.host_port + size
            )
            if port == follows:
                ranges[-1] = (first, size + 1)
                continue
        ranges.append((port, 1))
    shown = [
        f"{port.shown_host_ip}:{_span(port.host_port, size)}->{_span(port.container_port, size)}/{port.protocol}"
        for port, size in ranges
    ]
    names = {port.name for port, _ in ranges}
    return shown + [name for name in exposed if name not in names]


def published_at(
    bindings: dict[str, list[dict[str, str]]], port: str, container: str
) -> dict[str, list[dict[str, str]]]:
    """Pick from what :func:`bindings` gives one port of the container. InvalidArgument, NotFound when it is not published."""
    number, protocol = _container_port(port)
    name = Port(number, protocol=protocol).name
    if name not in bindings:
        raise NotFound(f"port {name} of the container {container} is not published")
    return {name: bindings[name]}


def _span(first: int, size: int) -> str:
    return str(first) if size == 1 else f"{first}-{first + size - 1}"


def bindings(ports: Iterable[Port]) -> dict[str, list[dict[str, str]]]:
    """Give what docker-py's ``container.ports`` gives."""
    found: dict[str, list[dict[str, str]]] = {}
    for port in ports:
        found.setdefault(port.name, []).append(
            {"HostIp": port.host_ip or EVERYWHERE, "HostPort": str(port.host_port)}
        )
    return found
