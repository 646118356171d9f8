"""Several pulls at once, of processes and threads, in one namespace or many: what they share comes once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from contextlib import contextmanager

import pytest

import lamella
from gate import ONE_CONNECTION, Gate
from layers import Built, file, folder, hardlink, tar

pytestmark = [pytest.mark.integration, pytest.mark.privileged]

SIZE = 1 << 20


@pytest.fixture
def server():
    from lamella.registry.server import RegistryServer

    with RegistryServer() as running:
        yield running


def noise(name, size=SIZE):
    return tar(folder(name), file(f"{name}/noise", os.urandom(size)))


class Puller:
    """A process that pulls an image and prints each report of a layer."""

    CODE = f"""
        import sys, lamella
        {ONE_CONNECTION}
        root, state, namespace, reference, *options = sys.argv[1:]
        def show(event):
            if event.digest:
                print(event.phase, event.received, flush=True)
        with lamella.Client(root, state, namespace=namespace) as client:
            print("ready", 0, flush=True)
            sys.stdin.readline()
            image = client.images.pull(reference, progress=show, keep_layers="discard" not in options)
            print("image", len(list(client.snapshots.walk())), flush=True)
    """

    def __init__(self, client, reference, namespace="default", *options):
        config = client.config
        arguments = [str(config.root), str(config.state), namespace, reference, *options]
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(self.CODE), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.next("ready")

    def go(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def next(self, phase, at_least=0):
        """Give the bytes of the next report of a phase that has so many."""
        for line in self.process.stdout:
            said, count = line.split()
            if said == phase and int(count) >= at_least:
                return int(count)
        pytest.fail(f"the process never said {phase}")

    def end(self):
        """Give what it said until it ended well."""
        said = [line.split()[0] for line in self.process.stdout]
        assert self.process.wait(60) == 0
        return said


@contextmanager
def pullers(client, *each):
    running = []
    try:
        for reference, namespace, *options in each:
            running.append(Puller(client, reference, namespace, *options))
        yield running
    finally:
        for puller in running:
            puller.process.kill()
            puller.process.communicate()


def fetched(server):
    """Count how often each blob was asked for."""
    return Counter(
        request.path.rpartition("/")[2]
        for request in server.requests
        if "/blobs/" in request.path and request.method == "GET"
    )


def blobs_of(client, *references):
    digests = set()
    for reference in references:
        manifest = client.images.get(reference).manifest
        digests |= {manifest.config.digest, *(layer.digest for layer in manifest.layers)}
    return digests


def layer_folders(client):
    return list((client.config.root / "snapshots" / "overlayfs").iterdir())


@pytest.mark.parametrize("namespaces", [["default"], ["default", "one", "two"]], ids=["one", "three"])
def test_ten_processes_fetch_each_blob_once_and_unpack_each_layer_once(client, server, namespaces):
    # The last layer waits for what lies beneath it: a hard link, and a parent folder that it does not name.
    linked = tar(hardlink("again", "one/noise"), file("two/more", b"x"))
    reference = Built(noise("one"), noise("two"), noise("three"), linked).push(server)
    server.requests.clear()
    each = [(reference, namespaces[number % len(namespaces)]) for number in range(10)]
    with pullers(client, *each) as running:
        for puller in running:
            puller.go()
        for puller in running:
            assert "image" in puller.end()
    assert fetched(server) == dict.fromkeys(blobs_of(client, reference), 1)
    assert len(layer_folders(client)) == 4
    for namespace in namespaces:
        with lamella.Client(client.config.root, client.config.state, namespace=namespace) as other:
            image = other.images.get(reference)
            assert len(other.snapshots.layer_paths(image.chain_id)) == 4
            assert other.content.ingests() == []
            assert len(other.content.read(image.layers[0].digest)) == image.layers[0].size


def test_images_of_two_namespaces_fetch_the_layers_that_they_share_once(client, server):
    shared = [noise("one"), noise("two"), noise("three")]
    references = [
        Built(*shared, noise("left")).push(server, "left"),
        Built(*shared, noise("right")).push(server, "right"),
    ]
    server.requests.clear()
    with pullers(client, (references[0], "default"), (references[1], "other")) as running:
        for puller in running:
            puller.go()
        for puller in running:
            puller.end()
    with lamella.Client(client.config.root, client.config.state, namespace="other") as other:
        wanted = blobs_of(client, references[0]) | blobs_of(other, references[1])
    assert len(wanted) == 7
    assert fetched(server) == dict.fromkeys(wanted, 1)
    assert len(layer_folders(client)) == 5


@pytest.mark.parametrize("name", ["made", "else"], ids=["the same image", "another image"])
def test_who_waits_tells_how_far_the_other_is_and_takes_over_when_it_dies(client, server, name):
    big = noise("big", 8 * SIZE)
    built = [Built(big, compression="none"), Built(big, noise("little"), compression="none")]
    for image, repository in zip(built, ("made", "else"), strict=True):
        image.push(server, repository)
    layer = built[0].descriptors[0]
    with Gate(server.address, limit=5 * SIZE) as gate:
        first = (f"{gate.address}/made:latest", "default")
        second = (f"{server.address}/{name}:latest", "other")
        with pullers(client, first, second) as (one, two):
            one.go()
            one.next("downloading", 1)
            two.go()
            two.next("waiting", 1)
            seen = two.next("waiting", 2 * SIZE)
            assert [ingest.ref for ingest in client.content.ingests()] == [f"layer-{layer.digest}"]
            server.requests.clear()
            one.process.send_signal(signal.SIGKILL)
            assert "image" in two.end()
    ranges = [
        request.range
        for request in server.requests
        if request.path.endswith(layer.digest) and request.method == "GET"
    ]
    assert len(ranges) == 1
    start = int(ranges[0].removeprefix("bytes=").rstrip("-"))
    assert seen <= start < layer.size
    with lamella.Client(client.config.root, client.config.state, namespace="other") as other:
        assert len(other.content.read(layer.digest)) == layer.size
        assert other.content.ingests() == client.content.ingests() == []
        other.gc()
        assert other.fsck().findings == []


def test_ctrl_c_ends_the_wait_for_another_pull(client, server):
    Built(noise("big", 8 * SIZE), compression="none").push(server)
    with Gate(server.address, limit=3 * SIZE) as gate:
        first, second = (f"{address}/made:latest" for address in (gate.address, server.address))
        with pullers(client, (first, "default"), (second, "other")) as (one, two):
            one.go()
            one.next("downloading", 1)
            two.go()
            two.next("waiting")
            two.process.send_signal(signal.SIGINT)
            assert two.process.wait(60) != 0  # the other has not ended
            gate.open()
            assert "image" in one.end()


def test_a_pull_that_keeps_and_one_that_discards_unpack_a_layer_once(client, server):
    reference = Built(noise("one"), noise("two")).push(server)
    each = [(reference, "default"), (reference, "other", "discard")]
    with pullers(client, *each) as running:
        for puller in running:
            puller.go()
        for puller in running:
            puller.end()
    assert len(layer_folders(client)) == 2
    assert client.content.exists(client.images.get(reference).layers[0].digest)


def test_two_images_with_the_same_layers_in_another_order_do_not_wait_for_each_other(client, server):
    # Both layers need what lies beneath them, so that each pull keeps them until its end.
    one, two = tar(file("a/x", os.urandom(1 << 20))), tar(file("b/y", os.urandom(1 << 20)))
    references = [Built(one, two).push(server, "one"), Built(two, one).push(server, "two")]
    failures = []

    def pull(reference):
        try:
            with lamella.Client(client.config.root, client.config.state) as own:
                own.images.pull(reference)
        except BaseException as error:
            failures.append(error)

    for _ in range(5):
        threads = [threading.Thread(target=pull, args=(reference,)) for reference in references]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        assert failures == []
        for image in client.images.list():
            client.images.remove(image.name)
        client.gc()
