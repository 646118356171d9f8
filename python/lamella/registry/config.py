"""How registries are talked to: the settings that all transfers of a client share. Importing this loads no HTTP library."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple, Protocol

import msgspec

from lamella.registry.credentials import Credential, CredentialStore
from lamella.registry.limits import Limits


class Timeouts(NamedTuple):
    """Seconds to wait for a connection, and for the next byte on one (never for the whole)."""

    connect: float = 10.0
    read: float = 60.0


class Listener(Protocol):
    """Who wants to see what is said to registries. Called from any thread; what it raises ends the request."""

    def head(self, text: str) -> None:
        """Take the head of a request before it is sent, or of an answer; without what tells who somebody is."""

    def line(self, text: str) -> None:
        """Take what came of a request: its method and address, to whom it went, the status, the seconds."""


class RegistryConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Settings for registries.

    ``plain_http``: allow HTTP without TLS to any host; it is used by itself only for this machine (localhost,
    127.0.0.0/8, ::1). ``credentials``: where to look for them, by domain, or None: in docker's and podman's files. A domain
    without any is asked anonymously. ``allow_private``: let a public registry send on to addresses of private networks.
    ``ca``: a file of authorities (PEM) that are believed besides the system's. ``client_cert``: files of the certificate, and of
    its key, to show to a registry that asks for one; mirrors do not see it. ``skip_verify``: do not check certificates at all.
    ``hosts_dir``, ``registries_conf``: the folder and the file that say which hosts serve a domain, in the place of those of this
    machine (:mod:`lamella.registry.hosts`). ``headers``: what requests to registries and their mirrors also carry, and what these
    send on to does not; they are in no repr.
    ``listener``: who is shown each request and answer.
    ``attempts``: how often one request is tried; ``backoff``: seconds of pause to begin with. ``user_agent``: empty for
    ``lamella/VERSION``. ``limits``: connections and bandwidth, shared by all who have this configuration.
    """

    plain_http: bool = False
    credentials: CredentialStore | Mapping[str, Credential] | None = None
    timeouts: Timeouts = Timeouts()
    allow_private: bool = False
    ca: str | os.PathLike[str] | None = None
    client_cert: tuple[str | os.PathLike[str], str | os.PathLike[str]] | None = None
    skip_verify: bool = False
    hosts_dir: str | os.PathLike[str] | None = None
    registries_conf: str | os.PathLike[str] | None = None
    headers: Mapping[str, str] = {}
    attempts: int = 5
    backoff: float = 0.25
    user_agent: str = ""
    limits: Limits = msgspec.field(default_factory=Limits)
    listener: Listener | None = None

    def __repr__(self) -> str:
        fields = (f"{name}={getattr(self, name)!r}" for name in self.__struct_fields__ if name != "headers")
        return f"RegistryConfig({', '.join(fields)})"
