"""Proxies: which requests go through one, what it may refuse, and that its password is told nobody."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority, Pair, serving
from proxy import Proxy
from registries import (
    Asked,
    Reply,
    ScriptedServer,
    hosts_folder,
)

from docker_registry import docker_registry_process
from lamella import oci
from lamella.errors import InvalidArgument, PermissionDenied, Unauthenticated, Unavailable, Unsupported
from lamella.reference import Reference
from lamella.registry import transport
from lamella.registry.client import RegistryClient
from lamella.registry.config import RegistryConfig, Timeouts
from lamella.registry.outages import Outages
from ports import silent_port

MANIFEST = b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}'
GOOD = Reply(200, {"Content-Type": oci.OCI_INDEX}, MANIFEST)
SECRET = "hunter2-very-secret"


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name in {
            "REQUESTS_CA_BUNDLE",
            "CURL_CA_BUNDLE",
            "SSL_CERT_FILE",
        }:
            monkeypatch.delenv(name)
    monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", os.devnull)
    monkeypatch.setattr(Outages, "_recent", {})


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory, require_program: Callable[[str], str]) -> Authority:
    require_program("openssl")
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def pair(authority: Authority) -> Pair:
    """Give a certificate for the names that only the proxy knows."""
    return authority.issue("registry", hosts="DNS:registry.example.com,DNS:storage.example.com")


@pytest.fixture
def scripted() -> Iterator[Callable[..., ScriptedServer]]:
    opened: list[ScriptedServer] = []

    def start(
        script: Callable[[Asked], Reply] = lambda _: GOOD, tls: ssl.SSLContext | None = None
    ) -> ScriptedServer:
        opened.append(ScriptedServer(script, tls=tls))
        return opened[-1]

    yield start
    for server in opened:
        server.__exit__()


def resolve(port: int, host: str = "registry.example.com", **settings: Any) -> bytes:
    config = RegistryConfig(**{"credentials": {}, "attempts": 1, "timeouts": Timeouts(5, 5), **settings})
    with RegistryClient(config) as client:
        return client.resolve(Reference.parse(f"{host}:{port}/team/app:v1"))[1]


def test_tls_goes_through_the_tunnel_of_a_proxy(
    scripted: Any, authority: Authority, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = scripted(tls=serving(pair))
    with Proxy() as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy.address}")
        assert resolve(server.port, ca=authority.file) == MANIFEST
        assert proxy.asked == [f"CONNECT registry.example.com:{server.port}"]
        with pytest.raises(Unavailable, match="not trusted"):
            resolve(server.port)


def test_plain_http_is_forwarded(scripted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server = scripted()
    with Proxy() as proxy:
        monkeypatch.setenv("http_proxy", proxy.address)
        assert resolve(server.port, plain_http=True) == MANIFEST
        assert proxy.asked == [f"GET http://registry.example.com:{server.port}/v2/team/app/manifests/v1"]


def test_a_host_may_have_a_proxy_of_its_own(
    scripted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in containerd, it holds whatever the environment says, for this machine too, and for that host alone."""
    mirror, origin = scripted(lambda _: Reply(404)), scripted()
    monkeypatch.setenv("NO_PROXY", "*")
    with Proxy() as proxy:
        text = f'[host."http://{mirror.address}"]\nproxy = "http://{proxy.address}"\n'
        hosts = hosts_folder(tmp_path, origin.address, text)
        assert resolve(origin.port, "127.0.0.1", hosts_dir=hosts) == MANIFEST
        assert len(proxy.asked) == len(mirror.asked) == 1


