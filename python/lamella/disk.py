"""The store's calls to the file system, with errors of ours.

Everything that touches the store's tree from Python goes through :class:`translated`: an OSError leaves it as the error
that says what the reader can do, and names what was tried.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import TracebackType

from lamella.errors import (
    AlreadyExists,
    FailedPrecondition,
    LamellaError,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)
from lamella.ownership import check_owner

TRASH = "trash-"
"""How the names begin, in ingest/ and beside layer folders, of what is being removed: nobody wants it back."""

_KINDS: dict[int, tuple[type[LamellaError], str]] = {
    errno.ENOENT: (NotFound, "Look for damage: lamella fsck."),
    errno.EEXIST: (AlreadyExists, ""),
    errno.ENOTEMPTY: (FailedPrecondition, ""),
    errno.EBUSY: (FailedPrecondition, "Something is still mounted or running there."),
    errno.EXDEV: (FailedPrecondition, "The store's folders have to be on one file system."),
    errno.ENOTDIR: (FailedPrecondition, "A file stands where the store has a folder."),
    errno.ENOSPC: (ResourceExhausted, "Free some space: lamella gc."),
    errno.EDQUOT: (ResourceExhausted, "The disk quota is used up; free some space: lamella gc."),
    errno.EMFILE: (ResourceExhausted, "Raise the limit of open files (ulimit -n)."),
    errno.ENFILE: (ResourceExhausted, "The machine has too many open files."),
    errno.EMLINK: (ResourceExhausted, "The file system allows no more sub-folders or links there."),
    errno.ENAMETOOLONG: (FailedPrecondition, "Give the store a shorter root path."),
    errno.EACCES: (PermissionDenied, "Run as the user who owns the store, or choose another root (--root)."),
    errno.EPERM: (PermissionDenied, "Run as the user who owns the store, or choose another root (--root)."),
    errno.EROFS: (PermissionDenied, "Mount the file system read-write, or choose another root (--root)."),
    errno.EIO: (Unavailable, "Look at the kernel's log for errors of the disk."),
}


def storage_error(error: OSError, action: str) -> LamellaError:
    """Give the error for an OSError that came up while ``action`` ("write the blob sha256:...") was tried."""
    kind, hint = _KINDS.get(error.errno or 0, (Unavailable, ""))
    return kind(f"cannot {action}: {error.strerror or error}", hint=hint or None)


class translated:  # noqa: N801 (reads as a word: ``with translated("write the blob"):``)
    """A context in which an OSError becomes an error of lamella's; those that are already pass."""

    __slots__ = ("_action",)

    def __init__(self, action: str) -> None:
        self._action = action

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, OSError) and not isinstance(error, LamellaError):
            raise storage_error(error, self._action) from error


def make_private_folder(path: Path | str, *, again: bool = True) -> None:
    """Create a folder and what is missing above it, mode 0700. Harmless twice, and at once."""
    try:
        os.mkdir(path, 0o700)  # noqa: PTH102 (on the way to every snapshot; a Path method costs twice the call)
    except FileExistsError:
        if not Path(path).is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path)) from None
    except FileNotFoundError:
        parent = Path(path).parent
        if not parent.is_dir():
            make_private_folder(parent)
        elif not again:
            raise  # /proc and its like: nothing can be made there
        # Else somebody made it since.
        make_private_folder(path, again=False)


def make_state_folder(path: Path) -> None:
    """Create the state folder, for others to pass through (0711), whatever the umask is. Harmless twice.

    What is missing above it nobody but its owner may write to.
    """
    try:
        check_owner(path)
        return
    except FileNotFoundError:
        pass
    for above in reversed(path.parents):
        if not above.exists():
            above.mkdir(mode=0o755, exist_ok=True)
    try:
        path.mkdir(mode=0o711)
    except FileExistsError:
        check_owner(path)
        return
    path.chmod(0o711)


def is_there(path: str) -> bool:
    """Tell whether there is anything at a path, as :meth:`pathlib.Path.exists` does, for half of what that costs."""
    try:
        os.stat(path)  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def names_in(folder: Path | str) -> list[str]:
    """List a folder; empty when it is not there. Names alone: 100,000 of them as paths, sorted, cost a second."""
    try:
        return os.listdir(folder)  # noqa: PTH208
    except (FileNotFoundError, NotADirectoryError):
        return []
