"""fsck --verify-layers: what differs in a layer's folder from its blob is found and replaced; what should be there is not."""

from __future__ import annotations

import os

import pytest

from lamella._core import read_file
from lamella.registry.server import RegistryServer
from layers import Built, file, folder, hardlink, opaque, symlink, tar, whiteout

pytestmark = [pytest.mark.privileged, pytest.mark.rootless]

BASE = tar(
    folder("etc", mode=0o750),
    file("etc/passwd", b"root\n", uid=7, gid=8),
    file("unnamed/deep/file", b"x"),
    file("big", os.urandom(3_000_000)),
    symlink("link", "etc/passwd"),
    file("capable", b"c", pax_headers={"SCHILY.xattr.user.note": "kept"}),
    file("set", b"s", mode=0o4755),
    folder("lower"),
    file("lower/a", b"a"),
    file("one"),
    hardlink("same", "one"),
)
UPPER = tar(
    hardlink("copy", "big"),
    file("lower/new", b"n"),
    whiteout("one"),
    opaque("etc"),
    file("etc/group", b"g\n"),
)


@pytest.fixture
def image(client):
    with RegistryServer() as server:
        return client.images.pull(Built(BASE, UPPER).push(server))


def base(client, image):
    return client.snapshots.layer_paths(image.chain_ids[0])[0]


def test_what_was_unpacked_as_it_should_be_has_no_difference(client, image, small_image):
    client.images.pull(small_image)
    for path in (base(client, image), base(client, image) / "lower"):
        os.utime(path)  # a folder's time may differ
    report = client.fsck(verify_layers=True)
    assert report.findings == []
    assert report.layers_compared == 2 + len(client.images.get(small_image).layers)
    assert {path.name for path in client.config.root.glob("snapshots/overlayfs/*")} == {
        path.parent.name
        for each in client.images.list()
        for path in client.snapshots.layer_paths(each.chain_id)
    }


def flip(top):
    with (top / "big").open("r+b") as big:
        big.seek(2_000_000)
        byte = big.read(1)
        big.seek(2_000_000)
        big.write(bytes([byte[0] ^ 1]))
    keep_time(top / "big", top / "capable")


def keep_time(path, like):
    found = like.stat()
    os.utime(path, ns=(found.st_mtime_ns, found.st_mtime_ns))


def swap_links(top):
    (top / "same").unlink()
    os.link(top / "big", top / "same")


def retarget(top):
    (top / "link").unlink()
    (top / "link").symlink_to("etc/passwd2")
    os.utime(top / "link", ns=(1_700_000_000 * 10**9,) * 2, follow_symlinks=False)


CHANGES = {
    "big has other bytes": flip,
    "unnamed/deep/file is missing": lambda top: (top / "unnamed/deep/file").unlink(),
    "etc/extra is extra": lambda top: (top / "etc/extra").write_text("x"),
    "etc/passwd has another size": lambda top: os.truncate(top / "etc/passwd", 0),
    "set has another mode": lambda top: (top / "set").chmod(0o755),
    "etc/passwd has another owner": lambda top: os.chown(top / "etc/passwd", 0, 0),
    "capable has another extended attribute": lambda top: os.setxattr(top / "capable", "user.note", b"other"),
    "lower/a has another time": lambda top: os.utime(top / "lower/a"),
    "the top folder has another mode": lambda top: top.chmod(0o700),
    "link has another": retarget,
    "has another count of hard links": swap_links,
}


@pytest.mark.parametrize(
    "difference",
    [pytest.param(name, marks=pytest.mark.needs_root if "etc/passwd" in name else ()) for name in CHANGES],
)
def test_a_difference_is_named_and_the_layer_is_replaced(client, image, difference):
    CHANGES[difference](base(client, image))
    assert client.fsck().findings == []
    (found,) = client.fsck(verify_layers=True).findings
    assert (found.kind, found.mended) == ("damaged-layer", False)
    assert difference in found.detail
    assert image.chain_ids[0] in found.detail
    (mended,) = client.fsck(verify_layers=True, repair=True).findings
    assert mended.mended, mended
    assert client.fsck(verify_layers=True).findings == []
    paths = [str(path) for path in client.snapshots.layer_paths(image.chain_id)]
    assert read_file(paths, "set", 10) == b"s"
    assert client.gc().orphans == 0


def test_a_layer_that_is_bound_to_what_lies_beneath_is_compared_and_replaced_too(client, image):
    top = client.snapshots.layer_paths(image.chain_id)[0]
    (top / "copy").unlink()
    (found,) = client.fsck(verify_layers=True, repair=True).findings
    assert "copy is missing" in found.detail
    assert found.mended
    assert client.fsck(verify_layers=True).findings == []


def test_a_layer_that_a_container_runs_on_is_left_to_it(client, small_image):
    image = client.images.pull(small_image)
    box = client.containers.run(image, ["/bin/sleep", "60"], detach=True, name="box")
    try:
        (base(client, image) / "extra").write_text("x")
        (found,) = client.fsck(verify_layers=True, repair=True).findings
        assert not found.mended
        assert "container default/box uses it" in found.action
        assert box.exec(["/bin/sh", "-c", "echo alive"]).stdout == b"alive\n"
        box.stop(0)
        assert client.fsck(verify_layers=True, repair=True).clean
        box.start()
        assert box.exec(["/bin/sh", "-c", "test ! -e /extra && echo alive"]).stdout == b"alive\n"
    finally:
        box.remove(force=True)


def test_layers_without_blobs_are_not_compared(client):
    with RegistryServer() as server:
        image = client.images.pull(Built(BASE).push(server), keep_layers=False)
    (base(client, image) / "extra").write_text("x")
    report = client.fsck(verify_layers=True)
    assert (report.findings, report.layers_compared) == ([], 0)
