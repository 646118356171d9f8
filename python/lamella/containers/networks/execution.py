"""Running the programs that make networks: CNI plugins, pasta.

The core runs them (``rust/launcher/src/network/program.rs``): each is killed with all that it started when it takes too
long; its input is a file, so that one that does not read holds nobody up, and so are its outputs, of which only the
beginning is read.
"""

from __future__ import annotations

import os

from lamella import _core
from lamella.errors import DeadlineExceeded, LamellaError, NetworkFailed, NotFound
from lamella.structs import Malformed, Struct, decode

ID_VARIABLE = "CNI_CONTAINERID"
NETNS_VARIABLE = "CNI_NETNS"
INTERFACE_VARIABLE = "CNI_IFNAME"
PATIENCE = 60.0
"""How long a plugin may take, in seconds: address management may wait for a DHCP server."""


class Program(Struct, kw_only=True):
    """A program with its arguments, its environment (``NAME=VALUE``; PATH comes along) and its input."""

    args: list[str]
    env: list[str] = []
    input: str = ""


class PluginError(Struct, frozen=True):
    """What a plugin says of its failure (CNI spec, "Error")."""

    code: int = 0
    msg: str = ""
    details: str = ""


def run_program(program: Program, *, patience: float | None = None, inherit: bool = False) -> bytes:
    """Run a program to its end and return what it wrote; ``inherit`` gives it this process's environment, too.

    Errors: NotFound and PermissionDenied when it cannot be run, DeadlineExceeded when it was killed after ``patience`` seconds,
    NetworkFailed with what it said of itself when it failed.
    """
    inherited = [f"{name}={value}" for name, value in os.environ.items()] if inherit else []
    patience = PATIENCE if patience is None else patience
    try:
        status, output, said = _core.run_program(
            program.args, [*inherited, *program.env], program.input, patience
        )
    except LamellaError as error:
        raise _unrunnable(error, program.args[0]) from None
    if status != 0:
        raise _failure(program.args[0], patience, status, output, said)
    return output


def connect_by(program: Program, network: int, path: str, *, patience: float) -> None:
    """Have a program connect a network namespace (a descriptor) that is kept on a file while it starts, for who is not root.

    It has this process's environment. Errors: those of :func:`run_program`.
    """
    environment = [f"{name}={value}" for name, value in os.environ.items()]
    try:
        status, said = _core.connect_network(
            network, path, program.args, [*environment, *program.env], patience
        )
    except LamellaError as error:
        raise _unrunnable(error, program.args[0]) from None
    if status != 0:
        raise _failure(program.args[0], patience, status, b"", said)


def release_recorded(record: str) -> None:
    """Do what a network's record says takes it away, and remove it. Harmless twice.

    All is tried; the first failure is raised, and the record stays then. Errors are those of :func:`run_program`.
    """
    try:
        failed = _core.release_network(record, PATIENCE)
    except NotFound as error:
        raise _unrunnable(error, str(error).partition(":")[0]) from None
    if failed is not None:
        path, (status, output, said) = failed
        raise _failure(path, PATIENCE, status, output, said)


def _unrunnable(error: LamellaError, path: str) -> LamellaError:
    if isinstance(error, NotFound):
        return NotFound(f"{path} is not there", hint="It is needed to take a network away; install it again.")
    return error


def _failure(
    path: str, patience: float, status: int | None, output: bytes, said: bytes
) -> NetworkFailed | DeadlineExceeded:
    name = os.path.basename(path)  # noqa: PTH119
    if status is None:
        return DeadlineExceeded(f"{name} did not end within {patience:g} s and was killed")
    try:
        error = decode(output, PluginError)
    except Malformed:
        error = PluginError()
    reason = error.msg or _last_line(said) or _last_line(output) or f"exit status {status}"
    if error.details:
        reason = f"{reason}; {error.details}"
    return NetworkFailed(
        f"{name}: {printable(reason)}", plugin=name, code=error.code, details=printable(error.details)
    )


def _last_line(text: bytes) -> str:
    return text.decode(errors="replace").strip().rpartition("\n")[2][:500]


def printable(text: str) -> str:
    """Give a text without what a terminal would obey."""
    return "".join(char if char.isprintable() else " " for char in text[:1000])
