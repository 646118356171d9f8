"""An archive that is written, as the destination of a transfer: a tar that goes out as it is made, or a folder.

The same images give the same bytes, whenever and wherever: members come in the order of the walk, which depends on the images
alone, with no time and no owner. A tar has both index.json and docker's manifest.json, so that every reader finds its own;
or, for readers that know nothing but docker-archives, the latter alone.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from lamella import oci
from lamella.digest import Digest, split_digest
from lamella.errors import AlreadyExists, DataLoss, InvalidArgument
from lamella.reference import Reference
from lamella.structs import encode
from lamella.transfer.archives.catalog import MARKER_DATA, Catalog, docker_place
from lamella.transfer.archives.docker import MANIFEST
from lamella.transfer.archives.files import CHUNK
from lamella.transfer.archives.inputs import outside
from lamella.transfer.archives.layout import CONTAINERD_NAME, INDEX, MARKER, REF_NAME, place
from lamella.transfer.archives.tar import END, header, padded
from lamella.transfer.endpoints import BlobReader
from lamella.typings import BinaryIO, Protocol

Write = Callable[[bytes | memoryview], object]
"""Takes bytes, all of them."""
OpenAt = Callable[[int], BlobReader]
Sent = Callable[[int], None]


class ArchiveDestination(Protocol):
    """A :class:`lamella.transfer.endpoints.Destination` that has an end."""

    parallel: int
    """How many blobs it takes at once."""

    def has(self, descriptor: oci.Descriptor) -> bool:
        """See Destination."""

    def put_blob(self, descriptor: oci.Descriptor, open_at: OpenAt, sent: Sent) -> str:
        """See Destination."""

    def put_document(self, descriptor: oci.Descriptor, data: bytes) -> None:
        """See Destination."""

    def name(self, reference: Reference, descriptor: oci.Descriptor, data: bytes) -> None:
        """See Destination."""

    def interrupt(self) -> None:
        """See Destination."""

    def finish(self) -> None:
        """Write the documents that say what is there."""


class TarDestination:
    """A tar that ``write`` takes piece by piece: an OCI layout, or with ``docker`` a docker-archive. For one thread.

    ``docker_manifest``: write docker's manifest.json into an OCI layout, too.
    """

    parallel = 1

    def __init__(self, write: Write, *, docker: bool = False, docker_manifest: bool = True) -> None:
        self._write = write
        self._docker_manifest = docker or docker_manifest
        self._docker = docker
        self._place: Callable[[oci.Descriptor], str] = docker_place if docker else _place
        self._there: set[Digest] = set()
        self._catalog = Catalog()

    def has(self, descriptor: oci.Descriptor) -> bool:
        """Say whether it was written."""
        return descriptor.digest in self._there

    def put_blob(self, descriptor: oci.Descriptor, open_at: OpenAt, sent: Sent) -> str:
        """Write a blob. DataLoss when the bytes are others than the descriptor says: the archive is of no use then."""
        self._there.add(descriptor.digest)
        self._write(header(self._place(descriptor), descriptor.size))
        copy_blob(descriptor, open_at, self._write, sent)
        self._write(bytes(padded(descriptor.size) - descriptor.size))
        return "sent"

    def put_document(self, descriptor: oci.Descriptor, data: bytes) -> None:
        """Write an index or manifest; a docker-archive has none."""
        self._catalog.add(descriptor, data)
        if not self._docker and descriptor.digest not in self._there:
            self._add(place(descriptor.digest), data)
        self._there.add(descriptor.digest)

    def name(self, reference: Reference, descriptor: oci.Descriptor, data: bytes) -> None:
        """Let the documents at the end name it."""
        self._catalog.add(descriptor, data)
        self._catalog.name(reference, descriptor)

    def interrupt(self) -> None:
        """Do nothing: the walk ends between two pieces."""

    def finish(self) -> None:
        """Write the documents, and the end of the tar."""
        if not self._docker:
            self._add(INDEX, encode_index(self._catalog.entries()))
        if self._docker_manifest:
            self._add(MANIFEST, self._catalog.docker_manifest(self._place, self.has))
        if not self._docker:
            self._add(MARKER, MARKER_DATA)
        self._write(END)

    def _add(self, name: str, data: bytes) -> None:
        self._write(header(name, len(data)) + data + bytes(padded(len(data)) - len(data)))


class FolderDestination:
    """An OCI layout in a folder, new or one that is added to: what has the same name there gives way.

    A blob gets its name when it is whole, and index.json is exchanged last, so that the layout is right at any moment.
    """

    parallel = 5

    def __init__(self, path: Path) -> None:
        self._path = path
        self._catalog = Catalog()
        with outside(f"write to {path}"):
            path.mkdir(exist_ok=True)
            if not (path / MARKER).exists():
                if any(not entry.name.startswith(".") for entry in path.iterdir()):
                    raise AlreadyExists(
                        f"{path} is a folder of something else", hint="Name a new folder, or an OCI layout."
                    )
                self._write(path / MARKER, MARKER_DATA)

    def has(self, descriptor: oci.Descriptor) -> bool:
        """Say whether a file of that digest and size is there."""
        with suppress(FileNotFoundError):
            return self._file(descriptor).stat().st_size == descriptor.size and not _is_document(descriptor)
        return False

    def put_blob(self, descriptor: oci.Descriptor, open_at: OpenAt, sent: Sent) -> str:
        """Write a blob's file."""
        self._make_folder(descriptor)
        with new_file(self._file(descriptor)) as write:
            copy_blob(descriptor, open_at, write, sent)
        return "sent"

    def put_document(self, descriptor: oci.Descriptor, data: bytes) -> None:
        """Write an index or manifest."""
        self._catalog.add(descriptor, data)
        self._make_folder(descriptor)
        self._write(self._file(descriptor), data)

    def name(self, reference: Reference, descriptor: oci.Descriptor, data: bytes) -> None:
        """Let index.json name it in the end."""
        self._catalog.name(reference, descriptor)

    def interrupt(self) -> None:
        """Do nothing: the walk ends between two pieces."""

    def finish(self) -> None:
        """Exchange index.json."""
        entries = self._catalog.entries()
        taken = {_name(entry) for entry in entries}
        with outside(f"read {self._path / INDEX}"):
            try:
                data = (self._path / INDEX).read_bytes()
            except FileNotFoundError:
                data = encode_index([])
        try:
            before = msgspec.json.decode(data)["manifests"]
            kept = [entry for entry in before if _name(entry) not in taken]
        except (msgspec.MsgspecError, KeyError, TypeError, AttributeError):
            raise InvalidArgument(f"{self._path / INDEX} is no index") from None
        self._write(self._path / INDEX, encode_index([*kept, *entries]))

    def _file(self, descriptor: oci.Descriptor) -> Path:
        return self._path / place(descriptor.digest)

    def _make_folder(self, descriptor: oci.Descriptor) -> None:
        with outside(f"write to {self._path}"):
            self._file(descriptor).parent.mkdir(parents=True, exist_ok=True)

    def _write(self, path: Path, data: bytes) -> None:
        with new_file(path) as write:
            write(data)


