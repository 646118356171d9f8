"""The options of all commands that talk to registries become the settings of the client."""

from __future__ import annotations

from typing import Any

import pytest

from lamella.cli.parser import Parser, UsageError
from lamella.cli.registry_options import add_registry_options, registry_config
from lamella.registry.config import RegistryConfig


def settings(*words: str) -> RegistryConfig | None:
    parser = Parser("lamella test")
    add_registry_options(parser)
    return registry_config(parser.parse_args(list(words)))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--plain-http"], {"plain_http": True}),
        (["--ca", "a.pem"], {"ca": "a.pem"}),
        (["--cert", "c.pem"], {"client_cert": ("c.pem", "c.pem")}),
        (["--cert", "c.pem", "--key", "k.pem"], {"client_cert": ("c.pem", "k.pem")}),
        (["--skip-verify"], {"skip_verify": True}),
        (["--hosts-dir", "certs.d"], {"hosts_dir": "certs.d"}),
    ],
)
def test_each_option_is_a_setting(words: list[str], expected: dict[str, Any]) -> None:
    found = settings(*words)
    assert found is not None
    assert found == RegistryConfig(**expected, limits=found.limits)  # each has its own, for its transfers


def test_without_options_there_are_no_settings() -> None:
    assert settings() is None


def test_a_key_takes_a_certificate() -> None:
    with pytest.raises(UsageError, match="--cert"):
        settings("--key", "k.pem")
