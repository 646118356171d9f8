"""Bind mounts, parts of volumes, memory and devices: what docker's words do in a container."""

from __future__ import annotations

import os
import stat
import subprocess
from functools import partial
from pathlib import Path

import pytest

from lamella.errors import FailedPrecondition, InvalidArgument, LamellaError, NotFound

pytestmark = pytest.mark.privileged


@pytest.fixture
def sh(client, image):
    def call(script, **options):
        result = client.containers.run(image, ["/bin/sh", "-c", script], remove=True, **options)
        assert result.exit_code == 0, result
        return result.stdout.decode()

    return call


@pytest.fixture
def tree(tmp_path):
    """A folder with a mount in it, which spreads."""
    top = tmp_path / "tree"
    (top / "inner").mkdir(parents=True)
    (top / "file").write_text("file")
    subprocess.run(["mount", "--bind", top, top], check=True)
    subprocess.run(["mount", "--make-rshared", top], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "inner", top / "inner"], check=True)
    (top / "inner" / "mounted").write_text("mounted")
    yield top
    subprocess.run(["umount", "-R", top], check=True)


def bind(source, **fields):
    return {"type": "bind", "source": str(source), "target": "/x", **fields}


# Bind mounts


def test_what_is_mounted_beneath_the_source_comes_along_unless_it_is_not_asked_for(sh, tree):
    assert sh("ls /x/inner", mounts=[bind(tree)]) == "mounted\n"
    assert sh("ls /x/inner", mounts=[bind(tree, **{"bind-nonrecursive": True})]) == ""
    assert sh("ls /x/inner", mounts=[f"type=bind,source={tree},target=/x,bind-recursive=disabled"]) == ""


def test_read_only_holds_for_what_is_mounted_beneath_unless_it_is_to_stay_writable(sh, tree):
    script = "for at in /x /x/inner; do echo >$at/new && echo written || echo refused; done 2>/dev/null"
    assert sh(script, mounts=[bind(tree, readonly=True)]) == "refused\nrefused\n"
    assert sh(script, volumes=[f"{tree}:/x:ro"]) == "refused\nrefused\n"
    assert sh(script, mounts=[bind(tree, readonly=True, **{"bind-recursive": "writable"})]) == (
        "refused\nwritten\n"
    )
    assert sh(script, mounts=[bind(tree)]) == "written\nwritten\n"


def mounted_within(box, tree, name):
    """Mount something on the host while a container runs; tell whether it sees that."""
    (tree / name).mkdir()
    subprocess.run(["mount", "-t", "tmpfs", name, tree / name], check=True)
    (tree / name / "seen").touch()
    return box.exec(["/bin/ls", f"/x/{name}"]).stdout == b"seen\n"


@pytest.mark.parametrize(
    ("word", "seen"),
    [
        ("private", False),
        ("rprivate", False),
        ("slave", True),
        ("rslave", True),
        ("shared", True),
        ("rshared", True),
    ],
)
def test_what_the_host_mounts_later_is_seen_as_propagation_says(client, image, tree, word, seen):
    mount = bind(tree, **{"bind-propagation": word})
    box = client.containers.run(image, ["/bin/sleep", "600"], detach=True, mounts=[mount])
    try:
        assert mounted_within(box, tree, "later") == seen
    finally:
        box.remove(force=True)


@pytest.mark.parametrize(("word", "seen"), [("rslave", False), ("rshared", True)])
def test_what_a_container_mounts_is_seen_on_the_host_only_where_it_is_shared(sh, tree, word, seen):
    (tree / "made").mkdir()
    mount = bind(tree, **{"bind-propagation": word})
    options = {"mounts": [mount], "volumes": ["/usr:/usr:ro"], "privileged": True}
    sh("/usr/bin/mount -t tmpfs made /x/made && echo >/x/made/inside", **options)
    assert (tree / "made").is_mount() == seen
    assert (tree / "made" / "inside").exists() == seen


@pytest.mark.parametrize("word", ["rshared", "rslave"])
def test_a_source_that_does_not_spread_is_named(client, image, tmp_path, word):
    source = tmp_path / "private folder"
    source.mkdir()
    subprocess.run(["mount", "--bind", source, source], check=True)
    subprocess.run(["mount", "--make-rprivate", source], check=True)
    try:
        with pytest.raises(FailedPrecondition, match="is not shared") as caught:
            client.containers.create(image, ["/bin/true"], volumes=[f"{source}:/x:{word}"])
        assert str(source) in str(caught.value) and "--make-rshared" in caught.value.hint
    finally:
        subprocess.run(["umount", source], check=True)


