"""Where credentials may go, against servers that want them elsewhere. docs/security.md names the test of each rule.

More of them are in test_registry_auth.py; here are those that need two registries, a helper or an upload.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from registries import Asked, Reply, TokenServer, push_image

from lamella import oci
from lamella.digest import digest_of
from lamella.errors import LamellaError, PermissionDenied, Unauthenticated
from lamella.reference import Reference
from lamella.registry import exchange
from lamella.registry.client import RegistryClient
from lamella.registry.config import RegistryConfig, Timeouts
from lamella.registry.credentials import Credential, CredentialStore
from lamella.registry.login import login
from lamella.registry.server import RegistryServer, basic_auth

SECRET = "hunter2-very-secret"
BASIC = "Basic " + base64.b64encode(f"ann:{SECRET}".encode()).decode()
ANN = Credential(username="ann", password=SECRET, source="a test")
MANIFEST = b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}'
GOOD = Reply(200, {"Content-Type": oci.OCI_INDEX}, MANIFEST)
BLOB = b"a blob" * 1000
DESCRIPTOR = oci.Descriptor(oci.OCI_LAYER, digest_of(BLOB), len(BLOB))


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture
def tokens() -> Iterator[TokenServer]:
    with TokenServer({"ann": SECRET}) as server:
        yield server


def reference(server: Any, rest: str = "team/app") -> Reference:
    return Reference.parse(f"{server.address}/{rest}")


def client_for(*servers: Any, credential: Credential = ANN) -> RegistryClient:
    known = {server.address: credential for server in servers}
    return RegistryClient(
        RegistryConfig(credentials=known, attempts=1, backoff=0.001, timeouts=Timeouts(60, 60))
    )


def challenge(realm: str, scope: str = "repository:team/app:pull") -> Reply:
    return Reply(401, {"WWW-Authenticate": f'Bearer realm="{realm}",service="s",scope="{scope}"'})


def secret_in(error: BaseException) -> bool:
    shown = "".join(traceback.format_exception(error)) + repr(error) + str(getattr(error, "hint", ""))
    return SECRET in shown or BASIC.removeprefix("Basic ") in shown


def test_a_registry_that_names_anothers_token_server_is_sent_nothing_of_the_other(
    tokens: TokenServer, scripted: Any
) -> None:
    """Credentials are looked for by the registry's name, whatever realm and service it names."""
    evil = scripted(lambda _: challenge(tokens.realm))
    with RegistryServer(auth=tokens.guard) as honest:
        push_image(honest)
        with client_for(honest) as client:
            client.resolve(reference(honest))
            tokens.asked.clear()
            with pytest.raises(Unauthenticated):
                client.resolve(reference(evil))
    assert [asked.authorization for asked in tokens.asked] == [None]
    assert "account" not in tokens.asked[0].path
    assert all(asked.authorization is None for asked in evil.asked)


def test_a_token_is_sent_to_no_other_registry_of_the_same_token_server(
    tokens: TokenServer, scripted: Any
) -> None:
    first = scripted(lambda asked: GOOD if asked.authorization else challenge(tokens.realm))
    second = scripted(lambda asked: GOOD if asked.authorization else challenge(tokens.realm))
    with client_for(first, second) as client:
        client.resolve(reference(first))
        client.resolve(reference(second))
    assert first.asked[-1].authorization == "Bearer token-1"
    assert second.asked[-1].authorization == "Bearer token-2"


def test_a_token_of_one_repository_is_not_sent_for_another(tokens: TokenServer, scripted: Any) -> None:
    def script(asked: Asked) -> Reply:
        name = asked.path.split("/manifests")[0].removeprefix("/v2/")
        return GOOD if asked.authorization else challenge(tokens.realm, f"repository:{name}:pull")

    server = scripted(script)
    with client_for(server) as client:
        client.resolve(reference(server, "team/private"))
        client.resolve(reference(server, "public/app"))
    assert [asked.authorization for asked in server.asked] == [None, "Bearer token-1", None, "Bearer token-2"]


