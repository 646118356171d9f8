"""Transfers over the socket are the library's, with progress and credentials over streams of the client's."""

from __future__ import annotations

import gzip
import io
import json
import logging
import re
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.empty_pb2 import Empty

import layers
from lamella import oci
from lamella.digest import digest_of
from lamella.errors import NotFound
from lamella.labels import GC_BACK_REF_IMAGE, GC_EXPIRE
from lamella.platforms import own_platform
from lamella.registry.server import RegistryServer, basic_auth
from lamella.serve.api import leases_pb2, transfer_pb2, types_pb2
from lamella.serve.api import transfer_types_pb2 as pb
from lamella.serve.messages import any_of
from lamella.structs import replace
from rpc import refusal
from streams import ClientStream
from waiting import until

pytestmark = pytest.mark.privileged

CODES = grpc.StatusCode
HERE = types_pb2.Platform(os="linux", architecture=own_platform().architecture)
THERE = types_pb2.Platform(os="linux", architecture="s390x")


@pytest.fixture
def registry() -> Iterator[RegistryServer]:
    with RegistryServer(sparse=True) as server:
        yield server


def built(platform: types_pb2.Platform = HERE) -> layers.Built:
    made = layers.Built(
        layers.tar(layers.file("below")), layers.tar(layers.file("name", platform.architecture.encode()))
    )
    made.platform = {"os": platform.os, "architecture": platform.architecture}
    return made


def push_index(
    registry: RegistryServer, *pushed: types_pb2.Platform
) -> tuple[str, layers.Built, layers.Built]:
    """Push an image for two platforms, or of one what is for those; give its reference and both."""
    images = [built(HERE), built(THERE)]
    entries = []
    for image in images:
        if not pushed or image.platform["architecture"] in [each.architecture for each in pushed]:
            image.push(registry, "multi", image.platform["architecture"])
        entries.append(
            oci.Descriptor(
                media_type=oci.OCI_MANIFEST,
                digest=digest_of(image.manifest),
                size=len(image.manifest),
                platform=oci.Platform(**image.platform),
            )
        )
    document = oci.encode({"schemaVersion": 2, "mediaType": oci.OCI_INDEX, "manifests": entries})
    registry.push_manifest("multi", "latest", document)
    return f"{registry.address}/multi:latest", images[0], images[1]


def remote(reference: str, **resolver: Any) -> pb.OCIRegistry:
    return pb.OCIRegistry(reference=reference, resolver=pb.RegistryResolver(**resolver))


def store(name: str, *platforms: types_pb2.Platform, unpack: bool = True, **fields: Any) -> pb.ImageStore:
    unpacks = [pb.UnpackConfiguration(platform=each) for each in platforms if unpack]
    return pb.ImageStore(name=name, platforms=platforms, unpacks=unpacks, **fields)


def transfer(served: Any, source: Any, destination: Any, progress: str = "", **options: Any) -> None:
    request = request_of(source, destination, progress)
    served.stub(transfer_pb2, "Transfer").Transfer(request, **options)


def request_of(source: Any, destination: Any, progress: str = "") -> transfer_pb2.TransferRequest:
    ends = [each if isinstance(each, Packed) else any_of(each) for each in (source, destination)]
    return transfer_pb2.TransferRequest(
        source=ends[0],
        destination=ends[1],
        options=transfer_pb2.TransferOptions(progress_stream=progress),
    )


def refused(served: Any, source: Any, destination: Any, progress: str = "") -> grpc.StatusCode:
    return refusal(served.stub(transfer_pb2, "Transfer").Transfer, request_of(source, destination, progress))


# Pull


def test_a_pull_brings_an_image_that_is_the_librarys(served: Any, registry: RegistryServer) -> None:
    made = built()
    reference = made.push(registry)
    transfer(served, remote(reference), store(reference, HERE, labels={"color": "red"}))
    image = served.client.images.get(reference)
    assert (image.digest, image.labels) == (digest_of(made.manifest), {"color": "red"})
    assert served.client.snapshots.stat(image.chain_id).kind == "committed"
    asked = len(registry.requests)
    transfer(served, remote(reference), store(reference, HERE))
    assert len(registry.requests) == asked + 1
    assert served.client.images.get(reference).labels == {}  # containerd replaces them


def test_a_pull_without_unpacking_makes_no_snapshot(served: Any, registry: RegistryServer) -> None:
    reference = built().push(registry)
    transfer(served, remote(reference), store(reference, HERE, unpack=False))
    image = served.client.images.get(reference)
    assert all(served.client.content.exists(layer.digest) for layer in image.layers)
    with pytest.raises(NotFound):
        served.client.snapshots.stat(image.chain_id)


def test_a_pull_unpacks_into_the_snapshotter_that_is_asked_for(served: Any, registry: RegistryServer) -> None:
    reference = built().push(registry)
    native = pb.UnpackConfiguration(platform=HERE, snapshotter="native")
    transfer(served, remote(reference), pb.ImageStore(name=reference, platforms=[HERE], unpacks=[native]))
    chain_id = served.client.images.get(reference).chain_id
    assert served.client.using("native").snapshots.stat(chain_id).kind == "committed"
    with pytest.raises(NotFound):
        served.client.snapshots.stat(chain_id)
    other = pb.UnpackConfiguration(platform=HERE, snapshotter="zfs")
    wrong = pb.ImageStore(name=reference, platforms=[HERE], unpacks=[other])
    assert refused(served, remote(reference), wrong) is CODES.INVALID_ARGUMENT


