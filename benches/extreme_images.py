#!/usr/bin/env python3
"""Images whose layers are extreme in one way each, made from nothing but this machine, once, and kept in the cache.

    sudo .venv/bin/python benches/extreme_images.py NAME...

On disk::

    <cache>/extreme-images/.lock             flock, held while one process builds; others wait for it
    <cache>/extreme-images/<name>-<recipe>/  an OCI layout, tag ``latest``; appears by rename
    <cache>/extreme-images/.building-XXXX/   a build in progress

``<recipe>`` is RECIPE_VERSION and the real image's recipe (tools/real_image.py); another one takes the old one's place. The same
recipe gives the same bytes: text comes from a seeded generator, and from the real image.
"""

from __future__ import annotations

import copy
import fcntl
import hashlib
import json
import platform
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import zstandard

from bound import inflate_tool, layer_blobs

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
import real_image

RECIPE_VERSION = "1"
LAYER = "application/vnd.oci.image.layer.v1.tar"
TIME = 1_700_000_000
PIECE = 1 << 20
LARGE_BYTES = 2_000_000_000
STACKED = 200
PACKAGES = 25_000
SPARSE_BYTES = 4 << 30
ISLANDS = 16
END = bytes(2 * tarfile.BLOCKSIZE)

Tar = Iterable[bytes]
"""An archive, piece by piece: no layer is ever in memory."""


class Image(NamedTuple):
    """How to make an image; its layers, lowest first, all compressed in one way: ``gzip``, ``zstd`` or none (empty)."""

    layers: Callable[[], Iterator[Tar]]
    compression: str = "gzip"


# Entries


def entry(name: str, data: bytes = b"", **fields: Any) -> bytes:
    """Give header, content and padding of one entry; a folder's name ends in a slash."""
    info = tarfile.TarInfo(name.rstrip("/"))
    info.mode, info.mtime, info.size = 0o644, TIME, len(data)
    if name.endswith("/"):
        info.type, info.mode = tarfile.DIRTYPE, 0o755
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.PAX_FORMAT) + data + _padding(len(data))


def _padding(size: int) -> bytes:
    return bytes(-size % tarfile.BLOCKSIZE)


class Text:
    """Words of a seeded generator, which compress about as source code does."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        words = [f"{self._chance.getrandbits(32):x}"[: self._chance.randint(2, 8)] for _ in range(4000)]
        weights = [1 / (place + 5) for place in range(len(words))]
        self._text = " ".join(self._chance.choices(words, weights, k=1 << 18)).encode()

    def some(self, least: int, most: int) -> bytes:
        """Give between ``least`` and ``most`` bytes; a file is as likely to be half as long as twice."""
        size = round(least * (most / least) ** self._chance.random())
        start = self._chance.randrange(len(self._text) - size)
        return self._text[start : start + size]


# Images


def large() -> Iterator[Tar]:
    """One layer of 2 GB: the real image's files over and over, each time with another line in front."""

    def pieces() -> Iterator[bytes]:
        written = 0
        for number in range(1000):
            for place, blob in enumerate(layer_blobs(real_image.ensure())):
                for piece in _copied(blob, f"copy-{number}/layer-{place}/", b"copy %d\n" % number):
                    written += len(piece)
                    yield piece
                if written >= LARGE_BYTES:
                    yield END
                    return

    yield pieces()


def _copied(blob: Path, prefix: str, line: bytes) -> Iterator[bytes]:
    """Give a gzip layer's entries under another folder, with a line in front of each file."""
    yield entry(prefix)
    with tarfile.open(blob, "r|gz") as archive:
        for info in archive:
            archive.members.clear()  # type: ignore[attr-defined]  # it remembers all it has read
            changed = copy.copy(info)
            changed.name = prefix + info.name
            changed.pax_headers = {k: v for k, v in info.pax_headers.items() if k.startswith("SCHILY.")}
            if info.islnk():
                changed.linkname = prefix + info.linkname
            if not info.isreg():
                yield changed.tobuf(tarfile.PAX_FORMAT)
                continue
            changed.size = info.size + len(line)
            content = archive.extractfile(info)
            assert content is not None
            yield changed.tobuf(tarfile.PAX_FORMAT) + line
            yield from _pieces(content)
            yield _padding(changed.size)


def stacked() -> Iterator[Tar]:
    """200 layers of some hundred kB. Each adds files, replaces some of the last layer's and deletes some of the one before."""
    text = Text(1)

    def files(number: int) -> list[str]:
        return [f"srv/app-{number % 10}/file-{number}-{place}" for place in range(20)]

    def pieces(number: int) -> Iterator[bytes]:
        for folder in ("srv/", *(f"srv/app-{place}/" for place in range(10))):
            yield entry(folder)
        last, before = files(number - 1) if number else [], files(number - 2) if number > 1 else []
        for name in (*files(number), *last[:5]):
            yield entry(name, text.some(4_000, 40_000))
        for name in before[5:8]:
            folder, _, name_there = name.rpartition("/")
            yield entry(f"{folder}/.wh.{name_there}")
        if last and number % 10 == 0:  # into a layer beneath
            yield entry(f"{last[0]}-too", type=tarfile.LNKTYPE, linkname=last[10])
        yield END

    for number in range(STACKED):
        yield pieces(number)


def small() -> Iterator[Tar]:
    """300,000 files of 0.2 to 4 kB in 100,000 folders, as in node_modules."""
    text = Text(2)

    def pieces() -> Iterator[bytes]:
        yield entry("app/") + entry("app/node_modules/")
        for number in range(PACKAGES):
            package = f"app/node_modules/{number:05}-package/"
            for folder in ("", "dist/", "lib/", "lib/internal/"):
                yield entry(package + folder)
                for name in ("index.js", "index.d.ts", "package.json"):
                    yield entry(package + folder + name, text.some(200, 4_000))
        yield END

    yield pieces()


