"""The registry client against the in-process registry and against servers that break in all the ways of networks."""

from __future__ import annotations

import base64
import gzip
import json
import os
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from registries import Asked, Reply, push_image, read_all
from urllib3.connection import HTTPConnection

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
from lamella.registry.client import RegistryClient
from lamella.registry.config import RegistryConfig, Timeouts
from lamella.registry.patience import Patience
from lamella.registry.server import RegistryServer

CONFIG = oci.Descriptor(oci.OCI_CONFIG, digest_of(b"{}"), 2)
MANIFEST = oci.encode(oci.Manifest(media_type=oci.OCI_MANIFEST, config=CONFIG, layers=[]))
BLOB = bytes(range(256)) * 4096
BLOB_DESCRIPTOR = oci.Descriptor(oci.OCI_LAYER_GZIP, digest_of(BLOB), len(BLOB))


@pytest.fixture
def registry() -> Iterator[RegistryServer]:
    with RegistryServer() as server:
        yield server


@pytest.fixture
def client() -> Iterator[RegistryClient]:
    with RegistryClient(RegistryConfig(credentials={}, backoff=0.001, timeouts=Timeouts(5, 5))) as opened:
        yield opened


def reference(server: Any, rest: str = "team/app") -> Reference:
    return Reference.parse(f"{server.address}/{rest}")


def manifest_reply(data: bytes = MANIFEST, **headers: str) -> Reply:
    return Reply(
        200, {"Content-Type": oci.OCI_MANIFEST, **{k.replace("_", "-"): v for k, v in headers.items()}}, data
    )


# Resolving


def test_a_tag_is_resolved_in_one_request(registry: RegistryServer, client: RegistryClient) -> None:
    pushed = push_image(registry)
    descriptor, data = client.resolve(reference(registry))
    assert descriptor == pushed
    assert digest_of(data) == pushed.digest
    assert [(r.method, r.path) for r in registry.requests] == [("GET", "/v2/team/app/manifests/latest")]


def test_what_is_known_costs_one_head_and_no_body(registry: RegistryServer, client: RegistryClient) -> None:
    pushed = push_image(registry)
    assert client.resolve(reference(registry), known=lambda digest: digest == pushed.digest) == (pushed, None)
    assert [(r.method, r.path) for r in registry.requests] == [("HEAD", "/v2/team/app/manifests/latest")]


def test_what_is_not_known_is_fetched_after_the_head(
    registry: RegistryServer, client: RegistryClient
) -> None:
    pushed = push_image(registry)
    descriptor, data = client.resolve(reference(registry), known=lambda _: False)
    assert descriptor == pushed
    assert data is not None
    assert [r.method for r in registry.requests] == ["HEAD", "GET"]


@pytest.mark.parametrize("status", [404, 405])
def test_a_registry_that_does_not_answer_head_is_asked_by_get(
    status: int, scripted: Any, client: RegistryClient
) -> None:
    server = scripted(lambda asked: Reply(status) if asked.method == "HEAD" else manifest_reply())
    assert client.resolve(reference(server), known=lambda _: True)[1] == MANIFEST


def test_a_head_without_a_digest_is_followed_by_get(scripted: Any, client: RegistryClient) -> None:
    server = scripted(lambda asked: manifest_reply())
    assert client.resolve(reference(server), known=lambda _: True)[1] == MANIFEST


def test_a_tag_has_to_point_at_the_digest_beside_it(registry: RegistryServer, client: RegistryClient) -> None:
    old = push_image(registry)
    both = reference(registry, f"team/app:latest@{old.digest}")
    assert client.resolve(both)[0] == old
    assert [request.path for request in registry.requests] == ["/v2/team/app/manifests/latest"]
    # What is here already costs one request, as without a digest.
    assert client.resolve(both, known=lambda digest: digest == old.digest) == (old, None)
    assert len(registry.requests) == 2
    data = b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}'
    new = registry.push_manifest("team/app", "latest", data)
    registry.requests.clear()
    for known in (None, lambda digest: True):
        with pytest.raises(FailedPrecondition) as caught:
            client.resolve(both, known=known)
        assert f"latest points at {new.digest}, not at {old.digest}" in str(caught.value)
        assert "Leave the tag out" in str(caught.value.hint)
    assert [request.method for request in registry.requests] == ["GET", "HEAD", "GET"]
    assert client.resolve(reference(registry, f"team/app@{old.digest}"))[0] == old


