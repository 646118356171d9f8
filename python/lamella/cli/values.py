"""Values on the command line: sizes, durations, key=value pairs, signals. Parsed at the edge; a bad one is a usage error.

Functions raise ValueError with a sentence that names the value; argparse's own wording for these
(``invalid parse_size value``) helps nobody.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from lamella.typings import TypeVar

_DURATION = r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?"

DETACH_KEYS = b"\x10\x11"
"""docker's: ctrl-p,ctrl-q."""

T = TypeVar("T")


class Suggestions(tuple[str, ...]):
    """Choices of an option that takes any other word, too: completion offers them."""

    __slots__ = ()

    def __contains__(self, _: object) -> bool:
        return True


def argument(parse: Callable[[str], T]) -> Callable[[str], T]:
    """Make a parser of values one whose ValueError argparse shows as it is."""

    def convert(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            import argparse

            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def parse_size(text: str) -> int:
    """Give bytes for ``512m``, ``1.5g``, ``64MiB`` or ``1024``: powers of 1024, as docker takes them."""
    from lamella.containers.limits import parse_size as parse

    return parse(text, "the size")


def parse_limit(text: str) -> int:
    """Give bytes as parse_size does, and -1 for no limit."""
    return -1 if text.strip() == "-1" else parse_size(text)


def parse_cpus(text: str) -> str:
    """Return a number of processors as it was written; the library takes it so. 0 is for a change: no limit."""
    from lamella.containers.limits import parse_cpus as parse

    if text.strip() != "0":
        parse(text)
    return text


def parse_ulimit(text: str) -> str:
    """Return ``NAME=SOFT[:HARD]`` as it was written; the library takes it so."""
    from lamella.containers.options import parse_ulimit as parse

    parse(text)
    return text


def parse_duration(text: str) -> float:
    """Give seconds for ``90``, ``1.5``, ``30s``, ``5m``, ``1h30m`` or ``2d``."""
    try:
        seconds = float(text)
    except ValueError:
        match = re.fullmatch(_DURATION, text.strip(), re.IGNORECASE)
        if not match or not match.group():
            raise ValueError(f"{text!r} is not a duration such as 10, 30s, 5m or 1h30m") from None
        days, hours, minutes, rest = (float(part or 0) for part in match.groups())
        seconds = days * 86400 + hours * 3600 + minutes * 60 + rest
    if not 0 <= seconds < float("inf"):
        raise ValueError(f"{text!r} is not a duration such as 10, 30s, 5m or 1h30m")
    return seconds


def parse_moment(text: str) -> str:
    """Give RFC 3339 text for a moment: RFC 3339 (a local time without a zone), seconds since 1970, or how long ago (``10m``)."""
    from datetime import UTC, datetime

    from lamella.metadata.clock import format_time, parse_time, timestamp

    try:
        return format_time(int(float(text) * 1_000_000))
    except (ValueError, OverflowError):
        pass
    try:
        return timestamp(-parse_duration(text))
    except ValueError:
        pass
    try:
        return parse_time(datetime.fromisoformat(text.strip()).astimezone(UTC).isoformat())
    except (ValueError, OverflowError):
        raise ValueError(
            f"{text!r} is not a time such as 2026-03-01T12:00:00Z, 1772366400, or 10m (ago)"
        ) from None


def parse_pair(text: str) -> tuple[str, str]:
    """Split ``KEY=VALUE``; without ``=`` the value is empty."""
    key, _, value = text.partition("=")
    if not key:
        raise ValueError(f"{text!r} is not KEY=VALUE")
    return key, value


def parse_signal(text: str) -> str:
    """Give the name of a signal for ``TERM``, ``sigterm``, ``SIGTERM`` or ``15``."""
    import signal

    word = text.strip().upper()
    if word.isdigit():
        try:
            return signal.Signals(int(word)).name
        except ValueError:
            raise ValueError(f"{text!r} is not the number of a signal") from None
    name = word if word.startswith("SIG") else f"SIG{word}"
    if name not in signal.Signals.__members__:
        raise ValueError(f"{text!r} is not a signal such as TERM, KILL or HUP")
    return name


def parse_boolean(text: str) -> bool:
    """Give the truth of ``true`` or ``false``, and of the other words that docker takes for them."""
    word = text.strip().lower()
    if word in ("1", "t", "true"):
        return True
    if word in ("0", "f", "false"):
        return False
    raise ValueError(f"{text!r} is neither true nor false")


def parse_detach_keys(text: str) -> bytes:
    """Give the bytes that a terminal sends for ``ctrl-p,ctrl-q``."""
    from lamella.containers.detach_keys import parse_detach_keys as parse

    return parse(text)


def parse_labels(pairs: Iterable[tuple[str, str]] | None) -> dict[str, str]:
    """Collect labels; the last of a key wins."""
    return dict(pairs or ())
