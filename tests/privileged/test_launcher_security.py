"""What a container must not be able to do, each as a program inside it tries it."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from launcher_box import DOCKER_CAPABILITIES, PRELUDE, PYTHON, Box

from lamella.containers import defaults
from probes import NET_RAW, reached

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.privileged]
X86_64 = platform.machine() == "x86_64"
NUMBERS = {
    "mount": 165, "umount2": 166, "pivot_root": 155, "unshare": 272, "setns": 308, "bpf": 321, "keyctl": 250,
    "add_key": 248, "request_key": 249, "perf_event_open": 298, "kexec_load": 246, "init_module": 175,
    "finit_module": 313, "delete_module": 176, "reboot": 169, "swapon": 167, "swapoff": 168, "settimeofday": 164,
    "clock_settime": 227, "sethostname": 170, "setdomainname": 171, "acct": 163, "quotactl": 179, "iopl": 172,
    "ioperm": 173, "userfaultfd": 323, "open_by_handle_at": 304, "fsopen": 430, "open_tree": 428, "move_mount": 429,
    "io_uring_setup": 425, "kcmp": 312, "lookup_dcookie": 212, "syslog": 103, "vhangup": 153, "mbind": 237,
    "move_pages": 279, "pidfd_getfd": 438, "process_madvise": 440,
}  # fmt: skip


def _show(box: Box, place: str, source: Path) -> None:
    """Bind a folder in the place of all that is mounted there."""
    box.spec["mounts"] = [
        one for one in box.spec["mounts"] if not f"{one['destination']}/".startswith(f"{place}/")
    ]
    box.spec["mounts"].append(
        {"destination": place, "type": "bind", "source": str(source), "options": ["bind"]}
    )


def _open_files(pid: int) -> list[tuple[str, int]]:
    """Give what a process has open beyond its standard streams, and its flags."""
    numbers = [number for number in os.listdir(f"/proc/{pid}/fd") if int(number) > 2]
    files = []
    for number in numbers:
        with contextlib.suppress(FileNotFoundError):  # it has just been closed
            lines = Path(f"/proc/{pid}/fdinfo/{number}").read_text().splitlines()[:2]
            fields = dict(line.split(":", 1) for line in lines)
            files.append((str(Path(f"/proc/{pid}/fd/{number}").readlink()), int(fields["flags"], 8)))
    return files


# ---- system calls


@pytest.mark.skipif(not X86_64, reason="the numbers are those of x86_64")
@pytest.mark.parametrize("no_new_privileges", [True, False])
def test_the_default_filter_refuses_every_dangerous_class_of_calls(box: Box, no_new_privileges: bool) -> None:
    box.process["noNewPrivileges"] = no_new_privileges
    code = f"print(json.dumps({{name: call(n, 0, 0, 0, 0, 0, 0) for name, n in {NUMBERS!r}.items()}}))"
    assert box.python(code) == dict.fromkeys(NUMBERS, "EPERM")


@pytest.mark.skipif(not X86_64, reason="the numbers are those of x86_64")
def test_the_filter_and_not_the_capabilities_refuses(box: Box) -> None:
    # With every capability at hand: what refuses now is the filter alone.
    everything = [*DOCKER_CAPABILITIES, "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_TIME", "CAP_BPF"]
    box.set_capabilities(*everything)
    numbers = {name: NUMBERS[name] for name in ("mount", "unshare", "setns", "bpf", "sethostname", "keyctl")}
    code = f"print(json.dumps({{name: call(n, 0, 0, 0, 0, 0, 0) for name, n in {numbers!r}.items()}}))"
    assert box.python(code) == dict.fromkeys(numbers, "EPERM")
    del box.linux["seccomp"]
    without = box.python(
        f"print(json.dumps([call({NUMBERS['unshare']}, 0), call({NUMBERS['keyctl']}, 0, -3, 0)]))"
    )
    assert without[0] == 0
    assert without[1] != "EPERM"


@pytest.mark.skipif(not X86_64, reason="the numbers are those of x86_64")
def test_no_user_namespace_can_be_made(box: Box) -> None:
    code = """
NEWUSER, SIGCHLD = 0x10000000, 17
print(json.dumps([call(272, NEWUSER), call(56, NEWUSER | SIGCHLD, 0, 0, 0, 0), call(435, 0, 0)]))
"""
    assert box.python(code) == ["EPERM", "EPERM", "ENOSYS"]


@pytest.mark.skipif(not X86_64, reason="the numbers are those of x86_64")
def test_a_call_newer_than_the_profile_looks_absent(box: Box) -> None:
    assert box.python("print(json.dumps(call(1000)))") == "ENOSYS"


@pytest.mark.skipif(not X86_64, reason="int 0x80 is x86's")
def test_the_32_bit_way_into_the_kernel_is_filtered_too(box: Box) -> None:
    # mov eax, 21 (mount); xor ebx, ecx, edx, esi, edi; int 0x80; ret
    code = """
