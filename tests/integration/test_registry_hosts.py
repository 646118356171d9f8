"""Mirrors: which host is asked for what, in which order, as whom; and what happens when one is dead, wrong or hostile."""

from __future__ import annotations

import base64
import gzip
import os
import re
import socket
import subprocess
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

import bcrypt
import pytest
from certificates import Authority
from proxy import Proxy
from registries import (
    Asked,
    Reply,
    ScriptedServer,
    TokenServer,
    hosts_folder,
    push_image,
    read_all,
)

from docker_registry import docker_registry_process
from gate import Gate
from lamella import oci
from lamella.digest import digest_of
from lamella.errors import (
    DataLoss,
    InvalidArgument,
    LamellaError,
    NotFound,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from lamella.reference import Reference
from lamella.registry import hosts
from lamella.registry.client import RegistryClient
from lamella.registry.config import RegistryConfig, Timeouts
from lamella.registry.credentials import Credential
from lamella.registry.limits import Limits
from lamella.registry.outages import Outages
from lamella.registry.server import RegistryServer, basic_auth
from lamella.registry.transport import Transport
from ports import silent_port

SECRET = "hunter2-very-secret"
LAYER = bytes(range(256)) * 4096
LAYER_DESCRIPTOR = oci.Descriptor(oci.OCI_LAYER_GZIP, digest_of(LAYER), len(LAYER))
CONFIG = b'{"architecture":"amd64","os":"linux"}'
CONFIG_DESCRIPTOR = oci.Descriptor(oci.OCI_CONFIG, digest_of(CONFIG), len(CONFIG))
MANIFEST = oci.encode(
    oci.Manifest(media_type=oci.OCI_MANIFEST, config=CONFIG_DESCRIPTOR, layers=[LAYER_DESCRIPTOR])
)
DIGEST = digest_of(MANIFEST)
MANIFEST_DESCRIPTOR = oci.Descriptor(oci.OCI_MANIFEST, DIGEST, len(MANIFEST))
BODIES = {
    "manifests/v1": (MANIFEST, oci.OCI_MANIFEST),
    f"manifests/{DIGEST}": (MANIFEST, oci.OCI_MANIFEST),
    f"blobs/{CONFIG_DESCRIPTOR.digest}": (CONFIG, "application/octet-stream"),
    f"blobs/{LAYER_DESCRIPTOR.digest}": (LAYER, "application/octet-stream"),
}


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Take away what this machine says of proxies and registries, and what this process found out of hosts."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name in {
            "REQUESTS_CA_BUNDLE",
            "CURL_CA_BUNDLE",
            "SSL_CERT_FILE",
        }:
            monkeypatch.delenv(name)
    empty = tmp_path / "empty.conf"
    empty.write_text("")
    monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", str(empty))
    monkeypatch.setattr(Outages, "_recent", {})


def place(asked: Asked) -> str:
    """Say what of team/app was asked for, without the query."""
    return asked.path.partition("?")[0].removeprefix("/v2/team/app/")


def served(asked: Asked) -> Reply:
    """Answer as a registry that has the image."""
    found = BODIES.get(place(asked))
    if found is None:
        return Reply(404)
    body, media_type = found
    headers = {"Content-Type": media_type, "Docker-Content-Digest": digest_of(body)}
    start = asked.headers.get("range", "").removeprefix("bytes=").removesuffix("-")
    if start:
        headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        return Reply(206, headers, body[int(start) :])
    return Reply(200, headers, body)


def always(status: int, **headers: str) -> Callable[[Asked], Reply]:
    return lambda _: Reply(status, headers)


