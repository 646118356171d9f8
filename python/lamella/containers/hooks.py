"""The poststop hooks of a run, where its monitor has not run them: it was killed, or they are whoever's who takes leave of it.

A monitor leaves ``poststop.json`` in the bundle before a run's first hook, and takes it away when the poststop hooks have run
(``rust/launcher/src/monitor/hooks.rs``). containerd does the same where a shim was killed: its ``runc delete`` runs them. Of the
tasks of its clients they are run when the task is deleted, so that names and addresses stay with a container that has ended.

Rules: runtime spec, runtime.md, "Lifecycle"; config.md, "POSIX-platform Hooks".
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from lamella.containers.task import HOOKS_AT_END
from lamella.logs import Log

_WORDS = 2048
"""How much of what a hook said is told, in bytes."""
_log = Log("lamella.containers")


class _Hook(msgspec.Struct, frozen=True):
    path: str
    args: list[str] = []
    env: list[str] = []
    timeout: float | None = None


class _Hooks(msgspec.Struct, frozen=True):
    poststop: list[_Hook] = []


class _Left(msgspec.Struct, frozen=True):
    hooks: _Hooks = _Hooks()
    state: dict[str, Any] = {}
    delete: list[str] = []
    """The command by which another runtime does it."""


def run_left(bundle: Path) -> None:
    """Run them, all of them; what fails is logged. For whoever holds the bundle's folder. Harmless twice."""
    try:
        left = msgspec.json.decode((bundle / HOOKS_AT_END).read_bytes(), type=_Left)
    except FileNotFoundError:
        return
    except msgspec.MsgspecError:  # it was killed while it wrote this: no hook has run
        left = _Left()
    if left.delete:
        _delete(left.delete)
    state = msgspec.json.encode(left.state | {"status": "stopped", "pid": 0})
    for index, hook in enumerate(left.hooks.poststop):
        try:
            problem = _run(hook, state)
        except OSError as error:
            problem = error.strerror or str(error)
        if problem:
            _log.warning(f"hooks.poststop[{index}] {hook.path}: %(reason)s", reason=problem)
    (bundle / HOOKS_AT_END).unlink(missing_ok=True)


def _delete(command: list[str]) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, cwd="/", check=False)
    if done.returncode:
        said = done.stderr[-_WORDS:].decode(errors="replace").strip()
        _log.warning("%(command)s: %(reason)s", command=" ".join(command), reason=said)


def _run(hook: _Hook, state: bytes) -> str:
    """Run one to its end, or to its time-out; say what went wrong."""
    with tempfile.TemporaryFile() as words, tempfile.TemporaryFile() as given:
        given.write(state)
        given.seek(0)
        process = subprocess.Popen(
            hook.args or [hook.path],
            executable=hook.path,
            env=dict(pair.split("=", 1) for pair in hook.env),
            stdin=given,
            stdout=words,
            stderr=words,
            cwd="/",
            start_new_session=True,
        )
        try:
            status = process.wait(hook.timeout)
        except BaseException as error:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                return f"it was killed after {hook.timeout:g} s"
            raise
        words.seek(0)
        said = words.read(_WORDS).decode(errors="replace").strip()
    return f"exit status {status}: {said}".removesuffix(": ") if status else ""
