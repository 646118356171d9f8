"""Run one command and say what it cost: wall time, CPU time, peak memory."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TIMEOUT_SECONDS = 300


class Cost(NamedTuple):
    """What a command took, and what it printed."""

    wall: float
    """Seconds."""
    cpu: float
    """Seconds of user and system time, of the command and the children it waited for."""
    peak: int
    """Bytes of resident memory at most. The floor is the measuring interpreter's own."""
    output: str


class CommandFailed(Exception):
    """A measured command failed; the figures of its system are missing from the table."""


def environment(**changes: str) -> dict[str, str]:
    """Give the environment for measured commands: compiled Python files are kept, as in an installed package."""
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    return kept | {"LC_ALL": "C"} | changes


def run(
    command: Sequence[str | Path], *, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Cost:
    """Run a command to its end. Raise CommandFailed with the end of what it said when it fails."""
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb") as output:
        try:
            started = time.perf_counter()
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=write_end,
                stderr=write_end,
                env=env or environment(),
                cwd=cwd,
            )
        finally:
            os.close(write_end)
        previous = signal.signal(signal.SIGALRM, lambda *_: process.kill())
        signal.alarm(TIMEOUT_SECONDS)
        try:
            text = output.read().decode(errors="replace")
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            raise
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, previous)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        words = " ".join(str(word) for word in command)
        raise CommandFailed(f"{words} exited with {process.returncode}:\n{text[-2000:]}")
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, text)


def median_wall(
    command: Sequence[str | Path],
    times: int,
    *,
    warm_up: int = 2,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> float:
    """Run a command several times one after the other; give the median of its wall time in seconds."""
    costs = [run(command, env=env, cwd=cwd).wall for _ in range(warm_up + times)]
    return statistics.median(costs[warm_up:])


def process_cpu(pid: int) -> float:
    """Give the CPU seconds of a running process and of the children that it has waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(value) for value in fields[11:15]) / os.sysconf("SC_CLK_TCK")
