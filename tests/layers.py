"""Small images made by hand, for tests: layers entry by entry, pushed into an in-process registry."""

from __future__ import annotations

import gzip
import io
import platform
import struct
import tarfile
from typing import Any

import zstandard

from lamella import oci
from lamella.digest import digest_of
from lamella.structs import encode

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


def symlink(name: str, target: str, **fields: Any) -> Entry:
    return Entry(name, type=tarfile.SYMTYPE, linkname=target, **fields)


def fifo(name: str, **fields: Any) -> Entry:
    return Entry(name, type=tarfile.FIFOTYPE, **fields)


def device(name: str, major: int, minor: int, *, block: bool = False, **fields: Any) -> Entry:
    kind = tarfile.BLKTYPE if block else tarfile.CHRTYPE
    return Entry(name, type=kind, devmajor=major, devminor=minor, **fields)


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


def program(status: int | None = 0) -> bytes:
    """Give an executable that needs nothing and ends with a status, or never (None): 64-bit ELF, one segment (elf(5))."""
    code = {
        "x86_64": (
            62,
            # mov eax, 34 (pause); syscall; again
            b"\xb8\x22\0\0\0\x0f\x05\xeb\xf7"
            if status is None
            # mov edi, status; mov eax, 231 (exit_group); syscall
            else b"\xbf" + struct.pack("<I", status) + b"\xb8\xe7\0\0\0\x0f\x05",
        ),
        "aarch64": (
            183,
            # mov x0 to x3, 0; mov x8, 73 (ppoll); svc 0; again
            struct.pack("<7I", *(0xD2800000 | n for n in range(4)), 0xD2800928, 0xD4000001, 0x17FFFFFA)
            if status is None
            # mov w0, status; mov w8, 94 (exit_group); svc 0
            else struct.pack("<3I", 0x52800000 | status << 5, 0x52800BC8, 0xD4000001),
        ),
    }
    machine, text = code[platform.machine()]
    start, size = 0x400000, 64 + 56
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", 2, machine, 1, start + size, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    length = size + len(text)
    return header + struct.pack("<IIQQQQQQ", 1, 5, 0, start, start, length, length, 0x1000) + text


class Built:
    """An image as documents and blobs. What a test wants wrong it changes before it pushes."""

    def __init__(self, *tars: bytes, compression: str = "gzip", config: dict[str, Any] | None = None) -> None:
        self.tars = tars
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
        return encode(
            {**self.platform, "config": self.run, "rootfs": {"type": "layers", "diff_ids": self.diff_ids}}
        )

    @property
    def manifest(self) -> bytes:
        return encode(
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


def history(owner: int, *more: Entry) -> Built:
    """Give an image whose upper layer deletes a file, hides what a folder had, and replaces a folder."""
    below = tar(
        folder("etc"),
        file("etc/deleted"),
        file("etc/kept", uid=owner, gid=owner),
        folder("hidden"),
        file("hidden/old"),
        folder("replaced"),
        file("replaced/old"),
        file("su", mode=0o4755),
        symlink("link", "etc/kept"),
        hardlink("hard", "su"),
        *more,
    )
    above = tar(
        folder("etc"),
        whiteout("etc/deleted"),
        folder("hidden"),
        opaque("hidden"),
        file("hidden/new"),
        whiteout("replaced"),
        folder("replaced", mode=0o700),
        file("replaced/new"),
    )
    return Built(below, above)
