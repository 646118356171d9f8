"""registries.conf of podman, skopeo and buildah (containers-registries.conf(5)): mirrors, moved, blocked and insecure registries.

Files, as those programs choose them: ``$CONTAINERS_REGISTRIES_CONF``, else ``~/.config/containers/registries.conf``, else
``/etc/containers/registries.conf``; then the folders ``registries.conf.d`` beside it and in ``~/.config/containers``, whose
files replace what was said of the same prefix. What names short names mean is not read: lamella reads names as docker does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lamella.errors import InvalidArgument, PermissionDenied
from lamella.registry.toml_file import TomlFile, config_home, read_text

_SYSTEM = Path("/etc/containers")
_ONLY: dict[str, Literal["", "digest", "tag"]] = {
    "": "",
    "all": "",
    "digest-only": "digest",
    "tag-only": "tag",
}


class Site(NamedTuple):
    """A place for what a prefix names. ``only``: what a mirror is asked for; empty: everything."""

    location: str
    insecure: bool = False
    only: Literal["", "digest", "tag"] = ""


class Registry(NamedTuple):
    """One [[registry]]."""

    prefix: str
    site: Site
    blocked: bool
    mirrors: tuple[Site, ...]
    file: str

    def matched(self, domain: str, path: str) -> int:
        """Say how many characters of ``domain/path`` the prefix names; 0 if it does not fit."""
        name = f"{domain}/{path}" if path else domain
        if self.prefix.startswith("*."):
            host = domain.partition(":")[0]
            return len(host) if host.endswith(self.prefix[1:]) else 0
        fits = name == self.prefix or name.startswith(f"{self.prefix}/")
        return len(self.prefix) if fits else 0

    def place(self, site: Site, domain: str, path: str) -> tuple[str, str]:
        """Give domain and path of a repository at one of the sites: its location takes the prefix's place."""
        if not site.location:
            return domain, path
        name = f"{domain}/{path}" if path else domain
        moved = site.location + name[self.matched(domain, path) :]
        new_domain, _, new_path = moved.partition("/")
        return new_domain, new_path


class RegistriesConf(NamedTuple):
    """All that was read, by prefix."""

    registries: Mapping[str, Registry]

    def find(self, domain: str, path: str) -> Registry | None:
        """Give the [[registry]] with the longest prefix of a repository's name."""
        fitting = [registry for registry in self.registries.values() if registry.matched(domain, path)]
        return max(fitting, key=lambda registry: registry.matched(domain, path), default=None)


def load_registries(named: str | os.PathLike[str] | None, environ: Mapping[str, str]) -> RegistriesConf:
    """Read the file ``named`` alone, or those of this machine and user.

    InvalidArgument names file, line and key of what is malformed; PermissionDenied for a file that cannot be read.
    """
    registries: dict[str, Registry] = {}
    for file in [Path(named)] if named else _files(environ):
        text = read_text(file)
        if text is None and named:
            raise InvalidArgument(f"{file} is not there", hint="Check its name.")
        if text:
            registries.update({registry.prefix: registry for registry in parse_registries(text, file)})
    return RegistriesConf(registries)


def parse_registries(text: str, file: Path) -> list[Registry]:
    """Read one file. InvalidArgument names file, line and key of what is malformed."""
    toml = TomlFile(text, file)
    tables = toml.take(toml.content, ("registry",), list, "a list of tables, [[registry]]") or []
    found = [_registry(toml, table) for table in tables]
    return found + list(_first_version(toml))