def test_a_tag_that_is_gone_is_not_found_whatever_the_digest_names(
    registry: RegistryServer, client: RegistryClient
) -> None:
    pushed = push_image(registry)
    with pytest.raises(NotFound) as caught:
        client.resolve(reference(registry, f"team/app:gone@{pushed.digest}"), known=lambda _: True)
    assert "Leave the tag out" in str(caught.value.hint)


def test_a_tag_is_held_against_a_digest_of_another_algorithm_by_its_document(
    registry: RegistryServer, client: RegistryClient
) -> None:
    data = b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}'
    registry.push_manifest("team/app", "latest", data)
    digest = digest_of(data, "sha512")
    descriptor, _ = client.resolve(reference(registry, f"team/app:latest@{digest}"), known=lambda _: False)
    assert descriptor.digest == digest
    other = digest_of(b"another", "sha512")
    with pytest.raises(FailedPrecondition, match="points at sha512:"):
        client.resolve(reference(registry, f"team/app:latest@{other}"), known=lambda _: False)


def test_a_damaged_document_is_no_moved_tag(scripted: Any, client: RegistryClient) -> None:
    digest = digest_of(MANIFEST)
    server = scripted(lambda _: manifest_reply(b"X" + MANIFEST, Docker_Content_Digest=digest))
    with pytest.raises(DataLoss):
        client.resolve(reference(server, f"team/app:latest@{digest}"))


def test_a_document_that_is_not_the_digest_is_data_loss(scripted: Any, client: RegistryClient) -> None:
    server = scripted(lambda _: manifest_reply(Docker_Content_Digest=digest_of(MANIFEST)))
    wanted = digest_of(b"another")
    with pytest.raises(DataLoss, match=wanted):
        client.resolve(reference(server, f"team/app@{wanted}"))


def test_a_document_that_is_not_what_the_registry_says_is_data_loss(
    scripted: Any, client: RegistryClient
) -> None:
    server = scripted(lambda _: manifest_reply(Docker_Content_Digest=digest_of(b"another")))
    with pytest.raises(DataLoss):
        client.resolve(reference(server))


def test_sha512_is_honoured(registry: RegistryServer, client: RegistryClient) -> None:
    data = b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}'
    digest = digest_of(data, "sha512")
    registry.storage.repository("team/app").put_manifest(data, oci.OCI_INDEX, digest=digest)
    descriptor, _ = client.resolve(reference(registry, f"team/app@{digest}"))
    assert descriptor == oci.Descriptor(oci.OCI_INDEX, digest, len(data))


def test_an_unknown_tag_is_not_found_with_its_name(registry: RegistryServer, client: RegistryClient) -> None:
    push_image(registry)
    with pytest.raises(NotFound, match="team/app:nope") as caught:
        client.resolve(reference(registry, "team/app:nope"))
    assert "MANIFEST_UNKNOWN" in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (401, Unauthenticated),
        (403, PermissionDenied),
        (404, NotFound),
        (418, Unavailable),
        (200, Unsupported),
    ],
)
def test_an_answer_becomes_its_typed_error(
    status: int, expected: type[Exception], scripted: Any, client: RegistryClient
) -> None:
    server = scripted(lambda _: Reply(status, {"Content-Type": "application/json"}, b'{"errors":[]}'))
    with pytest.raises(expected):
        client.resolve(reference(server))
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again_and_then_unavailable(
    status: int, scripted: Any, client: RegistryClient
) -> None:
    server = scripted(lambda _: Reply(status))
    with pytest.raises(Unavailable, match=str(status)):
        client.resolve(reference(server))
    assert len(server.asked) == 5


def test_a_retry_that_helps_gives_the_answer(scripted: Any, client: RegistryClient) -> None:
    server = scripted(lambda _: manifest_reply() if len(server.asked) == 3 else Reply(503))
    assert client.resolve(reference(server))[1] == MANIFEST


