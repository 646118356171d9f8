"""References: docker's grammar, as the distribution project's reference package reads it."""

from __future__ import annotations

import re
import string
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella import reference
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
    ("a" * 247, "docker.io/library/" + "a" * 247 + ":latest", "a" * 247 + ":latest"),
    (
        "h" * 63 + ".io/" + "a/" * 127 + "a",
        "h" * 63 + ".io/" + "a/" * 127 + "a:latest",
        "h" * 63 + ".io/" + "a/" * 127 + "a:latest",
    ),
    ("docker.io/library/nginx", "docker.io/library/nginx:latest", "nginx:latest"),
    ("index.docker.io/library/nginx", "docker.io/library/nginx:latest", "nginx:latest"),
    ("registry-1.docker.io/a", "registry-1.docker.io/a:latest", "registry-1.docker.io/a:latest"),
    # One component is never a domain.
    ("docker.io", "docker.io/library/docker.io:latest", "docker.io:latest"),
    ("index.docker.io", "docker.io/library/index.docker.io:latest", "index.docker.io:latest"),
    ("example.com", "docker.io/library/example.com:latest", "example.com:latest"),
    ("example.com:5000", "docker.io/library/example.com:5000", "example.com:5000"),
    ("192.168.1.1:5000", "docker.io/library/192.168.1.1:5000", "192.168.1.1:5000"),
    # The first of several is one by a dot, a colon, a capital, or because it is localhost.
    ("a.b/c", "a.b/c:latest", "a.b/c:latest"),
    ("a:0/c", "a:0/c:latest", "a:0/c:latest"),
    ("Ab/c", "Ab/c:latest", "Ab/c:latest"),
    ("LOCALHOST/c", "LOCALHOST/c:latest", "LOCALHOST/c:latest"),
    ("localhost.localdomain/c", "localhost.localdomain/c:latest", "localhost.localdomain/c:latest"),
    ("Docker.io/nginx", "Docker.io/nginx:latest", "Docker.io/nginx:latest"),
    ("sub-dom1.foo.com/bar/baz", "sub-dom1.foo.com/bar/baz:latest", "sub-dom1.foo.com/bar/baz:latest"),
    ("h.io:65535/a", "h.io:65535/a:latest", "h.io:65535/a:latest"),
    ("[::]/a", "[::]/a:latest", "[::]/a:latest"),
    ("[2001:DB8::A]:80/a", "[2001:DB8::A]:80/a:latest", "[2001:DB8::A]:80/a:latest"),
    # An ID is refused where it stands alone, and nowhere else.
    (f"{HEX}:1", f"docker.io/library/{HEX}:1", f"{HEX}:1"),
    (f"a/{HEX}", f"docker.io/a/{HEX}:latest", f"a/{HEX}:latest"),
    (f"sha256:{HEX}", f"docker.io/library/sha256:{HEX}", f"sha256:{HEX}"),
    (f"{HEX}a", f"docker.io/library/{HEX}a:latest", f"{HEX}a:latest"),
    (f"a@sha384:{HEX}{HEX[:32]}", f"docker.io/library/a@sha384:{HEX}{HEX[:32]}", f"a@sha384:{HEX}{HEX[:32]}"),
    (f"[::1]/a:t@sha512:{HEX * 2}", f"[::1]/a:t@sha512:{HEX * 2}", f"[::1]/a:t@sha512:{HEX * 2}"),
    ("a:0", "docker.io/library/a:0", "a:0"),
    ("a:UPPER", "docker.io/library/a:UPPER", "a:UPPER"),
    ("0/1", "docker.io/0/1:latest", "0/1:latest"),
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
    ("a" * 248, "256 characters"),
    ("h.io/" + "a/" * 128, "repository name"),
    (":tag", "repository name"),
    (f"@{DIGEST}", "repository name"),
    ("a:b:c", "tag"),
    ("a:é", "tag"),
    (f"nginx@{DIGEST}:tag", "digest"),
    (f"nginx@{DIGEST}/a", "digest"),
    (f"nginx:@{DIGEST}", "tag"),
    (f"nginx@sha512:{HEX}", "digest"),
    (f"nginx@sha384:{HEX}", "digest"),
    ("docker.io/", "repository name"),
    ("docker.io//a", "repository name"),
    ("localhost/", "repository name"),
    ("a__b__", "repository name"),
    ("a_-b", "repository name"),
    ("a.-b", "repository name"),
    (".a", "repository name"),
    ("a/.b", "repository name"),
    ("a/b.", "repository name"),
    ("A/b/C", "upper-case"),
    ("h.io/a b", "repository name"),
    (" nginx", "repository name"),
    ("nginx ", "repository name"),
    ("h-.io/a", "host name"),
    ("h.io./a", "host name"),
    (".h.io/a", "host name"),
    ("[::1]x/a", "host name"),
    ("[]/a", "repository name"),
    ("[::ffff:1.2.3.4]/a", "host name"),
    ("[::1]:/a", "host name"),
    ("h:-1/a", "host name"),
    ("h:65536/a", "port"),
    ("h.io:5000:5000/a", "host name"),
    ("\x00/a", "repository name"),
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


@pytest.mark.parametrize("algorithm", ["md5", "SHA256", "sha3-256", "blake3", "sha256+b64"])
def test_an_unknown_digest_algorithm_is_unsupported(algorithm: str) -> None:
    with pytest.raises(Unsupported):
        Reference.parse(f"nginx@{algorithm}:{HEX}")


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
_label = st.from_regex(r"[a-zA-Z0-9]([a-zA-Z0-9-]{0,8}[a-zA-Z0-9])?", fullmatch=True)
_host = st.lists(_label, min_size=2, max_size=4).map(".".join) | st.ip_addresses().map(
    lambda address: f"[{address}]" if address.version == 6 and "." not in str(address) else "192.0.2.1"
)
_port = st.none() | st.integers(0, 65535)
_domain = st.sampled_from(
    ["", "docker.io/", "index.docker.io/", "localhost/", "h:5000/", "UPPER/"]
) | st.builds(lambda host, port: f"{host}/" if port is None else f"{host}:{port}/", _host, _port)
_digest = st.sampled_from([DIGEST, f"sha384:{HEX}{HEX[:32]}", f"sha512:{HEX * 2}"])
_tag = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", fullmatch=True)


@given(
    _domain,
    st.lists(_component, min_size=1, max_size=4),
    st.none() | _tag,
    st.none() | _digest,
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
    assert reference.digest == digest
    assert hash(Reference.parse(text)) == hash(reference)


@given(st.text(alphabet=string.printable + "é\u2028", max_size=80))
def test_no_text_gives_anything_but_a_reference_or_a_typed_error(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except LamellaError:
        return
    assert Reference.parse(reference.canonical) == reference


@given(st.text(alphabet="aZ0.:-_/[é\u0663\u00b2", max_size=6))
def test_what_is_taken_without_a_pattern_is_what_the_pattern_takes(text: str) -> None:
    for plain, pattern in (
        (reference._is_plain_domain, reference._DOMAIN),
        (reference._is_plain_path, reference._PATH),
        (reference._is_word, reference._TAG),
    ):
        assert not plain(text) or re.fullmatch(pattern, text)


def test_importing_the_module_loads_no_network_code() -> None:
    code = (
        "import sys, lamella.reference, lamella.platforms, lamella.registry.credentials;"
        "bad = {'requests', 'urllib3', 'subprocess', 'http.client', 'socket'} & set(sys.modules);"
        "sys.exit(f'loaded {bad}' if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
