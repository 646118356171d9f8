"""A fresh ext4 file system in a file, for one measurement.

ext4 is slow at giving out inodes for minutes after many deletes, so that a system measured after another one,
or in a later round, would pay for what came before. Here every one starts on an empty file system of its own.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE = 8 << 30


@contextlib.contextmanager
def fresh_disk(folder: Path) -> Iterator[Path]:
    """Make an ext4 of 8 GiB in a sparse file in ``folder`` and mount it; give where. Gone afterwards, whatever happens."""
    with tempfile.TemporaryDirectory(prefix="disk-", dir=folder) as work:
        image, target = Path(work, "ext4"), Path(work, "d")
        target.mkdir()
        with image.open("wb") as file:
            file.truncate(SIZE)
        # Nothing is left to be initialised in the background while something is measured.
        options = "lazy_itable_init=0,lazy_journal_init=0"
        _run("mkfs.ext4", "-q", "-F", "-E", options, str(image))
        _run("mount", "-o", "loop", str(image), str(target))
        try:
            os.sync()
            yield target
        finally:
            if subprocess.run(["umount", "-R", target], check=False, capture_output=True).returncode:
                _run("umount", "-R", "-l", str(target))


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True)
