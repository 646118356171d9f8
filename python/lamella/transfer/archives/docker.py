"""The documents of a docker-archive: manifest.json (docker since 1.10), or ``repositories`` and a chain of layers before that.

There is no manifest in it, so one is made, always the same: a Docker schema 2 manifest, byte for byte as containerd makes it
of the same archive, so that the image has the same digest here and there (containerd, core/images/archive/importer.go). A
layer that is a plain tar is its own diffID, of which the config tells; a compressed one is hashed. Sources: moby,
image/spec/v1.2.md ("Combined Image JSON + Filesystem Changeset Format") and image/v1/imagev1.go.
"""

from __future__ import annotations

import msgspec

from lamella import oci
from lamella.digest import Digest, digest_of
from lamella.errors import InvalidArgument, Unsupported
from lamella.structs import Struct, encode
from lamella.transfer.archives.contents import Contents, Entry
from lamella.transfer.archives.files import Files
from lamella.typings import Any

MANIFEST = "manifest.json"
REPOSITORIES = "repositories"
LAYERS_MAX = 1000
_V1_ONLY = ("id", "parent", "Size", "parent_id", "layer_id", "throwaway")
"""Fields of the oldest configs that say nothing of the image (moby, MakeConfigFromV1Config)."""


class _Image(Struct, rename="pascal"):
    config: str
    layers: list[str] | None = None
    repo_tags: list[str] | None = None


def read_docker_archive(files: Files) -> Contents | None:
    """Read manifest.json, else ``repositories``; None where neither is. InvalidArgument, NotFound, Unsupported."""
    contents = Contents()
    if (member := files.find(MANIFEST)) is not None:
        for image in files.decode(member, list[_Image]):
            names = list(dict.fromkeys(image.repo_tags or ()))
            contents.entries.append(Entry(_make_image(files, contents, image), names))
        return contents
    if (member := files.find(REPOSITORIES)) is not None:
        images: dict[str, list[str]] = {}
        for repository, tags in files.decode(member, dict[str, dict[str, str]]).items():
            for tag, image_id in tags.items():
                images.setdefault(image_id, []).append(f"{repository}:{tag}")
        for image_id, names in images.items():
            contents.entries.append(Entry(_make_old_image(files, contents, image_id), names))
        return contents
    return None


def _make_image(files: Files, contents: Contents, image: _Image) -> oci.Descriptor:
    """Make the manifest of an entry of manifest.json."""
    data = files.read(files.need(image.config))
    diff_ids = oci.parse_config(data).rootfs.diff_ids
    layers = image.layers or []
    if len(diff_ids) != len(layers):
        raise InvalidArgument(
            f"an image of the archive has {len(layers)} layers, its config {image.config[:200]!r} {len(diff_ids)} diffIDs"
        )
    described = [
        _layer(files, contents, name, diff_id) for name, diff_id in zip(layers, diff_ids, strict=True)
    ]
    return _manifest(contents, data, described)


def _manifest(contents: Contents, config: bytes, layers: list[oci.Descriptor]) -> oci.Descriptor:
    described = oci.Descriptor(media_type=oci.DOCKER_CONFIG, digest=digest_of(config), size=len(config))
    # The order of the fields is that of containerd's.
    data = encode(
        {"schemaVersion": 2, "mediaType": oci.DOCKER_MANIFEST, "config": described, "layers": layers}
    )
    target = oci.Descriptor(media_type=oci.DOCKER_MANIFEST, digest=digest_of(data), size=len(data))
    contents.made |= {described.digest: config, target.digest: data}
    return target


def _layer(files: Files, contents: Contents, name: str, diff_id: Digest | None) -> oci.Descriptor:
    """Describe a layer and note where it is; ``diff_id`` is None where nothing tells it."""
    member = files.need(name)
    magic = files.head(member, 6)
    if magic.startswith(b"\x1f\x8b"):
        media_type, digest = oci.DOCKER_LAYER_GZIP, files.digest(member)
    elif magic.startswith(b"\x28\xb5\x2f\xfd"):
        media_type, digest = oci.DOCKER_LAYER_ZSTD, files.digest(member)
    elif magic.startswith((b"BZh", b"\xfd7zXZ\0")):
        raise Unsupported(f"the layer {name[:200]!r} of the archive is compressed by bzip2 or xz")
    else:
        media_type, digest = oci.DOCKER_LAYER, diff_id or files.digest(member)
    contents.places[digest] = member.name
    return oci.Descriptor(media_type=media_type, digest=digest, size=member.size)


def _make_old_image(files: Files, contents: Contents, image_id: str) -> oci.Descriptor:
    """Make config and manifest of the top one of a chain of layers, each of which has a folder with its own config."""
    chain: list[dict[str, Any]] = []
    layers: list[oci.Descriptor] = []
    at = image_id
    while at:
        config = files.decode(files.need(f"{at}/json"), dict[str, Any])
        chain.append(config)
        layers.append(_layer(files, contents, f"{at}/layer.tar", None))
        if layers[-1].media_type != oci.DOCKER_LAYER:
            raise Unsupported(
                f"the layer {at[:200]!r} of the archive is compressed, which this format does not know"
            )
        if len(chain) > LAYERS_MAX:
            raise InvalidArgument(
                f"the image {image_id[:200]!r} of the archive has more than {LAYERS_MAX} layers"
            )
        parent = config.get("parent") or ""
        if not isinstance(parent, str):
            raise InvalidArgument(f"{at[:200]!r} in the archive has a parent that is no name")
        at = parent
    layers.reverse()
    made = {key: value for key, value in chain[0].items() if key not in _V1_ONLY}
    made["rootfs"] = {"type": "layers", "diff_ids": [layer.digest for layer in layers]}
    made["history"] = [_history(config) for config in reversed(chain)]
    return _manifest(contents, msgspec.json.encode(made, order="sorted"), layers)


def _history(config: dict[str, Any]) -> dict[str, Any]:
    """Give a layer's line of the history."""
    command = (config.get("container_config") or {}).get("Cmd")
    line = {
        "created": config.get("created"),
        "author": config.get("author"),
        "created_by": " ".join(map(str, command)) if isinstance(command, list) else None,
        "comment": config.get("comment"),
    }
    return {key: value for key, value in line.items() if value}