def test_platforms_are_those_that_are_asked_for(served: Any, registry: RegistryServer) -> None:
    reference, here, there = push_index(registry)
    exists = served.client.content.exists
    transfer(served, remote(reference), store(reference, HERE))
    assert exists(digest_of(here.layers[1])) and not exists(digest_of(there.layers[1]))
    transfer(served, remote(reference), store(reference, HERE, THERE))
    assert exists(digest_of(there.layers[1]))
    for image in (here, there):
        assert served.client.snapshots.stat(oci.chain_ids(image.diff_ids)[-1]).kind == "committed"


def test_metadata_of_other_platforms_comes_along_where_it_is_asked_for(
    served: Any, registry: RegistryServer
) -> None:
    reference, here, there = push_index(registry)
    exists = served.client.content.exists
    transfer(served, remote(reference), store(reference, HERE))
    assert not exists(digest_of(there.manifest))
    transfer(served, remote(reference), store(reference, HERE, all_metadata=True))
    assert exists(digest_of(there.manifest)) and exists(digest_of(there.config))
    assert not exists(digest_of(there.layers[1]))
    served.client.gc()
    assert exists(digest_of(there.manifest)) and exists(digest_of(there.config))
    asked = len(registry.requests)
    transfer(served, remote(reference), store(reference, HERE, all_metadata=True))
    assert len(registry.requests) == asked + 1
    transfer(served, remote(reference), store(reference, THERE, all_metadata=True))
    assert exists(digest_of(there.layers[1])) and exists(digest_of(here.layers[1]))
    assert served.client.fsck().findings == []


def test_metadata_that_is_not_there_fails_the_pull(served: Any, registry: RegistryServer) -> None:
    reference, _, _ = push_index(registry, HERE)
    assert refused(served, remote(reference), store(reference, HERE, all_metadata=True)) is CODES.NOT_FOUND
    assert served.client.images.list() == []
    transfer(served, remote(reference), store(reference, HERE))


def test_an_image_for_one_platform_comes_whatever_it_is_for(served: Any, registry: RegistryServer) -> None:
    made = built(THERE)
    reference = made.push(registry)
    transfer(served, remote(reference), store(reference, HERE))
    assert all(served.client.content.exists(digest_of(layer)) for layer in made.layers)
    chain_id = oci.chain_ids(made.diff_ids)[-1]
    assert served.client.snapshots.stat(chain_id).kind == "committed"
    served.client.images.remove(reference, sync=True)
    unpack = pb.UnpackConfiguration(platform=HERE)
    transfer(served, remote(reference), pb.ImageStore(name=reference, unpacks=[unpack]))
    assert served.client.snapshots.stat(chain_id).kind == "committed"
    served.client.images.remove(reference, sync=True)
    made.platform = {"os": "windows", "architecture": "amd64"}
    made.push(registry)
    transfer(served, remote(reference), store(reference, HERE))
    assert all(served.client.content.exists(digest_of(layer)) for layer in made.layers)
    with pytest.raises(NotFound):
        served.client.snapshots.stat(chain_id)


def test_an_index_without_the_platform_is_not_pulled(served: Any, registry: RegistryServer) -> None:
    reference, _, _ = push_index(registry)
    other = types_pb2.Platform(os="linux", architecture="riscv64")
    assert refused(served, remote(reference), store(reference, other)) is CODES.NOT_FOUND
    assert served.client.images.list() == []


def test_no_platform_means_all(served: Any, registry: RegistryServer) -> None:
    reference, here, there = push_index(registry)
    unpack = pb.UnpackConfiguration(platform=THERE)
    transfer(served, remote(reference), pb.ImageStore(name=reference, unpacks=[unpack]))
    assert all(served.client.content.exists(digest_of(each.layers[1])) for each in (here, there))
    snapshots = served.client.snapshots
    assert snapshots.stat(oci.chain_ids(there.diff_ids)[-1]).kind == "committed"
    with pytest.raises(NotFound):
        snapshots.stat(oci.chain_ids(here.diff_ids)[-1])


def test_an_image_gets_the_names_that_are_asked_for(served: Any, registry: RegistryServer) -> None:
    reference = built().push(registry)
    further = [
        pb.ImageReference(name="another"),
        pb.ImageReference(name="by", is_prefix=True, add_digest=True),
        pb.ImageReference(name="prefix", is_prefix=True),
    ]
    transfer(served, remote(reference), store("Any Name", HERE, labels={"a": "b"}, extra_references=further))
    images = {image.name: image for image in served.client.images.list()}
    digest = images["Any Name"].digest
    assert set(images) == {"Any Name", "another", f"by@{digest}"}
    assert images["Any Name"].labels == {"a": "b"}
    labels = images["another"].labels
    assert labels.pop(GC_EXPIRE)
    assert labels == {"a": "b", GC_BACK_REF_IMAGE: "Any Name"}


def test_a_pull_needs_a_name(served: Any, registry: RegistryServer) -> None:
    reference = built().push(registry)
    assert refused(served, remote(reference), pb.ImageStore(platforms=[HERE])) is CODES.NOT_FOUND
    assert served.client.images.list() == []


