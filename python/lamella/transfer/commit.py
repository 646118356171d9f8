"""Commit: what a snapshot changes becomes a layer, and an image on top of another one has that layer.

Nothing beneath the snapshot is looked at: the image's lower layers are those of the image that it stands on, by their digests,
whether their blobs are here or not. The result is unpacked like a pulled one, from its own blob, so that its snapshots are
shared by whoever has that image. A lease holds everything until the image is there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping

import msgspec

from lamella import _core, oci
from lamella.digest import Digest, digest_of
from lamella.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from lamella.metadata.clock import format_time
from lamella.reference import Reference
from lamella.structs import to_builtins
from lamella.transfer.instructions import apply_instruction
from lamella.transfer.pull import Pull, layer_labels, manifest_labels
from lamella.transfer.unpack import NoRegistry
from lamella.typings import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from lamella.client import Client
    from lamella.images import Image

LayerCompression = Literal["none", "gzip", "zstd"]
UNCOMPRESSED = "containerd.io/uncompressed"
"""On a layer's content: its diffID, as containerd has it."""
_LEASE_SECONDS = 24 * 3600
LAYER_TYPES: dict[LayerCompression, tuple[str, str]] = {
    "none": (oci.OCI_LAYER, oci.DOCKER_LAYER),
    "gzip": (oci.OCI_LAYER_GZIP, oci.DOCKER_LAYER_GZIP),
    "zstd": (oci.OCI_LAYER_ZSTD, oci.DOCKER_LAYER_ZSTD),
}


class PackedLayer(msgspec.Struct, frozen=True):
    """A layer in the content store: its descriptor and diffID; what was left out of it, as the log warned."""

    descriptor: oci.Descriptor
    diff_id: Digest
    notes: list[str]


def pack_layer(
    client: Client,
    key: str,
    *,
    compression: LayerCompression = "gzip",
    level: int | None = None,
    docker: bool = False,
    lease: str | None = None,
    base: str | None = None,
) -> PackedLayer:
    """Put what a snapshot changes of its parent, or of ``base``, into the content store, as a layer that ``lease`` holds.

    ``docker``: of docker's media type.

    The same changes give the same bytes. Errors: those of :meth:`lamella.snapshots.Snapshotter.diff`, InvalidArgument for a
    compression or level that does not exist, Unavailable when the snapshot is written to meanwhile, ResourceExhausted. Twice is
    harmless.
    """
    types = LAYER_TYPES.get(compression)
    if types is None:
        raise InvalidArgument(f"there is no compression {compression!r}", hint="It is gzip, zstd or none.")
    with client.snapshots.diff(key, base) as changes:

        def pack(target: str) -> _core.Packed:
            return changes.pack(target, compression=compression, level=level, threads=os.cpu_count() or 1)

        packed = store_packed(client, f"diff-{os.urandom(8).hex()}", pack, lease=lease)
    descriptor = oci.Descriptor(media_type=types[docker], digest=Digest(packed.digest), size=packed.size)
    return PackedLayer(descriptor=descriptor, diff_id=Digest(packed.diff_id), notes=changes.notes)


def store_packed(
    client: Client,
    ref: str,
    pack: Callable[[str], _core.Packed],
    *,
    lease: str | None,
    labels: Mapping[str, str] | None = None,
) -> _core.Packed:
    """Put the blob that ``pack`` writes to a file into the content store, with its diffID and ``labels``; ``lease`` holds it."""
    with client.content.writer(ref) as ingest:
        try:
            packed = pack(str(ingest.data_path))
            own = {**(labels or {}), UNCOMPRESSED: packed.diff_id}
            with client.database.write():
                if lease is not None:
                    client.leases.add(lease, "content", packed.digest)
                try:
                    ingest.commit(size=packed.size, digest=packed.digest, labels=own, verified=packed.digest)
                except AlreadyExists:
                    client.content.adopt(packed.digest, own)
        except BaseException:
            ingest.discard()
            raise
    return packed


