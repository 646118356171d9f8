"""fsck: each kind of damage is made, found, mended, and then not found any more."""

from __future__ import annotations

import os
import shutil
import threading

import pytest

import lamella
import lamella.fsck.store
from lamella import _core
from lamella.containers.networks.attachment import Record, Release
from lamella.digest import digest_of
from lamella.disk import TRASH
from lamella.registry.server import RegistryServer
from lamella.structs import astuple
from layers import Built, file, folder, tar

pytestmark = [pytest.mark.privileged, pytest.mark.rootless]


@pytest.fixture
def pulled(client):
    """Give a client whose store has an image of two layers, and the image."""
    base = tar(folder("etc"), file("etc/passwd", b"root:x:0:0::/root:/bin/sh\n"))
    with RegistryServer() as server:
        reference = Built(base, tar(file("upper", os.urandom(2000)))).push(server)
        yield client, client.images.pull(reference)


LEFTOVERS = {"orphan-blob", "orphan-folder", "damaged-ingest", "stale-task", "stale-network", "stale-volume"}


def kinds(report):
    assert {finding.kind for finding in report.leftovers} <= LEFTOVERS
    assert not {finding.kind for finding in report.findings} & LEFTOVERS
    return sorted(finding.kind for finding in [*report.findings, *report.leftovers])


def blob_file(client, digest):
    return client.config.root / "blobs" / digest.replace(":", "/")


def layer_folder(client, name):
    return client.snapshots.layer_paths(name)[0].parent


def made_and_mended(client, *expected):
    """Check that fsck finds just this, changes nothing without repair, mends it, and finds nothing then."""
    assert kinds(client.fsck()) == sorted(expected)
    found = client.fsck()
    assert kinds(found) == sorted(expected)
    assert found.clean == (set(expected) <= LEFTOVERS)
    repaired = client.fsck(repair=True)
    assert kinds(repaired) == sorted(expected)
    assert all(finding.mended for finding in [*repaired.findings, *repaired.leftovers]), repaired
    assert kinds(client.fsck()) == []
    return repaired


def test_a_store_in_order_has_no_findings(pulled):
    client, image = pulled
    client.containers.create(image, ["/bin/true"], name="box")
    client.snapshots.view("view", image.chain_id)
    report = client.fsck()
    assert kinds(report) == []
    assert report.clean
    assert (report.blobs, report.snapshots, report.layers) == (4, 4, 3)
    assert report.bytes_hashed == image.size
    assert kinds(client.fsck(repair=True)) == []


def test_a_damaged_blob_that_no_image_needs_is_forgotten(client):
    data = b"alone"
    digest = digest_of(data)
    client.content.write("alone", data, digest=digest, size=len(data))
    path = blob_file(client, digest)
    path.unlink()  # nobody but root may write to it
    path.write_bytes(b"other")
    made_and_mended(client, "damaged-blob")
    assert not client.content.exists(digest)


def test_a_blob_file_without_a_row_is_removed(pulled):
    client, _ = pulled
    path = blob_file(client, digest_of(b"orphan"))
    path.write_bytes(b"orphan")
    made_and_mended(client, "orphan-blob")
    assert not path.exists()


def test_a_layer_folder_that_is_gone_is_unpacked_anew(pulled):
    client, image = pulled
    before = sorted(os.listdir(layer_folder(client, image.chain_ids[0]) / "fs"))
    shutil.rmtree(layer_folder(client, image.chain_ids[0]))
    made_and_mended(client, "missing-layer")
    assert sorted(os.listdir(layer_folder(client, image.chain_ids[0]) / "fs")) == before


def test_a_half_unpacked_layer_is_removed(pulled):
    client, _ = pulled
    for name in ("0123456789abcdef", f"{TRASH}fedcba9876543210"):
        orphan = client.config.root / "snapshots" / "overlayfs" / name / "fs"
        orphan.mkdir(parents=True)
        (orphan / "half").write_text("x")
    made_and_mended(client, "orphan-folder", "orphan-folder")


