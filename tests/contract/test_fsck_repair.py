"""What --repair fetches: each damage, with a registry that has it, that is gone, that serves other bytes."""

from __future__ import annotations

import os
import shutil

import pytest

import lamella
from lamella._core import read_file
from lamella.digest import digest_of
from lamella.labels import DISTRIBUTION_SOURCE
from lamella.registry.server import RegistryServer, basic_auth
from lamella.transfer.progress import Progress
from layers import Built, file, folder, tar
from ports import silent_port

pytestmark = [pytest.mark.privileged, pytest.mark.rootless]

BASE = tar(folder("etc"), file("etc/passwd", b"root:x:0:0::/root:/bin/sh\n"))
UPPER = tar(file("upper", os.urandom(3000)))


@pytest.fixture
def server():
    with RegistryServer() as running:
        yield running


@pytest.fixture
def image(client, server):
    return client.images.pull(Built(BASE, UPPER).push(server))


def blob_file(client, digest):
    return client.config.root / "blobs" / digest.replace(":", "/")


def layer_folder(client, name):
    return client.snapshots.layer_paths(name)[0].parent


def flip(path):
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path):
    path.chmod(0o600)
    os.truncate(path, path.stat().st_size - 1)


def empty(path):
    path.chmod(0o600)
    os.truncate(path, 0)


DAMAGES = {"truncated": truncate, "empty": empty, "flipped": flip, "deleted": lambda path: path.unlink()}
PARTS = {
    "manifest": lambda image: image.digest,
    "config": lambda image: image.manifest.config.digest,
    "layer": lambda image: image.layers[1].digest,
}


def serve_other_bytes(server, digest):
    flip(server.storage.blob_path(digest))


def only(report, kind):
    (finding,) = [each for each in report.findings if each.kind == kind]
    return finding


def works(client, image):
    """The image is whole: a second pull has nothing to do, and its files are there."""
    assert client.fsck(verify_layers=True).findings == []
    paths = [str(path) for path in client.snapshots.layer_paths(image.chain_id)]
    assert read_file(paths, "upper", 1 << 20) is not None
    return True


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_bad_blob_is_fetched_from_where_it_came(client, server, image, damage, part):
    digest = PARTS[part](image)
    DAMAGES[damage](blob_file(client, digest))
    found = only(client.fsck(), "missing-blob" if damage == "deleted" else "damaged-blob")
    assert f"needed by default/{image.name}" in found.detail
    assert f"it came from {server.address}/made" in found.detail
    assert "lamella fsck --repair fetches it" in found.action
    server.requests.clear()
    report = client.fsck(repair=True)
    (finding,) = report.findings
    assert (finding.name, finding.mended) == (digest, True)
    assert finding.action == f"fetched it from {server.address}/made"
    assert report.clean
    assert report.bytes_fetched == blob_file(client, digest).stat().st_size
    assert len([each for each in server.requests if digest in each.path]) == 1
    assert digest_of(client.content.read(digest)) == digest
    assert works(client, image)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_where_the_registry_is_gone_the_image_is_named_and_nothing_else_is_lost(
    client, server, image, damage, part
):
    reference, digest = image.name, PARTS[part](image)
    kept = {PARTS[other](image) for other in PARTS if other != part}
    port = int(server.address.rpartition(":")[2])
    server.close()
    with silent_port(port) as address:
        DAMAGES[damage](blob_file(client, digest))
        report = client.fsck(repair=True)
        (finding,) = report.findings
        assert not finding.mended
        assert not report.clean
        assert ("removed its bytes" in finding.action) == (damage != "deleted")
        assert f"{address}/made: " in finding.action
        assert f"lamella pull {image.familiar_name}" in finding.action
        assert not blob_file(client, digest).exists()
        assert not client.content.exists(digest)
        client.gc()
        assert all(client.content.exists(other) for other in kept)
        assert only(client.fsck(), "missing-blob").name == digest

        with RegistryServer(port=port) as again:
            Built(BASE, UPPER).push(again)
            assert client.fsck(repair=True).clean
    assert works(client, client.images.get(reference))


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_wrong_bytes_of_a_registry_are_not_taken(client, server, image, damage, part):
    digest = PARTS[part](image)
    DAMAGES[damage](blob_file(client, digest))
    serve_other_bytes(server, digest)
    (finding,) = client.fsck(repair=True).findings
    assert not finding.mended
    assert f"it could not be fetched: {server.address}/made: " in finding.action
    assert not client.content.exists(digest)
    assert list((client.config.root / "ingest").iterdir()) == []  # nothing to go on from


