"""Stacks as deep as the kernel allows, in a store whose paths are long: they are mounted in every way there is."""

from __future__ import annotations

import itertools

import pytest

import lamella
from lamella.cli import main
from lamella.errors import FailedPrecondition, Unsupported
from lamella.snapshots import mount, unmount

pytestmark = pytest.mark.privileged

ROOT_LENGTH = 200
LIMIT = 500


@pytest.fixture
def client(tmp_path):
    """Give a client whose layer folders have paths of some 250 bytes: 128 of them fill many pages."""
    root = tmp_path / "r"
    while len(str(root)) < ROOT_LENGTH:
        root /= "r" * min(99, ROOT_LENGTH - len(str(root)))
    with lamella.Client(root=root, state=tmp_path / "state") as opened:
        yield opened


@pytest.fixture
def stack(client, small_image):
    """``stack(depth)`` gives a committed snapshot of so many layers: the image's, and one with a file for each more."""
    image = client.images.pull(small_image)
    names = [image.chain_id]
    below = len(client.snapshots.layer_paths(image.chain_id))

    def make(depth: int) -> str:
        for number in itertools.count(below + len(names)):
            if number > depth:
                return names[-1]
            client.snapshots.prepare("next", names[-1])
            (client.snapshots.layer_paths("next")[0] / f"layer-{number}").write_text(str(number))
            client.snapshots.commit(f"stack-{number}", "next")
            names.append(f"stack-{number}")
        raise AssertionError

    make.image = image
    return make


@pytest.mark.parametrize("depth", [128, LIMIT])
def test_a_deep_stack_is_mounted_in_every_way(client, stack, tmp_path, depth):
    top = stack(depth)
    assert len(client.snapshots.layer_paths(top)) == depth
    point = tmp_path / "point"
    point.mkdir()

    def whole(folder):
        assert (folder / f"layer-{depth}").read_text() == str(depth)
        assert (folder / "layer-5").read_text() == "5"
        assert (folder / "etc/passwd").exists()

    mounts = client.snapshots.prepare("active", top)
    assert len(",".join(mounts[0].options)) > 4096
    mount(mounts, point)
    try:
        whole(point)
        (point / "new").write_text("x")
    finally:
        unmount(point)
    assert "A /new" in map(str, client.snapshots.changes("active"))
    mount(client.snapshots.view("view", top), point)
    try:
        whole(point)
    finally:
        unmount(point)
    for key in (top, "active", "view"):
        with client.snapshots.mounted(key) as folder:
            whole(folder)
    store = ["--root", str(client.config.root), "--state", str(client.config.state)]
    assert main([*store, "snapshots", "mount", "active", str(point)]) == 0
    try:
        whole(point)
    finally:
        assert main([*store, "snapshots", "unmount", str(point)]) == 0

    box = client.containers.create(stack.image, ["/bin/sh", "-c", f"cat /layer-5 /layer-{depth}"], name="box")
    try:
        client.snapshots.remove("box")
        client.snapshots.prepare("box", top)
        box.start()
        assert box.wait() == 0
        assert b"".join(data for _, data in box.logs()) == f"5{depth}".encode()
    finally:
        box.remove(force=True)


def test_a_layer_more_is_refused_before_anything_is_made(client, stack, tmp_path):
    top = stack(LIMIT)
    client.snapshots.prepare("active", top)
    client.snapshots.commit("too deep", "active")
    folders = set((client.config.root / "snapshots/overlayfs").iterdir())
    for attempt in (client.snapshots.prepare, client.snapshots.view):
        with pytest.raises(FailedPrecondition, match="501 layers, and overlayfs stacks 500") as caught:
            attempt("key", "too deep")
        assert caught.value.hint
    with (
        pytest.raises(FailedPrecondition, match="501 layers"),
        client.snapshots.mounted("too deep"),
    ):
        pass
    assert set((client.config.root / "snapshots/overlayfs").iterdir()) == folders
    mounts = client.snapshots.prepare("active", top)
    mounts[0].options[-1] += f":{client.snapshots.layer_paths('active')[0]}"
    with pytest.raises(Unsupported, match="501 lower folders; the kernel stacks 500") as refused:
        mount(mounts, tmp_path)
    assert refused.value.hint
    assert len(str(refused.value)) < 2000
