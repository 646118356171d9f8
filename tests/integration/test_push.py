"""Pushing what is in the store, and copying between registries: against the in-process registry and hostile ones."""

from __future__ import annotations

import http.client
import io
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from registries import Asked, Reply, ScriptedServer, TokenServer, push_image

from lamella import Client, oci
from lamella.digest import digest_of
from lamella.errors import (
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unauthenticated,
    Unsupported,
)
from lamella.reference import Reference
from lamella.registry.client import RegistryClient
from lamella.registry.config import RegistryConfig, Timeouts
from lamella.registry.credentials import Credential
from lamella.registry.server import RegistryServer, basic_auth
from lamella.transfer.progress import Progress

QUICK = RegistryConfig(credentials={}, backoff=0.001, timeouts=Timeouts(5, 5))


@pytest.fixture
def server() -> Iterator[RegistryServer]:
    with RegistryServer() as opened:
        yield opened


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with Client(root=tmp_path / "root", state=tmp_path / "state", registry=QUICK) as opened:
        yield opened


def stored(client: Client, name: str, **options: Any) -> Any:
    """Put an image of random layers into the store, under a name of no registry that there is."""
    with RegistryServer() as source:
        push_image(source, **options)
        image = client.images.pull(f"{source.address}/team/app:latest", unpack=False)
        tagged = client.images.tag(image.name, name)
        client.images.remove(image.name)
    return tagged


def sent(server: RegistryServer) -> list[str]:
    return [
        f"{asked.method} {asked.path.rpartition('/')[0]}"
        for asked in server.requests
        if asked.method != "HEAD"
    ]


def digest_at(server: RegistryServer, repository: str, tag: str) -> str:
    return server.storage.repository(repository).manifest(tag).digest


def same_everywhere(client: Client, server: RegistryServer, repository: str, image: Any) -> None:
    """Compare all that an image leads to in the store and in a registry."""
    for descriptor in [image.manifest_descriptor, image.manifest.config, *image.layers]:
        data = client.content.read(descriptor.digest)
        with server.storage.repository(repository).open_blob(descriptor.digest) as blob:
            assert blob.read() == data


# Push


def test_all_of_an_image_arrives_and_is_not_sent_twice(client: Client, server: RegistryServer) -> None:
    image = stored(client, "app:1", layers=3)
    pushed = client.images.push("app:1", f"{server.address}/team/new:1")
    assert pushed.digest == image.digest == digest_at(server, "team/new", "1")
    assert pushed.names == [f"{server.address}/team/new:1"]
    assert pushed.blobs == {"sent": 4, "mounted": 0, "exists": 0}
    assert pushed.size == image.size
    same_everywhere(client, server, "team/new", image)
    server.requests.clear()
    again = client.images.push("app:1", f"{server.address}/team/new:1")
    assert again.sent_bytes == 0
    assert sent(server) == ["PUT /v2/team/new/manifests"]


def test_an_image_is_pushed_to_the_registry_of_its_name(client: Client, server: RegistryServer) -> None:
    image = stored(client, f"{server.address}/team/app:1")
    assert client.images.push(f"{server.address}/team/app:1").digest == image.digest
    assert server.storage.repository("team/app").tags() == ["1"]


def test_all_tags_are_set_by_one_request_where_the_registry_can(
    client: Client, server: RegistryServer
) -> None:
    stored(client, "app:1")
    pushed = client.images.push("app:1", f"{server.address}/team/app:1", tags=["2", "latest", "1"])
    assert pushed.names == [f"{server.address}/team/app:{tag}" for tag in ("1", "2", "latest")]
    assert server.storage.repository("team/app").tags() == ["1", "2", "latest"]
    assert sum(asked.method == "PUT" and "manifests" in asked.path for asked in server.requests) == 1


def test_by_digest_no_tag_is_set_and_another_digest_is_refused(
    client: Client, server: RegistryServer
) -> None:
    image = stored(client, "app:1")
    pushed = client.images.push("app:1", f"{server.address}/team/app@{image.digest}")
    assert pushed.names == [f"{server.address}/team/app@{image.digest}"]
    assert server.storage.repository("team/app").tags() == []
    with pytest.raises(InvalidArgument, match=image.digest):
        client.images.push("app:1", f"{server.address}/team/app@{digest_of(b'other')}")


def test_what_another_repository_has_is_mounted(client: Client, server: RegistryServer) -> None:
    push_image(server, "team/base")
    client.images.pull(f"{server.address}/team/base:latest", unpack=False)
    seen: list[Progress] = []
    pushed = client.images.push(
        f"{server.address}/team/base:latest", f"{server.address}/team/copy:1", progress=seen.append
    )
    assert pushed.blobs == {"sent": 0, "mounted": 3, "exists": 0}
    assert pushed.sent_bytes == 0
    assert "mounted" in {progress.phase for progress in seen}


