"""What a container uses, as containerd's metrics have it: a message for each version of cgroups.

Sources: the kernel's admin-guide/cgroup-v1 and cgroup-v2.rst for the files; containerd/cgroups, stats, for the messages.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from lamella.serve.api import cgroup1_pb2, cgroup2_pb2

if TYPE_CHECKING:
    from lamella.containers.cgroups import Cgroup

_UNLIMITED = 2**64 - 1
_TICK_NANOSECONDS = 10_000_000
"""cpuacct.stat counts in hundredths of a second, whatever the kernel's own tick is (USER_HZ)."""
_MEMORY_V1 = {
    "pgpgin": "pg_pg_in", "pgpgout": "pg_pg_out", "pgfault": "pg_fault", "pgmajfault": "pg_maj_fault",
    "total_pgpgin": "total_pg_pg_in", "total_pgpgout": "total_pg_pg_out", "total_pgfault": "total_pg_fault",
    "total_pgmajfault": "total_pg_maj_fault", "hierarchical_memsw_limit": "hierarchical_swap_limit",
}  # fmt: skip
"""Fields that are called otherwise than in memory.stat."""


def metrics_of(cgroup: Cgroup) -> cgroup1_pb2.Metrics | cgroup2_pb2.Metrics:
    """Read what a cgroup counts. FileNotFoundError when it is gone."""
    cgroup.check()
    return _unified(cgroup) if cgroup.unified else _first_version(cgroup)


def _first_version(cgroup: Cgroup) -> cgroup1_pb2.Metrics:
    cpu = cgroup.table("cpuacct", "cpuacct.stat")
    throttling = cgroup.table("cpu", "cpu.stat")
    per_cpu = " ".join(cgroup.lines("cpuacct", "cpuacct.usage_percpu")).split()
    memory = {_MEMORY_V1.get(key, key): value for key, value in cgroup.table("memory", "memory.stat").items()}
    oom = cgroup.table("memory", "memory.oom_control")
    return cgroup1_pb2.Metrics(
        pids=cgroup1_pb2.PidsStat(
            current=cgroup.number("pids", "pids.current") or 0, limit=cgroup.number("pids", "pids.max") or 0
        ),
        cpu=cgroup1_pb2.CPUStat(
            usage=cgroup1_pb2.CPUUsage(
                total=cgroup.number("cpuacct", "cpuacct.usage") or 0,
                user=cpu.get("user", 0) * _TICK_NANOSECONDS,
                kernel=cpu.get("system", 0) * _TICK_NANOSECONDS,
                per_cpu=map(int, per_cpu),
            ),
            throttling=cgroup1_pb2.Throttle(
                periods=throttling.get("nr_periods", 0),
                throttled_periods=throttling.get("nr_throttled", 0),
                throttled_time=throttling.get("throttled_time", 0),
            ),
        ),
        memory=cgroup1_pb2.MemoryStat(
            **_known(memory, cgroup1_pb2.MemoryStat.DESCRIPTOR.fields_by_name)
            | {
                "usage": _memory_entry(cgroup, "memory"),
                "swap": _memory_entry(cgroup, "memory.memsw"),
                "kernel": _memory_entry(cgroup, "memory.kmem"),
                "kernel_tcp": _memory_entry(cgroup, "memory.kmem.tcp"),
            },
        ),
        memory_oom_control=cgroup1_pb2.MemoryOomControl(
            **_known(oom, cgroup1_pb2.MemoryOomControl.DESCRIPTOR.fields_by_name)
        ),
        blkio=cgroup1_pb2.BlkIOStat(
            io_service_bytes_recursive=_block_io(cgroup, "blkio.throttle.io_service_bytes_recursive"),
            io_serviced_recursive=_block_io(cgroup, "blkio.throttle.io_serviced_recursive"),
        ),
    )


def _memory_entry(cgroup: Cgroup, prefix: str) -> cgroup1_pb2.MemoryEntry:
    return cgroup1_pb2.MemoryEntry(
        usage=cgroup.number("memory", f"{prefix}.usage_in_bytes") or 0,
        max=cgroup.number("memory", f"{prefix}.max_usage_in_bytes") or 0,
        failcnt=cgroup.number("memory", f"{prefix}.failcnt") or 0,
        limit=cgroup.number("memory", f"{prefix}.limit_in_bytes") or 0,
    )


def _block_io(cgroup: Cgroup, file: str) -> list[cgroup1_pb2.BlkIOEntry]:
    entries = []
    for line in cgroup.lines("blkio", file):
        words = line.split()
        numbers = words[0].split(":")
        if len(words) == 3 and len(numbers) == 2:
            entries.append(
                cgroup1_pb2.BlkIOEntry(
                    op=words[1], major=int(numbers[0]), minor=int(numbers[1]), value=int(words[2])
                )
            )
    return entries


def _unified(cgroup: Cgroup) -> cgroup2_pb2.Metrics:
    memory = cgroup.table("", "memory.stat")
    return cgroup2_pb2.Metrics(
        pids=cgroup2_pb2.PidsStat(
            current=cgroup.number("", "pids.current") or 0, limit=cgroup.number("", "pids.max") or 0
        ),
        cpu=cgroup2_pb2.CPUStat(
            **_known(cgroup.table("", "cpu.stat"), cgroup2_pb2.CPUStat.DESCRIPTOR.fields_by_name)
        ),
        memory=cgroup2_pb2.MemoryStat(
            **_known(memory, cgroup2_pb2.MemoryStat.DESCRIPTOR.fields_by_name)
            | {
                "usage": cgroup.number("", "memory.current") or 0,
                "usage_limit": _limit(cgroup, "memory.max"),
                "swap_usage": cgroup.number("", "memory.swap.current") or 0,
                "swap_limit": _limit(cgroup, "memory.swap.max"),
            }
        ),
        memory_events=cgroup2_pb2.MemoryEvents(
            **_known(cgroup.table("", "memory.events"), cgroup2_pb2.MemoryEvents.DESCRIPTOR.fields_by_name)
        ),
        io=cgroup2_pb2.IOStat(usage=_io_entries(cgroup.lines("", "io.stat"))),
    )


def _limit(cgroup: Cgroup, file: str) -> int:
    limit = cgroup.number("", file)
    return _UNLIMITED if limit is None else limit


def _io_entries(lines: Iterable[str]) -> list[cgroup2_pb2.IOEntry]:
    entries = []
    for line in lines:
        device, *words = line.split()
        major, _, minor = device.partition(":")
        pairs = dict(word.split("=", 1) for word in words if "=" in word)
        entry = cgroup2_pb2.IOEntry(major=int(major), minor=int(minor))
        for name in ("rbytes", "wbytes", "rios", "wios"):
            setattr(entry, name, int(pairs.get(name, 0)))
        entries.append(entry)
    return entries


def _known(numbers: Mapping[str, int], fields: Iterable[str]) -> dict[str, Any]:
    """Give the numbers that a message has fields for: kernels count more from one release to the next."""
    return {name: numbers[name] for name in fields if name in numbers}
