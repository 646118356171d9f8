"""What a container may use: the options that limit it, parsed into the runtime spec's resources, at its start and for a change.

Names and meanings are docker's. Sources: OCI runtime spec, config-linux.md, "Control groups"; docker's resource constraints.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from lamella.containers.runtime_spec import (
    BlockIo,
    CpuLimits,
    MemoryLimits,
    PidsLimits,
    Resources,
    ThrottleDevice,
    WeightDevice,
)
from lamella.errors import InvalidArgument, NotFound
from lamella.structs import Struct, replace
from lamella.typings import Any, TypedDict

MEMORY_MIN = 6 * 1024 * 1024
CPU_PERIOD = 100_000
_SIZE_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}
_SHARES = range(2, 262_145)
_PERIODS = range(1000, 1_000_001)
_WEIGHTS = range(10, 1001)
_SWAPPINESS = range(101)
_LIST = r"[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*"

Rates = Mapping[str, int | str] | Sequence[str | Mapping[str, Any]]
"""Devices with a rate: ``{"/dev/sda": "10m"}``, ``["/dev/sda:10m"]``, or docker-py's ``[{"Path": "/dev/sda", "Rate": 10}]``."""


class Limits(Struct, frozen=True, kw_only=True):
    """The limits that can be changed while the container runs; None where nothing is said."""

    memory: int | str | None = None
    memory_swap: int | str | None = None
    memory_reservation: int | str | None = None
    cpus: float | str | None = None
    cpu_shares: int | None = None
    cpu_quota: int | None = None
    cpu_period: int | None = None
    cpuset: str | None = None
    cpuset_mems: str | None = None
    pids_limit: int | None = None
    blkio_weight: int | None = None


class LimitOptions(TypedDict, total=False):
    """The keyword options of ``Container.update``, for type checkers and editors: the fields of Limits."""

    memory: int | str | None
    memory_swap: int | str | None
    memory_reservation: int | str | None
    cpus: float | str | None
    cpu_shares: int | None
    cpu_quota: int | None
    cpu_period: int | None
    cpuset: str | None
    cpuset_mems: str | None
    pids_limit: int | None
    blkio_weight: int | None


def parse_size(value: int | str, what: str) -> int:
    """Return bytes: an int, or a string such as ``512m``, ``1.5g``, ``64KiB`` (binary units, as docker reads them)."""
    if isinstance(value, int):
        number = value
    elif not isinstance(value, str):
        raise InvalidArgument(f"{what} {value!r} is not a size", hint="Write whole bytes, or 512m, 2g.")
    else:
        text = value.strip().lower()
        digits = text.rstrip("bikmgtp")
        unit = text[len(digits) :].removesuffix("b").removesuffix("i")
        try:
            number = int(float(digits) * _SIZE_UNITS[unit])
        except (ValueError, KeyError, OverflowError):
            raise InvalidArgument(
                f"{what} {value!r} is not a size", hint="Write bytes, or 512m, 2g."
            ) from None
    if number < 0:
        raise InvalidArgument(f"{what} {value!r} is negative")
    return number


def parse_cpus(value: float | str) -> CpuLimits:
    """Turn a number of processors into a CFS quota."""
    try:
        cpus = float(value)
    except ValueError:
        cpus = -1.0
    if not 0.01 <= cpus <= 100_000:
        raise InvalidArgument(f"cpus {value!r} is not a number of processors", hint="Write 0.5, 1 or 2.")
    return CpuLimits(quota=round(cpus * CPU_PERIOD), period=CPU_PERIOD)


