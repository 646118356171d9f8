"""The options of every command that talks to registries, and the settings that they make.

A command adds them to its parser; the session's client then has the settings (``session.client``).
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from lamella.cli.parser import Parser, UsageError

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
    add("--skip-verify", action="store_true", help="Do not check certificates: anybody may be the registry.")


def registry_config(arguments: argparse.Namespace) -> RegistryConfig | None:
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
    if not given:  # and nothing is imported
        return None
    from lamella.registry.config import RegistryConfig

    return RegistryConfig(**given)
