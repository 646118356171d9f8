"""Running the command: in this process, where a test looks at what it prints, or as a program of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from lamella.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable


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

    def start(self, *words: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start a process with pipes."""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(self.argv(*words), **(pipes | options))

    def process(self, *words: str, input: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """Run a process to its end."""
        return subprocess.run(self.argv(*words), input=input, capture_output=True, timeout=60, check=False)


@pytest.fixture
def lamella(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Program:
    """Give the command on an empty store."""
    for name in ("LAMELLA_ROOT", "LAMELLA_STATE", "LAMELLA_NAMESPACE", "LAMELLA_SNAPSHOTTER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    return Program(tmp_path, capfd)


@pytest.fixture
def pulled(lamella: Program, small_image: str) -> tuple[Program, str]:
    """Give the command on a store that has the small image, and the image's reference."""
    lamella("-q", "pull", small_image).ok()
    return lamella, small_image


@pytest.fixture
def modules_after() -> Callable[..., set[str]]:
    """Give the modules that are loaded after a command line ran in a fresh interpreter."""

    def run(*words: str) -> set[str]:
        code = (
            "import sys\nfrom lamella.cli import main\n"
            f"status = main({list(words)!r})\n"
            "print('\\0' + ' '.join(sys.modules))\nsys.exit(status)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=60,
            env=os.environ,
            check=True,
        )
        return set(done.stdout.rpartition("\0")[2].split())

    return run
