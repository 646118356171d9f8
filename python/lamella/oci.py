"""Typed models of the OCI image documents and of their Docker schema 2 twins.

Bytes from a registry are parsed here, once, into frozen values; nothing else in the package touches their JSON.
Source: OCI image spec 1.1 (descriptor, manifest, image-index, config), Docker image manifest v2 schema 2.
Sizes are bytes. Documents over DOCUMENT_MAX are refused before they are parsed.
"""

from __future__ import annotations

from lamella import structs
from lamella.digest import Digest, digest_of, parse_digest
from lamella.errors import InvalidArgument, ResourceExhausted, Unsupported
from lamella.structs import Malformed, Struct, convert, decode
from lamella.typings import Any, Literal

Compression = Literal["none", "gzip", "zstd"]
DOCUMENT_MAX = 4 * 1024 * 1024
CHILDREN_MAX = 10_000
"""Manifests of an index, or layers of a manifest, that are taken at most."""

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP = OCI_LAYER + "+gzip"
OCI_LAYER_ZSTD = OCI_LAYER + "+zstd"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP = DOCKER_LAYER + ".gzip"
DOCKER_LAYER_ZSTD = DOCKER_LAYER + ".zstd"
DOCKER_FOREIGN_LAYER = "application/vnd.docker.image.rootfs.foreign.diff.tar"
DOCKER_FOREIGN_LAYER_GZIP = DOCKER_FOREIGN_LAYER + ".gzip"
DOCKER_FOREIGN_LAYER_ZSTD = DOCKER_FOREIGN_LAYER + ".zstd"
OCI_NONDISTRIBUTABLE = "application/vnd.oci.image.layer.nondistributable.v1.tar"
OCI_NONDISTRIBUTABLE_GZIP = OCI_NONDISTRIBUTABLE + "+gzip"
OCI_NONDISTRIBUTABLE_ZSTD = OCI_NONDISTRIBUTABLE + "+zstd"
OCI_EMPTY = "application/vnd.oci.empty.v1+json"
"""What an artifact without a config, or without layers, has in their place: ``{}``."""

INDEX_TYPES = frozenset({OCI_INDEX, DOCKER_INDEX})
MANIFEST_TYPES = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
CONFIG_TYPES = frozenset({OCI_CONFIG, DOCKER_CONFIG})
DOCKER_SCHEMA1_TYPES = frozenset(
    {
        "application/vnd.docker.distribution.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
    }
)
LAYER_COMPRESSION: dict[str, Compression] = {
    OCI_LAYER: "none",
    OCI_LAYER_GZIP: "gzip",
    OCI_LAYER_ZSTD: "zstd",
    DOCKER_LAYER: "none",
    DOCKER_LAYER_GZIP: "gzip",
    DOCKER_LAYER_ZSTD: "zstd",
    OCI_NONDISTRIBUTABLE: "none",
    OCI_NONDISTRIBUTABLE_GZIP: "gzip",
    OCI_NONDISTRIBUTABLE_ZSTD: "zstd",
    DOCKER_FOREIGN_LAYER: "none",
    DOCKER_FOREIGN_LAYER_GZIP: "gzip",
    DOCKER_FOREIGN_LAYER_ZSTD: "zstd",
}


class Platform(Struct, frozen=True, rename={"os_version": "os.version", "os_features": "os.features"}):
    """What a manifest of an index is for."""

    os: str = ""
    architecture: str = ""
    variant: str | None = None
    os_version: str | None = None
    os_features: list[str] | None = None

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


class Descriptor(Struct, frozen=True, rename="camel", omit_defaults=True):
    """A typed, sized, content-addressed pointer."""

    media_type: str
    digest: Digest
    size: int
    annotations: dict[str, str] | None = None
    platform: Platform | None = None
    urls: list[str] | None = None
    data: str | None = None
    artifact_type: str | None = None

    def __str__(self) -> str:
        return f"{self.digest} ({self.media_type}, {self.size} bytes)"


class Index(Struct, frozen=True, rename="camel"):
    """Manifests of one image for several platforms."""

    manifests: list[Descriptor]
    media_type: str | None = None
    annotations: dict[str, str] | None = None
    artifact_type: str | None = None
    subject: Descriptor | None = None


