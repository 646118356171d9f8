"""TLS with registries: who is believed, what is shown to whom, and errors that say which file is wrong."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority, Pair, serving
from registries import Asked, Reply, ScriptedServer, hosts_folder

from docker_registry import docker_registry_process
from lamella import oci
from lamella.errors import InvalidArgument, NotFound, PermissionDenied, Unauthenticated, Unavailable
from lamella.reference import Reference
from lamella.registry.client import RegistryClient
from lamella.registry.config import RegistryConfig, Timeouts
from lamella.registry.outages import Outages

MANIFEST = b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}'
GOOD = Reply(200, {"Content-Type": oci.OCI_INDEX}, MANIFEST)


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
def inside(tmp_path_factory: pytest.TempPathFactory, require_program: Callable[[str], str]) -> Authority:
    """Give the authority of the registries."""
    require_program("openssl")
    return Authority(tmp_path_factory.mktemp("inside"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, require_program: Callable[[str], str]) -> Authority:
    require_program("openssl")
    return Authority(tmp_path_factory.mktemp("other"), "other")


@pytest.fixture(scope="module")
def right(inside: Authority) -> Pair:
    """Give a certificate for 127.0.0.1 that holds."""
    return inside.issue("server")


@pytest.fixture(scope="module")
def me(inside: Authority) -> Pair:
    """Give a client's certificate."""
    return inside.issue("me")


@pytest.fixture
def scripted() -> Iterator[Callable[..., ScriptedServer]]:
    opened: list[ScriptedServer] = []

    def start(context: ssl.SSLContext, script: Callable[[Asked], Reply] = lambda _: GOOD) -> ScriptedServer:
        opened.append(ScriptedServer(script, tls=context))
        return opened[-1]

    yield start
    for server in opened:
        server.__exit__()


def resolve(folder: Path, server: Any, text: str = "", **settings: Any) -> bytes:
    """Ask a registry that is reached over TLS alone, with ``text`` in its hosts.toml."""
    address = server if isinstance(server, str) else server.address
    hosts = hosts_folder(folder / "hosts", address, f'server = "https://{address}"\n{text}')
    # A server that wants a certificate may close the connection before its alert is read: another try shows it.
    usual = {"attempts": 10, "backoff": 0.001, "timeouts": Timeouts(5, 5)}
    config = RegistryConfig(**{"hosts_dir": hosts, "credentials": {}, **usual, **settings})
    with RegistryClient(config) as client:
        return client.resolve(Reference.parse(f"{address}/team/app:v1"))[1]


def test_an_authority_is_believed_that_the_caller_names(
    tmp_path: Path, scripted: Any, inside: Authority, right: Pair
) -> None:
    assert resolve(tmp_path, scripted(serving(right)), ca=inside.file) == MANIFEST


def test_an_authority_is_believed_that_hosts_toml_names_relative_to_itself(
    tmp_path: Path, scripted: Any, inside: Authority, right: Pair
) -> None:
    server = scripted(serving(right))
    hosts_folder(tmp_path / "hosts", server.address, "")
    shutil.copy(inside.file, tmp_path / "hosts" / server.address / "inside.pem")
    assert resolve(tmp_path, server, 'ca = "inside.pem"') == MANIFEST
    assert resolve(tmp_path, server, f'ca = ["inside.pem", "{inside.file}"]') == MANIFEST


def test_dockers_folder_of_certificates_is_read(
    tmp_path: Path, scripted: Any, inside: Authority, right: Pair, me: Pair
) -> None:
    server = scripted(serving(right, clients=inside))
    folder = tmp_path / server.address
    folder.mkdir()
    shutil.copy(inside.file, folder / "ca.crt")
    shutil.copy(me.certificate, folder / "client.cert")
    shutil.copy(me.key, folder / "client.key")
    with RegistryClient(RegistryConfig(hosts_dir=tmp_path, credentials={})) as client:
        assert client.resolve(Reference.parse(f"{server.address}/team/app:v1"))[1] == MANIFEST


def test_another_authority_is_not_believed_and_the_file_is_named(
    tmp_path: Path, scripted: Any, other: Authority, right: Pair
) -> None:
    server = scripted(serving(right))
    with pytest.raises(Unavailable, match="not trusted") as caught:
        resolve(tmp_path, server)
    assert "--ca" in str(caught.value.hint)
    with pytest.raises(Unavailable, match="not trusted") as caught:
        resolve(tmp_path, server, ca=other.file)
    assert str(other.file) in str(caught.value.hint)
    assert not server.asked


def test_the_systems_authorities_hold_besides_those_that_are_named(
    tmp_path: Path,
    scripted: Any,
    inside: Authority,
    other: Authority,
    right: Pair,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(inside.file))
    assert resolve(tmp_path, scripted(serving(right)), ca=other.file) == MANIFEST


def test_a_certificate_that_has_expired_is_told_as_that(
    tmp_path: Path, scripted: Any, inside: Authority
) -> None:
    server = scripted(serving(inside.issue("old", days=-1)))
    with pytest.raises(Unavailable, match="expired") as caught:
        resolve(tmp_path, server, ca=inside.file)
    assert "clock" in str(caught.value.hint)