class Farm:
    """An origin, the mirrors before it, and clients of that."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.text = ""

    def mirror(self, server: Any, *lines: str, scheme: str = "http") -> None:
        address = server if isinstance(server, str) else server.address
        self.text += "\n".join([f'[host."{scheme}://{address}"]', *lines, ""])

    def client(self, origin: Any, **settings: Any) -> RegistryClient:
        hosts_folder(self.folder, origin.address, self.text)
        usual: dict[str, Any] = {
            "credentials": {},
            "backoff": 0.001,
            "attempts": 3,
            "timeouts": Timeouts(5, 5),
        }
        return RegistryClient(RegistryConfig(hosts_dir=self.folder, **{**usual, **settings}))


@pytest.fixture
def farm(tmp_path: Path) -> Farm:
    return Farm(tmp_path / "hosts")


def reference(server: Any, rest: str = "team/app:v1") -> Reference:
    return Reference.parse(f"{server.address}/{rest}")


def pull(client: RegistryClient, origin: Any) -> None:
    """Fetch everything of the image, as a pull does."""
    ref = reference(origin)
    assert client.resolve(ref) == (MANIFEST_DESCRIPTOR, MANIFEST)
    assert client.fetch_document(ref, CONFIG_DESCRIPTOR) == CONFIG
    with client.open_blob(ref, LAYER_DESCRIPTOR) as stream:
        assert read_all(stream) == LAYER


def places(server: ScriptedServer) -> list[str]:
    return [place(asked) for asked in server.asked]


EVERYTHING = ["manifests/v1", f"blobs/{CONFIG_DESCRIPTOR.digest}", f"blobs/{LAYER_DESCRIPTOR.digest}"]


@pytest.fixture
def dead() -> Iterator[str]:
    with silent_port() as address:
        yield address


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note the address of every request that is tried, answered or not."""
    noted: list[str] = []
    real = Transport._send

    def send(self: Transport, request: Any, target: Any, home: Any) -> Any:
        noted.append(target.netloc)
        return real(self, request, target, home)

    monkeypatch.setattr(Transport, "_send", send)
    return noted


# Who is asked


def test_a_mirror_that_has_everything_is_all_that_is_asked(farm: Farm, scripted: Any) -> None:
    origin, mirror = scripted(served), scripted(served)
    farm.mirror(mirror)
    with farm.client(origin) as client:
        pull(client, origin)
    assert not origin.asked
    assert places(mirror) == EVERYTHING
    assert {asked.path.partition("?")[2] for asked in mirror.asked} == {f"ns={quote(origin.address)}"}


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500, 503])
def test_a_mirror_that_refuses_is_passed_over_at_once(farm: Farm, scripted: Any, status: int) -> None:
    origin, first, second = scripted(served), scripted(always(status)), scripted(served)
    farm.mirror(first)
    farm.mirror(second)
    with farm.client(origin) as client:
        pull(client, origin)
    assert places(first) == places(second) == EVERYTHING
    assert not origin.asked


def test_the_registry_comes_last_and_is_told_of_no_namespace(farm: Farm, scripted: Any) -> None:
    origin, mirror = scripted(served), scripted(always(404))
    farm.mirror(mirror)
    with farm.client(origin) as client:
        pull(client, origin)
    assert places(origin) == places(mirror) == EVERYTHING
    assert not any("?" in asked.path for asked in origin.asked)


def test_what_a_tag_means_is_asked_of_hosts_with_resolve_alone(farm: Farm, scripted: Any) -> None:
    origin, mirror = scripted(served), scripted(served)
    farm.mirror(mirror, 'capabilities = ["pull"]')
    with farm.client(origin) as client:
        pull(client, origin)
        assert client.fetch_document(reference(origin), MANIFEST_DESCRIPTOR) == MANIFEST
    assert places(origin) == ["manifests/v1"]
    assert places(mirror) == [*EVERYTHING[1:], f"manifests/{DIGEST}"]


def test_a_host_that_may_not_give_the_content_is_not_asked_what_a_tag_means(
    farm: Farm, scripted: Any
) -> None:
    origin, mirror = scripted(served), scripted(served)
    farm.mirror(mirror, 'capabilities = ["resolve"]')
    with farm.client(origin) as client:
        pull(client, origin)
    assert not mirror.asked


def test_without_a_host_that_may_be_asked_it_is_not_found(farm: Farm, scripted: Any) -> None:
    origin = scripted(served)
    farm.text = f'server = "http://{origin.address}"\ncapabilities = ["push"]\n'
    with farm.client(origin) as client, pytest.raises(NotFound, match="to resolve from"):
        client.resolve(reference(origin))


def test_referrers_are_listed_by_hosts_that_may_say_so(farm: Farm, scripted: Any) -> None:
    index = oci.encode(oci.Index(media_type=oci.OCI_INDEX, manifests=[]))

    def lists(_: Asked) -> Reply:
        return Reply(200, {"Content-Type": oci.OCI_INDEX}, index)

    origin, mirror = scripted(lists), scripted(lists)
    farm.mirror(mirror, 'capabilities = ["pull", "resolve"]')
    with farm.client(origin) as client:
        assert client.referrers(reference(origin), DIGEST) == []
    assert (len(origin.asked), len(mirror.asked)) == (1, 0)


