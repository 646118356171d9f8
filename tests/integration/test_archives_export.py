"""Export: what is written of an image, that it is the same each time, and what is left where it fails."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import zstandard

import archives
import lamella
from archives import Pipe, blobs, describe, layout, layout_of, named, small, tar_of
from lamella import Client, oci
from lamella.digest import digest_of
from lamella.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    LamellaError,
    NotFound,
    ResourceExhausted,
    Unsupported,
)
from layers import Built

OTHER = {"os": "linux", "architecture": "s390x"}


def members(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        found = {info.name: archive.extractfile(info).read() for info in archive if info.isfile()}  # type: ignore[union-attr]
        assert len(archive.getmembers()) == len(found)
        return found


def export(client: Client, *names: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    client.images.export(names, buffer, **options)
    return buffer.getvalue()


def put(client: Client, image: Built, name: str = "example.com/app:v1") -> None:
    client.images.import_(Pipe(tar_of(layout_of(image, name))))


def put_two_platforms(client: Client) -> tuple[Built, Built, bytes]:
    ours, other = small("ours"), small("other")
    other.platform = OTHER
    index = archives.index_of(
        describe(ours.manifest, platform=ours.platform),
        describe(other.manifest, platform=OTHER),
        mediaType=oci.OCI_INDEX,
    )
    content = {**blobs(ours), **blobs(other), **dict([archives.blob(index)])}
    client.images.import_(Pipe(tar_of(layout(named("app:v1", index, oci.OCI_INDEX), content=content))))
    return ours, other, index


def test_an_archive_is_an_oci_layout_and_a_docker_archive(client: Client) -> None:
    image = small()
    put(client, image)
    found = members(export(client, "example.com/app:v1"))
    config, *layers = (archives.blob(data)[0] for data in (image.config, *image.layers))
    assert json.loads(found.pop("oci-layout")) == {"imageLayoutVersion": "1.0.0"}
    assert json.loads(found.pop("index.json"))["manifests"] == [
        describe(
            image.manifest,
            annotations={
                "io.containerd.image.name": "example.com/app:v1",
                "org.opencontainers.image.ref.name": "v1",
            },
        )
    ]
    assert json.loads(found.pop("manifest.json")) == [
        {"Config": config, "RepoTags": ["example.com/app:v1"], "Layers": layers}
    ]
    assert found == blobs(image)


def test_a_docker_archive_has_nothing_else(client: Client) -> None:
    image = small()
    put(client, image)
    found = members(export(client, "example.com/app:v1", format="docker"))
    (entry,) = json.loads(found.pop("manifest.json"))
    assert found == dict(zip([entry["Config"], *entry["Layers"]], [image.config, *image.layers], strict=True))
    assert all(name.endswith(".tar.gz") for name in entry["Layers"])


@pytest.mark.parametrize("format", ["oci", "docker"])
@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_the_same_images_give_the_same_bytes_wherever_they_are(
    client: Client, tmp_path: Path, format: Any, compression: Any
) -> None:
    with lamella.Client(root=tmp_path / "other", state=tmp_path / "other-state") as other:
        for each, names in ((client, ["a:1", "b:2"]), (other, ["b:2", "a:1"])):
            for name in names:
                put(each, small(name), name)
        one = export(client, "a:1", "b:2", format=format, compression=compression)
        assert one == export(other, "b:2", "a:1", "b:2", format=format, compression=compression)
    unpack = {
        "none": bytes,
        "gzip": gzip.decompress,
        "zstd": lambda data: zstandard.decompress(data, 1 << 20),
    }
    with tarfile.open(fileobj=io.BytesIO(unpack[compression](one))) as archive:
        facts = {(info.mtime, info.uid, info.gid, info.uname, info.gname, info.mode) for info in archive}
    assert facts == {(0, 0, 0, "", "", 0o644)}


def test_what_is_exported_is_imported_as_it_was(client: Client, tmp_path: Path) -> None:
    put_two_platforms(client)
    put(client, small(), "b:2")
    data = export(client, "app:v1", "b:2")
    with lamella.Client(root=tmp_path / "other", state=tmp_path / "other-state") as other:
        images = other.images.import_(Pipe(data))
        there = {str(info.digest) for info in other.content.walk()}
    assert [(image.name, image.digest) for image in images] == [
        (image.name, image.digest) for image in client.images.list()
    ]
    assert there == {str(info.digest) for info in client.content.walk()}


@pytest.mark.parametrize(
    ("name", "unpack"),
    [("x.tar.gz", gzip.decompress), ("x.tgz", gzip.decompress), ("x.tar", bytes), ("x.gz.tar", bytes)],
)
def test_the_name_of_the_file_says_how_it_is_compressed(
    client: Client, tmp_path: Path, name: str, unpack: Any
) -> None:
    put(client, small())
    client.images.export("example.com/app:v1", tmp_path / name)
    assert unpack((tmp_path / name).read_bytes()) == export(client, "example.com/app:v1")


def test_an_image_with_two_names_is_there_once(client: Client) -> None:
    put(client, small())
    client.images.tag("example.com/app:v1", "other:v2")
    found = members(export(client, "example.com/app:v1", "other:v2"))
    assert len(json.loads(found["index.json"])["manifests"]) == 2
    (entry,) = json.loads(found["manifest.json"])
    assert entry["RepoTags"] == ["docker.io/library/other:v2", "example.com/app:v1"]


# Platforms and referrers


def test_all_platforms_that_are_here_are_written(client: Client, tmp_path: Path) -> None:
    ours, other, index = put_two_platforms(client)
    found = members(export(client, "app:v1"))
    assert {name for name in found if name.startswith("blobs/")} == {
        archives.blob(index)[0], *blobs(ours), *blobs(other)
    }  # fmt: skip
    (entry,) = json.loads(found["manifest.json"])
    assert entry["Config"] == archives.blob(ours.config)[0]
    assert members(export(client, "app:v1", all_platforms=True)) == found
    client.content.delete(str(digest_of(other.manifest)))
    found = members(export(client, "app:v1"))
    assert {name for name in found if name.startswith("blobs/")} == {archives.blob(index)[0], *blobs(ours)}
    with pytest.raises(FailedPrecondition, match="not here") as caught:
        export(client, "app:v1", all_platforms=True)
    assert "--all-platforms" in (caught.value.hint or "")


def test_indexes_that_name_each_other_many_times_are_looked_at_once(client: Client) -> None:
    """Of eight levels with a hundred entries each there are more ways down than there is time."""
    data, kind = archives.artifact(), oci.OCI_MANIFEST
    content = archives.artifact_blobs(data)
    for level in range(7):
        entries = [describe(data, kind, annotations={"way": f"{level} {way}"}) for way in range(100)]
        data, kind = archives.index_of(*entries, mediaType=oci.OCI_INDEX), oci.OCI_INDEX
        content |= dict([archives.blob(data)])
    client.images.import_(Pipe(tar_of(layout(named("app:v1", data, kind), content=content))))
    assert json.loads(members(export(client, "app:v1"))["manifest.json"]) == []


def test_one_platform_is_written_without_the_index(client: Client) -> None:
    ours, other, _ = put_two_platforms(client)
    for image, platform in ((ours, "linux/" + ours.platform["architecture"]), (other, "linux/s390x")):
        found = members(export(client, "app:v1", platform=platform))
        assert {name: data for name, data in found.items() if name.startswith("blobs/")} == blobs(image)
        found = members(export(client, "app:v1", platform=platform, format="docker"))
        (entry,) = json.loads(found["manifest.json"])
        assert found[entry["Config"]] == image.config
    with pytest.raises(NotFound, match="linux/arm64"):
        export(client, "app:v1", platform="linux/arm64")
    with pytest.raises(InvalidArgument):
        export(client, "app:v1", platform="linux/arm64", all_platforms=True)


def test_a_digest_in_a_name_stays_only_where_it_is_right(client: Client) -> None:
    ours, _, index = put_two_platforms(client)
    image = client.images.get("app:v1")
    name = f"docker.io/library/app@{image.digest}"
    client.images.put(name, image.target)
    found = json.loads(members(export(client, name))["index.json"])["manifests"]
    assert found == [describe(index, oci.OCI_INDEX, annotations={"io.containerd.image.name": name})]
    found = json.loads(members(export(client, name, platform="/".join(ours.platform.values())))["index.json"])
    assert found["manifests"] == [describe(ours.manifest)]


def test_referrers_come_along_where_they_are_wanted(client: Client, tmp_path: Path) -> None:
    image, referrer = small(), b""
    referrer = archives.artifact(image.manifest)
    content = {**blobs(image), **archives.artifact_blobs(referrer)}
    client.images.import_(
        Pipe(tar_of(layout(named("app:v1", image.manifest), describe(referrer), content=content)))
    )
    assert archives.blob(referrer)[0] not in members(export(client, "app:v1"))
    data = export(client, "app:v1", referrers=True)
    assert {name for name in members(data) if name.startswith("blobs/")} == set(content)
    with lamella.Client(root=tmp_path / "other", state=tmp_path / "other-state") as other:
        other.images.import_(Pipe(data))
        other.gc()
        assert other.content.read(str(digest_of(referrer))) == referrer


def test_an_artifact_is_written_and_not_as_dockers(client: Client) -> None:
    data = archives.artifact()
    client.images.import_(Pipe(tar_of(layout(named("app:v1", data), content=archives.artifact_blobs(data)))))
    found = members(export(client, "app:v1"))
    assert json.loads(found["manifest.json"]) == []
    with pytest.raises(Unsupported, match="artifact"):
        export(client, "app:v1", format="docker")


# Folders


def test_a_folder_is_added_to_and_a_name_moves(client: Client, tmp_path: Path) -> None:
    put(client, small("old"), "a:1")
    put(client, small("other"), "b:2")
    for name in ("a:1", "b:2"):
        client.images.export(name, tmp_path / "layout", format="oci-dir")
    put(client, small("new"), "a:1")
    client.images.export("a:1", tmp_path / "layout", format="oci-dir")
    client.images.export("a:1", tmp_path / "layout", format="oci-dir")
    entries = json.loads((tmp_path / "layout/index.json").read_bytes())["manifests"]
    assert sorted(entry["digest"] for entry in entries) == sorted(
        digest_of(small(text).manifest) for text in ("new", "other")
    )
    for name, data in blobs(small("new")).items():
        assert (tmp_path / "layout" / name).read_bytes() == data
    assert not list((tmp_path / "layout").rglob(".*"))


def test_a_file_of_a_folder_that_is_not_whole_is_written_anew(client: Client, tmp_path: Path) -> None:
    image = small()
    put(client, image)
    folder = tmp_path / "layout"
    client.images.export("example.com/app:v1", folder, format="oci-dir")
    for name, data in blobs(image).items():
        (folder / name).write_bytes(data[:-1])
    client.images.export("example.com/app:v1", folder, format="oci-dir")
    assert {name: (folder / name).read_bytes() for name in blobs(image)} == blobs(image)


def test_a_folder_of_something_else_is_left_alone(client: Client, tmp_path: Path) -> None:
    put(client, small())
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/mine").touch()
    with pytest.raises(AlreadyExists):
        client.images.export("example.com/app:v1", tmp_path / "folder", format="oci-dir")
    (tmp_path / "folder/oci-layout").touch()
    (tmp_path / "folder/index.json").write_text("[]")
    with pytest.raises(InvalidArgument):
        client.images.export("example.com/app:v1", tmp_path / "folder", format="oci-dir")
    assert (tmp_path / "folder/index.json").read_text() == "[]"


# Failures


def check_nothing_new(folder: Path, before: set[str]) -> None:
    assert {path.name for path in folder.iterdir()} == before


def test_a_damaged_blob_ends_the_export_and_the_old_file_stays(client: Client, tmp_path: Path) -> None:
    put(client, small())
    path = tmp_path / "out/x.tar"
    path.parent.mkdir()
    path.write_bytes(b"old")
    blob = client.content.path(str(digest_of(small().layers[0])))
    blob.chmod(0o600)
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    with pytest.raises(DataLoss):
        client.images.export("example.com/app:v1", path)
    assert path.read_bytes() == b"old"
    check_nothing_new(path.parent, {"x.tar"})
    with pytest.raises(DataLoss):
        client.images.export("example.com/app:v1", path.parent / "layout", format="oci-dir")
    assert not (path.parent / "layout/index.json").exists()
    assert not client.leases.list()


def test_a_full_disk_and_a_missing_folder_are_told(client: Client, tmp_path: Path) -> None:
    put(client, small())
    with pytest.raises(ResourceExhausted):
        client.images.export("example.com/app:v1", "/dev/full")
    with pytest.raises(NotFound) as caught:
        client.images.export("example.com/app:v1", tmp_path / "nowhere/x.tar")
    assert caught.value.hint is None
    with pytest.raises(NotFound):
        client.images.export("nothing", tmp_path / "x.tar")
    with pytest.raises(InvalidArgument):
        client.images.export([], tmp_path / "x.tar")
    with pytest.raises(InvalidArgument):
        client.images.export("example.com/app:v1", tmp_path / "x.tar", format="zip")  # type: ignore[arg-type]
    assert not (tmp_path / "x.tar").exists()


def test_discarded_layers_are_told_before_anything_is_written(client: Client) -> None:
    client.images.import_(Pipe(tar_of(layout_of(small()))), keep_layers=False)
    buffer = io.BytesIO()
    with pytest.raises(FailedPrecondition, match="dropped") as caught:
        client.images.export("example.com/app:v1", buffer)
    assert "lamella pull" in (caught.value.hint or "")
    assert not buffer.getvalue()


def test_ctrl_c_leaves_nothing(client: Client, tmp_path: Path) -> None:
    put(client, small())

    def stop(_: object) -> None:
        raise KeyboardInterrupt

    (tmp_path / "out").mkdir()
    with pytest.raises(KeyboardInterrupt):
        client.images.export("example.com/app:v1", tmp_path / "out/x.tar", progress=stop)
    check_nothing_new(tmp_path / "out", set())
    assert not client.leases.list()


def test_a_link_is_written_through_and_a_pipe_is_a_pipe(client: Client, tmp_path: Path) -> None:
    put(client, small())
    (tmp_path / "link").symlink_to(tmp_path / "file")
    client.images.export("example.com/app:v1", tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE) as reader:
        client.images.export("example.com/app:v1", tmp_path / "pipe")
        assert reader.stdout is not None
        assert reader.stdout.read() == (tmp_path / "file").read_bytes()


def test_content_is_held_against_garbage_collection_meanwhile(client: Client, tmp_path: Path) -> None:
    put(client, small())

    class Slow(io.BytesIO):
        def write(self, data: Any) -> int:
            if not self.tell():
                client.images.remove("example.com/app:v1")
                client.gc()
            return super().write(data)

    buffer = Slow()
    client.images.export("example.com/app:v1", buffer)
    assert members(buffer.getvalue())["index.json"]
    client.gc()
    assert not list(client.content.walk())


# The command


def command(client: Client, *words: str | Path, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    program = Path(sys.executable).with_name("lamella")
    where = ["--root", str(client.config.root), "--state", str(client.config.state)]
    return subprocess.run([program, *where, *words], input=data, capture_output=True, check=False)


def test_the_command_writes_what_the_library_writes(client: Client, tmp_path: Path) -> None:
    put(client, small())
    data = export(client, "example.com/app:v1")
    assert command(client, "export", "example.com/app:v1").stdout == data
    assert command(client, "save", "-o", tmp_path / "x.tar.gz", "example.com/app:v1").returncode == 0
    assert gzip.decompress((tmp_path / "x.tar.gz").read_bytes()) == data
    shown = json.loads(command(client, "--json", "export", "-o", tmp_path / "x", "example.com/app:v1").stdout)
    assert [(row["name"], row["digest"]) for row in shown] == [
        ("example.com/app:v1", digest_of(small().manifest))
    ]
    done = command(client, "export", "nothing")
    assert (done.returncode, done.stdout) == (1, b"")


def test_the_command_imports_from_a_file_and_from_a_pipe(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(tar_of(layout_of(small())))
    for words, data in (
        (["import", path], b""),
        (["load", "-i", path], b""),
        (["load"], path.read_bytes()),
        (["import", "-"], path.read_bytes()),
    ):
        done = command(client, "--json", *words, data=data)
        (row,) = json.loads(done.stdout)
        assert (row["name"], row["digest"], row["unpacked"]) == (
            "example.com/app:v1",
            digest_of(small().manifest),
            True,
        )
    assert command(client, "import", path, "-i", path).returncode == 2
    done = command(client, "import", tmp_path / "nothing")
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)


def test_any_error_is_one_of_lamellas(client: Client, tmp_path: Path) -> None:
    put(client, small())

    class Closed(io.RawIOBase):
        def write(self, data: Any) -> int:
            raise BrokenPipeError(32, "Broken pipe")

    with pytest.raises(LamellaError, match="Broken pipe"):
        client.images.export("example.com/app:v1", Closed())
