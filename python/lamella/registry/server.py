"""A registry in this process: the OCI distribution spec, pull and push, over HTTP/1.1.

For demos, tests and embedders::

    with RegistryServer() as server:
        layer = server.push_blob("team/app", data)
        ...
        client.images.pull(f"{server.address}/team/app:latest")

or as a program: ``python -m lamella.registry.server --root DIR --port N``. One thread a connection; blobs go from the
file to the socket by sendfile, and from the socket to a file while they are hashed. Storage: :mod:`lamella.registry.storage`.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import hmac
import re
import signal
import socket
import socketserver
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

import msgspec

from lamella import oci
from lamella.digest import Digest, parse_digest
from lamella.errors import (
    InvalidArgument,
    LamellaError,
    NotFound,
    ResourceExhausted,
    Unsupported,
)
from lamella.registry.storage import PIECE, Storage, Upload, check_name

IDLE_SECONDS = 60
"""How long a connection may be silent."""
PAGE_MAX = 1000
TAGS_MAX = 100
REQUESTS_KEPT = 10_000
_DRAIN_MAX = 64 * 1024
_LINE_MAX = 4096

_ROUTES = [
    (kind, re.compile(pattern + r"\Z"))
    for kind, pattern in (
        ("base", r"/v2/?"),
        ("catalog", r"/v2/_catalog"),
        ("tags", r"/v2/(?P<name>.+)/tags/list"),
        ("manifest", r"/v2/(?P<name>.+)/manifests/(?P<reference>[^/]+)"),
        ("uploads", r"/v2/(?P<name>.+)/blobs/uploads/?"),
        ("upload", r"/v2/(?P<name>.+)/blobs/uploads/(?P<session>[^/]+)"),
        ("blob", r"/v2/(?P<name>.+)/blobs/(?P<digest>[^/]+)"),
        ("referrers", r"/v2/(?P<name>.+)/referrers/(?P<digest>[^/]+)"),
    )
]
_RANGE = re.compile(r"bytes=([0-9]{0,19})-([0-9]{0,19})\Z")
_CHUNK = re.compile(r"(?:bytes[ =])?([0-9]{1,19})-([0-9]{1,19})(?:/[0-9*]+)?\Z")


class Recorded(msgspec.Struct, frozen=True):
    """One request that was answered."""

    method: str
    path: str
    status: int
    range: str | None = None


class Access(msgspec.Struct, frozen=True):
    """What somebody wants to do: ``pull``, ``push`` or ``delete`` in a repository; ``""`` is the registry itself."""

    repository: str
    action: str
    authorization: str | None

    def __repr__(self) -> str:
        return f"Access({self.repository!r}, {self.action!r})"


Guard = Callable[[Access], str | None]
"""Gives None to allow an access, else the WWW-Authenticate challenge of the 401 answer."""


def basic_auth(users: Mapping[str, str], realm: str = "registry") -> Guard:
    """Make a guard that lets the users of ``users`` (name to password) do everything and nobody else anything."""

    def guard(access: Access) -> str | None:
        scheme, _, encoded = (access.authorization or "").partition(" ")
        try:
            given = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            given = b""
        # Every user is compared, so that the time taken tells nothing.
        allowed = [
            hmac.compare_digest(given, f"{name}:{password}".encode()) for name, password in users.items()
        ]
        return None if scheme.lower() == "basic" and any(allowed) else f'Basic realm="{realm}"'

    return guard


class RegistryServer:
    """Serves one storage folder; a context manager.

    ``root``: where to keep the content, a temporary folder that :meth:`close` removes for None. ``port`` 0: any free
    one, see :attr:`address`. ``auth``: who may do what, everybody everything for None. ``read_only``: refuse pushes.
    ``sparse``: take manifests whose config or layers are not here, as a registry may (distribution spec, "Pushing
    Manifests").
    """

    def __init__(
        self,
        root: Path | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        auth: Guard | None = None,
        read_only: bool = False,
        sparse: bool = False,
    ) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="lamella-registry-") if root is None else None
        self.storage = Storage(
            Path(self._temporary.name) if self._temporary else Path(root or ""), sparse=sparse
        )
        self.auth = auth
        self.read_only = read_only
        self.requests: deque[Recorded] = deque(maxlen=REQUESTS_KEPT)
        try:
            self._server = _Server((host, port), self)
        except BaseException:
            self._clean()
            raise
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, name="lamella-registry"
        )
        self._thread.start()

    def __enter__(self) -> RegistryServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"RegistryServer({self.address})"

    @property
    def address(self) -> str:
        """Give host and port as a reference names them."""
        host, port = self._server.server_address[:2]
        shown = str(host)
        return f"[{shown}]:{port}" if ":" in shown else f"{shown}:{port}"

    def close(self) -> None:
        """Stop: end the connections, wait for their threads, remove a temporary root. Harmless twice."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.disconnect()
        self._server.server_close()
        self._clean()

    def _clean(self) -> None:
        if self._temporary is not None:
            self._temporary.cleanup()

    def push_blob(
        self, repository: str, data: bytes, media_type: str = "application/octet-stream"
    ) -> oci.Descriptor:
        """Store bytes as a blob of a repository and describe it. Harmless twice."""
        digest = self.storage.put_blob(repository, data)
        return oci.Descriptor(media_type=media_type, digest=digest, size=len(data))

    def push_manifest(
        self,
        repository: str,
        tag: str | None,
        manifest: oci.Manifest | oci.Index | bytes,
        media_type: str | None = None,
    ) -> oci.Descriptor:
        """Store a manifest or an index, point ``tag`` at it and describe it. Harmless twice.

        ``media_type`` is taken from the document if it says it. Errors as those of a push.
        """
        if isinstance(manifest, bytes):
            data = manifest
        else:
            known = oci.OCI_INDEX if isinstance(manifest, oci.Index) else oci.OCI_MANIFEST
            media_type = media_type or manifest.media_type or known
            document = {"schemaVersion": 2, "mediaType": media_type, **msgspec.to_builtins(manifest)}
            document["mediaType"] = media_type
            data = msgspec.json.encode({key: value for key, value in document.items() if value is not None})
        digest, parsed = self.storage.put_manifest(repository, data, media_type, tags=[tag] if tag else [])
        return oci.Descriptor(
            media_type=parsed.media_type or media_type or oci.OCI_MANIFEST, digest=digest, size=len(data)
        )


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = False
    block_on_close = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], registry: RegistryServer) -> None:
        self.registry = registry
        self._open: set[socket.socket] = set()
        self._open_lock = threading.Lock()
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        with self._open_lock:
            self._open.add(connection)
        return connection, address

    def close_request(self, request: Any) -> None:
        with self._open_lock:
            self._open.discard(request)
        super().close_request(request)

    def disconnect(self) -> None:
        """End all connections, so that their threads come to an end."""
        with self._open_lock:
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that go away; a defect of the handler is not hidden by that: it answers 500."""


class _Refusal(Exception):
    """An answer that is an error (distribution spec, "Error Codes")."""

    def __init__(
        self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = dict(headers or {})


class _Body:
    """A request's body, by Content-Length or chunked (RFC 9112, 7.1)."""

    def __init__(self, handler: BaseHTTPRequestHandler) -> None:
        self._file = handler.rfile
        self.chunked = "chunked" in handler.headers.get("Transfer-Encoding", "").lower()
        length = handler.headers.get("Content-Length", "0").strip()
        if self.chunked:
            length = "0"
        if not length.isdecimal():
            raise _Refusal(400, "SIZE_INVALID", "the Content-Length is malformed")
        self.left = int(length)
        self.length = None if self.chunked else self.left
        self.done = not self.chunked and not self.left
        self._first = True

    def read(self, size: int) -> bytes:
        """Read at most ``size`` bytes; none at the end. Errors: _Refusal when the sender breaks off."""
        if self.chunked and not self.left and not self.done:
            self._next_chunk()
        if self.done:
            return b""
        data = self._file.read(min(size, self.left))
        if not data:
            raise ConnectionResetError("the request ended early")
        self.left -= len(data)
        if not self.chunked and not self.left:
            self.done = True
        return data

    def read_all(self, limit: int) -> bytes:
        """Read the whole; 413 if it is over ``limit`` bytes."""
        parts, size = [], 0
        if self.left > limit:
            raise _Refusal(413, "SIZE_INVALID", f"the body has over {limit} bytes")
        while data := self.read(PIECE):
            parts.append(data)
            size += len(data)
            if size > limit:
                raise _Refusal(413, "SIZE_INVALID", f"the body has over {limit} bytes")
        return b"".join(parts)

    def _next_chunk(self) -> None:
        if not self._first:
            self._file.readline(_LINE_MAX)
        self._first = False
        size = self._file.readline(_LINE_MAX).partition(b";")[0].strip()
        if not re.fullmatch(rb"[0-9a-fA-F]{1,15}", size):
            raise ConnectionResetError("a malformed chunk")
        self.left = int(size, 16)
        if not self.left:
            self.done = True
            while self._file.readline(_LINE_MAX).strip():
                pass


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "lamella-registry"
    sys_version = ""
    timeout = IDLE_SECONDS
    disable_nagle_algorithm = True
    wbufsize = 64 * 1024
    server: _Server

    _ACTIONS: ClassVar = {"GET": "pull", "HEAD": "pull", "DELETE": "delete"}

    def handle(self) -> None:
        # A client that goes away, or a server that closes, ends the connection and is nobody's error.
        with suppress(ConnectionError, TimeoutError):
            super().handle()

    def finish(self) -> None:
        with suppress(OSError, ValueError):
            super().finish()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self._serve
        raise AttributeError(name)

    def _serve(self) -> None:
        self._answered = False
        try:
            self._body = _Body(self)
        except _Refusal as refusal:
            self._body = _Body.__new__(_Body)
            self._body.done, self._body.chunked, self._body.left = False, True, 0
            self._refuse(refusal)
            return
        try:
            self._route()
        except _Refusal as refusal:
            self._refuse(refusal)
        except NotFound as error:
            self._refuse(_Refusal(404, self._unknown, error.message))
        except ResourceExhausted as error:
            self._refuse(_Refusal(413, "SIZE_INVALID", error.message))
        except (InvalidArgument, Unsupported) as error:
            self._refuse(_Refusal(400, self._invalid, error.message))
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except Exception:
            self._refuse(_Refusal(500, "UNKNOWN", "the registry failed"))
            raise

    def _route(self) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        self._queries = parse_qs(parts.query, keep_blank_values=True)
        self._query = {name: values[0] for name, values in self._queries.items()}
        self._unknown, self._invalid = "NAME_UNKNOWN", "NAME_INVALID"
        kind, matched = next(
            ((kind, found) for kind, pattern in _ROUTES if (found := pattern.match(path))), ("", None)
        )
        if matched is None:
            raise _Refusal(404, "NOT_FOUND", f"there is nothing at {path[:100]}")
        arguments = matched.groupdict()
        name = check_name(arguments["name"]) if "name" in arguments else ""
        self._admit(name, self._ACTIONS.get(self.command, "push"))
        handler = getattr(self, f"_{kind}_{'get' if self.command == 'HEAD' else self.command.lower()}", None)
        if handler is None:
            raise _Refusal(405, "UNSUPPORTED", f"{self.command} is not possible here")
        if self.server.registry.read_only and self.command not in {"GET", "HEAD"}:
            raise _Refusal(405, "UNSUPPORTED", "the registry is read-only")
        handler(**arguments)

    def _admit(self, repository: str, action: str) -> None:
        guard = self.server.registry.auth
        challenge = guard(Access(repository, action, self.headers.get("Authorization"))) if guard else None
        if challenge is not None:
            raise _Refusal(401, "UNAUTHORIZED", "authentication is required", {"WWW-Authenticate": challenge})

    @property
    def _storage(self) -> Storage:
        return self.server.registry.storage

    # Answers

    def _start(self, status: int, headers: Mapping[str, str]) -> None:
        self.server.registry.requests.append(
            Recorded(
                self.command,
                self.path,
                status,
                self.headers.get("Range") or self.headers.get("Content-Range"),
            )
        )
        self._answered = True
        drained = self._drain()
        self.send_response(status)
        self.send_header("Docker-Distribution-API-Version", "registry/2.0")
        for name, value in headers.items():
            self.send_header(name, value)
        if not drained:
            self.send_header("Connection", "close")
        self.end_headers()

    def _drain(self) -> bool:
        """Read a small rest of the body, so that the connection can be used again; False if there is more."""
        with suppress(OSError):
            left = _DRAIN_MAX
            while left > 0 and not self._body.done and self._body.left <= left:
                left -= max(len(self._body.read(left)), 1)
        if not self._body.done:
            self.close_connection = True
        return self._body.done

    def _answer(
        self,
        status: int,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        media_type: str | None = None,
    ) -> None:
        sent = dict(headers or {})
        if media_type:
            sent["Content-Type"] = media_type
        if status not in {204, 304}:
            sent["Content-Length"] = str(len(body))
        self._start(status, sent)
        if body and self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, document: object, headers: Mapping[str, str] | None = None) -> None:
        self._answer(200, msgspec.json.encode(document), headers, "application/json")

    def _refuse(self, refusal: _Refusal) -> None:
        if self._answered:
            self.close_connection = True
            return
        body = msgspec.json.encode(
            {"errors": [{"code": refusal.code, "message": refusal.message, "detail": None}]}
        )
        self._answer(refusal.status, body, refusal.headers, "application/json")

    # The registry and its lists

    def _base_get(self) -> None:
        self._json({})

    def _catalog_get(self) -> None:
        names, link = self._page(self._storage.repositories(), "/v2/_catalog")
        self._json({"repositories": names}, link)

    def _tags_get(self, name: str) -> None:
        tags, link = self._page(self._storage.tags(name), f"/v2/{name}/tags/list")
        self._json({"name": name, "tags": tags}, link)

    def _page(self, names: list[str], path: str) -> tuple[list[str], dict[str, str]]:
        last, wanted = self._query.get("last"), self._query.get("n")
        if wanted is not None and not re.fullmatch(r"[0-9]{1,9}", wanted):
            raise _Refusal(400, "PAGINATION_NUMBER_INVALID", "n is not a number")
        count = min(int(wanted), PAGE_MAX) if wanted is not None else PAGE_MAX
        rest = [name for name in names if last is None or name > last]
        page = rest[:count]
        if len(rest) <= count or not page:
            return page, {}
        query = urlencode({"n": count, "last": page[-1]})
        return page, {"Link": f'<{path}?{query}>; rel="next"'}

    def _referrers_get(self, name: str, digest: str) -> None:
        self._invalid = "DIGEST_INVALID"
        manifests = list(self._storage.referrers(name, parse_digest(digest)))
        headers = {}
        wanted = self._query.get("artifactType")
        if wanted:
            manifests = [manifest for manifest in manifests if manifest.artifact_type == wanted]
            headers["OCI-Filters-Applied"] = "artifactType"
        document = {"schemaVersion": 2, "mediaType": oci.OCI_INDEX, "manifests": manifests}
        self._answer(200, msgspec.json.encode(document), headers, oci.OCI_INDEX)

    # Manifests

    def _manifest_get(self, name: str, reference: str) -> None:
        self._unknown, self._invalid = "MANIFEST_UNKNOWN", "MANIFEST_INVALID"
        stored = self._storage.manifest(name, reference)
        headers = {"Docker-Content-Digest": stored.digest, "ETag": f'"{stored.digest}"'}
        if self.headers.get("If-None-Match", "").strip('" ') == stored.digest:
            self._answer(304, headers=headers)
            return
        self._answer(200, stored.data, headers, stored.media_type)

    def _manifest_put(self, name: str, reference: str) -> None:
        self._unknown, self._invalid = "MANIFEST_BLOB_UNKNOWN", "MANIFEST_INVALID"
        digest = parse_digest(reference) if ":" in reference else None
        tags = self._queries.get("tag", []) if digest else [reference]
        if len(tags) > TAGS_MAX:
            raise _Refusal(400, "TAG_INVALID", f"one request may set {TAGS_MAX} tags, not {len(tags)}")
        data = self._body.read_all(oci.DOCUMENT_MAX)
        stored, document = self._storage.put_manifest(
            name, data, self.headers.get("Content-Type"), tags=tags, digest=digest
        )
        headers = {"Location": f"/v2/{name}/manifests/{stored}", "Docker-Content-Digest": stored}
        if document.subject is not None:
            headers["OCI-Subject"] = document.subject.digest
        if digest and tags:
            headers["OCI-Tag"] = ", ".join(tags)
        self._answer(201, headers=headers)

    def _manifest_delete(self, name: str, reference: str) -> None:
        self._unknown, self._invalid = "MANIFEST_UNKNOWN", "DIGEST_INVALID"
        self._storage.delete_manifest(name, reference)
        self._answer(202)

    # Blobs

    def _blob_get(self, name: str, digest: str) -> None:
        self._unknown, self._invalid = "BLOB_UNKNOWN", "DIGEST_INVALID"
        checked = parse_digest(digest)
        with self._storage.open_blob(name, checked) as stream:
            size = stream.seek(0, 2)
            status, start, stop = self._extent(size)
            headers = {
                "Accept-Ranges": "bytes",
                "Content-Type": "application/octet-stream",
                "Content-Length": str(stop - start),
                "Docker-Content-Digest": checked,
                "ETag": f'"{checked}"',
            }
            if status == 206:
                headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
            self._start(status, headers)
            if self.command == "GET" and stop > start:
                self.wfile.flush()
                stream.seek(0)
                self.connection.sendfile(stream, start, stop - start)

    def _extent(self, size: int) -> tuple[int, int, int]:
        """Read the Range header (RFC 9110, 14.2): status, start and stop. Several ranges are answered by the whole."""
        matched = _RANGE.match(self.headers.get("Range", "").replace(" ", ""))
        if not matched or (not matched[1] and not matched[2]):
            return 200, 0, size
        if not matched[1]:
            start, stop = max(size - int(matched[2]), 0), size
        else:
            start = int(matched[1])
            stop = min(int(matched[2]) + 1, size) if matched[2] else size
        if start >= stop:
            raise _Refusal(
                416, "RANGE_INVALID", "the range is outside of the blob", {"Content-Range": f"bytes */{size}"}
            )
        return 206, start, stop

    def _blob_delete(self, name: str, digest: str) -> None:
        self._unknown, self._invalid = "BLOB_UNKNOWN", "DIGEST_INVALID"
        self._storage.delete_blob(name, parse_digest(digest))
        self._answer(202)

    # Uploads

    def _uploads_post(self, name: str) -> None:
        self._invalid = "DIGEST_INVALID"
        mount = self._query.get("mount")
        if mount:
            source = self._query.get("from")
            if source is not None:
                self._admit(check_name(source), "pull")
            if self._storage.mount(name, parse_digest(mount), source):
                self._created(name, parse_digest(mount))
                return
        digest = parse_digest(self._query["digest"]) if self._query.get("digest") else None
        upload = self._storage.start_upload(name)
        if digest is not None:
            self._receive(upload)
            self._created(name, self._storage.finish_upload(upload, digest))
            return
        self._continued(upload, 202)

    def _upload_get(self, name: str, session: str) -> None:
        self._continued(self._upload(name, session), 204)

    def _upload_patch(self, name: str, session: str) -> None:
        upload = self._upload(name, session)
        self._receive(upload)
        self._continued(upload, 202)

    def _upload_put(self, name: str, session: str) -> None:
        upload = self._upload(name, session)
        self._invalid = "DIGEST_INVALID"
        digest = parse_digest(self._query.get("digest", ""))
        self._receive(upload)
        self._created(name, self._storage.finish_upload(upload, digest))

    def _upload_delete(self, name: str, session: str) -> None:
        self._storage.cancel_upload(self._upload(name, session))
        self._answer(204)

    def _upload(self, name: str, session: str) -> Upload:
        self._unknown = "BLOB_UPLOAD_UNKNOWN"
        return self._storage.upload(name, session)

    def _receive(self, upload: Upload) -> None:
        """Append the body; one that does not start where the upload stands is refused with 416."""
        if not upload.lock.acquire(blocking=False):
            raise _Refusal(409, "BLOB_UPLOAD_INVALID", "another request is writing to this upload")
        try:
            self._check_chunk(upload)
            with upload.path.open("ab") as stream:
                while data := self._body.read(PIECE):
                    upload.write(data, stream)
        finally:
            upload.lock.release()

    def _check_chunk(self, upload: Upload) -> None:
        header = self.headers.get("Content-Range")
        if header is None:
            return
        matched = _CHUNK.match(header.strip())
        if not matched:
            raise _Refusal(400, "BLOB_UPLOAD_INVALID", "the Content-Range is malformed")
        first, last = int(matched[1]), int(matched[2])
        if first != upload.size:
            raise _Refusal(
                416, "BLOB_UPLOAD_INVALID", f"the upload stands at {upload.size}", self._progress(upload)
            )
        if self._body.length is not None and self._body.length != last - first + 1:
            raise _Refusal(400, "SIZE_INVALID", "Content-Range and Content-Length differ")

    def _progress(self, upload: Upload) -> dict[str, str]:
        return {
            "Location": f"/v2/{upload.repository}/blobs/uploads/{upload.session}",
            "Range": f"0-{max(upload.size - 1, 0)}",
            "Docker-Upload-UUID": upload.session,
        }

    def _continued(self, upload: Upload, status: int) -> None:
        self._answer(status, headers=self._progress(upload))

    def _created(self, name: str, digest: Digest) -> None:
        self._answer(201, headers={"Location": f"/v2/{name}/blobs/{digest}", "Docker-Content-Digest": digest})


def main(arguments: list[str] | None = None) -> int:
    """Run a registry until SIGINT or SIGTERM; its address is the first line of output."""
    parser = argparse.ArgumentParser(prog="python -m lamella.registry.server", description=main.__doc__)
    parser.add_argument("--root", type=Path, help="where to keep the content; a temporary folder if left out")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: %(default)s)")
    parser.add_argument(
        "--port", type=int, default=5000, help="the port, 0 for any free one (default: %(default)s)"
    )
    parser.add_argument("--read-only", action="store_true", help="refuse pushes and deletes")
    parser.add_argument("--sparse", action="store_true", help="take manifests whose blobs are not here")
    options = parser.parse_args(arguments)
    ended = threading.Event()

    def end(_signal: int, _frame: FrameType | None) -> None:
        ended.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    try:
        server = RegistryServer(
            options.root,
            host=options.host,
            port=options.port,
            read_only=options.read_only,
            sparse=options.sparse,
        )
    except (OSError, LamellaError) as error:
        sys.stderr.write(f"the registry cannot start: {error}\n")
        return 1
    with server:
        sys.stdout.write(f"{server.address}\n")
        sys.stdout.flush()
        ended.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
