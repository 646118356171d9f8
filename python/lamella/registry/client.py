"""The pulling side of the OCI distribution spec: manifests, configs and blobs of one or many registries.

Importing this module loads requests (97 ms); only network work does.
"""

from __future__ import annotations

import base64
import binascii
import threading
from collections.abc import Callable, Mapping
from typing import NamedTuple, overload

import requests

from lamella import oci
from lamella._core import __version__
from lamella.digest import Digest, digest_of, parse_digest, split_digest
from lamella.errors import (
    DataLoss,
    InvalidArgument,
    LamellaError,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unsupported,
)
from lamella.oci import Descriptor
from lamella.reference import DEFAULT_DOMAIN, DEFAULT_REGISTRY_HOST, Reference, is_loopback
from lamella.registry.auth import Authorizer, Identity, parse_challenges
from lamella.registry.blob import BlobStream
from lamella.registry.credentials import Credential, CredentialStore
from lamella.registry.failures import Timeouts, discard, error_of, read_document, refusal, wants_tls
from lamella.registry.targets import Origin
from lamella.registry.transport import Patience, Transport

MANIFEST_ACCEPT = ", ".join([*sorted(oci.INDEX_TYPES), *sorted(oci.MANIFEST_TYPES), "*/*"])

_Known = Callable[[Digest], bool]


