"""What is built once a machine, and kept in the cache."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path


def built_once(target: Path, build: Callable[[Path], Path]) -> Path:
    """Give a folder, which ``build`` makes where it is missing: in a folder of its own, of which it returns the part to keep.

    It appears by rename; of several that build at once the first one wins.
    """
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".building-", dir=target.parent) as work:
            built = build(Path(work))
            try:
                built.rename(target)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
    return target


def sources_digest(files: Iterable[Path]) -> str:
    """Give what names a build of these files: some hex digits that change with a name or a byte of one."""
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(f"{file.name}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:12]


def go(work: Path, *arguments: str, cwd: Path | None = None, **variables: str) -> str:
    """Run go with ``arguments``; give what it prints. CalledProcessError when it fails.

    What it fetches and compiles goes to where the environment says, so that several builds share it; by itself, into ``work``.
    """
    places = {"GOPATH": f"{work}/go", "GOCACHE": f"{work}/cache"}
    places = {name: os.environ.get(name) or place for name, place in places.items()}
    done = subprocess.run(
        ["go", *arguments],
        check=True,
        cwd=cwd or work,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        # -modcacherw lets the folder be removed.
        env=os.environ | places | {"GOFLAGS": "-modcacherw"} | variables,
    )
    return done.stdout.strip()
