"""What is kept of a container's output: docker's log drivers and options, as far as there are such here."""

from __future__ import annotations

from collections.abc import Mapping

from lamella.errors import InvalidArgument, Unsupported
from lamella.structs import Struct
from lamella.typings import Any, Literal

DRIVERS = ("json-file", "none")
MAX_SIZE = 10 << 20
"""Bytes of one file, and how many files there may be: 50 MiB a container, kubelet's defaults. docker's json-file has no end."""
MAX_FILE = 5


class LogConfig(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is kept of a container's output. ``max_size`` are bytes of one file, None for one file without end."""

    driver: Literal["json-file", "none"] = "json-file"
    max_size: int | None = MAX_SIZE
    max_file: int = MAX_FILE


def parse_log_config(value: LogConfig | Mapping[str, Any] | None) -> LogConfig:
    """Parse docker-py's form, ``{"type": "json-file", "config": {"max-size": "10m", "max-file": 3}}``.

    A size of -1 is no limit. Errors: Unsupported for another driver or option, InvalidArgument for a bad value.
    """
    if value is None or isinstance(value, LogConfig):
        return value or LogConfig()
    if not isinstance(value, Mapping):
        raise InvalidArgument(f"log_config {value!r} is not a mapping", hint="Write {'type': 'none'}.")
    fields = {str(key).lower(): entry for key, entry in value.items()}
    driver: Any
    driver, options = fields.pop("type", None) or "json-file", fields.pop("config", None) or {}
    if fields:
        raise InvalidArgument(f"log_config has the unknown field {next(iter(fields))!r}")
    if driver not in DRIVERS:
        raise Unsupported(f"log driver {driver!r} is not one of {', '.join(DRIVERS)}")
    unknown = set(options) - {"max-size", "max-file"}
    if unknown or (driver == "none" and options):
        name = min(unknown or options)
        raise Unsupported(
            f"log option {name!r} is not one of {'none' if driver == 'none' else 'max-size, max-file'}"
        )
    return LogConfig(
        driver=driver,
        max_size=_size(options.get("max-size", MAX_SIZE)),
        max_file=_count(options.get("max-file", MAX_FILE)),
    )


def _size(value: int | str) -> int | None:
    from lamella.containers.limits import parse_size

    if str(value).strip() == "-1":
        return None
    size = parse_size(value, "max-size")
    if size == 0:
        raise InvalidArgument(
            "max-size is 0", hint="Write 10m, or -1 for no limit; driver none keeps nothing."
        )
    return size


def _count(value: int | str) -> int:
    try:
        count = int(value)
    except (TypeError, ValueError):
        count = 0
    if not 1 <= count <= 1000:
        raise InvalidArgument(f"max-file {value!r} is not a number from 1 to 1000")
    return count
