"""The file of an upload, to which bytes are appended and which are hashed as they come."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from lamella.content import file_digest
from lamella.digest import Digest, split_digest
from lamella.disk import translated
from lamella.errors import InvalidArgument

Hashed = tuple[int, "hashlib._Hash"]
"""How many bytes of a file are hashed, and their SHA-256."""


def nothing() -> Hashed:
    """Begin to hash."""
    return 0, hashlib.sha256()


class Received:
    """What one request appends to a file. ``hashed`` is of use if it is of all that is there; else the file is read in the end.

    How much is there, the file says: another process may have begun it, lost it, or found the disk full in the middle of a piece.
    """

    def __init__(self, path: Path, hashed: Hashed) -> None:
        self._path = path
        with translated(f"open the upload {path.name}"):
            flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            self._file = os.open(path, flags)
            self.size = os.fstat(self._file).st_size
        size, sha256 = hashed
        self._sha256 = sha256 if size == self.size else None

    @property
    def hashed(self) -> Hashed | None:
        """What was hashed of the file, for the next request; None where that is not all of it."""
        return (self.size, self._sha256) if self._sha256 is not None else None

    def write(self, data: bytes) -> None:
        """Append. ResourceExhausted when the disk is full; what fits is there."""
        view = memoryview(data)
        with translated(f"write to the upload {self._path.name}"):
            while view:
                count = os.write(self._file, view)
                if self._sha256 is not None:
                    self._sha256.update(view[:count])
                self.size += count
                view = view[count:]

    def check(self, digest: Digest) -> None:
        """Raise InvalidArgument if what is there has another digest. The end of it: what was hashed is of no more use."""
        algorithm, _ = split_digest(digest)
        sha256, self._sha256 = self._sha256, None
        if sha256 is not None and algorithm == "sha256":
            actual = Digest(f"sha256:{sha256.hexdigest()}")
        else:
            actual = file_digest(self._path, digest)
        if actual != digest:
            raise InvalidArgument(f"the content has digest {actual}, not {digest}")

    def close(self) -> None:
        """Close the file. Once."""
        os.close(self._file)
