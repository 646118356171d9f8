"""docker-registry behind a token server: what is asked for has to be what that registry wants, and no more than is needed.

The tokens are real ones, signed, with as much of what was asked for as may be given (distribution project, token
authentication).
"""

from __future__ import annotations

import base64
import datetime
import io
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from registries import Asked, Reply, ScriptedServer, docker_registry_process, read_all

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
ANYTHING = frozenset({"pull", "push", "delete", "*"})


class Issuer(ScriptedServer):
    """A token server: gives of what is asked for what ``rights`` allow, a resource's or everybody's."""

    def __init__(self, folder: Path) -> None:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        self.rights: dict[str, frozenset[str]] = {}
        self.seconds = 300
        self._key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "issuer")])
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self._key.public_key())
            .serial_number(1)
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self._x5c = base64.b64encode(certificate.public_bytes(serialization.Encoding.DER)).decode()
        self.bundle = folder / "issuer.pem"
        self.bundle.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        super().__init__(self._issue)

    @property
    def scopes(self) -> list[list[str]]:
        """Give what each request asked for."""
        return [parse_qs(urlsplit(asked.path).query).get("scope", []) for asked in self.asked]

    def _issue(self, asked: Asked) -> Reply:
        access = []
        for scope in self.scopes[-1]:
            kind, _, rest = scope.partition(":")
            name, _, actions = rest.rpartition(":")
            allowed = [action for action in actions.split(",") if action in self.rights.get(name, ANYTHING)]
            access.append({"type": kind, "name": name, "actions": allowed})
        now = int(time.time())
        claims = {
            **{"iss": "test", "sub": "ann", "aud": "registry", "jti": str(len(self.asked))},
            **{"exp": now + self.seconds, "nbf": now - 10, "iat": now, "access": access},
        }
        issued = datetime.datetime.fromtimestamp(now, datetime.UTC).isoformat()
        answer = {"token": self._signed(claims), "expires_in": self.seconds, "issued_at": issued}
        return Reply(200, {"Content-Type": "application/json"}, json.dumps(answer).encode())

    def _signed(self, claims: dict[str, Any]) -> str:
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

        header = {"typ": "JWT", "alg": "ES256", "x5c": [self._x5c]}
        text = ".".join(_encoded(json.dumps(part).encode()) for part in (header, claims))
        r, s = decode_dss_signature(self._key.sign(text.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{text}.{_encoded(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@pytest.fixture
def issuer(tmp_path: Path) -> Iterator[Issuer]:
    with Issuer(tmp_path) as opened:
        yield opened


@pytest.fixture
def registry(issuer: Issuer, tmp_path: Path) -> Iterator[str]:
    settings = (
        f"auth: {{token: {{realm: 'http://{issuer.address}/token', service: registry, issuer: test, "
        f"rootcertbundle: {issuer.bundle}}}}}\n"
    )
    environ = os.environ | {"REGISTRY_STORAGE_DELETE_ENABLED": "true"}
    with docker_registry_process(tmp_path, settings, env=environ) as address:
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
