#!/usr/bin/env python3
"""Build the programs that try a server of containerd's API: tests/containerd as one, and nerdctl.

On disk, by the digest of what they are built from::

    <cache>/tools/containerd-contract-<digest>/contract.test    appears by rename
    <cache>/tools/nerdctl-<digest>/nerdctl

Needs Go, and the Go modules that its own settings reach. Prints the paths of the folders. Doing it again is harmless and quick.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from built_once import built_once, go, sources_digest
from real_image import cache_folder

SOURCES = Path(__file__).resolve().parent.parent / "tests" / "containerd"
RECIPE = Path(__file__).resolve().parent / "nerdctl"


def contract() -> Path:
    """Give where the tests' program is, or belongs."""
    digest = sources_digest([*SOURCES.glob("*.go"), SOURCES / "go.mod", SOURCES / "go.sum"])
    return cache_folder() / "tools" / f"containerd-contract-{digest}" / "contract.test"


def ensure_contract() -> Path:
    """Build the tests' program unless it is there. CalledProcessError when Go fails."""

    def build(work: Path) -> Path:
        built = work / "built"
        built.mkdir()
        go(work, "test", "-c", "-o", f"{built}/contract.test", ".", cwd=SOURCES, CGO_ENABLED="0")
        return built

    program = contract()
    built_once(program.parent, build)
    return program


def nerdctl() -> Path:
    """Give where nerdctl is, or belongs."""
    digest = sources_digest(RECIPE.iterdir())
    return cache_folder() / "tools" / f"nerdctl-{digest}" / "nerdctl"


def ensure_nerdctl() -> Path:
    """Build nerdctl unless it is there. CalledProcessError when Go fails."""

    def build(work: Path) -> Path:
        module, built = work / "module", work / "built"
        shutil.copytree(RECIPE, module)
        built.mkdir()
        # The checksum database has no entry for some of these modules: the recipe's go.sum says what they are.
        package = "github.com/containerd/nerdctl/v2/cmd/nerdctl"
        go(
            work,
            "build",
            "-o",
            f"{built}/nerdctl",
            package,
            cwd=module,
            CGO_ENABLED="0",
            GONOSUMDB="github.com/containerd/*",
        )
        return built

    program = nerdctl()
    built_once(program.parent, build)
    return program


def can_build() -> bool:
    """Tell whether Go is installed."""
    return shutil.which("go") is not None


if __name__ == "__main__":
    print(ensure_contract().parent)
    print(ensure_nerdctl().parent)
