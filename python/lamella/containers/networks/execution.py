"""Running the programs that make networks: CNI plugins, pasta.

Each runs in a session of its own, and is killed with all that it started when it takes too long; its input is a file, so that one
that does not read holds nobody up, and so are its outputs, of which only the beginning is read.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from tempfile import TemporaryFile

import msgspec

from lamella.errors import DeadlineExceeded, NetworkFailed, NotFound, PermissionDenied

ID_VARIABLE = "CNI_CONTAINERID"
"""By which plugins are found in /proc that were left to themselves."""
NETNS_VARIABLE = "CNI_NETNS"
PATIENCE = 60.0
"""How long a plugin may take, in seconds: address management may wait for a DHCP server."""
OUTPUT_MAX = 1 << 20
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Program(msgspec.Struct, kw_only=True):
    """A program with its arguments, its environment (``NAME=VALUE``; PATH comes along) and its input."""

    args: list[str]
    env: list[str] = []
    input: str = ""

    def without_namespace(self) -> Program:
        """Give the same for a network namespace that is gone."""
        env = [pair for pair in self.env if not pair.startswith(f"{NETNS_VARIABLE}=")]
        return msgspec.structs.replace(self, env=[*env, f"{NETNS_VARIABLE}="])


class PluginError(msgspec.Struct, frozen=True):
    """What a plugin says of its failure (CNI spec, "Error")."""

    code: int = 0
    msg: str = ""
    details: str = ""


def run_program(program: Program, *, patience: float = PATIENCE, inherit: bool = False) -> bytes:
    """Run a program to its end and return what it wrote; ``inherit`` gives it this process's environment, too.

    Errors: NotFound and PermissionDenied when it cannot be run, DeadlineExceeded when it was killed, NetworkFailed with what
    it said of itself when it failed.
    """
    import subprocess

    name = os.path.basename(program.args[0])  # noqa: PTH119
    environment = {"PATH": PATH, **(os.environ if inherit else {})}
    environment.update(pair.partition("=")[::2] for pair in program.env)
    with TemporaryFile() as given, TemporaryFile() as answer, TemporaryFile() as said:
        given.write(program.input.encode())
        given.seek(0)
        try:
            process = subprocess.Popen(
                program.args,
                stdin=given,
                stdout=answer,
                stderr=said,
                env=environment,
                cwd="/",
                start_new_session=True,
            )
        except FileNotFoundError:
            raise NotFound(
                f"{program.args[0]} is not there",
                hint="It is needed to take a network away; install it again.",
            ) from None
        except PermissionError:
            raise PermissionDenied(f"{program.args[0]} may not be run") from None
        except OSError as error:
            raise NetworkFailed(f"{program.args[0]} cannot be run: {error.strerror}", plugin=name) from None
        try:
            status = process.wait(patience)
        except BaseException as error:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                raise DeadlineExceeded(f"{name} did not end within {patience:g} s and was killed") from None
            raise
        answer.seek(0)
        output = answer.read(OUTPUT_MAX)
        if status == 0:
            return output
        said.seek(0)
        raise _failure(name, status, output, said.read(4096))


def _failure(name: str, status: int, output: bytes, said: bytes) -> NetworkFailed:
    try:
        error = msgspec.json.decode(output, type=PluginError)
    except msgspec.MsgspecError:
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