def test_a_pushed_image_is_known_to_be_there_for_the_next_mount(
    client: Client, server: RegistryServer
) -> None:
    stored(client, "app:1")
    client.images.push("app:1", f"{server.address}/team/one:1")
    assert client.images.push("app:1", f"{server.address}/team/two:1").blobs["mounted"] == 3


def test_who_may_not_read_the_other_repository_sends(client: Client) -> None:
    def guard(access: Any) -> str | None:
        return 'Basic realm="test"' if access.repository == "secret" else None

    with RegistryServer(auth=guard) as server:
        image = stored(client, "app:1")
        label = {f"containerd.io/distribution.source.{server.address}": "secret"}
        for descriptor in [image.manifest.config, *image.layers]:
            client.content.update_labels(descriptor.digest, label)
        assert client.images.push("app:1", f"{server.address}/team/app:1").blobs["sent"] == 3


def test_a_token_for_both_repositories_of_a_mount_is_asked_for(client: Client) -> None:
    with TokenServer({"ann": "hunter2"}) as tokens, RegistryServer(auth=tokens.guard) as server:
        client.registry = RegistryConfig(
            credentials={server.address: Credential(username="ann", password="hunter2")}, backoff=0.001
        )
        push_image(server, "team/base")
        image = client.images.pull(f"{server.address}/team/base:latest", unpack=False)
        assert image.layers
        client.images.push(f"{server.address}/team/base:latest", f"{server.address}/team/copy:1")
        asked = [one.path for one in tokens.asked]
        assert any("team%2Fcopy%3Apull%2Cpush" in path and "team%2Fbase%3Apull" in path for path in asked)


def index_of(server: RegistryServer, *platforms: str) -> oci.Descriptor:
    """Put an index with an image for each platform into a registry."""
    entries = []
    for name in platforms:
        system, architecture = name.split("/")
        config = server.push_blob(
            "team/app", json.dumps({"os": system, "architecture": architecture}).encode(), oci.OCI_CONFIG
        )
        layer = server.push_blob("team/app", random.Random(name).randbytes(5000), oci.OCI_LAYER_GZIP)
        manifest = server.push_manifest("team/app", None, oci.Manifest(config=config, layers=[layer]))
        platform = oci.Platform(os=system, architecture=architecture)
        entries.append(oci.Descriptor(manifest.media_type, manifest.digest, manifest.size, platform=platform))
    return server.push_manifest("team/app", "latest", oci.Index(manifests=entries))


def test_of_an_index_that_is_here_in_part_the_one_manifest_goes(
    client: Client, server: RegistryServer
) -> None:
    with RegistryServer() as source:
        index = index_of(source, "linux/amd64", "linux/s390x")
        image = client.images.pull(f"{source.address}/team/app:latest", platform="linux/amd64", unpack=False)
    assert image.digest == index.digest
    pushed = client.images.push(image.name, f"{server.address}/team/app:1")
    assert pushed.digest == image.manifest_descriptor.digest
    assert pushed.left_out == ["linux/s390x"]
    with pytest.raises(FailedPrecondition, match="linux/s390x"):
        client.images.push(image.name, f"{server.address}/team/app:1", all_platforms=True)
    with pytest.raises(NotFound):
        client.images.push(image.name, f"{server.address}/team/app:1", platform="linux/s390x")
    with pytest.raises(NotFound):
        client.images.push(image.name, f"{server.address}/team/app:1", platform="linux/riscv64")


def test_a_whole_index_goes_as_it_is_and_one_platform_of_it_alone(
    client: Client, server: RegistryServer
) -> None:
    with RegistryServer() as source:
        index = index_of(source, "linux/amd64", "linux/s390x")
        name = f"{source.address}/team/app:latest"
        for platform in ("linux/amd64", "linux/s390x"):
            client.images.pull(name, platform=platform, unpack=False)
    pushed = client.images.push(name, f"{server.address}/team/app:1", all_platforms=True)
    assert (pushed.digest, pushed.left_out) == (index.digest, [])
    alone = client.images.push(name, f"{server.address}/team/alone:1", platform="linux/s390x")
    entries = oci.parse_index(client.content.read(index.digest)).manifests
    assert alone.digest == entries[1].digest == digest_at(server, "team/alone", "1")


