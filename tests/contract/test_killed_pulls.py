"""kill -9 at every step of a pull, an unpack and a removal: the store is in order, and the next try does what is left to do."""

from __future__ import annotations

import os

import pytest

from crashes import (
    blob_requests,
    complete_blobs,
    each_kill,
    image,
    partial_blobs,
    quiet,
    runs,
    unpacked_layers,
)
from lamella.digest import digest_of
from lamella.errors import NotFound
from lamella.registry import ahead
from steps import killing

pytestmark = [*killing, pytest.mark.rootless]
FILLING = os.urandom(2_500_000)  # more than two of the pieces in which it comes


@pytest.fixture(autouse=True)
def _a_blob_is_one_request(monkeypatch):
    """Whatever the machine has to do besides: a reader that waits a second for bytes would ask for parts on other connections."""
    monkeypatch.setattr(ahead, "WORTH", float("inf"))


def nothing(client):
    pass


def is_here(client, reference):
    try:
        return client.images.get(reference) is not None
    except NotFound:
        return False


@pytest.mark.parametrize("options", [{}, {"keep_layers": False}], ids=["kept", "discarded"])
def test_a_second_pull_for_a_snapshotter_that_copies(tmp_path, server, options, monkeypatch):
    monkeypatch.setenv("LAMELLA_SNAPSHOTTER", "native")
    reference = image(filling=FILLING).push(server)

    def pull(client):
        return client.images.pull(reference, **options)

    for client, _ in each_kill(tmp_path, nothing, pull, points=16):
        complete = complete_blobs(client)
        quiet(server)
        runs(client, pull(client))
        assert not complete & blob_requests(server).keys()
        assert client.fsck(verify_layers=True).findings == []


def test_a_snapshot_that_is_copied(tmp_path, server, monkeypatch):
    monkeypatch.setenv("LAMELLA_SNAPSHOTTER", "native")
    reference = image().push(server)

    def copy(client):
        parent = client.images.get(reference).chain_id
        client.snapshots.prepare("key", parent)
        client.snapshots.commit("name", "key")
        client.containers.create(reference, ["/bin/true"], name="box")

    for client, _ in each_kill(tmp_path, lambda client: client.images.pull(reference), copy, points=16):
        for key in ("key", "name"):
            try:
                (folder,) = client.snapshots.layer_paths(key)
            except NotFound:
                continue
            assert sorted(path.name for path in (folder / "bin").iterdir()) == ["forever", "same", "true"]
        snapshots = {info.name for info in client.snapshots.walk(kind="active")}
        assert {box.name for box in client.containers.list(all=True)} == snapshots - {"key"}


@pytest.mark.parametrize(
    "options", [{}, {"keep_layers": False}, {"unpack": False}], ids=["kept", "discarded", "packed"]
)
def test_a_second_pull_fetches_what_is_missing_and_nothing_else(tmp_path, server, options):
    built = image(filling=FILLING)
    reference = built.push(server)

    def pull(client):
        return client.images.pull(reference, **options)

    for client, _ in each_kill(tmp_path, nothing, pull, points=35):
        complete, partial, unpacked = complete_blobs(client), partial_blobs(client), unpacked_layers(client)
        whole = is_here(client, reference)
        quiet(server)
        pulled = pull(client)
        requests = len(server.requests)
        asked = blob_requests(server)
        assert not complete & asked.keys()
        assert all(len(ranges) == 1 for ranges in asked.values()), asked
        for digest, offset in partial.items():
            if digest in asked:
                assert asked[digest] == [f"bytes={offset}-"]
        if options.get("keep_layers") is False:
            done = {
                layer.digest
                for layer, diff_id in zip(built.descriptors, built.diff_ids, strict=True)
                if diff_id in unpacked
            }
            assert not done & asked.keys()
        if whole:
            assert requests == 1
        # What the killed one leased it leases no more; but for the first document, if it died before it had the image's lock.
        documents = {digest_of(built.manifest)}
        left = [resource for lease in client.leases.list() for resource in client.leases.resources(lease.id)]
        assert {resource.id for resource in left} <= documents
        if options.get("unpack", True):
            runs(client, pulled)


def test_an_image_that_shares_layers_with_one_that_is_here(tmp_path, server):
    first, second = image(filling=FILLING), image(filling=FILLING + b"x")
    here, reference = first.push(server, "first"), second.push(server, "second")

    def pull(client):
        return client.images.pull(reference)

    for client, _ in each_kill(tmp_path, lambda client: client.images.pull(here), pull, points=16):
        quiet(server)
        runs(client, pull(client))
        assert not {layer.digest for layer in first.descriptors} & blob_requests(server).keys()
        runs(client, client.images.get(here))


def test_an_unpack_of_what_is_here(tmp_path, server):
    reference = image().push(server)

    def unpack(client):
        client.images.unpack(reference)

    for client, _ in each_kill(
        tmp_path, lambda client: client.images.pull(reference, unpack=False), unpack, points=16
    ):
        quiet(server)
        unpack(client)
        assert not server.requests
        runs(client, client.images.get(reference))


def test_a_removal_and_a_collection(tmp_path, server):
    first, second = image(filling=b"x"), image(filling=b"y")
    kept, removed = first.push(server, "first"), second.push(server, "second")

    def before(client):
        client.images.pull(kept)
        client.images.pull(removed)
        client.containers.create(removed, ["/bin/true"], name="box")
        client.leases.create("old", labels={"containerd.io/gc.expire": "2020-01-01T00:00:00Z"})

    def remove(client):
        client.containers.get("box").remove()
        client.images.remove(removed)
        client.gc()

    for client, _ in each_kill(tmp_path, before, remove, points=25):
        quiet(server)
        runs(client, client.images.pull(kept))
        assert blob_requests(server) == {}
        runs(client, client.images.pull(removed))