def sparse() -> Iterator[Tar]:
    """A file of 4 GiB with 16 islands of data, as GNU tar -S stores it (PAX, sparse format 1.0)."""

    def pieces() -> Iterator[bytes]:
        with tempfile.TemporaryDirectory() as folder:
            text = Text(3)
            with Path(folder, "disk.img").open("wb") as file:
                for place in range(ISLANDS):
                    file.seek(place * (SPARSE_BYTES // ISLANDS) + (3 << 20))
                    file.write(text.some(60_000, 70_000))
                file.truncate(SPARSE_BYTES)
            # tar writes its process number into a name; in a PID namespace of its own that is the same every time.
            command = ["unshare", "--pid", "--fork", "--kill-child", "tar", "-c", "-S", "--format=posix"]
            command += [f"--mtime=@{TIME}", "--owner=0", "--group=0", "--mode=0644"]
            command += ["--pax-option=delete=atime,delete=ctime", "-C", folder, "disk.img"]
            yield from _output(command)

    yield pieces()


def zeros() -> Iterator[Tar]:
    """The same size, all zeros, every one of them in the archive."""

    def pieces() -> Iterator[bytes]:
        info = tarfile.TarInfo("disk.img")
        info.mtime, info.size = TIME, SPARSE_BYTES
        yield info.tobuf(tarfile.PAX_FORMAT)
        for _ in range(SPARSE_BYTES // PIECE):
            yield bytes(PIECE)
        yield END

    yield pieces()


def real() -> Iterator[Tar]:
    """The layers of the real image."""
    for blob in layer_blobs(real_image.ensure()):
        yield _output([inflate_tool(), "-dc", str(blob)])


IMAGES = {
    "large": Image(large),
    "stacked": Image(stacked),
    "small": Image(small),
    "sparse": Image(sparse),
    "zeros": Image(zeros),
    "zstd": Image(real, "zstd"),
    "plain": Image(real, ""),
}


def _output(command: list[str]) -> Iterator[bytes]:
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield from _pieces(process.stdout)
    if process.returncode:
        raise SystemExit(f"{command[0]} failed with status {process.returncode}")


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    while piece := file.read(PIECE):
        yield piece


# Layouts


class Compressor(Protocol):
    """What zlib and zstandard have in common."""

    def compress(self, data: bytes, /) -> bytes:
        """Take more."""

    def flush(self) -> bytes:
        """Give the rest."""


class Plain:
    """No compression."""

    def compress(self, data: bytes, /) -> bytes:
        """Give what came."""
        return data

    def flush(self) -> bytes:
        """Give nothing."""
        return b""


def _compressor(compression: str) -> Compressor:
    if compression == "gzip":
        return zlib.compressobj(6, wbits=31)
    return zstandard.ZstdCompressor().compressobj() if compression == "zstd" else Plain()


def _write_layer(blobs: Path, tar: Tar, compression: str) -> tuple[dict[str, Any], str]:
    """Write a layer's blob; give its descriptor and diffID."""
    compressor, diff_id, digest, size = _compressor(compression), hashlib.sha256(), hashlib.sha256(), 0
    path = blobs / "layer"

    def compressed() -> Iterator[bytes]:
        for piece in tar:
            diff_id.update(piece)
            yield compressor.compress(piece)
        yield compressor.flush()

    with path.open("wb") as file:
        for data in compressed():
            file.write(data)
            digest.update(data)
            size += len(data)
    path.rename(blobs / digest.hexdigest())
    media_type = f"{LAYER}+{compression}" if compression else LAYER
    descriptor = {"mediaType": media_type, "digest": f"sha256:{digest.hexdigest()}", "size": size}
    return descriptor, f"sha256:{diff_id.hexdigest()}"


def _write_document(blobs: Path, document: dict[str, Any]) -> dict[str, Any]:
    data = json.dumps(document).encode()
    digest = hashlib.sha256(data).hexdigest()
    (blobs / digest).write_bytes(data)
    return {"mediaType": document.get("mediaType", ""), "digest": f"sha256:{digest}", "size": len(data)}


def _write_layout(layout: Path, image: Image) -> None:
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    layers = [_write_layer(blobs, tar, image.compression) for tar in image.layers()]
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    rootfs = {"type": "layers", "diff_ids": [diff_id for _, diff_id in layers]}
    config = _write_document(blobs, {"os": "linux", "architecture": machine, "config": {}, "rootfs": rootfs})
    manifest = _write_document(
        blobs,
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config | {"mediaType": "application/vnd.oci.image.config.v1+json"},
            "layers": [descriptor for descriptor, _ in layers],
        },
    )
    tagged = manifest | {"annotations": {"org.opencontainers.image.ref.name": real_image.TAG}}
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [tagged]}))


def ensure(name: str) -> Path:
    """Build an image unless it is there; give the path of its layout. Waits while another process builds."""
    folder = real_image.cache_folder() / "extreme-images"
    layout = folder / f"{name}-{RECIPE_VERSION}-{real_image.recipe()}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not layout.exists():
            for old in folder.glob(f"{name}-*"):
                shutil.rmtree(old)
            with tempfile.TemporaryDirectory(prefix=".building-", dir=folder) as work:
                _write_layout(Path(work, "layout"), IMAGES[name])
                Path(work, "layout").rename(layout)
    return layout


def main() -> None:
    """Build the images that the command line names; print their paths."""
    for name in sys.argv[1:]:
        print(ensure(name))


if __name__ == "__main__":
    main()
