"""Convert: an image that is here in another form, under another name: other compression, other documents, fewer layers.

A config is never rewritten but where layers are left out, so that diffIDs, and with them the snapshots, are those of the image
that it was made of. Layers that have the right form are the same blobs. The same image gives the same result everywhere: what
the core compresses does not depend on the number of cores. A lease holds everything until the image is there.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence

import msgspec

from lamella import _core, oci, platforms
from lamella.digest import Digest, digest_of
from lamella.errors import InvalidArgument, LamellaError, NotFound, Unsupported
from lamella.operations import INFO, Operation
from lamella.reference import Reference
from lamella.structs import replace
from lamella.transfer.commit import LAYER_TYPES, LayerCompression, store_packed
from lamella.transfer.progress import Phase, Progress, ProgressCallback, Reporter
from lamella.transfer.pull import LEASE_SECONDS, Pull
from lamella.transfer.stored import StoreDestination
from lamella.transfer.unpack import NoRegistry
from lamella.typings import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from lamella.client import Client
    from lamella.images import Image

Format = Literal["oci", "docker"]
THREADS_MAX = 8
"""That compress one layer. Each has a window of its own: more cost memory that a large machine may want for other things."""

_CONVERT = Operation(
    "convert", "converted %(image)s to %(target)s in %(seconds).3f s", log="lamella.transfer", level=INFO
)
_FOREIGN_TYPES: dict[str, tuple[str, str]] = {
    "none": (oci.OCI_NONDISTRIBUTABLE, oci.DOCKER_FOREIGN_LAYER),
    "gzip": (oci.OCI_NONDISTRIBUTABLE_GZIP, oci.DOCKER_FOREIGN_LAYER_GZIP),
    "zstd": (oci.OCI_NONDISTRIBUTABLE_ZSTD, oci.DOCKER_FOREIGN_LAYER_ZSTD),
}
_REFERENCE = "vnd.docker.reference.digest"
"""On an entry of an index (BuildKit): the digest of the entry that it is about."""
_OF_THE_BYTES = ("containerd.io/snapshot/", "io.containers.estargz.", "io.github.containers.zstd-chunked.")
"""Annotations of layers that say where something is in the blob: no longer true of another."""


class Convert:
    """One conversion of an image of the store. Use it once. The options are those of :meth:`lamella.images.Images.convert`."""

    def __init__(
        self,
        client: Client,
        image: Image,
        reference: Reference,
        *,
        compression: LayerCompression | None = None,
        level: int | None = None,
        format: Format | None = None,
        all_platforms: bool = False,
        layers: Collection[int] | None = None,
        drop_top: int = 0,
        foreign_layers: bool = False,
        progress: ProgressCallback | None = None,
    ) -> None:
        if compression is not None and compression not in LAYER_TYPES:
            raise InvalidArgument(
                f"there is no compression {compression!r}", hint="It is gzip, zstd or none."
            )
        if format not in (None, "oci", "docker"):
            raise InvalidArgument(f"there is no format {format!r}", hint="It is oci or docker.")
        if level is not None and compression is None:
            raise InvalidArgument("a level says nothing without a compression")
        if compression == "zstd" and format == "docker":
            raise InvalidArgument(
                "docker's documents have no zstd layers", hint="Use --format oci, or --compression gzip."
            )
        if drop_top < 0 or (drop_top and layers is not None):
            raise InvalidArgument("leave out a number of layers from the top, or name those to keep")
        self._client = client
        self._image = image
        self._reference = reference
        self._compression = compression
        self._level = level
        self._format: Format | None = "oci" if compression == "zstd" else format
        self._all_platforms = all_platforms
        self._layers = layers
        self._drop_top = drop_top
        self._foreign_layers = foreign_layers
        self._reporter = Reporter(progress)
        self._packed: dict[Digest, oci.Descriptor] = {}
        self._became: dict[Digest, oci.Descriptor] = {}

    def run(self) -> Image:
        """Do it. Errors as :meth:`lamella.images.Images.convert`."""
        client, image = self._client, self._image
        with (
            _CONVERT(client.database.metrics, image=image.name, target=str(self._reference)),
            client.leases.hold(expires_in=LEASE_SECONDS) as lease,
        ):
            self._lease = lease.id
            self._destination = StoreDestination(client, lease.id)
            if self._all_platforms:
                target = self._convert(image.target, depth=platforms.INDEX_DEPTH_MAX)
            else:
                target = self._convert_manifest(image.manifest_descriptor, image.manifest)
            if self._is_unpacked():
                # From what is unpacked already, unless layers have other ones beneath them now.
                Pull(client, self._reference, NoRegistry(image.name), platform=image.platform).complete(
                    target
                )
            else:
                client.images.put(str(self._reference), target)
            return client.images.get(self._reference)

    def _is_unpacked(self) -> bool:
        try:
            return self._client.snapshots.stat(self._image.chain_id).kind == "committed"
        except LamellaError:
            return False

    # Documents

    def _convert(self, descriptor: oci.Descriptor, *, depth: int) -> oci.Descriptor:
        """Convert a document and what it leads to; give the descriptor of the result, the same where nothing changes."""
        data = self._read(descriptor)
        if oci.document_type(data, descriptor.media_type) in oci.INDEX_TYPES:
            if not depth:
                raise InvalidArgument(f"{self._image.name} nests image indexes too deep")
            return self._convert_index(descriptor, data, depth)
        manifest = oci.parse_manifest(data)
        if manifest.config.media_type not in oci.CONFIG_TYPES or platforms.is_attestation(descriptor):
            for part in (manifest.config, *manifest.layers):
                self._hold(part.digest)
            return descriptor
        return self._convert_manifest(descriptor, manifest)

    def _convert_index(self, descriptor: oci.Descriptor, data: bytes, depth: int) -> oci.Descriptor:
        index: dict[str, Any] = msgspec.json.decode(data)
        became: dict[str, str] = {}
        for entry, parsed in zip(index["manifests"], oci.parse_index(data).manifests, strict=True):
            if parsed.digest not in self._became:
                self._became[parsed.digest] = self._convert(parsed, depth=depth - 1)
            converted = self._became[parsed.digest]
            became[parsed.digest] = converted.digest
            if converted.digest != parsed.digest:
                entry.pop("data", None)
                _point(entry, converted)
        for entry in index["manifests"]:
            about = (entry.get("annotations") or {}).get(_REFERENCE)
            if about in became:
                entry["annotations"][_REFERENCE] = became[about]
        return self._put(index, descriptor, {"oci": oci.OCI_INDEX, "docker": oci.DOCKER_INDEX})

    def _convert_manifest(self, descriptor: oci.Descriptor, parsed: oci.Manifest) -> oci.Descriptor:
        if parsed.config.media_type not in oci.CONFIG_TYPES:
            raise Unsupported(
                f"{self._image.name} is an artifact ({parsed.artifact_type or parsed.config.media_type!r}), "
                "not a container image"
            )
        manifest: dict[str, Any] = msgspec.json.decode(self._read(descriptor))
        data = self._read(parsed.config)
        diff_ids = oci.parse_config(data).rootfs.diff_ids
        if len(diff_ids) != len(parsed.layers):
            raise InvalidArgument(
                f"{self._image.name}: the manifest has {len(parsed.layers)} layers, its config {len(diff_ids)} diffIDs"
            )
        docker = (self._format or _format_of(descriptor)) == "docker"
        kept = self._selection(len(diff_ids))
        self._reporter.expect(parsed.layers[number] for number in kept)
        manifest["layers"] = [
            self._convert_layer(manifest["layers"][number], parsed.layers[number], diff_ids[number], docker)
            for number in kept
        ]
        if len(kept) != len(diff_ids):
            data = _without_layers(data, kept)
            _point(manifest["config"], self._store(data, parsed.config.media_type))
            manifest["config"].pop("data", None)
        manifest["config"]["mediaType"] = oci.DOCKER_CONFIG if docker else oci.OCI_CONFIG
        return self._put(manifest, descriptor, {"oci": oci.OCI_MANIFEST, "docker": oci.DOCKER_MANIFEST})

    def _put(self, document: dict[str, Any], was: oci.Descriptor, types: dict[Format, str]) -> oci.Descriptor:
        """Store a document, if it is another than it was."""
        media_type, data = types[self._format or _format_of(was)], self._read(was)
        descriptor = oci.Descriptor(media_type=media_type, digest=was.digest, size=was.size)
        if media_type != was.media_type or document != msgspec.json.decode(data):
            document["mediaType"] = media_type
            if media_type == types["docker"]:  # these are OCI's alone
                document.pop("subject", None)
                document.pop("artifactType", None)
            data = msgspec.json.encode(document)
            descriptor = replace(descriptor, digest=digest_of(data), size=len(data))
        self._destination.put_document(descriptor, data)
        return descriptor

    def _read(self, descriptor: oci.Descriptor) -> bytes:
        self._hold(descriptor.digest)
        try:
            return self._client.content.read(descriptor.digest)
        except NotFound as error:
            raise NotFound(
                f"{self._image.name} is not here as a whole: {error.message}",
                hint=f"Fetch what is missing: lamella pull --all-platforms {self._image.name}",
            ) from None

    def _hold(self, digest: Digest) -> None:
        self._client.leases.add(self._lease, "content", digest)

    def _store(self, data: bytes, media_type: str) -> oci.Descriptor:
        digest = digest_of(data)
        self._hold(digest)
        self._client.content.write(f"document-{digest}", data, digest=digest, size=len(data))
        return oci.Descriptor(media_type=media_type, digest=digest, size=len(data))

    # Layers

    def _selection(self, count: int) -> list[int]:
        """Say which of an image's layers are kept, bottom first."""
        if self._drop_top and self._drop_top >= count:
            raise InvalidArgument(f"{self._image.name} has {count} layers only")
        if self._layers is None:
            return [*range(count - self._drop_top)]
        outside = [number for number in self._layers if not 0 <= number < count]
        if outside or not self._layers:
            raise InvalidArgument(
                f"{self._image.name} has {count} layers; {outside[0] if outside else 'none'} cannot be kept",
                hint=f"They are 0, the lowest, to {count - 1}.",
            )
        return sorted(set(self._layers))

    def _convert_layer(
        self, entry: dict[str, Any], layer: oci.Descriptor, diff_id: Digest, docker: bool
    ) -> dict[str, Any]:
        """Give the descriptor of a layer in its new form, as JSON has it."""
        self._hold(layer.digest)
        is_now = oci.compression_of(layer)
        is_left = oci.is_foreign(layer) and not self._foreign_layers
        compression = is_now if is_left else self._compression or is_now
        if docker and compression == "zstd":
            raise InvalidArgument(
                f"the layer {layer.digest} is compressed by zstd, which docker's documents do not have",
                hint="Compress it by another: --compression gzip.",
            )
        if is_left:  # what its addresses have does not change
            entry["mediaType"] = _FOREIGN_TYPES[is_now][docker]
            return entry
        if compression != is_now:
            _point(entry, self._recompress(layer, diff_id, compression))
            entry.pop("data", None)
            annotations = {
                key: value
                for key, value in (entry.pop("annotations", None) or {}).items()
                if not key.startswith(_OF_THE_BYTES)
            }
            if annotations:
                entry["annotations"] = annotations
        elif not self._client.content.exists(layer.digest):
            self._client.content.open(layer.digest).close()  # which says why it is not here, and what helps
        else:
            self._report(layer, "exists")
        if oci.is_foreign(layer):  # from now on it is a layer like others
            entry.pop("urls", None)
        entry["mediaType"] = LAYER_TYPES[compression][docker]
        return entry

    def _recompress(
        self, layer: oci.Descriptor, diff_id: Digest, compression: LayerCompression
    ) -> oci.Descriptor:
        known = self._packed.get(layer.digest)
        if known is not None:
            return known
        self._report(layer, "compressing")
        source = str(self._client.content.path(layer.digest))

        def pack(target: str) -> _core.Packed:
            return _core.recompress(
                source,
                target,
                diff_id=diff_id,
                compression=compression,
                level=self._level,
                threads=min(os.cpu_count() or 1, THREADS_MAX),
            )

        packed = store_packed(self._client, f"convert-{os.urandom(8).hex()}", pack, lease=self._lease)
        self._report(layer, "done")
        described = oci.Descriptor(
            media_type=layer.media_type, digest=Digest(packed.digest), size=packed.size
        )
        return self._packed.setdefault(layer.digest, described)

    def _report(self, layer: oci.Descriptor, phase: Phase) -> None:
        received = 0 if phase == "compressing" else layer.size
        self._reporter.say(
            Progress(
                phase=phase,
                digest=layer.digest,
                media_type=layer.media_type,
                received=received,
                size=layer.size,
            )
        )


