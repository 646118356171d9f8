"""docker-registry behind a token server: what is asked for has to be what that registry wants, and no more than is needed.

The tokens are real ones, signed, with as much of what was asked for as may be given (distribution project, token
authentication).
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from registries import Issuer, read_all

from docker_registry import docker_registry_process
from lamella import oci
from lamella.digest import digest_of
from lamella.errors import NotFound, PermissionDenied, Unauthenticated
from lamella.reference import Reference
from lamella.registry.client import RegistryClient
from lamella.registry.config import RegistryConfig
from lamella.registry.credentials import Credential
from lamella.registry.exchange import Exchange

pytestmark = [pytest.mark.integration, pytest.mark.needs_program("docker-registry")]

ANN = Credential(username="ann", password="hunter2", source="a test")


@pytest.fixture
def issuer(tmp_path: Path) -> Iterator[Issuer]:
    with Issuer(tmp_path) as opened:
        yield opened


@pytest.fixture
def registry(issuer: Issuer, tmp_path: Path) -> Iterator[str]:
    environ = os.environ | {"REGISTRY_STORAGE_DELETE_ENABLED": "true"}
    with docker_registry_process(tmp_path, issuer.settings, env=environ) as address:
        yield address


@pytest.fixture
def config(registry: str) -> RegistryConfig:
    return RegistryConfig(credentials={registry: ANN}, attempts=1)


def push(client: RegistryClient, registry: str, name: str, data: bytes = b"a layer" * 1000) -> oci.Descriptor:
    """Push an image of one layer; give the layer."""
    reference = Reference.parse(f"{registry}/{name}:v1")
    blobs = [
        oci.Descriptor(media_type, digest_of(blob), len(blob))
        for media_type, blob in ((oci.OCI_CONFIG, b"{}"), (oci.OCI_LAYER, data))
    ]
    for descriptor, blob in zip(blobs, (b"{}", data), strict=True):
        client.put_blob(reference, descriptor, lambda offset, blob=blob: io.BytesIO(blob[offset:]))
    manifest = oci.encode(
        {"schemaVersion": 2, "mediaType": oci.OCI_MANIFEST, "config": blobs[0], "layers": [blobs[1]]}
    )
    described = oci.Descriptor(oci.OCI_MANIFEST, digest_of(manifest), len(manifest))
    client.put_manifest(reference, described, manifest, ["v1"])
    return blobs[1]


def test_a_push_takes_one_token_and_a_pull_another(
    registry: str, issuer: Issuer, config: RegistryConfig
) -> None:
    with RegistryClient(config) as client:
        layer = push(client, registry, "team/app")
    assert issuer.scopes == [["repository:team/app:pull,push"]]
    issuer.asked.clear()
    reference = Reference.parse(f"{registry}/team/app:v1")
    with RegistryClient(config) as client:
        client.resolve(reference, known=lambda _: False)
        with client.open_blob(reference, layer) as stream:
            assert digest_of(read_all(stream)) == layer.digest
        assert client.tags(reference) == ["v1"]
    assert issuer.scopes == [["repository:team/app:pull"]]


def test_a_mount_is_allowed_by_a_token_for_both_repositories(
    registry: str, issuer: Issuer, config: RegistryConfig
) -> None:
    with RegistryClient(config) as client:
        layer = push(client, registry, "team/base")
        issuer.asked.clear()
        reference = Reference.parse(f"{registry}/team/app:v1")

        def unneeded(offset: int) -> Any:
            raise AssertionError("the blob was sent")

        assert client.put_blob(reference, layer, unneeded, mount="team/base") == "mounted"
        (scopes,) = issuer.scopes
        assert set(scopes) == {"repository:team/app:pull,push", "repository:team/base:pull"}


def test_who_may_not_read_the_other_repository_sends_the_blob(
    registry: str, issuer: Issuer, config: RegistryConfig
) -> None:
    data = b"a layer" * 1000
    with RegistryClient(config) as client:
        layer = push(client, registry, "team/base", data)
    issuer.rights["team/base"] = frozenset()
    with RegistryClient(config) as client:
        reference = Reference.parse(f"{registry}/team/app:v1")
        done = client.put_blob(reference, layer, lambda offset: io.BytesIO(data[offset:]), mount="team/base")
    assert done == "sent"


def test_who_may_only_pull_is_told_that_he_may_not_push(
    registry: str, issuer: Issuer, config: RegistryConfig
) -> None:
    with RegistryClient(config) as client:
        push(client, registry, "team/app")
    issuer.rights["team/app"] = frozenset({"pull"})
    with RegistryClient(config) as client:
        assert client.resolve(Reference.parse(f"{registry}/team/app:v1"))
        with pytest.raises((Unauthenticated, PermissionDenied)) as caught:
            push(client, registry, "team/app", b"another layer")
    assert "a test" in str(caught.value.hint)


def test_deleting_takes_the_right_to_delete(registry: str, issuer: Issuer, config: RegistryConfig) -> None:
    with RegistryClient(config) as client:
        push(client, registry, "team/app")
        reference = Reference.parse(f"{registry}/team/app:v1")
        digest = client.resolve(reference)[0].digest
        issuer.asked.clear()
        client.delete(Reference.parse(f"{registry}/team/app@{digest}"))
        with pytest.raises(NotFound):
            client.resolve(reference)
    assert any("delete" in scope for scopes in issuer.scopes for scope in scopes)


def test_the_catalog_is_a_resource_of_its_own(registry: str, issuer: Issuer, config: RegistryConfig) -> None:
    with RegistryClient(config) as client:
        push(client, registry, "team/app")
    issuer.asked.clear()
    exchange = Exchange(config)
    try:
        whole = Reference(domain=registry, path="")
        response = exchange.request(
            "GET", whole, "_catalog", {}, what="the catalog", scopes=("registry:catalog:*",)
        )
        assert response.json() == {"repositories": ["team/app"]}
    finally:
        exchange.transport.close()
    assert issuer.scopes == [["registry:catalog:*"]]


def test_a_token_that_ends_between_two_layers_is_renewed_before_and_none_is_refused(
    registry: str, issuer: Issuer, config: RegistryConfig
) -> None:
    with RegistryClient(config) as client:
        layer = push(client, registry, "team/app")
    reference = Reference.parse(f"{registry}/team/app:v1")
    issuer.asked.clear()
    issuer.seconds = 60
    now = 0.0
    with RegistryClient(config) as client:
        client._exchange.authorizer._clock = lambda: now
        client.resolve(reference)
        for _ in range(3):
            now += 50
            with client.open_blob(reference, layer) as stream:
                read_all(stream)
    assert len(issuer.asked) == 4
