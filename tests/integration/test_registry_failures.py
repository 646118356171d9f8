"""The ways in which a network and a server fail, byte by byte: each is tried again where that may help, and else one error."""

from __future__ import annotations

import email.utils
import gzip
import itertools
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from registries import Asked, RawServer, Reply, over_tls, read_all, read_head, reset

from lamella import oci
from lamella.digest import digest_of
from lamella.errors import LamellaError, Unavailable
from lamella.reference import Reference
from lamella.registry.client import RegistryClient
from lamella.registry.config import RegistryConfig, Timeouts
from lamella.registry.patience import Patience
from waiting import settled, until

CONFIG = oci.Descriptor(oci.OCI_CONFIG, digest_of(b"{}"), 2)
MANIFEST = oci.encode(oci.Manifest(media_type=oci.OCI_MANIFEST, config=CONFIG, layers=[]))
BLOB = bytes(range(256)) * 1024
BLOB_DESCRIPTOR = oci.Descriptor(oci.OCI_LAYER_GZIP, digest_of(BLOB), len(BLOB))
GOOD = (
    f"HTTP/1.1 200 OK\r\nContent-Type: {oci.OCI_MANIFEST}\r\nContent-Length: {len(MANIFEST)}\r\n\r\n".encode()
    + MANIFEST
)
PAGE = b"<!DOCTYPE html><html><body>Please accept the terms of this network.</body></html>"
Script = Callable[[socket.socket, int], None]


def impatient(**changes: Any) -> RegistryClient:
    settings = {"credentials": {}, "backoff": 0.001, "timeouts": Timeouts(20, 20)} | changes
    return RegistryClient(RegistryConfig(**settings))


def reference(address: str) -> Reference:
    return Reference.parse(f"{address}/team/app")


# Before and in the headers. Each breaks the first answer; the second is good.


def closes_at_once(_: socket.socket) -> None:
    pass


def resets_at_once(connection: socket.socket) -> None:
    reset(connection)


def closes_after_the_request(connection: socket.socket) -> None:
    read_head(connection)


def resets_after_the_request(connection: socket.socket) -> None:
    read_head(connection)
    reset(connection)


def closes_in_the_status_line(connection: socket.socket) -> None:
    read_head(connection)
    connection.sendall(b"HTTP/1.1 2")


def closes_in_the_headers(connection: socket.socket) -> None:
    read_head(connection)
    connection.sendall(GOOD[:40])


def resets_in_the_headers(connection: socket.socket) -> None:
    read_head(connection)
    connection.sendall(GOOD[:40])
    time.sleep(0.05)
    reset(connection)


def is_silent(connection: socket.socket) -> None:
    read_head(connection)
    connection.recv(1)


def is_silent_in_the_headers(connection: socket.socket) -> None:
    read_head(connection)
    connection.sendall(GOOD[:40])
    connection.recv(1)


def speaks_something_else(connection: socket.socket) -> None:
    read_head(connection)
    connection.sendall(b"220 mail.example.com ESMTP\r\n")


