"""Where a registry keeps what it serves: the interface of storages, and what all of them check.

A storage has repositories; a repository has blobs, manifests, tags that point at manifests, and uploads in progress. Two
implementations: :mod:`~lamella.registry.server.folder`, a folder of its own, and :mod:`~lamella.registry.server.store`, the
content store. Both pass what tests/integration/test_registry_server.py asks of them.

Methods may be called from several threads. They raise NotFound for what is not there, InvalidArgument for what is malformed,
and, where the storage does not allow a change, PermissionDenied or FailedPrecondition.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import BinaryIO, NamedTuple, Protocol, Self

import msgspec

from lamella import oci
from lamella.digest import Digest, digest_of, split_digest
from lamella.errors import InvalidArgument, NotFound, ResourceExhausted
from lamella.structs import Malformed, Struct, decode

NAME_MAX = 255
PIECE = 256 * 1024
"""Bytes of a body that are written at a time."""
_NAME = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*\Z")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}\Z")


_MEDIA_TYPE = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9!#$&^_.+-]{0,126}/[a-zA-Z0-9][a-zA-Z0-9!#$&^_.+-]{0,126}\Z")


class StoredManifest(msgspec.Struct, frozen=True):
    """A manifest as it was pushed."""

    digest: Digest
    media_type: str
    data: bytes


class Document(Struct, frozen=True, rename="camel"):
    """What a registry looks at in a manifest or an index."""

    media_type: str | None = None
    config: oci.Descriptor | None = None
    layers: list[oci.Descriptor] | None = None
    manifests: list[oci.Descriptor] | None = None
    subject: oci.Descriptor | None = None
    artifact_type: str | None = None
    annotations: dict[str, str] | None = None

    @property
    def parts(self) -> dict[str, oci.Descriptor]:
        """What it leads to, each under the name that containerd's gc labels have for it."""
        parts = {"config": self.config} if self.config is not None else {}
        parts |= {f"l.{number}": layer for number, layer in enumerate(self.layers or [])}
        return parts | {f"m.{number}": entry for number, entry in enumerate(self.manifests or [])}

    @property
    def needs(self) -> list[oci.Descriptor]:
        """The config and the layers, but for those that are fetched from elsewhere: they come before their manifest."""
        return [part for name, part in self.parts.items() if not name.startswith("m.") and not part.urls]

    def describe(self, stored: StoredManifest) -> oci.Descriptor:
        """Describe the manifest as a list of referrers does (distribution spec, "Listing Referrers")."""
        config_type = self.config.media_type if self.config else None
        return oci.Descriptor(
            media_type=stored.media_type,
            digest=stored.digest,
            size=len(stored.data),
            annotations=self.annotations,
            artifact_type=self.artifact_type or config_type,
        )


class Pushed(NamedTuple):
    """A manifest that somebody sends, checked."""

    manifest: StoredManifest
    document: Document


class Upload(Protocol):
    """An upload that one request writes to, as a context manager; leaving it keeps what came."""

    @property
    def size(self) -> int:
        """Bytes that are there."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def write(self, data: bytes) -> None:
        """Append."""

    def finish(self, digest: Digest) -> None:
        """Make it a blob of its repository. Its end in any case; InvalidArgument if the digest is not its own."""


class Repository(Protocol):
    """One repository. It need not exist: what is asked for is then not there, and a push makes it."""

    @property
    def path(self) -> str:
        """The name as it stands in a URL."""

    def has_blob(self, digest: Digest) -> bool:
        """Say whether the repository has a blob; a manifest of it counts."""

    def open_blob(self, digest: Digest) -> BinaryIO:
        """Open a blob's file for reading; it stays readable when it is deleted. NotFound."""

    def mount(self, digest: Digest, source: Repository | None) -> bool:
        """Let the repository have a blob of ``source``, or of any repository for None; False if it is not there."""

    def delete_blob(self, digest: Digest) -> None:
        """Take a blob from the repository. NotFound."""

    def start_upload(self) -> str:
        """Begin an upload and name it."""

    def upload_size(self, session: str) -> int:
        """Say how many bytes of an upload are there. NotFound."""

    def open_upload(self, session: str) -> Upload:
        """Open an upload for writing. NotFound; Unavailable while another request writes to it."""

    def cancel_upload(self, session: str) -> None:
        """End an upload without a blob. NotFound; Unavailable while another request writes to it."""

    def put_manifest(
        self,
        data: bytes,
        media_type: str | None,
        *,
        tags: Sequence[str] = (),
        digest: Digest | None = None,
    ) -> Pushed:
        """Store a manifest or an index, and point tags at it. Harmless twice.

        Errors: InvalidArgument for a document that is malformed or has another digest, NotFound for one whose config
        or layers are not in the repository, ResourceExhausted for one over oci.DOCUMENT_MAX.
        """

    def manifest(self, reference: str) -> StoredManifest:
        """Give a manifest by tag or digest. NotFound."""

    def delete_manifest(self, reference: str) -> None:
        """Remove a tag, or by its digest a manifest with all its tags. NotFound."""

    def tags(self) -> list[str]:
        """List the tags in byte order. NotFound if there is no such repository."""

    def referrers(self, subject: Digest) -> Iterable[oci.Descriptor]:
        """Describe the manifests that name ``subject`` as theirs; there need not be such a manifest."""


