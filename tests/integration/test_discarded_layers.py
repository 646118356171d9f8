"""Pull with keep_layers=False: the layer folders stay, the compressed blobs do not, and that is remembered."""

from __future__ import annotations

import os
import threading

import pytest

import lamella
from lamella import oci
from lamella._core import read_file
from lamella.digest import digest_of
from lamella.errors import FailedPrecondition, InvalidArgument, NotFound
from lamella.structs import encode
from layers import Built, file, folder, hardlink, tar

pytestmark = [pytest.mark.integration]

BASE = tar(folder("data"), file("data/a", os.urandom(20_000)))
UPPER = tar(file("data/b", b"b"))
LINKED = tar(hardlink("data/c", "data/a"))


@pytest.fixture
def server():
    from lamella.registry.server import RegistryServer

    with RegistryServer() as running:
        yield running


def discard(client, reference):
    return client.images.pull(reference, keep_layers=False)


def layer_blobs(client, image):
    """The image's layers that the namespace has as blobs, and those that are on disk."""
    digests = {layer.digest for layer in image.layers}
    on_disk = {f"sha256:{path.name}" for path in (client.config.root / "blobs" / "sha256").iterdir()}
    return {info.digest for info in client.content.walk()} & digests, on_disk & digests


def reads(client, image, path):
    return read_file([str(each) for each in client.snapshots.layer_paths(image.chain_id)], path, 1 << 20)


def blob_requests(server):
    return [request for request in server.requests if "/blobs/" in request.path and request.method == "GET"]


def layer_requests(server, image):
    return [
        each for each in blob_requests(server) if any(layer.digest in each.path for layer in image.layers)
    ]


def test_the_image_is_unpacked_and_no_compressed_layer_is_there(client, server):
    image = discard(client, Built(BASE, UPPER).push(server))
    assert reads(client, image, "data/b") == b"b"
    assert layer_blobs(client, image) == (set(), set())
    assert image.layers_discarded
    assert image.inspect()["layers_discarded"] is True
    assert not list((client.config.root / "ingest").glob("*"))


def test_an_image_that_is_pulled_as_always_says_that_its_layers_are_kept(client, server):
    image = client.images.pull(Built(BASE).push(server))
    assert not image.layers_discarded
    assert layer_blobs(client, image)[0] == {image.layers[0].digest}


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_second_pull_is_one_request_and_fetches_nothing(client, server, count):
    reference = Built(*(BASE, UPPER)[:count]).push(server)
    discard(client, reference)
    server.requests.clear()
    discard(client, reference)
    assert len(server.requests) == 1


def test_gc_keeps_the_layers_and_finds_nothing_to_do(client, server):
    image = discard(client, Built(BASE, UPPER).push(server))
    report = client.gc()
    assert (report.blobs, report.content, report.snapshots, report.layers) == (0, 0, 0, 0)
    assert reads(client, image, "data/b") == b"b"
    client.images.remove(image.name)
    report = client.gc()
    assert (report.blobs, report.snapshots, report.layers) == (2, 2, 2)


def test_reading_a_dropped_layer_says_how_to_get_it_back(client, server):
    image = discard(client, Built(BASE).push(server))
    with pytest.raises(NotFound) as caught:
        client.content.read(image.layers[0].digest)
    assert f"lamella pull {image.name}" in caught.value.hint
    with pytest.raises(NotFound) as caught:
        client.content.read(digest_of(b"never seen"))
    assert caught.value.hint is None


def test_the_hint_names_the_image_also_behind_an_index(client, server):
    built = Built(BASE)
    built.push(server)
    entry = oci.Descriptor(
        media_type=oci.OCI_MANIFEST,
        digest=digest_of(built.manifest),
        size=len(built.manifest),
        platform=oci.Platform(**built.platform),
    )
    index = encode({"schemaVersion": 2, "mediaType": oci.OCI_INDEX, "manifests": [entry]})
    server.push_manifest("made", "multi", index)
    image = discard(client, f"{server.address}/made:multi")
    with pytest.raises(NotFound) as caught:
        client.content.read(image.layers[0].digest)
    assert f"lamella pull {image.name}" in caught.value.hint


def test_a_pull_that_keeps_fetches_the_blobs_and_unpacks_nothing_again(client, server):
    reference = Built(BASE, UPPER).push(server)
    image = discard(client, reference)
    folders = client.config.root / "snapshots" / "overlayfs"
    before = {path.name: (path / "fs").stat().st_ino for path in folders.iterdir()}
    server.requests.clear()
    image = client.images.pull(reference)
    assert not image.layers_discarded
    assert len(layer_requests(server, image)) == 2
    for layer in image.layers:
        assert digest_of(client.content.read(layer.digest)) == layer.digest
    assert {path.name: (path / "fs").stat().st_ino for path in folders.iterdir()} == before
    assert client.gc().blobs == 0
    server.requests.clear()
    client.images.pull(reference)
    assert len(server.requests) == 1


def test_an_image_that_is_here_loses_its_blobs_without_a_download(client, server):
    reference = Built(BASE, UPPER).push(server)
    client.images.pull(reference)
    server.requests.clear()
    image = discard(client, reference)
    assert layer_requests(server, image) == []
    assert layer_blobs(client, image) == (set(), set())
    assert reads(client, image, "data/b") == b"b"


