"""Locks between processes that end with the process that holds them: flock on a file or folder of the store.

The kernel lets go when the last descriptor is closed, however the process ends, so that nothing has to be repaired after a
kill -9. Each lock opens its own descriptor: two threads of one process exclude each other like two processes. A
child made by os.fork closes the descriptors it inherited, or its parent's death would not free them.

Which lock guards what is said at the head of the module that takes it: content (a ref), snapshots.layers (a diffID while it
is unpacked, a layer folder), metadata (changes of the schema), gc (one sweep at a time).
"""

from __future__ import annotations

import fcntl
import os
import time
from _weakrefset import WeakSet  # of weakref, of which nothing else is needed
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from lamella.disk import make_private_folder, translated
from lamella.errors import Unavailable
from lamella.logs import Log

_POLL_FIRST = 0.001
_POLL_MAX = 0.05
_LOOK_SECONDS = 0.1
"""How long a lock may be held by somebody who only looks whether it is held: microseconds, or until he gets a processor again."""
_log = Log("lamella")
_held: WeakSet[FileLock] = WeakSet()


class FileLock:
    """An exclusive lock named by a file. ``transient`` files are removed on release, which loses no waiter.

    ``waited`` is told after each wait how many seconds it took, also one that was given up. Not re-entrant: taking a lock that
    this object holds is an error of the caller.
    """

    def __init__(
        self,
        path: Path,
        *,
        what: str,
        transient: bool = False,
        waited: Callable[[float], object] | None = None,
    ) -> None:
        self.path = path
        self._what = what
        self._transient = transient
        self._waited = waited
        self._descriptor = -1

    @property
    def held(self) -> bool:
        """True between acquire and release."""
        return self._descriptor >= 0

    def acquire(self, *, wait: bool = True, waiting: Callable[[], object] | None = None) -> bool:
        """Take the lock; tell whether that took waiting for another. Unavailable when it would and ``wait`` is false.

        ``waiting`` is called again and again meanwhile, at least 20 times a second; what it raises ends the wait.
        """
        if self.try_acquire():
            return False
        if not wait:
            deadline = time.monotonic() + _LOOK_SECONDS
            while time.monotonic() < deadline:
                time.sleep(_POLL_FIRST)
                if self.try_acquire():
                    return False
            raise Unavailable(
                f"{self._what} is in use", hint="Another process or thread works on it; try again later."
            )
        began, pause = time.monotonic(), _POLL_FIRST
        try:
            while not self.try_acquire():
                if waiting is not None:
                    waiting()
                time.sleep(pause)
                pause = min(pause * 1.5, _POLL_MAX)
        finally:
            seconds = time.monotonic() - began
            if self._waited is not None:
                self._waited(seconds)
            _log.debug("waited %(seconds).3f s for %(lock)s", seconds=seconds, lock=self._what)
        return True

    def try_acquire(self) -> bool:
        """Take the lock if nobody holds it."""
        assert not self.held
        with translated(f"lock {self._what}"):
            while True:
                try:
                    descriptor = os.open(
                        self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
                    )
                except FileNotFoundError:
                    make_private_folder(self.path.parent)
                    continue
                if not _flock(descriptor):
                    return False
                if _names(self.path, descriptor):
                    self._descriptor = descriptor
                    _held.add(self)
                    return True
                os.close(descriptor)  # its last holder removed the file after we had opened it

    def release(self) -> None:
        """Let go. Harmless twice."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            _held.discard(self)
            if self._transient:
                with suppress(OSError):  # gone, or it stays, which costs nothing but a name
                    self.path.unlink()
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing does not do it while a forked child has a copy
            os.close(descriptor)

    def __enter__(self) -> FileLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    def _forget(self) -> None:
        """Close in a forked child what the parent holds."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class FolderLock(FileLock):
    """An exclusive lock on a folder that is there. Whoever renames or removes the folder holds it."""

    def try_acquire(self) -> bool:
        """Take the lock if nobody holds it. False also when the folder is gone."""
        assert not self.held
        with translated(f"lock {self._what}"):
            try:
                descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                return False
            if not _flock(descriptor):
                return False
            if not _names(self.path, descriptor):
                os.close(descriptor)
                return False
            self._descriptor = descriptor
            _held.add(self)
            return True


def is_locked(path: Path) -> bool:
    """Tell whether somebody holds the lock of a file or folder, without creating it. False when it is not there."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    if _flock(descriptor):
        os.close(descriptor)
        return False
    return True


def _flock(descriptor: int) -> bool:
    """Lock a descriptor; close it and return False when another one has the lock."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            return False
        raise
    return True


def _names(path: Path, descriptor: int) -> bool:
    """Tell whether the path still leads to the file that was opened."""
    try:
        there = os.stat(path, follow_symlinks=False)  # noqa: PTH116 (hot; see disk.make_private_folder)
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(descriptor))


def _close_inherited() -> None:
    for lock in list(_held):
        lock._forget()


os.register_at_fork(after_in_child=_close_inherited)