def test_a_layer_folder_that_is_gone_is_unpacked_from_its_blob_without_a_request(client, server, image):
    server.close()
    shutil.rmtree(layer_folder(client, image.chain_id))
    (finding,) = client.fsck(repair=True).findings
    assert (finding.kind, finding.mended) == ("missing-layer", True)
    assert works(client, image)


def test_a_layer_folder_that_is_gone_with_its_blob_is_fetched_and_unpacked(client, server, image):
    shutil.rmtree(layer_folder(client, image.chain_id))
    blob_file(client, image.layers[1].digest).unlink()
    report = client.fsck(repair=True)
    assert sorted(each.kind for each in report.findings) == ["missing-blob", "missing-layer"]
    assert report.clean
    assert works(client, image)


@pytest.mark.parametrize("spoil", ["gone", "wrong"])
def test_a_layer_folder_without_a_blob_or_a_registry_stays_wrong(client, server, image, spoil):
    digest = image.layers[1].digest
    shutil.rmtree(layer_folder(client, image.chain_id))
    blob_file(client, digest).unlink()
    server.close() if spoil == "gone" else serve_other_bytes(server, digest)
    report = client.fsck(repair=True)
    assert sorted((each.kind, each.mended) for each in report.findings) == [
        ("missing-blob", False),
        ("missing-layer", False),
    ]
    assert f"lamella pull {image.name}" in only(report, "missing-blob").action
    assert digest in only(report, "missing-layer").action


@pytest.mark.parametrize("state", ["alive", "gone", "wrong", "not asked"])
def test_a_folder_of_a_layer_whose_blob_is_not_kept_is_filled_from_the_registry(client, server, state):
    image = client.images.pull(Built(BASE, UPPER).push(server), keep_layers=False)
    shutil.rmtree(layer_folder(client, image.chain_id))
    if state == "gone":
        server.close()
    elif state == "wrong":
        serve_other_bytes(server, image.layers[1].digest)
    report = client.fsck(repair=True, fetch=state != "not asked")
    (finding,) = report.findings
    assert (finding.kind, finding.mended) == ("missing-layer", state == "alive")
    assert not client.content.exists(image.layers[1].digest)
    assert client.images.get(image.name).layers_discarded
    if state == "alive":
        assert finding.action == f"unpacked it anew, fetched from {server.address}/made"
        assert works(client, image)
    else:
        assert image.layers[1].digest in finding.action


@pytest.mark.parametrize("part", ["config", "layer"])
def test_an_image_that_lacks_content_gets_it(client, server, image, part):
    digest = PARTS[part](image)
    client.content.delete(digest)
    found = only(client.fsck(), "dangling-image")
    assert digest in found.detail
    assert "lamella fsck --repair fetches it, or: lamella pull" in found.action
    report = client.fsck(repair=True)
    assert only(report, "dangling-image").action == f"fetched it from {server.address}/made"
    assert report.clean
    assert client.gc().snapshots == 0  # what keeps them is there again
    assert works(client, image)


def test_an_image_whose_manifest_has_no_row_is_fetched_by_its_name(client, server, image):
    client.content.delete(image.digest)
    Built(BASE).push(server)  # the tag is another image by now
    assert client.fsck(repair=True).clean
    assert client.images.get(image.name).digest == image.digest
    assert works(client, image)


def test_an_image_that_cannot_be_had_is_named(client, server, image):
    client.content.delete(PARTS["config"](image))
    server.close()
    for fetch, text in ((True, "it could not be fetched"), (False, "it was not to be fetched")):
        finding = only(client.fsck(repair=True, fetch=fetch), "dangling-image")
        assert not finding.mended
        assert text in finding.action
        assert f"fetch it: lamella pull {image.familiar_name}" in finding.action


def test_without_fetch_no_registry_is_asked(client, server, image):
    digest = image.layers[0].digest
    blob_file(client, digest).unlink()
    server.requests.clear()
    (finding,) = client.fsck(repair=True, fetch=False).findings
    assert not finding.mended
    assert "it was not to be fetched; fetch it: lamella pull" in finding.action
    assert list(server.requests) == []


def test_the_repositories_are_tried_one_after_the_other(client, server):
    with RegistryServer() as first:
        built = Built(BASE, UPPER)
        one = client.images.pull(built.push(first))
        two = client.images.pull(built.push(server, "elsewhere"))
    digest = two.layers[0].digest
    labels = client.content.info(digest).labels
    assert labels[f"{DISTRIBUTION_SOURCE}{server.address}"] == "elsewhere"
    assert labels[f"{DISTRIBUTION_SOURCE}{one.name.partition('/')[0]}"] == "made"
    blob_file(client, digest).unlink()
    (finding,) = client.fsck(repair=True).findings
    assert finding.action == f"fetched it from {server.address}/elsewhere"


