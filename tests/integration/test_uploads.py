"""One blob, one manifest on their way into registries that break off, refuse, lose and lie."""

from __future__ import annotations

import errno
import gc
import json
import os
import random
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from registries import Asked, Reply, ScriptedServer, over_tls, push_image

from faulty_proxy import BEFORE, WITHIN, FaultyProxy
from lamella import oci
from lamella.digest import digest_of
from lamella.errors import (
    Cancelled,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    LamellaError,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unsupported,
)
from lamella.reference import Reference
from lamella.registry import upload
from lamella.registry.client import RegistryClient
from lamella.registry.config import RegistryConfig, Timeouts
from lamella.registry.credentials import Credential
from lamella.registry.server import RegistryServer
from lamella.registry.server.folder import FolderStorage
from lamella.transfer.stored import FileReader
from waiting import until

BLOB = random.Random(1).randbytes(5 * 1024 * 1024 + 17)
DESCRIPTOR = oci.Descriptor(oci.OCI_LAYER_GZIP, digest_of(BLOB), len(BLOB))
QUICK = RegistryConfig(credentials={}, backoff=0.001, timeouts=Timeouts(5, 5))
ANN = Credential(username="ann", password="hunter2", source="a test")


class Opened:
    """The bytes of a blob from an offset on."""

    def __init__(self, data: bytes, offset: int) -> None:
        self.rest = memoryview(data)[offset:]

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def readinto(self, buffer: bytearray | memoryview) -> int:
        count = min(len(buffer), len(self.rest))
        memoryview(buffer)[:count] = self.rest[:count]
        self.rest = self.rest[count:]
        return count


def blob(offset: int) -> Opened:
    return Opened(BLOB, offset)


Source = Callable[[bytes], Callable[[int], Any]]
"""Gives what opens some bytes from an offset."""


