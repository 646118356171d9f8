"""Pull, against the in-process registry: what comes here, what does not, and what is left when it fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

import lamella
from gate import ONE_CONNECTION, Gate, one_connection  # noqa: F401
from lamella import oci
from lamella.digest import digest_of
from lamella.errors import (
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    LamellaError,
    NotFound,
    Unsupported,
)
from lamella.registry.server.folder import FolderRepository
from lamella.structs import encode
from layers import Built, file, folder, hardlink, opaque, symlink, tar, whiteout
from waiting import until

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("one_connection")]


@pytest.fixture
def server():
    from lamella.registry.server import RegistryServer

    with RegistryServer() as running:
        yield running


BASE = tar(
    folder("etc"), file("etc/passwd", b"root:x:0:0::/root:/bin/sh\n"), folder("data"), file("data/a", b"a")
)
UPPER = tar(folder("data"), file("data/b", b"b"), whiteout("data/a"))


def blob_requests(server):
    return [request for request in server.requests if "/blobs/" in request.path and request.method == "GET"]


def assert_nothing_visible(client):
    """No image, no snapshot; and gc finds nothing that refers to what is left."""
    assert client.images.list() == []
    assert list(client.snapshots.walk()) == []
    client.gc()
    assert list(client.content.walk()) == []
    folders = client.config.root / "snapshots" / "overlayfs"
    assert not folders.exists() or list(folders.iterdir()) == []
    assert [path for path in (client.config.root / "blobs").rglob("*") if path.is_file()] == []


def merged(client, image):
    """The files of the image's merged view, as text."""
    import lamella._core as core

    paths = [str(path) for path in client.snapshots.layer_paths(image.chain_id)]
    return lambda path: core.read_file(paths, path, 1 << 20)


def test_an_image_becomes_content_and_committed_snapshots_by_chain_id(client, server):
    image = client.images.pull(Built(BASE, UPPER).push(server))
    kinds = {info.name: (info.kind, info.parent) for info in client.snapshots.walk()}
    lower, upper = image.chain_ids
    assert kinds == {lower: ("committed", ""), upper: ("committed", lower)}
    assert image.diff_ids == [digest_of(BASE), digest_of(UPPER)]
    read = merged(client, image)
    assert (read("data/a"), read("data/b")) == (None, b"b")
    for descriptor in [image.target, image.manifest.config, *image.layers]:
        assert digest_of(client.content.read(descriptor.digest)) == descriptor.digest


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
def test_every_compression_gives_the_same_snapshot(client, server, compression):
    image = client.images.pull(Built(BASE, UPPER, compression=compression).push(server))
    assert merged(client, image)("data/b") == b"b"
    assert image.chain_id == oci.chain_ids([digest_of(BASE), digest_of(UPPER)])[-1]


def test_an_index_is_followed_to_the_platform_of_this_machine(client, server):
    built = Built(BASE)
    built.push(server)
    own = oci.Descriptor(
        media_type=oci.OCI_MANIFEST,
        digest=digest_of(built.manifest),
        size=len(built.manifest),
        platform=oci.Platform(**built.platform),
    )
    other = oci.Descriptor(
        media_type=oci.OCI_MANIFEST,
        digest=digest_of(b"other"),
        size=5,
        platform=oci.Platform(os="linux", architecture="s390x"),
    )
    index = encode({"schemaVersion": 2, "mediaType": oci.OCI_INDEX, "manifests": [other, own]})
    server.push_manifest("made", "multi", index)
    image = client.images.pull(f"{server.address}/made:multi")
    assert image.target.digest == digest_of(index)
    assert image.manifest_descriptor.digest == own.digest
    with pytest.raises(NotFound, match="linux/s390x"):
        client.images.pull(f"{server.address}/made:multi", platform="linux/riscv64")


