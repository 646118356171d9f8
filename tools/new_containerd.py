#!/usr/bin/env python3
"""Build containerd 2.4 into the cache, once a machine: the peer that Debian does not package yet.

On disk::

    <cache>/tools/containerd-2.4.2/{containerd,ctr,containerd-shim-runc-v2}     appears by rename

Needs Go, and the Go modules that its own settings reach. Prints the path of the folder. Doing it again is harmless and quick.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from built_once import built_once, go
from real_image import cache_folder

VERSION = "2.4.2"
PROGRAMS = ("containerd", "ctr", "containerd-shim-runc-v2")


def folder() -> Path:
    """Give where the programs are, or belong."""
    return cache_folder() / "tools" / f"containerd-{VERSION}"


def ensure() -> Path:
    """Build what is not there; give the folder. CalledProcessError when Go fails."""
    return built_once(folder(), _build)


def _build(work: Path) -> Path:
    built = work / "bin"
    packages = [f"github.com/containerd/containerd/v2/cmd/{name}@v{VERSION}" for name in PROGRAMS]
    go(work, "install", *packages, GOBIN=str(built))
    return built


def can_build() -> bool:
    """Tell whether Go is installed."""
    return shutil.which("go") is not None


if __name__ == "__main__":
    print(ensure())
