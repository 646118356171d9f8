"""Where content comes from and where it goes: what a registry, a content store and an archive have in common.

A transfer moves what a descriptor leads to from a :class:`Source` to a :class:`Destination`. Every method may be called from
several threads. References say which repository is meant; an archive and a store have only one and ignore the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Protocol

from lamella import oci
from lamella.digest import Digest
from lamella.reference import Reference

Known = Callable[[Digest], bool]
"""Says whether a digest is here already."""


class BlobReader(Protocol):
    """A blob from some offset on, as a context manager. Its digest is for the reader to check.

    One that has an attribute ``verified`` which is true gives what was checked before, as the content store does.
    """

    def __enter__(self) -> BlobReader: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def readinto(self, buffer: bytearray | memoryview) -> int:
        """Fill the buffer from its start and give the count of bytes, 0 at the end, which is the descriptor's size."""


class Source(Protocol):
    """Where documents and blobs come from."""

    def resolve(
        self, reference: Reference, *, known: Known | None = None
    ) -> tuple[oci.Descriptor, bytes | None]:
        """Give what a reference names, and the document it points at: None if ``known`` has it. NotFound for neither."""

    def fetch_document(self, reference: Reference, descriptor: oci.Descriptor) -> bytes:
        """Give an index, manifest or config, checked by size and digest. NotFound when it is not there, DataLoss when damaged."""

    def open_blob(self, reference: Reference, descriptor: oci.Descriptor, *, offset: int = 0) -> BlobReader:
        """Open a blob from ``offset`` (bytes) on. NotFound when it is not there, DataLoss when its size differs."""

    def referrers(
        self, reference: Reference, digest: Digest, *, artifact_type: str | None = None
    ) -> list[oci.Descriptor]:
        """Describe the manifests whose ``subject`` is ``digest`` (distribution spec, "Listing Referrers"); none is no error."""

    def interrupt(self) -> None:
        """End what other threads are reading with Cancelled, for good."""


class Destination(Protocol):
    """Where documents and blobs go, what they lead to before them."""

    def has(self, descriptor: oci.Descriptor) -> bool:
        """Say whether a blob or document is there already, so that it need not be sent."""

    def put_blob(
        self,
        descriptor: oci.Descriptor,
        open_at: Callable[[int], BlobReader],
        sent: Callable[[int], None],
    ) -> str:
        """Store a blob, checked by size and digest, and say how: ``sent``, ``mounted`` or ``exists``.

        ``open_at`` opens it from an offset, as often as it takes. ``sent`` is told how many bytes are there so far; what
        it raises ends the transfer. Errors: DataLoss when the bytes are others than the descriptor says.
        """

    def put_document(self, descriptor: oci.Descriptor, data: bytes) -> None:
        """Store an index or manifest all of whose children are there."""

    def name(self, reference: Reference, descriptor: oci.Descriptor, data: bytes) -> None:
        """Let a reference's tag point at a document that is there. Twice is harmless."""

    def interrupt(self) -> None:
        """End what other threads are sending with Cancelled, for good."""
