"""Additional stores: what an administrator lays out once, and users run from without copying it."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import lamella
import layers
from lamella.additional import AdditionalStore
from lamella.errors import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied
from users import OrdinaryUser

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.needs_program("useradd", "userdel", "newuidmap", "newgidmap", "setpriv", "unshare"),
]


@pytest.fixture
def shared() -> Iterator[Path]:
    """Give a folder in which everybody can look."""
    with tempfile.TemporaryDirectory(prefix="lamella-shared-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder) / "images"


def image() -> layers.Built:
    return layers.history(
        7,
        layers.folder("private", mode=0o700),
        layers.file("private/secret", b"read by all", mode=0o600),
        layers.device("null", 1, 3),
        layers.folder("open", mode=0o777),
        layers.file("open/library", b"the image's", mode=0o666),
    )


@pytest.fixture
def laid_out(tmp_path: Path, server: Any, shared: Path) -> tuple[AdditionalStore, str]:
    """Give an additional store with an image of the server's."""
    reference = image().push(server, "gone")
    store = AdditionalStore.create(shared)
    for snapshotter in ("overlayfs", "native"):
        with lamella.Client(tmp_path / "root", tmp_path / "state", snapshotter=snapshotter) as client:
            client.images.pull(reference, plain_http=True)
            store.add(client, reference)
            store.add(client, reference)
    server.requests.clear()
    return store, reference


@pytest.fixture
def filled(laid_out: tuple[AdditionalStore, str], server: Any) -> tuple[AdditionalStore, str]:
    """Give an additional store with an image, which no registry has any more."""
    server.close()
    return laid_out


