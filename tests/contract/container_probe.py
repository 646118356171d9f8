"""What a program of a container sees of itself and around it, as plain values that two runtimes can be compared by.

The probe is a shell script of ``cat``, ``ls`` and ``stat``, so that any image with a shell will do. Numbers that differ with
every run (inodes, process ids, sizes of what is counted) are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lamella.containers.defaults import MASKED_PATHS, READONLY_PATHS

_STATUS = re.compile(
    "Cap|NoNewPrivs|Seccomp|Uid|Gid|Groups|Umask|Threads|Sig(Blk|Ign|Cgt)|THP|Speculation|CoreDumping"
)
SYSCTLS = (
    "net/ipv4/ip_forward",
    "kernel/domainname",
    "kernel/hostname",
    "net/ipv4/ping_group_range",
    "kernel/shmmax",
)
SCRIPT = f"""
section() {{ echo "== $1"; }}
section status; cat /proc/self/status
section namespaces; ls -l /proc/self/ns
section mounts; cat /proc/self/mountinfo
section limits; cat /proc/self/limits
section cgroups; cat /proc/self/cgroup
section devices; for path in /dev/* /dev/pts/* /dev/shm/* /dev/mqueue/*; do stat -c "%n=%A %U:%G %t:%T %N" $path 2>/dev/null; done
section descriptors; ls -l /proc/self/fd
section environment; env
section folder; pwd
section umask; umask
section ids; id
section oom; cat /proc/self/oom_score_adj
section process; cat /proc/$$/stat
section first; cat /proc/1/stat
section personality; cat /proc/self/personality 2>&1
section sysctls; for name in {" ".join(SYSCTLS)}; do echo "$name=$(cat /proc/sys/$name 2>&1)"; done
section memory; cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null
section pids; cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null
section cpu; cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu.max 2>/dev/null
section hidden; for path in {" ".join(MASKED_PATHS)}; do
    stat -c "$path=%F %t:%T %a" $path 2>/dev/null || echo "$path=missing"; done
section frozen; for path in {" ".join(READONLY_PATHS)}; do
    if [ -w $path ]; then echo "$path=writable"; else echo "$path=not"; fi; done
section files; for path in /etc/hosts /etc/hostname /etc/resolv.conf / /tmp /dev /dev/null /dev/pts/ptmx /dev/console; do
    stat -c "$path=%F %a %u:%g %t:%T" $path 2>/dev/null || echo "$path=missing"; done
section end
"""


def findings(output: bytes) -> dict[str, str]:
    """Give what the script has found, by a name for each thing."""
    found: dict[str, str] = {}
    for name, lines in _sections(output.decode()):
        reader = _READERS.get(name, _lines)
        for key, value in reader(lines):
            found[f"{name} {key}".strip()] = value
    return found


def _sections(text: str) -> Iterator[tuple[str, list[str]]]:
    name, lines = "", []
    for line in text.replace("\r", "").splitlines():
        if line.startswith("== "):
            yield name, lines
            name, lines = line.removeprefix("== "), []
        else:
            lines.append(line)


def _lines(lines: list[str]) -> Iterator[tuple[str, str]]:
    yield "", " ".join(lines)


def _pairs(lines: list[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        key, _, value = line.partition("=")
        yield key, value


def _status(lines: list[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        key, _, value = line.partition(":")
        if _STATUS.match(key):
            yield key, " ".join(value.split())


def _namespaces(lines: list[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        if "->" in line:
            kind, _, target = line.rpartition(" -> ")[0].split()[-1], "", line.rpartition(" -> ")[2]
            host = str(Path(f"/proc/self/ns/{kind}").readlink())
            yield kind, "the host's" if target == host else "its own"


def _mounts(lines: list[str]) -> Iterator[tuple[str, str]]:
    seen: dict[str, int] = {}
    for line in lines:
        left, _, right = line.partition(" - ")
        _, _, _, root, point, options, *tags = left.split()
        kind, _, more = right.split(" ", 2)
        if point in MASKED_PATHS:
            point = "(masked folders)" if root == "/" else "(masked files)"
        elif point.startswith("/dev/") and kind in ("devtmpfs", "tmpfs") and root != "/":
            point = "(device nodes)"
        elif kind not in ("tmpfs", "overlay", "proc", "sysfs", "cgroup", "cgroup2", "devpts", "mqueue"):
            kind, more = "bind", ""  # of whatever file system the host has
        if not point.startswith("("):
            count = seen[point] = seen.get(point, 0) + 1
            point = point if count == 1 else f"{point} ({count})"
        flags = ",".join(sorted(options.split(",")))
        shared = sorted(re.sub(r":\d+", "", tag) for tag in tags)
        # What a file system says of itself beyond that, but for where an overlay's layers lie and what the machine has.
        extra = [
            word
            for word in more.split(",")
            if not re.match("lowerdir|upperdir|workdir|inode64|nr_inodes", word)
        ]
        if point.startswith("("):
            extra = []
        yield (
            point,
            " ".join([kind, flags, *shared, *(["and", ",".join(sorted(extra))] if any(extra) else [])]),
        )


def _limits(lines: list[str]) -> Iterator[tuple[str, str]]:
    for line in lines[1:]:
        yield line[:25].strip(), " ".join(line[25:].split()[:2])


def _devices(lines: list[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        path, _, rest = line.partition("=")
        node, _, name = rest.partition(" '")
        yield path, f"{node} {name.partition(' -> ')[2]}".strip()


def _descriptors(lines: list[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        if "->" in line:
            number, _, target = line.rpartition(" -> ")[0].split()[-1], "", line.rpartition(" -> ")[2]
            if not target.startswith("/proc/"):  # the folder that ls reads
                yield number, re.sub(r":\[\d+\]", "", target)


def _process(lines: list[str]) -> Iterator[tuple[str, str]]:
    fields = lines[0].rpartition(")")[2].split()
    pid = lines[0].split()[0]
    for key, index in (("process group", 2), ("session", 3), ("terminal", 4), ("nice", 16), ("priority", 15)):
        value = fields[index]
        yield key, "itself" if value == pid and key in ("process group", "session") else value


_READERS: dict[str, Any] = {
    "status": _status,
    "namespaces": _namespaces,
    "mounts": _mounts,
    "limits": _limits,
    "devices": _devices,
    "descriptors": _descriptors,
    "environment": _pairs,
    "process": _process,
    "first": _process,
    "sysctls": _pairs,
    "hidden": _pairs,
    "frozen": _pairs,
    "files": _pairs,
}