def test_the_lease_keeps_what_came_when_the_image_goes(served: Any, registry: RegistryServer) -> None:
    reference = built().push(registry)
    leases = served.stub(leases_pb2, "Leases")
    leases.Create(leases_pb2.CreateRequest(id="held"))
    transfer(served, remote(reference), store(reference, HERE), lease="held")
    image = served.client.images.get(reference)
    layer, chain_id = image.layers[0].digest, image.chain_id
    served.client.images.remove(reference, sync=True)
    assert served.client.content.exists(layer)
    assert served.client.snapshots.stat(chain_id)
    leases.Delete(leases_pb2.DeleteRequest(id="held", sync=True))
    assert not served.client.content.exists(layer)


def test_progress_comes_as_containerds_events(served: Any, registry: RegistryServer) -> None:
    reference, here, _ = push_index(registry)
    stream = ClientStream(served, "progress")
    transfer(served, remote(reference), store(reference, HERE), progress="progress")
    events = stream.rest(pb.Progress)
    where = f"OCI Registry ({reference})"
    statuses = [each.event for each in events if not each.name]
    assert statuses == [f"Resolving from {where}", f"Pulling from {where}", f"Completed pull from {where}"]
    named = [each for each in events if each.name]
    index = served.client.images.get(reference).digest
    assert [(each.event, each.desc.digest) for each in named if each.name == reference] == [
        ("fetching image content", index),
        ("saved", index),
    ]
    last = {each.name: each for each in named}
    manifest = f"manifest-{digest_of(here.manifest)}"
    assert list(last[f"index-{index}"].parents) == [reference]
    assert list(last[manifest].parents) == [f"index-{index}"]
    assert last[f"config-{digest_of(here.config)}"].event == "complete"
    for blob in here.layers:
        layer = last[f"layer-{digest_of(blob)}"]
        assert (layer.event, layer.progress, layer.total) == ("extracted", len(blob), len(blob))
        assert (list(layer.parents), layer.desc.size) == ([manifest], len(blob))
    order = [each.name for each in named]
    assert all(order.index(parent) < order.index(each.name) for each in named for parent in each.parents)


def test_progress_says_what_is_here_already(served: Any, registry: RegistryServer) -> None:
    made = built()
    reference = made.push(registry)
    transfer(served, remote(reference), store(reference, HERE))
    stream = ClientStream(served, "progress")
    transfer(served, remote(reference), store(reference, HERE), progress="progress")
    events = {each.name: each.event for each in stream.rest(pb.Progress)}
    assert events[f"layer-{digest_of(made.layers[0])}"] == "already exists"
    assert events[reference] == "saved"


def test_a_client_that_hears_no_progress_stops_nothing(served: Any, registry: RegistryServer) -> None:
    reference = built().push(registry)
    stream = ClientStream(served, "progress")

    def guard(_: Any) -> str | None:
        stream.call.cancel()
        return None

    registry.auth = guard
    transfer(served, remote(reference), store(reference, HERE), progress="progress")
    assert served.client.images.get(reference)


@pytest.fixture
def guarded() -> Iterator[RegistryServer]:
    with RegistryServer(auth=basic_auth({"user": "secret"})) as server:
        server.auth, guard = None, server.auth
        built().push(server)
        server.auth = guard
        yield server


def answer(stream: ClientStream, *answers: pb.AuthResponse) -> tuple[threading.Thread, list[pb.AuthRequest]]:
    """Answer questions for credentials; give the thread that does, and what it is asked."""
    asked: list[pb.AuthRequest] = []

    def run() -> None:
        for each in answers:
            asked.append(stream.receive(pb.AuthRequest))
            stream.send(each)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, asked


@pytest.mark.parametrize(
    "given",
    [
        pb.AuthResponse(authType=pb.CREDENTIALS, username="user", secret="secret"),
        pb.AuthResponse(authType=pb.HEADER, secret="Basic dXNlcjpzZWNyZXQ="),
    ],
)
def test_the_client_is_asked_for_credentials(
    served: Any, guarded: RegistryServer, given: pb.AuthResponse
) -> None:
    reference = f"{guarded.address}/made:latest"
    stream = ClientStream(served, "credentials")
    thread, asked = answer(stream, given)
    transfer(served, remote(reference, auth_stream="credentials"), store(reference, HERE))
    thread.join()
    assert asked == [pb.AuthRequest(host=guarded.address, reference=reference)]
    assert served.client.images.get(reference)


@pytest.mark.parametrize(
    ("given", "code"),
    [
        (pb.AuthResponse(authType=pb.CREDENTIALS, username="user", secret="other"), CODES.UNAUTHENTICATED),
        (pb.AuthResponse(authType=pb.REFRESH), CODES.UNAUTHENTICATED),
        (pb.AuthResponse(authType=pb.HEADER, secret="Digest x"), CODES.INVALID_ARGUMENT),
        (pb.AuthResponse(authType=pb.HEADER, secret="Basic x"), CODES.INVALID_ARGUMENT),
        (Empty(), CODES.INVALID_ARGUMENT),
    ],
)
def test_wrong_credentials_are_refused(
    served: Any, guarded: RegistryServer, given: Any, code: grpc.StatusCode
) -> None:
    reference = f"{guarded.address}/made:latest"
    stream = ClientStream(served, "credentials")
    thread, _ = answer(stream, given)
    source = remote(reference, auth_stream="credentials")
    assert refused(served, source, store(reference, HERE)) is code
    thread.join()


