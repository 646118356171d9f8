"""A storage in a folder of its own, for tests, demos and embedders that have no store.

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

import os
import shutil
import threading
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from lamella import oci
from lamella.digest import Digest, parse_digest, split_digest
from lamella.disk import translated
from lamella.errors import LamellaError, NotFound, Unavailable
from lamella.registry.server.received import Received, nothing
from lamella.registry.server.storage import (
    Pushed,
    Repository,
    StoredManifest,
    check_name,
    check_needs,
    check_push,
    check_tag,
    read_document,
    referring,
)


class FolderStorage:
    """Repositories and blobs under one root."""

    def __init__(self, root: Path, *, sparse: bool = False) -> None:
        """Use ``root``, which need not exist. ``sparse``: take manifests whose config or layers are not here."""
        self.root = root
        self.sparse = sparse
        self.uploads: dict[str, _Session] = {}
        self.lock = threading.RLock()
        self._repositories = root / "repositories"
        self._uploads_path = root / "uploads"
        shutil.rmtree(self._uploads_path, ignore_errors=True)
        for path in (self._repositories, self._uploads_path, root / "blobs/sha256"):
            path.mkdir(parents=True, exist_ok=True)

    def repository(self, path: str, domain: str | None = None) -> FolderRepository:
        """Give a repository; whose it is makes no difference here."""
        return FolderRepository(self, check_name(path), self._repositories / path)

    def repositories(self) -> list[str]:
        """List the repositories by name."""
        found = []
        for folder, names, _ in os.walk(self._repositories):
            if any(name.startswith("_") for name in names):
                found.append(os.path.relpath(folder, self._repositories))
            names[:] = [name for name in names if not name.startswith("_")]
        return sorted(found)

    def blob_path(self, digest: Digest) -> Path:
        """Say where a blob is, if it is there."""
        return self.root.joinpath("blobs", *split_digest(digest))

    def fresh_path(self) -> Path:
        """Name a file that is about to be written, and renamed once it is whole."""
        return self._uploads_path / uuid.uuid4().hex

    def write(self, path: Path, data: bytes) -> None:
        """Write a file, whole or not at all. ResourceExhausted when the disk is full."""
        with translated(f"write {path.name}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh = self.fresh_path()
            fresh.write_bytes(data)
            fresh.replace(path)

    def drop_unused(self, digest: Digest) -> None:
        """Remove a blob's bytes once no repository has it."""
        if not any(self.repository(name).has_blob(digest) for name in self.repositories()):
            self.blob_path(digest).unlink(missing_ok=True)


