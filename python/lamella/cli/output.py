"""Text for people: tables, sizes, times and digests. Pure functions; nothing here reads or writes."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

from lamella.sizes import format_size

_CONTROL = r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
_SPANS = (
    (365 * 86400, "year"),
    (30 * 86400, "month"),
    (7 * 86400, "week"),
    (86400, "day"),
    (3600, "hour"),
    (60, "minute"),
)
MISSING = "-"


def clean(text: str) -> str:
    r"""Make control characters and characters that turn the writing direction visible (``\x1b``)."""
    if text.isprintable():  # a list of 100,000 rows has half a million cells
        return text
    return re.sub(_CONTROL, lambda match: match.group().encode("unicode_escape").decode(), text)


def visible_json(document: bytes) -> str:
    r"""Give a JSON document in which what :func:`clean` makes visible is escaped (``\u009b``): it means what it meant.

    Encoders leave what is above the 32 first characters as it is (RFC 8259, 7).
    """
    text = document.decode()
    if text.isascii() and "\x7f" not in text:
        return text
    return re.sub(
        _CONTROL,
        lambda match: match.group() if match.group() == "\n" else f"\\u{ord(match.group()):04x}",
        text,
    )


def visible_lines(data: bytes) -> str:
    r"""Make bytes text whose control characters, but for ends of lines and tabs, are visible; what is no UTF-8, too."""
    text = data.decode("utf-8", "backslashreplace")
    return "".join(part if part in "\n\t" else clean(part) for part in re.split("([\n\t])", text))


def one_line(text: str) -> str:
    """Put a message on one line, control characters made visible."""
    return clean(" ".join(text.split()) if "\n" in text or "\r" in text else text)


def size(count: int | None) -> str:
    """Show bytes: ``71.2 MB``."""
    return MISSING if count is None else format_size(count)


def age(timestamp: str | None, now: float | None = None) -> str:
    """Show how long ago an RFC 3339 time was: ``3 hours ago``."""
    seconds = seconds_since(timestamp, now)
    if seconds is None:
        return MISSING
    if seconds < 0:
        return "in the future"
    for span, name in _SPANS:
        if seconds >= span:
            count = int(seconds // span)
            return f"{count} {name}{'s' if count > 1 else ''} ago"
    return f"{int(seconds)} second{'s' if int(seconds) != 1 else ''} ago"


def seconds_since(timestamp: str | None, now: float | None = None) -> float | None:
    """Give the seconds since an RFC 3339 time, None when it isn't one."""
    if not timestamp:
        return None
    from datetime import UTC, datetime

    try:
        moment = datetime.fromisoformat(timestamp)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (time.time() if now is None else now) - moment.timestamp()


def short(digest: str | None) -> str:
    """Show a digest by its algorithm and first twelve hex digits; other names as they are."""
    if not digest:
        return MISSING
    algorithm, colon, encoded = digest.partition(":")
    if colon and algorithm in ("sha256", "sha384", "sha512") and len(encoded) >= 64:
        return f"{algorithm}:{encoded[:12]}"
    return digest


def pairs(values: Mapping[str, str] | None) -> str:
    """Show labels: ``a=1,b=2``; digests among the values are cut."""
    shown = (f"{key}={short(value)}" if value else key for key, value in sorted((values or {}).items()))
    return ",".join(shown) or MISSING


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay rows out in columns, two spaces between them.

    A heading that starts with ``>`` is for a column that is set to the right. Without rows there are the headings
    alone, so that a reader sees what would be there.
    """
    right = [header.startswith(">") for header in headers]
    lines = [
        [header.removeprefix(">") for header in headers],
        *([clean(cell) for cell in row] for row in rows),
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "".join(
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, right, strict=True)
        ).rstrip()
        + "\n"
        for line in lines
    )


def terminal_width(default: int = 100) -> int:
    """Give the columns of the terminal (COLUMNS, then the terminal of stdout), at most ``default``."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdigit() and int(columns):
        return max(40, min(int(columns), default))
    try:
        return max(40, min(os.get_terminal_size(1).columns, default))
    except OSError:
        return default


def wrap(text: str, width: int) -> str:
    """Fill a paragraph."""
    from textwrap import wrap as fill

    return "\n".join(fill(" ".join(text.split()), width, break_long_words=False, break_on_hyphens=False))


def tree(roots: Iterable[str], children: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, int, str]]:
    """Walk through a tree: each name, how deep it is, and the lines that lead to it.

    Without recursion: 128 layers below a chain of commits may be deeper than Python's stack allows.
    """
    stack = [(name, 0, "", "") for name in reversed(list(roots))]
    while stack:
        name, depth, branch, indent = stack.pop()
        yield name, depth, branch
        below = children.get(name, ())
        for index in reversed(range(len(below))):
            last = index == len(below) - 1
            branch, further = ("└─ ", "   ") if last else ("├─ ", "│  ")
            stack.append((below[index], depth + 1, indent + branch, indent + further))