def test_without_a_stream_there_are_no_credentials(
    served: Any, guarded: RegistryServer, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = f"{guarded.address}/made:latest"
    file = tmp_path / "auth.json"
    file.write_text(json.dumps({"auths": {guarded.address: {"auth": "dXNlcjpzZWNyZXQ="}}}))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(file))
    assert served.client.images.pull(reference)  # the library has its own
    assert refused(served, remote(reference), store(reference, HERE)) is CODES.UNAUTHENTICATED
    stream = ClientStream(served, "credentials")
    stream.say_all()
    source = remote(reference, auth_stream="credentials")
    assert refused(served, source, store(reference, HERE)) is CODES.UNAUTHENTICATED


def test_headers_go_to_the_registry(served: Any, registry: RegistryServer) -> None:
    reference = built().push(registry)
    seen: list[str | None] = []

    def guard(access: Any) -> str | None:
        seen.append(access.authorization)
        return None

    registry.auth = guard
    source = remote(reference, headers={"Authorization": "Custom one"})
    transfer(served, source, store(reference, HERE))
    assert set(seen) == {"Custom one"}


class LogListener:
    """A client that takes what is said to registries, over a stream of its own."""

    def __init__(self, served: Any) -> None:
        self.stream = ClientStream(served, "logs")
        self.stream.send(pb.WindowUpdate(update=1 << 20))

    def text(self) -> str:
        """Give all that came, once the server has ended the stream."""
        return b"".join(each.data for each in self.stream.rest(pb.Data)).decode()


def test_what_is_said_to_the_registry_is_shown_without_secrets(served: Any, guarded: RegistryServer) -> None:
    reference = f"{guarded.address}/made:latest"
    logs, credentials = LogListener(served), ClientStream(served, "credentials")
    thread, _ = answer(
        credentials, pb.AuthResponse(authType=pb.CREDENTIALS, username="user", secret="secret")
    )
    source = remote(
        reference,
        auth_stream="credentials",
        http_debug=pb.DEBUG,
        logs_stream="logs",
        headers={"X-Token": "hidden"},
    )
    transfer(served, source, store(reference, HERE))
    thread.join()
    text = logs.text()
    assert "/v2/made/manifests/latest HTTP/1.1\r\n" in text
    assert f"Host: {guarded.address}\r\n" in text
    assert "HTTP/1.1 401" in text and "HTTP/1.1 200 OK\r\n" in text
    assert "Authorization: ...\r\n" in text and "X-Token: ...\r\n" in text
    assert "Basic dXNlcjpzZWNyZXQ=" not in text and "hidden" not in text
    assert text.count("\r\n\r\n") == 2 * len(guarded.requests)


@pytest.mark.parametrize(("which", "shows_heads"), [(pb.TRACE, False), (pb.BOTH, True)])
def test_a_line_tells_of_each_request(
    served: Any, registry: RegistryServer, which: int, shows_heads: bool
) -> None:
    reference = built().push(registry)
    logs = LogListener(served)
    source = remote(reference, http_debug=which, logs_stream="logs")
    transfer(served, source, store(reference, HERE))
    text = logs.text()
    assert f"GET http://{registry.address}/v2/made/manifests/sha256:" in text
    assert len(re.findall(r"(?m): 200 in \d+\.\d{3} s$", text)) == len(registry.requests)
    assert ("HTTP/1.1" in text) is shows_heads


def test_ctr_shows_what_is_said_to_the_registry(
    served: Any, registry: RegistryServer, ctr_program: Callable[[str], Path]
) -> None:
    # Not a transcript: containerd 2.4 itself ends by a panic now and then when this is asked of it.
    reference = built().push(registry)
    pull = [ctr_program("2.4"), "--address", served.address, "images", "pull", "--plain-http"]
    done = subprocess.run([*pull, "--http-dump", reference], capture_output=True, text=True, check=True)
    assert "/v2/made/manifests/" in done.stderr and "HTTP/1.1 200" in done.stderr
    subprocess.run([*pull, "--http-trace", reference], capture_output=True, check=True)


def test_what_is_said_is_logged_where_there_is_no_stream(
    served: Any, registry: RegistryServer, pulled: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "lamella.serve")
    target = f"{registry.address}/pushed:1"
    transfer(served, pb.ImageStore(name=pulled), remote(target, http_debug=pb.TRACE))
    assert any("/v2/pushed/manifests/" in record.getMessage() for record in caplog.records)


def test_a_client_that_takes_no_logs_stops_nothing(served: Any, registry: RegistryServer) -> None:
    reference = built().push(registry)
    logs = LogListener(served)

    def guard(_: Any) -> str | None:
        logs.stream.call.cancel()
        return None

    registry.auth = guard
    transfer(served, remote(reference, http_debug=pb.BOTH, logs_stream="logs"), store(reference, HERE))
    assert served.client.images.get(reference)


def test_hosts_are_those_of_the_clients_folder(served: Any, registry: RegistryServer, tmp_path: Any) -> None:
    built().push(registry)
    folder = tmp_path / "hosts" / "example.com"
    folder.mkdir(parents=True)
    (folder / "hosts.toml").write_text(f'server = "http://{registry.address}"\n')
    reference = "example.com/made:latest"
    source = remote(reference, host_dir=str(folder.parent), default_scheme="http")
    transfer(served, source, store(reference, HERE))
    assert served.client.images.get(reference).digest == digest_of(built().manifest)


