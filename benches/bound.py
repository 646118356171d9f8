"""The bound of a cold pull: the CPU time of the work that cannot be left out, done by the best plain tool for each part.

Parts, each measured alone, with its input in memory, on the disk that the systems get:

* inflate: ``igzip -dc`` (ISA-L) when installed, else ``gzip -dc``, into /dev/null
* hash: SHA-256 of the blobs and of the tars, by hashlib (OpenSSL, with the CPU's SHA instructions)
* apply: GNU ``tar -x`` of the layers, one over the other, as root, with owners, times and xattrs
* write: the blobs, written to files

The sum is divided by 2: with two cores and perfect overlap nothing could be faster.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import time
from typing import TYPE_CHECKING

from measure import run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CORES = 2
PIECE = 1 << 20


def layer_blobs(layout: Path) -> list[Path]:
    """Give the layers of an OCI layout with one image, lowest first."""

    def blob(digest: str) -> Path:
        return layout / "blobs" / digest.replace(":", "/")

    index = json.loads((layout / "index.json").read_text())
    manifest = json.loads(blob(index["manifests"][0]["digest"]).read_text())
    return [blob(layer["digest"]) for layer in manifest["layers"]]


def inflate_tool() -> str:
    """Give the program that inflates for the bound."""
    return shutil.which("igzip") or shutil.which("gzip") or "gzip"


def tars_of(layout: Path, folder: Path) -> list[Path]:
    """Inflate the layers into a folder, once a run; it should be in memory."""
    tars = []
    for number, blob in enumerate(layer_blobs(layout)):
        tar = folder / f"{number}.tar"
        with tar.open("wb") as file:
            subprocess.run([inflate_tool(), "-dc", blob], stdout=file, check=True)
        tars.append(tar)
    return tars


def measure_bound(layout: Path, tars: list[Path], disk: Path) -> dict[str, float]:
    """Give CPU seconds of each part, and of ``bound``: their sum over two cores."""
    blobs = layer_blobs(layout)
    parts = {
        "inflate": sum(
            run(["sh", "-c", f"exec {inflate_tool()} -dc '{blob}' >/dev/null"]).cpu for blob in blobs
        ),
        "hash": _hash_seconds(blobs) + _hash_seconds(tars),
    }
    target = disk / "tree"
    target.mkdir()
    options = ["--xattrs", "--xattrs-include=*", "--same-permissions", "--same-owner", "--numeric-owner"]
    # A later layer may replace what an earlier one made; a cleared target is what a layer folder is.
    parts["apply"] = 0.0
    for number, tar in enumerate(tars):
        (target / str(number)).mkdir()
        command = ["tar", "-x", *options, "-f", tar, "-C", target / str(number)]
        parts["apply"] += run(command).cpu
    parts["write"] = _write_seconds(blobs, disk)
    parts["bound"] = sum(parts.values()) / CORES
    return parts


def _hash_seconds(files: list[Path]) -> float:
    seconds = 0.0
    for path in files:
        digest = hashlib.sha256()
        for piece in _pieces(path):
            started = time.process_time()
            digest.update(piece)
            seconds += time.process_time() - started
    return seconds


def _write_seconds(blobs: list[Path], disk: Path) -> float:
    seconds = 0.0
    for blob in blobs:
        with (disk / blob.name).open("wb", buffering=0) as file:
            for piece in _pieces(blob):
                started = time.process_time()
                file.write(piece)
                seconds += time.process_time() - started
    return seconds


def _pieces(path: Path) -> Iterator[memoryview]:
    """Read a file piece by piece: this process stays small, or the peak of every child would seem to be its own."""
    buffer = memoryview(bytearray(PIECE))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            yield buffer[:count]