def test_a_platform_that_is_asked_for_is_held_against_an_image_that_has_only_one(client, server):
    built = Built(BASE)
    reference = built.push(server)
    with pytest.raises(NotFound, match=f"linux/{built.platform['architecture']}"):
        client.images.pull(reference, platform="linux/s390x")
    assert_nothing_visible(client)
    assert client.images.pull(reference, platform=f"linux/{built.platform['architecture']}").layers
    with pytest.raises(NotFound):
        client.images.pull(reference, platform="linux/s390x")


@pytest.mark.parametrize("unpack", [True, False])
def test_a_second_pull_is_one_request_and_writes_nothing(client, server, unpack):
    reference = Built(BASE, UPPER).push(server)
    first = client.images.pull(reference, unpack=unpack)
    server.requests.clear()
    before = {
        path: path.stat().st_mtime_ns for path in client.config.root.rglob("*") if "metadata" not in path.name
    }
    second = client.images.pull(reference, unpack=unpack)
    assert len(server.requests) == 1
    assert second == first
    after = {
        path: path.stat().st_mtime_ns for path in client.config.root.rglob("*") if "metadata" not in path.name
    }
    assert after == before


def test_a_pull_gives_its_image_also_when_somebody_removes_it_at_once(client, server):
    reference = Built(BASE).push(server)

    def remove(progress):
        if progress.phase == "done" and not progress.digest:
            client.images.remove(reference)

    for _ in range(2):  # fetched, and found
        image = client.images.pull(reference, progress=remove)
        assert image.target.digest == digest_of(Built(BASE).manifest)
        assert client.images.list() == []
        client.images.pull(reference)


def test_another_namespace_fetches_and_unpacks_nothing_again(client, server):
    reference = Built(BASE, UPPER).push(server)
    client.images.pull(reference)
    folders = client.config.root / "snapshots" / "overlayfs"
    before = sorted(folders.iterdir())
    server.requests.clear()
    with lamella.Client(client.config.root, client.config.state, namespace="other") as other:
        image = other.images.pull(reference)
        assert merged(other, image)("data/b") == b"b"
        assert {info.digest for info in other.content.walk()} >= {layer.digest for layer in image.layers}
    assert blob_requests(server) == []
    assert sorted(folders.iterdir()) == before


def test_a_layer_is_unpacked_once_for_all_chains(client, server):
    extra = tar(file("extra"))
    one = client.images.pull(Built(BASE, extra).push(server, "one"))
    two = client.images.pull(Built(UPPER, extra).push(server, "two"))
    shared = [client.snapshots.layer_paths(image.chain_id)[0] for image in (one, two)]
    assert one.chain_id != two.chain_id
    assert shared[0] == shared[1]


def test_a_blob_pulled_without_unpacking_is_unpacked_from_the_store(client, server):
    reference = Built(BASE, UPPER).push(server)
    image = client.images.pull(reference, unpack=False)
    assert list(client.snapshots.walk()) == []
    server.requests.clear()
    client.images.pull(reference)
    assert blob_requests(server) == []
    assert merged(client, image)("data/b") == b"b"


def test_artifacts_come_without_unpacking(client, server):
    built = Built(b"not a tar", compression="none")
    built.descriptors = [
        oci.Descriptor(media_type="application/x.model", digest=layer.digest, size=layer.size)
        for layer in built.descriptors
    ]
    reference = built.push(server)
    with pytest.raises(Unsupported, match=r"application/x\.model"):
        client.images.pull(reference)
    assert_nothing_visible(client)
    image = client.images.pull(reference, unpack=False)
    assert client.content.read(image.layers[0].digest) == b"not a tar"


# Layers that need what lies beneath them


@pytest.mark.needs_root
def test_an_unnamed_parent_folder_takes_its_attributes_from_beneath(client, server):
    lower = tar(folder("srv", mode=0o700, uid=7, gid=8, mtime=1_600_000_000), file("srv/a"))
    upper = tar(file("srv/b"))
    image = client.images.pull(Built(lower, upper).push(server))
    top = client.snapshots.layer_paths(image.chain_id)[0]
    found = (top / "srv").stat()
    assert (found.st_mode & 0o7777, found.st_uid, found.st_gid, found.st_mtime) == (
        0o700,
        7,
        8,
        1_600_000_000,
    )


