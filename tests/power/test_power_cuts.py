"""Power cuts at hundreds of moments: what was promised is there, nothing spoiled is used, and a second try mends.

LAMELLA_NIGHTLY=1 makes it many more. A failure names its cut; ``LAMELLA_POWER_SEED`` runs the workload with another seed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from ctypes.util import find_library
from pathlib import Path

import pytest

from chance import NIGHTLY

if find_library("fuse3") is None or not Path("/dev/fuse").exists():
    pytest.skip("needs FUSE and libfuse3 (Debian: libfuse3-3)", allow_module_level=True)

from examination import Original, examine
from recorded_disk import Cut, RecordedDisk, Recording, after
from workloads import WRITTEN

from disks import run
from lamella.client import Client
from lamella.errors import LamellaError
from lamella.metadata import schema
from lamella.registry.server import RegistryServer
from layers import Built, file, folder, hardlink, opaque, symlink, tar, whiteout

CUTS = 300 if NIGHTLY else 8
SEED = int(os.environ.get("LAMELLA_POWER_SEED", "1"))
pytestmark = [
    pytest.mark.privileged,
    pytest.mark.needs_program("losetup", "mkfs.ext4", "e2fsck"),
    pytest.mark.timeout(3600 if NIGHTLY else 300),
]


@pytest.fixture(scope="module")
def server() -> Iterator[RegistryServer]:
    with RegistryServer() as running:
        yield running


@pytest.fixture(scope="module")
def originals(server: RegistryServer, tmp_path_factory: pytest.TempPathFactory) -> list[Original]:
    """Two images that share their lowest layer, with everything that a layer can hold."""
    base = tar(
        folder("etc"),
        *(file(f"etc/{number}", bytes([number]) * (number * 997)) for number in range(24)),
        file("etc/empty", b""),
        file("etc/shadow", b"secret", mode=0o400, uid=7, gid=9),
        symlink("etc/link", "../etc/1"),
        hardlink("etc/hard", "etc/2"),
        file("bin", os.urandom(300_000), mode=0o4755),
        file(
            "attributes",
            b"a",
            pax_headers={"SCHILY.xattr.user.colour": "blue", "mtime": "1700000000.123456789"},
        ),
        folder("gone"),
        file("gone/below"),
        folder("hidden"),
        file("hidden/below"),
    )
    middle = tar(
        whiteout("gone"),
        folder("hidden"),
        opaque("hidden"),
        file("hidden/new", b"new"),
        file("etc/3", b"three"),
    )
    bound = tar(hardlink("etc/again", "etc/5"), file("implicit/parent/file", os.urandom(60_000)))
    other = tar(*(file(f"other/{number}", os.urandom(2000)) for number in range(30)))
    found = []
    top = tmp_path_factory.mktemp("original")
    with Client(top / "root", top / "state") as client:
        for name, tars in {"first": (base, middle, bound), "second": (base, other)}.items():
            reference = Built(*tars).push(server, name)
            found.append(Original(client, reference, top / "mnt"))
    return found


def record(
    top: Path, workload: str, references: list[str], *without: str, options: tuple[str, ...] = ()
) -> Recording:
    """Run a workload on a recorded disk."""
    with RecordedDisk(top / "disk", *options) as disk:
        program = Path(__file__).with_name("workloads.py")
        command = [
            sys.executable,
            program,
            disk.folder,
            disk.control_file,
            SEED,
            workload,
            *references,
            *without,
        ]
        subprocess.run([str(word) for word in command], check=True, stdin=subprocess.DEVNULL, timeout=120)
    return disk.recording()


def names(originals: list[Original]) -> list[str]:
    return [original.reference for original in originals]


def hold(cut: Cut, originals: list[Original], top: Path) -> None:
    """Examine the store that a power cut leaves."""
    synced = originals[:1] if "first synced" in cut.done else []
    written = WRITTEN if "mine synced" in cut.done else None
    try:
        with after(cut, top / "after") as disk:
            examine(disk, top / "mnt", originals, synced=synced, written=written, repair=cut.seed % 2 == 0)
    except BaseException as error:
        error.add_note(str(cut))
        raise


@pytest.mark.parametrize(
    "workload",
    ["pull", "pull_with_sync", "sync_when_due", "pull_without_layers", "commit", "collect", "repair"],
)
def test_after_a_power_cut(workload: str, originals: list[Original], tmp_path: Path) -> None:
    for cut in record(tmp_path, workload, names(originals)).cuts(CUTS, seed=SEED):
        hold(cut, originals, tmp_path)


def test_containers_can_be_started_or_removed_after_a_power_cut(
    small_image_registry: RegistryServer, tmp_path: Path
) -> None:
    reference = f"{small_image_registry.address}/machine:latest"
    program = [sys.executable, Path(__file__).with_name("containers_after.py")]
    recording = record(tmp_path, "run_containers", [reference, reference])
    started: set[str] = set()
    for cut in recording.cuts(CUTS, seed=SEED, after="first synced"):
        with after(cut, tmp_path / "disk" / "fs") as top:  # where it was: their specs name it
            command = [*map(str, program), str(top)]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
            assert done.returncode == 0, f"{cut}: {done.stderr}"
            started.update(done.stdout.split())
    assert started


def test_each_branch_is_there_or_not_and_the_store_is_in_order_after_a_power_cut(
    small_image_registry: RegistryServer, tmp_path: Path
) -> None:
    reference = f"{small_image_registry.address}/machine:latest"
    program = [sys.executable, Path(__file__).with_name("branches_after.py")]
    recording = record(tmp_path, "branch_containers", [reference, reference])
    for cut in recording.cuts(CUTS, seed=SEED, after="first synced"):
        synced = ["one"] if "one synced" in cut.done else []
        with after(cut, tmp_path / "after") as top:
            command = [*map(str, program), str(top), *synced]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
            assert done.returncode == 0, f"{cut}: {done.stderr}"


def test_a_power_cut_in_a_migration_leaves_the_old_schema_or_the_new_one(
    originals: list[Original], tmp_path: Path
) -> None:
    for cut in record(tmp_path, "migrate", names(originals)).cuts(CUTS, seed=SEED, after="old store"):
        with after(cut, tmp_path / "after") as top, Client(top / "old", tmp_path / "state") as client:
            with client.database.read() as db:
                assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
                assert db.execute("PRAGMA user_version").fetchone() == (schema.VERSION,)
            leases = {lease.id for lease in client.leases.list()}
            assert "kept" in leases and leases <= {"kept", "new"}, cut
            client.leases.create("another")
            assert client.fsck().findings == []


@pytest.mark.parametrize(
    ("missing", "workload", "since"),
    [("boot", "pull", "pulled"), ("syncfs", "pull_with_sync", "first synced")],
    ids=["what-another-boot-left-is-verified", "a-sync-waits-for-the-disk"],
)
def test_the_examination_fails_without(
    missing: str, workload: str, since: str, originals: list[Original], tmp_path: Path
) -> None:
    recording = record(tmp_path, workload, names(originals), missing)
    with pytest.raises((AssertionError, OSError, LamellaError)):
        for cut in recording.cuts(200, seed=SEED, after=since):
            hold(cut, originals, tmp_path)


def test_the_disk_loses_what_was_not_synced_and_nothing_else(tmp_path: Path) -> None:
    with RecordedDisk(tmp_path / "disk") as disk:
        with (disk.folder / "synced").open("wb") as file:
            file.write(b"x" * 100_000)
            file.flush()
            os.fsync(file.fileno())
        disk.mark("synced")
        (disk.folder / "not").write_bytes(b"y" * 100_000)
        run("sync", "--file-system", disk.folder)
        disk.mark("both")
    recording = disk.recording()
    kept = []
    for cut in recording.cuts(12, seed=SEED, after="synced"):
        with after(cut, tmp_path / "after") as top:
            assert (top / "synced").read_bytes() == b"x" * 100_000
            other = top / "not"
            kept.append(other.exists() and other.read_bytes() == b"y" * 100_000)
            assert kept[-1] or "both" not in cut.done
    assert set(kept) == {True, False}
