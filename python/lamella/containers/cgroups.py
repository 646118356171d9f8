"""Taking away the cgroups of a container whose monitor was killed.

A monitor removes its container's cgroups itself; only when it could not is there anything to do here. Source: cgroups(7),
proc(5) on mountinfo.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

EMPTY_WAIT = 5.0
"""Seconds that the kernel may take to end the processes of a killed container."""


def remove_cgroups(path: str) -> None:
    """Remove the cgroup ``path`` (from the root of its hierarchy) of every hierarchy, and parents that are empty then.

    Harmless where there is none. One that still has processes is left alone after a while.
    """
    relative = os.path.normpath(path).strip("/")
    if not relative or relative.startswith(".."):
        return
    deadline = time.monotonic() + EMPTY_WAIT
    for hierarchy in _hierarchies():
        folder = hierarchy / relative
        while folder.is_dir() and not _remove(folder):
            if time.monotonic() > deadline:
                break
            time.sleep(0.005)
        for parent in folder.parents:
            if parent == hierarchy:
                break
            try:
                parent.rmdir()
            except OSError:
                break


def _remove(folder: Path) -> bool:
    """Remove a cgroup, and first those beneath it, such as the groups of execs; False when something lives there still."""
    try:
        for name in os.listdir(folder):  # noqa: PTH208 (control files, and folders)
            if (folder / name).is_dir():
                _remove(folder / name)
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _hierarchies() -> list[Path]:
    found = []
    for line in (
        Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    ):
        mount, _, filesystem = line.partition(" - ")
        if filesystem.split(" ", 1)[0] in ("cgroup", "cgroup2"):
            point = mount.split(" ")[4]
            found.append(Path(point.replace("\\040", " ")))
    return found
