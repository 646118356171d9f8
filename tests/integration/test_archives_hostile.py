"""What an archive may do to whoever imports it: nothing but be refused, with an error that says why, and nothing left behind."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import json
import lzma
import os
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest

import layers
from archives import (
    Content,
    Pipe,
    blob,
    blobs,
    describe,
    docker_of,
    index_of,
    layout,
    layout_of,
    link,
    member,
    named,
    old_docker_of,
    small,
    tar_of,
)
from lamella import Client, oci
from lamella.digest import digest_of
from lamella.errors import (
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    LamellaError,
    NotFound,
    ResourceExhausted,
    Unsupported,
)
from lamella.transfer.archives import inputs, tar
from lamella.transfer.archives.files import Folder
from layers import Built, compress

Import = Callable[[bytes], Any]
NULL = "0" * 64


class FromFile:
    """Imports bytes from a file."""

    def __init__(self, client: Client, folder: Path) -> None:
        self.client = client
        self.path = folder / "archive"

    def __call__(self, data: bytes) -> Any:
        self.path.write_bytes(data)
        return self.client.images.import_(self.path)


class FromPipe(FromFile):
    """Imports bytes that come once."""

    def __call__(self, data: bytes) -> Any:
        return self.client.images.import_(Pipe(data))


@pytest.fixture(params=[FromFile, FromPipe])
def bring(request: pytest.FixtureRequest, client: Client, tmp_path: Path) -> Iterator[Import]:
    """Import bytes, in either way; nothing that nobody named may be left at the end."""
    yield request.param(client, tmp_path)
    check_nothing_left(client)


def check_nothing_left(client: Client) -> None:
    for image in client.images.list():
        client.images.remove(image.name)
    client.gc()
    assert not list(client.content.walk())
    assert not client.leases.list()
    check_ingests(client)


def check_ingests(client: Client) -> None:
    """What is left of a write can be gone on with: its digest is known."""
    assert all(ingest.expected and ingest.ref.startswith("layer-") for ingest in client.content.ingests())


def refused(bring: Import, data: bytes, *errors: type[LamellaError], match: str | None = None) -> None:
    with pytest.raises(errors, match=match):
        bring(data)


# Names and kinds of members


@pytest.mark.parametrize("name", ["../blobs", "/blobs", "blobs/../../x", "a/..", ".."])
def test_names_that_lead_out_are_refused(bring: Import, name: str) -> None:
    refused(bring, tar_of(layout_of(small()), member(name, b"x")), InvalidArgument, match="leads out")


@pytest.mark.parametrize(
    "target", ["../../../../etc/passwd", "/etc/passwd", "../../x", "../../../x/layer.tar"]
)
def test_links_that_lead_out_are_not_followed(bring: Import, target: str) -> None:
    content = old_docker_of(small(compression="none"), {"app": {"v1": "1" * 64}})
    del content[f"{'1' * 64}/layer.tar"]
    refused(bring, tar_of(content, link(f"{'1' * 64}/layer.tar", target)), InvalidArgument, match="leads out")


@pytest.mark.parametrize(
    "links",
    [
        [("a", "a")],
        [("a", "b"), ("b", "a")],
        [("a", "a0"), *((f"a{number}", f"a{number + 1}") for number in range(50))],
    ],
)
def test_links_in_a_circle_and_long_ways_are_refused(bring: Import, links: list[tuple[str, str]]) -> None:
    content = docker_of(small(compression="none"), "app:v1")
    manifest = json.loads(content["manifest.json"])
    manifest[0]["Layers"][0] = "a"
    content["manifest.json"] = json.dumps(manifest).encode()
    refused(bring, tar_of(content, *(link(*pair) for pair in links)), InvalidArgument, match="circle")


def test_a_link_to_nothing_is_content_that_is_not_there(bring: Import) -> None:
    content = layout_of(small())
    name = next(iter(blobs(small())))
    del content[name]
    refused(bring, tar_of(content, link(name, "nothing")), NotFound)


@pytest.mark.parametrize(
    "kind", [tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE, b"Z"]
)
def test_what_is_no_file_is_not_taken_for_one(bring: Import, kind: bytes) -> None:
    content = layout_of(small())
    data = content.pop("index.json")
    unwanted = member("index.json", type=kind, linkname="oci-layout", devmajor=1, devminor=8)
    refused(bring, tar_of(content, unwanted), InvalidArgument, match="no regular file")
    content["index.json"] = data
    assert bring(tar_of(content, member("device", type=kind, linkname="oci-layout")))


def test_a_hard_link_with_a_size_has_no_body(bring: Import) -> None:
    content = layout_of(small())
    data = tar_of({}, link("hard", "oci-layout", tarfile.LNKTYPE))[:512]
    field = data[:124] + b"00000001000\0" + data[136:]
    blank = field[:148] + b" " * 8 + field[156:]
    summed = blank[:148] + b"%06o\0 " % sum(blank) + blank[156:]
    assert bring(summed + tar_of(content))


# The same name twice


def test_the_same_member_twice_is_no_difference(bring: Import) -> None:
    content = layout_of(small())
    again = [member(name, data) for name, data in content.items()]
    assert bring(tar_of(content, *again))


@pytest.mark.parametrize("size", ["same", "other"])
@pytest.mark.parametrize("where", ["index.json", "blob", "large"])
def test_different_members_of_one_name_are_refused(
    client: Client, bring: Import, where: str, size: str
) -> None:
    image = Built(layers.tar(layers.file("large", os.urandom(600_000))))
    content = layout_of(image)
    name = {"index.json": where, "blob": blob(image.config)[0], "large": blob(image.layers[0])[0]}[where]
    other = bytearray(content[name] + (b" " if size == "other" else b""))
    other[len(other) // 2] ^= 1
    second = tar_of(content, member(name, bytes(other)))
    if (where, size) == ("large", "same") and isinstance(bring, FromPipe):
        assert bring(second)  # the blob of that digest is there by then, whole
        client.images.remove("example.com/app:v1")
        client.gc()
    else:
        refused(bring, second, InvalidArgument, DataLoss)
    first = tar_of({}, member(name, bytes(other))).rstrip(b"\0")
    first += bytes(-len(first) % 512)
    refused(bring, first + tar_of(content), InvalidArgument, DataLoss)
    assert not client.images.list()


def test_a_file_and_a_link_of_one_name_are_refused(bring: Import) -> None:
    data = tar_of(layout_of(small()), link("index.json", "oci-layout"))
    refused(bring, data, InvalidArgument, match="twice")


# Headers


def raw_header(name: str, kind: bytes, data: bytes, *, size: int | None = None) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(data) if size is None else size
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


def record(key: str, value: str) -> bytes:
    size = len(key) + len(value) + 3
    while len(f"{size} {key}={value}\n") != size:
        size = len(f"{size} {key}={value}\n")
    return f"{size} {key}={value}\n".encode()


@pytest.mark.parametrize(
    ("header", "error"),
    [
        (raw_header("x", b"x", b"x" * (tar.EXTENDED_MAX + 1)), ResourceExhausted),
        (raw_header("x", b"x", b"", size=1 << 60), ResourceExhausted),
        (raw_header("x", b"L", b"x" * (tar.EXTENDED_MAX + 1)), ResourceExhausted),
        (raw_header("x", b"x", b"99 path=x\n"), InvalidArgument),
        (raw_header("x", b"x", b"path=x\n"), InvalidArgument),
        (raw_header("x", b"x", b"0 path=x\n"), InvalidArgument),
        (raw_header("x", b"x", b"1" * 50), InvalidArgument),
        (raw_header("x", b"x", record("size", "-1")), InvalidArgument),
        (raw_header("x", b"x", record("size", "9" * 30)), InvalidArgument),
        (raw_header("x", b"x", record("size", "x")), InvalidArgument),
        (raw_header("x", b"x", record("size", "٣")), InvalidArgument),
        (raw_header("x", b"x", record("path", "../../x")), InvalidArgument),
        (raw_header("x", b"x", record("path", "a\0b")), InvalidArgument),
        (raw_header("x", b"x", record("GNU.sparse.major", "1")), Unsupported),
        (raw_header("x", b"x", record("size", str(1 << 50))), DataLoss),
        (raw_header("x", b"g", record("path", "x")), InvalidArgument),
        (raw_header("x", b"g", record("size", "0")), InvalidArgument),
        (raw_header("x", b"L", b"../x\0"), InvalidArgument),
        (raw_header("x", b"S", b""), Unsupported),
        (raw_header("x", b"0", b"", size=-5), InvalidArgument),
        (raw_header("x", b"0", b"", size=1 << 62), DataLoss),
        (b"x" * 512, InvalidArgument),
    ],
)  # fmt: skip
def test_headers_that_lie_are_refused(bring: Import, header: bytes, error: type[LamellaError]) -> None:
    refused(bring, header + tar_of(layout_of(small())), error)


def test_headers_that_say_nothing_of_the_files_are_read_over(bring: Import) -> None:
    before = raw_header("x", b"g", record("comment", "0" * 40)) + raw_header(
        "x", b"x", record("mtime", "1.5")
    )
    assert bring(before + tar_of(layout_of(small())))


@pytest.mark.parametrize("style", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_large_numbers_are_read(bring: Import, style: int) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=style) as archive:
        for name, data in layout_of(small()).items():
            info = tarfile.TarInfo("./" * 80 + name)
            info.size, info.uid = len(data), 1 << 40
            archive.addfile(info, io.BytesIO(data))
    assert bring(buffer.getvalue())


def test_a_damaged_header_is_not_taken_for_the_end(bring: Import) -> None:
    content = layout_of(small())
    content["zzz"] = b"more"
    data = bytearray(tar_of(content))
    data[data.rindex(b"zzz") + 5] = 1
    refused(bring, bytes(data), DataLoss, match="no header")


def test_headers_without_end_are_refused(bring: Import, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar, "HEADERS_MAX", 100)
    refused(bring, raw_header("x", b"x", b"") * 101, ResourceExhausted)


# The end


def test_data_behind_the_end_is_refused(bring: Import) -> None:
    one = tar_of(layout_of(small()))
    refused(bring, one + tar_of(layout_of(small("other"))), InvalidArgument, match="behind its end")
    refused(bring, one + bytes(100_000) + b"x", InvalidArgument, match="behind its end")
    assert bring(one + bytes(1_000_000))


def test_zeros_without_end_are_refused(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar, "TAIL_MAX", 1_000_000)
    bomb = gzip.compress(tar_of(layout_of(small())) + bytes(50_000_000))
    with pytest.raises(ResourceExhausted):
        client.images.import_(Pipe(bomb))
    check_nothing_left(client)


@pytest.mark.parametrize("make", [layout_of, lambda image: docker_of(image, "app:v1")])
def test_an_archive_cut_anywhere_is_refused(
    bring: Import, client: Client, make: Callable[..., Content]
) -> None:
    content = make(small(compression="none"))
    data = tar_of(content)
    end = len(data.rstrip(b"\0"))
    end += -end % 512
    cuts = {0, 1, 511, 512, 513, end - 513, end - 1, end, end + 1, end + 511, *range(0, end, 1777)}
    for cut in sorted(cuts):
        refused(bring, data[:cut], InvalidArgument, DataLoss)
        assert not client.images.list()
    assert bring(data[: end + 512])


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_a_compressed_archive_cut_anywhere_is_refused(
    client: Client, compress: Callable[[bytes], bytes]
) -> None:
    data = compress(tar_of(layout_of(small(compression="none"))))
    for cut in {*range(0, len(data), 97), len(data) - 1}:
        with pytest.raises((InvalidArgument, DataLoss)):
            client.images.import_(Pipe(data[:cut]))
        assert not client.images.list()
    check_nothing_left(client)


def test_a_compressed_archive_that_asks_for_much_memory_is_refused(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "MEMORY_MAX", 1_000_000)
    with pytest.raises(DataLoss, match=r"[Mm]emory"):
        client.images.import_(Pipe(lzma.compress(tar_of(layout_of(small())), preset=9)))


def test_a_pipe_is_asked_for_no_more_than_it_has() -> None:
    """Who waits for more waits in one long call, which no signal ends that comes between two pieces."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as reader, os.fdopen(writing, "wb", 0) as writer:
        writer.write(bytes(700))
        late = threading.Timer(60, writer.close)
        late.start()
        archive = inputs.open_input(reader)
        assert isinstance(archive, inputs.StreamInput)
        assert archive.read(6) + archive.some(1 << 20) == bytes(700)
        assert not writer.closed
        late.cancel()


