"""Docker's default filter of system calls, class by class: refused in a container, and answered where no filter is.

A compiled program makes the calls (calls.c). The same ones are made in a container with every capability and no filter:
there the kernel itself has to answer, or the check could not fail.
"""

from __future__ import annotations

import errno
import platform
import re
from functools import cache
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="calls.c makes the calls of x86_64"),
]

HEADERS = {"64": "unistd_64.h", "32": "unistd_32.h", "x32": "unistd_x32.h"}
NEW_NAMESPACES = {
    "mount": 0x00020000,
    "cgroup": 0x02000000,
    "uts": 0x04000000,
    "ipc": 0x08000000,
    "user": 0x10000000,
    "pid": 0x20000000,
    "network": 0x40000000,
}
SIGCHLD = 17
BEYOND = 1 << 32
"""Added to an argument of 32 bits it changes nothing for the kernel."""

REFUSED = {
    "keyrings": ["add_key", "request_key", "keyctl"],
    "mounts": ["mount", "umount2", "pivot_root"],
    "mounts by descriptor": ["fsopen", "fsconfig", "fsmount", "fspick", "move_mount", "open_tree", "mount_setattr"],
    "kexec": ["kexec_load", "kexec_file_load"],
    "modules": ["init_module", "finit_module", "delete_module", "create_module", "query_module", "get_kernel_syms"],
    "bpf": ["bpf"],
    "performance counters": ["perf_event_open"],
    "other processes": ["kcmp", "pidfd_getfd", "process_madvise", "move_pages", "migrate_pages"],
    "unshare": [f"unshare {flag}" for flag in (0, *NEW_NAMESPACES.values(), 0x80)],
    "clone": [f"clone {flag | SIGCHLD}" for flag in NEW_NAMESPACES.values()],
    "setns": ["setns"],
    "reboot": ["reboot"],
    "swap": ["swapon", "swapoff"],
    "time": ["settimeofday", "clock_settime"],
    "accounting": ["acct"],
    "quotas": ["quotactl", "quotactl_fd"],
    "handles": ["open_by_handle_at"],
    "page faults": ["userfaultfd"],
    "ports": ["iopl", "ioperm"],
    "names": ["sethostname", "setdomainname"],
    "kernel log": ["syslog"],
    "terminals": ["vhangup"],
    "memory of nodes": ["mbind", "set_mempolicy", "get_mempolicy", "set_mempolicy_home_node"],
    "file events of mounts": ["fanotify_init"],
    "io_uring": ["io_uring_setup", "io_uring_enter", "io_uring_register"],
    "security modules": ["lsm_get_self_attr", "lsm_set_self_attr", "lsm_list_modules"],
    "of the past": ["nfsservctl", "uselib", "ustat", "sysfs", "_sysctl", "lookup_dcookie", "vserver"],
    "personality": [f"personality {value}" for value in (0x0040000, 0x0400000, 0x20001, 1)],
    "sockets": [f"socket {family},1" for family in (12, 19, 20, 23, 25, 34, 37, 38, 40, 46, 38 + BEYOND, 40 + BEYOND)],
}  # fmt: skip
"""Calls by class, ``name`` or ``name arguments``; each is refused with EPERM. Source: Docker's documentation of its profile."""

ABSENT = {
    "clone3": ["clone3"],
    "socketcall": ["socketcall 1"],
    "newer than the profile": ["1000", "0x3fffffff"],
}
"""These look as if the kernel had not got them (ENOSYS), so that programs take an older way."""

ALLOWED = {
    "processes": ["getpid", f"clone {SIGCHLD}", "ptrace 0"],
    "personality": [f"personality {value}" for value in (0, 8, 0x20000, 0x20008, 0xFFFFFFFF)],
    "sockets": ["socket 1,1", "socket 2,1", "socket 10,1", "socket 16,3"],
    "mounts that are seen": ["listmount", "statmount"],
    "files": ["openat", "statx", "fchmodat2"],
}

