"""A storage over the content store: one machine serves its images to the next, and takes theirs.

Everything is in the store, in the namespace of the client: an image is a tag, an upload is an ingest, a blob is content. So
what is pulled here can be pulled from here, what is pushed here can be run here (``images.unpack``, or the first run, makes its
snapshots), ``lamella images`` and ``content active`` show it all, and several servers may serve one store beside everything else
that works on it.

Names. The registry has a name, ``HOST:PORT``, under which its own images stand: what is pushed to repository ``team/app`` becomes
the image ``HOST:PORT/team/app:TAG``, so that a reference means the same on this machine and on the next. A path is looked for

1. as one of the registry's own: ``HOST:PORT/PATH``;
2. as docker would read it: ``ghcr.io/team/app`` is an image of ghcr.io, ``nginx`` and ``library/nginx`` are docker.io's.

What both have is the first's. A request that says whose image it means (``ns=DOMAIN`` in the query, as containerd asks a
mirror) means that alone; a domain with a port is no path, so that there is no other way to its images. Only the registry's
own names can be pushed to or deleted: nobody on the network replaces the ``docker.io/library/nginx`` of this machine.

What a repository has: all that its images lead to (:mod:`lamella.metadata.reachability`), and for a day what was pushed to it
and is part of nothing yet, or what a tag of it pointed at until then. The day is a lease with the label ``lamella.dev/pushed``.
So nothing else says what belongs to whom, an upload waits for its manifest, whoever has resolved a tag that then moves can
end his pull, and garbage collection may run at any time. Deleting by digest ends the day; what an image of the repository
still leads to cannot be deleted. A manifest that is pushed without a tag is an image ``NAME@DIGEST``, until something else of
the repository leads to it: the index whose entry it is, or the manifest that is its subject. Who refers to a manifest (a
signature) is kept with it, and is listed wherever the manifest is.

Repositories are names, not walls: whoever may push to one can learn, digest by digest, what else is in the namespace. Users who
must not see each other's images get a namespace and a server each.

A push that was answered is complete as :mod:`lamella.durability` has it; with ``Client(durable=True)`` it is on disk.
"""

from __future__ import annotations

import hashlib
import re
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from lamella import oci
from lamella.autogc import collect_if_due
from lamella.digest import Digest, parse_digest
from lamella.durability import sync_if_due
from lamella.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
)
from lamella.labels import (
    DISCARDED_LAYER,
    DISTRIBUTION_SOURCE,
    GC_REF_CONTENT,
    LAYERS_DISCARDED,
    MEDIA_TYPE,
    PUSHED,
    SUBJECT,
)
from lamella.metadata import timestamp
from lamella.metadata.reachability import is_named
from lamella.reference import DEFAULT_DOMAIN, Reference
from lamella.registry.server.received import Hashed, Received, nothing
from lamella.registry.server.storage import (
    Document,
    Pushed,
    Repository,
    StoredManifest,
    check_media_type,
    check_name,
    check_needs,
    check_push,
    check_tag,
    is_name,
    read_document,
    referring,
)

if TYPE_CHECKING:
    from lamella.client import Client
    from lamella.content import Ingest

HOUR, DAY = 3600, 86400
UPLOADS_MAX = 1000
"""Uploads in progress at a time; those that nobody goes on with are garbage after a day."""
_HASHES_MAX = 256
_SESSION = re.compile(r"[0-9a-f]{32}\Z")
_ABOVE = """
SELECT c.digest FROM gc_labels g CROSS JOIN content c ON c.number = g.owner >> 2
WHERE g.kind = :kind AND g.namespace = :namespace AND g.scope = '' AND g.named = :digest AND g.owner & 3 = 0
ORDER BY c.digest
"""
"""Content whose labels name a digest: what leads to it, or, of the other kind, what refers to it as its subject."""

_RELEASE = f"""
DELETE FROM lease_resources WHERE type = 'content' AND resource IN (SELECT value FROM json_each(:digests)) AND lease IN (
    SELECT x.number FROM leases x CROSS JOIN json_each(x.labels) l
    WHERE x.namespace = :namespace AND l.key = '{PUSHED}' AND l.value = :own)
"""  # noqa: S608 (a constant)


