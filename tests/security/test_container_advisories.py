"""Published weaknesses of other container runtimes; each is the promise that it does not hold here.

The numbers that are not here are in the files that docs/security.md names beside them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tarfile
from pathlib import Path

import pytest

from lamella.errors import InvalidArgument, LamellaError, NotFound, PermissionDenied
from layers import Built, Entry, file, folder, symlink, tar
from monitors import monitor_of
from waiting import until

pytestmark = pytest.mark.privileged


@pytest.fixture
def make(client, server, compiled):
    """``make(entry, ..., config={...})`` pulls an image of one layer with these entries, and races.c as /bin/races."""

    def build(*entries, config=None):
        program = (compiled("races") / "races").read_bytes()
        status = (compiled("calls") / "calls").read_bytes()
        layer = tar(
            folder("bin"),
            file("bin/races", program, mode=0o755),
            file("bin/calls", status, mode=0o755),
            *entries,
        )
        return client.images.pull(
            Built(layer, config={"Cmd": ["/bin/races", "open"], **(config or {})}).push(server)
        )

    return build


@pytest.fixture
def start(client):
    """``start(image, command, **options)`` starts a container that is gone after the test."""
    containers = []

    def run(image, command, **options):
        container = client.containers.run(image, command, detach=True, **options)
        containers.append(container)
        return container

    yield run
    for container in containers:
        container.remove(force=True)


def output(container):
    return b"".join(piece for _, piece in container.logs()).decode().splitlines()


def fields(stdout):
    return dict(line.split(":\t") for line in stdout.decode().splitlines() if ":\t" in line)


# ---- the launcher's program, and what it has open


def test_cve_2019_5736_the_launchers_program_cannot_be_written_or_taken_away(client, start, make):
    """A container whose command was /proc/self/exe got runc itself to run in it, and overwrote its file on the host."""
    image = make(file("evil", b"#!/proc/self/exe\n", mode=0o755), folder("tmp"))
    watcher = start(image, ["/bin/races", "watch", "600"])
    until(lambda: output(watcher))
    for _ in range(15):
        for command in (["/evil"], ["/proc/self/exe"]):
            with contextlib.suppress(LamellaError):
                watcher.exec(command, timeout=5)
    assert watcher.stop(60) == 0
    assert output(watcher)[-1] == "done"
    assert "written" not in output(watcher)
    # Also as the command of a container of its own: what comes after is started from the same copy of the launcher.
    with contextlib.suppress(LamellaError):
        client.containers.run(image, ["/evil"], remove=True)
    assert client.containers.run(image, ["/bin/races", "open"], remove=True).stdout == b"done\n"


def test_cve_2019_5736_the_launchers_file_is_sealed_and_made_anew_once_it_was_changed(start, make):
    """Each of the two defences by itself: where the first holds, a container cannot show that the second does."""
    image = make()
    one = start(image, ["/bin/races", "watch", "600"])
    program = Path(f"/proc/{monitor_of(one)}/exe")
    with program.open("rb") as file:
        seals = fcntl.fcntl(file, fcntl.F_GET_SEALS)
    wanted = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    assert seals & wanted == wanted
    os.chown(program, 1, 1)  # no seal forbids that
    other = start(image, ["/bin/races", "watch", "600"])
    assert Path(f"/proc/{monitor_of(other)}/exe").stat().st_uid == os.geteuid()


LONG_PATH = ":".join([*(f"/nowhere{number}" for number in range(1000)), "/bin"])
"""What keeps a process for a while where it looks for its program, when all else of it is as the container's are."""


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ({"cap_add": ["SYS_PTRACE"], "userns": "auto"}, set()),
        ({"cap_add": ["SYS_PTRACE"]}, {"launcher"}),
        ({}, set()),
    ],
    ids=["ids of its own", "the machine's ids", "without the capability"],
)
def test_cve_2016_9962_a_process_that_enters_is_not_looked_into(start, make, options, seen):
    """A container's root could trace runc while it entered, and reach the host by what it had open.

    With ids of its own, or without CAP_SYS_PTRACE, it may not look at all. Else it may, and finds nothing.
    """
    watcher = start(make(), ["/bin/races", "look", "600"], **options)
    until(lambda: output(watcher))
    for _ in range(40):
        assert watcher.exec(["races", "open"], environment={"PATH": LONG_PATH}).exit_code == 0
    assert watcher.stop(60) == 0
    lines = output(watcher)
    assert (lines[0], lines[-1]) == ("begun", "done")
    assert set(lines) - {"begun", "done"} <= seen