class Manifest(Struct, frozen=True, rename="camel"):
    """One image for one platform: a config and layers, bottom first."""

    config: Descriptor
    layers: list[Descriptor]
    media_type: str | None = None
    annotations: dict[str, str] | None = None
    artifact_type: str | None = None
    subject: Descriptor | None = None


class RunConfig(Struct, frozen=True, rename="pascal"):
    """The ``config`` object of an image config: defaults for a container."""

    user: str = ""
    env: list[str] | None = None
    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    working_dir: str = ""
    labels: dict[str, str] | None = None
    stop_signal: str | None = None
    exposed_ports: dict[str, Any] | None = None
    volumes: dict[str, Any] | None = None


class RootFS(Struct, frozen=True):
    """The diffIDs of the layers, bottom first."""

    diff_ids: list[Digest]
    type: str = "layers"


class ImageConfig(Struct, frozen=True, rename={"os_version": "os.version"}):
    """An image's config document."""

    architecture: str = ""
    os: str = ""
    variant: str | None = None
    os_version: str | None = None
    rootfs: RootFS = RootFS(diff_ids=[])
    config: RunConfig | None = None
    created: str | None = None
    history: list[dict[str, Any]] | None = None

    @property
    def run(self) -> RunConfig:
        """Give the container defaults, empty ones if the document has none."""
        return self.config or RunConfig()

    @property
    def platform(self) -> Platform:
        """Give the platform the image is built for."""
        return Platform(
            os=self.os, architecture=self.architecture, variant=self.variant, os_version=self.os_version
        )


def check_descriptor(descriptor: Descriptor) -> Descriptor:
    """Raise InvalidArgument for a negative size or a malformed digest; return the descriptor otherwise."""
    parse_digest(descriptor.digest)
    if descriptor.size < 0:
        raise InvalidArgument(f"descriptor {descriptor.digest} has the negative size {descriptor.size}")
    return descriptor


def parse_index(data: bytes) -> Index:
    """Parse an index; InvalidArgument if malformed, ResourceExhausted if over DOCUMENT_MAX or CHILDREN_MAX."""
    index: Index = _parse(Index, data, "index", refuse=("layers", "config"))
    _check_breadth(index.manifests, "index")
    for descriptor in index.manifests:
        check_descriptor(descriptor)
    return index


def parse_manifest(data: bytes) -> Manifest:
    """Parse a manifest; errors as :func:`parse_index`. One that is also an index is refused (CVE-2021-41190)."""
    manifest: Manifest = _parse(Manifest, data, "manifest", refuse=("manifests", "fsLayers"))
    _check_breadth(manifest.layers, "manifest")
    check_descriptor(manifest.config)
    for descriptor in manifest.layers:
        check_descriptor(descriptor)
    return manifest


def parse_config(data: bytes) -> ImageConfig:
    """Parse an image config; errors as :func:`parse_index`."""
    config: ImageConfig = _parse(ImageConfig, data, "image config", refuse=())
    for diff_id in config.rootfs.diff_ids:
        parse_digest(diff_id)
    return config


def references(data: bytes, media_type: str) -> list[tuple[str, Descriptor]]:
    """Give what an index or manifest leads to, each under the name that containerd's gc labels have for it.

    ``m.N`` are an index's manifests, ``config`` and ``l.N`` a manifest's parts. Errors as :func:`document_type`.
    """
    if document_type(data, media_type) in INDEX_TYPES:
        return [(f"m.{number}", child) for number, child in enumerate(parse_index(data).manifests)]
    manifest = parse_manifest(data)
    layers = [(f"l.{number}", layer) for number, layer in enumerate(manifest.layers)]
    return [("config", manifest.config), *layers]


def subject_of(data: bytes) -> Descriptor | None:
    """Give what an index or manifest refers to as its ``subject`` (OCI image spec, manifest.md); None for most."""
    subject: Descriptor | None = _parse(_Relation, data, "manifest document", refuse=()).subject
    return subject and check_descriptor(subject)


def describe_referrer(digest: Digest, data: bytes) -> Descriptor:
    """Describe a manifest as the list of referrers does (distribution spec, "Listing Referrers")."""
    related: _Relation = _parse(_Relation, data, "manifest document", refuse=())
    config_type = related.config.media_type if related.config else None
    return Descriptor(
        media_type=document_type(data, related.media_type),
        digest=digest,
        size=len(data),
        annotations=related.annotations,
        artifact_type=related.artifact_type or config_type,
    )


