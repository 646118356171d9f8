"""The endpoints of the OCI distribution spec 1.1: pull, push, discovery, management, referrers.

A request names a repository by its path, and perhaps the registry whose repository is meant (``ns`` in the query, which
containerd sends to mirrors). What is behind it, a storage says (:mod:`~lamella.registry.server.storage`); its errors are turned
into the spec's statuses and codes here.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

import msgspec

from lamella import oci
from lamella.digest import Digest, parse_digest
from lamella.errors import (
    FailedPrecondition,
    InvalidArgument,
    LamellaError,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
    Unsupported,
)
from lamella.logs import Log
from lamella.metrics.table import RECEIVED, REQUESTS, SERVED
from lamella.registry.server.access import Access
from lamella.registry.server.http import Body, Connection, Refusal, Server, cut
from lamella.registry.server.storage import PIECE, Repository, Storage, Upload, check_name, check_tag
from lamella.structs import encode
from lamella.typings import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lamella.registry.server import RegistryServer

PAGE_MAX = 1000
TAGS_MAX = 100
_PATH_KEPT = 1000
"""Characters of a request's path that are remembered and logged."""
_log = Log("lamella.registry")
_SERVED, _RECEIVED = SERVED.cell(), RECEIVED.cell()

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
_ACTIONS = {
    "GET": "pull",
    "HEAD": "pull",
    "POST": "push",
    "PATCH": "push",
    "PUT": "push",
    "DELETE": "delete",
}
"""The methods, and what each has to be allowed. Their case counts (RFC 9110, 9.1)."""
TAKE_OVER = 2.0
"""Seconds that a request which is cut off may take to let go of its upload; one of another server is waited for as long."""
_CHUNK = re.compile(r"(?:bytes[ =])?([0-9]{1,19})-([0-9]{1,19})(?:/[0-9*]+)?\Z")


class Recorded(msgspec.Struct, frozen=True):
    """One request that was answered."""

    method: str
    path: str
    status: int
    range: str | None = None


class ApiServer(Server):
    """The connections of one registry, and which of them sends to which upload."""

    registry: RegistryServer

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.senders: dict[str, socket.socket] = {}
        super().__init__(*arguments, **options)


