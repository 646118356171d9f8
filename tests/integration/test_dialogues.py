"""What registries of the internet and the client say to each other, replayed: dialogues/*.toml.

There is no recording among them: each is written from what its registry documents, and holds every request that may be sent.
A file pulls a reference, or logs in to a server, as ``credential``; its exchanges come in this order, each with the method, the
URL (its query in any order), the Authorization header (``Basic user:password`` in the clear, ``@basic``: the credential's own)
and a form. In URLs and headers ``@config`` stands for the digest of the image's config. One server answers for all hosts, by TLS;
whatever else is sent, or a name that is looked up and not in the file, fails the test.
"""

from __future__ import annotations

import base64
import json
import socket
import ssl
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from registries import Asked, Reply, ScriptedServer

from lamella import oci
from lamella.digest import digest_of
from lamella.errors import Unauthenticated
from lamella.reference import Reference
from lamella.registry import transport
from lamella.registry.client import RegistryClient
from lamella.registry.config import RegistryConfig, Timeouts
from lamella.registry.credentials import Credential
from lamella.registry.login import login, parse_server

DIALOGUES = sorted((Path(__file__).parent / "dialogues").glob("*.toml"))
CONFIG = b'{"architecture":"amd64","os":"linux"}'
CONFIG_DESCRIPTOR = oci.Descriptor(oci.OCI_CONFIG, digest_of(CONFIG), len(CONFIG))
MANIFEST = oci.encode(oci.Manifest(media_type=oci.OCI_MANIFEST, config=CONFIG_DESCRIPTOR, layers=[]))
DOCUMENTS = {
    "manifest": Reply(
        200, {"Content-Type": oci.OCI_MANIFEST, "Docker-Content-Digest": digest_of(MANIFEST)}, MANIFEST
    ),
    "config": Reply(200, {"Content-Type": "application/octet-stream"}, CONFIG),
}


class Dialogue:
    """A file, as a script for a server."""

    def __init__(self, file: Path) -> None:
        self.data = tomllib.loads(file.read_text())
        self.left: list[dict[str, Any]] = list(self.data["exchange"])
        self.wrong: list[str] = []
        given = self.data.get("credential")
        self.credential = Credential(**given, source="the dialogue") if given else None

    @property
    def hosts(self) -> set[str]:
        return {str(urlsplit(exchange["url"]).hostname) for exchange in self.data["exchange"]}

    def answer(self, asked: Asked) -> Reply:
        if not self.left:
            self.wrong.append(f"one more: {asked}")
            return Reply(500)
        exchange = self.left.pop(0)
        expected, said = self._expected(exchange), _said(asked)
        if said != expected:
            self.wrong.append(f"expected {expected}\n     got {said}")
            return Reply(500)
        answer = exchange["answer"]
        if "document" in answer:
            return DOCUMENTS[answer["document"]]
        headers = {name: self._filled(value) for name, value in answer.get("headers", {}).items()}
        return Reply(answer["status"], headers, answer.get("body", "").encode())

    def _expected(self, exchange: dict[str, Any]) -> dict[str, Any]:
        url = urlsplit(self._filled(exchange["url"]))
        authorization = exchange.get("authorization")
        if authorization == "@basic":
            assert self.credential is not None
            authorization = self.credential.basic
        elif authorization and authorization.startswith("Basic "):
            authorization = (
                "Basic " + base64.b64encode(authorization.removeprefix("Basic ").encode()).decode()
            )
        return {
            "method": exchange["method"],
            "host": url.netloc,
            "path": url.path,
            "query": sorted(parse_qsl(url.query)),
            "authorization": authorization,
            "form": sorted(exchange.get("form", {}).items()),
        }

    def _filled(self, text: str) -> str:
        hexadecimal = CONFIG_DESCRIPTOR.digest.partition(":")[2]
        return text.replace("@config-hex", hexadecimal).replace("@config", CONFIG_DESCRIPTOR.digest)


