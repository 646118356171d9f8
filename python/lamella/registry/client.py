"""What the OCI distribution spec offers: manifests, configs and blobs of one or many registries, pulled and pushed.

Importing this module loads requests (97 ms); only network work does.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import urlencode

import requests

from lamella import oci
from lamella.digest import Digest, digest_of, parse_digest, split_digest
from lamella.errors import (
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
    Unsupported,
)
from lamella.oci import Descriptor
from lamella.reference import Reference
from lamella.registry.auth import repository_scope
from lamella.registry.blob import BlobStream
from lamella.registry.config import RegistryConfig
from lamella.registry.exchange import Exchange
from lamella.registry.failures import discard
from lamella.registry.foreign import NOWHERE, Addresses
from lamella.registry.patience import Patience
from lamella.registry.publishing import Publisher
from lamella.registry.referrers import Referrers, next_query
from lamella.registry.stretch import Way
from lamella.registry.upload import Upload, has_blob
from lamella.structs import Malformed, Struct, decode
from lamella.typings import TYPE_CHECKING, overload

if TYPE_CHECKING:
    from lamella.transfer.endpoints import BlobReader

MANIFEST_ACCEPT = ", ".join([*sorted(oci.INDEX_TYPES), *sorted(oci.MANIFEST_TYPES), "*/*"])
PAGE = 1000
NAMES_MAX = 1_000_000
"""Tags of a repository, or repositories of a registry, that are listed at most."""

_TAG_OR_DIGEST = "Leave the tag out to take what the digest names, or the digest to take what the tag names."

_Known = Callable[[Digest], bool]


class RegistryClient:
    """Talks to the registries that references name. Safe to use from several threads; a context manager."""

    def __init__(self, config: RegistryConfig | None = None) -> None:
        self._exchange = Exchange(config or RegistryConfig())
        self._referrers = Referrers(self._exchange)
        self._publisher = Publisher(self._exchange)

    def __enter__(self) -> RegistryClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"RegistryClient({self._exchange})"

    def close(self) -> None:
        """Close all connections. What other threads still do ends with Cancelled. Harmless twice."""
        self._exchange.transport.close()

    def interrupt(self) -> None:
        """End all requests, streams and waits of this client with Cancelled, for good; from any thread."""
        self._exchange.transport.interrupt()

    @overload
    def resolve(self, reference: Reference) -> tuple[Descriptor, bytes]: ...
    @overload
    def resolve(
        self, reference: Reference, *, known: _Known | None = None
    ) -> tuple[Descriptor, bytes | None]: ...
    def resolve(
        self, reference: Reference, *, known: _Known | None = None
    ) -> tuple[Descriptor, bytes | None]:
        """Give the descriptor that a reference names and the document it points at, an index or a manifest.

        One request. With ``known``, which says whether a digest is here already, that request is a HEAD (which
        registries do not count against a pull limit), the document is None if the answer is known, and a GET follows
        if it is not. The document is checked against a reference's digest. If the reference has a tag too, that is what the
        registry is asked for, and it has to point at the digest: docker would not look at the tag.

        Errors: NotFound, Unauthenticated, PermissionDenied, Unavailable; FailedPrecondition when tag and digest do not fit;
        Unsupported for what is no image; DataLoss when digest and document do not fit; ResourceExhausted for a
        document over oci.DOCUMENT_MAX.
        """
        what = f"image {reference.familiar}"
        locator = reference.tag or reference.digest or ""
        if known is not None:
            found = self._head(reference, locator, what)
            if found is not None and known(found.digest):
                return found, None

        digest, data, declared = self._named(reference, what)
        media_type = oci.document_type(data, declared)
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

        def check(data: bytes, _: Mapping[str, str]) -> None:
            if len(data) != descriptor.size:
                raise DataLoss(f"{what} has {len(data)} bytes, its descriptor says {descriptor.size}")
            _checked(data, descriptor.digest, what)

        return self._exchange.document(reference, path, what, accept, check=check)[0]

    def open_blob(
        self, reference: Reference, descriptor: Descriptor, *, offset: int = 0
    ) -> BlobStream | Embedded:
        """Open a blob of the reference's repository from ``offset`` (bytes) on. The reader checks its digest.

        One that the descriptor carries in its ``data`` field costs no request.

        Errors: as :meth:`resolve`; DataLoss when the registry's blob has another size than the descriptor says.
        """
        oci.check_descriptor(descriptor)
        if not 0 <= offset <= descriptor.size:
            raise InvalidArgument(
                f"offset {offset} is outside of blob {descriptor.digest} ({descriptor.size} bytes)"
            )
        embedded = _embedded(descriptor)
        if embedded is not None:
            return Embedded(embedded, offset)
        what = f"blob {descriptor.digest} of {reference.name}"

        def opener(start: int, end: int, patience: Patience) -> requests.Response:
            headers = {"Accept": "*/*"}
            ranged = start > 0 or end < descriptor.size
            if ranged:
                headers["Range"] = f"bytes={start}-{end - 1 if end < descriptor.size else ''}"
            response = self._exchange.request(
                "GET",
                reference,
                f"blobs/{descriptor.digest}",
                headers,
                what=what,
                patience=patience,
                expected={200, 206, 416} if ranged else {200},
            )
            if response.status_code == 416:
                discard(response)
                raise DataLoss(f"{what} ends before byte {start}, its descriptor says {descriptor.size}")
            return response

        way = Way(self._exchange.transport, opener, self._exchange.pass_over)
        return BlobStream(descriptor, offset, way)

    def open_foreign(
        self, reference: Reference | None, descriptor: Descriptor, *, offset: int = 0
    ) -> BlobStream:
        """Open a foreign layer of an image of the reference's repository, from the addresses that its descriptor names.

        Without a reference the image came from no registry, so that nothing private is next to one.
        See :mod:`lamella.registry.foreign` for what goes there, and where it may lead. The reader checks its digest.
        Errors: NotFound, PermissionDenied, Unauthenticated, Unavailable, DataLoss, each of the last address that was tried.
        """
        oci.check_descriptor(descriptor)
        exchange = self._exchange
        home = NOWHERE
        if reference is not None:
            home = exchange.hosts.serving(reference.domain, reference.path, by_digest=True)[-1].home
        addresses = Addresses(exchange.transport, home, descriptor, plain_http=exchange.plain_http)
        return BlobStream(descriptor, offset, Way(exchange.transport, addresses.open_at, addresses.pass_over))

    def referrers(
        self, reference: Reference, digest: Digest, *, artifact_type: str | None = None
    ) -> list[Descriptor]:
        """Describe the manifests of the reference's repository whose ``subject`` is ``digest``; none is no error.

        With ``artifact_type`` those of that type. It is what the registry says: whether a manifest refers to ``digest``, only its
        own ``subject`` shows. Errors: as :meth:`resolve`; InvalidArgument for a malformed list, ResourceExhausted for a long one.
        """
        return self._referrers.list(reference, digest, artifact_type)

    def tags(self, reference: Reference) -> list[str]:
        """List the tags of the reference's repository, in the registry's order. Errors: as :meth:`resolve`."""
        return self._pages(reference, "tags/list", f"repository {reference.name}")

    def repositories(self, domain: str) -> list[str]:
        """List the repositories of a registry (distribution project, "Listing Repositories"), in the registry's order.

        Errors: as :meth:`resolve`; Unsupported where the registry does not tell, as most that serve the public do not.
        """
        registry, what = Reference(domain=domain, path=""), f"the repositories of {domain}"
        try:
            return self._pages(registry, "_catalog", what, ("registry:catalog:*",))
        except (NotFound, Unsupported) as error:
            raise Unsupported(
                f"{domain} does not list its repositories: {error.message}",
                hint="Look at its web page, or name a repository: lamella registry tags REPOSITORY.",
            ) from None

    def _pages(
        self, reference: Reference, path: str, what: str, scopes: tuple[str, ...] | None = None
    ) -> list[str]:
        """Read a list of names, page by page."""
        query, names, seen = urlencode({"n": PAGE}), list[str](), set[str]()
        while query not in seen and len(names) <= NAMES_MAX:
            seen.add(query)
            data, headers = self._exchange.document(
                reference, f"{path}?{query}", what, "application/json", scopes=scopes
            )
            try:
                page = decode(data, _Page)
            except Malformed:
                raise InvalidArgument(f"{what}: the list is malformed") from None
            names += page.tags or page.repositories or []
            following = next_query(headers)
            if following is None:
                return names
            query = following
        raise Unavailable(f"{what}: the pages of the list do not come to an end")

    # The pushing side

    def has_blob(self, reference: Reference, descriptor: Descriptor) -> bool:
        """Say whether the reference's repository has a blob. Errors: as :meth:`resolve`."""
        return has_blob(self._exchange, reference, descriptor)

    def has_manifest(self, reference: Reference, descriptor: Descriptor) -> bool:
        """Say whether the reference's repository has a manifest or index. Errors: as :meth:`resolve`."""
        return self._publisher.has(reference, descriptor)

    def put_blob(
        self,
        reference: Reference,
        descriptor: Descriptor,
        open_at: Callable[[int], BlobReader],
        sent: Callable[[int], None] = lambda _: None,
        *,
        mount: str | None = None,
    ) -> str:
        """Send a blob to the reference's repository, or mount it there from another one of the registry.

        See :class:`lamella.registry.upload.Upload`, also for the errors. Twice is harmless.
        """
        oci.check_descriptor(descriptor)
        return Upload(self._exchange, reference, descriptor, open_at, sent, mount=mount).run()

    def put_manifest(
        self, reference: Reference, descriptor: Descriptor, data: bytes, tags: Sequence[str] = ()
    ) -> None:
        """Store a manifest or index in the reference's repository, and let all ``tags`` point at it.

        One with a ``subject`` is listed among that one's referrers. Errors: as :meth:`resolve`, and NotFound for one that
        leads to what is not there, InvalidArgument for one that the registry does not take, Unsupported (read-only),
        ResourceExhausted (a quota), FailedPrecondition (a tag that must not move), DataLoss when the registry stored
        something else. Twice is harmless.
        """
        self._publisher.put(reference, descriptor, data, tags)

    def tag(self, reference: Reference, tags: Sequence[str]) -> Descriptor:
        """Let all ``tags`` of the reference's repository point at what it names, whatever they pointed at; give that.

        It is read where it is written to, and never from a mirror, which may be behind. Errors: as :meth:`resolve` and
        :meth:`put_manifest`. Twice is harmless.
        """
        digest, data, declared = self._named(reference, f"image {reference.familiar}", writing=True)
        found = Descriptor(media_type=oci.document_type(data, declared), digest=digest, size=len(data))
        self.put_manifest(reference, found, data, tags)
        return found

    def delete(self, reference: Reference, *, manifest: bool = False) -> None:
        """Remove a tag or, by digest, a manifest with all its tags; from the lists of referrers, too.

        ``manifest``: by a tag, too, the manifest that it points at. A tag beside a digest has to point at that. Errors: as
        :meth:`resolve`; Unsupported where the registry does not allow it.
        """
        if reference.tag and (reference.digest or manifest):
            digest = self._named(reference, f"image {reference.familiar}", writing=True)[0]
            reference = Reference(domain=reference.domain, path=reference.path, digest=digest)
        self._publisher.delete(reference)

    def _named(
        self, reference: Reference, what: str, *, writing: bool = False
    ) -> tuple[Digest, bytes, str | None]:
        """Fetch the document that a reference names: its digest, checked, itself, and the media type that it came with."""
        scopes = (repository_scope(reference.path, "pull", "push"),) if writing else None

        def check(data: bytes, headers: Mapping[str, str]) -> Digest:
            return _digest_of_answer(reference, data, headers, what)

        path = f"manifests/{reference.tag or reference.digest or ''}"
        try:
            data, headers = self._exchange.document(
                reference, path, what, MANIFEST_ACCEPT, scopes=scopes, check=check
            )
        except NotFound as error:
            if reference.tag and reference.digest:
                error.hint = _TAG_OR_DIGEST
            raise
        return check(data, headers), data, headers.get("Content-Type")

    def _head(self, reference: Reference, locator: str, what: str) -> Descriptor | None:
        """Ask what a reference names; None if the registry does not say it in full."""
        response = self._exchange.request(
            "HEAD",
            reference,
            f"manifests/{locator}",
            {"Accept": MANIFEST_ACCEPT},
            what=what,
            expected={200, 404, 405},
        )
        discard(response)
        if response.status_code != 200:
            # Some registries do not answer HEAD; a GET tells the difference, and says more.
            return None
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
            return None  # of another algorithm, or from a mirror that is behind
        if media_type not in oci.INDEX_TYPES | oci.MANIFEST_TYPES or not size.isdecimal():
            return None
        return Descriptor(media_type=media_type, digest=digest, size=int(size))


