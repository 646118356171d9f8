"""Where credentials and tokens go, and where requests may be sent on to (DESIGN's security promises)."""

from __future__ import annotations

import base64
import json
import os
import socket
import ssl
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from registries import Asked, Reply, ScriptedServer, TokenServer, push_image, read_all

from lamella import oci
from lamella.digest import digest_of
from lamella.errors import LamellaError, PermissionDenied, Unauthenticated, Unavailable
from lamella.reference import Reference
from lamella.registry import exchange as exchange_module
from lamella.registry import transport
from lamella.registry.auth import repository_scope
from lamella.registry.client import RegistryClient
from lamella.registry.config import RegistryConfig, Timeouts
from lamella.registry.credentials import Credential
from lamella.registry.exchange import Exchange
from lamella.registry.server import RegistryServer, basic_auth

SECRET = "hunter2-very-secret"
BASIC = "Basic " + base64.b64encode(f"ann:{SECRET}".encode()).decode()
ANN = Credential(username="ann", password=SECRET, source="a test")
MANIFEST = b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}'
GOOD = Reply(200, {"Content-Type": oci.OCI_INDEX}, MANIFEST)
CHALLENGE = Reply(401, {"WWW-Authenticate": 'Basic realm="x"'})


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away what this machine's environment says of proxies and certificates."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name in {
            "REQUESTS_CA_BUNDLE",
            "CURL_CA_BUNDLE",
            "SSL_CERT_FILE",
        }:
            monkeypatch.delenv(name)


@pytest.fixture
def tokens() -> Iterator[TokenServer]:
    with TokenServer({"ann": SECRET}) as server:
        yield server


def reference(server: Any, rest: str = "team/app") -> Reference:
    return Reference.parse(f"{server.address}/{rest}")


def client_for(server: Any, credential: Credential | None = ANN, **options: Any) -> RegistryClient:
    known = {server.address: credential} if credential else {}
    return RegistryClient(
        RegistryConfig(
            credentials=known, backoff=0.001, timeouts=Timeouts(5, 5), **{"attempts": 2, **options}
        )
    )


def guarded(script: Callable[[Asked], Reply]) -> Callable[[Asked], Reply]:
    """Want ann's password before ``script`` answers."""
    return lambda asked: script(asked) if asked.authorization == BASIC else CHALLENGE


def nothing_secret(error: BaseException, *secrets: str) -> None:
    shown = "".join(traceback.format_exception(error)) + repr(error) + str(getattr(error, "hint", ""))
    for secret in (SECRET, BASIC.removeprefix("Basic "), *secrets):
        assert secret not in shown


# Basic


def test_basic_credentials_are_sent_after_a_challenge_and_then_at_once() -> None:
    with RegistryServer(auth=basic_auth({"ann": SECRET})) as server:
        pushed = push_image(server)
        with client_for(server) as client:
            descriptor, data = client.resolve(reference(server))
            assert descriptor == pushed
            layer = oci.parse_manifest(data).layers[0]
            with client.open_blob(reference(server), layer) as stream:
                assert digest_of(read_all(stream)) == layer.digest
        assert [request.status for request in server.requests] == [401, 200, 200]


def test_no_credentials_are_sent_where_none_are_asked_for(scripted: Any) -> None:
    server = scripted(lambda _: GOOD)
    with client_for(server) as client:
        client.resolve(reference(server))
    assert server.asked[0].authorization is None


@pytest.mark.parametrize("credential", [None, Credential(username="ann", password="wrong", source="a test")])
def test_without_the_right_password_it_is_unauthenticated(credential: Credential | None) -> None:
    with RegistryServer(auth=basic_auth({"ann": SECRET})) as server:
        push_image(server)
        with client_for(server, credential) as client, pytest.raises(Unauthenticated) as caught:
            client.resolve(reference(server))
        assert len(server.requests) == (2 if credential else 1)
    assert ("a test" if credential else "Log in") in str(caught.value.hint)
    nothing_secret(caught.value, "wrong")


