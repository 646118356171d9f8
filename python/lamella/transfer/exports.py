"""Export: images of the store into an archive, or a folder."""

from __future__ import annotations

import os
import stat
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

from lamella import oci, platforms
from lamella.errors import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied, Unsupported
from lamella.operations import INFO, Operation
from lamella.reference import Reference
from lamella.transfer.archives.destination import (
    ArchiveDestination,
    FolderDestination,
    TarDestination,
    Write,
    all_to,
    new_file,
)
from lamella.transfer.archives.inputs import outside
from lamella.transfer.copying import Copy
from lamella.transfer.progress import ProgressCallback, Reporter
from lamella.transfer.pull import LEASE_SECONDS, follow
from lamella.transfer.stored import StoreSource

if TYPE_CHECKING:
    from lamella.client import Client
    from lamella.images import Image

Format = Literal["oci", "oci-dir", "docker"]
FORMATS: tuple[Format, ...] = ("oci", "oci-dir", "docker")
Compression = Literal["none", "gzip", "zstd"]
_EXPORT = Operation(
    "export", "exported %(image)s: %(digest)s in %(seconds).3f s", log="lamella.transfer", level=INFO
)
_SUFFIXES: dict[str, Compression] = {".gz": "gzip", ".tgz": "gzip", ".zst": "zstd", ".tzst": "zstd"}


