"""A container's cgroups, seen from a caller: reading their files, and taking away those of a killed monitor.

A monitor makes and removes its container's cgroups itself; only when it could not is there anything to remove here.
Source: cgroups(7), proc(5) on mountinfo.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

EMPTY_WAIT = 5.0
"""Seconds that the kernel may take to end the processes of a killed container."""


class Cgroup:
    """The control files of one container, by controller, in whatever hierarchies the machine has.

    ``path`` is from the root of each hierarchy. ``unified`` says that all controllers are in the one of v2.
    """

    def __init__(self, path: str, root: Path | None = None) -> None:
        relative = os.path.normpath(path).strip("/")
        found = _controllers() if root is None else _controllers_below(root)
        self._folders = {controller: top / relative for controller, top in found.items()}
        # Where v1 has hierarchies, that of v2 beside them holds no container.
        self.unified = set(self._folders) == {""}

    def _folder(self, controller: str) -> Path | None:
        return self._folders.get("" if self.unified else controller)

    @property
    def _members(self) -> Path | None:
        return self._folder("pids") or self._folder("memory")

    def check(self) -> None:
        """Raise FileNotFoundError when the container has no cgroup, or none any more."""
        folder = self._members
        if folder is None or not folder.is_dir():
            raise FileNotFoundError(folder)

    def lines(self, controller: str, file: str) -> list[str]:
        """Give the lines of a control file; none when it is not there."""
        folder = self._folder(controller)
        try:
            return (folder / file).read_text(encoding="ascii").splitlines() if folder is not None else []
        except OSError:
            return []

    def number(self, controller: str, file: str) -> int | None:
        """Give the number in a control file; None for ``max``, and when it is not there."""
        text = "".join(self.lines(controller, file)[:1])
        return int(text) if text.isdigit() else None

    def table(self, controller: str, file: str) -> dict[str, int]:
        """Give the numbers of a control file whose lines are a name and a number."""
        pairs = (line.split() for line in self.lines(controller, file))
        return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}

    def processes(self) -> list[int]:
        """Give the ids of all processes, those in groups beneath it too."""
        found: set[int] = set()
        for folder, _, _ in os.walk(self._members or os.devnull):
            try:
                found.update(map(int, Path(folder, "cgroup.procs").read_text(encoding="ascii").split()))
            except OSError:
                continue
        return sorted(found)


def delegated(own: Path = Path("/proc/self/cgroup")) -> str:
    """Give the path of the cgroup that this user was given to make others in (systemd's ``Delegate=``); '' for none.

    It is the topmost one that belongs to the user, of those that this process is in: whoever is not root can move processes
    only within it. cgroup v2 alone: systemd delegates none of v1. Source: cgroup-v2.rst, "Delegation".
    """
    top = _controllers().get("")
    lines = own.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    path = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    if top is None:
        return ""
    return _delegated_below(top, path)


def may_make(path: str) -> bool:
    """Say whether this user may make the cgroup at ``path`` (from the root of a hierarchy) in every hierarchy that there is."""
    tops = _controllers()
    return bool(path and tops) and all(_may_make(top, Path(path.strip("/"))) for top in tops.values())


def _may_make(top: Path, path: Path) -> bool:
    nearest = next((top / folder for folder in (path, *path.parents) if (top / folder).is_dir()), top)
    return os.access(nearest, os.W_OK)


def _delegated_below(top: Path, path: str) -> str:
    for folder in [*reversed(Path(path).parents), Path(path)]:
        full = top / folder
        try:
            if full.stat().st_uid == os.geteuid() and os.access(full / "cgroup.procs", os.W_OK):
                return f"/{folder}".rstrip("/.")
        except OSError:
            continue
    return ""


def _controllers() -> dict[str, Path]:
    """Give the hierarchies' mount points by controller; that of v2 is under the empty name."""
    found: dict[str, Path] = {}
    for point, kind, options in _mounts():
        names = [""] if kind == "cgroup2" else options.split(",")
        for name in names:
            found.setdefault(name, point)
    # Hierarchies of v1 hold the containers wherever there are any.
    return (
        {name: point for name, point in found.items() if name}
        if "memory" in found or "pids" in found
        else found
    )


def _controllers_below(root: Path) -> dict[str, Path]:
    if (root / "cgroup.controllers").exists():
        return {"": root}
    return {name: folder for folder in root.iterdir() for name in folder.name.split(",")}


def end_processes(path: str) -> None:
    """Kill what runs in the cgroup of a container whose monitor is gone. Harmless where there is nothing.

    Only below ``/lamella``: a caller's own cgroup may hold what is no container's.
    """
    if not os.path.normpath(path).startswith("/lamella/"):
        return
    deadline = time.monotonic() + EMPTY_WAIT
    while (found := Cgroup(path).processes()) and time.monotonic() < deadline:
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)


def remove_cgroups(path: str) -> None:
    """Remove the cgroup ``path`` (from the root of its hierarchy) of every hierarchy, and parents of ours that are empty then.

    Ours are those from the name ``lamella`` on; what somebody else made for containers to be in is left. Harmless
    where there is none. One that still has processes is left alone after a while.
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
        _remove_empty(hierarchy, _ours(Path(relative)))


def remove_parents(namespace: str) -> None:
    """Remove the cgroups that hold the containers' of a namespace, in every hierarchy where they are empty. Harmless twice."""
    for hierarchy in _hierarchies():
        _remove_empty(hierarchy, (f"lamella/{namespace}", "lamella"))


def _remove_empty(hierarchy: Path, folders: Iterable[str | Path]) -> None:
    """Remove cgroups of a hierarchy, the innermost first, up to one that is not empty, or not there."""
    for folder in folders:
        try:
            (hierarchy / folder).rmdir()
        except OSError:
            break


def _ours(path: Path) -> list[Path]:
    """Give the parents of a container's cgroup that lamella makes and removes, the nearest first."""
    parents = list(path.parents)
    names = [parent.name for parent in parents]
    return parents[: names.index("lamella") + 1] if "lamella" in names else []


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
    return [point for point, _, _ in _mounts()]


def _mounts() -> list[tuple[Path, str, str]]:
    """Give mount point, kind and options of each hierarchy's first mount and all others."""
    found = []
    text = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    for line in text.splitlines():
        mount, _, filesystem = line.partition(" - ")
        kind, _, rest = filesystem.partition(" ")
        if kind in ("cgroup", "cgroup2"):
            point = mount.split(" ")[4]
            found.append((Path(point.replace("\\040", " ")), kind, rest.partition(" ")[2]))
    return found
