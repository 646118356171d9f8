"""A TOML file of settings: where a user has his, and what is wrong with one, told with file, line and key."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from lamella.errors import InvalidArgument, PermissionDenied

_FILE_MAX = 1024 * 1024


class TomlFile:
    """The text of a file and what it says. InvalidArgument, with line and column, when it is no TOML."""

    def __init__(self, text: str, file: Path) -> None:
        self.file = file
        self._text = text
        try:
            self.content: dict[str, Any] = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise InvalidArgument(f"{file} is malformed: {error}") from None

    def refuse(self, keys: tuple[str, ...], why: str) -> NoReturn:
        """Raise InvalidArgument for the value of a key, named from the top on."""
        raise InvalidArgument(f"{self.file}, line {self._line(keys)}: {'.'.join(keys)}: {why}")

    def take(
        self, table: dict[str, Any], keys: tuple[str, ...], kind: type | tuple[type, ...], what: str
    ) -> Any:
        """Give the value of the last of ``keys`` in ``table``, None if it has none; another type is refused."""
        value = table.get(keys[-1])
        # True is an int to Python, not to TOML.
        if value is not None and (
            not isinstance(value, kind) or (kind is not bool and isinstance(value, bool))
        ):
            self.refuse(keys, f"it must be {what}")
        return value

    def strings(self, table: dict[str, Any], keys: tuple[str, ...]) -> tuple[str, ...]:
        """Give a string, or a list of them, as a tuple; empty if there is none."""
        value = self.take(table, keys, (str, list), "a string or a list of strings")
        listed = [value] if isinstance(value, str) else value or []
        if not all(isinstance(each, str) for each in listed):
            self.refuse(keys, "it must be a string or a list of strings")
        return tuple(listed)

    def table(self, table: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
        """Give a table, empty if there is none."""
        value: dict[str, Any] = self.take(table, keys, dict, "a table") or {}
        return value

    def _line(self, keys: tuple[str, ...]) -> int:
        """Find where a key stands: each key after the one above it."""
        position = 0
        for key in keys:
            found = re.compile(rf"(?<![\w-])[\"']?{re.escape(key)}(?![\w-])").search(self._text, position)
            position = found.start() if found else position
        return self._text.count("\n", 0, position) + 1


def config_home(environ: Mapping[str, str]) -> Path | None:
    """Give the folder of this user's settings (XDG base directory specification); None for one without a home."""
    named, home = environ.get("XDG_CONFIG_HOME"), environ.get("HOME")
    return Path(named) if named else Path(home) / ".config" if home else None


def read_text(file: Path) -> str | None:
    """Read a file of settings; None when it is not there. Errors: PermissionDenied, InvalidArgument for no UTF-8."""
    try:
        with file.open("rb") as stream:
            data = stream.read(_FILE_MAX + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise PermissionDenied(
            f"{file} cannot be read: {error.strerror}", hint="Give this user the right to."
        ) from None
    if len(data) > _FILE_MAX:
        raise InvalidArgument(f"{file} has more than {_FILE_MAX} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise InvalidArgument(f"{file} is malformed: it is not UTF-8") from None
