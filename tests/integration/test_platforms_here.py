"""Indexes: which platforms are fetched, which are here, which are used, and what garbage collection makes of them."""

from __future__ import annotations

from typing import Any

import pytest
from registries import Reply, ScriptedServer
from test_referrers import page, refer

from lamella import oci
from lamella.digest import digest_of
from lamella.errors import InvalidArgument, NotFound, ResourceExhausted, Unsupported
from lamella.platforms import default_platform
from lamella.structs import replace
from layers import Built, file, tar

pytestmark = [pytest.mark.integration, pytest.mark.privileged]

HERE = f"linux/{default_platform().architecture}"
THERE, ELSEWHERE = "linux/s390x", "linux/riscv64"


@pytest.fixture
def server():
    from lamella.registry.server import RegistryServer

    with RegistryServer() as running:
        yield running


def built(platform: str) -> Built:
    made = Built(tar(file("platform", platform.encode())))
    made.platform = dict(zip(("os", "architecture"), platform.split("/"), strict=True))
    return made


def described(made: Built, **fields: Any) -> oci.Descriptor:
    platform = fields.pop("platform", oci.Platform(**made.platform))
    return oci.Descriptor(
        oci.OCI_MANIFEST, digest_of(made.manifest), len(made.manifest), platform=platform, **fields
    )


def index(*entries: oci.Descriptor) -> bytes:
    return oci.encode({"schemaVersion": 2, "mediaType": oci.OCI_INDEX, "manifests": entries})


@pytest.fixture
def multi(server):
    """Push an index of three platforms and an attestation; give its reference, the images and the attestation."""
    images = {platform: built(platform) for platform in (HERE, THERE, ELSEWHERE)}
    entries = []
    for made in images.values():
        made.push(server, "multi", made.platform["architecture"])
        entries.append(described(made))
    statement = server.push_blob(
        "multi", b'{"_type":"https://in-toto.io/Statement/v0.1"}', "application/vnd.in-toto+json"
    )
    config = server.push_blob("multi", b'{"architecture":"unknown","os":"unknown"}', oci.OCI_CONFIG)
    attestation = server.push_manifest("multi", None, oci.Manifest(config=config, layers=[statement]))
    entries.append(
        replace(
            attestation,
            platform=oci.Platform("unknown", "unknown"),
            annotations={"vnd.docker.reference.type": "attestation-manifest"},
        )
    )
    server.push_manifest("multi", "latest", index(*entries))
    return f"{server.address}/multi:latest", images, attestation, statement


def parts(made: Built) -> set[str]:
    return {digest_of(made.manifest), digest_of(made.config), *map(digest_of, made.layers)}


def here(client) -> set[str]:
    return {info.digest for info in client.content.walk()}


def test_one_platform_comes_and_the_others_do_not(client, multi):
    reference, images, attestation, _ = multi
    image = client.images.pull(reference)
    assert here(client) == {image.digest} | parts(images[HERE])
    assert (str(image.platform), image.platforms) == (HERE, [HERE])
    assert not client.content.exists(attestation.digest)


@pytest.mark.parametrize("unpack", [True, False])
def test_all_platforms_come_with_what_is_no_image_and_one_is_unpacked(client, server, multi, unpack):
    reference, images, attestation, statement = multi
    image = client.images.pull(reference, all_platforms=True, unpack=unpack)
    config = digest_of(b'{"architecture":"unknown","os":"unknown"}')
    everything = {image.digest, attestation.digest, statement.digest, config}.union(
        *map(parts, images.values())
    )
    assert here(client) == everything
    assert image.platforms == client.images.get(reference).platforms == [HERE, THERE, ELSEWHERE]
    assert [info.name for info in client.snapshots.walk()] == (image.chain_ids if unpack else [])
    client.gc()
    assert here(client) == everything
    assert all(client.content.exists(digest) for digest in everything)
    server.requests.clear()
    assert client.images.pull(reference, all_platforms=True, unpack=unpack) == image
    assert [(request.method, request.path.split("/")[3]) for request in server.requests] == [
        ("HEAD", "manifests")
    ]
    client.images.remove(reference, sync=True)
    assert here(client) == set()


