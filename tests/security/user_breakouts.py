"""What the root of an ordinary user's container tries: a suite that is run as one, by tests/privileged/test_user_containers.py.

Its name keeps it from being collected as root. A container's root is the user outside, and reaches no more than the user does.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import uuid
from pathlib import Path

import pytest

from lamella import _core
from monitors import monitor_of
from probes import LIBC, NET_RAW, bait, compiled, reached

__all__ = ["bait", "compiled"]

MAPS = _core.helper_maps()
assert MAPS is not None, "this is for a user who is not root"
HAS_RANGES = len(MAPS[0]) > 1
PYTHON = os.path.realpath("/usr/bin/python3")
EVERYTHING = {"cap_add": ["ALL"], "seccomp": "unconfined"}
"""All that a container can be given, but for `privileged`."""
PREAMBLE = """
import ctypes, errno, json, os, stat, sys
libc = ctypes.CDLL(None, use_errno=True)
def attempt(call, *arguments):
    try:
        call(*arguments)
        return 'done'
    except OSError as error:
        return errno.errorcode[error.errno]
def checked(answer):
    if answer == -1:
        raise OSError(ctypes.get_errno(), '')
def read(path):
    with open(path, 'rb') as file:
        return file.read(1)
def write(path, text):
    with open(path, 'w') as file:
        file.write(text)
"""

pytestmark = pytest.mark.needs_program("/usr/bin/python3", "newuidmap")


@pytest.fixture
def python(client, image):
    def call(code, *arguments, volumes=(), **options):
        command = [PYTHON, "-c", PREAMBLE + code, *map(str, arguments)]
        result = client.containers.run(
            image, command, remove=True, volumes=["/usr:/usr:ro", *volumes], **options
        )
        assert result.exit_code == 0, result
        return json.loads(result.stdout)

    return call


def helper() -> int:
    """Give the helper of this process: the one that is in the user namespace that it says."""
    own = [
        int(process.name)
        for process in Path("/proc").iterdir()
        if process.name.isdigit() and _command(process) == "lamella-helper"
    ]
    assert own
    return own[0]


def _command(process: Path) -> str:
    try:
        return (process / "comm").read_text().strip() if process.stat().st_uid == os.getuid() else ""
    except OSError:
        return ""


LOOK_INTO = """
found = {}
for pid in sys.argv[1:]:
    found[pid] = {
        'memory': attempt(read, f'/proc/{pid}/mem'),
        'environment': attempt(read, f'/proc/{pid}/environ'),
        'root': attempt(os.listdir, f'/proc/{pid}/root'),
        'files': attempt(os.readlink, f'/proc/{pid}/fd/0'),
        'namespace': attempt(os.readlink, f'/proc/{pid}/ns/user'),
        'ptrace': attempt(lambda: checked(libc.ptrace(0x4206, int(pid), 0, 0))),
        'descriptor': attempt(lambda: checked(libc.syscall(438, libc.syscall(434, int(pid), 0), 3, 0))),
        'setns': attempt(lambda: checked(libc.setns(libc.syscall(434, int(pid), 0), 0x10000000))),
    }
print(json.dumps(found))
"""


def test_no_process_outside_can_be_looked_into_whatever_the_container_is_given(client, image, python):
    """The helper, the monitor, and the program that started it, all of which have the uid of the container's root."""
    box = client.containers.run(image, ["/bin/sleep", "600"], detach=True)
    try:
        victims = [os.getpid(), helper(), monitor_of(box)]
        found = python(LOOK_INTO, *victims, pid_mode="host", **EVERYTHING)
    finally:
        box.remove(force=True)
    assert set(found) == {str(pid) for pid in victims}
    for attempts in found.values():
        assert set(attempts.values()) <= {"EACCES", "EPERM"}, found


def test_the_proc_of_a_container_has_its_own_processes_alone(python):
    code = """
pids = [name for name in os.listdir('/proc') if name.isdigit()]
print(json.dumps([pids, os.getpid()]))
"""
    pids, own = python(code)
    assert pids == [str(own)] == ["1"]


def test_ids_that_the_user_has_not_cannot_be_had(python):
    code = """
open('/made', 'w').close()
status = os.stat('/shadow')
print(json.dumps({
    'owner': [status.st_uid, status.st_gid],
    'read': attempt(read, '/shadow'),
    'chown': attempt(os.chown, '/shadow', 0, 0),
    'chmod': attempt(os.chmod, '/shadow', 0o666),
    'give': attempt(os.chown, '/made', 70000, 0),
    'become': attempt(os.setuid, 70000),
}))
"""
    shadow = "/etc/shadow:/shadow"
    found = python(code, volumes=[shadow], **EVERYTHING)
    assert found == {
        "owner": [65534, 65534],
        "read": "EACCES",
        "chown": "EPERM",
        "chmod": "EPERM",
        "give": "EINVAL",
        "become": "EINVAL",
    }