# Tag


def test_a_tag_is_another_name(served: Any, registry: RegistryServer) -> None:
    reference = built().push(registry)
    transfer(served, remote(reference), store(reference, HERE))
    for _ in range(2):
        transfer(served, pb.ImageStore(name=reference), pb.ImageStore(name="other", labels={"a": "b"}))
        image = served.client.images.get("other", exact=True)
        assert (image.target, image.labels) == (served.client.images.get(reference).target, {"a": "b"})
    assert refused(served, pb.ImageStore(name="nobody"), pb.ImageStore(name="o")) is CODES.NOT_FOUND
    assert refused(served, pb.ImageStore(name=reference), pb.ImageStore()) is CODES.NOT_FOUND


# Push


@pytest.fixture
def pulled(served: Any, registry: RegistryServer) -> str:
    """An image for this machine that is in the store and in the registry."""
    reference = built().push(registry)
    transfer(served, remote(reference), store(reference, HERE))
    return reference


def test_a_push_gives_the_registry_what_is_here(served: Any, registry: RegistryServer, pulled: str) -> None:
    target = f"{registry.address}/pushed:1"
    stream = ClientStream(served, "progress")
    transfer(served, pb.ImageStore(name=pulled), remote(target), progress="progress")
    image = served.client.images.get(pulled)
    assert served.client.remote.tags(f"{registry.address}/pushed") == ["1"]
    assert served.client.remote.inspect(target).target.digest == image.digest
    events = stream.rest(pb.Progress)
    where = f"OCI Registry ({target})"
    assert [each.event for each in events if not each.name] == [
        f"Pushing to {where}",
        f"Completed push to {where}",
    ]
    assert [each.event for each in events if each.name == pulled] == ["pushing content", "pushed content"]
    manifest = [each.event for each in events if each.name == f"manifest-{image.digest}"]
    assert manifest == ["waiting", "complete"]
    last = {each.name: each for each in events}
    assert {last[f"layer-{layer.digest}"].event for layer in image.layers} <= {"complete", "already exists"}


def test_a_push_of_one_platform_sends_its_manifest(served: Any, registry: RegistryServer) -> None:
    reference, _, there = push_index(registry)
    transfer(served, remote(reference), pb.ImageStore(name=reference))
    inspect = served.client.remote.inspect
    for number, (platforms, digest) in enumerate(
        [
            ([THERE], digest_of(there.manifest)),
            ([HERE, THERE], served.client.images.get(reference).digest),
            ([], served.client.images.get(reference).digest),
        ]
    ):
        target = f"{registry.address}/pushed:{number}"
        transfer(served, pb.ImageStore(name=reference, platforms=platforms), remote(target))
        assert inspect(target).target.digest == digest


def test_a_push_of_several_platforms_needs_all(served: Any, registry: RegistryServer) -> None:
    reference, _, _ = push_index(registry)
    transfer(served, remote(reference), store(reference, HERE))
    target = remote(f"{registry.address}/pushed:1")
    both = pb.ImageStore(name=reference, platforms=[HERE, THERE])
    assert refused(served, both, target) is CODES.FAILED_PRECONDITION


def test_what_cannot_be_pushed_is_refused(served: Any, registry: RegistryServer, pulled: str) -> None:
    target = f"{registry.address}/pushed:1"
    assert refused(served, pb.ImageStore(name="nobody"), remote(target)) is CODES.NOT_FOUND
    assert refused(served, pb.ImageStore(name=pulled), remote("")) is CODES.INVALID_ARGUMENT
    registry.auth = basic_auth({"user": "secret"})
    assert refused(served, pb.ImageStore(name=pulled), remote(target)) is CODES.UNAUTHENTICATED


# Export


class Listener:
    """A client that takes an archive as containerd's does: a window of 64 KiB, opened again when it is half used."""

    def __init__(self, served: Any) -> None:
        self.stream = ClientStream(served, "archive")
        self.data = b""
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        window = 64 * 1024
        self.stream.send(pb.WindowUpdate(update=window))
        for packed in self.stream.call:
            data = pb.Data.FromString(packed.value).data
            self.data += data
            window -= len(data)
            assert window >= 0
            if window < 64 * 1024:
                self.stream.send(pb.WindowUpdate(update=64 * 1024))
                window += 64 * 1024

    def files(self) -> dict[str, bytes]:
        """Give what is in the archive, once it has come."""
        self._thread.join()
        with tarfile.open(fileobj=io.BytesIO(self.data)) as archive:
            return {member.name: file.read() for member in archive if (file := archive.extractfile(member))}


def export(served: Any, source: pb.ImageStore, **fields: Any) -> dict[str, bytes]:
    listener = Listener(served)
    transfer(served, source, pb.ImageExportStream(stream="archive", **fields))
    return listener.files()


def blob(digest: str) -> str:
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"


