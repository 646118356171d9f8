"""The command as tests use it: called in this process, or started as one of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from lamella import Client
from lamella.cli import main

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pytest


def buffered() -> dict[str, str]:
    """Give this environment without what changes how Python writes: a user's has it not."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


class Result(NamedTuple):
    """What one run of the command left."""

    status: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """Read stdout as JSON."""
        return json.loads(self.out)

    def ok(self) -> Result:
        """Return itself if it succeeded; fail with what it said otherwise."""
        assert self.status == 0, f"exit status {self.status}\n{self.out}\n{self.err}"
        return self


class Program:
    """The command on a store of its own: called in this process, or started."""

    def __init__(self, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.root = folder / "root"
        self.state = folder / "state"
        self._capfd = capfd

    @property
    def options(self) -> list[str]:
        """Say which store is meant."""
        return ["--root", str(self.root), "--state", str(self.state)]

    def __call__(self, *words: str) -> Result:
        """Run a command line in this process."""
        sys.stdout.flush()
        self._capfd.readouterr()
        status = main([*self.options, *words])
        sys.stdout.flush()
        return Result(status, *self._capfd.readouterr())

    def argv(self, *words: str) -> list[str]:
        """Give the command line of a process of its own."""
        return [sys.executable, "-m", "lamella.cli", *self.options, *words]

    @contextmanager
    def start(self, *words: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
        """Start a process with pipes; when the test is done with it, or failed, it is killed if it still runs."""
        options.setdefault("env", buffered())
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(self.argv(*words), **(pipes | options))
        try:
            yield process
        finally:
            process.kill()
            process.wait(timeout=60)
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    with suppress(BrokenPipeError):
                        pipe.close()

    def close(self) -> None:
        """Remove the containers that a failed test left; they would run on."""
        if self.root.is_dir():
            with Client(root=self.root, state=self.state) as client:
                for container in client.containers.list(all=True):
                    container.remove(force=True)

    def process(self, *words: str, input: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """Run a process to its end."""
        return subprocess.run(
            self.argv(*words), input=input, capture_output=True, timeout=60, check=False, env=buffered()
        )
