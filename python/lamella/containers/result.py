"""Waiting for a command with its output, and how it ended: the same for a container and for an exec in one."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

from lamella.containers.monitor import Attached, OnOutput, OutputTimeout
from lamella.errors import CommandFailed, DeadlineExceeded, FailedPrecondition, NotFound
from lamella.structs import Struct

KILL_WAIT = 10.0
"""Seconds that a killed command may take to end before its caller gives up on the rest of its output."""


class RunResult(Struct, frozen=True, kw_only=True):
    """How a command that was waited for ended. ``duration`` is seconds from its start to its end."""

    exit_code: int
    stdout: bytes
    stderr: bytes
    duration: float
    oom_killed: bool = False
    timed_out: bool = False
    container_id: str = ""

    @property
    def text(self) -> str:
        """What it wrote to stdout, as text: UTF-8, what is none of it replaced, without the newlines at its end."""
        return self.stdout.decode(errors="replace").rstrip("\n")

    def check(self, what: str = "the command") -> RunResult:
        """Return itself; DeadlineExceeded after a time-out, CommandFailed for another status than 0."""
        if self.timed_out:
            raise DeadlineExceeded(f"{what} did not end in time and was killed after {self.duration:.1f} s")
        if self.exit_code != 0:
            last = self.stderr.decode(errors="replace").strip().rpartition("\n")[2]
            reason = f": {last[:200]}" if last else " (killed: out of memory)" if self.oom_killed else ""
            from lamella.ids import explain_failure

            raise CommandFailed(
                f"{what} ended with status {self.exit_code}{reason}",
                exit_code=self.exit_code,
                stdout=self.stdout,
                stderr=self.stderr,
                hint=explain_failure(self.stdout, self.stderr),
            )
        return self


def await_result(
    attached: Attached,
    *,
    input: bytes | None,
    timeout: float | None,
    kill: Callable[[], None],
    container_id: str,
    on_output: OnOutput | None = None,
) -> RunResult:
    """Feed ``input`` to what has just started, and collect its output; after ``timeout`` seconds call ``kill`` first."""
    began, timed_out = time.monotonic(), False
    try:
        stdout, stderr = attached.communicate(
            input, deadline=None if timeout is None else began + timeout, on_output=on_output
        )
    except OutputTimeout as late:
        timed_out = True
        with suppress(FailedPrecondition, NotFound):  # it has just ended by itself
            kill()
        rest = attached.communicate(deadline=time.monotonic() + KILL_WAIT, on_output=on_output)
        stdout, stderr = late.stdout + rest[0], late.stderr + rest[1]
    ended = attached.exit
    assert ended is not None  # communicate ends with it
    return RunResult(
        exit_code=ended.exit_code,
        stdout=stdout,
        stderr=stderr,
        duration=time.monotonic() - began,
        oom_killed=ended.oom_killed,
        timed_out=timed_out,
        container_id=container_id,
    )
