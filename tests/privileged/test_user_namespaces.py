"""lamella in a user namespace, where overlayfs keeps its attributes in user.*."""

from __future__ import annotations

import inspect
import json
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import layers

pytestmark = pytest.mark.privileged

ONE_ID = "0 0 1\n"
RANGE = "0 0 1\n1 100001 65535\n"
BOTH = pytest.mark.parametrize("ids", [ONE_ID, RANGE], ids=["one id", "a range"])


def tree(top):
    """Give everything below a folder with its attributes and content; the processes inside have this function too."""
    found = {}
    for path in Path(top).rglob("*"):
        status = path.lstat()
        kind = stat.S_IFMT(status.st_mode)
        content = ""
        if kind == stat.S_IFLNK:
            content = str(path.readlink())
        elif kind == stat.S_IFREG:
            content = path.read_text()
        found[str(path.relative_to(top))] = [
            stat.filemode(status.st_mode), status.st_uid, status.st_gid, status.st_nlink, status.st_mtime_ns, content
        ]  # fmt: skip
    return found


@pytest.fixture
def inside(tmp_path):
    """``inside(code, ids)`` runs Python as root of a new user namespace; ``print(json)`` in it gives the result.

    Without ids it runs as root of the machine.
    """

    def run(code: str, ids: str | None, root: Path = tmp_path / "inside") -> object:
        text = (
            "import json, os, stat, lamella\nfrom pathlib import Path\nfrom lamella import errors\n"
            f"from lamella.snapshots import mount, unmount\n{inspect.getsource(tree)}\n"
            f"client = lamella.Client({str(root)!r}, {str(tmp_path / 'inside-state')!r})\n"
            + textwrap.dedent(code)
        )
        namespaces = ["unshare", "--user", "--mount"] if ids else []
        process = subprocess.Popen(
            [*namespaces, "sh", "-c", 'echo; read go; exec "$0" -c "$1"', sys.executable, text],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            process.stdout.readline()
            for name in ("gid_map", "uid_map") if ids else ():
                Path(f"/proc/{process.pid}/{name}").write_text(ids)
            out, err = process.communicate("\n", timeout=60)
        finally:
            process.kill()
            process.wait()
        assert process.returncode == 0, err
        return json.loads(out.splitlines()[-1])

    return run


LIFE = """
    image = client.images.pull({reference!r})
    point = Path({point!r})
    point.mkdir(exist_ok=True)
    mounts = client.snapshots.prepare("work", image.chain_id)
    mount(mounts, point)
    seen = tree(point)
    (point / "etc/kept").unlink()
    (point / "hidden/new").write_text("changed")
    (point / "replaced/new").unlink()
    (point / "replaced").rmdir()
    (point / "replaced").mkdir()
    (point / "added").write_text("x")
    os.setxattr(point / "added", "user.color", b"red")
    for name in ("hidden/new", "hidden", "replaced", "added", "etc", "."):
        os.utime(point / name, (1, 1))
    unmount(point)
    unmount(point)
    changes = list(map(str, client.snapshots.changes("work")))
    with client.snapshots.diff("work") as found:
        digest = found.pack({layer!r}).digest
    client.snapshots.commit("done", "work")
    with client.snapshots.mounted("done") as folder:
        after = tree(folder)
    mount(client.snapshots.prepare("next", "done"), point)
    again = tree(point)
    unmount(point)
    client.snapshots.remove("next")
    client.snapshots.remove("done")
    client.gc()
    options = mounts[0].options
    print(json.dumps([options, seen, changes, digest, after, again, client.fsck().clean]))
"""


@BOTH
def test_a_snapshots_whole_life_goes_as_it_does_for_root(inside, server, tmp_path, ids):
    reference = layers.history(owner=7 if ids == RANGE else 0).push(server)
    life = LIFE.format(reference=reference, point=str(tmp_path / "point"), layer=str(tmp_path / "layer"))
    options, *found = inside(life, ids)
    assert "userxattr" in options
    options, *by_root = inside(life, None, tmp_path / "root")
    assert "userxattr" not in options
    assert found == by_root
    seen, changes, _, after, again, clean = found
    assert "hidden/new" in seen and not {"hidden/old", "etc/deleted", "replaced/old"} & set(seen)
    assert {"A /added", "D /etc/kept", "C /hidden/new", "C /replaced"} <= set(changes)
    assert after == again
    assert "added" in after and not {"etc/kept", "replaced/new", "replaced/old"} & set(after)
    assert after["hidden/new"][-1] == "changed"
    assert clean


def test_an_owner_without_an_id_is_kept_for_the_layers_that_are_made_of_a_tree(inside, server, tmp_path):
    reference = layers.history(owner=7).push(server)
    code = f"""
        image = client.images.pull({reference!r})
        client.snapshots.prepare("work", image.chain_id)
        with client.snapshots.mounted("work") as folder:
            seen = (folder / "etc/kept").lstat()
            (folder / "etc/kept").write_text("changed")
            (folder / "etc/added").write_text("added")
        packed = {str(tmp_path / "packed")!r}
        with client.snapshots.diff("work") as found:
            found.pack(packed, compression="none")
        print(json.dumps([seen.st_uid, seen.st_gid, packed]))
    """
    *seen, packed = inside(code, ONE_ID)
    assert seen == [0, 0]
    with layers.tarfile.open(packed) as archive:
        members = archive.getmembers()
    assert {(member.name, member.uid, member.gid) for member in members} >= {
        ("etc/kept", 7, 7),
        ("etc/added", 0, 0),
    }
    assert not any("lamella" in name for member in members for name in member.pax_headers)


@BOTH
def test_devices_are_left_out_and_the_rest_is_as_by_root(inside, server, ids):
    device = layers.Entry("null", type=layers.tarfile.CHRTYPE, devmajor=1, devminor=3)
    reference = layers.history(0, device, layers.file("after")).push(server)
    code = f"""
        image = client.images.pull({reference!r})
        with client.snapshots.mounted(image.chain_id) as folder:
            print(json.dumps(sorted(os.listdir(folder))))
    """
    names = inside(code, ids)
    assert "after" in names and "null" not in names


def test_a_store_from_a_user_namespace_is_right_for_root_too(inside, server, client):
    reference = layers.history(0).push(server)
    root = client.config.root
    code = """
        image = client.images.pull({reference!r})
        client.snapshots.prepare("work", image.chain_id)
        with client.snapshots.mounted("work") as folder:
            (folder / "hidden/new").unlink()
            (folder / "hidden").rmdir()
            (folder / "hidden").mkdir()
            print(json.dumps(tree(folder)))
    """
    seen = inside(code.format(reference=reference), ONE_ID, root)
    assert client.snapshots.whiteouts == "overlay-userxattr"
    with client.snapshots.mounted("work") as folder:
        assert tree(folder) == seen
        (folder / "replaced/new").unlink()
        (folder / "replaced").rmdir()
        (folder / "replaced").mkdir()
    code = 'with client.snapshots.mounted("work") as folder: print(json.dumps(sorted(tree(folder))))'
    assert inside(code, ONE_ID, root) == sorted(set(seen) - {"replaced/new"})
    assert "hidden/old" not in seen


def test_a_store_that_root_has_begun_is_refused_in_a_user_namespace(inside, server, client):
    reference = layers.history(0).push(server)
    chain = client.images.pull(reference).chain_id
    client.snapshots.prepare("work", chain)
    other = layers.Built(layers.tar(layers.file("other"))).push(server, "other")
    code = f"""
        failed = []
        for attempt in (
            lambda: client.snapshots.mounts("work"),
            lambda: client.snapshots.prepare("key", {chain!r}),
            lambda: client.snapshots.view("key", {chain!r}),
            lambda: client.snapshots.changes("work"),
            lambda: client.images.pull({other!r}),
        ):
            try:
                attempt()
            except errors.FailedPrecondition as error:
                failed.append([str(error), error.hint])
        print(json.dumps(failed))
    """
    failed = inside(code, ONE_ID, client.config.root)
    assert len(failed) == 5
    assert all("root unpacked the layers" in text and hint for text, hint in failed)
    assert [info.name for info in client.snapshots.walk(kind="active")] == ["work"]
    assert [info.name for info in client.snapshots.walk(kind="view")] == []