class _Page(Struct, frozen=True):
    tags: list[str] | None = None
    repositories: list[str] | None = None


class Embedded:
    """A small blob out of its descriptor, read as :class:`lamella.registry.blob.BlobStream` is."""

    def __init__(self, data: bytes, offset: int) -> None:
        self._rest = memoryview(data)[offset:]

    def __enter__(self) -> Embedded:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def readinto(self, buffer: bytearray | memoryview) -> int:
        """Fill the buffer; 0 at the end."""
        count = min(len(buffer), len(self._rest))
        memoryview(buffer)[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def interrupt(self) -> None:
        """Do nothing: there is nobody to wait for."""

    def close(self) -> None:
        """Do nothing."""


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
    if reference.digest and not reference.tag:
        _checked(data, reference.digest, what)
        return reference.digest
    try:
        said = parse_digest(headers.get("Docker-Content-Digest", ""))
    except (InvalidArgument, Unsupported):
        said = digest_of(data)
    _checked(data, said, what)
    if reference.digest:
        actual = digest_of(data, split_digest(reference.digest)[0])
        if actual != reference.digest:
            raise _moved(reference, actual, what)
        return reference.digest
    return said


def _moved(reference: Reference, actual: Digest, what: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"{what}: the tag {reference.tag} points at {actual}, not at {reference.digest}", hint=_TAG_OR_DIGEST
    )


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
