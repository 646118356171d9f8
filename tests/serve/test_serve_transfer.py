"""Transfers over the socket are the library's, with progress and credentials over streams of the client's."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
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
from rpc import refusal
from streams import ClientStream

pytestmark = pytest.mark.privileged

CODES = grpc.StatusCode
HERE = types_pb2.Platform(os="linux", architecture=own_platform().architecture)
THERE = types_pb2.Platform(os="linux", architecture="s390x")


@pytest.fixture
def registry() -> Iterator[RegistryServer]:
    with RegistryServer() as server:
        yield server


def built(platform: types_pb2.Platform = HERE) -> layers.Built:
    made = layers.Built(
        layers.tar(layers.file("below")), layers.tar(layers.file("name", platform.architecture.encode()))
    )
    made.platform = {"os": platform.os, "architecture": platform.architecture}
    return made


def push_index(registry: RegistryServer) -> tuple[str, layers.Built, layers.Built]:
    """Push an image for two platforms; give its reference and both."""
    images = [built(HERE), built(THERE)]
    entries = []
    for image in images:
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
        (remote("a.b/c", http_debug=pb.DEBUG), store("a", HERE), CODES.UNIMPLEMENTED),
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


def test_a_pull_ends_when_its_client_goes(served: Any, registry: RegistryServer) -> None:
    reference = built().push(registry)
    asked, go = threading.Event(), threading.Event()

    def guard(_: Any) -> str | None:
        asked.set()
        go.wait(30)
        return None

    registry.auth = guard
    request = request_of(remote(reference), store(reference, HERE))
    stub = served.stub(transfer_pb2, "Transfer")
    thread = threading.Thread(target=lambda: refusal(stub.Transfer, request, timeout=0.5))
    thread.start()
    assert asked.wait(30)
    thread.join()
    go.set()
    assert served.client.images.list() == []
