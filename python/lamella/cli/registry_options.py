"""The options of every command that talks to registries, and the settings that they make.

A command adds them to its parser; the session's client then has the settings (``session.client``).
"""

from __future__ import annotations

import os

from lamella.cli.parser import Arguments, Parser, UsageError
from lamella.typings import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lamella.registry.config import RegistryConfig

_SETTINGS = ("plain_http", "ca", "skip_verify", "hosts_dir")
"""The options that are settings as they are."""


def add_registry_options(parser: Parser) -> None:
    """Add the options that say how registries are talked to."""
    add = parser.add_argument_group("Registry options").add_argument
    add("--plain-http", action="store_true", help="Allow HTTP without TLS to a host that is not loopback.")
    add("--authfile", metavar="FILE", help="Keep to the credentials in this file, not docker's and podman's.")
    add("--hosts-dir", metavar="DIR", help="Read hosts.toml files here (LAMELLA_HOSTS_DIR).")
    add("--ca", metavar="FILE", help="Believe the authorities in this file, besides the system's.")
    add("--cert", metavar="FILE", help="Show this client certificate to a registry that asks for one.")
    add(
        "--key",
        metavar="FILE",
        dest="cert_key",
        help="The key of --cert; without this it is in the same file.",
    )
    add(
        "--limit-rate",
        metavar="RATE",
        help="Move at most so many bytes a second: 500k, 10M (LAMELLA_LIMIT_RATE).",
    )
    add(
        "--connections",
        metavar="N",
        type=int,
        help="Use at most so many connections at once for layers (default: 16).",
    )
    add("--skip-verify", action="store_true", help="Do not check certificates: anybody may be the registry.")


def registry_config(arguments: Arguments) -> RegistryConfig | None:
    """Make the settings of :func:`add_registry_options`' options; None when none of them was given, or could be."""
    given: dict[str, Any] = {name: value for name in _SETTINGS if (value := getattr(arguments, name, None))}
    certificate, key = getattr(arguments, "cert", None), getattr(arguments, "cert_key", None)
    if key and not certificate:
        raise UsageError("lamella: --key needs --cert", hint="Name the certificate's file, too.")
    if certificate:
        given["client_cert"] = (certificate, key or certificate)
    authfile = getattr(arguments, "authfile", None)
    if authfile:
        from pathlib import Path

        from lamella.registry.credentials import CredentialStore

        given["credentials"] = CredentialStore([Path(authfile)])
    given |= _limits(arguments)
    if not given:  # and nothing is imported
        return None
    from lamella.registry.config import RegistryConfig

    return RegistryConfig(**given)


def _limits(arguments: Arguments) -> dict[str, Any]:
    """Give the setting that says how much of the network is taken, if there is one."""
    if not hasattr(arguments, "limit_rate"):  # another command, which transfers nothing
        return {}
    rate, name = arguments.limit_rate, "--limit-rate"
    if rate is None:
        rate, name = os.environ.get("LAMELLA_LIMIT_RATE"), "LAMELLA_LIMIT_RATE"
    if not rate and arguments.connections is None:
        return {}
    from lamella.containers.limits import parse_size
    from lamella.registry.limits import CONNECTIONS, Limits

    connections = CONNECTIONS if arguments.connections is None else arguments.connections
    bandwidth = parse_size(rate, f"{name}:") if rate else None
    return {"limits": Limits(connections=connections, bandwidth=bandwidth)}
