"""Whoever unpacks layers: lamella into one folder, and the programs that it is held against.

Each gives the tree that it makes of an image's layers, bottom first, as tree.py reads it. Where a program is known not to do
what the OCI image spec says, or keeps less than the archive has, an allowance says what and why; the rest has to be equal.
"""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lamella import _core
from lamella.digest import digest_of
from layers import Built
from tree import read_tree

Found = dict[str, dict[str, Any]]
Allowance = Callable[[Found, Found], None]
"""Makes what was meant and what was found equal where they may differ."""
STARTED = time.time_ns()


def plain(layers: Sequence[bytes], folder: Path) -> Found:
    """Let lamella apply the layers one after the other to one folder."""
    for layer in layers:
        pipeline = _core.Pipeline(
            digest=digest_of(layer), size=len(layer), compression="none", layer=str(folder), whiteouts="plain"
        )
        pipeline.write(layer)
        pipeline.finish()
    return read_tree(folder)


def gnu_tar(layer: bytes, folder: Path) -> Found:
    """Extract one layer that deletes nothing."""
    keep = (
        "-p",
        "--same-owner",
        "--numeric-owner",
        "--xattrs",
        "--xattrs-include=*",
        "--delay-directory-restore",
    )
    subprocess.run(["tar", "-x", "-f-", "-C", folder, *keep], input=layer, capture_output=True, check=True)
    return read_tree(folder)


class Layout:
    """An OCI layout of many images, by tag."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._manifests: list[dict[str, Any]] = []
        (folder / "blobs/sha256").mkdir(parents=True)
        (folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')

    def add(self, tag: str, image: Built) -> None:
        for blob in [*image.layers, image.config, image.manifest]:
            (self.folder / "blobs" / digest_of(blob).replace(":", "/")).write_bytes(blob)
        self._manifests.append(
            {
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": digest_of(image.manifest),
                "size": len(image.manifest),
                "platform": image.platform,
                "annotations": {"org.opencontainers.image.ref.name": tag},
            }
        )
        index = {"schemaVersion": 2, "manifests": self._manifests}
        (self.folder / "index.json").write_text(json.dumps(index))

    def archive(self) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            archive.add(self.folder, ".")
        return buffer.getvalue()


def umoci(layout: Layout, tag: str, folder: Path) -> Found:
    command = ["umoci", "unpack", "--image", f"{layout.folder}:{tag}", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return read_tree(folder / "rootfs")


class Refused(Exception):
    """An unpacker did not take a layer."""


class Containerd:
    """A running containerd (benches/systems.py) that has imported a layout; it unpacks with its overlayfs snapshotter."""

    def __init__(self, system: Any, layout: Layout) -> None:
        self._system = system
        self._ctr("images", "import", "--no-unpack", "--base-name", "test", "-", data=layout.archive())

    def unpack(self, tag: str, folder: Path) -> Found:
        folder.mkdir()
        self._ctr("images", "mount", f"test:{tag}", str(folder))
        try:
            return read_tree(folder)
        finally:
            self._ctr("images", "unmount", "--rm", str(folder))

    def _ctr(self, *words: str, data: bytes | None = None) -> None:
        done = subprocess.run(self._system.ctr(*words), input=data, capture_output=True, check=False)
        if done.returncode != 0:
            raise Refused(words, done.stdout.decode(), done.stderr.decode())


def folder_times_by_the_clock(meant: Found, found: Found) -> None:
    """A folder that a layer changes without naming it keeps its time, but not with umoci (opaque markers) or containerd."""
    for path in meant.keys() & found.keys():
        if meant[path]["kind"] == found[path]["kind"] == "folder" and found[path]["mtime_ns"] in range(
            STARTED, time.time_ns()
        ):
            found[path]["mtime_ns"] = meant[path]["mtime_ns"]


def times_before_1970(meant: Found, found: Found) -> None:
    """containerd takes them for 1970 (boundTime)."""
    for entry in meant.values():
        entry["mtime_ns"] = max(0, entry["mtime_ns"])


def the_root(meant: Found, found: Found) -> None:
    """containerd makes the root by itself, whatever a layer says of it."""
    found["."] = meant["."]


def trusted_attributes_and_acls(meant: Found, found: Found) -> None:
    """containerd sets no trusted.* attribute, and gives what it makes in a folder that folder's default ACL."""
    for entry in [*meant.values(), *found.values()]:
        entry["xattrs"] = {
            name: value
            for name, value in entry["xattrs"].items()
            if not name.startswith(("trusted.", "system."))
        }


def capabilities_of_linked_files(meant: Found, found: Found) -> None:
    """containerd sets the owner once more with each further name, and that takes security.capability away."""
    for path in meant.keys() & found.keys():
        if "security.capability" not in found[path]["xattrs"]:
            meant[path]["xattrs"].pop("security.capability", None)


def attributes_of_copied_folders(meant: Found, found: Found) -> None:
    """containerd copies the folder beneath when a layer goes into one before it names it, and leaves that one's attributes."""
    for path in meant.keys() & found.keys():
        if meant[path]["kind"] == found[path]["kind"] == "folder":
            kept = found[path]["xattrs"].keys() & meant[path]["xattrs"].keys()
            found[path]["xattrs"] = {name: found[path]["xattrs"][name] for name in sorted(kept)}


def names_that_part(meant: Found, found: Found) -> None:
    """Overlayfs shows an inode that is copied up under some of its names as two (without its index feature)."""
    for path, entry in found.items():
        names = set(entry.pop("names", [path]))
        assert path not in meant or names <= set(meant[path].get("names", [path])), path
    for entry in meant.values():
        entry.pop("names", None)


UMOCI = (folder_times_by_the_clock,)
CONTAINERD = (
    the_root,
    times_before_1970,
    folder_times_by_the_clock,
    trusted_attributes_and_acls,
    capabilities_of_linked_files,
    attributes_of_copied_folders,
    names_that_part,
)
