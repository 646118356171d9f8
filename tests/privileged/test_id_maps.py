"""Snapshots that are mounted with mapped ids: containerd's labels, and what they do to owners."""

from __future__ import annotations

import stat
import subprocess
import sys
import tarfile
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest

import lamella
import layers
from inventory import children
from lamella import _core
from lamella.cli import main
from lamella.errors import InvalidArgument, LamellaError, Unsupported
from lamella.labels import GID_MAPPING, UID_MAPPING
from lamella.registry.server import RegistryServer
from lamella.snapshots import Mount, mount, unmount

pytestmark = pytest.mark.privileged

HOST, OVERFLOW = 100_000, 65534
MAPS = {UID_MAPPING: "0:100000:1000", GID_MAPPING: "0:100000:1000"}


@pytest.fixture
def chain(client):
    """Give the chainID of an image of two layers, with files of several owners."""
    below = layers.tar(
        layers.folder("etc"),
        layers.file("etc/root", b"root's"),
        layers.file("etc/user", uid=5, gid=6),
        layers.file("etc/outside", uid=5000, gid=5000),
        layers.file("deleted"),
    )
    above = layers.tar(layers.folder("home", uid=999, gid=999), layers.file("home/file", uid=999, gid=999))
    with RegistryServer() as server:
        return client.images.pull(layers.Built(below, above).push(server)).chain_id


