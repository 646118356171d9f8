"""A small, full or read-only file system, and a user who may not: one clear error, nothing visible, a second try works."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lamella import _core
from lamella.digest import digest_of
from lamella.errors import LamellaError, NotFound, PermissionDenied, ResourceExhausted
from stores import Store

DATA = os.urandom(3 * 1024 * 1024)
DIGEST = digest_of(DATA)
pytestmark = pytest.mark.privileged


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    _core.mount([("tmpfs", "tmpfs", ["size=4m", "mode=700"])], str(folder))
    yield folder
    _core.unmount(str(folder))


@pytest.fixture
def opened(small: Path) -> Iterator[Callable[[], Store]]:
    stores: list[Store] = []

    def opener(snapshotter: str = "overlayfs") -> Store:
        stores.append(Store(small / "root", snapshotter=snapshotter))
        return stores[-1]

    yield opener
    for store in stores:
        store.close()


def fill(folder: Path) -> Path:
    """Use up every byte."""
    ballast = folder / "ballast"
    descriptor = os.open(ballast, os.O_WRONLY | os.O_CREAT)
    try:
        while True:
            os.write(descriptor, b"\0" * 4096)
    except OSError:
        os.close(descriptor)
    return ballast


def test_content_that_does_not_fit_can_be_gone_on_with(opened, small):
    store = opened()
    ballast = small / "ballast"
    ballast.write_bytes(b"\0" * 2 * 1024 * 1024)
    with pytest.raises(ResourceExhausted, match="ref") as caught:
        store.content.write("ref", DATA, digest=DIGEST, size=len(DATA))
    assert caught.value.hint
    assert not store.content.exists(DIGEST)
    status = store.content.status("ref")
    assert 0 < status.offset < len(DATA)
    ballast.unlink()
    with store.content.writer("ref", size=len(DATA), digest=DIGEST) as ingest:
        assert ingest.offset == status.offset
        ingest.write(DATA[ingest.offset :])
        ingest.commit()
    store.check(clean=True)


def test_a_copy_that_does_not_fit_leaves_nothing(opened, small):
    store = opened("native")
    base = store.stack("base", {"a": "x" * 1_000_000})
    store.snapshots.prepare("fits", base)
    ballast = fill(small)
    os.truncate(ballast, ballast.stat().st_size - 500_000)
    folders = store.layer_folders()
    with pytest.raises(ResourceExhausted):
        store.snapshots.prepare("does not", base)
    assert store.layer_folders() == folders
    ballast.unlink()
    store.snapshots.prepare("does not", base)
    store.check(clean=True)


def test_a_full_disk_leaves_what_is_there_usable(opened, small):
    store = opened()
    digest = store.put(b"x", {"a": "b"})
    base = store.stack("base", {"a": "1"})
    store.snapshots.prepare("before", base)
    ballast = fill(small)
    for number in range(200):
        try:
            store.snapshots.prepare(f"key-{number}", base, {"label": "x" * 4000})
        except ResourceExhausted as error:
            assert error.hint
            break
    else:
        pytest.fail("the disk was not full")
    assert store.content.read(digest) == b"x"
    assert store.snapshots.mounts("before")
    with pytest.raises(NotFound):
        store.snapshots.stat(f"key-{number}")
    with pytest.raises(ResourceExhausted):
        store.content.write("ref", DATA, digest=DIGEST, size=len(DATA))
    ballast.unlink()
    store.snapshots.prepare(f"key-{number}", base)
    assert store.content.ingests() == []
    store.check(clean=True)


def test_a_new_store_on_a_full_disk_says_so_and_can_be_made_later(opened, small):
    ballast = fill(small)
    with pytest.raises(LamellaError) as caught:
        opened()
    assert isinstance(caught.value, ResourceExhausted)
    ballast.unlink()
    opened().put(b"x")


def test_a_read_only_file_system_is_permission_denied(opened, small):
    store = opened()
    store.put(b"x")
    store.close()
    _core.mount([("bind", str(small), ["bind", "ro"])], str(small))
    try:
        with pytest.raises(PermissionDenied) as caught:
            opened().put(b"y")
        assert caught.value.hint
    finally:
        _core.unmount(str(small))


def test_another_user_is_denied(tmp_path):
    store = Store(tmp_path / "root")
    store.close()
    tmp_path.chmod(0o755)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setgid(65534)
            os.setuid(65534)
            Store(tmp_path / "root")
        except PermissionDenied as error:
            code = 0 if error.hint else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
