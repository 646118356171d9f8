"""``lamella registry hosts``: which hosts would be asked, without asking one."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from lamella.cli.parser import Arguments, Command, Parser
from lamella.cli.registry_options import add_registry_options, registry_config

if TYPE_CHECKING:
    from lamella.cli.session import Session
    from lamella.reference import Reference
    from lamella.registry.config import RegistryConfig
    from lamella.registry.hosts import Host

_DOMAIN = re.compile(r"(?:localhost|[^/:@]+\.[^/:@]+|\[[^]/]+\])(?::[0-9]+)?\Z|[^/:@]+:[0-9]+\Z")
_CAPABILITIES = ("pull", "resolve", "push", "referrers")


def _arguments(parser: Parser) -> None:
    parser.add_argument("name", metavar="DOMAIN|REF", help="A registry, docker.io or host:5000, or an image.")
    add_registry_options(parser)


def _hosts(arguments: Arguments, session: Session) -> int:
    from lamella.registry.config import RegistryConfig
    from lamella.registry.hosts import Hosts

    config = registry_config(arguments) or RegistryConfig()
    reference = _reference(arguments.name)
    by_digest = reference.digest is not None
    hosts = Hosts(config).serving(reference.domain, reference.path, by_digest=by_digest)
    rows = [_describe(host, config) for host in hosts]
    if session.json:
        session.document(rows)
    else:
        session.table(
            ("HOST", "CAPABILITIES", "TLS", "CREDENTIALS", "FROM"),
            [
                (
                    row["url"],
                    ",".join(row["capabilities"]),
                    _tls(row),
                    row["credentials"] or "-",
                    row["file"] or "-",
                )
                for row in rows
            ],
        )
    return 0


def _reference(name: str) -> Reference:
    from lamella.reference import Reference

    return Reference(domain=name, path="") if _DOMAIN.match(name) else Reference.parse(name)


def _describe(host: Host, config: RegistryConfig) -> dict[str, Any]:
    """Say of a host what may be told: neither headers' values nor passwords."""
    from lamella.registry.proxies import describe

    home = host.home
    return {
        "url": f"{home.origin}{host.root}",
        "scheme_guessed": host.guessed,
        "repository": host.path or None,
        "capabilities": [name for name in _CAPABILITIES if name in host.capabilities],
        "namespace": host.namespace or None,
        "ca": list(home.tls.ca),
        "client": [certificate for certificate, _ in home.tls.client],
        "skip_verify": home.tls.skip_verify,
        "headers": [name for name, _ in home.headers],
        "proxy": describe(home.proxy) if home.proxy else None,
        "connect_timeout": home.connect_timeout or config.timeouts.connect,
        "credentials": _credentials(host, config),
        "file": host.source or None,
    }


def _credentials(host: Host, config: RegistryConfig) -> str | None:
    """Say where the credentials for a host are."""
    from lamella.errors import LamellaError
    from lamella.registry.credentials import CredentialStore

    store = config.credentials if isinstance(config.credentials, CredentialStore) else CredentialStore()
    try:
        found = store.find(host.domain, host.path)
    except LamellaError as error:
        return f"none: {error.message}"
    return found.source if found else None


def _tls(row: dict[str, Any]) -> str:
    if row["url"].startswith("http://"):
        return "none"
    if row["skip_verify"]:
        return "not checked"
    words = [*(f"+ {file}" for file in row["ca"]), *(f"as {file}" for file in row["client"])]
    return " ".join(["system", *words])


HOSTS = Command(
    "hosts",
    "Show which hosts serve a registry or image.",
    _hosts,
    _arguments,
    description="The hosts in the order in which they would be asked, by hosts.toml, registries.conf or nothing; none is asked. "
    "A host is asked for what its capabilities name: pull is what is named by digest, resolve a tag. A push goes to the first "
    "host with push. With --json also headers (their names), proxies and time-outs.",
    examples=[
        ("the mirrors of Docker Hub", "lamella registry hosts docker.io"),
        ("where an image would come from", "lamella registry hosts ghcr.io/team/app:v1"),
    ],
)
