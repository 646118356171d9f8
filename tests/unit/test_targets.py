"""Where a request goes: origins, and which addresses are of private networks, in whichever way they are written."""

from __future__ import annotations

import pytest

from lamella.errors import LamellaError, PermissionDenied
from lamella.registry.targets import Origin, is_private_literal

PRIVATE = [
    "localhost",
    "LOCALHOST",
    "127.0.0.1",
    "127.255.255.254",
    "::1",
    "0.0.0.0",
    "::",
    "10.0.0.1",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "100.64.0.1",
    "169.254.169.254",
    "198.18.0.1",
    "192.0.2.1",
    "240.0.0.1",
    "255.255.255.255",
    "fc00::1",
    "fd12:3456::1",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "2001:db8::1",
    "2001:0:a00:1::1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "::10.0.0.1",
    "::ffff:0:10.0.0.1",
    "64:ff9b::10.0.0.1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::8.8.8.8",
    "2002:a00:1::1",
    "2002:7f00:1::",
]
PUBLIC = [
    "8.8.8.8",
    "1.1.1.1",
    "172.32.0.1",
    "192.169.0.1",
    "100.128.0.1",
    "2606:4700::1111",
    "2a00:1450::1",
    "::ffff:8.8.8.8",
    "64:ff9b::8.8.8.8",
    "2002:808:808::1",
    "example.com",
    "localhost.example.com",
    "10.0.0.1.example.com",
    "127.1",
    "0x7f000001",
    "2130706433",
]
"""Names count as public here: the address that they lead to is looked at once there is a connection."""


@pytest.mark.parametrize("host", PRIVATE)
def test_an_address_of_a_private_network_is_known_in_every_form(host: str) -> None:
    assert is_private_literal(host)


@pytest.mark.parametrize("host", PUBLIC)
def test_public_addresses_and_names_are_not_private(host: str) -> None:
    assert not is_private_literal(host)


@pytest.mark.parametrize(
    ("url", "origin", "written"),
    [
        ("https://H.io/v2/", ("https", "h.io", 443), "https://h.io"),
        ("https://h.io:443", ("https", "h.io", 443), "https://h.io"),
        ("http://h.io:443", ("http", "h.io", 443), "http://h.io:443"),
        ("http://[::1]:5000/x?y#z", ("http", "::1", 5000), "http://[::1]:5000"),
    ],
)
def test_an_origin_is_scheme_host_and_port(url: str, origin: tuple[str, str, int], written: str) -> None:
    assert Origin.of(url) == origin
    assert str(Origin.of(url)) == written


@pytest.mark.parametrize(
    "url",
    [
        "ftp://h.io/",
        "file:///etc/passwd",
        "//h.io/",
        "/v2/",
        "https:///",
        "http:h.io",
        "https://user@h.io/",
        "https://user:password@h.io/",
        "https://:password@h.io/",
        "https://h.io:99999/",
        "https://[::1/",
        "https://h.io:port/",
        "javascript:alert(1)",
    ],
)
def test_what_is_no_plain_web_address_is_refused_and_no_password_repeated(url: str) -> None:
    with pytest.raises(LamellaError) as caught:
        Origin.of(url)
    assert "password" not in str(caught.value)


def test_another_scheme_keeps_a_port_of_its_own() -> None:
    assert Origin.of("https://h.io").over("http") == ("http", "h.io", 80)
    assert Origin.of("https://h.io:5000").over("http") == ("http", "h.io", 5000)
    with pytest.raises(PermissionDenied):
        Origin.of("gopher://h.io")
