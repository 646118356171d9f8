"""An archive that images are read from, as the source of a transfer."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import BinaryIO

from lamella import oci
from lamella.digest import Digest, digest_of, split_digest
from lamella.errors import DataLoss, InvalidArgument, NotFound, Unsupported
from lamella.reference import Reference
from lamella.transfer.archives.contents import Naming
from lamella.transfer.archives.directory import read_directory
from lamella.transfer.archives.docker import read_docker_archive
from lamella.transfer.archives.files import Files, Folder, Memory, TarFiles
from lamella.transfer.archives.inputs import FileInput, StreamInput, open_input, outside
from lamella.transfer.archives.layout import place, read_layout
from lamella.transfer.archives.tar import Member
from lamella.transfer.endpoints import BlobReader, Known

Stashing = Callable[[StreamInput], Files]


class Archive:
    """An archive whose images have names (:class:`Naming`)."""

    def __init__(self, files: Files, naming: Naming) -> None:
        self._files = files
        contents = read_layout(files) or read_directory(files) or read_docker_archive(files)
        if contents is None:
            raise InvalidArgument(
                "this is no archive of images: it has neither index.json nor manifest.json",
                hint="What 'docker export' writes is a container's files, not an image.",
            )
        self._contents = contents
        self.images = naming.choose(contents)
        """Names with what they point at."""

    def resolve(
        self, reference: Reference, *, known: Known | None = None
    ) -> tuple[oci.Descriptor, bytes | None]:
        """Give what a name of :attr:`images` points at. NotFound."""
        target = self.images.get(reference)
        if target is None:
            raise NotFound(f"the archive has no image {reference.familiar}")
        return target, None if known and known(target.digest) else self.fetch_document(reference, target)

    def has(self, descriptor: oci.Descriptor) -> bool:
        """Say whether a blob or document is in the archive."""
        return descriptor.digest in self._contents.made or self._find(descriptor.digest) is not None

    def fetch_document(self, reference: Reference, descriptor: oci.Descriptor) -> bytes:
        """Give a document, checked. NotFound, DataLoss, ResourceExhausted."""
        data = self._contents.made.get(descriptor.digest)
        if data is None:
            data = self._files.read(self._need(descriptor))
        if len(data) != descriptor.size:
            raise self._damaged(descriptor, f"{len(data)} bytes")
        found = digest_of(data, split_digest(descriptor.digest)[0])
        if found != descriptor.digest:
            raise self._damaged(descriptor, f"the digest {found}")
        return data

    def open_blob(self, reference: Reference, descriptor: oci.Descriptor, *, offset: int = 0) -> BlobReader:
        """Open a blob. NotFound, DataLoss."""
        data = self._contents.made.get(descriptor.digest)
        if data is not None and len(data) == descriptor.size:
            return Memory(data, offset)
        return self._files.open(self._need(descriptor), offset)

    def referrers(
        self, reference: Reference, digest: Digest, *, artifact_type: str | None = None
    ) -> list[oci.Descriptor]:
        """Describe what refers to a manifest; what the archive only tells of is left out."""
        return [
            referrer
            for referrer in self._contents.referrers.get(digest, ())
            if artifact_type in (None, referrer.artifact_type) and self.has(referrer)
        ]

    def interrupt(self) -> None:
        """Do nothing: a file is read piece by piece, between which its reader ends."""

    def _find(self, digest: Digest) -> Member | None:
        return self._files.find(self._contents.places.get(digest) or place(digest))

    def _need(self, descriptor: oci.Descriptor) -> Member:
        member = self._find(descriptor.digest)
        if member is None:
            raise NotFound(
                f"the archive does not hold {descriptor.digest}, which it names",
                hint="It may have been made of a part of the image only, such as one platform.",
            )
        if member.size != descriptor.size:
            raise self._damaged(descriptor, f"{member.size} bytes")
        return member

    def _damaged(self, descriptor: oci.Descriptor, what: str) -> DataLoss:
        return DataLoss(
            f"the archive is damaged: {descriptor.digest} of {descriptor.size} bytes has {what}",
            hint="Make or copy it once more.",
        )


@contextmanager
def open_archive(
    source: str | os.PathLike[str] | BinaryIO, naming: Naming, stash: Stashing | None = None
) -> Iterator[Archive]:
    """Open a folder, a file (compressed or not), or a binary stream, for the length of a ``with`` block.

    ``stash`` takes what can be read only once: streams, and compressed files. Errors: NotFound, InvalidArgument,
    DataLoss, ResourceExhausted; Unsupported without ``stash`` where it is needed.
    """
    with ExitStack() as opened:
        if not isinstance(source, str | os.PathLike):
            yield Archive(_read(source, stash), naming)
            return
        path = Path(source)
        with outside(f"open {path}"):
            try:
                if path.is_dir():
                    yield Archive(opened.enter_context(closing(Folder(path))), naming)
                    return
                file = opened.enter_context(path.open("rb"))
            except FileNotFoundError:
                raise NotFound(f"there is no file {path}") from None
        yield Archive(_read(file, stash), naming)


def _read(file: BinaryIO, stash: Stashing | None) -> Files:
    archive = open_input(file)
    if isinstance(archive, FileInput):
        return TarFiles(archive)
    if stash is None:
        raise Unsupported(
            "this archive can be read only once, from its beginning", hint="Write it to a plain file first."
        )
    return stash(archive)