def test_a_certificate_for_another_name_is_told_as_that(
    tmp_path: Path, scripted: Any, inside: Authority
) -> None:
    for number, hosts in enumerate(("DNS:elsewhere.example", "IP:127.0.0.9")):
        server = scripted(serving(inside.issue(f"elsewhere{number}", hosts=hosts)))
        with pytest.raises(Unavailable, match="for another name"):
            resolve(tmp_path, server, ca=inside.file)


@pytest.mark.parametrize("by_file", [True, False])
def test_without_a_check_any_certificate_does_and_that_is_said_once(
    tmp_path: Path, scripted: Any, other: Authority, caplog: pytest.LogCaptureFixture, by_file: bool
) -> None:
    server = scripted(serving(other.issue("x", hosts="DNS:elsewhere.example", days=-1)))
    text, settings = ("skip_verify = true", {}) if by_file else ("", {"skip_verify": True})
    address = server.address
    hosts = hosts_folder(tmp_path, address, f'server = "https://{address}"\n{text}')
    with RegistryClient(RegistryConfig(hosts_dir=hosts, credentials={}, **settings)) as client:
        for _ in range(3):
            client.resolve(Reference.parse(f"{address}/team/app:v1"))
    assert caplog.text.count("is not checked") == 1
    assert len(server.asked) == 3


def test_a_check_is_left_out_for_that_host_alone(
    tmp_path: Path, scripted: Any, other: Authority, right: Pair
) -> None:
    mirror = scripted(serving(other.issue("mirror", days=-1)), lambda _: Reply(404))
    server = scripted(serving(right))
    with pytest.raises(Unavailable, match=f"the certificate of {server.address} is not trusted"):
        resolve(tmp_path, server, f'[host."https://{mirror.address}"]\nskip_verify = true')
    assert len(mirror.asked) == 1


def test_a_client_certificate_is_shown_to_a_server_that_wants_one(
    tmp_path: Path, scripted: Any, inside: Authority, right: Pair, me: Pair
) -> None:
    server = scripted(serving(right, clients=inside))
    both = tmp_path / "both.pem"
    both.write_bytes(me.certificate.read_bytes() + me.key.read_bytes())
    for text in (
        f'client = [["{me.certificate}", "{me.key}"]]',
        f'client = "{both}"',
        f'client = ["{both}"]',
        f'client = [["{both}", ""]]',
    ):
        assert resolve(tmp_path, server, text, ca=inside.file) == MANIFEST
    assert resolve(tmp_path, server, ca=inside.file, client_cert=(me.certificate, me.key)) == MANIFEST


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_server_that_wants_a_certificate_and_gets_none_or_a_wrong_one_says_so(
    tmp_path: Path, scripted: Any, inside: Authority, other: Authority, right: Pair, version: ssl.TLSVersion
) -> None:
    context = serving(right, clients=inside)
    context.minimum_version = context.maximum_version = version
    server = scripted(context)
    with pytest.raises(Unauthenticated, match="wants a client certificate") as caught:
        resolve(tmp_path, server, ca=inside.file)
    assert "--cert" in str(caught.value.hint)
    stranger = other.issue("stranger")
    with pytest.raises(Unauthenticated, match="refuses the client certificate") as caught:
        resolve(tmp_path, server, ca=inside.file, client_cert=stranger)
    assert str(stranger.certificate) in str(caught.value.hint)
    assert not server.asked


def test_a_server_that_closes_after_its_alert_is_heard_at_the_first_try(
    tmp_path: Path, scripted: Any, inside: Authority, right: Pair
) -> None:
    """In TLS 1.3 the alert comes after the handshake: the request may be refused by a connection that is closed already."""
    context = serving(right, clients=inside)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    server = scripted(context)
    for _ in range(12):
        with pytest.raises(Unauthenticated, match="wants a client certificate"):
            resolve(tmp_path, server, ca=inside.file, attempts=1)


def test_a_client_certificate_is_not_shown_to_a_mirror_nor_where_a_registry_sends_on(
    tmp_path: Path, scripted: Any, inside: Authority, right: Pair, me: Pair
) -> None:
    wants = serving(right, clients=inside)
    storage, mirror = scripted(wants), scripted(wants)
    server = scripted(serving(right), lambda _: Reply(307, {"Location": f"https://{storage.address}/x"}))
    with pytest.raises(Unauthenticated, match=f"{storage.address} wants a client certificate"):
        resolve(
            tmp_path,
            server,
            f'[host."https://{mirror.address}"]',
            ca=inside.file,
            client_cert=(me.certificate, me.key),
        )
    assert server.asked
    assert not storage.asked + mirror.asked


