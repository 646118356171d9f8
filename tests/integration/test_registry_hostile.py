"""The registry server and clients that mean no good: requests that two readers understand differently, heads and bodies
without an end, connections that are held, and what has to be let in nowhere.
"""

from __future__ import annotations

import base64
import errno
import json
import os
import random
import resource
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import bcrypt
import pytest
import requests
from registries import push_image
from serving import BLOB, DIGEST, Serve, asking, start

from chance import NIGHTLY, SEED
from lamella.errors import InvalidArgument, NotFound
from lamella.registry.server import Access, RegistryServer, htpasswd, http
from waiting import until

SECOND = b"GET /v2/_catalog HTTP/1.1\r\nHost: x\r\n\r\n"
"""A request that must not be answered after one that was refused."""
ANN = "$2y$05$GjowGl.EJeQMGxoYeAu/vuMXAVNeg5hW/.OC52ps.yQhTOcjqROyC"
"""What `htpasswd -B` makes of hunter2."""


@pytest.fixture
def server() -> Iterator[RegistryServer]:
    with RegistryServer() as opened:
        yield opened


@pytest.fixture
def impatient() -> Iterator[pytest.MonkeyPatch]:
    """Let servers wait a second for what does not come; ``undo`` gives them their patience back."""
    with pytest.MonkeyPatch.context() as patched:
        for name in ("HEAD_SECONDS", "IDLE_SECONDS", "LINGER_SECONDS"):
            patched.setattr(http, name, 1.0)
        yield patched


def connect(server: RegistryServer) -> socket.socket:
    host, port = server.address.split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def answer(connection: socket.socket) -> bytes:
    """Read all that comes until the server closes."""
    received = bytearray()
    with suppress(ConnectionError):
        while data := connection.recv(65536):
            received += data
    return bytes(received)


def send(server: RegistryServer, data: bytes) -> bytes:
    with connect(server) as connection:
        with suppress(ConnectionError):
            connection.sendall(data)
        return answer(connection)


def drip(connection: socket.socket, data: bytes) -> None:
    """Send a byte now and then until the server has enough of it."""
    with suppress(ConnectionError):
        for number in range(len(data)):
            connection.sendall(data[number : number + 1])
            time.sleep(0.02)
        pytest.fail("the server read it all")


