"""Who a machine is for AWS and for Google Cloud, as credentials for their registries; AWS is moto, Google a server of ours."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from registries import Asked, Reply, ScriptedServer

from lamella.errors import PermissionDenied, Unauthenticated, Unavailable
from lamella.registry import ecr, google
from lamella.registry.credentials import Credential, CredentialStore

SECRET = "hunter2-very-secret"
REGISTRY = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"


@pytest.fixture(autouse=True)
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away who this machine is for a cloud, and what could tell."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "GOOGLE_", "CLOUDSDK_", "GCE_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def helper(tmp_path: Path) -> Callable[..., Path]:
    folder = tmp_path / "bin"
    folder.mkdir()

    def make(name: str, username: str, *, status: int = 0) -> Path:
        asked = tmp_path / f"asked-{name}"
        program = folder / f"docker-credential-{name}"
        answer = json.dumps({"Username": username, "Secret": SECRET})
        program.write_text(
            f"#!/bin/sh\nread -r s\necho \"$1 $s\" >> {asked}\necho '{answer}'\nexit {status}\n"
        )
        program.chmod(0o755)
        return asked

    return make


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Answer for AWS in this process."""
    from moto import mock_aws

    with mock_aws():
        yield


# AWS


@pytest.mark.parametrize(
    ("domain", "place"),
    [
        (REGISTRY, ecr.Place("eu-west-1", False, False)),
        (REGISTRY.upper(), ecr.Place("eu-west-1", False, False)),
        ("123456789012.dkr.ecr-fips.us-gov-west-1.amazonaws.com", ecr.Place("us-gov-west-1", True, False)),
        ("123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn", ecr.Place("cn-north-1", False, False)),
        ("123456789012.dkr-ecr.eu-west-1.on.aws", ecr.Place("eu-west-1", False, True)),
        ("123456789012.dkr-ecr-fips.us-east-1.on.aws", ecr.Place("us-east-1", True, True)),
        ("123456789012.dkr-ecr.cn-north-1.on.amazonwebservices.com.cn", ecr.Place("cn-north-1", False, True)),
        ("public.ecr.aws", None),
        ("12345678901.dkr.ecr.eu-west-1.amazonaws.com", None),
        ("123456789012.dkr.ecr.eu-west-1.amazonaws.com.evil.net", None),
        ("evil.net.123456789012.dkr.ecr.eu-west-1.amazonaws.com", None),
        ("123456789012.dkr.ecr.eu-west-1.amazonaws.com:5000", None),
        ("123456789012.dkr.ecr.eu-west-1.amazonaws.com\n", None),
        ("123456789012.dkr.ecr.evil.net/.amazonaws.com", None),
        ("123456789012xdkr.ecr.eu-west-1.amazonaws.com", None),
        ("docker.io", None),
    ],
)
def test_a_private_registry_of_aws_is_known_by_its_name(domain: str, place: ecr.Place | None) -> None:
    assert ecr.parse_domain(domain) == place


@pytest.mark.usefixtures("aws")
def test_aws_gives_a_password_for_who_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA0000")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    found = CredentialStore([]).find(REGISTRY, "team/app")
    assert found is not None
    assert (found.username, found.source) == ("AWS", "AWS")
    assert found.password
    assert found.password not in repr(found)
    # moto's passwords ended in 2015.
    assert found.good_until == datetime(2015, 1, 1, tzinfo=UTC).timestamp() - 900
    assert SECRET not in found.secrets


def test_aws_is_asked_over_the_endpoint_that_the_name_says(monkeypatch: pytest.MonkeyPatch) -> None:
    import botocore.client

    hosts: list[str] = []
    given = {"authorizationToken": base64.b64encode(b"AWS:x").decode(), "expiresAt": datetime.now(UTC)}

    def call(self: Any, *_: Any) -> Any:
        hosts.append(self.meta.endpoint_url)
        return {"authorizationData": [given]}

    monkeypatch.setattr(botocore.client.BaseClient, "_make_api_call", call)
    store = CredentialStore([])
    for domain in (
        REGISTRY,
        "123456789012.dkr.ecr-fips.us-east-1.amazonaws.com",
        "123456789012.dkr-ecr.us-east-1.on.aws",
        "123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn",
    ):
        assert store.find(domain)
    assert hosts == [
        "https://api.ecr.eu-west-1.amazonaws.com",
        "https://ecr-fips.us-east-1.amazonaws.com",
        "https://ecr.us-east-1.api.aws",
        "https://api.ecr.cn-north-1.amazonaws.com.cn",
    ]


