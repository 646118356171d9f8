"""Credential helpers: programs ``docker-credential-NAME`` that keep secrets for docker and its kin.

A helper is called with one word, ``get``, ``store``, ``erase`` or ``list``, reads a server's name or a JSON document on stdin
and answers on stdout, where its errors come too (docker-credential-helpers' protocol). Secrets are on no command line. What
a helper says on stderr is dropped: it is for whoever runs one by hand.
"""

from __future__ import annotations

import fcntl
import os
import re
from typing import BinaryIO

import msgspec

from lamella.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, Unavailable

PREFIX = "docker-credential-"
TIMEOUT = 30.0
"""Seconds that a helper may take."""

TOKEN_USER = "<token>"  # noqa: S105 - the user name by which a helper says that the secret is an identity token
_OUTPUT_MAX = 1024 * 1024
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")
_NOT_FOUND = b"credentials not found"


class Kept(msgspec.Struct, frozen=True):
    """What a helper keeps for a server; an identity token has :data:`TOKEN_USER` for its user."""

    username: str
    secret: str

    def __repr__(self) -> str:
        return "Kept()"


def program(helper: str) -> str:
    """Give the program of a helper; InvalidArgument if that would not be a plain file name."""
    if not _NAME.match(helper):
        raise InvalidArgument(
            "a credential helper has a malformed name", hint="It has no path: pass, secretservice."
        )
    return f"{PREFIX}{helper}"


def is_there(helper: str) -> bool:
    """Say whether a helper's program is on PATH."""
    from shutil import which

    return which(program(helper)) is not None


def get(helper: str, server: str, *, timeout: float = TIMEOUT) -> Kept | None:
    """Ask for what is kept for a server; None if nothing is.

    Errors: FailedPrecondition (no such program), Unavailable (it fails), DeadlineExceeded; none repeats what it said.
    """
    output = _run(helper, "get", server.encode(), timeout)
    if output is None:
        return None
    try:
        answer = msgspec.json.decode(output, type=_Answer)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise Unavailable(f"{program(helper)} gave an answer that is not credentials") from None
    return Kept(answer.username, answer.secret) if answer.secret else None


def store(helper: str, server: str, kept: Kept, *, timeout: float = TIMEOUT) -> None:
    """Let a helper keep what belongs to a server, in the place of what it had. Errors as :func:`get`."""
    document = {"ServerURL": server, "Username": kept.username, "Secret": kept.secret}
    _run(helper, "store", msgspec.json.encode(document), timeout, hide=kept.secret)


def erase(helper: str, server: str, *, timeout: float = TIMEOUT) -> bool:
    """Let a helper forget a server; say whether it had anything. Errors as :func:`get`."""
    if get(helper, server, timeout=timeout) is None:
        return False
    return _run(helper, "erase", server.encode(), timeout, hide="") is not None


def servers(helper: str, *, timeout: float = TIMEOUT) -> list[str]:
    """List the servers that a helper keeps something for. Errors as :func:`get`."""
    try:
        return list(msgspec.json.decode(_run(helper, "list", b"", timeout) or b"{}", type=dict[str, str]))
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise Unavailable(f"{program(helper)} gave an answer that is not a list of servers") from None


def _run(helper: str, word: str, given: bytes, timeout: float, *, hide: str | None = None) -> bytes | None:
    """Run a helper; None if it has no such credentials.

    ``hide`` is the one secret that it could repeat; its message is quoted without that. None: any could be in it.
    """
    import subprocess

    name = program(helper)
    try:
        with _bounded_file() as output:
            status = subprocess.run(
                [name, word],
                input=given,
                stdout=output,
                stderr=subprocess.DEVNULL,
                timeout=timeout,
                check=False,
            ).returncode
            answer = os.pread(output.fileno(), output.tell(), 0)
    except FileNotFoundError:
        raise FailedPrecondition(
            f"{name} is not on PATH", hint="Install it, or take it out of the file."
        ) from None
    except subprocess.TimeoutExpired:
        raise DeadlineExceeded(f"{name} gave no answer within {timeout:g} s") from None
    except OSError as error:
        raise FailedPrecondition(f"{name} cannot be run: {error.strerror}") from None
    if status == 0:
        return answer
    if _NOT_FOUND in answer:
        return None
    said = ""
    if hide is not None:
        said = answer[:1000].decode(errors="replace").strip().partition("\n")[0]
        said = f": {said.replace(hide, '***') if hide else said}" if said else ""
    raise Unavailable(f"{name} failed with exit status {status}{said}")


def _bounded_file() -> BinaryIO:
    """Make a file in memory that takes :data:`_OUTPUT_MAX` bytes: whoever writes more fails, where a pipe would be read on.

    Nor does it wait, as the reader of a pipe does, for what a helper leaves running in the background (an agent).
    """
    descriptor = os.memfd_create("credentials", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, _OUTPUT_MAX)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    return os.fdopen(descriptor, "wb", buffering=0)


class _Answer(msgspec.Struct, frozen=True, rename="pascal"):
    username: str = ""
    secret: str = ""

    def __repr__(self) -> str:
        return "_Answer()"
