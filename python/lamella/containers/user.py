"""USER resolution: from ``name``, ``uid``, ``name:group`` or ``uid:gid`` to numbers, by the image's /etc/passwd and /etc/group.

The files come from whoever made the image. They are read without mounting anything, with a cap, never through a symlink out
of the image (CVE-2024-9676; the cap: CVE-2026-47262), and numbers beyond 2**31 - 1 are refused instead of wrapping round to
root (CVE-2024-40635). What looks like a number is never a name: an image could list it with uid 0 (CVE-2026-46680).
Supplementary groups are those that /etc/group lists for the user (CVE-2023-25173).
Source: passwd(5), group(5); OCI image spec, config.md, "User".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

from lamella.errors import InvalidArgument, ResourceExhausted
from lamella.snapshots import Whiteouts
from lamella.structs import Struct

FILE_MAX = 1024 * 1024
"""Bytes of /etc/passwd and /etc/group that are read at most."""
ID_MAX = 2**31 - 1

ReadFile = Callable[[str, int], bytes | None]
"""Reads a path of the image with a cap; None when it is not there."""


class ResolvedUser(Struct, frozen=True):
    """The numbers, and the home folder for HOME."""

    uid: int
    gid: int
    additional_gids: list[int]
    home: str


class UserFiles:
    """What was read of images' files of users before. Of a container's layers only its own changes, and is empty at first."""

    MOST = 256
    """Files that are kept, of 64 KiB at most."""
    LONGEST = 64 << 10

    def __init__(self, read: Callable[..., bytes | None]) -> None:
        """``read`` as :func:`lamella._core.read_file`."""
        self._read = read
        self._known: dict[tuple[str, ...], bytes | None] = {}

    def of(self, layers: list[str], whiteouts: Whiteouts) -> ReadFile:
        """Give what reads files of a container that has just been made of layers, nearest first."""
        own, *beneath = layers
        if not beneath:
            return partial(self._read, [own], whiteouts=whiteouts)

        def read(path: str, limit: int) -> bytes | None:
            key = (path, *beneath)
            try:
                return self._known[key]
            except KeyError:
                data = self._read(beneath, path, limit, whiteouts=whiteouts)
            if len(self._known) >= self.MOST:
                self._known.clear()
            if len(data or b"") <= self.LONGEST:
                self._known[key] = data
            return data

        return read


def resolve_user(user: str, read_file: ReadFile) -> ResolvedUser:
    """Resolve a USER string. InvalidArgument for an unknown name, a malformed string or an id out of range."""
    name, separator, group = user.partition(":")
    if separator and not group:
        raise InvalidArgument(f"user {user!r} ends in ':'", hint="Write NAME, UID, NAME:GROUP or UID:GID.")
    passwd = list(_passwd(_read(read_file, "etc/passwd")))
    groups = list(_groups(_read(read_file, "etc/group")))
    number = _number(name or "0", user)
    if number is None:
        entry = next((entry for entry in passwd if entry[0] == name), None)
        if entry is None:
            raise InvalidArgument(
                f"user {name!r} is not in the image's /etc/passwd", hint="Give a numeric uid."
            )
    else:
        entry = next((entry for entry in passwd if entry[1] == number), None)
    login, uid, gid, home = entry if entry is not None else ("", number or 0, 0, "/")
    additional: list[int] = []
    if group:
        wanted = _number(group, user)
        if wanted is None:
            found = next((known for known in groups if known[0] == group), None)
            if found is None:
                raise InvalidArgument(
                    f"group {group!r} is not in the image's /etc/group", hint="Give a numeric gid."
                )
            wanted = found[1]
        gid = wanted
    elif login:
        additional = [known[1] for known in groups if login in known[2]]
    return ResolvedUser(uid=uid, gid=gid, additional_gids=sorted({gid, *additional}), home=home or "/")


def resolve_groups(wanted: Iterable[str | int], read_file: ReadFile) -> list[int]:
    """Return the numbers of groups that are named or numbered. InvalidArgument as for users."""
    known = {name: gid for name, gid, _ in reversed(list(_groups(_read(read_file, "etc/group"))))}
    found = []
    for group in map(str, wanted):
        number = _number(group, group) if group else None
        if number is None and group not in known:
            raise InvalidArgument(
                f"group {group!r} is not in the image's /etc/group", hint="Give a numeric gid."
            )
        found.append(known[group] if number is None else number)
    return found


def login_names(read_file: ReadFile) -> dict[int, str]:
    """Give the names of the image's /etc/passwd by uid, the first of each; none when it cannot be read."""
    try:
        entries = list(_passwd(_read(read_file, "etc/passwd")))
    except InvalidArgument:
        return {}
    return {uid: name for name, uid, _, _ in reversed(entries)}


def _number(text: str, user: str) -> int | None:
    """Return the number, None for a name. ASCII digits only: int() would take ``1_000`` and other scripts' digits."""
    if not text.strip().lstrip("+-").isdigit():
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 10 or int(text) > ID_MAX:
        raise InvalidArgument(f"user {user!r}: {text[:20]} is not between 0 and {ID_MAX}")
    return int(text)


def _read(read_file: ReadFile, path: str) -> str:
    try:
        data = read_file(path, FILE_MAX)
    except ResourceExhausted as error:
        raise InvalidArgument(
            f"the image's /{path} is larger than {FILE_MAX} bytes, which is refused"
        ) from error
    return (data or b"").decode("utf-8", "surrogateescape")


def _passwd(text: str) -> Iterator[tuple[str, int, int, str]]:
    for line in text.split("\n"):
        fields = line.strip().split(":")
        if len(fields) >= 6 and fields[0] and not fields[0].startswith("#"):
            uid, gid = _id(fields[2]), _id(fields[3])
            if uid is not None and gid is not None:
                yield fields[0], uid, gid, fields[5]


def _groups(text: str) -> Iterator[tuple[str, int, list[str]]]:
    for line in text.split("\n"):
        fields = line.strip().split(":")
        if len(fields) >= 4 and fields[0] and not fields[0].startswith("#"):
            gid = _id(fields[2])
            if gid is not None:
                yield fields[0], gid, [member for member in fields[3].split(",") if member]


def _id(text: str) -> int | None:
    """Return an id of a file's line; a line with a number out of range names nobody."""
    if not (text.isascii() and text.isdigit()) or len(text) > 10:
        return None
    number = int(text)
    return number if number <= ID_MAX else None
