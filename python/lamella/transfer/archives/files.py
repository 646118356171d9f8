"""The files of an archive by their names: those of a folder, or of a tar that can be read anywhere (stash.py: of a stream).

The only links that are followed are symbolic ones from a file to another of the same archive: docker wrote a layer
that two images share so. Nothing of the archive is ever extracted.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import stat
from abc import ABC, abstractmethod
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from lamella import oci
from lamella.digest import Digest
from lamella.errors import DataLoss, InvalidArgument, NotFound, ResourceExhausted
from lamella.structs import Malformed, decode
from lamella.transfer.archives.inputs import FileInput, outside
from lamella.transfer.archives.tar import Member, inside, walk
from lamella.transfer.endpoints import BlobReader
from lamella.typings import Any

LINKS_MAX = 8
CHUNK = 1024 * 1024
READ_MAX = 256 * 1024 * 1024
"""Bytes of documents that are read of one archive, each with READ_COST more: it can name a large one ten thousand times."""
READ_COST = 4096


class Files(ABC):
    """The files of one archive."""

    def __init__(self) -> None:
        self._digests: dict[tuple[str, str], Digest] = {}
        self._read = 0

    @abstractmethod
    def look(self, name: str) -> Member | None:
        """Give what stands under a name; None for nothing."""

    @abstractmethod
    def reader(self, member: Member, offset: int) -> BlobReader:
        """Open a file that :meth:`look` gave."""

    def find(self, name: str) -> Member | None:
        """Give the file of a name, through links; None for nothing. InvalidArgument for what is no file, or links in a circle."""
        at = inside(name)
        for _ in range(LINKS_MAX):
            member = self.look(at)
            if member is None or member.kind == "file":
                return member
            if member.kind != "link":
                raise InvalidArgument(f"{name[:200]!r} is no regular file in the archive")
            at = inside(posixpath.normpath(posixpath.join(posixpath.dirname(at), member.target)))
        raise InvalidArgument(f"{name[:200]!r} is a link that leads in a circle, or through too many others")

    def need(self, name: str) -> Member:
        """Give the file of a name; NotFound for nothing, else as :meth:`find`."""
        member = self.find(name)
        if member is None:
            raise NotFound(f"the archive names {name[:200]!r} and does not hold it")
        return member

    def open(self, member: Member, offset: int = 0) -> BlobReader:
        """Open a file from ``offset`` on; DataLoss past its end."""
        if offset > member.size:
            raise DataLoss(f"{member.name[:200]!r} in the archive ends before byte {offset}")
        return self.reader(member, offset)

    def read(self, member: Member) -> bytes:
        """Read a document. ResourceExhausted when it is larger than documents are, or all that were read were too large."""
        if member.size > oci.DOCUMENT_MAX:
            raise ResourceExhausted(
                f"{member.name[:200]!r} in the archive has {member.size} bytes, at most {oci.DOCUMENT_MAX} are read"
            )
        self._read += member.size + READ_COST
        if self._read > READ_MAX:
            raise ResourceExhausted(
                f"the archive names so many documents, or so often, that over {READ_MAX} bytes would be read"
            )
        return self.head(member, member.size)

    def decode(self, member: Member, kind: Any) -> Any:
        """Read a JSON document as ``kind`` has it. InvalidArgument for another; errors as :meth:`read`."""
        try:
            return decode(self.read(member), kind)
        except Malformed as error:
            raise InvalidArgument(f"{member.name[:200]!r} in the archive is malformed: {error}") from None

    def head(self, member: Member, size: int) -> bytes:
        """Read the first bytes of a file."""
        data = bytearray(min(size, member.size))
        with self.open(member) as reader:
            filled = 0
            while filled < len(data) and (count := reader.readinto(memoryview(data)[filled:])):
                filled += count
        return bytes(data)

    def digest(self, member: Member, algorithm: str = "sha256") -> Digest:
        """Hash a file, once."""
        key = (member.name, algorithm)
        if key not in self._digests:
            hasher = hashlib.new(algorithm)
            buffer = memoryview(bytearray(min(CHUNK, max(member.size, 1))))
            with self.open(member) as reader:
                while count := reader.readinto(buffer):
                    hasher.update(buffer[:count])
            self._digests[key] = Digest(f"{algorithm}:{hasher.hexdigest()}")
        return self._digests[key]


class Table:
    """Members by name. The same name twice is refused if it means two things: readers would differ in which they take."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._members: dict[str, Member] = {}

    def get(self, name: str) -> Member | None:
        """Give what has a name."""
        return self._members.get(name)

    def add(self, member: Member) -> None:
        """Take a member; InvalidArgument for a second meaning of a name."""
        first = self._members.setdefault(member.name, member)
        if first is member or first.kind == member.kind == "folder":
            return
        same = (first.kind, first.size, first.target) == (member.kind, member.size, member.target)
        if not same or (member.kind == "file" and not self._same_bytes(first, member)):
            raise InvalidArgument(f"the archive has {member.name[:200]!r} twice, with different content")

    def _same_bytes(self, one: Member, other: Member) -> bool:
        buffers = [memoryview(bytearray(CHUNK)) for _ in range(2)]
        with self._files.open(one) as first, self._files.open(other) as second:
            while True:
                counts = [
                    reader.readinto(part) for reader, part in zip((first, second), buffers, strict=True)
                ]
                if counts[0] != counts[1] or buffers[0][: counts[0]] != buffers[1][: counts[1]]:
                    return False
                if not counts[0]:
                    return True


