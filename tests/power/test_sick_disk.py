"""A disk that reports errors: one clear error, nothing is marked as synced or taken away, a second try after mending works."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from ctypes.util import find_library
from pathlib import Path

import pytest

if find_library("fuse3") is None or not Path("/dev/fuse").exists():
    pytest.skip("needs FUSE and libfuse3 (Debian: libfuse3-3)", allow_module_level=True)

from recorded_disk import RecordedDisk

from lamella.client import Client
from lamella.errors import LamellaError, PermissionDenied, Unavailable
from lamella.registry.server import RegistryServer
from layers import Built, file, folder, tar

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.needs_program("losetup", "mkfs.ext4", "e2fsck"),
    pytest.mark.timeout(120),
]


@pytest.fixture
def server() -> Iterator[RegistryServer]:
    with RegistryServer() as running:
        yield running


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[RecordedDisk]:
    with RecordedDisk(tmp_path / "disk") as running:
        yield running


def image(server: RegistryServer, name: str) -> str:
    layer = tar(folder("etc"), *(file(f"etc/{name}-{number}", os.urandom(40_000)) for number in range(20)))
    return Built(layer).push(server, name)


def open_client(disk: RecordedDisk, tmp_path: Path) -> Client:
    return Client(disk.folder / "root", tmp_path / "state")


def test_a_sync_that_fails_marks_nothing(disk: RecordedDisk, server: RegistryServer, tmp_path: Path) -> None:
    first, second = image(server, "first"), image(server, "second")
    with open_client(disk, tmp_path) as client:
        client.images.pull(first, sync=True)
        disk.control("fail writes")
        with pytest.raises(LamellaError) as caught:
            client.images.pull(second, sync=True)
        assert isinstance(caught.value, Unavailable | PermissionDenied) and caught.value.hint
        for again in (client.sync, client.gc):
            with pytest.raises(LamellaError):
                again()
        with client.database.read() as db:
            assert db.execute("SELECT sum(synced) FROM blobs").fetchone() == (3,)
        assert client.content.read(client.images.get(first).digest)
    disk.control("work")
    disk.remount(repair=True)
    with open_client(disk, tmp_path) as client:
        assert client.fsck(repair=True, verify_layers=True).clean
        for reference in (first, second):
            client.images.pull(reference, sync=True)
        assert client.fsck(verify_layers=True).findings == []


def test_what_cannot_be_read_is_an_error_and_stays(
    disk: RecordedDisk, server: RegistryServer, tmp_path: Path
) -> None:
    first, second = image(server, "first"), image(server, "second")
    with open_client(disk, tmp_path) as client:
        pulled = client.images.pull(first, sync=True)
        (layer,) = pulled.layers
    disk.remount()
    with open_client(disk, tmp_path) as client:
        client.images.list()
        path = client.content.path(layer.digest)
        disk.control("fail reads")
        with pytest.raises(Unavailable, match=r"(open|read) the blob") as caught:
            client.content.read(layer.digest)
        assert caught.value.hint
        for work in (
            lambda: client.fsck(repair=True, fetch=False),
            lambda: client.images.pull(first),
            lambda: client.images.pull(second),
            lambda: client.content.read(layer.digest),
        ):
            with suppress(LamellaError):  # what is in memory still may do; no other error comes
                work()
        disk.control("work")
        assert path.exists()
        assert len(client.content.read(layer.digest)) == layer.size
    disk.remount()
    with open_client(disk, tmp_path) as client:
        assert client.fsck(verify_layers=True).findings == []
        client.images.pull(second)


def test_a_store_that_cannot_be_read_says_so_when_it_is_opened(
    disk: RecordedDisk, server: RegistryServer, tmp_path: Path
) -> None:
    with open_client(disk, tmp_path) as client:
        client.images.pull(image(server, "first"), sync=True)
    disk.remount()
    disk.control("fail reads")
    with pytest.raises(LamellaError) as caught:
        open_client(disk, tmp_path).images.list()
    assert isinstance(caught.value, Unavailable | PermissionDenied) and caught.value.hint
    disk.control("work")
    disk.remount()
    with open_client(disk, tmp_path) as client:
        assert len(client.images.list()) == 1
