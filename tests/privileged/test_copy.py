"""Copying into containers and out of them: docker's rules, in every state, and no way out."""

from __future__ import annotations

import io
import itertools
import os
import shutil
import stat
import subprocess
import tarfile
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from lamella import _core
from lamella.containers.files import put_archive_from
from lamella.errors import (
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    LamellaError,
    NotFound,
)
from lamella.labels import GID_MAPPING, UID_MAPPING

pytestmark = [pytest.mark.privileged, pytest.mark.rootless]

STATES = ("created", "running", "paused", "stopped")


@pytest.fixture
def make_box(client, image):
    made = []

    def make(state="running", command=("/bin/sleep", "600"), **options):
        box = client.containers.create(image, list(command), **options)
        made.append(box)
        if state != "created":
            box.start()
        if state == "paused":
            box.pause()
        if state == "stopped":
            box.kill()
            box.wait(60)
        return box

    yield make
    for box in made:
        box.remove(force=True, volumes=True)


@pytest.fixture
def box(make_box):
    return make_box()


@pytest.fixture
def here(tmp_path):
    """A folder of this machine with a file, and a folder with a file in it."""
    top = tmp_path / "here"
    (top / "folder" / "sub").mkdir(parents=True)
    (top / "file").write_text("file")
    (top / "folder" / "inner").write_text("inner")
    (top / "folder" / "sub" / "deep").write_text("deep")
    return top


