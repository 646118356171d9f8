"""--limit-rate and --connections, and what they become."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import pytest

from lamella.cli.parser import Parser
from lamella.cli.registry_options import add_registry_options, registry_config

if TYPE_CHECKING:
    from program import Program


def limits_of(*words: str) -> Any:
    parser = Parser("lamella test")
    add_registry_options(parser)
    config = registry_config(parser.parse_args(list(words)))
    return config and (config.limits.connections, config.limits.bandwidth)


@pytest.fixture(autouse=True)
def no_rate_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LAMELLA_LIMIT_RATE", raising=False)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), None),
        (("--limit-rate", "10M"), (16, 10 * 1024 * 1024)),
        (("--limit-rate", "500k"), (16, 500 * 1024)),
        (("--limit-rate", "1.5g"), (16, 1536 * 1024 * 1024)),
        (("--limit-rate", "1000"), (16, 1000)),
        (("--connections", "4"), (4, None)),
        (("--connections", "1", "--limit-rate", "1m"), (1, 1024 * 1024)),
    ],
)
def test_rates_are_written_as_for_curl_and_wget(words: tuple[str, ...], expected: Any) -> None:
    assert limits_of(*words) == expected


def test_the_environment_says_the_rate_where_no_option_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMELLA_LIMIT_RATE", "2M")
    assert limits_of() == (16, 2 * 1024 * 1024)
    assert limits_of("--limit-rate", "1M", "--connections", "3") == (3, 1024 * 1024)
    assert registry_config(argparse.Namespace()) is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--limit-rate", "fast"), "--limit-rate"),
        (("--limit-rate", "0"), "bandwidth"),
        (("--limit-rate", "-1"), "--limit-rate"),
        (("--connections", "0"), "0 connections"),
    ],
)
def test_what_would_let_nothing_through_is_refused(
    words: tuple[str, ...], said: str, lamella: Program
) -> None:
    result = lamella("pull", *words, "127.0.0.1:1/a")
    assert result.status != 0
    assert said in result.err


@pytest.mark.privileged
@pytest.mark.rootless
def test_a_pull_within_limits_brings_the_image(lamella: Program, small_image: str) -> None:
    lamella("pull", "--limit-rate", "200M", "--connections", "1", small_image).ok()
    assert lamella("images", "inspect", small_image).ok().document["layers"]