def test_this_machine_is_not_reached_through_a_proxy(scripted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server = scripted()
    with Proxy() as proxy:
        monkeypatch.setenv("ALL_PROXY", f"http://{proxy.address}")
        assert resolve(server.port, "localhost") == resolve(server.port, "127.0.0.1") == MANIFEST
        assert not proxy.asked


@pytest.mark.parametrize("plain", [True, False])
def test_a_proxy_gets_the_password_of_its_url(
    scripted: Any, authority: Authority, pair: Pair, monkeypatch: pytest.MonkeyPatch, plain: bool
) -> None:
    server = scripted(tls=None if plain else serving(pair))
    with Proxy(user=f"ann:{SECRET}") as proxy:
        monkeypatch.setenv("ALL_PROXY", f"http://ann:{SECRET}@{proxy.address}")
        assert resolve(server.port, plain_http=plain, ca=authority.file) == MANIFEST
    assert all("proxy-authorization" not in asked.headers for asked in server.asked)


@pytest.mark.parametrize("plain", [True, False])
def test_a_proxy_that_wants_a_password_is_named_without_the_one_that_was_wrong(
    scripted: Any, monkeypatch: pytest.MonkeyPatch, plain: bool
) -> None:
    server = scripted()
    with Proxy(user="ann:right") as proxy:
        monkeypatch.setenv("ALL_PROXY", f"http://ann:{SECRET}@{proxy.address}")
        with pytest.raises(Unauthenticated, match=f"http://{proxy.address} wants credentials") as caught:
            resolve(server.port, plain_http=plain, attempts=3)
        assert len(proxy.asked) == 1
    shown = "".join(traceback.format_exception(caught.value)) + str(caught.value.hint)
    assert SECRET not in shown
    assert not server.asked


def test_a_proxy_that_refuses_is_named(scripted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server = scripted()
    with Proxy(refuses=403) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy.address}")
        with pytest.raises(PermissionDenied, match=f"http://{proxy.address} refuses to connect"):
            resolve(server.port, attempts=3)
        assert len(proxy.asked) == 1


def test_a_proxy_with_a_passing_problem_is_asked_again(
    scripted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = scripted()
    with Proxy(refuses=503) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy.address}")
        with pytest.raises(Unavailable, match=f"http://{proxy.address} answers 503"):
            resolve(server.port, attempts=3, backoff=0.001)
        assert len(proxy.asked) == 3


def test_a_proxy_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with silent_port() as address:
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:{SECRET}@{address}")
        with pytest.raises(
            Unavailable, match=f"http://{address} gives no connection to registry.example.com"
        ):
            resolve(5000)


def test_what_is_no_proxy_is_told_before_anything_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "ftp://proxy:1")
    with pytest.raises(InvalidArgument, match="HTTPS_PROXY does not name a proxy"):
        resolve(5000)


def test_a_socks_proxy_takes_a_package_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "find_spec", lambda _: None)
    monkeypatch.setenv("ALL_PROXY", f"socks5h://user:{SECRET}@127.0.0.1:1080")
    with pytest.raises(Unsupported, match=r"socks5h://127.0.0.1:1080 is a SOCKS proxy") as caught:
        resolve(5000)
    assert "PySocks" in str(caught.value.hint)
    assert SECRET not in str(caught.value)


def test_a_registry_cannot_send_on_to_a_private_address_through_a_proxy(
    scripted: Any, authority: Authority, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An address that is written out can be told; a name is the proxy's to resolve, and to refuse."""
    server = scripted(lambda _: Reply(307, {"Location": "https://10.1.2.3/x"}), tls=serving(pair))
    with Proxy() as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy.address}")
        with pytest.raises(PermissionDenied, match="private network"):
            resolve(server.port, ca=authority.file)
        assert len(proxy.asked) == 1


def test_docker_registry_with_tls_behind_a_proxy_from_the_command(
    tmp_path: Path, authority: Authority, pair: Pair, require_program: Callable[[str], str]
) -> None:
    require_program("docker-registry")
    program = Path(sys.executable).with_name("lamella")
    if not program.exists():
        pytest.skip("the command is not installed beside this interpreter (make build)")
    tls = f", tls: {{certificate: '{pair.certificate}', key: '{pair.key}'}}"
    with docker_registry_process(tmp_path / "registry", "", http=tls) as address, Proxy() as proxy:
        port = address.rpartition(":")[2]
        done = subprocess.run(
            [
                *(program, "--root", f"{tmp_path}/root", "--state", f"{tmp_path}/state"),
                *("pull", "--ca", str(authority.file), f"registry.example.com:{port}/team/app"),
            ],
            env={**os.environ, "HTTPS_PROXY": f"http://{proxy.address}"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 1
        assert f"registry.example.com:{port} answers 404" in done.stderr
        assert proxy.asked == [f"CONNECT registry.example.com:{port}"]