def _registry(toml: TomlFile, table: Any) -> Registry:
    keys: tuple[str, ...] = ("registry",)
    if not isinstance(table, dict):
        toml.refuse(keys, "it must be a table, [[registry]]")
    prefix = _name(toml, table, (*keys, "prefix"))
    location = _name(toml, table, (*keys, "location"))
    keys = ("registry", *([prefix or location] if prefix or location else []))
    if not prefix and not location:
        toml.refuse(keys, "it has neither a prefix nor a location")
    if prefix.startswith("*.") and ("/" in prefix or ":" in prefix):
        toml.refuse(keys, "a prefix with '*' names subdomains alone, such as '*.example.com'")
    if not location and not prefix.startswith("*."):
        toml.refuse(keys, "it has no location")
    by_digest = _flag(toml, table, (*keys, "mirror-by-digest-only"))
    mirrors = toml.take(table, (*keys, "mirror"), list, "a list of tables, [[registry.mirror]]") or []
    return Registry(
        prefix or location,
        Site(location, _flag(toml, table, (*keys, "insecure"))),
        _flag(toml, table, (*keys, "blocked")),
        tuple(_mirror(toml, mirror, (*keys, "mirror"), by_digest=by_digest) for mirror in mirrors),
        str(toml.file),
    )


def _mirror(toml: TomlFile, table: Any, keys: tuple[str, ...], *, by_digest: bool) -> Site:
    if not isinstance(table, dict):
        toml.refuse(keys, "it must be a table, [[registry.mirror]]")
    location = _name(toml, table, (*keys, "location"))
    if not location:
        toml.refuse(keys, "it has no location")
    word = toml.take(table, (*keys, "pull-from-mirror"), str, "a string") or ""
    if word not in _ONLY:
        toml.refuse((*keys, "pull-from-mirror"), f"{word!r} is none of all, digest-only, tag-only")
    if word and by_digest:
        toml.refuse((*keys, "pull-from-mirror"), "it cannot stand beside mirror-by-digest-only")
    return Site(location, _flag(toml, table, (*keys, "insecure")), "digest" if by_digest else _ONLY[word])


def _name(toml: TomlFile, table: dict[str, Any], keys: tuple[str, ...]) -> str:
    name: str = toml.take(table, keys, str, "a string") or ""
    if "://" in name:
        toml.refuse(keys, f"{name!r} has a scheme; it must be a host, with or without a path")
    return name.rstrip("/")


def _flag(toml: TomlFile, table: dict[str, Any], keys: tuple[str, ...]) -> bool:
    return bool(toml.take(table, keys, bool, "true or false"))


def _first_version(toml: TomlFile) -> Iterator[Registry]:
    """Read the old form, [registries.insecure] and [registries.block]."""
    groups = toml.table(toml.content, ("registries",))
    listed = {
        group: toml.strings(toml.table(groups, ("registries", group)), ("registries", group, "registries"))
        for group in ("insecure", "block")
    }
    for name in dict.fromkeys((*listed["block"], *listed["insecure"])):
        site = Site(name, name in listed["insecure"])
        yield Registry(name, site, name in listed["block"], (), str(toml.file))


def _files(environ: Mapping[str, str]) -> Iterator[Path]:
    home = config_home(environ)
    user = home / "containers" if home else None
    if environ.get("CONTAINERS_REGISTRIES_CONF"):
        yield Path(environ["CONTAINERS_REGISTRIES_CONF"])
    elif user is not None and (user / "registries.conf").exists():
        yield user / "registries.conf"
        yield from _drop_ins(user)
        return
    else:
        yield _SYSTEM / "registries.conf"
    if environ.get("CONTAINERS_REGISTRIES_CONF_DIR"):
        yield from _listed(Path(environ["CONTAINERS_REGISTRIES_CONF_DIR"]))
    else:
        yield from _drop_ins(_SYSTEM)
    if user is not None:
        yield from _drop_ins(user)


def _drop_ins(folder: Path) -> Iterator[Path]:
    return _listed(folder / "registries.conf.d")


def _listed(folder: Path) -> Iterator[Path]:
    try:
        yield from sorted(file for file in folder.iterdir() if file.suffix == ".conf" and file.is_file())
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise PermissionDenied(f"{folder} cannot be read: {error.strerror}") from None