@contextmanager
def new_file(path: Path) -> Iterator[Write]:
    """Write a file that gets its name when the ``with`` block ends well; else nothing is there. Errors are of the disk."""
    fresh = path.with_name(f".{path.name[:200]}.{os.urandom(8).hex()}")
    with outside(f"write {path}"):
        try:
            with fresh.open("xb", buffering=0) as file:
                yield all_to(file)
            fresh.replace(path)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise


def all_to(file: BinaryIO) -> Write:
    """Give what writes all of some bytes to a file, however few it takes at a time."""

    def write(data: bytes | memoryview) -> None:
        rest = memoryview(data)
        with outside("write the archive"):
            while rest:
                rest = rest[file.write(rest) :]

    return write


def copy_blob(descriptor: oci.Descriptor, open_at: OpenAt, write: Write, sent: Sent) -> None:
    """Copy a blob from its beginning, and check it."""
    hasher = hashlib.new(split_digest(descriptor.digest)[0])
    buffer = memoryview(bytearray(min(CHUNK, max(descriptor.size, 1))))
    done = 0
    with open_at(0) as reader:
        while count := reader.readinto(buffer):
            done += count
            hasher.update(buffer[:count])
            if done <= descriptor.size:
                write(buffer[:count])
            sent(done)
    if done != descriptor.size or hasher.hexdigest() != split_digest(descriptor.digest)[1]:
        raise DataLoss(
            f"the blob {descriptor.digest} is damaged",
            hint="Look for damage and mend it: lamella fsck --repair.",
        )


def encode_index(entries: list[dict[str, object]]) -> bytes:
    """Make index.json."""
    return encode({"schemaVersion": 2, "mediaType": oci.OCI_INDEX, "manifests": entries})


def _place(descriptor: oci.Descriptor) -> str:
    return place(descriptor.digest)


def _is_document(descriptor: oci.Descriptor) -> bool:
    return descriptor.media_type in oci.INDEX_TYPES | oci.MANIFEST_TYPES


def _name(entry: dict[str, object]) -> object:
    """What tells an entry of index.json from others: its name, else its digest."""
    annotations = entry.get("annotations")
    names = annotations if isinstance(annotations, dict) else {}
    return names.get(CONTAINERD_NAME) or names.get(REF_NAME) or entry.get("digest")
