"""The launcher sets a container up as its bundle says: namespaces, root, mounts, identity, program."""

from __future__ import annotations

import json
import os
import socket
import stat
from pathlib import Path

import pytest
from launcher_box import PYTHON, Box, Connection, launch

pytestmark = [pytest.mark.privileged]


# ---- namespaces


def test_every_namespace_is_the_containers_own(box: Box) -> None:
    kinds = ("mnt", "pid", "uts", "ipc", "net", "cgroup")
    inside = box.python(f"print(json.dumps({{k: os.readlink('/proc/self/ns/' + k) for k in {kinds!r}}}))")
    for kind in kinds:
        assert inside[kind] != str(Path(f"/proc/self/ns/{kind}").readlink()), kind


def test_the_program_is_process_1_and_sees_no_other(box: Box) -> None:
    seen = box.python(
        "print(json.dumps([os.getpid(), [int(x) for x in os.listdir('/proc') if x.isdigit()]]))"
    )
    assert seen == [1, [1]]


def test_the_host_name_is_the_containers_own(box: Box) -> None:
    before = os.uname().nodename
    assert box.python("print(json.dumps(os.uname().nodename))") == "box"
    assert os.uname().nodename == before


def test_loopback_is_up_and_the_only_interface(box: Box) -> None:
    code = """
import socket
with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
    print(json.dumps([name for _, name in socket.if_nameindex()]))
"""
    assert box.python(code) == ["lo"]


@pytest.mark.parametrize("told", [False, True])
def test_the_bundle_says_whether_the_network_is_its_own_whatever_the_request_does(
    box: Box, told: bool
) -> None:
    host = str(Path("/proc/self/ns/net").readlink())
    inside = "print(json.dumps(os.readlink('/proc/self/ns/net')))"
    assert box.python(inside, own_network=told) != host
    box.without_namespace("network")
    assert box.python(inside, own_network=told) == host


def test_a_network_namespace_can_be_joined(box: Box, tmp_path: Path) -> None:
    other = Box(tmp_path)
    try:
        reply, _ = other.launch("/bin/sleep", "100")
        path = f"/proc/{reply['pid']}/ns/net"
        box.without_namespace("network")
        box.linux["namespaces"].append({"type": "network", "path": path})
        expected = str(Path(path).readlink())
        assert box.python("print(json.dumps(os.readlink('/proc/self/ns/net')))") == expected
    finally:
        other.end()