def head(*lines: bytes, first: bytes = b"POST /v2/a/blobs/uploads/ HTTP/1.1") -> bytes:
    return b"\r\n".join([first, *lines, b"", b""])


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (head(b"Host: x", b"Content-Length: 5", b"Transfer-Encoding: chunked"), 400),
        (head(b"Host: x", b"Content-Length: 5", b"Content-Length: 5"), 400),
        (head(b"Host: x", b"Content-Length: 5", b"content-length: 6"), 400),
        (head(b"Host: x", b"Content-Length: 5, 5"), 400),
        (head(b"Host: x", b"Content-Length: +5"), 400),
        (head(b"Host: x", b"Content-Length: -5"), 400),
        (head(b"Host: x", b"Content-Length: 0x5"), 400),
        (head(b"Host: x", b"Content-Length: 1_0"), 400),
        (head(b"Host: x", "Content-Length: \u0665".encode()), 400),
        (head(b"Host: x", b"Content-Length:"), 400),
        (head(b"Host: x", b"Content-Length: " + b"9" * 30), 400),
        (head(b"Host: x", b"Content-Length : 5"), 400),
        (head(b"Host: x", b"Transfer-Encoding : chunked"), 400),
        (head(b"Host: x", b"Transfer-Encoding: gzip, chunked"), 501),
        (head(b"Host: x", b"Transfer-Encoding: xchunked"), 501),
        (head(b"Host: x", b"Transfer-Encoding: identity"), 501),
        (head(b"Host: x", b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"), 400),
        (head(b"Host: x", b"Transfer-Encoding: chunked", first=b"POST /v2/a/blobs/uploads/ HTTP/1.0"), 400),
        (head(b"Host: x", b"X-Folded: a", b" Content-Length: 5"), 400),
        (head(b"Host: x", b"Transfer-Encoding:", b" chunked"), 400),
        (head(b"Host: x", b"X: a\rContent-Length: 5"), 400),
        (head(b"Host: x", b"X: a\0b"), 400),
        (head(b" Host: x"), 400),
        (head(b"Host: x", b"no colon"), 400),
        (head(b"Host: x", b": empty"), 400),
        (head(b"Host: x", b"Host: y"), 400),
        (head(b"X: y"), 400),
        (head(first=b"GET /v2/"), 505),
        (head(b"Host: x", first=b"GET /v2/ HTTP/2.0"), 505),
        (head(b"Host: x", first=b"GET /v2/ HTTP/1.2"), 505),
        (head(b"Host: x", first=b"GET  /v2/ HTTP/1.1 more"), 400),
        (head(b"Host: x", first=b"GET /v2/ http/1.1"), 400),
        (head(b"Host: x", first=b"GET\x0b/v2/ HTTP/1.1"), 400),
        (head(b"Host: x", first=b"GET /v2/\t HTTP/1.1"), 400),
        (head(b"Host: x", first=b"GET /v2/\xa0HTTP/1.1"), 400),
        (head(b"From Content-Length: 5", b"Host: x"), 400),
        (head(b"Host: x\nTransfer-Encoding: chunked"), 400),
        (b"GET /v2/ HTTP/1.1\nHost: x\n\n", 400),
        (b"GET /v2/ HTTP/1.1\rHost: x\r\n\r\n", 400),
        (head(b"Host: x", first=b"GET /v2/" + b"a" * 70_000 + b" HTTP/1.1"), 414),
        (head(b"Host: x", b"X: " + b"a" * 70_000), 431),
        (head(b"Host: x", *[b"X: y"] * 200), 431),
    ],
)
def test_a_request_that_can_be_understood_in_two_ways_is_refused_and_nothing_after_it_is_read(
    request_bytes: bytes, status: int, server: RegistryServer
) -> None:
    received = send(server, request_bytes + SECOND)
    lines = [line for line in received.split(b"\r\n") if line.startswith(b"HTTP/")]
    if not lines:  # more than a head may have: there is nobody to answer
        assert len(request_bytes) > http.HEAD_MAX
    else:
        assert [int(line.split()[1]) for line in lines] == [status]
        assert b"Connection: close" in received
    assert server.storage.repositories() == []


