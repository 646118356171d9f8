"""Locks between processes and threads, and errors of the disk."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from lamella import locks
from lamella.disk import make_private_folder, storage_error, translated
from lamella.errors import Cancelled, LamellaError, NotFound, PermissionDenied, ResourceExhausted, Unavailable
from lamella.locks import FileLock, FolderLock, is_locked


def lock(path: Path, *, transient: bool = False) -> FileLock:
    return FileLock(path, what="the thing", transient=transient)


def test_a_lock_excludes_others_of_the_same_process(tmp_path):
    first, second = lock(tmp_path / "lock"), lock(tmp_path / "lock")
    with first:
        assert is_locked(tmp_path / "lock")
        assert not second.try_acquire()
        with pytest.raises(Unavailable, match="the thing is in use"):
            second.acquire(wait=False)
    assert not is_locked(tmp_path / "lock")
    assert second.try_acquire()
    second.release()
    second.release()


def test_who_does_not_wait_is_not_refused_because_somebody_looks_whether_the_lock_is_held(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(locks, "_LOOK_SECONDS", 60.0)  # however late the other one gets a processor
    with lock(tmp_path / "lock"):
        pass
    looks = os.open(tmp_path / "lock", os.O_RDONLY)
    fcntl.flock(looks, fcntl.LOCK_EX)
    other = threading.Timer(0.01, os.close, [looks])
    other.start()
    mine = lock(tmp_path / "lock")
    assert not mine.acquire(wait=False)
    mine.release()
    other.join()


def test_missing_folders_are_made(tmp_path):
    with lock(tmp_path / "a" / "b" / "lock"):
        assert (tmp_path / "a" / "b").stat().st_mode & 0o7777 == 0o700


def test_a_waiting_one_gets_it(tmp_path):
    first, second = lock(tmp_path / "lock"), lock(tmp_path / "lock")
    first.acquire()
    thread = threading.Thread(target=second.acquire)
    thread.start()
    time.sleep(0.02)
    assert not second.held
    first.release()
    thread.join()
    assert second.held
    second.release()


def test_waiting_ends_with_what_its_callback_raises(tmp_path):
    def stop() -> None:
        raise InterruptedError

    second = lock(tmp_path / "lock")
    with lock(tmp_path / "lock"), pytest.raises(InterruptedError):
        second.acquire(waiting=stop)
    assert not second.acquire(waiting=stop)
    second.release()


def test_who_takes_a_lock_learns_whether_that_took_waiting(tmp_path):
    first, second = lock(tmp_path / "lock"), lock(tmp_path / "lock")
    assert not first.acquire()
    assert second.acquire(waiting=first.release)
    second.release()


def test_a_transient_file_is_gone_after_release(tmp_path):
    with lock(tmp_path / "lock", transient=True):
        assert (tmp_path / "lock").exists()
    assert not (tmp_path / "lock").exists()


def test_removing_the_file_loses_no_waiter(tmp_path):
    inside = []
    worst = []

    def work() -> None:
        for _ in range(30):
            with lock(tmp_path / "lock", transient=True):
                inside.append(1)
                worst.append(len(inside))
                time.sleep(0)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(worst) == {1}
    assert len(worst) == 180


def test_the_kernel_releases_it_when_the_holder_is_killed(tmp_path):
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        lock(tmp_path / "lock").acquire()
        os.write(writer, b"x")
        time.sleep(60)
        os._exit(0)
    assert os.read(reader, 1) == b"x"
    assert is_locked(tmp_path / "lock")
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(reader)
    os.close(writer)
    with lock(tmp_path / "lock") as held:
        assert held.held


def test_a_forked_child_does_not_keep_it(tmp_path):
    reader, writer = os.pipe()
    held = lock(tmp_path / "lock")
    held.acquire()
    pid = os.fork()
    if pid == 0:
        os.close(writer)
        os._exit(0 if os.read(reader, 1) == b"" and not held.held else 1)
    held.release()
    assert not is_locked(tmp_path / "lock")
    os.close(writer)
    _, status = os.waitpid(pid, 0)
    os.close(reader)
    assert os.waitstatus_to_exitcode(status) == 0


def test_looking_makes_no_file(tmp_path):
    assert not is_locked(tmp_path / "lock")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_can_be_locked_and_is_never_made(tmp_path):
    folder = tmp_path / "folder"
    assert not FolderLock(folder, what="it").try_acquire()
    assert not folder.exists()
    folder.mkdir()
    with FolderLock(folder, what="it"):
        assert is_locked(folder)
        assert not FolderLock(folder, what="it").try_acquire()
        folder.rename(tmp_path / "elsewhere")
        assert is_locked(tmp_path / "elsewhere")
        assert not is_locked(folder)


def test_a_lock_file_is_not_made_through_a_symbolic_link(tmp_path):
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LamellaError):
        lock(tmp_path / "lock").try_acquire()
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOENT, NotFound),
        (errno.EACCES, PermissionDenied),
        (errno.EROFS, PermissionDenied),
        (errno.ENOSPC, ResourceExhausted),
        (errno.EDQUOT, ResourceExhausted),
        (errno.EMFILE, ResourceExhausted),
        (errno.EIO, Unavailable),
    ],
)
def test_an_error_of_the_disk_says_what_was_tried(number, kind):
    with pytest.raises(kind, match="cannot write the blob x") as caught, translated("write the blob x"):
        raise OSError(number, os.strerror(number), "/some/path")
    assert isinstance(caught.value.__cause__, OSError)
    assert isinstance(storage_error(OSError("bare"), "try"), Unavailable)


def test_other_errors_pass_untouched():
    for error in (NotFound("mine"), Unavailable("mine"), ZeroDivisionError()):
        with pytest.raises(type(error)) as caught, translated("try"):
            raise error
        assert caught.value is error


def test_a_private_folder_is_made_with_what_is_above_it(tmp_path):
    for _ in range(2):
        make_private_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a").stat().st_mode & 0o7777 == 0o700
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        make_private_folder(tmp_path / "file")


def test_a_wait_is_told_with_its_seconds_and_no_other_acquisition_is(tmp_path):
    waits = []
    first = FileLock(tmp_path / "lock", what="the thing", waited=waits.append)
    second = FileLock(tmp_path / "lock", what="the thing", waited=waits.append)
    first.acquire()
    with pytest.raises(Unavailable):
        second.acquire(wait=False)
    assert waits == []
    second.acquire(waiting=first.release)
    assert len(waits) == 1
    assert waits[0] >= 0
    second.release()


def test_a_wait_that_is_given_up_is_told_too(tmp_path):
    waits = []
    second = FileLock(tmp_path / "lock", what="the thing", waited=waits.append)

    def give_up():
        raise Cancelled("enough")

    with lock(tmp_path / "lock"), pytest.raises(Cancelled):
        second.acquire(waiting=give_up)
    assert len(waits) == 1