@pytest.mark.needs_root
def test_a_layer_bound_to_its_chain_is_unpacked_again_for_another(client, server):
    upper = tar(file("srv/b"))
    one = client.images.pull(Built(tar(folder("srv", mode=0o700)), upper).push(server, "one"))
    two = client.images.pull(Built(tar(folder("srv", mode=0o755, uid=5)), upper).push(server, "two"))
    tops = [client.snapshots.layer_paths(image.chain_id)[0] for image in (one, two)]
    assert tops[0] != tops[1]
    assert [(top / "srv").stat().st_mode & 0o777 for top in tops] == [0o700, 0o755]
    assert [(top / "srv").stat().st_uid for top in tops] == [0, 5]


@pytest.mark.needs_root
def test_a_hard_link_reaches_into_a_lower_layer(client, server):
    lower = tar(folder("bin"), file("bin/tool", b"tool" * 1000, mode=0o4755, uid=3))
    upper = tar(folder("bin"), hardlink("bin/alias", "bin/tool"), hardlink("bin/again", "bin/tool"))
    image = client.images.pull(Built(lower, upper).push(server))
    top = client.snapshots.layer_paths(image.chain_id)[0]
    alias, again = (top / "bin/alias").stat(), (top / "bin/again").stat()
    assert (top / "bin/alias").read_bytes() == b"tool" * 1000
    assert (alias.st_mode & 0o7777, alias.st_uid) == (0o4755, 3)
    assert alias.st_ino == again.st_ino


def test_a_hard_link_to_what_a_layer_between_deleted_is_refused(client, server):
    built = Built(tar(file("a")), tar(whiteout("a")), tar(hardlink("b", "a")))
    with pytest.raises(InvalidArgument, match="a"):
        client.images.pull(built.push(server))
    assert_nothing_visible(client)


@pytest.mark.needs_root
def test_the_same_layer_at_two_places_of_one_image_is_right(client, server):
    one, two = tar(file("x", b"1")), tar(file("x", b"2"), file("y", b"2"))
    image = client.images.pull(Built(one, two, one).push(server))
    read = merged(client, image)
    assert (read("x"), read("y")) == (b"1", b"2")
    assert len(list(client.snapshots.walk())) == 3
    client.snapshots.view("look", image.chain_id)
    target = client.config.root / "mnt"
    target.mkdir()
    lamella._core.mount([(m.type, m.source, m.options) for m in client.snapshots.mounts("look")], str(target))
    try:
        assert ((target / "x").read_bytes(), (target / "y").read_bytes()) == (b"1", b"2")
    finally:
        lamella._core.unmount(str(target))


def test_an_opaque_root_hides_everything_beneath(client, server):
    image = client.images.pull(Built(BASE, tar(opaque(""), file("only"))).push(server))
    read = merged(client, image)
    assert (read("etc/passwd"), read("only")) == (None, b"data")


# Bad input


def broken(**changes):
    built = Built(BASE, UPPER)
    for name, value in changes.items():
        setattr(built, name, value)
    return built


def test_an_unknown_reference_is_not_found_and_leaves_nothing(client, server):
    Built(BASE).push(server)
    with pytest.raises(NotFound, match="absent"):
        client.images.pull(f"{server.address}/made:absent")
    assert_nothing_visible(client)


@pytest.mark.parametrize("unpack", [True, False])
def test_a_layer_with_another_content_than_its_digest_is_refused(client, server, unpack):
    built = Built(BASE, UPPER)
    reference = built.push(server)
    path = server.storage.root / "blobs" / built.descriptors[1].digest.replace(":", "/")
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)
    with pytest.raises((FailedPrecondition, DataLoss)):
        client.images.pull(reference, unpack=unpack)
    assert not client.content.exists(built.descriptors[1].digest)
    spoiled = f"layer-{built.descriptors[1].digest}"  # which is not gone on with
    assert spoiled not in [ingest.ref for ingest in client.content.ingests()]
    assert_nothing_visible(client)
    path.write_bytes(built.layers[1])
    assert merged(client, client.images.pull(reference))("data/b") == b"b"


