"""Small images made by hand, for tests: layers entry by entry, pushed into an in-process registry."""

from __future__ import annotations

import gzip
import io
import tarfile
from typing import Any

import msgspec
import zstandard

from lamella import oci
from lamella.digest import digest_of

MEDIA_TYPES = {"gzip": oci.OCI_LAYER_GZIP, "zstd": oci.OCI_LAYER_ZSTD, "none": oci.OCI_LAYER}


class Entry:
    """One tar entry; a folder's name ends in a slash."""

    def __init__(self, name: str, data: bytes = b"", **fields: Any) -> None:
        self.info = tarfile.TarInfo(name.rstrip("/") or "./")
        self.info.mode = 0o755 if name.endswith("/") else 0o644
        self.info.mtime = 1_700_000_000
        if name.endswith("/"):
            self.info.type = tarfile.DIRTYPE
        self.info.size = len(data)
        self.data = data
        for field, value in fields.items():
            setattr(self.info, field, value)


def file(name: str, data: bytes = b"data", **fields: Any) -> Entry:
    return Entry(name, data, **fields)


def folder(name: str, **fields: Any) -> Entry:
    return Entry(name.rstrip("/") + "/", **fields)


def symlink(name: str, target: str) -> Entry:
    return Entry(name, type=tarfile.SYMTYPE, linkname=target)


def hardlink(name: str, target: str) -> Entry:
    return Entry(name, type=tarfile.LNKTYPE, linkname=target)


def whiteout(path: str) -> Entry:
    parent, _, name = path.rpartition("/")
    return Entry(f"{parent}/.wh.{name}" if parent else f".wh.{name}")


def opaque(path: str) -> Entry:
    return Entry(f"{path}/.wh..wh..opq" if path else ".wh..wh..opq")


def tar(*entries: Entry) -> bytes:
    """Give the bytes of a layer."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for entry in entries:
            archive.addfile(entry.info, io.BytesIO(entry.data) if entry.data else None)
    return buffer.getvalue()


def compress(data: bytes, compression: str = "gzip") -> bytes:
    if compression == "gzip":
        return gzip.compress(data, 1, mtime=0)
    return zstandard.compress(data) if compression == "zstd" else data


class Built:
    """An image as documents and blobs. What a test wants wrong it changes before it pushes."""

    def __init__(self, *tars: bytes, compression: str = "gzip", config: dict[str, Any] | None = None) -> None:
        self.layers = [compress(data, compression) for data in tars]
        self.diff_ids = [digest_of(data) for data in tars]
        self.descriptors = [
            oci.Descriptor(media_type=MEDIA_TYPES[compression], digest=digest_of(blob), size=len(blob))
            for blob in self.layers
        ]
        self.run: dict[str, Any] = config or {"Cmd": ["/bin/sh"]}
        self.platform = {"os": "linux", "architecture": _architecture()}

    @property
    def config(self) -> bytes:
        return msgspec.json.encode(
            {**self.platform, "config": self.run, "rootfs": {"type": "layers", "diff_ids": self.diff_ids}}
        )

    @property
    def manifest(self) -> bytes:
        return msgspec.json.encode(
            {
                "schemaVersion": 2,
                "mediaType": oci.OCI_MANIFEST,
                "config": oci.Descriptor(
                    media_type=oci.OCI_CONFIG, digest=digest_of(self.config), size=len(self.config)
                ),
                "layers": self.descriptors,
            }
        )

    def push(self, server: Any, repository: str = "made", tag: str = "latest") -> str:
        """Put it into a RegistryServer; give its reference."""
        for blob in [*self.layers, self.config]:
            server.push_blob(repository, blob)
        server.push_manifest(repository, tag, self.manifest)
        return f"{server.address}/{repository}:{tag}"


def _architecture() -> str:
    from lamella.platforms import default_platform

    return default_platform().architecture