def test_the_password_of_a_request_for_a_token_does_not_follow_a_redirect(scripted: Any) -> None:
    other = scripted(lambda _: Reply(200, {}, b'{"token":"t"}'))
    realm = scripted(lambda _: Reply(302, {"Location": f"http://{other.address}/token"}))
    server = scripted(lambda asked: GOOD if asked.authorization else challenge(f"http://{realm.address}/"))
    with client_for(server) as client:
        client.resolve(reference(server))
    assert [asked.authorization for asked in realm.asked] == [BASIC]
    assert [asked.authorization for asked in other.asked] == [None]


def test_an_identity_token_is_no_password_for_a_registry_that_wants_one(scripted: Any) -> None:
    server = scripted(lambda _: Reply(401, {"WWW-Authenticate": 'Basic realm="x"'}))
    token = Credential(username="ann", identity_token=SECRET, source="a test")
    with client_for(server, credential=token) as client, pytest.raises(Unauthenticated):
        client.resolve(reference(server))
    assert all(asked.authorization is None for asked in server.asked)


def test_an_identity_token_is_in_no_address(tokens: TokenServer) -> None:
    tokens.identity_tokens.add(SECRET)
    token = Credential(username="ann", identity_token=SECRET, source="a test")
    with RegistryServer(auth=tokens.guard) as server:
        push_image(server)
        with client_for(server, credential=token) as client:
            client.resolve(reference(server))
        assert not any(SECRET in request.path for request in server.requests)
    assert all(asked.method == "POST" and SECRET not in asked.path for asked in tokens.asked)


@pytest.mark.parametrize(
    "address", ["http://ann:x@127.0.0.1:1/", "http://ann@127.0.0.1:1/", "http://:x@127.0.0.1:1/"]
)
def test_a_realm_with_credentials_in_it_is_refused(address: str, scripted: Any) -> None:
    server = scripted(lambda _: challenge(address))
    with client_for(server) as client, pytest.raises(PermissionDenied, match="credentials of its own"):
        client.resolve(reference(server))


@pytest.mark.parametrize(
    "realm",
    [
        "file:///etc/passwd",
        "ftp://127.0.0.1/",
        "127.0.0.1/token",
        "//127.0.0.1/token",
        "http://[::1",
        "",
        "javascript:0",
    ],
)
def test_a_realm_that_is_no_web_address_is_asked_for_nothing(realm: str, scripted: Any) -> None:
    server = scripted(lambda _: challenge(realm))
    with client_for(server) as client, pytest.raises(LamellaError) as caught:
        client.resolve(reference(server))
    assert all(asked.authorization is None for asked in server.asked)
    assert not secret_in(caught.value)


def test_a_query_of_the_realm_is_kept_and_no_part_of_it_is_told(scripted: Any, caplog: Any) -> None:
    caplog.set_level("DEBUG", "lamella")
    realm = scripted(lambda _: Reply(403, {}, b'{"errors":[{"code":"DENIED","message":"no"}]}'))
    server = scripted(lambda _: challenge(f"http://{realm.address}/t?key={SECRET}"))
    with client_for(server) as client, pytest.raises(Unauthenticated) as caught:
        client.resolve(reference(server))
    assert realm.asked[0].path.startswith(f"/t?key={SECRET}&")
    assert not secret_in(caught.value)
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    "credential",
    [
        ANN,
        Credential(identity_token=SECRET, source="a test"),
        Credential(registry_token=SECRET, source="a test"),
    ],
)
def test_what_a_server_repeats_of_a_secret_is_in_no_error_and_no_log(
    credential: Credential, scripted: Any, caplog: Any
) -> None:
    caplog.set_level("DEBUG", "lamella")

    def refuse(asked: Asked) -> Reply:
        said = f"{asked.authorization} {asked.body.decode()} {SECRET}"
        document = {"errors": [{"code": "DENIED", "message": said}]}
        return Reply(403, {}, json.dumps(document).encode())

    realm = scripted(refuse)
    server = scripted(
        lambda asked: refuse(asked) if asked.authorization else challenge(f"http://{realm.address}/")
    )
    with (
        client_for(server, credential=credential) as client,
        pytest.raises(LamellaError, match="DENIED") as caught,
    ):
        client.resolve(reference(server))
    assert not secret_in(caught.value)
    assert SECRET not in caplog.text


