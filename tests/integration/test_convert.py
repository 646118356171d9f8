"""Conversions, held against skopeo's, and used by podman and umoci."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from test_archive_peers import podman
from test_platforms_here import HERE, THERE, built, multi, server

from lamella import oci
from lamella.digest import digest_of
from lamella.errors import FailedPrecondition, InvalidArgument, NotFound, Unsupported
from lamella.structs import encode, read_json
from layers import Built, compress, file, folder, tar

__all__ = ["multi", "podman", "server"]
pytestmark = [pytest.mark.integration]

LOWER = tar(folder("etc"), file("etc/a", b"a" * 300_000))
MIDDLE = tar(folder("etc"), file("etc/b", os.urandom(3_000_000)))
UPPER = tar(folder("etc"), file("etc/c", b"c"))


@pytest.fixture
def image(client, server):
    return client.images.pull(Built(LOWER, MIDDLE, UPPER).push(server))


def compressions(image) -> list[str]:
    return [oci.compression_of(layer) for layer in image.layers]


def read(client, image, path: str) -> bytes | None:
    from lamella import _core

    return _core.read_file(
        [str(path) for path in client.snapshots.layer_paths(image.chain_id)], path, 1 << 23
    )


@pytest.mark.parametrize("compression", ["zstd", "none"])
def test_another_compression_keeps_config_and_snapshots(client, image, compression):
    before = {info.name for info in client.snapshots.walk()}
    converted = client.images.convert(image.name, "converted", compression=compression)
    assert compressions(converted) == [compression] * 3
    assert converted.manifest.config == image.manifest.config
    assert (converted.chain_id, converted.diff_ids) == (image.chain_id, image.diff_ids)
    assert {info.name for info in client.snapshots.walk()} == before
    assert image == client.images.get(image.name)
    assert client.leases.list() == []
    client.images.remove(image.name, sync=True)
    back = client.images.convert("converted", "back", compression="gzip")
    assert compressions(back) == ["gzip"] * 3
    client.images.remove("converted", sync=True)
    assert read(client, client.images.unpack("back"), "etc/c") == b"c"
    assert client.fsck(verify_layers=True).findings == []


def test_the_same_image_gives_the_same_bytes_however_many_cores_there_are(client, image, monkeypatch):
    found = set()
    for cores in (1, 2, 7):
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        for compression, level in (("zstd", None), ("zstd", 9), ("none", None)):
            converted = client.images.convert(image.name, f"c{cores}", compression=compression, level=level)
            found.add((compression, level, converted.digest))
    assert len(found) == 3


def test_what_has_the_right_form_is_not_touched(client, image):
    for options in ({}, {"compression": "gzip"}, {"format": "oci"}, {"layers": [0, 1, 2]}):
        assert client.images.convert(image.name, "same", **options).target == image.target
    mixed = read_json(client.content.read(image.digest))
    assert mixed["layers"]
    zstd = client.images.convert(image.name, "zstd", compression="zstd")
    assert client.images.convert("zstd", "again", compression="zstd", level=19).target == zstd.target


def test_docker_and_oci_documents_are_the_same_image(client, image):
    docker = client.images.convert(image.name, "docker", format="docker")
    assert docker.target.media_type == oci.DOCKER_MANIFEST
    assert docker.manifest.config.media_type == oci.DOCKER_CONFIG
    assert {layer.media_type for layer in docker.layers} == {oci.DOCKER_LAYER_GZIP}
    assert [layer.digest for layer in docker.layers] == [layer.digest for layer in image.layers]
    assert docker.manifest.config.digest == image.manifest.config.digest
    assert docker.chain_id == image.chain_id
    back = client.images.convert("docker", "back", format="oci")
    assert back.manifest == image.manifest
    zstd = client.images.convert("docker", "zstd", compression="zstd")
    assert zstd.target.media_type == oci.OCI_MANIFEST


def test_docker_has_no_zstd(client, image):
    client.images.convert(image.name, "zstd", compression="zstd")
    with pytest.raises(InvalidArgument, match="no zstd"):
        client.images.convert(image.name, "x", compression="zstd", format="docker")
    with pytest.raises(InvalidArgument, match="zstd") as caught:
        client.images.convert("zstd", "x", format="docker")
    assert "--compression gzip" in caught.value.hint
    converted = client.images.convert("zstd", "x", format="docker", compression="gzip")
    assert compressions(converted) == ["gzip"] * 3


def test_some_layers_are_an_image_whose_history_follows(client, server):
    made = Built(LOWER, MIDDLE, UPPER)
    steps = ["lower", ("env", True), "middle", "upper", ("cmd", True)]
    history = [
        {"created_by": step} if isinstance(step, str) else {"created_by": step[0], "empty_layer": True}
        for step in steps
    ]
    config = encode({**read_json(made.config), "history": history, "unknown": 1})
    manifest = read_json(made.manifest)
    manifest["config"] |= {"digest": digest_of(config), "size": len(config)}
    for blob in (*made.layers, config):
        server.push_blob("made", blob)
    server.push_manifest("made", "latest", encode(manifest))
    image = client.images.pull(f"{server.address}/made:latest")

    def steps_of(image) -> list[str]:
        return [step["created_by"] for step in image.config.history]

    base = client.images.convert(image.name, "base", drop_top=1)
    assert base.diff_ids == image.diff_ids[:2]
    assert base.chain_id == image.chain_ids[1]
    assert steps_of(base) == ["lower", "env", "middle", "cmd"]
    assert read_json(client.content.read(base.manifest.config.digest))["unknown"] == 1
    assert (read(client, base, "etc/a"), read(client, base, "etc/c")) == (b"a" * 300_000, None)
    ends = client.images.convert(image.name, "ends", layers="0,2")
    assert ends.diff_ids == [image.diff_ids[0], image.diff_ids[2]]
    assert steps_of(ends) == ["lower", "env", "upper", "cmd"]
    assert (read(client, ends, "etc/b"), read(client, ends, "etc/c")) == (None, b"c")
    client.gc()
    assert client.fsck(verify_layers=True).findings == []


@pytest.mark.parametrize(
    "options",
    [
        {"layers": "0-3"},
        {"layers": []},
        {"layers": "a"},
        {"layers": "2-"},
        {"drop_top": 3},
        {"drop_top": -1},
        {"drop_top": 1, "layers": [0]},
        {"compression": "lz4"},
        {"format": "appc"},
        {"level": 3},
        {"compression": "zstd", "level": 20},
        {"platform": HERE, "all_platforms": True},
    ],
)
def test_what_makes_no_sense_is_refused_and_leaves_nothing(client, image, options):
    before = {info.digest for info in client.content.walk()}
    with pytest.raises(InvalidArgument):
        client.images.convert(image.name, "x", **options)
    assert [found.name for found in client.images.list()] == [image.name]
    assert {info.digest for info in client.content.walk()} == before
    assert (client.leases.list(), client.content.ingests()) == ([], [])


def test_a_layer_that_is_not_its_diff_id_is_refused_and_leaves_nothing(client, server):
    made = Built(LOWER)
    made.diff_ids = [digest_of(b"another")]
    image = client.images.pull(made.push(server), unpack=False)
    with pytest.raises(FailedPrecondition, match="diffID"):
        client.images.convert(image.name, "x", compression="zstd")
    assert client.content.ingests() == []
    assert [found.name for found in client.images.list()] == [image.name]


def test_artifacts_and_layers_that_were_dropped_are_refused(client, server, image):
    thing = oci.Manifest(config=server.push_blob("thing", b"{}", oci.OCI_EMPTY), layers=[])
    server.push_manifest("thing", "1", thing)
    client.images.pull(f"{server.address}/thing:1", unpack=False)
    with pytest.raises(Unsupported, match="artifact"):
        client.images.convert(f"{server.address}/thing:1", "x")
    client.images.remove(image.name, sync=True)
    dropped = client.images.pull(image.name, keep_layers=False)
    with pytest.raises(NotFound) as caught:
        client.images.convert(dropped.name, "x", compression="zstd")
    assert f"lamella pull {dropped.name}" in caught.value.hint


def test_an_image_that_is_not_unpacked_stays_so(client, server):
    image = client.images.pull(Built(LOWER).push(server), unpack=False)
    converted = client.images.convert(image.name, "x", compression="none")
    assert list(client.snapshots.walk()) == []
    assert client.content.read(converted.layers[0].digest) == LOWER
    client.images.remove(image.name, sync=True)
    assert client.images.unpack("x").chain_id == converted.chain_id


def test_an_index_is_converted_whole_and_what_is_no_image_stays(client, multi):
    reference, images, attestation, statement = multi
    with pytest.raises(NotFound) as caught:
        client.images.pull(reference)
        client.images.convert(reference, "x", all_platforms=True, compression="zstd")
    assert "--all-platforms" in caught.value.hint
    image = client.images.pull(reference, all_platforms=True)
    converted = client.images.convert(reference, "x", all_platforms=True, compression="zstd")
    assert converted.platforms == image.platforms
    for platform in images:
        each = client.images.get("x", platform=platform)
        assert (compressions(each), each.diff_ids) == (["zstd"], images[platform].diff_ids)
    index = oci.parse_index(client.content.read(converted.digest))
    assert index.manifests[-1] == oci.parse_index(client.content.read(image.digest)).manifests[-1]
    client.images.remove(reference, sync=True)
    assert client.content.exists(statement.digest) and client.content.exists(attestation.digest)
    one = client.images.convert("x", "one", platform=THERE, format="docker", compression="gzip")
    assert (str(one.platform), one.target.media_type) == (THERE, oci.DOCKER_MANIFEST)
    with pytest.raises(NotFound):
        client.images.convert("one", "other", platform=HERE)


def test_annotations_stay_but_for_those_about_the_bytes_of_a_layer(client, server):
    made = built(HERE)
    document = read_json(made.manifest)
    document["annotations"] = {"org.opencontainers.image.title": "kept"}
    document["layers"][0]["annotations"] = {
        "com.example": "kept",
        "containerd.io/snapshot/stargz/toc.digest": "sha256:0",
    }
    document["unknown"] = [1]
    made.push(server)
    server.push_manifest("made", "latest", encode(document))
    client.images.pull(f"{server.address}/made:latest")
    converted = client.images.convert(f"{server.address}/made:latest", "x", compression="zstd")
    found = read_json(client.content.read(converted.digest))
    assert (found["annotations"], found["unknown"]) == (document["annotations"], [1])
    assert found["layers"][0]["annotations"] == {"com.example": "kept"}


def test_ctrl_c_stops_a_conversion_and_leaves_nothing(client, server):
    image = client.images.pull(
        Built(tar(file("big", os.urandom(200 << 20))), compression="none").push(server)
    )
    before = {info.digest for info in client.content.walk()}
    code = (
        f"import lamella\n"
        f"with lamella.Client({str(client.config.root)!r}, {str(client.config.state)!r}) as client:\n"
        f"    client.images.convert({image.name!r}, 'x', compression='gzip', level=9)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
    try:
        while process.poll() is None and not any(ingest.offset for ingest in client.content.ingests()):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert b"KeyboardInterrupt" in errors
    assert [found.name for found in client.images.list()] == [image.name]
    assert {info.digest for info in client.content.walk()} == before
    assert (client.leases.list(), client.content.ingests()) == ([], [])


def test_gc_meanwhile_takes_nothing(client, image, monkeypatch):
    from lamella.transfer import convert

    original = convert.store_packed

    def collecting(*args: Any, **options: Any) -> Any:
        packed = original(*args, **options)
        if any(found.name == image.name for found in client.images.list()):
            client.images.remove(image.name)
        client.gc()
        return packed

    monkeypatch.setattr(convert, "store_packed", collecting)
    converted = client.images.convert(image.name, "x", compression="zstd")
    client.gc()
    assert read(client, converted, "etc/c") == b"c"
    assert all(client.content.exists(layer.digest) for layer in converted.layers)


# Against other programs


def skopeo(*arguments: str | Path) -> None:
    command = ["skopeo", "copy", "--quiet", "--src-tls-verify=false", "--dest-tls-verify=false"]
    subprocess.run([*command, *map(str, arguments)], check=True, capture_output=True)


def layout(folder: Path) -> dict[str, Any]:
    """The manifest of an OCI layout."""
    (entry,) = json.loads((folder / "index.json").read_text())["manifests"]
    manifest: dict[str, Any] = json.loads((folder / "blobs/sha256" / entry["digest"][7:]).read_text())
    return manifest


@pytest.mark.needs_root
@pytest.mark.needs_program("skopeo")
def test_skopeo_converts_to_the_same_config_and_archives(client, small_image, tmp_path):
    image = client.images.pull(small_image)
    ours = client.images.convert(image.name, "zstd", compression="zstd")
    skopeo("--dest-compress-format", "zstd", f"docker://{small_image}", f"oci:{tmp_path}/theirs:x")
    theirs = layout(tmp_path / "theirs")
    assert theirs["config"]["digest"] == ours.manifest.config.digest
    assert [layer["mediaType"] for layer in theirs["layers"]] == [layer.media_type for layer in ours.layers]
    docker = client.images.convert(image.name, "docker", format="docker")
    skopeo("--format", "v2s2", f"docker://{small_image}", f"dir:{tmp_path}/docker")
    manifest = json.loads((tmp_path / "docker/manifest.json").read_text())
    assert manifest == read_json(client.content.read(docker.digest))
    skopeo("--format", "oci", f"dir:{tmp_path}/docker", f"oci:{tmp_path}/oci:x")
    back = client.images.convert("docker", "oci", format="oci")
    theirs = layout(tmp_path / "oci")  # whose config is written anew, with the same content
    assert theirs["layers"] == read_json(client.content.read(back.digest))["layers"]
    assert theirs["config"]["mediaType"] == back.manifest.config.media_type


@pytest.mark.needs_root
@pytest.mark.needs_program("podman", "conmon", "runc", "umoci", "skopeo")
def test_podman_runs_what_was_converted_and_umoci_unpacks_it(
    client, small_image, docker_registry, podman, tmp_path
):
    client.images.pull(small_image)
    forms = {
        "zstd": {"compression": "zstd"},
        "docker": {"format": "docker"},
        "plain": {"compression": "none"},
        "base": {"drop_top": 1},
    }
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    limits = ["--ulimit", f"nofile={limit}:{limit}", "--ulimit", "nproc=1024:1024"]
    for name, options in forms.items():
        reference = f"{docker_registry}/converted:{name}"
        client.images.convert(small_image, reference, **options)
        client.images.push(reference)
        podman("pull", "--quiet", "--tls-verify=false", reference)
        said = podman("run", "--rm", "--network=none", *limits, reference, "sh", "-c", "echo ran")
        assert said == b"ran\n", name
    skopeo(f"docker://{docker_registry}/converted:plain", f"oci:{tmp_path}/layout:plain")
    command = ["umoci", "unpack", "--image", f"{tmp_path}/layout:plain", f"{tmp_path}/bundle"]
    subprocess.run(command, check=True, capture_output=True)
    assert (tmp_path / "bundle/rootfs/bin/sh").exists()


@pytest.mark.needs_root
def test_a_converted_image_runs(client, small_image):
    client.images.pull(small_image)
    for number, options in enumerate(({"compression": "zstd"}, {"drop_top": 1}, {"layers": [0]})):
        image = client.images.convert(small_image, f"run:{number}", **options)
        done = client.containers.run(image, ["sh", "-c", "echo ran"], remove=True)
        assert (done.exit_code, done.stdout) == (0, b"ran\n")


def test_a_lying_media_type_is_read_by_its_bytes(client, server):
    made = Built(LOWER, compression="gzip")
    made.layers = [compress(LOWER, "zstd")]
    blob = made.layers[0]
    made.descriptors = [oci.Descriptor(oci.OCI_LAYER_GZIP, digest_of(blob), len(blob))]
    image = client.images.pull(made.push(server))
    converted = client.images.convert(image.name, "x", compression="none")
    assert client.content.read(converted.layers[0].digest) == LOWER