class Handler(Connection):
    """Answers the requests of one connection."""

    server: ApiServer
    _user: str | None = None

    def serve(self) -> None:
        """Answer a request."""
        self._began = time.perf_counter()
        self._answered = False
        self._body: Body | None = Body(self)
        self._user = None
        self._unknown, self._invalid = "NAME_UNKNOWN", "NAME_INVALID"
        try:
            self._route()
        except Refusal as refusal:
            self._refuse(refusal)
        except LamellaError as error:
            self._refuse(self._refusal(error))
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except Exception as error:
            _log.warning(
                "the registry failed: %(error)s: %(reason)s", error=type(error).__name__, reason=error
            )
            self._refuse(Refusal(500, "UNKNOWN", "the registry failed"))
            raise

    def refuse_unread(self, refusal: Refusal) -> None:
        """Answer a request whose head is malformed."""
        self._began = time.perf_counter()
        self._answered = False
        self._body = None
        self._refuse(refusal)

    def _refusal(self, error: LamellaError) -> Refusal:
        """Say by which status and code an error of the library is told."""
        answers = {
            NotFound: (404, self._unknown),
            PermissionDenied: (403, "DENIED"),
            FailedPrecondition: (405, "UNSUPPORTED"),
            ResourceExhausted: (507, "TOOMANYREQUESTS"),
            Unavailable: (503, "TOOMANYREQUESTS"),
            InvalidArgument: (400, self._invalid),
            Unsupported: (400, self._invalid),
        }
        for kind, (status, code) in answers.items():
            if isinstance(error, kind):
                return Refusal(status, code, error.message, {"Retry-After": "1"} if status == 503 else None)
        _log.warning("the registry failed: %(error)s: %(reason)s", error=type(error).__name__, reason=error)
        return Refusal(500, "UNKNOWN", "the registry failed")

    def _route(self) -> None:
        try:
            parts = urlsplit(self.path)
        except ValueError:
            raise Refusal(400, "UNSUPPORTED", "the target of the request is malformed") from None
        path = unquote(parts.path)
        self._queries = parse_qs(parts.query, keep_blank_values=True)
        self._query = {name: values[0] for name, values in self._queries.items()}
        self._domain = self._query.get("ns") or None
        kind, matched = next(
            ((kind, found) for kind, pattern in _ROUTES if (found := pattern.match(path))), ("", None)
        )
        if matched is None:
            raise Refusal(404, "NOT_FOUND", f"there is nothing at {path[:100]}")
        arguments: dict[str, str | Repository] = dict(matched.groupdict())
        name = check_name(str(arguments.pop("name", ""))) if "name" in arguments else ""
        handlers = {method: handler for method in _ACTIONS if (handler := self._handler(kind, method))}
        if self.command not in handlers:
            allowed = {"Allow": ", ".join(handlers)}
            raise Refusal(405, "UNSUPPORTED", f"{self.command} is not possible here", allowed)
        self._admit(name, _ACTIONS[self.command])
        if self.server.registry.read_only and self.command not in {"GET", "HEAD"}:
            raise Refusal(405, "UNSUPPORTED", "the registry is read-only")
        if name:
            arguments = {"repository": self._storage.repository(name, self._domain), **arguments}
        handlers[self.command](**arguments)

    def _handler(self, kind: str, method: str) -> Callable[..., None] | None:
        return getattr(self, f"_{kind}_{'get' if method == 'HEAD' else method.lower()}", None)

    def _admit(self, repository: str, action: str) -> None:
        guard = self.server.registry.auth
        access = Access(repository, action, self.headers.get("Authorization"), self._domain)
        challenge = guard(access) if guard else None
        if challenge is not None:
            raise Refusal(401, "UNAUTHORIZED", "authentication is required", {"WWW-Authenticate": challenge})
        self._user = access.user if guard else None

    @property
    def _storage(self) -> Storage:
        return self.server.registry.storage

    # Answers

    def _start(self, status: int, headers: Mapping[str, str]) -> None:
        self._record(status)
        self._answered = True
        self.wire.wait()
        if self._body is None or not self._body.drain():
            self.close_connection = self.lingers = True
        if self.server.ending:
            self.close_connection = True
        self.send_response(status)
        self.send_header("Docker-Distribution-API-Version", "registry/2.0")
        for name, value in headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def _record(self, status: int) -> None:
        """Note an answer, without queries and headers: there may be secrets in them."""
        method, path = str(self.command), str(getattr(self, "path", ""))[:_PATH_KEPT]
        self._count(REQUESTS.cell(f"{status // 100}xx"))
        if self._body is not None:
            asked = self.headers.get("Range") or self.headers.get("Content-Range")
            self.server.registry.requests.append(Recorded(method, path, status, asked))
        changes = status < 300 and (
            self.command == "DELETE" or ("/manifests/" in path and self.command == "PUT")
        )
        (_log.info if changes else _log.debug)(
            "%(client)s %(method)s %(path)s: %(status)d after %(seconds).3f s",
            client=f"{self._user}@{self.client_address[0]}" if self._user else self.client_address[0],
            method=method,
            path=path.partition("?")[0],
            status=status,
            seconds=time.perf_counter() - self._began,
        )

    def _count(self, cell: int, amount: int = 1) -> None:
        if self.server.registry.metrics is not None:
            self.server.registry.metrics.add(cell, amount)

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
        self._answer(200, encode(document), headers, "application/json")

    def _refuse(self, refusal: Refusal) -> None:
        if self._answered:
            self.close_connection = True
            return
        body = encode({"errors": [{"code": refusal.code, "message": refusal.message, "detail": None}]})
        self._answer(refusal.status, body, refusal.headers, "application/json")

    # The registry and its lists

    def _base_get(self) -> None:
        self._json({})

    def _catalog_get(self) -> None:
        names, link = self._page(self._storage.repositories(), "/v2/_catalog")
        self._json({"repositories": names}, link)

    def _tags_get(self, repository: Repository) -> None:
        tags, link = self._page(repository.tags(), f"/v2/{repository.path}/tags/list")
        self._json({"name": repository.path, "tags": tags}, link)

    def _page(self, names: list[str], path: str) -> tuple[list[str], dict[str, str]]:
        last, wanted = self._query.get("last"), self._query.get("n")
        if wanted is not None and not re.fullmatch(r"[0-9]{1,9}", wanted):
            raise Refusal(400, "PAGINATION_NUMBER_INVALID", "n is not a number")
        count = min(int(wanted), PAGE_MAX) if wanted is not None else PAGE_MAX
        rest = [name for name in names if last is None or name > last]
        page = rest[:count]
        if len(rest) <= count or not page:
            return page, {}
        query = urlencode({"n": count, "last": page[-1], **({"ns": self._domain} if self._domain else {})})
        return page, {"Link": f'<{path}?{query}>; rel="next"'}

    def _referrers_get(self, repository: Repository, digest: str) -> None:
        self._invalid = "DIGEST_INVALID"
        manifests = list(repository.referrers(parse_digest(digest)))
        headers = {}
        wanted = self._query.get("artifactType")
        if wanted:
            manifests = [manifest for manifest in manifests if manifest.artifact_type == wanted]
            headers["OCI-Filters-Applied"] = "artifactType"
        document = {"schemaVersion": 2, "mediaType": oci.OCI_INDEX, "manifests": manifests}
        self._answer(200, encode(document), headers, oci.OCI_INDEX)

    # Manifests

    def _manifest_get(self, repository: Repository, reference: str) -> None:
        self._unknown, self._invalid = "MANIFEST_UNKNOWN", "MANIFEST_INVALID"
        stored = repository.manifest(reference)
        headers = {"Docker-Content-Digest": stored.digest, "ETag": f'"{stored.digest}"'}
        if self._is_known(stored.digest):
            self._answer(304, headers=headers)
            return
        self._answer(200, stored.data, headers, stored.media_type)

    def _manifest_put(self, repository: Repository, reference: str) -> None:
        self._unknown, self._invalid = "MANIFEST_BLOB_UNKNOWN", "MANIFEST_INVALID"
        digest = parse_digest(reference) if ":" in reference else None
        tags = self._queries.get("tag", []) if digest else [check_tag(reference)]
        if len(tags) > TAGS_MAX:
            raise Refusal(400, "TAG_INVALID", f"one request may set {TAGS_MAX} tags, not {len(tags)}")
        assert self._body is not None
        data = self._body.read_all(oci.DOCUMENT_MAX)
        pushed = repository.put_manifest(data, self.headers.get("Content-Type"), tags=tags, digest=digest)
        stored = pushed.manifest.digest
        headers = {
            "Location": f"/v2/{repository.path}/manifests/{stored}",
            "Docker-Content-Digest": stored,
        }
        if pushed.document.subject is not None:
            headers["OCI-Subject"] = pushed.document.subject.digest
        if digest and tags:
            headers["OCI-Tag"] = ", ".join(tags)
        self._answer(201, headers=headers)

    def _manifest_delete(self, repository: Repository, reference: str) -> None:
        self._unknown, self._invalid = "MANIFEST_UNKNOWN", "DIGEST_INVALID"
        repository.delete_manifest(reference)
        self._answer(202)

    # Blobs

    def _blob_get(self, repository: Repository, digest: str) -> None:
        self._unknown, self._invalid = "BLOB_UNKNOWN", "DIGEST_INVALID"
        checked = parse_digest(digest)
        with repository.open_blob(checked) as stream:
            size = stream.seek(0, 2)
            headers = {
                "Accept-Ranges": "bytes",
                "Docker-Content-Digest": checked,
                "ETag": f'"{checked}"',
            }
            if self._is_known(checked):
                self._answer(304, headers=headers)
                return
            status, start, stop = self._extent(checked, size)
            headers["Content-Type"] = "application/octet-stream"
            headers["Content-Length"] = str(stop - start)
            if status == 206:
                headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
            self._start(status, headers)
            if self.command == "GET" and stop > start:
                self.wfile.flush()
                self.wire.send_file(stream, start, stop - start)
                self._count(_SERVED, stop - start)

    def _is_known(self, digest: Digest) -> bool:
        """Read If-None-Match (RFC 9110, 13.1.2): whether the client has what it asks for."""
        known = [tag.strip().removeprefix("W/") for tag in self.headers.get("If-None-Match", "").split(",")]
        return "*" in known or f'"{digest}"' in known or digest in known

    def _extent(self, digest: Digest, size: int) -> tuple[int, int, int]:
        """Read the Range header (RFC 9110, 14.2): status, start and stop. Several ranges are answered by the whole.

        So is one that is for something else (If-Range; 13.1.5).
        """
        matched = _RANGE.match(self.headers.get("Range", "").replace(" ", ""))
        meant = self.headers.get("If-Range", f'"{digest}"').strip()
        if not matched or (not matched[1] and not matched[2]) or meant != f'"{digest}"':
            return 200, 0, size
        if not matched[1]:
            start, stop = max(size - int(matched[2]), 0), size
        else:
            start = int(matched[1])
            stop = min(int(matched[2]) + 1, size) if matched[2] else size
        if start >= stop:
            raise Refusal(
                416, "RANGE_INVALID", "the range is outside of the blob", {"Content-Range": f"bytes */{size}"}
            )
        return 206, start, stop

    def _blob_delete(self, repository: Repository, digest: str) -> None:
        self._unknown, self._invalid = "BLOB_UNKNOWN", "DIGEST_INVALID"
        repository.delete_blob(parse_digest(digest))
        self._answer(202)

    # Uploads

    def _uploads_post(self, repository: Repository) -> None:
        self._invalid = "DIGEST_INVALID"
        mount = self._query.get("mount")
        if mount and self._mount(repository, parse_digest(mount), self._query.get("from")):
            self._created(repository, parse_digest(mount))
            return
        digest = parse_digest(self._query["digest"]) if self._query.get("digest") else None
        session = repository.start_upload()
        if digest is None:
            self._continued(repository, session, 0, 202)
            return
        with repository.open_upload(session) as upload:
            self._receive(repository, session, upload)
            upload.finish(digest)
        self._created(repository, digest)

    def _mount(self, repository: Repository, digest: Digest, source: str | None) -> bool:
        """Take a blob from another repository, which the client must be allowed to read."""
        if source is not None:
            self._admit(check_name(source), "pull")
            return repository.mount(digest, self._storage.repository(source, self._domain))
        # From any: nobody can be asked whether the client may read that one.
        return self.server.registry.auth is None and repository.mount(digest, None)

    def _upload_get(self, repository: Repository, session: str) -> None:
        self._unknown = "BLOB_UPLOAD_UNKNOWN"
        self._continued(repository, session, repository.upload_size(session), 204)

    def _upload_patch(self, repository: Repository, session: str) -> None:
        with self._open(repository, session) as upload:
            self._receive(repository, session, upload)
            size = upload.size
        self._continued(repository, session, size, 202)

    def _upload_put(self, repository: Repository, session: str) -> None:
        with self._open(repository, session) as upload:
            self._invalid = "DIGEST_INVALID"
            digest = parse_digest(self._query.get("digest", ""))
            self._receive(repository, session, upload)
            upload.finish(digest)
        self._created(repository, digest)

    def _upload_delete(self, repository: Repository, session: str) -> None:
        self._unknown = "BLOB_UPLOAD_UNKNOWN"
        repository.cancel_upload(session)
        self._answer(204)

    @contextmanager
    def _open(self, repository: Repository, session: str) -> Iterator[Upload]:
        """Open an upload. A request that holds it is cut off: its client has lost that connection, and come back on this one."""
        self._unknown = "BLOB_UPLOAD_UNKNOWN"
        senders, patience = self.server.senders, time.monotonic() + TAKE_OVER
        while True:
            try:
                upload = repository.open_upload(session)
                break
            except Unavailable as error:
                if time.monotonic() > patience:
                    raise Refusal(409, "BLOB_UPLOAD_INVALID", error.message) from None
            if (sender := senders.get(session)) is not None:
                cut(sender)
            time.sleep(0.01)
        with upload:
            senders[session] = self.connection
            try:
                yield upload
            finally:
                del senders[session]

    def _receive(self, repository: Repository, session: str, upload: Upload) -> None:
        """Append the body; one that does not start where the upload stands is refused with 416."""
        assert self._body is not None
        self._check_chunk(repository, session, upload, self._body)
        while data := self._body.read(PIECE):
            upload.write(data)
            self._count(_RECEIVED, len(data))

    def _check_chunk(self, repository: Repository, session: str, upload: Upload, body: Body) -> None:
        header = self.headers.get("Content-Range")
        if header is None:
            return
        matched = _CHUNK.match(header.strip())
        if not matched:
            raise Refusal(400, "BLOB_UPLOAD_INVALID", "the Content-Range is malformed")
        first, last = int(matched[1]), int(matched[2])
        if first != upload.size:
            progress = _progress(repository, session, upload.size)
            raise Refusal(416, "BLOB_UPLOAD_INVALID", f"the upload stands at {upload.size}", progress)
        if body.length is not None and body.length != last - first + 1:
            raise Refusal(400, "SIZE_INVALID", "Content-Range and Content-Length differ")

    def _continued(self, repository: Repository, session: str, size: int, status: int) -> None:
        self._answer(status, headers=_progress(repository, session, size))

    def _created(self, repository: Repository, digest: Digest) -> None:
        location = f"/v2/{repository.path}/blobs/{digest}"
        self._answer(201, headers={"Location": location, "Docker-Content-Digest": digest})


def _progress(repository: Repository, session: str, size: int) -> dict[str, str]:
    return {
        "Location": f"/v2/{repository.path}/blobs/uploads/{session}",
        "Range": f"0-{max(size - 1, 0)}",
        "Docker-Upload-UUID": session,
    }
