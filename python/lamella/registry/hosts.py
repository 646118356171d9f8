"""Which hosts serve a repository, in which order, and how each is reached: what the files of this machine say of it.

The first of these that says something of a domain is all that counts:

1. the domain's own folder in a hosts folder, ``DIR/example.com/hosts.toml`` (:mod:`lamella.registry.hosts_toml`)
2. registries.conf, by the longest prefix (:mod:`lamella.registry.registries_conf`)
3. ``DIR/_default/hosts.toml``
4. nothing: the domain's own host

A domain's folder without a hosts.toml holds certificates, in docker's form: ``*.crt`` of authorities, ``*.cert`` and ``*.key``
of clients. They are for the host of that name, also where 2 or 4 lead to it. Hosts folders, the first with one for the domain::

    $LAMELLA_HOSTS_DIR; or, where that is not set,
    $XDG_CONFIG_HOME/lamella/certs.d     (~/.config)
    /etc/lamella/certs.d
    /etc/containerd/certs.d
    /etc/docker/certs.d
    /etc/containers/certs.d

Files are only read, when a domain is first asked for. Nothing here uses the network, or imports what does.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

import msgspec

from lamella.errors import InvalidArgument, PermissionDenied
from lamella.logs import Log
from lamella.reference import DEFAULT_DOMAIN, DEFAULT_REGISTRY_HOST, is_loopback, registry_host
from lamella.registry.config import RegistryConfig
from lamella.registry.hosts_toml import HostEntry, parse_hosts_file
from lamella.registry.registries_conf import RegistriesConf, Registry, Site, load_registries
from lamella.registry.targets import Home, Origin, Tls
from lamella.registry.toml_file import config_home, read_text

PULL, RESOLVE, PUSH, REFERRERS = "pull", "resolve", "push", "referrers"
ALL = frozenset({PULL, RESOLVE, PUSH, REFERRERS})
DIAL_TIMEOUT = 3.0
"""Seconds that a host may take to accept a connection while another one is left."""

FIRST_ANSWER = 10.0
"""Seconds that such a host may take for its first answer. Later ones may take longer: a mirror may have to fetch a blob first."""

_DEFAULT_FOLDER = "_default"
_log = Log("lamella.registry")


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """One host that serves a repository.

    ``path`` is the repository there, below ``root``; ``domain`` is the name under which credentials for it are kept.
    ``capabilities``: what it may be asked: ``pull`` what is named by digest, ``resolve`` a tag, ``push``, ``referrers``.
    ``namespace``: the domain that a mirror of many is told to serve. ``guessed``: the scheme may be the other one.
    ``source`` is the file that says all this, empty where none does.
    """

    home: Home
    domain: str
    path: str
    root: str = "/v2"
    capabilities: frozenset[str] = ALL
    namespace: str = ""
    guessed: bool = False
    source: str = ""

    @property
    def patient(self) -> Host:
        """Give this host where no other is left to ask: it gets all the attempts."""
        return msgspec.structs.replace(self, home=msgspec.structs.replace(self.home, attempts=None))

    def url(self, place: str, *, origin: Origin | None = None) -> str:
        """Give the URL of ``place`` (``manifests/latest``) of the repository, at ``origin`` if the scheme was guessed wrong.

        A place that is a URL, as the host itself gives it for an upload, stays as it is.
        """
        if "://" in place:
            return place
        path = f"{self.root}/{self.path}/{place}" if self.path else f"{self.root}/{place}"
        if self.namespace:
            path += f"{'&' if '?' in path else '?'}ns={quote(self.namespace, safe='')}"
        return f"{origin or self.home.origin}{path}"


class Hosts:
    """Finds the hosts of repositories, and reads each file once. Safe to use from several threads."""

    def __init__(self, config: RegistryConfig, environ: Mapping[str, str] | None = None) -> None:
        self._config = config
        self._environ = os.environ if environ is None else environ
        self.folders = _folders(config, self._environ)
        self._lock = threading.Lock()
        self._registries: RegistriesConf | None = None
        self._served: dict[tuple[str, str, bool], tuple[Host, ...]] = {}

    def serving(self, domain: str, path: str, *, by_digest: bool = False) -> tuple[Host, ...]:
        """Give the hosts of a repository, the first to be asked first; an empty ``path`` is the registry itself.

        ``by_digest``: the image was named by one. Errors: InvalidArgument, naming file and key, for a file that is malformed;
        PermissionDenied for one that cannot be read, and for a registry that is blocked.
        """
        key = (domain, path, by_digest)
        with self._lock:
            served = self._served.get(key)
            if served is None:
                served = self._served[key] = tuple(_finished(list(self._find(*key))))
        return served

    def own(self, domain: str) -> Host:
        """Give the host that a login to a domain is for: its own, reached as the files say if they name it."""
        hosts = [host for host in self.serving(domain, "") if host.domain == domain]
        return hosts[-1].patient if hosts else self._default(domain, "")

    def _find(self, domain: str, path: str, by_digest: bool) -> Iterator[Host]:
        own = self._file(domain)
        if own is not None:
            return self._of_file(own, domain, path)
        if self._registries is None:
            self._registries = load_registries(self._config.registries_conf, self._environ)
        registry = self._registries.find(domain, path)
        if registry is not None:
            return self._of_registry(registry, domain, path, by_digest)
        default = self._file(_DEFAULT_FOLDER)
        if default is not None:
            return self._of_file(default, domain, path)
        return iter([self._default(domain, path)])

    def _of_file(self, file: Path, domain: str, path: str) -> Iterator[Host]:
        """Follow a hosts.toml: its hosts, then its ``server``, which is the domain's own host where none is named."""
        own = Origin.of(f"https://{registry_host(domain)}").netloc
        parsed = parse_hosts_file(read_text(file) or "", file)
        for unknown in parsed.unknown:
            _log.warning("%(file)s: %(key)s is not known, and ignored", file=str(file), key=unknown)
        for entry in (*parsed.hosts, parsed.server):
            is_server = entry is parsed.server
            if entry.origin is None:
                host = self._default(domain, path, tls=entry.tls)
                yield msgspec.structs.replace(
                    host, home=_reached(host.home, entry), source=str(file), capabilities=ALL
                )
                continue
            is_own = entry.origin.netloc == own
            tls = self._settings(entry.tls, show=is_server)
            yield Host(
                home=_reached(Home(origin=entry.origin, tls=tls), entry),
                domain=domain if is_own else credential_domain(entry.origin.netloc),
                path=path,
                root=entry.root,
                capabilities=entry.capabilities or ALL,
                namespace="" if is_own else domain,
                source=str(file),
            )

    def _of_registry(self, registry: Registry, domain: str, path: str, by_digest: bool) -> Iterator[Host]:
        """Follow a [[registry]]: its mirrors, then its location. Neither is pushed to: that goes where the name says."""
        if registry.blocked:
            name = f"{domain}/{path}" if path else domain
            raise PermissionDenied(
                f"{name} is blocked by {registry.file}", hint=f"Its prefix there is {registry.prefix!r}."
            )
        for mirror in registry.mirrors:
            if mirror.only == "tag" and by_digest:
                continue
            capabilities = frozenset({PULL, REFERRERS}) if mirror.only == "digest" else ALL - {PUSH}
            yield self._at(registry.place(mirror, domain, path), mirror, capabilities, registry.file)
        moved = registry.place(registry.site, domain, path)
        if moved == (domain, path):
            yield self._at(moved, registry.site, ALL, registry.file, show=True)
        else:
            yield self._at((domain, path), registry.site, frozenset({PUSH}), registry.file, show=True)
            yield self._at(moved, registry.site, ALL - {PUSH}, registry.file, show=True)

    def _at(
        self,
        place: tuple[str, str],
        site: Site,
        capabilities: frozenset[str],
        file: str,
        *,
        show: bool = False,
    ) -> Host:
        host = self._default(*place, show=show)
        home = host.home
        if site.insecure and not self._config.plain_http:
            home = msgspec.structs.replace(
                home,
                origin=Origin.of(f"https://{registry_host(place[0])}"),
                tls=msgspec.structs.replace(home.tls, skip_verify=True),
            )
        return msgspec.structs.replace(
            host,
            home=home,
            capabilities=capabilities,
            guessed=host.guessed or site.insecure,
            source=file,
        )

    def _default(self, domain: str, path: str, *, tls: Tls | None = None, show: bool = True) -> Host:
        """Give the domain's own host, with the certificates that its folder holds."""
        folder = None
        if tls is None:
            folder, tls = self._certificates(domain)
        plain, loopback = self._config.plain_http, is_loopback(domain)
        # A registry on this machine may have TLS or not; files for TLS make that the likelier.
        scheme = "http" if plain or (loopback and tls == Tls()) else "https"
        return Host(
            home=Home(
                origin=Origin.of(f"{scheme}://{registry_host(domain)}"), tls=self._settings(tls, show=show)
            ),
            domain=domain,
            path=path,
            guessed=loopback and not plain,
            source=str(folder or ""),
        )

    def _settings(self, tls: Tls, *, show: bool) -> Tls:
        """Add the client's own settings to those of a host; its certificate is for registries, not for their mirrors."""
        config = self._config
        certificate = config.client_cert if show and not tls.client else None
        return Tls(
            ca=((os.fspath(config.ca),) if config.ca else ()) + tls.ca,
            client=((os.fspath(certificate[0]), os.fspath(certificate[1])),) if certificate else tls.client,
            skip_verify=tls.skip_verify or config.skip_verify,
        )

    def _file(self, name: str) -> Path | None:
        """Find the hosts.toml of a domain: None where the first folder with anything for it has certificates."""
        for folder in self._folders_of(name):
            file = folder / "hosts.toml"
            if _is_there(file) and file.stat().st_size:
                return file
            if _certificates(folder) != Tls():
                return None
        return None

    def _certificates(self, domain: str) -> tuple[Path | None, Tls]:
        for folder in self._folders_of(domain):
            found = _certificates(folder)
            if found != Tls():
                return folder, found
        return None, Tls()

    def _folders_of(self, name: str) -> Iterator[Path]:
        """Give a domain's folders; ``host_5000_`` stands for ``host:5000`` where a file system knows no colon."""
        host, colon, port = name.rpartition(":")
        names = [f"{host}_{port}_", name] if colon and not port.endswith("]") else [name]
        for root in self.folders:
            yield from (folder for each in names if _is_there(folder := root / each))