def test_layers_that_were_not_kept_are_named_and_may_be_mounted(
    client: Client, server: RegistryServer
) -> None:
    from layers import Built, file, tar

    built = Built(tar(file("a")), tar(file("b")))
    name = built.push(server, "team/app", "latest")
    client.images.pull(name, keep_layers=False)
    with RegistryServer() as other:
        with pytest.raises(FailedPrecondition) as raised:
            client.images.push(name, f"{other.address}/team/app:1")
        assert "lamella pull" in (raised.value.hint or "")
        with pytest.raises(NotFound):
            digest_at(other, "team/app", "1")
    assert client.images.push(name, f"{server.address}/team/copy:1").blobs["sent"] == 0


def test_a_layer_that_is_damaged_on_disk_is_named(client: Client, server: RegistryServer) -> None:
    image = stored(client, "app:1")
    layer = image.layers[0]
    path = client.content.path(layer.digest)
    path.chmod(0o600)
    path.write_bytes(bytes(layer.size))
    with pytest.raises(DataLoss, match=f"{layer.digest} is damaged at its source"):
        client.images.push("app:1", f"{server.address}/team/app:1")
    with pytest.raises(NotFound):
        digest_at(server, "team/app", "1")


def test_a_read_only_registry_is_told_from_one_that_fails(client: Client) -> None:
    stored(client, "app:1")
    with RegistryServer(read_only=True) as server, pytest.raises(Unsupported, match="read-only") as raised:
        client.images.push("app:1", f"{server.address}/team/app:1")
    assert raised.value.hint


def test_without_credentials_it_says_how_to_log_in(client: Client) -> None:
    stored(client, "app:1")
    with RegistryServer(auth=basic_auth({"ann": "hunter2"})) as server:
        with pytest.raises(Unauthenticated) as raised:
            client.images.push("app:1", f"{server.address}/team/app:1")
        assert "og in" in (raised.value.hint or "")
        client.registry = RegistryConfig(
            credentials={server.address: Credential(username="ann", password="hunter2")}
        )
        client.images.push("app:1", f"{server.address}/team/app:1")


def test_layers_that_must_not_be_distributed_stay_here(client: Client, server: RegistryServer) -> None:
    with RegistryServer(sparse=True) as source:
        layer = source.push_blob("team/app", b"secret", oci.OCI_NONDISTRIBUTABLE + "+gzip")
        layer = oci.Descriptor(layer.media_type, layer.digest, layer.size, urls=["https://example.com/layer"])
        config = source.push_blob("team/app", b'{"os":"linux","architecture":"amd64"}', oci.OCI_CONFIG)
        source.push_manifest("team/app", "latest", oci.Manifest(config=config, layers=[layer]))
        name = f"{source.address}/team/app:latest"
        client.images.pull(name, unpack=False, foreign_layers=True)
    assert client.images.push(name, f"{server.address}/team/app:1").blobs["sent"] == 1
    assert not server.storage.repository("team/app").has_blob(layer.digest)
    client.images.push(name, f"{server.address}/team/other:1", foreign_layers=True)
    assert server.storage.repository("team/other").has_blob(layer.digest)