BY_CAPABILITY = {
    "CAP_BPF": ["bpf"],
    "CAP_DAC_READ_SEARCH": ["open_by_handle_at"],
    "CAP_PERFMON": ["perf_event_open"],
    "CAP_SYSLOG": ["syslog 10"],
    "CAP_SYS_ADMIN": [
        "mount", "umount2", "fsopen", "fsmount", "move_mount", "open_tree", "mount_setattr", "setns", "unshare 0x20000",
        f"clone {0x20000 | SIGCHLD}", "clone3", "sethostname", "setdomainname", "quotactl", "bpf", "perf_event_open",
        "fanotify_init", "lsm_list_modules",
    ],
    "CAP_SYS_BOOT": ["reboot"],
    "CAP_SYS_MODULE": ["init_module", "finit_module", "delete_module"],
    "CAP_SYS_NICE": ["mbind", "set_mempolicy", "get_mempolicy"],
    "CAP_SYS_PACCT": ["acct"],
    "CAP_SYS_PTRACE": ["kcmp", "pidfd_getfd", "process_madvise"],
    "CAP_SYS_RAWIO": ["iopl 3", "ioperm 0,1,1"],
    "CAP_SYS_TIME": ["settimeofday", "clock_settime 0,1"],
    "CAP_SYS_TTY_CONFIG": ["vhangup"],
}  # fmt: skip
"""What a further capability opens. The rest stays refused."""


@cache
def numbers(abi):
    """Give the kernel's own table of an ABI by name."""
    for folder in ("/usr/include/x86_64-linux-gnu/asm", "/usr/include/asm"):
        header = Path(folder, HEADERS[abi])
        if header.exists():
            lines = re.findall(
                r"#define __NR_(\w+) \(?(?:__X32_SYSCALL_BIT \+ )?(\d+)\)?", header.read_text()
            )
            return {name: int(number) for name, number in lines}
    pytest.skip("needs the kernel's headers (linux-libc-dev)")


NEWER = {"lsm_get_self_attr": 459, "lsm_set_self_attr": 460, "lsm_list_modules": 461, "statmount": 457, "listmount": 458,
    "fchmodat2": 452, "set_mempolicy_home_node": 450}  # fmt: skip
"""Of calls that the headers may not know yet; those since Linux 5.1 have one number on every ABI."""


def on(abi, calls):
    """Give the calls that an ABI has as calls.c takes them, by what they are called."""
    found = {}
    for call in calls:
        name, _, arguments = call.partition(" ")
        number = int(name, 0) if name[0].isdigit() else numbers(abi).get(name, NEWER.get(name))
        if number is not None:
            found[f"{abi} {call}"] = f"{abi}:{number}:{arguments}"
    return found


def every(table, abis=("64", "32", "x32")):
    """Give all calls of a table on all ABIs."""
    return {
        key: value
        for calls in table.values()
        for abi in abis
        for key, value in on(abi, calls).items()
        if not (abi == "32" and "socket " in key and int(key.split()[2].split(",")[0]) >= BEYOND)
    }


def answer(text):
    """Name what the kernel said: an errno, ``signal N``, or ``done``."""
    if text.startswith("signal"):
        return text
    return errno.errorcode.get(-int(text), text) if int(text) < 0 else "done"


def answers(stdout, calls):
    lines = stdout.decode().splitlines()
    assert len(lines) == len(calls)
    return dict(zip(calls, map(answer, lines), strict=True))


EVERYTHING = {**every(REFUSED), **every(ABSENT), **every(ALLOWED)}
PROGRAM = "/probe/calls"


@pytest.fixture
def make(client, small_image, compiled):
    """``make(calls, **options)`` gives the answers to calls in a container of its own."""
    image = client.images.pull(small_image)

    def run(calls, **options):
        volumes = [f"{compiled('calls')}:/probe:ro"]
        result = client.containers.run(
            image, [PROGRAM, *calls.values()], remove=True, volumes=volumes, **options
        )
        return answers(result.stdout, calls)

    return run


@pytest.fixture
def make_by_exec(client, small_image, compiled):
    image = client.images.pull(small_image)
    container = client.containers.run(
        image, ["/bin/sleep", "600"], detach=True, volumes=[f"{compiled('calls')}:/probe:ro"]
    )
    yield lambda calls, **options: answers(
        container.exec([PROGRAM, *calls.values()], **options).stdout, calls
    )
    container.remove(force=True)


