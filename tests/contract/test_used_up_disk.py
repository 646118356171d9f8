"""A disk with not one byte or inode left: what frees space works, from the reserve, and what needs space works after it.

ext4, as root, who may use the blocks that are reserved for root, too.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lamella
from disks import small_ext4
from lamella.errors import ResourceExhausted
from lamella.registry.server import RegistryServer
from lamella.reserve import RESERVE_BYTES
from layers import Built, file, tar

pytestmark = [pytest.mark.privileged, pytest.mark.needs_program("losetup", "mkfs.ext4")]
FILES = 20
ORPHAN = "0" * 64


@pytest.fixture
def server() -> Iterator[RegistryServer]:
    with RegistryServer() as running:
        yield running


@pytest.fixture(params=["bytes", "inodes"])
def used_up(request: pytest.FixtureRequest, tmp_path: Path, server: RegistryServer) -> Iterator[Path]:
    """A store with the images large and other, a snapshot and a container on each, on a disk with nothing left of something."""
    options = ("-N", "200") if request.param == "inodes" else ()
    with small_ext4(tmp_path, 24, *options) as folder:
        with lamella.Client(folder / "root", tmp_path / "state") as client:
            for name, size in (("large", 50_000), ("other", 10)):
                layer = tar(*(file(f"{name}-{number}", os.urandom(size)) for number in range(FILES)))
                image = client.images.pull(Built(layer).push(server, name))
                client.snapshots.prepare(f"on-{name}", image.chain_id)
                client.containers.create(image, name=f"box-{name}")
        (folder / "root" / "blobs" / "sha256" / ORPHAN).write_bytes(b"x")
        use_up(folder, request.param)
        yield folder


def use_up(folder: Path, what: str) -> None:
    if what == "bytes":
        size = 1024 * 1024
        with (folder / "ballast").open("wb", buffering=0) as ballast:
            while size >= 512:
                try:
                    ballast.write(b"x" * size)
                    os.fsync(ballast.fileno())
                except OSError:
                    size //= 2
    with pytest.raises(OSError, match="No space left"):
        for number in range(10_000):
            (folder / f"ballast-{number}").write_bytes(b"x")


def large(server: RegistryServer) -> str:
    return f"{server.address}/large:latest"


def other(server: RegistryServer) -> str:
    return f"{server.address}/other:latest"


def test_what_frees_space_works_and_what_needs_it_works_then(
    used_up: Path, server: RegistryServer, tmp_path: Path
) -> None:
    with lamella.Client(used_up / "root", tmp_path / "state") as client:
        chain_id = client.images.get(other(server)).chain_id
        with pytest.raises(ResourceExhausted) as caught:
            client.snapshots.prepare("work", chain_id)
        assert caught.value.hint
        assert client.content.read(client.images.get(large(server)).digest)
        client.snapshots.remove("on-large")
        client.containers.get("box-large").remove()
        client.images.remove(large(server))
        report = client.gc()
        assert (report.blobs, report.snapshots, report.layers) == (3, 1, 1)
        assert report.bytes_freed > FILES * 50_000
        client.snapshots.prepare("work", chain_id)
        client.images.pull(other(server), sync=True)
        small = Built(tar(file("small"))).push(server, "small")
        client.images.pull(small)
        assert client.fsck().findings == []
        assert (used_up / "root" / "reserve").stat().st_blocks * 512 >= 64 * 1024


def test_the_command_gc_works_in_a_process_that_has_to_open_the_store(
    used_up: Path, server: RegistryServer, tmp_path: Path
) -> None:
    program = [sys.executable, "-m", "lamella", "--root", used_up / "root", "--state", tmp_path / "state"]
    for words in (
        ["snapshots", "rm", "on-large"],
        ["containers", "rm", "box-large"],
        ["images", "rm", large(server)],
        ["gc"],
    ):
        subprocess.run([*map(str, program), *words], check=True, timeout=60)
    with lamella.Client(used_up / "root", tmp_path / "state") as client:
        assert [image.name for image in client.images.list()] == [other(server)]
        client.snapshots.prepare("work", client.images.get(other(server)).chain_id)


def test_fsck_mends_what_takes_space_for_nothing(used_up: Path, tmp_path: Path) -> None:
    with lamella.Client(used_up / "root", tmp_path / "state") as client:
        report = client.fsck(repair=True)
        assert report.clean and [leftover.mended for leftover in report.leftovers] == [True]
        assert not (used_up / "root" / "blobs" / "sha256" / ORPHAN).exists()


def test_the_reserve_is_made_with_the_store_and_again_by_gc(tmp_path: Path) -> None:
    with lamella.Client(tmp_path / "root", tmp_path / "state") as client:
        reserve = tmp_path / "root" / "reserve"
        assert reserve.stat().st_blocks * 512 >= RESERVE_BYTES
        reserve.unlink()
        client.gc()
        assert reserve.stat().st_size == RESERVE_BYTES


def test_a_failure_in_the_middle_of_a_larger_transaction_is_not_done_again_by_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with lamella.Client(tmp_path / "root", tmp_path / "state") as client:
        client.snapshots.prepare("work")
        calls = []

        def fail(*_: object) -> None:
            calls.append(1)
            raise ResourceExhausted("full")

        monkeypatch.setattr(client.snapshots, "_drop_layer", fail)
        with pytest.raises(ResourceExhausted), client.database.write():
            client.snapshots.remove("work")
        assert len(calls) == 1
        with pytest.raises(ResourceExhausted):
            client.snapshots.remove("work")
        assert len(calls) == 3
        assert (tmp_path / "root" / "reserve").exists()
