"""Where a request goes: origins, and which addresses belong to private networks. Nothing here does I/O."""

from __future__ import annotations

import ipaddress
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

from lamella.errors import InvalidArgument, PermissionDenied
from lamella.reference import is_loopback

_PORTS = {"http": 80, "https": 443}

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

    @property
    def netloc(self) -> str:
        """Give host and port as a URL writes them, without the scheme's own port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.netloc}"


def is_private_literal(host: str) -> bool:
    """Say whether a host is localhost or the address of a private network; a name is not resolved."""
    if is_loopback(host):
        return True
    try:
        return not parse_address(host).is_global
    except ValueError:
        return False


def parse_address(text: str) -> Address:
    """Read an IP address; one that carries an IPv4 address inside counts as that one. ValueError if it is none."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
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
