"""What unpacking keeps in memory: the folders and links of a layer, not its files. Peaks are those of a process of its own."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

FEW, MANY = 10_000, 60_000
ROOM = 2 << 20
"""Bytes by which two peaks may differ for no reason; an index of all names took 5 MB for the difference of the two."""
UNPACK = """
import sys
from lamella import _core
digest, size, blob, layer, whiteouts = sys.argv[1:]
pipeline = _core.Pipeline(digest=digest, size=int(size), compression="none", layer=layer, whiteouts=whiteouts)
pipeline.read_from(blob)
print(pipeline.finish().inodes)
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM:")).split()[1])
"""


def peak(folder: Path, files: int, size: int = 0) -> int:
    """Unpack a layer of ``files`` files in one folder; give the bytes that took at most."""
    blob, layer = folder / "blob", folder / "layer"
    hasher = hashlib.sha256()
    with blob.open("wb") as output:
        for number in range(files):
            info = tarfile.TarInfo(f"a-folder/a-file-with-a-name-{number}")
            info.size = size
            block = info.tobuf() + bytes([1]) * size + bytes(-size % 512)
            hasher.update(block)
            output.write(block)
    layer.mkdir()
    words = [
        f"sha256:{hasher.hexdigest()}",
        str(blob.stat().st_size),
        str(blob),
        str(layer),
        "overlay-userxattr",
    ]
    done = subprocess.run([sys.executable, "-c", UNPACK, *words], capture_output=True, text=True, check=True)
    inodes, kilobytes = map(int, done.stdout.split())
    assert inodes == files + 2
    blob.unlink()
    shutil.rmtree(layer)
    return kilobytes * 1024


def test_does_not_grow_with_the_files_of_a_layer(tmp_path: Path) -> None:
    few, many = peak(tmp_path, FEW), peak(tmp_path, MANY)
    assert many < few + ROOM, (few, many)


def test_does_not_grow_with_the_size_of_a_file(tmp_path: Path) -> None:
    small, large = peak(tmp_path, 1, 10 << 20), peak(tmp_path, 1, 60 << 20)
    assert large < small + ROOM, (small, large)