def test_netrc_is_not_a_source_of_credentials(
    scripted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "netrc"
    file.write_text(f"machine 127.0.0.1 login ann password {SECRET}\n")
    file.chmod(0o600)
    monkeypatch.setenv("NETRC", str(file))
    server = scripted(guarded(lambda _: GOOD))
    with client_for(server, None) as client, pytest.raises(Unauthenticated):
        client.resolve(reference(server))
    assert all(asked.authorization is None for asked in server.asked)


# Bearer


def test_an_anonymous_token_is_fetched_once_and_used_for_the_repository() -> None:
    with TokenServer() as tokens, RegistryServer(auth=tokens.guard) as server:
        push_image(server)
        with client_for(server, None) as client:
            _, data = client.resolve(reference(server))
            for layer in oci.parse_manifest(data).layers:
                with client.open_blob(reference(server), layer) as stream:
                    read_all(stream)
        assert [request.status for request in server.requests] == [401, 200, 200, 200]
        assert len(tokens.asked) == 1
        assert tokens.asked[0].authorization is None
        assert tokens.asked[0].path == "/token?service=test+registry&scope=repository%3Ateam%2Fapp%3Apull"


def test_credentials_go_to_the_token_server_and_only_the_token_to_the_registry(tokens: TokenServer) -> None:
    seen: list[str | None] = []

    def guard(access: Any) -> str | None:
        seen.append(access.authorization)
        return tokens.guard(access)

    with RegistryServer(auth=guard) as server:
        push_image(server)
        with client_for(server) as client:
            client.resolve(reference(server))
    assert tokens.asked[0].authorization == BASIC
    assert seen == [None, "Bearer token-1"]


def test_an_identity_token_is_exchanged_by_oauth(tokens: TokenServer) -> None:
    tokens.identity_tokens.add(SECRET)
    with RegistryServer(auth=tokens.guard) as server:
        push_image(server)
        with client_for(server, Credential(identity_token=SECRET)) as client:
            client.resolve(reference(server))
    asked = tokens.asked[0]
    assert (asked.method, asked.authorization) == ("POST", None)
    assert b"client_id=lamella" in asked.body
    assert SECRET not in asked.path


def test_each_repository_has_its_own_token(tokens: TokenServer) -> None:
    with RegistryServer(auth=tokens.guard) as server:
        for name in ("a", "b"):
            push_image(server, name)
        with client_for(server) as client:
            for name in ("a", "b", "a", "b"):
                client.resolve(reference(server, name))
    assert len(tokens.asked) == 2


def test_many_threads_fetch_one_token(tokens: TokenServer) -> None:
    give, fetching = tokens.script, threading.Event()

    def slowly(asked: Asked) -> Reply:
        fetching.wait(0.3)
        return give(asked)

    tokens.script = slowly
    with RegistryServer(auth=tokens.guard) as server:
        push_image(server)
        with client_for(server) as client:
            threads = [threading.Thread(target=client.resolve, args=(reference(server),)) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    assert len(tokens.asked) == 1


def test_a_token_is_renewed_before_it_expires(tokens: TokenServer) -> None:
    now = 1000.0
    with RegistryServer(auth=tokens.guard) as server:
        push_image(server)
        with client_for(server) as client:
            client._exchange.authorizer._clock = lambda: now
            client.resolve(reference(server))
            now += 300 - 21
            client.resolve(reference(server))
            assert len(tokens.asked) == 1
            now += 2
            client.resolve(reference(server))
            assert len(tokens.asked) == 2
        assert [request.status for request in server.requests] == [401, 200, 200, 200]


def test_a_token_that_is_refused_is_replaced(tokens: TokenServer) -> None:
    with RegistryServer(auth=tokens.guard) as server:
        push_image(server)
        with client_for(server) as client:
            client.resolve(reference(server))
            tokens.revoke()
            client.resolve(reference(server))
        assert [request.status for request in server.requests] == [401, 200, 401, 200]


def test_a_blob_goes_on_with_a_new_token_when_the_old_one_ends_in_the_middle(tokens: TokenServer) -> None:
    blob = bytes(300_000)
    descriptor = oci.Descriptor(oci.OCI_LAYER, digest_of(blob), len(blob))

    def script(asked: Asked) -> Reply:
        from lamella.registry.server import Access

        challenge = tokens.guard(Access("team/app", "pull", asked.authorization))
        if challenge:
            return Reply(401, {"WWW-Authenticate": challenge})
        if "range" not in asked.headers:
            tokens.revoke()
            return Reply(200, {"Content-Length": str(len(blob))}, blob[:100_000])
        return Reply(206, {"Content-Range": f"bytes 100000-{len(blob) - 1}/{len(blob)}"}, blob[100_000:])

    with (
        ScriptedServer(script) as server,
        client_for(server) as client,
        client.open_blob(reference(server), descriptor) as stream,
    ):
        assert read_all(stream) == blob
    assert len(tokens.asked) == 2


def test_a_token_that_is_old_already_is_renewed_the_earlier(tokens: TokenServer) -> None:
    """``expires_in`` counts from ``issued_at``; both are of the token server's clock, whatever this machine's says."""
    now, give = 1000.0, tokens.script

    def cached(asked: Asked) -> Reply:
        reply = give(asked)
        answer = json.loads(bytes(reply.body)) | {"issued_at": "2001-01-01T00:00:00Z", "expires_in": "300"}
        return reply._replace(
            headers={"Date": "Mon, 01 Jan 2001 00:04:00 GMT"}, body=json.dumps(answer).encode()
        )

    tokens.script = cached
    with RegistryServer(auth=tokens.guard) as server:
        push_image(server)
        with client_for(server) as client:
            client._exchange.authorizer._clock = lambda: now
            client.resolve(reference(server))
            now += 60 - 16
            client.resolve(reference(server))
            assert len(tokens.asked) == 1
            now += 2
            client.resolve(reference(server))
            assert len(tokens.asked) == 2


def test_a_token_that_says_it_has_ended_long_ago_is_used_all_the_same(tokens: TokenServer) -> None:
    give = tokens.script

    def wrong(asked: Asked) -> Reply:
        reply = give(asked)
        return reply._replace(body=reply.body.replace(b"{", b'{"issued_at":"0001-01-01T00:00:00Z",'))  # type: ignore[union-attr]

    tokens.script = wrong
    with RegistryServer(auth=tokens.guard) as server:
        push_image(server)
        with client_for(server) as client:
            for _ in range(3):
                client.resolve(reference(server))
    assert len(tokens.asked) == 1


def exchange_for(server: Any) -> Exchange:
    config = RegistryConfig(credentials={server.address: ANN}, attempts=1, timeouts=Timeouts(5, 5))
    return Exchange(config)


def ask(exchange: Exchange, server: Any, *scopes: str, path: str = "x") -> int:
    response = exchange.request("GET", reference(server), path, {}, what="a test", scopes=scopes)
    response.close()
    return response.status_code


def test_a_push_and_a_mount_ask_for_what_they_need_in_one_token(tokens: TokenServer, scripted: Any) -> None:
    """The challenge to a push may name less, as one that answers a HEAD does: the union is asked for."""
    wanted = f'Bearer realm="{tokens.realm}",service="s",scope="repository:team/app:pull"'
    server = scripted(lambda asked: GOOD if asked.authorization else Reply(401, {"WWW-Authenticate": wanted}))
    push, mount = repository_scope("team/app", "pull", "push"), repository_scope("other/base", "pull")
    exchange = exchange_for(server)
    try:
        assert ask(exchange, server, push) == 200
        assert ask(exchange, server, push, mount) == 200
        assert ask(exchange, server, push) == 200
    finally:
        exchange.transport.close()
    scopes = [parse_qs(urlsplit(asked.path).query)["scope"] for asked in tokens.asked]
    assert scopes == [
        ["repository:team/app:pull,push"],
        ["repository:team/app:pull,push", "repository:other/base:pull"],
    ]
    # What the registry said of the repository is remembered: only the first request was answered 401.
    assert [asked.authorization is None for asked in server.asked] == [True, False, False, False]


def test_a_token_that_allows_too_little_is_replaced_by_one_of_the_scope_that_the_registry_names(
    tokens: TokenServer, scripted: Any
) -> None:
    def script(asked: Asked) -> Reply:
        scopes = tokens.given.get((asked.authorization or "").removeprefix("Bearer "), [])
        if "repository:team/app:pull,push" in scopes:
            return GOOD
        error = ',error="insufficient_scope"' if scopes else ""
        action = "push" if scopes else "pull"
        scope = f'scope="repository:team/app:{action}"'
        return Reply(401, {"WWW-Authenticate": f'Bearer realm="{tokens.realm}",service="s",{scope}{error}'})

    server = scripted(script)
    exchange = exchange_for(server)
    pull = repository_scope("team/app", "pull")
    try:
        assert ask(exchange, server, pull) == 401
        assert ask(exchange, server, pull) == 200
    finally:
        exchange.transport.close()
    assert len(tokens.asked) == 2


@pytest.mark.parametrize(
    ("scopes", "expected"),
    [
        (("repository:team/app:delete",), ["repository:team/app:delete"]),
        (("registry:catalog:*",), ["registry:catalog:*"]),
        ((), None),
    ],
)
def test_the_scope_of_a_token_is_the_requests(
    scopes: tuple[str, ...], expected: list[str] | None, tokens: TokenServer, scripted: Any
) -> None:
    wanted = f'Bearer realm="{tokens.realm}",service="s"'
    server = scripted(lambda asked: GOOD if asked.authorization else Reply(401, {"WWW-Authenticate": wanted}))
    exchange = exchange_for(server)
    try:
        assert ask(exchange, server, *scopes) == 200
    finally:
        exchange.transport.close()
    assert parse_qs(urlsplit(tokens.asked[0].path).query).get("scope") == expected


def test_a_registry_token_is_sent_to_the_registry_alone(scripted: Any) -> None:
    realm = scripted(lambda _: Reply(500))
    wanted = Reply(401, {"WWW-Authenticate": f'Bearer realm="http://{realm.address}/",service="s"'})
    server = scripted(lambda asked: GOOD if asked.authorization == f"Bearer {SECRET}" else wanted)
    with client_for(server, Credential(registry_token=SECRET)) as client:
        assert client.resolve(reference(server))[1] == MANIFEST
    with client_for(server, Credential(registry_token="other")) as client, pytest.raises(Unauthenticated):
        client.resolve(reference(server))
    assert not realm.asked


def test_credentials_that_are_refused_are_looked_for_anew(
    tokens: TokenServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody logs in while a program runs; a password that was good is changed."""
    monkeypatch.setattr(exchange_module, "LOOKUP_SECONDS", 0)
    known: dict[str, Credential] = {}
    with RegistryServer(auth=tokens.guard) as server:
        push_image(server)
        with RegistryClient(RegistryConfig(credentials=known, attempts=1)) as client:
            with pytest.raises(Unauthenticated):
                client.resolve(reference(server))
            known[server.address] = ANN
            client.resolve(reference(server))
            tokens.revoke()
            tokens.users = {"ann": "changed"}
            client._exchange.authorizer._clock = lambda: float("inf")
            with pytest.raises(Unauthenticated):
                client.resolve(reference(server))
            known[server.address] = Credential(username="ann", password="changed")
            client._exchange.authorizer._clock = lambda: 0
            client.resolve(reference(server))


def test_wrong_credentials_at_the_token_server_are_unauthenticated(tokens: TokenServer) -> None:
    wrong = Credential(username="ann", password="wrong-password", source="a test")
    with (
        RegistryServer(auth=tokens.guard) as server,
        client_for(server, wrong) as client,
        pytest.raises(Unauthenticated, match="a test") as caught,
    ):
        client.resolve(reference(server))
    nothing_secret(caught.value, "wrong-password")


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{}", b'{"token": 5}', b'{"token": "a b"}', b'{"token": "a\\r\\nX: y"}', b"x" * 2_000_000],
)
def test_a_token_server_that_gives_no_token_is_unavailable(body: bytes, scripted: Any) -> None:
    realm = scripted(lambda _: Reply(200, {}, body))
    challenge = f'Bearer realm="http://{realm.address}/t",service="s"'
    server = scripted(lambda _: Reply(401, {"WWW-Authenticate": challenge}))
    with client_for(server) as client, pytest.raises(LamellaError) as caught:
        client.resolve(reference(server))
    assert "token" in str(caught.value)
    assert realm.address in str(caught.value)
    assert all(asked.authorization is None for asked in server.asked)
    nothing_secret(caught.value)


def test_a_secret_that_a_server_repeats_is_not_in_the_error(scripted: Any) -> None:
    def script(asked: Asked) -> Reply:
        if asked.authorization is None:
            return CHALLENGE
        said = f"{asked.authorization} {SECRET}".encode()
        return Reply(403, {}, b'{"errors":[{"code":"DENIED","message":"%b"}]}' % said)

    server = scripted(script)
    with client_for(server) as client, pytest.raises(PermissionDenied) as caught:
        client.resolve(reference(server))
    assert "DENIED" in str(caught.value)
    nothing_secret(caught.value)


def test_docker_hub_says_that_a_missing_image_may_be_private() -> None:
    with RegistryClient(RegistryConfig(credentials={})) as client:
        (host,) = client._exchange.hosts.serving("docker.io", "team/private")
        hint = client._exchange._login_hint(host, client._exchange._identify(host, host.home))
    assert "does not exist or is private" in hint


# Redirects


def test_a_redirect_to_another_host_carries_no_credentials(scripted: Any) -> None:
    storage = scripted(lambda _: GOOD)
    server = scripted(
        guarded(lambda _: Reply(307, {"Location": f"http://{storage.address}/x?signature=s3cr3t"}))
    )
    with client_for(server) as client:
        assert client.resolve(reference(server))[1] == MANIFEST
    assert [asked.authorization for asked in server.asked] == [None, BASIC]
    assert [asked.authorization for asked in storage.asked] == [None]


def test_a_redirect_on_the_same_host_keeps_credentials_and_may_be_relative(scripted: Any) -> None:
    def script(asked: Asked) -> Reply:
        return GOOD if asked.path == "/elsewhere" else Reply(302, {"Location": "/elsewhere"})

    server = scripted(guarded(script))
    with client_for(server) as client:
        assert client.resolve(reference(server))[1] == MANIFEST
    assert server.asked[-1] == server.asked[-1]._replace(path="/elsewhere")
    assert server.asked[-1].authorization == BASIC


def test_a_redirect_that_leads_back_carries_no_credentials(scripted: Any) -> None:
    storage = scripted(lambda _: Reply(302, {"Location": f"http://{server.address}/back"}))

    def script(asked: Asked) -> Reply:
        return GOOD if asked.path == "/back" else Reply(302, {"Location": f"http://{storage.address}/x"})

    server = scripted(
        lambda asked: script(asked) if asked.authorization == BASIC or asked.path == "/back" else CHALLENGE
    )
    with client_for(server) as client:
        client.resolve(reference(server))
    assert [asked.authorization for asked in server.asked if asked.path == "/back"] == [None]


def test_a_challenge_of_another_host_gets_no_credentials(scripted: Any) -> None:
    storage = scripted(lambda _: CHALLENGE)
    server = scripted(guarded(lambda _: Reply(302, {"Location": f"http://{storage.address}/x"})))
    with client_for(server) as client, pytest.raises(Unauthenticated):
        client.resolve(reference(server))
    assert all(asked.authorization is None for asked in storage.asked)


def test_a_challenge_of_another_host_cannot_name_the_token_server(scripted: Any) -> None:
    evil = scripted(lambda _: Reply(200, {}, b'{"token":"t"}'))
    storage = scripted(lambda _: Reply(401, {"WWW-Authenticate": f'Bearer realm="http://{evil.address}/"'}))
    server = scripted(lambda _: Reply(302, {"Location": f"http://{storage.address}/x"}))
    with client_for(server) as client, pytest.raises(Unauthenticated):
        client.resolve(reference(server))
    assert not evil.asked


def test_the_query_of_a_redirect_is_in_no_error(scripted: Any) -> None:
    storage = scripted(lambda _: Reply(500))
    server = scripted(lambda _: Reply(307, {"Location": f"http://{storage.address}/x?signature=s3cr3t"}))
    with client_for(server) as client, pytest.raises(Unavailable) as caught:
        client.resolve(reference(server))
    nothing_secret(caught.value, "s3cr3t")
    with client_for(server) as client, pytest.raises(Unavailable) as caught:
        storage.script = lambda _: Reply(200, {}, iter([b""]), reset=True)
        client.resolve(reference(server))
    nothing_secret(caught.value, "s3cr3t")


def test_redirects_in_a_circle_come_to_an_end(scripted: Any) -> None:
    server = scripted(lambda asked: Reply(302, {"Location": asked.path + "x"}))
    with client_for(server) as client, pytest.raises(Unavailable, match="redirects more than 10 times"):
        client.resolve(reference(server))
    assert len(server.asked) == 11


@pytest.mark.parametrize(
    "location",
    [
        "file:///etc/passwd",
        "ftp://127.0.0.1/",
        "http://",
        "//",
        "http://[::1",
        "http://127.0.0.1:99999/",
        "gopher://x",
    ],
)
def test_a_redirect_to_no_web_address_is_refused(location: str, scripted: Any) -> None:
    server = scripted(lambda _: Reply(302, {"Location": location}))
    with client_for(server) as client, pytest.raises(LamellaError):
        client.resolve(reference(server))
    # An empty address is the one it was found at.
    assert len(server.asked) == (11 if location in {"http://", "//"} else 1)


def test_an_endless_body_of_a_redirect_is_not_read(scripted: Any) -> None:
    def pieces() -> Iterator[bytes]:
        while True:
            yield bytes(64 * 1024)

    server = scripted(lambda asked: GOOD if asked.path == "/x" else Reply(302, {"Location": "/x"}, pieces()))
    with client_for(server) as client:
        assert client.resolve(reference(server))[1] == MANIFEST


def test_a_redirect_with_credentials_in_it_is_refused(scripted: Any) -> None:
    server = scripted(lambda _: Reply(302, {"Location": f"http://ann:{SECRET}@127.0.0.1:1/"}))
    with client_for(server, None) as client, pytest.raises(PermissionDenied) as caught:
        client.resolve(reference(server))
    nothing_secret(caught.value)


def test_an_identity_token_is_not_sent_after_a_redirect(scripted: Any) -> None:
    other = scripted(lambda _: Reply(200, {}, b'{"token":"t"}'))
    realm = scripted(lambda _: Reply(307, {"Location": f"http://{other.address}/"}))
    server = scripted(lambda _: Reply(401, {"WWW-Authenticate": f'Bearer realm="http://{realm.address}/"'}))
    with client_for(server, Credential(identity_token=SECRET)) as client, pytest.raises(PermissionDenied):
        client.resolve(reference(server))
    assert not other.asked


# Private networks. Two names stand for machines: registry.example.com is taken for one on the internet, the others
# are what they are: addresses of this machine.


@pytest.fixture
def internet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every name under example.com lead to 127.0.0.1, and registry.example.com to 127.0.0.2, which counts as public."""
    real_lookup, real_peer = socket.getaddrinfo, transport._peer

    def lookup(host: Any, port: Any, *rest: Any, **options: Any) -> Any:
        if str(host) == "registry.example.com":
            host = "127.0.0.2"
        elif str(host).endswith("example.com"):
            host = "127.0.0.1"
        return real_lookup(host, port, *rest, **options)

    def peer(connection: Any) -> Any:
        address = real_peer(connection)
        return transport.parse_address("8.8.8.8") if str(address) == "127.0.0.2" else address

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    monkeypatch.setattr(transport, "_peer", peer)


def public(server: ScriptedServer) -> Reference:
    return Reference.parse(f"registry.example.com:{server.port}/team/app")


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "storage.example.com", "[::ffff:127.0.0.1]", "2130706433"]
)
def test_a_public_registry_cannot_send_on_to_a_private_address(
    host: str, scripted: Any, internet: None
) -> None:
    storage = scripted(lambda _: GOOD)
    server = scripted(lambda _: Reply(307, {"Location": f"http://{host}:{storage.port}/"}), host="127.0.0.2")
    with (
        RegistryClient(RegistryConfig(plain_http=True, credentials={}, attempts=1)) as client,
        pytest.raises((PermissionDenied, Unavailable)) as caught,
    ):
        client.resolve(public(server))
    if isinstance(caught.value, PermissionDenied):
        assert "private network" in str(caught.value)
    assert not storage.asked


@pytest.mark.parametrize(
    "address", ["10.1.2.3", "192.168.0.1", "169.254.169.254", "[fd00::1]", "[fe80::1]", "100.64.0.1"]
)
def test_private_addresses_are_refused_before_a_connection_is_tried(
    address: str, scripted: Any, internet: None
) -> None:
    server = scripted(
        lambda _: Reply(307, {"Location": f"http://{address}/latest/meta-data"}), host="127.0.0.2"
    )
    with (
        RegistryClient(
            RegistryConfig(plain_http=True, credentials={}, attempts=1, timeouts=Timeouts(10, 20))
        ) as client,
        pytest.raises(PermissionDenied, match="private network"),
    ):
        client.resolve(public(server))


def test_a_public_registry_cannot_send_credentials_to_a_realm_on_a_private_address(
    scripted: Any, internet: None
) -> None:
    with TokenServer() as tokens:
        realm = f"http://auth.example.com:{tokens.port}/token"
        challenge = f'Bearer realm="{realm}",service="s",scope="x"'
        server = scripted(lambda _: Reply(401, {"WWW-Authenticate": challenge}), host="127.0.0.2")
        for credential in (None, ANN):
            known = {public(server).domain: credential} if credential else {}
            with (
                RegistryClient(RegistryConfig(plain_http=True, credentials=known, attempts=1)) as client,
                pytest.raises(PermissionDenied),
            ):
                client.resolve(public(server))
        assert not tokens.asked


def test_it_can_where_the_caller_allows_it(scripted: Any, internet: None) -> None:
    storage = scripted(lambda _: GOOD)
    location = f"http://storage.example.com:{storage.port}/"
    server = scripted(lambda _: Reply(307, {"Location": location}), host="127.0.0.2")
    with RegistryClient(RegistryConfig(plain_http=True, credentials={}, allow_private=True)) as client:
        assert client.resolve(public(server))[1] == MANIFEST


def test_a_registry_of_the_private_network_may_send_on_within_it(scripted: Any, internet: None) -> None:
    storage = scripted(lambda _: GOOD)
    server = scripted(lambda _: Reply(307, {"Location": f"http://storage.example.com:{storage.port}/"}))
    with RegistryClient(RegistryConfig(plain_http=True, credentials={})) as client:
        inside = Reference.parse(f"inside.example.com:{server.port}/team/app")
        assert client.resolve(inside)[1] == MANIFEST


def test_plain_http_to_another_machine_is_used_only_when_asked_for(scripted: Any, internet: None) -> None:
    server = scripted(lambda _: GOOD, host="127.0.0.2")
    with (
        RegistryClient(RegistryConfig(credentials={}, attempts=1)) as client,
        pytest.raises(Unavailable) as caught,
    ):
        client.resolve(public(server))
    assert "--plain-http" in str(caught.value.hint)
    assert not server.asked
    with RegistryClient(RegistryConfig(plain_http=True, credentials={})) as client:
        assert client.resolve(public(server))[1] == MANIFEST


def test_a_loopback_registry_cannot_send_on_to_plain_http_elsewhere(scripted: Any, internet: None) -> None:
    storage = scripted(lambda _: GOOD)
    server = scripted(lambda _: Reply(307, {"Location": f"http://storage.example.com:{storage.port}/"}))
    with client_for(server) as client, pytest.raises(PermissionDenied, match="plain HTTP"):
        client.resolve(reference(server))
    assert not storage.asked


def test_credentials_are_not_sent_to_a_realm_of_another_host_without_tls(
    scripted: Any, internet: None
) -> None:
    with TokenServer({"ann": SECRET}) as tokens:
        challenge = f'Bearer realm="http://auth.example.com:{tokens.port}/token",service="s"'
        server = scripted(lambda _: Reply(401, {"WWW-Authenticate": challenge}))
        inside = Reference.parse(f"inside.example.com:{server.port}/team/app")
        with (
            RegistryClient(RegistryConfig(plain_http=True, credentials={inside.domain: ANN})) as client,
            pytest.raises(PermissionDenied, match="without TLS"),
        ):
            client.resolve(inside)
        assert not tokens.asked


# TLS


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
def test_a_certificate_is_trusted_by_a_bundle_of_the_environment(
    variable: str,
    scripted: Any,
    internet: None,
    tls: ssl.SSLContext,
    authority: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(variable, str(authority / "cert.pem"))
    server = scripted(lambda _: GOOD, host="127.0.0.2", tls=tls)
    with RegistryClient(RegistryConfig(credentials={})) as client:
        assert client.resolve(public(server))[1] == MANIFEST


def test_an_unknown_certificate_is_refused_with_a_hint(
    scripted: Any, internet: None, tls: ssl.SSLContext
) -> None:
    server = scripted(lambda _: GOOD, host="127.0.0.2", tls=tls)
    with (
        RegistryClient(RegistryConfig(credentials={})) as client,
        pytest.raises(Unavailable, match="not trusted") as caught,
    ):
        client.resolve(public(server))
    assert "SSL_CERT_FILE" in str(caught.value.hint)
    assert not server.asked


def test_a_redirect_from_https_down_to_http_is_refused(
    scripted: Any, internet: None, tls: ssl.SSLContext, authority: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority / "cert.pem"))
    storage = scripted(lambda _: GOOD)
    server = scripted(
        lambda _: Reply(307, {"Location": f"http://{storage.address}/"}), host="127.0.0.2", tls=tls
    )
    with (
        RegistryClient(RegistryConfig(credentials={}, allow_private=True)) as client,
        pytest.raises(PermissionDenied, match="from HTTPS to plain HTTP"),
    ):
        client.resolve(public(server))
    assert not storage.asked


def test_a_realm_without_tls_of_a_registry_with_tls_is_refused(
    scripted: Any, internet: None, tls: ssl.SSLContext, authority: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority / "cert.pem"))
    with TokenServer() as tokens:
        challenge = f'Bearer realm="{tokens.realm}",service="s"'
        server = scripted(lambda _: Reply(401, {"WWW-Authenticate": challenge}), host="127.0.0.2", tls=tls)
        with (
            RegistryClient(RegistryConfig(credentials={}, allow_private=True)) as client,
            pytest.raises(PermissionDenied),
        ):
            client.resolve(public(server))
        assert not tokens.asked