def test_an_export_goes_over_the_stream(served: Any, pulled: str, tmp_path: Any) -> None:
    served.client.images.tag(pulled, "example.com/other:1")
    names = [pb.ImageReference(name=pulled), pb.ImageReference(name="example.com/other:1")]
    stream = ClientStream(served, "progress")
    listener = Listener(served)
    source = pb.ImageStore(extra_references=names)
    transfer(served, source, pb.ImageExportStream(stream="archive"), progress="progress")
    listener.files()
    file = tmp_path / "image.tar"
    served.client.images.export([pulled, "example.com/other:1"], file)
    assert listener.data == file.read_bytes()
    assert [each.event for each in stream.rest(pb.Progress)] == ["Exporting", "Completed export"]


def test_an_export_may_leave_dockers_manifest_out(served: Any, pulled: str) -> None:
    files = export(served, pb.ImageStore(name=pulled), skip_compatibility_manifest=True)
    assert "manifest.json" not in files and "index.json" in files
    assert "manifest.json" in export(served, pb.ImageStore(name=pulled))


def test_an_export_has_the_platforms_that_are_asked_for(served: Any, registry: RegistryServer) -> None:
    reference, here, there = push_index(registry)
    image = pb.ImageStore(name=reference)
    transfer(served, remote(reference), store(reference, HERE))
    files = export(served, image)
    index = served.client.images.get(reference).digest
    assert {blob(index), blob(digest_of(here.layers[1]))} <= files.keys()
    assert refused(served, image, export_to(served, platforms=[THERE])) is CODES.FAILED_PRECONDITION
    assert refused(served, image, export_to(served, all_platforms=True)) is CODES.FAILED_PRECONDITION
    transfer(served, remote(reference), image)
    files = export(served, image, platforms=[THERE])
    assert {blob(index), blob(digest_of(there.layers[1]))} <= files.keys()
    assert blob(digest_of(here.layers[1])) not in files
    files = export(served, image, all_platforms=True)
    assert {blob(digest_of(each.layers[1])) for each in (here, there)} <= files.keys()


def export_to(served: Any, **fields: Any) -> pb.ImageExportStream:
    listener = Listener(served)
    return pb.ImageExportStream(stream=listener.stream.id, **fields)


def test_an_export_leaves_out_manifests_whose_layers_are_not_here(
    served: Any, registry: RegistryServer
) -> None:
    reference, here, there = push_index(registry)
    transfer(served, remote(reference), store(reference, HERE))
    document = there.manifest  # as a client fetches it for its own sake
    served.client.content.write("ref", document, digest=digest_of(document), size=len(document))
    files = export(served, pb.ImageStore(name=reference))
    assert blob(digest_of(here.manifest)) in files and blob(digest_of(there.manifest)) not in files


def test_what_cannot_be_exported_is_refused(served: Any, pulled: str) -> None:
    nobody = pb.ImageStore(name="nobody")
    assert refused(served, nobody, pb.ImageExportStream(stream="nobody")) is CODES.NOT_FOUND
    assert refused(served, nobody, export_to(served)) is CODES.NOT_FOUND
    prefix = pb.ImageStore(extra_references=[pb.ImageReference(name=pulled, is_prefix=True)])
    assert refused(served, prefix, export_to(served)) is CODES.UNIMPLEMENTED
    assert refused(served, pb.ImageStore(), export_to(served)) is CODES.INVALID_ARGUMENT


def test_an_export_ends_when_its_client_takes_no_more(served: Any, pulled: str) -> None:
    stream = ClientStream(served, "archive")
    stream.say_all()
    target = pb.ImageExportStream(stream="archive")
    assert refused(served, pb.ImageStore(name=pulled), target) is CODES.UNAVAILABLE


# Import


def archive_of(made: layers.Built, *names: str) -> bytes:
    """Write an OCI layout; names with a slash are whole ones, others tags."""
    entries = []
    for name in names or ("",):
        kind = "io.containerd.image.name" if "/" in name else "org.opencontainers.image.ref.name"
        target = oci.Descriptor(oci.OCI_MANIFEST, digest_of(made.manifest), len(made.manifest))
        entries.append(replace(target, annotations={kind: name} if name else None))
    index = oci.encode({"schemaVersion": 2, "mediaType": oci.OCI_INDEX, "manifests": entries})
    blobs = [made.manifest, made.config, *made.layers]
    files = {blob(digest_of(data)): data for data in blobs}
    files |= {"index.json": index, "oci-layout": b'{"imageLayoutVersion": "1.0.0"}'}
    return layers.tar(*(layers.file(name, data) for name, data in files.items()))


def send(served: Any, data: bytes) -> pb.ImageImportStream:
    """Send an archive, in pieces, once it is asked for."""
    stream = ClientStream(served, "archive")
    for start in range(0, len(data), 1000):
        stream.send(pb.Data(data=data[start : start + 1000]))
    stream.say_all()
    SENDING.append(stream)
    return pb.ImageImportStream(stream="archive")


SENDING: list[ClientStream] = []


@pytest.fixture(autouse=True)
def _no_streams() -> Iterator[None]:
    yield
    SENDING.clear()


def prefix(name: str, **fields: Any) -> pb.ImageReference:
    return pb.ImageReference(name=name, is_prefix=True, **fields)


def test_an_import_comes_over_the_stream(served: Any) -> None:
    made = built()
    target = store("", HERE, extra_references=[prefix("import", allow_overwrite=True)], labels={"a": "b"})
    stream = ClientStream(served, "progress")
    transfer(served, send(served, archive_of(made, "example.com/app:1")), target, progress="progress")
    image = served.client.images.get("example.com/app:1")
    assert (image.digest, image.labels) == (digest_of(made.manifest), {"a": "b"})
    assert served.client.snapshots.stat(image.chain_id).kind == "committed"
    events = [(each.event, each.name) for each in stream.rest(pb.Progress)]
    assert events == [("Importing", ""), ("saved", "example.com/app:1"), ("Completed import", "")]