def test_a_path_that_is_no_namespace_is_refused(box: Box, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    box.without_namespace("network")
    box.linux["namespaces"].append({"type": "network", "path": str(tmp_path / "file")})
    assert box.error()["kind"] == "InvalidArgument"


def test_the_hosts_processes_are_seen_when_the_pid_namespace_is_shared(box: Box) -> None:
    box.without_namespace("pid")
    assert box.python("print(json.dumps(os.getpid()))") > 1


def test_nothing_outlives_the_first_process_without_a_pid_namespace(box: Box) -> None:
    box.without_namespace("pid")
    result = box.sh("sleep 1000 & echo $!")
    pid = int(result.stdout)
    assert not Path("/proc", str(pid)).exists()


def test_a_user_namespace_maps_root_to_an_ordinary_user(box: Box, tmp_path: Path) -> None:
    box.linux["namespaces"].append({"type": "user"})
    box.linux["uidMappings"] = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    box.linux["gidMappings"] = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    # What lies in a folder of root's alone is out of reach for the container's root, on the way to the mounts too.
    box.spec["mounts"] = [one for one in box.spec["mounts"] if not one["source"].startswith("/root")]
    for folder in (box.folder, tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    for name in ("upper", "work"):
        os.chown(box.folder / name, 100000, 100000)
    result = box.sh("id -u; stat -c %u /usr; cat /proc/self/uid_map; echo x > /etc-made")
    assert result.stdout.split() == [b"0", b"65534", b"0", b"100000", b"65536"]
    assert (box.folder / "upper/etc-made").stat().st_uid == 100000


def test_an_ordinary_user_can_run_one_in_the_user_namespace_of_a_helper(box: Box, tmp_path: Path) -> None:
    nobody = 65534
    box.spec["mounts"] = [one for one in box.spec["mounts"] if not one["source"].startswith("/root")]
    box.process["args"] = ["/bin/sh", "-c", "id -u; echo x > /made; hostname"]
    (box.folder / "config.json").write_text(json.dumps(box.spec))
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    for path in (box.folder, *box.folder.rglob("*")):
        os.chown(path, nobody, nobody, follow_symlinks=False)
    request = box.request(attach=True)
    request["rootfs"][0]["options"].append("userxattr")
    ours, theirs = socket.socketpair()
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(nobody, nobody, nobody)
            os.setresuid(nobody, nobody, nobody)
            os.write(writing, json.dumps(launch(request, [theirs.fileno()])).encode())
        finally:
            os._exit(0)
    theirs.close()
    os.close(writing)
    os.waitpid(pid, 0)
    with os.fdopen(reading) as file:
        reply = json.load(file)
    connection = Connection(ours)
    box.connections.append(connection)
    assert "error" not in reply, reply
    assert reply["warnings"] == []
    assert connection.collect().stdout == b"0\nbox\n"
    assert (box.folder / "upper/made").stat().st_uid == nobody


# ---- root and mounts


def test_writes_go_to_the_snapshot_only(box: Box) -> None:
    assert box.sh("echo hello > /etc/made; rm -r /tmp").code == 0
    assert (box.folder / "upper/etc/made").read_text() == "hello\n"
    assert (box.lower / "tmp").is_dir()
    assert list((box.folder / "rootfs").iterdir()) == []


def test_nothing_is_mounted_on_the_host(box: Box) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    box.start("/bin/sleep", "100")
    assert Path("/proc/self/mountinfo").read_text() == before
    assert list((box.folder / "rootfs").iterdir()) == []


def test_the_hosts_root_is_out_of_reach(box: Box) -> None:
    code = "print(json.dumps([os.path.exists('/' + x) for x in ('../' * 20 + 'etc/shadow', 'boot', 'etc/passwd')]))"
    assert box.python(code) == [False, False, False]
    mounts = box.python("print(json.dumps([l.split()[4] for l in open('/proc/self/mountinfo')]))")
    assert mounts[0] == "/"
    assert str(box.folder) not in json.dumps(mounts)


def test_a_read_only_root_cannot_be_written(box: Box) -> None:
    box.spec["root"]["readonly"] = True
    assert box.python("print(json.dumps(attempt(open, '/etc/x', 'w')))") == "EROFS"


def test_a_root_folder_that_is_ready_needs_no_snapshot(box: Box) -> None:
    box.spec["root"]["path"] = "lower"
    assert box.sh("echo in > /etc/made", rootfs=[]).code == 0
    assert (box.lower / "etc/made").read_text() == "in\n"


def test_bind_mounts_are_made_with_their_options(box: Box, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/file").write_text("content")
    for destination, options in (("/made/ro", ["bind", "ro"]), ("/made/rw", ["bind", "noexec"])):
        box.spec["mounts"].append(
            {
                "destination": destination,
                "type": "bind",
                "source": str(tmp_path / "source"),
                "options": options,
            }
        )
    code = """
flags = [os.statvfs(x).f_flag for x in ('/made/ro', '/made/rw')]
print(json.dumps([open('/made/ro/file').read(), attempt(open, '/made/ro/x', 'w'), attempt(open, '/made/rw/x', 'w'),
    bool(flags[0] & os.ST_RDONLY), bool(flags[1] & os.ST_NOEXEC)]))
"""
    assert box.python(code) == ["content", "EROFS", "ok", True, True]
    assert (tmp_path / "source/x").exists()


def test_a_recursive_read_only_bind_covers_what_is_mounted_beneath(box: Box, tmp_path: Path) -> None:
    (tmp_path / "source/inner").mkdir(parents=True)
    inner = {"destination": "/first/inner", "type": "tmpfs", "source": "tmpfs", "options": []}
    bind = {"type": "bind", "source": str(tmp_path / "source")}
    box.spec["mounts"] += [{**bind, "destination": "/first", "options": ["rbind", "rro"]}, inner]
    # The tmpfs came later, so it is writable; a bind of /proc/self/fd would need a mount beneath: /usr serves.
    box.spec["mounts"].append(
        {"destination": "/all", "type": "bind", "source": "/dev", "options": ["rbind", "rro"]}
    )
    code = "print(json.dumps([attempt(open, '/first/x', 'w'), attempt(open, '/all/shm/lamella-x', 'w')]))"
    assert box.python(code)[0] == "EROFS"
    assert not Path("/dev/shm/lamella-x").exists()


def test_a_bind_mount_without_source_is_an_error_that_names_it(box: Box, tmp_path: Path) -> None:
    source = str(tmp_path / "missing")
    box.spec["mounts"].append({"destination": "/x", "type": "bind", "source": source, "options": ["bind"]})
    error = box.error()
    assert (error["kind"], source in error["message"]) == ("NotFound", True)


def test_a_file_can_be_bound_over_a_missing_file(box: Box, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("127.0.0.1 localhost\n")
    box.spec["mounts"].append(
        {
            "destination": "/etc/deep/hosts",
            "type": "bind",
            "source": str(tmp_path / "hosts"),
            "options": ["bind"],
        }
    )
    assert box.run("/bin/cat", "/etc/deep/hosts").stdout == b"127.0.0.1 localhost\n"


def test_a_symlink_in_the_image_does_not_lead_a_mount_out(box: Box, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (box.lower / "link").symlink_to(tmp_path / "outside")
    (box.lower / "up").symlink_to("../../../../../../../../../..")
    for destination in ("/up/made", "/link/made"):
        box.spec["mounts"].append(
            {"destination": destination, "type": "tmpfs", "source": "tmpfs", "options": []}
        )
    box.error()
    assert list((tmp_path / "outside").iterdir()) == []
    assert not Path("/made").exists()
    box.spec["mounts"].pop()
    assert box.sh("grep -q ' /made tmpfs' /proc/mounts").code == 0


def test_a_symlink_in_place_of_proc_is_refused(box: Box) -> None:
    (box.lower / "proc").rmdir()
    (box.lower / "proc").symlink_to("tmp")
    assert "/proc" in box.error()["message"]


def test_an_option_that_the_kernel_refuses_is_named(box: Box) -> None:
    box.spec["mounts"].append(
        {"destination": "/x", "type": "tmpfs", "source": "tmpfs", "options": ["colour=red"]}
    )
    assert "colour" in box.error()["message"]


def test_the_cgroups_can_be_shown_read_only(box: Box) -> None:
    box.spec["mounts"].append(
        {
            "destination": "/sys/fs/cgroup",
            "type": "cgroup",
            "source": "cgroup",
            "options": ["ro", "nosuid", "noexec", "nodev"],
        }
    )
    code = """
names = os.listdir('/sys/fs/cgroup')
folder = '/sys/fs/cgroup/pids' if 'pids' in names else '/sys/fs/cgroup'
print(json.dumps(['1' in open(folder + '/cgroup.procs').read().split(), attempt(os.mkdir, folder + '/x')]))
"""
    assert box.python(code) == [True, "EROFS"]


# ---- devices


def test_the_default_devices_work_and_belong_to_the_host(box: Box) -> None:
    before = Path("/dev/null").stat()
    # What they have already: should the host's node be within reach, this does it no harm.
    code = """
for name in ('null', 'zero', 'full', 'random', 'urandom', 'tty'):
    os.stat('/dev/' + name)
open('/dev/null', 'w').write('x')
print(json.dumps([len(os.read(os.open('/dev/urandom', os.O_RDONLY), 4)), attempt(os.chmod, '/dev/null', 0o666),
    attempt(os.chown, '/dev/null', 0, 0), os.readlink('/dev/fd'), os.readlink('/dev/ptmx')]))
"""
    assert box.python(code) == [4, "EROFS", "EROFS", "/proc/self/fd", "pts/ptmx"]
    assert Path("/dev/null").stat().st_mode == before.st_mode


def test_a_device_that_the_container_makes_cannot_be_opened(box: Box) -> None:
    code = """
results = []
for folder in ('/dev', '/tmp', '/dev/shm'):
    os.mknod(folder + '/disk', 0o60600, os.makedev(254, 0))
    os.mknod(folder + '/mem', 0o20600, os.makedev(1, 1))
    results += [attempt(os.open, folder + x, os.O_RDONLY) for x in ('/disk', '/mem')]
print(json.dumps(results))
"""
    assert set(box.python(code)) <= {"EACCES", "EPERM"}


def test_a_device_of_the_spec_is_made_with_its_mode_and_owner(box: Box) -> None:
    box.linux["devices"] = [
        {
            "type": "c",
            "path": "/dev/special/zero",
            "major": 1,
            "minor": 5,
            "fileMode": 0o640,
            "uid": 7,
            "gid": 8,
        }
    ]
    code = """
s = os.stat('/dev/special/zero')
print(json.dumps([s.st_mode, s.st_uid, s.st_gid, os.read(os.open('/dev/special/zero', os.O_RDONLY), 2) == bytes(2)]))
"""
    assert box.python(code) == [stat.S_IFCHR | 0o640, 7, 8, True]


# ---- identity and environment


def test_the_user_has_exactly_the_groups_of_the_spec(box: Box) -> None:
    box.process["user"] = {"uid": 1000, "gid": 1001, "additionalGids": [5, 6], "umask": 0o27}
    box.process["cwd"] = "/tmp"
    code = """
os.close(os.open('/tmp/made', os.O_CREAT, 0o666))
print(json.dumps([os.getresuid(), os.getresgid(), sorted(os.getgroups()), os.stat('/tmp/made').st_mode & 0o777]))
"""
    assert box.python(code) == [[1000] * 3, [1001] * 3, [5, 6], 0o640]


def test_no_group_of_the_caller_is_left(box: Box) -> None:
    assert box.python("print(json.dumps(os.getgroups()))") == []


def test_capabilities_are_exactly_dockers_default(box: Box) -> None:
    mask = 0x00000000A80425FB
    code = "print(json.dumps({l[3:6]: int(l.split()[1], 16) for l in open('/proc/self/status') if l[:3] == 'Cap'}))"
    assert box.python(code) == {"Inh": 0, "Prm": mask, "Eff": mask, "Bnd": mask, "Amb": 0}


def test_an_ordinary_user_has_no_capabilities_but_the_bounding_set(box: Box) -> None:
    box.process["user"] = {"uid": 1000, "gid": 1000}
    code = "print(json.dumps({l[3:6]: int(l.split()[1], 16) for l in open('/proc/self/status') if l[:3] == 'Cap'}))"
    assert box.python(code) == {"Inh": 0, "Prm": 0, "Eff": 0, "Bnd": 0xA80425FB, "Amb": 0}


def test_ambient_capabilities_reach_an_ordinary_user(box: Box) -> None:
    names = ["CAP_NET_BIND_SERVICE"]
    box.process["user"] = {"uid": 1000, "gid": 1000}
    box.process["capabilities"] = dict.fromkeys(
        ("bounding", "effective", "permitted", "inheritable", "ambient"), names
    )
    code = "print(json.dumps({l[3:6]: int(l.split()[1], 16) for l in open('/proc/self/status') if l[:3] == 'Cap'}))"
    assert set(box.python(code).values()) == {1 << 10}


def test_environment_and_working_folder_are_the_specs(box: Box) -> None:
    box.process["env"] += ["COLOUR=red"]
    box.process["cwd"] = "/made/for/it"
    code = "print(json.dumps([os.environ['COLOUR'], sorted(os.environ), os.getcwd()]))"
    assert box.python(code) == ["red", ["COLOUR", "LC_ALL", "PATH"], "/made/for/it"]


def test_rlimits_are_set_and_a_hard_limit_that_cannot_be_raised_is_cut_and_said(box: Box) -> None:
    huge = 1 << 60
    box.process["rlimits"] = [
        {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200},
        {"type": "RLIMIT_MEMLOCK", "soft": huge, "hard": huge},
    ]
    code = "import json, resource as r; print(json.dumps([r.getrlimit(x) for x in (r.RLIMIT_NOFILE, r.RLIMIT_MEMLOCK)]))"
    reply, connection = box.launch(PYTHON, "-I", "-c", code)
    assert connection is not None
    files, memory = json.loads(connection.collect().stdout)
    assert files == [100, 200]
    if memory != [huge, huge]:
        assert any("RLIMIT_MEMLOCK" in warning for warning in reply["warnings"])


def test_sysctls_of_the_containers_namespaces_are_set(box: Box) -> None:
    before = Path("/proc/sys/net/ipv4/ip_forward").read_text()
    box.linux["sysctl"] = {
        "net.ipv4.ip_forward": "1" if before.strip() == "0" else "0",
        "kernel.msgmax": "8191",
    }
    code = (
        "print(json.dumps([open('/proc/sys/' + x).read() for x in ('net/ipv4/ip_forward', 'kernel/msgmax')]))"
    )
    forward, longest = box.python(code)
    assert forward != before
    assert longest == "8191\n"
    assert Path("/proc/sys/net/ipv4/ip_forward").read_text() == before


def test_the_oom_score_is_adjusted(box: Box) -> None:
    box.process["oomScoreAdj"] = 500
    assert box.run("/bin/cat", "/proc/self/oom_score_adj").stdout == b"500\n"


# ---- the program


@pytest.mark.parametrize(
    ("program", "kind", "code", "words"),
    [
        ("/not/there", "CommandNotFound", 127, "no such file or directory"),
        ("not-there", "CommandNotFound", 127, "executable file not found in $PATH"),
        ("/etc", "CommandNotExecutable", 126, "is a directory"),
        ("/etc/text", "CommandNotExecutable", 126, "permission denied"),
        ("/etc/empty", "CommandNotExecutable", 126, "exec format error"),
        ("/etc/script", "CommandNotFound", 127, "no such file or directory"),
    ],
)
def test_a_program_that_cannot_be_run_says_why(
    box: Box, program: str, kind: str, code: int, words: str
) -> None:
    (box.lower / "etc/text").write_text("hello")
    for name, text in (("empty", ""), ("script", "#!/no/interpreter\n")):
        (box.lower / "etc" / name).write_text(text)
        (box.lower / "etc" / name).chmod(0o755)
    error = box.error(program)
    assert (error["kind"], error["exit_code"]) == (kind, code)
    assert words in error["message"]
    assert program in error["message"]


@pytest.mark.parametrize(("script", "code", "signal"), [("exit 0", 0, None), ("exit 77", 77, None)])
def test_the_exit_status_is_told_and_written_down(
    box: Box, script: str, code: int, signal: int | None
) -> None:
    result = box.sh(script)
    assert (result.exit["exit_code"], result.exit["signal"]) == (code, signal)
    assert box.record() == result.exit


def test_a_signals_death_is_128_and_its_number(box: Box) -> None:
    box.without_namespace("pid")  # a process 1 does not take its own signals
    result = box.sh("kill -TERM $$")
    assert (result.exit["exit_code"], result.exit["signal"]) == (143, 15)


def test_signals_start_with_a_clean_slate(box: Box) -> None:
    # Not from Python, which ignores SIGPIPE by itself.
    result = box.run("/bin/grep", "-E", "SigBlk|SigIgn", "/proc/self/status")
    assert [int(line.split()[1], 16) for line in result.stdout.splitlines()] == [0, 0]


# ---- refusals and failures


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("linux.intelRdt", {}),
        ("process.apparmorProfile", "x"),
        ("process.execCPUAffinity", {}),
        ("linux.colour", 1),
    ],
)
def test_what_is_not_supported_is_refused_by_name(box: Box, path: str, value: object) -> None:
    *folders, name = path.split(".")
    place = box.spec
    for folder in folders:
        place = place[folder]
    place[name] = value
    error = box.error()
    assert error["kind"] == "Unsupported"
    assert name in error["message"]


def test_two_monitors_never_share_a_bundle(box: Box) -> None:
    box.start("/bin/sleep", "100")
    reply, connection = box.launch("/bin/true")
    assert connection is not None
    connection.close()
    assert reply["error"]["kind"] == "FailedPrecondition"
    assert box.ask(op="state")["status"] == "running"


def test_a_bundle_can_be_started_again_after_its_end(box: Box) -> None:
    assert box.sh("exit 1").code == 1
    assert box.sh("exit 2").code == 2
    assert box.record()["exit_code"] == 2
