"""Which proxy a request goes through: the environment's variables, read as Go's programs and curl read them.

``HTTPS_PROXY``, ``HTTP_PROXY``, else ``ALL_PROXY``, name it for a scheme; ``NO_PROXY`` lists, with commas, what is reached
directly; each also in lower case. An entry of ``NO_PROXY`` is ``*`` (everything), an address, a network (``10.0.0.0/8``), a
domain with its subdomains (``example.com``), or without itself (``.example.com``, ``*.example.com``), each with ``:port`` for
that port alone. This machine is never reached through a proxy. Where REQUEST_METHOD is set HTTP_PROXY is a header that a
web server's client chose (CVE-2016-5385), and not read.

Nothing here does I/O.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

from lamella.errors import InvalidArgument
from lamella.reference import is_loopback, split_host
from lamella.registry.targets import Origin

_SCHEMES = ("http", "https", "socks5", "socks5h")


def proxy_for(target: Origin, environ: Mapping[str, str]) -> str | None:
    """Give the URL of the proxy for requests to ``target``, None if they go there directly.

    It may hold a password: see :func:`describe`. InvalidArgument, naming the variable, for what is no URL of a proxy.
    """
    if is_loopback(target.netloc) or _goes_directly(target, _get(environ, "NO_PROXY")[1]):
        return None
    names = [f"{target.scheme.upper()}_PROXY", "ALL_PROXY"]
    if target.scheme == "http" and environ.get("REQUEST_METHOD"):
        names.pop(0)
    for name in names:
        variable, value = _get(environ, name)
        if value:
            return parse_proxy(value, variable)
    return None


def parse_proxy(text: str, where: str) -> str:
    """Check the URL of a proxy, to which http:// is added if it has no scheme. InvalidArgument names ``where``."""
    url = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(url)
        usable = parts.scheme in _SCHEMES and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable or parts.path.strip("/") or parts.query or parts.fragment:
        # Not quoted: it may hold a password.
        raise InvalidArgument(
            f"{where} does not name a proxy",
            hint=f"Write it as http://host:port; {', '.join(_SCHEMES)} are known.",
        )
    return url


def describe(proxy: str) -> str:
    """Give scheme, host and port of a proxy, without the password that its URL may hold."""
    parts = urlsplit(proxy)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _get(environ: Mapping[str, str], name: str) -> tuple[str, str]:
    for variable in (name, name.lower()):
        value = environ.get(variable, "").strip()
        if value:
            return variable, value
    return name, ""


def _goes_directly(target: Origin, no_proxy: str) -> bool:
    return any(_matches(target, entry.strip().lower()) for entry in no_proxy.split(","))


def _matches(target: Origin, entry: str) -> bool:
    if entry in {"", "*"}:
        return bool(entry)
    host, address = target.host.rstrip("."), _network(target.host)
    if address is not None and (network := _network(entry)) is not None:
        return network.version == address.version and address.network_address in network
    try:
        name, port = split_host(entry)
    except ValueError:
        return False
    if port not in {None, target.port}:
        return False
    suffix = name.removeprefix("*")
    return host.endswith(suffix) if suffix.startswith(".") else host == suffix or host.endswith(f".{suffix}")


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    """Read an address or a network; None for a name."""
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None
