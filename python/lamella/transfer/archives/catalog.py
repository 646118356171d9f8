"""What stands in the documents of an archive that is written: index.json, and docker's manifest.json."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import msgspec

from lamella import oci, platforms
from lamella.digest import Digest
from lamella.errors import NotFound, Unsupported
from lamella.reference import Reference
from lamella.structs import replace
from lamella.transfer.archives.layout import CONTAINERD_NAME, REF_NAME, VERSION
from lamella.typings import Any

MARKER_DATA = msgspec.json.encode({"imageLayoutVersion": VERSION})
_SUFFIXES = {"none": ".tar", "gzip": ".tar.gz", "zstd": ".tar.zst"}


class Catalog:
    """Collects documents and names, in their order."""

    def __init__(self) -> None:
        self._documents: dict[Digest, tuple[oci.Descriptor, bytes]] = {}
        self._names: dict[str, tuple[Reference, oci.Descriptor]] = {}

    def add(self, descriptor: oci.Descriptor, data: bytes) -> None:
        """Take an index or manifest that is in the archive."""
        self._documents[descriptor.digest] = (descriptor, data)

    def name(self, reference: Reference, descriptor: oci.Descriptor) -> None:
        """Let a name point at one of them. A digest in it is left out if it is that of something else, such as the index."""
        if reference.digest not in (None, descriptor.digest):
            reference = replace(reference, digest=None)
        self._names[str(reference)] = (reference, descriptor)

    def entries(self) -> list[dict[str, Any]]:
        """Make the entries of index.json: the names, then what refers to others and has none."""
        found = []
        for name, (reference, descriptor) in self._names.items():
            annotations = {CONTAINERD_NAME: name} if reference.tag or reference.digest else {}
            if reference.tag:
                annotations[REF_NAME] = reference.tag
            found.append(_entry(descriptor, annotations))
        named = {descriptor.digest for _, descriptor in self._names.values()}
        for digest, (descriptor, data) in self._documents.items():
            if digest not in named and oci.subject_of(data) is not None:
                found.append(_entry(oci.describe_referrer(digest, data), dict(descriptor.annotations or {})))
        return found

    def docker_manifest(
        self, place: Callable[[oci.Descriptor], str], has: Callable[[oci.Descriptor], bool]
    ) -> bytes:
        """Make manifest.json: of each name the image for this machine, or the first one; ``place`` names the files.

        ``has``: which blobs are in the archive; an image that is not whole there has no entry.
        """
        images: dict[Digest, dict[str, Any]] = {}
        for reference, descriptor in self._names.values():
            manifest = self._image(descriptor, has, set())
            if manifest is None:
                continue
            entry = images.setdefault(
                manifest.config.digest, {"Config": place(manifest.config), "RepoTags": []}
            )
            entry["Layers"] = [place(layer) for layer in manifest.layers]
            if reference.tag:
                # The whole name: podman takes a short one for localhost's.
                entry["RepoTags"].append(str(replace(reference, digest=None)))
        return msgspec.json.encode([*images.values()])

    def _image(
        self, descriptor: oci.Descriptor, has: Callable[[oci.Descriptor], bool], seen: set[Digest]
    ) -> oci.Manifest | None:
        """Find the manifest of an image whose layers are all in the archive, looking at each document once."""
        if descriptor.digest not in self._documents or descriptor.digest in seen:
            return None
        seen.add(descriptor.digest)
        _, data = self._documents[descriptor.digest]
        if oci.document_type(data, descriptor.media_type) in oci.INDEX_TYPES:
            here = [entry for entry in oci.parse_index(data).manifests if entry.digest in self._documents]
            with suppress(NotFound):
                here = [platforms.choose(here, platforms.default_platform()), *here]
            return next(filter(None, (self._image(entry, has, seen) for entry in here)), None)
        manifest = oci.parse_manifest(data)
        is_image = manifest.config.media_type in oci.CONFIG_TYPES
        return manifest if is_image and all(map(has, manifest.layers)) else None


def docker_place(descriptor: oci.Descriptor) -> str:
    """Name the file of a config or layer in a docker-archive. Unsupported for what is neither."""
    encoded = descriptor.digest.partition(":")[2]
    if descriptor.media_type in oci.CONFIG_TYPES:
        return f"{encoded}.json"
    suffix = _SUFFIXES.get(oci.LAYER_COMPRESSION.get(descriptor.media_type, ""))
    if suffix is None:
        raise Unsupported(
            f"a docker-archive cannot hold {descriptor.digest} of type {descriptor.media_type!r}",
            hint="Write an OCI archive: --format oci.",
        )
    return encoded + suffix


def _entry(descriptor: oci.Descriptor, annotations: dict[str, str]) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "mediaType": descriptor.media_type,
        "digest": descriptor.digest,
        "size": descriptor.size,
    }
    if descriptor.artifact_type:
        entry["artifactType"] = descriptor.artifact_type
    if annotations:
        entry["annotations"] = annotations
    return entry
