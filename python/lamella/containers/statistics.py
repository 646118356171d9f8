"""What a running container uses: read from its cgroup and its network namespace, never from a daemon.

The numbers mean the same on cgroup v1, hybrid and v2. Memory is counted as docker does: without the file cache that nobody has
used for a while, since the kernel gives that back first. A controller that the machine has not is zero or None.
Sources: the kernel's cgroup-v1/memory.rst, cpuacct.rst and blkio-controller.rst, cgroup-v2.rst; proc_pid_net(5).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from lamella.containers.cgroups import Cgroup
from lamella.metadata import timestamp
from lamella.structs import Struct, replace

_NO_LIMIT = 1 << 60
"""What v1 shows as a limit where there is none is this or more."""
_HOST_STATUS = Path("/proc/meminfo")


class CpuStatistics(Struct, frozen=True, kw_only=True):
    """Processor time since the start, in nanoseconds.

    ``percent`` is the share of one processor since the reading before (200 for two busy ones), None in the first.
    """

    usage: int = 0
    user: int = 0
    system: int = 0
    percent: float | None = None
    throttled: int = 0
    throttled_periods: int = 0
    periods: int = 0


class MemoryStatistics(Struct, frozen=True, kw_only=True):
    """Bytes. ``usage`` is without ``cache`` that can be given back, ``peak`` is with it.

    ``limit`` is the machine's memory where none is set.
    """

    usage: int = 0
    cache: int = 0
    limit: int = 0
    peak: int | None = None
    swap: int = 0
    oom_kills: int = 0

    @property
    def percent(self) -> float:
        """The part of the limit that is in use."""
        return 100 * self.usage / self.limit if self.limit else 0.0


class IoStatistics(Struct, frozen=True, kw_only=True):
    """What went to and came from block devices since the start, in bytes and operations."""

    read_bytes: int = 0
    write_bytes: int = 0
    reads: int = 0
    writes: int = 0


class PidsStatistics(Struct, frozen=True, kw_only=True):
    """Processes and threads; ``limit`` is None where none is set."""

    current: int = 0
    limit: int | None = None


class NetworkStatistics(Struct, frozen=True, kw_only=True):
    """What one interface received and sent."""

    rx_bytes: int = 0
    rx_packets: int = 0
    rx_errors: int = 0
    rx_dropped: int = 0
    tx_bytes: int = 0
    tx_packets: int = 0
    tx_errors: int = 0
    tx_dropped: int = 0


class Statistics(Struct, frozen=True, kw_only=True):
    """One reading. ``networks`` is by interface, without the loopback; empty with the host's network.

    ``read_at`` is the time of the reading (RFC 3339, UTC), ``uptime`` a clock in seconds that only goes forward.
    """

    id: str
    name: str
    read_at: str
    uptime: float
    cpu: CpuStatistics
    memory: MemoryStatistics
    io: IoStatistics
    pids: PidsStatistics
    networks: dict[str, NetworkStatistics]


def read_statistics(cgroup: Cgroup, *, id: str, name: str, pid: int | None) -> Statistics:
    """Read what a cgroup uses; ``pid`` is a process in the container's network namespace. FileNotFoundError when it is gone."""
    cgroup.check()
    now = time.monotonic()
    return Statistics(
        id=id,
        name=name,
        read_at=timestamp(),
        uptime=now,
        cpu=_cpu(cgroup),
        memory=_memory(cgroup),
        io=_io(cgroup),
        pids=_pids(cgroup),
        networks=_networks(pid) if pid is not None else {},
    )


def with_percent(present: Statistics, before: Statistics | None) -> Statistics:
    """Fill in the processor's percentage by an earlier reading of the same run."""
    if before is None or present.uptime <= before.uptime or present.cpu.usage < before.cpu.usage:
        return present
    seconds = present.uptime - before.uptime
    percent = (present.cpu.usage - before.cpu.usage) / seconds / 1e7
    return replace(present, cpu=replace(present.cpu, percent=percent))


def follow_statistics(read: Callable[[], Statistics | None], interval: float) -> Iterator[Statistics]:
    """Yield a reading now and one after each ``interval`` seconds, until ``read`` gives None."""
    before = None
    next_at = time.monotonic()
    while (present := read()) is not None:
        yield with_percent(present, before)
        before = present
        # A reader that is slow gets fewer readings, not older ones.
        next_at = max(next_at + interval, time.monotonic())
        time.sleep(max(0.0, next_at - time.monotonic()))


def _cpu(cgroup: Cgroup) -> CpuStatistics:
    if cgroup.unified:
        found = cgroup.table("", "cpu.stat")
        return CpuStatistics(
            usage=found.get("usage_usec", 0) * 1000,
            user=found.get("user_usec", 0) * 1000,
            system=found.get("system_usec", 0) * 1000,
            throttled=found.get("throttled_usec", 0) * 1000,
            throttled_periods=found.get("nr_throttled", 0),
            periods=found.get("nr_periods", 0),
        )
    found = cgroup.table("cpu", "cpu.stat")
    return CpuStatistics(
        usage=cgroup.number("cpuacct", "cpuacct.usage") or 0,
        user=cgroup.number("cpuacct", "cpuacct.usage_user") or 0,
        system=cgroup.number("cpuacct", "cpuacct.usage_sys") or 0,
        throttled=found.get("throttled_time", 0),
        throttled_periods=found.get("nr_throttled", 0),
        periods=found.get("nr_periods", 0),
    )


