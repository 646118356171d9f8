"""Copying what a descriptor leads to, from a source to a destination: what push, copy, export and import share.

An index leads to manifests, a manifest to its config and layers. Documents are read first, from the top; then blobs go over, in
parallel, the largest first; then the documents, children before parents, so that nothing at the destination ever
refers to what is not there; a name comes last. What the destination has already is not sent, and not asked for at the source.

A destination may say that it has what it has lost a moment ago, or only remembers (registries cache). It refuses the document
that needs it, then, and gets what that leads to once more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import msgspec

from lamella import oci, platforms
from lamella.digest import Digest
from lamella.errors import InvalidArgument, NotFound, ResourceExhausted
from lamella.reference import Reference
from lamella.transfer.endpoints import BlobReader, Destination, Source
from lamella.transfer.progress import Phase, Progress, Reporter
from lamella.transfer.workers import PARALLEL, Workers

DOCUMENTS_MAX = 10_000
"""Documents that one copy takes at most; more than any image has, and an end for one that never ends."""
DOCUMENTS_SIZE_MAX = 64 * 1024 * 1024
"""Bytes of these together: they are held until the blobs are over, with what they lead to (260 MB of memory at the worst)."""

Foreign = bool | Callable[[oci.Descriptor], bool]
"""Whether foreign layers come along: all, none, or what is said of each."""
Choice = Callable[[oci.Index], Sequence[oci.Descriptor]]
"""Says which entries of an index are copied along with it."""

_PHASES: dict[str, Phase] = {"sent": "done", "mounted": "mounted", "exists": "exists"}
_DOCUMENT_TYPES = oci.INDEX_TYPES | oci.MANIFEST_TYPES


class Copied(msgspec.Struct, frozen=True, kw_only=True):
    """What a copy did: the root of what is at the destination now, and how many blobs were ``sent``, ``mounted``, ``exists``."""

    descriptor: oci.Descriptor
    documents: int
    blobs: dict[str, int]
    sent_bytes: int


class _Document(NamedTuple):
    descriptor: oci.Descriptor
    data: bytes


class Copy:
    """One copy from a source to a destination. Use it once.

    ``choose``: which entries of an index to follow; all without it. ``referrers``: bring along what refers to what is copied
    (signatures, attestations). ``layers``: whether manifests' layers are copied; else what is copied says but what there is.
    ``foreign``: which layers come along that their authors forbid to distribute.
    ``phase``: what progress calls it.
    """

    def __init__(
        self,
        source: Source,
        destination: Destination,
        reporter: Reporter,
        *,
        what: str = "the copy",
        choose: Choice | None = None,
        referrers: bool = False,
        layers: bool = True,
        foreign: Foreign = False,
        parallel: int = PARALLEL,
        phase: Phase = "uploading",
    ) -> None:
        self._source = source
        self._destination = destination
        self._reporter = reporter
        self._choose = choose
        self._referrers = referrers
        self._layers = layers
        self._is_wanted = foreign if callable(foreign) else lambda _: foreign
        self._parallel = parallel
        self._phase: Phase = phase
        self._workers = Workers(what, reporter, self._interrupt)
        self._seen: set[Digest] = set()
        self._read_bytes = 0
        self._documents: dict[Digest, _Document] = {}  # children before parents
        self._blobs: dict[Digest, oci.Descriptor] = {}
        self._lock = threading.Lock()
        self._counts = {"sent": 0, "mounted": 0, "exists": 0}
        self._sent_bytes = 0

    def run(
        self, reference: Reference, root: oci.Descriptor, data: bytes, names: Sequence[Reference] = ()
    ) -> Copied:
        """Copy what ``root``, a document of the source's ``reference``, leads to, and let ``names`` point at it.

        Errors: those of both ends; InvalidArgument for indexes that nest too deep, ResourceExhausted for more documents than
        DOCUMENTS_MAX, or larger ones than DOCUMENTS_SIZE_MAX together.
        Nothing gets a name before all of it is there. Twice is harmless.
        """
        self._read(reference, root, data, 0)
        self._reporter.expect(self._blobs.values())
        blobs = sorted(self._blobs.values(), key=lambda blob: -blob.size)
        self._workers.run(blobs, lambda blob: self._copy_blob(reference, blob), parallel=self._parallel)
        for document in self._documents.values():
            self._put(reference, document, self._destination.put_document)
        for name in names:
            self._put(reference, _Document(root, data), partial(self._destination.name, name))
        return Copied(
            descriptor=root,
            documents=len(self._documents),
            blobs=self._counts,
            sent_bytes=self._sent_bytes,
        )

    def _read(self, reference: Reference, descriptor: oci.Descriptor, data: bytes | None, depth: int) -> None:
        """Note a document and what it leads to, unless it is at the destination."""
        if depth > platforms.INDEX_DEPTH_MAX:
            raise InvalidArgument(
                f"{reference} nests image indexes more than {platforms.INDEX_DEPTH_MAX} deep, which is refused"
            )
        if descriptor.digest in self._seen:
            return
        self._seen.add(descriptor.digest)
        if len(self._seen) > DOCUMENTS_MAX:
            raise ResourceExhausted(
                f"{reference} leads to more than {DOCUMENTS_MAX} documents, which is refused"
            )
        present = self._destination.has(descriptor)
        if not present or (self._referrers and descriptor.media_type in oci.INDEX_TYPES):
            if data is None:
                self._hold(reference, descriptor.size)
                data = self._source.fetch_document(reference, descriptor)
            for child in self._children(descriptor, data):
                if child.media_type in _DOCUMENT_TYPES:
                    self._read(reference, child, None, depth + 1)
                else:
                    self._blobs.setdefault(child.digest, child)
            if not present:
                self._documents[descriptor.digest] = _Document(descriptor, data)
        if self._referrers:
            self._read_referrers(reference, descriptor.digest, depth)

    def _hold(self, reference: Reference, size: int) -> None:
        """Count the bytes of a document before it is fetched."""
        self._read_bytes += size
        if self._read_bytes > DOCUMENTS_SIZE_MAX:
            raise ResourceExhausted(
                f"the documents that {reference} leads to have more than {DOCUMENTS_SIZE_MAX} bytes, which is refused"
            )

    def _read_referrers(self, reference: Reference, digest: Digest, depth: int) -> None:
        for referrer in self._source.referrers(reference, digest):
            self._hold(reference, referrer.size)
            data = self._source.fetch_document(reference, referrer)
            subject = oci.subject_of(data)
            if subject is not None and subject.digest == digest:  # a list may be old, or lie
                self._read(reference, referrer, data, depth + 1)

    def _put(
        self,
        reference: Reference,
        document: _Document,
        put: Callable[[oci.Descriptor, bytes], None],
    ) -> None:
        """Store or name a document; where the destination misses what it leads to, send that and try once more."""
        try:
            put(*document)
        except NotFound:
            for child in self._children(*document):
                if child.media_type in _DOCUMENT_TYPES:
                    self._destination.put_document(child, self._source.fetch_document(reference, child))
                else:
                    self._send(reference, child)
            put(*document)

    def _children(self, descriptor: oci.Descriptor, data: bytes) -> Sequence[oci.Descriptor]:
        if oci.document_type(data, descriptor.media_type) in oci.INDEX_TYPES:
            index = oci.parse_index(data)
            return index.manifests if self._choose is None else self._choose(index)
        manifest = oci.parse_manifest(data)
        parts = [manifest.config, *(manifest.layers if self._layers else ())]
        return [part for part in parts if not oci.is_foreign(part) or self._is_wanted(part)]

    def _copy_blob(self, reference: Reference, blob: oci.Descriptor) -> None:
        self._workers.check()
        how = "exists" if self._destination.has(blob) else self._send(reference, blob)
        with self._lock:
            self._counts[how] += 1
            self._sent_bytes += blob.size if how == "sent" else 0
        self._report(blob, _PHASES[how], blob.size)

    def _send(self, reference: Reference, blob: oci.Descriptor) -> str:
        phase: Phase = "waiting"  # for somebody else who brings it, until it is read here

        def open_at(offset: int) -> BlobReader:
            nonlocal phase
            phase = self._phase
            self._report(blob, phase, offset)
            return self._source.open_blob(reference, blob, offset=offset)

        def sent(count: int) -> None:
            self._workers.check()
            if self._reporter.due(blob.digest):
                self._report(blob, phase, count)

        return self._destination.put_blob(blob, open_at, sent)

    def _report(self, blob: oci.Descriptor, phase: Phase, received: int) -> None:
        self._reporter.say(
            Progress(
                phase=phase,
                digest=blob.digest,
                media_type=blob.media_type,
                received=received,
                size=blob.size,
            )
        )

    def _interrupt(self) -> None:
        self._source.interrupt()
        self._destination.interrupt()