def test_a_source_that_is_gone_when_the_container_starts_is_named_and_nothing_is_left(
    client, image, tmp_path
):
    source = tmp_path / "source"
    source.mkdir()
    box = client.containers.create(image, ["/bin/true"], volumes=[f"{source}:/x"])
    source.rmdir()
    with pytest.raises(NotFound, match=str(source)) as caught:
        box.start()
    assert "must exist" in caught.value.hint
    assert (box.status, source.exists()) == ("created", False)
    source.mkdir()
    box.start()
    assert box.wait(60) == 0
    box.remove()


def test_a_symlink_as_source_is_followed_at_each_start(client, image, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
    link = tmp_path / "link"
    link.symlink_to("one")
    box = client.containers.create(image, ["/bin/cat", "/x"], volumes=[f"{link}:/x"])
    for _ in range(2):
        box.start()
        assert box.wait(60) == 0
        link.unlink()
        link.symlink_to("two")
    assert [data for _, data in box.logs()] == [b"one", b"two"]
    box.remove()


# Parts of volumes


@pytest.fixture
def volume(client):
    made = client.volumes.create("data")
    (made.path / "part" / "deep").mkdir(parents=True)
    (made.path / "part" / "file").write_text("part")
    (made.path / "other").write_text("other")
    (made.path / "way").symlink_to("part/deep/..")
    (made.path / "out").symlink_to("../../../../../../../../etc")
    (made.path / "absolute").symlink_to("/etc")
    return made


def part(path, **fields):
    return {"type": "volume", "source": "data", "target": "/x", "volume-subpath": path, **fields}


def test_a_part_of_a_volume_is_mounted(client, image, sh, volume):
    assert sh("cat /x/file; echo new >/x/deep/new", mounts=[part("part")]) == "part"
    assert (volume.path / "part" / "deep" / "new").read_text() == "new\n"
    assert sh("cat /x/file", mounts=[part("way")]) == "part"
    assert sh("cat /x; echo more >>/x", mounts=[part("part/file")]) == "part"
    assert (volume.path / "part" / "file").read_text() == "partmore\n"
    assert sh("echo >/x/new 2>/dev/null || echo refused", mounts=[part("part", readonly=True)]) == "refused\n"
    with pytest.raises(FailedPrecondition, match="in use"):
        box = client.containers.create(image, ["/bin/true"], mounts=[part("part")])
        try:
            client.volumes.remove("data")
        finally:
            box.remove()


def test_a_part_is_looked_up_at_each_start(client, image, volume):
    box = client.containers.create(image, ["/bin/sh", "-c", "cat /x/file"], mounts=[part("part")])
    for text in ("first", "second"):
        (volume.path / "part").rename(volume.path / text)
        (volume.path / "part").mkdir()
        (volume.path / "part" / "file").write_text(text)
        box.start()
        assert box.wait(60) == 0
    assert [data for _, data in box.logs()] == [b"first", b"second"]
    box.remove()


@pytest.mark.parametrize("path", ["out", "absolute", "out/passwd", "absent", "other/x"])
def test_a_part_that_leads_out_or_nowhere_is_an_error(client, image, volume, path):
    with pytest.raises(LamellaError, match=path):
        client.containers.run(image, ["/bin/true"], remove=True, mounts=[part(path)])
    assert client.containers.list(all=True) == []


@pytest.mark.parametrize("state", ["created", "running"])
def test_files_are_copied_to_and_from_a_part(client, image, volume, tmp_path, state):
    (volume.path / "part" / "up").symlink_to("../../other")
    (tmp_path / "file").write_text("copied")
    box = client.containers.create(image, ["/bin/sleep", "600"], mounts=[part("part")])
    try:
        if state == "running":
            box.start()
        box.copy_in(tmp_path / "file", "/x/deep/new")
        assert (volume.path / "part" / "deep" / "new").read_text() == "copied"
        box.copy_out("/x/file", tmp_path / "out")
        assert (tmp_path / "out").read_text() == "part"
        with pytest.raises(NotFound):  # what is beside the part is not in the container
            box.copy_out("/x/up", tmp_path / "beside", follow_link=True)
    finally:
        box.remove(force=True)


def test_labels_are_those_of_a_volume_that_is_made(client, sh):
    sh("true", mounts=["type=volume,source=new,target=/x,volume-label=a=1"])
    assert client.volumes.get("new").labels == {"a": "1"}


# Memory


def test_a_folder_in_memory_has_its_size_owner_mode_and_number_of_files(sh):
    script = """stat -c '%u %g %a' /t; cd /t; : >1; : >2; (: >3) 2>/dev/null || echo full
    head -c 100000 /dev/zero 2>/dev/null >1 || echo full"""
    output = "5 6 700\nfull\nfull\n"
    sh = partial(sh, volumes=["/usr:/usr:ro"])
    assert sh(script, tmpfs=["/t:size=64k,mode=0700,uid=5,gid=6,nr_inodes=3"]) == output
    fields = "tmpfs-size=64k,tmpfs-mode=700,tmpfs-uid=5,tmpfs-gid=6,tmpfs-nr-inodes=3"
    assert sh(script, mounts=[f"type=tmpfs,target=/t,{fields}"]) == output
    assert sh("stat -c '%u %a' /t", tmpfs=["/t"]) == "0 1777\n"


def test_programs_in_memory_run_only_where_they_are_to(sh):
    script = "cat /bin/true >/t/true; chmod 755 /t/true; /t/true 2>/dev/null && echo ran || echo refused"
    assert sh(script, tmpfs=["/t"], volumes=["/usr:/usr:ro"]) == "refused\n"
    assert sh(script, tmpfs=["/t:exec"], volumes=["/usr:/usr:ro"]) == "ran\n"


# Devices


def test_a_device_may_be_used_as_its_permissions_say(sh):
    script = "(: </dev/one) && echo read; (: >/dev/one) && echo written"
    assert sh(f"{script}; true", devices=["/dev/null:/dev/one:rw"]) == "read\nwritten\n"
    assert sh(f"({script}) 2>/dev/null; true", devices=["/dev/zero:/dev/one:rw"]) == "read\nwritten\n"


def loop_devices():
    return [
        f"/dev/{name}"
        for name in sorted(os.listdir("/dev"))
        if name.startswith("loop") and name[4:].isdigit()
    ]


@pytest.mark.skipif(not loop_devices(), reason="needs a loop device")
def test_what_its_permissions_leave_out_is_refused_by_the_kernel(sh):
    node = loop_devices()[0]
    script = "(: </dev/disk) 2>/dev/null && echo read; (: >>/dev/disk) 2>/dev/null && echo written; true"
    assert sh(script, devices=[f"{node}:/dev/disk:r"]) == "read\n"
    assert sh(script, devices=[f"{node}:/dev/disk:rw"]) == "read\nwritten\n"


def test_a_folder_of_devices_is_there_with_all_nodes(sh, tmp_path):
    (tmp_path / "cards" / "deep").mkdir(parents=True)
    os.mknod(tmp_path / "cards" / "zero", stat.S_IFCHR | 0o640, os.makedev(1, 5))
    os.mknod(tmp_path / "cards" / "deep" / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    script = "stat -c %a /dev/cards/zero; head -c 2 /dev/cards/zero | wc -c; echo x >/dev/cards/deep/null"
    options = {"devices": [f"{tmp_path}/cards:/dev/cards"], "volumes": ["/usr:/usr:ro"]}
    assert sh(script, **options) == "640\n2\n"


@pytest.mark.skipif(not loop_devices(), reason="needs a loop device")
def test_a_rule_allows_what_a_bind_mount_shows_and_nothing_that_is_made_inside(sh):
    number = Path(loop_devices()[0]).stat().st_rdev
    rule = f"b {os.major(number)}:* r"
    script = f"""(: </x/loop{os.minor(number)}) 2>/dev/null && echo shown
    mknod /made b {os.major(number)} {os.minor(number)} && (: </made) 2>/dev/null || echo useless"""
    volumes = ["/dev:/x", "/usr:/usr:ro"]
    assert sh(script, volumes=volumes) == "useless\n"
    assert sh(script, volumes=volumes, device_cgroup_rules=[rule]) == "shown\nuseless\n"
    with pytest.raises(InvalidArgument):
        sh(script, device_cgroup_rules=["b 7:0 execute"])