def test_blobs_that_another_image_refers_to_stay(client, server):
    kept = client.images.pull(Built(BASE).push(server, "kept"))
    image = discard(client, Built(BASE, UPPER).push(server, "dropped"))
    assert layer_blobs(client, image) == ({kept.layers[0].digest}, {kept.layers[0].digest})
    assert not kept.layers_discarded
    assert digest_of(client.content.read(kept.layers[0].digest)) == kept.layers[0].digest


def test_blobs_that_another_namespace_has_stay_there(client, server):
    reference = Built(BASE).push(server)
    with lamella.Client(client.config.root, client.config.state, namespace="other") as other:
        other.images.pull(reference)
        server.requests.clear()
        image = discard(client, reference)
        assert layer_requests(server, image) == []
        assert layer_blobs(client, image)[0] == set()
        assert layer_blobs(other, image)[0] == {image.layers[0].digest}


def test_a_blob_that_is_here_is_unpacked_without_a_download(client, server):
    reference = Built(BASE, UPPER).push(server)
    client.images.pull(reference, unpack=False)
    server.requests.clear()
    image = discard(client, reference)
    assert blob_requests(server) == []
    assert reads(client, image, "data/b") == b"b"
    assert layer_blobs(client, image) == (set(), set())


def test_a_layer_that_needs_those_beneath_it_is_finished_from_them(client, server):
    image = discard(client, Built(BASE, LINKED).push(server))
    assert reads(client, image, "data/c") == reads(client, image, "data/a")


def test_one_layer_at_two_places_that_both_depend_on_what_is_beneath(client, server):
    """The second place finds the folder bound to the first, and fetches the layer again for want of the blob."""
    other = tar(file("data/a", b"other"))
    image = discard(client, Built(BASE, LINKED, other, LINKED).push(server))
    assert reads(client, image, "data/c") == b"other"
    assert layer_blobs(client, image) == (set(), set())


def test_a_wrong_digest_is_noticed_without_the_blob_too(client, server):
    """The last layer's blob is a different one that is just as long and whose tar is the right one."""
    built = Built(BASE, UPPER)
    reference = built.push(server)
    blob = server.storage.blob_path(built.descriptors[1].digest)
    data = bytearray(blob.read_bytes())
    data[4:8] = b"\1\2\3\4"  # gzip's time stamp
    blob.write_bytes(data)
    with pytest.raises(FailedPrecondition, match="digest"):
        discard(client, reference)
    assert client.images.list() == []
    assert list(client.snapshots.walk()) == []
    blob.write_bytes(built.layers[1])
    assert reads(client, discard(client, reference), "data/b") == b"b"


def test_neither_unpacking_nor_keeping_is_refused(client, server):
    with pytest.raises(InvalidArgument, match="neither"):
        client.images.pull(Built(BASE).push(server), unpack=False, keep_layers=False)


def test_a_lost_layer_folder_is_fetched_again_and_the_blob_is_not_kept(client, server):
    reference = Built(BASE).push(server)
    image = discard(client, reference)
    (top,) = client.snapshots.layer_paths(image.chain_id)
    top.rename(top.with_name("lost"))
    image = discard(client, reference)
    assert reads(client, image, "data/a") is not None
    assert layer_blobs(client, image) == (set(), set())


def test_after_a_death_before_the_blobs_went_gc_takes_them(client, server, monkeypatch):
    from lamella.transfer.pull import Pull

    reference = Built(BASE).push(server)
    client.images.pull(reference)
    with monkeypatch.context() as patch:
        patch.setattr(Pull, "_drop_blobs", lambda *_: None)
        image = discard(client, reference)
    assert image.layers_discarded
    report = client.gc()
    assert (report.content, report.blobs, report.layers) == (1, 1, 0)
    assert layer_blobs(client, image) == (set(), set())


@pytest.mark.parametrize("kept_before", [False, True])
def test_after_another_boot_the_layers_are_believed_and_nothing_is_fetched(client, server, kept_before):
    """There is no blob to unpack them from again, so that the pull waited until they were on disk."""
    reference = Built(BASE, UPPER).push(server)
    if kept_before:
        client.images.pull(reference)
    image = discard(client, reference)
    with client.database.write() as db:
        db.execute("UPDATE blobs SET boot_id = 'an earlier one'")
        db.execute("UPDATE layers SET boot_id = 'an earlier one'")
    server.requests.clear()
    client.snapshots.prepare("work", image.chain_id)
    assert reads(client, image, "data/b") == b"b"
    discard(client, reference)
    assert len(server.requests) == 1


def test_fsck_finds_nothing_wrong_and_the_graph_can_be_drawn(client, server):
    from lamella.graph import build, render_mermaid

    image = discard(client, Built(BASE, UPPER).push(server))
    assert client.fsck().findings == []
    assert image.chain_id[7:19] in render_mermaid(build(client, image.name))


def test_pulls_that_keep_and_pulls_that_do_not_at_once_leave_one_or_the_other(client, server):
    """Whoever is last decides, and the image is whole in either form."""
    reference = Built(BASE, UPPER).push(server)
    failures = []

    def work(keep):
        try:
            for _ in range(4):
                with lamella.Client(client.config.root, client.config.state) as own:
                    own.images.pull(reference, keep_layers=keep)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(keep,)) for keep in (True, False, True, False)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    client.gc()
    image = client.images.get(reference)
    assert reads(client, image, "data/b") == b"b"
    here = layer_blobs(client, image)[0]
    assert here == (set() if image.layers_discarded else {layer.digest for layer in image.layers})
    assert client.fsck().findings == []
