"""Import of archives made by hand: the forms there are, what they call their images, and what of them is kept."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

import archives
import lamella
from archives import Content, Pipe, blobs, describe, docker_of, layout, layout_of, named, small, tar_of
from lamella import Client, oci
from lamella.digest import digest_of
from lamella.errors import InvalidArgument, NotFound, PolicyRefused, Unsupported
from layers import Built, file, tar

OTHER = {"os": "linux", "architecture": "s390x"}
FORMS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "gzip-twice": lambda data: gzip.compress(data[:5000]) + gzip.compress(data[5000:]) + bytes(512),
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "xz-padded": lambda data: lzma.compress(data) + bytes(8),
    "zstd": zstandard.compress,
}
FORMATS: dict[str, Callable[[Built], Content]] = {
    "layout": layout_of,
    "docker": lambda image: docker_of(image, "example.com/app:v1"),
    "new-docker": lambda image: archives.new_docker_of(image, "example.com/app:v1"),
    "old-docker": lambda image: archives.old_docker_of(image, {"example.com/app": {"v1": "1" * 64}}),
}


def content_of(client: Client) -> set[str]:
    return {str(info.digest) for info in client.content.walk()}


def check_unpacked(image: lamella.Image, client: Client, text: str = "text") -> None:
    paths = client.snapshots.layer_paths(image.chain_id)
    assert (paths[0] / "etc/two").read_text() == text
    assert (paths[1] / "etc/one").read_text() == "one"


def write_folder(content: Content, folder: Path) -> Path:
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize("compress", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("make", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("way", ["file", "open file", "pipe"])
def test_every_format_is_imported_from_everywhere_in_every_compression(
    client: Client,
    tmp_path: Path,
    way: str,
    make: Callable[[Built], Content],
    compress: Callable[[bytes], bytes],
) -> None:
    data = compress(tar_of(make(small(compression="none"))))
    if way == "pipe":
        (image,) = client.images.import_(io.BufferedReader(Pipe(data, 1000)))
    else:
        path = tmp_path / "archive"
        path.write_bytes(b"before" + data if way == "open file" else data)
        with path.open("rb") as file:
            file.read(6)
            (image,) = client.images.import_(path if way == "file" else file)
    assert image.name == "example.com/app:v1"
    check_unpacked(image, client)
    assert client.gc().content == 0
    assert client.content.ingests() == []
    client.images.remove(image.name)
    client.gc()
    assert not content_of(client)


@pytest.mark.parametrize("make", FORMATS.values(), ids=FORMATS)
def test_a_folder_is_imported(client: Client, tmp_path: Path, make: Callable[[Built], Content]) -> None:
    folder = write_folder(make(small(compression="none")), tmp_path / "folder")
    (tmp_path / "link").symlink_to(folder)
    (image,) = client.images.import_(tmp_path / "link")
    check_unpacked(image, client)


def test_the_same_archive_gives_the_same_digest_whatever_way_it_comes(client: Client, tmp_path: Path) -> None:
    image = small(compression="none")
    content = docker_of(image, "app:v1")
    (one,) = client.images.import_(write_folder(content, tmp_path / "folder"))
    (two,) = client.images.import_(Pipe(tar_of(content, order=reversed(content))))
    assert one.digest == two.digest
    # Byte for byte what containerd makes of it; test_archive_peers.py asks it.
    kinds = ["container.image.v1+json", "image.rootfs.diff.tar", "image.rootfs.diff.tar"]
    parts = [
        f'{{"mediaType":"application/vnd.docker.{kind}","digest":"{digest_of(data)}","size":{len(data)}}}'
        for kind, data in zip(kinds, [image.config, *image.layers], strict=True)
    ]
    assert client.content.read(one.digest).decode() == (
        '{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json",'
        f'"config":{parts[0]},"layers":[{",".join(parts[1:])}]}}'
    )


def test_of_both_forms_in_an_archive_of_dockers_the_one_with_digests_counts(client: Client) -> None:
    image = small(compression="none")
    content = archives.new_docker_of(image, "docker.io/library/app:v1", "example.com/app:v2")
    found = client.images.import_(Pipe(tar_of(content)))
    assert names(found) == ["docker.io/library/app:v1", "example.com/app:v2"]
    assert {each.digest for each in found} == {digest_of(image.manifest)}


def test_a_directory_of_skopeos_keeps_its_digest_and_wants_a_name(client: Client, tmp_path: Path) -> None:
    image = small()
    folder = write_folder(archives.directory_of(image), tmp_path / "folder")
    for source in (folder, Pipe(tar_of(archives.directory_of(image)))):
        with pytest.raises(InvalidArgument, match="does not say"):
            client.images.import_(source)
    (found,) = client.images.import_(folder, names=["app"])
    assert found.digest == digest_of(image.manifest)
    check_unpacked(found, client)


def test_a_directory_of_skopeos_may_hold_an_index(client: Client, tmp_path: Path) -> None:
    image = small()
    other = small("other")
    other.platform = OTHER
    entries = [describe(each.manifest, platform=each.platform) for each in (other, image)]
    index = archives.index_of(*entries, mediaType=oci.OCI_INDEX)
    content = archives.directory_of(other) | archives.directory_of(image) | {"manifest.json": index}
    for each in (other, image):
        content[f"{digest_of(each.manifest).partition(':')[2]}.manifest.json"] = each.manifest
    (found,) = client.images.import_(write_folder(content, tmp_path / "folder"), names=["app"])
    assert found.digest == digest_of(index)
    assert len(found.platforms) == 2
    check_unpacked(found, client)


def test_twice_is_harmless_and_reads_no_layer_again(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "archive"
    content = layout_of(small())
    path.write_bytes(tar_of(content))
    (first,) = client.images.import_(path)
    before = content_of(client), first.updated_at
    for name in blobs(small()):  # the layers are not even there any more
        if len(content[name]) > 1000 or b"config" not in content[name]:
            content.pop(name, None)
    (second,) = client.images.import_(path)
    assert (content_of(client), second.updated_at) == before


@pytest.mark.parametrize(
    "suffix, compression", [(".tar.gz", "gzip"), (".tar", "zstd"), ("/layer.tar", "gzip")]
)
def test_compressed_layers_of_a_docker_archive_stay_compressed(
    client: Client, suffix: str, compression: str
) -> None:
    image = small(compression=compression)
    (found,) = client.images.import_(Pipe(tar_of(docker_of(image, "app", suffix=suffix))))
    assert [layer.digest for layer in found.layers] == [digest_of(layer) for layer in image.layers]
    check_unpacked(found, client)


def test_links_between_the_layers_of_a_docker_archive_are_followed(client: Client, tmp_path: Path) -> None:
    image = small(compression="none")
    content = archives.old_docker_of(image, {"app": {"v1": "1" * 64}})
    layer = content.pop(f"{'1' * 64}/layer.tar")
    content[f"{'2' * 64}/layer.tar"] = layer
    links = [
        archives.link(f"{'1' * 64}/layer.tar", f"../{'3' * 64}/layer.tar"),
        archives.link(f"{'3' * 64}/layer.tar", f"../{'2' * 64}/layer.tar"),
    ]
    path = tmp_path / "archive"
    path.write_bytes(tar_of(content, *links))
    (found,) = client.images.import_(path)
    check_unpacked(found, client)


def test_a_config_of_the_oldest_form_keeps_what_runs_and_the_history(client: Client) -> None:
    image = small(compression="none", config={"Cmd": ["/bin/it"]})
    (found,) = client.images.import_(Pipe(tar_of(FORMATS["old-docker"](image))))
    assert found.config.run.cmd == ["/bin/it"]
    assert found.diff_ids == image.diff_ids
    history = [(line["created"], line["created_by"]) for line in found.config.history or ()]
    assert history == [
        ("2015-01-01T00:00:00Z", "/bin/sh -c #(nop) ADD 0"),
        ("2015-01-02T00:00:00Z", "/bin/sh -c #(nop) ADD 1"),
    ]
    config = json.loads(client.content.read(found.manifest.config.digest))
    assert not config.keys() & {"id", "parent", "Size"}


# Names


def names(images: list[lamella.Image]) -> list[str]:
    return [image.name for image in images]


def test_containerds_annotation_comes_before_the_specs(client: Client) -> None:
    image = small()
    entry = named("v1", image.manifest)
    entry["annotations"]["io.containerd.image.name"] = "docker.io/library/app:v1"
    found = client.images.import_(Pipe(tar_of(layout(entry, content=blobs(image)))))
    assert names(found) == ["docker.io/library/app:v1"]


def test_all_tags_of_a_docker_archive_become_images(client: Client) -> None:
    content = docker_of(small(compression="none"), "app:v1", "example.com/app:v1", "app:v1")
    found = client.images.import_(Pipe(tar_of(content)))
    assert names(found) == ["docker.io/library/app:v1", "example.com/app:v1"]
    assert len({image.digest for image in found}) == 1


def test_several_images_come_at_once_and_one_can_be_chosen(client: Client) -> None:
    one, two = small("one"), small("two")
    entries = [named("example.com/app:one", one.manifest), named("two", two.manifest)]
    archive = tar_of(layout(*entries, content={**blobs(one), **blobs(two)}))
    (found,) = client.images.import_(Pipe(archive), image="two", base_name="other")
    assert (found.name, found.digest) == ("docker.io/library/other:two", digest_of(two.manifest))
    assert client.gc().content == 0  # nothing of the other image is left
    assert names(client.images.import_(Pipe(archive), image="example.com/app:one")) == ["example.com/app:one"]
    (found,) = client.images.import_(Pipe(archive), image=str(digest_of(two.manifest)), names=["called"])
    assert (found.name, found.digest) == ("docker.io/library/called:latest", digest_of(two.manifest))
    assert len(client.images.import_(Pipe(archive), base_name="app")) == 2
    with pytest.raises(InvalidArgument, match="several images"):
        client.images.import_(Pipe(archive), names=["called"])
    with pytest.raises(NotFound, match=r"example\.com/app:one; two"):
        client.images.import_(Pipe(archive), image="three")


def test_an_archive_without_names_wants_one(client: Client) -> None:
    for name in (None, "v1"):
        with pytest.raises(InvalidArgument, match="does not say") as caught:
            client.images.import_(Pipe(tar_of(layout_of(small(), name))))
        assert "--tag" in (caught.value.hint or "")
        assert not client.images.list()
        client.gc()
        assert not content_of(client)
    found = client.images.import_(Pipe(tar_of(layout_of(small(), None))), names=["one", "two:v2"])
    assert names(found) == ["docker.io/library/one:latest", "docker.io/library/two:v2"]


def test_images_without_a_name_among_others_are_left_out_with_a_warning(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = small("one"), small("two")
    content = layout(
        named("app:v1", one.manifest), named(None, two.manifest), content={**blobs(one), **blobs(two)}
    )
    assert names(client.images.import_(Pipe(tar_of(content)))) == ["docker.io/library/app:v1"]
    assert str(digest_of(two.manifest)) in caplog.text


def test_images_can_be_named_by_their_digests_too(client: Client) -> None:
    image = small()
    found = client.images.import_(Pipe(tar_of(layout_of(image, "app:v1"))), digests=True)
    assert names(found)[1] == f"docker.io/library/app@{digest_of(image.manifest)}"


def test_a_name_with_another_digest_is_refused(client: Client) -> None:
    name = f"app@sha256:{'0' * 64}"
    with pytest.raises(InvalidArgument, match="under the name"):
        client.images.import_(Pipe(tar_of(layout_of(small(), name))))


def test_one_name_for_two_images_is_refused(client: Client) -> None:
    one, two = small("one"), small("two")
    entries = [named("app:v1", one.manifest), named("docker.io/library/app:v1", two.manifest)]
    with pytest.raises(InvalidArgument, match="two images of the name app:v1"):
        client.images.import_(Pipe(tar_of(layout(*entries, content={**blobs(one), **blobs(two)}))))


def test_an_image_of_the_same_name_gives_way(client: Client) -> None:
    client.images.import_(Pipe(tar_of(layout_of(small("old")))))
    (image,) = client.images.import_(Pipe(tar_of(layout_of(small("new")))))
    check_unpacked(image, client, "new")
    assert len(client.images.list()) == 1


# Platforms, indexes, referrers, artifacts


def two_platforms() -> tuple[Built, Built, bytes]:
    ours, other = small("ours"), small("other")
    other.platform = OTHER
    index = archives.index_of(
        describe(ours.manifest, platform=ours.platform),
        describe(other.manifest, platform=OTHER),
        mediaType=oci.OCI_INDEX,
    )
    return ours, other, index


def test_other_platforms_are_kept_and_only_ones_own_is_unpacked(client: Client) -> None:
    ours, other, index = two_platforms()
    content = layout(
        named("app", index, oci.OCI_INDEX),
        content={**blobs(ours), **blobs(other), **dict([archives.blob(index)])},
    )
    (image,) = client.images.import_(Pipe(tar_of(content)), base_name="app")
    assert image.digest == digest_of(index)
    check_unpacked(image, client, "ours")
    assert client.gc().content == 0
    assert {str(digest_of(layer)) for layer in [*other.layers, other.manifest]} <= content_of(client)


def test_one_platform_can_be_asked_for(client: Client) -> None:
    ours, other, index = two_platforms()
    content = layout(
        named("app:v1", index, oci.OCI_INDEX),
        content={**blobs(ours), **blobs(other), **dict([archives.blob(index)])},
    )
    (image,) = client.images.import_(Pipe(tar_of(content)), platform="linux/s390x")
    check_unpacked(image, client, "other")
    assert str(digest_of(ours.layers[1])) not in content_of(client)
    with pytest.raises(NotFound, match="linux/arm64"):
        client.images.import_(Pipe(tar_of(content)), platform="linux/arm64")


def test_an_index_of_which_the_archive_has_but_a_part_is_imported(client: Client) -> None:
    ours, other, index = two_platforms()
    for here in (ours, other):
        content = layout(
            named(f"app:{here.platform['architecture']}", index, oci.OCI_INDEX),
            content={**blobs(here), **dict([archives.blob(index)])},
        )
        (image,) = client.images.import_(Pipe(tar_of(content)))
        assert image.digest == digest_of(index)
        assert client.gc().content == 0


def test_manifests_without_names_are_one_image_for_several_platforms(client: Client) -> None:
    ours, other, _ = two_platforms()
    entries = [describe(ours.manifest, platform=ours.platform), describe(other.manifest, platform=OTHER)]
    content = layout(*entries, content={**blobs(ours), **blobs(other)})
    (image,) = client.images.import_(Pipe(tar_of(content)), names=["app"])
    assert image.digest == digest_of(content["index.json"])
    check_unpacked(image, client, "ours")
    assert client.gc().content == 0


def test_a_nested_index_is_followed(client: Client) -> None:
    ours, other, index = two_platforms()
    outer = archives.index_of(describe(index, oci.OCI_INDEX), mediaType=oci.OCI_INDEX)
    content = layout(
        named("app:v1", outer, oci.OCI_INDEX),
        content={**blobs(ours), **blobs(other), **dict(map(archives.blob, [index, outer]))},
    )
    (image,) = client.images.import_(Pipe(tar_of(content)))
    check_unpacked(image, client, "ours")


@pytest.mark.parametrize("listed", ["by its subject", "by a tag"])
def test_referrers_in_the_layout_come_along(client: Client, listed: str) -> None:
    image = small()
    referrer = archives.artifact(image.manifest)
    entries = [named("app:v1", image.manifest), describe(referrer)]
    content = {**blobs(image), **archives.artifact_blobs(referrer)}
    if listed == "by a tag":
        listing = archives.index_of(describe(referrer), mediaType=oci.OCI_INDEX)
        content |= dict([archives.blob(listing)])
        entries[1] = named(str(digest_of(image.manifest)).replace(":", "-"), listing, oci.OCI_INDEX)
    assert names(client.images.import_(Pipe(tar_of(layout(*entries, content=content))))) == [
        "docker.io/library/app:v1"
    ]
    client.gc()
    assert {str(digest_of(data)) for data in (referrer, b"{}", b"what it says")} <= content_of(client)
    client.images.remove("app:v1")
    client.gc()
    assert not content_of(client)


def test_an_artifact_is_kept_and_not_unpacked(client: Client) -> None:
    data = archives.artifact()
    content = layout(named("app:v1", data), content=archives.artifact_blobs(data))
    (image,) = client.images.import_(Pipe(tar_of(content)))
    assert image.digest == digest_of(data)
    assert client.gc().content == 0


def test_nothing_is_unpacked_where_it_is_not_wanted(client: Client) -> None:
    (image,) = client.images.import_(Pipe(tar_of(layout_of(small()))), unpack=False)
    with pytest.raises(NotFound):
        client.snapshots.stat(image.chain_id)
    assert client.gc().content == 0
    check_unpacked(client.images.unpack(image.name), client)


@pytest.mark.parametrize("way", ["file", "pipe"])
def test_layers_can_be_discarded(client: Client, tmp_path: Path, way: str) -> None:
    data = tar_of(layout_of(small()))
    path = tmp_path / "archive"
    path.write_bytes(data)
    (image,) = client.images.import_(Pipe(data) if way == "pipe" else path, keep_layers=False)
    check_unpacked(image, client)
    assert image.layers_discarded
    assert not content_of(client) & {str(layer.digest) for layer in image.layers}


def test_the_policy_is_asked_before_anything_is_kept(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "archive"
    path.write_bytes(tar_of(layout_of(small())))
    asked: list[Any] = []

    def refuse(candidate: Any) -> str:
        asked.append((str(candidate.reference), candidate.registry, candidate.descriptor.digest))
        return "no"

    for source in (path, Pipe(path.read_bytes())):
        with pytest.raises(PolicyRefused):
            client.images.import_(source, policy=refuse)
    assert asked == [("example.com/app:v1", None, digest_of(small().manifest))] * 2
    assert not client.images.list()
    assert not content_of(client)


@pytest.mark.parametrize("refuse", [False, True])
def test_what_a_stream_had_besides_goes_again_at_once(client: Client, refuse: bool) -> None:
    one, two = (Built(tar(file("large", os.urandom(600_000)))) for _ in range(2))
    content = layout(
        named("app:one", one.manifest), named("app:two", two.manifest), content={**blobs(one), **blobs(two)}
    )
    if refuse:
        with pytest.raises(PolicyRefused):
            client.images.import_(Pipe(tar_of(content)), image="app:one", policy=lambda _: "no")
        assert not content_of(client)
    else:
        client.images.import_(Pipe(tar_of(content)), image="app:one")
        assert content_of(client) == {str(digest_of(data)) for data in blobs(one).values()}


def test_content_of_an_archive_is_not_said_to_come_from_a_registry(client: Client) -> None:
    client.images.import_(Pipe(tar_of(layout_of(small()))))
    assert not [info for info in client.content.walk() if any("source" in label for label in info.labels)]


def test_progress_names_each_blob(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "archive"
    image = small()
    path.write_bytes(tar_of(layout_of(image)))
    seen: list[lamella.Progress] = []
    client.images.import_(path, progress=seen.append)
    done = {report.digest for report in seen if report.phase == "done"}
    assert {str(digest_of(layer)) for layer in image.layers} <= done


def test_imports_and_exports_are_logged(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "lamella.transfer")
    artifact = archives.artifact()
    entries = [named("app:v1", small().manifest), named("sbom:v1", artifact)]
    content = {**blobs(small()), **archives.artifact_blobs(artifact)}
    client.images.import_(Pipe(tar_of(layout(*entries, content=content))))
    client.images.export(["app:v1"], io.BytesIO())
    told = (record for record in caplog.records if record.name == "lamella.transfer")
    words = [(record.message.split()[0], record.image) for record in told]  # type: ignore[attr-defined]
    app, sbom = "docker.io/library/app:v1", "docker.io/library/sbom:v1"
    assert words == [("imported", app), ("imported", sbom), ("exported", app)]


def test_two_imports_at_once_of_the_same_archive_end_alike(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "archive"
    path.write_bytes(tar_of(layout_of(small())))
    found: list[Any] = []

    def bring() -> None:
        with lamella.Client(root=client.config.root, state=client.config.state) as own:
            found.append(own.images.import_(Pipe(path.read_bytes()))[0].digest)
            found.append(own.images.import_(path)[0].digest)

    threads = [threading.Thread(target=bring) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [digest_of(small().manifest)] * 8
    assert client.gc().content == 0


def test_a_containers_files_are_no_image_and_an_unknown_version_is_told(client: Client) -> None:
    with pytest.raises(InvalidArgument, match="no archive of images"):
        client.images.import_(Pipe(tar_of({"etc/passwd": b"root"})))
    content = layout_of(small()) | {"oci-layout": b'{"imageLayoutVersion":"2.0.0"}'}
    with pytest.raises(Unsupported, match=r"2\.0\.0"):
        client.images.import_(Pipe(tar_of(content)))
    with pytest.raises(InvalidArgument, match="neither unpacked nor kept"):
        client.images.import_(Pipe(b""), unpack=False, keep_layers=False)


def test_names_may_be_written_in_other_ways(client: Client) -> None:
    content = layout_of(small())
    more = [archives.member("./", type=tarfile.DIRTYPE), archives.member("blobs/", type=tarfile.DIRTYPE)] * 2
    data = tar_of({f"./{name}": data for name, data in content.items()}, *more)
    assert names(client.images.import_(Pipe(data))) == ["example.com/app:v1"]
