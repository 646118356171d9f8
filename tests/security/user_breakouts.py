"""What the root of an ordinary user's container tries: a suite that is run as one, by tests/privileged/test_user_containers.py.

Its name keeps it from being collected as root. A container's root is the user outside, and reaches no more than the user does.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from lamella import _core
from monitors import monitor_of

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