def test_all_platforms_after_one_fetch_what_was_missing_alone(client, server, multi):
    reference, images, *_ = multi
    client.images.pull(reference)
    server.requests.clear()
    client.images.pull(reference, all_platforms=True)
    asked = {request.path.rpartition("/")[2] for request in server.requests if request.method == "GET"}
    assert not asked & parts(images[HERE])
    assert parts(images[THERE]) | parts(images[ELSEWHERE]) <= asked
    assert client.images.get(reference).platforms == [HERE, THERE, ELSEWHERE]


def test_all_platforms_without_this_machines_come_without_unpacking_alone(client, server):
    made = built(THERE)
    made.push(server)
    server.push_manifest("made", "foreign", index(described(made)))
    reference = f"{server.address}/made:foreign"
    with pytest.raises(NotFound, match=THERE):
        client.images.pull(reference, all_platforms=True)
    assert client.images.list() == []
    image = client.images.pull(reference, all_platforms=True, unpack=False)
    assert image.platforms == [THERE]


def test_all_platforms_of_an_image_that_has_one_are_that_one(client, server):
    reference = Built(tar(file("a"))).push(server)
    for unpack in (False, True):
        image = client.images.pull(reference, all_platforms=True, unpack=unpack)
        assert image.platforms == [HERE]
    assert client.snapshots.stat(image.chain_id)


def test_a_further_platform_adds_to_what_is_here_and_each_can_be_used(client, multi):
    reference, images, *_ = multi
    client.images.pull(reference)
    other = client.images.pull(reference, platform=THERE)
    assert (other.manifest_descriptor.digest, str(other.platform)) == (
        digest_of(images[THERE].manifest),
        THERE,
    )
    assert other.diff_ids == images[THERE].diff_ids
    client.gc()
    image = client.images.get(reference)
    assert image.platforms == [HERE, THERE]
    assert (str(image.platform), image.diff_ids) == (HERE, images[HERE].diff_ids)
    assert client.images.get(reference, platform=THERE).chain_id == other.chain_id
    assert {info.name for info in client.snapshots.walk()} == {image.chain_id, other.chain_id}
    with pytest.raises(NotFound, match=ELSEWHERE) as caught:
        _ = client.images.get(reference, platform=ELSEWHERE).config
    assert f"--platform {ELSEWHERE}" in caught.value.hint
    assert client.images.get(reference).inspect()["platforms"] == [HERE, THERE]


def test_a_platform_that_came_by_another_name_is_kept_by_both(client, server, multi):
    reference, images, *_ = multi
    client.images.pull(reference)
    alone = f"{reference.rpartition(':')[0]}@{digest_of(images[THERE].manifest)}"
    client.images.pull(alone)
    client.images.pull(reference, platform=THERE)
    client.images.remove(alone, sync=True)
    assert client.images.get(reference).platforms == [HERE, THERE]


def test_a_platform_of_which_a_layer_is_missing_is_not_here(client, multi):
    reference, images, *_ = multi
    client.images.pull(reference)
    client.images.pull(reference, platform=THERE)
    client.content.delete(digest_of(images[HERE].layers[0]))
    image = client.images.get(reference)
    assert image.inspect()["platforms"] == [THERE]
    client.images.pull(reference)
    assert client.images.get(reference).inspect()["platforms"] == [HERE, THERE]


def test_layers_of_all_platforms_cannot_be_discarded(client, multi):
    with pytest.raises(InvalidArgument, match="have to be kept"):
        client.images.pull(multi[0], all_platforms=True, keep_layers=False)


def test_indexes_nest_and_not_without_end(client, server):
    made = built(HERE)
    made.push(server)
    document = index(described(made))
    for depth in range(8):
        server.push_manifest("made", f"depth-{depth}", document)
        inner = oci.Descriptor(oci.OCI_INDEX, digest_of(document), len(document))
        document = index(inner)
    assert client.images.pull(f"{server.address}/made:depth-6").diff_ids == made.diff_ids
    image = client.images.pull(f"{server.address}/made:depth-6", all_platforms=True)
    assert image.platforms == [HERE]
    client.gc()
    assert client.content.exists(digest_of(made.layers[0]))
    for depth, options in ((7, {}), (7, {"all_platforms": True})):
        with pytest.raises(InvalidArgument, match="nests image indexes"):
            client.images.pull(f"{server.address}/made:depth-{depth}", **options)


