"""Listing what refers to a manifest: by the API, by the tag where there is none, and from registries that mean harm."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from registries import Asked, Reply, ScriptedServer, push_image

from lamella import oci
from lamella.digest import digest_of
from lamella.errors import (
    InvalidArgument,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)
from lamella.reference import Reference
from lamella.registry import referrers as listing
from lamella.registry.client import RegistryClient
from lamella.registry.config import RegistryConfig, Timeouts
from lamella.registry.server import RegistryServer

pytestmark = pytest.mark.integration

SUBJECT = digest_of(b"the subject")
SIGNATURE, SBOM = "application/vnd.example.signature", "application/vnd.example.sbom"


def entry(number: int, kind: str = SIGNATURE) -> oci.Descriptor:
    return oci.Descriptor(oci.OCI_MANIFEST, digest_of(b"%d" % number), number, artifact_type=kind)


def index(*entries: oci.Descriptor) -> bytes:
    return oci.encode({"schemaVersion": 2, "mediaType": oci.OCI_INDEX, "manifests": entries})


def page(*entries: oci.Descriptor, **headers: str) -> Reply:
    return Reply(200, {"Content-Type": oci.OCI_INDEX, **headers}, index(*entries))


@pytest.fixture
def client() -> Iterator[RegistryClient]:
    # Where plain HTTP is asked for, a 400 is not taken for the complaint of a registry with TLS.
    config = RegistryConfig(plain_http=True, credentials={}, backoff=0.001, timeouts=Timeouts(5, 5))
    with RegistryClient(config) as opened:
        yield opened


def repository(server: Any, path: str = "team/app") -> Reference:
    return Reference.parse(f"{server.address}/{path}")


def refer(subject: oci.Descriptor, kind: str, text: bytes) -> dict[str, Any]:
    """An artifact with no layers that refers to a manifest."""
    empty = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest_of(b"{}"), "size": 2}
    return {
        "schemaVersion": 2,
        "mediaType": oci.OCI_MANIFEST,
        "artifactType": kind,
        "config": empty,
        "layers": [empty],
        "subject": {"mediaType": subject.media_type, "digest": subject.digest, "size": subject.size},
        "annotations": {"text": text.decode()},
    }


def test_the_api_lists_what_refers_to_a_digest(client: RegistryClient) -> None:
    with RegistryServer() as server:
        subject = push_image(server)
        server.push_blob("team/app", b"{}")
        pushed = [
            server.push_manifest("team/app", None, oci.encode(refer(subject, kind, b"hello")))
            for kind in (SIGNATURE, SBOM)
        ]
        found = client.referrers(repository(server), subject.digest)
        assert {(each.digest, each.artifact_type) for each in found} == {
            (pushed[0].digest, SIGNATURE),
            (pushed[1].digest, SBOM),
        }
        assert found[0].annotations == {"text": "hello"}
        (signature,) = client.referrers(repository(server), subject.digest, artifact_type=SIGNATURE)
        assert signature.digest == pushed[0].digest
        assert client.referrers(repository(server), digest_of(b"nobody")) == []


def test_a_registry_that_does_not_filter_is_filtered_here(
    scripted: Callable[..., ScriptedServer], client: RegistryClient
) -> None:
    server = scripted(lambda _: page(entry(1), entry(2, SBOM)))
    assert client.referrers(repository(server), SUBJECT, artifact_type=SBOM) == [entry(2, SBOM)]
    (asked,) = server.asked
    assert parse_qs(urlsplit(asked.path).query) == {"artifactType": [SBOM]}


@pytest.mark.parametrize("status", [400, 404, 405, 406, 501])
def test_without_the_api_the_list_is_an_index_under_a_tag(
    status: int, scripted: Callable[..., ScriptedServer], client: RegistryClient
) -> None:
    tag = SUBJECT.replace(":", "-")

    def answer(asked: Asked) -> Reply:
        return page(entry(1), entry(2, SBOM)) if asked.path.endswith(f"/manifests/{tag}") else Reply(status)

    server = scripted(answer)
    assert client.referrers(repository(server), SUBJECT) == [entry(1), entry(2, SBOM)]
    assert client.referrers(repository(server), SUBJECT, artifact_type=SBOM) == [entry(2, SBOM)]
    # That there is no API is known by now.
    assert [asked.path.split("/")[4] for asked in server.asked] == ["referrers", "manifests", "manifests"]


def test_a_page_for_people_is_no_list_and_nothing_under_the_tag_means_nothing(
    scripted: Callable[..., ScriptedServer], client: RegistryClient
) -> None:
    html = Reply(200, {"Content-Type": "text/html"}, b"<html>packages</html>")
    server = scripted(lambda asked: html if "/referrers/" in asked.path else Reply(404))
    assert client.referrers(repository(server), SUBJECT) == []


def test_a_tag_of_sha512_is_cut_as_the_specification_says() -> None:
    digest = digest_of(b"x", "sha512")
    assert listing.fallback_tag(digest) == f"sha512-{digest[7:71]}"


@pytest.mark.needs_program("docker-registry")
def test_docker_registry_has_no_api_and_the_tag_is_read(docker_registry: str, client: RegistryClient) -> None:
    subject = push_to(docker_registry, "latest", {"schemaVersion": 2, "mediaType": oci.OCI_MANIFEST,
                      "config": blob(docker_registry, oci.OCI_CONFIG), "layers": []})  # fmt: skip
    referrer = push_to(docker_registry, "any", refer(subject, SIGNATURE, b"hello"))
    where = Reference.parse(f"{docker_registry}/referring")
    assert client.referrers(where, subject.digest) == []
    document = {"schemaVersion": 2, "mediaType": oci.OCI_INDEX, "manifests": [{
        "mediaType": oci.OCI_MANIFEST, "digest": referrer.digest, "size": referrer.size, "artifactType": SIGNATURE,
    }]}  # fmt: skip
    push_to(docker_registry, subject.digest.replace(":", "-"), document)
    (found,) = client.referrers(where, subject.digest, artifact_type=SIGNATURE)
    assert found.digest == referrer.digest


def blob(address: str, media_type: str) -> dict[str, Any]:
    data = b"{}"
    place = requests.post(f"http://{address}/v2/referring/blobs/uploads/", timeout=10).headers["Location"]
    requests.put(place, params={"digest": digest_of(data)}, data=data, timeout=10).raise_for_status()
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}


def push_to(address: str, tag: str, document: dict[str, Any]) -> oci.Descriptor:
    data = json.dumps(document).encode()
    headers = {"Content-Type": document["mediaType"]}
    url = f"http://{address}/v2/referring/manifests/{tag}"
    requests.put(url, data=data, headers=headers, timeout=10).raise_for_status()
    return oci.Descriptor(document["mediaType"], digest_of(data), len(data))


# Pages


def paged(links: dict[str, str], entries: dict[str, list[oci.Descriptor]]) -> Callable[[Asked], Reply]:
    """Answer by query: which entries, and what the Link header says."""

    def answer(asked: Asked) -> Reply:
        query = urlsplit(asked.path).query
        link = {"Link": links[query]} if query in links else {}
        return page(*entries.get(query, []), **link)

    return answer


def test_pages_are_followed_to_the_last_and_each_referrer_comes_once(
    scripted: Callable[..., ScriptedServer], client: RegistryClient
) -> None:
    base = f"/v2/team/app/referrers/{SUBJECT}"
    links = {"": f'<{base}?last=a&n=2>; rel="next"', "last=a&n=2": '<?last=b&n=2>; rel="next"'}
    entries = {"": [entry(1), entry(2)], "last=a&n=2": [entry(2), entry(3)], "last=b&n=2": [entry(4)]}
    server = scripted(paged(links, entries))
    assert client.referrers(repository(server), SUBJECT) == [entry(1), entry(2), entry(3), entry(4)]


@pytest.mark.parametrize(
    "target",
    [
        "http://{evil}/v2/team/app/referrers/x?last=a",
        "//{evil}/v2/?last=a",
        "/v2/other/private/blobs/uploads/?last=a",
        "http://user:password@{evil}/?last=a",
        "file:///etc/passwd?last=a",
    ],
)
def test_a_list_leads_nowhere_else(
    target: str, scripted: Callable[..., ScriptedServer], client: RegistryClient
) -> None:
    evil = scripted(lambda _: page(entry(666)))
    link = f'<{target.format(evil=evil.address)}>; rel="next"'
    server = scripted(paged({"": link}, {"": [entry(1)], "last=a": [entry(2)]}))
    assert client.referrers(repository(server), SUBJECT) == [entry(1), entry(2)]
    assert evil.asked == []
    assert {urlsplit(asked.path).path for asked in server.asked} == {f"/v2/team/app/referrers/{SUBJECT}"}


@pytest.mark.parametrize("link", ["<?n=1>; rel=next", "<>; rel=next"])
def test_pages_that_lead_in_a_circle_are_an_error(
    link: str, scripted: Callable[..., ScriptedServer], client: RegistryClient
) -> None:
    server = scripted(lambda _: page(entry(1), Link=link))
    with pytest.raises(Unavailable, match="do not come to an end"):
        client.referrers(repository(server), SUBJECT)
    assert len(server.asked) <= 2


def test_pages_without_end_and_lists_without_measure_are_errors(
    scripted: Callable[..., ScriptedServer], client: RegistryClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "PAGES_MAX", 5)
    server = scripted(lambda _: page(entry(len(server.asked)), Link=f"<?n={len(server.asked)}>; rel=next"))
    with pytest.raises(Unavailable, match="do not come to an end"):
        client.referrers(repository(server), SUBJECT)
    assert len(server.asked) == 5
    monkeypatch.setattr(listing, "REFERRERS_MAX", 3)
    with pytest.raises(ResourceExhausted, match="over 3"):
        client.referrers(repository(server), SUBJECT)


def test_a_list_that_breaks_off_is_an_error_and_not_a_short_list(
    scripted: Callable[..., ScriptedServer], client: RegistryClient
) -> None:
    server = scripted(
        lambda asked: Reply(404) if "n=1" in asked.path else page(entry(1), Link="<?n=1>; rel=next")
    )
    with pytest.raises(Unavailable, match="breaks off after 1"):
        client.referrers(repository(server), SUBJECT)


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (Reply(403), PermissionDenied),
        (Reply(503), Unavailable),
        (Reply(200, {"Content-Type": oci.OCI_INDEX}, b"[]"), InvalidArgument),
        (page(oci.Descriptor(oci.OCI_MANIFEST, digest_of(b""), -1)), InvalidArgument),
        (Reply(200, {"Content-Type": oci.OCI_INDEX}, b" " * (oci.DOCUMENT_MAX + 1)), ResourceExhausted),
    ],
)
def test_what_goes_wrong_is_never_an_empty_list(
    reply: Reply, error: type[Exception], scripted: Callable[..., ScriptedServer], client: RegistryClient
) -> None:
    server = scripted(lambda _: reply)
    with pytest.raises(error):
        client.referrers(repository(server), SUBJECT)


def test_a_tag_that_is_an_image_is_no_list(
    scripted: Callable[..., ScriptedServer], client: RegistryClient
) -> None:
    config = oci.Descriptor(oci.OCI_CONFIG, digest_of(b"{}"), 2)
    image = oci.encode(oci.Manifest(media_type=oci.OCI_MANIFEST, config=config, layers=[]))
    manifest = Reply(200, {"Content-Type": oci.OCI_MANIFEST}, image)
    server = scripted(lambda asked: Reply(404) if "/referrers/" in asked.path else manifest)
    with pytest.raises(InvalidArgument, match="no index"):
        client.referrers(repository(server), SUBJECT)
