"""Servers for the registry tests: one that answers whatever a test says, and a token server.

Both listen on a free port of loopback and note what they were asked.
"""

from __future__ import annotations

import base64
import datetime
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import pytest

from lamella import oci
from lamella.registry.server import Access

_ANYTHING = frozenset({"pull", "push", "delete", "*"})


class Asked(NamedTuple):
    """One request as it came in."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def authorization(self) -> str | None:
        return self.headers.get("authorization")


class Reply(NamedTuple):
    """What to send. Content-Length is added unless ``headers`` say it or ``body`` is no bytes.

    The connection is closed after a body that is not bytes, and after one shorter than its Content-Length.
    """

    status: int = 200
    headers: Mapping[str, str] = {}
    body: bytes | Iterable[bytes] = b""
    reset: bool = False
    """Break the connection by a reset after the body."""


class ScriptedServer:
    """Calls ``script`` for every request; a context manager."""

    def __init__(
        self, script: Callable[[Asked], Reply], *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
    ):
        self.script = script
        self.asked: list[Asked] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 20
            disable_nagle_algorithm = True

            def log_message(self, *_: object) -> None:
                pass

            def __getattr__(self, name: str) -> Any:
                if name.startswith("do_"):
                    return self._reply
                raise AttributeError(name)

            def handle(self) -> None:
                with suppress(OSError):
                    super().handle()

            def _reply(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                asked = Asked(self.command, self.path, headers, body)
                outer.asked.append(asked)
                reply = outer.script(asked)
                send_status = self.send_response_only if "Date" in reply.headers else self.send_response
                send_status(reply.status)
                sent = dict(reply.headers)
                if isinstance(reply.body, bytes):
                    sent.setdefault("Content-Length", str(len(reply.body)))
                else:
                    self.close_connection = True
                for name, value in sent.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    for piece in [reply.body] if isinstance(reply.body, bytes) else reply.body:
                        self.wfile.write(piece)
                    if isinstance(reply.body, bytes) and sent["Content-Length"] != str(len(reply.body)):
                        self.close_connection = True
                if reply.reset:
                    self.close_connection = True
                    reset(self.connection)

        class Server(ThreadingHTTPServer):
            daemon_threads = False

            def handle_error(self, *_: object) -> None:
                pass

        self._server = Server((host, 0), Handler)
        if tls:
            self._server.socket = tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def address(self) -> str:
        return f"{self._server.server_address[0]}:{self.port}"

    def __enter__(self) -> ScriptedServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def scripted() -> Iterator[Callable[..., ScriptedServer]]:
    """Start servers that answer by a script; they end with the test."""
    opened: list[ScriptedServer] = []

    def start(script: Callable[[Asked], Reply], **options: Any) -> ScriptedServer:
        opened.append(ScriptedServer(script, **options))
        return opened[-1]

    yield start
    for server in opened:
        server.__exit__()


class RawServer:
    """Calls ``script`` with the socket of every connection and its number, from 0 on; a context manager.

    What is sent is for the script to say, byte by byte; the connection is closed after it.
    """

    def __init__(self, script: Callable[[socket.socket, int], None]) -> None:
        self._script = script
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._accept)]
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.connections = 0
        self.closing = threading.Event()

    def __enter__(self) -> RawServer:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while not self.closing.is_set():
            with suppress(OSError):
                connection, _ = self._listener.accept()
                connection.settimeout(20)
                self._threads.append(
                    threading.Thread(target=self._serve, args=(connection, self.connections))
                )
                self.connections += 1
                self._threads[-1].start()

    def _serve(self, connection: socket.socket, number: int) -> None:
        with suppress(OSError), connection:
            self._script(connection, number)

    def drip(self, connection: socket.socket, data: bytes, seconds: float) -> None:
        """Send byte after byte until all are sent, the other end is gone, or the server is closed."""
        for byte in data:
            connection.send(bytes([byte]))
            if self.closing.wait(seconds):
                return


def read_head(connection: socket.socket) -> bytes:
    """Read a request up to its empty line."""
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        piece = connection.recv(1)
        if not piece:
            raise ConnectionResetError
        data += piece
    return data


def reset(connection: socket.socket) -> None:
    """Break a connection by a reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    connection.close()


