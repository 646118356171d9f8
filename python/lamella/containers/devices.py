"""Devices of this machine in a container: nodes, and rules for the devices controller; in docker's words.

A node works in a container only where it is put there from here: every mount of it is ``nodev``, but for bind mounts of what lies
in /dev. So a rule alone allows to use what such a bind mount shows (``volumes=["/dev/bus/usb:/dev/bus/usb"]`` with the rule
``c 189:* rw``), now or later, and not what the container's root makes by mknod(2).
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from lamella.containers import defaults
from lamella.containers.options import several
from lamella.containers.runtime_spec import Device, DeviceRule
from lamella.errors import InvalidArgument, NotFound, PermissionDenied, Unsupported

if TYPE_CHECKING:
    from lamella.containers.options import Options

_RULE = re.compile(r"([abc]) (\d+|\*):(\d+|\*) ([rwm]{1,3})")
_CDI = re.compile(r"[\w.-]+/[\w.-]+=[\w.:-]+")
"""The fully qualified name of a device of the Container Device Interface: vendor/class=name."""
_OWN = {"null", "zero", "full", "random", "urandom", "tty", "ptmx", "console"}
_WORDS = "HOST[:CONTAINER[:rwm]]"


def devices_and_rules(options: Options) -> tuple[list[Device], list[DeviceRule]]:
    """Give the nodes to make and what may be used. Errors: those of :func:`parse_device` and :func:`parse_rule`."""
    devices, rules = [], list(defaults.DEVICE_RULES)
    if options.privileged:
        devices = [device_node(path, path) for path in _host_devices()]
        rules = [DeviceRule(allow=True, access="rwm")]
    for text in several(options.devices):
        found, access = parse_device(text)
        for device in found:
            devices.append(device)
            rules.append(
                DeviceRule(
                    allow=True, type=device.type, major=device.major, minor=device.minor, access=access
                )
            )
    rules += [parse_rule(text) for text in several(options.device_cgroup_rules)]
    return devices, rules


def parse_device(text: str) -> tuple[list[Device], str]:
    """Parse ``HOST[:CONTAINER[:PERMISSIONS]]`` or ``HOST:PERMISSIONS``; return the nodes and their permissions (``rwm``).

    A folder stands for all nodes in it, at any depth. A symlink is followed here, once, and the container gets the node under the
    name that was given; those in a folder are left out. Errors: InvalidArgument, NotFound, PermissionDenied, and Unsupported for
    the name of a CDI device.
    """
    if _CDI.fullmatch(text):
        raise Unsupported(
            f"{text!r} is the name of a CDI device, and their specifications are not read",
            hint="Give its nodes (devices=/--device) and its files (volumes=/-v), as its file in /etc/cdi or /var/run/cdi says.",
        )
    parts = text.split(":")
    source, path, access = parts[0], parts[0], "rwm"
    if len(parts) == 2 and _is_access(parts[1]):
        access = parts[1]
    elif len(parts) > 1:
        path = parts[1] or source
        access = parts[2] if len(parts) > 2 else access
    if len(parts) > 3 or not _is_access(access) or not source.startswith("/") or not path.startswith("/"):
        raise InvalidArgument(
            f"device {text!r} is malformed",
            hint=f"Write {_WORDS}; permissions are of r (read), w (write), m (mknod).",
        )
    if not os.path.isdir(source):  # noqa: PTH112 (as in the rest of the way to a container's start)
        return [device_node(source, path)], access
    nodes = [device_node(node, f"{path.rstrip('/')}/{rest}") for node, rest in _nodes_in(source)]
    if not nodes:
        raise NotFound(f"there is no device node in the folder {source}")
    return nodes, access


def _is_access(text: str) -> bool:
    return bool(text) and set(text) <= set("rwm") and len(set(text)) == len(text)


def _nodes_in(folder: str) -> Iterable[tuple[str, str]]:
    """Give each device node in a folder with its path from there, in order."""
    top = os.path.realpath(folder)
    for place, folders, names in os.walk(top):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(place, name)  # noqa: PTH118 (names may be any bytes)
            try:
                mode = os.lstat(path).st_mode
            except FileNotFoundError:
                continue  # it was unplugged meanwhile
            if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
                yield path, os.path.relpath(path, top)


def parse_rule(text: str) -> DeviceRule:
    """Parse a rule of the devices controller, such as ``c 1:3 rwm`` or ``b 8:* r``; InvalidArgument."""
    found = _RULE.fullmatch(text)
    if found is None or not _is_access(found[4]):
        raise InvalidArgument(
            f"the device rule {text!r} is malformed",
            hint="Write TYPE MAJOR:MINOR ACCESS, such as 'c 1:3 rwm': a, b or c; numbers or *; of r, w, m.",
        )
    kind, major, minor, access = found.groups()
    numbers = [None if number == "*" else int(number) for number in (major, minor)]
    if any(number is not None and number >= 1 << 32 for number in numbers):
        raise InvalidArgument(f"the device rule {text!r} has a number that no device has")
    return DeviceRule(allow=True, type=kind, major=numbers[0], minor=numbers[1], access=access)


def device_node(source: str, path: str) -> Device:
    """Describe the device node ``source`` of this machine, to appear as ``path``. NotFound, PermissionDenied, InvalidArgument.

    Who is not root has no ids for most owners: such a node is the machine's own, bound, whoever it belongs to.
    """
    try:
        found = os.stat(source)  # noqa: PTH116
    except FileNotFoundError:
        raise NotFound(f"device {source} is not there") from None
    except PermissionError:
        raise PermissionDenied(f"device {source} cannot be reached") from None
    kind = "c" if stat.S_ISCHR(found.st_mode) else "b" if stat.S_ISBLK(found.st_mode) else None
    if kind is None:
        raise InvalidArgument(f"{source} is not a device node", hint="To show a file: volumes=/-v.")
    return Device(
        type=kind,
        path=path,
        major=os.major(found.st_rdev),
        minor=os.minor(found.st_rdev),
        file_mode=stat.S_IMODE(found.st_mode),
        uid=found.st_uid if os.geteuid() == 0 else None,
        gid=found.st_gid if os.geteuid() == 0 else None,
    )


def path_of_node(kind: str, major: int, minor: int, path: str) -> str | None:
    """Give the path of this machine's node of a device: ``path``, or else what the kernel calls it; None for neither."""
    told = Path(f"/sys/dev/{'char' if kind == 'c' else 'block'}/{major}:{minor}/uevent")
    try:
        lines = told.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        lines = []
    names = [line.removeprefix("DEVNAME=") for line in lines if line.startswith("DEVNAME=")]
    for candidate in (path, *(f"/dev/{name}" for name in names)):
        try:
            found = os.stat(candidate)  # noqa: PTH116
        except OSError:
            continue
        is_kind = stat.S_ISCHR(found.st_mode) if kind == "c" else stat.S_ISBLK(found.st_mode)
        if is_kind and found.st_rdev == os.makedev(major, minor):
            return candidate
    return None


def _host_devices() -> list[str]:
    """List the device nodes at the top of /dev, but for those that every container has of its own."""
    found = []
    with os.scandir("/dev") as entries:
        for entry in entries:
            mode = entry.stat(follow_symlinks=False).st_mode
            if entry.name not in _OWN and (stat.S_ISCHR(mode) or stat.S_ISBLK(mode)):
                found.append(entry.path)
    return sorted(found)