@pytest.mark.parametrize(
    ("chunks", "taken"),
    [
        (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
        (b'5;name="value"\r\nhello\r\n0\r\nX-Trailer: a\r\n\r\n', b"hello"),
        (b"0005\r\nhello\r\n000\r\n\r\n", b"hello"),
        (b"5\r\nhelloX\r\n0\r\n\r\n", None),
        (b"5\nhello\n0\n\n", None),
        (b"-5\r\nhello\r\n0\r\n\r\n", None),
        (b"0x5\r\nhello\r\n0\r\n\r\n", None),
        (b"5 5\r\nhello\r\n0\r\n\r\n", None),
        (b"\r\n0\r\n\r\n", None),
        (b"1" * 16 + b"\r\nhello\r\n0\r\n\r\n", None),
        (b"5;" + b"x" * 10_000 + b"\r\nhello\r\n0\r\n\r\n", None),
        (b"0\r\n" + b"X: y\r\n" * 100 + b"\r\n", None),
        (b"5\r\nhel", None),
    ],
)
def test_a_chunked_body_is_read_to_the_letter(
    chunks: bytes, taken: bytes | None, server: RegistryServer
) -> None:
    with asking(server) as ask:
        location = start(ask)
    request = head(b"Host: x", b"Transfer-Encoding: chunked", first=f"PATCH {location} HTTP/1.1".encode())
    with connect(server) as connection:
        connection.sendall(request + chunks)
        connection.shutdown(socket.SHUT_WR)
        received = answer(connection)
    with asking(server) as ask:
        if taken is None:
            assert b" 202 " not in received
        else:
            assert received.startswith(b"HTTP/1.1 202 ")
            assert ask("GET", location).headers["range"] == f"0-{len(taken) - 1}"
        assert ask("GET", location).status == 204


def test_a_head_that_breaks_off_is_not_taken_for_a_whole_one(server: RegistryServer) -> None:
    push_image(server)
    for cut in (
        b"DELETE /v2/team/app/manifests/latest HTTP/1.1\r\nHost: x\r\n",
        b"DELETE /v2/team/app/manifests/latest",
    ):
        with connect(server) as connection:
            connection.sendall(cut)
            connection.shutdown(socket.SHUT_WR)
            assert b" 202 " not in answer(connection)
    assert server.storage.repository("team/app").tags() == ["latest"]


def test_a_target_that_is_no_address_is_refused(server: RegistryServer) -> None:
    line = b"GET http://[x/v2/ HTTP/1.1"
    assert send(server, head(b"Host: x", b"Connection: close", first=line)).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("method", ["delete", "Delete", "get", "TRACE", "S_POST"])
def test_a_method_that_there_is_not_does_nothing_whoever_may(method: str, serve: Serve) -> None:
    """A guard is told what is wanted by the method: one in other letters would be another right."""
    with (
        serve(auth=lambda access: None if access.action != "delete" else "Basic") as server,
        asking(server) as ask,
    ):
        push_image(server)
        refused = ask(method, "/v2/team/app/manifests/latest")
        assert (refused.status, refused.headers["allow"]) == (405, "GET, HEAD, PUT, DELETE")
        assert ask("DELETE", "/v2/team/app/manifests/latest").status == 401
        assert ask("GET", "/v2/team/app/manifests/latest").status == 200


@pytest.mark.parametrize(
    "media_type",
    ["a/b\r\nX-Forged: 1", "a/b\0", "a/\u20ac", "a/b c", "a", "/", "a/b/c", "a" * 200 + "/b", ""],
)
def test_what_a_manifest_calls_itself_cannot_forge_a_header(media_type: str, serve: Serve) -> None:
    document = json.dumps({"schemaVersion": 2, "mediaType": media_type})
    with serve() as server, asking(server) as ask:
        refused = ask("PUT", "/v2/a/manifests/1", document)
        assert (refused.status, refused.code) == (400, "MANIFEST_INVALID")
        assert server.storage.repositories() == []


INDEX = b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}'
SOUND = [
    head(b"Host: x", first=b"GET /v2/_catalog?n=1&last=a HTTP/1.1"),
    head(b"Host: x", first=b"GET /v2/a/tags/list?ns=docker.io&n=2 HTTP/1.1"),
    head(b"Host: x", b"Range: bytes=1-3", first=f"GET /v2/a/blobs/{DIGEST} HTTP/1.1".encode()),
    head(b"Host: x", first=f"GET /v2/a/referrers/{DIGEST}?artifactType=a/b HTTP/1.1".encode()),
    head(b"Host: x", first=f"POST /v2/b/blobs/uploads/?mount={DIGEST}&from=a HTTP/1.1".encode()),
    head(b"Host: x", first=f"DELETE /v2/a/blobs/{DIGEST} HTTP/1.1".encode()),
    head(b"Host: x", first=b"PATCH /v2/a/blobs/uploads/%s HTTP/1.1" % (b"0" * 32))
    + b"5\r\nhello\r\n0\r\n\r\n",
    head(b"Host: x", b"Content-Length: %d" % len(INDEX), first=b"PUT /v2/a/manifests/t HTTP/1.1") + INDEX,
]
PIECES = (
    b"\r\n|\n|\0|%00|..|/|%2f|?|&|=|ns=|sha512:|-1|99999999999999999999|\xff| |\t|:|{}|null|[|%|@|Content-Length: 3\r\n|"
    b"Transfer-Encoding: chunked\r\n|Expect: 100-continue\r\n|Content-Type: a/b\r\n"
).split(b"|")