@pytest.fixture(params=["memory", "file"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Source:
    """Blobs that come from somewhere, and those of the content store, which need not pass through here."""

    def opens(data: bytes) -> Callable[[int], Any]:
        path, descriptor = tmp_path / "blob", oci.Descriptor(oci.OCI_LAYER, digest_of(data), len(data))
        path.write_bytes(data)
        if request.param == "memory":
            return lambda offset: Opened(data, offset)
        return lambda offset: FileReader(path.open("rb"), descriptor, offset, verified=True)

    return opens


class Uploads:
    """A registry of upload sessions alone. ``before`` may answer in its place; it asks again where the answer is None."""

    def __init__(self, before: Callable[[Asked], Reply | None] = lambda _: None) -> None:
        self.before = before
        self.sessions: dict[str, bytearray] = {}
        self.blobs: dict[str, bytes] = {}

    def __call__(self, asked: Asked) -> Reply:
        reply = self.before(asked)
        return self.answer(asked) if reply is None else reply

    def answer(self, asked: Asked) -> Reply:
        url = urlsplit(asked.path)
        name = url.path.rpartition("/")[2]
        if asked.method == "HEAD":
            data = self.blobs.get(name)
            return Reply(404) if data is None else Reply(200, {"Content-Length": str(len(data))})
        if asked.method == "POST":
            name = f"session-{len(self.sessions)}"
            self.sessions[name] = bytearray()
            return self.stand(name, 202)
        session = self.sessions.get(name)
        if session is None:
            return Reply(404, {}, b'{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN","message":"no such session"}]}')
        if asked.method == "GET":
            return self.stand(name, 204)
        begin = re.match(r"([0-9]+)-", asked.headers.get("content-range", ""))
        if begin and int(begin[1]) != len(session):
            return self.stand(name, 416)
        session += asked.body
        if asked.method == "PATCH":
            return self.stand(name, 202)
        assert "_state" in parse_qs(url.query)
        digest = parse_qs(url.query)["digest"][0]
        if digest_of(bytes(session)) != digest:
            return Reply(400, {}, b'{"errors":[{"code":"DIGEST_INVALID","message":"another digest"}]}')
        self.blobs[digest] = bytes(session)
        return Reply(201, {"Docker-Content-Digest": digest, "Location": f"/v2/team/app/blobs/{digest}"})

    def stand(self, name: str, status: int) -> Reply:
        count = len(self.sessions[name])
        headers = {
            "Location": f"/v2/team/app/blobs/uploads/{name}?_state=a%2Bb",
            "Range": f"0-{max(count - 1, 0)}",
        }
        return Reply(status, headers)


@pytest.fixture
def client() -> Iterator[RegistryClient]:
    with RegistryClient(QUICK) as opened:
        yield opened


def at(server: Any, rest: str = "team/app") -> Reference:
    return Reference.parse(f"{server.address}/{rest}")


def asked_of(server: ScriptedServer) -> list[tuple[str, int]]:
    return [(asked.method, len(asked.body)) for asked in server.asked]


def test_the_whole_goes_in_one_request(scripted: Any, client: RegistryClient, source: Source) -> None:
    registry = Uploads()
    server = scripted(registry)
    told: list[int] = []
    assert client.put_blob(at(server), DESCRIPTOR, source(BLOB), told.append) == "sent"
    assert registry.blobs == {DESCRIPTOR.digest: BLOB}
    assert asked_of(server) == [("POST", 0), ("PUT", len(BLOB))]
    assert told == sorted(told)
    assert told[-1] == len(BLOB)


def test_an_empty_blob_is_sent(scripted: Any, client: RegistryClient) -> None:
    registry = Uploads()
    empty = oci.Descriptor(oci.OCI_LAYER, digest_of(b""), 0)
    client.put_blob(at(scripted(registry)), empty, lambda offset: Opened(b"", offset))
    assert registry.blobs == {empty.digest: b""}


def test_a_file_goes_out_also_where_the_kernel_cannot_send_it(
    scripted: Any, client: RegistryClient, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> int:
        raise OSError(errno.EINVAL, "not from this file system")

    monkeypatch.setattr(os, "sendfile", refuse)
    registry = Uploads()
    client.put_blob(at(scripted(registry)), DESCRIPTOR, source(BLOB))
    assert registry.blobs == {DESCRIPTOR.digest: BLOB}


def test_over_tls_a_file_goes_out_encrypted(
    source: Source, tls: ssl.SSLContext, authority: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority / "cert.pem"))
    with RegistryServer(tls=tls) as server:
        settings = RegistryConfig(credentials={}, **over_tls(tmp_path / "hosts", server.address))
        with RegistryClient(settings) as client:
            client.put_blob(at(server), DESCRIPTOR, source(BLOB))
        with server.storage.repository("team/app").open_blob(DESCRIPTOR.digest) as stored:
            assert stored.read() == BLOB


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_file_that_is_shorter_than_its_blob_is_data_loss(
    when: str, scripted: Any, client: RegistryClient, tmp_path: Path
) -> None:
    path = tmp_path / "blob"
    path.write_bytes(BLOB if when == "meanwhile" else BLOB[:-1])

    def opened(offset: int) -> FileReader:
        return FileReader(path.open("rb"), DESCRIPTOR, offset, verified=True)

    registry = Uploads()
    with pytest.raises(DataLoss, match="ends"):
        client.put_blob(at(scripted(registry)), DESCRIPTOR, opened, lambda _: os.truncate(path, 2 << 20))
    assert registry.blobs == {}


def once(fault: str) -> Callable[..., tuple[str, random.Random]]:
    """Give the plan of a proxy that breaks the first PUT, and nothing else."""
    faults = [fault]
    return lambda method, *_: ((faults.pop() if method == "PUT" and faults else ""), random.Random(1))


@pytest.mark.parametrize("fault", ["cut", "truncated"])
def test_what_breaks_off_goes_on_where_it_stopped(fault: str, source: Source) -> None:
    half = len(BLOB) // 2
    with (
        RegistryServer() as server,
        FaultyProxy(server.address, stretch=(half, half)) as proxy,
        RegistryClient(QUICK) as client,
    ):
        assert isinstance(server.storage, FolderStorage)
        uploads, breaks = server.storage.uploads, once(fault)

        def plan(method: str, *_: Any) -> tuple[str, random.Random]:
            if method == "GET":  # where it stands: once the registry has taken all that came
                until(lambda: [upload.path.stat().st_size for upload in uploads.values()] == [half])
            return breaks(method)

        proxy.plan = plan  # type: ignore[method-assign]
        assert client.put_blob(at(proxy), DESCRIPTOR, source(BLOB)) == "sent"
        resumed = [str(asked.range) for asked in server.requests if asked.method == "PATCH"]
        assert resumed
        assert all(0 < int(extent.partition("-")[0]) <= half for extent in resumed)
        with server.storage.repository("team/app").open_blob(DESCRIPTOR.digest) as stored:
            assert stored.read() == BLOB
    assert proxy.met == {fault: 1}


@pytest.mark.parametrize("fault", [*BEFORE, *WITHIN, "lost"])
def test_what_is_open_of_a_source_is_closed_before_it_is_opened_again(fault: str) -> None:
    """By the sender: a source may be a connection, which the garbage collector would close some time later."""
    half = len(BLOB) // 2
    still_open: set[Opened] = set()

    class Noted(Opened):
        def __init__(self, offset: int) -> None:
            assert not still_open
            still_open.add(self)
            super().__init__(BLOB, offset)

        def __exit__(self, *_: object) -> None:
            still_open.remove(self)

    impatient = RegistryConfig(credentials={}, backoff=0.001, timeouts=Timeouts(5, 1))
    with (
        RegistryServer() as server,
        FaultyProxy(server.address, stretch=(half, half)) as proxy,
        RegistryClient(impatient) as client,
    ):
        proxy.plan = once(fault)  # type: ignore[method-assign]
        gc.disable()
        try:
            assert client.put_blob(at(proxy), DESCRIPTOR, Noted) == "sent"
            assert not still_open
        finally:
            gc.enable()
    assert proxy.met == {fault: 1}


def test_an_answer_that_is_lost_is_looked_up() -> None:
    with (
        RegistryServer() as server,
        FaultyProxy(server.address) as proxy,
        RegistryClient(QUICK) as client,
    ):
        proxy.plan = once("lost")  # type: ignore[method-assign]
        assert client.put_blob(at(proxy), DESCRIPTOR, blob) == "sent"
        assert [asked.method for asked in server.requests] == ["POST", "PUT", "HEAD"]


def test_what_is_too_large_for_one_request_goes_in_pieces(
    scripted: Any, client: RegistryClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 3 * 1024 * 1024
    monkeypatch.setattr(upload, "CHUNK", 4 * 1024 * 1024)
    registry = Uploads(lambda asked: Reply(413) if len(asked.body) > most else None)
    server = scripted(registry)
    client.put_blob(at(server), DESCRIPTOR, blob)
    assert registry.blobs == {DESCRIPTOR.digest: BLOB}
    taken = [size for _, size in asked_of(server) if 0 < size <= most]
    assert sum(taken) == len(BLOB)
    assert asked_of(server)[-1] == ("PUT", 0)


def test_pieces_are_as_long_as_the_registry_wants_them(scripted: Any, client: RegistryClient) -> None:
    least = 2 * 1024 * 1024

    def before(asked: Asked) -> Reply | None:
        if asked.method == "PUT" and asked.body:
            return Reply(413)
        if asked.method == "POST":
            reply = registry.answer(asked)
            return reply._replace(headers={**reply.headers, "OCI-Chunk-Min-Length": str(least)})
        return None

    registry = Uploads(before)
    server = scripted(registry)
    client.put_blob(at(server), DESCRIPTOR, blob)
    patched = [size for method, size in asked_of(server) if method == "PATCH"]
    assert all(size >= least for size in patched[:-1])
    assert registry.blobs == {DESCRIPTOR.digest: BLOB}


def test_what_is_too_large_in_any_piece_is_an_error(scripted: Any, client: RegistryClient) -> None:
    server = scripted(Uploads(lambda asked: Reply(413) if asked.body else None))
    with pytest.raises(ResourceExhausted, match="413"):
        client.put_blob(at(server), DESCRIPTOR, blob)
    assert len(server.asked) < 20


@pytest.mark.parametrize("code", [404, 400, 410])
def test_a_session_that_is_gone_gives_way_to_a_new_one(
    code: int, scripted: Any, client: RegistryClient
) -> None:
    gone = b'{"errors":[{"code":"BLOB_UPLOAD_INVALID","message":"expired"}]}'
    answers = [Reply(code, {}, gone)]
    registry = Uploads(lambda asked: answers.pop() if asked.method == "PUT" and answers else None)
    server = scripted(registry)
    client.put_blob(at(server), DESCRIPTOR, blob)
    assert registry.blobs == {DESCRIPTOR.digest: BLOB}
    assert len(registry.sessions) == 2


def test_where_a_break_takes_the_pieces_that_had_come_the_whole_is_sent_again(
    scripted: Any, client: RegistryClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at docker-registry. In pieces it would have to get through without one break, the less likely the more there are."""
    monkeypatch.setattr(upload, "CHUNK", 2 * 1024 * 1024)
    tries: list[str] = []

    def breaks(asked: Asked) -> Reply | None:
        if asked.method in {"PUT", "PATCH"}:
            tries.append(f"{asked.method} {asked.headers.get('content-range', 'whole')}")
        if tries == ["PUT whole"] or tries[-1:] == ["PATCH 2097152-4194303"]:
            uploads.sessions.clear()
            if asked.method in {"PUT", "PATCH"}:
                raise ConnectionResetError
        return None

    uploads = Uploads(breaks)
    server = scripted(uploads)
    assert client.put_blob(Reference.parse(f"{server.address}/team/app"), DESCRIPTOR, blob) == "sent"
    assert uploads.blobs[DESCRIPTOR.digest] == BLOB
    assert tries == ["PUT whole", "PATCH 0-2097151", "PATCH 2097152-4194303", "PUT whole"]


def test_a_registry_that_is_busy_is_asked_again(scripted: Any, client: RegistryClient) -> None:
    answers = [Reply(503), Reply(429, {"Retry-After": "0"}), Reply(500)]

    def before(asked: Asked) -> Reply | None:
        return (
            answers.pop()
            if asked.method in {"PUT", "POST"} and answers and not asked.path.endswith("0")
            else None
        )

    registry = Uploads(before)
    client.put_blob(at(scripted(registry)), DESCRIPTOR, blob)
    assert registry.blobs == {DESCRIPTOR.digest: BLOB}


def test_web_pages_in_place_of_answers_are_closed_and_asked_past(
    scripted: Any, client: RegistryClient
) -> None:
    """Of a network that wants a login first. That no answer stays open is looked at after each test."""
    wanted = {"POST", "PUT", "HEAD", "GET"}

    def before(asked: Asked) -> Reply | None:
        if asked.method not in wanted:
            return None
        wanted.remove(asked.method)
        return Reply(200, {"Content-Type": "text/html; charset=utf-8"}, b"<!DOCTYPE html>" * 1000)

    registry = Uploads(before)
    assert client.put_blob(at(scripted(registry)), DESCRIPTOR, blob) == "sent"
    assert registry.blobs == {DESCRIPTOR.digest: BLOB}
    assert not wanted


def test_416_is_answered_by_asking_where_it_stands(scripted: Any, client: RegistryClient) -> None:
    sneaked = []

    def before(asked: Asked) -> Reply | None:
        if asked.method == "PUT" and asked.body:
            return Reply(413)
        if asked.method == "PATCH" and not sneaked:  # as if the answer to an earlier try had been lost
            sneaked.append(True)
            registry.sessions["session-0"] += asked.body[:1000]
        return None

    registry = Uploads(before)
    server = scripted(registry)
    client.put_blob(at(server), DESCRIPTOR, blob)
    assert registry.blobs == {DESCRIPTOR.digest: BLOB}
    assert "GET" in {asked.method for asked in server.asked}


# Hostile registries


def nothing_goes_on_for_ever(server: ScriptedServer) -> None:
    assert len(server.asked) < 100


@pytest.mark.parametrize("said", ["0-0", "0-99", None, "0-18446744073709551615", "garbage"])
def test_a_registry_that_takes_and_keeps_nothing_comes_to_an_end(
    said: str | None, scripted: Any, client: RegistryClient
) -> None:
    headers = {} if said is None else {"Range": said}

    def before(asked: Asked) -> Reply | None:
        if asked.method == "PUT" and asked.body:
            return Reply(413)
        if asked.method in {"PUT", "PATCH", "GET"}:
            return Reply(202, {"Location": "/v2/team/app/blobs/uploads/session-0?_state=1", **headers})
        return None

    server = scripted(Uploads(before))
    with pytest.raises(LamellaError):
        client.put_blob(at(server), DESCRIPTOR, blob)
    nothing_goes_on_for_ever(server)


def test_a_registry_that_goes_backwards_comes_to_an_end(scripted: Any, client: RegistryClient) -> None:
    stand = [4_000_000]

    def before(asked: Asked) -> Reply | None:
        if asked.method == "PUT" and asked.body:
            return Reply(413)
        if asked.method in {"PATCH", "GET"}:
            stand[0] -= 200_000
            return Reply(
                202, {"Location": "/v2/x/blobs/uploads/y?_state=1", "Range": f"0-{max(stand[0], 1)}"}
            )
        return None

    server = scripted(Uploads(before))
    with pytest.raises(LamellaError):
        client.put_blob(at(server), DESCRIPTOR, blob)
    nothing_goes_on_for_ever(server)


def test_a_registry_that_stores_it_under_another_digest_is_data_loss(
    scripted: Any, client: RegistryClient
) -> None:
    def before(asked: Asked) -> Reply | None:
        return Reply(201, {"Docker-Content-Digest": digest_of(b"other")}) if asked.method == "PUT" else None

    with pytest.raises(DataLoss, match="another digest"):
        client.put_blob(at(scripted(Uploads(before))), DESCRIPTOR, blob)


def test_a_registry_that_calls_it_wrong_is_believed_after_one_more_try(
    scripted: Any, client: RegistryClient
) -> None:
    wrong = Reply(400, {}, b'{"errors":[{"code":"DIGEST_INVALID","message":"no"}]}')
    registry = Uploads(lambda asked: wrong if asked.method == "PUT" else None)
    with pytest.raises(DataLoss, match="DIGEST_INVALID"):
        client.put_blob(at(scripted(registry)), DESCRIPTOR, blob)
    assert len(registry.sessions) == 2


def test_a_source_with_other_bytes_is_named_and_never_finished(scripted: Any, client: RegistryClient) -> None:
    server = scripted(Uploads())
    wrong = BLOB[:-1] + b"?"
    with pytest.raises(DataLoss, match="damaged at its source"):
        client.put_blob(at(server), DESCRIPTOR, lambda offset: Opened(wrong, offset))
    assert all(len(asked.body) < len(BLOB) for asked in server.asked)


def test_what_the_source_raises_comes_out_as_it_is(scripted: Any, client: RegistryClient) -> None:
    class Failing(Opened):
        def readinto(self, buffer: bytearray | memoryview) -> int:
            raise Unavailable("the source is down")

    server = scripted(Uploads())
    with pytest.raises(Unavailable, match="the source is down"):
        client.put_blob(at(server), DESCRIPTOR, lambda offset: Failing(BLOB, offset))
    assert len(server.asked) <= 2


def test_credentials_stay_at_home_when_the_upload_goes_elsewhere(scripted: Any) -> None:
    registry = Uploads()
    elsewhere = scripted(registry)

    def home(asked: Asked) -> Reply:
        if asked.authorization is None:
            return Reply(401, {"WWW-Authenticate": 'Basic realm="test"'})
        reply = registry.answer(asked)
        there = f"http://{elsewhere.address}{reply.headers['Location']}&signature=secret"
        return reply._replace(headers={**reply.headers, "Location": there})

    server = scripted(home)
    with RegistryClient(RegistryConfig(credentials={server.address: ANN}, backoff=0.001)) as client:
        client.put_blob(at(server), DESCRIPTOR, blob)
    assert registry.blobs == {DESCRIPTOR.digest: BLOB}
    assert server.asked[-1].authorization == ANN.basic
    assert [asked.authorization for asked in elsewhere.asked] == [None]
    assert parse_qs(urlsplit(elsewhere.asked[0].path).query)["signature"] == ["secret"]


def test_a_redirected_upload_is_sent_again_without_credentials(scripted: Any) -> None:
    registry = Uploads()
    elsewhere = scripted(registry)

    def home(asked: Asked) -> Reply:
        if asked.authorization is None:
            return Reply(401, {"WWW-Authenticate": 'Basic realm="test"'})
        if asked.method == "PUT":
            return Reply(307, {"Location": f"http://{elsewhere.address}{asked.path}"})
        return registry.answer(asked)

    server = scripted(home)
    with RegistryClient(RegistryConfig(credentials={server.address: ANN}, backoff=0.001)) as client:
        client.put_blob(at(server), DESCRIPTOR, blob)
    assert registry.blobs == {DESCRIPTOR.digest: BLOB}
    assert [asked.authorization for asked in elsewhere.asked] == [None]


@pytest.mark.parametrize(
    ("location", "error"),
    [
        ("http://ann:hunter2@127.0.0.1:9/upload", PermissionDenied),
        ("http://192.0.2.1/upload", PermissionDenied),
        ("ftp://127.0.0.1/upload", PermissionDenied),
        ("http://[::1/upload", LamellaError),
        ("", Unavailable),
    ],
)
def test_addresses_that_uploads_must_not_go_to_are_refused(
    location: str, error: type[LamellaError], scripted: Any, client: RegistryClient
) -> None:
    server = scripted(
        Uploads(lambda asked: Reply(202, {"Location": location}) if asked.method == "POST" else None)
    )
    with pytest.raises(error) as raised:
        client.put_blob(at(server), DESCRIPTOR, blob)
    assert "hunter2" not in str(raised.value) + str(raised.value.hint)
    nothing_goes_on_for_ever(server)


@pytest.mark.parametrize("status", [301, 302, 303])
def test_a_redirect_that_would_make_it_a_get_is_refused(
    status: int, scripted: Any, client: RegistryClient
) -> None:
    server = scripted(lambda _: Reply(status, {"Location": "/elsewhere"}))
    with pytest.raises(Unavailable, match=f"redirects POST by {status}"):
        client.put_blob(at(server), DESCRIPTOR, blob)


def test_redirects_come_to_an_end(scripted: Any, client: RegistryClient) -> None:
    server = scripted(Uploads(lambda asked: Reply(307, {"Location": asked.path}) if asked.body else None))
    with pytest.raises(Unavailable, match="redirects more than"):
        client.put_blob(at(server), DESCRIPTOR, blob)
    nothing_goes_on_for_ever(server)


def test_a_refusal_quotes_no_secret(scripted: Any) -> None:
    def script(asked: Asked) -> Reply:
        if asked.authorization is None:
            return Reply(401, {"WWW-Authenticate": 'Basic realm="test"'})
        said = json.dumps({"errors": [{"code": "DENIED", "message": f"{asked.authorization} hunter2"}]})
        return Reply(403, {}, said.encode())

    server = scripted(script)
    with RegistryClient(RegistryConfig(credentials={server.address: ANN})) as client:
        with pytest.raises(PermissionDenied) as raised:
            client.put_blob(at(server), DESCRIPTOR, blob)
        with pytest.raises(PermissionDenied) as also:
            client.put_manifest(at(server), MANIFEST_DESCRIPTOR, MANIFEST, ["1"])
    for error in (raised, also):
        text = str(error.value) + str(error.value.hint)
        assert "hunter2" not in text
        assert ANN.basic.removeprefix("Basic ") not in text


# Early answers


@contextmanager
def refusing(
    status: str, *, body: bytes = b"", close: bool = False, tls: ssl.SSLContext | None = None
) -> Iterator[str]:
    """Listen as a registry that answers an upload before it has read it, and keeps the connection or closes it."""
    done = threading.Event()

    def serve(accepted: socket.socket) -> None:
        with (
            suppress(OSError),
            tls.wrap_socket(accepted, server_side=True) if tls else accepted as connection,
        ):
            connection.settimeout(10)
            while not done.is_set():
                head = b""
                while b"\r\n\r\n" not in head:
                    piece = connection.recv(65536)
                    if not piece:
                        return
                    head += piece
                if head.startswith(b"POST"):
                    connection.sendall(
                        b"HTTP/1.1 202 Accepted\r\nLocation: /v2/team/app/blobs/uploads/1?_state=1\r\nContent-Length: 0\r\n\r\n"
                    )
                    continue
                if head.startswith((b"GET", b"HEAD")):
                    connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                    continue
                if status:
                    connection.sendall(
                        f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
                    )
                if close:
                    return
                if status and not tls:
                    connection.shutdown(socket.SHUT_WR)
                done.wait(10)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threads = []

        def accept() -> None:
            with suppress(OSError):
                while True:
                    threads.append(threading.Thread(target=serve, args=(listener.accept()[0],)))
                    threads[-1].start()

        threads.append(threading.Thread(target=accept))
        threads[0].start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            done.set()
            listener.shutdown(socket.SHUT_RDWR)
    for thread in threads:
        thread.join()


LARGE = bytes(32 * 1024 * 1024)
LARGE_DESCRIPTOR = oci.Descriptor(oci.OCI_LAYER, digest_of(LARGE), len(LARGE))
DENIED = b'{"errors":[{"code":"DENIED","message":"not for you"}]}'


@pytest.mark.parametrize(
    ("status", "error"),
    [
        ("401 Unauthorized", Unauthenticated),
        ("403 Forbidden", PermissionDenied),
        ("413 Too Large", ResourceExhausted),
        ("507 Full", ResourceExhausted),
    ],
)
@pytest.mark.parametrize("close", [False, True])
def test_a_refusal_before_the_end_of_the_body_is_heard(
    status: str, error: type[LamellaError], close: bool, source: Source
) -> None:
    settings = RegistryConfig(credentials={}, backoff=0.001, timeouts=Timeouts(5, 2), attempts=3)
    with (
        refusing(status, body=DENIED, close=close) as address,
        RegistryClient(settings) as client,
        pytest.raises(error, match=status[:3]),
    ):
        client.put_blob(Reference.parse(f"{address}/team/app"), LARGE_DESCRIPTOR, source(LARGE))


@pytest.mark.parametrize("close", [False, True])
def test_over_tls_a_refusal_before_the_end_of_the_body_is_heard_too(
    close: bool,
    tls: ssl.SSLContext,
    authority: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    source: Source,
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority / "cert.pem"))
    with refusing("403 Forbidden", body=DENIED, close=close, tls=tls) as address:
        settings = RegistryConfig(
            credentials={},
            backoff=0.001,
            timeouts=Timeouts(5, 1),
            attempts=3,
            **over_tls(tmp_path / "hosts", address),
        )
        with RegistryClient(settings) as client, pytest.raises(PermissionDenied, match="403"):
            client.put_blob(Reference.parse(f"{address}/team/app"), LARGE_DESCRIPTOR, source(LARGE))


def test_a_registry_that_takes_nothing_and_says_nothing_is_silent(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it would get to put away what it has received: it has not received it."""
    monkeypatch.setattr(upload, "SETTLING_RATE", 1)
    settings = RegistryConfig(credentials={}, backoff=0.001, timeouts=Timeouts(5, 0.2), attempts=2)
    small = 6 * 1024 * 1024
    with (
        refusing("") as address,
        RegistryClient(settings) as client,
        pytest.raises(Unavailable, match="sent nothing"),
    ):
        client.put_blob(
            Reference.parse(f"{address}/team/app"),
            oci.Descriptor(oci.OCI_LAYER, digest_of(LARGE[:small]), small),
            source(LARGE[:small]),
        )


def test_an_interrupted_upload_ends_at_once(client: RegistryClient, source: Source) -> None:
    failed: list[BaseException] = []
    started = threading.Event()

    def send() -> None:
        try:
            client.put_blob(
                Reference.parse(f"{address}/team/app"),
                LARGE_DESCRIPTOR,
                source(LARGE),
                lambda _: started.set(),
            )
        except BaseException as error:
            failed.append(error)

    with refusing("") as address:
        thread = threading.Thread(target=send)
        thread.start()
        assert started.wait(60)
        time.sleep(0.05)
        client.interrupt()
        thread.join(60)
        assert not thread.is_alive()
    assert [type(error) for error in failed] == [Cancelled]


# Manifests

CONFIG = oci.Descriptor(oci.OCI_CONFIG, digest_of(b"{}"), 2)
MANIFEST = oci.encode(oci.Manifest(media_type=oci.OCI_MANIFEST, config=CONFIG, layers=[]))
MANIFEST_DESCRIPTOR = oci.Descriptor(oci.OCI_MANIFEST, digest_of(MANIFEST), len(MANIFEST))


def refused(code: str, status: int = 400) -> Reply:
    return Reply(status, {}, json.dumps({"errors": [{"code": code, "message": "no"}]}).encode())


@pytest.mark.parametrize(
    ("reply", "error", "hint"),
    [
        (refused("MANIFEST_INVALID"), InvalidArgument, "Docker's formats"),
        (refused("MANIFEST_BLOB_UNKNOWN"), NotFound, "does not have"),
        (refused("MANIFEST_BLOB_UNKNOWN", 404), NotFound, "does not have"),
        (refused("UNSUPPORTED", 405), Unsupported, "read-only"),
        (refused("TAG_IMMUTABLE", 409), FailedPrecondition, "immutable"),
        (refused("DENIED: adding it would exceed the quota", 403), ResourceExhausted, "takes no more"),
        (refused("NAME_UNKNOWN", 404), NotFound, "made first"),
    ],
)
def test_why_a_manifest_is_refused_is_told(
    reply: Reply, error: type[LamellaError], hint: str, scripted: Any, client: RegistryClient
) -> None:
    client.has_manifest(at(answering := scripted(lambda _: Reply(404))), MANIFEST_DESCRIPTOR)
    answering.script = lambda _: reply
    with pytest.raises(error) as raised:
        client.put_manifest(at(answering), MANIFEST_DESCRIPTOR, MANIFEST, ["1"])
    assert hint in (raised.value.hint or "")


def test_a_manifest_that_is_stored_under_another_digest_is_data_loss(
    scripted: Any, client: RegistryClient
) -> None:
    server = scripted(lambda _: Reply(201, {"Docker-Content-Digest": digest_of(b"other")}))
    with pytest.raises(DataLoss, match="another digest"):
        client.put_manifest(at(server), MANIFEST_DESCRIPTOR, MANIFEST, ["1"])


def test_tags_that_one_request_did_not_set_are_set_one_by_one(scripted: Any, client: RegistryClient) -> None:
    server = scripted(lambda asked: Reply(201, {"OCI-Tag": "a"} if "?tag=" in asked.path else {}))
    client.put_manifest(at(server), MANIFEST_DESCRIPTOR, MANIFEST, ["a", "b", "c"])
    assert [asked.path.rpartition("/")[2] for asked in server.asked] == [
        f"{MANIFEST_DESCRIPTOR.digest}?tag=a&tag=b&tag=c",
        "b",
        "c",
    ]


def test_a_manifest_of_another_algorithm_is_stored_under_its_digest(client: RegistryClient) -> None:
    digest = digest_of(MANIFEST, "sha512")
    with RegistryServer(sparse=True) as server:
        client.put_manifest(
            at(server), oci.Descriptor(oci.OCI_MANIFEST, digest, len(MANIFEST)), MANIFEST, ["1"]
        )
        assert client.resolve(at(server, f"team/app@{digest}"))[1] == MANIFEST
        assert client.resolve(at(server, "team/app:1"))[1] == MANIFEST


class WithoutReferrers:
    """A registry that stores manifests by tag and digest, and knows nothing of subjects."""

    def __init__(self) -> None:
        self.manifests: dict[str, bytes] = {}

    def __call__(self, asked: Asked) -> Reply:
        name = urlsplit(asked.path).path.rpartition("/")[2]
        if "/referrers/" in asked.path:
            return Reply(404)
        if asked.method == "PUT":
            self.manifests[name] = self.manifests[digest_of(asked.body)] = asked.body
            return Reply(201, {"Docker-Content-Digest": digest_of(asked.body)})
        if asked.method == "DELETE":
            return Reply(202 if self.manifests.pop(name, None) else 404)
        data = self.manifests.get(name)
        if data is None:
            return Reply(404)
        media_type = json.loads(data)["mediaType"]
        return Reply(200, {"Content-Type": media_type, "Docker-Content-Digest": digest_of(data)}, data)


def signature(number: int) -> tuple[oci.Descriptor, bytes]:
    data = oci.encode(
        oci.Manifest(
            media_type=oci.OCI_MANIFEST,
            config=CONFIG,
            layers=[],
            subject=MANIFEST_DESCRIPTOR,
            artifact_type="test/signature",
            annotations={"number": str(number)},
        )
    )
    return oci.Descriptor(oci.OCI_MANIFEST, digest_of(data), len(data)), data


def test_where_the_registry_keeps_no_list_of_referrers_it_is_kept_for_it(
    scripted: Any, client: RegistryClient
) -> None:
    registry = WithoutReferrers()
    server = scripted(registry)
    tag = MANIFEST_DESCRIPTOR.digest.replace(":", "-")
    other = {"mediaType": oci.OCI_MANIFEST, "digest": digest_of(b"x"), "size": 1, "unknown": [1]}
    registry.manifests[tag] = json.dumps(
        {"schemaVersion": 2, "mediaType": oci.OCI_INDEX, "manifests": [other], "annotations": {"a": "b"}}
    ).encode()
    one, two = signature(1), signature(2)
    for descriptor, data in (one, two, one):
        client.put_manifest(at(server), descriptor, data)
    kept = json.loads(registry.manifests[tag])
    assert kept["manifests"][0] == other
    assert kept["annotations"] == {"a": "b"}
    assert [entry["digest"] for entry in kept["manifests"][1:]] == [one[0].digest, two[0].digest]
    assert kept["manifests"][1]["artifactType"] == "test/signature"
    assert kept["manifests"][1]["annotations"] == {"number": "1"}
    listed = client.referrers(at(server), MANIFEST_DESCRIPTOR.digest, artifact_type="test/signature")
    assert [found.digest for found in listed] == [one[0].digest, two[0].digest]
    client.delete(at(server, f"team/app@{one[0].digest}"))
    kept = json.loads(registry.manifests[tag])
    assert [entry["digest"] for entry in kept["manifests"]] == [other["digest"], two[0].digest]


def test_a_list_that_another_writes_at_the_same_time_gets_both_entries(
    scripted: Any, client: RegistryClient
) -> None:
    registry = WithoutReferrers()
    tag = MANIFEST_DESCRIPTOR.digest.replace(":", "-")
    one, two = signature(1), signature(2)
    overwritten = []

    def script(asked: Asked) -> Reply:
        reply = registry(asked)
        if asked.method == "PUT" and asked.path.endswith(tag) and not overwritten:
            overwritten.append(True)  # by one that read the list before
            entry = json.loads(oci.encode(two[0]))
            registry.manifests[tag] = json.dumps(
                {"schemaVersion": 2, "mediaType": oci.OCI_INDEX, "manifests": [entry]}
            ).encode()
        return reply

    client.put_manifest(at(scripted(script)), *one)
    assert {entry["digest"] for entry in json.loads(registry.manifests[tag])["manifests"]} == {
        one[0].digest,
        two[0].digest,
    }


def test_a_registry_that_forgets_the_list_comes_to_an_end(scripted: Any, client: RegistryClient) -> None:
    def script(asked: Asked) -> Reply:
        return Reply(201) if asked.method == "PUT" else Reply(404)

    server = scripted(script)
    with pytest.raises(FailedPrecondition):
        client.put_manifest(at(server), *signature(1))
    nothing_goes_on_for_ever(server)


# Tags, deletion


def test_tags_come_page_by_page(client: RegistryClient, monkeypatch: pytest.MonkeyPatch) -> None:
    from lamella.registry import client as module

    monkeypatch.setattr(module, "PAGE", 3)
    with RegistryServer(sparse=True) as server:
        for number in range(10):
            server.push_manifest("team/app", f"v{number}", MANIFEST)
        assert client.tags(at(server)) == [f"v{number}" for number in range(10)]
        assert sum("tags/list" in asked.path for asked in server.requests) == 4


def test_tags_that_have_no_end_are_an_error(scripted: Any, client: RegistryClient) -> None:
    page = Reply(200, {"Link": '</v2/team/app/tags/list?n=1000>; rel="next"'}, b'{"tags":["a"]}')
    server = scripted(lambda _: page)
    with pytest.raises(Unavailable, match="come to an end"):
        client.tags(at(server))
    nothing_goes_on_for_ever(server)


def test_a_manifest_is_deleted_by_digest_and_a_tag_by_name(client: RegistryClient) -> None:
    with RegistryServer() as server:
        pushed = push_image(server)
        client.delete(at(server, "team/app:latest"))
        assert client.tags(at(server)) == []
        assert client.has_manifest(at(server), pushed)
        client.delete(at(server, f"team/app@{pushed.digest}"))
        assert not client.has_manifest(at(server), pushed)
        with pytest.raises(NotFound):
            client.delete(at(server, f"team/app@{pushed.digest}"))
