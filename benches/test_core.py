"""Micro-benchmarks of the Rust core: what a layer costs, alone and without a network. They print and never judge."""

from __future__ import annotations

import gzip
import hashlib
import io
import random
import shutil
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from lamella import _core

pytestmark = pytest.mark.benchmark(warmup=False)


class LayerBlob(NamedTuple):
    """One gzip layer in a file, with its digests."""

    path: Path
    digest: str
    diff_id: str
    size: int


@pytest.fixture(scope="session", params=["2000 files of 2 KiB", "16 files of 2 MiB"])
def layer_blob(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LayerBlob:
    """Make a layer of text that inflates about as source code does."""
    count, size = (2000, 2 << 10) if request.param.startswith("2000") else (16, 2 << 20)
    chance = random.Random(1)
    words = [f"{chance.getrandbits(32):x}" for _ in range(4096)]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number in range(count):
            text = " ".join(chance.choices(words, k=size // 8)).encode()[:size]
            entry = tarfile.TarInfo(f"folder-{number % 50}/file-{number}")
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text))
    blob = gzip.compress(buffer.getvalue(), 6, mtime=0)
    path = tmp_path_factory.mktemp("layer") / "blob"
    path.write_bytes(blob)
    return LayerBlob(path, _sha256(blob), _sha256(buffer.getvalue()), len(blob))


def test_hash_and_write_a_blob(benchmark: Any, layer_blob: LayerBlob, tmp_path: Path) -> None:
    data = layer_blob.path.read_bytes()

    def write() -> None:
        blob = tmp_path / "blob"
        blob.unlink(missing_ok=True)
        pipeline = _core.Pipeline(digest=layer_blob.digest, size=layer_blob.size, blob=str(blob))
        pipeline.write(data)
        pipeline.finish()

    benchmark(write)


def test_unpack_a_layer(benchmark: Any, layer_blob: LayerBlob, tmp_path: Path) -> None:
    _core.set_top_directory(str(tmp_path))
    folders = (tmp_path / str(number) for number in range(1_000_000))

    def fresh() -> tuple[tuple[Path], dict[str, Any]]:
        folder = next(folders)
        folder.mkdir()
        return (folder,), {}

    def unpack(folder: Path) -> None:
        pipeline = _core.Pipeline(
            digest=layer_blob.digest,
            size=layer_blob.size,
            compression="gzip",
            layer=str(folder),
            diff_id=layer_blob.diff_id,
        )
        pipeline.read_from(str(layer_blob.path))
        pipeline.finish()

    benchmark.pedantic(unpack, setup=fresh, rounds=20)


def test_remove_a_layer(benchmark: Any, layer_blob: LayerBlob, tmp_path: Path) -> None:
    folder = tmp_path / "layer"

    def unpacked() -> tuple[tuple[str], dict[str, Any]]:
        folder.mkdir()
        shutil.unpack_archive(layer_blob.path, folder, "gztar", filter="tar")
        return (str(folder),), {}

    benchmark.pedantic(_core.remove_tree, setup=unpacked, rounds=10)


def _sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()