def parse_selection(text: str) -> list[int]:
    """Read which layers are meant: ``0-2``, ``0,3``; the lowest one is 0. InvalidArgument when malformed."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        numbers = [first, last] if dash else [first, first]
        if not all(number.isdecimal() and len(number) < 6 for number in numbers):
            raise InvalidArgument(f"{text!r} does not say which layers", hint="It reads 0-2, or 0,1,3.")
        found += range(int(numbers[0]), int(numbers[1]) + 1)
    return found


def _format_of(descriptor: oci.Descriptor) -> Format:
    return "docker" if descriptor.media_type in (oci.DOCKER_MANIFEST, oci.DOCKER_INDEX) else "oci"


def _point(entry: dict[str, Any], target: oci.Descriptor) -> None:
    """Let a descriptor, as JSON has it, point at something else."""
    entry["mediaType"], entry["digest"], entry["size"] = target.media_type, target.digest, target.size


def _without_layers(data: bytes, kept: Sequence[int]) -> bytes:
    """Give a config that has but some of its layers: their diffIDs, and the steps of its history that made them or none."""
    config: dict[str, Any] = msgspec.json.decode(data)
    diff_ids = config["rootfs"]["diff_ids"]
    config["rootfs"]["diff_ids"] = [diff_ids[number] for number in kept]
    history, steps, made = config.pop("history", None) or [], [], 0
    for step in history:
        if step.get("empty_layer"):
            steps.append(step)
            continue
        if made in kept:
            steps.append(step)
        made += 1
    if made == len(diff_ids):  # else nobody knows which step made which layer
        config["history"] = steps
    return msgspec.json.encode(config)
