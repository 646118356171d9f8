"""The content store as one end of a transfer: what is pushed and exported comes from it, what is imported goes there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO

from lamella import oci
from lamella.digest import Digest
from lamella.errors import AlreadyExists, Cancelled, DataLoss, FailedPrecondition
from lamella.labels import GC_REF_CONTENT, SUBJECT
from lamella.reference import Reference
from lamella.transfer.endpoints import BlobReader, Known

if TYPE_CHECKING:
    from lamella.client import Client

CHUNK = 1024 * 1024


class StoreSource:
    """Reads the images of a client's namespace."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._interrupted = False

    def resolve(
        self, reference: Reference, *, known: Known | None = None
    ) -> tuple[oci.Descriptor, bytes | None]:
        """Give what an image's name points at. NotFound."""
        target = self._client.images.get(reference).target
        return target, self.fetch_document(reference, target)

    def fetch_document(self, reference: Reference, descriptor: oci.Descriptor) -> bytes:
        """Give a document. NotFound, DataLoss."""
        return self._client.content.read(descriptor.digest)

    def open_blob(self, reference: Reference, descriptor: oci.Descriptor, *, offset: int = 0) -> FileReader:
        """Open a blob's file. NotFound, DataLoss."""
        file = self._client.content.open(descriptor.digest)
        return FileReader(file, descriptor, offset, self.check, verified=True)

    def referrers(
        self, reference: Reference, digest: Digest, *, artifact_type: str | None = None
    ) -> list[oci.Descriptor]:
        """Describe the manifests that are here and refer to ``digest``."""
        content = self._client.content
        found = []
        for info in content.walk(filters=[f'labels."{SUBJECT}"=={digest}']):
            descriptor = oci.describe_referrer(info.digest, content.read(info.digest))
            if artifact_type in (None, descriptor.artifact_type):
                found.append(descriptor)
        return found

    def interrupt(self) -> None:
        """End reads with Cancelled."""
        self._interrupted = True

    def check(self) -> None:
        """Raise Cancelled after :meth:`interrupt`."""
        if self._interrupted:
            raise Cancelled("the transfer was stopped")


class FileReader:
    """A blob in a file, from an offset on; closes the file. ``file`` begins with the blob's first byte.

    ``verified``: its digest was checked before.
    """

    def __init__(
        self,
        file: BinaryIO,
        descriptor: oci.Descriptor,
        offset: int,
        check: Callable[[], None] | None = None,
        *,
        verified: bool = False,
    ) -> None:
        self.verified = verified
        self.file = file
        self.left = descriptor.size - offset
        self._descriptor = descriptor
        self._check = check
        file.seek(offset)

    def __enter__(self) -> FileReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.file.close()

    def readinto(self, buffer: bytearray | memoryview) -> int:
        """Fill the buffer; 0 at the end. DataLoss when the file ends before the blob does."""
        if self._check is not None:
            self._check()
        view = memoryview(buffer)[: self.left]
        count: int = self.file.readinto(view)  # type: ignore[attr-defined]
        if not count and view.nbytes:
            raise DataLoss(f"the file of {self._descriptor.digest} ends {self.left} bytes too early")
        self.left -= count
        return count


class StoreDestination:
    """Writes to a client's namespace, under a lease that the caller holds until a name points at what came.

    ``labels`` go on every blob and document.
    """

    def __init__(self, client: Client, lease: str, labels: Mapping[str, str] | None = None) -> None:
        self._client = client
        self._lease = lease
        self._labels = dict(labels or {})
        self._interrupted = False

    def has(self, descriptor: oci.Descriptor) -> bool:
        """Look for a blob; what a document leads to is looked at one by one."""
        if descriptor.media_type in oci.INDEX_TYPES | oci.MANIFEST_TYPES:
            return False
        self._client.leases.add(self._lease, "content", descriptor.digest)
        if not self._client.content.exists(descriptor.digest):
            return False
        self._client.content.adopt(descriptor.digest, self._labels)
        return True

    def put_blob(
        self,
        descriptor: oci.Descriptor,
        open_at: Callable[[int], BlobReader],
        sent: Callable[[int], None],
    ) -> str:
        """Write a blob, after what an earlier try left of it."""
        content = self._client.content
        try:
            writer = content.writer(
                f"layer-{descriptor.digest}",
                size=descriptor.size,
                digest=descriptor.digest,
                wait=True,
                waiting=lambda: sent(content.received(descriptor.digest)),
                shared=True,
            )
        except AlreadyExists:
            content.adopt(descriptor.digest, self._labels)
            return "exists"
        buffer = memoryview(bytearray(min(CHUNK, max(descriptor.size, 1))))
        with writer as ingest, open_at(ingest.offset) as reader:
            while count := reader.readinto(buffer):
                ingest.write(buffer[:count])
                sent(ingest.offset)
            try:
                ingest.commit(size=descriptor.size, digest=descriptor.digest, labels=self._labels)
            except FailedPrecondition as error:
                ingest.discard()
                raise DataLoss(f"the blob {descriptor.digest} is damaged: {error}") from error
            except AlreadyExists:
                content.adopt(descriptor.digest, self._labels)
                return "exists"
        return "sent"

    def put_document(self, descriptor: oci.Descriptor, data: bytes) -> None:
        """Write a document, with labels that keep what it leads to, as far as that is here."""
        self._client.leases.add(self._lease, "content", descriptor.digest)
        self._client.content.write(
            f"document-{descriptor.digest}",
            data,
            digest=descriptor.digest,
            size=descriptor.size,
            labels={**self._labels, **self._references(descriptor, data)},
        )

    def name(self, reference: Reference, descriptor: oci.Descriptor, data: bytes) -> None:
        """Make or move an image."""
        self._client.images.put(str(reference), descriptor)

    def interrupt(self) -> None:
        """Do nothing: nobody waits for a server, and the walk ends between two pieces."""

    def _references(self, descriptor: oci.Descriptor, data: bytes) -> dict[str, str]:
        content = self._client.content
        labels = {}
        for name, child in oci.references(data, descriptor.media_type):
            if content.exists(child.digest):
                labels[f"{GC_REF_CONTENT}.{name}"] = str(child.digest)
        subject = oci.subject_of(data)
        if subject is not None:
            labels[SUBJECT] = str(subject.digest)
        return labels