def test_repositories_of_one_registry_are_joined_by_commas_as_in_containerd(client, server):
    built = Built(BASE)
    for repository in ("b/two", "a/one", "c", "a/one"):
        image = client.images.pull(built.push(server, repository))
    for digest in (image.digest, image.manifest.config.digest, image.layers[0].digest):
        assert client.content.info(digest).labels[f"{DISTRIBUTION_SOURCE}{server.address}"] == "a/one,b/two,c"
    client.content.update_labels(digest, {f"{DISTRIBUTION_SOURCE}{server.address}": "mine"})
    assert client.content.info(digest).labels[f"{DISTRIBUTION_SOURCE}{server.address}"] == "mine"


def test_wrong_bytes_of_one_repository_do_not_keep_from_the_next(client, server):
    with RegistryServer() as first:
        built = Built(BASE, UPPER)
        client.images.pull(built.push(first))
        image = client.images.pull(built.push(server, "elsewhere"))
        for digest in (image.digest, image.layers[0].digest):
            serve_other_bytes(first, digest)
            flip(blob_file(client, digest))
        report = client.fsck(repair=True)
        assert [each.mended for each in report.findings] == [True, True]
        assert works(client, image)


def test_credentials_are_those_of_a_pull(client, server, image, tmp_path, monkeypatch):
    digest = image.layers[0].digest
    server.auth = basic_auth({"me": "secret"})
    blob_file(client, digest).unlink()
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    (finding,) = client.fsck(repair=True).findings
    assert "authentication is required" in finding.action
    (tmp_path / "config.json").write_text(f'{{"auths": {{"{server.address}": {{"auth": "bWU6c2VjcmV0"}}}}}}')
    assert client.fsck(repair=True).clean


def test_a_registry_that_is_silent_is_not_asked_for_every_blob(client):
    with RegistryServer() as server:
        layers = [tar(file(f"f{number}", os.urandom(100))) for number in range(8)]
        image = client.images.pull(Built(*layers).push(server))
    for layer in image.layers:
        blob_file(client, layer.digest).unlink()
    report = client.fsck(repair=True, jobs=1)
    assert len(report.findings) == 8
    assert sum("is not asked any more" in each.action for each in report.findings) == 6


def test_damage_in_another_namespace_is_fetched_for_it(client, server, image):
    with lamella.Client(client.config.root, client.config.state, "other") as other:
        theirs = other.images.pull(Built(tar(file("theirs"))).push(server, "theirs"))
        digest = theirs.layers[0].digest
    blob_file(client, digest).unlink()
    (finding,) = client.fsck().findings
    assert f"lamella -n other pull {theirs.familiar_name}" in finding.action
    (finding,) = client.fsck(repair=True).findings
    assert finding.action == f"fetched it from {server.address}/theirs"
    assert not any(info.digest == digest for info in client.content.walk())


def test_progress_tells_how_far_hashing_and_fetching_are(client, server, image):
    blob_file(client, image.layers[1].digest).unlink()
    said: list[Progress] = []
    client.fsck(repair=True, progress=said.append)
    assert any(each.phase == "checking" for each in said)
    assert said[-1].phase == "done"
    assert said[-1].digest == image.layers[1].digest


def test_blobs_are_fetched_while_a_container_runs_on_their_image(client, small_image):
    image = client.images.pull(small_image)
    box = client.containers.run(image, ["/bin/sleep", "60"], detach=True, name="box")
    try:
        for layer in image.layers:
            flip(blob_file(client, layer.digest))
        assert client.fsck(repair=True).clean
        assert box.exec(["/bin/sh", "-c", "echo alive"]).stdout == b"alive\n"
    finally:
        box.remove(force=True)
    assert client.fsck(verify_layers=True).findings == []


def test_a_repair_goes_on_where_a_pull_stopped_and_starts_over_where_that_was_spoiled(client, server, image):
    digest = image.layers[1].digest
    data = blob_file(client, digest).read_bytes()
    for start in (data[:1000], bytes(1000)):
        blob_file(client, digest).unlink()
        with client.content.writer(f"layer-{digest}", size=len(data), digest=digest, shared=True) as ingest:
            ingest.write(start)
        server.requests.clear()
        assert client.fsck(repair=True).clean
        ranges = [each.range for each in server.requests if digest in each.path]
        assert ranges == (["bytes=1000-"] if start == data[:1000] else ["bytes=1000-", None])
        assert client.content.read(digest) == data


def test_a_layer_of_many_images_names_some_of_them_and_their_number(client, server, image):
    for number in range(8):
        client.images.put(f"{server.address}/made:{number}", image.target)
    blob_file(client, image.layers[0].digest).unlink()
    (finding,) = client.fsck().findings
    assert finding.detail.count("default/") == 5
    assert " and 4 more; it came from" in finding.detail