def memory_limits(
    limits: Limits,
    before: MemoryLimits | None = None,
    *,
    swappiness: int | None = None,
    disable_oom_killer: bool = False,
) -> MemoryLimits | None:
    """Parse memory, memory_swap (-1: no end) and memory_reservation; None when nothing is said.

    Without memory_swap a container may swap nothing beyond its memory. ``before`` is what holds: what is not said stays, and
    memory 0 or -1 ends a limit. ``swappiness`` is 0 to 100, and -1 for the machine's own, as docker has it.
    """
    swappiness = None if swappiness == -1 else swappiness
    if swappiness is not None:
        _within(swappiness, _SWAPPINESS, "memory_swappiness")
    said = (
        limits.memory,
        limits.memory_swap,
        limits.memory_reservation,
        swappiness,
        disable_oom_killer or None,
    )
    if all(value is None for value in said):
        return None
    is_change, before = before is not None, before or MemoryLimits()
    limit, swap = before.limit, before.swap
    if limits.memory is not None:
        limit = _memory(limits.memory, may_end=is_change)
        if limits.memory_swap is None and (swap is None or swap == before.limit or limit == -1):
            swap = limit
    if limits.memory_swap is not None:
        if limit is None or limit == -1:
            raise InvalidArgument("memory_swap needs memory")
        endless = limits.memory_swap in (-1, "-1")
        swap = -1 if endless else parse_size(limits.memory_swap, "memory_swap")
    if limit is not None and swap is not None and -1 != swap < limit:
        raise InvalidArgument(
            "memory_swap counts memory and swap together, and is less than memory",
            hint="Give both, or memory_swap -1 for no end.",
        )
    reservation = before.reservation
    if limits.memory_reservation is not None:
        reservation = parse_size(limits.memory_reservation, "memory_reservation")
        if limit is not None and -1 != limit < reservation:
            raise InvalidArgument("memory_reservation is more than memory")
    return MemoryLimits(
        limit=limit,
        swap=swap,
        reservation=reservation,
        swappiness=before.swappiness if swappiness is None else swappiness,
        disable_oom_killer=disable_oom_killer or before.disable_oom_killer,
    )


def _memory(value: int | str, *, may_end: bool) -> int:
    if may_end and value in (0, -1, "0", "-1"):
        return -1
    limit = parse_size(value, "memory")
    if limit < MEMORY_MIN:
        raise InvalidArgument(f"memory {value!r} is less than the {MEMORY_MIN} bytes that a process needs")
    return limit


def cpu_limits(limits: Limits, before: CpuLimits | None = None) -> CpuLimits | None:
    """Parse cpus (or cpu_quota and cpu_period, microseconds), cpu_shares, cpuset and cpuset_mems; None when nothing is said.

    ``before`` is what holds: what is not said stays, and cpus 0, or a quota of 0 or -1, ends a limit.
    """
    said = (
        limits.cpus,
        limits.cpu_shares,
        limits.cpu_quota,
        limits.cpu_period,
        limits.cpuset,
        limits.cpuset_mems,
    )
    if all(value is None for value in said):
        return None
    present = replace(before) if before is not None else CpuLimits()
    if limits.cpus is not None:
        if limits.cpu_quota is not None or limits.cpu_period is not None:
            raise InvalidArgument(
                "cpus stands for a quota and a period", hint="Give cpus, or cpu_quota and cpu_period."
            )
        if before is not None and limits.cpus in (0, "0"):
            present.quota, present.period = -1, CPU_PERIOD
        else:
            parsed = parse_cpus(limits.cpus)
            present.quota, present.period = parsed.quota, parsed.period
    if limits.cpu_period is not None:
        present.period = _within(limits.cpu_period, _PERIODS, "cpu_period", "microseconds")
    if limits.cpu_quota is not None:
        if limits.cpu_quota not in (0, -1) and limits.cpu_quota < _PERIODS.start:
            raise InvalidArgument(
                f"cpu_quota {limits.cpu_quota} is less than {_PERIODS.start} microseconds",
                hint="-1 is no limit.",
            )
        present.quota = limits.cpu_quota or -1
        present.period = present.period or CPU_PERIOD
    if limits.cpu_shares is not None:
        present.shares = _within(limits.cpu_shares, _SHARES, "cpu_shares")
    if limits.cpuset is not None:
        present.cpus = _numbers(limits.cpuset, "cpuset")
    if limits.cpuset_mems is not None:
        present.mems = _numbers(limits.cpuset_mems, "cpuset_mems")
    return present