import mmap
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(bytes.fromhex('53b81500000031db31c931d231f631ffcd805bc3'))
function = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
print(json.dumps([function(), call(0x40000000 | 165, 0, 0, 0, 0, 0)]))
"""
    # Kernels without x32 do not know the second one; the filter answers before they can say so.
    assert box.python(code) == [-1, "EPERM"]


@pytest.mark.skipif(not X86_64, reason="the numbers are those of x86_64")
def test_an_architecture_that_the_profile_does_not_name_is_killed(box: Box) -> None:
    box.linux["seccomp"]["architectures"] = ["SCMP_ARCH_X86_64"]
    code = "import ctypes; ctypes.CDLL(None).syscall(0x40000000)"
    result = box.run(PYTHON, "-I", "-S", "-c", code)
    assert result.exit["signal"] == 31


@pytest.mark.skipif(not X86_64, reason="the numbers are those of x86_64")
def test_rules_with_arguments_hold(box: Box) -> None:
    code = """
import socket
print(json.dumps([attempt(socket.socket, 40, socket.SOCK_STREAM), attempt(socket.socket, socket.AF_INET, socket.SOCK_STREAM),
    call(135, 0xffffffff), call(135, 0x0040000)]))
"""
    vsock, inet, read, change = box.python(code)
    assert (vsock, inet, read, change) == ("EPERM", "ok", 0, "EPERM")


def test_a_profile_that_kills_is_obeyed(box: Box) -> None:
    box.linux["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_KILL_PROCESS"}],
    }
    assert box.run("/bin/mkdir", "/tmp/x").exit["signal"] == 31
    assert not (box.folder / "upper/tmp/x").exists()


def test_a_profile_without_a_call_of_the_set_up_does_not_stop_it(box: Box) -> None:
    # What the launcher itself does last (capset, setuid, stat) is not the program's business.
    names = [
        "capset",
        "setgroups",
        "setresuid",
        "setresgid",
        "mount",
        "pivot_root",
        "umask",
        "chdir",
        "sendmsg",
    ]
    box.linux["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": names, "action": "SCMP_ACT_ERRNO"}],
    }
    assert box.sh("echo fine").stdout == b"fine\n"


def test_no_new_privileges_keeps_set_user_id_programs_from_gaining(box: Box) -> None:
    code = (
        "print(json.dumps([l.split()[1] for l in open('/proc/self/status') if l.startswith('NoNewPrivs')]))"
    )
    assert box.python(code) == ["1"]
    box.process["noNewPrivileges"] = False
    assert box.python(code) == ["0"]


# ---- descriptors and the working folder (CVE-2024-21626, CVE-2019-5736)


def test_no_descriptor_is_leaked(box: Box) -> None:
    leaked = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    os.set_inheritable(leaked, True)
    try:
        result = box.run("/bin/sh", "-c", "ls /proc/$$/fd")
    finally:
        os.close(leaked)
    assert set(result.stdout.split()) <= {b"0", b"1", b"2", b"10", b"255"}  # a shell may keep its script open


def test_what_waits_for_its_program_and_its_monitor_would_hand_down_nothing(box: Box) -> None:
    """Each of the ways by which no descriptor is leaked, by itself: what is not needed is closed, the rest exec would close."""
    leaked = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    os.set_inheritable(leaked, True)
    try:
        reply, _ = box.launch("/bin/true", hold=True)
    finally:
        os.close(leaked)
    waiting, monitor = _open_files(reply["pid"]), _open_files(reply["monitor_pid"])
    assert all(name.startswith("socket:") for name, _ in waiting), waiting
    assert "/" not in {name for name, _ in monitor}
    assert monitor
    assert all(flags & os.O_CLOEXEC for _, flags in waiting + monitor), (waiting, monitor)


def test_a_working_folder_beyond_a_symlink_to_a_descriptor_leads_nowhere(box: Box) -> None:
    (box.lower / "escape").symlink_to("/proc/self/fd/7")
    box.process["cwd"] = "/escape"
    assert box.error()["kind"] in ("NotFound", "InvalidArgument")


# ---- /proc, masked and read-only paths (CVE-2025-31133, CVE-2025-52565, CVE-2025-52881)


def test_masked_paths_give_nothing(box: Box) -> None:
    code = """
results = {}
for path in ('/proc/keys', '/proc/timer_list', '/proc/acpi', '/sys/firmware'):
    if os.path.isdir(path):
        results[path] = os.listdir(path)
    elif os.path.exists(path):
        results[path] = open(path).read()
