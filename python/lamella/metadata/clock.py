"""Times as the metadata keeps them: RFC 3339 text in UTC with microseconds, which sorts as it reads."""

from __future__ import annotations

import time

from lamella.errors import InvalidArgument

_MICROSECOND = 1_000_000
_SHAPE = "0000-00-00T00:00:00.000000000Z"
"""Of the times that monitors write."""
_DIGITS = str.maketrans("123456789", "000000000")


def timestamp(after: float = 0.0) -> str:
    """Give the time ``after`` seconds from now, such as ``2025-11-24T12:00:00.123456Z``."""
    return format_time(time.time_ns() // 1000 + int(after * _MICROSECOND))


def format_time(microseconds: int) -> str:
    """Give the text for a time in microseconds since 1970."""
    seconds, rest = divmod(microseconds, _MICROSECOND)
    try:
        parts = time.gmtime(seconds)
    except (OverflowError, OSError, ValueError):
        raise InvalidArgument(f"{seconds} seconds since 1970 is no time that can be kept") from None
    if not 0 <= parts.tm_year <= 9999:
        raise InvalidArgument(f"{seconds} seconds since 1970 is no time that can be kept")
    return "%04d-%02d-%02dT%02d:%02d:%02d.%06dZ" % (*parts[:6], rest)  # noqa: UP031 (twice as fast as format)


def parse_time(text: str) -> str:
    """Bring an RFC 3339 time (any zone, any number of digits) into the form kept here. InvalidArgument if malformed."""
    if _is_monitors(text):
        return text[:26] + "Z"
    from datetime import UTC, datetime

    try:
        moment = datetime.fromisoformat(text.strip())
        if moment.tzinfo is None:
            raise ValueError("it has no time zone")
        moment = moment.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidArgument(f"{text[:64]!r} is not an RFC 3339 time: {error}") from None
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond:06d}Z"


def _is_monitors(text: str) -> bool:
    """Say whether a time has the form that monitors write, for which datetime need not be imported: 1 ms of a command."""
    return (
        text.translate(_DIGITS) == _SHAPE
        and "01" <= text[5:7] <= "12"
        and "01" <= text[8:10] <= ("28" if text[5:7] == "02" else "30")
        and text[11:13] < "24"
        and text[14:16] < "60"
        and text[17:19] < "60"
    )
