"""The options of every command that talks to registries, and the settings that they make.

A command adds them to its parser; the session's client then has the settings (``session.client``).
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from lamella.cli.parser import Parser

if TYPE_CHECKING:
    from lamella.registry.config import RegistryConfig


def add_registry_options(parser: Parser) -> None:
    """Add the options that say how registries are talked to."""
    add = parser.add_argument_group("Registry options").add_argument
    add("--plain-http", action="store_true", help="Allow HTTP without TLS to a host that is not loopback.")
    add("--authfile", metavar="FILE", help="Keep to the credentials in this file, not docker's and podman's.")


def registry_config(arguments: argparse.Namespace) -> RegistryConfig | None:
    """Make the settings of :func:`add_registry_options`' options; None when none of them was given, or could be."""
    given: dict[str, Any] = {
        name: value for name in ("plain_http", "authfile") if (value := getattr(arguments, name, None))
    }
    if not given:  # and nothing is imported
        return None
    from lamella.registry.config import RegistryConfig

    authfile = given.pop("authfile", None)
    if authfile:
        from pathlib import Path

        from lamella.registry.credentials import CredentialStore

        given["credentials"] = CredentialStore([Path(authfile)])
    return RegistryConfig(**given)