@pytest.mark.parametrize("cut", [0, 1, 15, 40])
def test_a_truncated_gzip_layer_is_refused(client, server, cut):
    built = Built(BASE)
    blob = built.layers[0][:cut]
    built.layers = [blob]
    built.descriptors = [
        oci.Descriptor(media_type=oci.OCI_LAYER_GZIP, digest=digest_of(blob), size=len(blob))
    ]
    with pytest.raises(LamellaError) as caught:
        client.images.pull(built.push(server))
    assert isinstance(caught.value, (DataLoss, FailedPrecondition, InvalidArgument))
    assert_nothing_visible(client)


def test_a_layer_that_is_not_its_diff_id_is_refused(client, server):
    with pytest.raises(FailedPrecondition, match="image config says"):
        client.images.pull(broken(diff_ids=[digest_of(BASE), digest_of(b"else")]).push(server))
    assert_nothing_visible(client)


def test_a_config_with_another_number_of_layers_is_refused(client, server):
    with pytest.raises(InvalidArgument, match="diffIDs"):
        client.images.pull(broken(diff_ids=[digest_of(BASE)]).push(server))
    assert_nothing_visible(client)


def test_an_unknown_layer_format_is_refused_by_name(client, server):
    built = Built(BASE)
    built.descriptors = [
        oci.Descriptor(media_type="application/x-tar+lz4", digest=layer.digest, size=layer.size)
        for layer in built.descriptors
    ]
    with pytest.raises(Unsupported, match=r"x-tar\+lz4"):
        client.images.pull(built.push(server))
    assert_nothing_visible(client)


def test_a_layer_that_would_leave_its_folder_is_refused(client, server, tmp_path):
    marker = tmp_path / "outside"
    evil = tar(symlink("link", str(tmp_path)), file("link/outside", b"bad"), file("../outside", b"bad"))
    with pytest.raises(InvalidArgument):
        client.images.pull(Built(evil).push(server))
    assert not marker.exists()
    assert_nothing_visible(client)


@pytest.mark.needs_root
@pytest.mark.parametrize("unpack", [True, False])
def test_a_full_disk_is_one_clear_error_and_leaves_nothing(tmp_path, server, unpack):
    from lamella.errors import ResourceExhausted

    small = tmp_path / "small"
    small.mkdir()
    lamella._core.mount([("tmpfs", "tmpfs", ["size=2m"])], str(small))
    try:
        with lamella.Client(root=small / "root", state=tmp_path / "state") as client:
            big = tar(file("big", os.urandom(8 << 20)))
            with pytest.raises(ResourceExhausted, match="space"):
                client.images.pull(Built(big, compression="none").push(server), unpack=unpack)
            assert_nothing_visible(client)
            client.gc()
            image = client.images.pull(Built(BASE).push(server, "little"))
            assert merged(client, image)("data/a") == b"a"
    finally:
        lamella._core.unmount(str(small))


# Progress, and stopping


def test_a_progress_callback_that_raises_stops_the_pull(client, server):
    class Enough(Exception):
        pass

    def progress(event):
        if event.digest:
            raise Enough

    with pytest.raises(Enough):
        client.images.pull(Built(BASE, UPPER).push(server), progress=progress)
    assert client.images.list() == []


def test_a_blob_that_comes_another_way_meanwhile_does_no_harm(client, server):
    built = Built(tar(file("big", os.urandom(6 << 20))), compression="none")
    blob, digest = built.layers[0], built.descriptors[0].digest

    came = []

    def progress(event):
        if event.phase == "downloading" and not came:
            came.append(client.content.write("another-way", blob, digest=digest, size=len(blob)))
            gate.open()

    built.push(server)
    with Gate(server.address, limit=3 << 20) as gate:
        image = client.images.pull(f"{gate.address}/made:latest", progress=progress)
    assert came
    assert client.snapshots.usage(image.chain_id).size >= 6 << 20
    assert client.content.ingests() == []