def check(found):
    for table, expected in ((REFUSED, {"EPERM"}), (ABSENT, {"ENOSYS"})):
        for kind, calls in table.items():
            wrong = {call: found[call] for call in every({kind: calls}) if found[call] not in expected}
            assert not wrong, kind
    # A kernel without x32 has its calls no more than a filter's "absent" says; only that says EPERM.
    assert not {call for call in every(ALLOWED) if found[call] == "EPERM"}


@pytest.mark.parametrize("kind", [*REFUSED, *ABSENT])
def test_without_the_filter_the_kernel_itself_answers(control, kind):
    """What every check below needs to be able to fail: nothing but the filter says EPERM (or ENOSYS) to these calls."""
    calls = every({kind: {**REFUSED, **ABSENT}[kind]}, ("64", "32"))
    refusal = "EPERM" if kind in REFUSED else "ENOSYS"
    assert calls
    if kind != "newer than the profile":  # ENOSYS is the kernel's own word for those
        assert [call for call in calls if control[call] == refusal] == []


@pytest.fixture(scope="module")
def control(tmp_path_factory, small_image_registry, compiled):
    """Give the answers in a container with every capability and without a filter."""
    import lamella

    folder = tmp_path_factory.mktemp("control")
    with lamella.Client(root=folder / "root", state=folder / "state") as client:
        image = client.images.pull(f"{small_image_registry.address}/machine:latest")
        result = client.containers.run(
            image,
            [PROGRAM, *EVERYTHING.values()],
            remove=True,
            privileged=True,
            volumes=[f"{compiled('calls')}:/probe:ro"],
        )
        return answers(result.stdout, EVERYTHING)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"user": "1000:1000"},
        {"no_new_privileges": True},
        {"init": True},
        {"network": "host"},
        {"cap_drop": ["ALL"]},
        {"cap_add": ["NET_ADMIN", "IPC_LOCK", "LINUX_IMMUTABLE"]},
    ],
    ids=str,
)
def test_every_class_of_the_default_filter_is_refused_on_every_way_into_the_kernel(make, options):
    check(make(EVERYTHING, **options))


@pytest.mark.parametrize("options", [{}, {"user": "1000"}], ids=str)
def test_and_to_a_process_that_an_exec_adds(make_by_exec, options):
    check(make_by_exec(EVERYTHING, **options))


@pytest.mark.parametrize("capability", BY_CAPABILITY)
def test_a_capability_opens_its_calls_and_no_others(make, capability):
    opened = on("64", BY_CAPABILITY[capability])
    free = make(opened, cap_add=[capability], seccomp="unconfined")
    assert make(opened, cap_add=[capability]) == free
    assert "EPERM" not in {key: value for key, value in free.items() if "clone" not in key}.values()
    others = set(every(REFUSED)) - {
        key for key in EVERYTHING if key.split()[1] in {call.split()[0] for call in BY_CAPABILITY[capability]}
    }
    kept = {key: EVERYTHING[key] for key in others if key.split()[1] not in ALSO_OPENED.get(capability, ())}
    assert set(make(kept, cap_add=[capability]).values()) == {"EPERM"}


ALSO_OPENED = {
    "CAP_SYS_ADMIN": ("fsconfig", "fspick", "lookup_dcookie", "lsm_get_self_attr", "lsm_set_self_attr", "quotactl_fd",
        "syslog", "unshare", "clone"),
    "CAP_SYS_NICE": ("set_mempolicy_home_node",),
}  # fmt: skip
"""Opened too, but without a good answer to arguments of zero."""


def test_a_call_that_is_filtered_is_not_opened_by_a_set_user_id_program(
    client, small_image, compiled, tmp_path
):
    program = tmp_path / "calls"
    program.write_bytes((compiled("calls") / "calls").read_bytes())
    program.chmod(0o4755)
    tmp_path.chmod(0o755)
    calls = on("64", ["mount", "unshare 0x10000000", "keyctl", "bpf"])
    result = client.containers.run(
        client.images.pull(small_image),
        [PROGRAM, *calls.values()],
        remove=True,
        user="1000",
        volumes=[f"{program}:{PROGRAM}:ro"],
    )
    assert set(answers(result.stdout, calls).values()) == {"EPERM"}