def test_a_mirror_with_a_path_of_its_own_is_asked_there(farm: Farm, scripted: Any) -> None:
    origin = scripted(served)
    mirror = scripted(
        lambda asked: served(asked._replace(path=asked.path.replace("/cache/team", "/v2/team")))
    )
    farm.mirror(f"{mirror.address}/cache", "override_path = true")
    with farm.client(origin) as client:
        client.resolve(reference(origin))
    assert mirror.asked[0].path == f"/cache/team/app/manifests/v1?ns={quote(origin.address)}"


def test_a_location_in_registries_conf_takes_the_prefixs_place(scripted: Any, tmp_path: Path) -> None:
    mirror = scripted(always(404))
    moved = scripted(lambda asked: served(asked._replace(path=asked.path.replace("/there/", "/team/"))))
    conf = tmp_path / "registries.conf"
    conf.write_text(
        f'[[registry]]\nprefix = "example.com/team"\nlocation = "{moved.address}/there"\n'
        f'[[registry.mirror]]\nlocation = "{mirror.address}/mirrors/there"\n'
    )
    with RegistryClient(RegistryConfig(registries_conf=conf, credentials={})) as client:
        assert client.resolve(Reference.parse("example.com/team/app:v1"))[1] == MANIFEST
    assert mirror.asked[0].path == "/v2/mirrors/there/app/manifests/v1"
    assert moved.asked[0].path == "/v2/there/app/manifests/v1"


def test_a_blocked_registry_is_not_asked(scripted: Any, tmp_path: Path) -> None:
    origin = scripted(served)
    conf = tmp_path / "registries.conf"
    conf.write_text(f'[[registry]]\nlocation = "{origin.address}"\nblocked = true\n')
    with (
        RegistryClient(RegistryConfig(registries_conf=conf)) as client,
        pytest.raises(PermissionDenied, match=f"blocked by {conf}"),
    ):
        client.resolve(reference(origin))
    assert not origin.asked


# Mirrors that are dead, or die


def test_a_dead_mirror_is_tried_once_in_a_pull_and_for_a_while_by_its_process(
    farm: Farm, scripted: Any, sent: list[str], dead: str
) -> None:
    origin = scripted(served)
    farm.mirror(dead)
    with farm.client(origin) as client:
        pull(client, origin)
    assert sent == [dead, *[origin.address] * 3]
    with farm.client(origin) as client:
        pull(client, origin)
    assert sent.count(dead) == 1


