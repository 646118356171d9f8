"""Statistics and processes, read from faked cgroups of both kinds."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from lamella.containers import statistics
from lamella.containers.cgroups import Cgroup
from lamella.containers.processes import list_processes
from lamella.containers.statistics import (
    IoStatistics,
    NetworkStatistics,
    follow_statistics,
    parse_net_dev,
    read_statistics,
    with_percent,
)

PATH = "/lamella/default/box"
GIBIBYTE = 1 << 30


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """Give the machine four gibibytes."""
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:        4194304 kB\nMemFree: 1 kB\n")
    monkeypatch.setattr(statistics, "_HOST_STATUS", meminfo)


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        controller, _, file = name.rpartition("/")
        folder = root / controller / PATH.strip("/")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text)


@pytest.fixture
def legacy(tmp_path):
    root = tmp_path / "v1"
    write(
        root,
        {
            "cpu,cpuacct/cpuacct.usage": "5000000000\n",
            "cpu,cpuacct/cpuacct.usage_user": "4000000000\n",
            "cpu,cpuacct/cpuacct.usage_sys": "1000000000\n",
            "cpu,cpuacct/cpu.stat": "nr_periods 9\nnr_throttled 3\nthrottled_time 700\n",
            "memory/memory.usage_in_bytes": "9000\n",
            "memory/memory.max_usage_in_bytes": "9500\n",
            "memory/memory.limit_in_bytes": "20000\n",
            "memory/memory.stat": "cache 5000\ninactive_file 1\ntotal_inactive_file 3000\ntotal_swap 11\n",
            "memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
            "blkio/blkio.throttle.io_service_bytes_recursive": "8:0 Read 10\n8:0 Write 20\n8:16 Read 1\nTotal 31\n",
            "blkio/blkio.throttle.io_serviced_recursive": "8:0 Read 3\n8:0 Write 4\nTotal 7\n",
            "pids/pids.current": "5\n",
            "pids/pids.max": "100\n",
        },
    )
    return root


@pytest.fixture
def unified(tmp_path):
    root = tmp_path / "v2"
    root.mkdir()
    (root / "cgroup.controllers").write_text("cpu memory io pids\n")
    write(
        root,
        {
            "cpu.stat": "usage_usec 5000000\nuser_usec 4000000\nsystem_usec 1000000\n"
            "nr_periods 9\nnr_throttled 3\nthrottled_usec 7\n",
            "memory.current": "9000\n",
            "memory.peak": "9500\n",
            "memory.max": "20000\n",
            "memory.stat": "anon 1\ninactive_file 3000\n",
            "memory.swap.current": "11\n",
            "memory.events": "oom 4\noom_kill 2\n",
            "io.stat": "8:0 rbytes=10 wbytes=20 rios=3 wios=4 dbytes=0 dios=0\n8:16 rbytes=1 wbytes=0 rios=0 wios=0\n",
            "pids.current": "5\n",
            "pids.max": "100\n",
        },
    )
    return root


@pytest.mark.parametrize("kind", ["legacy", "unified"])
def test_the_numbers_mean_the_same_on_both_kinds(kind, request):
    cgroup = Cgroup(PATH, request.getfixturevalue(kind))
    assert cgroup.unified == (kind == "unified")
    found = read_statistics(cgroup, id="i", name="n", pid=None)
    assert (found.cpu.usage, found.cpu.user, found.cpu.system) == (5 * 10**9, 4 * 10**9, 10**9)
    assert (found.cpu.periods, found.cpu.throttled_periods) == (9, 3)
    assert found.cpu.throttled == (7000 if kind == "unified" else 700)
    memory = found.memory
    assert (memory.usage, memory.cache, memory.peak, memory.limit) == (6000, 3000, 9500, 20000)
    assert (memory.swap, memory.oom_kills, memory.percent) == (11, 2, 30.0)
    assert found.io == IoStatistics(read_bytes=11, write_bytes=20, reads=3, writes=4)
    assert (found.pids.current, found.pids.limit) == (5, 100)
    assert (found.id, found.name, found.networks) == ("i", "n", {})


@pytest.mark.parametrize("kind", ["legacy", "unified"])
def test_without_a_limit_it_is_the_machines_memory(kind, request):
    root = request.getfixturevalue(kind)
    folder = root / ("" if kind == "unified" else "memory") / PATH.strip("/")
    name, text = ("memory.max", "max") if kind == "unified" else ("memory.limit_in_bytes", str(2**63 - 4096))
    (folder / name).write_text(f"{text}\n")
    cgroup = Cgroup(PATH, root)
    assert read_statistics(cgroup, id="i", name="n", pid=None).memory.limit == 4 * GIBIBYTE
    (folder / name).write_text(f"{5 * GIBIBYTE}\n")
    assert read_statistics(cgroup, id="i", name="n", pid=None).memory.limit == 4 * GIBIBYTE


def test_a_controller_that_the_machine_has_not_counts_nothing(tmp_path):
    root = tmp_path / "v1"
    write(root, {"pids/pids.current": "1\n", "pids/pids.max": "max\n"})
    found = read_statistics(Cgroup(PATH, root), id="i", name="n", pid=None)
    assert (found.cpu.usage, found.memory.usage, found.io.reads, found.memory.peak) == (0, 0, 0, None)
    assert (found.pids.current, found.pids.limit) == (1, None)


def test_a_cgroup_that_is_gone_is_told(legacy):
    with pytest.raises(FileNotFoundError):
        read_statistics(Cgroup("/lamella/default/other", legacy), id="i", name="n", pid=None)


def reading(usage: int, uptime: float) -> statistics.Statistics:
    return statistics.Statistics(
        id="i",
        name="n",
        read_at="",
        uptime=uptime,
        cpu=statistics.CpuStatistics(usage=usage),
        memory=statistics.MemoryStatistics(),
        io=IoStatistics(),
        pids=statistics.PidsStatistics(),
        networks={},
    )


def test_the_percentage_is_of_one_processor_since_the_reading_before():
    before = reading(10**9, 100.0)
    assert with_percent(reading(4 * 10**9, 102.0), before).cpu.percent == 150.0
    assert with_percent(before, None).cpu.percent is None
    # It was started again in between: the counter began anew.
    assert with_percent(reading(5, 102.0), before).cpu.percent is None


def test_a_stream_ends_with_the_container_and_its_first_reading_has_no_percentage():
    readings = [reading(0, 1.0), reading(10**9, 2.0), None]
    found = list(follow_statistics(lambda: readings.pop(0), 0.001))
    assert [item.cpu.percent for item in found] == [None, 100.0]


def test_interfaces_are_counted_without_the_loopback():
    text = (
        "Inter-|   Receive    |  Transmit\n face |bytes  ...\n"
        "    lo: 100 1 0 0 0 0 0 0 100 1 0 0 0 0 0 0\n"
        "  eth0: 1000 10 1 2 0 0 0 0 2000 20 3 4 0 0 0 0\n"
        "eth0:1:12 1 0 0 0 0 0 0 7 1 0 0 0 0 0 0\n"
    )
    found = parse_net_dev(text)
    assert list(found) == ["eth0", "eth0:1"]
    assert found["eth0"] == NetworkStatistics(
        rx_bytes=1000,
        rx_packets=10,
        rx_errors=1,
        rx_dropped=2,
        tx_bytes=2000,
        tx_packets=20,
        tx_errors=3,
        tx_dropped=4,
    )


def test_who_shares_our_network_has_none_of_its_own(unified):
    found = read_statistics(Cgroup(PATH, unified), id="i", name="n", pid=os.getpid())
    assert found.networks == {}


def test_processes_are_those_of_the_cgroup_and_of_groups_beneath_it(unified):
    folder = unified / PATH.strip("/")
    (folder / "cgroup.procs").write_text(f"{os.getpid()}\n")
    (folder / "exec-1").mkdir()
    (folder / "exec-1" / "cgroup.procs").write_text("1\n")
    cgroup = Cgroup(PATH, unified)
    assert cgroup.processes() == [1, os.getpid()]
    mine = Path("/proc/self/cgroup").read_text().splitlines()[-1].rpartition(":")[2]
    found = {process.host_pid: process for process in list_processes(cgroup, mine, {os.getuid(): "me"})}
    process = found[os.getpid()]
    assert (process.parent, process.uid, process.user) == (os.getppid(), os.getuid(), "me")
    assert process.memory > 0
    assert process.cpu <= time.process_time() + 1000
    assert "python" in process.command[0]


def test_a_number_that_belongs_to_another_process_by_now_is_left_out(unified):
    (unified / PATH.strip("/") / "cgroup.procs").write_text(f"{os.getpid()}\n99999999\n")
    assert list_processes(Cgroup(PATH, unified), PATH, {}) == []