def test_groups_can_be_given_up_where_that_takes_nothing_away(python):
    """Where one id is mapped without privileges, setgroups(2) would let a process get past what its groups are refused."""
    code = """
print(json.dumps([
    open('/proc/self/setgroups').read().strip(),
    attempt(os.setgroups, [0]),
    attempt(write, '/proc/self/setgroups', 'allow'),
]))
"""
    state, groups, switched = python(code, **EVERYTHING)
    assert (state, groups) == (("allow", "done") if HAS_RANGES else ("deny", "EPERM"))
    assert switched in ("EPERM", "EACCES") if not HAS_RANGES else True


NEST = """
def nested(users):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        steps = [attempt(lambda: checked(libc.unshare(0x10000000)))]
        steps.append(attempt(write, '/proc/self/setgroups', 'deny'))
        steps.append(attempt(write, '/proc/self/uid_map', users))
        steps.append(attempt(read, '/shadow'))
        os.write(writing, json.dumps(steps).encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    return json.loads(os.read(reading, 4096))
print(json.dumps([nested(users) for users in sys.argv[1:]]))
"""


def test_a_user_namespace_inside_maps_no_more_than_the_one_around(python):
    mapped, beyond, whole = python(
        NEST, "0 0 1", "0 70000 1", "0 0 4294967295", volumes=["/etc/shadow:/shadow"], **EVERYTHING
    )
    assert mapped == ["done", "done", "done", "EACCES"]
    for steps in (beyond, whole):
        assert steps == ["done", "done", "EPERM", "EACCES"]


def test_a_set_user_id_program_of_the_host_has_no_power_inside(python):
    code = """
import subprocess
sleeping = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])
said = subprocess.run(['/usr/bin/newuidmap', str(sleeping.pid), '0', '0', '1'], capture_output=True)
sleeping.kill()
print(json.dumps(said.returncode))
"""
    assert python(code, **EVERYTHING) != 0


# What tests/security/test_reach.py tries as root's container

HOST_NETWORK = {"abstract_socket", "loopback_of_the_host"}
TO_THE_MACHINE = {
    "accounted",
    "clock_set",
    "clock_slewed",
    "disk_of_the_host",
    "file_by_handle",
    "file_by_path",
    "file_kept_for_ever",
    "folder_of_state",
    "folder_of_store",
    "handle_of_a_process",
    "log_by_call",
    "memory_device",
    "mode_of_a_setting",
    "sysctl_core_pattern",
    "sysctl_files",
    "sysctl_memory",
    "trace_of_a_process",
    "trusted_attributes",
}
"""Tries that do something to the machine, or to others on it; some of the rest work on what is the container's, where it may."""


@pytest.fixture
def reach(client, image, compiled, bait):
    def call(**options):
        volumes = [f"{compiled('reach')}:/probe:ro"]
        command = ["/probe/reach", *bait]
        return reached(client.containers.run(image, command, remove=True, volumes=volumes, **options).stdout)

    return call


@pytest.mark.needs_program("cc")
@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({}, NET_RAW),
        ({"cap_drop": ["ALL"], "init": True}, set()),
        ({"network": "host"}, HOST_NETWORK),
    ],
    ids=str,
)
def test_nothing_of_the_machine_is_reached(reach, options, allowed):
    assert reach(**options) == allowed


@pytest.mark.needs_program("cc")
def test_whatever_it_is_given_does_nothing_to_the_machine(reach):
    """Without any other defence than the user namespace; that the tries work is shown by what falls."""
    found = reach(masked_paths=[], readonly_paths=[], **EVERYTHING)
    assert found & TO_THE_MACHINE == set()
    assert found >= {"bind_mount", "key_kept", "new_mount", "user_namespace"}


# What it writes for others to run


def test_what_it_writes_gives_nobody_outside_more_than_the_user_has(python, tmp_path):
    """A set-user-ID file is the user's own; capabilities of a file hold in the user's namespaces (capabilities(7), "rootid")."""
    code = """
import shutil, struct
shutil.copy('/usr/bin/cat', '/host/cat')
os.chmod('/host/cat', 0o6755)
os.setxattr('/host/cat', 'security.capability', struct.pack('<5I', 0x2000001, 0xffffffff, 0, 0x1ff, 0))
print(json.dumps(attempt(os.chown, '/host/cat', 70000, 0)))
"""
    assert python(code, volumes=[f"{tmp_path}:/host"], **EVERYTHING) == "EINVAL"
    made = tmp_path / "cat"
    status = made.stat()
    assert (status.st_uid, status.st_gid) == (os.getuid(), os.getgid())
    version, *_, owner = struct.unpack("<6I", os.getxattr(made, "security.capability"))
    assert (version & 0xFF000000, owner) == (0x3000000, os.getuid())
    said = subprocess.run([made, "/proc/self/status"], check=True, capture_output=True, text=True).stdout
    fields = dict(line.split(":\t", 1) for line in said.splitlines() if ":\t" in line)
    assert {fields[name] for name in ("CapPrm", "CapEff", "CapAmb")} == {f"{0:016x}"}
    assert fields["Uid"].split() == [str(os.getuid())] * 4


