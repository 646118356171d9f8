"""kill -9 at a chosen step: before the n-th system call that changes something, of a process and whatever it starts.

The kernel stops each such call and asks first (seccomp_unotify(2)). So the calls of every thread and every program are seen, be
they Python's, SQLite's, the core's or the launcher's, and nothing in the product knows of it. A step is what another process
can see afterwards: a change of files, folders, their owners, modes, times and attributes; mounts, sockets, new processes.
Locks and syncs are none: they end with the process, or change nothing while the machine lives.

::

    outcome = run(operation)               # in a forked child: how many steps it takes
    outcome = run(operation, kill_at=17)   # that the 17th never happens

The seed chooses steps (chance.py), LAMELLA_NIGHTLY=1 takes them all. Else the writes that follow each other into one file are one
step: half of all are pages of SQLite's log.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import random
import select
import signal
import socket
import struct
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

import pytest

from chance import NIGHTLY, SEED

JOIN_SECONDS = 30
patience = pytest.mark.timeout(3600 if NIGHTLY else 300)
"""For tests that take all steps in the nightly form."""
killing = [pytest.mark.privileged, pytest.mark.beside, pytest.mark.usefixtures("alone"), patience]
"""For those that kill at each step, and look at what is left on the machine."""


class When(NamedTuple):
    """When a call is a step: one of the flags ``mask`` is set (or ``unset``), or its descriptor is that of a file.

    Flags are in the argument itself, or at the start of the struct that it points to.
    """

    argument: int
    where: Literal["register", "struct", "file"] = "file"
    mask: int = 0
    unset: bool = False

    def holds(self, flags: int) -> bool:
        return bool(flags & self.mask) != self.unset


_WRITING = os.O_CREAT | os.O_TRUNC
_THREAD = 0x10000  # CLONE_THREAD
_ALWAYS = None
_CALLS: dict[str, tuple[int, int, When | None]] = {  # numbers on x86-64 and arm64 (-1: it has none)
    "write": (1, 64, When(0)),
    "writev": (20, 66, When(0)),
    "pwrite64": (18, 68, _ALWAYS),
    "pwritev": (296, 70, _ALWAYS),
    "pwritev2": (328, 287, _ALWAYS),
    "sendfile": (40, 71, When(0)),
    "splice": (275, 76, When(2)),
    "copy_file_range": (326, 285, _ALWAYS),
    "truncate": (76, 45, _ALWAYS),
    "ftruncate": (77, 46, When(0)),
    "fallocate": (285, 47, _ALWAYS),
    "open": (2, -1, When(1, "register", _WRITING)),
    "creat": (85, -1, _ALWAYS),
    "openat": (257, 56, When(2, "register", _WRITING)),
    "openat2": (437, 437, When(2, "struct", _WRITING)),
    "mkdir": (83, -1, _ALWAYS),
    "mkdirat": (258, 34, _ALWAYS),
    "rmdir": (84, -1, _ALWAYS),
    "unlink": (87, -1, _ALWAYS),
    "unlinkat": (263, 35, _ALWAYS),
    "rename": (82, -1, _ALWAYS),
    "renameat": (264, 38, _ALWAYS),
    "renameat2": (316, 276, _ALWAYS),
    "link": (86, -1, _ALWAYS),
    "linkat": (265, 37, _ALWAYS),
    "symlink": (88, -1, _ALWAYS),
    "symlinkat": (266, 36, _ALWAYS),
    "mknod": (133, -1, _ALWAYS),
    "mknodat": (259, 33, _ALWAYS),
    "chmod": (90, -1, _ALWAYS),
    "fchmod": (91, 52, When(0)),
    "fchmodat": (268, 53, _ALWAYS),
    "fchmodat2": (452, 452, _ALWAYS),
    "chown": (92, -1, _ALWAYS),
    "fchown": (93, 55, When(0)),
    "lchown": (94, -1, _ALWAYS),
    "fchownat": (260, 54, _ALWAYS),
    "utimensat": (280, 88, _ALWAYS),
    "setxattr": (188, 5, _ALWAYS),
    "lsetxattr": (189, 6, _ALWAYS),
    "fsetxattr": (190, 7, _ALWAYS),
    "bind": (49, 200, _ALWAYS),
    "mount": (165, 40, _ALWAYS),
    "umount2": (166, 39, _ALWAYS),
    "fsmount": (432, 432, _ALWAYS),
    "move_mount": (429, 429, _ALWAYS),
    "pivot_root": (155, 41, _ALWAYS),
    "fork": (57, -1, _ALWAYS),
    "vfork": (58, -1, _ALWAYS),
    "clone": (56, 220, When(0, "register", _THREAD, unset=True)),
    "clone3": (435, 435, When(0, "struct", _THREAD, unset=True)),
    "execve": (59, 221, _ALWAYS),
    "execveat": (322, 281, _ALWAYS),
}
_WRITES = {"write", "writev", "pwrite64", "pwritev", "pwritev2"}
_MACHINES = {"x86_64": (0, 317, 0xC000003E), "aarch64": (1, 277, 0xC00000B7)}
"""Column of the numbers, number of seccomp(2), AUDIT_ARCH of linux/audit.h."""
_NOTIFICATION = struct.Struct("=QIIiIQ6Q")  # struct seccomp_notif
_ANSWER = struct.Struct("=QqiI")  # struct seccomp_notif_resp
_RECEIVE, _SEND = 0xC0502100, 0xC0182101  # SECCOMP_IOCTL_NOTIF_RECV, _SEND


class Outcome(NamedTuple):
    """How the process ended (negative: by a signal), how many steps were counted, and the one that never happened."""

    status: int
    steps: int
    prevented: str


def run(operation: Callable[[], None], *, kill_at: int = 0, everyone: bool = False) -> Outcome:
    """Run ``operation`` in a child of this process; wait for its end and for that of all that it started.

    Before step ``kill_at`` the process that is about to make it dies; with ``everyone`` so does each other one at its own next
    step, as if all were killed at once. What the operation raises is printed, and its status is 1.
    """
    if platform.machine() not in _MACHINES:
        pytest.skip(f"the numbers of system calls on {platform.machine()} are not in the table")
    ours, theirs = socket.socketpair()
    with warnings.catch_warnings():
        # From Python 3.12 on: the registry's threads, which the child does without, hold no lock while nobody asks.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            ours.close()
            _hand_over(theirs)
            operation()
            status = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)
    theirs.close()
    with ours:
        message, descriptors, _, _ = socket.recv_fds(ours, 4, 1)
    if not descriptors:
        os.waitpid(pid, 0)
        number = int.from_bytes(message, "little")
        pytest.skip(f"the kernel stops no system calls for us (seccomp: {os.strerror(number)})")
    watch = _Watch(descriptors[0], kill_at, everyone)
    watch.start()
    _, status = os.waitpid(pid, 0)
    watch.join(JOIN_SECONDS)
    assert not watch.is_alive(), f"something that the operation started does not end: {_stopped_at_calls()}"
    if watch.failure is not None:
        raise watch.failure
    return Outcome(os.waitstatus_to_exitcode(status), watch.steps, watch.prevented)


def chosen(steps: int, points: int) -> list[int]:
    """Choose ``points`` steps of so many, spread evenly; all of them in the nightly form."""
    if NIGHTLY or steps <= points:
        return list(range(1, steps + 1))
    pick = random.Random(SEED)
    width = steps / points
    return [1 + min(steps - 1, int((n + pick.random()) * width)) for n in range(points)]


def kills(
    scene: Callable[[], Callable[[], None]], *, points: int, everyone: bool = False
) -> Iterator[Outcome]:
    """Run an operation once to its end, then killed at chosen steps; give each outcome.

    ``scene`` makes what the operation needs, anew for each, and gives the operation. A test that fails shows the last step.
    """
    whole = run(scene())
    assert whole.status == 0, "the operation fails by itself"
    yield whole
    assert whole.steps > 3
    print(f"{whole.steps} steps, LAMELLA_SEED={SEED}")
    for step in chosen(whole.steps, points):
        outcome = run(scene(), kill_at=step, everyone=everyone)
        print(
            f"killed at step {step}, before {outcome.prevented or 'it came there'}: status {outcome.status}"
        )
        yield outcome


class _Watch(threading.Thread):
    """Lets calls through, one after the other, until the one that is not to happen."""

    def __init__(self, listener: int, kill_at: int, everyone: bool) -> None:
        super().__init__(name="steps", daemon=True)
        self.steps = 0
        self.prevented = ""
        self.failure: Exception | None = None
        self._listener = listener
        self._kill_at = kill_at
        self._everyone = everyone
        self._writing: tuple[int, int] | None = None
        column = _MACHINES[platform.machine()][0]
        self._names = {call[column]: name for name, call in _CALLS.items()}

    def run(self) -> None:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        try:
            while True:
                ((_, event),) = poll.poll()
                if event & select.POLLIN:
                    self._answer()
                elif event & select.POLLHUP:  # nobody is left
                    return
        except Exception as error:  # seen by whoever waits for us
            self.failure = error
        finally:
            os.close(self._listener)

    def _answer(self) -> None:
        buffer = bytearray(_NOTIFICATION.size)
        try:
            fcntl.ioctl(self._listener, _RECEIVE, buffer, True)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR):  # it was killed meanwhile
                return
            raise
        call, pid, _, number, _, _, *arguments = _NOTIFICATION.unpack(buffer)
        name = self._names[number]
        goes_on = _ANSWER.pack(call, 0, 0, 1)  # SECCOMP_USER_NOTIF_FLAG_CONTINUE
        with suppress(OSError):  # it was killed meanwhile
            if self._is_step(pid, name, arguments) and self._is_last(pid, name, arguments):
                os.kill(pid, signal.SIGKILL)
            else:
                fcntl.ioctl(self._listener, _SEND, goes_on)

    def _is_step(self, pid: int, name: str, arguments: list[int]) -> bool:
        when = _CALLS[name][2]
        if when is None or when.where == "register":
            return True
        try:
            if when.where == "file":
                return self._file(pid, arguments[when.argument] & 0xFFFFFFFF).startswith("/")
            flags = self._memory(pid, arguments[when.argument], 8)
        except (OSError, OverflowError):  # the kernel will refuse it too
            return False
        return when.holds(int.from_bytes(flags, sys.byteorder))

    def _is_last(self, pid: int, name: str, arguments: list[int]) -> bool:
        if self.prevented:
            return self._everyone
        writing = (pid, arguments[0]) if name in _WRITES else None
        before, self._writing = self._writing, writing
        if writing is not None and writing == before and not NIGHTLY:
            return False
        self.steps += 1
        if self.steps != self._kill_at:
            return False
        self.prevented = " ".join([name, *filter(None, (self._shown(pid, each) for each in arguments[:3]))])
        return True

    @staticmethod
    def _file(pid: int, descriptor: int) -> str:
        return str(Path(f"/proc/{pid}/fd/{descriptor}").readlink())

    @staticmethod
    def _memory(pid: int, address: int, size: int) -> bytes:
        with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
            return os.pread(memory.fileno(), size, address)

    def _shown(self, pid: int, argument: int) -> str:
        """Show the text that an argument points to, or the file that it is open at, as far as one can tell."""
        with suppress(OSError, OverflowError, UnicodeDecodeError):
            if argument < 1024:
                return self._file(pid, argument) if argument > 2 else ""
            text = self._memory(pid, argument, 200).split(b"\0")[0].decode()
            return text if text.isprintable() else ""
        return ""


def _hand_over(parent: socket.socket) -> None:
    """Have this process's calls stopped from now on, and give the parent the descriptor that lets them go on."""
    libc = ctypes.CDLL(None, use_errno=True)
    column, seccomp, architecture = _MACHINES[platform.machine()]
    program = _filter(column, architecture)
    held = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(held))  # struct sock_fprog
    if os.geteuid() != 0:
        libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS: those who are not root need it
    listener = libc.syscall(
        seccomp, 1, 8, header
    )  # SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER
    if listener < 0:
        parent.sendall(ctypes.get_errno().to_bytes(4, "little"))
        os._exit(0)
    socket.send_fds(parent, [b"\0"], [listener])
    os.close(listener)
    parent.close()


def _stopped_at_calls() -> list[str]:
    """Name the processes whose calls somebody stops, with where in the kernel they are."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if "Seccomp:\t2" in (process / "status").read_text():
                found.append(f"{(process / 'stat').read_text():.40} {(process / 'wchan').read_text()}")
    return found


def _filter(column: int, architecture: int) -> bytes:
    """Write the filter: calls of the table ask, all others pass (linux/bpf_common.h, linux/seccomp.h)."""
    load, if_equal, if_set, give = 0x20, 0x15, 0x45, 0x06
    allow, ask = 0x7FFF0000, 0x7FC00000

    def op(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("=HBBI", code, yes, no, value)

    program = op(load, 4) + op(if_equal, architecture, yes=1) + op(give, allow) + op(load, 0)
    for call in _CALLS.values():
        number, when = call[column], call[2]
        if number < 0:
            continue
        if when is None or when.where != "register":
            program += op(if_equal, number, no=1) + op(give, ask)
        else:
            program += op(if_equal, number, no=4) + op(load, 16 + 8 * when.argument)
            program += op(if_set, when.mask, yes=int(when.unset), no=int(not when.unset))
            program += op(give, ask) + op(give, allow)
    return program + op(give, allow)
