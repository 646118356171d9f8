"""Limits of containers: as options of a start, and as changes of what holds."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from lamella.containers.limits import Limits, changed, cpu_limits, io_limits, memory_limits, pids_limits
from lamella.containers.runtime_spec import CpuLimits, MemoryLimits, PidsLimits, Resources
from lamella.errors import InvalidArgument, NotFound
from lamella.structs import to_builtins

MEBIBYTE = 1 << 20


def plain(section: object) -> object:
    return to_builtins(section)


def test_nothing_said_is_no_section():
    nothing = Limits()
    assert [memory_limits(nothing), cpu_limits(nothing), pids_limits(nothing), io_limits(nothing)] == [
        None
    ] * 4


def test_every_option_of_a_start_reaches_the_spec():
    limits = Limits(
        memory="64m",
        memory_swap=-1,
        memory_reservation="32m",
        cpu_shares=512,
        cpu_quota=20_000,
        cpuset="0-1",
        cpuset_mems="0",
        pids_limit=7,
        blkio_weight=300,
    )
    assert plain(memory_limits(limits)) == {"limit": 64 * MEBIBYTE, "swap": -1, "reservation": 32 * MEBIBYTE}
    assert plain(cpu_limits(limits)) == {
        "quota": 20_000,
        "period": 100_000,
        "shares": 512,
        "cpus": "0-1",
        "mems": "0",
    }
    assert plain(io_limits(limits)) == {"weight": 300}


def test_how_readily_it_swaps_and_whether_it_is_killed_are_of_the_start_and_stay_in_a_change():
    first = memory_limits(Limits(memory="64m"), swappiness=10, disable_oom_killer=True)
    assert plain(first) == {
        "limit": 64 * MEBIBYTE, "swap": 64 * MEBIBYTE, "swappiness": 10, "disableOOMKiller": True
    }  # fmt: skip
    after = changed(Resources(memory=first), Limits(memory="128m")).memory
    assert (after.swappiness, after.disable_oom_killer) == (10, True)
    assert plain(memory_limits(Limits(), swappiness=0)) == {"swappiness": 0}
    assert memory_limits(Limits(), swappiness=-1) is None
    for swappiness in (-2, 101):
        with pytest.raises(InvalidArgument, match="memory_swappiness"):
            memory_limits(Limits(), swappiness=swappiness)


def test_a_device_has_a_weight_of_its_own(tmp_path, monkeypatch):
    device = os.stat_result((stat.S_IFBLK, *[0] * 9), {"st_rdev": os.makedev(8, 16)})
    monkeypatch.setattr(Path, "stat", lambda self: device)
    for given in ({"/dev/sdb": 300}, ["/dev/sdb:300"], [{"Path": "/dev/sdb", "Weight": 300}]):
        expected = {"weightDevice": [{"major": 8, "minor": 16, "weight": 300}]}
        assert plain(io_limits(Limits(), weights=given)) == expected
    with pytest.raises(InvalidArgument, match="blkio_weight_device"):
        io_limits(Limits(), weights=["/dev/sdb:9"])
    with pytest.raises(InvalidArgument, match="blkio_weight_device"):
        io_limits(Limits(), weights=["/dev/sdb"])


@pytest.mark.parametrize(
    "limits",
    [
        Limits(cpus=1, cpu_quota=5000),
        Limits(cpus=0),
        Limits(cpu_shares=1),
        Limits(cpu_period=999),
        Limits(cpu_quota=5),
        Limits(cpuset="a"),
        Limits(cpuset_mems="0-"),
        Limits(cpuset=""),
    ],
)
def test_processor_limits_that_cannot_be_are_refused(limits):
    with pytest.raises(InvalidArgument):
        cpu_limits(limits)


@pytest.mark.parametrize("weight", [9, 1001])
def test_a_weight_out_of_bounds_is_refused(weight):
    with pytest.raises(InvalidArgument, match="blkio_weight"):
        io_limits(Limits(blkio_weight=weight))


@pytest.mark.parametrize(
    ("rates", "error"),
    [
        (["/dev/null:5"], InvalidArgument),
        (["/dev/none-such:5"], NotFound),
        (["sda:5"], InvalidArgument),
        (["/dev/sda"], InvalidArgument),
        ({"/dev/null": 0}, InvalidArgument),
        ([{"Path": "/dev/null"}], InvalidArgument),
    ],
)
def test_a_rate_needs_a_block_device_and_a_number(rates, error):
    with pytest.raises(error, match="device_read_bps"):
        io_limits(Limits(), read_bps=rates)


def test_more_memory_takes_the_swap_along_where_there_was_none_beyond_it():
    before = MemoryLimits(limit=10 * MEBIBYTE, swap=10 * MEBIBYTE)
    assert plain(memory_limits(Limits(memory="20m"), before)) == {
        "limit": 20 * MEBIBYTE,
        "swap": 20 * MEBIBYTE,
    }
    beyond = MemoryLimits(limit=10 * MEBIBYTE, swap=30 * MEBIBYTE)
    assert plain(memory_limits(Limits(memory="20m"), beyond)) == {
        "limit": 20 * MEBIBYTE,
        "swap": 30 * MEBIBYTE,
    }
    with pytest.raises(InvalidArgument, match="memory_swap"):
        memory_limits(Limits(memory="40m"), beyond)
    assert plain(memory_limits(Limits(memory=-1), beyond)) == {"limit": -1, "swap": -1}


def test_a_change_keeps_what_it_does_not_name_and_has_only_the_sections_that_it_does():
    present = Resources(
        memory=MemoryLimits(limit=10 * MEBIBYTE, swap=10 * MEBIBYTE),
        cpu=CpuLimits(quota=50_000, period=100_000, cpus="0"),
        pids=PidsLimits(limit=5),
    )
    new = changed(present, Limits(cpu_shares=2048))
    assert plain(new) == {"cpu": {"quota": 50_000, "period": 100_000, "cpus": "0", "shares": 2048}}
    assert plain(changed(present, Limits(cpus=0, pids_limit=-1))) == {
        "cpu": {"quota": -1, "period": 100_000, "cpus": "0"},
        "pids": {"limit": -1},
    }
    assert plain(changed(present, Limits())) == {}
