"""A tar from one end to the other: what its members are and where they stand; and the header of a member.

The standard library parses and makes headers (tarfile.TarInfo). The walk is our own: TarFile takes a damaged header for the
end, reads extended headers of any size into memory, and keeps every member. Formats: ustar, pax (POSIX.1-2001), and GNU's
long names and numbers.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import Literal, Protocol

import msgspec

from lamella.errors import DataLoss, InvalidArgument, ResourceExhausted, Unsupported

BLOCK = 512
EXTENDED_MAX = 1024 * 1024
"""Bytes of one extended header (a long name, pax records)."""
HEADERS_MAX = 200_000
"""Headers of one archive; the largest images have some thousands of files in theirs."""
TAIL_MAX = 64 * 1024 * 1024
"""Zeros behind the end: tar fills its last record, which has 10 KiB, up to some MiB for a tape."""
END = bytes(2 * BLOCK)

Kind = Literal["file", "folder", "link", "other"]
_KINDS: dict[bytes, Kind] = {
    tarfile.REGTYPE: "file",
    tarfile.AREGTYPE: "file",
    tarfile.CONTTYPE: "file",
    tarfile.DIRTYPE: "folder",
    tarfile.SYMTYPE: "link",
}
_BODILESS = {
    tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE
}  # fmt: skip
_PAX = {tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE}
_LONG = {tarfile.GNUTYPE_LONGNAME: "path", tarfile.GNUTYPE_LONGLINK: "linkpath"}


class Input(Protocol):
    """Bytes that are gone through once."""

    position: int

    def read(self, size: int) -> bytes:
        """Give the next ``size`` bytes, fewer only at the end."""

    def forward(self, position: int) -> None:
        """Go on at ``position``, which is not before the present one; past the end there is nothing to read."""


class Member(msgspec.Struct, frozen=True):
    """One member: its name without ``./``, bytes, where these begin, and what a symbolic link points at."""

    name: str
    kind: Kind
    size: int = 0
    offset: int = 0
    target: str = ""


def walk(archive: Input) -> Iterator[Member]:
    """Go through the members up to the end; whoever takes one may read its body before the next.

    Errors: InvalidArgument for what is no tar, for a name that leads out of the archive, and for data behind the end;
    DataLoss for a damaged header or an archive without an end; ResourceExhausted (caps); Unsupported (sparse files).
    """
    extended: dict[str, str] = {}
    for number in range(HEADERS_MAX):
        block = archive.read(BLOCK)
        if not block and number == 0:
            raise InvalidArgument("the archive is empty")
        if len(block) < BLOCK:
            raise DataLoss(
                "the archive ends too early: its end is missing", hint="Make or copy it once more."
            )
        if not any(block):
            _check_tail(archive)
            return
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            if number == 0:
                raise InvalidArgument(f"this is no tar archive: {error}") from None
            raise DataLoss(
                f"the archive is damaged: at byte {archive.position - BLOCK} there is no header ({error})"
            ) from None
        if info.size < 0:
            raise InvalidArgument(f"a member of the archive has the negative size {info.size}")
        if info.type in _PAX or info.type in _LONG or info.type == tarfile.XGLTYPE:
            records = _extended(info, archive)
            if info.type != tarfile.XGLTYPE:
                extended.update(records)
            elif records:
                raise InvalidArgument(f"a global header of the archive sets {min(records)!r} for all members")
            continue
        member = _member(info, extended, archive.position)
        extended = {}
        yield member
        archive.forward(member.offset + padded(member.size))
    raise ResourceExhausted(f"the archive has more than {HEADERS_MAX} headers, which is refused")


def header(name: str, size: int) -> bytes:
    """Make the header of a file: read by all, of root, from 1970, so that the same content gives the same archive."""
    info = tarfile.TarInfo(name)
    info.size = size
    info.mode = 0o644
    return info.tobuf(tarfile.PAX_FORMAT)


def padded(size: int) -> int:
    """Give the bytes that a body of ``size`` takes."""
    return -(-size // BLOCK) * BLOCK


def inside(name: str) -> str:
    """Give a member's name without ``./``, double slashes and one at the end; InvalidArgument if it leads out."""
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise InvalidArgument(f"the name {name[:200]!r} leads out of the archive")
    return "/".join(part for part in parts if part not in ("", "."))


def _member(info: tarfile.TarInfo, extended: dict[str, str], offset: int) -> Member:
    if info.type == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse.") for key in extended):
        raise Unsupported(
            f"{info.name[:200]!r} is stored as a sparse file", hint="Make the archive without --sparse."
        )
    size = info.size
    if "size" in extended:
        text = extended["size"]
        if not text.isdecimal() or len(text) > 18:
            raise InvalidArgument(f"a member of the archive has the size {text[:40]!r}")
        size = int(text)
    return Member(
        name=inside(extended.get("path", info.name)),
        kind=_KINDS.get(info.type, "other"),
        size=0 if info.type in _BODILESS else size,
        offset=offset,
        target=extended.get("linkpath", info.linkname),
    )


def _extended(info: tarfile.TarInfo, archive: Input) -> dict[str, str]:
    """Read what an extended header says of the next member's name, size and target; other records have no meaning here."""
    if info.size > EXTENDED_MAX:
        raise ResourceExhausted(
            f"an extended header of the archive has {info.size} bytes, at most {EXTENDED_MAX} are read"
        )
    data = archive.read(padded(info.size))
    if len(data) < padded(info.size):
        raise DataLoss("the archive ends too early: within a header", hint="Make or copy it once more.")
    data = data[: info.size]
    if info.type in _LONG:
        return {_LONG[info.type]: _text(data.partition(b"\0")[0])}
    found = {}
    while data.strip(b"\0"):
        digits, _, _ = data[:20].partition(b" ")
        end = int(digits) if digits.isdigit() else 0
        record = data[len(digits) + 1 : end]
        if not digits or end > len(data) or not record.endswith(b"\n") or b"=" not in record:
            raise InvalidArgument("a pax header of the archive is malformed")
        key, _, value = record[:-1].partition(b"=")
        name = _text(key)
        if name in ("path", "linkpath", "size") or name.startswith("GNU.sparse."):
            found[name] = _text(value)
        data = data[end:]
    return found


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _check_tail(archive: Input) -> None:
    """Read on to the very end, behind which a writer at a pipe waits; there are only zeros."""
    end = archive.position + TAIL_MAX
    while data := archive.read(64 * 1024):
        if any(data):
            raise InvalidArgument("the archive goes on behind its end: two may have been joined")
        if archive.position > end:
            raise ResourceExhausted(f"the archive has more than {TAIL_MAX} bytes behind its end")