def test_the_pause_is_what_retry_after_says_else_it_grows(
    scripted: Any, client: RegistryClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(Patience, "_wait", lambda _, seconds: pauses.append(seconds))
    server = scripted(
        lambda _: manifest_reply() if len(server.asked) == 2 else Reply(429, {"Retry-After": "7"})
    )
    client.resolve(reference(server))
    assert pauses == [7]
    pauses.clear()
    with RegistryClient(RegistryConfig(credentials={}, backoff=0.5)) as other, pytest.raises(Unavailable):
        other.resolve(reference(scripted(lambda _: Reply(503))))
    # Half of the back-off doubled each time after the first, and up to one back-off of jitter on top.
    assert [base <= pause <= base + 0.5 for base, pause in zip((0, 0.5, 1, 2), pauses, strict=True)] == [
        True
    ] * 4


def test_a_long_retry_after_is_an_error_that_says_it(scripted: Any, client: RegistryClient) -> None:
    server = scripted(lambda _: Reply(429, {"Retry-After": "3600"}))
    with pytest.raises(Unavailable) as caught:
        client.resolve(reference(server))
    assert "3600 s" in str(caught.value.hint)
    assert len(server.asked) == 1


def test_a_document_over_the_limit_is_not_read(scripted: Any, client: RegistryClient) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(1000):
            sent.append(1)
            yield bytes(64 * 1024)

    sent: list[int] = []
    declared = scripted(lambda _: Reply(200, {"Content-Length": str(oci.DOCUMENT_MAX + 1)}, pieces()))
    with pytest.raises(ResourceExhausted):
        client.resolve(reference(declared))
    endless = scripted(lambda _: Reply(200, {"Connection": "close"}, pieces()))
    with pytest.raises(ResourceExhausted):
        client.resolve(reference(endless))
    assert len(sent) < 500


def test_a_compressed_document_is_decoded_within_the_limit(scripted: Any, client: RegistryClient) -> None:
    bomb = gzip.compress(bytes(oci.DOCUMENT_MAX + 1))
    server = scripted(lambda _: Reply(200, {"Content-Encoding": "gzip"}, bomb))
    with pytest.raises(ResourceExhausted):
        client.resolve(reference(server))
    good = scripted(lambda _: manifest_reply(gzip.compress(MANIFEST), Content_Encoding="gzip"))
    assert client.resolve(reference(good))[1] == MANIFEST


def test_a_document_that_breaks_off_is_fetched_again(scripted: Any, client: RegistryClient) -> None:
    def script(_: Asked) -> Reply:
        if len(server.asked) == 1:
            return manifest_reply(MANIFEST[:50], Content_Length=str(len(MANIFEST)))
        return manifest_reply()

    server = scripted(script)
    assert client.resolve(reference(server))[1] == MANIFEST


def test_an_endless_error_body_is_not_waited_for(scripted: Any, client: RegistryClient) -> None:
    def pieces() -> Iterator[bytes]:
        while True:
            yield bytes(64 * 1024)

    server = scripted(lambda _: Reply(404, {"Connection": "close"}, pieces()))
    with pytest.raises(NotFound):
        client.resolve(reference(server))
    with pytest.raises(Unavailable):
        client.resolve(reference(scripted(lambda _: Reply(503, {"Connection": "close"}, pieces()))))


def test_an_error_message_of_a_registry_is_shown_without_control_characters(
    scripted: Any, client: RegistryClient
) -> None:
    text = "\x1b[31mred\nlines\u202e" + "x" * 5000
    body = json.dumps({"errors": [{"code": "DENIED", "message": text}]}).encode()
    with pytest.raises(PermissionDenied) as caught:
        client.resolve(reference(scripted(lambda _: Reply(403, {}, body))))
    assert str(caught.value).isprintable()
    assert "DENIED" in str(caught.value)
    assert len(str(caught.value)) < 600


# Documents


def test_a_config_is_fetched_and_checked(registry: RegistryServer, client: RegistryClient) -> None:
    push_image(registry)
    _, data = client.resolve(reference(registry))
    config = oci.parse_manifest(data).config
    assert client.fetch_document(reference(registry), config) == b'{"architecture":"amd64","os":"linux"}'


def test_a_damaged_config_is_data_loss(scripted: Any, client: RegistryClient) -> None:
    server = scripted(lambda _: Reply(200, {}, b"{}X"))
    with pytest.raises(DataLoss, match="3 bytes"):
        client.fetch_document(reference(server), oci.Descriptor(oci.OCI_CONFIG, digest_of(b"{}"), 2))
    with pytest.raises(DataLoss, match="damaged"):
        client.fetch_document(reference(server), oci.Descriptor(oci.OCI_CONFIG, digest_of(b"{}Y"), 3))


def test_a_document_that_the_descriptor_carries_costs_no_request(
    scripted: Any, client: RegistryClient
) -> None:
    server = scripted(lambda _: Reply(200, {}, b"{}"))
    data = base64.b64encode(b"{}").decode()
    embedded = oci.Descriptor(oci.OCI_CONFIG, digest_of(b"{}"), 2, data=data)
    assert client.fetch_document(reference(server), embedded) == b"{}"
    assert not server.asked
    wrong = oci.Descriptor(oci.OCI_CONFIG, digest_of(b"{}"), 2, data=base64.b64encode(b"[]").decode())
    assert client.fetch_document(reference(server), wrong) == b"{}"
    assert len(server.asked) == 1
    for offset in (0, 1, 2):
        with client.open_blob(reference(server), embedded, offset=offset) as stream:
            assert read_all(stream) == b"{}"[offset:]
    assert len(server.asked) == 1
    with client.open_blob(reference(server), wrong) as stream:
        assert read_all(stream) == b"{}"
    assert len(server.asked) == 2


def test_a_descriptor_over_the_limit_is_refused_without_a_request(
    scripted: Any, client: RegistryClient
) -> None:
    server = scripted(lambda _: Reply(200, {}, b"{}"))
    with pytest.raises(ResourceExhausted):
        client.fetch_document(
            reference(server), oci.Descriptor(oci.OCI_CONFIG, digest_of(b""), oci.DOCUMENT_MAX + 1)
        )
    assert not server.asked


# Blobs


def blob_server(asked: Asked) -> Reply:
    """Answer as a good registry: ranges too."""
    start = int(asked.headers.get("range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
    if not start:
        return Reply(200, {}, BLOB)
    return Reply(206, {"Content-Range": f"bytes {start}-{len(BLOB) - 1}/{len(BLOB)}"}, BLOB[start:])


@pytest.mark.parametrize("offset", [0, 1, 65_536, len(BLOB) - 1, len(BLOB)])
def test_a_blob_is_read_from_an_offset(offset: int, registry: RegistryServer, client: RegistryClient) -> None:
    blob = registry.push_blob("team/app", BLOB)
    with client.open_blob(reference(registry), blob, offset=offset) as stream:
        assert stream.offset == offset
        assert read_all(stream) == BLOB[offset:]
        assert stream.offset == len(BLOB)
        assert stream.readinto(bytearray(10)) == 0
    expected = [] if offset == len(BLOB) else [f"bytes={offset}-" if offset else None]
    assert [request.range for request in registry.requests] == expected


def test_an_empty_blob_costs_no_request(registry: RegistryServer, client: RegistryClient) -> None:
    blob = registry.push_blob("team/app", b"")
    with client.open_blob(reference(registry), blob) as stream:
        assert read_all(stream) == b""
    assert not registry.requests


@pytest.mark.parametrize("offset", [-1, len(BLOB) + 1])
def test_an_offset_outside_of_the_blob_is_refused(offset: int, client: RegistryClient) -> None:
    with pytest.raises(InvalidArgument):
        client.open_blob(Reference.parse("127.0.0.1:1/a"), BLOB_DESCRIPTOR, offset=offset)


def test_connections_are_used_again(scripted: Any, client: RegistryClient) -> None:
    server = scripted(blob_server)
    ports: set[str] = set()
    original = server._server.process_request

    def note(request: Any, address: Any) -> None:
        ports.add(address)
        original(request, address)

    server._server.process_request = note
    for _ in range(5):
        with client.open_blob(reference(server), BLOB_DESCRIPTOR) as stream:
            assert read_all(stream) == BLOB
    assert len(ports) == 1


@pytest.mark.parametrize("chunked", [False, True])
def test_a_blob_of_chunks_or_without_a_length_is_cut_at_its_size(
    chunked: bool, scripted: Any, client: RegistryClient
) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield b"%x\r\n%b\r\n" % (len(BLOB), BLOB) if chunked else BLOB

    headers = {"Transfer-Encoding": "chunked"} if chunked else {"Connection": "close"}
    server = scripted(lambda _: Reply(200, headers, endless()))
    short = oci.Descriptor(oci.OCI_LAYER, digest_of(BLOB[:100_001]), 100_001)
    with client.open_blob(reference(server), short) as stream:
        assert read_all(stream, 64 * 1024) == BLOB[:100_001]


@pytest.mark.parametrize("length", [len(BLOB) - 1, len(BLOB) + 1, 0, 10**15])
def test_a_lying_content_length_is_an_error_before_a_byte_is_read(
    length: int, scripted: Any, client: RegistryClient
) -> None:
    server = scripted(lambda _: Reply(200, {"Content-Length": str(length)}, BLOB[:10]))
    with pytest.raises(DataLoss, match=str(length)):
        client.open_blob(reference(server), BLOB_DESCRIPTOR)
    assert len(server.asked) == 5  # one of several servers of that name may have it whole


def test_a_server_that_ignores_ranges_is_read_over(scripted: Any, client: RegistryClient) -> None:
    server = scripted(lambda _: Reply(200, {}, BLOB))
    with client.open_blob(reference(server), BLOB_DESCRIPTOR, offset=500_000) as stream:
        assert read_all(stream) == BLOB[500_000:]


@pytest.mark.parametrize(
    "content_range",
    [
        "bytes 0-{last}/{size}",
        "bytes 1001-{last}/{size}",
        "bytes 1000-{size}/{size}",
        "bytes 1000-{last}/{more}",
        "bytes 1000-{last}",
        "items 1000-{last}/{size}",
        "nonsense",
        "",
    ],
)
def test_another_range_than_was_asked_for_is_an_error(
    content_range: str, scripted: Any, client: RegistryClient
) -> None:
    text = content_range.format(last=len(BLOB) - 1, size=len(BLOB), more=len(BLOB) + 1)
    server = scripted(lambda _: Reply(206, {"Content-Range": text}, BLOB[1000:]))
    with pytest.raises(DataLoss):
        client.open_blob(reference(server), BLOB_DESCRIPTOR, offset=1000)


def test_a_range_that_ends_early_is_continued(scripted: Any, client: RegistryClient) -> None:
    def script(asked: Asked) -> Reply:
        start = int(asked.headers["range"].removeprefix("bytes=").partition("-")[0])
        end = min(start + 100_000, len(BLOB))
        return Reply(206, {"Content-Range": f"bytes {start}-{end - 1}/*"}, BLOB[start:end])

    with client.open_blob(reference(scripted(script)), BLOB_DESCRIPTOR, offset=1000) as stream:
        assert read_all(stream) == BLOB[1000:]


def test_a_blob_that_is_shorter_than_the_offset_is_data_loss(scripted: Any, client: RegistryClient) -> None:
    server = scripted(lambda _: Reply(416, {"Content-Range": "bytes */5"}))
    with pytest.raises(DataLoss, match="before byte 1000"):
        client.open_blob(reference(server), BLOB_DESCRIPTOR, offset=1000)


@pytest.mark.parametrize("reset", [False, True])
def test_a_connection_that_breaks_is_continued_where_it_broke(
    reset: bool, scripted: Any, client: RegistryClient
) -> None:
    def script(asked: Asked) -> Reply:
        reply = blob_server(asked)
        assert isinstance(reply.body, bytes)
        whole = reply.body
        return reply._replace(
            headers={**reply.headers, "Content-Length": str(len(whole))}, body=whole[:100_000], reset=reset
        )

    server = scripted(script)
    with client.open_blob(reference(server), BLOB_DESCRIPTOR) as stream:
        assert read_all(stream) == BLOB
    assert len(server.asked) > 5
    assert all("range" in asked.headers for asked in server.asked[1:])


def test_a_connection_that_keeps_breaking_without_progress_is_given_up(
    scripted: Any, client: RegistryClient
) -> None:
    def script(asked: Asked) -> Reply:
        reply = blob_server(asked)
        assert isinstance(reply.body, bytes)
        return reply._replace(
            headers={**reply.headers, "Content-Length": str(len(reply.body))}, body=reply.body[:7]
        )

    server = scripted(script)
    with (
        client.open_blob(reference(server), BLOB_DESCRIPTOR) as stream,
        pytest.raises(Unavailable, match="broke off"),
    ):
        read_all(stream)
    assert len(server.asked) == 5


def test_silence_is_timed_out_and_the_blob_continued(scripted: Any) -> None:
    def script(asked: Asked) -> Reply:
        if len(server.asked) > 1:
            return blob_server(asked)

        def stall() -> Iterator[bytes]:
            yield BLOB[:1000]
            release.wait(20)

        return Reply(200, {"Content-Length": str(len(BLOB))}, stall())

    release = threading.Event()
    server = scripted(script)
    with (
        RegistryClient(RegistryConfig(credentials={}, backoff=0.001, timeouts=Timeouts(5, 0.3))) as client,
        client.open_blob(reference(server), BLOB_DESCRIPTOR) as stream,
    ):
        assert read_all(stream, 1000) == BLOB
    release.set()


def test_the_content_encoding_of_a_blob_is_left_alone(scripted: Any, client: RegistryClient) -> None:
    data = gzip.compress(b"layer" * 1000)
    server = scripted(lambda _: Reply(200, {"Content-Encoding": "gzip"}, data))
    with client.open_blob(
        reference(server), oci.Descriptor(oci.OCI_LAYER, digest_of(data), len(data))
    ) as stream:
        assert read_all(stream) == data
    assert server.asked[0].headers["accept-encoding"] == "identity"


def stalled(release: threading.Event) -> Callable[[Asked], Reply]:
    def script(_: Asked) -> Reply:
        def body() -> Iterator[bytes]:
            yield BLOB[:10]
            release.wait(20)

        return Reply(200, {"Content-Length": str(len(BLOB))}, body())

    return script


def test_a_blocked_read_is_interrupted_from_another_thread(scripted: Any, client: RegistryClient) -> None:
    release = threading.Event()
    server = scripted(stalled(release))
    with client.open_blob(reference(server), BLOB_DESCRIPTOR) as stream:
        timer = threading.Timer(0.2, stream.interrupt)
        timer.start()
        with pytest.raises(Cancelled):
            read_all(stream)
        timer.join()
        release.set()
        with pytest.raises(Cancelled):
            stream.readinto(bytearray(10))


def test_an_interrupted_stream_gives_no_more_bytes(registry: RegistryServer, client: RegistryClient) -> None:
    blob = registry.push_blob("team/app", BLOB)
    with client.open_blob(reference(registry), blob) as stream:
        assert stream.readinto(bytearray(10)) == 10
        stream.interrupt()
        with pytest.raises(Cancelled):
            stream.readinto(bytearray(10))


def test_interrupting_the_client_ends_waits_for_an_answer(scripted: Any, client: RegistryClient) -> None:
    release = threading.Event()

    def wait(_: Asked) -> Reply:
        release.wait(20)
        return Reply()

    server = scripted(wait)
    timer = threading.Timer(0.2, client.interrupt)
    timer.start()
    with pytest.raises(Cancelled):
        client.resolve(reference(server))
    release.set()
    timer.join()
    with pytest.raises(Cancelled):
        client.resolve(reference(server))


def test_interrupting_the_client_ends_a_pause_between_attempts(scripted: Any) -> None:
    server = scripted(lambda _: Reply(503, {"Retry-After": "50"}))
    with RegistryClient(RegistryConfig(credentials={})) as client:
        timer = threading.Timer(0.2, client.interrupt)
        timer.start()
        with pytest.raises(Cancelled):
            client.resolve(reference(server))
        timer.join()


def test_many_threads_use_one_client(registry: RegistryServer, client: RegistryClient) -> None:
    blobs = [registry.push_blob("team/app", bytes([n]) * 300_000) for n in range(8)]
    wrong: list[object] = []

    def fetch(number: int) -> None:
        for _ in range(5):
            with client.open_blob(reference(registry), blobs[number]) as stream:
                if read_all(stream) != bytes([number]) * 300_000:
                    wrong.append(number)

    threads = [threading.Thread(target=fetch, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(registry.requests) == 40


def test_nobody_listening_is_unavailable_and_says_where(client: RegistryClient) -> None:
    with pytest.raises(Unavailable, match="refused") as caught:
        client.resolve(Reference.parse("127.0.0.1:1/a"))
    assert "port 1" in str(caught.value.hint)


def test_the_user_agent_names_lamella_and_no_cookie_is_kept(scripted: Any, client: RegistryClient) -> None:
    server = scripted(lambda _: manifest_reply(Set_Cookie="session=1; Path=/"))
    client.resolve(reference(server))
    client.resolve(reference(server))
    assert server.asked[0].headers["user-agent"].startswith("lamella")
    assert "cookie" not in server.asked[1].headers


@pytest.mark.parametrize("phase", ["looking up the name", "connecting", "the handshake of TLS"])
def test_interrupting_the_client_ends_what_leads_to_a_connection(
    phase: str, client: RegistryClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, release = threading.Event(), threading.Event()
    real = socket.getaddrinfo

    def hang(*_: object, **__: object) -> Any:
        reached.set()
        release.wait(20)
        raise ConnectionAbortedError

    with socket.create_server(("127.0.0.1", 0), backlog=16) as listening:
        port = listening.getsockname()[1]

        def interrupt() -> None:
            if phase == "the handshake of TLS":
                listening.accept()[0].close()
            reached.wait(20)
            client.interrupt()

        if phase == "looking up the name":
            monkeypatch.setattr(socket, "getaddrinfo", hang)
        else:
            monkeypatch.setattr(socket, "getaddrinfo", lambda _, __, *rest: real("127.0.0.1", port, *rest))
        if phase == "connecting":
            monkeypatch.setattr(socket.socket, "connect", hang)
        elif phase == "the handshake of TLS":
            monkeypatch.setattr(ssl.SSLContext, "wrap_socket", hang)
        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(Cancelled):
            client.resolve(Reference(domain="registry.invalid", path="a", tag="b"))
        left = [thread for thread in threading.enumerate() if thread.name == "lamella-connect"]
        release.set()
        for each in [thread, *left]:
            each.join()
    assert left, "it was waited for"


def test_a_client_is_interrupted_while_others_connect(client: RegistryClient) -> None:
    """Whoever ends all connections walks over a set of them, to which other threads add."""
    connections = client._exchange.transport._connections
    before, stop = sys.getswitchinterval(), threading.Event()

    def add() -> None:
        kept: list[Any] = []
        while not stop.is_set():
            kept = [*kept[-500:], HTTPConnection("127.0.0.1")]
            with suppress(Cancelled):
                connections.watch(kept[-1])

    threads = [threading.Thread(target=add) for _ in range(2)]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for _ in range(300):
            connections.stop()
    finally:
        sys.setswitchinterval(before)
        stop.set()
        for thread in threads:
            thread.join()


def test_a_forked_process_takes_no_bytes_from_its_parents_connections(
    registry: RegistryServer, client: RegistryClient
) -> None:
    blob = registry.push_blob("team/app", BLOB)
    with client.open_blob(reference(registry), blob) as stream:
        assert stream.readinto(bytearray(10)) == 10
        child = os.fork()
        if not child:
            told = []
            for attempt in (
                lambda: stream.readinto(bytearray(10)),
                lambda: client.resolve(reference(registry)),
                client.close,
            ):
                try:
                    attempt()
                    told.append("")
                except LamellaError as error:
                    told.append(error.kind)
            os._exit(int(told != ["FailedPrecondition", "FailedPrecondition", ""]))
        assert os.waitpid(child, 0)[1] == 0
        assert read_all(stream) == BLOB[10:]
