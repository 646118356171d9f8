"""Image references as docker reads them: ``nginx``, ``host:5000/a/b:tag@sha256:...``.

The grammar is that of the distribution project (``reference`` package, normalised form)::

    reference := name [ ":" tag ] [ "@" digest ]
    name      := [ domain "/" ] component { "/" component }
    domain    := host [ ":" port ]          host := domain-name | "[" IPv6 "]"
    component := alphanumeric { separator alphanumeric }     separator := "." | "_" | "__" | "-"+
    tag       := letter, digit or "_", then at most 127 of these, "." and "-"

The first component is the domain only if it is ``localhost``, holds a dot or a colon, or has an upper-case letter;
everything else lives on docker.io, in ``library/`` if it has one component. A name has at most 255 characters.
Nothing here does I/O.
"""

from __future__ import annotations

import re

from lamella.digest import Digest, parse_digest
from lamella.errors import InvalidArgument
from lamella.structs import Struct

DEFAULT_DOMAIN = "docker.io"
DEFAULT_REGISTRY_HOST = "registry-1.docker.io"
DEFAULT_TAG = "latest"
NAME_MAX = 255
TAG_MAX = 128

_LEGACY_DEFAULT_DOMAIN = "index.docker.io"
_OFFICIAL = "library/"

_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_DOMAIN = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?"
_PATH = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*"
_TAG = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"


class Reference(Struct, frozen=True):
    """Where an image is: domain, path in it, and tag or digest or both.

    A reference with neither gets the tag ``latest``, one with a digest alone has no tag. ``str()`` gives
    :attr:`canonical`.
    """

    domain: str
    path: str
    tag: str | None = None
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read a reference as docker would; InvalidArgument says what is wrong with a malformed one."""
        if not text:
            raise InvalidArgument("the image reference is empty", hint="Name an image, such as nginx:latest.")
        if len(text) == 64 and not text.strip("0123456789abcdef"):
            raise InvalidArgument(
                f"{text!r} is an image ID, not an image reference",
                hint=f"To pull by digest write NAME@sha256:{text}.",
            )
        rest, at, digest_text = text.partition("@")
        digest = _parse_digest(text, digest_text) if at else None
        domain, rest = _split_domain(rest)
        path, colon, tag = rest.partition(":")
        if domain != DEFAULT_DOMAIN and not (_is_plain_domain(domain) or re.fullmatch(_DOMAIN, domain)):
            raise _malformed(
                text, f"{_short(domain)} is not a host name", "A host reads example.com, [::1] or host:5000."
            )
        _check_port(text, domain)
        _check_path(text, path)
        if colon and not ((_is_word(tag) and len(tag) <= TAG_MAX) or re.fullmatch(_TAG, tag)):
            raise _malformed(
                text,
                f"{_short(tag)} is not a tag",
                f"A tag has at most {TAG_MAX} letters, digits, '_', '.' and '-', and starts with none of the last two.",
            )
        if not colon:
            tag = "" if digest else DEFAULT_TAG
        return cls(domain=domain, path=path, tag=tag or None, digest=digest)

    @property
    def name(self) -> str:
        """Give the familiar name without tag and digest: ``nginx``, ``example.com/a/b``."""
        if self.domain != DEFAULT_DOMAIN:
            return f"{self.domain}/{self.path}"
        # "library/a/b" keeps its prefix: without it "a/b" would be another image.
        short = self.path.removeprefix(_OFFICIAL)
        if "/" not in short:
            return short
        # "0.io/a" on docker.io would be read as a host; docker's own familiar form loses it.
        return self.path if _split_domain(self.path)[0] == DEFAULT_DOMAIN else f"{self.domain}/{self.path}"

    @property
    def familiar(self) -> str:
        """Give the shortest text that parses to this reference's parts: ``nginx:latest``."""
        return self.name + self._suffix

    @property
    def canonical(self) -> str:
        """Give the full text, ``docker.io/library/nginx:latest``; equal references have equal texts."""
        return f"{self.domain}/{self.path}{self._suffix}"

    @property
    def _suffix(self) -> str:
        return (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")

    @property
    def registry_host(self) -> str:
        """Give host and port of the registry that serves the domain; docker.io is served by another host."""
        return registry_host(self.domain)

    @property
    def is_loopback(self) -> bool:
        """Say whether the registry is on this machine: localhost, 127.0.0.0/8 or ::1."""
        return is_loopback(self.domain)

    def __str__(self) -> str:
        return self.canonical


def registry_host(domain: str) -> str:
    """Give host and port that serve a domain: the domain itself, but for docker.io."""
    return DEFAULT_REGISTRY_HOST if domain == DEFAULT_DOMAIN else domain


def split_host(domain: str) -> tuple[str, int | None]:
    """Split ``host[:port]`` into the host, an IPv6 address without its brackets, and the port."""
    host, colon, port = domain.rpartition(":")
    if not colon or "]" in port or (":" in host and not host.startswith("[")):
        host, port = domain, ""
    return host.removeprefix("[").removesuffix("]"), int(port) if port else None


def is_loopback(domain: str) -> bool:
    """Say whether ``host[:port]`` names this machine: localhost, an address in 127.0.0.0/8, or ::1."""
    host = split_host(domain)[0].lower()
    if host in {"localhost", "::1", "0:0:0:0:0:0:0:1"}:
        return True
    octets = host.split(".")
    return len(octets) == 4 and octets[0] == "127" and all(o.isdecimal() and int(o) < 256 for o in octets)


def _split_domain(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    if not slash or not (first == "localhost" or "." in first or ":" in first or first.lower() != first):
        first, rest = DEFAULT_DOMAIN, name
    if first == _LEGACY_DEFAULT_DOMAIN:
        first = DEFAULT_DOMAIN
    if first == DEFAULT_DOMAIN and "/" not in rest:
        rest = _OFFICIAL + rest
    return first, rest


def _is_word(text: str) -> bool:
    """Say whether a text is ASCII letters and digits. Most names are; no pattern need be compiled for them then: 0.7 ms."""
    return text.isascii() and text.isalnum()


def _is_plain_domain(domain: str) -> bool:
    host, colon, port = domain.partition(":")
    return all(_is_word(label) for label in host.split(".")) and (
        not colon or (_is_word(port) and port.isdigit())
    )


def _is_plain_path(path: str) -> bool:
    return all(_is_word(part) and part == part.lower() for part in path.split("/"))


def _check_port(text: str, domain: str) -> None:
    port = split_host(domain)[1]
    if port is not None and port > 65535:
        raise _malformed(text, f"{port} is not a port", "Ports go up to 65535.")


def _check_path(text: str, path: str) -> None:
    if not (_is_plain_path(path) or re.fullmatch(_PATH, path)):
        if re.fullmatch(_PATH, path.lower()):
            raise _malformed(text, f"{_short(path)} has upper-case letters", f"Write {_short(path.lower())}.")
        raise _malformed(
            text,
            f"{_short(path.removeprefix(_OFFICIAL))} is not a repository name",
            "A name is lower-case letters and digits, with '.', '_', '__' or '-' between them and '/' between parts.",
        )
    if len(path) > NAME_MAX:
        raise _malformed(text, f"the name has {len(path)} characters", f"At most {NAME_MAX} fit.")


def _parse_digest(text: str, digest: str) -> Digest:
    try:
        return parse_digest(digest)
    except InvalidArgument as error:
        raise _malformed(text, error.message, error.hint) from None


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")


def _malformed(text: str, why: str, hint: str | None) -> InvalidArgument:
    return InvalidArgument(f"{_short(text)} is not an image reference: {why}", hint=hint)