def test_a_mirror_that_was_dead_is_tried_again_after_a_while(
    farm: Farm, scripted: Any, sent: list[str], dead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lamella.registry.outages.OUTAGE_SECONDS", -1)
    origin = scripted(served)
    farm.mirror(dead)
    for _ in range(2):
        with farm.client(origin) as client:
            pull(client, origin)
    assert sent.count(dead) == 2


def test_a_mirror_without_an_answer_costs_its_own_short_time_out(
    farm: Farm, scripted: Any, sent: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    real = socket.socket.connect

    def connect(self: socket.socket, address: Any) -> None:
        if address == ("127.0.0.9", 5000):
            waited.append(self.gettimeout() or 0)
            raise TimeoutError
        real(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)
    origin = scripted(served)
    farm.mirror("127.0.0.9:5000", 'dial_timeout = "250ms"')
    with farm.client(origin) as client:
        pull(client, origin)
    assert waited == [0.25]
    assert sent.count("127.0.0.9:5000") == 1


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_mirror_that_takes_connections_and_says_nothing_costs_one_short_time_out(
    scheme: str, farm: Farm, scripted: Any, sent: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts, "FIRST_ANSWER", 0.3)
    origin = scripted(served)
    with socket.create_server(("127.0.0.1", 0), backlog=16) as silent:
        mute = f"127.0.0.1:{silent.getsockname()[1]}"
        farm.mirror(mute, 'dial_timeout = "300ms"', scheme=scheme)
        with farm.client(origin, timeouts=Timeouts(5, 30)) as client:
            pull(client, origin)
            [error] = client._exchange._outages._known.values()
    assert error.message == f"{mute} sent nothing for 0.3 s"
    assert sent == [mute, *[origin.address] * 3]


def test_a_mirror_that_has_answered_may_take_its_time_for_a_blob(
    farm: Farm, scripted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have to fetch that first."""
    monkeypatch.setattr(hosts, "FIRST_ANSWER", 3.0)

    def fetching(asked: Asked) -> Reply:
        if place(asked) == EVERYTHING[-1]:
            threading.Event().wait(4)
        return served(asked)

    origin, mirror = scripted(served), scripted(fetching)
    farm.mirror(mirror)
    with farm.client(origin, timeouts=Timeouts(5, 30)) as client:
        pull(client, origin)
    assert places(mirror) == EVERYTHING
    assert not origin.asked


def test_threads_share_what_one_found_out(farm: Farm, scripted: Any, sent: list[str], dead: str) -> None:
    origin = scripted(served)
    farm.mirror(dead)
    with farm.client(origin) as client, ThreadPoolExecutor(8) as pool:
        client.resolve(reference(origin))

        def fetch(_: int) -> bytes:
            with client.open_blob(reference(origin), LAYER_DESCRIPTOR) as stream:
                return read_all(stream)

        assert set(pool.map(fetch, range(16))) == {LAYER}
    assert sent.count(dead) == 1


def test_only_the_last_host_is_asked_patiently(farm: Farm, scripted: Any) -> None:
    origin, mirror = scripted(always(503)), scripted(always(503))
    farm.mirror(mirror)
    with farm.client(origin) as client, pytest.raises(Unavailable):
        client.resolve(reference(origin))
    assert (len(mirror.asked), len(origin.asked)) == (1, 3)


def test_a_mirror_that_breaks_off_within_a_blob_is_taken_over_from_at_the_same_byte(
    farm: Farm, scripted: Any
) -> None:
    def breaking(asked: Asked) -> Reply:
        reply = served(asked)
        if "blobs" not in asked.path or not isinstance(reply.body, bytes) or len(reply.body) < 1000:
            return reply
        headers = {**reply.headers, "Content-Length": str(len(reply.body))}
        return reply._replace(headers=headers, body=reply.body[:300_000], reset=False)

    origin, mirror = scripted(served), scripted(breaking)
    farm.mirror(mirror)
    with farm.client(origin, attempts=1) as client:
        pull(client, origin)
    assert places(mirror) == EVERYTHING
    assert places(origin) == EVERYTHING[-1:]
    assert origin.asked[0].headers["range"] == "bytes=300000-"


def test_a_mirror_that_breaks_within_a_document_is_passed_over(farm: Farm, scripted: Any) -> None:
    origin = scripted(served)
    mirror = scripted(lambda _: Reply(200, {"Content-Length": str(len(MANIFEST))}, MANIFEST[:10]))
    farm.mirror(mirror)
    with farm.client(origin, attempts=1) as client:
        assert client.resolve(reference(origin))[1] == MANIFEST
    assert len(mirror.asked) == 1


def test_when_all_fail_each_one_is_named_the_registry_first(farm: Farm, scripted: Any, dead: str) -> None:
    origin, refusing = scripted(always(404)), scripted(always(403))
    farm.mirror(refusing)
    farm.mirror(dead)
    with farm.client(origin) as client, pytest.raises(NotFound) as caught:
        client.resolve(reference(origin))
    text = str(caught.value)
    assert text.index(f"{origin.address} answers 404") < text.index(f"{refusing.address} answers 403")
    assert f"{dead} refused the connection" in text


def test_it_can_be_stopped_while_a_mirror_is_asked(farm: Farm, scripted: Any) -> None:
    reached = threading.Event()
    go_on = threading.Event()

    def slow(_: Asked) -> Reply:
        reached.set()
        go_on.wait(20)
        return Reply(404)

    origin, mirror = scripted(served), scripted(slow)
    farm.mirror(mirror)
    with farm.client(origin) as client, ThreadPoolExecutor(1) as pool:
        done = pool.submit(client.resolve, reference(origin))
        reached.wait(20)
        client.interrupt()
        with pytest.raises(LamellaError) as caught:
            done.result(60)
        go_on.set()
    assert caught.value.kind == "Cancelled"
    assert not origin.asked


# Mirrors that lie


def test_a_mirror_with_another_document_under_a_digest_is_passed_over(farm: Farm, scripted: Any) -> None:
    origin, mirror = scripted(served), scripted(lambda _: Reply(200, {}, MANIFEST[::-1]))
    farm.mirror(mirror)
    with farm.client(origin) as client:
        assert client.fetch_document(reference(origin), CONFIG_DESCRIPTOR) == CONFIG
        assert client.resolve(reference(origin, f"team/app@{DIGEST}"))[1] == MANIFEST
    assert len(origin.asked) == 2


def test_a_mirror_whose_document_is_not_what_it_says_is_passed_over(farm: Farm, scripted: Any) -> None:
    wrong = {"Docker-Content-Digest": digest_of(b"something else"), "Content-Type": oci.OCI_MANIFEST}
    origin, mirror = scripted(served), scripted(lambda _: Reply(200, wrong, MANIFEST))
    farm.mirror(mirror)
    with farm.client(origin) as client:
        assert client.resolve(reference(origin))[1] == MANIFEST
    assert len(origin.asked) == 1


@pytest.mark.parametrize("known", [None, lambda _: False])
def test_a_mirror_whose_tag_is_behind_the_digest_beside_it_is_passed_over(
    known: Any, farm: Farm, scripted: Any
) -> None:
    old = MANIFEST.replace(b"{", b"{ ", 1)
    stale = {"Content-Type": oci.OCI_MANIFEST, "Docker-Content-Digest": digest_of(old)}
    origin, mirror = scripted(served), scripted(lambda _: Reply(200, stale, old))
    farm.mirror(mirror)
    both = Reference.parse(f"{origin.address}/team/app:v1@{DIGEST}")
    with farm.client(origin) as client:
        assert client.resolve(both, known=known) == (MANIFEST_DESCRIPTOR, MANIFEST)


def test_a_registry_that_lies_is_data_loss_as_ever(farm: Farm, scripted: Any) -> None:
    origin = scripted(lambda _: Reply(200, {}, CONFIG[::-1]))
    with farm.client(origin) as client, pytest.raises(DataLoss):
        client.fetch_document(reference(origin), CONFIG_DESCRIPTOR)


def test_a_mirror_with_a_blob_of_another_size_is_passed_over(farm: Farm, scripted: Any) -> None:
    origin, mirror = scripted(served), scripted(lambda _: Reply(200, {}, LAYER + b"more"))
    farm.mirror(mirror)
    with farm.client(origin) as client, client.open_blob(reference(origin), LAYER_DESCRIPTOR) as stream:
        assert read_all(stream) == LAYER
    assert len(origin.asked) == 1


def test_an_endless_document_of_a_mirror_is_not_read_to_its_end(farm: Farm, scripted: Any) -> None:
    def endless(_: Asked) -> Reply:
        return Reply(
            200,
            {"Transfer-Encoding": "chunked"},
            (b"10000\r\n" + b"x" * 65536 + b"\r\n" for _ in iter(int, 1)),
        )

    origin, mirror = scripted(served), scripted(endless)
    farm.mirror(mirror)
    with farm.client(origin) as client:
        assert client.resolve(reference(origin))[1] == MANIFEST


# As whom


def nothing_secret(error: BaseException) -> None:
    shown = "".join(traceback.format_exception(error)) + repr(error) + str(getattr(error, "hint", ""))
    assert SECRET not in shown
    assert base64.b64encode(f"ann:{SECRET}".encode()).decode() not in shown


def test_each_host_is_asked_with_the_credentials_for_its_own_name(farm: Farm) -> None:
    with (
        RegistryServer(auth=basic_auth({"ann": SECRET})) as origin,
        RegistryServer(auth=basic_auth({"bob": "mirror-secret"})) as mirror,
    ):
        pushed = push_image(origin)
        farm.mirror(mirror)
        known = {
            origin.address: Credential(username="ann", password=SECRET),
            mirror.address: Credential(username="bob", password="mirror-secret"),
        }
        with farm.client(origin, credentials=known) as client:
            assert client.resolve(reference(origin, "team/app"))[0] == pushed
        assert [request.status for request in mirror.requests] == [401, 404]
        assert [request.status for request in origin.requests] == [401, 200]


def test_the_registrys_credentials_do_not_go_to_a_mirror_or_where_it_sends_for_a_token(
    farm: Farm, scripted: Any
) -> None:
    ann = Credential(username="ann", password=SECRET)
    with TokenServer() as tokens:
        mirror = scripted(always(401, **{"WWW-Authenticate": f'Bearer realm="{tokens.realm}",service="s"'}))
        origin = scripted(served)
        farm.mirror(mirror)
        with farm.client(origin, credentials={origin.address: ann}) as client:
            client.resolve(reference(origin))
        assert [asked.authorization for asked in tokens.asked] == [None]
        assert [asked.authorization for asked in mirror.asked] == [None, "Bearer token-1"]
        assert origin.asked[0].authorization is None


def test_headers_go_to_their_host_alone(farm: Farm, scripted: Any) -> None:
    storage = scripted(served)
    tokens = TokenServer()
    challenge = f'Bearer realm="{tokens.realm}",service="s"'

    def sends_on(asked: Asked) -> Reply:
        if not asked.authorization:
            return Reply(401, {"WWW-Authenticate": challenge})
        return Reply(307, {"Location": f"http://{storage.address}{asked.path}"})

    mirror, origin = scripted(sends_on), scripted(served)
    farm.mirror(mirror, f'header = {{ x-secret = "{SECRET}", x-list = ["a", "b"] }}')
    with tokens, farm.client(origin) as client:
        client.resolve(reference(origin))
    assert [asked.headers.get("x-secret") for asked in mirror.asked] == [SECRET, SECRET]
    assert mirror.asked[0].headers["x-list"] == "a, b"
    for elsewhere in (*storage.asked, *tokens.asked, *origin.asked):
        assert "x-secret" not in elsewhere.headers
    assert len(storage.asked) == len(tokens.asked) == 1


def test_an_authorization_in_the_headers_is_used_and_told_nobody(farm: Farm, scripted: Any) -> None:
    def echoes(asked: Asked) -> Reply:
        return Reply(403, {}, f"denied to {asked.authorization}".encode())

    origin, mirror = scripted(always(404)), scripted(echoes)
    farm.mirror(mirror, f'header = {{ Authorization = "Bearer {SECRET}" }}')
    with farm.client(origin) as client, pytest.raises(NotFound) as caught:
        client.resolve(reference(origin))
    assert mirror.asked[0].authorization == f"Bearer {SECRET}"
    nothing_secret(caught.value)


def test_a_login_that_fails_at_a_mirror_is_told_with_the_mirrors_name(farm: Farm, scripted: Any) -> None:
    basic = {"WWW-Authenticate": 'Basic realm="x"'}
    origin, mirror = scripted(always(401, **basic)), scripted(always(401, **basic))
    farm.mirror(mirror)
    with farm.client(origin) as client, pytest.raises(Unauthenticated) as caught:
        client.resolve(reference(origin))
    assert f"{mirror.address} answers 401" in str(caught.value)
    assert f"Log in to {origin.address}" in str(caught.value.hint)


def test_a_malformed_file_stops_before_anything_is_asked(farm: Farm, scripted: Any) -> None:
    origin = scripted(served)
    farm.text = "server = 3"
    with farm.client(origin) as client, pytest.raises(InvalidArgument, match=r"hosts.toml, line 1"):
        client.resolve(reference(origin))
    assert not origin.asked


# Real mirrors: docker-registry as a pull-through cache of another one


BIG = 24 * 1024 * 1024


@pytest.fixture(scope="module")
def origin_folder(
    tmp_path_factory: pytest.TempPathFactory, require_program: Callable[[str], str]
) -> Iterator[tuple[Path, Any]]:
    """Give the folder of a docker-registry that has an image of four layers, and the image's descriptor."""
    require_program("docker-registry")
    skopeo = require_program("skopeo")
    folder = tmp_path_factory.mktemp("origin")
    with RegistryServer() as server, docker_registry_process(folder, "") as address:
        layers = [
            server.push_blob("team/app", gzip.compress(os.urandom(BIG), 0), oci.OCI_LAYER_GZIP)
            for _ in range(4)
        ]
        config = server.push_blob("team/app", CONFIG, oci.OCI_CONFIG)
        manifest = oci.Manifest(media_type=oci.OCI_MANIFEST, config=config, layers=layers)
        pushed = server.push_manifest("team/app", "v1", manifest)
        command = [skopeo, "copy", "--src-tls-verify=false", "--dest-tls-verify=false"]
        names = [f"docker://{server.address}/team/app:v1", f"docker://{address}/team/app:v1"]
        subprocess.run([*command, *names], check=True, capture_output=True, timeout=200)
    yield folder, pushed


def kinds(proxy: Proxy) -> list[str]:
    """Say what a host was asked for, through its proxy."""
    return sorted(re.sub(r".*/(manifests|blobs)/.*", r"\1", asked) for asked in proxy.asked)


def test_a_pull_through_mirror_is_all_that_is_asked(origin_folder: Any, tmp_path: Path) -> None:
    folder, pushed = origin_folder
    with (
        docker_registry_process(folder, "") as origin,
        docker_registry_process(tmp_path / "mirror", f"proxy: {{remoteurl: 'http://{origin}'}}\n") as mirror,
        Proxy() as at_origin,
        Proxy() as at_mirror,
    ):
        hosts = hosts_folder(
            tmp_path / "hosts",
            origin,
            f'proxy = "http://{at_origin.address}"\n'
            f'[host."http://{mirror}"]\nproxy = "http://{at_mirror.address}"\n',
        )
        # One connection: where the mirror is slow, further ones would ask for parts of blobs.
        image = stored(tmp_path, hosts, origin, limits=Limits(connections=1))
        assert image.digest == pushed.digest
        assert not at_origin.asked
        assert kinds(at_mirror) == ["blobs"] * 5 + ["manifests"] * 2  # a HEAD, and a GET


def test_a_pull_through_mirror_with_tls_before_a_registry_with_passwords(
    origin_folder: Any, tmp_path: Path, require_program: Callable[[str], str]
) -> None:
    """What the mirror cannot have, as it has no password, comes from the registry, for who has one."""
    require_program("openssl")
    folder, pushed = origin_folder
    authority = Authority(tmp_path / "authority")
    pair = authority.issue("both")
    tls = f", tls: {{certificate: '{pair.certificate}', key: '{pair.key}'}}"
    passwords = tmp_path / "htpasswd"
    passwords.write_text(f"ann:{bcrypt.hashpw(SECRET.encode(), bcrypt.gensalt(4)).decode()}\n")
    locked = f"auth: {{htpasswd: {{realm: x, path: '{passwords}'}}}}\n"
    environ = {**os.environ, "SSL_CERT_FILE": str(authority.file)}

    def pulled(settings: str, credential: Credential | None = None) -> Any:
        with docker_registry_process(folder, settings, http=tls) as origin:
            remote = f"proxy: {{remoteurl: 'https://{origin}'}}\n"
            store = Path(tempfile.mkdtemp(dir=tmp_path))
            with docker_registry_process(store / "mirror", remote, http=tls, env=environ) as mirror:
                hosts = hosts_folder(
                    store / "hosts",
                    origin,
                    f'server = "https://{origin}"\nca = "{authority.file}"\n'
                    f'[host."https://{mirror}"]\nca = "{authority.file}"\n',
                )
                return stored(store, hosts, origin, credentials={origin: credential} if credential else {})

    assert pulled("").digest == pushed.digest
    assert pulled(locked, Credential(username="ann", password=SECRET)).digest == pushed.digest
    with pytest.raises(Unauthenticated, match=r"answers 401; asked before: .* answers 404") as caught:
        pulled(locked)
    nothing_secret(caught.value)


def test_when_the_mirror_is_killed_within_a_pull_the_registry_gives_the_rest(
    origin_folder: Any, tmp_path: Path
) -> None:
    folder, pushed = origin_folder
    with docker_registry_process(folder, "") as origin, ExitStack() as stack, Proxy() as at_origin:
        remote = f"proxy: {{remoteurl: 'http://{origin}'}}\n"
        mirror = stack.enter_context(docker_registry_process(tmp_path / "mirror", remote))
        with Gate(mirror, limit=BIG // 12) as gate:  # no blob is there whole, however late it is killed
            hosts = hosts_folder(
                tmp_path / "hosts",
                origin,
                f'proxy = "http://{at_origin.address}"\n[host."http://{gate.address}"]\n',
            )

            def watch(progress: Any) -> None:
                if progress.phase == "downloading" and progress.received:
                    stack.close()
                    gate.open()

            image = stored(tmp_path, hosts, origin, watch=watch)
        assert image.digest == pushed.digest
        assert kinds(at_origin)
        assert set(kinds(at_origin)) == {"blobs"}


def stored(folder: Path, hosts: Path, origin: str, *, watch: Any = None, **settings: Any) -> Any:
    """Pull an image into a new store, and read all of its content back."""
    import lamella

    config = RegistryConfig(**{"hosts_dir": hosts, "credentials": {}, **settings})
    with lamella.Client(folder / "root", folder / "state", registry=config) as client:
        image = client.images.pull(f"{origin}/team/app:v1", unpack=False, progress=watch)
        for blob in client.content.walk():
            assert digest_of(client.content.read(blob.digest)) == blob.digest
        return image