def pids_limits(limits: Limits, before: PidsLimits | None = None) -> PidsLimits | None:
    """Parse pids_limit; None, 0 and -1 are no limit, which a change says as -1."""
    if limits.pids_limit is None:
        return None
    if limits.pids_limit in (0, -1):
        return PidsLimits(limit=-1) if before is not None else None
    if limits.pids_limit < 0:
        raise InvalidArgument(f"pids_limit {limits.pids_limit} is negative")
    return PidsLimits(limit=limits.pids_limit)


def io_limits(
    limits: Limits,
    *,
    read_bps: Rates | None = None,
    write_bps: Rates | None = None,
    read_iops: Rates | None = None,
    write_iops: Rates | None = None,
    weights: Rates | None = None,
) -> BlockIo | None:
    """Parse blkio_weight (10 to 1000), in general and by device, and the rates of devices, in bytes or operations a second.

    None when nothing is said.
    """
    weight = limits.blkio_weight
    if weight is not None:
        _within(weight, _WEIGHTS, "blkio_weight")
    found = BlockIo(
        weight=weight,
        weight_device=[
            WeightDevice(major=major, minor=minor, weight=_within(number, _WEIGHTS, "blkio_weight_device"))
            for (major, minor), number in _by_device(weights, "blkio_weight_device", "Weight")
        ],
        throttle_read_bps_device=_rates(read_bps, "device_read_bps"),
        throttle_write_bps_device=_rates(write_bps, "device_write_bps"),
        throttle_read_iops_device=_rates(read_iops, "device_read_iops"),
        throttle_write_iops_device=_rates(write_iops, "device_write_iops"),
    )
    return found if found != BlockIo() else None


def changed(present: Resources, limits: Limits) -> Resources:
    """Give the sections of resources that a change makes, whole, with what holds of them already. InvalidArgument."""
    return Resources(
        memory=memory_limits(limits, present.memory or MemoryLimits()),
        cpu=cpu_limits(limits, present.cpu or CpuLimits()),
        pids=pids_limits(limits, present.pids or PidsLimits(limit=-1)),
        block_io=io_limits(limits),
    )


def _within(value: int, numbers: range, what: str, unit: str = "") -> int:
    if value not in numbers:
        text = f"{numbers.start} and {numbers.stop - 1}"
        raise InvalidArgument(f"{what} {value!r} is not between {text} {unit}".rstrip())
    return value


def _numbers(value: str, what: str) -> str:
    if not re.fullmatch(_LIST, value):
        raise InvalidArgument(f"{what} {value!r} is no list of numbers", hint="Write 0-3 or 0,2.")
    return value


def _rates(rates: Rates | None, what: str) -> list[ThrottleDevice]:
    found = []
    for (major, minor), rate in _by_device(rates, what, "Rate"):
        if rate == 0:
            raise InvalidArgument(f"{what}: a rate of 0 would stop the container", hint="Leave it out.")
        found.append(ThrottleDevice(major=major, minor=minor, rate=rate))
    return found


def _by_device(values: Rates | None, what: str, name: str) -> Iterator[tuple[tuple[int, int], int]]:
    """Give the number of each device and what is said of it, which docker-py has as ``name``."""
    pairs: Iterable[tuple[Any, Any]]
    if isinstance(values, Mapping):
        pairs = values.items()
    else:
        pairs = (
            (item.get("Path"), item.get(name)) if isinstance(item, Mapping) else item.rpartition(":")[::2]
            for item in ([values] if isinstance(values, str) else values or ())
        )
    for path, text in pairs:
        if not isinstance(path, str) or not path.startswith("/") or text in (None, ""):
            raise InvalidArgument(
                f"{what} {path!r}: {text!r} is malformed",
                hint=f"Write DEVICE:{name.upper()}, such as /dev/sda:{'10m' if name == 'Rate' else 300}.",
            )
        number = parse_size(text, what)
        try:
            device = Path(path).stat()
        except OSError as error:
            raise NotFound(f"{what}: {path}: {(error.strerror or 'not found').lower()}") from None
        if not stat.S_ISBLK(device.st_mode):
            raise InvalidArgument(f"{what}: {path} is no block device", hint="See lsblk for whole disks.")
        yield (os.major(device.st_rdev), os.minor(device.st_rdev)), number
