"""Images under the native snapshotter: their trees are those that overlayfs shows, attribute by attribute."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lamella
from chance import SEED
from crashes import image as runnable
from lamella.digest import digest_of
from layers import Built, file, folder, hardlink, opaque, symlink, tar, whiteout
from tree import differences, read_tree

pytestmark = [pytest.mark.integration, pytest.mark.privileged]
CAPABILITY = "\x01\x00\x00\x02\x00\x04" + "\x00" * 14


@pytest.fixture
def server() -> Iterator:
    from lamella.registry.server import RegistryServer

    with RegistryServer() as running:
        yield running


@pytest.fixture
def native(client) -> Iterator[lamella.Client]:
    """A client of the same store with the native snapshotter."""
    with lamella.Client(client.config.root, client.config.state, snapshotter="native") as opened:
        yield opened


def shown(client: lamella.Client, image: lamella.Image, layer: int = -1) -> dict:
    with client.snapshots.mounted(image.chain_ids[layer]) as top:
        return read_tree(top)


LAYERS = {
    "whiteouts": (
        tar(folder("d"), file("d/a"), file("d/b"), folder("e"), file("e/a"), file("f")),
        tar(folder("d"), whiteout("d/a"), whiteout("e"), whiteout("f")),
        tar(folder("e", mode=0o700), file("e/new"), whiteout("d/none"), file("d/a", b"again")),
    ),
    "a whiteout speaks of lower layers only": (
        tar(folder("d"), file("d/a", b"old"), file("d/b"), file("x")),
        tar(folder("d"), file("d/a", b"new"), whiteout("d/a"), whiteout("d"), file("x", b"2"), whiteout("x")),
    ),
    "opaque folders": (
        tar(folder("d"), file("d/a"), folder("d/e"), file("d/e/b"), folder("k"), file("k/kept")),
        tar(folder("d", uid=5), file("d/new"), opaque("d")),
        tar(opaque("d"), folder("d"), folder("d/e"), file("d/e/c")),
    ),
    "an opaque root": (tar(folder("d"), file("d/a")), tar(opaque(""), file("only"))),
    "replaced kinds": (
        tar(folder("d"), file("d/a"), file("f"), symlink("l", "d"), folder("g"), file("g/a")),
        tar(file("d", b"file"), folder("f"), file("f/a"), folder("l"), file("l/own"), symlink("g", "f")),
        tar(folder("d"), file("d/b"), file("g/through")),
    ),
    "hard links into lower layers": (
        tar(folder("bin", mtime=5), file("bin/tool", b"t" * 9000, mode=0o4755, uid=3, mtime=77)),
        tar(folder("sbin"), hardlink("sbin/alias", "bin/tool"), hardlink("sbin/again", "bin/tool")),
    ),
    "a hard link to what its own layer replaces": (
        tar(file("a", b"old"), file("b", b"other")),
        tar(hardlink("c", "a"), file("a", b"new"), whiteout("b")),
    ),
    "a hard link that stands before its target": (
        tar(file("x")),
        tar(hardlink("first", "second"), file("second", b"later", mode=0o600, mtime=9)),
    ),
    "unnamed parents keep their attributes": (
        tar(folder("srv", mode=0o2710, uid=7, gid=70_000, mtime=1_600_000_000), folder("srv/in", mode=0o700)),
        tar(file("srv/in/a"), file("new/deep/b")),
        tar(whiteout("srv/in/a"), file("new/c")),
    ),
    "folders that are named again": (
        tar(folder("d", mode=0o700, uid=1, pax_headers={"SCHILY.xattr.user.old": "1"}), file("d/a")),
        tar(
            folder("d", mode=0o1777, gid=2, mtime=123_456_789.25, pax_headers={"SCHILY.xattr.user.new": "2"})
        ),
    ),
    "parents that are symlinks": (
        tar(folder("usr"), folder("usr/lib"), file("usr/lib/a"), symlink("lib", "usr/lib")),
        tar(file("lib/b"), whiteout("lib/a")),
        tar(hardlink("lib/c", "lib/b")),
    ),
    "attributes": (
        tar(
            folder(".", mode=0o751, uid=9, mtime=44),
            file("cap", mode=0o755, pax_headers={"SCHILY.xattr.security.capability": CAPABILITY}),
            file("suid", mode=0o6755, uid=100_000, gid=5),
            symlink("link", "nowhere"),
        ),
        tar(file("other"), hardlink("cap2", "cap")),
    ),
    "the same layer twice": (
        tar(file("x", b"1")),
        tar(file("x", b"2"), file("y", b"2")),
        tar(file("x", b"1")),
    ),
    "no layer names the root": (tar(file("a/b")), tar(file("a/c"))),
}


@pytest.mark.parametrize("layers", LAYERS.values(), ids=LAYERS.keys())
def test_a_tree_is_the_one_that_overlayfs_shows(client, native, server, layers):
    reference = Built(*layers).push(server)
    expected = shown(client, client.images.pull(reference))
    assert differences(shown(native, native.images.pull(reference)), expected) == []


def random_layer(choose: random.Random) -> bytes:
    """Make a layer that names nothing twice, neither directly nor through a symlink: of two, stacks keep another than copies."""
    names = choose.choice(
        [["a", "b", "a/a", "a/b", "b/a", "b/b", "a/b/c", "a/b/d", "c/d/e", "l"], ["l/a", "l/b", "l/c/d"]]
    )
    # A whiteout where nothing lies beneath is a name without a file to overlayfs, but not in the top folder.
    entries = [whiteout(choose.choice("abcl")) for _ in range(choose.randrange(2))]
    for number, name in enumerate(choose.sample(names, choose.randrange(1, len(names)))):
        mode = choose.choice([0o644, 0o755, 0o4711, 0o2770])
        if name == "l":
            entries.append(symlink(name, choose.choice(["a", "/b", "c/d"])))
        elif choose.randrange(2):
            entries.append(file(name, bytes([number]) * 10, mode=mode, mtime=number, uid=number))
        else:
            entries.append(folder(name, mode=mode | 0o700, gid=number, mtime=number))
            if choose.randrange(3) == 0:
                entries.append(opaque(name))
    return tar(*entries)


@pytest.mark.parametrize("number", range(12))
def test_any_stack_of_layers_gives_one_tree(client, native, server, number):
    choose = random.Random(SEED + number)
    print(f"LAMELLA_SEED={SEED}")
    reference = Built(*(random_layer(choose) for _ in range(4))).push(server)
    try:
        expected = shown(client, client.images.pull(reference))
    except (
        lamella.errors.InvalidArgument
    ):  # symlinks that lead from layer to layer in a way that a stack cannot follow
        return
    assert differences(shown(native, native.images.pull(reference)), expected) == []


def test_a_hard_link_into_a_lower_layer_is_one_more_name_of_its_target(native, server):
    layers = tar(file("a"), hardlink("b", "a")), tar(hardlink("c", "b")), tar(hardlink("d", "a"))
    image = native.images.pull(Built(*layers).push(server))
    tree = shown(native, image)
    assert all(tree[name]["names"] == ["a", "b", "c", "d"] for name in "abcd")
    assert shown(native, image, 1)["a"]["names"] == ["a", "b", "c"]


def test_blobs_are_shared_and_folders_are_not(client, native, server):
    reference = runnable().push(server)
    image = client.images.pull(reference)
    server.requests.clear()
    again = native.images.pull(reference)
    assert again == image
    assert [request.path for request in server.requests if "/blobs/" in request.path] == []
    for each in (client, native):
        names = [info.name for info in each.snapshots.walk()]
        assert names == image.chain_ids
    server.requests.clear()
    assert native.images.pull(reference) == image
    assert len(server.requests) == 1


def test_images_share_the_folders_of_the_chain_that_they_have_in_common(native, server):
    base, middle = tar(file("a")), tar(file("b"))
    one = native.images.pull(Built(base, middle, tar(file("c"))).push(server, "one"))
    folders = {path.name for path in native.config.root.glob("snapshots/native/*")}
    two = native.images.pull(Built(base, middle, tar(file("d"))).push(server, "two"))
    new = {path.name for path in native.config.root.glob("snapshots/native/*")} - folders
    assert one.chain_ids[:2] == two.chain_ids[:2]
    assert [native.snapshots.layer_paths(two.chain_id)[0].parent.name] == list(new)
    other = native.images.pull(Built(middle, base).push(server, "other"))
    assert sorted(path.name for path in native.snapshots.layer_paths(other.chain_id)[0].iterdir()) == [
        "a",
        "b",
    ]
    assert len(list(native.config.root.glob("snapshots/native/*"))) == 6


@pytest.mark.parametrize("options", [{}, {"keep_layers": False}], ids=["kept", "discarded"])
def test_layers_are_rows_of_their_chains_and_all_goes_with_the_image(native, server, options):
    built = runnable()
    image = native.images.pull(built.push(server), **options)
    with native.database.read() as db:
        rows = db.execute("SELECT snapshotter, diff_id, chain_id, opaque_root FROM layers").fetchall()
    assert sorted(rows) == sorted(
        ("native", str(diff_id), str(chain_id), 1)
        for diff_id, chain_id in zip(image.diff_ids, image.chain_ids, strict=True)
    )
    kept = {layer.digest for layer in built.descriptors if native.content.exists(layer.digest)}
    assert kept == (set() if options else {layer.digest for layer in built.descriptors})
    if options:
        assert native.images.pull(image.name, keep_layers=False) == image
    native.images.remove(image.name)
    native.gc()
    assert list(native.config.root.glob("snapshots/native/*")) == []
    assert list(native.snapshots.walk()) == []


def test_an_image_that_is_here_is_unpacked_for_the_other_snapshotter(client, native, server):
    reference = runnable().push(server)
    image = client.images.pull(reference, unpack=False)
    with pytest.raises(lamella.errors.NotFound, match="not unpacked for the native snapshotter"):
        native.containers.create(reference, ["/bin/true"])
    native.images.unpack(reference)
    assert [info.name for info in native.snapshots.walk()] == image.chain_ids
    assert list(client.snapshots.walk()) == []


def test_a_pull_that_fails_leaves_nothing(native, server):
    built = Built(tar(file("a")), tar(whiteout("a")), tar(hardlink("b", "a")))
    with pytest.raises(lamella.errors.InvalidArgument):
        native.images.pull(built.push(server))
    assert native.images.list() == []
    native.gc()
    assert list(native.config.root.glob("snapshots/native/*")) == []


class TestContainers:
    @pytest.fixture
    def image(self, native, server) -> lamella.Image:
        return native.images.pull(runnable().push(server))

    def test_run_and_nothing_is_left(self, native, image):
        for options in ({}, {"read_only": True}):
            result = native.containers.run(image, ["/bin/same"], remove=True, timeout=30, **options)
            assert result.exit_code == 0
        assert [info.name for info in native.snapshots.walk()] == image.chain_ids

    def test_a_client_of_another_snapshotter_can_do_everything_with_it(self, client, native, image):
        native.containers.create(image, ["/bin/true"], name="box")
        box = client.containers.get("box")
        box.start()
        assert box.wait(timeout=30) == 0
        with native.snapshots.mounted("box") as top:
            (top / "etc/added").write_text("x")
            (top / "etc/passwd").unlink()
        changes = [str(change) for change in box.changes()]
        assert {"C /etc", "A /etc/added", "D /etc/passwd"} <= set(changes)
        assert not any("/bin" in change or "/data" in change for change in changes)
        made = box.commit("made:1")
        with native.snapshots.mounted(made.chain_id) as top:
            assert (top / "etc/added").exists()
            assert not (top / "etc/passwd").exists()
        client.images.unpack("made:1")
        assert differences(shown(client, made), shown(native, made)) == []
        box.remove()
        with pytest.raises(lamella.errors.NotFound):
            native.snapshots.stat("box")

    def test_the_command_line_does_the_same(self, native, image):
        program = Path(sys.executable).with_name("lamella")

        def run(*words: str) -> subprocess.CompletedProcess[str]:
            stores = ["--root", str(native.config.root), "--state", str(native.config.state)]
            command = [str(program), *stores, "--snapshotter", "native", *words]
            return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

        assert run("run", "--rm", image.name, "/bin/true").returncode == 0
        assert run("run", "--rm", "--read-only", image.name, "/bin/true").returncode == 0
        assert run("snapshots", "prepare", "work", image.chain_id).returncode == 0
        assert '"bind"' in run("snapshots", "mounts", "work", "--json").stdout
        assert run("snapshots", "diff", "work").stdout == ""
        assert image.chain_id[:19] in run("graph", image.name).stdout
        assert run("snapshots", "rm", "work").returncode == 0


def test_collection_takes_what_a_killed_unpack_left(native, server, monkeypatch):
    reference = runnable().push(server)
    native.images.pull(reference)
    left = native.config.root / "snapshots/native" / ("0" * 16)
    (left / "fs/etc").mkdir(parents=True)
    native.gc()
    assert not left.exists()


def damage(native: lamella.Client, image: lamella.Image, number: int) -> Path:
    path = native.snapshots.layer_paths(image.chain_ids[number])[0]
    (path / "etc/passwd").write_text("damaged")
    return path


@pytest.mark.parametrize("check_with", ["overlayfs", "native"])
def test_fsck_finds_a_damaged_folder_and_unpacks_it_anew_on_its_parent(client, native, server, check_with):
    image = native.images.pull(runnable().push(server))
    before = shown(native, image)
    folders = [native.snapshots.layer_paths(name)[0] for name in image.chain_ids]
    damage(native, image, 1)
    checking = {"overlayfs": client, "native": native}[check_with]
    assert checking.fsck().findings == []
    (found,) = checking.fsck(verify_layers=True).findings
    assert (found.kind, found.name) == ("damaged-layer", f"native/{folders[1].parent.name}")
    (mended,) = checking.fsck(repair=True, verify_layers=True).findings
    assert mended.mended
    assert checking.fsck(verify_layers=True).findings == []
    after = [native.snapshots.layer_paths(name)[0] for name in image.chain_ids]
    assert (after[0], after[2]) == (folders[0], folders[2])
    assert after[1] != folders[1]
    assert differences(before, shown(native, image)) == []


def test_fsck_unpacks_what_is_missing_anew(client, native, server):
    from lamella import _core

    image = native.images.pull(runnable().push(server))
    before = shown(native, image)
    for name in image.chain_ids[:2]:
        _core.remove_tree(str(native.snapshots.layer_paths(name)[0]))
    report = client.fsck(repair=True)
    assert [finding.kind for finding in report.findings] == ["missing-layer", "missing-layer"]
    assert all(finding.mended for finding in report.findings)
    assert native.fsck(verify_layers=True).findings == []
    assert differences(before, shown(native, image)) == []


def test_what_an_earlier_boot_left_unsynced_is_unpacked_anew_parents_first(native, server):
    built = runnable()
    image = native.images.pull(built.push(server))
    native.sync()
    folders = [native.snapshots.layer_paths(name)[0] for name in image.chain_ids]
    with native.database.write() as db:
        db.execute(
            "UPDATE layers SET synced = 0, boot_id = 'earlier' WHERE chain_id <> ?", (image.chain_ids[2],)
        )
    # The top one is whole by itself.
    assert native.snapshots.layer_paths(image.chain_id)[0] == folders[2]
    with pytest.raises(lamella.errors.FailedPrecondition):
        native.snapshots.view("view", image.chain_ids[0])
    native.images.unpack(image.name)
    after = [native.snapshots.layer_paths(name)[0] for name in image.chain_ids]
    assert after[2] == folders[2]
    assert not {after[0], after[1]} & set(folders)
    assert digest_of((after[1] / "bin/true").read_bytes()) == digest_of(
        (folders[2] / "bin/true").read_bytes()
    )


def test_fsck_names_a_copy_that_an_earlier_boot_left_unsynced(native, server):
    image = native.images.pull(runnable().push(server))
    for key in ("synced", "unsynced"):
        native.snapshots.prepare(key, image.chain_id)
        if key == "synced":
            native.sync()
    (folder,) = native.snapshots.layer_paths("unsynced")
    with native.database.write() as db:
        db.execute("UPDATE layers SET boot_id = 'earlier'")
    assert native.snapshots.mounts("unsynced")
    (found,) = native.fsck().findings
    assert (found.kind, found.name) == ("unverifiable", f"native/{folder.parent.name}")
    native.fsck(repair=True)
    assert native.fsck().findings == []


def test_disk_usage_counts_the_copies(native, server):
    image = native.images.pull(runnable(filling=b"x" * 100_000).push(server))
    native.snapshots.prepare("work", image.chain_id)
    usage = native.du()
    (work,) = usage.snapshots
    assert work.size >= 100_000
    assert native.snapshots.usage(image.chain_id).size >= 100_000
