"""What an archive is read from: a file that can be read anywhere, or a stream that comes once, inflated on the way."""

from __future__ import annotations

import bz2
import fcntl
import gzip
import io
import lzma
import os
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO, Protocol

from lamella.disk import storage_error
from lamella.errors import DataLoss, LamellaError

MEMORY_MAX = 128 * 1024 * 1024
"""Bytes of a dictionary or window that an archive may ask for; ``xz -9`` and ``zstd --ultra -22`` want less."""
_PIECE = 1024 * 1024


@contextmanager
def outside(action: str) -> Iterator[None]:
    """A context in which an OSError of a file that is none of the store's becomes an error of lamella's."""
    try:
        yield
    except LamellaError:
        raise
    except OSError as error:
        raised = storage_error(error, action)
        raised.hint = None  # which speaks of the store
        raise raised from error


class Readable(Protocol):
    """What is wanted of a file object."""

    def read(self, size: int, /) -> bytes:
        """Give at most ``size`` bytes; none at the end."""


class FileInput:
    """A regular file, from ``start`` on; reading does not move anything but ``position``."""

    def __init__(self, descriptor: int, start: int = 0) -> None:
        self.descriptor = descriptor
        self.position = start

    def read(self, size: int) -> bytes:
        """Give the next bytes, fewer only at the end."""
        with outside("read the archive"):
            data = os.pread(self.descriptor, size, self.position)
        self.position += len(data)
        return data

    def forward(self, position: int) -> None:
        """Go on there."""
        self.position = position


class StreamInput:
    """A stream. DataLoss when what inflates it finds it damaged."""

    def __init__(self, stream: Readable) -> None:
        self.position = 0
        self._stream = stream

    def read(self, size: int) -> bytes:
        """Give the next bytes, fewer only at the end."""
        parts = []
        while size and (part := self.some(size)):
            parts.append(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def some(self, size: int) -> bytes:
        """Give at least one and at most ``size`` bytes; none at the end."""
        try:
            data = self._stream.read(min(size, _PIECE))
        except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, _Damaged) as error:
            raise DataLoss(
                f"the archive is damaged: it cannot be inflated ({error})", hint="Make or copy it once more."
            ) from None
        except OSError as error:
            with outside("read the archive"):
                raise error
        self.position += len(data)
        return data

    def forward(self, position: int) -> None:
        """Read and forget what stands before it."""
        while self.position < position and self.some(position - self.position):
            pass


def open_input(file: BinaryIO) -> FileInput | StreamInput:
    """Give what reads an archive: at any place if it is a regular file and not compressed (its descriptor stays ``file``'s).

    The first bytes tell gzip, bzip2, xz and Zstandard.
    """
    regular = False
    with suppress(OSError, AttributeError):
        regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        fcntl.fcntl(file, fcntl.F_SETPIPE_SZ, _PIECE)  # of a pipe: a fifth less time
    with outside("read the archive"):
        start = file.tell() if regular else 0
        magic = _first(file, 6)
        if regular:
            file.seek(start)
    stream: BinaryIO | _Rest = file if regular else _Rest(magic, file)
    if magic.startswith(b"\x1f\x8b"):
        return StreamInput(gzip.GzipFile(fileobj=stream))
    if magic.startswith(b"BZh"):
        return StreamInput(_Inflated(stream, bz2.BZ2Decompressor))
    if magic.startswith(b"\xfd7zXZ\0"):
        return StreamInput(_Inflated(stream, lambda: lzma.LZMADecompressor(memlimit=MEMORY_MAX)))
    if magic.startswith(b"\x28\xb5\x2f\xfd"):
        return StreamInput(_zstd(stream))
    return FileInput(file.fileno(), start) if regular else StreamInput(stream)


class _Rest(io.RawIOBase):
    """A stream from which some bytes were taken already."""

    def __init__(self, taken: bytes, stream: BinaryIO) -> None:
        self._taken = taken
        # A plain read goes on until it has all it was asked for, and a signal that comes in between waits as long.
        self._some: Callable[[int], bytes] = getattr(stream, "read1", stream.read)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        if self._taken:
            data, self._taken = self._taken[:size], self._taken[size:]
            return data
        return self._some(size)

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class _Damaged(Exception):
    """The compressed data is wrong."""


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class _Inflated:
    """What bz2's and lzma's file objects do, with a cap on memory; zeros may follow a stream, or another stream."""

    def __init__(self, stream: Readable, make: Callable[[], _Decompressor]) -> None:
        self._stream = stream
        self._make = make
        self._inflate = make()

    def read(self, size: int, /) -> bytes:
        while True:
            data = b""
            if self._inflate.eof:
                data = (self._inflate.unused_data or self._stream.read(_PIECE)).lstrip(b"\0")
                if not data:
                    return b""
                self._inflate = self._make()
            elif self._inflate.needs_input:
                data = self._stream.read(_PIECE)
                if not data:
                    raise EOFError("it ends too early")
            try:
                found = self._inflate.decompress(data, size)
            except (OSError, ValueError) as error:
                raise _Damaged(str(error)) from None
            if found:
                return found


def _zstd(stream: Readable) -> Readable:
    import zstandard

    reader = zstandard.ZstdDecompressor(max_window_size=MEMORY_MAX).stream_reader(
        stream,  # type: ignore[arg-type]  # it only reads
        read_size=_PIECE,
        read_across_frames=True,
    )

    class Reader:
        def read(self, size: int, /) -> bytes:
            try:
                return reader.read(size)
            except zstandard.ZstdError as error:
                raise _Damaged(str(error)) from None

    return Reader()


def _first(file: Readable, size: int) -> bytes:
    data = b""
    while len(data) < size and (part := file.read(size - len(data))):
        data += part
    return data
