"""Where a request goes: origins, how each is reached, and which addresses belong to private networks. Nothing here does I/O."""

from __future__ import annotations

import ipaddress
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

import msgspec

from lamella.errors import InvalidArgument, PermissionDenied
from lamella.reference import is_loopback

_PORTS = {"http": 80, "https": 443}
_CARRYING = tuple(map(ipaddress.ip_network, ("64:ff9b::/96", "::/96", "::ffff:0:0:0/96")))
"""Whose last four bytes are an IPv4 address, for a translator (RFC 6052; RFC 4291, 2.5.5.1; RFC 2765)."""
_LOCAL = tuple(map(ipaddress.ip_network, ("64:ff9b:1::/48", "fec0::/10")))
"""Private by their own standards (RFC 8215, RFC 3879), which Python's tables lack."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Origin(NamedTuple):
    """Scheme, host and port: what an Authorization header belongs to."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> Origin:
        """Give the origin of an absolute http or https URL; PermissionDenied for any other."""
        parts = _split(url)
        return cls(parts.scheme, (parts.hostname or "").lower(), parts.port or _PORTS[parts.scheme])

    def over(self, scheme: str) -> Origin:
        """Give the same host over another scheme, and at its port if this one is at its own scheme's."""
        port = _PORTS[scheme] if self.port == _PORTS[self.scheme] else self.port
        return Origin(scheme, self.host, port)

    @property
    def netloc(self) -> str:
        """Give host and port as a URL writes them, without the scheme's own port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.netloc}"


class Tls(msgspec.Struct, frozen=True, kw_only=True):
    """Files for TLS: of authorities that are believed besides the system's, and of what is shown to a server that asks.

    ``client`` are pairs of a certificate and its key; an empty name of a key means that it is in the certificate's file.
    With ``skip_verify`` neither certificate nor host name are checked.
    """

    ca: tuple[str, ...] = ()
    client: tuple[tuple[str, str], ...] = ()
    skip_verify: bool = False


class Home(msgspec.Struct, frozen=True, kw_only=True):
    """A registry's host as it is reached. It holds for what is asked on its behalf elsewhere, too: redirects, tokens.

    ``headers`` and the client certificate are for ``origin`` alone. ``proxy``: its URL; None: as the environment says.
    ``connect_timeout``, ``silence`` (seconds to wait for a connection, and for the next byte) and ``attempts``: None: as for any
    registry.
    """

    origin: Origin
    tls: Tls = Tls()
    headers: tuple[tuple[str, str], ...] = ()
    proxy: str | None = None
    connect_timeout: float | None = None
    silence: float | None = None
    attempts: int | None = None

    def at(self, origin: Origin) -> Home:
        """Give the same home over another scheme."""
        return self if origin == self.origin else msgspec.structs.replace(self, origin=origin)

    def __repr__(self) -> str:
        # Headers and the proxy's URL may hold secrets.
        return f"Home({self.origin})"


def is_private_literal(host: str) -> bool:
    """Say whether a host is localhost or the address of a private network; a name is not resolved."""
    if is_loopback(host):
        return True
    try:
        return is_private(parse_address(host))
    except ValueError:
        return False


def is_link_local_literal(host: str) -> bool:
    """Say whether a host is an address that is valid on one link only (RFC 3927, RFC 4291); a name is not resolved."""
    try:
        return parse_address(host).is_link_local
    except ValueError:
        return False


def is_private(address: Address) -> bool:
    """Say whether an address is of a private network, or of none: anything that IANA does not list as reachable by all."""
    return not address.is_global or any(
        address in network for network in _LOCAL if network.version == address.version
    )


def parse_address(text: str) -> Address:
    """Read an IP address; one that carries an IPv4 address inside counts as that one. ValueError if it is none."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        if any(address in network for network in _CARRYING):
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        return address.ipv4_mapped or address.sixtofour or address
    return address


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise InvalidArgument("a registry names a malformed URL") from None
    if parts.scheme not in _PORTS or not parts.hostname:
        raise PermissionDenied(f"a registry sends on to a {parts.scheme[:20]!r} URL, which is refused")
    if parts.username or parts.password:
        raise PermissionDenied(
            f"a registry sends on to {parts.hostname} with credentials of its own, which is refused"
        )
    return parts
