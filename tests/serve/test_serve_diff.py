"""Layers are applied to mounts, and made of what differs in them, as a client of containerd unpacks and commits."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from lamella import oci
from lamella.digest import digest_of
from lamella.serve.api import diff_pb2, leases_pb2, snapshots_pb2, types_pb2
from lamella.serve.messages import from_mounts
from lamella.snapshots import mount, unmount
from lamella.transfer.commit import pack_layer
from layers import compress, file, folder, hardlink, opaque, symlink, tar, whiteout
from rpc import refusal
from tree import differences, read_tree
from waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.privileged
CODES = grpc.StatusCode


def blob(*entries: Any) -> bytes:
    return compress(tar(*entries))


class Unpacker:
    """What containerd's client does with a layer: prepare, apply, commit."""

    def __init__(self, served: Any, snapshotter: str) -> None:
        self.client = served.client
        self.snapshotter = snapshotter
        self.snapshots = served.stub(snapshots_pb2, "Snapshots")
        self.diffs = served.stub(diff_pb2, "Diff")

    def put(self, data: bytes) -> types_pb2.Descriptor:
        digest = digest_of(data)
        self.client.content.write(f"put-{digest}", data, digest=digest, size=len(data))
        return types_pb2.Descriptor(media_type=oci.OCI_LAYER_GZIP, digest=digest, size=len(data))

    def prepare(self, key: str, parent: str = "") -> Any:
        request = snapshots_pb2.PrepareSnapshotRequest(snapshotter=self.snapshotter, key=key, parent=parent)
        return self.snapshots.Prepare(request).mounts

    def view(self, key: str, parent: str) -> Any:
        request = snapshots_pb2.ViewSnapshotRequest(snapshotter=self.snapshotter, key=key, parent=parent)
        return self.snapshots.View(request).mounts

    def commit(self, name: str, key: str) -> None:
        self.snapshots.Commit(
            snapshots_pb2.CommitSnapshotRequest(snapshotter=self.snapshotter, name=name, key=key)
        )

    def apply(self, descriptor: types_pb2.Descriptor, mounts: Any, **fields: Any) -> types_pb2.Descriptor:
        return self.diffs.Apply(diff_pb2.ApplyRequest(diff=descriptor, mounts=mounts, **fields)).applied

    def unpack(self, name: str, parent: str, *entries: Any) -> str:
        """Make a committed snapshot of a layer of these entries."""
        self.apply(self.put(blob(*entries)), self.prepare("extract", parent))
        self.commit(name, "extract")
        return name

    def diff(self, left: Any, right: Any, **fields: Any) -> types_pb2.Descriptor:
        return self.diffs.Diff(diff_pb2.DiffRequest(left=left, right=right, **fields)).diff


@contextmanager
def seen(mounts: Any, point: Path) -> Iterator[Path]:
    """Mount what an RPC gave."""
    point.mkdir(exist_ok=True)
    mount(from_mounts(mounts), point)
    try:
        yield point
    finally:
        unmount(point)


@pytest.fixture(params=["overlayfs", "native"])
def unpacker(served: Any, request: pytest.FixtureRequest) -> Unpacker:
    return Unpacker(served, request.param)


@pytest.fixture
def point(tmp_path: Path) -> Iterator[Path]:
    """A folder to mount on; nothing of the server's is mounted afterwards."""
    yield tmp_path / "point"
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def test_an_image_unpacked_by_a_client_is_the_one_that_the_library_unpacks(
    unpacker, small_image, point
) -> None:
    client = unpacker.client.using(unpacker.snapshotter)
    image = client.images.pull(small_image, unpack=False)
    parent = ""
    for layer, diff_id, chain in zip(image.layers, image.diff_ids, image.chain_ids, strict=True):
        descriptor = types_pb2.Descriptor(media_type=layer.media_type, digest=layer.digest, size=layer.size)
        applied = unpacker.apply(descriptor, unpacker.prepare("extract", parent), sync_fs=True)
        assert (applied.digest, applied.media_type) == (diff_id, oci.OCI_LAYER)
        unpacker.commit(chain, "extract")
        parent = chain
    with seen(unpacker.view("look", image.chain_id), point) as root:
        own = read_tree(root)
    library = unpacker.client.using(unpacker.snapshotter, namespace="other")
    pulled = library.images.pull(small_image)
    with library.snapshots.mounted(pulled.chain_id) as root:
        assert differences(own, read_tree(root)) == []