def test_what_is_wrong_with_a_file_is_said_with_its_name(
    tmp_path: Path, scripted: Any, inside: Authority, right: Pair, me: Pair
) -> None:
    server = scripted(serving(right))
    garbage, empty = tmp_path / "garbage.pem", tmp_path / "empty.pem"
    garbage.write_text("no certificate")
    empty.write_text("")
    for settings, words in (
        ({"ca": tmp_path / "no.pem"}, f"CA file {tmp_path}/no.pem cannot be read: No such file"),
        ({"ca": garbage}, f"CA file {garbage} holds no certificates in PEM form"),
        ({"ca": empty}, f"CA file {empty} holds no certificates in PEM form"),
        (
            {"client_cert": (tmp_path / "no.pem", me.key)},
            f"client certificate {tmp_path}/no.pem cannot be read",
        ),
        ({"client_cert": (me.certificate, tmp_path / "no")}, f"client key {tmp_path}/no cannot be read"),
        (
            {"client_cert": (garbage, me.key)},
            f"client certificate {garbage} holds no certificate in PEM form",
        ),
        (
            {"client_cert": (me.certificate, garbage)},
            f"client key {garbage} holds no private key in PEM form",
        ),
        ({"client_cert": (me.certificate, me.certificate)}, "holds no private key in PEM form"),
        ({"client_cert": (me.certificate, right.key)}, f"{right.key} does not belong to the certificate"),
    ):
        with pytest.raises(InvalidArgument, match=words.replace("(", r"\(")) as caught:
            resolve(tmp_path, server, **settings)
        assert caught.value.hint
    assert not server.asked


def test_a_key_with_a_passphrase_is_refused_and_nobody_is_asked_for_it(
    tmp_path: Path, scripted: Any, right: Pair, me: Pair
) -> None:
    locked = tmp_path / "locked.pem"
    command = [
        "openssl",
        "pkey",
        "-in",
        str(me.key),
        "-aes256",
        "-passout",
        "pass:secret",
        "-out",
        str(locked),
    ]
    subprocess.run(command, check=True, capture_output=True)
    with pytest.raises(InvalidArgument, match=f"{locked} is encrypted"):
        resolve(tmp_path, scripted(serving(right)), client_cert=(me.certificate, locked))


def test_a_key_that_everybody_can_read_is_remarked_on(
    tmp_path: Path, scripted: Any, inside: Authority, right: Pair, me: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    server = scripted(serving(right))
    key = tmp_path / "open.pem"
    shutil.copy(me.key, key)
    for mode, told in ((0o600, 0), (0o644, 1)):
        key.chmod(mode)
        resolve(tmp_path, server, ca=inside.file, client_cert=(me.certificate, key))
        assert caplog.text.count(f"{key} can be read by every user") == told


def test_a_file_of_the_environment_that_is_not_there_is_named(
    tmp_path: Path, scripted: Any, right: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "no.pem"))
    with pytest.raises(InvalidArgument, match=f"REQUESTS_CA_BUNDLE file {tmp_path}/no.pem"):
        resolve(tmp_path, scripted(serving(right)))


def test_a_file_that_may_not_be_read_is_named(
    tmp_path: Path, scripted: Any, right: Pair, me: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.open

    def refuse(self: Path, *arguments: Any, **options: Any) -> Any:
        if self == me.key:
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PermissionDenied, match=f"client key {me.key} cannot be read"):
        resolve(tmp_path, scripted(serving(right)), client_cert=me)


def test_docker_registry_with_certificates_on_both_sides(
    tmp_path: Path, inside: Authority, right: Pair, me: Pair, require_program: Callable[[str], str]
) -> None:
    require_program("docker-registry")
    tls = f", tls: {{certificate: '{right.certificate}', key: '{right.key}', clientcas: ['{inside.file}']}}"
    with docker_registry_process(tmp_path / "registry", "", http=tls) as address:
        with pytest.raises(Unauthenticated, match="wants a client certificate"):
            resolve(tmp_path, address, ca=inside.file)
        with pytest.raises(NotFound, match="404"):
            resolve(tmp_path, address, ca=inside.file, client_cert=me)


def test_a_loopback_registry_is_asked_over_tls_first_where_its_folder_has_certificates(
    tmp_path: Path, scripted: Any, inside: Authority, right: Pair
) -> None:
    """And without TLS where it speaks none: files of an earlier time keep nobody from it."""
    secure = scripted(serving(right))
    plain = ScriptedServer(lambda _: GOOD)
    with plain:
        for server in (secure, plain):
            folder = tmp_path / server.address
            folder.mkdir()
            shutil.copy(inside.file, folder / "ca.crt")
            with RegistryClient(RegistryConfig(hosts_dir=tmp_path, credentials={})) as client:
                for _ in range(2):
                    assert client.resolve(Reference.parse(f"{server.address}/team/app:v1"))[1] == MANIFEST
            assert len(server.asked) == 2


def test_insecure_in_registries_conf_allows_tls_without_a_check_and_none(
    tmp_path: Path, scripted: Any, other: Authority
) -> None:
    secure = scripted(serving(other.issue("y", days=-1)))
    with ScriptedServer(lambda _: GOOD) as plain:
        for server in (secure, plain):
            conf = tmp_path / "registries.conf"
            conf.write_text(
                f'[[registry]]\nprefix = "example.com"\nlocation = "{server.address}"\ninsecure = true\n'
            )
            with RegistryClient(RegistryConfig(registries_conf=conf, credentials={})) as client:
                assert client.resolve(Reference.parse("example.com/team/app:v1"))[1] == MANIFEST
