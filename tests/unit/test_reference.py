"""References: docker's grammar, as the distribution project's reference package reads it."""

from __future__ import annotations

import string
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.errors import InvalidArgument, LamellaError, Unsupported
from lamella.reference import Reference, is_loopback, split_host

HEX = "0123456789abcdef" * 4
DIGEST = f"sha256:{HEX}"

# text, canonical, familiar
GOOD = [
    ("nginx", "docker.io/library/nginx:latest", "nginx:latest"),
    ("nginx:1.25", "docker.io/library/nginx:1.25", "nginx:1.25"),
    ("library/nginx", "docker.io/library/nginx:latest", "nginx:latest"),
    ("docker.io/nginx", "docker.io/library/nginx:latest", "nginx:latest"),
    ("index.docker.io/nginx", "docker.io/library/nginx:latest", "nginx:latest"),
    ("index.docker.io/team/app", "docker.io/team/app:latest", "team/app:latest"),
    ("docker.io/library/team/app", "docker.io/library/team/app:latest", "library/team/app:latest"),
    ("team/app", "docker.io/team/app:latest", "team/app:latest"),
    ("a/b/c/d", "docker.io/a/b/c/d:latest", "a/b/c/d:latest"),
    ("localhost/app", "localhost/app:latest", "localhost/app:latest"),
    ("localhost", "docker.io/library/localhost:latest", "localhost:latest"),
    ("localhost:5000", "docker.io/library/localhost:5000", "localhost:5000"),
    ("localhost:5000/a/b:tag", "localhost:5000/a/b:tag", "localhost:5000/a/b:tag"),
    ("host:5000/a", "host:5000/a:latest", "host:5000/a:latest"),
    ("host/a", "docker.io/host/a:latest", "host/a:latest"),
    ("HOST/a", "HOST/a:latest", "HOST/a:latest"),
    ("example.com/a", "example.com/a:latest", "example.com/a:latest"),
    ("example.com:443/a/b", "example.com:443/a/b:latest", "example.com:443/a/b:latest"),
    ("127.0.0.1:5000/a", "127.0.0.1:5000/a:latest", "127.0.0.1:5000/a:latest"),
    ("[::1]:5000/a", "[::1]:5000/a:latest", "[::1]:5000/a:latest"),
    ("[2001:db8::1]/a:t", "[2001:db8::1]/a:t", "[2001:db8::1]/a:t"),
    ("xn--n3h.com/a", "xn--n3h.com/a:latest", "xn--n3h.com/a:latest"),
    (f"nginx@{DIGEST}", f"docker.io/library/nginx@{DIGEST}", f"nginx@{DIGEST}"),
    (f"nginx:1@{DIGEST}", f"docker.io/library/nginx:1@{DIGEST}", f"nginx:1@{DIGEST}"),
    (f"h:1/a@sha512:{HEX * 2}", f"h:1/a@sha512:{HEX * 2}", f"h:1/a@sha512:{HEX * 2}"),
    ("docker.io/0.io/a", "docker.io/0.io/a:latest", "docker.io/0.io/a:latest"),
    ("a-b/c_d/e__f/g.h/i---j", "docker.io/a-b/c_d/e__f/g.h/i---j:latest", "a-b/c_d/e__f/g.h/i---j:latest"),
    ("a:" + "t" * 128, "docker.io/library/a:" + "t" * 128, "a:" + "t" * 128),
    ("a:_x.Y-Z", "docker.io/library/a:_x.Y-Z", "a:_x.Y-Z"),
    ("h.io/" + "a" * 255, "h.io/" + "a" * 255 + ":latest", "h.io/" + "a" * 255 + ":latest"),
]

# text, what the message says
BAD = [
    ("", "empty"),
    (HEX, "image ID"),
    ("Nginx", "upper-case"),
    ("example.com/App", "upper-case"),
    ("nginx:", "tag"),
    ("nginx:.a", "tag"),
    ("nginx:-a", "tag"),
    ("a:" + "t" * 129, "tag"),
    ("nginx:la test", "tag"),
    ("nginx:latest\n", "tag"),
    ("nginx\n", "repository name"),
    ("a//b", "repository name"),
    ("a/", "repository name"),
    ("/a", "repository name"),
    ("a___b", "repository name"),
    ("a..b", "repository name"),
    ("-a", "repository name"),
    ("a-", "repository name"),
    ("a/_b", "repository name"),
    ("../etc/passwd", "host name"),
    ("h.io/../x", "repository name"),
    ("h.io/%2e%2e", "repository name"),
    ("h.io/é", "repository name"),
    ("-h.io/a", "host name"),
    ("h_o.io/a", "host name"),
    ("h..io/a", "host name"),
    ("[::1/a", "host name"),
    ("[fe80::1%eth0]/a", "host name"),
    ("::1/a", "host name"),
    ("h:port/a", "host name"),
    ("h:/a", "host name"),
    ("h:99999/a", "port"),
    ("user:pw@h.io/a", "digest"),
    ("https://h.io/a", "host name"),
    ("h.io/" + "a" * 256, "256 characters"),
    ("nginx@", "digest"),
    ("nginx@sha256:abc", "digest"),
    (f"nginx@sha256:{HEX.upper()}", "digest"),
    (f"nginx@{DIGEST}@{DIGEST}", "digest"),
]