def spoilt(request: bytes, choose: random.Random) -> bytes:
    for _ in range(choose.randint(0, 3)):
        at = choose.randrange(len(request) + 1)
        put = choose.choice([b"", choose.choice(PIECES), choose.randbytes(1)])
        request = request[:at] + put + request[at + choose.choice([0, 1, 8]) :]
    return request


def test_whatever_is_sent_is_answered_or_refused_and_no_defect(serve: Serve) -> None:
    print(f"LAMELLA_SEED={SEED}")
    choose = random.Random(SEED)
    with serve() as server:
        server.push_blob("a", BLOB)
        for _ in range(10_000 if NIGHTLY else 2000):
            request = b"".join(spoilt(choose.choice(SOUND), choose) for _ in range(choose.randint(1, 3)))
            with connect(server) as connection:
                with suppress(OSError):
                    connection.sendall(request)
                    connection.shutdown(socket.SHUT_WR)
                assert b"HTTP/1.1 500 " not in answer(connection), request
        with asking(server) as ask:
            assert ask("GET", "/v2/").status == 200


def test_requests_may_follow_each_other_without_waiting(server: RegistryServer) -> None:
    with connect(server) as connection:
        connection.sendall(head(b"Host: x", b"Content-Length: 3") + b"abc" + SECOND)
        connection.shutdown(socket.SHUT_WR)
        received = answer(connection)
    assert [line.split()[1] for line in received.split(b"\r\n") if line.startswith(b"HTTP/")] == [
        b"202",
        b"200",
    ]


def test_a_body_is_asked_for_only_when_it_is_wanted() -> None:
    wants = (b"Host: x", b"Expect: 100-continue", b"Content-Length: 5")
    with RegistryServer() as server, connect(server) as connection:
        connection.sendall(head(*wants))
        time.sleep(0.1)
        first = connection.recv(65536)  # a POST without a digest needs no body
        assert first.startswith(b"HTTP/1.1 202 ")
        assert b"Connection: close" in first
        with asking(server) as ask:
            location = start(ask).encode()
        with connect(server) as second:
            second.sendall(head(*wants, first=b"PATCH " + location + b" HTTP/1.1"))
            assert second.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
            second.sendall(b"hello")
            assert second.recv(65536).startswith(b"HTTP/1.1 202 ")
    with RegistryServer(auth=lambda access: "Basic") as server:
        assert send(server, head(*wants)).startswith(b"HTTP/1.1 401 ")


def test_who_sends_much_in_vain_is_told_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "LINGER_SECONDS", 60)  # however long this machine takes
    with RegistryServer(read_only=True) as server, connect(server) as connection:
        connection.sendall(head(b"Host: x", b"Content-Length: 9000000") + bytes(9_000_000))
        assert b"the registry is read-only" in answer(connection)


# Time


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("sent", [b"", b"G", b"GET /v2/ HTTP/1.1\r\nHost: x\r\n"])
def test_a_connection_without_a_whole_request_ends(sent: bytes, server: RegistryServer) -> None:
    with connect(server) as connection:
        connection.sendall(sent)
        assert answer(connection) == b""


@pytest.mark.usefixtures("impatient")
def test_a_head_that_comes_drop_by_drop_ends(server: RegistryServer) -> None:
    with connect(server) as connection:
        drip(connection, b"GET /v2/ HTTP/1.1\r\n" + b"X: y\r\n" * 1000)