print(json.dumps(results))
"""
    results = box.python(code)
    assert results
    assert not any(results.values())


def test_a_mask_is_the_null_device_whatever_the_container_has_in_its_place(box: Box, tmp_path: Path) -> None:
    # A /dev of its own, whose null is a symlink to what an attacker wants to have bound.
    dev = tmp_path / "dev"
    dev.mkdir()
    (dev / "null").symlink_to("/etc/wanted")
    (box.lower / "etc/wanted").write_text("wanted")
    _show(box, "/dev", dev)
    assert box.python("print(json.dumps([os.stat('/proc/keys').st_rdev, open('/etc/wanted').read()]))") == [
        os.makedev(1, 3),
        "wanted",
    ]


def test_nothing_is_masked_by_what_is_not_the_null_device(box: Box, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("")
    (box.folder / "config.json").write_text(json.dumps(box.spec))
    launch = (
        "import sys, lamella._core as core; sys.stdout.buffer.write(core.launch(sys.stdin.buffer.read(), []))"
    )
    elsewhere = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /dev/null && exec "$@"']
    reply = subprocess.run(
        [*elsewhere, other, sys.executable, "-c", launch],
        input=json.dumps(box.request(attach=False)).encode(),
        capture_output=True,
        check=True,
    ).stdout
    assert "is not the null device" in json.loads(reply)["error"]["message"]


def test_a_masked_path_that_is_a_symlink_in_the_image_covers_what_it_names_in_the_container(
    box: Box, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("host")
    (box.lower / "etc/secret").write_text("container")
    (box.lower / "mask").symlink_to("/etc/secret")
    (box.lower / "out").symlink_to(f"../../../../../../..{secret}")
    box.linux["maskedPaths"] = ["/mask", "/out", "/proc/self/fd/0"]
    reply, connection = box.launch("/bin/cat", "/etc/secret")
    assert connection is not None
    if "error" not in reply:
        assert connection.collect().stdout == b""
    assert secret.read_text() == "host"


def test_a_mask_cannot_be_taken_off(box: Box) -> None:
    code = "print(json.dumps([attempt(os.unlink, '/proc/keys'), call(166, b'/proc/keys', 0)]))"
    assert box.python(code)[1] == "EPERM"


def test_read_only_paths_cannot_be_written(box: Box) -> None:
    code = """
paths = ['/proc/sys/kernel/core_pattern', '/proc/sys/vm/drop_caches', '/proc/sys/net/ipv4/ip_forward']
print(json.dumps([attempt(open, path, 'w') for path in paths]))
"""
    assert set(box.python(code)) == {"EROFS"}


def test_sysfs_is_read_only(box: Box) -> None:
    assert box.python("print(json.dumps(attempt(open, '/sys/kernel/uevent_helper', 'w')))") in (
        "EROFS",
        "ENOENT",
    )


@pytest.mark.parametrize(
    "name", ["kernel.core_pattern", "vm.drop_caches", "kernel/../vm/drop_caches", "net.ipv4.ip_forward"]
)
def test_sysctls_that_would_change_the_host_are_refused(box: Box, name: str) -> None:
    if name.startswith("net."):
        box.without_namespace("network")
    box.linux["sysctl"] = {name: "1"}
    assert box.error()["kind"] == "InvalidArgument"


def test_a_sysctl_is_the_kernels_whatever_the_container_has_in_place_of_proc(box: Box) -> None:
    box.spec["mounts"] = [one for one in box.spec["mounts"] if one["destination"] != "/proc"]
    place = box.lower / "proc/sys/net/ipv4"
    place.mkdir(parents=True)
    (place / "ip_forward").write_text("image")
    box.linux["sysctl"] = {"net.ipv4.ip_forward": "1"}
    reply, _ = box.launch("/bin/sleep", "100", attach=False)
    assert "error" not in reply, reply
    read = ["nsenter", f"--net=/proc/{reply['pid']}/ns/net", "cat", "/proc/sys/net/ipv4/ip_forward"]
    assert subprocess.run(read, capture_output=True, check=True).stdout == b"1\n"
    assert Path(f"/proc/{reply['pid']}/root/proc/sys/net/ipv4/ip_forward").read_text() == "image"


@pytest.mark.parametrize("way", ["a folder of the image", "another file system", "a symlink"])
def test_a_terminal_is_opened_in_the_real_devpts_only(box: Box, way: str) -> None:
    devpts = next(one for one in box.spec["mounts"] if one["type"] == "devpts")
    if way == "a symlink":
        devpts["destination"] = "/pts"
        box.spec["mounts"] = [
            one for one in box.spec["mounts"] if not one["destination"].startswith("/dev")
        ] + [devpts]
        (box.lower / "dev/pts").symlink_to("/pts")
    elif way == "another file system":
        # It has a ptmx, too: the machine's.
        devpts.update(type="bind", source="/dev", options=["bind"])
    else:
        box.spec["mounts"].remove(devpts)
        (box.lower / "dev/pts").mkdir()
        (box.lower / "dev/pts/ptmx").symlink_to("/proc/sys/kernel/core_pattern")
    box.process["terminal"] = True
    message = box.error()["message"]
    assert "open a terminal in the container's /dev/pts" in message
    if way == "another file system":
        assert "it is no devpts" in message


def test_the_console_does_not_follow_a_symlink_of_the_image(box: Box) -> None:
    box.spec["mounts"] = [one for one in box.spec["mounts"] if one["destination"] != "/dev"]
    (box.lower / "dev/console").symlink_to("/proc/sys/kernel/core_pattern")
    box.process["terminal"] = True
    error = box.error()
    assert "console" in error["message"]


# ---- identity (CVE-2024-40635, CVE-2022-24769, CVE-2023-25173)


@pytest.mark.parametrize("uid", [4294967295, 4294967296, -1])
def test_a_user_id_that_is_none_is_refused(box: Box, uid: int) -> None:
    box.process["user"] = {"uid": uid, "gid": 0}
    assert box.error()["kind"] == "InvalidArgument"


def test_nothing_is_inheritable(box: Box) -> None:
    code = "print(json.dumps([l.split()[1] for l in open('/proc/self/status') if l[:6] in ('CapInh', 'CapAmb')]))"
    assert box.python(code) == ["0" * 16] * 2


def test_a_capability_that_was_dropped_does_not_come_back(box: Box) -> None:
    box.set_capabilities("CAP_CHOWN")
    code = """