@pytest.fixture
def point():
    """Give a mount point that others can reach: what is above ``tmp_path`` is for root alone."""
    with tempfile.TemporaryDirectory(prefix="lamella-test-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o711)
        point = Path(folder, "point")
        point.mkdir()
        yield point
        unmount(point)


def owner(path):
    status = path.lstat()
    return status.st_uid, status.st_gid


def as_user(uid, code, folder):
    """Run Python as a user of this machine that has no privileges, in a folder that root may enter alone."""
    process = subprocess.run(
        [sys.executable, "-c", f"import os; os.setgroups([]); os.setresgid({uid}, {uid}, {uid}); "
         f"os.setresuid({uid}, {uid}, {uid})\n{code}"],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    return process.stdout


def traces():
    """Give what a mount with mapped ids could leave: mounts, children and namespaces of this process, open namespaces."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    opened = []
    for path in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # it was that of the folder itself
            opened.append(str(path.readlink()))
    return (
        [line for line in mounts if "lamella-test-" in line],
        children(),
        [Path("/proc/self/ns", name).readlink() for name in ("mnt", "user")],
        sorted(target for target in opened if not target.startswith("socket:")),
    )


def test_the_mounts_carry_containerds_options(client, chain):
    for method, key in ((client.snapshots.prepare, "active"), (client.snapshots.view, "view")):
        mounts = method(key, chain, MAPS)
        assert mounts[0].options[:2] == ["uidmap=0:100000:1000", "gidmap=0:100000:1000"]
        assert client.snapshots.mounts(key) == mounts
        client.snapshots.update(key, {UID_MAPPING: "", GID_MAPPING: ""})
        assert client.snapshots.mounts(key)[0].options == mounts[0].options[2:]
        client.snapshots.update(key, MAPS)
        assert client.snapshots.mounts(key) == mounts
    assert client.snapshots.prepare("empty", "", MAPS) == [
        Mount(
            type="bind",
            source=str(client.snapshots.layer_paths("empty")[0]),
            options=["uidmap=0:100000:1000", "gidmap=0:100000:1000", "rw", "rbind"],
        )
    ]


def test_owners_are_shifted_and_what_is_written_is_stored_as_in_the_container(client, chain, point):
    before = traces()
    mount(client.snapshots.prepare("work", chain, MAPS), point)
    upper = client.snapshots.layer_paths("work")[0]
    assert owner(point) == owner(point / "etc/root") == (HOST, HOST)
    assert owner(point / "etc/user") == (HOST + 5, HOST + 6)
    assert owner(point / "home/file") == (HOST + 999, HOST + 999)
    assert owner(point / "etc/outside") == (OVERFLOW, OVERFLOW)
    as_user(
        HOST,
        "open('new', 'w').write('x'); os.mkdir('made'); os.unlink('deleted'); open('etc/root', 'a').write('!')",
        point,
    )
    as_user(HOST + 999, "open('home/mine', 'w').write('y'); os.rename('home/file', 'home/renamed')", point)
    assert owner(point / "new") == owner(point / "made") == owner(point / "etc/root") == (HOST, HOST)
    assert owner(point / "home/mine") == owner(point / "home/renamed") == (HOST + 999, HOST + 999)
    assert owner(upper / "new") == owner(upper / "made") == owner(upper / "etc/root") == (0, 0)
    assert owner(upper / "home/mine") == owner(upper / "home/renamed") == owner(upper / "home") == (999, 999)
    assert (upper / "etc/root").read_text() == "root's!"
    assert stat.S_ISCHR((upper / "deleted").stat().st_mode)
    assert not (point / "deleted").exists()
    with pytest.raises(OSError, match="too large"):
        (point / "by the host's root").write_text("who is not in the map")
    unmount(point)
    assert traces() == before


def test_diff_commit_and_remove_know_the_containers_ids(client, chain, point, tmp_path):
    mount(client.snapshots.prepare("work", chain, MAPS), point)
    as_user(HOST, "open('new', 'w').write('x'); os.unlink('deleted')", point)
    as_user(HOST + 999, "open('home/mine', 'w').write('y')", point)
    unmount(point)
    assert list(map(str, client.snapshots.changes("work"))) == [
        "C /", "D /deleted", "C /home", "A /home/mine", "A /new"
    ]  # fmt: skip
    with client.snapshots.diff("work") as changes:
        changes.pack(str(tmp_path / "layer"), compression="none")
    with tarfile.open(tmp_path / "layer") as archive:
        owners = {entry.name: (entry.uid, entry.gid) for entry in archive}
    assert owners["new"] == (0, 0) and owners["home/mine"] == owners["home"] == (999, 999)
    assert {str(change) for change in client.snapshots.changes("work", chain)} == {
        "C /", "D /deleted", "C /home", "A /home/mine", "A /new"
    }  # fmt: skip
    client.snapshots.commit("done", "work")
    with client.snapshots.mounted("done") as folder:
        assert owner(folder / "home/mine") == (999, 999)
    # Another map on top of it, and in two ranges.
    maps = {UID_MAPPING: "0:200000:10,999:300000:1", GID_MAPPING: "0:200000:10,999:300000:1"}
    client.snapshots.prepare("next", "done", maps)
    with client.snapshots.mounted("next") as folder:
        assert owner(folder / "new") == (200_000, 200_000)
        assert owner(folder / "home/mine") == (300_000, 300_000)
        as_user(200_000, "open('second', 'w')", folder)
    assert owner(client.snapshots.layer_paths("next")[0] / "second") == (0, 0)
    client.snapshots.remove("next")
    client.snapshots.remove("done")
    client.gc()
    assert client.fsck().clean


def test_views_and_single_folders_are_mapped_too(client, chain, point):
    mount(client.snapshots.view("view", chain, MAPS), point)
    assert owner(point / "etc/user") == (HOST + 5, HOST + 6)
    unmount(point)
    mount(client.snapshots.prepare("empty", "", MAPS), point)
    as_user(HOST, "open('new', 'w')", point)
    unmount(point)
    assert owner(client.snapshots.layer_paths("empty")[0] / "new") == (0, 0)
    client.snapshots.commit("one", "empty")
    mount(client.snapshots.view("of one", "one", MAPS), point)
    assert owner(point / "new") == (HOST, HOST)
    with pytest.raises(OSError, match="Read-only"):
        (point / "more").write_text("")


def test_the_native_snapshotters_copies_are_mapped_too(client, chain, point):
    config = client.config
    with lamella.Client(config.root, config.state, snapshotter="native") as native:
        native.images.unpack(client.images.list()[0].name)
        mount(native.snapshots.prepare("work", chain, MAPS), point)
        assert owner(point / "etc/user") == (HOST + 5, HOST + 6)
        as_user(HOST, "open('new', 'w')", point)
        unmount(point)
        assert owner(native.snapshots.layer_paths("work")[0] / "new") == (0, 0)
        assert list(map(str, native.snapshots.changes("work"))) == ["C /", "A /new"]


def test_a_container_of_a_user_namespace_writes_as_its_root(client, chain, point):
    mount(client.snapshots.prepare("work", chain, MAPS), point)
    script = (
        'echo; read go; cd "$0" && exec sh -c "echo x > new; chown 5:6 new; rm deleted etc/user; mkdir made"'
    )
    process = subprocess.Popen(
        ["unshare", "--user", "sh", "-c", script, str(point)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        user=HOST, group=HOST, extra_groups=[], cwd="/",
    )  # fmt: skip
    process.stdout.readline()
    for name in ("gid_map", "uid_map"):
        Path(f"/proc/{process.pid}/{name}").write_text("0 100000 1000\n")
    _, err = process.communicate("\n", timeout=60)
    assert (process.returncode, err) == (0, "")
    upper = client.snapshots.layer_paths("work")[0]
    assert owner(upper / "new") == (5, 6)
    assert owner(upper / "made") == (0, 0)
    assert sorted(map(str, client.snapshots.changes("work"))) == sorted(
        ["C /", "D /deleted", "C /etc", "D /etc/user", "A /made", "A /new"]
    )


@pytest.mark.parametrize("depth", [128])
def test_deep_stacks_are_mapped(client, chain, point, depth):
    below = chain
    for number in range(depth - 2):
        client.snapshots.prepare("next", below)
        (client.snapshots.layer_paths("next")[0] / f"layer-{number}").touch()
        below = f"stack-{number}"
        client.snapshots.commit(below, "next")
    before = traces()
    mount(client.snapshots.prepare("work", below, MAPS), point)
    assert {owner(path) for path in point.glob("layer-*")} == {(HOST, HOST)}
    as_user(HOST, "open('new', 'w')", point)
    unmount(point)
    assert traces() == before


def test_the_command_mounts_them_as_well(client, chain, point, capfd):
    store = ["--root", str(client.config.root), "--state", str(client.config.state)]
    labels = [word for key, value in MAPS.items() for word in ("--label", f"{key}={value}")]
    assert main([*store, "snapshots", "prepare", *labels, "work", chain]) == 0
    assert "uidmap=0:100000:1000,gidmap=0:100000:1000," in capfd.readouterr().out
    assert main([*store, "snapshots", "mount", "work", str(point)]) == 0
    assert owner(point / "etc/root") == (HOST, HOST)
    assert main([*store, "snapshots", "unmount", str(point)]) == 0


@pytest.mark.parametrize(
    "labels",
    [
        {UID_MAPPING: "0:1:1"},
        {GID_MAPPING: "0:1:1"},
        {UID_MAPPING: "0:1:1", GID_MAPPING: "nonsense"},
        {UID_MAPPING: "0:1:0", GID_MAPPING: "0:1:1"},
        {UID_MAPPING: "0:0:2,1:5:1", GID_MAPPING: "0:1:1"},
        {UID_MAPPING: "0:0:2,5:1:1", GID_MAPPING: "0:1:1"},
        {UID_MAPPING: "4294967295:0:1", GID_MAPPING: "0:1:1"},
        {UID_MAPPING: "0:4294967290:6", GID_MAPPING: "0:1:1"},
    ],
)
def test_what_is_no_map_is_refused_before_anything_is_made(client, chain, labels):
    folders = set((client.config.root / "snapshots/overlayfs").iterdir())
    for method in (client.snapshots.prepare, client.snapshots.view):
        with pytest.raises(InvalidArgument):
            method("key", chain, labels)
    assert set((client.config.root / "snapshots/overlayfs").iterdir()) == folders
    client.snapshots.prepare("work", chain, MAPS)
    with pytest.raises(InvalidArgument):
        client.snapshots.update("work", {UID_MAPPING: "", GID_MAPPING: "", **labels})
    assert MAPS.items() <= client.snapshots.stat("work").labels.items()


def test_a_file_system_that_cannot_map_ids_is_unsupported_and_nothing_stays(client, chain, point, tmp_path):
    before = traces()
    options = ["uidmap=0:1:1", "gidmap=0:1:1"]
    with pytest.raises(Unsupported, match="map ids") as caught:
        _core.mount([("bind", "/proc", ["bind", *options])], str(point))
    assert caught.value.hint
    # Overlays themselves are one: a stack of stacks.
    mount(client.snapshots.prepare("work", chain), point)
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(Unsupported, match="map ids"):
        _core.mount([("overlay", "overlay", [f"lowerdir={point}:{other}", *options])], str(other))
    unmount(point)
    with pytest.raises(LamellaError):
        _core.mount([("overlay", "overlay", ["lowerdir=/nonexistent", *options])], str(point))
    assert traces() == before


def test_in_a_user_namespace_the_machines_file_systems_are_not_mapped(client, tmp_path, point):
    code = (
        "import sys, lamella\nfrom lamella.snapshots import mount\n"
        f"client = lamella.Client({str(tmp_path / 'inside')!r}, {str(tmp_path / 'inside-state')!r})\n"
        f"mounts = client.snapshots.prepare('work', '', { ({UID_MAPPING: '0:0:1', GID_MAPPING: '0:0:1'})!r})\n"
        "try:\n    mount(mounts, sys.argv[1])\nexcept lamella.errors.PermissionDenied as error:\n    print(error.hint)\n"
    )
    run = subprocess.run(
        ["unshare", "-Urm", sys.executable, "-c", code, str(point)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "root" in run.stdout
