"""The monitor's socket, seen from a caller: frames, requests, and an attached stream.

A frame is one byte of type, four bytes of length (little-endian), and that many bytes. Type 0 carries a JSON document, 1 stdin
(towards the container; an empty one is end of file), 2 stdout and 3 stderr (towards the caller). A monitor answers requests in
order; ``exit`` comes when the container has ended and, to an attached caller, after all output.

Sockets come from the module beneath ``socket``, which is 2.5 ms of enums and selectors around it: a twentieth of a short command.
"""

from __future__ import annotations

import _socket
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from select import POLLIN, POLLOUT, poll
from types import TracebackType

from lamella import errors
from lamella.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    LamellaError,
    NotFound,
    PermissionDenied,
)
from lamella.structs import Struct, decode, encode
from lamella.typings import Any, Literal

CONTROL, STDIN, STDOUT, STDERR = range(4)
HEADER = 5
FRAME_MAX = 1024 * 1024
RECEIVE = 256 * 1024
STDIN_PIECE = 64 * 1024
LOOK = 1.0
"""Seconds that one wait for the monitor may take."""

Stream = Literal["stdout", "stderr"]
OnOutput = Callable[[Stream, bytes], object]


class Exit(Struct, frozen=True):
    """How a container ended. ``exit_code`` is 128 + signal for one that a signal ended."""

    exit_code: int
    signal: int | None = None
    exited_at: str = ""
    oom_killed: bool = False
    pid: int | None = None
    """Its id, as the host saw it; None in records of older releases."""


class _Failure(Struct):
    kind: str
    message: str
    hint: str | None = None
    exit_code: int | None = None


class Reply(Struct):
    """What a monitor says: an answer, a failure, or the exit."""

    ok: bool = False
    status: str = ""
    pid: int | None = None
    error: _Failure | None = None
    exit: Exit | None = None
    warnings: list[str] = []
    execs: dict[str, int] = {}
    """Of the container's state: the pids of the processes that have a name."""
    stdio: dict[str, str] = {}
    """Of a process that has a name: its :class:`lamella.containers.task.Paths`."""
    terminal: bool = False


ENDED = "the container has ended"
"""The monitor's word (``ended`` in ``rust/launcher/src/monitor``) to those who come too late."""


class TaskEnded(NotFound):
    """There is no task any more; other things that are NotFound are in the container, as a working folder."""


def raise_failure(failure: _Failure) -> None:
    """Raise the error that a launcher or monitor reported, as its own class."""
    if failure.message == ENDED:
        raise TaskEnded(failure.message)
    kind = getattr(errors, failure.kind, None)
    if not (isinstance(kind, type) and issubclass(kind, LamellaError)):
        kind = Internal
    raise kind(failure.message, hint=failure.hint)


def encode_frame(kind: int, payload: bytes | memoryview) -> bytes:
    """Give a frame's bytes."""
    return bytes([kind]) + len(payload).to_bytes(4, "little") + payload