def test_indexes_that_name_each_other_many_times_are_gone_through_once(client, server, tmp_path):
    made = built(HERE)
    made.push(server)
    document = index(*[described(made)] * 40)
    for depth in range(6):
        server.push_manifest("made", f"depth-{depth}", document)
        document = index(*[oci.Descriptor(oci.OCI_INDEX, digest_of(document), len(document))] * 40)
    reference = f"{server.address}/made:depth-5"  # 40 ** 6 ways lead to the one manifest
    for options in (
        {},
        {"all_platforms": True},
        {"all_platforms": True},
        {"all_platforms": True, "unpack": False},
    ):
        assert client.images.pull(reference, **options).inspect()["platforms"] == [HERE]
    images = client.images
    copies = f"{server.address}/pushed:1", f"{server.address}/copied:1"
    assert {images.push(reference, copies[0]).digest, images.copy(reference, copies[1]).digest} == {
        images.get(reference).digest
    }
    assert images.convert(reference, "docker", all_platforms=True, format="docker").platforms == [HERE]
    images.export(reference, tmp_path / "archive.tar")
    assert [image.digest for image in images.import_(tmp_path / "archive.tar")] == [
        images.get(reference).digest
    ]


def test_an_index_has_a_bounded_number_of_entries(client):
    document = index(*[described(built(HERE))] * (oci.CHILDREN_MAX + 1))
    assert len(document) < oci.DOCUMENT_MAX
    reply = Reply(200, {"Content-Type": oci.OCI_INDEX}, document)
    with ScriptedServer(lambda _: reply) as scripted, pytest.raises(ResourceExhausted, match="entries"):
        client.images.pull(f"{scripted.address}/wide")


# What refers to an image


def test_what_refers_to_an_image_comes_along_and_stays_as_long(client, server, multi):
    reference, images, *_ = multi
    subject = described(images[HERE], platform=None)
    server.push_blob("multi", b"{}")
    kind = "application/vnd.example.signature"
    signature = server.push_manifest("multi", None, oci.encode(refer(subject, kind, b"one")))
    about = server.push_manifest("multi", None, oci.encode(refer(signature, kind, b"two")))
    image = client.images.pull(reference)
    assert not client.content.exists(signature.digest)
    assert client.images.pull(reference, referrers=True) == image
    assert {signature.digest, about.digest} <= here(client)
    client.gc()
    assert {signature.digest, about.digest, digest_of(b"{}")} <= here(client)
    client.images.remove(reference, sync=True)
    assert here(client) == set()


def test_referrers_are_listed_by_the_registry_and_by_what_is_here(client, server, multi):
    reference, images, *_ = multi
    subject = described(images[HERE], platform=None)
    server.push_blob("multi", b"{}")
    one = server.push_manifest("multi", None, oci.encode(refer(subject, "application/one", b"1")))
    two = server.push_manifest("multi", None, oci.encode(refer(subject, "application/two", b"2")))
    deep = server.push_manifest("multi", None, oci.encode(refer(one, "application/one", b"3")))
    find = client.images.referrers
    assert find(reference) == []
    assert {each.digest for each in find(reference, platform=HERE)} == {one.digest, two.digest}
    (found,) = find(reference, platform=HERE, artifact_type="application/one", deep=True)
    assert (found.digest, found.artifact_type, found.annotations) == (
        one.digest,
        "application/one",
        {"text": "1"},
    )
    assert [each.digest for each in found.referrers] == [deep.digest]
    assert client.images.list() == []
    client.images.pull(reference)
    assert find(reference, platform=HERE, local=True) == []
    client.images.pull(reference, referrers=True)
    assert {each.digest for each in find(reference, platform=HERE, local=True)} == {one.digest, two.digest}