@pytest.mark.usefixtures("aws")
def test_a_password_of_aws_is_kept_and_renewed_before_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[ecr.Place] = []
    now = 1000.0

    def ask(place: ecr.Place) -> Credential:
        asked.append(place)
        return Credential(username="AWS", password="x", good_until=now + 600)

    monkeypatch.setattr(ecr, "_ask", ask)
    cloud = ecr.Ecr(clock=lambda: now)
    cloud.find(REGISTRY)
    now += 599
    assert cloud.find(REGISTRY.replace("123", "321"))  # another account, the same region: one password
    assert len(asked) == 1
    now += 1
    cloud.find(REGISTRY)
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("ExpiredTokenException", Unauthenticated),
        ("UnrecognizedClientException", Unauthenticated),
        ("InvalidSignatureException", Unauthenticated),
        ("AccessDeniedException", PermissionDenied),
    ],
)
@pytest.mark.usefixtures("aws")
def test_what_aws_refuses_is_told_without_its_words(
    code: str, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    import botocore.client
    import botocore.exceptions

    def call(*_: Any) -> Any:
        raise botocore.exceptions.ClientError(
            {"Error": {"Code": code, "Message": SECRET}}, "GetAuthorizationToken"
        )

    monkeypatch.setattr(botocore.client.BaseClient, "_make_api_call", call)
    with pytest.raises(kind, match=code) as caught:
        CredentialStore([]).find(REGISTRY)
    assert SECRET not in str(caught.value)
    assert caught.value.hint  # type: ignore[attr-defined]


def test_nobody_for_aws_is_unauthenticated_with_what_to_do() -> None:
    with pytest.raises(Unauthenticated, match="AWS knows nobody here") as caught:
        CredentialStore([]).find(REGISTRY)
    assert "AWS_PROFILE" in str(caught.value.hint)


def test_an_api_of_aws_that_does_not_answer_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA0000")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(Unavailable, match="eu-west-1") as caught:
        CredentialStore([]).find(REGISTRY)
    assert "region" in str(caught.value.hint)


def test_without_boto3_and_the_helper_it_says_how_to_get_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ecr, "find_spec", lambda _: None)
    with pytest.raises(Unauthenticated, match="docker-credential-ecr-login is not on PATH") as caught:
        CredentialStore([]).find(REGISTRY)
    assert "lamella[ecr]" in str(caught.value.hint)
    assert f"lamella login -u AWS --password-stdin {REGISTRY}" in str(caught.value.hint)


def test_the_helper_of_ecr_is_asked_first_and_by_the_registrys_name_alone(helper: Any) -> None:
    asked = helper("ecr-login", "AWS")
    found = CredentialStore([]).find(REGISTRY, "team/app")
    assert found is not None
    assert (found.username, found.password, found.source) == ("AWS", SECRET, "docker-credential-ecr-login")
    assert found.good_until < float("inf")
    assert asked.read_text() == f"get {REGISTRY}\n"
    CredentialStore([]).find("docker.io", "library/nginx")
    CredentialStore([]).find("public.ecr.aws", "nginx/nginx")
    assert asked.read_text() == f"get {REGISTRY}\n"


def test_a_helper_of_ecr_that_fails_is_told_where_boto3_is_not_installed(
    helper: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper("ecr-login", "AWS", status=1)
    monkeypatch.setattr(ecr, "find_spec", lambda _: None)
    with pytest.raises(Unauthenticated, match="failed with exit status 1") as caught:
        CredentialStore([]).find(REGISTRY)
    assert SECRET not in str(caught.value)


def test_what_a_file_has_goes_before_the_clouds(tmp_path: Path, helper: Any) -> None:
    asked = helper("ecr-login", "AWS")
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"auths": {REGISTRY: {"username": "AWS", "password": "of the file"}}}))
    found = CredentialStore([file]).find(REGISTRY)
    assert found is not None
    assert found.password == "of the file"
    assert not asked.exists()