def test_a_layer_being_unpacked_and_an_ingest_being_written_are_left_alone(pulled):
    client, _ = pulled
    with (
        client.layers.stage("overlayfs", digest_of(b"staged")) as staging,
        client.content.writer("busy") as ingest,
    ):
        staging.path.joinpath("file").write_text("x")
        ingest.write(b"half")
        assert kinds(client.fsck(repair=True)) == []
        assert staging.path.joinpath("file").exists()
    assert kinds(client.fsck()) == []  # it can be resumed


def test_an_ingest_that_nobody_can_resume_is_removed(pulled):
    client, _ = pulled
    broken = client.config.root / "ingest" / ("0" * 64)
    broken.mkdir()
    (broken / "data").write_bytes(b"half")
    (broken / "ref.json").write_bytes(b"")
    (client.config.root / "ingest" / f"{TRASH}00").write_bytes(b"x")
    made_and_mended(client, "damaged-ingest", "damaged-ingest")
    assert not broken.exists()


def test_a_container_without_its_snapshot_is_named(pulled):
    client, image = pulled
    box = client.containers.create(image, ["/bin/true"], name="box")
    client.snapshots.remove("box")
    (finding,) = client.fsck(repair=True).findings
    assert (finding.kind, finding.name, finding.mended) == ("dangling-container", "default/box", False)
    box.remove()
    assert kinds(client.fsck()) == []


@pytest.mark.needs_root
def test_a_mount_left_in_the_store_is_unmounted(pulled):
    client, image = pulled
    client.snapshots.view("view", image.chain_id)
    target = client.config.state / "tasks" / "left behind"
    target.mkdir(parents=True)
    try:
        _core.mount([astuple(mount) for mount in client.snapshots.mounts("view")], str(target))
        assert "mount" in kinds(client.fsck())
        assert client.fsck(repair=True).clean
        assert not os.path.ismount(target)
    finally:
        if os.path.ismount(target):
            _core.unmount(str(target))


def test_a_task_without_a_container_is_removed(pulled):
    client, _ = pulled
    left = client.config.state / "tasks" / "default" / ("a" * 64)
    left.mkdir(parents=True)
    made_and_mended(client, "stale-task")
    assert not left.exists()


def test_a_network_that_nobody_let_go_of_is_let_go_of(pulled):
    client, image = pulled
    box = client.containers.create(image, ["/bin/true"])
    release = Release(namespace=str(client.config.state / "networks" / box.id))
    left = Record(container=box.id, release=release).write(client.config)
    made_and_mended(client, "stale-network")
    assert not left.exists()


def test_damage_in_another_namespace_is_mended_too(pulled):
    client, image = pulled
    with lamella.Client(client.config.root, client.config.state, "other") as other:
        shutil.rmtree(layer_folder(client, image.chain_id))
        made_and_mended(other, "missing-layer")


def test_what_others_are_making_and_removing_is_not_named(pulled, monkeypatch):
    client, image = pulled
    # They share a processor and a disk with all others; what is seen once is looked for again, however long it takes.
    monkeypatch.setattr(lamella.fsck.store, "_PAUSES", (0.05, 0.25, 1.0, 5.0, 20.0))
    stop = threading.Event()
    failures = []

    def work(number):
        try:
            with lamella.Client(client.config.root, client.config.state, f"other-{number}") as other:
                other.images.put(image.name, image.target)
                while not stop.is_set():
                    data = os.urandom(1000)
                    digest = digest_of(data)
                    other.content.write("busy", data, digest=digest, size=len(data))
                    other.snapshots.prepare("busy")
                    other.snapshots.remove("busy")
                    other.content.delete(digest)
                other.images.remove(image.name)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    try:
        found = [
            finding
            for number in range(10)
            for report in [client.fsck(repair=number % 2 == 1)]
            for finding in [*report.findings, *report.leftovers]
            if not finding.name.startswith("other-")  # an image that was put there without its content
        ]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert found == []
    assert kinds(client.fsck()) == []