class TarFiles(Files):
    """A plain tar in a file that stays open. Its headers are read at once, its bodies where they are wanted, by any thread."""

    def __init__(self, archive: FileInput) -> None:
        super().__init__()
        self._descriptor = archive.descriptor
        self._table = Table(self)
        for member in walk(archive):
            self._table.add(member)

    def look(self, name: str) -> Member | None:
        """Look into the table."""
        return self._table.get(name)

    def reader(self, member: Member, offset: int) -> Region:
        """Read the member's part of the file."""
        return Region(self._descriptor, member, offset)


class Folder(Files):
    """A folder. No symbolic link in it leads anywhere else, and nothing but regular files is opened."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        with outside(f"open {path}"):
            self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def look(self, name: str) -> Member | None:
        """Look at the entry itself, below folders that are none but folders."""
        with ExitStack() as opened, outside(f"look at {name!r} in the folder"):
            try:
                parent, last = self._parent(name, opened)
                status = os.stat(last, dir_fd=parent, follow_symlinks=False)
                if stat.S_ISLNK(status.st_mode):
                    return Member(name, "link", target=os.readlink(last, dir_fd=parent))
            except (FileNotFoundError, NotADirectoryError):
                return None
        if stat.S_ISREG(status.st_mode):
            return Member(name, "file", size=status.st_size)
        return Member(name, "folder" if stat.S_ISDIR(status.st_mode) else "other")

    def reader(self, member: Member, offset: int) -> Region:
        """Open the file; one that was exchanged for something else meanwhile is DataLoss."""
        with ExitStack() as opened, outside(f"open {member.name!r} in the folder"):
            parent, last = self._parent(member.name, opened)
            # A pipe or device that took its place would block, or do something when it is opened.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            descriptor = os.open(last, flags, dir_fd=parent)
            try:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode) or status.st_size != member.size:
                    raise DataLoss(f"{member.name!r} in the folder was changed while it was read")
            except BaseException:
                os.close(descriptor)
                raise
        return Region(descriptor, member, offset, owned=True)

    def close(self) -> None:
        """Close the folder."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _parent(self, name: str, opened: ExitStack) -> tuple[int, str]:
        """Open the folder that holds an entry, one step after the other: a link on the way is none of ours."""
        *folders, last = name.split("/")
        parent = self._descriptor
        for folder in folders:
            flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            parent = os.open(folder, flags, dir_fd=parent)
            opened.callback(os.close, parent)
        return parent, last or "."


class Region:
    """A part of a file as a blob."""

    def __init__(self, descriptor: int, member: Member, offset: int, *, owned: bool = False) -> None:
        self._descriptor = descriptor
        self._owned = owned
        self._name = member.name
        self._at = member.offset + offset
        self._end = member.offset + member.size

    def __enter__(self) -> Region:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if self._owned and descriptor >= 0:
            os.close(descriptor)

    def readinto(self, buffer: bytearray | memoryview) -> int:
        """Fill the buffer; 0 at the end. DataLoss when the file has become shorter."""
        view = memoryview(buffer)[: self._end - self._at]
        if not view.nbytes:
            return 0
        with outside(f"read {self._name!r} in the archive"):
            count = os.preadv(self._descriptor, [view], self._at)
        if not count:
            raise DataLoss(
                f"the archive ends too early: within {self._name[:200]!r}", hint="Make or copy it once more."
            )
        self._at += count
        return count


class Memory:
    """Bytes as a blob."""

    def __init__(self, data: bytes, offset: int) -> None:
        self._rest = memoryview(data)[offset:]

    def __enter__(self) -> Memory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Do nothing."""

    def readinto(self, buffer: bytearray | memoryview) -> int:
        """Fill the buffer; 0 at the end."""
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count