def listing(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Give what a folder holds: modes, sizes, times of change of each file's inode."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        found[str(path)] = (status.st_mode, status.st_size, status.st_ctime_ns)
    return found


USE = """
import json, os, sys, lamella
from pathlib import Path
store, reference, snapshotter = sys.argv[1:]
with lamella.Client(snapshotter=snapshotter, additional_stores=[store]) as client:
    image = client.images.get(reference)
    blobs = [os.readlink(client.config.root / "blobs/sha256" / d.digest[7:]) for d in image.layers]
    assert all(blob.startswith(store) for blob in blobs), blobs
    paths = client.snapshots.layer_paths(image.chain_id)
    assert all(str(path).startswith(store) for path in paths), paths
    client.snapshots.view("view", image.chain_id)
    with client.snapshots.mounted("view") as folder:
        print(json.dumps([sorted(e.name for e in folder.iterdir()), (folder / "private/secret").read_text()]))
    client.snapshots.remove("view")
    client.snapshots.prepare("work", image.chain_id)
    client.snapshots.remove("work")
    assert client.fsck(verify_layers=True).clean
    client.images.remove(reference)
    client.gc()
    assert not list(Path(client.config.root, "snapshots", snapshotter).iterdir())
    assert not [path for path in Path(client.config.root, "blobs").rglob("*") if path.is_symlink()]
"""


@pytest.mark.parametrize("snapshotter", ["overlayfs", "native"])
def test_a_user_has_an_image_without_a_pull_and_collection_leaves_the_store_alone(
    user: OrdinaryUser, filled: tuple[AdditionalStore, str], snapshotter: str
) -> None:
    store, reference = filled
    before = listing(store.path)
    names, secret = json.loads(user.python(USE, str(store.path), reference, snapshotter))
    assert names == ["etc", "hard", "hidden", "link", "open", "private", "replaced", "su"]
    assert secret == "read by all"
    assert listing(store.path) == before


PULL = """
import os, sys, lamella
store, reference, snapshotter, keep = sys.argv[1:]
with lamella.Client(snapshotter=snapshotter, additional_stores=[store]) as client:
    image = client.images.pull(reference, plain_http=True, keep_layers=keep == "keep")
    for layer in image.layers:
        blob = client.config.root / "blobs/sha256" / layer.digest[7:]
        print("blob", os.readlink(blob).startswith(store) if blob.is_symlink() else "here" if blob.exists() else "none")
    for path in client.snapshots.layer_paths(image.chain_id):
        print("layer", str(path).startswith(store))
    assert client.fsck(verify_layers=True).clean
    client.images.remove(reference)
    client.gc()
"""


def fetched(server: Any) -> list[str]:
    """Give the paths of what was fetched of a server, and not only asked for."""
    return [request.path for request in server.requests if request.method == "GET"]


@pytest.mark.parametrize("snapshotter", ["overlayfs", "native"])
def test_a_pull_fetches_and_unpacks_nothing_that_an_additional_store_has(
    user: OrdinaryUser, laid_out: tuple[AdditionalStore, str], server: Any, snapshotter: str
) -> None:
    store, reference = laid_out
    before = listing(store.path)
    for keep, blob in (("keep", "blob True"), ("drop", "blob none")):
        said = user.python(PULL, str(store.path), reference, snapshotter, keep).splitlines()
        assert set(said) == {blob, "layer True"}
    assert fetched(server) == []
    assert server.requests  # a registry was asked what the name stands for
    assert listing(store.path) == before


@pytest.mark.parametrize("snapshotter", ["overlayfs", "native"])
def test_of_an_image_that_an_additional_store_has_in_part_the_rest_is_fetched(
    user: OrdinaryUser, laid_out: tuple[AdditionalStore, str], server: Any, snapshotter: str
) -> None:
    store, _ = laid_out
    more = layers.Built(*image().tars, layers.tar(layers.file("etc/more", b"x")))
    reference = more.push(server, "more")
    server.requests.clear()
    said = user.python(PULL, str(store.path), reference, snapshotter, "keep").splitlines()
    blobs = [line for line in said if line.startswith("blob")]
    assert blobs == ["blob True"] * len(image().tars) + ["blob here"]
    assert said[len(blobs)] == "layer False"  # the topmost
    assert set(said[len(blobs) + 1 :]) <= {"layer True"}
    assert len([path for path in fetched(server) if "/blobs/" in path]) == 2  # the config and the layer


def test_nobody_becomes_somebody_else_by_what_is_laid_out(filled: tuple[AdditionalStore, str]) -> None:
    store, _ = filled
    for path in (store.path / "layers").rglob("*"):
        status = path.lstat()
        assert not stat.S_ISBLK(status.st_mode)
        assert not stat.S_ISCHR(status.st_mode) or status.st_rdev == 0  # a whiteout
        if not stat.S_ISLNK(status.st_mode) and not stat.S_ISCHR(status.st_mode):
            assert not status.st_mode & (stat.S_ISUID | stat.S_ISGID)
            assert status.st_mode & 0o444 == 0o444


def test_no_user_changes_what_the_others_containers_run(
    user: OrdinaryUser, filled: tuple[AdditionalStore, str]
) -> None:
    """What anybody may write to in the image lies at a path of the machine here."""
    store, _ = filled
    libraries = sorted((store.path / "layers").rglob("open/library"))
    assert libraries
    for library in libraries:
        attempts = (
            'echo bad >>"$0"',
            'rm -f "$0"',
            'mv "$0" "$0.old"',
            'echo bad >"$0.new" && mv "$0.new" "$0"',
        )
        for attempt in attempts:
            assert user.run(["sh", "-c", attempt, str(library)], check=False).returncode != 0
        assert library.read_bytes() == b"the image's"
        assert (
            user.run(["sh", "-c", 'echo more >"$0/more"', str(library.parent)]).returncode == 0
        )  # as in /tmp
    for path in (store.path / "layers").rglob("*"):
        assert not path.lstat().st_mode & stat.S_IWGRP or path.is_symlink()


@pytest.mark.parametrize("inside", ["blobs", "blobs/sha256", "layers", "layers/overlayfs"])
def test_one_in_which_others_may_put_something_is_refused(
    user: OrdinaryUser, filled: tuple[AdditionalStore, str], inside: str
) -> None:
    store, reference = filled
    (store.path / inside).chmod(0o777)
    found = user.lamella("--additional-store", str(store.path), "images", "inspect", reference, check=False)
    assert found.returncode == 1
    assert "may write" in found.stderr


def test_the_command_fills_lists_and_empties_one(
    user: OrdinaryUser, filled: tuple[AdditionalStore, str]
) -> None:
    store, reference = filled
    found = user.lamella("--json", "additional-stores", "ls", str(store.path))
    assert [entry["name"] for entry in json.loads(found.stdout)] == [reference]
    option = ("--additional-store", str(store.path))
    assert json.loads(user.lamella(*option, "--json", "images", "inspect", reference).stdout)["chain_id"]
    user.lamella("images", "rm", reference)
    user.lamella("gc")
    assert user.lamella("additional-stores", "rm", str(store.path), reference, check=False).returncode == 1
    store.remove(reference)
    assert store.images() == {}
    assert list((store.path / "layers").glob("*/*")) == []
    assert list((store.path / "blobs").glob("*/*")) == []
    with pytest.raises(NotFound):
        store.remove(reference)


def test_one_that_others_may_write_to_is_refused(
    user: OrdinaryUser, filled: tuple[AdditionalStore, str], tmp_path: Path
) -> None:
    store, reference = filled
    with pytest.raises(FailedPrecondition, match="no additional store"):
        AdditionalStore(tmp_path)
    store.path.chmod(0o777)
    with pytest.raises(PermissionDenied):
        AdditionalStore(store.path)
    found = user.lamella("--additional-store", str(store.path), "images", "inspect", reference, check=False)
    assert found.returncode == 1
    assert "may write" in found.stderr
    os.chown(store.path, user.uid, user.gid)
    store.path.chmod(0o755)
    with pytest.raises(PermissionDenied):
        AdditionalStore(store.path)


OWNERS = """
import json, lamella, sys
from pathlib import Path
store, reference, snapshotter = sys.argv[1:]
with lamella.Client(snapshotter=snapshotter, additional_stores=[store]) as client:
    image = client.images.get(reference)
    paths = client.snapshots.layer_paths(image.chain_id)
    assert all(str(path).startswith(store) for path in paths), paths
    client.snapshots.view("view", image.chain_id)
    with client.snapshots.mounted("view") as folder:
        print(json.dumps([(folder / name).lstat().st_uid for name in ("etc", "etc/kept", "hidden")]))
    client.snapshots.remove("view")
    client.images.remove(reference)
    client.gc()
"""


@pytest.mark.parametrize("snapshotter", ["overlayfs", "native"])
def test_root_shows_a_user_the_store_with_the_users_ids(
    user: OrdinaryUser, filled: tuple[AdditionalStore, str], shared: Path, snapshotter: str
) -> None:
    """So that files have the owners of the image in the user's containers, and not nobody."""
    store, reference = filled
    point = shared.parent / "for-the-user"
    before = listing(store.path)
    store.mount(point, user=user.name)
    try:
        assert (point / "index.json").stat().st_uid == user.uid
        owners = json.loads(user.python(OWNERS, str(point), reference, snapshotter))
        first = json.loads(
            user.python("import json; from lamella import _core; print(json.dumps(_core.helper_maps()))")
        )[0][1][1]
        assert owners == [user.uid, first + 6, user.uid]
        with pytest.raises(OSError, match="Read-only file system"):
            (point / "new").touch()
    finally:
        subprocess.run(["umount", point], check=True)
    assert listing(store.path) == before


def test_programs_of_a_user_who_is_shown_the_store_change_what_is_theirs_in_the_image(
    user: OrdinaryUser, small_image: str, shared: Path, tmp_path: Path
) -> None:
    store, point = AdditionalStore.create(shared), shared.parent / "for-the-user"
    with lamella.Client(tmp_path / "root", tmp_path / "state") as client:
        client.images.pull(small_image, plain_http=True)
        store.add(client, small_image)
    before = listing(store.path)
    store.mount(point, user=user.name)
    script = "stat -c %u /bin/sh && chmod 700 /bin/ls && rm /bin/touch && stat -c %a:%u /bin/ls"
    try:
        found = user.lamella(
            "--additional-store", str(point), "run", "--rm", small_image, "/bin/sh", "-c", script
        )
        user.lamella("images", "rm", small_image)
        user.lamella("gc")
    finally:
        subprocess.run(["umount", point], check=True)
    assert found.stdout.splitlines() == ["0", "700:0"]
    assert listing(store.path) == before


def test_a_store_is_shown_to_a_user_that_there_is_on_a_folder_that_is_roots_and_by_root(
    user: OrdinaryUser, filled: tuple[AdditionalStore, str], shared: Path
) -> None:
    store, _ = filled
    with pytest.raises(InvalidArgument, match="no user 'nobody-at-all'"):
        store.mount(shared.parent / "point", user="nobody-at-all")
    with pytest.raises(PermissionDenied, match="belongs to another user"):
        store.mount(user.home, user=user.name)
    refused = user.lamella(
        "additional-stores", "mount", str(store.path), str(user.home), "--user", user.name, check=False
    )
    assert refused.returncode == 1
    assert "only root" in refused.stderr