def test_boto3_is_imported_for_private_registries_of_aws_alone() -> None:
    code = (
        "import sys; from lamella.registry.credentials import CredentialStore; store = CredentialStore([]);"
        "store.find('docker.io'); store.find('gcr.io'); store.find('public.ecr.aws');"
        "sys.exit(str({'boto3', 'botocore', 'google.auth', 'requests'} & set(sys.modules) or '') or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Google Cloud


@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        ("gcr.io", True),
        ("eu.gcr.io", True),
        ("europe-west1-docker.pkg.dev", True),
        ("GCR.IO", True),
        ("evilgcr.io", False),
        ("gcr.io.evil.net", False),
        ("a.b.gcr.io", False),
        ("docker.pkg.dev", False),
        ("europe-west1-docker.pkg.dev.evil.net", False),
        ("evil.net/europe-west1-docker.pkg.dev", False),
        ("europe-west1-npm.pkg.dev", False),
        ("docker.io", False),
    ],
)
def test_a_registry_of_google_is_known_by_its_name(domain: str, expected: bool) -> None:
    assert google.is_google(domain) is expected


@pytest.mark.parametrize("variable", google.VARIABLES)
def test_a_token_of_the_environment_is_googles_password(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, f"{SECRET}\n")
    found = CredentialStore([]).find("europe-west1-docker.pkg.dev", "project/team/app")
    assert found is not None
    assert (found.username, found.password, found.source) == ("oauth2accesstoken", SECRET, f"${variable}")
    assert CredentialStore([]).find("docker.io", "library/nginx") is None


@pytest.mark.parametrize("name", google.HELPERS)
def test_a_helper_of_google_is_asked_by_the_registrys_name_alone(name: str, helper: Any) -> None:
    asked = helper(name, "_dcgcloud_token")
    found = CredentialStore([]).find("eu.gcr.io", "project/app")
    assert found is not None
    assert (found.username, found.password, found.source) == (
        "_dcgcloud_token",
        SECRET,
        f"docker-credential-{name}",
    )
    assert CredentialStore([]).find("quay.io", "team/app") is None
    assert asked.read_text() == "get eu.gcr.io\n"


def test_a_helper_of_google_that_fails_is_noted_and_the_image_may_be_public(helper: Any) -> None:
    helper("gcloud", "x", status=1)
    store = CredentialStore([])
    assert store.find("gcr.io", "distroless/static") is None
    assert store.problems == ["docker-credential-gcloud failed with exit status 1"]


@pytest.fixture
def token_uri() -> Iterator[ScriptedServer]:
    """Stand in for Google's server of access tokens."""

    def give(asked: Asked) -> Reply:
        number = len(server.asked)
        body = json.dumps(
            {"access_token": f"ya29.token-{number}", "expires_in": 3600, "token_type": "Bearer"}
        )
        return Reply(200, {"Content-Type": "application/json"}, body.encode())

    with ScriptedServer(give) as server:
        yield server


@pytest.fixture
def service_account(tmp_path: Path, token_uri: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Be a service account, by a key file as Google gives them out."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file = tmp_path / "key.json"
    file.write_text(
        json.dumps(
            {
                "type": "service_account",
                "project_id": "project",
                "private_key_id": "1",
                "private_key": key.decode(),
                "client_email": "ann@project.iam.gserviceaccount.com",
                "token_uri": f"http://{token_uri.address}/token",
            }
        )
    )
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
    return file


def test_application_default_credentials_give_a_token_that_is_kept(
    service_account: Path, token_uri: ScriptedServer
) -> None:
    store = CredentialStore([])
    for _ in range(2):
        found = store.find("gcr.io", "project/app")
        assert found is not None
        assert (found.username, found.password) == ("oauth2accesstoken", "ya29.token-1")
    assert len(token_uri.asked) == 1
    assert store.problems == []


def test_application_default_credentials_that_do_not_work_are_noted(
    service_account: Path, token_uri: ScriptedServer
) -> None:
    token_uri.script = lambda _: Reply(
        400, {}, b'{"error":"invalid_grant","error_description":"%b"}' % SECRET.encode()
    )
    store = CredentialStore([])
    assert store.find("gcr.io", "project/app") is None
    assert "Google's application default credentials" in store.problems[0]
    assert SECRET not in store.problems[0]


def test_where_nothing_is_known_of_google_nothing_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(google, "import_module", lambda name: pytest.fail(f"{name} was imported"))
    assert CredentialStore([]).find("gcr.io", "distroless/static") is None


def test_the_basic_header_of_google_is_the_documented_one() -> None:
    credential = Credential(username=google.USER, password="ya29.x")
    assert credential.basic == "Basic " + base64.b64encode(b"oauth2accesstoken:ya29.x").decode()