def test_a_slow_progress_callback_holds_nobody_up_and_is_called_in_the_callers_thread(client, server):
    """All of the blob comes while the callback still looks at its first report of it."""
    built = Built(tar(file("big", os.urandom(30 << 20))), compression="none")
    descriptor = built.descriptors[0]
    seen, came, threads = [], [], set()

    def progress(event):
        threads.add(threading.current_thread())
        if event.phase == "downloading" and not seen:
            seen.append(event)
            gate.open()
            deadline = time.monotonic() + 60
            while not client.content.exists(descriptor.digest) and time.monotonic() < deadline:
                time.sleep(0.01)
            came.append(client.content.exists(descriptor.digest))

    built.push(server)
    with Gate(server.address, limit=4 << 20) as gate:
        client.images.pull(f"{gate.address}/made:latest", progress=progress)
    assert seen[0].received < descriptor.size
    assert came == [True]
    assert threads == {threading.current_thread()}


def test_progress_ends_with_every_layer_done(client, server):
    built = Built(BASE, UPPER)
    events = []
    client.images.pull(built.push(server), progress=events.append)
    assert events[0].phase == "resolving"
    assert events[-1].phase == "done"
    ended = {event.digest: event for event in events if event.phase == "done" and event.digest}
    assert set(ended) == {descriptor.digest for descriptor in built.descriptors}
    for descriptor in built.descriptors:
        assert ended[descriptor.digest].received == ended[descriptor.digest].size == descriptor.size


def test_a_layer_that_fails_stops_the_others_at_once_and_what_came_of_them_stays(client, server, monkeypatch):
    """The other one's bytes never come to an end: only being stopped ends it."""
    built = Built(b"no archive" * 1000, tar(file("big", os.urandom(6 << 20))), compression="none")
    built.push(server)
    open_blob = FolderRepository.open_blob

    def opened(repository, digest):
        if digest == built.descriptors[0].digest:  # it fails once something has come of the other one
            until(lambda: any(ingest.offset for ingest in client.content.ingests()))
        return open_blob(repository, digest)

    monkeypatch.setattr(FolderRepository, "open_blob", opened)
    with Gate(server.address, limit=3 << 20) as gate:
        with pytest.raises(DataLoss, match=built.descriptors[0].digest):
            client.images.pull(f"{gate.address}/made:latest")
        assert not gate.is_open
    assert [ingest.ref for ingest in client.content.ingests()] == [f"layer-{built.descriptors[1].digest}"]
    assert client.images.list() == []


@pytest.mark.parametrize("unpack", [True, False])
def test_ctrl_c_stops_a_pull_and_the_next_one_resumes(client, server, unpack):
    built = Built(BASE, tar(file("big", os.urandom(6 << 20))), compression="none")
    built.push(server)
    with Gate(server.address, limit=3 << 20) as gate:
        reference = f"{gate.address}/made:latest"
        code = f"""
            import lamella
            {ONE_CONNECTION}
            with lamella.Client({str(client.config.root)!r}, {str(client.config.state)!r}) as client:
                client.images.pull(
                    {reference!r}, unpack={unpack}, progress=lambda event: print(event.received, flush=True)
                )
        """
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        try:
            assert process.stdout is not None
            while int(process.stdout.readline()) < 1 << 20:
                pass
            while not any(
                ingest.offset for ingest in client.content.ingests()
            ):  # received is not yet written
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
            process.wait()
        assert b"KeyboardInterrupt" in errors
        ingest = max(client.content.ingests(), key=lambda ingest: ingest.offset)
        assert 0 < ingest.offset < len(built.layers[1])
        assert client.images.list() == []
        gate.open()
        server.requests.clear()
        client.images.pull(reference, unpack=unpack)
        assert f"bytes={ingest.offset}-" in [request.range for request in blob_requests(server)]
        assert client.content.ingests() == []
