"""containerd's hosts.toml (its docs/hosts.md): the hosts of a domain, in the order of the file, and last its ``server``.

Fields at the top of the file are the server's. Nothing here does I/O: files that are named are only named.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from lamella.errors import InvalidArgument, LamellaError
from lamella.reference import DEFAULT_DOMAIN, DEFAULT_REGISTRY_HOST
from lamella.registry.proxies import parse_proxy
from lamella.registry.targets import Origin, Tls
from lamella.registry.toml_file import TomlFile

CAPABILITIES = frozenset({"pull", "resolve", "push", "referrers"})
_FIELDS = frozenset(
    {"capabilities", "ca", "client", "skip_verify", "header", "override_path", "dial_timeout", "proxy"}
)
_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
_DURATION = re.compile(r"(?:[0-9]+(?:\.[0-9]*)?(?:ns|us|µs|ms|s|m|h))+\Z")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


class HostEntry(NamedTuple):
    """What the file says of one host. ``origin`` None: the domain's own. No capabilities: all of them."""

    origin: Origin | None
    root: str
    capabilities: frozenset[str]
    tls: Tls
    headers: tuple[tuple[str, str], ...]
    dial_timeout: float | None
    proxy: str | None

    def __repr__(self) -> str:
        return f"HostEntry({self.origin})"


class HostsFile(NamedTuple):
    """One hosts.toml, and the keys in it that nobody knows."""

    hosts: tuple[HostEntry, ...]
    server: HostEntry
    unknown: tuple[str, ...]


def parse_hosts_file(text: str, file: Path) -> HostsFile:
    """Read a hosts.toml. InvalidArgument names file, line and key of what is malformed."""
    toml = TomlFile(text, file)
    top = toml.content
    server = toml.take(top, ("server",), str, "a string") or ""
    tables = toml.table(top, ("host",))
    unknown = [key for key in top if key not in _FIELDS | {"server", "host"}]
    hosts = []
    for url in tables:
        table = toml.table(tables, ("host", url))
        unknown += [f'host."{url}".{key}' for key in table if key not in _FIELDS]
        hosts.append(_entry(toml, table, ("host", url), url))
    return HostsFile(tuple(hosts), _entry(toml, top, (), server), tuple(unknown))


def parse_duration(text: str) -> float | None:
    """Read a duration as Go writes it (``1s``, ``1m30s``, ``500ms``) in seconds; None for anything else."""
    if not _DURATION.match(text):
        return None
    parts = re.findall(r"([0-9.]+)([a-zµ]+)", text)
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def _entry(toml: TomlFile, table: dict[str, Any], keys: tuple[str, ...], url: str) -> HostEntry:
    override = toml.take(table, (*keys, "override_path"), bool, "true or false") or False
    origin, root = _place(toml, keys or ("server",), url, override=override) if url else (None, "/v2")
    timeout = toml.take(table, (*keys, "dial_timeout"), str, "a duration, such as '2s'")
    seconds = parse_duration(timeout) if timeout else None
    if timeout and not seconds:
        toml.refuse((*keys, "dial_timeout"), f"{timeout!r} is not a duration, such as '2s'")
    return HostEntry(
        origin,
        root,
        _capabilities(toml, table, (*keys, "capabilities")),
        Tls(
            ca=tuple(str(toml.file.parent / name) for name in toml.strings(table, (*keys, "ca"))),
            client=_client(toml, table, (*keys, "client")),
            skip_verify=toml.take(table, (*keys, "skip_verify"), bool, "true or false") or False,
        ),
        _headers(toml, toml.table(table, (*keys, "header")), (*keys, "header")),
        seconds,
        _proxy(toml, table, (*keys, "proxy")),
    )


def _place(toml: TomlFile, keys: tuple[str, ...], url: str, *, override: bool) -> tuple[Origin, str]:
    """Read the URL of a host; /v2 is added to its path unless it is there, or ``override`` says that it is complete."""
    full = url if "://" in url else f"https://{url}"
    try:
        origin = Origin.of(full)
        parts = urlsplit(full)
    except LamellaError:
        toml.refuse(keys, "it must be the URL of a host, such as 'https://mirror.example.com'")
    if parts.query or parts.fragment:
        toml.refuse(keys, "the URL of a host has no query and no fragment")
    if origin.host == DEFAULT_DOMAIN:  # which is a name of images; no registry answers there
        origin = origin._replace(host=DEFAULT_REGISTRY_HOST)
    path = posixpath.normpath(parts.path).rstrip("/") if parts.path else ""
    if not override and not path.endswith("/v2"):
        path += "/v2"
    return origin, path


def _capabilities(toml: TomlFile, table: dict[str, Any], keys: tuple[str, ...]) -> frozenset[str]:
    named = frozenset(word.lower() for word in toml.strings(table, keys))
    for word in sorted(named - CAPABILITIES):
        toml.refuse(keys, f"{word!r} is none of {', '.join(sorted(CAPABILITIES))}")
    return named


def _client(toml: TomlFile, table: dict[str, Any], keys: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    value = toml.take(table, keys, (str, list), "a file, a list of files, or a list of pairs")
    pairs = []
    for each in [value] if isinstance(value, str) else value or []:
        names = [each, ""] if isinstance(each, str) else each
        if not isinstance(names, list) or len(names) != 2 or not all(isinstance(name, str) for name in names):
            toml.refuse(keys, "it must be a file, a list of files, or a list of pairs of certificate and key")
        certificate, key = names
        folder = toml.file.parent
        pairs.append((str(folder / certificate), str(folder / key) if key else ""))
    return tuple(pairs)


def _headers(toml: TomlFile, table: dict[str, Any], keys: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    headers = []
    for name in table:
        values = toml.strings(table, (*keys, name))
        if not _HEADER_NAME.match(name) or not all(_sendable(value) for value in values):
            # The value is not quoted: it may be a password.
            toml.refuse((*keys, name), "it is not a header that can be sent")
        headers.append((name, ", ".join(values)))
    return tuple(headers)


def _sendable(value: str) -> bool:
    return value.isascii() and value.isprintable()


def _proxy(toml: TomlFile, table: dict[str, Any], keys: tuple[str, ...]) -> str | None:
    value = toml.take(table, keys, str, "the URL of a proxy")
    if not value:
        return None
    try:
        return parse_proxy(value, "it")
    except InvalidArgument as error:
        toml.refuse(keys, f"{error.message}. {error.hint}")