def test_an_import_without_unpacking_makes_no_snapshot(served: Any) -> None:
    archive = send(served, archive_of(built(), "example.com/app:1"))
    reference = prefix("example.com/app")
    transfer(served, archive, store("", HERE, unpack=False, extra_references=[reference]))
    image = served.client.images.get("example.com/app:1")
    with pytest.raises(NotFound):
        served.client.snapshots.stat(image.chain_id)


def test_compressed_archives_are_imported_too(served: Any) -> None:
    archive = send(served, gzip.compress(archive_of(built(), "example.com/app:1")))
    transfer(served, archive, store("", HERE, extra_references=[prefix("example.com/app")]))
    assert served.client.images.get("example.com/app:1")


DIGEST = f"@{digest_of(built().manifest)}"
INDEX = "@index"


@pytest.mark.parametrize(
    ("names", "wanted", "index_name", "found"),
    [
        # Whole names are kept, if they are below the prefix, or may be others.
        (["a.b/app:1"], prefix("a.b/app"), "", ["a.b/app:1"]),
        (["a.b/app:1"], prefix("a.b"), "", ["a.b/app:1"]),
        (["a.b/apple:1"], prefix("a.b/app"), "", []),
        (["a.b/apple:1"], prefix("a.b/app", allow_overwrite=True), "", ["a.b/apple:1"]),
        # Tags get the prefix.
        (["1", "2"], prefix("a.b/app"), "", ["a.b/app:1", "a.b/app:2"]),
        (["1"], prefix("import-1", allow_overwrite=True), "", ["import-1:1"]),
        ([], prefix("a.b/app"), "", []),
        # Digests name the index, and what has no name, or all of it.
        ([], prefix("a.b/app", add_digest=True), "", ["a.b/app" + INDEX, "a.b/app" + DIGEST]),
        (["1"], prefix("x", add_digest=True, skip_named_digest=True), "", ["x:1", "x" + INDEX]),
        (["1"], prefix("x", add_digest=True), "", ["x:1", "x" + INDEX, "x" + DIGEST]),
        # The index may have a name of its own.
        (["1"], prefix("x"), "whole", ["whole", "x:1"]),
        (["1"], pb.ImageReference(name="whole"), "", ["whole"]),
    ],
)
def test_imported_images_are_called_as_containerd_calls_them(
    served: Any, names: list[str], wanted: pb.ImageReference, index_name: str, found: list[str]
) -> None:
    data = archive_of(built(), *names)
    with tarfile.open(fileobj=io.BytesIO(data)) as opened:
        file = opened.extractfile("index.json")
        assert file is not None
        index = f"@{digest_of(file.read())}"
    transfer(served, send(served, data), store(index_name, HERE, extra_references=[wanted]))
    images = {image.name: image for image in served.client.images.list()}
    assert sorted(images) == sorted(name.replace(INDEX, index) for name in found)
    for name, image in images.items():
        whole = name.endswith(index) or name == "whole"
        assert image.digest == (index[1:] if whole else digest_of(built().manifest))
        assert (GC_BACK_REF_IMAGE in image.labels) is bool(index_name and name != index_name)


def test_the_images_of_docker_archives_have_whole_names(served: Any, pulled: str) -> None:
    file = io.BytesIO()
    served.client.images.tag(pulled, "app:1")
    served.client.images.export("app:1", file, format="docker")
    served.client.images.remove("app:1")
    archive = send(served, file.getvalue())
    wanted = [prefix("x", allow_overwrite=True, add_digest=True, skip_named_digest=True)]
    transfer(served, archive, store("", HERE, extra_references=wanted))
    names = {image.name for image in served.client.images.list()} - {pulled}
    assert "docker.io/library/app:1" in names
    assert [name.partition("@")[0] for name in names - {"docker.io/library/app:1"}] == ["x"]


def test_layers_of_docker_archives_are_compressed_where_it_is_asked_for(served: Any) -> None:
    client = served.client
    made = layers.Built(layers.tar(layers.file("below", b"0" * 100_000)), compression="none")
    file = io.BytesIO()
    transfer(
        served, send(served, archive_of(made, "a.b/app:1")), store("", HERE, extra_references=[prefix("a.b")])
    )
    client.images.export("a.b/app:1", file, format="docker")
    client.images.remove("a.b/app:1", sync=True)
    archive = send(served, file.getvalue())
    archive.force_compress = True
    names = [prefix("a.b", add_digest=True)]
    transfer(served, archive, store("", HERE, extra_references=names, labels={"a": "b"}))
    image = client.images.get("a.b/app:1")
    assert [layer.media_type for layer in image.layers] == [oci.DOCKER_LAYER_GZIP]
    assert gzip.decompress(client.content.read(image.layers[0].digest)) == made.layers[0]
    assert client.snapshots.stat(image.chain_id).kind == "committed"
    images = client.images.list()
    assert [each.labels for each in images] == [{"a": "b"}] * 3
    (index,) = {each.digest for each in images} - {image.digest}
    assert {each.name for each in images} == {"a.b/app:1", f"a.b@{image.digest}", f"a.b@{index}"}
    assert [entry.digest for entry in oci.parse_index(client.content.read(index)).manifests] == [image.digest]
    client.images.remove("a.b/app:1")
    archive = send(served, archive_of(made, "a.b/app:1"))  # which has a manifest, and so is as it is
    archive.force_compress = True
    transfer(served, archive, store("", HERE, extra_references=[prefix("a.b")]))
    assert client.images.get("a.b/app:1").digest == digest_of(made.manifest)