# What is shared with the machine


def test_nothing_of_who_made_it_is_open_in_it(client, image, python):
    """The helper's control socket has no name, and the monitor's none that a container knows: descriptors would lead there."""
    code = """
links = [f'/proc/self/fd/{name}' for name in os.listdir('/proc/self/fd')]  # the folder's own is closed by then
print(json.dumps(sorted(link.rpartition('/')[2] for link in links if attempt(os.readlink, link) == 'done')))
"""
    assert python(code, **EVERYTHING) == ["0", "1", "2"]
    box = client.containers.run(
        image, ["/bin/sleep", "600"], detach=True, volumes=["/usr:/usr:ro"], **EVERYTHING
    )
    try:
        assert json.loads(box.exec([PYTHON, "-c", PREAMBLE + code]).stdout) == ["0", "1", "2"]
        assert "@lamella" not in Path("/proc/net/unix").read_text()
    finally:
        box.remove(force=True)


def test_to_a_server_of_the_machine_its_root_is_the_user(python):
    """Names in the abstract namespace are those of the machine's network; who asks there is who asks it outside."""
    name = f"lamella-{uuid.uuid4().hex}"
    code = """
import socket
client = socket.socket(socket.AF_UNIX)
print(json.dumps(attempt(client.connect, chr(0) + sys.argv[1])))
"""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"\0{name}")
        server.listen()
        assert python(code, name, **EVERYTHING) == "ECONNREFUSED"
        assert python(code, name, network="host", **EVERYTHING) == "done"
        peer, _ = server.accept()
        with peer:
            found = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    assert struct.unpack("3I", found)[1:] == (os.getuid(), os.getgid())


def test_no_file_of_the_machines_cgroups_can_be_written(python):
    code = """
def files(top):
    for folder, names, found in os.walk(top):
        names[:] = names[:4]  # there may be thousands
        yield from (os.path.join(folder, name) for name in found)
def opened(path):
    os.close(os.open(path, os.O_WRONLY))
os.mkdir('/mounted')
mounted = False
for number, (kind, options) in enumerate([('cgroup2', None), ('cgroup', 'memory'), ('cgroup', 'pids')]):
    place, options = f'/mounted/{number}', options and options.encode()
    os.mkdir(place)
    mounted |= libc.mount(b'none', place.encode(), kind.encode(), 0, options) == 0
paths = [path for top in ('/sys/fs/cgroup', '/mounted') for path in files(top)]
print(json.dumps([mounted, len(paths) > 20, [path for path in paths if attempt(opened, path) == 'done']]))
"""
    for options in ({}, {"network": "host"}, {"cgroupns": "host"}):
        mounted, _, written = python(code, **options)
        assert (mounted, written) == (False, [])
    assert python(code, **EVERYTHING) == [True, True, []]


HIDDEN = """
child = os.fork()
if child == 0:
    steps = {'nested': attempt(lambda: checked(libc.unshare(0x10020000)))}
    attempt(write, '/proc/self/setgroups', 'deny')
    attempt(write, '/proc/self/uid_map', '0 0 1')
    steps['read-only taken off'] = attempt(lambda: checked(libc.mount(None, b'/usr', None, 0x1020, None)))
    steps['mask taken off'] = attempt(lambda: checked(libc.umount2(b'/proc/keys', 2)))
    steps['written'] = attempt(write, '/usr/made', 'x')
    print(json.dumps(steps), flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""


def test_what_is_read_only_and_hidden_stays_so_in_a_user_namespace_within(python):
    """What mounts have in there is locked (mount_namespaces(7)); by default no such namespace can be made."""
    refused = {"read-only taken off": "EPERM", "mask taken off": "EPERM", "written": "EROFS"}
    assert python(HIDDEN) == {"nested": "EPERM", **refused}
    assert python(HIDDEN, seccomp="unconfined") == {
        "nested": "done",
        **refused,
        "mask taken off": "EINVAL",
    }


KEYS = {"x86_64": (248, 250), "aarch64": (217, 219)}


@pytest.mark.skipif(os.uname().machine not in KEYS, reason="the numbers of the calls are not known here")
def test_keys_of_who_started_it_are_not_its_own(python):
    """The session's keyring of a user has passwords of file systems and Kerberos tickets (keyrings(7))."""
    add, control = KEYS[os.uname().machine]
    key = LIBC.syscall(add, b"user", b"lamella-secret", b"secret", 6, -3)
    assert key > 0
    code = """
key, control = map(int, sys.argv[1:])
found = {
    str(ring): attempt(lambda: checked(libc.syscall(control, 10, ring, b'user', b'lamella-secret', 0)))
    for ring in (-3, -4, -5)
}
found['read'] = attempt(lambda: checked(libc.syscall(control, 11, key, ctypes.create_string_buffer(9), 9)))
print(json.dumps(found))
"""
    try:
        assert set(python(code, key, control, **EVERYTHING).values()) <= {"ENOKEY", "EACCES", "EKEYREVOKED"}
    finally:
        LIBC.syscall(control, 3, key)
