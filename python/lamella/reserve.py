"""The reserve: room for those who make room.

Deleting takes some of a disk, too: SQLite writes the pages that change to its log, a lock file takes an inode. So the store
has a file ``<root>/reserve`` of RESERVE_BYTES (a sixteenth of a small file system), allocated and never written. What frees space
and finds none left (of bytes, inodes or a quota) is done once more without that file, and makes it again afterwards, as large as
there is room by then. No lock guards it: to remove it and to make it is harmless twice.
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from lamella.errors import ResourceExhausted
from lamella.typings import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, cast

if TYPE_CHECKING:
    from lamella.metadata.database import Database

RESERVE_BYTES = 4 * 1024 * 1024
_SMALLEST = 64 * 1024

_Result = TypeVar("_Result")
_Owner = TypeVar("_Owner")
_Arguments = ParamSpec("_Arguments")


def frees_space(
    method: Callable[Concatenate[_Owner, _Arguments], _Result],
) -> Callable[Concatenate[_Owner, _Arguments], _Result]:
    """Have a method that frees space use the reserve. It has to be harmless when done again after ResourceExhausted."""

    @functools.wraps(method)
    def wrapper(self: _Owner, *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        database = _database(self)
        if database.in_transaction:  # whoever began that does it again as a whole
            return method(self, *args, **kwargs)
        return with_reserve(database.config.root, lambda: method(self, *args, **kwargs))

    return cast("Callable[Concatenate[_Owner, _Arguments], _Result]", wrapper)


def with_reserve(root: Path, action: Callable[[], _Result]) -> _Result:
    """Do something; where there is no space left for it, once more in the room of the reserve."""
    try:
        return action()
    except ResourceExhausted:
        if not release(root):
            raise
        try:
            return action()
        finally:
            fill(root)


def release(root: Path) -> bool:
    """Give the reserve's room back to the file system; tell whether there was any."""
    with suppress(OSError):
        (root / "reserve").unlink()
        return True
    return False


def fill(root: Path) -> None:
    """Make the reserve, or make it larger, as far as there is room. Never an error."""
    with suppress(OSError):
        there = os.statvfs(root)
        size = min(RESERVE_BYTES, there.f_frsize * there.f_blocks // 16)
        descriptor = os.open(root / "reserve", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            has = os.fstat(descriptor).st_size
            while size >= _SMALLEST and size > has:
                try:
                    os.posix_fallocate(descriptor, 0, size)
                except OSError as error:
                    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                        raise
                    size //= 2
                else:
                    break
        finally:
            os.close(descriptor)


def _database(owner: Any) -> Database:
    """Give the database of an object of the library: its own or its client's."""
    found: Database = (
        getattr(owner, "_database", None) or getattr(owner, "database", None) or owner._client.database
    )
    return found