def test_cve_2024_21626_a_working_folder_that_is_a_descriptor_leads_nowhere(client, start, make):
    """runc had a descriptor of the host's /sys/fs/cgroup open when it changed to the working folder."""
    numbers = range(3, 20)
    image = make(*(symlink(f"link{number}", f"/proc/self/fd/{number}") for number in numbers))
    running = start(image, ["/bin/races", "watch", "600"])
    leaked = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    os.set_inheritable(leaked, True)
    try:
        for number in numbers:
            for place in (f"/proc/self/fd/{number}", f"/link{number}"):
                with contextlib.suppress(InvalidArgument, NotFound, PermissionDenied):
                    assert running.exec(["/bin/races", "open"], working_dir=place).stdout == b"done\n"
                with contextlib.suppress(InvalidArgument, NotFound, PermissionDenied):
                    outcome = client.containers.run(
                        image, ["/bin/races", "open"], remove=True, working_dir=place
                    )
                    assert outcome.stdout == b"done\n"
    finally:
        os.close(leaked)
    with pytest.raises(NotFound, match="/not/there"):
        running.exec(["/bin/races", "open"], working_dir="/not/there")


def test_cve_2024_21626_nothing_is_open_in_a_container_but_its_streams(client, start, make):
    image = make()
    leaked = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    os.set_inheritable(leaked, True)
    try:
        running = start(image, ["/bin/races", "watch", "600"], init=True)
        for options in ({}, {"stdin": True}, {"user": "1000"}, {"init": True}):
            outcome = client.containers.run(image, ["/bin/races", "open"], remove=True, **options)
            assert outcome.stdout == b"done\n"
        assert running.exec(["/bin/races", "open"]).stdout == b"done\n"
    finally:
        os.close(leaked)


# ---- mounts into a root that changes meanwhile


def test_cve_2021_30465_and_cve_2024_45310_a_folder_that_is_swapped_for_a_symlink_leads_no_mount_out(
    client, start, make, tmp_path
):
    """runc looked where a mount was to go, and a container that shared the volume put a symlink there before the mount
    (CVE-2021-30465), or before the folders that lead to it were made (CVE-2024-45310: empty folders on the host)."""
    image = make()
    outside = tmp_path / "outside"
    shared = tmp_path / "shared"
    for path in (outside, shared / "place", tmp_path / "source"):
        path.mkdir(parents=True)
    (shared / "link").symlink_to(f"../../../../../../../../../../../..{outside}")
    start(image, ["/bin/races", "swap", "/v/place", "/v/link"], volumes=[f"{shared}:/v"])
    made = number = 0
    while number < 40 or (not made and number < 400):
        number += 1
        try:
            client.containers.run(
                image,
                ["/bin/races", "open"],
                remove=True,
                volumes=[f"{shared}:/v", f"{tmp_path}/source:/v/place/into{number}/deep"],
                tmpfs=[f"/v/place/tmp{number}"],
            )
            made += 1
        except LamellaError:
            pass
        assert list(outside.iterdir()) == []
    assert made, "none of them met a folder"


@pytest.mark.parametrize("place", ["proc", "sys"])
def test_cve_2023_28642_and_cve_2019_19921_a_root_whose_proc_is_a_symlink_is_refused(client, make, place):
    """With /proc a symlink, what runc wrote there (its security label) went to files that the image had chosen."""
    image = make(folder("fake"), symlink(place, "/fake"))
    with pytest.raises(LamellaError, match="plain folder"):
        client.containers.run(image, ["/bin/races", "open"], remove=True)


def test_cve_2025_52881_a_sysctl_is_written_to_the_kernel_whatever_is_mounted_on_proc(
    client, start, make, small_image, tmp_path
):
    """runc wrote settings through /proc of the container, where another mount or a symlink could turn them elsewhere.

    Nothing is mounted there, and what an image has in the place is beneath the mount.
    """
    fake = tmp_path / "net"
    (fake / "ipv4").mkdir(parents=True)
    (fake / "ipv4/ip_forward").write_text("fake")
    setting = {"net.ipv4.ip_forward": "1"}
    with pytest.raises(InvalidArgument, match="/proc/sys/net"):
        client.containers.run(
            make(), ["/bin/races", "open"], remove=True, sysctls=setting, volumes=[f"{fake}:/proc/sys/net"]
        )
    assert (fake / "ipv4/ip_forward").read_text() == "fake"
    image = make(folder("proc/sys/net"), symlink("proc/sys/net/ipv4", str(fake / "ipv4")))
    changed = start(image, ["/bin/races", "watch", "600"], sysctls=setting)
    assert (fake / "ipv4/ip_forward").read_text() == "fake"
    read = client.containers.run(
        client.images.pull(small_image),
        ["/bin/cat", "/proc/sys/net/ipv4/ip_forward"],
        remove=True,
        network=f"container:{changed.id}",
    )
    assert read.stdout == b"1\n"


@pytest.mark.parametrize("field", ["apparmorProfile", "selinuxLabel"])
def test_cve_2025_52881_a_label_that_would_be_written_to_proc_is_refused_by_name(client, make, field):
    """runc's label could be written to a file of the container's choice, and was missing then."""
    with pytest.raises(LamellaError, match=field):
        client.containers.run(make(), ["/bin/races", "open"], remove=True, spec={"process": {field: "x"}})