def test_a_loopback_registry_with_tls_is_found_out(
    scripted: Any, tls: ssl.SSLContext, authority: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Go's and nginx's servers do, the first port says that it speaks HTTPS; the second does."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority / "cert.pem"))
    secure = scripted(lambda _: GOOD, tls=tls)
    says = b"Client sent an HTTP request to an HTTPS server.\n"
    plain = scripted(lambda _: Reply(400, {"Content-Type": "text/plain"}, says))
    real = transport.Transport.request
    monkeypatch.setattr(
        transport.Transport,
        "request",
        lambda self, method, url, **rest: real(
            self,
            method,
            url.replace(f"https://{plain.address}", f"https://{secure.address}"),
            **rest,
        ),
    )
    with RegistryClient(RegistryConfig(credentials={})) as client:
        for _ in range(2):
            assert client.resolve(reference(plain))[1] == MANIFEST
    assert (len(plain.asked), len(secure.asked)) == (1, 2)


def test_a_proxy_of_the_environment_is_used_and_no_proxy_is_honoured(
    scripted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = scripted(lambda _: GOOD)
    monkeypatch.setenv("http_proxy", f"http://{proxy.address}")
    monkeypatch.setenv("no_proxy", "")
    target = Reference.parse("registry.example.com/team/app")
    with RegistryClient(RegistryConfig(plain_http=True, credentials={})) as client:
        assert client.resolve(target)[1] == MANIFEST
    assert proxy.asked[0].path == "http://registry.example.com/v2/team/app/manifests/latest"
    server = scripted(lambda _: GOOD)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with client_for(server) as client:
        client.resolve(reference(server))
    assert len(proxy.asked) == 1


def test_a_proxy_that_is_not_there_is_unavailable_without_its_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("http_proxy", f"http://ann:{SECRET}@127.0.0.1:1")
    with (
        RegistryClient(RegistryConfig(plain_http=True, credentials={}, attempts=1)) as client,
        pytest.raises(Unavailable) as caught,
    ):
        client.resolve(Reference.parse("registry.example.com/team/app"))
    assert "HTTPS_PROXY" in str(caught.value.hint)
    nothing_secret(caught.value)


def test_a_name_that_does_not_exist_is_unavailable_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def lookup(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    with (
        RegistryClient(RegistryConfig(credentials={})) as client,
        pytest.raises(Unavailable, match="cannot be resolved"),
    ):
        client.resolve(Reference.parse("registry.example.com/team/app"))