class Export:
    """One export from a client's namespace. Use it once.

    ``platform``: that one's manifest alone, without the index around it; else all that is here of an image, of its platforms
    ``only`` these, or with ``all_platforms`` all that its index names. A docker-archive holds one platform in any case.
    """

    def __init__(
        self,
        client: Client,
        *,
        format: Format = "oci",
        platform: oci.Platform | None = None,
        only: Sequence[oci.Platform] = (),
        all_platforms: bool = False,
        referrers: bool = False,
        foreign_layers: bool = False,
        docker_manifest: bool = True,
        compression: Compression | None = None,
        progress: ProgressCallback | None = None,
    ) -> None:
        if format not in FORMATS:
            raise InvalidArgument(f"{format!r} is no format of archives", hint=f"Use {', '.join(FORMATS)}.")
        if all_platforms and (platform or format == "docker"):
            raise InvalidArgument("one platform and all of them cannot be had together")
        if format == "oci-dir" and compression not in (None, "none"):
            raise InvalidArgument("a folder is not compressed", hint="Leave the compression out, or use oci.")
        self._client = client
        self._format = format
        self._platform = platform
        if format == "docker":
            self._platform = platform or platforms.default_platform()
        self._only = only
        self._docker_manifest = docker_manifest
        self._all_platforms = all_platforms
        self._referrers = referrers
        self._foreign_layers = foreign_layers
        self._compression = compression
        self._reporter = Reporter(progress)

    def run(
        self, references: Sequence[Reference], target: str | os.PathLike[str] | BinaryIO
    ) -> dict[str, oci.Descriptor]:
        """Do it; give the names with what they point at in the archive.

        A file gets its name when it is whole, and replaces one that is there; a stream has what was written before an error.
        Errors: NotFound (image, platform, content), PermissionDenied (foreign layers in a docker-archive), FailedPrecondition
        (a platform or layers that are not here), DataLoss (a blob is damaged), Unsupported
        (format), ResourceExhausted (disk), Cancelled. Twice is harmless, and gives the same bytes.
        """
        if not references:
            raise InvalidArgument("no image is named")
        images = {str(reference): self._client.images.get(reference) for reference in references}
        by_name = {str(reference): reference for reference in references}
        with self._held(images.values()):
            chosen = {name: self._root(image) for name, image in sorted(images.items())}
            with self._open(target) as destination:
                for name, (root, data) in chosen.items():
                    with _EXPORT(self._client.database.metrics, image=name, digest=root.digest):
                        self._copy(destination, by_name[name], root, data)
                destination.finish()
        return {name: root for name, (root, _) in chosen.items()}

    def _root(self, image: Image) -> tuple[oci.Descriptor, bytes]:
        """Give what of an image is exported, once it is sure that it is here."""
        with suppress(NotFound):  # of another platform than this machine's alone
            if image.layers_discarded:
                raise FailedPrecondition(
                    f"the compressed layers of {image.name} were dropped once they were unpacked",
                    hint=f"Fetch them again: lamella pull {image.name}",
                )
        read = self._client.content.read
        if self._platform is not None:
            found = follow(
                Reference.parse(image.name),
                image.target,
                lambda wanted: read(wanted.digest),
                self._platform,
            )
            manifest = oci.parse_manifest(found.data)
            if self._format == "docker" and manifest.config.media_type not in oci.CONFIG_TYPES:
                raise Unsupported(
                    f"{image.name} is an artifact, which a docker-archive cannot hold",
                    hint="Write an OCI archive: --format oci.",
                )
            foreign = [layer for layer in manifest.layers if oci.is_foreign(layer)]
            if foreign and self._format == "docker" and not self._foreign_layers:
                raise PermissionDenied(
                    f"a docker-archive of {image.name} would have the foreign layer {foreign[0].digest} in it",
                    hint="Write an OCI archive, which leaves it out, or allow it: --foreign-layers.",
                )
            return found.descriptor, found.data
        return image.target, read(image.target.digest)

    def _copy(
        self, destination: ArchiveDestination, name: Reference, root: oci.Descriptor, data: bytes
    ) -> None:
        def choose(index: oci.Index) -> list[oci.Descriptor]:
            wanted = self._wanted(index.manifests)
            here = [entry for entry in wanted if self._is_here(entry)]
            missing = len(wanted) - len(here)
            if missing and (self._all_platforms or not here):
                raise FailedPrecondition(
                    f"of the {len(wanted)} manifests of {name.familiar} {missing} are not here",
                    hint=f"Fetch them: lamella pull --all-platforms {name.familiar}",
                )
            return here

        Copy(
            StoreSource(self._client),
            destination,
            self._reporter,
            what=f"the export of {name.familiar}",
            choose=choose,
            referrers=self._referrers and self._format != "docker",
            foreign=self._foreign_layers,
            parallel=destination.parallel,
        ).run(name, root, data, [name])

    def _wanted(self, entries: Sequence[oci.Descriptor]) -> Sequence[oci.Descriptor]:
        if not self._only:
            return entries
        chosen = [platforms.choose(entries, platform).digest for platform in self._only]
        return [entry for entry in entries if entry.digest in chosen]

    def _is_here(self, descriptor: oci.Descriptor) -> bool:
        """Say whether a manifest is here with its config and layers; a client may have fetched it for its own sake."""
        content = self._client.content
        with suppress(NotFound):
            data = content.read(descriptor.digest)
            if oci.document_type(data, descriptor.media_type) in oci.INDEX_TYPES:
                return True
            parts = [child for _, child in oci.references(data, descriptor.media_type)]
            return all(content.exists(part.digest) or oci.is_foreign(part) for part in parts)
        return False

    @contextmanager
    def _held(self, images: Iterable[Image]) -> Iterator[None]:
        """Keep the images' content from garbage collection meanwhile; a store that can only be read has none."""
        try:
            lease = self._client.leases.create(expires_in=LEASE_SECONDS)
        except PermissionDenied:
            yield
            return
        try:
            digests = {image.target.digest for image in images}
            self._client.leases.add_all(lease.id, [("content", digest) for digest in digests])
            yield
        finally:
            with suppress(NotFound):
                self._client.leases.delete(lease.id)

    @contextmanager
    def _open(self, target: str | os.PathLike[str] | BinaryIO) -> Iterator[ArchiveDestination]:
        compression = self._compression or "none"
        with ExitStack() as opened:
            if not isinstance(target, str | os.PathLike):
                if self._format == "oci-dir":
                    raise InvalidArgument(
                        "a folder cannot be written to a stream", hint="Use the format oci."
                    )
                write = all_to(target)
            elif self._format == "oci-dir":
                yield FolderDestination(Path(target))
                return
            else:
                write = opened.enter_context(_file(Path(target)))
                compression = self._compression or _SUFFIXES.get(Path(target).suffix, "none")
            write = opened.enter_context(_COMPRESSORS[compression](write))
            docker = self._format == "docker"
            yield TarDestination(write, docker=docker, docker_manifest=self._docker_manifest)


@contextmanager
def _file(path: Path) -> Iterator[Write]:
    """Open a new file in the place of what is there, unless that is a pipe or a device, which is written to."""
    with outside(f"write {path}"):
        path = path.resolve()
        try:
            regular = stat.S_ISREG(path.stat().st_mode)
        except FileNotFoundError:
            regular = True
    if regular:
        with new_file(path) as write:
            yield write
    else:
        with outside(f"write {path}"), path.open("wb", buffering=0) as file:
            yield all_to(file)


@contextmanager
def _plain(write: Write) -> Iterator[Write]:
    yield write


@contextmanager
def _gzip(write: Write) -> Iterator[Write]:
    compressor = zlib.compressobj(6, zlib.DEFLATED, zlib.MAX_WBITS | 16)  # whose header has no time
    yield lambda data: write(compressor.compress(data))
    write(compressor.flush())


@contextmanager
def _zstd(write: Write) -> Iterator[Write]:
    import zstandard

    compressor = zstandard.ZstdCompressor(level=3).compressobj()
    yield lambda data: write(compressor.compress(data))
    write(compressor.flush())


_COMPRESSORS = {"none": _plain, "gzip": _gzip, "zstd": _zstd}