@pytest.mark.parametrize(("text", "canonical", "familiar"), GOOD)
def test_a_reference_is_read_as_docker_reads_it(text: str, canonical: str, familiar: str) -> None:
    reference = Reference.parse(text)
    assert reference.canonical == str(reference) == canonical
    assert reference.familiar == familiar


@pytest.mark.parametrize("text", [text for text, _, _ in GOOD])
def test_canonical_and_familiar_text_parse_to_the_same_reference(text: str) -> None:
    reference = Reference.parse(text)
    assert Reference.parse(reference.canonical) == reference
    assert Reference.parse(reference.familiar) == reference


@pytest.mark.parametrize(("text", "why"), BAD)
def test_a_malformed_reference_is_refused_with_the_reason_and_a_hint(text: str, why: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Reference.parse(text)
    assert why in str(caught.value)
    assert caught.value.hint
    assert len(str(caught.value)) < 500


def test_an_unknown_digest_algorithm_is_unsupported() -> None:
    with pytest.raises(Unsupported):
        Reference.parse("nginx@md5:" + "0" * 32)


def test_the_hint_gives_the_lower_case_name() -> None:
    with pytest.raises(InvalidArgument) as caught:
        Reference.parse("example.com/Team/App")
    assert "'team/app'" in str(caught.value.hint)


def test_a_digest_alone_gives_no_tag() -> None:
    reference = Reference.parse(f"nginx@{DIGEST}")
    assert (reference.tag, reference.digest) == (None, DIGEST)


@pytest.mark.parametrize(
    ("text", "host"),
    [("nginx", "registry-1.docker.io"), ("ghcr.io/a", "ghcr.io"), ("[::1]:5000/a", "[::1]:5000")],
)
def test_docker_io_is_served_by_another_host(text: str, host: str) -> None:
    assert Reference.parse(text).registry_host == host


@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        ("localhost", True),
        ("LOCALHOST:5000", True),
        ("127.0.0.1", True),
        ("127.9.8.7:80", True),
        ("[::1]:5000", True),
        ("[::1]", True),
        ("::1", True),
        ("localhost.example.com", False),
        ("127.0.0.1.example.com", False),
        ("127.0.0.256", False),
        ("127.evil.com", False),
        ("128.0.0.1", False),
        ("[::2]:5000", False),
        ("docker.io", False),
    ],
)
def test_loopback_is_this_machine_and_nothing_that_looks_like_it(domain: str, expected: bool) -> None:
    assert is_loopback(domain) is expected


@pytest.mark.parametrize(
    ("domain", "parts"),
    [
        ("h", ("h", None)),
        ("h:5", ("h", 5)),
        ("[::1]", ("::1", None)),
        ("[::1]:5", ("::1", 5)),
        ("a.b:65535", ("a.b", 65535)),
    ],
)
def test_host_and_port_are_split(domain: str, parts: tuple[str, int | None]) -> None:
    assert split_host(domain) == parts


_component = st.from_regex(r"[a-z0-9]{1,8}((\.|_|__|-{1,3})[a-z0-9]{1,8}){0,2}", fullmatch=True)
_domain = st.sampled_from(["", "docker.io/", "localhost/", "h.io/", "h:5000/", "[::1]:80/", "UPPER/"])
_tag = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", fullmatch=True)


@given(
    _domain,
    st.lists(_component, min_size=1, max_size=4),
    st.none() | _tag,
    st.none() | st.just(DIGEST),
)
def test_every_text_of_the_grammar_survives_a_round_trip(
    domain: str, path: list[str], tag: str | None, digest: str | None
) -> None:
    text = domain + "/".join(path) + (f":{tag}" if tag else "") + (f"@{digest}" if digest else "")
    try:
        reference = Reference.parse(text)
    except InvalidArgument:
        # A first component with a dot is a domain, and not every component could be one; a lone ID is none either.
        assert "." in path[0] or len(path[0]) == 64
        return
    assert Reference.parse(reference.canonical) == Reference.parse(reference.familiar) == reference
    assert reference.tag == (tag or (None if digest else "latest"))


@given(st.text(alphabet=string.printable + "é\u2028", max_size=80))
def test_no_text_gives_anything_but_a_reference_or_a_typed_error(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except LamellaError:
        return
    assert Reference.parse(reference.canonical) == reference


def test_importing_the_module_loads_no_network_code() -> None:
    code = (
        "import sys, lamella.reference, lamella.platforms, lamella.registry.credentials;"
        "bad = {'requests', 'urllib3', 'subprocess', 'http.client', 'socket'} & set(sys.modules);"
        "sys.exit(f'loaded {bad}' if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
