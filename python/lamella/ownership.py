"""Whether another user could change a folder under us: exchange what is in it, or the folder itself.

That is what sudo and sshd ask of their files, and what is asked of <root> and <state>: of the folder itself each time that it is
opened, of what is above and in it once a process (it takes 0.2 ms). Who owns a folder above is trusted: it is he who runs
``sudo lamella --root``.
Sources: sshd_config(5) StrictModes, and Debian's rule beside it for users whose group is their own (umask 002);
acl(5) and linux/posix_acl_xattr.h for access control lists.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from lamella.errors import PermissionDenied

_ACCESS_LIST = "system.posix_acl_access"
_ACL_USER, _ACL_GROUP_OBJ, _ACL_GROUP = 0x02, 0x04, 0x08
_ACL_WRITE = 0x02
_surroundings: set[tuple[str, int, int]] = set()
"""Folders, by path and inode, that this process has looked around."""


def check_owner(path: Path) -> None:
    """Refuse a folder that another user could change under us. Harmless at any time; PermissionDenied says what to do.

    It is refused where another owns it, or a name in it; where others, a group with more members than its owner, or an access
    control list may write to it; and where they may write to a folder above it and exchange it, but for sticky ones (/tmp).
    """
    status = path.stat()
    if not _is_ours(status.st_uid):
        raise PermissionDenied(
            f"{path} belongs to another user (uid {status.st_uid}), who could exchange what is in it",
            hint="Choose a folder of your own, or give it to the user who runs this (chown).",
        )
    who, remedy = _writers(path, status)
    if who:
        raise PermissionDenied(
            f"{who} may write to {path} and exchange what is in it", hint=f"Close it: {remedy}."
        )
    seen = (str(path), status.st_dev, status.st_ino)
    if seen not in _surroundings:
        _check_above(path)
        _check_names(path)
        _surroundings.add(seen)


def _check_above(path: Path) -> None:
    for above in _above(path):
        status = os.stat(above)  # noqa: PTH116 (on the way to every container; see disk.make_private_folder)
        if status.st_mode & stat.S_ISVTX:
            continue
        who, remedy = _writers(above, status)
        if who:
            raise PermissionDenied(
                f"{who} may write to {above} and put another folder in the place of {path}",
                hint=f"Close it ({remedy}) or make it sticky (chmod +t {above}), or choose a folder elsewhere (--root, --state).",
            )


def _check_names(path: Path) -> None:
    try:
        names = list(os.scandir(path))
    except PermissionError:  # who may not list what is ours or root's has nothing of his own in it
        return
    for name in names:
        _check_name(name)


def _check_name(name: os.DirEntry[str]) -> None:
    """Refuse what another user has put into a folder while he could."""
    try:
        status = name.stat(follow_symlinks=False)
    except FileNotFoundError:  # a file that is replaced
        return
    # A socket of `lamella serve` may be another user's: whoever wants one there puts a new one in its place.
    if not _is_ours(status.st_uid) and not stat.S_ISSOCK(status.st_mode):
        raise PermissionDenied(
            f"{name.path} belongs to another user (uid {status.st_uid}), who could exchange what is in it",
            hint="Look at what it is; then remove it, or give it to the user who runs this (chown -R).",
        )


def _is_ours(uid: int) -> bool:
    return uid in (0, os.geteuid())


def _writers(path: str | Path, status: os.stat_result) -> tuple[str, str]:
    """Say who else may write to a folder, and the command that ends it; nothing where nobody may."""
    if status.st_mode & stat.S_IWOTH:
        return "everybody", f"chmod o-w {path}"
    if not status.st_mode & stat.S_IWGRP:
        return "", ""  # these bits are the mask of a list, too
    named = _named_writers(path, status.st_uid, status.st_gid)
    if named is not None:
        return (named, f"setfacl -b {path}") if named else ("", "")
    if _is_private(status.st_gid, status.st_uid):
        return "", ""
    return f"group {status.st_gid}", f"chmod g-w {path}"


def _named_writers(path: str | Path, owner: int, gid: int) -> str | None:
    """Name somebody whom a folder's access control list lets write, "" when it lets nobody; None without a list."""
    try:
        data = os.getxattr(path, _ACCESS_LIST)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP):
            return None
        raise
    import struct

    for tag, rights, number in struct.iter_unpack("<HHI", data[4:]):
        if not rights & _ACL_WRITE:  # the list's mask lets them write: it is what the mode has for the group
            continue
        if tag == _ACL_USER and number not in (0, owner):
            return f"user {number}"
        group = number if tag == _ACL_GROUP else gid if tag == _ACL_GROUP_OBJ else 0
        if not _is_private(group, owner):
            return f"group {group}"
    return ""


def _is_private(gid: int, uid: int) -> bool:
    """Say whether a group has no other member than a user, as far as this machine knows; root's counts as one."""
    if gid == 0:
        return True
    import grp
    import pwd

    try:
        user, group = pwd.getpwuid(uid), grp.getgrgid(gid)
    except KeyError:  # who is in a group without a name nobody can say
        return False
    others = (entry for entry in pwd.getpwall() if entry.pw_gid == gid and entry.pw_uid != uid)
    return set(group.gr_mem) <= {user.pw_name} and next(others, None) is None


def _above(path: Path) -> Iterator[str]:
    """Give the folders above a path, and those above where its symlinks lead."""
    given, real = os.path.abspath(path), os.path.realpath(path)  # noqa: PTH100
    seen = set()
    for place in (given, real):
        while (place := os.path.dirname(place)) not in seen:  # noqa: PTH120
            seen.add(place)
            yield place
