"""A file system that is read-only: what only reads works, what writes gets one error that says why; also when it becomes so
in the middle of an operation, as ext4 does after an error, and a second try after mending works."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import apsw
import pytest

import lamella
from disks import loop_device, mounted, run, small_ext4
from lamella.errors import NotFound, PermissionDenied
from lamella.registry.server import RegistryServer
from layers import Built, file, folder, tar

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.needs_program("losetup", "mkfs.ext4", "e2fsck"),
]
Client = lamella.Client


@pytest.fixture
def server() -> Iterator[RegistryServer]:
    with RegistryServer() as running:
        yield running


@pytest.fixture
def reference(server: RegistryServer) -> str:
    return Built(tar(folder("etc"), file("etc/name")), tar(file("upper", b"u" * 300_000))).push(server)


def use(client: Client, reference: str) -> None:
    image = client.images.pull(reference)
    client.snapshots.prepare("work", image.chain_id)
    client.containers.create(image, name="box")


def leave_nothing_beside_the_database(root: Path) -> None:
    connection = apsw.Connection(str(root / "metadata.db"))
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    connection.close()
    assert not (root / "metadata.db-wal").exists()


def pretend_another_boot(root: Path) -> None:
    connection = apsw.Connection(str(root / "metadata.db"))
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    for table in ("blobs", "layers"):
        connection.execute(f"UPDATE {table} SET boot_id = 'an earlier one'").fetchall()
    connection.close()


LEFT: dict[str, Callable[[Path], None]] = {
    "as-clients-leave-it": lambda root: None,
    "without-the-log-index": lambda root: (root / "metadata.db-shm").unlink(),
    "without-log": leave_nothing_beside_the_database,
    "unverified": pretend_another_boot,
}


@pytest.fixture(params=LEFT)
def read_only(request: pytest.FixtureRequest, tmp_path: Path, reference: str) -> Iterator[Client]:
    """A client of a store on a file system that was mounted read-only since."""
    with small_ext4(tmp_path, 24) as disk:
        with Client(disk / "root", tmp_path / "state") as client:
            use(client, reference)
        LEFT[request.param](disk / "root")
        run("mount", "-o", "remount,ro", disk)
        with Client(disk / "root", tmp_path / "state") as client:
            yield client


def test_what_only_reads_works(read_only: Client, reference: str, tmp_path: Path) -> None:
    client = read_only
    (image,) = client.images.list()
    assert image.inspect()["digest"] == image.digest
    for info in client.content.walk():
        assert len(client.content.read(info.digest)) == info.size
        assert client.content.exists(info.digest)
    assert [info.name for info in client.snapshots.walk(kind="active")] == ["work", "box"]
    assert client.content.ingests() == client.leases.list() == []
    assert [box.name for box in client.containers.list(all=True)] == ["box"]
    assert client.containers.get("box").inspect()
    assert client.du().images
    assert client.gc(dry_run=True).bytes_freed == 0
    assert {finding.kind for finding in client.fsck().findings} <= {"unverified-layer"}
    program = [sys.executable, "-m", "lamella", "--root", client.config.root, "--state", tmp_path / "state"]
    for words in (["images", "ls"], ["content", "get", image.digest], ["du"], ["snapshots", "ls"]):
        subprocess.run([*map(str, program), *words], check=True, timeout=60, capture_output=True)


def test_what_writes_says_that_the_file_system_is_read_only(
    read_only: Client, reference: str, server: RegistryServer
) -> None:
    client = read_only
    image = client.images.get(reference)
    unknown = Built(tar(file("x"))).push(server, "unknown")
    writes: list[Callable[[], object]] = [
        lambda: client.images.pull(unknown),
        lambda: client.images.remove(reference),
        lambda: client.snapshots.prepare("next"),
        lambda: client.snapshots.commit("name", "work"),
        lambda: client.snapshots.remove("work"),
        lambda: client.containers.create(image, name="next"),
        lambda: client.containers.get("box").start(),
        lambda: client.containers.get("box").remove(),
        lambda: client.content.writer("ref"),
        lambda: client.content.update_labels(image.digest, {"a": "b"}),
        lambda: client.leases.create("lease"),
        client.gc,
    ]
    for write in writes:
        with pytest.raises(PermissionDenied, match=r"[Rr]ead-only") as caught:
            write()
        assert "ount" in caught.value.hint
    assert [image.name for image in client.images.list()] == [reference]


def test_no_store_can_be_made_there(tmp_path: Path) -> None:
    with small_ext4(tmp_path, 24) as disk:
        (disk / "empty").mkdir(mode=0o700)
        run("mount", "-o", "remount,ro", disk)
        for root in ("new", "empty"):
            with pytest.raises(PermissionDenied, match=r"[Rr]ead-only"):
                Client(disk / root, tmp_path / "state")


def pull_more(client: Client, server: RegistryServer) -> None:
    layers = (tar(file(f"more-{number}", bytes([number]) * 200_000)) for number in range(3))
    client.images.pull(Built(*layers).push(server, "more"))


def collect(client: Client, server: RegistryServer) -> None:
    with suppress(NotFound):  # the second time
        client.images.remove(f"{server.address}/made:latest")
    client.gc()


OPERATIONS: dict[str, Callable[[Client, RegistryServer], object]] = {
    "pull": pull_more,
    "prepare": lambda client, _: client.snapshots.prepare("next"),
    "commit": lambda client, _: client.snapshots.commit("name", "work"),
    "remove": lambda client, _: client.snapshots.remove("work"),
    "collect": collect,
    "create": lambda client, _: client.containers.create(client.images.list()[0], name="next"),
}


@pytest.mark.parametrize(
    ("operation", "step"),
    [
        *(("pull", step) for step in (1, 4, 9)),
        *(("collect", step) for step in (2, 4)),
        *((operation, 1) for operation in ("prepare", "commit", "remove", "create")),
    ],
)
def test_it_becomes_so_in_the_middle(
    operation: str,
    step: int,
    tmp_path: Path,
    reference: str,
    server: RegistryServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before the step-th transaction of the operation is committed. ext4 does it when it meets an error."""
    file_system = tmp_path / "image"
    with file_system.open("wb") as size:
        size.truncate(24 * 1024 * 1024)
    with loop_device(file_system) as device:
        run("mkfs.ext4", "-q", "-b", 4096, device)
        with mounted(device, tmp_path / "fs") as disk, Client(disk / "root", tmp_path / "state") as client:
            use(client, reference)
            client.sync()
            steps = iter([*[False] * (step - 1), True])
            commit = lamella.metadata.Database._end_write

            def end_write(self: lamella.metadata.Database, *arguments: Any) -> None:
                if self._depth == 1 and next(steps, False):
                    subprocess.run(["mount", "-o", "remount,abort", disk], check=False)
                commit(self, *arguments)

            monkeypatch.setattr("lamella.metadata.Database._end_write", end_write)
            with pytest.raises(PermissionDenied, match=r"[Rr]ead-only"):
                OPERATIONS[operation](client, server)
            monkeypatch.undo()
            for image in client.images.list():
                assert image.name == reference and client.content.read(image.digest)
        assert subprocess.run(["e2fsck", "-fy", device], check=False, capture_output=True).returncode < 4
        with mounted(device, tmp_path / "fs") as disk, Client(disk / "root", tmp_path / "state") as client:
            # The same boot, so that nothing but a full check can tell what did not get to the disk.
            assert client.fsck(repair=True, verify_layers=True).clean
            OPERATIONS[operation](client, server)
            client.gc()
            assert client.fsck(verify_layers=True).findings == []