status = [l.split()[1] for l in open('/proc/self/status') if l[:6] == 'CapBnd']
print(json.dumps([status, attempt(os.mknod, '/tmp/x', 0o20600, os.makedev(1, 3)), attempt(os.setuid, 5)]))
"""
    assert box.python(code) == [["0000000000000001"], "EPERM", "EPERM"]


def test_the_session_keyring_is_the_containers_own(box: Box) -> None:
    if not X86_64:
        pytest.skip("the number is that of x86_64")
    del box.linux["seccomp"]
    code = "print(json.dumps(call(250, 0, -3, 0)))"  # KEYCTL_GET_KEYRING_ID of the session keyring
    one, other = box.python(code), box.python(code)
    assert isinstance(one, int)
    assert one != other


# ---- a program that tries everything at once


def test_the_root_of_a_user_namespace_reaches_nothing_of_the_host(
    box: Box, tmp_path: Path, compiled: Callable[[str], Path], bait: list[str]
) -> None:
    """reach.c has what is tried; tests/security/test_reach.py the same for containers of the library."""
    box.linux["namespaces"].append({"type": "user"})
    for key in ("uidMappings", "gidMappings"):
        box.linux[key] = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    box.linux["maskedPaths"], box.linux["readonlyPaths"] = defaults.MASKED_PATHS, defaults.READONLY_PATHS
    box.spec["mounts"] = [one for one in box.spec["mounts"] if not one["source"].startswith("/root")]
    probe = {
        "destination": "/probe",
        "type": "bind",
        "source": str(compiled("reach")),
        "options": ["rbind", "ro"],
    }
    box.spec["mounts"].append(probe)
    for folder in (
        compiled("reach"),
        *compiled("reach").parents[:2],
        box.folder,
        tmp_path,
        *tmp_path.parents[:2],
    ):
        folder.chmod(0o755)
    for name in ("upper", "work"):
        os.chown(box.folder / name, 100000, 100000)
    assert reached(box.run("/probe/reach", *bait).stdout) == NET_RAW


def test_a_container_cannot_look_into_another_that_is_being_set_up_in_its_pid_namespace(
    box: Box, tmp_path: Path
) -> None:
    guest = Box(tmp_path)
    first, _ = box.launch("/bin/sleep", "1000", attach=False)
    assert "error" not in first, first
    try:
        guest.without_namespace("pid")
        guest.linux["namespaces"].append({"type": "pid", "path": f"/proc/{first['pid']}/ns/pid"})
        held, _ = guest.launch("/bin/true", hold=True)
        assert "error" not in held, held
        code = """
others = [name for name in os.listdir('/proc') if name.isdigit() and int(name) not in (1, os.getpid())]
print(json.dumps([[attempt(os.readlink, f'/proc/{name}/fd/0'), attempt(os.open, f'/proc/{name}/root', os.O_RDONLY),
    attempt(os.readlink, f'/proc/{name}/exe')] for name in others]))
"""
        watcher = box.exec(PYTHON, "-I", "-S", "-c", PRELUDE + code)
        assert watcher.document().get("ok") is True
        assert json.loads(watcher.collect().stdout) == [["EACCES"] * 3]
    finally:
        guest.end()
        box.end()
