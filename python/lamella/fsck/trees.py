"""Comparing two layer folders, as far as an image decides what is in them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

_PIECE = 1024 * 1024
_NOT_THE_IMAGES = frozenset({"security.selinux"})
"""Attributes that the machine sets by itself."""


def first_difference(expected: Path, found: Path) -> str | None:
    """Say where two trees differ first and how; None if they don't. Nothing is followed out of them.

    Compared are names, kinds, modes, owners, device numbers, sizes, bytes, targets of symlinks, extended attributes, which
    files are linked to each other, and times, but for those of folders: a folder that its tar does not name has the time of
    its unpacking. OSError when something cannot be read.
    """
    links: dict[int, int] = {}
    pending = [""]
    while pending:
        folder = pending.pop()
        names, there = (set(os.listdir(top / folder)) for top in (expected, found))  # noqa: PTH208 (names are wanted)
        if names != there:
            odd = min(names ^ there)
            return f"{_join(folder, odd)} is {'missing' if odd in names else 'extra'}"
        for name in sorted(names) if folder else ["", *sorted(names)]:
            path = _join(folder, name)
            difference = _difference(expected / path, found / path, links)
            if difference:
                return f"{path or 'the top folder'} has {difference}"
            if name and stat.S_ISDIR(os.lstat(expected / path).st_mode):
                pending.append(path)
    return None


def _difference(expected: Path, found: Path, links: dict[int, int]) -> str | None:
    """Compare one entry; ``links`` has, of what is linked more than once, each inode with its twin."""
    one, other = os.lstat(expected), os.lstat(found)
    facts = zip(_facts(expected, one), _facts(found, other), strict=True)
    for (what, wanted), (_, seen) in facts:
        if wanted != seen:
            return f"another {what}"
    is_linked = one.st_nlink > 1 and not stat.S_ISDIR(one.st_mode)
    if is_linked and links.setdefault(one.st_ino, other.st_ino) != other.st_ino:
        return "another hard link"
    if stat.S_ISREG(one.st_mode) and not _same_bytes(expected, found):
        return "other bytes"
    return None


def _facts(path: Path, found: os.stat_result) -> list[tuple[str, object]]:
    names = os.listxattr(path, follow_symlinks=False)
    is_folder = stat.S_ISDIR(found.st_mode)
    return [
        ("mode", found.st_mode),
        ("owner", (found.st_uid, found.st_gid)),
        ("device number", found.st_rdev),
        ("size", 0 if is_folder else found.st_size),
        ("time", 0 if is_folder else found.st_mtime_ns),
        ("count of hard links", 0 if is_folder else found.st_nlink),
        ("target", str(path.readlink()) if stat.S_ISLNK(found.st_mode) else ""),
        (
            "extended attribute",
            {
                name: os.getxattr(path, name, follow_symlinks=False)
                for name in names
                if name not in _NOT_THE_IMAGES
            },
        ),
    ]


def _same_bytes(expected: Path, found: Path) -> bool:
    with expected.open("rb", buffering=0) as one, found.open("rb", buffering=0) as other:
        while True:
            piece = one.read(_PIECE)
            if piece != other.read(_PIECE):
                return False
            if not piece:
                return True


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder and name else folder or name
