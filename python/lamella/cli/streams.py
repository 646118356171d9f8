"""A container in the foreground: its output here, our stdin, signals and terminal there.

Four parties work at once. The calling thread writes the container's output as it comes. A thread passes stdin on. A
thread passes signals on: Python's handlers only leave a byte in a pipe, since a handler that talked to the monitor
itself could find the calling thread in the middle of a message. A timer kills the container when its time is over.

Signals come from the module beneath ``signal``, which makes enums of them all: 0.6 ms of a short command.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType

from lamella.cli import EXIT_TIMEOUT
from lamella.cli.session import LastOutput, OutputClosed, report
from lamella.containers.detach_keys import DetachKeys
from lamella.errors import LamellaError
from lamella.typings import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import signal as _signal

    from lamella.cli.session import Session
    from lamella.containers.container import Attached
else:
    import _signal

FORWARDED = (
    _signal.SIGHUP,
    _signal.SIGINT,
    _signal.SIGQUIT,
    _signal.SIGTERM,
    _signal.SIGUSR1,
    _signal.SIGUSR2,
)
_ENDING = (_signal.SIGINT, _signal.SIGQUIT, _signal.SIGTERM)
_PATIENCE = 3
"""Signals to end that a container may ignore. The first process of a container ignores those it has no handler for."""
_PIECE = 64 * 1024
_WRITE_WAIT = 0.5
"""Seconds to wait for a container that doesn't read its stdin before a new terminal size is dropped."""


class Target(Protocol):
    """What is in the foreground: a container, or a command in one."""

    @property
    def name(self) -> str:
        """How messages call it."""
        ...

    def kill(self, signal: str | int = "SIGKILL") -> None:
        """Send it a signal."""
        ...


def follow(
    session: Session,
    container: Target,
    attached: Attached,
    signals: Signals,
    *,
    stdin: bool,
    tty: bool,
    timeout: float | None = None,
    detach_keys: bytes = b"",
) -> int | None:
    """Stay with a container until its end and return the exit status for the command.

    None when ``detach_keys`` were typed on its terminal: it goes on then. When the reader of our output goes away the container
    is killed, as SIGPIPE would end a program in its place, and OutputClosed is raised.
    """
    foreground = _Foreground(container, attached, DetachKeys(detach_keys if tty and stdin else b""))
    with _raw_terminal(enabled=tty and stdin):
        signals.deliver(foreground.on_signal)
        if tty:
            foreground.resize()
        if stdin:
            threading.Thread(target=foreground.pass_stdin, daemon=True).start()
        timed_out = foreground.pass_output(session, timeout)
    if foreground.is_left:
        session.note(f"lamella: left {container.name}, which goes on")
        return None
    if timed_out:
        report(f"container {container.name} ran longer than {timeout:g} s and was killed")
        return EXIT_TIMEOUT
    ended = attached.exit
    assert ended is not None
    if ended.oom_killed:
        session.note(f"lamella: container {container.name} ran out of memory")
    if ended.exit_code != 0:
        foreground.last.explain(session)
    return ended.exit_code


class _Foreground:
    """One attached container."""

    def __init__(self, container: Target, attached: Attached, detach_keys: DetachKeys) -> None:
        self._container = container
        self._attached = attached
        self._detach_keys = detach_keys
        self.is_left = False
        self.last = LastOutput()
        self._writing = threading.Lock()
        self._endings = 0

    def pass_output(self, session: Session, timeout: float | None) -> bool:
        """Write the output until the end; return whether the time-out passed."""
        late = threading.Event()

        def end() -> None:
            late.set()
            self._kill("SIGKILL")

        timer = threading.Timer(timeout, end) if timeout is not None else None
        if timer is not None:
            timer.daemon = True
            timer.start()
        try:
            for stream, data in self._attached:
                session.bytes(data, error=stream == "stderr")
                self.last.add(data)
        except OutputClosed:
            self._kill("SIGKILL")
            for _ in self._attached:
                pass
            raise
        finally:
            if timer is not None:
                timer.cancel()
        return late.is_set()

    def pass_stdin(self) -> None:
        """Pass our stdin on until its end, or the container's."""
        try:
            # Not through sys.stdin: at exit the interpreter would wait for the lock that a blocked read holds.
            descriptor = sys.stdin.fileno()
            while data := os.read(descriptor, _PIECE):
                data, left = self._detach_keys.pass_on(data)
                with self._writing:
                    self._attached.write_stdin(data)
                if left:
                    self.is_left = True
                    self._attached.leave()
                    return
        except (OSError, ValueError, AttributeError):
            pass  # no stdin, or the container has ended
        try:
            with self._writing:
                self._attached.close_stdin()
        except OSError:
            pass

    def on_signal(self, number: int) -> None:
        """Pass a signal on; kill the container when it has ignored several that ask it to end."""
        if number == _signal.SIGWINCH:
            self.resize()
            return
        if number in _ENDING:
            self._endings += 1
            if self._endings >= _PATIENCE:
                report("the container ignores the signal and is killed")
                self._kill("SIGKILL")
                return
        self._kill(number)

    def resize(self) -> None:
        """Tell the container's terminal the size of ours."""
        try:
            columns, rows = os.get_terminal_size(sys.stdout.fileno())
        except (OSError, ValueError):
            return
        if self._writing.acquire(timeout=_WRITE_WAIT):
            try:
                self._attached.resize(rows, columns)
            except OSError:
                pass
            finally:
                self._writing.release()

    def _kill(self, number: str | int) -> None:
        with suppress(LamellaError):  # it has ended
            self._container.kill(number)


class Signals:
    """Collects signals from its start on, and hands them to ``deliver``'s function in a thread of its own.

    A signal that comes earlier waits. Outside the main thread, where Python takes no signals, it does nothing. Without
    ``proxy`` only the terminal's new size is handed over, and the others do to us what they do to any program.
    """

    def __init__(self, *, proxy: bool = True) -> None:
        self._numbers = (*FORWARDED, _signal.SIGWINCH) if proxy else (_signal.SIGWINCH,)

    def __enter__(self) -> Signals:
        self._thread: threading.Thread | None = None
        self._active = threading.current_thread() is threading.main_thread()
        if not self._active:
            return self
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._writer, False)
        self._previous_wakeup = _signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._previous = {number: _signal.signal(number, lambda *_: None) for number in self._numbers}
        return self

    def deliver(self, receive: Callable[[int], None]) -> None:
        """Start to hand signals to a function that takes the number."""
        if not self._active:
            return

        def run() -> None:
            while numbers := os.read(self._reader, 64):
                for number in numbers:
                    if number in self._previous:
                        receive(number)

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._active:
            return
        for number, handler in self._previous.items():
            _signal.signal(number, handler)
        _signal.set_wakeup_fd(self._previous_wakeup)
        os.close(self._writer)
        if self._thread is not None:
            self._thread.join()
        os.close(self._reader)


@contextmanager
def _raw_terminal(*, enabled: bool) -> Iterator[None]:
    """Let every key reach the container, Ctrl-C too; put the terminal back afterwards."""
    try:
        descriptor = sys.stdin.fileno() if enabled else -1
    except (OSError, ValueError):
        descriptor = -1
    if descriptor < 0 or not os.isatty(descriptor):
        yield
        return
    import termios
    import tty

    before = termios.tcgetattr(descriptor)
    tty.setraw(descriptor, termios.TCSADRAIN)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