class FolderRepository:
    """One repository (:class:`~lamella.registry.server.storage.Repository`)."""

    def __init__(self, storage: FolderStorage, path: str, folder: Path) -> None:
        self.path = path
        self._storage = storage
        self._folder = folder

    def has_blob(self, digest: Digest) -> bool:
        """Say whether the repository has a blob; a manifest of it counts."""
        return self._link("_blobs", digest).exists() or self._link("_manifests", digest).exists()

    def open_blob(self, digest: Digest) -> BinaryIO:
        """Open a blob's file for reading. NotFound."""
        if self.has_blob(digest):
            try:
                return self._storage.blob_path(digest).open("rb")
            except FileNotFoundError:
                pass
        raise NotFound(f"blob {digest} is not in {self.path}")

    def mount(self, digest: Digest, source: Repository | None) -> bool:
        """Let the repository have a blob of ``source``, or of any for None; False if it is not there."""
        storage = self._storage
        with storage.lock:
            candidates = [source] if source is not None else map(storage.repository, storage.repositories())
            there = any(each.has_blob(digest) for each in candidates)
            if there and storage.blob_path(digest).exists():
                _touch(self._link("_blobs", digest))
                return True
            return False

    def delete_blob(self, digest: Digest) -> None:
        """Take a blob from the repository. NotFound."""
        with self._storage.lock:
            _remove(self._link("_blobs", digest), f"blob {digest} is not in {self.path}")
            self._storage.drop_unused(digest)

    # Uploads

    def start_upload(self) -> str:
        """Begin an upload and name it."""
        path = self._storage.fresh_path()
        path.touch()
        with self._storage.lock:
            self._storage.uploads[path.name] = _Session(self.path, path)
        return path.name

    def upload_size(self, session: str) -> int:
        """Say how many bytes of an upload are there. NotFound."""
        try:
            return self._session(session).path.stat().st_size
        except FileNotFoundError:
            raise NotFound(f"the upload {session} has ended") from None

    def open_upload(self, session: str) -> FolderUpload:
        """Open an upload for writing. NotFound; Unavailable while another request writes to it."""
        return FolderUpload(self._storage, self, self._session(session))

    def cancel_upload(self, session: str) -> None:
        """End an upload without a blob. NotFound; Unavailable while another request writes to it."""
        with self.open_upload(session) as upload:
            upload.discard()

    def _session(self, name: str) -> _Session:
        found = self._storage.uploads.get(name)
        if found is None or found.repository != self.path:
            raise NotFound(f"there is no upload {name[:64]!r} in {self.path}")
        return found

    def keep(self, upload: Path, digest: Digest) -> None:
        """Take a finished upload's file as a blob."""
        with self._storage.lock:
            path = self._storage.blob_path(digest)
            path.parent.mkdir(exist_ok=True)
            upload.replace(path)
            _touch(self._link("_blobs", digest))

    # Manifests and tags

    def put_manifest(
        self,
        data: bytes,
        media_type: str | None,
        *,
        tags: Sequence[str] = (),
        digest: Digest | None = None,
    ) -> Pushed:
        """Store a manifest or an index, and point tags at it. Harmless twice."""
        pushed = check_push(data, media_type, tags=tags, digest=digest)
        manifest, document = pushed
        if not self._storage.sparse:
            check_needs(document, self.path, self.has_blob)
        with self._storage.lock:
            path = self._storage.blob_path(manifest.digest)
            if not path.exists():
                self._storage.write(path, data)
            self._storage.write(self._link("_manifests", manifest.digest), manifest.media_type.encode())
            if document.subject is not None:
                _touch(self._referrer(parse_digest(document.subject.digest), manifest.digest))
            for tag in tags:
                self._storage.write(self._folder / "_tags" / tag, manifest.digest.encode())
        return pushed

    def manifest(self, reference: str) -> StoredManifest:
        """Give a manifest by tag or digest. NotFound."""
        digest = self._resolve(reference)
        try:
            media_type = self._link("_manifests", digest).read_text()
            return StoredManifest(digest, media_type, self._storage.blob_path(digest).read_bytes())
        except FileNotFoundError:
            raise NotFound(f"manifest {reference} is not in {self.path}") from None

    def _resolve(self, reference: str) -> Digest:
        """Give the digest that a tag (or a digest) names; NotFound for an unknown tag."""
        if ":" in reference:
            return parse_digest(reference)
        try:
            return parse_digest((self._folder / "_tags" / check_tag(reference)).read_text())
        except FileNotFoundError:
            raise NotFound(f"tag {reference} is not in {self.path}") from None

    def delete_manifest(self, reference: str) -> None:
        """Remove a tag, or by its digest a manifest with all its tags. NotFound."""
        with self._storage.lock:
            if ":" not in reference:
                _remove(
                    self._folder / "_tags" / check_tag(reference), f"tag {reference} is not in {self.path}"
                )
                return
            digest = parse_digest(reference)
            stored = self.manifest(digest)
            _remove(self._link("_manifests", digest), f"manifest {digest} is not in {self.path}")
            for tag in self.tags():
                path = self._folder / "_tags" / tag
                if path.read_text() == digest:
                    path.unlink()
            subject = read_document(stored.data).subject
            if subject is not None:
                self._referrer(parse_digest(subject.digest), digest).unlink(missing_ok=True)
            self._storage.drop_unused(digest)

    def tags(self) -> list[str]:
        """List the tags in byte order. NotFound if there is no such repository."""
        if not self._folder.is_dir():
            raise NotFound(f"there is no repository {self.path}")
        return sorted(_names(self._folder / "_tags"))

    def referrers(self, subject: Digest) -> Iterator[oci.Descriptor]:
        """Describe the manifests that name ``subject`` as theirs."""
        folder = self._link("_referrers", subject)
        for algorithm in sorted(_names(folder)):
            for encoded in sorted(_names(folder / algorithm)):
                try:
                    stored = self.manifest(f"{algorithm}:{encoded}")
                except NotFound:
                    continue
                yield from referring([stored], subject)

    def _link(self, kind: str, digest: Digest) -> Path:
        return self._folder.joinpath(kind, *split_digest(digest))

    def _referrer(self, subject: Digest, referrer: Digest) -> Path:
        return self._link("_referrers", subject).joinpath(*split_digest(referrer))


class _Session:
    """What the process knows of an upload."""

    def __init__(self, repository: str, path: Path) -> None:
        self.repository = repository
        self.path = path
        self.lock = threading.Lock()
        self.hashed = nothing()


class FolderUpload:
    """An upload that one request writes to."""

    def __init__(self, storage: FolderStorage, repository: FolderRepository, session: _Session) -> None:
        if not session.lock.acquire(blocking=False):
            raise Unavailable(f"another request is writing to the upload {session.path.name}")
        self._storage = storage
        self._repository = repository
        self._session = session
        try:
            self._received = Received(session.path, session.hashed)
        except LamellaError:
            session.lock.release()
            raise NotFound(f"the upload {session.path.name} has ended") from None
        self.write = self._received.write

    def __enter__(self) -> FolderUpload:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._received.close()
        self._session.hashed = self._received.hashed or nothing()
        self._session.lock.release()

    @property
    def size(self) -> int:
        """Bytes that are there."""
        return self._received.size

    def finish(self, digest: Digest) -> None:
        """Make it a blob of the repository."""
        try:
            self._received.check(digest)
            self._repository.keep(self._session.path, digest)
        finally:
            self.discard()

    def discard(self) -> None:
        """End it."""
        with self._storage.lock:
            self._storage.uploads.pop(self._session.path.name, None)
        self._session.path.unlink(missing_ok=True)


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