BASE = (
    folder("etc"), file("etc/a", b"a"), file("etc/b", b"b"), folder("gone"), file("gone/x"), folder("hidden"),
    file("hidden/old"), symlink("link", "etc"), file("was-file"),
)  # fmt: skip
CHANGES = (
    file("etc/a", b"A"), whiteout("etc/b"), whiteout("gone"), folder("hidden"), opaque("hidden"), file("hidden/new"),
    hardlink("etc/c", "etc/a"), folder("was-file"), file("was-file/in"), file("unnamed/deep", mode=0o600),
)  # fmt: skip


def shown(root: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else None
        for path in root.rglob("*")
        if not path.is_symlink()
    }


EXPECTED = {
    "etc": None, "etc/a": b"A", "etc/c": b"A", "hidden": None, "hidden/new": b"data", "was-file": None,
    "was-file/in": b"data", "unnamed": None, "unnamed/deep": b"data",
}  # fmt: skip


def test_what_a_layer_deletes_is_gone(unpacker, point) -> None:
    base = unpacker.unpack("base", "", *BASE)
    top = unpacker.unpack("top", base, *CHANGES)
    with seen(unpacker.view("look", top), point) as root:
        assert shown(root) == EXPECTED


def test_a_layer_goes_onto_what_somebody_wrote_already(unpacker, point) -> None:
    base = unpacker.unpack("base", "", *BASE)
    mounts = unpacker.prepare("work", base)
    with seen(mounts, point) as root:
        (root / "etc/b").write_bytes(b"changed")
        (root / "gone/y").write_bytes(b"written")
        (root / "mine").write_bytes(b"mine")
    changes = unpacker.put(blob(*CHANGES))
    for _ in range(2):
        unpacker.apply(changes, mounts)
    with seen(mounts, point) as root:
        assert shown(root) == {**EXPECTED, "mine": b"mine"}


def test_an_opaque_root_hides_everything_beneath(unpacker, point) -> None:
    base = unpacker.unpack("base", "", *BASE)
    top = unpacker.unpack("top", base, opaque(""), folder("etc"), file("etc/only"))
    with seen(unpacker.view("look", top), point) as root:
        assert shown(root) == {"etc": None, "etc/only": b"data"}


def test_what_differs_is_the_layer_that_the_library_makes(unpacker, point) -> None:
    base = unpacker.unpack("base", "", *BASE)
    mounts = unpacker.prepare("work", base)
    with seen(mounts, point) as root:
        (root / "etc/a").write_bytes(b"A")
        (root / "etc/b").unlink()
        (root / "hidden/old").rename(root / "hidden/new")
    found = unpacker.diff(unpacker.view("look", base), mounts)
    assert found.media_type == oci.OCI_LAYER_GZIP
    client = unpacker.client.using(unpacker.snapshotter)
    packed = pack_layer(client, "work")
    assert (found.digest, found.size) == (packed.descriptor.digest, packed.descriptor.size)
    assert client.content.info(found.digest).labels["containerd.io/uncompressed"] == packed.diff_id
    # Onto the base it gives what was compared.
    unpacker.apply(found, unpacker.prepare("again", base))
    with seen(mounts, point) as root:
        wanted = read_tree(root)
    again = unpacker.snapshots.Mounts(
        snapshots_pb2.MountsRequest(snapshotter=unpacker.snapshotter, key="again")
    ).mounts
    with seen(again, point) as root:
        assert differences(read_tree(root), wanted) == []


def test_what_differs_is_found_while_it_is_mounted(unpacker, point) -> None:
    base = unpacker.unpack("base", "", *BASE)
    other = unpacker.unpack("other", "", file("something"))
    mounts = unpacker.prepare("work", base)
    with seen(mounts, point) as root:
        (root / "new").write_bytes(b"new")
        for left in (unpacker.view("look", base), unpacker.view("else", other), []):
            assert unpacker.diff(left, mounts).size
        (root / "new").write_bytes(b"newer")


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_forms_labels_and_leases(served, unpacker, compression) -> None:
    base = unpacker.unpack("base", "", *BASE)
    kind = {"none": oci.OCI_LAYER, "gzip": oci.OCI_LAYER_GZIP, "zstd": oci.OCI_LAYER_ZSTD}[compression]
    leases = served.stub(leases_pb2, "Leases")
    lease = leases.Create(leases_pb2.CreateRequest()).lease.id
    request = diff_pb2.DiffRequest(
        right=unpacker.view("look", base), media_type=kind, ref="mine", labels={"a": "b"}
    )
    found = unpacker.diffs.Diff(request, lease=lease).diff
    assert found.media_type == kind
    info = served.client.content.info(found.digest)
    assert info.labels["a"] == "b"
    if compression == "none":
        assert info.labels["containerd.io/uncompressed"] == found.digest
    served.client.gc()
    assert served.client.content.exists(found.digest)
    assert not served.client.content.ingests()