class StoreStorage:
    """The images of a client's namespace, as repositories of the registry ``name``.

    ``sparse``: take manifests whose config or layers are not here. InvalidArgument for a name that no image could have.
    """

    def __init__(self, client: Client, name: str, *, sparse: bool = False) -> None:
        if Reference.parse(f"{name}/x").domain != name:
            raise InvalidArgument(
                f"{name!r} is not the name of a registry", hint="It reads HOST:PORT, or a HOST with a dot."
            )
        self.client = client
        self.name = name
        self.sparse = sparse
        self._hashes: OrderedDict[str, Hashed] = OrderedDict()

    def repository(self, path: str, domain: str | None = None) -> StoreRepository:
        """Give a repository; see "Names"."""
        check_name(path)
        own = _name(f"{self.name}/{path}")
        if domain is None:
            return StoreRepository(self, path, own, list(dict.fromkeys([own, _name(path)])))
        name = _name(f"{domain}/{path}")
        return StoreRepository(self, path, own if name == own else None, [name])

    def repositories(self) -> list[str]:
        """List the repositories whose images a path can name, by that path."""
        with self.client.database.read() as db:
            rows = db.execute(
                "SELECT name FROM images WHERE namespace = ?", (self.client.config.namespace,)
            ).fetchall()
        return sorted({path for (name,) in rows if (path := self._path(name)) is not None})

    def _path(self, image: str) -> str | None:
        """Say by which path an image is found; None if by none."""
        domain, _, rest = image.partition("/")
        path = re.split("[:@]", rest, maxsplit=1)[0]
        if domain != self.name and (domain != DEFAULT_DOMAIN or _name(path) != f"{domain}/{path}"):
            path = f"{domain}/{path}"
        return path if is_name(path) else None

    def take_hash(self, ref: str) -> Hashed:
        """Give what this process has hashed of an upload as it came."""
        return self._hashes.pop(ref, nothing())

    def keep_hash(self, ref: str, hashed: Hashed) -> None:
        """Keep it for the next request of that upload."""
        self._hashes[ref] = hashed
        if len(self._hashes) > _HASHES_MAX:
            with suppress(KeyError):
                self._hashes.popitem(last=False)