class Storage(Protocol):
    """All repositories of a registry."""

    def repository(self, path: str, domain: str | None = None) -> Repository:
        """Give a repository; InvalidArgument for a malformed name.

        ``domain`` is whose repository of that name is meant where the registry is asked as a mirror of others (containerd
        says it in the query, as ``ns``).
        """

    def repositories(self) -> list[str]:
        """List the repositories in byte order."""


def put_blob(repository: Repository, data: bytes) -> Digest:
    """Store bytes as a blob of a repository. Harmless twice."""
    digest = digest_of(data)
    with repository.open_upload(repository.start_upload()) as upload:
        upload.write(data)
        upload.finish(digest)
    return digest


def check_name(name: str) -> str:
    """Return ``name`` if it may name a repository; InvalidArgument otherwise."""
    if not is_name(name):
        raise InvalidArgument(f"{name[:100]!r} is not a repository name")
    return name


def is_name(name: str) -> bool:
    """Say whether this may be the name of a repository (distribution spec, "Pulling manifests")."""
    return len(name) <= NAME_MAX and bool(_NAME.match(name))


def check_tag(tag: str) -> str:
    """Return ``tag`` if it may be one; InvalidArgument otherwise."""
    if not _TAG.match(tag):
        raise InvalidArgument(f"{tag[:100]!r} is not a tag")
    return tag


def check_push(data: bytes, declared: str | None, *, tags: Iterable[str], digest: Digest | None) -> Pushed:
    """Read a manifest that is pushed. Errors as :meth:`Repository.put_manifest`, but for what it needs."""
    for tag in tags:
        check_tag(tag)
    if len(data) > oci.DOCUMENT_MAX:
        raise ResourceExhausted(f"the manifest has {len(data)} bytes, at most {oci.DOCUMENT_MAX} are taken")
    document = read_document(data)
    media_type = _agreed_type(document, declared)
    if document.manifests is not None and (document.layers is not None or document.config is not None):
        raise InvalidArgument("the document is a manifest and an index at once")
    for part in [*document.parts.values(), *filter(None, [document.subject])]:
        oci.check_descriptor(part)
    actual = digest_of(data, split_digest(digest)[0] if digest else "sha256")
    if digest is not None and digest != actual:
        raise InvalidArgument(f"the manifest has digest {actual}, not {digest}")
    return Pushed(StoredManifest(actual, media_type, data), document)


def check_needs(document: Document, repository: str, is_there: Callable[[Digest], bool]) -> None:
    """Raise NotFound for a manifest whose config or a layer of which is not in its repository."""
    for part in document.needs:
        if not is_there(part.digest):
            raise NotFound(f"the manifest needs blob {part.digest}, which is not in {repository}")


def read_document(data: bytes) -> Document:
    """Read what a registry looks at. InvalidArgument."""
    try:
        return decode(data, Document)
    except Malformed as error:
        raise InvalidArgument(f"the manifest is malformed: {error}") from None


def referring(manifests: Iterable[StoredManifest], subject: Digest) -> Iterator[oci.Descriptor]:
    """Describe those manifests whose subject this is."""
    for stored in manifests:
        document = read_document(stored.data)
        if document.subject is not None and document.subject.digest == subject:
            yield document.describe(stored)


def _agreed_type(document: Document, declared: str | None) -> str:
    """Say which media type a document has; InvalidArgument if it and its sender disagree or say nothing."""
    declared = (declared or "").partition(";")[0].strip() or None
    if document.media_type and declared and document.media_type != declared:
        raise InvalidArgument(
            f"the manifest calls itself {document.media_type!r} and was sent as {declared!r}"
        )
    media_type = document.media_type or declared
    if media_type is None:
        raise InvalidArgument("neither the manifest nor its sender says which media type it has")
    return check_media_type(media_type)


def check_media_type(media_type: str) -> str:
    """Return what may be a media type (RFC 6838, 4.2): it goes into a header of answers. InvalidArgument otherwise."""
    if not _MEDIA_TYPE.match(media_type):
        raise InvalidArgument(f"{media_type[:100]!r} is not a media type")
    return media_type
