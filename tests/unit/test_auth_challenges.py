"""Challenges of a WWW-Authenticate header (RFC 7235, RFC 9110)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.registry.auth import Challenge, _age, parse_challenges, repository_scope, union


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", []),
        ("   ", []),
        ('Basic realm="x"', [("basic", {"realm": "x"})]),
        ("BASIC REALM=x", [("basic", {"realm": "x"})]),
        ("Basic", [("basic", {})]),
        (
            'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull"',
            [
                (
                    "bearer",
                    {
                        "realm": "https://auth.docker.io/token",
                        "service": "registry.docker.io",
                        "scope": "repository:a/b:pull",
                    },
                )
            ],
        ),
        (
            'Bearer realm="r" , service="s, with comma" ,scope="repository:a:pull,push"',
            [("bearer", {"realm": "r", "service": "s, with comma", "scope": "repository:a:pull,push"})],
        ),
        (
            'Bearer realm="r",error="insufficient_scope", Basic realm="b"',
            [("bearer", {"realm": "r", "error": "insufficient_scope"}), ("basic", {"realm": "b"})],
        ),
        ('Basic realm="b", Bearer realm="r"', [("basic", {"realm": "b"}), ("bearer", {"realm": "r"})]),
        ("Negotiate, Basic realm=b", [("negotiate", {}), ("basic", {"realm": "b"})]),
        (r'Basic realm="a \"quoted\" name"', [("basic", {"realm": 'a "quoted" name'})]),
        (
            "Bearer realm=https://h/token,service=s",
            [("bearer", {"realm": "https://h/token", "service": "s"})],
        ),
        ('Bearer realm="first",realm="second"', [("bearer", {"realm": "first"})]),
        ('realm="no scheme"', []),
        ('Bearer realm="unterminated', [("bearer", {})]),
    ],
)
def test_a_header_is_read_into_its_challenges(
    header: str, expected: list[tuple[str, dict[str, str]]]
) -> None:
    assert parse_challenges(header) == [Challenge(scheme, parameters) for scheme, parameters in expected]


@given(st.text(max_size=300))
def test_any_header_is_read_to_an_end(header: str) -> None:
    assert isinstance(parse_challenges(header), list)


_value = st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126), max_size=30)
_name = st.sampled_from(["realm", "service", "scope", "error"])


@given(
    st.lists(
        st.tuples(st.sampled_from(["bearer", "basic", "digest"]), st.dictionaries(_name, _value)), max_size=4
    )
)
def test_what_is_written_by_the_rules_is_read_back(challenges: list[tuple[str, dict[str, str]]]) -> None:
    def quoted(value: str) -> str:
        return '"' + value.replace("\\", r"\\").replace('"', r"\"") + '"'

    header = ", ".join(
        f"{scheme} " + ", ".join(f"{name}={quoted(value)}" for name, value in parameters.items())
        for scheme, parameters in challenges
    )
    assert parse_challenges(header) == [Challenge(scheme, parameters) for scheme, parameters in challenges]


def test_a_very_long_header_costs_little() -> None:
    assert len(parse_challenges("a," * 1_000_000)) < 10_000
    assert parse_challenges('Basic realm="' + "\\" * 1_000_000) == [Challenge("basic", {})]


@pytest.mark.parametrize(
    ("scopes", "expected"),
    [
        ([], ()),
        (["repository:a:pull"], ("repository:a:pull",)),
        (["repository:a:pull", "repository:a:pull"], ("repository:a:pull",)),
        (["repository:a:pull,push", "repository:a:pull"], ("repository:a:pull,push",)),
        (["repository:a:pull", "repository:a:push,delete"], ("repository:a:pull,push,delete",)),
        (["repository:a:push", "repository:b:pull"], ("repository:a:push", "repository:b:pull")),
        (
            ["repository:h:5000/a:pull", "registry:catalog:*"],
            ("repository:h:5000/a:pull", "registry:catalog:*"),
        ),
        (["repository:a:pull", "aws"], ("repository:a:pull", "aws")),
        (["a", "b", "a"], ("a", "b")),
    ],
)
def test_scopes_are_put_together_by_resource(scopes: list[str], expected: tuple[str, ...]) -> None:
    assert union(scopes) == expected


def test_a_scope_names_the_actions() -> None:
    assert repository_scope("team/app", "pull", "push") == "repository:team/app:pull,push"


@pytest.mark.parametrize(
    ("issued_at", "date", "seconds"),
    [
        ("2026-01-01T00:00:00Z", "Thu, 01 Jan 2026 00:01:30 GMT", 90),
        ("2026-01-01T02:00:00.123456789+02:00", "Thu, 01 Jan 2026 00:01:30 GMT", 89.876544),
        ("2026-01-01T00:00:00", "Thu, 01 Jan 2026 00:00:10 GMT", 10),
        ("2026-01-01T00:00:00Z", "Wed, 31 Dec 2025 23:00:00 GMT", 0),
        ("2026-01-01T00:00:00Z", None, 0),
        (None, "Thu, 01 Jan 2026 00:01:30 GMT", 0),
        ("yesterday", "Thu, 01 Jan 2026 00:01:30 GMT", 0),
        ("2026-01-01T00:00:00Z", "today", 0),
        ("9" * 5000, "Thu, 01 Jan 2026 00:01:30 GMT", 0),
    ],
)
def test_the_age_of_a_token_is_told_by_its_servers_own_clock(
    issued_at: str | None, date: str | None, seconds: float
) -> None:
    assert _age(issued_at, date) == pytest.approx(seconds, abs=1e-5)