def test_a_callback_that_raises_leaves_no_name(client: Client, server: RegistryServer) -> None:
    stored(client, "app:1")

    def fail(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        client.images.push("app:1", f"{server.address}/team/app:1", progress=fail)
    with pytest.raises(NotFound):
        digest_at(server, "team/app", "1")


def test_a_token_that_ends_between_two_requests_is_replaced_and_the_body_sent_again() -> None:
    blob = random.Random(1).randbytes(3 << 20)
    descriptor = oci.Descriptor(oci.OCI_LAYER, digest_of(blob), len(blob))
    with TokenServer({"ann": "hunter2"}) as tokens:
        ended = iter([False, True] * 100)  # after each request the token has ended for the next

        def guard(access: Any) -> str | None:
            if access.action == "push" and access.authorization and next(ended):
                tokens.revoke()
            return tokens.guard(access)

        with RegistryServer(auth=guard) as server:
            ann = Credential(username="ann", password="hunter2")
            config = RegistryConfig(credentials={server.address: ann}, backoff=0.001)
            reference = Reference.parse(f"{server.address}/team/app:1")
            with RegistryClient(config) as client:
                sent = client.put_blob(reference, descriptor, lambda offset: io.BytesIO(blob[offset:]))
            assert sent == "sent"
            with server.storage.repository("team/app").open_blob(descriptor.digest) as stored_blob:
                assert stored_blob.read() == blob
            assert len(tokens.asked) == 2


@pytest.mark.parametrize("status", [429, 503])
def test_a_registry_that_puts_off_the_manifest_is_asked_again(client: Client, status: int) -> None:
    """After the pause that it asks for; nothing else is sent again."""
    image = stored(client, "app:1")
    busy = iter([True, True])
    with RegistryServer() as server:

        def script(asked: Asked) -> Reply:
            if asked.method == "PUT" and "/manifests/" in asked.path and next(busy, False):
                return Reply(status, {"Retry-After": "0"})
            connection = http.client.HTTPConnection(server.address, timeout=10)
            connection.request(asked.method, asked.path, asked.body, asked.headers)
            answer = connection.getresponse()
            reply = Reply(answer.status, dict(answer.getheaders()), answer.read())
            connection.close()
            return reply

        with ScriptedServer(script) as front:
            pushed = client.images.push("app:1", f"{front.address}/team/app:1")
            puts = [asked for asked in front.asked if asked.method == "PUT"]
        assert pushed.digest == image.digest == digest_at(server, "team/app", "1")
        assert len([asked for asked in puts if "/manifests/" in asked.path]) == 3
        assert len([asked for asked in puts if "/uploads/" in asked.path]) == 3


# Copy


def test_a_copy_has_the_same_digest_and_leaves_nothing_in_the_store(
    client: Client, server: RegistryServer
) -> None:
    with RegistryServer() as source:
        index = index_of(source, "linux/amd64", "linux/s390x")
        copied = client.images.copy(
            f"{source.address}/team/app:latest", f"{server.address}/team/copy:1", tags=["2"]
        )
    assert copied.digest == index.digest
    assert server.storage.repository("team/copy").tags() == ["1", "2"]
    assert copied.blobs["sent"] == 4
    assert not list(client.content.walk())
    assert not client.images.list()


def test_within_a_registry_blobs_are_mounted(client: Client, server: RegistryServer) -> None:
    index_of(server, "linux/amd64", "linux/s390x")
    copied = client.images.copy(f"{server.address}/team/app:latest", f"{server.address}/prod/app:1")
    assert copied.blobs == {"sent": 0, "mounted": 4, "exists": 0}


def test_one_platform_is_copied_alone(client: Client, server: RegistryServer) -> None:
    with RegistryServer() as source:
        index = index_of(source, "linux/amd64", "linux/s390x")
        copied = client.images.copy(
            f"{source.address}/team/app:latest", f"{server.address}/team/copy:1", platform="linux/s390x"
        )
        entries = oci.parse_index(source.storage.repository("team/app").manifest("latest").data).manifests
    assert index.digest != copied.digest == entries[1].digest


def test_what_refers_to_an_image_is_copied_along_and_listed_there(
    client: Client, server: RegistryServer
) -> None:
    with RegistryServer() as source:
        subject = push_image(source)
        empty = source.push_blob("team/app", b"{}", "application/vnd.oci.empty.v1+json")
        signature = source.push_manifest(
            "team/app",
            None,
            oci.Manifest(config=empty, layers=[empty], subject=subject, artifact_type="test/one"),
        )
        second = source.push_manifest(
            "team/app",
            None,
            oci.Manifest(config=empty, layers=[empty], subject=signature, artifact_type="test/two"),
        )
        client.images.copy(
            f"{source.address}/team/app:latest", f"{server.address}/team/copy:1", referrers=True
        )
    assert [one.digest for one in server.storage.repository("team/copy").referrers(subject.digest)] == [
        signature.digest
    ]
    assert [one.digest for one in server.storage.repository("team/copy").referrers(signature.digest)] == [
        second.digest
    ]


def test_a_source_that_lies_is_named_before_the_blob_is_finished(
    client: Client, server: RegistryServer
) -> None:
    with RegistryServer() as source:
        pushed = push_image(source)
        layer = oci.parse_manifest(source.storage.repository("team/app").manifest(pushed.digest).data).layers[
            0
        ]
        source.storage.blob_path(layer.digest).write_bytes(bytes(layer.size))
        with pytest.raises(DataLoss, match="damaged at its source"):
            client.images.copy(f"{source.address}/team/app:latest", f"{server.address}/team/copy:1")
    assert not any(asked.method == "PUT" and asked.status == 400 for asked in server.requests)
    assert not server.storage.repository("team/copy").has_blob(layer.digest)
    with pytest.raises(NotFound):
        digest_at(server, "team/copy", "1")


def test_a_hostile_list_of_referrers_comes_to_an_end(client: Client, server: RegistryServer) -> None:
    with RegistryServer() as source:
        subject = push_image(source)
        others = [push_image(source, tag=str(number)) for number in range(3)]
        manifests = [json.loads(oci.encode(one)) for one in [subject, *others]]
        listed = json.dumps({"schemaVersion": 2, "mediaType": oci.OCI_INDEX, "manifests": manifests}).encode()

        def script(asked: Asked) -> Reply:
            if "/referrers/" in asked.path:
                return Reply(200, {"Content-Type": oci.OCI_INDEX}, listed)
            if "/manifests/" in asked.path:
                stored = source.storage.repository("team/app").manifest(asked.path.rpartition("/")[2])
                return Reply(200, {"Content-Type": stored.media_type}, stored.data)
            with source.storage.repository("team/app").open_blob(asked.path.rpartition("/")[2]) as blob:  # type: ignore[arg-type]
                return Reply(200, {}, blob.read())

        with ScriptedServer(script) as lying:
            copied = client.images.copy(
                f"{lying.address}/team/app:latest", f"{server.address}/team/copy:1", referrers=True
            )
    assert copied.digest == subject.digest
    assert not server.storage.repository("team/copy").has_blob(others[0].digest)


def test_indexes_within_indexes_and_what_refers_to_each_part_are_copied_under_all_tags(
    client: Client, server: RegistryServer
) -> None:
    with RegistryServer() as source:
        inner = index_of(source, "linux/amd64", "linux/s390x")
        outer = source.push_manifest("team/app", "nested", oci.Index(manifests=[inner]))
        empty = source.push_blob("team/app", b"{}", oci.OCI_EMPTY)
        note = source.push_blob("team/app", b"signed", "text/plain")
        parts = [
            *oci.parse_index(source.storage.repository("team/app").manifest(inner.digest).data).manifests
        ]
        artifacts = [
            source.push_manifest(
                "team/app",
                None,
                oci.Manifest(config=empty, layers=[note], subject=subject, artifact_type="test/signature"),
            )
            for subject in (outer, inner, *parts)
        ]
        origin, target = f"{source.address}/team/app:nested", f"{server.address}/team/copy"
        copied = client.images.copy(origin, f"{target}:1", tags=["2", "3"], referrers=True)
        # An artifact that refers to something is copied by itself, too: without that.
        alone = client.images.copy(
            f"{source.address}/team/app@{artifacts[0].digest}", f"{server.address}/alone/x:1"
        )
        server.requests.clear()
        again = client.images.copy(origin, f"{target}:1", tags=["2", "3"], referrers=True)
    repository = server.storage.repository("team/copy")
    assert copied.digest == again.digest == outer.digest
    assert repository.tags() == ["1", "2", "3"]
    assert {repository.manifest(tag).digest for tag in repository.tags()} == {outer.digest}
    for subject, artifact in zip((outer, inner, *parts), artifacts, strict=True):
        assert [one.digest for one in repository.referrers(subject.digest)] == [artifact.digest]
    assert alone.digest == artifacts[0].digest == digest_at(server, "alone/x", "1")
    assert again.sent_bytes == 0
    assert {asked.method for asked in server.requests} <= {"HEAD", "GET", "PUT"}
    assert not [asked for asked in server.requests if "/uploads/" in asked.path]


COPY = r"""
import pathlib, re, resource, sys
import lamella
from lamella.registry.config import RegistryConfig
root, state, source, target = sys.argv[1:]
with lamella.Client(root, state, registry=RegistryConfig(credentials={})) as client:
    resource.setrlimit(resource.RLIMIT_FSIZE, (8 << 20, 8 << 20))  # no file may get longer
    client.images.copy(source, target)
# Not ru_maxrss: that begins with what the process had that started this one.
print(re.search(r"VmHWM:\s+([0-9]+) kB", pathlib.Path("/proc/self/status").read_text())[1])
"""


def test_a_copy_takes_no_more_memory_for_a_large_blob_and_puts_it_into_no_file(
    server: RegistryServer, tmp_path: Path
) -> None:
    taken = []
    with RegistryServer() as source:
        config = source.push_blob("team/app", b'{"os":"linux","architecture":"amd64"}', oci.OCI_CONFIG)
        for size in (1 << 20, 192 << 20):
            layer = source.push_blob("team/app", bytes(size), oci.OCI_LAYER)
            source.push_manifest("team/app", str(size), oci.Manifest(config=config, layers=[layer]))
            names = (f"{source.address}/team/app:{size}", f"{server.address}/team/copy:{size}")
            done = subprocess.run(
                [sys.executable, "-c", COPY, tmp_path / "root", tmp_path / "state", *names],
                capture_output=True,
                text=True,
                timeout=200,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            taken.append(int(done.stdout))
            assert server.storage.repository("team/copy").has_blob(layer.digest)
    small, large = taken  # KiB
    assert large - small < 48 * 1024, taken
    assert not [path for path in (tmp_path / "root/blobs").rglob("*") if path.is_file()]