class Connection:
    """A connection to a monitor that reads and writes whole frames.

    One thread may read while others write.
    """

    def __init__(self, sock: _socket.socket) -> None:
        self._socket = sock
        self._buffer = bytearray()
        self._writing = threading.Lock()

    @classmethod
    def open(cls, task_folder: Path) -> Connection:
        """Connect to the monitor of a task. TaskEnded, which is NotFound, when none listens."""
        # Through a descriptor of the folder: a socket's path may have 107 bytes, a store's folder may be deeper.
        try:
            folder = os.open(task_folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise TaskEnded("the container has no task") from None
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        try:
            sock.connect(f"/proc/self/fd/{folder}/control.sock")
        except (FileNotFoundError, ConnectionRefusedError):
            sock.close()
            raise TaskEnded("the container's task has ended") from None
        except PermissionError:
            sock.close()
            raise PermissionDenied("the container belongs to another user") from None
        finally:
            os.close(folder)
        return cls(sock)

    def close(self) -> None:
        """Hang up. Harmless twice."""
        self._socket.close()

    def shut(self) -> None:
        """Hang up also while another thread waits for a frame: it finds the end of the connection. Harmless twice."""
        with suppress(OSError):
            self._socket.shutdown(_socket.SHUT_RDWR)

    def fileno(self) -> int:
        """Give the descriptor, for polling."""
        return self._socket.fileno()

    def send(self, kind: int, payload: bytes | memoryview) -> None:
        """Send one frame."""
        frame = encode_frame(kind, payload)
        with self._writing:
            self._socket.sendall(frame)

    def request(self, document: dict[str, Any]) -> None:
        """Send a request."""
        self.send(CONTROL, encode(document))

    def take(self) -> tuple[int, bytes] | None:
        """Take a frame that has arrived whole, None if there is none."""
        buffer = self._buffer
        if len(buffer) < HEADER:
            return None
        length = int.from_bytes(buffer[1:HEADER], "little")
        if length > FRAME_MAX:
            raise Internal(f"the monitor sent a frame of {length} bytes, more than the protocol allows")
        end = HEADER + length
        if len(buffer) < end:
            return None
        kind, payload = buffer[0], bytes(buffer[HEADER:end])
        del buffer[:end]
        return kind, payload

    def fill(self) -> bool:
        """Read what has arrived; False at the end of the connection."""
        try:
            data = self._socket.recv(RECEIVE)
        except ConnectionResetError:
            return False
        self._buffer += data
        return bool(data)

    def receive(self, deadline: float | None = None) -> tuple[int, bytes] | None:
        """Wait for one frame; None at the end of the connection. DeadlineExceeded at ``deadline`` (monotonic seconds)."""
        while (frame := self.take()) is None:
            left = _left(deadline)
            if not left:
                raise DeadlineExceeded("the time-out passed")
            waiter = poll()
            waiter.register(self._socket, POLLIN)
            if waiter.poll(left * 1000) and not self.fill():
                return None
        return frame

    def reply(self, deadline: float | None = None) -> Reply | None:
        """Wait for one document, skipping output; None at the end of the connection. Raise what it reports."""
        while (frame := self.receive(deadline)) is not None:
            if frame[0] == CONTROL:
                reply = decode(frame[1], Reply)
                if reply.error is not None:
                    raise_failure(reply.error)
                return reply
        return None

    def write_some(self, data: memoryview) -> int:
        """Write what fits without waiting; return the number of bytes."""
        try:
            return self._socket.send(data, _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return 0


class Attached:
    """The streams of a container. Iterate to get ``(stream, bytes)`` until the container has ended; then ``exit`` is set.

    A caller that does not read slows the container down; nothing is lost.
    """

    def __init__(self, connection: Connection, *, deadline: float | None = None) -> None:
        self._connection = connection
        self._deadline = deadline
        self._left = False
        self.exit: Exit | None = None

    def __enter__(self) -> Attached:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Detach; the container goes on. Harmless twice."""
        self._connection.close()

    def leave(self) -> None:
        """Detach while another thread iterates, which ends then with no ``exit``; the container goes on. Harmless twice."""
        self._left = True
        self._connection.shut()

    def fileno(self) -> int:
        """Give the descriptor, for polling."""
        return self._connection.fileno()

    def __iter__(self) -> Iterator[tuple[Stream, bytes]]:
        """Yield output as it comes. FailedPrecondition if the monitor ends without telling the exit."""
        while (frame := self._connection.receive(self._deadline)) is not None:
            piece = self._take(*frame)
            if piece is not None:
                yield piece
            if self.exit is not None:
                return
        if self.exit is None and not self._left:
            raise FailedPrecondition("the container's monitor ended without an exit status")

    def _take(self, kind: int, payload: bytes) -> tuple[Stream, bytes] | None:
        if kind == STDOUT:
            return "stdout", payload
        if kind == STDERR:
            return "stderr", payload
        reply = decode(payload, Reply)
        if reply.error is not None:
            raise_failure(reply.error)
        self.exit = reply.exit or self.exit
        return None

    def write_stdin(self, data: bytes) -> None:
        """Send bytes to the container's stdin; blocks while it does not read. BrokenPipeError when it has ended."""
        view = memoryview(data)
        for start in range(0, len(view), STDIN_PIECE):
            self._connection.send(STDIN, view[start : start + STDIN_PIECE])

    def close_stdin(self) -> None:
        """Give the container's stdin its end. Harmless when the container has ended."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self._connection.send(STDIN, b"")

    def kill(self, signal: int, *, all: bool = False) -> None:
        """Send a signal to what the streams belong to: the container, or the command of an exec; or to all in it."""
        self._connection.request({"op": "kill", "signal": signal, "all": all})

    def resize(self, rows: int, cols: int) -> None:
        """Tell a terminal its size in characters."""
        self._connection.request({"op": "resize", "rows": rows, "cols": cols})

    def communicate(
        self, data: bytes | None = None, *, deadline: float | None = None, on_output: OnOutput | None = None
    ) -> tuple[bytes, bytes]:
        """Feed ``data`` and collect stdout and stderr until the end; ``on_output`` is called with each piece as it comes.

        DeadlineExceeded at ``deadline`` (monotonic seconds); its ``stdout`` and ``stderr`` attributes hold what came.
        """
        output: dict[Stream, list[bytes]] = {"stdout": [], "stderr": []}
        pending = memoryview(_stdin_frames(data)) if data is not None else memoryview(b"")
        waiter = poll()
        waiter.register(self._connection.fileno(), POLLIN | (POLLOUT if pending else 0))
        while True:
            while (frame := self._connection.take()) is not None:
                piece = self._take(*frame)
                if piece is not None:
                    output[piece[0]].append(piece[1])
                    if on_output is not None:
                        on_output(*piece)
            if self.exit is not None:
                return b"".join(output["stdout"]), b"".join(output["stderr"])
            events = waiter.poll(_left(deadline) * 1000)
            if not events:
                if deadline is not None and time.monotonic() >= deadline:
                    raise OutputTimeout(b"".join(output["stdout"]), b"".join(output["stderr"]))
                continue
            if events[0][1] & POLLOUT:
                try:
                    pending = pending[self._connection.write_some(pending) :]
                except (BrokenPipeError, ConnectionResetError):
                    pending = memoryview(b"")
                if not pending:
                    waiter.modify(self._connection.fileno(), POLLIN)
            if events[0][1] & ~POLLOUT and not self._connection.fill():
                raise FailedPrecondition("the container's monitor ended without an exit status")


def _left(deadline: float | None) -> float:
    """Give the seconds to wait at most: until ``deadline``, if there is one, and no longer than a signal may go unnoticed.

    One that comes right before a system call does not interrupt it: Ctrl-C would be seen when the container says something.
    """
    return LOOK if deadline is None else min(max(0.0, deadline - time.monotonic()), LOOK)


class OutputTimeout(DeadlineExceeded):
    """The time-out passed; holds what the container had written."""

    def __init__(self, stdout: bytes, stderr: bytes) -> None:
        super().__init__("the container did not end in time")
        self.stdout = stdout
        self.stderr = stderr


def _stdin_frames(data: bytes) -> bytes:
    frames = [
        encode_frame(STDIN, data[start : start + STDIN_PIECE]) for start in range(0, len(data), STDIN_PIECE)
    ]
    return b"".join([*frames, encode_frame(STDIN, b"")])