def test_the_same_content_gives_the_same_bytes_up_to_a_date(unpacker, point) -> None:
    found = []
    for number in range(2):
        mounts = unpacker.prepare(f"s{number}")
        with seen(mounts, point) as root:
            (root / "file").write_bytes(b"same")
            for path in (root / "file", root):
                os.utime(path, (0, 1_800_000_000 + number))
        found.append([unpacker.diff([], mounts, source_date_epoch=Timestamp(seconds=seconds)).digest
                      for seconds in (1_700_000_000, 1_900_000_000)])  # fmt: skip
    assert found[0][0] == found[1][0]
    assert found[0][1] != found[1][1]


def test_refusals(served, unpacker) -> None:
    data = blob(file("a"))
    layer = unpacker.put(data)
    mounts = unpacker.prepare("work")

    def applied(**fields: Any) -> grpc.StatusCode:
        request = {"diff": layer, "mounts": mounts} | fields
        return refusal(unpacker.diffs.Apply, diff_pb2.ApplyRequest(**request))

    def changed(**fields: Any) -> types_pb2.Descriptor:
        return types_pb2.Descriptor(
            **{"media_type": layer.media_type, "digest": layer.digest, "size": layer.size} | fields
        )

    assert applied(diff=changed(digest="nonsense")) is CODES.INVALID_ARGUMENT
    assert applied(diff=changed(digest="sha256:" + "0" * 64)) is CODES.NOT_FOUND
    assert applied(diff=changed(size=len(data) - 1)) is CODES.FAILED_PRECONDITION
    assert applied(diff=changed(media_type="text/plain")) is CODES.UNIMPLEMENTED
    gone = types_pb2.Mount(type="bind", source="/nowhere/at/all", options=["rw", "rbind"])
    assert applied(mounts=[gone]) is CODES.NOT_FOUND
    assert applied(mounts=[types_pb2.Mount(type="nonsense", source="x")]) in (
        CODES.UNIMPLEMENTED,
        CODES.INVALID_ARGUMENT,
    )
    bad = unpacker.put(b"\x1f\x8b no layer at all")
    assert applied(diff=bad) in (CODES.FAILED_PRECONDITION, CODES.DATA_LOSS, CODES.INVALID_ARGUMENT)
    request = diff_pb2.DiffRequest(right=mounts, media_type="text/plain")
    assert refusal(unpacker.diffs.Diff, request) is CODES.UNIMPLEMENTED
    assert refusal(unpacker.diffs.Diff, diff_pb2.DiffRequest(right=[gone])) is CODES.NOT_FOUND
    with served.client.content.writer("taken"):
        taken = diff_pb2.DiffRequest(right=mounts, ref="taken")
        assert refusal(unpacker.diffs.Diff, taken) is CODES.UNAVAILABLE


def test_a_layer_does_not_leave_its_folder(unpacker, tmp_path, point) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    base = unpacker.unpack("base", "", symlink("out", str(outside)))
    for entries in (
        (file("out/planted"),),
        (symlink("up", "../../.."), file("up/planted")),
        (file("../planted"),),
    ):
        request = diff_pb2.ApplyRequest(diff=unpacker.put(blob(*entries)), mounts=unpacker.prepare("x", base))
        try:
            unpacker.diffs.Apply(request)
        except grpc.RpcError as error:
            assert error.code() in (CODES.INVALID_ARGUMENT, CODES.PERMISSION_DENIED)
        unpacker.snapshots.Remove(
            snapshots_pb2.RemoveSnapshotRequest(snapshotter=unpacker.snapshotter, key="x")
        )
    assert not list(outside.iterdir())
    assert not list(tmp_path.rglob("planted"))


def test_a_difference_that_nobody_waits_for_any_more_is_given_up(served, unpacker, tmp_path) -> None:
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "file").write_bytes(os.urandom(128 << 20))
    mount = types_pb2.Mount(type="bind", source=str(tmp_path / "large"), options=["rw", "rbind"])
    request = diff_pb2.DiffRequest(right=[mount], ref="given-up")
    assert refusal(unpacker.diffs.Diff, request, timeout=0.2) is CODES.DEADLINE_EXCEEDED
    until(lambda: not served.client.content.ingests())
    assert not list(served.client.content.walk())
