"""The registry over the content store: whose images it serves under which names, and what a push leaves in the store."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from registries import push_image
from serving import BLOB, DIGEST, EMPTY_INDEX, Ask, asking, start

import lamella
from lamella import oci
from lamella.digest import digest_of
from lamella.errors import InvalidArgument
from lamella.labels import DISTRIBUTION_SOURCE, PUSHED, SUBJECT
from lamella.metadata import timestamp
from lamella.registry.server import RegistryServer, basic_auth
from lamella.registry.server.store import StoreStorage
from waiting import until

NAME = "registry.example:5000"
OTHER = b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[],"annotations":{"a":"b"}}'
TEAM = f"{NAME}/team/app"


@pytest.fixture
def server(client: lamella.Client) -> Iterator[RegistryServer]:
    with RegistryServer(client=client, name=NAME) as opened:
        yield opened


@pytest.fixture
def ask(server: RegistryServer) -> Iterator[Ask]:
    with asking(server) as function:
        yield function


def name(client: lamella.Client, *names: str, data: bytes = EMPTY_INDEX) -> str:
    """Put a document into the store under some names, as a pull or a tag would; give its digest."""
    digest = digest_of(data)
    client.content.write(f"test-{digest}", data, digest=digest, size=len(data))
    for each in names:
        client.images.put(each, oci.Descriptor(oci.OCI_INDEX, digest, len(data)))
    return digest


def put(ask: Ask, path: str, document: dict[str, Any] | bytes) -> Any:
    """Push a manifest or an index."""
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    answer = ask("PUT", path, data, Content_Type=json.loads(data)["mediaType"])
    assert answer.status == 201, answer.body
    return answer


def index(*digests: str, **more: Any) -> dict[str, Any]:
    """Make an index of empty indexes."""
    entries = [{"mediaType": oci.OCI_INDEX, "digest": each, "size": len(EMPTY_INDEX)} for each in digests]
    return {"schemaVersion": 2, "mediaType": oci.OCI_INDEX, "manifests": entries, **more}


def names(client: lamella.Client) -> list[str]:
    return [image.name for image in client.images.list()]


def expire_pushes(client: lamella.Client) -> None:
    """Let a day pass: what was held by pushes alone is held no more."""
    with client.database.write() as db:
        db.execute("UPDATE leases SET expires_at = ?, id = hex(randomblob(8))", (timestamp(-1),))


# Names


@pytest.mark.parametrize(
    ("image", "path", "query"),
    [
        ("docker.io/library/nginx:1", "nginx", ""),
        ("docker.io/library/nginx:1", "library/nginx", ""),
        ("docker.io/library/nginx:1", "docker.io/library/nginx", ""),
        ("docker.io/library/nginx:1", "library/nginx", "?ns=docker.io"),
        ("docker.io/team/app:1", "team/app", ""),
        ("ghcr.io/team/app:1", "ghcr.io/team/app", ""),
        ("ghcr.io/team/app:1", "team/app", "?ns=ghcr.io"),
        ("localhost:5000/team/app:1", "team/app", "?ns=localhost:5000"),
        (f"{TEAM}:1", "team/app", ""),
        (f"{TEAM}:1", "team/app", f"?ns={NAME}"),
    ],
)
def test_an_image_is_found_by_these_paths(
    image: str, path: str, query: str, client: lamella.Client, ask: Ask
) -> None:
    digest = name(client, image)
    for reference in ("1", digest):
        answer = ask("GET", f"/v2/{path}/manifests/{reference}{query}")
        assert (answer.status, answer.body) == (200, EMPTY_INDEX)
    assert json.loads(ask("GET", f"/v2/{path}/tags/list{query}").body) == {"name": path, "tags": ["1"]}


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("team/app", ""),
        ("ghcr.io/team/app", "?ns=docker.io"),
        ("library/team/app", "?ns=ghcr.io"),
        ("team/app", f"?ns={NAME}"),
        ("team/app/more", "?ns=ghcr.io"),
    ],
)
def test_an_image_is_not_found_under_another_name(
    path: str, query: str, client: lamella.Client, ask: Ask
) -> None:
    digest = name(client, "ghcr.io/team/app:1", "ghcr.io/team/app-two:1", "ghcr.io/team:1")
    for reference in ("1", digest):
        assert ask("GET", f"/v2/{path}/manifests/{reference}{query}").code == "MANIFEST_UNKNOWN"
    assert ask("GET", f"/v2/{path}/blobs/{digest}{query}").code == "BLOB_UNKNOWN"
    assert ask("GET", f"/v2/{path}/tags/list{query}").code == "NAME_UNKNOWN"


@pytest.mark.parametrize("domain", ["%2e%2e", "a%20b", "a/b", "%00", "x%0d%0aX-Evil:1"])
def test_a_malformed_domain_is_refused(domain: str, ask: Ask) -> None:
    assert ask("GET", f"/v2/a/manifests/1?ns={domain}").status in (400, 404)


def test_the_next_page_is_of_the_same_registrys_repository(client: lamella.Client, ask: Ask) -> None:
    name(client, *(f"ghcr.io/team/app:{tag}" for tag in "ab"), "docker.io/team/app:c")
    first = ask("GET", "/v2/team/app/tags/list?n=1&ns=ghcr.io")
    following = first.headers["link"].partition(">")[0].removeprefix("<")
    assert json.loads(first.body)["tags"] == ["a"]
    assert json.loads(ask("GET", following).body)["tags"] == ["b"]


def test_what_is_here_under_a_media_type_that_is_none_is_not_served(client: lamella.Client, ask: Ask) -> None:
    digest = name(client)
    forged = oci.Descriptor(f"{oci.OCI_INDEX}\r\nX-Forged: 1", digest, len(EMPTY_INDEX))
    client.images.put("docker.io/library/app:1", forged)
    answer = ask("GET", "/v2/app/manifests/1")
    assert (answer.status, answer.headers.get("x-forged")) == (404, None)


def test_the_catalog_gives_paths_under_which_images_are_found(client: lamella.Client, ask: Ask) -> None:
    digest = name(
        client,
        "docker.io/library/nginx:1",
        "docker.io/team/app:1",
        "docker.io/foo.bar/x:1",
        "ghcr.io/team/app@sha256:" + "0" * 64,
        "localhost:5000/hidden:1",
        f"{NAME}/own/app:1",
        f"{TEAM}:1",
    )
    found = json.loads(ask("GET", "/v2/_catalog").body)["repositories"]
    assert found == [
        "docker.io/foo.bar/x",
        "ghcr.io/team/app",
        "library/nginx",
        "own/app",
        "team/app",
    ]
    for path in found:
        assert ask("GET", f"/v2/{path}/manifests/{digest}").status == 200


def test_the_registrys_own_image_comes_before_docker_ios_of_the_same_path(
    client: lamella.Client, ask: Ask
) -> None:
    name(client, "docker.io/library/nginx:1", "docker.io/library/nginx:2")
    put(ask, "/v2/nginx/manifests/1", OTHER)
    assert ask("GET", "/v2/nginx/manifests/1").body == OTHER
    assert ask("GET", "/v2/nginx/manifests/2").body == EMPTY_INDEX
    assert ask("GET", "/v2/docker.io/library/nginx/manifests/1").body == EMPTY_INDEX
    assert json.loads(ask("GET", "/v2/nginx/tags/list").body)["tags"] == ["1", "2"]
    assert ask("DELETE", "/v2/nginx/manifests/1").status == 202
    assert ask("GET", "/v2/nginx/manifests/1").body == EMPTY_INDEX


def test_what_is_pushed_is_an_image_of_the_registrys_name(client: lamella.Client, server: Any) -> None:
    pushed = push_image(server)
    image = client.images.get(f"{TEAM}:latest")
    assert image.target == pushed
    for part in (image.manifest.config, *image.layers, pushed):
        labels = client.content.info(part.digest).labels
        assert labels[DISTRIBUTION_SOURCE + NAME] == "team/app"


def test_nobody_writes_to_the_names_of_other_registries(client: lamella.Client, ask: Ask) -> None:
    digest = name(client, "docker.io/library/nginx:1")
    for method, path in (
        ("PUT", "/v2/library/nginx/manifests/1?ns=docker.io"),
        ("POST", "/v2/library/nginx/blobs/uploads/?ns=docker.io"),
        ("DELETE", "/v2/library/nginx/manifests/1?ns=docker.io"),
        ("DELETE", "/v2/library/nginx/manifests/1"),
        ("DELETE", f"/v2/library/nginx/manifests/{digest}"),
        ("DELETE", f"/v2/library/nginx/blobs/{digest}"),
    ):
        assert (
            ask(method, path, OTHER if method == "PUT" else b"", Content_Type=oci.OCI_INDEX).code == "DENIED"
        )
    assert client.images.get("nginx:1").digest == digest
    put(ask, "/v2/docker.io/library/nginx/manifests/1", OTHER)  # an own image with a long path
    assert client.images.get("nginx:1").digest == digest


@pytest.mark.parametrize("wrong", ["nodot", "a/b", "UPPER CASE", "", "host:99999"])
def test_a_name_that_no_image_can_have_is_refused(wrong: str, client: lamella.Client) -> None:
    with pytest.raises(InvalidArgument):
        StoreStorage(client, wrong)


def test_another_namespaces_images_are_not_served(client: lamella.Client, ask: Ask) -> None:
    with lamella.Client(client.config.root, client.config.state, namespace="other") as other:
        digest = name(other, f"{TEAM}:1", data=OTHER)
        other.content.write("blob", BLOB, digest=DIGEST, size=len(BLOB))
    assert ask("GET", f"/v2/team/app/manifests/{digest}").status == 404
    assert ask("POST", f"/v2/team/app/blobs/uploads/?mount={DIGEST}", b"").status == 202
    assert ask("POST", f"/v2/team/app/blobs/uploads/?digest={DIGEST}", BLOB).status == 201
    assert ask("GET", f"/v2/team/app/blobs/{DIGEST}").body == BLOB


# Pushes, and what holds them


def test_garbage_collection_between_all_steps_of_a_push_loses_nothing(
    client: lamella.Client, ask: Ask
) -> None:
    location = start(ask)
    client.gc()
    ask("PATCH", location, BLOB[:1000])
    client.gc()
    assert ask("PUT", f"{location}?digest={DIGEST}", BLOB[1000:]).status == 201
    client.gc()
    child = put(ask, "/v2/team/app/manifests/child", {"schemaVersion": 2, "mediaType": oci.OCI_MANIFEST,
        "config": {"mediaType": "a/b", "digest": DIGEST, "size": len(BLOB)}, "layers": []})  # fmt: skip
    digest = child.headers["docker-content-digest"]
    ask("DELETE", "/v2/team/app/manifests/child")
    client.gc()
    put(ask, "/v2/team/app/manifests/v1", index(digest))
    expire_pushes(client)
    client.gc()
    for path in (f"manifests/{digest}", f"blobs/{DIGEST}", "manifests/v1"):
        assert ask("GET", f"/v2/team/app/{path}").status == 200
    assert ask("DELETE", "/v2/team/app/manifests/v1").status == 202
    expire_pushes(client)
    client.gc()
    assert list(client.content.walk()) == []


def test_what_was_uploaded_waits_a_day_for_its_manifest(client: lamella.Client, ask: Ask) -> None:
    assert ask("POST", f"/v2/team/app/blobs/uploads/?digest={DIGEST}", BLOB).status == 201
    (lease,) = client.leases.list()
    assert lease.labels == {PUSHED: TEAM}
    assert lease.expires_at is not None
    assert timestamp(23 * 3600) < lease.expires_at < timestamp(26 * 3600)
    expire_pushes(client)
    assert ask("GET", f"/v2/team/app/blobs/{DIGEST}").status == 404
    client.gc()
    assert not client.content.exists(DIGEST)


def test_who_resolved_a_tag_that_moves_can_end_his_pull(client: lamella.Client, ask: Ask) -> None:
    digest = put(ask, "/v2/team/app/manifests/v1", EMPTY_INDEX).headers["docker-content-digest"]
    expire_pushes(client)
    put(ask, "/v2/team/app/manifests/v1", OTHER)
    client.gc()
    assert ask("GET", f"/v2/team/app/manifests/{digest}").body == EMPTY_INDEX
    expire_pushes(client)
    client.gc()
    assert ask("GET", f"/v2/team/app/manifests/{digest}").status == 404


def test_a_manifest_without_a_tag_is_an_image_by_digest(client: lamella.Client, ask: Ask) -> None:
    digest = digest_of(EMPTY_INDEX)
    put(ask, f"/v2/team/app/manifests/{digest}", EMPTY_INDEX)
    assert names(client) == [f"{TEAM}@{digest}"]
    expire_pushes(client)
    client.gc()
    assert ask("GET", f"/v2/team/app/manifests/{digest}").status == 200
    assert json.loads(ask("GET", "/v2/team/app/tags/list").body)["tags"] == []
    assert ask("DELETE", f"/v2/team/app/manifests/{digest}").status == 202
    assert names(client) == []
    client.gc()
    assert not client.content.exists(digest)


def test_the_entries_of_an_index_are_kept_by_it_and_are_no_images(client: lamella.Client, ask: Ask) -> None:
    child = digest_of(EMPTY_INDEX)
    put(ask, f"/v2/team/app/manifests/{child}", EMPTY_INDEX)
    put(ask, "/v2/team/app/manifests/v1", index(child))
    assert names(client) == [f"{TEAM}:v1"]
    put(ask, f"/v2/team/app/manifests/{child}", EMPTY_INDEX)
    assert names(client) == [f"{TEAM}:v1"]
    answer = ask("DELETE", f"/v2/team/app/manifests/{child}")
    assert (answer.status, answer.code) == (405, "UNSUPPORTED")
    assert ask("GET", f"/v2/team/app/manifests/{child}").status == 200
    # One that a user of this machine named by digest is his.
    client.images.put(f"{TEAM}@{child}", oci.Descriptor(oci.OCI_INDEX, child, len(EMPTY_INDEX)))
    put(ask, "/v2/team/app/manifests/v2", index(child, annotations={"a": "b"}))
    assert names(client) == [f"{TEAM}:v1", f"{TEAM}:v2", f"{TEAM}@{child}"]


@pytest.mark.parametrize("first", ["subject", "referrer"])
def test_a_referrer_lives_as_long_as_its_subject(first: str, client: lamella.Client, ask: Ask) -> None:
    subject = digest_of(EMPTY_INDEX)
    signature = index(
        subject={"mediaType": oci.OCI_INDEX, "digest": subject, "size": len(EMPTY_INDEX)},
        artifactType="application/vnd.example.signature",
    )
    digest = digest_of(json.dumps(signature).encode())
    pushes = [("v1", EMPTY_INDEX), (digest, signature)]
    for reference, document in pushes if first == "subject" else reversed(pushes):
        put(ask, f"/v2/team/app/manifests/{reference}", document)
    assert names(client) == [f"{TEAM}:v1"]
    assert client.content.info(digest).labels[SUBJECT] == subject
    expire_pushes(client)
    client.gc()
    (entry,) = json.loads(ask("GET", f"/v2/team/app/referrers/{subject}").body)["manifests"]
    assert (entry["digest"], entry["artifactType"]) == (digest, "application/vnd.example.signature")
    assert ask("DELETE", f"/v2/team/app/manifests/{digest}").status == 202
    assert json.loads(ask("GET", f"/v2/team/app/referrers/{subject}").body)["manifests"] == []
    client.gc()
    assert not client.content.exists(digest)
    put(ask, f"/v2/team/app/manifests/{digest}", signature)
    client.images.remove(f"{TEAM}:v1")
    expire_pushes(client)
    client.gc()
    assert list(client.content.walk()) == []


def test_a_blob_that_an_image_needs_cannot_be_deleted(client: lamella.Client, server: Any, ask: Ask) -> None:
    pushed = push_image(server)
    layer = client.images.get(f"{TEAM}:latest").layers[0].digest
    assert ask("DELETE", f"/v2/team/app/blobs/{layer}").code == "UNSUPPORTED"
    assert ask("DELETE", f"/v2/team/app/manifests/{pushed.digest}").status == 202
    assert ask("GET", f"/v2/team/app/blobs/{layer}").status == 404
    client.gc()
    assert list(client.content.walk()) == []


def test_naming_what_other_repositories_have_does_not_give_it(client: lamella.Client, ask: Ask) -> None:
    secret = name(client, "private.example/team/app:1")
    put(ask, "/v2/mine/manifests/v1", index(secret))
    assert ask("GET", f"/v2/mine/manifests/{secret}").status == 404
    wrong = ask("POST", f"/v2/mine/blobs/uploads/?digest={secret}", b"other bytes")
    assert (wrong.status, wrong.code) == (400, "DIGEST_INVALID")
    assert ask("GET", f"/v2/mine/blobs/{secret}").status == 404
    mounted = ask("POST", f"/v2/mine/blobs/uploads/?mount={secret}&from=other", b"")
    assert mounted.status == 202
    assert ask("GET", f"/v2/mine/blobs/{secret}").status == 404


def test_a_layer_that_was_dropped_is_said_to_be(client: lamella.Client, server: Any, ask: Ask) -> None:
    pushed = push_image(server)
    layer = client.images.get(f"{TEAM}:latest").layers[0].digest
    labels = {"lamella.dev/layers-discarded": timestamp(), "lamella.dev/discarded.l.0": layer,
        "containerd.io/gc.ref.content.l.0": ""}  # fmt: skip
    client.content.update_labels(pushed.digest, labels)
    expire_pushes(client)
    client.gc()
    answer = ask("GET", f"/v2/team/app/blobs/{layer}")
    assert (answer.status, answer.code) == (404, "BLOB_UNKNOWN")
    assert f"lamella pull {TEAM}:latest" in json.loads(answer.body)["errors"][0]["message"]
    assert ask("GET", "/v2/team/app/manifests/latest").status == 200
    # Who pushes it again sends the layer, and it is kept.
    again = push_image(server)
    assert again == pushed
    assert "lamella.dev/layers-discarded" not in client.content.info(pushed.digest).labels
    expire_pushes(client)
    client.gc()
    assert ask("GET", f"/v2/team/app/blobs/{layer}").status == 200


def test_a_damaged_blob_is_not_served(client: lamella.Client, server: Any, ask: Ask) -> None:
    pushed = push_image(server)
    layer = client.images.get(f"{TEAM}:latest").layers[0].digest
    client.content.path(layer).unlink()
    assert ask("HEAD", f"/v2/team/app/blobs/{layer}").status == 404
    assert ask("GET", f"/v2/team/app/blobs/{layer}").code == "BLOB_UNKNOWN"
    again = push_image(server)
    assert again == pushed
    assert ask("GET", f"/v2/team/app/blobs/{layer}").status == 200


# Uploads, over the lives of servers


def test_an_upload_is_an_ingest_and_goes_on_with_another_server(client: lamella.Client) -> None:
    with RegistryServer(client=client, name=NAME) as first, asking(first) as ask:
        location = start(ask)
        ask("PATCH", location, BLOB[:1000])
    (status,) = client.content.ingests()
    assert status.ref == f"registry/{TEAM}/{location.rpartition('/')[2]}"
    assert status.offset == 1000
    with (
        RegistryServer(client=client, name=NAME) as second,
        RegistryServer(client=client, name=NAME) as third,
        asking(second) as ask,
        asking(third) as ask_third,
    ):
        assert ask("GET", location).headers["range"] == "0-999"
        assert ask("PATCH", location, BLOB[1000:2000]).status == 202
        assert ask_third("PATCH", location, BLOB[2000:3000], Content_Range="2000-2999").status == 202
        assert ask("PUT", f"{location}?digest={DIGEST}", BLOB[3000:]).status == 201
        assert ask_third("GET", f"/v2/team/app/blobs/{DIGEST}").body == BLOB
    assert client.content.ingests() == []


def test_one_request_writes_to_an_upload(client: lamella.Client, ask: Ask) -> None:
    location = start(ask)
    with client.content.writer(client.content.ingests()[0].ref):
        answer = ask("PATCH", location, BLOB)
        assert (answer.status, answer.code) == (409, "BLOB_UPLOAD_INVALID")
    assert ask("PUT", f"{location}?digest={DIGEST}", BLOB).status == 201


@pytest.mark.parametrize("session", ["x", "0" * 31, "0" * 33, "0" * 32, "..%2f" * 3, "%00" * 32])
def test_an_upload_that_was_not_begun_is_unknown(session: str, client: lamella.Client, ask: Ask) -> None:
    assert ask("PATCH", f"/v2/team/app/blobs/uploads/{session}", BLOB).status == 404
    assert client.content.ingests() == []


def test_uploads_in_progress_are_limited(
    client: lamella.Client, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lamella.registry.server.store.UPLOADS_MAX", 2)
    locations = [start(ask) for _ in range(2)]
    assert ask("POST", "/v2/team/app/blobs/uploads/", b"").code == "TOOMANYREQUESTS"
    ask("DELETE", locations[0])
    start(ask)


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Callable[[], tuple[subprocess.Popen[str], str]]]:
    """Give a function that serves one store from a process of its own."""
    started = []

    def run() -> tuple[subprocess.Popen[str], str]:
        command = [sys.executable, "-m", "lamella.cli", "--root", str(tmp_path / "root"), "--state",
            str(tmp_path / "state"), "-q", "registry", "serve", "--writable", "--listen", "127.0.0.1:0",
            "--name", NAME]  # fmt: skip
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        return process, process.stdout.readline().strip()

    yield run
    for process in started:
        process.kill()
        process.wait(20)
        assert process.stdout is not None
        process.stdout.close()


class _At:
    """Stands for a server of another process."""

    def __init__(self, address: str) -> None:
        self.address = address


def test_an_upload_goes_on_after_its_server_was_killed(program: Any, client: lamella.Client) -> None:
    process, address = program()
    with asking(_At(address)) as ask:  # type: ignore[arg-type]
        location = start(ask)
        host, port = address.split(":")
        with socket.create_connection((host, int(port))) as sender:
            head = f"PATCH {location} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BLOB)}\r\n\r\n"
            sender.sendall(head.encode() + BLOB[:5000])
            until(lambda: client.content.ingests()[0].offset == 5000)
            os.kill(process.pid, signal.SIGKILL)
            process.wait(20)
            with suppress(OSError):
                sender.recv(1)
    _, address = program()
    with asking(_At(address)) as ask:  # type: ignore[arg-type]
        assert ask("GET", location).headers["range"] == "0-4999"
        assert ask("PUT", f"{location}?digest={DIGEST}", BLOB[5000:]).status == 201
        assert ask("GET", f"/v2/team/app/blobs/{DIGEST}").body == BLOB
    assert client.fsck().clean


def _refuses(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port)).close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_running_transfer_ends_in_peace_when_the_server_is_told_to_end(
    program: Any, client: lamella.Client
) -> None:
    process, address = program()
    with asking(_At(address)) as ask:  # type: ignore[arg-type]
        location = start(ask)
        host, port = address.split(":")
        with socket.create_connection((host, int(port))) as sender:
            head = (
                f"PUT {location}?digest={DIGEST} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BLOB)}\r\n\r\n"
            )
            sender.sendall(head.encode() + BLOB[:5000])
            until(lambda: client.content.ingests()[0].offset == 5000)
            process.send_signal(signal.SIGTERM)
            until(lambda: _refuses(host, int(port)))
            sender.sendall(BLOB[5000:])
            answer = sender.recv(10_000)
            assert answer.startswith(b"HTTP/1.1 201 ")
            assert b"Connection: close" in answer
    assert process.wait(60) == 0


def test_requests_and_bytes_are_counted_and_logged(
    client: lamella.Client, ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    before = {metric.name: metric for metric in client.metrics()}
    caplog.set_level("DEBUG", "lamella.registry")
    ask("POST", f"/v2/team/app/blobs/uploads/?digest={DIGEST}", BLOB)
    ask("GET", f"/v2/team/app/blobs/{DIGEST}", Range="bytes=0-99")
    ask("GET", "/v2/team/app/manifests/v1?ns=secret.example")
    after = {metric.name: metric for metric in client.metrics()}

    def grown(name: str) -> dict[tuple[str, ...], float]:
        old = {tuple(sample.labels.values()): sample.value for sample in before[name].samples}
        new = {tuple(sample.labels.values()): sample.value for sample in after[name].samples}
        return {labels: value - old[labels] for labels, value in new.items() if value != old[labels]}

    assert grown("lamella_registry_requests_total") == {("2xx",): 2, ("4xx",): 1}
    assert grown("lamella_registry_served_bytes_total") == {(): 100}
    assert grown("lamella_registry_received_bytes_total") == {(): len(BLOB)}
    put(ask, "/v2/team/app/manifests/v1", EMPTY_INDEX)
    lines = [(record.levelname, record.getMessage().partition(" after ")[0]) for record in caplog.records]
    assert lines == [
        ("DEBUG", "127.0.0.1 POST /v2/team/app/blobs/uploads/: 201"),
        ("DEBUG", f"127.0.0.1 GET /v2/team/app/blobs/{DIGEST}: 206"),
        ("DEBUG", "127.0.0.1 GET /v2/team/app/manifests/v1: 404"),
        ("INFO", "127.0.0.1 PUT /v2/team/app/manifests/v1: 201"),
    ]


def test_who_pushed_is_logged_once_a_guard_knows_him(
    client: lamella.Client, caplog: pytest.LogCaptureFixture
) -> None:
    said = {
        "Authorization": "Basic " + base64.b64encode(b"ann:secret").decode(),
        "Content_Type": oci.OCI_INDEX,
    }
    with caplog.at_level("DEBUG", "lamella.registry"):
        for guard in (basic_auth({"ann": "secret"}), basic_auth({"ann": "other"}), None):
            with RegistryServer(client=client, auth=guard) as server, asking(server) as ask:
                ask("PUT", "/v2/a/manifests/1", EMPTY_INDEX, **said)
                ask("GET", "/v2/")
    records = [record.getMessage().partition(" after")[0] for record in caplog.records]
    assert records == [
        "ann@127.0.0.1 PUT /v2/a/manifests/1: 201",
        "127.0.0.1 GET /v2/: 401",
        "127.0.0.1 PUT /v2/a/manifests/1: 401",
        "127.0.0.1 GET /v2/: 401",
        "127.0.0.1 PUT /v2/a/manifests/1: 201",
        "127.0.0.1 GET /v2/: 200",
    ]


def test_an_artifact_can_be_listed_and_looked_at(
    client: lamella.Client, server: RegistryServer, ask: Ask
) -> None:
    config = server.push_blob("team/sbom", b"{}", "application/vnd.oci.empty.v1+json")
    layer = server.push_blob("team/sbom", b"packages", "text/plain")
    server.push_manifest("team/sbom", "v1", oci.Manifest(config=config, layers=[layer]))
    (image,) = client.images.list()
    assert (image.name, image.layers) == (f"{NAME}/team/sbom:v1", [layer])
    assert image.size == len(b"{}packages") + client.content.info(image.digest).size
    client.gc()
    assert client.fsck().clean
    assert client.du()
    assert ask("GET", f"/v2/team/sbom/blobs/{layer.digest}").body == b"packages"
