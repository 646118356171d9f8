"""What containers and snapshots change: listed, packed as a layer, and made into an image."""

from __future__ import annotations

import contextlib
import gzip
import os
import shutil
import socket
import subprocess
import tarfile
from pathlib import Path

import pytest

import lamella
from lamella import _core, oci
from lamella.digest import digest_of
from lamella.errors import FailedPrecondition, InvalidArgument, NotFound
from lamella.transfer.commit import pack_layer

pytestmark = pytest.mark.privileged

SCRIPT = """
echo new > /new && mkdir -p /made/deep && echo x > /made/deep/file && chmod 4755 /new
rm /etc/passwd && mkdir /etc/passwd && echo changed >> /etc/group
"""


@pytest.fixture
def box(client, image):
    box = client.containers.create(image, ["/bin/sleep", "300"], name="box")
    box.start()
    try:
        box.exec(["/bin/sh", "-c", SCRIPT], check=True, timeout=30)
        root = Path(f"/proc/{box.pid}/root")
        os.link(root / "new", root / "again")
        (root / "link").symlink_to("/new")
        yield box
    finally:
        box.remove(force=True)


def upper(client, key):
    return client.snapshots.layer_paths(key)[0]


def output(client, image, *command):
    result = client.containers.run(image, list(command), remove=True, timeout=30)
    assert result.exit_code == 0, result
    return result.stdout.decode()


def test_changes_are_named_as_docker_diff_names_them(client, box):
    seen = {str(change) for change in box.changes()}
    assert {"A /new", "A /again", "A /link", "A /made", "A /made/deep", "A /made/deep/file"} <= seen
    assert {"C /etc", "C /etc/passwd", "C /etc/group"} <= seen
    box.exec(["/bin/sh", "-c", "rm -r /made /etc/group"], check=True)
    seen = {str(change) for change in box.changes()}
    assert "D /etc/group" in seen
    assert not any("/made" in change for change in seen)


def test_a_view_changes_nothing_and_a_committed_snapshot_what_its_layer_has(client, image):
    client.snapshots.view("look", image.chain_id)
    assert client.snapshots.changes("look") == []
    with pytest.raises(FailedPrecondition, match="view"), client.snapshots.diff("look"):
        pass
    with pytest.raises(NotFound):
        client.snapshots.changes("absent")
    changes = client.snapshots.changes(image.chain_id)
    with (
        gzip.open(client.content.path(image.layers[-1].digest)) as file,
        tarfile.open(fileobj=file) as archive,
    ):
        names = {f"/{name.strip('./')}" for name in archive.getnames() if ".wh." not in name}
    assert names <= {change.path for change in changes}


def test_what_no_layer_can_hold_is_left_out_and_named(client, image, caplog):
    client.snapshots.prepare("work", image.chain_id)
    with contextlib.chdir(upper(client, "work")), socket.socket(socket.AF_UNIX) as listener:
        listener.bind("door")
        Path("file").touch()
    note = "'door' is a socket and was left out"
    assert [str(change) for change in client.snapshots.changes("work")] == ["C /", "A /file"]
    assert caplog.messages == [f"snapshot work: {note}"]
    assert pack_layer(client, "work").notes == [note]


def test_attributes_that_are_not_the_stores_own_mean_nothing(client, image, tmp_path):
    """A program in a container may set user.overlay.*; the mount goes on showing what lies beneath, and so does all else."""
    client.snapshots.prepare("work", image.chain_id)
    with client.snapshots.mounted("work") as folder:
        os.setxattr(folder / "etc", "user.overlay.opaque", b"y")
        (folder / "group").touch()
        os.setxattr(folder / "group", "user.overlay.whiteout", b"y")
        assert (folder / "etc" / "passwd").exists()
    assert "A /group" in [str(change) for change in client.snapshots.changes("work")]
    layers = [str(path) for path in client.snapshots.layer_paths("work")]
    assert _core.read_file(layers, "/etc/passwd", 1 << 20) is not None
    with client.snapshots.diff("work") as changes:
        changes.pack(str(tmp_path / "layer"))
    with tarfile.open(tmp_path / "layer") as archive:
        assert [name for name in archive.getnames() if ".wh." in name] == []


