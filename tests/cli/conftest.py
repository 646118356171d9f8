"""The command on stores of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from program import Program

from lamella.ids import one_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def lamella(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Program]:
    """Give the command on an empty store."""
    for name in (
        "LAMELLA_ROOT",
        "LAMELLA_STATE",
        "LAMELLA_NAMESPACE",
        "LAMELLA_SNAPSHOTTER",
        "LAMELLA_RUNTIME",
        "LAMELLA_GC",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    program = Program(tmp_path, capfd)
    if reason := one_id():  # which was told already: what a command prints is the same for every user
        program.root.mkdir(mode=0o700)
        (program.root / "one-id").write_text(reason)
    yield program
    program.close()


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
