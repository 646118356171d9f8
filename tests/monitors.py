"""The monitor of a container, which is the parent of its first process, and the container's cgroups, as the kernel shows them."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from waiting import until


def monitor_of(box: Any) -> int:
    """Give the pid of the monitor of a container that runs."""
    return int(Path(f"/proc/{box.pid}/stat").read_text().rpartition(")")[2].split()[1])


def memory_of(pid: int) -> int:
    """Give the resident anonymous memory of a process, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the process is gone")


def kill_monitor(box: Any) -> None:
    """Kill the monitor of a container that runs, and wait until it is gone."""
    os.kill(monitor_of(box), signal.SIGKILL)
    until(lambda: not box.task.monitored())


def hierarchies() -> list[Path]:
    """Give the tops of the cgroup hierarchies: the one of v2, or those of v1 and what lies beside them."""
    root = Path("/sys/fs/cgroup")
    if (root / "cgroup.controllers").exists():
        return [root]
    return [folder for folder in root.iterdir() if folder.is_dir() and not folder.is_symlink()]


def cgroups(box: Any) -> list[Path]:
    """Give the folders of a container's cgroups that are there."""
    relative = box.spec["linux"]["cgroupsPath"].strip("/")
    root = Path("/sys/fs/cgroup")
    return [path for top in (root, *root.iterdir()) if (path := top / relative).is_dir()]
