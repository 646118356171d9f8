"""Make a small OCI image out of this machine's own shell, a few tools and the libraries they link to.

Three gzip layers, so that everything a layered image can do is in it: a base, a layer of tools, and a layer
that replaces one file, deletes one with a whiteout and adds an application. It needs no network and no
program beyond ``ldd``.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

SHELL = "sh"
FILE_TOOLS = ("cat", "chmod", "ls", "mkdir", "rm", "stat", "touch", "wc")
OTHER_TOOLS = ("echo", "env", "false", "hostname", "id", "pwd", "sleep", "true", "uname")
MODIFIED = 1_700_000_000  # every file's time: the image is the same whenever it is built
ARCHITECTURES = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv7l": "arm",
    "riscv64": "riscv64",
    "ppc64le": "ppc64le",
}
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
PLAIN_LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
GZIP_LAYER_TYPE = PLAIN_LAYER_TYPE + "+gzip"


class MachineImage(NamedTuple):
    """A manifest and the blobs that it names, by digest, in the order in which they are to be pushed."""

    manifest: bytes
    blobs: dict[str, bytes]

    @property
    def digest(self) -> str:
        """Give the digest of the manifest."""
        return _digest(self.manifest)

    def push(self, address: str, repository: str, tag: str) -> None:
        """Upload to a registry that is reached over plain HTTP, by the distribution API."""
        import requests

        with requests.Session() as session:
            session.trust_env = False
            base = f"http://{address}/v2/{repository}"
            for digest, data in self.blobs.items():
                started = session.post(f"{base}/blobs/uploads/")
                started.raise_for_status()
                location = requests.compat.urljoin(f"{base}/", started.headers["Location"])
                session.put(location, params={"digest": digest}, data=data).raise_for_status()
            headers = {"Content-Type": MANIFEST_TYPE}
            session.put(f"{base}/manifests/{tag}", data=self.manifest, headers=headers).raise_for_status()


class Layer:
    """A layer's tar, as it is written."""

    def __init__(self) -> None:
        """Start an empty layer."""
        self._buffer = io.BytesIO()
        self._tar = tarfile.TarFile(fileobj=self._buffer, mode="w", format=tarfile.PAX_FORMAT)
        self._folders: set[str] = set()

    def folder(self, path: str, mode: int = 0o755) -> None:
        """Add a folder and those above it, once."""
        parent = os.path.dirname(path)  # noqa: PTH120 - these are names in a tar, not paths of this machine
        if parent:
            self.folder(parent)
        if path not in self._folders:
            self._folders.add(path)
            self._add(path, tarfile.DIRTYPE, mode)

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Add a regular file."""
        self._parent(path)
        self._add(path, tarfile.REGTYPE, mode, data)

    def symlink(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        self._parent(path)
        self._add(path, tarfile.SYMTYPE, 0o777, link=target)

    def hard_link(self, path: str, target: str) -> None:
        """Add another name of a file of this layer."""
        self._parent(path)
        self._add(path, tarfile.LNKTYPE, 0o644, link=target)

    def whiteout(self, path: str) -> None:
        """Delete what a lower layer has at a path."""
        folder, _, name = path.rpartition("/")
        self.file(f"{folder}/.wh.{name}" if folder else f".wh.{name}", b"")

    def finish(self) -> bytes:
        """Give the tar."""
        self._tar.close()
        return self._buffer.getvalue()

    def _parent(self, path: str) -> None:
        folder = path.rpartition("/")[0]
        if folder:
            self.folder(folder)

    def _add(self, path: str, kind: bytes, mode: int, data: bytes = b"", link: str = "") -> None:
        entry = tarfile.TarInfo(path)
        entry.type, entry.mode, entry.size, entry.linkname, entry.mtime = (
            kind,
            mode,
            len(data),
            link,
            MODIFIED,
        )
        self._tar.addfile(entry, io.BytesIO(data))


def build(*, compress: bool = True) -> MachineImage:
    """Build the image in memory, with gzip layers unless told otherwise. The same machine gives the same digests."""
    shell = _program(SHELL)
    if shell is None:
        raise FileNotFoundError("this machine has no sh on PATH")
    present: set[str] = set()
    base = Layer()
    for folder, mode in (
        ("dev", 0o755),
        ("etc", 0o755),
        ("proc", 0o755),
        ("root", 0o700),
        ("sys", 0o755),
        ("tmp", 0o1777),
    ):
        base.folder(folder, mode)
    base.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n")
    base.file("etc/group", b"root:x:0:\ntty:x:5:\nnogroup:x:65534:\n")
    base.file("etc/motd", b"the base layer's message\n")
    base.file("etc/only-in-base", b"a later layer deletes this\n")
    base.symlink("usr/bin", "../bin")
    _add_programs(base, [("sh", shell)], present)

    tools = Layer()
    programs = [(name, path) for name in FILE_TOOLS + OTHER_TOOLS if (path := _program(name)) is not None]
    _add_programs(tools, programs, present)
    tools.file("usr/share/tools", "".join(f"{name}\n" for name, _ in programs).encode())
    tools.hard_link("usr/share/tools-again", "usr/share/tools")

    application = Layer()
    application.whiteout("etc/only-in-base")
    application.file("etc/motd", b"the top layer's message\n")
    application.file(
        "app/hello", b'#!/bin/sh\necho "hello from $(hostname), process $$, user $(id -u)"\n', 0o755
    )
    return _assemble([base.finish(), tools.finish(), application.finish()], compress=compress)


def _assemble(tars: list[bytes], *, compress: bool) -> MachineImage:
    blobs: dict[str, bytes] = {}
    layers = []
    for tar in tars:
        if compress:
            layers.append(_store(blobs, GZIP_LAYER_TYPE, gzip.compress(tar, compresslevel=6, mtime=0)))
        else:
            layers.append(_store(blobs, PLAIN_LAYER_TYPE, tar))
    config = {
        "created": "2023-11-14T22:13:20Z",
        "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {
            "Cmd": ["/bin/sh"],
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "Labels": {"org.opencontainers.image.title": "this machine's own tools"},
            "WorkingDir": "/",
        },
        "rootfs": {"type": "layers", "diff_ids": [_digest(tar) for tar in tars]},
        "history": [
            {"created_by": "sh and its libraries"},
            {"created_by": "tools"},
            {"created_by": "the application; one file deleted"},
        ],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": _store(blobs, CONFIG_TYPE, json.dumps(config, separators=(",", ":")).encode()),
        "layers": layers,
    }
    return MachineImage(json.dumps(manifest, separators=(",", ":")).encode(), blobs)


def _store(blobs: dict[str, bytes], media_type: str, data: bytes) -> dict[str, Any]:
    digest = _digest(data)
    blobs[digest] = data
    return {"mediaType": media_type, "digest": digest, "size": len(data)}


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _program(name: str) -> Path | None:
    found = shutil.which(name, path="/bin:/usr/bin:/usr/local/bin:" + os.environ.get("PATH", ""))
    return Path(found) if found else None


def _add_programs(layer: Layer, programs: list[tuple[str, Path]], present: set[str]) -> None:
    """Add programs as /bin/NAME, and their libraries that are not there yet where the loader looks."""
    for name, path in programs:
        layer.file(f"bin/{name}", path.read_bytes(), 0o755)
        for library in _libraries(path):
            if library not in present:
                present.add(library)
                layer.file(library.lstrip("/"), Path(library).read_bytes(), 0o755)


def _libraries(program: Path) -> list[str]:
    """Give what a program links to, as absolute paths; nothing for a static one or a script."""
    listed = subprocess.run(
        ["ldd", program], capture_output=True, text=True, env={"LC_ALL": "C"}, check=False
    )
    paths = []
    for line in listed.stdout.splitlines():
        words = line.replace("=>", " ").split()
        paths += [word for word in words if word.startswith("/") and Path(word).is_file()][-1:]
    return paths
