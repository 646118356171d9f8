"""Options that stand in files, in docker's form: variables (``env_file``) and labels (``label_file``).

A line is ``NAME=VALUE``, or ``NAME`` alone; blank lines and those that begin with ``#`` say nothing. A value is all that
stands behind the ``=``, quotes and spaces too. Source: docker's reference of ``docker run --env-file``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from lamella.containers.options import FileNames
from lamella.errors import InvalidArgument, NotFound, PermissionDenied


def read_env_files(paths: FileNames | None) -> dict[str, str | None]:
    """Return the variables of files, of which later ones win; None for a name alone, which stands for the caller's value.

    Errors: NotFound, PermissionDenied, InvalidArgument with file and line.
    """
    return {name: value for path in _several(paths) for name, value in _pairs(path)}


def read_label_files(paths: FileNames | None) -> dict[str, str]:
    """Return the labels of files, of which later ones win; a name alone has an empty value. Errors as above."""
    return {name: value or "" for path in _several(paths) for name, value in _pairs(path)}


def parse_lines(text: str) -> Iterator[tuple[str, str | None]]:
    """Yield name and value of each line. ValueError says which line is wrong, and nothing of it: it may be part of a secret."""
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        stripped = line.removesuffix("\r").lstrip()
        if not stripped or stripped.startswith("#"):
            continue
        name, equals, value = stripped.partition("=")
        if not name:
            raise ValueError(f"line {number} has no name before the =")
        if any(char.isspace() for char in name):
            raise ValueError(f"line {number}: the name has white space in it")
        if "\0" in stripped:
            raise ValueError(f"line {number} has a NUL in it")
        yield name, value if equals else None


def _several(paths: FileNames | None) -> Iterable[str | os.PathLike[str]]:
    return [paths] if isinstance(paths, str | os.PathLike) else paths or ()


def _pairs(path: str | os.PathLike[str]) -> list[tuple[str, str | None]]:
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise NotFound(f"there is no file {os.fspath(path)}") from None
    except PermissionError:
        raise PermissionDenied(f"{os.fspath(path)} cannot be read") from None
    except OSError as error:
        raise InvalidArgument(f"{os.fspath(path)}: {error.strerror}") from None
    try:
        return list(parse_lines(data.decode()))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InvalidArgument(f"{os.fspath(path)}: line {line} is not UTF-8") from None
    except ValueError as error:
        raise InvalidArgument(f"{os.fspath(path)}: {error}", hint="Write NAME=VALUE.") from None