def test_a_body_that_comes_drop_by_drop_ends_and_can_be_gone_on_with(
    server: RegistryServer, impatient: pytest.MonkeyPatch
) -> None:
    with asking(server) as ask:
        location = start(ask)
    with connect(server) as connection:
        request = f"PATCH {location} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BLOB)}\r\n\r\n"
        connection.sendall(request.encode())
        drip(connection, BLOB)
    impatient.undo()
    with asking(server) as ask:
        came = int(ask("GET", location).headers["range"].partition("-")[2]) + 1
        assert ask("PUT", f"{location}?digest={DIGEST}", BLOB[came:]).status == 201


@pytest.mark.parametrize("secured", [False, True])
def test_who_asks_and_does_not_read_is_dropped(
    secured: bool, tls: ssl.SSLContext, authority: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "IDLE_SECONDS", 2.0)
    context = ssl.create_default_context(cafile=str(authority / "cert.pem"))
    with RegistryServer(tls=tls if secured else None) as server:
        large = server.push_blob("a", bytes(64 * 1024 * 1024))
        connection = connect(server)
        if secured:
            connection = context.wrap_socket(connection, server_hostname="localhost")
        with connection:
            request = f"GET /v2/a/blobs/{large.digest} HTTP/1.1\r\nHost: x\r\n\r\n"
            connection.sendall(request.encode())
            until(lambda: server.requests)
            until(lambda: not server._server._idle)


def test_a_file_that_becomes_shorter_while_it_is_sent_breaks_the_answer_off(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(BLOB)
    ours, theirs = socket.socketpair()
    with ours, theirs, (tmp_path / "blob").open("rb") as file:
        theirs.settimeout(20)
        reading = threading.Thread(target=answer, args=(theirs,))
        reading.start()
        with pytest.raises(ConnectionError):
            http.Wire(ours).send_file(file, 0, len(BLOB) + 1)
        ours.shutdown(socket.SHUT_RDWR)
        reading.join()


def test_who_reads_slowly_but_steadily_gets_all(
    server: RegistryServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "IDLE_SECONDS", 2.0)  # half of the time that it takes
    large = server.push_blob("a", bytes(range(256)) * 4 * 1024 * 8)
    with connect(server) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        request = f"GET /v2/a/blobs/{large.digest} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        connection.sendall(request.encode())
        received = bytearray()
        while data := connection.recv(256 * 1024):
            received += data
            time.sleep(0.05)
    assert received.endswith(bytes(range(256)) * 4 * 1024 * 8)


def test_connections_are_limited_and_the_others_are_told() -> None:
    with RegistryServer(connections=2) as server:
        held = [connect(server) for _ in range(2)]
        for each in held:
            each.sendall(SECOND)
            assert each.recv(100).startswith(b"HTTP/1.1 200 ")
        with connect(server) as third:
            assert answer(third).startswith(b"HTTP/1.1 503 ")
        held.pop().close()
        until(lambda: len(server._server._idle) <= 1)
        with asking(server) as ask:
            assert ask("GET", "/v2/").status == 200
        for each in held:
            each.close()


def test_as_many_connections_are_taken_as_there_may_be_descriptors_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64 + 2 * 2, 1 << 20))
    with RegistryServer() as server:
        held = [connect(server) for _ in range(2)]
        for each in held:
            each.sendall(SECOND)
            assert each.recv(100).startswith(b"HTTP/1.1 200 ")
        with connect(server) as third:
            assert answer(third).startswith(b"HTTP/1.1 503 ")
        for each in held:
            each.close()


