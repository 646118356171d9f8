"""What ``du`` says, held against du(1) on a real image: each part, what an image has alone, and what gc frees."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from lamella.registry.server import RegistryServer
from layers import Built, file, tar

pytestmark = [pytest.mark.integration, pytest.mark.privileged]

BLOCK = 4096
"""What a file system adds at most to a blob or a folder."""


def real(*paths):
    """Give what du(1) counts for files and folders, each file once."""
    there = [str(path) for path in paths if os.path.lexists(path)]
    if not there:
        return 0
    output = subprocess.run(
        ["du", "-s", "-c", "--block-size=1", *there], check=True, capture_output=True, text=True
    ).stdout
    return int(output.splitlines()[-1].split()[0])


def matches(client):
    """Compare every part of the store with the disk."""
    root, usage = client.config.root, client.du()
    store = usage.store
    blobs = len(list((root / "blobs").glob("*/*")))
    folders = len(list((root / "snapshots").glob("*/*")))
    slack = BLOCK * (blobs + 3)
    assert 0 <= real(root / "blobs") - store.blobs <= slack
    # Around each fs there is a folder, and beside that of an active snapshot work with one in it.
    assert 0 <= real(root / "snapshots") - store.layers - store.snapshots <= BLOCK * (3 * folders + 2)
    assert real(root / "containers") == store.logs
    assert real(root / "ingest") == store.ingests
    assert real(root / "reserve") == store.reserve
    rest = [
        path
        for path in root.iterdir()
        if path.name not in ("blobs", "snapshots", "containers", "ingest", "reserve")
    ]
    assert abs(real(*rest) - store.metadata) <= BLOCK  # looking takes a lock file
    assert 0 <= real(root) - store.total <= slack + BLOCK * (3 * folders + 4)
    return usage


def test_an_image_costs_what_its_files_take(client, small_image):
    image = client.images.pull(small_image)
    (cost,) = matches(client).images
    assert cost.compressed_alone == image.size
    assert cost.unpacked_alone == real(*client.snapshots.layer_paths(image.chain_id))
    assert (cost.compressed_shared, cost.unpacked_shared) == (0, 0)


def test_an_image_without_its_blobs_costs_its_folders(client, small_image):
    image = client.images.pull(small_image, keep_layers=False)
    (cost,) = matches(client).images
    documents = [image.digest, image.manifest.config.digest]
    assert cost.compressed_alone == sum(client.content.info(digest).size for digest in documents)
    assert cost.unpacked_alone == real(*client.snapshots.layer_paths(image.chain_id))


def test_what_containers_and_snapshots_write_is_theirs(client, small_image):
    image = client.images.pull(small_image)
    box = client.containers.run(
        image,
        ["/bin/sh", "-c", "for i in 1 2 3 4 5 6 7 8; do echo $i; cat /bin/sh >> /big; done"],
        detach=True,
    )
    box.wait()
    client.snapshots.prepare("work", image.chain_id)
    (upper,) = (
        Path(option.partition("=")[2])
        for mount in client.snapshots.mounts("work")
        for option in mount.options
        if option.startswith("upperdir=")
    )
    (upper / "file").write_bytes(os.urandom(300_000))
    for committed in (False, True):
        if committed:
            client.snapshots.commit("done", "work")
        usage = matches(client)
        (container,), (snapshot,), (cost,) = usage.containers, usage.snapshots, usage.images
        assert container.writable > 500_000
        assert container.logs > 0
        assert 300_000 < snapshot.size < 330_000
        assert snapshot.kind == ("committed" if committed else "active")
        assert cost.compressed_alone == image.size
        assert cost.unpacked_alone == 0  # a container and a snapshot need it
        assert cost.unpacked_shared == real(*client.snapshots.layer_paths(image.chain_id))
    box.remove()


def test_what_is_shared_is_what_two_images_lead_to(client):
    base, own = (
        tar(file("base", os.urandom(200_000))),
        [tar(file("own", os.urandom(90_000))) for _ in range(2)],
    )
    with RegistryServer() as server:
        images = [
            client.images.pull(Built(base, each).push(server, f"image-{n}")) for n, each in enumerate(own)
        ]
    for image, cost in zip(images, matches(client).images, strict=True):
        top, bottom = client.snapshots.layer_paths(image.chain_id)
        assert cost.unpacked_alone == real(top)
        assert cost.unpacked_shared == real(bottom)
        assert cost.compressed_shared == image.layers[0].size
        assert cost.compressed_alone == image.size - image.layers[0].size


def test_an_unfinished_download_is_counted(client, small_image):
    client.images.pull(small_image)
    with client.content.writer("half", size=10_000_000) as ingest:
        ingest.write(os.urandom(5_000_000))
    assert matches(client).store.ingests >= 5_000_000


@pytest.mark.parametrize("keep_layers", [True, False])
def test_removing_an_image_frees_what_it_has_alone_and_gc_says_so_before(client, small_image, keep_layers):
    image = client.images.pull(small_image, keep_layers=keep_layers)
    client.sync()
    (cost,) = client.du().images
    client.images.remove(image.name)
    promised = client.du().reclaimable
    assert promised == cost.compressed_alone + cost.unpacked_alone
    folders = [client.config.root / name for name in ("blobs", "snapshots")]
    before = real(*folders)
    assert client.gc().bytes_freed == promised
    assert 0 <= before - real(*folders) - promised <= BLOCK * 20
    assert matches(client).reclaimable == 0