def test_a_token_that_a_registry_repeats_is_in_no_error(tokens: TokenServer, scripted: Any) -> None:
    def script(asked: Asked) -> Reply:
        if asked.authorization is None:
            return challenge(tokens.realm)
        return Reply(
            403, {}, json.dumps({"errors": [{"code": "DENIED", "message": asked.authorization}]}).encode()
        )

    server = scripted(script)
    with client_for(server) as client, pytest.raises(PermissionDenied) as caught:
        client.resolve(reference(server))
    assert "token-1" not in str(caught.value)


def upload(client: RegistryClient, server: Any) -> str:
    class Reader:
        def __init__(self, offset: int) -> None:
            self.stream = io.BytesIO(BLOB[offset:])

        def __enter__(self) -> Reader:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def readinto(self, buffer: bytearray | memoryview) -> int:
            return self.stream.readinto(buffer)

    return client.put_blob(reference(server), DESCRIPTOR, Reader, lambda _: None)


def test_an_upload_to_another_host_carries_no_credentials(tokens: TokenServer, scripted: Any) -> None:
    created = Reply(201, {"Docker-Content-Digest": DESCRIPTOR.digest})
    storage = scripted(lambda _: created)

    def script(asked: Asked) -> Reply:
        if not asked.authorization:
            return challenge(tokens.realm, "repository:team/app:pull,push")
        return Reply(202, {"Location": f"http://{storage.address}/upload/1?state=s3cr3t"})

    server = scripted(script)
    with client_for(server) as client:
        assert upload(client, server) == "sent"
    assert {asked.method for asked in storage.asked} <= {"PUT", "PATCH", "GET"}
    assert b"".join(asked.body for asked in storage.asked) == BLOB
    assert all(asked.authorization is None for asked in storage.asked)


def test_an_upload_to_another_host_that_asks_for_credentials_gets_none(
    scripted: Any, tokens: TokenServer
) -> None:
    storage = scripted(lambda _: Reply(401, {"WWW-Authenticate": 'Basic realm="x"'}))
    server = scripted(
        lambda asked: (
            Reply(202, {"Location": f"http://{storage.address}/upload/1"})
            if asked.authorization == BASIC
            else Reply(401, {"WWW-Authenticate": 'Basic realm="x"'})
        )
    )
    with client_for(server) as client, pytest.raises(LamellaError) as caught:
        upload(client, server)
    assert storage.asked
    assert all(asked.authorization is None for asked in storage.asked)
    assert not secret_in(caught.value)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_of_an_upload_carries_no_credentials_to_another_host(status: int, scripted: Any) -> None:
    storage = scripted(lambda _: Reply(201, {"Docker-Content-Digest": DESCRIPTOR.digest}))

    def script(asked: Asked) -> Reply:
        if asked.authorization != BASIC:
            return Reply(401, {"WWW-Authenticate": 'Basic realm="x"'})
        if asked.method == "POST":
            return Reply(202, {"Location": "/upload/1"})
        return Reply(status, {"Location": f"http://{storage.address}/elsewhere"})

    server = scripted(script)
    with client_for(server) as client:
        try:
            upload(client, server)
        except LamellaError as error:
            assert not secret_in(error)
    assert all(asked.authorization is None for asked in storage.asked)