@pytest.mark.parametrize(
    ("archive", "fields", "code"),
    [
        (b"", {}, CODES.INVALID_ARGUMENT),
        (b"no archive" * 1000, {}, CODES.INVALID_ARGUMENT),
        (layers.tar(layers.file("name")), {}, CODES.INVALID_ARGUMENT),
        (archive_of(built(), "1")[:2000], {}, CODES.DATA_LOSS),
    ],
)
def test_what_cannot_be_imported_is_refused(
    served: Any, archive: bytes, fields: dict[str, Any], code: grpc.StatusCode
) -> None:
    source = send(served, archive)
    source.MergeFrom(pb.ImageImportStream(**fields))
    assert refused(served, source, store("", HERE, extra_references=[prefix("x")])) is code
    assert served.client.images.list() == []


def test_an_import_needs_its_stream(served: Any) -> None:
    assert refused(served, pb.ImageImportStream(stream="none"), store("a", HERE)) is CODES.NOT_FOUND


def test_an_import_ends_when_its_client_breaks_off(served: Any) -> None:
    stream = ClientStream(served, "archive")
    stream.send(pb.Data(data=archive_of(built(), "1")[:2000]))
    results: list[grpc.StatusCode] = []
    source, target = pb.ImageImportStream(stream="archive"), store("", HERE, extra_references=[prefix("x")])
    thread = threading.Thread(target=lambda: results.append(refused(served, source, target)))
    thread.start()
    stream.receive(pb.WindowUpdate)
    stream.call.cancel()
    thread.join()
    assert results[0] in (CODES.UNAVAILABLE, CODES.DATA_LOSS)
    assert served.client.images.list() == []


# What is wrong


@pytest.mark.parametrize(
    ("source", "destination", "code"),
    [
        (Packed(), Packed(), CODES.UNIMPLEMENTED),
        (remote("a.b/c"), remote("a.b/c"), CODES.UNIMPLEMENTED),
        (Packed(type_url="of.another.Kind"), store("a", HERE), CODES.UNIMPLEMENTED),
        (
            Packed(type_url="containerd.types.transfer.ImageStore", value=b"\xff"),
            store("a"),
            CODES.INVALID_ARGUMENT,
        ),
        (remote(""), store("a", HERE), CODES.INVALID_ARGUMENT),
        (remote("../../etc"), store("a", HERE), CODES.INVALID_ARGUMENT),
        (remote("x" * 100_000), store("a", HERE), CODES.INVALID_ARGUMENT),
        (remote("a.b/c", default_scheme="gopher"), store("a", HERE), CODES.INVALID_ARGUMENT),
        (remote("a.b/c", http_debug=pb.DEBUG, logs_stream="nobody"), store("a", HERE), CODES.NOT_FOUND),
        (remote("a.b/c", auth_stream="nobody"), store("a", HERE), CODES.NOT_FOUND),
    ],
)
def test_what_cannot_be_transferred_is_refused(
    served: Any, source: Any, destination: Any, code: grpc.StatusCode
) -> None:
    assert refused(served, source, destination) is code


def test_what_is_not_in_the_registry_is_not_found(served: Any, registry: RegistryServer) -> None:
    reference = f"{registry.address}/nobody:latest"
    stream = ClientStream(served, "progress")
    assert refused(served, remote(reference), store(reference, HERE), "progress") is CODES.NOT_FOUND
    assert [each.event for each in stream.rest(pb.Progress)] == [f"Resolving from OCI Registry ({reference})"]
    assert refused(served, remote(reference), store(reference, HERE), "progress") is CODES.NOT_FOUND


def test_streams_of_another_namespace_are_not_found(served: Any, registry: RegistryServer) -> None:
    reference = built().push(registry)
    stream = ClientStream(served, "progress", namespace="other")
    assert refused(served, remote(reference), store(reference, HERE), "progress") is CODES.NOT_FOUND
    stream.call.cancel()


def ended(served: Any) -> set[str]:
    """Give the codes with which RPCs have ended, as the server counts them."""
    counted = {metric.name: metric.samples for metric in served.client.metrics()}
    return {each.labels["code"] for each in counted["lamella_serve_requests_total"]}


def test_a_pull_ends_when_its_client_goes(served: Any, registry: RegistryServer) -> None:
    reference = built().push(registry)
    asked, go = threading.Event(), threading.Event()

    def guard(_: Any) -> str | None:
        asked.set()
        go.wait(30)
        return None

    registry.auth = guard
    request = request_of(remote(reference), store(reference, HERE))
    call = served.stub(transfer_pb2, "Transfer").Transfer(request, timeout=120, later=True)
    assert asked.wait(60)
    call.cancel()
    until(lambda: "CANCELLED" in ended(served))
    go.set()
    assert served.client.images.list() == []
