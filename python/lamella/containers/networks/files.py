"""A container's hosts, hostname and resolv.conf: made anew at each start, its own, and bounded.

Where a container has an address, its resolvers are the first of: those that were asked for, those of its network, and the
host's that can be reached from there. The host's loopback is not there: where systemd-resolved listens on it, the list of
its upstream servers is taken (systemd-resolved(8)), and where nothing is left the file says so. No public resolver is
put in, as docker does: whose they are is not ours to say.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lamella import _core
from lamella.errors import InvalidArgument
from lamella.structs import Struct, replace

FILE_MAX = 64 * 1024
RESOLV_CONF = "/etc/resolv.conf"
UPSTREAM_RESOLV_CONF = "/run/systemd/resolve/resolv.conf"
ISOLATED_RESOLV_CONF = b"# This container has no network beyond loopback.\n"
HOST_GATEWAY = "host-gateway"
"""In place of an address: the one by which the host is reached from the container."""
_LOCALHOST = """127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::\tip6-localnet
ff00::\tip6-mcastprefix
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
"""


class Names(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was asked for: resolvers, and names of other machines as ``(name, address)``."""

    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()
    extra_hosts: tuple[tuple[str, str], ...] = ()


class Resolvers(Struct, frozen=True, kw_only=True):
    """The lines of a resolv.conf that count (resolv.conf(5))."""

    nameservers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    def __bytes__(self) -> bytes:
        lines = [f"nameserver {address}" for address in self.nameservers]
        if self.search and self.search != (".",):
            lines.append(f"search {' '.join(self.search)}")
        if self.options:
            lines.append(f"options {' '.join(self.options)}")
        return ("\n".join(lines) + "\n").encode()


_NO_RESOLVERS = Resolvers()


def parse_resolv_conf(text: str) -> Resolvers:
    """Read a resolv.conf. What a resolver would not understand is left out."""
    nameservers, search, options = [], [], []
    for line in text.splitlines():
        word, *values = line.split("#")[0].split(";")[0].split()[:64] or [""]
        if word == "nameserver" and values:
            nameservers.append(values[0])
        elif word in ("search", "domain"):
            search = values  # the last one counts
        elif word == "options":
            options += values
    return Resolvers(nameservers=tuple(nameservers), search=tuple(search), options=tuple(options))


def reachable(nameservers: Iterable[str], *, ipv6: bool = True) -> tuple[str, ...]:
    """Give those that are reached from another network namespace: no loopback, nothing bound to a link of the host."""
    import ipaddress

    kept = []
    for text in nameservers:
        try:
            address = ipaddress.ip_address(text.partition("%")[0])
        except ValueError:
            continue
        local = address.is_loopback or address.is_unspecified or "%" in text or address.is_link_local
        if not local and (ipv6 or address.version == 4):
            kept.append(text)
    return tuple(kept)


def host_resolvers(*, path: str = RESOLV_CONF, upstream: str = UPSTREAM_RESOLV_CONF) -> Resolvers:
    """Give the host's resolvers that a container can reach."""
    found = parse_resolv_conf(read_host(path).decode(errors="replace"))
    if "127.0.0.53" in found.nameservers:  # systemd-resolved
        found = parse_resolv_conf(read_host(upstream).decode(errors="replace"))
    return replace(found, nameservers=reachable(found.nameservers))


def resolv_conf(names: Names, network: Resolvers, host: Resolvers) -> bytes:
    """Give resolv.conf: what was asked for, else the network's, else the host's, each of the three kinds of lines for itself."""
    chosen = Resolvers(
        nameservers=names.dns or network.nameservers or host.nameservers,
        search=names.dns_search or network.search or host.search,
        options=names.dns_options or network.options or host.options,
    )
    text = bytes(chosen)
    if not chosen.nameservers:
        text = (
            b"# No resolver of the host can be reached from here; one can be given by dns (--dns).\n"
            + text.lstrip()
        )
    return text[:FILE_MAX]


def host_files(hostname: str, names: Names) -> dict[str, bytes]:
    """Give the files of a container in the host's network: the host's, and what was asked for."""
    resolv = read_host(RESOLV_CONF)
    if names.dns or names.dns_search or names.dns_options:
        resolv = resolv_conf(names, Resolvers(), parse_resolv_conf(resolv.decode(errors="replace")))
    hosts = read_host("/etc/hosts")
    if names.extra_hosts:
        hosts = hosts.rstrip(b"\n") + b"\n" + _extra(names.extra_hosts, "127.0.0.1").encode()
    return _files(hosts, hostname, resolv)


def isolated_files(hostname: str, domainname: str, names: Names) -> dict[str, bytes]:
    """Give the files of a container that has loopback alone, until it is plugged in."""
    own = own_lines(["127.0.1.1"], hostname, domainname)
    hosts = f"{_LOCALHOST}{_extra(names.extra_hosts, '')}{kept_lines(own)}".encode()
    resolv = ISOLATED_RESOLV_CONF
    if names.dns or names.dns_search or names.dns_options:
        resolv = resolv_conf(names, Resolvers(), Resolvers())
    return _files(hosts, hostname, resolv)


def connected_files(
    hostname: str,
    names: Names,
    lines: str,
    *,
    gateway: str = "",
    network: Resolvers = _NO_RESOLVERS,
    host: Resolvers | None = None,
) -> dict[str, bytes]:
    """Give the files of a container that has addresses: ``lines`` of its hosts.

    ``gateway`` is the host's address in the same network, if it has one. What was asked for is found first.
    """
    hosts = f"{_LOCALHOST}{_extra(names.extra_hosts, gateway)}{lines}".encode()
    return _files(hosts, hostname, resolv_conf(names, network, host_resolvers() if host is None else host))


def own_lines(
    addresses: Iterable[str], hostname: str, domainname: str, aliases: Iterable[str] = ()
) -> list[str]:
    """Give a container's own addresses with its names, the whole one first, as hosts(5) wants it."""
    whole = f"{hostname}.{domainname}" if domainname else hostname
    names = " ".join(dict.fromkeys([whole, whole.partition(".")[0], *aliases]))
    return [f"{address}\t{names}" for address in addresses]


def kept_lines(lines: Iterable[str] = ()) -> str:
    """Give the part of a hosts file that is kept up to date (``rust/launcher/src/network/names.rs``)."""
    begin, end = _core.HOSTS_COMMENTS
    return begin + "".join(f"{line}\n" for line in lines) + end


def _extra(hosts: Iterable[tuple[str, str]], gateway: str) -> str:
    lines = []
    for name, given in hosts:
        address = gateway if given == HOST_GATEWAY else given
        if not address:
            raise InvalidArgument(
                f"extra host {name!r}: the host has no address in this network for {HOST_GATEWAY}",
                hint="Give the address itself.",
            )
        lines.append(f"{address}\t{name}\n")
    return "".join(lines)


def _files(hosts: bytes, hostname: str, resolv: bytes) -> dict[str, bytes]:
    return {"hosts": hosts, "hostname": f"{hostname}\n".encode(), "resolv.conf": resolv}


def read_host(path: str) -> bytes:
    """Read a file of the host, its beginning if it is long; empty when it is not there."""
    try:
        with Path(path).open("rb") as file:
            return file.read(FILE_MAX)
    except OSError:
        return b""
