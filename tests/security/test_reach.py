"""A program in a container that tries to see and touch the host in every way that we know (reach.c), and must fail in all.

What is tried is a table in reach.c; a new idea is one more function there. The same program is run on this machine itself, as
root: there each try has to work, or it could not fail inside either.
"""

from __future__ import annotations

import ctypes
import os
import platform
import socket
import subprocess
from pathlib import Path

import pytest

from probes import LIBC, NET_RAW, opens, reached

pytestmark = pytest.mark.privileged

PROGRAM = "/probe/reach"
HOST_NETWORK = {"abstract_socket", "loopback_of_the_host"}
"""What ``network="host"`` means: the machine's own sockets, names in the abstract namespace among them."""
SYS_RESOURCE = 24


def _lacks(*paths):
    return lambda: not any(Path(path).exists() for path in paths)


def _lacks_entries(*paths):
    return lambda: not any(Path(path).is_dir() and any(Path(path).iterdir()) for path in paths)


def _lacks_capability(number):
    status = Path("/proc/self/status").read_text().partition("CapEff:")[2]
    return lambda: not int(status.split()[0], 16) >> number & 1


NOT_ON_THIS_MACHINE = {
    "acpi": _lacks_entries("/proc/acpi", "/sys/firmware"),
    "binary_formats": _lacks("/proc/sys/fs/binfmt_misc"),
    "crypto_of_the_kernel": lambda: not _family(38),
    "crypto_with_high_bits": lambda: not _family(38),
    "debugging": _lacks_entries("/sys/kernel/debug", "/sys/kernel/tracing"),
    "firewall": _lacks("/proc/net/ip_tables_names"),
    "heat": _lacks_entries("/sys/devices/system/cpu/cpu0/thermal_throttle"),
    "kernel_exchanged": lambda: _is_absent(246),
    "less_likely_killed": _lacks_capability(SYS_RESOURCE),
    "memory_of_the_kernel": _lacks("/proc/kcore"),
    "module_loaded": lambda: _is_absent(175),
    "power": _lacks_entries("/sys/devices/virtual/powercap"),
    "scsi": _lacks_entries("/proc/scsi"),
    "setting_of_sysfs": _lacks("/sys/kernel/mm/transparent_hugepage/enabled"),
    "sockets_of_the_hypervisor": lambda: not _family(40),
    "sysctl_modprobe": _lacks("/proc/sys/kernel/modprobe"),
    "sysrq": _lacks("/proc/sysrq-trigger"),
    "timers": _lacks("/proc/timer_list"),
    "uevent_helper": _lacks("/sys/kernel/uevent_helper"),
    "file_by_root_of_1": lambda: not opens("/proc/1/root", os.O_DIRECTORY),
    "memory_device": lambda: not opens("/dev/mem"),
    "path_of_the_cgroup": lambda: True,  # this process need not be in one of ours: the last test shows it
    "port_device": lambda: not opens("/dev/port"),
    "ports_of_the_processor": lambda: platform.machine() != "x86_64" or _is_absent(172),
}
"""Tries that cannot work where the machine has not got their object."""


def _family(number):
    try:
        socket.socket(number, socket.SOCK_SEQPACKET if number == 38 else socket.SOCK_STREAM).close()
    except OSError:
        return False
    return True


def _is_absent(number):
    """Tell whether the kernel lacks a call, which has to refuse arguments of zero."""
    return LIBC.syscall(number, 0, 0, 0, 0) == -1 and ctypes.get_errno() == 38


def test_on_the_machine_itself_every_try_works(bait, compiled):
    """What the tests below need to be able to fail."""
    top = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    try:
        result = subprocess.run(
            [compiled("reach") / "reach", *bait],
            capture_output=True,
            check=True,
            stdin=subprocess.DEVNULL,
            pass_fds=[top],
        )
    finally:
        os.close(top)
    names = {line.split()[0] for line in result.stdout.decode().splitlines()}
    missing = names - reached(result.stdout)
    assert missing <= set(NOT_ON_THIS_MACHINE), result.stdout.decode()
    assert {name for name in missing if not NOT_ON_THIS_MACHINE[name]()} == set()


@pytest.fixture
def program(compiled, bait):
    return [PROGRAM, *bait], [f"{compiled('reach')}:/probe:ro"]


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({}, NET_RAW),
        ({"user": "1000:1000"}, set()),
        ({"cap_drop": ["ALL"]}, set()),
        ({"cap_drop": ["NET_RAW"], "no_new_privileges": True}, set()),
        ({"init": True}, NET_RAW),
        ({"read_only": True, "tmpfs": ["/tmp"]}, NET_RAW),
        ({"network": "host"}, NET_RAW | HOST_NETWORK),
        ({"network": "host", "user": "1000"}, HOST_NETWORK),
        ({"userns": "auto"}, NET_RAW),
        ({"userns": "auto", "user": "1000:1000"}, set()),
        ({"userns": "auto", "cap_drop": ["ALL"], "init": True}, set()),
        ({"userns": "auto", "network": "host"}, HOST_NETWORK),
    ],
    ids=str,
)
def test_a_container_reaches_nothing_of_the_host(client, image, program, options, allowed):
    command, volumes = program
    result = client.containers.run(image, command, remove=True, volumes=volumes, **options)
    assert reached(result.stdout) == allowed, result.stdout.decode()


@pytest.mark.needs_program("pasta")
@pytest.mark.parametrize("userns", ["host", "auto"])
def test_nor_does_one_behind_pasta(client, image, program, userns):
    command, volumes = program
    options = {"network": "pasta", "userns": userns}
    result = client.containers.run(image, command, remove=True, volumes=volumes, **options)
    assert reached(result.stdout) == NET_RAW