# Files and helpers


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put docker-credential-test on PATH, which knows ann for every server; give what it was asked, with its command line."""
    folder = tmp_path / "bin"
    folder.mkdir()
    asked = tmp_path / "asked"
    program = folder / "docker-credential-test"
    answer = json.dumps({"Username": "ann", "Secret": SECRET})
    program.write_text(f"#!/bin/sh\nread -r given\necho \"$* | $given\" >> {asked}\necho '{answer}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return asked


def test_a_helper_is_asked_for_the_registrys_own_name_whatever_a_challenge_names(
    helper: Path, tokens: TokenServer, tmp_path: Path
) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"credsStore": "test"}')
    with RegistryServer(auth=tokens.guard) as server:
        push_image(server)
        with RegistryClient(RegistryConfig(credentials=CredentialStore([file]), attempts=1)) as client:
            client.resolve(reference(server))
        assert helper.read_text() == f"get | {server.address}\n"


def test_a_helper_is_asked_for_nothing_where_the_registry_asks_for_nothing(
    helper: Path, tmp_path: Path
) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"credsStore": "test"}')
    with RegistryServer() as server:
        push_image(server)
        with RegistryClient(RegistryConfig(credentials=CredentialStore([file]), attempts=1)) as client:
            client.resolve(reference(server))
    assert not helper.exists()


def test_a_helper_gets_a_secret_on_stdin_and_not_on_its_command_line(helper: Path, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"credsStore": "test"}')
    with RegistryServer(auth=basic_auth({"ann": SECRET})) as server:
        login(server.address, username="ann", password=SECRET, file=file)
    words, _, given = helper.read_text().partition(" | ")
    assert words == "store"
    assert SECRET in given
    assert SECRET not in file.read_text()


def test_what_stood_in_the_way_of_credentials_is_in_the_hint(tmp_path: Path) -> None:
    helped, damaged = tmp_path / "config.json", tmp_path / "auth.json"
    helped.write_text('{"credsStore": "not-there"}')
    damaged.write_text("{")
    store = CredentialStore([helped, damaged])
    with (
        RegistryServer(auth=basic_auth({"ann": SECRET})) as server,
        RegistryClient(RegistryConfig(credentials=store, attempts=1)) as client,
        pytest.raises(Unauthenticated) as caught,
    ):
        client.resolve(reference(server))
    hint = str(caught.value.hint)
    assert f"{helped}: docker-credential-not-there is not on PATH" in hint
    assert f"{damaged} is not a valid docker config file" in hint


def test_credentials_that_end_are_renewed_before_they_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As AWS's, which answers 403 and no challenge to a password that has ended."""
    monkeypatch.setattr(exchange, "LOOKUP_SECONDS", 0)
    users = {"AWS": "first"}
    store = CredentialStore([])
    found = [
        Credential(username="AWS", password="first", good_until=time.time() + 1000),
        Credential(username="AWS", password="second", good_until=time.time() + 9000),
    ]
    monkeypatch.setattr(store, "find", lambda *_: found.pop(0))
    with RegistryServer(auth=basic_auth(users)) as server:
        push_image(server)
        with RegistryClient(RegistryConfig(credentials=store, attempts=1)) as client:
            client.resolve(reference(server))
            client.resolve(reference(server))
            assert len(found) == 1
            users.clear()
            users["AWS"] = "second"
            now = time.time()
            monkeypatch.setattr(time, "time", lambda: now + 2000)
            server.auth = basic_auth(users)
            client.resolve(reference(server))
        assert [request.status for request in server.requests] == [401, 200, 200, 200]


def test_a_login_is_tried_at_the_registry_itself_and_sends_nothing_elsewhere(
    tokens: TokenServer, scripted: Any, tmp_path: Path
) -> None:
    other = scripted(lambda _: Reply(401, {"WWW-Authenticate": 'Basic realm="x"'}))
    server = scripted(lambda _: Reply(307, {"Location": f"http://{other.address}/v2/"}))
    with pytest.raises(Unauthenticated) as caught:
        login(server.address, username="ann", password=SECRET, file=tmp_path / "config.json")
    assert not secret_in(caught.value)
    assert all(asked.authorization is None for asked in (*other.asked, *server.asked))
    assert {urlsplit(asked.path).path for asked in server.asked} == {"/v2/"}
    assert not (tmp_path / "config.json").exists()


def test_each_rule_of_the_documents_names_tests_that_are_there() -> None:
    repository = Path(__file__).resolve().parents[2]
    section = (repository / "docs/security.md").read_text().partition("### Where credentials may go")[2]
    rules = [line for line in section.partition("\n## ")[0].splitlines() if line.startswith("| ")][1:]
    defined = "\n".join(file.read_text() for file in (repository / "tests").glob("*/test_*.py"))
    assert len(rules) > 20
    for rule in rules:
        named = re.findall(r"`(test_\w+)`", rule)
        assert named, rule
        assert [name for name in named if f"def {name}(" not in defined] == []
