"""Instructions of a Dockerfile, as far as they change an image's config: what ``docker commit --change`` takes.

``CMD``, ``ENTRYPOINT``, ``ENV``, ``EXPOSE``, ``LABEL``, ``STOPSIGNAL``, ``USER``, ``VOLUME`` and ``WORKDIR``, in the forms of the
Dockerfile reference: a JSON list, or a line for the shell.
"""

from __future__ import annotations

import posixpath
import shlex
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from lamella.errors import InvalidArgument

_Run = dict[str, Any]


def apply_instruction(run: Mapping[str, Any], text: str) -> _Run:
    """Return the ``config`` object of an image config as an instruction makes it. InvalidArgument for what is none."""
    word, _, rest = text.strip().partition(" ")
    change = _CHANGES.get(word.upper())
    if change is None:
        raise InvalidArgument(
            f"{text!r} is no change of an image's config",
            hint=f"It begins with one of {', '.join(_CHANGES)}.",
        )
    rest = rest.strip()
    if not rest:
        raise InvalidArgument(f"{word.upper()} says nothing")
    changed = dict(run)
    try:
        change(changed, rest)
    except ValueError as error:
        raise InvalidArgument(f"{text!r}: {error}") from None
    return changed


def _words(text: str) -> list[str] | None:
    """Give the words of a JSON list, None for another form."""
    try:
        return msgspec.json.decode(text, type=list[str])
    except msgspec.MsgspecError:
        return None


def _command(text: str) -> list[str]:
    words = _words(text)
    return ["/bin/sh", "-c", text] if words is None else words


def _pairs(text: str) -> dict[str, str]:
    """Read ``A=b C="d e"``, or ``A b c`` of the old form."""
    words = shlex.split(text)
    if "=" not in words[0]:
        name, _, value = text.partition(" ")
        return {name: value.strip()}
    pairs = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals):
            raise ValueError(f"{word!r} is no NAME=VALUE")
        pairs[name] = value
    return pairs


def _cmd(run: _Run, text: str) -> None:
    run["Cmd"] = _command(text)


def _entrypoint(run: _Run, text: str) -> None:
    run["Entrypoint"] = _command(text)


def _env(run: _Run, text: str) -> None:
    pairs = _pairs(text)
    kept = [entry for entry in run.get("Env") or [] if entry.partition("=")[0] not in pairs]
    run["Env"] = [*kept, *(f"{name}={value}" for name, value in pairs.items())]


def _expose(run: _Run, text: str) -> None:
    ports: dict[str, dict[str, str]] = {}
    for word in text.split():
        port, _, protocol = word.partition("/")
        first, _, last = port.partition("-")
        if not (first.isdigit() and (last or first).isdigit() and protocol in ("", "tcp", "udp", "sctp")):
            raise ValueError(f"{word!r} is no port")
        ports |= {f"{number}/{protocol or 'tcp'}": {} for number in range(int(first), int(last or first) + 1)}
    run["ExposedPorts"] = {**(run.get("ExposedPorts") or {}), **ports}


def _label(run: _Run, text: str) -> None:
    run["Labels"] = {**(run.get("Labels") or {}), **_pairs(text)}


def _stop_signal(run: _Run, text: str) -> None:
    run["StopSignal"] = text


def _user(run: _Run, text: str) -> None:
    run["User"] = text


def _volume(run: _Run, text: str) -> None:
    run["Volumes"] = {**(run.get("Volumes") or {}), **{path: {} for path in _words(text) or text.split()}}


def _working_dir(run: _Run, text: str) -> None:
    run["WorkingDir"] = posixpath.normpath(posixpath.join(run.get("WorkingDir") or "/", text))


_CHANGES: dict[str, Callable[[_Run, str], None]] = {
    "CMD": _cmd,
    "ENTRYPOINT": _entrypoint,
    "ENV": _env,
    "EXPOSE": _expose,
    "LABEL": _label,
    "STOPSIGNAL": _stop_signal,
    "USER": _user,
    "VOLUME": _volume,
    "WORKDIR": _working_dir,
}