def _memory(cgroup: Cgroup) -> MemoryStatistics:
    stat = cgroup.table("memory", "memory.stat")
    if cgroup.unified:
        total = cgroup.number("", "memory.current") or 0
        cache = stat.get("inactive_file", 0)
        limit = cgroup.number("", "memory.max")
        peak = cgroup.number("", "memory.peak")
        swap = cgroup.number("", "memory.swap.current") or 0
        kills = cgroup.table("", "memory.events").get("oom_kill", 0)
    else:
        total = cgroup.number("memory", "memory.usage_in_bytes") or 0
        cache = stat.get("total_inactive_file", 0)
        limit = cgroup.number("memory", "memory.limit_in_bytes")
        peak = cgroup.number("memory", "memory.max_usage_in_bytes")
        swap = stat.get("total_swap", 0)
        kills = cgroup.table("memory", "memory.oom_control").get("oom_kill", 0)
    machine = _machine_memory()
    return MemoryStatistics(
        usage=max(0, total - cache),
        cache=min(cache, total),
        limit=machine if limit is None or limit >= _NO_LIMIT else min(limit, machine or limit),
        peak=peak,
        swap=swap,
        oom_kills=kills,
    )


def _machine_memory() -> int:
    with _HOST_STATUS.open(encoding="ascii") as lines:
        for line in lines:
            if line.startswith("MemTotal:"):
                return int(line.split()[1]) * 1024
    return 0


def _io(cgroup: Cgroup) -> IoStatistics:
    if cgroup.unified:
        return parse_io_stat(cgroup.lines("", "io.stat"))
    for kind in ("throttle.%s_recursive", "throttle.%s", "bfq.%s_recursive"):
        sizes = cgroup.lines("blkio", f"blkio.{kind % 'io_service_bytes'}")
        counts = cgroup.lines("blkio", f"blkio.{kind % 'io_serviced'}")
        if sizes or counts:
            size, count = _by_direction(sizes), _by_direction(counts)
            return IoStatistics(
                read_bytes=size["Read"],
                write_bytes=size["Write"],
                reads=count["Read"],
                writes=count["Write"],
            )
    return IoStatistics()


def parse_io_stat(lines: Iterable[str]) -> IoStatistics:
    """Add up v2's ``8:0 rbytes=1 wbytes=2 rios=3 wios=4``, a line a device."""
    total = dict.fromkeys(("rbytes", "wbytes", "rios", "wios"), 0)
    for line in lines:
        for word in line.split()[1:]:
            key, _, value = word.partition("=")
            if key in total and value.isdigit():
                total[key] += int(value)
    return IoStatistics(
        read_bytes=total["rbytes"], write_bytes=total["wbytes"], reads=total["rios"], writes=total["wios"]
    )


def _by_direction(lines: Iterable[str]) -> Mapping[str, int]:
    """Add up v1's ``8:0 Read 4096``, a line a device and direction."""
    total = {"Read": 0, "Write": 0}
    for line in lines:
        fields = line.split()
        if len(fields) == 3 and fields[1] in total and fields[2].isdigit():
            total[fields[1]] += int(fields[2])
    return total


def _pids(cgroup: Cgroup) -> PidsStatistics:
    return PidsStatistics(
        current=cgroup.number("pids", "pids.current") or 0, limit=cgroup.number("pids", "pids.max")
    )


def _networks(pid: int) -> dict[str, NetworkStatistics]:
    try:
        process = os.open(f"/proc/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return {}
    try:
        # Through the one descriptor: a process that takes over the number meanwhile is not looked at.
        folder = f"/proc/self/fd/{process}"
        if os.stat(f"{folder}/ns/net").st_ino == os.stat("/proc/self/ns/net").st_ino:  # noqa: PTH116 (no path of a disk)
            return {}
        return parse_net_dev(Path(folder, "net/dev").read_text(encoding="ascii", errors="replace"))
    except OSError:
        return {}
    finally:
        os.close(process)


def parse_net_dev(text: str) -> dict[str, NetworkStatistics]:
    """Parse /proc/PID/net/dev; the loopback is left out."""
    found = {}
    for line in text.splitlines()[2:]:
        name, _, rest = line.rpartition(":")
        numbers = [int(word) for word in rest.split() if word.isdigit()]
        if name.strip() in ("", "lo") or len(numbers) < 12:
            continue
        received, sent = numbers[:4], numbers[8:12]
        found[name.strip()] = NetworkStatistics(
            rx_bytes=received[0],
            rx_packets=received[1],
            rx_errors=received[2],
            rx_dropped=received[3],
            tx_bytes=sent[0],
            tx_packets=sent[1],
            tx_errors=sent[2],
            tx_dropped=sent[3],
        )
    return found