def _said(asked: Asked) -> dict[str, Any]:
    url = urlsplit(asked.path)
    return {
        "method": asked.method,
        "host": asked.headers["host"],
        "path": url.path,
        "query": sorted(parse_qsl(url.query)),
        "authorization": asked.authorization,
        "form": sorted(parse_qsl(asked.body.decode())),
    }


@pytest.fixture(scope="module")
def tls(
    tmp_path_factory: pytest.TempPathFactory, require_program: Callable[[str], str]
) -> tuple[Path, ssl.SSLContext]:
    """Make a certificate for all hosts of all dialogues; give its file, and a server's context with it."""
    folder = tmp_path_factory.mktemp("dialogues")
    names = ",".join(
        f"DNS:{host}" for host in sorted(set().union(*(Dialogue(file).hosts for file in DIALOGUES)))
    )
    subprocess.run(
        [
            *(
                require_program("openssl"),
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
            ),
            *("-nodes", "-days", "2", "-subj", "/CN=dialogues", "-keyout", "key.pem", "-out", "cert.pem"),
            *("-addext", f"subjectAltName={names}"),
        ],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return folder / "cert.pem", context


@pytest.fixture(params=DIALOGUES, ids=[file.stem for file in DIALOGUES])
def dialogue(
    request: pytest.FixtureRequest, tls: tuple[Path, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Dialogue]:
    """Stand in for every host of a dialogue, at port 443, with addresses that count as public."""
    certificate, context = tls
    found = Dialogue(request.param)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    for name in ("HTTPS_PROXY", "https_proxy", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    with ScriptedServer(found.answer, tls=context) as server:

        def lookup(host: Any, port: Any, *_: Any, **__: Any) -> Any:
            if host not in found.hosts or port != 443:
                found.wrong.append(f"{host}:{port} was looked for")
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", server.port))]

        monkeypatch.setattr(socket, "getaddrinfo", lookup)
        monkeypatch.setattr(transport, "_peer", lambda _: transport.parse_address("8.8.8.8"))
        yield found
    assert not found.wrong, "\n".join(found.wrong)
    assert not found.left


def test_the_client_follows_the_dialogue_to_its_end(
    dialogue: Dialogue, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "lamella")
    if "login" in dialogue.data:
        log_in(dialogue, tmp_path / "config.json")
    else:
        pull(dialogue)
    for secret in ("secret", "signature", "eyJ.", "kas9Da81Dfa8"):
        assert secret not in caplog.text


def pull(dialogue: Dialogue) -> None:
    reference = Reference.parse(dialogue.data["pull"])
    known = {reference.domain: dialogue.credential} if dialogue.credential else {}
    with RegistryClient(RegistryConfig(credentials=known, attempts=1, timeouts=Timeouts(60, 60))) as client:
        descriptor, data = client.resolve(reference, known=lambda _: False)
        assert descriptor.digest == digest_of(MANIFEST)
        assert data == MANIFEST
        assert client.fetch_document(reference, CONFIG_DESCRIPTOR) == CONFIG


def log_in(dialogue: Dialogue, file: Path) -> None:
    given, kept = dialogue.data["credential"], dialogue.data["kept"]
    settings = RegistryConfig(attempts=1, timeouts=Timeouts(60, 60))
    if not kept:
        with pytest.raises(Unauthenticated) as caught:
            login(dialogue.data["login"], **given, file=file, config=settings)
        assert given["password"] not in f"{caught.value}{caught.value.hint}"
        assert not file.exists()
        return
    done = login(dialogue.data["login"], **given, file=file, config=settings)
    assert (done.registry, done.checked) == (parse_server(dialogue.data["login"])[0], True)
    assert done.identity_token == (kept == "identity token")
    (entry,) = json.loads(file.read_text())["auths"].values()
    assert ("identitytoken" in entry) == done.identity_token