class TokenServer(ScriptedServer):
    """Gives tokens as the distribution project's token server does, to ``users`` or to anybody."""

    def __init__(
        self,
        users: Mapping[str, str] | None = None,
        *,
        expires_in: int | None = 300,
        offline: bool = False,
        **options: Any,
    ) -> None:
        self.users = users
        self.offline = offline
        """Whether identity tokens are given to those who ask for one."""
        self.identity_tokens: set[str] = set()
        self.expires_in = expires_in
        self.given: dict[str, list[str]] = {}
        """The scopes of each token."""
        super().__init__(self._give, **options)

    @property
    def realm(self) -> str:
        return f"http://{self.address}/token"

    def guard(self, access: Access) -> str | None:
        """Protect a RegistryServer: a token is wanted that allows the action in the repository."""
        scope = f"repository:{access.repository}:{access.action}" if access.repository else ""
        scheme, _, token = (access.authorization or "").partition(" ")
        if scheme == "Bearer" and token in self.given and (not scope or self._allows(token, access)):
            return None
        return f'Bearer realm="{self.realm}",service="test registry",scope="{scope}"'

    def _allows(self, token: str, access: Access) -> bool:
        return any(
            scope.rpartition(":")[0] == f"repository:{access.repository}"
            and access.action in scope.rpartition(":")[2].split(",")
            for scope in self.given[token]
        )

    def revoke(self) -> None:
        self.given.clear()

    def _give(self, asked: Asked) -> Reply:
        if asked.method == "POST":
            form = parse_qs(asked.body.decode())
            allowed = (
                form["grant_type"] == ["refresh_token"] and form["refresh_token"][0] in self.identity_tokens
            )
            scopes = form.get("scope", [""])[0].split()
        else:
            scopes = parse_qs(urlsplit(asked.path).query).get("scope", [])
            encoded = (asked.authorization or "Basic ").removeprefix("Basic ")
            name, _, password = base64.b64decode(encoded).decode().partition(":")
            allowed = self.users is None or (name in self.users and self.users[name] == password)
        if not allowed:
            return Reply(401, {}, b'{"errors":[{"code":"UNAUTHORIZED","message":"wrong password"}]}')
        token = f"token-{len(self.asked)}"
        self.given[token] = scopes
        answer: dict[str, Any] = {"token": token}
        if self.offline and "offline_token=true" in asked.path:
            answer["refresh_token"] = f"identity-{len(self.asked)}"
            self.identity_tokens.add(answer["refresh_token"])
        if self.expires_in is not None:
            answer["expires_in"] = self.expires_in
        return Reply(200, {"Content-Type": "application/json"}, json.dumps(answer).encode())


class Issuer(ScriptedServer):
    """A token server for docker-registry, with real tokens: of what is asked for what ``rights`` allow, a resource's or anything.

    They are good for ``seconds``.
    """

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
    def settings(self) -> str:
        """Give what docker-registry needs to be told (:func:`docker_registry_process`); crane takes no loopback address."""
        return (
            f"auth: {{token: {{realm: 'http://localhost:{self.port}/token', service: registry, issuer: test, "
            f"rootcertbundle: {self.bundle}}}}}\n"
        )

    @property
    def scopes(self) -> list[list[str]]:
        """Give what each request asked for."""
        return [parse_qs(urlsplit(asked.path).query).get("scope", []) for asked in self.asked]

    def _issue(self, asked: Asked) -> Reply:
        access = []
        for scope in self.scopes[-1]:
            kind, _, rest = scope.partition(":")
            name, _, actions = rest.rpartition(":")
            allowed = [action for action in actions.split(",") if action in self.rights.get(name, _ANYTHING)]
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


def push_image(
    server: Any, repository: str = "team/app", tag: str = "latest", layers: int = 2
) -> oci.Descriptor:
    """Put a small image of random layers into a RegistryServer."""
    import random

    source = random.Random(repository + tag)
    pushed = [
        server.push_blob(repository, source.randbytes(200_000 + n), oci.OCI_LAYER_GZIP) for n in range(layers)
    ]
    config = server.push_blob(repository, b'{"architecture":"amd64","os":"linux"}', oci.OCI_CONFIG)
    descriptor: oci.Descriptor = server.push_manifest(
        repository, tag, oci.Manifest(config=config, layers=pushed)
    )
    return descriptor


def hosts_folder(folder: Path, domain: str, text: str) -> Path:
    """Write the hosts.toml of a domain below ``folder``, which is given back as a hosts folder."""
    file = folder / domain / "hosts.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return folder


def over_tls(folder: Path, address: str) -> dict[str, Path]:
    """Give settings with which a registry on this machine is asked over TLS alone."""
    return {"hosts_dir": hosts_folder(folder, address, f'server = "https://{address}"\n')}


def read_all(stream: Any, piece: int = 64 * 1024) -> bytes:
    """Read a BlobStream to its end."""
    buffer = bytearray(piece)
    data = bytearray()
    while count := stream.readinto(memoryview(buffer)):
        data += buffer[:count]
    return bytes(data)
