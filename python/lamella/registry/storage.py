"""What the registry server keeps on disk.

::

    <root>/blobs/<alg>/<hex>                            content by digest, as in an OCI layout
    <root>/uploads/<session>                            uploads in progress; emptied when a server starts
    <root>/repositories/<name>/_blobs/<alg>/<hex>       an empty file: the repository has this blob
    <root>/repositories/<name>/_manifests/<alg>/<hex>   the manifest's media type; its bytes are a blob
    <root>/repositories/<name>/_tags/<tag>              the digest that the tag points at
    <root>/repositories/<name>/_referrers/<alg>/<hex>/<alg>/<hex>   an empty file: the second refers to the first

No component of a repository's name starts with an underscore, so the folders cannot clash. Files appear by rename. One
lock of the process orders changes; readers take none. One server process at a time uses a root.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import threading
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec

from lamella import oci
from lamella.digest import Digest, digest_of, parse_digest, split_digest
from lamella.errors import (
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)

NAME_MAX = 255
_NAME = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*\Z")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}\Z")
PIECE = 1024 * 1024


class StoredManifest(msgspec.Struct, frozen=True):
    """A manifest as it was pushed."""

    digest: Digest
    media_type: str
    data: bytes


class PushedDocument(msgspec.Struct, frozen=True, rename="camel"):
    """What a registry looks at in a manifest or an index."""

    media_type: str | None = None
    config: oci.Descriptor | None = None
    layers: list[oci.Descriptor] | None = None
    manifests: list[oci.Descriptor] | None = None
    subject: oci.Descriptor | None = None
    artifact_type: str | None = None
    annotations: dict[str, str] | None = None


_document = msgspec.json.Decoder(PushedDocument)


class Upload:
    """One upload in progress. ``size`` bytes are there; they are hashed as they come."""

    def __init__(self, session: str, repository: str, path: Path) -> None:
        self.session = session
        self.repository = repository
        self.path = path
        self.size = 0
        self.lock = threading.Lock()
        self._sha256 = hashlib.sha256()

    def __repr__(self) -> str:
        return f"Upload({self.session}, {self.repository}, {self.size} bytes)"

    def write(self, data: bytes | memoryview, stream: BinaryIO) -> None:
        """Append to the file opened as ``stream``."""
        stream.write(data)
        self._sha256.update(data)
        self.size += len(data)

    def digest(self, algorithm: str) -> Digest:
        """Give the digest of what is there; other algorithms than sha256 read it again."""
        if algorithm == "sha256":
            return Digest(f"sha256:{self._sha256.hexdigest()}")
        with self.path.open("rb") as stream:
            return Digest(f"{algorithm}:{hashlib.file_digest(stream, algorithm).hexdigest()}")


class Storage:
    """Repositories and blobs under one root. Safe to use from several threads."""

    def __init__(self, root: Path, *, sparse: bool = False) -> None:
        """Use ``root``, which need not exist. ``sparse``: take manifests whose config or layers are not here."""
        self.root = root
        self._sparse = sparse
        self._repositories = root / "repositories"
        self._uploads_path = root / "uploads"
        self._lock = threading.RLock()
        self._uploads: dict[str, Upload] = {}
        shutil.rmtree(self._uploads_path, ignore_errors=True)
        for path in (self._repositories, self._uploads_path, root / "blobs/sha256"):
            path.mkdir(parents=True, exist_ok=True)

    # Blobs

    def blob_path(self, digest: Digest) -> Path:
        """Say where a blob is, if it is there."""
        algorithm, encoded = split_digest(digest)
        return self.root / "blobs" / algorithm / encoded

    def has_blob(self, repository: str, digest: Digest) -> bool:
        """Say whether the repository has a blob; a manifest of it counts."""
        return (
            self._link(repository, "_blobs", digest).exists()
            or self._link(repository, "_manifests", digest).exists()
        )

    def open_blob(self, repository: str, digest: Digest) -> BinaryIO:
        """Open a blob for reading; NotFound if the repository does not have it."""
        if self.has_blob(repository, digest):
            try:
                return self.blob_path(digest).open("rb")
            except FileNotFoundError:
                pass
        raise NotFound(f"blob {digest} is not in {repository}")

    def put_blob(self, repository: str, data: bytes, digest: Digest | None = None) -> Digest:
        """Store bytes as a blob of the repository. Harmless twice."""
        upload = self.start_upload(repository)
        with upload.lock, upload.path.open("ab") as stream:
            upload.write(data, stream)
        return self.finish_upload(upload, digest or digest_of(data))

    def mount(self, repository: str, digest: Digest, source: str | None) -> bool:
        """Let the repository have a blob of ``source``, or of any repository for None; False if it is not there."""
        check_name(repository)
        with self._lock:
            candidates = self.repositories() if source is None else [source]
            if (
                not any(self.has_blob(name, digest) for name in candidates)
                or not self.blob_path(digest).exists()
            ):
                return False
            _touch(self._link(repository, "_blobs", digest))
            return True

    def delete_blob(self, repository: str, digest: Digest) -> None:
        """Take a blob from a repository; NotFound if it does not have it."""
        with self._lock:
            _remove(self._link(repository, "_blobs", digest), f"blob {digest} is not in {repository}")
            self._drop_unused(digest)

    # Uploads

    def start_upload(self, repository: str) -> Upload:
        """Begin an upload into a repository."""
        check_name(repository)
        session = uuid.uuid4().hex
        upload = Upload(session, repository, self._uploads_path / session)
        upload.path.touch()
        with self._lock:
            self._uploads[session] = upload
        return upload

    def upload(self, repository: str, session: str) -> Upload:
        """Give an upload in progress; NotFound if there is none."""
        found = self._uploads.get(session)
        if found is None or found.repository != repository:
            raise NotFound(f"there is no upload {session[:64]!r} in {repository}")
        return found

    def finish_upload(self, upload: Upload, digest: Digest) -> Digest:
        """Make an upload a blob of its repository. Its end in any case; InvalidArgument if the digest is not its own."""
        algorithm, _ = split_digest(digest)
        actual = upload.digest(algorithm)
        if actual != digest:
            self.cancel_upload(upload)
            raise InvalidArgument(f"the content has digest {actual}, not {digest}")
        with self._lock:
            if self._uploads.pop(upload.session, None) is None:
                raise NotFound(f"upload {upload.session} has ended")
            path = self.blob_path(digest)
            path.parent.mkdir(exist_ok=True)
            upload.path.replace(path)
            _touch(self._link(upload.repository, "_blobs", digest))
        return digest

    def cancel_upload(self, upload: Upload) -> None:
        """End an upload without a blob. Harmless twice."""
        with self._lock:
            self._uploads.pop(upload.session, None)
            upload.path.unlink(missing_ok=True)

    # Manifests and tags

    def put_manifest(
        self,
        repository: str,
        data: bytes,
        media_type: str | None,
        *,
        tags: Sequence[str] = (),
        digest: Digest | None = None,
    ) -> tuple[Digest, PushedDocument]:
        """Store a manifest or an index, and point tags at it. Harmless twice.

        Errors: InvalidArgument for a document that is malformed or has another digest, NotFound for one whose config
        or layers are not in the repository, ResourceExhausted for one over oci.DOCUMENT_MAX.
        """
        check_name(repository)
        for tag in tags:
            check_tag(tag)
        if len(data) > oci.DOCUMENT_MAX:
            raise ResourceExhausted(
                f"the manifest has {len(data)} bytes, at most {oci.DOCUMENT_MAX} are taken"
            )
        try:
            document = _document.decode(data)
        except msgspec.MsgspecError as error:
            raise InvalidArgument(f"the manifest is malformed: {error}") from None
        media_type = _agreed_type(document, media_type)
        actual = digest_of(data, split_digest(digest)[0] if digest else "sha256")
        if digest is not None and digest != actual:
            raise InvalidArgument(f"the manifest has digest {actual}, not {digest}")
        for needed in [document.config, *(document.layers or [])]:
            if needed is None or needed.urls or self._sparse:
                continue
            if not self.has_blob(repository, parse_digest(needed.digest)):
                raise NotFound(f"the manifest needs blob {needed.digest}, which is not in {repository}")
        with self._lock:
            path = self.blob_path(actual)
            if not path.exists():
                path.parent.mkdir(exist_ok=True)
                self._write(path, data)
            self._write(self._link(repository, "_manifests", actual), media_type.encode())
            if document.subject is not None:
                _touch(self._referrer(repository, parse_digest(document.subject.digest), actual))
            for tag in tags:
                self._write(self._tags(repository) / tag, actual.encode())
        return actual, document

    def manifest(self, repository: str, reference: str) -> StoredManifest:
        """Give a manifest by tag or digest; NotFound if it is not there."""
        digest = self.resolve(repository, reference)
        try:
            media_type = self._link(repository, "_manifests", digest).read_text()
            return StoredManifest(digest, media_type, self.blob_path(digest).read_bytes())
        except FileNotFoundError:
            raise NotFound(f"manifest {reference} is not in {repository}") from None

    def resolve(self, repository: str, reference: str) -> Digest:
        """Give the digest that a tag (or a digest) names; NotFound for an unknown tag."""
        if ":" in reference:
            return parse_digest(reference)
        try:
            return parse_digest((self._tags(repository) / check_tag(reference)).read_text())
        except FileNotFoundError:
            raise NotFound(f"tag {reference} is not in {repository}") from None

    def delete_manifest(self, repository: str, reference: str) -> None:
        """Remove a tag, or a manifest with all its tags; NotFound if it is not there."""
        with self._lock:
            if ":" not in reference:
                _remove(
                    self._tags(repository) / check_tag(reference), f"tag {reference} is not in {repository}"
                )
                return
            digest = parse_digest(reference)
            stored = self.manifest(repository, digest)
            _remove(self._link(repository, "_manifests", digest), f"manifest {digest} is not in {repository}")
            for tag in self.tags(repository):
                path = self._tags(repository) / tag
                if path.read_text() == digest:
                    path.unlink()
            subject = _document.decode(stored.data).subject
            if subject is not None:
                self._referrer(repository, parse_digest(subject.digest), digest).unlink(missing_ok=True)
            self._drop_unused(digest)

    def tags(self, repository: str) -> list[str]:
        """List the tags of a repository in byte order; NotFound if there is no such repository."""
        if not (self._repositories / check_name(repository)).is_dir():
            raise NotFound(f"there is no repository {repository}")
        return sorted(_names(self._tags(repository)))

    def repositories(self) -> list[str]:
        """List the repositories by name."""
        found = []
        for folder, names, _ in os.walk(self._repositories):
            if any(name.startswith("_") for name in names):
                found.append(os.path.relpath(folder, self._repositories))
            names[:] = [name for name in names if not name.startswith("_")]
        return sorted(found)

    def referrers(self, repository: str, subject: Digest) -> Iterator[oci.Descriptor]:
        """Describe the manifests that name ``subject`` as theirs (distribution spec, "Listing Referrers")."""
        check_name(repository)
        folder = self._referrer(repository, subject, None)
        for algorithm in _names(folder):
            for encoded in sorted(_names(folder / algorithm)):
                try:
                    stored = self.manifest(repository, f"{algorithm}:{encoded}")
                except NotFound:
                    continue
                document = _document.decode(stored.data)
                config_type = document.config.media_type if document.config else None
                yield oci.Descriptor(
                    media_type=stored.media_type,
                    digest=stored.digest,
                    size=len(stored.data),
                    annotations=document.annotations,
                    artifact_type=document.artifact_type or config_type,
                )

    def _link(self, repository: str, kind: str, digest: Digest) -> Path:
        algorithm, encoded = split_digest(digest)
        return self._repositories / check_name(repository) / kind / algorithm / encoded

    def _tags(self, repository: str) -> Path:
        return self._repositories / check_name(repository) / "_tags"

    def _referrer(self, repository: str, subject: Digest, referrer: Digest | None) -> Path:
        folder = self._link(repository, "_referrers", subject)
        return folder.joinpath(*split_digest(referrer)) if referrer else folder

    def _drop_unused(self, digest: Digest) -> None:
        """Remove a blob's bytes once no repository has it."""
        if not any(self.has_blob(repository, digest) for repository in self.repositories()):
            self.blob_path(digest).unlink(missing_ok=True)

    def _write(self, path: Path, data: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._uploads_path / uuid.uuid4().hex
        temporary.write_bytes(data)
        temporary.replace(path)


def check_name(name: str) -> str:
    """Return ``name`` if it may name a repository; InvalidArgument otherwise."""
    if len(name) > NAME_MAX or not _NAME.match(name):
        raise InvalidArgument(f"{name[:100]!r} is not a repository name")
    return name


def check_tag(tag: str) -> str:
    """Return ``tag`` if it may be one; InvalidArgument otherwise."""
    if not _TAG.match(tag):
        raise InvalidArgument(f"{tag[:100]!r} is not a tag")
    return tag


def _agreed_type(document: PushedDocument, declared: str | None) -> str:
    """Say which media type a document has; InvalidArgument if it and its sender disagree or say nothing."""
    declared = (declared or "").partition(";")[0].strip() or None
    if document.media_type and declared and document.media_type != declared:
        raise InvalidArgument(
            f"the manifest calls itself {document.media_type!r} and was sent as {declared!r}"
        )
    media_type = document.media_type or declared
    if media_type is None:
        raise InvalidArgument("neither the manifest nor its sender says which media type it has")
    if document.manifests is not None and (document.layers is not None or document.config is not None):
        raise InvalidArgument("the document is a manifest and an index at once")
    return media_type


def _touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def _remove(path: Path, otherwise: str) -> None:
    try:
        path.unlink()
    except FileNotFoundError:
        raise NotFound(otherwise) from None


def _names(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in folder.iterdir()]
    except FileNotFoundError:
        return []