def test_cve_2025_31133_and_cve_2025_52565_masks_and_consoles_are_taken_from_no_image(client, make):
    """runc bound the image's own /dev/null over what is masked, and its /dev/pts/N on /dev/console."""
    image = make(
        folder("dev"),
        symlink("dev/null", "/proc/sys/kernel/core_pattern"),
        symlink("dev/console", "/proc/sys/kernel/core_pattern"),
        symlink("dev/pts", "/proc/sys/kernel"),
    )
    for options in ({}, {"tty": True}, {"tty": True, "user": "1000"}):
        outcome = client.containers.run(image, ["/bin/calls", "status", "Name"], remove=True, **options)
        assert outcome.stdout.strip() == b"Name:\tcalls"
    core_pattern = Path("/proc/sys/kernel/core_pattern").read_text()
    container = client.containers.create(image, ["/bin/races", "watch", "600"], tty=True)
    try:
        container.start()
        root = Path(f"/proc/{container.pid}/root")
        assert (root / "dev/null").stat().st_rdev == os.makedev(1, 3)
        assert os.major((root / "dev/console").stat().st_rdev) == 136
        assert (root / "proc/keys").stat().st_rdev == os.makedev(1, 3)
    finally:
        container.remove(force=True)
    assert Path("/proc/sys/kernel/core_pattern").read_text() == core_pattern


# ---- who it runs as


@pytest.mark.parametrize("user", ["4294967296", "2147483648:0", "0:4294967296", "-1", "+0", "4294967295"])
@pytest.mark.parametrize("way", ["option", "image"])
def test_cve_2024_40635_and_cve_2026_46680_a_user_out_of_range_is_neither_root_nor_a_name(
    client, make, user, way
):
    """containerd let numbers beyond 32 bits wrap round to root, and later looked them up as names of the image's."""
    listed = user.partition(":")[0]
    image = make(
        folder("etc"),
        file("etc/passwd", f"{listed}:x:0:0::/:/bin/sh\n".encode()),
        config={"User": user} if way == "image" else None,
    )
    options = {"user": user} if way == "option" else {}
    with pytest.raises(InvalidArgument):
        client.containers.run(image, ["/bin/races", "open"], remove=True, **options)


@pytest.mark.parametrize("name", ["etc/passwd", "etc/group"])
def test_cve_2024_9676_a_passwd_file_that_is_a_symlink_or_no_file_reads_nothing_of_the_host(
    client, make, name, tmp_path
):
    """containers/storage opened an image's /etc/passwd through its symlink on the host: a FIFO there hung it."""
    secret = tmp_path / "passwd"
    secret.write_text("evil:x:0:0::/:\n")
    wanted = "evil" if name == "etc/passwd" else "0:evil"
    for entry in (
        symlink(name, str(secret)),
        symlink(name, f"../../../../../../../../../..{secret}"),
        Entry(name, type=tarfile.FIFOTYPE),
        Entry(name, type=tarfile.CHRTYPE, devmajor=1, devminor=5),
    ):
        # What is no file is none: read, the device would be too large, and the FIFO wait for ever.
        with pytest.raises(InvalidArgument, match="is not in the image's"):
            client.containers.run(
                make(folder("etc"), entry), ["/bin/races", "open"], remove=True, user=wanted
            )


@pytest.mark.parametrize("name", ["etc/passwd", "etc/group"])
def test_cve_2026_47262_a_passwd_file_without_end_is_not_read_to_its_end(client, make, name):
    """containerd and moby read the whole of an image's file into memory, however large."""
    image = make(folder("etc"), file(name, b"x" * (2 << 20)))
    with pytest.raises(InvalidArgument, match="larger than"):
        client.containers.run(image, ["/bin/races", "open"], remove=True, user="app:app")


def test_cve_2023_25173_supplementary_groups_are_the_images_and_no_others(client, start, make):
    """containerd left out the primary group, so that a program could drop it and pass a rule made for the group."""
    image = make(
        folder("etc"),
        file("etc/passwd", b"app:x:1000:1001::/:\nroot:x:0:0::/:\n"),
        file("etc/group", b"app:x:1001:\nwheel:x:10:app,root\nother:x:77:someone\n"),
    )
    before = os.getgroups()
    os.setgroups([*before, 4242])
    try:
        running = start(image, ["/bin/races", "watch", "600"])
        for user, groups in [
            ("app", "10 1001"),
            ("1000", "10 1001"),
            ("root", "0 10"),
            ("5", "0"),
            ("app:77", "77"),
        ]:
            command = ["/bin/calls", "status", "Groups", "Uid", "Gid"]
            for outcome in (
                client.containers.run(image, command, remove=True, user=user),
                running.exec(command, user=user),
            ):
                assert fields(outcome.stdout)["Groups"].strip() == groups, user
    finally:
        os.setgroups(before)