def test_a_registry_that_lists_in_circles_is_not_followed(client):
    kind, data = "application/vnd.example.signature", Built(tar(file("a"))).manifest
    digest = digest_of(data)

    def answer(asked: Any) -> Reply:
        if "/referrers/" in asked.path:
            return page(oci.Descriptor(oci.OCI_MANIFEST, digest, len(data), artifact_type=kind))
        return Reply(200, {"Content-Type": oci.OCI_MANIFEST, "Docker-Content-Digest": digest}, data)

    with ScriptedServer(answer) as scripted:
        (found,) = client.images.referrers(f"{scripted.address}/a", deep=True)
        assert (found.digest, found.referrers) == (digest, [])


def test_a_registry_that_lists_ever_deeper_is_not_followed_to_the_end(client):
    data = Built(tar(file("a"))).manifest

    def answer(asked: Any) -> Reply:
        if "/referrers/" in asked.path:
            deeper = digest_of(asked.path.rpartition("/")[2].encode())
            return page(oci.Descriptor(oci.OCI_MANIFEST, deeper, 9))
        return Reply(200, {"Content-Type": oci.OCI_MANIFEST, "Docker-Content-Digest": digest_of(data)}, data)

    with ScriptedServer(answer) as scripted:
        with pytest.raises(ResourceExhausted, match="one to the other"):
            client.images.referrers(f"{scripted.address}/a", deep=True)
        assert len(scripted.asked) < 50


# Artifacts


@pytest.mark.parametrize(
    ("config", "config_type"),
    [
        (b"{}", "application/vnd.oci.empty.v1+json"),
        (b'{"name":"chart","version":"1"}', "application/vnd.cncf.helm.config.v1+json"),
        (b"\0asm no json at all", "application/vnd.wasm.config.v0+json"),
    ],
)
@pytest.mark.parametrize("layers", [0, 2])
def test_an_artifact_is_fetched_as_it_is(client, server, config, config_type, layers):
    contents = [b"layer %d that is no archive" % number for number in range(layers)]
    document = {
        "schemaVersion": 2,
        "mediaType": oci.OCI_MANIFEST,
        "artifactType": "application/vnd.example.thing",
        "config": server.push_blob("thing", config, config_type),
        "layers": [server.push_blob("thing", data, "text/plain") for data in contents],
        "annotations": {"org.opencontainers.image.title": "a thing"},
        "subject": oci.Descriptor(oci.OCI_MANIFEST, digest_of(b"elsewhere"), 9),
    }
    server.push_manifest("thing", "1", oci.encode(document))
    reference = f"{server.address}/thing:1"
    with pytest.raises(Unsupported, match="artifact") as caught:
        client.images.pull(reference)
    assert "--no-unpack" in caught.value.hint
    assert client.images.list() == []
    image = client.images.pull(reference, unpack=False)
    assert (image.artifact_type, image.platforms) == ("application/vnd.example.thing", [])
    assert [client.content.read(layer.digest) for layer in image.layers] == contents
    assert client.content.read(image.manifest.config.digest) == config
    (listed,) = client.images.list()
    assert listed.size == image.size > 0
    shown = image.inspect()
    assert shown["annotations"] == document["annotations"]
    assert shown["subject"]["digest"] == digest_of(b"elsewhere")
    assert (shown["artifact_type"], shown["config"], shown["chain_id"]) == (image.artifact_type, None, None)
    assert shown["config_descriptor"]["mediaType"] == config_type
    client.gc()
    assert client.content.exists(image.manifest.config.digest)
    server.requests.clear()
    assert client.images.pull(reference, unpack=False) == image
    assert [request.method for request in server.requests] == ["HEAD"]


def test_an_index_of_artifacts_is_fetched_whole(client, server):
    thing = oci.Manifest(
        config=server.push_blob("thing", b"{}", oci.OCI_EMPTY), layers=[], artifact_type="application/thing"
    )
    entry = replace(server.push_manifest("thing", None, thing), artifact_type="application/thing")
    server.push_manifest("thing", "all", index(entry))
    reference = f"{server.address}/thing:all"
    with pytest.raises(NotFound) as caught:
        client.images.pull(reference, unpack=False)
    assert "--all-platforms --no-unpack" in caught.value.hint
    image = client.images.pull(reference, unpack=False, all_platforms=True)
    assert image.manifest_descriptor.digest == entry.digest
    assert image.inspect()["artifact_type"] == "application/thing"