class RegistryClient:
    """Talks to the registries that references name. Safe to use from several threads; a context manager.

    ``plain_http``: allow HTTP without TLS to any host; it is used by itself only for this machine (localhost,
    127.0.0.0/8, ::1). ``credentials``: where to look for them, by default in docker's and podman's files; None for
    a domain means anonymous. ``allow_private``: let a public registry send on to addresses of private networks.
    ``attempts``: how often one request is tried; ``backoff``: seconds of pause to begin with.
    """

    def __init__(
        self,
        *,
        plain_http: bool = False,
        credentials: CredentialStore | Mapping[str, Credential] | None = None,
        timeout: tuple[float, float] = Timeouts(),
        user_agent: str | None = None,
        allow_private: bool = False,
        attempts: int = 5,
        backoff: float = 0.25,
    ) -> None:
        self._plain_http = plain_http
        self._credentials = CredentialStore() if credentials is None else credentials
        self._transport = Transport(
            user_agent=user_agent or f"lamella/{__version__}",
            timeouts=Timeouts(*timeout),
            plain_http=plain_http,
            allow_private=allow_private,
            attempts=attempts,
            backoff=backoff,
        )
        self._authorizer = Authorizer(self._transport)
        self._looking_up = threading.Lock()
        self._origins: dict[str, Origin] = {}
        self._identities: dict[tuple[Origin, str], Identity] = {}

    def __enter__(self) -> RegistryClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"RegistryClient(plain_http={self._plain_http})"

    def close(self) -> None:
        """Close all connections. What other threads still do ends with Cancelled. Harmless twice."""
        self._transport.close()

    def interrupt(self) -> None:
        """End all requests, streams and waits of this client with Cancelled, for good; from any thread."""
        self._transport.interrupt()

    @overload
    def resolve(self, reference: Reference) -> tuple[Descriptor, bytes]: ...
    @overload
    def resolve(self, reference: Reference, *, known: _Known | None) -> tuple[Descriptor, bytes | None]: ...
    def resolve(
        self, reference: Reference, *, known: _Known | None = None
    ) -> tuple[Descriptor, bytes | None]:
        """Give the descriptor that a reference names and the document it points at, an index or a manifest.

        One request. With ``known``, which says whether a digest is here already, that request is a HEAD (which
        registries do not count against a pull limit), the document is None if the answer is known, and a GET follows
        if it is not. A reference with a digest is looked up by it, and the document is checked against it.

        Errors: NotFound, Unauthenticated, PermissionDenied, Unavailable; Unsupported for what is no image;
        DataLoss when digest and document do not fit; ResourceExhausted for a document over oci.DOCUMENT_MAX.
        """
        what = f"image {reference.familiar}"
        if known is not None:
            found = self._head(reference, what)
            if found is not None and known(found.digest):
                return found, None
        locator = reference.digest or reference.tag or ""
        data, headers = self._document(reference, f"manifests/{locator}", what, MANIFEST_ACCEPT)
        digest = _digest_of_answer(reference, data, headers, what)
        media_type = oci.document_type(data, headers.get("Content-Type"))
        return Descriptor(media_type=media_type, digest=digest, size=len(data)), data

    def fetch_document(self, reference: Reference, descriptor: Descriptor) -> bytes:
        """Fetch an index, manifest or config from the reference's repository, checked by size and digest.

        A document that the descriptor carries in its ``data`` field costs no request. Errors as :meth:`resolve`.
        """
        oci.check_descriptor(descriptor)
        what = f"{descriptor.digest} of {reference.name}"
        if descriptor.size > oci.DOCUMENT_MAX:
            raise ResourceExhausted(
                f"{what} has {descriptor.size} bytes, at most {oci.DOCUMENT_MAX} are read"
            )
        embedded = _embedded(descriptor)
        if embedded is not None:
            return embedded
        is_manifest = descriptor.media_type in oci.INDEX_TYPES | oci.MANIFEST_TYPES
        kind, accept = ("manifests", f"{descriptor.media_type}, */*") if is_manifest else ("blobs", "*/*")
        path = f"{kind}/{descriptor.digest}"
        data, _ = self._document(reference, path, what, accept)
        if len(data) != descriptor.size:
            raise DataLoss(f"{what} has {len(data)} bytes, its descriptor says {descriptor.size}")
        return _checked(data, descriptor.digest, what)

    def open_blob(self, reference: Reference, descriptor: Descriptor, *, offset: int = 0) -> BlobStream:
        """Open a blob of the reference's repository from ``offset`` (bytes) on. The reader checks its digest.

        Errors: as :meth:`resolve`; DataLoss when the registry's blob has another size than the descriptor says.
        """
        oci.check_descriptor(descriptor)
        if not 0 <= offset <= descriptor.size:
            raise InvalidArgument(
                f"offset {offset} is outside of blob {descriptor.digest} ({descriptor.size} bytes)"
            )
        what = f"blob {descriptor.digest} of {reference.name}"

        def opener(start: int, patience: Patience) -> requests.Response:
            headers = {"Accept": "*/*"}
            if start:
                headers["Range"] = f"bytes={start}-"
            response = self._request(
                "GET", reference, f"blobs/{descriptor.digest}", headers, what=what, patience=patience
            )
            if response.status_code == 416:
                discard(response)
                raise DataLoss(f"{what} ends before byte {start}, its descriptor says {descriptor.size}")
            if response.status_code not in {200, 206} or (response.status_code == 206 and not start):
                raise self._error(response, reference, what)
            return response

        transport = self._transport
        return BlobStream(descriptor, offset, opener, transport.patience(), transport.timeouts)

    def _head(self, reference: Reference, what: str) -> Descriptor | None:
        """Ask what a reference names; None if the registry does not say it in full."""
        locator = reference.digest or reference.tag or ""
        response = self._request(
            "HEAD", reference, f"manifests/{locator}", {"Accept": MANIFEST_ACCEPT}, what=what
        )
        discard(response)
        if response.status_code in {404, 405}:
            # Some registries do not answer HEAD; a GET tells the difference, and says more.
            return None
        if response.status_code != 200:
            raise self._error(response, reference, what)
        headers = response.headers
        size, media_type = (
            headers.get("Content-Length", ""),
            headers.get("Content-Type", "").partition(";")[0].strip(),
        )
        try:
            digest = parse_digest(headers.get("Docker-Content-Digest", ""))
        except (InvalidArgument, Unsupported):
            return None
        if reference.digest and digest != reference.digest:
            return None
        if media_type not in oci.INDEX_TYPES | oci.MANIFEST_TYPES or not size.isdecimal():
            return None
        return Descriptor(media_type=media_type, digest=digest, size=int(size))

    def _document(
        self, reference: Reference, path: str, what: str, accept: str, *, limit: int = oci.DOCUMENT_MAX
    ) -> tuple[bytes, Mapping[str, str]]:
        """Fetch a document and the headers of the answer; a body that breaks off is fetched again."""
        patience = self._transport.patience()
        while True:
            response = self._request("GET", reference, path, {"Accept": accept}, what=what, patience=patience)
            if response.status_code != 200:
                raise self._error(response, reference, what)
            try:
                return read_document(response, limit, what), response.headers
            except Unavailable as error:
                self._transport.check_interrupted()
                patience.spend(error)

    def _request(
        self,
        method: str,
        reference: Reference,
        path: str,
        headers: Mapping[str, str],
        *,
        what: str,
        patience: Patience | None = None,
    ) -> requests.Response:
        """Send a request about the reference's repository, with the credentials that the registry asks for."""
        origin = self._origin(reference.domain)
        asked = _Asked(method, f"/v2/{reference.path}/{path}", headers, what, patience)
        response = self._authorized(asked, reference, origin)
        if response.status_code != 400 or origin.scheme == "https" or self._plain_http:
            return response
        # This machine is asked over plain HTTP; a registry on it may have TLS all the same.
        said = refusal(response)
        if not wants_tls(said):
            raise error_of(response, what, said)
        secure = origin._replace(scheme="https", port=443 if origin.port == 80 else origin.port)
        response = self._authorized(asked, reference, secure)
        self._origins[reference.domain] = secure
        return response

    def _authorized(self, asked: _Asked, reference: Reference, origin: Origin) -> requests.Response:
        scope = f"repository:{reference.path}:pull"
        identity = self._identities.get((origin, reference.path)) or Identity(origin, None)
        authorization = self._authorizer.header(identity, scope)
        response = self._send(asked, origin, authorization)
        if response.status_code != 401 or Origin.of(response.url) != origin:
            return response
        challenges = parse_challenges(response.headers.get("WWW-Authenticate", ""))
        identity = self._identify(reference, origin)
        said = refusal(response, self._authorizer.secrets(identity))
        answer = self._authorizer.answer(identity, scope, challenges, authorization)
        if answer is None:
            error = error_of(response, asked.what, said)
            error.hint = self._login_hint(reference, identity)
            raise error
        return self._send(asked, origin, answer)

    def _send(self, asked: _Asked, origin: Origin, authorization: str | None) -> requests.Response:
        return self._transport.request(
            asked.method,
            f"{origin}{asked.path}",
            home=origin,
            headers=asked.headers,
            authorization=authorization,
            patience=asked.patience,
        )

    def _origin(self, domain: str) -> Origin:
        """Say where the registry of a domain is, and over which scheme it is asked."""
        known = self._origins.get(domain)
        if known is None:
            host = DEFAULT_REGISTRY_HOST if domain == DEFAULT_DOMAIN else domain
            scheme = "http" if self._plain_http or is_loopback(domain) else "https"
            known = self._origins.setdefault(domain, Origin.of(f"{scheme}://{host}"))
        return known

    def _identify(self, reference: Reference, origin: Origin) -> Identity:
        """Look for credentials; a helper program may be asked, so once for each repository."""
        key = (origin, reference.path)
        with self._looking_up:
            identity = self._identities.get(key)
            if identity is None:
                if isinstance(self._credentials, CredentialStore):
                    credential = self._credentials.find(reference.domain, reference.path)
                else:
                    credential = self._credentials.get(reference.domain)
                identity = self._identities[key] = Identity(origin, credential)
        return identity

    def _error(self, response: requests.Response, reference: Reference, what: str) -> LamellaError:
        origin = self._origin(reference.domain)
        identity = self._identities.get((origin, reference.path)) or Identity(origin, None)
        error = error_of(response, what, refusal(response, self._authorizer.secrets(identity)))
        if isinstance(error, Unauthenticated) or (
            isinstance(error, PermissionDenied) and identity.credential is None
        ):
            error.hint = self._login_hint(reference, identity)
        return error

    def _login_hint(self, reference: Reference, identity: Identity) -> str:
        missing = ""
        if reference.domain == DEFAULT_DOMAIN:
            # Docker Hub answers alike for what is private and what does not exist.
            missing = "The image does not exist or is private. "
        if identity.credential:
            return f"{missing}The credentials from {identity.credential.source} give no access to it."
        problems = self._credentials.problems if isinstance(self._credentials, CredentialStore) else []
        noted = f" ({'; '.join(problems)})" if problems else ""
        return f"{missing}Log in to {reference.domain}; no credentials for it were found{noted}."


