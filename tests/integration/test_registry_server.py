"""The in-process registry: the OCI distribution spec as a client on the wire sees it."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from registries import push_image
from serving import BLOB, DIGEST, EMPTY_INDEX, Ask, Serve, asking, start

from lamella import oci
from lamella.digest import digest_of
from lamella.errors import InvalidArgument, NotFound
from lamella.registry.server import RegistryServer, basic_auth
from lamella.registry.server.folder import FolderStorage
from lamella.registry.server.store import StoreStorage


@pytest.fixture
def server(serve: Serve) -> Iterator[RegistryServer]:
    with serve() as opened:
        yield opened


@pytest.fixture
def ask(server: RegistryServer) -> Iterator[Ask]:
    """Send one request on a connection that is kept."""
    with asking(server) as function:
        yield function


def kept(server: RegistryServer) -> set[str]:
    """Say what a registry has, once garbage is collected: ``blob DIGEST``, ``tag NAME:TAG``, ``upload``."""
    storage = server.storage
    if isinstance(storage, StoreStorage):
        storage.client.gc()
        images = {f"tag {image.name.partition('/')[2]}" for image in storage.client.images.list()}
        blobs = {f"blob {info.digest}" for info in storage.client.content.walk()}
        return images | blobs | {"upload" for _ in storage.client.content.ingests()}
    assert isinstance(storage, FolderStorage)
    found = set()
    for path in storage.root.rglob("*"):
        match path.relative_to(storage.root).parts:
            case ("blobs", algorithm, encoded):
                found.add(f"blob {algorithm}:{encoded}")
            case ("uploads", _):
                found.add("upload")
            case ("repositories", *name, "_tags", tag):
                found.add(f"tag {'/'.join(name)}:{tag}")
    return found


# The base


@pytest.mark.parametrize("path", ["/v2/", "/v2"])
def test_the_base_says_that_this_is_a_registry(path: str, ask: Ask) -> None:
    answer = ask("GET", path)
    assert (answer.status, answer.headers["docker-distribution-api-version"]) == (200, "registry/2.0")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "NOT_FOUND"),
        ("GET", "/v1/", 404, "NOT_FOUND"),
        ("GET", "/v2/a/nothing", 404, "NOT_FOUND"),
        ("PUT", "/v2/", 405, "UNSUPPORTED"),
        ("BREW", "/v2/", 405, "UNSUPPORTED"),
        ("GET", "/v2/a/manifests/latest", 404, "MANIFEST_UNKNOWN"),
        ("GET", f"/v2/a/blobs/{DIGEST}", 404, "BLOB_UNKNOWN"),
        ("GET", "/v2/a/tags/list", 404, "NAME_UNKNOWN"),
        ("GET", "/v2/a/blobs/sha256:short", 400, "DIGEST_INVALID"),
        ("GET", "/v2/a/blobs/md5:" + "0" * 32, 400, "DIGEST_INVALID"),
        ("GET", "/v2/a/manifests/.tag", 400, "MANIFEST_INVALID"),
        ("GET", "/v2/A/tags/list", 400, "NAME_INVALID"),
        ("GET", "/v2/../../etc/tags/list", 400, "NAME_INVALID"),
        ("GET", "/v2/a/%2e%2e/b/tags/list", 400, "NAME_INVALID"),
        ("GET", "/v2/a/../b/tags/list", 400, "NAME_INVALID"),
        ("GET", "/v2/_x/tags/list", 400, "NAME_INVALID"),
        ("GET", f"/v2/{'a' * 256}/tags/list", 400, "NAME_INVALID"),
        ("POST", "/v2/a%2f..%2f..%2fb/blobs/uploads/", 400, "NAME_INVALID"),
        ("PATCH", "/v2/a/blobs/uploads/unknown", 404, "BLOB_UPLOAD_UNKNOWN"),
        ("PATCH", "/v2/a/blobs/uploads/..%2f..%2fx", 404, "NOT_FOUND"),
        ("DELETE", f"/v2/a/blobs/{DIGEST}", 404, "BLOB_UNKNOWN"),
        ("DELETE", "/v2/a/manifests/latest", 404, "MANIFEST_UNKNOWN"),
    ],
)
def test_an_error_has_the_specs_status_and_code(
    method: str, path: str, status: int, code: str, server: RegistryServer, ask: Ask
) -> None:
    answer = ask(method, path)
    assert (answer.status, answer.code) == (status, code)
    assert answer.headers["content-type"] == "application/json"
    assert kept(server) == set()


def test_a_connection_is_kept_after_an_error(server: RegistryServer, ask: Ask) -> None:
    ask("GET", "/v2/a/manifests/latest")
    ask("PUT", "/v2/a/manifests/latest", b"small and refused")
    assert ask("GET", "/v2/").status == 200
    assert [request.status for request in server.requests] == [404, 400, 200]


# Blobs


def test_a_blob_is_pushed_in_one_request(server: RegistryServer, ask: Ask) -> None:
    answer = ask("POST", f"/v2/team/app/blobs/uploads/?digest={DIGEST}", BLOB)
    assert (answer.status, answer.headers["docker-content-digest"]) == (201, DIGEST)
    assert ask("GET", answer.headers["location"]).body == BLOB
    assert kept(server) == {f"blob {DIGEST}"}


def test_a_blob_is_pushed_in_two_requests(ask: Ask) -> None:
    location = start(ask)
    assert ask("PUT", f"{location}?digest={DIGEST}", BLOB).status == 201
    assert ask("GET", f"/v2/team/app/blobs/{DIGEST}").body == BLOB
    assert ask("GET", location).code == "BLOB_UPLOAD_UNKNOWN"


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
def test_a_blob_is_pushed_in_chunks(algorithm: str, ask: Ask) -> None:
    digest = digest_of(BLOB, algorithm)
    location = start(ask)
    for first in range(0, 200_000, 50_000):
        answer = ask(
            "PATCH", location, BLOB[first : first + 50_000], Content_Range=f"{first}-{first + 49_999}"
        )
        assert (answer.status, answer.headers["range"]) == (202, f"0-{first + 49_999}")
    assert ask("GET", location).headers["range"] == "0-199999"
    assert ask("PUT", f"{location}?digest={digest}", BLOB[200_000:]).status == 201
    assert ask("GET", f"/v2/team/app/blobs/{digest}").body == BLOB


def test_a_body_may_come_in_http_chunks(ask: Ask) -> None:
    location = start(ask)
    pieces = (BLOB[n : n + 1000] for n in range(0, len(BLOB), 1000))
    assert ask("PATCH", location, pieces, Transfer_Encoding="chunked").status == 202
    assert ask("PUT", f"{location}?digest={DIGEST}", b"").status == 201
    assert ask("GET", f"/v2/team/app/blobs/{DIGEST}").body == BLOB


def test_a_chunk_out_of_order_is_refused_and_the_upload_goes_on(ask: Ask) -> None:
    location = start(ask)
    ask("PATCH", location, BLOB[:1000], Content_Range="0-999")
    for wrong in ("0-999", "1001-2000", "5-9"):
        answer = ask("PATCH", location, BLOB[:1000], Content_Range=wrong)
        assert (answer.status, answer.headers["range"], answer.headers["location"]) == (
            416,
            "0-999",
            location,
        )
    assert ask("PATCH", location, BLOB[1000:2000], Content_Range="1000-1500").status == 400
    assert ask("PATCH", location, BLOB[1000:2000], Content_Range="nonsense").status == 400
    assert ask("PUT", f"{location}?digest={DIGEST}", BLOB[1000:]).status == 201


@pytest.mark.parametrize("digest", [digest_of(b"another"), "sha256:zz", "", "md5:" + "0" * 32])
def test_a_wrong_digest_is_refused_and_leaves_nothing(digest: str, server: RegistryServer, ask: Ask) -> None:
    location = start(ask)
    answer = ask("PUT", f"{location}?digest={digest}", BLOB)
    assert (answer.status, answer.code) == (400, "DIGEST_INVALID")
    assert not any(name.startswith("blob") for name in kept(server))
    ask("DELETE", location)
    assert kept(server) == set()


def test_an_upload_can_be_given_up(server: RegistryServer, ask: Ask) -> None:
    location = start(ask)
    ask("PATCH", location, BLOB)
    assert ask("DELETE", location).status == 204
    assert ask("PATCH", location, BLOB).code == "BLOB_UPLOAD_UNKNOWN"
    assert kept(server) == set()


def test_an_upload_belongs_to_its_repository(ask: Ask) -> None:
    location = start(ask)
    assert ask("PATCH", location.replace("team/app", "team/other"), BLOB).status == 404


def test_a_sender_that_goes_away_leaves_an_upload_that_goes_on(server: RegistryServer, ask: Ask) -> None:
    location = start(ask)
    host, port = server.address.split(":")
    with socket.create_connection((host, int(port))) as sender:
        sender.sendall(
            f"PATCH {location} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BLOB)}\r\n\r\n".encode()
            + BLOB[:5000]
        )
        sender.shutdown(socket.SHUT_WR)
        assert sender.recv(100) == b""
    assert ask("GET", location).headers["range"] == "0-4999"
    assert ask("PUT", f"{location}?digest={DIGEST}", BLOB[5000:]).status == 201


def test_a_client_takes_its_upload_over_from_a_connection_that_fell_silent(
    server: RegistryServer, ask: Ask
) -> None:
    location = start(ask)
    host, port = server.address.split(":")
    with socket.create_connection((host, int(port))) as lost:
        head = f"PATCH {location} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BLOB)}\r\nExpect: 100-continue"
        lost.sendall(f"{head}\r\n\r\n".encode())
        assert lost.recv(100).startswith(b"HTTP/1.1 100 ")  # it has the upload
        lost.sendall(BLOB[:5000])
        answer = ask("PATCH", location, BLOB[:6000], Content_Range="0-5999")
        assert answer.status in {202, 416}  # what had come until then stays
        there = int(ask("GET", location).headers["range"].partition("-")[2]) + 1
        assert there in {5000, 6000}
        assert lost.recv(100) == b""
    assert ask("PUT", f"{location}?digest={DIGEST}", BLOB[there:]).status == 201


def test_a_blob_is_mounted_from_another_repository(ask: Ask) -> None:
    ask("POST", f"/v2/team/app/blobs/uploads/?digest={DIGEST}", BLOB)
    assert ask("POST", f"/v2/other/blobs/uploads/?mount={DIGEST}&from=nobody", b"").status == 202
    answer = ask("POST", f"/v2/other/blobs/uploads/?mount={DIGEST}&from=team/app", b"")
    assert (answer.status, answer.headers["location"]) == (201, f"/v2/other/blobs/{DIGEST}")
    assert ask("GET", f"/v2/other/blobs/{DIGEST}").body == BLOB
    assert ask("POST", f"/v2/third/blobs/uploads/?mount={DIGEST}", b"").status == 201


def test_a_blob_is_of_its_repositories_alone_and_goes_with_the_last(server: RegistryServer, ask: Ask) -> None:
    for name in ("a", "b"):
        ask("POST", f"/v2/{name}/blobs/uploads/?digest={DIGEST}", BLOB)
    assert ask("GET", f"/v2/c/blobs/{DIGEST}").status == 404
    assert ask("DELETE", f"/v2/a/blobs/{DIGEST}").status == 202
    assert ask("GET", f"/v2/a/blobs/{DIGEST}").status == 404
    assert ask("GET", f"/v2/b/blobs/{DIGEST}").status == 200
    assert ask("DELETE", f"/v2/b/blobs/{DIGEST}").status == 202
    assert f"blob {DIGEST}" not in kept(server)


@pytest.mark.parametrize(
    ("header", "status", "part"),
    [
        ("bytes=0-", 206, slice(0, None)),
        ("bytes=100-199", 206, slice(100, 200)),
        ("bytes=255999-", 206, slice(255_999, None)),
        ("bytes=100-999999999", 206, slice(100, None)),
        ("bytes=-10", 206, slice(-10, None)),
        ("bytes=-999999999", 206, slice(0, None)),
        ("bytes=256000-", 416, None),
        ("bytes=-0", 416, None),
        ("bytes=200-100", 416, None),
        ("bytes=0-1,5-6", 200, slice(0, None)),
        ("bytes=-", 200, slice(0, None)),
        ("items=0-1", 200, slice(0, None)),
        ("bytes=a-b", 200, slice(0, None)),
    ],
)
def test_a_range_of_a_blob_is_served(
    header: str, status: int, part: slice | None, server: Any, ask: Ask
) -> None:
    server.push_blob("a", BLOB)
    answer = ask("GET", f"/v2/a/blobs/{DIGEST}", Range=header)
    assert answer.status == status
    if part is None:
        assert answer.headers["content-range"] == f"bytes */{len(BLOB)}"
        return
    assert answer.body == BLOB[part]
    if status == 206:
        first, stop, _ = part.indices(len(BLOB))
        assert answer.headers["content-range"] == f"bytes {first}-{stop - 1}/{len(BLOB)}"


def test_a_range_of_something_else_is_answered_by_the_whole(server: RegistryServer, ask: Ask) -> None:
    server.push_blob("a", BLOB)
    for meant, status in (
        (f'"{DIGEST}"', 206),
        ('"sha256:other"', 200),
        ("Wed, 01 Jan 2025 00:00:00 GMT", 200),
    ):
        answer = ask("GET", f"/v2/a/blobs/{DIGEST}", Range="bytes=0-9", If_Range=meant)
        assert (answer.status, len(answer.body)) == (status, 10 if status == 206 else len(BLOB))


def test_a_blob_that_the_client_has_is_not_sent(server: RegistryServer, ask: Ask) -> None:
    server.push_blob("a", BLOB)
    for known in (f'"{DIGEST}"', f'W/"{DIGEST}"', "*", f'"other", "{DIGEST}"'):
        answer = ask("GET", f"/v2/a/blobs/{DIGEST}", If_None_Match=known)
        assert (answer.status, answer.body) == (304, b"")
    assert ask("GET", f"/v2/a/blobs/{DIGEST}", If_None_Match='"other"').status == 200


def test_head_gives_the_headers_of_get_and_no_body(server: RegistryServer, ask: Ask) -> None:
    server.push_blob("a", BLOB)
    pushed = push_image(server, "a")
    for path in (f"/v2/a/blobs/{DIGEST}", "/v2/a/manifests/latest", f"/v2/a/manifests/{pushed.digest}"):
        head, get = ask("HEAD", path), ask("GET", path)
        assert head.body == b""
        assert {**head.headers, "date": ""} == {**get.headers, "date": ""}
        assert int(head.headers["content-length"]) == len(get.body)


def test_an_empty_blob_is_pushed_and_pulled(ask: Ask) -> None:
    empty = digest_of(b"")
    assert ask("POST", f"/v2/a/blobs/uploads/?digest={empty}", b"").status == 201
    answer = ask("GET", f"/v2/a/blobs/{empty}")
    assert (answer.status, answer.body) == (200, b"")


def test_many_threads_push_the_same_blob(server: RegistryServer) -> None:
    statuses: list[int] = []

    def push() -> None:
        with asking(server) as ask:
            statuses.append(ask("POST", f"/v2/a/blobs/uploads/?digest={DIGEST}", BLOB).status)
            statuses.append(len(ask("GET", f"/v2/a/blobs/{DIGEST}").body))

    threads = [threading.Thread(target=push) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [201] * 8 + [len(BLOB)] * 8
    assert "upload" not in kept(server)


# Manifests


def test_a_manifest_is_pushed_by_tag_and_pulled_by_both(server: RegistryServer, ask: Ask) -> None:
    digest = digest_of(EMPTY_INDEX)
    answer = ask("PUT", "/v2/a/manifests/v1", EMPTY_INDEX, Content_Type=oci.OCI_INDEX)
    assert (answer.status, answer.headers["docker-content-digest"]) == (201, digest)
    assert answer.headers["location"] == f"/v2/a/manifests/{digest}"
    for reference in ("v1", digest):
        answer = ask("GET", f"/v2/a/manifests/{reference}")
        assert (answer.body, answer.headers["content-type"]) == (EMPTY_INDEX, oci.OCI_INDEX)
        assert ask("GET", f"/v2/a/manifests/{reference}", If_None_Match=f'"{digest}"').status == 304


@pytest.mark.parametrize(
    ("body", "media_type"),
    [
        (b"", oci.OCI_INDEX),
        (b"[]", oci.OCI_INDEX),
        (b"{", oci.OCI_INDEX),
        (b'{"mediaType":"\xff","manifests":[]}', oci.OCI_INDEX),
        (b'{"a":' + b"[" * 100_000, oci.OCI_INDEX),
        (b'{"manifests":[{"digest":"sha256:' + b"0" * 64 + b'","mediaType":"a","size":-1}]}', oci.OCI_INDEX),
        (EMPTY_INDEX, oci.OCI_MANIFEST),
        (b'{"manifests":[]}', ""),
        (b'{"manifests":[],"layers":[]}', oci.OCI_INDEX),
        (b'{"layers":[{"digest":"sha256:x","mediaType":"a","size":1}]}', oci.OCI_MANIFEST),
        (b'{"layers":[{"digest":5}]}', oci.OCI_MANIFEST),
    ],
)
def test_a_bad_manifest_is_refused(body: bytes, media_type: str, server: RegistryServer, ask: Ask) -> None:
    answer = ask("PUT", "/v2/a/manifests/v1", body, Content_Type=media_type)
    assert (answer.status, answer.code) == (400, "MANIFEST_INVALID")
    assert kept(server) == set()


def test_a_manifest_with_another_digest_is_refused(ask: Ask) -> None:
    answer = ask("PUT", f"/v2/a/manifests/{DIGEST}", EMPTY_INDEX, Content_Type=oci.OCI_INDEX)
    assert answer.status == 400


@pytest.mark.parametrize("chunked", [False, True])
def test_a_manifest_over_the_limit_is_refused(chunked: bool, ask: Ask, server: RegistryServer) -> None:
    big = EMPTY_INDEX + b" " * (oci.DOCUMENT_MAX + 1_000_000)
    try:
        if chunked:
            pieces = (big[n : n + 100_000] for n in range(0, len(big), 100_000))
            answer = ask("PUT", "/v2/a/manifests/v1", pieces, Transfer_Encoding="chunked")
        else:
            answer = ask("PUT", "/v2/a/manifests/v1", big, Content_Type=oci.OCI_INDEX)
        assert (answer.status, answer.headers["connection"]) == (413, "close")
    except ConnectionError:
        # The server answers and closes while the client still sends.
        assert server.requests[-1].status == 413
    assert kept(server) == set()


def test_a_manifest_whose_blobs_are_not_there_is_refused_unless_sparse(
    server: RegistryServer, ask: Ask, serve: Serve
) -> None:
    config = oci.Descriptor(oci.OCI_CONFIG, DIGEST, len(BLOB))
    manifest = oci.encode(oci.Manifest(config=config, layers=[], media_type=oci.OCI_MANIFEST))
    answer = ask("PUT", "/v2/a/manifests/v1", manifest, Content_Type=oci.OCI_MANIFEST)
    assert (answer.status, answer.code) == (404, "MANIFEST_BLOB_UNKNOWN")
    server.push_blob("b", BLOB)
    assert ask("PUT", "/v2/a/manifests/v1", manifest, Content_Type=oci.OCI_MANIFEST).status == 404
    with serve(sparse=True) as sparse, asking(sparse) as ask_sparse:
        assert ask_sparse("PUT", "/v2/a/manifests/v1", manifest, Content_Type=oci.OCI_MANIFEST).status == 201


def test_a_push_by_digest_sets_the_tags_that_it_names(ask: Ask) -> None:
    digest = digest_of(EMPTY_INDEX)
    answer = ask("PUT", f"/v2/a/manifests/{digest}?tag=one&tag=two", EMPTY_INDEX, Content_Type=oci.OCI_INDEX)
    assert (answer.status, answer.headers["oci-tag"]) == (201, "one, two")
    assert json.loads(ask("GET", "/v2/a/tags/list").body)["tags"] == ["one", "two"]


def test_a_tag_goes_alone_and_a_manifest_with_its_tags(server: RegistryServer, ask: Ask) -> None:
    pushed = push_image(server, "a", "v1")
    for tag in ("v2", "v3"):
        assert ask("PUT", f"/v2/a/manifests/{tag}", ask("GET", "/v2/a/manifests/v1").body).status == 201
    assert ask("DELETE", "/v2/a/manifests/v2").status == 202
    assert json.loads(ask("GET", "/v2/a/tags/list").body) == {"name": "a", "tags": ["v1", "v3"]}
    assert ask("DELETE", f"/v2/a/manifests/{pushed.digest}").status == 202
    assert json.loads(ask("GET", "/v2/a/tags/list").body) == {"name": "a", "tags": []}
    assert ask("GET", f"/v2/a/manifests/{pushed.digest}").status == 404
    assert f"blob {pushed.digest}" not in kept(server)


def test_tags_and_repositories_are_given_in_pages(server: RegistryServer, ask: Ask) -> None:
    for tag in ("b", "a", "C", "d", "_"):
        server.push_manifest("many/tags", tag, EMPTY_INDEX)
    for name in ("x", "many"):
        server.push_manifest(name, "latest", EMPTY_INDEX)
    for path, key, everything in (
        ("/v2/many/tags/tags/list", "tags", ["C", "_", "a", "b", "d"]),
        ("/v2/_catalog", "repositories", ["many", "many/tags", "x"]),
    ):
        assert json.loads(ask("GET", path).body)[key] == everything
        found, following = [], f"{path}?n=2"
        while following:
            answer = ask("GET", following)
            found += json.loads(answer.body)[key]
            link = answer.headers.get("link", "")
            following = link.partition("<")[2].partition(">")[0]
            assert urlsplit(following).netloc == ""
        assert found == everything
        assert json.loads(ask("GET", f"{path}?last={everything[0]}").body)[key] == everything[1:]
        assert json.loads(ask("GET", f"{path}?n=0").body)[key] == []
        assert ask("GET", f"{path}?n=x").code == "PAGINATION_NUMBER_INVALID"


def test_referrers_are_listed_and_filtered(server: RegistryServer, ask: Ask) -> None:
    subject = push_image(server, "a")
    config = server.push_blob("a", b"{}", "application/vnd.example.config")
    pushed = []
    for kind in ("one", "two"):
        manifest = {
            "schemaVersion": 2,
            "mediaType": oci.OCI_MANIFEST,
            "artifactType": f"application/vnd.example.{kind}",
            "config": json.loads(oci.encode(config)),
            "layers": [],
            "subject": json.loads(oci.encode(subject)),
            "annotations": {"kind": kind},
        }
        answer = ask(
            "PUT", f"/v2/a/manifests/{kind}", json.dumps(manifest).encode(), Content_Type=oci.OCI_MANIFEST
        )
        assert (answer.status, answer.headers["oci-subject"]) == (201, subject.digest)
        pushed.append(answer.headers["docker-content-digest"])
    answer = ask("GET", f"/v2/a/referrers/{subject.digest}")
    assert answer.headers["content-type"] == oci.OCI_INDEX
    assert {entry["digest"] for entry in json.loads(answer.body)["manifests"]} == set(pushed)
    answer = ask("GET", f"/v2/a/referrers/{subject.digest}?artifactType=application/vnd.example.two")
    assert answer.headers["oci-filters-applied"] == "artifactType"
    (entry,) = json.loads(answer.body)["manifests"]
    assert (entry["digest"], entry["annotations"]) == (pushed[1], {"kind": "two"})
    ask("DELETE", f"/v2/a/manifests/{pushed[1]}")
    assert len(json.loads(ask("GET", f"/v2/a/referrers/{subject.digest}").body)["manifests"]) == 1
    assert json.loads(ask("GET", f"/v2/a/referrers/{DIGEST}").body)["manifests"] == []


# Access, life and the program


def test_only_the_users_that_are_named_get_in(serve: Serve) -> None:
    with serve(auth=basic_auth({"ann": "secret"})) as server, asking(server) as ask:
        answer = ask("GET", "/v2/")
        assert (answer.status, answer.headers["www-authenticate"]) == (401, 'Basic realm="registry"')
        for wrong in (
            "Basic",
            "Basic !",
            "Basic YW5uOndyb25n",
            "Bearer YW5uOnNlY3JldA==",
            "Basic OnNlY3JldA==",
        ):
            assert ask("GET", "/v2/", Authorization=wrong).status == 401
        assert ask("GET", "/v2/", Authorization="Basic YW5uOnNlY3JldA==").status == 200


def test_a_guard_is_asked_for_the_action_and_for_the_source_of_a_mount(serve: Serve) -> None:
    seen: list[tuple[str, str]] = []

    def guard(access: Any) -> str | None:
        seen.append((access.repository, access.action))
        return "Basic" if access.repository == "private" else None

    with serve(auth=guard) as server, asking(server) as ask:
        server.push_blob("private", BLOB)
        assert ask("POST", f"/v2/a/blobs/uploads/?mount={DIGEST}&from=private", b"").status == 401
        assert ask("GET", f"/v2/a/blobs/{DIGEST}").status == 404
        ask("DELETE", f"/v2/a/blobs/{DIGEST}")
    assert seen == [("a", "push"), ("private", "pull"), ("a", "pull"), ("a", "delete")]


def test_a_read_only_registry_takes_nothing(serve: Serve) -> None:
    with serve(read_only=True) as server, asking(server) as ask:
        pushed = push_image(server, "a")
        assert ask("GET", f"/v2/a/manifests/{pushed.digest}").status == 200
        for method, path in (
            ("POST", "/v2/a/blobs/uploads/"),
            ("PUT", "/v2/a/manifests/latest"),
            ("DELETE", f"/v2/a/manifests/{pushed.digest}"),
        ):
            assert ask(method, path, b"").status == 405


def test_closing_ends_connections_and_threads_and_removes_a_temporary_root() -> None:
    before = set(threading.enumerate())
    server = RegistryServer()
    root = server.storage.root
    push_image(server)
    idle = http.client.HTTPConnection(server.address, timeout=20)
    idle.request("GET", "/v2/")
    idle.getresponse().read()
    sock = idle.sock
    server.close()
    server.close()
    assert sock is not None
    assert sock.recv(1) == b""
    idle.close()
    assert set(threading.enumerate()) <= before
    assert not root.exists()


def test_content_outlives_the_server_and_unfinished_uploads_do_not(tmp_path: Path) -> None:
    with RegistryServer(tmp_path) as server, asking(server) as ask:
        pushed = push_image(server)
        ask("PATCH", start(ask), BLOB)
    with RegistryServer(tmp_path) as server, asking(server) as ask:
        assert ask("GET", "/v2/team/app/manifests/latest").headers["docker-content-digest"] == pushed.digest
        assert "upload" not in kept(server)


def test_an_upload_that_another_server_of_the_folder_took_away_is_no_blob(tmp_path: Path) -> None:
    with RegistryServer(tmp_path / "registry") as server, asking(server) as ask:
        location = start(ask)
        assert ask("PATCH", location, BLOB[:1000]).status == 202
        with RegistryServer(tmp_path / "registry"):
            assert ask("GET", location).status == 404
            assert ask("PUT", f"{location}?digest={DIGEST}", BLOB[1000:]).status == 404
        assert ask("HEAD", f"/v2/team/app/blobs/{DIGEST}").status == 404


def test_the_port_and_an_ipv6_address_can_be_chosen() -> None:
    if not socket.has_ipv6:
        pytest.skip("needs IPv6")
    try:
        server = RegistryServer(host="::1")
    except OSError:
        pytest.skip("needs an IPv6 loopback address")
    with server:
        assert server.address.startswith("[::1]:")
        with asking(server) as ask:
            assert ask("GET", "/v2/").status == 200


def test_a_port_in_use_is_an_error_that_leaves_nothing(server: RegistryServer) -> None:
    before = set(threading.enumerate())
    with pytest.raises(OSError, match="in use"):
        RegistryServer(port=int(server.address.rpartition(":")[2]))
    assert set(threading.enumerate()) <= before


def test_the_python_interface_checks_as_a_push_does(server: RegistryServer) -> None:
    with pytest.raises(InvalidArgument):
        server.push_blob("../x", b"")
    with pytest.raises(InvalidArgument):
        server.push_manifest("a", ".x", EMPTY_INDEX)
    missing = oci.Descriptor(oci.OCI_CONFIG, DIGEST, 1)
    with pytest.raises(NotFound):
        server.push_manifest("a", "latest", oci.Manifest(config=missing, layers=[]))