def has_endless_headers(connection: socket.socket) -> None:
    read_head(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        connection.sendall(b"X-Filler: " + b"x" * 1000 + b"\r\n")


def has_an_endless_header(connection: socket.socket) -> None:
    read_head(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\nX-Filler: ")
    while True:
        connection.sendall(b"x" * 1000)


def says_continue_for_ever(connection: socket.socket) -> None:
    read_head(connection)
    while True:
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)


BROKEN_HEADS = [
    closes_at_once,
    resets_at_once,
    closes_after_the_request,
    resets_after_the_request,
    closes_in_the_status_line,
    closes_in_the_headers,
    resets_in_the_headers,
    is_silent,
    is_silent_in_the_headers,
    speaks_something_else,
    has_endless_headers,
    has_an_endless_header,
    says_continue_for_ever,
]


@pytest.mark.parametrize("breaks", BROKEN_HEADS, ids=lambda breaks: breaks.__name__)
def test_an_answer_that_breaks_before_its_body_is_asked_for_again(
    breaks: Callable[[socket.socket], None],
) -> None:
    def script(connection: socket.socket, number: int) -> None:
        if number == 0:
            breaks(connection)
        else:
            read_head(connection)
            connection.sendall(GOOD)

    seconds = 2 if breaks in (is_silent, is_silent_in_the_headers) else 20
    with RawServer(script) as server, impatient(timeouts=Timeouts(20, seconds)) as client:
        assert client.resolve(reference(server.address))[1] == MANIFEST
        assert server.connections == 2


@pytest.mark.parametrize("breaks", BROKEN_HEADS, ids=lambda breaks: breaks.__name__)
def test_one_that_always_breaks_is_one_error_after_all_attempts(
    breaks: Callable[[socket.socket], None],
) -> None:
    with (
        RawServer(lambda connection, _: breaks(connection)) as server,
        impatient(attempts=3, timeouts=Timeouts(20, 0.1)) as client,
    ):
        with pytest.raises(Unavailable, match=server.address):
            client.resolve(reference(server.address))
        until(lambda: server.connections >= 3)  # the last one may not have been taken when it is given up
        assert settled(lambda: server.connections) == 3


def test_headers_that_drip_are_given_up() -> None:
    def script(connection: socket.socket, _: int) -> None:
        read_head(connection)
        server.drip(connection, GOOD, 0.05)

    with RawServer(script) as server, impatient(attempts=2, timeouts=Timeouts(20, 3)) as client:
        with pytest.raises(Unavailable, match="less than 1024 bytes a second"):
            client.resolve(reference(server.address))
        assert server.connections == 2


def test_a_long_wait_for_the_first_byte_is_no_slowness() -> None:
    def script(connection: socket.socket, _: int) -> None:
        read_head(connection)
        server.closing.wait(3)
        for start in range(0, len(GOOD), 60):
            connection.sendall(GOOD[start : start + 60])
            server.closing.wait(0.5)

    with RawServer(script) as server, impatient(attempts=1, timeouts=Timeouts(20, 6)) as client:
        assert client.resolve(reference(server.address))[1] == MANIFEST


def test_100_continue_before_the_answer_is_read_over() -> None:
    def script(connection: socket.socket, _: int) -> None:
        read_head(connection)
        connection.sendall(b"HTTP/1.1 100 Continue\r\nX-Wait: a moment\r\n\r\n" * 3 + GOOD)

    with RawServer(script) as server, impatient(attempts=1) as client:
        assert client.resolve(reference(server.address))[1] == MANIFEST


def test_a_name_that_cannot_be_looked_up_right_now_is_looked_up_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked_up: list[object] = []
    original = socket.getaddrinfo

    def lookup(*arguments: Any, **options: Any) -> Any:
        looked_up.append(arguments[0])
        if len(looked_up) < 3:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return original(*arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)

    def script(connection: socket.socket, _: int) -> None:
        read_head(connection)
        connection.sendall(GOOD)

    with RawServer(script) as server, impatient() as client:
        assert client.resolve(reference(server.address))[1] == MANIFEST
    assert len(looked_up) == 3


def test_a_tls_handshake_that_breaks_off_is_tried_again(tmp_path: Path) -> None:
    def script(connection: socket.socket, _: int) -> None:
        connection.recv(10)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(1000):
            pass

    with (
        RawServer(script) as server,
        impatient(attempts=3, **over_tls(tmp_path, server.address)) as client,
    ):
        with pytest.raises(Unavailable, match="TLS with"):
            client.resolve(reference(server.address))
        assert server.connections == 3


def test_a_server_without_tls_where_it_was_expected_is_asked_once(tmp_path: Path) -> None:
    def script(connection: socket.socket, _: int) -> None:
        connection.recv(10)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    with (
        RawServer(script) as server,
        impatient(attempts=3, **over_tls(tmp_path, server.address)) as client,
    ):
        with pytest.raises(Unavailable, match="does not speak HTTPS"):
            client.resolve(reference(server.address))
        assert server.connections == 1


# Pauses that a server asks for


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("said", "shortest", "longest"),
    [
        ("3", 3, 3),
        (lambda: email.utils.formatdate(time.time() + 30, usegmt=True), 20, 30),
        (lambda: email.utils.formatdate(time.time() - 3600, usegmt=True), 0, 1),
        ("0", 0, 1),
        ("-5", 0, 1),
        ("soon", 0, 1),
        ("1e9", 0, 1),
        ("", 0, 1),
        ("Thu, 99 Foo 99999 99:99:99 GMT", 0, 1),
    ],
)
def test_a_pause_is_as_long_as_the_server_says_if_that_can_be_understood(
    status: int, said: Any, shortest: float, longest: float, scripted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(Patience, "_wait", lambda _, seconds: pauses.append(seconds))
    text = said() if callable(said) else said
    answers = itertools.chain(
        [Reply(status, {"Retry-After": text})],
        itertools.repeat(Reply(200, {"Content-Type": oci.OCI_MANIFEST}, MANIFEST)),
    )
    server = scripted(lambda _: next(answers))
    with impatient(backoff=0.25) as client:
        assert client.resolve(reference(server.address))[1] == MANIFEST
    assert len(pauses) == 1
    assert shortest <= pauses[0] <= longest


@pytest.mark.parametrize("said", ["61", "9" * 400, "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_an_absurd_pause_is_an_error_at_once(said: str, scripted: Any) -> None:
    server = scripted(lambda _: Reply(429, {"Retry-After": said}))
    with impatient() as client, pytest.raises(Unavailable, match="too many requests"):
        client.resolve(reference(server.address))
    assert len(server.asked) == 1


# Bodies of blobs


def ranged(asked: Asked) -> Reply:
    start = int(asked.headers.get("range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
    if not start:
        return Reply(200, {}, BLOB)
    return Reply(206, {"Content-Range": f"bytes {start}-{len(BLOB) - 1}/{len(BLOB)}"}, BLOB[start:])


def test_a_blob_that_drips_is_given_up_and_continued_elsewhere(scripted: Any) -> None:
    release = threading.Event()

    def script(asked: Asked) -> Reply:
        if len(server.asked) > 1:
            return ranged(asked)

        def drip() -> Iterator[bytes]:
            yield BLOB[:70_000]
            for byte in BLOB[70_000:]:
                yield bytes([byte])
                if release.wait(0.05):
                    return

        return Reply(200, {"Content-Length": str(len(BLOB))}, drip())

    server = scripted(script)
    with (
        impatient(timeouts=Timeouts(20, 3)) as client,
        client.open_blob(reference(server.address), BLOB_DESCRIPTOR) as stream,
    ):
        assert read_all(stream) == BLOB
    release.set()
    assert len(server.asked) == 2
    start = int(server.asked[1].headers["range"].removeprefix("bytes=").rstrip("-"))
    assert 70_000 < start < 70_200  # what dripped was not lost


def test_a_slow_reader_does_not_make_a_slow_server(scripted: Any) -> None:
    server = scripted(ranged)
    with (
        impatient() as client,
        client.open_blob(reference(server.address), BLOB_DESCRIPTOR) as stream,
    ):
        buffer = bytearray(10)
        data = bytearray()
        for _ in range(4):
            data += buffer[: stream.readinto(buffer)]
            time.sleep(0.3)
        assert bytes(data) + read_all(stream) == BLOB
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    "garbage",
    [b"zz\r\n", b"-5\r\nabcde\r\n", b"5;\r\nabc", b"ffffffffffffffffffffff\r\nabc", b"\r\n", b"5" * 70_000],
)
def test_a_broken_chunk_is_a_connection_that_broke(garbage: bytes, scripted: Any) -> None:
    def script(asked: Asked) -> Reply:
        if len(server.asked) > 1:
            return ranged(asked)
        good = b"%x\r\n%b\r\n" % (100_000, BLOB[:100_000])
        return Reply(200, {"Transfer-Encoding": "chunked"}, iter([good, garbage]))

    server = scripted(script)
    with impatient() as client, client.open_blob(reference(server.address), BLOB_DESCRIPTOR) as stream:
        data = read_all(stream)
    # Up to three bytes of a chunk of another size are bytes of the blob as far as anybody can tell: its digest tells.
    assert len(data) == len(BLOB)
    assert data[:100_000] == BLOB[:100_000]
    assert len(server.asked) == 2


@pytest.mark.parametrize("keeps_alive", [False, True])
def test_a_server_that_closes_after_each_answer_is_asked_on_new_connections(keeps_alive: bool) -> None:
    """Also one that does not say so: with keep-alive, as it is without ``Connection: close``, it might have gone on."""
    said = GOOD if keeps_alive else GOOD.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1)

    def script(connection: socket.socket, _: int) -> None:
        read_head(connection)
        connection.sendall(said)

    with RawServer(script) as server, impatient() as client:
        for _ in range(5):
            assert client.resolve(reference(server.address))[1] == MANIFEST
        assert server.connections >= 5


def test_a_range_that_was_not_asked_for_is_refused(scripted: Any) -> None:
    content_range = f"bytes 0-{len(BLOB) - 1}/{len(BLOB)}"
    server = scripted(lambda _: Reply(206, {"Content-Range": content_range}, BLOB))
    with impatient() as client, pytest.raises(LamellaError, match="206"):
        client.open_blob(reference(server.address), BLOB_DESCRIPTOR)


def test_an_address_that_expires_is_asked_for_again_at_the_registry(scripted: Any) -> None:
    """As a registry's storage behind pre-signed addresses: each is good for one answer, and that breaks in the middle."""
    used: set[str] = set()
    given = itertools.count()

    def hold(asked: Asked) -> Reply:
        if asked.path in used:
            return Reply(403, {}, b"Request has expired")
        used.add(asked.path)
        reply = ranged(asked)
        assert isinstance(reply.body, bytes)
        length = str(len(reply.body))
        return reply._replace(headers={**reply.headers, "Content-Length": length}, body=reply.body[:100_000])

    storage = scripted(hold)
    server = scripted(
        lambda _: Reply(307, {"Location": f"http://{storage.address}/signed?signature={next(given)}"})
    )
    with impatient() as client, client.open_blob(reference(server.address), BLOB_DESCRIPTOR) as stream:
        assert read_all(stream) == BLOB
    assert len(server.asked) == len(storage.asked) == len(used) == 3


def test_a_storage_that_is_busy_is_asked_for_anew_at_the_registry(scripted: Any) -> None:
    storage = scripted(lambda asked: ranged(asked) if asked.path.endswith("=3") else Reply(503))
    given = itertools.count(1)
    server = scripted(
        lambda _: Reply(307, {"Location": f"http://{storage.address}/signed?signature={next(given)}"})
    )
    with impatient() as client, client.open_blob(reference(server.address), BLOB_DESCRIPTOR) as stream:
        assert read_all(stream) == BLOB
    assert len(server.asked) == 3


# Pages that are no answers, with status 200


@pytest.mark.parametrize("compressed", [False, True])
def test_a_web_page_instead_of_a_document_is_no_answer(compressed: bool, scripted: Any) -> None:
    headers = {"Content-Type": "text/html; charset=utf-8"}
    page = Reply(200, {**headers, "Content-Encoding": "gzip"}, gzip.compress(PAGE)) if compressed else None
    server = scripted(lambda _: page or Reply(200, headers, PAGE))
    with impatient(attempts=3) as client:
        with pytest.raises(Unavailable, match="web page") as caught:
            client.resolve(reference(server.address))
        assert server.address in str(caught.value)
        with pytest.raises(Unavailable, match="web page"):
            client.fetch_document(reference(server.address), CONFIG)
    assert len(server.asked) == 6


def test_a_web_page_for_a_moment_does_no_harm(scripted: Any) -> None:
    page = Reply(200, {"Content-Type": "text/html"}, PAGE)
    server = scripted(lambda asked: page if len(server.asked) % 2 else good(asked))

    def good(asked: Asked) -> Reply:
        return ranged(asked) if "blobs" in asked.path else Reply(200, {}, MANIFEST)

    with impatient() as client:
        assert client.resolve(reference(server.address))[1] == MANIFEST
        with client.open_blob(reference(server.address), BLOB_DESCRIPTOR) as stream:
            assert read_all(stream) == BLOB
    assert len(server.asked) == 4


def test_a_web_page_instead_of_a_blob_is_an_error(scripted: Any) -> None:
    server = scripted(lambda _: Reply(200, {"Content-Type": "text/html"}, PAGE))
    with impatient() as client, pytest.raises(Unavailable, match="web page"):
        client.open_blob(reference(server.address), BLOB_DESCRIPTOR)
    chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(PAGE), PAGE)
    server = scripted(lambda _: Reply(200, {"Transfer-Encoding": "chunked"}, iter([chunked])))
    with (
        impatient() as client,
        client.open_blob(reference(server.address), BLOB_DESCRIPTOR) as stream,
        pytest.raises(Unavailable, match="broke off"),
    ):
        read_all(stream)


# TLS: an answer comes in records of 16 KiB


def test_a_tls_connection_that_ends_without_goodbye_is_continued(
    tls: ssl.SSLContext, scripted: Any, monkeypatch: pytest.MonkeyPatch, authority: Any, tmp_path: Path
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority / "cert.pem"))

    def script(asked: Asked) -> Reply:
        reply = ranged(asked)
        assert isinstance(reply.body, bytes)
        length = str(len(reply.body))
        return reply._replace(
            headers={**reply.headers, "Content-Length": length}, body=reply.body[:100_000], reset=True
        )

    server = scripted(script, tls=tls)
    with (
        impatient(**over_tls(tmp_path / "hosts", server.address)) as client,
        client.open_blob(reference(server.address), BLOB_DESCRIPTOR) as stream,
    ):
        assert read_all(stream) == BLOB
    assert len(server.asked) >= 3