def test_a_connection_for_which_no_descriptor_is_left_is_not_asked_for_without_a_pause(
    server: RegistryServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def accept(_: object) -> None:
        tried.append(1)
        raise OSError(errno.EMFILE, "too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(socketserver.TCPServer, "get_request", accept)
        with connect(server) as waiting:
            until(lambda: tried)
            began, before = time.monotonic(), len(tried)
            time.sleep(0.5)
            more, seconds = len(tried) - before, time.monotonic() - began
            patched.undo()
            waiting.sendall(SECOND)
            assert waiting.recv(100).startswith(b"HTTP/1.1 200 ")
    assert more <= seconds / 0.05 + 1


def test_what_is_remembered_of_a_request_has_an_end(server: RegistryServer) -> None:
    with asking(server) as ask:
        assert ask("GET", "/v2/" + "a" * 60_000).status == 404
    assert len(server.requests[-1].path) == 1000


def test_a_handshake_that_does_not_come_holds_up_nobody(
    tls: ssl.SSLContext, authority: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "HEAD_SECONDS", 4.0)  # of which those that come may take nearly all
    with RegistryServer(tls=tls) as server, connect(server) as silent, connect(server) as plain:
        plain.sendall(SECOND)
        certificate = str(authority / "cert.pem")
        for _ in range(3):
            assert requests.get(f"https://{server.address}/v2/", verify=certificate, timeout=20).ok
        assert b"HTTP/" not in answer(plain)
        assert answer(silent) == b""


def test_hundreds_of_connections_are_served_at_once(server: RegistryServer) -> None:
    push_image(server)
    held = [connect(server) for _ in range(300)]
    for connection in held:
        connection.sendall(
            b"GET /v2/team/app/manifests/latest HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
    for connection in held:
        assert answer(connection).startswith(b"HTTP/1.1 200 ")
        connection.close()


def test_the_server_ends_idle_connections_at_once_and_lets_transfers_end(server: RegistryServer) -> None:
    large = server.push_blob("a", bytes(64 * 1024 * 1024))
    idle, busy = connect(server), connect(server)
    idle.sendall(SECOND)
    assert idle.recv(65536).startswith(b"HTTP/1.1 200 ")
    busy.sendall(f"GET /v2/a/blobs/{large.digest} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    received = len(busy.recv(1000))
    closing = threading.Thread(target=server.close, args=(30.0,))
    closing.start()
    assert answer(idle) == b""
    received += len(answer(busy))
    closing.join(60)
    assert received > large.size
    idle.close()
    busy.close()


# Who is let in


def test_a_client_needs_a_certificate_of_the_authority(authority: Path, tls: ssl.SSLContext) -> None:
    certificate, key = str(authority / "cert.pem"), str(authority / "key.pem")
    tls.load_verify_locations(certificate)
    tls.verify_mode = ssl.CERT_REQUIRED
    with RegistryServer(tls=tls) as server:
        url = f"https://{server.address}/v2/"
        assert requests.get(url, verify=certificate, cert=(certificate, key), timeout=20).ok
        with pytest.raises(requests.ConnectionError):
            requests.get(url, verify=certificate, timeout=20)


def test_a_password_file_is_believed_and_followed(tmp_path: Path) -> None:
    file = tmp_path / "users"
    file.write_text(f"# people\n\nann:{ANN}\n")
    guard = htpasswd(file)
    right = ("ann", "hunter2")
    with RegistryServer(auth=guard) as server:
        url = f"http://{server.address}/v2/"

        def status(*given: str) -> int:
            return requests.get(url, auth=given if given else None, timeout=20).status_code  # type: ignore[arg-type]

        assert [status(*right) for _ in range(3)] == [200] * 3
        for wrong in (
            (),
            ("ann", "hunter3"),
            ("ann", ""),
            ("bob", "hunter2"),
            ("ann", "a\0b"),
            ("ann", "x" * 1000),
        ):
            assert status(*wrong) == 401
        file.write_text(f"bob:{ANN}\n")
        assert (status(*right), status("bob", "hunter2")) == (401, 200)
        file.write_text("bob:plain\n")
        assert status("bob", "hunter2") == 401
        file.unlink()
        assert status("bob", "hunter2") == 401


def test_who_is_known_does_not_wait_for_those_that_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried, let_go = threading.Event(), threading.Event()

    def slow(password: bytes, hashed: bytes) -> bool:
        if password == b"hunter2":
            return True
        tried.set()
        return not let_go.wait(20)

    monkeypatch.setattr(bcrypt, "checkpw", slow)
    (tmp_path / "users").write_text(f"ann:{ANN}\n")
    guard = htpasswd(tmp_path / "users")

    def ask(name: str, password: str) -> str | None:
        return guard(Access("a", "pull", "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()))

    assert ask("ann", "hunter2") is None
    attacker = threading.Thread(target=ask, args=("ann", "guess"))
    attacker.start()
    try:
        assert tried.wait(60)
        assert ask("ann", "hunter2") is None
        assert attacker.is_alive()
    finally:
        let_go.set()
        attacker.join()


def test_an_unknown_user_takes_as_long_as_a_known_one_and_does_not_get_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def check(password: bytes, hashed: bytes) -> bool:
        asked.append(hashed)
        return True

    monkeypatch.setattr(bcrypt, "checkpw", check)
    (tmp_path / "users").write_text(f"ann:{ANN}\n")
    guard = htpasswd(tmp_path / "users")
    for _ in range(2):
        assert guard(Access("a", "pull", "Basic " + base64.b64encode(b"bob:hunter2").decode()))
    assert asked == [ANN.encode()] * 2  # a hash as costly as that of a user


def test_a_password_file_that_cannot_be_used_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no password file"):
        htpasswd(tmp_path / "missing")
    file = tmp_path / "users"
    for weak in ("ann:plain", "ann:{SHA}2jmj7l5rSw0yVb/vlWAYkK/YBwk=", "ann:$apr1$x$y", "ann"):
        file.write_text(f"{weak}\n")
        with pytest.raises(InvalidArgument, match="line 1"):
            htpasswd(file)


def test_no_secret_is_in_what_a_server_shows(server: RegistryServer) -> None:
    access = Access("a", "pull", "Basic YW5uOnNlY3JldA==")
    assert "YW5u" not in repr(access)
    with asking(server) as ask:
        ask("GET", "/v2/", Authorization="Basic YW5uOnNlY3JldA==")
    assert "YW5u" not in repr(list(server.requests))


def test_without_a_domain_in_the_query_a_guard_is_told_none() -> None:
    seen: list[Any] = []

    def guard(access: Access) -> str | None:
        seen.append((access.repository, access.domain))
        return None

    with RegistryServer(auth=guard) as server, asking(server) as ask:
        ask("GET", "/v2/a/tags/list")
        ask("GET", "/v2/a/tags/list?ns=docker.io")
        ask("POST", f"/v2/b/blobs/uploads/?mount={DIGEST}&from=a&ns=docker.io", b"")
    assert seen == [("a", None), ("a", "docker.io"), ("b", "docker.io"), ("a", "docker.io")]


def test_a_blob_of_nobody_in_particular_is_not_mounted_where_somebody_guards() -> None:
    with RegistryServer(auth=lambda access: None) as server, asking(server) as ask:
        server.push_blob("private", BLOB)
        assert ask("POST", f"/v2/a/blobs/uploads/?mount={DIGEST}", b"").status == 202


def test_a_full_disk_is_said_and_the_upload_goes_on(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fits of a piece is there, and counts."""
    write = os.write

    def full(file: int, data: memoryview) -> int:
        if len(data) < 100:
            raise OSError(errno.ENOSPC, "no space left on device")
        return write(file, data[: len(data) // 2])

    with serve() as server, asking(server) as ask:
        location = start(ask)
        assert ask("PATCH", location, BLOB[:1000]).status == 202
        with monkeypatch.context() as patched:
            patched.setattr(os, "write", full)
            assert ask("PATCH", location, BLOB[1000:2000]).status == 507
        came = int(ask("GET", location).headers["range"].partition("-")[2]) + 1
        assert 1000 < came < 2000
        assert ask("PUT", f"{location}?digest={DIGEST}", BLOB[came:]).status == 201
        assert ask("GET", f"/v2/team/app/blobs/{DIGEST}").body == BLOB
