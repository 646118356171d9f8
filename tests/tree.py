"""Read a tree of files into values that two trees can be compared by."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import defaultdict
from pathlib import Path
from typing import Any

HIDDEN_XATTRS = ("trusted.overlay.", "user.overlay.", "user.rootlesscontainers", "security.selinux")


def read_tree(top: Path) -> dict[str, dict[str, Any]]:
    """Give every path beneath ``top``, the top itself as ".", with all that an archive keeps of it.

    A hard link is told by the names it has together: a sorted list, the same for each of them. Nothing is
    followed.
    """
    tree: dict[str, dict[str, Any]] = {".": _entry(str(top))}
    links: dict[tuple[int, int], list[str]] = defaultdict(list)
    for folder, folders, files in os.walk(top):
        for name in folders + files:
            path = f"{folder}/{name}"
            relative = os.path.relpath(path, top)
            entry = tree[relative] = _entry(path)
            if entry["kind"] != "folder" and entry.pop("links") > 1:
                links[entry.pop("identity")].append(relative)
            entry.pop("identity", None)
    for entry in tree.values():
        entry.pop("links", None)
        entry.pop("identity", None)
    for names in links.values():
        for name in names:
            tree[name]["names"] = sorted(names)
    return tree


def differences(first: dict[str, dict[str, Any]], second: dict[str, dict[str, Any]]) -> list[str]:
    """Give a line for each path that is in one tree only or differs, with what differs."""
    found = [f"{path}: only in the first" for path in sorted(first.keys() - second.keys())]
    found += [f"{path}: only in the second" for path in sorted(second.keys() - first.keys())]
    for path in sorted(first.keys() & second.keys()):
        if first[path] != second[path]:
            keys = [
                key
                for key in {**first[path], **second[path]}
                if first[path].get(key) != second[path].get(key)
            ]
            found.append(
                f"{path}: "
                + ", ".join(f"{key} {first[path].get(key)!r} / {second[path].get(key)!r}" for key in keys)
            )
    return found


def _entry(path: str) -> dict[str, Any]:
    status = os.lstat(path)
    entry: dict[str, Any] = {
        "mode": oct(stat.S_IMODE(status.st_mode)),
        "uid": status.st_uid,
        "gid": status.st_gid,
        "mtime_ns": status.st_mtime_ns,
        "links": status.st_nlink,
        "identity": (status.st_dev, status.st_ino),
        "xattrs": {
            name: os.getxattr(path, name, follow_symlinks=False)
            for name in sorted(os.listxattr(path, follow_symlinks=False))
            if not name.startswith(HIDDEN_XATTRS)
        },
    }
    match stat.S_IFMT(status.st_mode):
        case stat.S_IFREG:
            with Path(path).open("rb") as file:
                entry.update(
                    kind="file", size=status.st_size, content=hashlib.file_digest(file, "sha256").hexdigest()
                )
        case stat.S_IFDIR:
            entry.update(kind="folder")
        case stat.S_IFLNK:
            entry.update(kind="symlink", target=str(Path(path).readlink()))
        case stat.S_IFCHR | stat.S_IFBLK as kind:
            device = (os.major(status.st_rdev), os.minor(status.st_rdev))
            entry.update(kind="character device" if kind == stat.S_IFCHR else "block device", device=device)
        case stat.S_IFIFO:
            entry.update(kind="fifo")
        case _:
            entry.update(kind="socket")
    return entry