def is_foreign(descriptor: Descriptor) -> bool:
    """Say whether a layer's author forbids to distribute it: it is fetched from its own URLs, if at all."""
    return descriptor.media_type.startswith((OCI_NONDISTRIBUTABLE, DOCKER_FOREIGN_LAYER))


def document_type(data: bytes, declared: str | None) -> str:
    """Say which media type a manifest document has, by its own ``mediaType`` field and the ``declared`` one.

    Both are known and differ: InvalidArgument. Docker schema 1 and everything that is neither index nor manifest:
    Unsupported. Neither says: an index if there are ``manifests``, a manifest if there are ``layers``.
    """
    _check_size(data, "manifest document")
    try:
        document = decode(data, dict[str, Any])
        probe = convert(document, _Probe)
    except Malformed as error:
        raise InvalidArgument(f"the manifest document is not valid JSON: {error}") from None
    declared = (declared or "").partition(";")[0].strip() or None
    known = INDEX_TYPES | MANIFEST_TYPES
    if declared in DOCKER_SCHEMA1_TYPES or probe.schema_version == 1:
        raise Unsupported(
            "the image is a Docker schema 1 manifest, a format that was retired in 2017",
            hint="Push the image again with a current tool.",
        )
    if probe.media_type and declared in known and probe.media_type != declared:
        raise InvalidArgument(f"the document calls itself {probe.media_type!r}, its source says {declared!r}")
    media_type = probe.media_type or (declared if declared in known else None)
    is_index, is_manifest = "manifests" in document, "layers" in document
    if media_type is None and is_index != is_manifest:
        media_type = OCI_INDEX if is_index else OCI_MANIFEST
    if media_type not in known:
        raise Unsupported(
            f"media type {media_type or declared!r} is neither an image index nor an image manifest"
        )
    return media_type


class _Relation(Struct, frozen=True, rename="camel"):
    """What indexes and manifests have in common."""

    media_type: str | None = None
    config: Descriptor | None = None
    subject: Descriptor | None = None
    artifact_type: str | None = None
    annotations: dict[str, str] | None = None


class _Probe(Struct, rename="camel"):
    schema_version: int | None = None
    media_type: str | None = None


def _check_size(data: bytes, what: str) -> None:
    if len(data) > DOCUMENT_MAX:
        raise ResourceExhausted(f"the {what} has {len(data)} bytes, at most {DOCUMENT_MAX} are read")


def _check_breadth(children: list[Descriptor], what: str) -> None:
    if len(children) > CHILDREN_MAX:
        raise ResourceExhausted(f"the {what} has {len(children)} entries, at most {CHILDREN_MAX} are taken")


def _parse(kind: Any, data: bytes, what: str, *, refuse: tuple[str, ...]) -> Any:
    _check_size(data, what)
    try:
        document = decode(data, dict[str, Any])
        value = convert(document, kind)
    except Malformed as error:
        raise InvalidArgument(f"the {what} is malformed: {error}") from None
    both = [key for key in refuse if key in document]
    if both:
        raise InvalidArgument(
            f"the {what} also has the field {both[0]!r} of another document type, which is refused"
        )
    return value


def chain_ids(diff_ids: list[Digest]) -> list[Digest]:
    """Give the chainID of each layer, bottom first (OCI image spec, config.md, "Layer ChainID")."""
    chain: list[Digest] = []
    for diff_id in diff_ids:
        chain.append(chain_id(chain[-1] if chain else "", diff_id))
    return chain


def chain_id(parent: str, diff_id: Digest) -> Digest:
    """Give the chainID of a layer on top of the chain ``parent``; ``""`` where nothing is beneath it."""
    return digest_of(f"{parent} {diff_id}".encode()) if parent else diff_id


def compression_of(descriptor: Descriptor) -> Compression:
    """Say how a layer is compressed: ``none``, ``gzip`` or ``zstd``. Unsupported for what is no known layer."""
    compression = LAYER_COMPRESSION.get(descriptor.media_type)
    if compression is None:
        raise Unsupported(
            f"layer {descriptor.digest} has media type {descriptor.media_type!r}, which is not a layer format",
            hint="Artifacts that are no container images can be fetched without unpacking (--no-unpack).",
        )
    return compression


def encode(document: Any) -> bytes:
    """Encode a model as compact JSON; the inverse of the parsers."""
    return structs.encode(document)