def test_a_layer_of_a_snapshot_is_the_same_twice_and_gnu_tar_reads_it(client, image, tmp_path):
    client.snapshots.prepare("work", image.chain_id)
    folder = upper(client, "work")
    (folder / "file").write_bytes(b"x" * 3_000_000)
    packed = []
    for name, threads in (("one", 1), ("two", 3)):
        with client.snapshots.diff("work") as changes:
            packed.append(changes.pack(str(tmp_path / name), threads=threads))
    one, two = packed
    assert (one.digest, one.diff_id) == (two.digest, two.diff_id)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert one.digest == digest_of((tmp_path / "one").read_bytes())
    assert one.diff_id == digest_of(gzip.decompress((tmp_path / "one").read_bytes()))
    listed = subprocess.run(["tar", "-tzf", tmp_path / "one"], capture_output=True, text=True, check=True)
    assert listed.stdout.split() == ["./", "file"]


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
def test_a_committed_image_runs_and_shows_what_the_container_had(client, image, box, compression):
    new = box.commit("made:1", message="tools", author="A. Uthor", compression=compression)
    assert box.status == "running"
    assert new.diff_ids[:-1] == image.diff_ids
    assert new.layers[:-1] == image.layers
    found = output(
        client,
        "made:1",
        "/bin/sh",
        "-c",
        "cat /new /link; ls -ld /new /etc/passwd; cat /etc/group; ls /made/deep",
    )
    assert found.startswith("new\nnew\ndrwxr-xr-x")
    assert "-rwsr-xr-x 2" in found
    assert "changed\n" in found
    assert found.endswith("file\n")
    assert output(client, image, "/bin/sh", "-c", "ls /").count("made") == 0
    step = new.config.history[-1]
    assert (step["comment"], step["author"]) == ("tools", "A. Uthor")
    assert step["created_by"] == "/bin/sleep 300"
    assert client.fsck().findings == []


def test_instructions_change_the_config_and_the_rest_stays(client, image, box):
    new = box.commit(
        "made:2",
        changes=['CMD ["/bin/cat", "/new"]', "ENTRYPOINT []", "ENV A=b C='d e'", "LABEL x=y", "USER 5:6"],
    )
    assert client.containers.run(new, remove=True).stdout == b"new\n"
    assert new.config.run.labels["x"] == "y"
    assert new.config.run.user == "5:6"
    assert {"A=b", "C=d e"} <= set(new.config.run.env)
    assert set(image.config.run.env or []) <= set(new.config.run.env)
    with pytest.raises(InvalidArgument, match="RUN"):
        box.commit("made:3", changes=["RUN true"])
    with pytest.raises(NotFound):
        client.images.get("made:3")


def test_an_image_of_an_image_and_after_gc_everything_is_there(client, image, box):
    box.commit("made:1")
    second = client.containers.create("made:1", ["/bin/sh", "-c", "rm /new; echo two > /two"])
    second.start()
    assert second.wait(30) == 0
    newest = second.commit("made:2")
    second.remove()
    client.images.remove("made:1")
    client.images.remove(image.name)
    client.gc()
    assert output(client, "made:2", "/bin/sh", "-c", "cat /two /again; test ! -e /new") == "two\nnew\n"
    assert len(newest.diff_ids) == len(image.diff_ids) + 2
    assert client.content.ingests() == []
    assert client.leases.list() == []


def test_a_container_whose_image_was_pulled_anew_is_committed_onto_the_one_it_was_made_from(
    client, image, box
):
    client.images.put(image.name, box.commit("made:1").target)
    assert box.commit("made:2").diff_ids[:-1] == image.diff_ids
    for name in (image.name, "made:1", "made:2"):
        client.images.remove(name)
    assert box.commit("made:3").diff_ids[:-1] == image.diff_ids
    client.images.remove("made:3")
    client.gc()
    with pytest.raises(NotFound, match="machine"):
        box.commit("made:4")


def test_an_image_without_compressed_layers_stays_one(client, small_image, box):
    image = client.images.pull(small_image, keep_layers=False)
    new = box.commit("made:1")
    assert image.layers_discarded
    assert new.layers_discarded
    client.gc()
    assert output(client, "made:1", "/bin/cat", "/new") == "new\n"
    assert client.fsck().findings == []


def test_a_committed_image_is_one_for_another_store_and_for_skopeo(client, image, box, tmp_path):
    if shutil.which("skopeo") is None:
        pytest.skip("needs skopeo on PATH")
    new = box.commit("made:1")
    layout = tmp_path / "layout"
    (layout / "blobs").mkdir(parents=True)
    shutil.copytree(client.config.root / "blobs", layout / "blobs", dirs_exist_ok=True)
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    target = {"mediaType": oci.OCI_MANIFEST, "digest": new.digest, "size": new.target.size}
    (layout / "index.json").write_text(
        lamella.oci.encode({"schemaVersion": 2, "manifests": [target]}).decode()
    )
    subprocess.run(
        ["skopeo", "--insecure-policy", "inspect", f"oci:{layout}"], check=True, capture_output=True
    )
    with lamella.registry.server.RegistryServer() as server:
        subprocess.run(
            [
                "skopeo",
                "--insecure-policy",
                "copy",
                "-q",
                "--dest-tls-verify=false",
                f"oci:{layout}",
                f"docker://{server.address}/made:1",
            ],
            check=True,
        )
        with lamella.Client(tmp_path / "other", tmp_path / "other-state") as other:
            pulled = other.images.pull(f"{server.address}/made:1")
            assert pulled.digest == new.digest
            assert other.containers.run(pulled, ["/bin/cat", "/new"], remove=True).stdout == b"new\n"
