#!/usr/bin/env python3
"""lamella beside crane and skopeo, in one run: fetching a real image without unpacking it.

    sudo .venv/bin/python benches/transfers.py --rounds 5

Every system and round gets a fresh ext4 of its own; the registry is Debian's docker-registry on loopback. crane writes a
tarball in docker's form, skopeo an OCI layout, lamella a content store. Needs root and the packages of .ci/run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from fresh_disk import fresh_disk
from measure import Cost, run
from systems import LamellaCommand, LamellaLibrary, Registry, System

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
import real_image

if TYPE_CHECKING:
    from collections.abc import Iterator

DOWNLOAD = """
import sys, time
import lamella
root, state, reference = sys.argv[1:]
with lamella.Client(root=root, state=state) as client:
    before = time.perf_counter()
    client.images.pull(reference, unpack=False)
    print(time.perf_counter() - before)
"""


class LibraryDownload(LamellaLibrary):
    """``images.pull(unpack=False)`` in a process that has imported lamella already."""

    def pull(self) -> Cost:
        """Fetch the image."""
        cost = self._script(DOWNLOAD, self.reference)
        return cost._replace(wall=float(cost.output))


class CommandDownload(LamellaCommand):
    """``lamella pull --no-unpack``, the interpreter's start included."""

    def pull(self) -> Cost:
        """Fetch the image."""
        return run(self.command("pull", "--no-unpack", self.reference))


class Crane(System):
    """crane pull: a tarball as ``docker save`` makes it."""

    name = "crane"
    programs = ("crane",)

    def pull(self) -> Cost:
        """Fetch the image."""
        return run(["crane", "pull", "--insecure", self.reference, self.disk / "image.tar"])


class Skopeo(System):
    """skopeo copy to an OCI layout."""

    name = "skopeo"
    programs = ("skopeo",)

    def pull(self) -> Cost:
        """Fetch the image."""
        source, target = f"docker://{self.reference}", f"oci:{self.disk}/layout:latest"
        return run(["skopeo", "copy", "--quiet", "--src-tls-verify=false", source, target])


SYSTEMS: tuple[type[System], ...] = (LibraryDownload, CommandDownload, Crane, Skopeo)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="how often each is measured (default: 5)")
    parser.add_argument("--json", metavar="FILE", help="write all figures there, too")
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="where the file systems are made")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("needs root: it makes file systems and mounts them")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    costs: dict[str, list[Cost]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="lamella-bench-", dir=arguments.folder) as name:
        folder = Path(name)
        with Registry(folder, real_image.ensure()) as registry:
            for system in _rounds(arguments.rounds):
                with fresh_disk(folder) as disk, system(disk, registry.references[0], folder) as running:
                    costs[system.name].append(running.pull())
    if arguments.json:
        figures = {name: [cost._asdict() for cost in of] for name, of in costs.items()}
        Path(arguments.json).write_text(json.dumps(figures, indent=2) + "\n")
    _print_table(costs)


def _rounds(count: int) -> Iterator[type[System]]:
    present = [system for system in SYSTEMS if all(shutil.which(program) for program in system.programs)]
    for system in set(SYSTEMS) - set(present):
        print(f"left out: {system.name}: not installed", file=sys.stderr)
    for number in range(1, count + 1):
        print(f"round {number}", file=sys.stderr)
        yield from present


def _print_table(costs: dict[str, list[Cost]]) -> None:
    print(f"{'':20}{'download':>24}{'x crane':>9}{'CPU':>9}{'peak':>9}")
    crane = costs.get(Crane.name)
    for name, of in costs.items():
        walls = [cost.wall for cost in of]
        wall = f"{statistics.median(walls):.3f} s ({min(walls):.3f}-{max(walls):.3f})"
        ratio = statistics.median(walls) / statistics.median(c.wall for c in crane) if crane else 0
        cpu = f"{statistics.median(cost.cpu for cost in of):.2f} s"
        peak = f"{max(cost.peak for cost in of) / 1e6:.0f} MB"
        print(f"{name:20}{wall:>24}{ratio:>9.2f}{cpu:>9}{peak:>9}")


if __name__ == "__main__":
    main()
