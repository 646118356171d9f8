"""Archives of images made by hand, for tests: a mapping from names to bytes, and the tar of it."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from typing import Any

from lamella import oci
from lamella.digest import digest_of
from lamella.structs import encode
from layers import Built, file, tar

Content = dict[str, bytes]


def small(text: str = "text", **fields: Any) -> Built:
    """An image of two layers; a layer's content tells it from others."""
    return Built(tar(file("etc/one", b"one")), tar(file("etc/two", text.encode())), **fields)


def blob(data: bytes) -> tuple[str, bytes]:
    return f"blobs/sha256/{digest_of(data).partition(':')[2]}", data


def blobs(image: Built) -> Content:
    return dict(map(blob, [*image.layers, image.config, image.manifest]))


def describe(data: bytes, media_type: str = oci.OCI_MANIFEST, **fields: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data), **fields}


def named(name: str | None, data: bytes, media_type: str = oci.OCI_MANIFEST, **fields: Any) -> dict[str, Any]:
    """An entry of index.json."""
    annotations = {"org.opencontainers.image.ref.name": name} if name else {}
    return describe(data, media_type, annotations=annotations, **fields)


def index_of(*entries: dict[str, Any], **fields: Any) -> bytes:
    return json.dumps({"schemaVersion": 2, "manifests": entries, **fields}).encode()


def layout(*entries: dict[str, Any], content: Mapping[str, bytes]) -> Content:
    return {
        "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
        **content,
        "index.json": index_of(*entries),
    }


def layout_of(image: Built, name: str | None = "example.com/app:v1") -> Content:
    return layout(named(name, image.manifest), content=blobs(image))


def docker_of(image: Built, *tags: str, suffix: str = ".tar") -> Content:
    """What docker wrote before it wrote OCI layouts: ``image`` is to be one of uncompressed layers."""
    config = f"{digest_of(image.config).partition(':')[2]}.json"
    names = [f"{digest_of(layer).partition(':')[2]}{suffix}" for layer in image.layers]
    entry = {"Config": config, "RepoTags": tags or None, "Layers": names}
    return {
        **dict(zip(names, image.layers, strict=True)),
        config: image.config,
        "manifest.json": json.dumps([entry]).encode(),
    }


def new_docker_of(image: Built, *tags: str) -> Content:
    """What docker writes since version 25: an OCI layout with its own documents of before beside it."""
    repositories: dict[str, dict[str, str]] = {}
    for name in tags:
        repository, _, tag = name.rpartition(":")
        repositories.setdefault(repository, {})[tag] = "f" * 64
    entries = []
    for name in tags:
        entry = named(name.rpartition(":")[2], image.manifest)
        entry["annotations"]["io.containerd.image.name"] = name
        entries.append(entry)
    config, *places = (blob(data)[0] for data in (image.config, *image.layers))
    sources = dict(zip(image.diff_ids, image.descriptors, strict=True))
    about = {"Config": config, "RepoTags": tags, "Layers": places, "LayerSources": sources}
    return {
        **layout(*entries, content=blobs(image)),
        "manifest.json": encode([about]),
        "repositories": json.dumps(repositories).encode(),
    }


def directory_of(image: Built) -> Content:
    """What skopeo writes as ``dir:``."""
    parts = {digest_of(data).partition(":")[2]: data for data in (image.config, *image.layers)}
    return {"version": b"Directory Transport Version: 1.1\n", **parts, "manifest.json": image.manifest}


def old_docker_of(
    image: Built, repositories: Mapping[str, Mapping[str, str]], *, links: bool = False
) -> Content:
    """What docker wrote before 1.10: a folder for each layer, named by an identifier, with its own config."""
    content: Content = {}
    parent = ""
    for number, layer in enumerate(image.layers):
        name = f"{number:x}" * 64
        config: dict[str, Any] = {
            "id": name,
            "created": f"2015-01-0{number + 1}T00:00:00Z",
            "container_config": {"Cmd": ["/bin/sh", "-c", f"#(nop) ADD {number}"]},
            "Size": len(layer),
            **image.platform,
        }
        if parent:
            config["parent"] = parent
        if number == len(image.layers) - 1:
            config["config"] = image.run
        content |= {f"{name}/VERSION": b"1.0", f"{name}/json": json.dumps(config).encode()}
        content[f"{name}/layer.tar"] = layer
        parent = name
    content["repositories"] = json.dumps(repositories).encode()
    return content


def member(name: str, data: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=kind, linkname=target)


def tar_of(
    content: Mapping[str, bytes], *more: tuple[tarfile.TarInfo, bytes], order: Iterable[str] | None = None
) -> bytes:
    """Make a tar of it, in the mapping's order or another, and of further members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, data in [*(member(name, content[name]) for name in order or content), *more]:
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


class Pipe(io.RawIOBase):
    """Bytes that can be read once, in pieces of any length, as from a pipe."""

    def __init__(self, data: bytes, piece: int = 1 << 30) -> None:
        self._rest = memoryview(data)
        self._piece = piece

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = min(len(buffer), len(self._rest), self._piece)
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


def artifact(subject: bytes | None = None, kind: str = "application/vnd.example.sbom") -> bytes:
    """A manifest that is no image, with the empty config; perhaps one that refers to another."""
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": oci.OCI_MANIFEST,
        "artifactType": kind,
        "config": describe(b"{}", "application/vnd.oci.empty.v1+json"),
        "layers": [describe(b"what it says", "text/plain")],
    }
    if subject is not None:
        document["subject"] = describe(subject)
    return encode(document)


def artifact_blobs(data: bytes) -> Content:
    return dict(map(blob, [b"{}", b"what it says", data]))
