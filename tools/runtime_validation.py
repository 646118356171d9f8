#!/usr/bin/env python3
"""Build the validation programs of github.com/opencontainers/runtime-tools into the cache, once a machine.

On disk::

    <cache>/tools/runtime-tools-0.9.0/      appears by rename
        validation/NAME                     one program a test, which speaks TAP
        runtimetest, rootfs-amd64.tar.gz    what they put into their containers, from the folder that they are run in

Its release is older than Go's modules: tools/runtime-validation has a go.mod that says which versions of what it needs it is
built with, a runtime-spec of 1.0.2 among them. Needs Go, and the Go modules that its own settings reach. Prints the path of the
folder. Doing it again is harmless and quick.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from built_once import built_once, go
from real_image import cache_folder

VERSION = "0.9.0"
MODULE = "github.com/opencontainers/runtime-tools"
RECIPE = Path(__file__).resolve().parent / "runtime-validation"


def folder() -> Path:
    """Give where the programs are, or belong."""
    return cache_folder() / "tools" / f"runtime-tools-{VERSION}"


def ensure() -> Path:
    """Build what is not there; give the folder. CalledProcessError when Go fails."""
    return built_once(folder(), _build)


def _build(work: Path) -> Path:
    module, built = work / "module", work / "built"
    shutil.copytree(RECIPE, module)
    (built / "validation").mkdir(parents=True)
    for place, packages in (("validation/", "validation/..."), ("", "cmd/runtimetest")):
        go(work, "build", "-o", f"{built}/{place}", f"{MODULE}/{packages}", cwd=module, CGO_ENABLED="0")
    source = Path(go(work, "list", "-m", "-f", "{{.Dir}}", MODULE, cwd=module))
    shutil.copy(source / "rootfs-amd64.tar.gz", built)
    return built


if __name__ == "__main__":
    print(ensure())
