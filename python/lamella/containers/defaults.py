"""What a container gets when nothing else is said: Docker's defaults, written as data.

Sources: OCI runtime spec, config-linux.md ("Default Devices", "Default Filesystems"); capabilities(7); the masked and read-only
paths are those that Docker, containerd and podman agree on.
"""

from __future__ import annotations

import os
from functools import cache

from lamella.containers.runtime_spec import DeviceRule, Mount

OCI_VERSION = "1.1.0"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SHM_SIZE = 64 * 1024 * 1024

CAPABILITIES = (
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
)

ALL_CAPABILITIES = (
    *CAPABILITIES,
    "CAP_AUDIT_CONTROL",
    "CAP_AUDIT_READ",
    "CAP_BLOCK_SUSPEND",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
    "CAP_DAC_READ_SEARCH",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_LEASE",
    "CAP_LINUX_IMMUTABLE",
    "CAP_MAC_ADMIN",
    "CAP_MAC_OVERRIDE",
    "CAP_NET_ADMIN",
    "CAP_NET_BROADCAST",
    "CAP_PERFMON",
    "CAP_SYSLOG",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_MODULE",
    "CAP_SYS_NICE",
    "CAP_SYS_PACCT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_WAKE_ALARM",
)

MASKED_PATHS = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
]


@cache
def masked_paths(cpus: str = "/sys/devices/system/cpu") -> list[str]:
    """Give MASKED_PATHS, and for each processor that counts how often it was too hot the folder of those counts.

    They tell a container what others compute (GHSA-6fw5-f8r9-fgfm). Which processors have them is looked at once a process.
    """
    folders = (f"{cpus}/cpu{number}/thermal_throttle" for number in range(os.sysconf("SC_NPROCESSORS_CONF")))
    return [*MASKED_PATHS, *filter(os.path.isdir, folders)]


READONLY_PATHS = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]

DEVICE_RULES = [
    DeviceRule(allow=False, access="rwm"),
    DeviceRule(allow=True, type="c", access="m"),
    DeviceRule(allow=True, type="b", access="m"),
    DeviceRule(allow=True, type="c", major=1, minor=3, access="rwm"),  # null
    DeviceRule(allow=True, type="c", major=1, minor=5, access="rwm"),  # zero
    DeviceRule(allow=True, type="c", major=1, minor=7, access="rwm"),  # full
    DeviceRule(allow=True, type="c", major=1, minor=8, access="rwm"),  # random
    DeviceRule(allow=True, type="c", major=1, minor=9, access="rwm"),  # urandom
    DeviceRule(allow=True, type="c", major=5, minor=0, access="rwm"),  # tty
    DeviceRule(allow=True, type="c", major=5, minor=1, access="rwm"),  # console
    DeviceRule(allow=True, type="c", major=5, minor=2, access="rwm"),  # ptmx
    DeviceRule(allow=True, type="c", major=136, access="rwm"),  # pts
]


def mounts(*, shm_size: int, writable_sys: bool) -> list[Mount]:
    """Give the filesystems that every container has."""
    sys_access = "rw" if writable_sys else "ro"
    return [
        Mount(destination="/proc", type="proc", source="proc", options=["nosuid", "noexec", "nodev"]),
        Mount(
            destination="/dev",
            type="tmpfs",
            source="tmpfs",
            options=["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        Mount(
            destination="/dev/pts",
            type="devpts",
            source="devpts",
            options=["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        Mount(
            destination="/sys",
            type="sysfs",
            source="sysfs",
            options=["nosuid", "noexec", "nodev", sys_access],
        ),
        Mount(
            destination="/sys/fs/cgroup",
            type="cgroup",
            source="cgroup",
            options=["nosuid", "noexec", "nodev", "relatime", sys_access],
        ),
        Mount(
            destination="/dev/mqueue", type="mqueue", source="mqueue", options=["nosuid", "noexec", "nodev"]
        ),
        Mount(
            destination="/dev/shm",  # noqa: S108 (inside the container)
            type="tmpfs",
            source="shm",
            options=["nosuid", "noexec", "nodev", "mode=1777", f"size={shm_size}"],
        ),
    ]