class StoreRepository:
    """One repository (:class:`~lamella.registry.server.storage.Repository`): images of some names, the first of which counts.

    ``own`` is the name that it is written under; None if it is that of another registry.
    """

    def __init__(self, storage: StoreStorage, path: str, own: str | None, names: list[str]) -> None:
        self.path = path
        self._storage = storage
        self._client = storage.client
        self._content = storage.client.content
        self._namespace = storage.client.config.namespace
        self._own = own
        self._names = names

    # Blobs

    def has_blob(self, digest: Digest) -> bool:
        """Say whether the repository has a blob; a manifest of it counts."""
        return self._has(digest, self._names) and self._content.exists(digest)

    def open_blob(self, digest: Digest) -> BinaryIO:
        """Open a blob's file for reading. NotFound."""
        self._check_has(digest, "blob")
        try:
            return self._content.open(digest)
        except DataLoss as error:
            raise NotFound(error.message) from None

    def mount(self, digest: Digest, source: Repository | None) -> bool:
        """Let the repository have a blob of ``source``, or of the whole namespace for None; False if it is not there."""
        own = self._writable()
        if source is not None and not source.has_blob(digest):
            return False
        try:
            self._content.info(digest)  # in this namespace, that is
            self._hold(own, [digest])
            self._content.adopt(digest, self._source(own))
        except NotFound:
            return False
        return self._content.exists(digest)

    def delete_blob(self, digest: Digest) -> None:
        """Take a blob from the repository. NotFound; FailedPrecondition while a manifest leads to it, PermissionDenied."""
        own = self._writable()
        self._check_has(digest, "blob")
        self._check_own(own, digest)
        self._release(own, digest)

    # Uploads

    def start_upload(self) -> str:
        """Begin an upload and name it. ResourceExhausted; PermissionDenied."""
        self._writable()
        waiting = self._content.ingests(filters=["ref~=^registry/"])
        if len(waiting) >= UPLOADS_MAX:
            raise ResourceExhausted(f"{UPLOADS_MAX} uploads are in progress; try again later")
        session = uuid.uuid4().hex
        self._content.writer(self._ref(session)).close()
        return session

    def upload_size(self, session: str) -> int:
        """Say how many bytes of an upload are there. NotFound."""
        return self._content.status(self._ref(session)).offset

    def open_upload(self, session: str) -> StoreUpload:
        """Open an upload for writing. NotFound; Unavailable while another request writes to it."""
        ref = self._ref(session)
        self._content.status(ref)  # or a writer would begin it
        return StoreUpload(self, self._storage, self._content.writer(ref))

    def cancel_upload(self, session: str) -> None:
        """End an upload without a blob. NotFound; Unavailable while another request writes to it."""
        self._content.abort(self._ref(session))

    def _ref(self, session: str) -> str:
        if not _SESSION.match(session):
            raise NotFound(f"there is no upload {session[:64]!r} in {self.path}")
        return f"registry/{self._writable()}/{session}"

    def keep(self, ingest: Ingest, digest: Digest) -> None:
        """Make a finished upload a blob; its digest was computed over what was sent."""
        own = self._writable()
        self._hold(own, [digest])
        try:
            ingest.commit(digest=digest, labels=self._source(own), verified=digest)
        except AlreadyExists:
            self._content.adopt(digest, self._source(own))

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
        own = self._writable()
        client = self._client
        pushed = check_push(data, media_type, tags=tags, digest=digest)
        manifest, document = pushed
        parts = document.parts
        with client.leases.hold(expires_in=DAY) as lease:
            held = [manifest.digest, *(part.digest for part in parts.values())]
            client.leases.add_all(lease.id, [("content", each) for each in held])
            # What is not in this repository gets no label: by it, it would be.
            kept = {name: part.digest for name, part in parts.items() if self.has_blob(part.digest)}
            if not self._storage.sparse:
                check_needs(document, self.path, set(kept.values()).__contains__)
            client.content.write(
                f"document-{manifest.digest}",
                data,
                digest=manifest.digest,
                size=len(data),
                labels=self._source(own) | _labels(pushed, kept),
            )
            self._record(own, pushed, tags, kept.values())
        if client.durable:
            client.sync()
        else:
            sync_if_due(client.database, client.config)
        return pushed

    def _record(self, own: str, pushed: Pushed, tags: Sequence[str], kept: Iterable[Digest]) -> None:
        """Make a manifest that is here visible: as images, or as a part of those that it belongs to. It keeps its parts."""
        manifest, document = pushed
        target = oci.Descriptor(manifest.media_type, manifest.digest, len(manifest.data))
        with self._client.database.write() as db:
            replaced = [found[1] for tag in tags if (found := self._image(f"{own}:{tag}"))]
            self._hold(own, [manifest.digest, *replaced])
            for tag in tags:
                self._client.images.put(f"{own}:{tag}", target)
            if not tags and not self._belongs(own, manifest.digest, document):
                self._client.images.put(f"{own}@{manifest.digest}", target, {PUSHED: timestamp()})
            self._hold_no_more(own, kept)
            belonging = [*kept, *self._referring(manifest.digest)]
            db.executemany(
                "DELETE FROM images WHERE namespace = ? AND name = ? AND instr(labels, ?)",
                [(self._namespace, f"{own}@{each}", f'"{PUSHED}"') for each in belonging],
            )

    def _belongs(self, own: str, digest: Digest, document: Document) -> bool:
        """Tell whether an image leads to a manifest by another one."""
        others = self._above("content", digest)
        if document.subject is not None:
            others.append(document.subject.digest)
        return any(self._has(other, [own], leased=False) for other in others)

    def manifest(self, reference: str) -> StoredManifest:
        """Give a manifest by tag or digest. NotFound."""
        if ":" in reference:
            digest, media_type = parse_digest(reference), None
            self._check_has(digest, "manifest")
        else:
            media_type, digest = self._resolve(check_tag(reference))
        absent = NotFound(f"manifest {reference} is not in {self.path}")
        try:
            info = self._content.info(digest)
            if info.size > oci.DOCUMENT_MAX:
                raise absent
            data = self._content.read(digest)
            if media_type is None:
                media_type = info.labels.get(MEDIA_TYPE) or _media_type(data)
            check_media_type(media_type)
        except (NotFound, DataLoss, InvalidArgument):
            raise absent from None
        return StoredManifest(digest, media_type, data)

    def delete_manifest(self, reference: str) -> None:
        """Remove a tag, or by its digest a manifest with all its tags. Errors as :meth:`delete_blob`."""
        own = self._writable()
        if ":" not in reference:
            found = self._image(f"{own}:{check_tag(reference)}")
            if found is None:
                self._resolve(reference)
                raise PermissionDenied(f"{self.path}:{reference} is an image of {self._names[-1]}")
            with self._client.database.write():
                self._hold(own, [found[1]])
                self._remove_images(f"{own}:{reference}")
            return
        stored = self.manifest(reference)
        self._check_own(own, stored.digest)
        with self._client.database.write():
            self._remove_images(*(name for name, target in self._images(own) if target == stored.digest))
            if read_document(stored.data).subject is not None:
                self._content.update_labels(stored.digest, {SUBJECT: ""})
            self._release(own, stored.digest)
        collect_if_due(self._client)

    def tags(self) -> list[str]:
        """List the tags in byte order. NotFound if there is no such repository."""
        tags = {
            image.removeprefix(f"{name}:")
            for name in self._names
            for image, _ in self._images(name)
            if "@" not in image
        }
        if not tags and not any(self._exists(name) for name in self._names):
            raise NotFound(f"there is no repository {self.path}")
        return sorted(tags)

    def referrers(self, subject: Digest) -> Iterator[oci.Descriptor]:
        """Describe the manifests that name ``subject`` as theirs."""
        for digest in self._referring(subject):
            with suppress(NotFound, InvalidArgument):
                yield from referring([self.manifest(digest)], subject)

    # The store

    def _has(self, digest: str, names: Sequence[str], *, leased: bool = True) -> bool:
        """Tell whether images of some names lead to content of the namespace, or (``leased``) a push to them holds it."""
        with self._client.database.read() as db:
            label = PUSHED if leased else ""
            return is_named(db, self._namespace, digest, names, label=label, now=timestamp())

    def _check_has(self, digest: Digest, what: str) -> None:
        if self._has(digest, self._names):
            return
        message = f"{what} {digest} is not in {self.path}"
        try:
            self._content.info(digest)
        except NotFound as error:
            message += f" ({error.hint})" if error.hint else ""
        raise NotFound(message)

    def _check_own(self, own: str, digest: Digest) -> None:
        if not self._has(digest, [own]):
            raise PermissionDenied(f"{digest} is part of an image of {self._names[-1]}")

    def _writable(self) -> str:
        if self._own is None:
            raise PermissionDenied(
                f"{self._names[0]} is a name of another registry: it can be read here, not written"
            )
        return self._own

    def _hold(self, own: str, digests: Iterable[str]) -> None:
        """Let the repository have something for a day. One lease an hour; it ends a day after the last may have joined."""
        leases = self._client.leases
        key = hashlib.sha256(own.encode()).hexdigest()[:32]
        lease = f"pushed-{key}-{int(time.time()) // HOUR}"
        with suppress(AlreadyExists):
            leases.create(lease, expires_in=DAY + HOUR, labels={PUSHED: own})
        leases.add_all(lease, [("content", digest) for digest in digests])

    def _hold_no_more(self, own: str, digests: Iterable[str]) -> None:
        with self._client.database.write() as db:
            db.execute(
                _RELEASE,
                {
                    "namespace": self._namespace,
                    "own": own,
                    "digests": msgspec.json.encode([*digests]).decode(),
                },
            )

    def _release(self, own: str, digest: Digest) -> None:
        """Let the repository have something no more. FailedPrecondition if an image, or what is held otherwise, leads to it."""
        with self._client.database.write():
            self._hold_no_more(own, [digest])
            if self._has(digest, [own]):
                raise FailedPrecondition(f"{digest} is part of a manifest of {self.path}")

    def _source(self, own: str) -> dict[str, str]:
        domain, _, path = own.partition("/")
        return {DISTRIBUTION_SOURCE + domain: path}

    def _resolve(self, tag: str) -> tuple[str, Digest]:
        """Give media type and digest of what a tag points at. NotFound."""
        for name in self._names:
            if found := self._image(f"{name}:{tag}"):
                return found
        raise NotFound(f"tag {tag} is not in {self.path}")

    def _image(self, name: str) -> tuple[str, Digest] | None:
        with self._client.database.read() as db:
            found: tuple[str, Digest] | None = db.execute(
                "SELECT media_type, digest FROM images WHERE namespace = ? AND name = ?",
                (self._namespace, name),
            ).fetchone()
        return found

    def _images(self, name: str) -> list[tuple[str, Digest]]:
        """Give the images of a name, with any tag or digest, and what they point at."""
        with self._client.database.read() as db:
            return [
                row
                for separator, after in ((":", ";"), ("@", "A"))
                for row in db.execute(
                    "SELECT name, digest FROM images WHERE namespace = ? AND name > ? AND name < ?",
                    (self._namespace, name + separator, name + after),
                )
            ]

    def _remove_images(self, *names: str) -> None:
        with self._client.database.write() as db:
            db.executemany(
                "DELETE FROM images WHERE namespace = ? AND name = ?",
                [(self._namespace, name) for name in names],
            )

    def _exists(self, name: str) -> bool:
        leases = self._client.leases.list(filters=[f'labels."{PUSHED}"=="{name}"'])
        return bool(self._images(name)) or any(not lease.expired for lease in leases)

    def _referring(self, subject: Digest) -> list[Digest]:
        return self._above("<content", subject)

    def _above(self, kind: str, digest: Digest) -> list[Digest]:
        with self._client.database.read() as db:
            rows = db.execute(_ABOVE, {"kind": kind, "namespace": self._namespace, "digest": digest})
            return [row[0] for row in rows]


