"""What this process and a store hold: what starting and removing containers, however often, must not have more of."""

from __future__ import annotations

import gc
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lamella import Client

SETTLE_SECONDS = 60.0
"""How long monitors may take to be gone after their containers: milliseconds, but for a machine with too much to do."""


def settled(client: Client) -> dict[str, int]:
    """Count when no process holds anything of the store any more; what still does after a while is counted as well.

    All is counted after that look: a monitor's cgroups are there as long as it is.
    """
    deadline = time.monotonic() + SETTLE_SECONDS
    while any(_holders(_folders(client))) and time.monotonic() < deadline:
        time.sleep(0.02)
    return inventory(client)


def inventory(client: Client) -> dict[str, int]:
    """Count what there is now: memory of this process in KiB, but for that of files, and things."""
    gc.collect()
    root, state = client.config.root, client.config.state
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8")
    cgroups = Path("/sys/fs/cgroup")
    namespace = f"lamella/{client.config.namespace}/*"
    return {
        "KiB": memory(os.getpid(), "Anonymous"),
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "threads": len(list(Path("/proc/self/task").iterdir())),
        "mounts": mounts.count(str(root)) + mounts.count(str(state)),
        "cgroups": sum(1 for pattern in (namespace, f"*/{namespace}") for _ in cgroups.glob(pattern)),
        "processes": sum(1 for _ in _holders(_folders(client))),
        "folders": sum(
            1
            for folder in (root / "snapshots", root / "containers", state / "tasks")
            for found in folder.glob("*/*")
            if found.is_dir()
        ),
    }


def descriptors() -> set[tuple[str, str]]:
    """Give number and file of each open descriptor of this process: what others close meanwhile hides nothing that is new."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # that of the folder itself
            found.add((entry.name, str(entry.readlink())))
    return found


def children() -> set[int]:
    """Give the children of this process, but for those of threads that end at that moment."""
    found: set[int] = set()
    for listed in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):
            found.update(map(int, listed.read_text(encoding="ascii").split()))
    return found


def thread_names() -> list[str]:
    """Give the names of this process's threads, but for those that end at that moment."""
    found = []
    for thread in Path("/proc/self/task").iterdir():
        with suppress(OSError):
            found.append((thread / "comm").read_text(encoding="utf-8").strip())
    return found


def memory(pid: int, kind: str = "Pss") -> int:
    """Give the proportional set size of a process, in KiB, or another line of its smaps_rollup (proc_pid_smaps(5)).

    What it shares with others, such as the pages of libraries, grows in its own share when they end.
    """
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{kind}:"))


def _folders(client: Client) -> tuple[str, str]:
    return str(client.config.root), str(client.config.state)


def _holders(folders: tuple[str, ...]) -> Iterator[int]:
    """Give the processes, but for this one, that have a file below one of the folders open, as monitors have their bundle."""
    for process in Path("/proc").glob("[0-9]*"):
        if int(process.name) == os.getpid():
            continue
        with suppress(OSError):  # it has ended
            if any(_target(link).startswith(folders) for link in (process / "fd").iterdir()):
                yield int(process.name)


def _target(link: Path) -> str:
    """Give what a descriptor is open at; nothing for one that was closed meanwhile, which says nothing about the others."""
    with suppress(OSError):
        return str(link.readlink())
    return ""