def tar_of(*entries):
    """Make an archive of (name or TarInfo, bytes)."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for entry, data in entries:
            info = entry if isinstance(entry, tarfile.TarInfo) else tarfile.TarInfo(entry)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def read(box, path):
    pieces, _ = box.get_archive(path)
    with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as archive:
        member = archive.next()
        return archive.extractfile(member).read()


def names(box, path):
    pieces, _ = box.get_archive(path)
    with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as archive:
        return archive.getnames()


# In every state


@pytest.mark.parametrize(
    "state",
    [pytest.param(state, marks=pytest.mark.needs_root if state == "paused" else ()) for state in STATES],
)
def test_files_go_in_and_out_whatever_the_container_does(make_box, here, tmp_path, state):
    box = make_box(state)
    box.copy_in(here / "folder", "/srv")
    assert names(box, "/srv") == ["srv", "srv/inner", "srv/sub", "srv/sub/deep"]
    box.copy_out("/srv", tmp_path / "out")
    assert (tmp_path / "out" / "sub" / "deep").read_text() == "deep"


@pytest.mark.parametrize("state", ["running", "stopped"])
def test_what_is_mounted_in_a_container_is_copied_to_and_from(client, make_box, tmp_path, here, state):
    shared = tmp_path / "shared"
    shared.mkdir()
    box = make_box(state, volumes=["data:/data", f"{shared}:/shared", f"{shared}:/ro:ro"], tmpfs=["/tmpfs"])
    box.copy_in(here / "file", "/data/")
    box.copy_in(here / "file", "/shared/../shared/x")
    assert (client.volumes.get("data").path / "file").read_text() == (shared / "x").read_text() == "file"
    assert read(box, "/data/file") == read(box, "/ro/x") == b"file"
    with pytest.raises(LamellaError, match=r"[Rr]ead-only"):
        box.copy_in(here / "file", "/ro/y")
    if state == "running":
        box.copy_in(here / "file", "/tmpfs/x")
        assert box.exec(["/bin/cat", "/tmpfs/x"], check=True).stdout == b"file"
    else:
        with pytest.raises(FailedPrecondition, match="only while the container runs"):
            box.copy_in(here / "file", "/tmpfs/x")


@pytest.mark.parametrize("state", ["running", "stopped"])
def test_a_read_only_root_takes_nothing(make_box, here, state):
    with pytest.raises(LamellaError, match=r"[Rr]ead-only"):
        make_box(state, read_only=True).copy_in(here / "file", "/x")


# docker's table


def test_a_file_becomes_a_file_of_the_targets_name(box, here):
    box.copy_in(here / "file", "/new")
    assert read(box, "/new") == b"file"


def test_a_file_is_not_copied_to_a_missing_folder(box, here, tmp_path):
    for target in ("/new/", "/no/such/new"):
        with pytest.raises(NotFound):
            box.copy_in(here / "file", target)
        with pytest.raises(NotFound):
            box.copy_out("/etc/passwd", f"{tmp_path}{target}")


def test_a_file_replaces_a_file(box, here, tmp_path):
    box.put_archive("/", tar_of(("there", b"longer than what comes")))
    box.copy_in(here / "file", "/there")
    assert read(box, "/there") == b"file"
    (tmp_path / "there").write_text("longer than what comes")
    box.copy_out("/there", tmp_path / "there")
    assert (tmp_path / "there").read_text() == "file"


def test_a_file_goes_into_a_folder_by_its_own_name(box, here, tmp_path):
    box.copy_in(here / "file", "/etc")
    assert read(box, "/etc/file") == b"file"
    (tmp_path / "in").mkdir()
    box.copy_out("/etc/file", tmp_path / "in")
    assert (tmp_path / "in" / "file").read_text() == "file"


def test_a_folder_becomes_a_copy_of_it_where_nothing_is(box, here, tmp_path):
    for source, target in ((here / "folder", "/a"), (f"{here}/folder/.", "/b"), (f"{here}/folder/", "/c/")):
        box.copy_in(source, target)
        name = target.strip("/")
        assert names(box, target) == [name, f"{name}/inner", f"{name}/sub", f"{name}/sub/deep"]
    box.copy_out("/a", tmp_path / "copy")
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == ["inner", "sub"]


def test_a_folder_does_not_replace_a_file(box, here, tmp_path):
    with pytest.raises(FailedPrecondition):
        box.copy_in(here / "folder", "/etc/passwd")
    (tmp_path / "plain").write_text("")
    with pytest.raises(FailedPrecondition):
        box.copy_out("/etc", tmp_path / "plain")


def test_a_folder_goes_into_a_folder_by_its_own_name_or_with_a_dot_its_content(box, here, tmp_path):
    box.put_archive("/", tar_of(("into/kept", b"kept")))
    box.copy_in(here / "folder", "/into")
    assert read(box, "/into/folder/sub/deep") == b"deep"
    box.copy_in(f"{here}/folder/.", "/into")
    assert read(box, "/into/sub/deep") == b"deep"
    assert read(box, "/into/kept") == b"kept"
    (tmp_path / "in").mkdir()
    box.copy_out("/into", tmp_path / "in")
    box.copy_out("/into/.", tmp_path / "in")
    assert (tmp_path / "in" / "into" / "kept").read_text() == (tmp_path / "in" / "kept").read_text() == "kept"


def test_a_folder_in_the_way_of_a_file_and_the_reverse_are_refused_deeper_down_too(box, here):
    box.put_archive("/", tar_of(("into/folder/inner/x", b"")))
    with pytest.raises(FailedPrecondition, match="a folder is there"):
        box.copy_in(here / "folder", "/into")
    box.put_archive("/", tar_of(("other/folder/sub", b"")))
    with pytest.raises(FailedPrecondition, match="something else is there"):
        box.copy_in(here / "folder", "/other")


def test_a_symlink_is_copied_as_one_unless_it_is_followed(box, here, tmp_path):
    (here / "link").symlink_to("file")
    box.copy_in(here / "link", "/link")
    assert box.get_archive("/link")[1].link_target == "file"
    box.copy_in(here / "link", "/followed", follow_link=True)
    assert read(box, "/followed") == b"file"
    box.copy_in(here / "file", "/file")
    box.copy_out("/link", tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    box.copy_out("/link", tmp_path / "plain", follow_link=True)
    assert (tmp_path / "plain").read_text() == "file"


def test_a_target_that_is_a_symlink_leads_on_inside_the_container(box, here, tmp_path):
    (tmp_path / "outside").mkdir()
    box.exec(["/bin/sh", "-c", "mkdir /real"], check=True)
    link = tarfile.TarInfo("way")
    link.type, link.linkname = tarfile.SYMTYPE, "/real"
    out = tarfile.TarInfo("out")
    out.type, out.linkname = tarfile.SYMTYPE, str(tmp_path / "outside")
    up = tarfile.TarInfo("up")
    up.type, up.linkname = tarfile.SYMTYPE, f"../../../../../../..{tmp_path}/outside"
    box.put_archive("/", tar_of((link, b""), (out, b""), (up, b"")))
    box.copy_in(here / "file", "/way/x")
    assert read(box, "/real/x") == b"file"
    for name in ("out", "up"):
        with pytest.raises(NotFound):
            box.copy_in(here / "file", f"/{name}/x")
        with pytest.raises(NotFound):
            box.get_archive(f"/{name}/x")
    box.put_archive("/", tar_of(("way/y", b"through")))
    assert read(box, "/real/y") == b"through"
    assert list((tmp_path / "outside").iterdir()) == []


# What is kept


@pytest.mark.needs_root
def test_owners_are_roots_or_the_callers_unless_they_are_kept(box, here, tmp_path):
    os.chown(here / "file", 1234, 5678)
    (here / "file").chmod(0o4755)
    box.copy_in(here / "file", "/plain")
    found = box.get_archive("/plain")[1]
    assert (found.uid, found.gid, stat.S_IMODE(found.mode)) == (
        0,
        0,
        0o755,
    )  # the set-user-ID bit was another's
    box.copy_in(here / "file", "/kept", archive=True)
    found = box.get_archive("/kept")[1]
    assert (found.uid, found.gid, stat.S_IMODE(found.mode)) == (1234, 5678, 0o4755)
    box.copy_out("/kept", tmp_path / "mine")
    status = (tmp_path / "mine").stat()
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (os.geteuid(), 0o755)
    box.copy_out("/kept", tmp_path / "theirs", archive=True)
    assert (tmp_path / "theirs").stat().st_uid == 1234


@pytest.mark.needs_ids
def test_links_attributes_holes_times_and_fifos_are_kept_and_sockets_left_out(box, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_text("x")
    (source / "hard").hardlink_to(source / "file")
    os.setxattr(source / "file", "user.mark", b"1")
    os.mkfifo(source / "fifo")
    with (source / "holes").open("wb") as file:
        file.truncate(1 << 30)
        file.seek(1 << 29)
        file.write(b"middle")
    os.utime(source / "file", ns=(1_000_000_001, 2_000_000_003))
    os.utime(source, ns=(5, 7_000_000_000))
    box.copy_in(source, "/kept", archive=True)
    box.copy_out("/kept", tmp_path / "back", archive=True)
    back = tmp_path / "back"
    assert back.stat().st_mtime_ns == 7_000_000_000
    assert (back / "file").samefile(back / "hard")
    assert (back / "file").stat().st_mtime_ns == 2_000_000_003
    assert os.getxattr(back / "file", "user.mark") == b"1"
    assert stat.S_ISFIFO((back / "fifo").stat().st_mode)
    assert (back / "holes").stat().st_blocks * 512 < 10 << 20
    subprocess.run(["cmp", source / "holes", back / "holes"], check=True)


@pytest.mark.needs_root
def test_device_nodes_of_a_container_do_not_come_out(box, tmp_path):
    node = tarfile.TarInfo("node")
    node.type, node.devmajor, node.devminor = tarfile.CHRTYPE, 1, 3
    box.put_archive("/", tar_of((node, b""), ("beside", b"x")))
    assert stat.S_ISCHR(box.get_archive("/node")[1].mode)
    (tmp_path / "out").mkdir()
    box.copy_out("/node", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_gnu_tar_reads_what_comes_out_and_is_read(box, here, tmp_path):
    made = subprocess.run(["tar", "-C", here, "-c", "."], capture_output=True, check=True).stdout
    box.exec(["/bin/sh", "-c", "mkdir /srv"], check=True)
    box.put_archive("/srv", made)
    pieces, _ = box.get_archive("/srv/.")
    (tmp_path / "out").mkdir()
    subprocess.run(["tar", "-C", tmp_path / "out", "-x"], input=b"".join(pieces), check=True)
    assert (tmp_path / "out" / "folder" / "sub" / "deep").read_text() == "deep"


@pytest.mark.needs_ids
def test_data_may_be_bytes_a_file_or_pieces(box, tmp_path):
    data = tar_of(("a", b"1" * 100_000))
    (tmp_path / "archive").write_bytes(data)
    with (tmp_path / "archive").open("rb") as file:
        box.put_archive("/", file)
    box.put_archive("/", iter([data[:700], data[700:]]), owner=(7, 8))
    found = box.get_archive("/a")[1]
    assert (found.size, found.uid, found.gid) == (100_000, 7, 8)


# What is refused


def test_errors_of_archives_and_of_those_who_give_them_are_raised(box):
    with pytest.raises(LamellaError):
        box.put_archive("/", b"x" * 10_000)
    with pytest.raises(DataLoss):
        box.put_archive("/", tar_of(("a", b"1" * 100_000))[:5000])
    for path in ("../out", "a/../../out"):
        with pytest.raises(InvalidArgument):
            box.put_archive("/", tar_of((path, b"")))

    def broken():
        yield tar_of(("a", b"1" * 100_000))[:5000]
        raise ValueError("of the giver")

    with pytest.raises(ValueError, match="of the giver"):
        box.put_archive("/", broken())
    with pytest.raises(NotFound):
        box.put_archive("/absent", tar_of(("a", b"")))
    with pytest.raises(NotFound):
        box.get_archive("/absent")


def test_an_archive_that_is_not_read_to_its_end_leaves_nothing(client, make_box):
    box = make_box("created")
    box.put_archive("/", tar_of(("big", bytes(10_000_000))))
    before = len(os.listdir("/proc/self/fd"))
    with box.get_archive("/big")[0] as pieces:
        next(pieces)
        box.put_archive("/", tar_of(("beside", b"x")))  # nobody waits for who reads
    pieces = box.get_archive("/big")[0]
    del pieces
    assert len(os.listdir("/proc/self/fd")) == before
    assert not os.listdir(client.config.state / "mounts")
    box.start()


def test_a_fifo_does_not_hang_a_copy_and_devices_are_not_opened(box, tmp_path):
    fifo = tarfile.TarInfo("odd/fifo")
    fifo.type = tarfile.FIFOTYPE
    box.put_archive("/", tar_of((fifo, b"")))
    assert names(box, "/odd") == ["odd", "odd/fifo"]
    box.copy_out("/odd/fifo", tmp_path / "fifo")
    assert names(box, "/dev/null") == ["null"]


def test_a_path_through_proc_leads_nowhere(box):
    for path in ("/proc/1/root/etc/passwd", "/proc/1/cwd/etc/passwd", "/proc/1/fd/0"):
        with pytest.raises(LamellaError):
            b"".join(box.get_archive(path, follow_link=True)[0])


# Races

SWAP = r"""
#include <stdio.h>
#include <unistd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <fcntl.h>
#include <linux/fs.h>
int main(int argc, char **argv) {
    mkdir("/race", 0755); mkdir("/race/way", 0755); mkdir("/race/way/deep", 0755);
    symlink(argv[1], "/race/link");
    for (;;) syscall(SYS_renameat2, AT_FDCWD, "/race/way", AT_FDCWD, "/race/link", RENAME_EXCHANGE);
}
"""


@pytest.fixture(scope="module")
def swapper(tmp_path_factory):
    """A static program that swaps a folder for a symlink as fast as it can."""
    folder = tmp_path_factory.mktemp("swap")
    (folder / "swap.c").write_text(SWAP)
    compiler = shutil.which("cc") or pytest.skip("needs cc on PATH")
    subprocess.run([compiler, "-O1", "-static", "-o", folder / "swap", folder / "swap.c"], check=True)
    return folder / "swap"


def test_cve_2026_42306_a_container_that_swaps_paths_gains_nothing(make_box, swapper, tmp_path, here):
    """docker cp looked a path up first and mounted or wrote there afterwards, when a symlink had taken its place."""
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "secret").write_text("of the host")
    box = make_box("created", command=["/swap", str(outside)])
    box.copy_in(swapper, "/swap")
    box.start()
    before = sorted(str(path) for path in outside.rglob("*"))
    tried = written = 0
    end = time.monotonic() + 6
    # However slow the machine is: both sides of the race are seen.
    while time.monotonic() < end or (min(tried, written) <= 5 and time.monotonic() < end + 120):
        tried += 1
        out = tmp_path / f"out{tried}"
        for action in (
            partial(box.copy_in, here / "file", "/race/way/x"),
            partial(box.copy_in, here / "folder", "/race/way/deep"),
            partial(box.put_archive, "/race", tar_of(("way/deep/y", b"y"), ("way/z", b"z"))),
            partial(read, box, "/race/way/secret"),
            partial(box.copy_out, "/race/way", out),
        ):
            with suppress(LamellaError):
                action()
                written += 1
        assert sorted(str(path) for path in outside.rglob("*")) == before
        # What came is the folder, or the symlink itself.
        assert out.is_symlink() or not any(path.name == "secret" for path in out.rglob("*"))
    assert tried > 5
    assert written > 5


def test_a_tree_that_changes_all_the_time_can_be_copied_out_and_stays_in_its_folder(
    make_box, swapper, tmp_path
):
    outside = tmp_path / "outside"
    outside.mkdir()
    box = make_box("created", command=["/swap", str(outside)])
    box.copy_in(swapper, "/swap")
    box.start()
    done = []
    end = time.monotonic() + 120
    for turn in itertools.count():
        if turn >= 10 and (done or time.monotonic() > end):
            break
        target = tmp_path / f"copy{turn}"
        try:
            box.copy_out("/race", target)
        except LamellaError:
            continue
        done.append(target)
    assert done
    assert list(outside.iterdir()) == []


def test_nobody_starts_a_container_while_its_stopped_root_is_written(make_box, here):
    box = make_box("created")
    thread = threading.Thread(target=box.start)

    def pieces():
        yield tar_of(("x", b"x"))
        thread.start()
        time.sleep(0.3)
        assert box.status == "created"

    box.put_archive("/", pieces())
    thread.join()
    assert box.status == "running"


def test_large_files_take_no_memory(box, tmp_path):
    with (tmp_path / "large").open("wb") as file:
        file.truncate(3 << 30)
    before = _peak()
    box.copy_in(tmp_path / "large", "/large")
    assert _peak() - before < 64 << 20
    assert box.get_archive("/large")[1].size == 3 << 30


def _peak():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


# Export


@pytest.mark.parametrize("state", ["created", "running", "stopped"])
def test_export_gives_the_root_without_what_is_mounted_and_the_same_bytes_again(make_box, here, state):
    box = make_box(state, volumes=["data:/data"])
    box.copy_in(here / "file", "/made")
    box.copy_in(here / "file", "/data/x")
    data = b"".join(box.export())
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = archive.getnames()
        assert archive.extractfile("made").read() == b"file"
    assert "data/x" not in members
    assert not any(name.startswith("proc/") for name in members)
    assert members == sorted(members, key=lambda name: name.split("/")) if members[0] != "." else True
    assert b"".join(box.export()) == data


def test_the_core_refuses_symlinks_where_it_is_told_to(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    files = _core.Files(str(tmp_path), symlinks=False)
    reading, writing = os.pipe()
    try:
        os.write(writing, tar_of(("link/x", b"")))
        os.close(writing)
        with pytest.raises(LamellaError):
            files.unpack(".", reading)
    finally:
        os.close(reading)
    assert list((tmp_path / "real").iterdir()) == []


# Time-outs


@pytest.mark.parametrize("state", ["running", "stopped"])
def test_a_copy_that_takes_too_long_is_given_up_and_holds_nothing_up(client, make_box, tmp_path, state):
    box = make_box(state)

    def endless(ready):
        yield tar_of(("early", b"x"), ("late", bytes(1 << 20)))[: 1 << 16]
        ready.wait(60)  # as a network that gives nothing any more

    for seconds in (0.5, 20):  # the second for a machine that has not come to what was early
        ready = threading.Event()
        with pytest.raises(DeadlineExceeded, match="not complete in time"):
            box.put_archive("/", endless(ready), timeout=seconds)
        ready.set()
        with suppress(NotFound):
            early = read(box, "/early")
            break
    assert early == b"x"
    reading, writing = os.pipe()
    try:
        with pytest.raises(DeadlineExceeded):
            put_archive_from(box, "/", reading, timeout=0.2)
    finally:
        os.close(reading)
        os.close(writing)
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(DeadlineExceeded):
        box.copy_in(tmp_path / "large", "/large", timeout=0.3)
    box.put_archive("/", tar_of(("later", b"y")), timeout=60)
    assert not list(client.config.state.glob("mounts/*"))
    for nonsense in (0, -1, float("inf"), float("nan")):
        with pytest.raises(InvalidArgument, match="timeout"):
            box.copy_in(tmp_path / "large", "/large", timeout=nonsense)


def test_an_archive_that_is_read_too_slowly_ends_with_an_error(box):
    box.put_archive("/", tar_of(("big", bytes(3 << 20))))
    pieces, _ = box.get_archive("/big", timeout=5)
    next(pieces)
    time.sleep(5.2)
    with pytest.raises(DeadlineExceeded):
        b"".join(pieces)


# Names


@pytest.mark.parametrize("state", ["running", "stopped"])
def test_names_may_be_any_bytes(make_box, tmp_path, state):
    box = make_box(state)
    strange = [b"new\nline", b"not \xff utf-8", b"-rf", b"back\\slash", "\u00fc".encode(), b"x" * 255, b" "]
    source = os.fsencode(tmp_path / "source")
    (tmp_path / "source").mkdir()
    for name in strange:
        with open(os.path.join(source, name), "wb") as file:  # noqa: PTH118, PTH123 (bytes)
            file.write(name)
    box.copy_in(tmp_path / "source", "/strange")
    box.copy_out("/strange", tmp_path / "back")
    back = os.fsencode(tmp_path / "back")
    assert sorted(os.listdir(back)) == sorted(strange)
    for name in strange:
        with open(os.path.join(back, name), "rb") as file:  # noqa: PTH118, PTH123
            assert file.read() == name
    assert read(box, "/strange/" + os.fsdecode(strange[1])) == strange[1]


# Mapped ids

MAP = "0:100000:65536"


@pytest.mark.needs_root  # ids of the container's own
def test_owners_are_those_that_a_container_with_mapped_ids_knows(client, image, tmp_path):
    client.snapshots.prepare("mapped", image.chain_id, {UID_MAPPING: MAP, GID_MAPPING: MAP})
    info = tarfile.TarInfo("etc/new/own")
    info.uid, info.gid, info.mode = 5, 6, 0o4755
    stranger = tarfile.TarInfo("etc/stranger")
    stranger.uid = 70_000
    with client.snapshots.mounted("mapped") as point:
        files = _core.Files(str(point), ids=(MAP, MAP))
        unpack = partial(unpack_into, files, tmp_path / "archive")
        assert unpack(tar_of((info, b"own"))) == []
        assert files.stat("/etc/new/own")[1:3] == (5, 6)
        assert files.stat("/etc/new")[1:3] == (0, 0)
        assert (point / "etc/new/own").stat().st_uid == 100_005
        with pytest.raises(InvalidArgument, match="70000:0 has no id"):
            unpack(tar_of((stranger, b"")))
        (tmp_path / "mine").touch()  # this thread acts as itself again
        assert (tmp_path / "mine").stat().st_uid == os.geteuid()
        with (tmp_path / "packed").open("w+b") as packed:
            files.pack("/etc/new", packed.fileno(), name="new")
            packed.seek(0)
            with tarfile.open(fileobj=packed) as archive:
                members = {member.name: (member.uid, member.gid) for member in archive}
        assert members == {"new": (0, 0), "new/own": (5, 6)}
        files.close()
        with pytest.raises(LamellaError):  # whom the map does not know can make nothing there
            unpack_into(_core.Files(str(point)), tmp_path / "archive", tar_of(("etc/other", b"")))
    stored = (client.snapshots.layer_paths("mapped")[0] / "etc/new/own").stat()
    assert (stored.st_uid, stored.st_gid, stat.S_IMODE(stored.st_mode)) == (5, 6, 0o4755)


def unpack_into(files, path, data):
    path.write_bytes(data)
    with path.open("rb") as archive:
        return files.unpack("/", archive.fileno())