def commit_image(
    client: Client,
    key: str,
    base: Image,
    name: str | Reference,
    *,
    message: str = "",
    author: str = "",
    created_by: str = "",
    changes: Iterable[str] = (),
    compression: LayerCompression = "gzip",
    created: float | None = None,
    squash: bool = False,
) -> Image:
    """Make the image ``name`` of ``base`` and what the snapshot ``key`` changes, and unpack it.

    Each snapshot between the two becomes a layer too; with ``squash`` all together are one. ``changes`` are instructions of a
    Dockerfile for the config (``CMD ["a"]``, ``ENV A=b``, ``LABEL``, ``USER``...). ``created`` is a time in seconds since 1970:
    by default $SOURCE_DATE_EPOCH or now. An image of that name gives way to the new one.
    Errors: FailedPrecondition when the snapshot does not stand on ``base``; else as :func:`pack_layer`.
    """
    reference = name if isinstance(name, Reference) else Reference.parse(name)
    if reference.digest:
        raise InvalidArgument(f"{reference} names a digest, which the image gets only when it is made")
    keys = _above(client, key, base)
    content = client.content
    manifest: dict[str, Any] = msgspec.json.decode(content.read(base.manifest_descriptor.digest))
    config: dict[str, Any] = msgspec.json.decode(content.read(base.manifest.config.digest))
    docker = base.manifest_descriptor.media_type == oci.DOCKER_MANIFEST
    created_at = format_time(int(_seconds(created) * 1_000_000))
    with client.leases.hold(expires_in=_LEASE_SECONDS) as lease:
        client.leases.add(lease.id, "content", base.manifest_descriptor.digest)  # no name may lead to it

        def pack(of: str, below: str | None) -> PackedLayer:
            return pack_layer(client, of, compression=compression, docker=docker, lease=lease.id, base=below)

        layers = [pack(key, base.chain_id)] if squash else [pack(each, None) for each in keys]
        run = config.get("config") or {}
        for instruction in changes:
            run = apply_instruction(run, instruction)
        step = {"created": created_at, "created_by": created_by, "author": author, "comment": message}
        steps = [*[{"created": created_at}] * (len(layers) - 1), step]
        config |= {"config": run, "created": created_at} | ({"author": author} if author else {})
        config["history"] = [
            *(config.get("history") or []),
            *({field: value for field, value in step.items() if value} for step in steps),
        ]
        config["rootfs"]["diff_ids"] += [layer.diff_id for layer in layers]
        described = _write(client, lease.id, config, base.manifest.config.media_type, lambda _: {})
        manifest["config"] = to_builtins(described)
        manifest["layers"] += [to_builtins(layer.descriptor) for layer in layers]
        for of_the_base in ("annotations", "subject"):
            manifest.pop(of_the_base, None)
        keep = not base.layers_discarded

        def labels(data: bytes) -> dict[str, str]:
            parsed = oci.parse_manifest(data)
            return manifest_labels(parsed, keep_layers=keep) | layer_labels(parsed, keep_layers=keep)

        target = _write(client, lease.id, manifest, base.manifest_descriptor.media_type, labels)
        # It makes the image and its snapshots visible together.
        Pull(client, reference, NoRegistry(str(reference)), keep_layers=keep).complete(target)
    return client.images.get(reference)


def _above(client: Client, key: str, base: Image) -> list[str]:
    """Give the snapshots from above ``base`` up to ``key``."""
    keys = [key]
    while (parent := client.snapshots.stat(keys[-1]).parent) != base.chain_id:
        if not parent:
            raise FailedPrecondition(
                f"the snapshot {key!r} does not stand on the image {base.name}, which was pulled or made anew since",
                hint="Give the image that it was made from another name, or pull it again by its digest.",
            )
        keys.append(parent)
    return keys[::-1]


def _seconds(created: float | None) -> float:
    if created is not None:
        return created
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    return float(epoch) if epoch.isdigit() else time.time()


def _write(
    client: Client,
    lease: str,
    document: Mapping[str, Any],
    media_type: str,
    labels: Callable[[bytes], Mapping[str, str]],
) -> oci.Descriptor:
    """Put a document into the content store, with the labels that it asks for."""
    data = msgspec.json.encode(document)
    digest = digest_of(data)
    client.leases.add(lease, "content", digest)
    client.content.write(f"document-{digest}", data, digest=digest, size=len(data), labels=labels(data))
    return oci.Descriptor(media_type=media_type, digest=digest, size=len(data))