@pytest.mark.parametrize(("userns", "shared"), [("host", "host"), ("auto", "container")])
def test_nor_does_one_in_the_network_of_another(client, image, program, userns, shared):
    command, volumes = program
    other = client.containers.run(image, ["/bin/sleep", "600"], detach=True, userns=userns)
    network = f"container:{other.id}"
    userns = network if shared == "container" else shared
    try:
        result = client.containers.run(
            image, command, remove=True, volumes=volumes, network=network, userns=userns
        )
        assert reached(result.stdout) == NET_RAW
    finally:
        other.remove(force=True)


@pytest.mark.parametrize(("user", "allowed"), [(None, NET_RAW), ("1000", set())])
@pytest.mark.parametrize("userns", ["host", "auto"])
def test_nor_does_an_exec_before_and_after_a_restart(client, image, program, user, allowed, userns):
    command, volumes = program
    options = {"volumes": volumes, "userns": userns}
    container = client.containers.run(image, ["/bin/sleep", "600"], detach=True, **options)
    try:
        assert reached(container.exec(command, user=user).stdout) == allowed
        container.restart(timeout=0)
        assert reached(container.exec(command, user=user).stdout) == allowed
    finally:
        container.remove(force=True)


WITHOUT = [
    ({"masked_paths": []}, {"interrupts", "keys_of_others"}),
    ({"readonly_paths": []}, {"mode_of_a_setting", "sysctl_core_pattern", "sysctl_memory", "sysctl_network"}),
    (
        {"seccomp": "unconfined"},
        {"key_kept", "keyring_seen", "layout_without_chance", "rings", "user_namespace"},
    ),
    (
        {"cap_add": ["SYS_ADMIN"]},
        {"bind_mount", "host_named", "mask_taken_off", "new_mount", "proc_writable"},
    ),
    ({"cap_add": ["ALL"]}, {"accounted", "clock_set", "file_by_handle", "file_kept_for_ever", "log_by_call"}),
    ({"privileged": True}, {"cgroup_within", "limits_of_the_cgroup", "log_by_device", "mode_in_sysfs"}),
]
"""What falls with each of the defences, by options that take it away."""


def test_ids_of_its_own_hold_by_themselves_what_is_done_to_the_machine(client, image, program):
    """Without any other defence: what works then is done to what belongs to the container, or is open to everybody."""
    command, volumes = program
    options = {"cap_add": ["ALL"], "seccomp": "unconfined", "masked_paths": [], "readonly_paths": []}
    found = {
        userns: reached(
            client.containers.run(
                image, command, remove=True, volumes=volumes, userns=userns, **options
            ).stdout
        )
        for userns in ("host", "auto")
    }
    assert found["auto"] <= found["host"]
    assert found["host"] - found["auto"] >= {
        "accounted",
        "clock_set",
        "clock_slewed",
        "file_by_handle",
        "file_kept_for_ever",
        "log_by_call",
        "mode_of_a_setting",
        "sysctl_core_pattern",
        "sysctl_files",
        "sysctl_memory",
        "trusted_attributes",
    }


@pytest.mark.parametrize(("options", "fallen"), WITHOUT, ids=str)
def test_each_defence_is_what_holds_its_tries(client, image, program, options, fallen):
    command, volumes = program
    result = client.containers.run(image, command, remove=True, volumes=volumes, **options)
    assert fallen <= reached(result.stdout), result.stdout.decode()


def test_namespaces_of_processes_and_messages_hold_theirs(client, image, program):
    command, volumes = program

    def without(spec):
        kept = [one for one in spec["linux"]["namespaces"] if one["type"] not in ("pid", "ipc", "cgroup")]
        spec["linux"]["namespaces"] = kept

    result = client.containers.run(image, command, remove=True, volumes=volumes, spec=without)
    fallen = {
        "messages",
        "queue",
        "semaphores",
        "shared_memory",
        "signal_to_a_process",
        "signal_to_the_monitor",
    }
    assert fallen | {"handle_of_a_process", "path_of_the_cgroup"} <= reached(result.stdout)


def test_a_fork_bomb_stays_within_its_limit_and_goes_with_its_container(client, image):
    container = client.containers.run(
        image, ["/bin/sh", "-c", "bomb() { bomb | bomb & }; bomb; sleep 600"], detach=True, pids_limit=64
    )
    try:
        counts = [container.stats().pids.current for _ in range(20)]
        assert max(counts) <= 64
        assert client.containers.run(image, ["/bin/true"], remove=True).exit_code == 0
    finally:
        pid = container.pid
        container.remove(force=True)
    assert not Path(f"/proc/{pid}").exists()


def test_a_memory_bomb_ends_with_its_container_alone(client, image):
    other = client.containers.run(image, ["/bin/sleep", "600"], detach=True)
    try:
        script = "x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done"
        result = client.containers.run(image, ["/bin/sh", "-c", script], memory="24m", remove=True)
        assert (result.exit_code, result.oom_killed) == (137, True)
        assert other.status == "running"
    finally:
        other.remove(force=True)


def test_a_container_does_not_see_where_its_cgroup_is(client, image):
    container = client.containers.run(image, ["/bin/sleep", "600"], detach=True)
    try:
        inside = container.exec(["/bin/cat", "/proc/self/cgroup"]).stdout.decode()
        outside = Path(f"/proc/{container.pid}/cgroup").read_text()
    finally:
        container.remove(force=True)
    assert "/lamella/" in outside
    assert "/lamella" not in inside
