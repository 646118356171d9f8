"""Reading the log of a container, also while its monitor writes.

On disk (rust/launcher/src/monitor/{log,log_file}.rs write it)::

    <root>/containers/<namespace>/<container>/log.jsonl            what is written to
                                              log.jsonl.<number>   was full; the lower number is the older file

A record is a line: a line of the container, or a piece of one that is long or was not finished in a while. A full file is
renamed once and written to no more. So a reader that has read a file to its end finds by its inode what it is called now,
and by that number which file follows. There is no lock between them: a reader that is slow or gone holds up nobody, and
the oldest file may go before it was read, which is told.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from lamella.errors import InvalidArgument
from lamella.logs import Log

if TYPE_CHECKING:
    from datetime import datetime

    from lamella.containers.monitor import Stream

    Moment = datetime | float | str

_BLOCK = 256 * 1024
"""Longer than any record: 16 KiB of text that JSON may spell with six bytes each."""
_POLL_FIRST, _POLL_LAST = 0.01, 0.1
"""Seconds between two looks for more. A look is four system calls; an idle follower costs less than a thousandth of a core."""
_log = Log("lamella.containers")


class LogLine(msgspec.Struct):
    """One record: text in ``log``, bytes that are no UTF-8 in ``log64``.

    Or the monitor's own: how many bytes could not be recorded, in ``lost``, and what else it has to say, in ``note``.
    """

    time: str
    stream: str
    log: str = ""
    log64: bytes = b""
    lost: int = 0
    note: str = ""

    @property
    def is_output(self) -> bool:
        """Whether the container has written it."""
        return not (self.lost or self.note)

    @property
    def data(self) -> bytes:
        """The bytes as they were written."""
        return self.log64 or self.log.encode()


_decoder = msgspec.json.Decoder(LogLine)
_TIME = slice(len('{"time":"'), len('{"time":"2026-03-01T12:00:00.123456789Z'))


def parse_moment(value: Moment | None, what: str) -> str | None:
    """Give the time of a record (RFC 3339, UTC, nanoseconds) for a datetime, seconds since 1970 or RFC 3339 text."""
    if value is None:
        return None
    from datetime import UTC, datetime

    from lamella.metadata.clock import format_time, parse_time

    if isinstance(value, datetime):
        text = parse_time(value.astimezone(UTC).isoformat())
    elif isinstance(value, int | float) and not isinstance(value, bool):
        try:
            text = format_time(int(value * 1_000_000))
        except (OverflowError, ValueError):
            raise InvalidArgument(f"{what} {value!r} is not a time") from None
    elif isinstance(value, str):
        text = parse_time(value)
        digits = re.search(r"\.(\d+)", value)
        return f"{text[:20]}{digits[1][:9]:0<9}Z" if digits else f"{text[:-1]}000Z"
    else:
        raise InvalidArgument(
            f"{what} {value!r} is not a time", hint="Give a datetime, seconds since 1970, or RFC 3339."
        )
    return f"{text[:-1]}000Z"


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """Which records are wanted; the times are those of :func:`parse_moment`, both included."""

    stream: str | None = None
    since: str | None = None
    until: str | None = None
    tail: int | None = None

    def takes(self, line: LogLine) -> bool:
        """Say whether a record is one of them, but for ``tail``."""
        return (
            (self.stream is None or line.stream == self.stream or not line.is_output)
            and (self.since is None or line.time >= self.since)
            and (self.until is None or line.time <= self.until)
        )


def select(
    *,
    stream: str | None = None,
    since: Moment | None = None,
    until: Moment | None = None,
    tail: int | Literal["all"] | None = None,
) -> Selection:
    """Parse what a caller asks for. InvalidArgument for what it cannot be."""
    if stream not in (None, "stdout", "stderr"):
        raise InvalidArgument(f"stream {stream!r} is neither stdout nor stderr")
    if (
        tail is not None
        and tail != "all"
        and (not isinstance(tail, int) or isinstance(tail, bool) or tail < 0)
    ):
        raise InvalidArgument(f"tail {tail!r} is neither a number of lines nor 'all'")
    return Selection(
        stream=stream,
        since=parse_moment(since, "since"),
        until=parse_moment(until, "until"),
        tail=None if tail == "all" else tail,
    )


def read_log(
    path: Path,
    selection: Selection,
    *,
    name: str,
    is_complete: Callable[[], bool] | None = None,
) -> Iterator[LogLine]:
    """Yield the records that are wanted, in order; with ``is_complete`` wait for more until that says that none will come.

    ``name`` is the container's, for warnings: of output that was lost, in the log or on the way to a reader that was slow.
    """
    with _Reader(path, selection, name) as reader:
        if selection.tail is not None:
            reader.go_to_tail(selection.tail)
        pause = _POLL_FIRST
        while True:
            # Asked before the last look: what was written until then is there.
            complete = is_complete is None or is_complete()
            found = False
            for line in reader.lines():
                found = True
                if line.lost:
                    reader.warn(f"{line.lost} bytes of its output could not be logged at {line.time}")
                elif line.note:
                    reader.warn(f"{line.note} ({line.time})")
                else:
                    yield line
            if complete or reader.over:
                return
            if selection.until is not None and parse_moment(time.time(), "now") > selection.until:  # type: ignore[operator]
                return
            pause = _POLL_FIRST if found else min(pause * 2, _POLL_LAST)
            time.sleep(pause)


class _File:
    """An open file of a log, read by whole lines. ``number`` is None for what was the present one when it was opened."""

    def __init__(self, descriptor: int, number: int | None) -> None:
        self.descriptor = descriptor
        self.number = number
        self.offset = 0

    def blocks(self) -> Iterator[list[bytes]]:
        """Yield whole lines from the offset on, block by block, and move it; up to what is there now.

        What stands behind the last newline is read anew the next time: it may be taken back.
        """
        while block := os.pread(self.descriptor, _BLOCK, self.offset):
            end = block.rfind(b"\n") + 1
            if end:
                self.offset += end
                yield block[:end].split(b"\n")[:-1]
            elif len(block) == _BLOCK:
                self.offset += len(block)  # no record is that long
            else:
                return

    def lines_backwards(self) -> Iterator[tuple[int, bytes]]:
        """Yield whole lines with their offsets, the last one first."""
        position = os.fstat(self.descriptor).st_size
        rest = b""  # the end of a line that begins before ``position``
        finished = False  # there was a newline behind it
        while position > 0:
            start = max(0, position - _BLOCK)
            end = position + len(rest)
            pieces = (os.pread(self.descriptor, position - start, start) + rest).split(b"\n")
            for piece in reversed(pieces[1:]):
                begin = end - len(piece)
                if finished:
                    yield begin, piece
                finished = True
                end = begin - 1
            position, rest = start, pieces[0]
        if finished:
            yield 0, rest

    def close(self) -> None:
        os.close(self.descriptor)


class _Reader:
    """Goes through the files of a log, the oldest first, while a monitor writes."""

    def __init__(self, path: Path, selection: Selection, name: str) -> None:
        self._path = path
        self._selection = selection
        self._name = name
        self._file: _File | None = None
        self.over = False
        """A record came that is later than what is wanted."""

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def warn(self, what: str) -> None:
        """Say that something is missing."""
        _log.warning("container %(container_name)s: %(reason)s", container_name=self._name, reason=what)

    def lines(self) -> Iterator[LogLine]:
        """Yield the records that are wanted, up to what is there now."""
        while True:
            if self._file is None:
                self._file = self._first()
                if self._file is None:
                    return
            yield from self._lines_of(self._file)
            if self.over:
                return
            following = self._following(self._file)
            if following is None:
                return
            yield from self._lines_of(self._file)  # what was written before it was renamed
            self._file.close()
            self._file = following

    def _lines_of(self, file: _File) -> Iterator[LogLine]:
        since = self._selection.since and self._selection.since.encode()
        until = self._selection.until
        for block in file.blocks():
            for text in block:
                if since and text[_TIME] < since:
                    continue  # without a look at the rest: ten times as fast
                line = _decoded(text)
                if line is None:
                    continue
                if until is not None and line.time > until:
                    self.over = True
                    return
                if self._selection.takes(line):
                    yield line

    def _numbers(self) -> list[int]:
        """Give the numbers of full files, in order."""
        prefix = f"{self._path.name}."
        try:
            names = os.listdir(self._path.parent)  # noqa: PTH208 (looked at ten times a second)
        except (FileNotFoundError, NotADirectoryError):
            return []
        suffixes = (name[len(prefix) :] for name in names if name.startswith(prefix))
        return sorted(int(suffix) for suffix in suffixes if suffix.isascii() and suffix.isdigit())

    def _open(self, number: int | None) -> _File | None:
        path = self._path if number is None else f"{self._path}.{number}"
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return _File(descriptor, number)

    def _first(self) -> _File | None:
        """Open the oldest file; None when there is none."""
        return self._after(0)

    def _after(self, number: int) -> _File | None:
        """Open the file that follows the full one of that number; None when it has not been begun."""
        while True:
            later = [each for each in self._numbers() if each > number]
            if later:
                file = self._open(later[0])
                if file is None:
                    continue  # it went meanwhile
                if number and later[0] > number + 1:
                    self.warn("a part of its log was removed before it was read; see max-size and max-file")
                return file
            file = self._open(None)
            if file is None or not any(each > number for each in self._numbers()):
                return file
            file.close()  # the one that was looked for got its number between the looks

    def _following(self, file: _File) -> _File | None:
        """Open the file after one that was read to its end; None when there is none yet."""
        if file.number is None:
            ours = os.fstat(file.descriptor)
            if self._is(self._path, ours):
                return None
            file.number = next(
                (number for number in reversed(self._numbers()) if self._is(f"{self._path}.{number}", ours)),
                None,
            )
            if file.number is None:
                following = self._after(0)
                if following is not None:
                    self.warn("a part of its log was removed before it was read; see max-size and max-file")
                return following
        return self._after(file.number)

    @staticmethod
    def _is(path: str | Path, ours: os.stat_result) -> bool:
        try:
            status = os.stat(path, follow_symlinks=False)  # noqa: PTH116
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == (ours.st_dev, ours.st_ino)

    def go_to_tail(self, count: int) -> None:
        """Begin with the last ``count`` lines that are wanted. A line in several records is one."""
        with ExitStack() as stack:
            files = self._all()
            for file in files:
                stack.callback(file.close)
            if not files:
                return
            chosen, offset = _tail(files, self._selection, count)
            # A descriptor of its own; the others are closed here.
            self._file = _File(os.dup(chosen.descriptor), chosen.number)
            self._file.offset = offset

    def _all(self) -> list[_File]:
        """Open all files, oldest first."""
        found: list[_File] = []
        file = self._first()
        while file is not None:
            found.append(file)
            file = self._after(file.number) if file.number is not None else None
        return found


def _tail(files: list[_File], selection: Selection, count: int) -> tuple[_File, int]:
    """Give where the last ``count`` lines begin: file and offset."""
    last = files[-1]
    place = (last, os.fstat(last.descriptor).st_size)
    begun: set[str] = (
        set()
    )  # streams of which a later record was taken, so that an earlier piece belongs to it
    for file in reversed(files):
        for offset, text in file.lines_backwards():
            line = _decoded(text)
            if line is None or not (line.is_output and selection.takes(line)):
                if line is not None and selection.since is not None and line.time < selection.since:
                    return place
                continue
            if line.data.endswith(b"\n") or line.stream not in begun:
                if count == 0:
                    return place
                count -= 1
                begun.add(line.stream)
            place = (file, offset)
    return place


def _decoded(text: bytes) -> LogLine | None:
    """Decode a record; None for what is none: a power cut or a full disk may have left half of one."""
    with suppress(msgspec.MsgspecError, UnicodeDecodeError):
        return _decoder.decode(text)
    return None


def with_times(lines: Iterable[LogLine]) -> Iterator[tuple[Stream, bytes]]:
    """Give stream and bytes of records, with the time in front of each line, as ``docker logs --timestamps`` has it."""
    within: dict[str, bool] = {}  # whether a stream stands within a line
    for line in lines:
        data = line.data
        text = data if within.get(line.stream) else line.time.encode() + b" " + data
        within[line.stream] = not data.endswith(b"\n")
        yield line.stream, text  # type: ignore[misc]