# Documents and digests


@pytest.mark.parametrize("name", ["index.json", "oci-layout", "manifest.json", "repositories"])
@pytest.mark.parametrize(
    "data", [b"", b"null", b"[1]", b'{"a":', b"\xff", b'[{"Config":1}]', b'"' + b"x" * 100]
)
def test_malformed_documents_are_refused(bring: Import, name: str, data: bytes) -> None:
    content = layout_of(small()) if name in ("index.json", "oci-layout") else {}
    refused(bring, tar_of(content | {name: data}), InvalidArgument, NotFound)


@pytest.mark.parametrize("name", ["index.json", "oci-layout", "manifest.json", "repositories"])
def test_huge_documents_are_refused(bring: Import, name: str) -> None:
    content = layout_of(small()) if name in ("index.json", "oci-layout") else {}
    data = content.get(name, b"[]") + b" " * oci.DOCUMENT_MAX
    refused(bring, tar_of(content | {name: data}), ResourceExhausted)


def other_bytes(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize("part", ["layer", "config", "manifest"])
@pytest.mark.parametrize("whose", ["ours", "another platform's"])
def test_blobs_with_other_bytes_than_their_digest_says_are_refused(
    bring: Import, client: Client, part: str, whose: str
) -> None:
    ours, other = small("ours"), small("other")
    other.platform = {"os": "linux", "architecture": "s390x"}
    index = index_of(
        describe(ours.manifest, platform=ours.platform), describe(other.manifest, platform=other.platform)
    )
    content = layout(
        named("app:v1", index, oci.OCI_INDEX), content=blobs(ours) | blobs(other) | dict([blob(index)])
    )
    image = ours if whose == "ours" else other
    name, data = blob({"layer": image.layers[1], "config": image.config, "manifest": image.manifest}[part])
    errors = (DataLoss, FailedPrecondition)
    refused(bring, tar_of(content | {name: other_bytes(data)}), *errors)
    refused(bring, tar_of(content | {name: data[:-1]}), *errors)
    refused(bring, tar_of(content | {name: data + b" "}), *errors)
    content.pop(name)
    if (part, whose) != ("manifest", "another platform's"):
        # without the manifest for this machine nothing is unpacked, and the other one is there
        if part == "manifest":
            assert bring(tar_of(content))
        else:
            refused(bring, tar_of(content), NotFound)


def test_a_large_blob_with_other_bytes_is_refused(bring: Import) -> None:
    image = Built(layers.tar(layers.file("large", os.urandom(600_000))))
    name, data = blob(image.layers[0])
    content = layout_of(image)
    refused(bring, tar_of(content | {name: other_bytes(data)}), DataLoss, FailedPrecondition)


def test_a_docker_layer_with_other_bytes_than_its_diff_id_is_refused(bring: Import) -> None:
    image = Built(layers.tar(layers.file("large", bytes(600_000))), compression="none")
    content = docker_of(image, "app:v1")
    for name in list(content):
        if name.endswith(".tar"):
            content[name] = other_bytes(content[name])
    refused(bring, tar_of(content), DataLoss, FailedPrecondition)


def test_a_docker_archive_with_more_layers_than_its_config_is_refused(bring: Import) -> None:
    content = docker_of(small(compression="none"), "app:v1")
    manifest = json.loads(content["manifest.json"])
    manifest[0]["Layers"].append(manifest[0]["Layers"][0])
    content["manifest.json"] = json.dumps(manifest).encode()
    refused(bring, tar_of(content), InvalidArgument, match="3 layers")


def test_a_docker_archive_whose_layers_are_their_own_parents_is_refused(bring: Import) -> None:
    content = old_docker_of(small(compression="none"), {"app": {"v1": "1" * 64}})
    content[f"{'0' * 64}/json"] = json.dumps({"parent": "1" * 64}).encode()
    refused(bring, tar_of(content), InvalidArgument, match="more than")


def test_blobs_of_unknown_kinds_are_passed_over_and_sha512_is_known(bring: Import) -> None:
    image = small()
    content = layout_of(image) | {"blobs/blake3/abc": bytes(500_000), f"blobs/sha256/{NULL}x": bytes(500_000)}
    assert bring(tar_of(content))
    layer = compress(layers.tar(layers.file("large", os.urandom(600_000))))
    image.layers[1] = layer
    image.descriptors[1] = oci.Descriptor(
        media_type=oci.OCI_LAYER_GZIP, digest=digest_of(layer, "sha512"), size=len(layer)
    )
    image.diff_ids[1] = digest_of(gzip.decompress(layer))
    content = layout_of(image, "other:v1")
    content[f"blobs/sha512/{digest_of(layer, 'sha512').partition(':')[2]}"] = layer
    assert bring(tar_of(content))


@pytest.mark.parametrize("form", ["index", "manifest", "repositories"])
def test_a_small_archive_cannot_have_documents_read_without_end(form: str, bring: Import) -> None:
    """A document of 4 MiB that an archive names a thousand times; a chain of layers of which each is an image."""
    large = {"annotations": {"x": "y" * (oci.DOCUMENT_MAX - 1000)}}
    if form == "index":
        data = index_of(**large)
        content = layout(*[describe(data, oci.OCI_INDEX)] * 1000, content=dict([blob(data)]))
    elif form == "manifest":
        images = [{"Config": "config", "RepoTags": [f"app:{number}"], "Layers": []} for number in range(1000)]
        content = {"config": json.dumps(large).encode(), "manifest.json": json.dumps(images).encode()}
    else:
        content = {"repositories": json.dumps({"app": {f"v{n}": str(n) for n in range(400)}}).encode()}
        for number in range(400):
            parent = {"parent": str(number - 1)} if number else {}
            content |= {f"{number}/json": json.dumps(parent).encode(), f"{number}/layer.tar": bytes(1024)}
    refused(bring, tar_of(content), ResourceExhausted, match="so many documents")


def test_a_directory_whose_indexes_lead_to_themselves_is_refused(bring: Import) -> None:
    """It cannot be, but for the file's name: what stands under it has another digest."""
    index = index_of(describe(b"another", oci.OCI_INDEX), mediaType=oci.OCI_INDEX)
    name = f"{digest_of(b'another').partition(':')[2]}.manifest.json"
    content = {"version": b"Directory Transport Version: 1.1", "manifest.json": index, name: index}

    def named_import(data: bytes) -> Any:
        return bring.client.images.import_(Pipe(data), names=["app"])  # type: ignore[attr-defined]

    refused(named_import, tar_of(content), DataLoss)


def test_indexes_that_nest_too_deep_are_refused(bring: Import) -> None:
    image = small()
    data, kind, content = image.manifest, oci.OCI_MANIFEST, blobs(image)
    for _ in range(12):
        data, kind = index_of(describe(data, kind)), oci.OCI_INDEX
        content |= dict([blob(data)])
    refused(
        bring, tar_of(layout(named("app:v1", data, kind), content=content)), InvalidArgument, match="deep"
    )


def test_a_digest_with_a_path_in_it_is_refused(bring: Import) -> None:
    image = small()
    entry = named("app:v1", image.manifest)
    entry["digest"] = "sha256:../../index.json"
    refused(bring, tar_of(layout(entry, content=blobs(image))), InvalidArgument)


# Folders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    top = tmp_path / "folder"
    for name, data in layout_of(small()).items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(data)
    return top


@pytest.mark.parametrize("name", ["index.json", blob(small().layers[0])[0], blob(small().manifest)[0]])
def test_links_in_a_folder_do_not_lead_out(client: Client, folder: Path, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    (folder / name).rename(outside)
    for target in (outside, Path("../" * name.count("/") + "../outside")):
        (folder / name).symlink_to(target)
        with pytest.raises(InvalidArgument, match="leads out"):
            client.images.import_(folder)
        (folder / name).unlink()
    check_nothing_left(client)


def test_folders_in_a_folder_that_are_links_are_not_followed(
    client: Client, folder: Path, tmp_path: Path
) -> None:
    (folder / "blobs").rename(tmp_path / "outside")
    (folder / "blobs").symlink_to(tmp_path / "outside")
    with pytest.raises(NotFound):
        client.images.import_(folder)
    check_nothing_left(client)


@pytest.mark.parametrize("name", ["index.json", "oci-layout", blob(small().layers[0])[0]])
def test_a_pipe_in_a_folder_is_not_waited_for(client: Client, folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(InvalidArgument, match="no regular file"):
        client.images.import_(folder)
    check_nothing_left(client)


def test_a_file_that_becomes_shorter_meanwhile_is_data_loss(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "archive"
    image = Built(layers.tar(layers.file("large", os.urandom(3_000_000))))
    path.write_bytes(tar_of(layout_of(image)))

    def cut(report: Any) -> None:
        if report.phase == "resolving":
            os.truncate(path, 20_000)

    with pytest.raises((DataLoss, FailedPrecondition)):
        client.images.import_(path, progress=cut)
    check_nothing_left(client)


def test_what_is_exchanged_in_a_folder_meanwhile_is_noticed(client: Client, folder: Path) -> None:
    name = blob(small().layers[0])[0]

    def exchange(report: Any) -> None:
        if report.phase == "resolving":
            (folder / name).unlink()
            os.mkfifo(folder / name)

    with pytest.raises((DataLoss, InvalidArgument)):
        client.images.import_(folder, progress=exchange)
    check_nothing_left(client)


def test_what_takes_the_place_of_a_file_just_then_is_not_opened(folder: Path) -> None:
    with contextlib.closing(Folder(folder)) as files:
        member = files.need("index.json")
        (folder / "index.json").unlink()
        os.mkfifo(folder / "index.json")
        with pytest.raises(DataLoss):
            files.open(member)


# Any of it


class Archive(bytes):
    """Bytes that are not shown."""

    def __repr__(self) -> str:
        return f"<archive of {len(self)} bytes>"


@st.composite
def disturbed(draw: st.DrawFn) -> Archive:
    """An archive with its members in any order, some of them twice, cut, with bytes changed: one of these, or several."""
    content = draw(st.sampled_from([
        layout_of(small(compression="none")),
        docker_of(small(compression="none"), "app:v1"),
        old_docker_of(small(compression="none"), {"app": {"v1": "1" * 64}}),
    ]))  # fmt: skip
    order = draw(st.permutations(sorted(content)))
    again = draw(st.lists(st.sampled_from(sorted(content)), max_size=2))
    more = [member(name, content[name] if draw(st.booleans()) else b"other") for name in again]
    data = bytearray(tar_of(content, *more, order=order))
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(0, len(data) - 1))
        data[place] = draw(st.integers(0, 255))
    return Archive(data[: draw(st.just(len(data)) | st.integers(0, len(data)))])


@hypothesis.settings(
    max_examples=150,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
)
@hypothesis.given(data=disturbed(), pipe=st.booleans())
def test_whatever_an_archive_is_it_is_imported_whole_or_refused(
    client: Client, tmp_path: Path, data: Archive, pipe: bool
) -> None:
    path = tmp_path / "archive"
    path.write_bytes(data)
    try:
        found = client.images.import_(Pipe(data) if pipe else path)
    except LamellaError:
        assert not client.images.list()
    else:
        for image in found:
            assert all(digest_of(client.content.read(part.digest)) == part.digest for part in image.layers)
            assert client.snapshots.stat(image.chain_id)
            client.images.remove(image.name)
    client.gc()
    assert not list(client.content.walk())
    check_ingests(client)
