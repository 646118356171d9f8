"""A program on a terminal of its own, and what a person would see there."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_PIECE = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])|(\r)|(\n)|([^\x1b\r\n]+)", re.S)


class Terminal:
    """Runs a program with a terminal for stderr; a context manager that kills what still runs.

    ``screen()`` is what is on the terminal: it knows the few control sequences that lamella uses, and fails for others.
    """

    def __init__(
        self, argv: Sequence[str], *, columns: int = 100, lines: int = 24, **env: str | None
    ) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.columns, self.lines = columns, lines
        environment = {**os.environ, "TERM": "xterm", **env}
        for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"):
            if name not in env:
                environment.pop(name, None)
        self.process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=theirs,
            env={name: value for name, value in environment.items() if value is not None},
        )
        os.close(theirs)
        self._raw = b""
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(timeout=60)
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()
        os.close(self._ours)

    @property
    def raw(self) -> bytes:
        """All that came to the terminal by now."""
        return self._raw

    def wait_for(self, seen: Callable[[list[str]], object]) -> list[str]:
        """Wait until something is on the screen; give the screen."""
        with self._changed:
            assert self._changed.wait_for(lambda: seen(self.screen()), timeout=60), self.screen()
            return self.screen()

    def end(self) -> tuple[int, bytes]:
        """Wait for the program's end; give its exit status (negative: the signal) and what went to stdout."""
        out, _ = self.process.communicate(timeout=60)
        self._reader.join()
        return self.process.returncode, out

    def screen(self) -> list[str]:
        """Give the lines of the screen, down to the one with the cursor."""
        rows, row, column = [""], 0, 0
        for found in _PIECE.finditer(self._raw.decode(errors="replace")):
            number, command, back, down, text = found.groups()
            if back:
                column = 0
            elif down:
                row, column = row + 1, 0  # the terminal driver makes \r\n of \n
                rows += [""] * (row + 1 - len(rows))
            elif text:
                end = column + len(text)
                assert end <= self.columns, f"wider than the terminal: {text!r}"
                rows[row] = rows[row].ljust(column)[:column] + text + rows[row][end:]
                column = end
            elif command == "A":
                row -= int(number or 1)
                assert row >= max(0, len(rows) - self.lines), "moved up beyond the screen"
            elif command == "K":
                assert number == "2"
                rows[row] = ""
            else:
                assert command == "m", found.group()
        return rows[: row + 1]

    def _read(self) -> None:
        with suppress(OSError):  # EIO: the last writer has gone
            while piece := os.read(self._ours, 65536):
                with self._changed:
                    self._raw += piece
                    self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()