class StoreUpload:
    """An upload that one request writes to: an ingest, whose lock is held as long."""

    def __init__(self, repository: StoreRepository, storage: StoreStorage, ingest: Ingest) -> None:
        self._repository = repository
        self._storage = storage
        self._ingest = ingest
        self._received = Received(ingest.data_path, storage.take_hash(ingest.ref))
        self.write = self._received.write

    def __enter__(self) -> StoreUpload:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._received.close()
        if self._received.hashed is not None:
            self._storage.keep_hash(self._ingest.ref, self._received.hashed)
        self._ingest.close()

    @property
    def size(self) -> int:
        """Bytes that are there."""
        return self._received.size

    def finish(self, digest: Digest) -> None:
        """Make it a blob of the repository."""
        try:
            self._received.check(digest)
        except InvalidArgument:
            self._ingest.discard()
            raise
        self._repository.keep(self._ingest, digest)


def _name(text: str) -> str:
    """Give an image's full name without a tag: domain and path."""
    reference = Reference.parse(text)
    return f"{reference.domain}/{reference.path}"


def _labels(pushed: Pushed, kept: dict[str, Digest]) -> dict[str, str]:
    """Say what a manifest keeps, and what it is kept by."""
    manifest, document = pushed
    labels = {f"{GC_REF_CONTENT}.{name}": str(digest) for name, digest in kept.items()}
    if all(f"l.{number}" in kept for number, _ in enumerate(document.layers or [])):
        # A pull may have dropped its layers; now they are here.
        labels[LAYERS_DISCARDED] = ""
        labels |= {f"{DISCARDED_LAYER}{number}": "" for number, _ in enumerate(document.layers or [])}
    if document.subject is not None:
        labels[SUBJECT] = str(document.subject.digest)
    if document.media_type is None:
        labels[MEDIA_TYPE] = manifest.media_type
    return labels


def _media_type(data: bytes) -> str:
    """Say which media type a manifest has that does not tell and was not pushed. InvalidArgument for what is none."""
    document = read_document(data)
    if document.media_type is not None:
        return document.media_type
    if document.manifests is not None:
        return oci.OCI_INDEX
    if document.layers is not None:
        return oci.OCI_MANIFEST
    raise InvalidArgument("this is no manifest")