class _Asked(NamedTuple):
    """One request to a registry, before it is known as whom it is sent."""

    method: str
    path: str
    headers: Mapping[str, str]
    what: str
    patience: Patience | None


def _checked(data: bytes, digest: Digest, what: str) -> bytes:
    actual = digest_of(data, split_digest(digest)[0])
    if actual != digest:
        raise DataLoss(
            f"{what} is damaged: its digest is {actual}, not {digest}",
            hint="The registry or something on the way to it changed the document.",
        )
    return data


def _digest_of_answer(reference: Reference, data: bytes, headers: Mapping[str, str], what: str) -> Digest:
    """Give the document's digest, after a check against the reference's and the one that the registry says."""
    if reference.digest:
        _checked(data, reference.digest, what)
        return reference.digest
    try:
        said = parse_digest(headers.get("Docker-Content-Digest", ""))
    except (InvalidArgument, Unsupported):
        return digest_of(data)
    _checked(data, said, what)
    return said


def _embedded(descriptor: Descriptor) -> bytes | None:
    """Give the content of a descriptor's ``data`` field (OCI image spec, descriptor.md); None if absent or wrong."""
    if not descriptor.data or len(descriptor.data) > oci.DOCUMENT_MAX * 2:
        return None
    try:
        data = base64.b64decode(descriptor.data, validate=True)
    except (binascii.Error, ValueError):
        return None
    fits = (
        len(data) == descriptor.size
        and digest_of(data, split_digest(descriptor.digest)[0]) == descriptor.digest
    )
    return data if fits else None
