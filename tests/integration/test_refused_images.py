"""Policies at work: when they are asked, what they may ask for, and what is left of an image that they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from registries import Reply, ScriptedServer, hosts_folder
from test_referrers import refer

import lamella
from lamella import oci
from lamella.digest import digest_of
from lamella.errors import DataLoss, InvalidArgument, PolicyRefused
from lamella.platforms import default_platform
from lamella.policy import AllowedRegistries, Candidate, PinnedDigests, RequireDigest
from lamella.registry.config import RegistryConfig
from lamella.registry.credentials import Credential
from lamella.registry.server import RegistryServer, basic_auth
from lamella.structs import encode, read_json
from layers import Built, file, tar

pytestmark = [pytest.mark.integration, pytest.mark.privileged]

SIGNATURE = "application/vnd.example.signature"


@pytest.fixture
def server() -> Any:
    with RegistryServer() as running:
        yield running


def never(candidate: Candidate) -> str:
    return f"never {candidate.descriptor.digest}"


def asked(server: Any) -> list[tuple[str, str]]:
    """What the registry was asked: method and kind."""
    return [(request.method, request.path.split("/")[3]) for request in server.requests]


def everything(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def test_an_image_that_is_refused_leaves_nothing(client: Any, server: Any) -> None:
    reference = Built(tar(file("a"))).push(server)
    before = everything(client.config.root)
    with pytest.raises(PolicyRefused, match="never"):
        client.images.pull(reference, policy=never)
    assert asked(server) == [("HEAD", "manifests")]
    assert everything(client.config.root) == before
    with client.database.read() as db:
        for table in ("blobs", "content", "images", "layers", "snapshots", "leases", "lease_resources"):
            assert db.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,), table


def test_a_registry_that_is_not_allowed_is_not_even_asked(client: Any, server: Any) -> None:
    with pytest.raises(PolicyRefused, match="not among"):
        client.images.pull(f"{server.address}/a", policy=AllowedRegistries(["example.com"]))
    assert list(server.requests) == []


def test_what_is_let_in_is_fetched_by_the_digest_that_was_asked_about(client: Any, server: Any) -> None:
    built = Built(tar(file("a")))
    reference = built.push(server)
    seen: list[Candidate] = []

    def note(candidate: Candidate) -> None:
        seen.append(candidate)
        assert candidate.descriptor.size == len(built.manifest)
        Built(tar(file("evil"))).push(server)  # the tag moves

    image = client.images.pull(reference, policy=note)
    (candidate,) = seen
    assert image.digest == digest_of(built.manifest) == candidate.descriptor.digest
    assert (candidate.descriptor.size, candidate.descriptor.media_type) == (
        len(built.manifest),
        oci.OCI_MANIFEST,
    )
    assert (str(candidate.reference), candidate.registry) == (reference, server.address)
    assert candidate.platform == default_platform()


def test_what_is_here_already_is_asked_about_for_one_request(client: Any, server: Any) -> None:
    reference = Built(tar(file("a"))).push(server)
    image = client.images.pull(reference)
    server.requests.clear()
    assert client.images.pull(reference, policy=lambda _: None) == image
    assert asked(server) == [("HEAD", "manifests")]
    with pytest.raises(PolicyRefused):
        client.images.pull(reference, policy=never)
    assert client.images.get(reference) == image  # what was let in before is not taken away


def test_where_the_registry_does_not_tell_the_digest_the_document_is_read_and_not_kept(client: Any) -> None:
    data = Built(tar(file("a"))).manifest

    def answer(request: Any) -> Reply:
        return (
            Reply(405) if request.method == "HEAD" else Reply(200, {"Content-Type": oci.OCI_MANIFEST}, data)
        )

    with ScriptedServer(answer) as server:
        before = everything(client.config.root)
        with pytest.raises(PolicyRefused, match=digest_of(data)):
            client.images.pull(f"{server.address}/a", policy=never)
        assert [request.method for request in server.asked] == ["HEAD", "GET"]
        assert everything(client.config.root) == before


def test_a_registry_that_says_one_digest_and_gives_another_document_is_found_out(client: Any) -> None:
    good, evil = Built(tar(file("a"))).manifest, Built(tar(file("evil"))).manifest

    def answer(request: Any) -> Reply:
        headers = {"Content-Type": oci.OCI_MANIFEST, "Docker-Content-Digest": digest_of(good)}
        return Reply(200, headers, good if request.method == "HEAD" else evil)

    with ScriptedServer(answer) as server:
        name = f"{server.address}/a:latest"
        with pytest.raises(DataLoss):
            client.images.pull(name, policy=PinnedDigests({name: digest_of(good)}))
    assert client.images.list() == []


def test_the_clients_policy_and_the_calls_must_both_agree(tmp_path: Path, server: Any) -> None:
    reference = Built(tar(file("a"))).push(server)
    allowed = AllowedRegistries([server.address])
    with lamella.Client(tmp_path / "root", tmp_path / "state", policy=allowed) as client:
        with pytest.raises(PolicyRefused, match="by digest"):
            client.images.pull(reference, policy=RequireDigest())
        with pytest.raises(PolicyRefused, match="not among"):
            client.images.pull(reference, policy=AllowedRegistries(["example.com"]))
        assert client.images.pull(reference)
    with lamella.Client(tmp_path / "root", tmp_path / "state", policy=never) as client:
        with pytest.raises(PolicyRefused):
            client.using("native").images.pull(reference, policy=lambda _: None)
        client.images.unpack(reference)  # what is here was let in


def test_the_environment_names_the_policy_of_clients_that_have_none(
    tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = Built(tar(file("a"))).push(server)
    rules = tmp_path / "policy.toml"
    rules.write_text("require_digest = true")
    monkeypatch.setenv("LAMELLA_POLICY", str(rules))
    with lamella.Client(tmp_path / "root", tmp_path / "state") as client, pytest.raises(PolicyRefused):
        client.images.pull(reference)
    with lamella.Client(tmp_path / "root", tmp_path / "state", policy=lambda _: None) as client:
        client.images.pull(reference)


def test_a_copy_is_asked_about_its_source_and_sends_nothing_that_is_refused(
    tmp_path: Path, server: Any
) -> None:
    reference = Built(tar(file("a"))).push(server)
    target = f"{server.address}/copied:1"
    with lamella.Client(tmp_path / "root", tmp_path / "state", policy=never) as client:
        with pytest.raises(PolicyRefused, match="never"):
            client.images.copy(reference, target)
        assert asked(server) == [("HEAD", "manifests")]
    seen: list[Candidate] = []
    with lamella.Client(tmp_path / "root", tmp_path / "state") as client:
        with pytest.raises(PolicyRefused, match="not among"):
            client.images.copy(reference, target, policy=AllowedRegistries(["example.com"]))
        assert asked(server) == [("HEAD", "manifests")]
        client.images.copy(reference, target, policy=seen.append)
        assert [request.method for request in server.requests][1:3] == ["HEAD", "GET"]
    (candidate,) = seen
    assert (str(candidate.reference), candidate.platform) == (reference, None)


class Signed:
    """A toy: lets in what somebody has signed, by an artifact that refers to it."""

    def check(self, candidate: Candidate) -> None:
        for referrer in candidate.referrers(SIGNATURE):
            manifest = oci.parse_manifest(candidate.fetch(referrer))
            subject, annotations = manifest.subject, manifest.annotations or {}
            if subject and subject.digest == candidate.descriptor.digest and annotations["text"] == "signed":
                return
        raise PolicyRefused(f"{candidate} is not signed")


def test_a_policy_can_look_for_signatures_before_it_lets_an_image_in(client: Any, server: Any) -> None:
    built = Built(tar(file("a")))
    reference = built.push(server)
    subject = oci.Descriptor(oci.OCI_MANIFEST, digest_of(built.manifest), len(built.manifest))
    before = everything(client.config.root)
    with pytest.raises(PolicyRefused, match="not signed"):
        client.images.pull(reference, policy=Signed())
    server.push_blob("made", b"{}")
    server.push_manifest("made", None, oci.encode(refer(subject, SIGNATURE, b"forged")))
    with pytest.raises(PolicyRefused, match="not signed"):
        client.images.pull(reference, policy=Signed())
    assert everything(client.config.root) == before
    server.push_manifest("made", None, oci.encode(refer(subject, SIGNATURE, b"signed")))
    assert client.images.pull(reference, policy=Signed()).digest == subject.digest
    assert client.content.exists(subject.digest)


def cosigned(candidate: Candidate) -> str | None:
    """A toy like cosign's: lets in what a payload in the repository names, under a tag after the image's digest."""
    found = candidate.find(candidate.descriptor.digest.replace(":", "-") + ".sig")
    if found is None:
        return "nobody has signed it"
    _, data = found
    payload = read_json(candidate.fetch(oci.parse_manifest(data).layers[0]))
    signed = payload["critical"]["image"]["docker-manifest-digest"]
    return None if signed == candidate.descriptor.digest else f"{signed} is signed"


@pytest.mark.parametrize("way", ["pull", "copy"])
def test_a_policy_reads_signatures_under_tags_by_the_hosts_and_credentials_of_the_transfer(
    way: str, tmp_path: Path
) -> None:
    built = Built(tar(file("a")))
    digest = digest_of(built.manifest)
    payload = encode({"critical": {"image": {"docker-manifest-digest": digest}}})
    with RegistryServer(auth=basic_auth({"ann": "secret"})) as mirror, RegistryServer() as target:
        built.push(mirror)
        config = RegistryConfig(
            credentials={mirror.address: Credential(username="ann", password="secret")},
            hosts_dir=hosts_folder(
                tmp_path / "hosts", "example.test", f'server = "http://{mirror.address}"\n'
            ),
        )
        with lamella.Client(
            tmp_path / "root", tmp_path / "state", registry=config, policy=cosigned
        ) as client:

            def transfer() -> Any:
                if way == "pull":
                    return client.images.pull("example.test/made")
                return client.images.copy("example.test/made", f"{target.address}/made:1")

            with pytest.raises(PolicyRefused, match="nobody"):
                transfer()
            layer = mirror.push_blob("made", payload, "application/vnd.dev.cosign.simplesigning.v1+json")
            signature = oci.Manifest(config=mirror.push_blob("made", b"{}", oci.OCI_CONFIG), layers=[layer])
            mirror.push_manifest("made", digest.replace(":", "-") + ".sig", signature)
            mirror.requests.clear()
            assert transfer().digest == digest
        answered = [request for request in mirror.requests if request.status != 401]
        asked_for = [
            (request.method, request.path.split("/made/")[1].partition("?")[0]) for request in answered
        ]
        # The image's digest, the signature, its payload; and only then the image.
        assert asked_for[0] == ("HEAD", "manifests/latest")
        assert asked_for[1][1] == f"manifests/{digest.replace(':', '-')}.sig"
        assert asked_for[2] == ("GET", f"blobs/{layer.digest}")
        assert asked_for[3] == ("GET", f"manifests/{digest}")


def test_an_allowed_registry_may_have_mirrors_and_a_mirror_of_that_name_allows_nothing_else(
    tmp_path: Path, server: Any
) -> None:
    built = Built(tar(file("a")))
    built.push(server)
    settings = f'server = "http://{server.address}"\n'
    hosts = hosts_folder(tmp_path / "hosts", "example.test", settings)
    config = RegistryConfig(credentials={}, hosts_dir=hosts)
    with lamella.Client(tmp_path / "root", tmp_path / "state", registry=config) as client:
        with pytest.raises(PolicyRefused, match="made is not among"):
            client.images.pull("example.test/made", policy=AllowedRegistries([server.address]))
        assert not list(server.requests)
        assert client.images.pull("example.test/made", policy=AllowedRegistries(["example.test"]))


def test_a_pin_is_of_the_index_for_its_name_and_of_a_manifest_for_the_name_by_its_digest(
    client: Any, server: Any
) -> None:
    built = Built(tar(file("a")))
    built.push(server)
    own = oci.Descriptor(
        oci.OCI_MANIFEST,
        digest_of(built.manifest),
        len(built.manifest),
        platform=oci.Platform(**built.platform),
    )
    document = oci.encode({"schemaVersion": 2, "mediaType": oci.OCI_INDEX, "manifests": [own]})
    server.push_manifest("made", "all", document)
    index, by_digest = f"{server.address}/made:all", f"{server.address}/made@{own.digest}"
    pins = PinnedDigests({index: digest_of(document)})
    assert client.images.pull(index, policy=pins).manifest_descriptor.digest == own.digest
    with pytest.raises(PolicyRefused, match="pinned"):
        client.images.pull(index, policy=PinnedDigests({index: own.digest}))
    repository = f"{server.address}/made"
    with pytest.raises(PolicyRefused, match="pinned"):
        client.images.pull(by_digest, policy=PinnedDigests({repository: digest_of(document)}))
    assert client.images.pull(
        by_digest, policy=PinnedDigests({repository: [digest_of(document), own.digest]})
    )


def test_a_policy_finds_no_tag_where_there_is_none_and_takes_no_other_words_for_one(
    client: Any, server: Any
) -> None:
    reference = Built(tar(file("a"))).push(server)
    for tag in ("../../secret/manifests/latest", "a@" + digest_of(b""), "", "a b"):
        with pytest.raises(InvalidArgument):
            client.images.pull(reference, policy=lambda candidate, tag=tag: candidate.find(tag))
    assert client.images.pull(reference, policy=lambda candidate: candidate.find("none"))
