"""A disk that remembers: ``disk_server.py FOLDER BYTES LOG`` serves it as ``FOLDER/disk``, by FUSE, until it is unmounted.

Each write and each barrier (fsync: what a loop device makes of a flush) is appended to LOG in the order in which it came, and
answered only then. A write to ``FOLDER/control`` says one of: ``mark WORDS`` (noted in the log), ``fail reads``, ``fail writes``
(EIO from now on; a barrier fails with the writes), ``work``. A process of its own, so that whoever uses the disk can be killed,
or hold its interpreter's lock, without the kernel waiting for it.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
from pathlib import Path
from typing import Any

import mfusepy

RECORD = struct.Struct("<cQQ")
"""Kind (W, B or M), offset, number of bytes that follow."""
_FALLOC_FL_PUNCH_HOLE, _FALLOC_FL_ZERO_RANGE = 0x02, 0x10


class Disk(mfusepy.Operations):
    """One file in memory, and a control file."""

    use_ns = True

    def __init__(self, size: int, log: Path) -> None:
        self._bytes = bytearray(size)
        self._log = log.open("wb")
        self._failing = ""

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        sizes = {"/disk": len(self._bytes), "/control": 0}
        if path == "/":
            return {"st_mode": 0o40700, "st_nlink": 2}
        if path not in sizes:
            raise mfusepy.FuseOSError(errno.ENOENT)
        return {"st_mode": 0o100600, "st_nlink": 1, "st_size": sizes[path], "st_blocks": sizes[path] // 512}

    def open(self, path: str, flags: int) -> int:
        return 0

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        return 0

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        self._fail_if("reads")
        return bytes(memoryview(self._bytes)[offset : offset + size])

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        if path == "/control":
            self._control(data.decode())
        else:
            self._put(offset, data)
        return len(data)

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        self._fail_if("writes")
        self._note(b"B", 0, b"")
        return 0

    def flush(self, path: str, fh: int) -> int:
        return 0

    def fallocate(self, path: str, mode: int, offset: int, size: int, fh: int) -> int:
        if not mode & (_FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_ZERO_RANGE):
            raise mfusepy.FuseOSError(errno.EOPNOTSUPP)
        self._put(offset, bytes(size))
        return 0

    def _put(self, offset: int, data: bytes) -> None:
        self._fail_if("writes")
        self._bytes[offset : offset + len(data)] = data
        self._note(b"W", offset, data)

    def _control(self, words: str) -> None:
        order, _, rest = words.strip().partition(" ")
        if order == "mark":
            self._note(b"M", 0, rest.encode())
        else:
            self._failing = rest if order == "fail" else ""

    def _note(self, kind: bytes, offset: int, data: bytes) -> None:
        self._log.write(RECORD.pack(kind, offset, len(data)))
        self._log.write(data)
        self._log.flush()

    def _fail_if(self, what: str) -> None:
        if self._failing == what:
            raise mfusepy.FuseOSError(errno.EIO)


if __name__ == "__main__":
    os.umask(0o077)
    # direct_io: the kernel keeps no pages of the file, so that nothing is merged, delayed or read from a copy.
    mfusepy.FUSE(
        Disk(int(sys.argv[2]), Path(sys.argv[3])),
        sys.argv[1],
        foreground=True,
        nothreads=True,
        direct_io=True,
        fsname="recorded-disk",
    )