def credential_domain(host: str) -> str:
    """Give the domain under which the credentials for a host are kept."""
    return DEFAULT_DOMAIN if host == DEFAULT_REGISTRY_HOST else host


def _finished(hosts: list[Host]) -> Iterator[Host]:
    """Give each host but the last one little time: there is another to ask."""
    for host in hosts[:-1]:
        home = msgspec.structs.replace(
            host.home,
            attempts=1,
            connect_timeout=host.home.connect_timeout or DIAL_TIMEOUT,
            silence=FIRST_ANSWER,
        )
        yield msgspec.structs.replace(host, home=home)
    yield from hosts[-1:]


def _reached(home: Home, entry: HostEntry) -> Home:
    return msgspec.structs.replace(
        home, headers=entry.headers, proxy=entry.proxy, connect_timeout=entry.dial_timeout
    )


def _folders(config: RegistryConfig, environ: Mapping[str, str]) -> list[Path]:
    named = config.hosts_dir or environ.get("LAMELLA_HOSTS_DIR")
    if named:
        if not _is_there(Path(named)):
            raise InvalidArgument(f"the hosts folder {os.fspath(named)} is not there", hint="Check its name.")
        return [Path(named)]
    home = config_home(environ)
    own = [home / "lamella/certs.d"] if home else []
    return [
        *own,
        *(Path("/etc", name, "certs.d") for name in ("lamella", "containerd", "docker", "containers")),
    ]


def _certificates(folder: Path) -> Tls:
    """Read docker's form: files that end with .crt, .cert and .key. A folder that this user may not read is another's."""
    try:
        names = sorted(file.name for file in folder.iterdir() if not file.is_dir())
    except OSError:
        return Tls()
    return Tls(
        ca=tuple(str(folder / name) for name in names if name.endswith(".crt")),
        client=tuple(
            (str(folder / name), str(folder / key) if (key := f"{name[:-5]}.key") in names else "")
            for name in names
            if name.endswith(".cert")
        ),
    )


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # in a folder that is not for this user
        return False
