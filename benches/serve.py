#!/usr/bin/env python3
"""lamella serve beside containerd, in one run: both over their sockets, by the same clients, containerd's own.

    sudo .venv/bin/python benches/serve.py --rounds 3

* version: one call that does nothing; p50 of a thousand
* snapshot: Prepare, Mounts and Remove on the real image's five layers; p50 of five hundred, of the three together
* write, read: a blob of 256 MiB through the content service
* pull: ``ctr images pull`` of containerd 2.4, which lets the server pull (Transfer) and unpack; the command's start included
* export: ``ctr images export`` of that image to /dev/null, over a stream (Transfer); the command's start included

Each system of each round gets a fresh ext4 of its own. The calls are measured by the Go client (tests/containerd, built where it
is missing). Needs root, Go and the packages of .ci/run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from fresh_disk import fresh_disk
from measure import Cost, environment, process_cpu, run
from systems import LamellaCommand, NewContainerd, Registry, System, TunedContainerd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
import containerd_contract
import new_containerd
import real_image

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

FIGURES = {"version": "ms", "snapshot": "ms", "write": "MB/s", "read": "MB/s", "pull": "s", "export": "s"}
CALLS = (
    ("BenchmarkVersion", "1000x", "version", r"([\d.]+) p50-ms"),
    ("BenchmarkSnapshot", "500x", "snapshot", r"([\d.]+) p50-ms"),
    ("BenchmarkContentWrite", "3x", "write", r"([\d.]+) MB/s"),
    ("BenchmarkContentRead", "3x", "read", r"([\d.]+) MB/s"),
)


class Served(LamellaCommand):
    """``lamella serve``."""

    name = "lamella serve"

    def __enter__(self) -> Self:
        """Start it."""
        self.address = f"{self.disk}/c.sock"
        self._server = subprocess.Popen(
            self.command("serve", "--address", self.address),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment(),
        )
        assert self._server.stdout is not None
        if not self._server.stdout.readline():
            raise SystemExit("lamella serve does not start")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it."""
        assert self._server.stdout is not None
        self._server.stdout.close()
        self._server.terminate()
        self._server.wait(30)

    def pull(self) -> Cost:
        """Pull by the same client as containerd's."""
        before = process_cpu(self._server.pid)
        ctr = [str(new_containerd.folder() / "ctr"), "--address", self.address]
        cost = run([*ctr, "images", "pull", "--plain-http", self.reference])
        return cost._replace(cpu=cost.cpu + process_cpu(self._server.pid) - before)


SYSTEMS: tuple[type[System], ...] = (Served, NewContainerd, TunedContainerd)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured (default: 3)")
    parser.add_argument("--only", action="append", choices=FIGURES, help="this figure; may be repeated")
    parser.add_argument("--json", metavar="FILE", help="write all figures there, too")
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="where the file systems are made")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("needs root: it makes file systems and mounts them")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    layout, program = real_image.ensure(), containerd_contract.ensure_contract()
    figures = arguments.only or list(FIGURES)
    samples: dict[str, dict[str, list[float]]] = {figure: defaultdict(list) for figure in figures}
    with tempfile.TemporaryDirectory(prefix="lamella-bench-", dir=arguments.folder) as name:
        folder = Path(name)
        with Registry(folder, layout) as registry:
            for number in range(1, arguments.rounds + 1):
                for system in SYSTEMS:
                    if missing := system.missing():
                        print(f"left out: {system.name}: {', '.join(missing)}", file=sys.stderr)
                        continue
                    print(f"round {number}: {system.name}", file=sys.stderr)
                    with fresh_disk(folder) as disk, system(disk, registry.references[0], layout) as running:
                        for figure, value in _measure(program, running, figures).items():
                            samples[figure][system.name].append(value)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(samples, indent=2) + "\n")
    print(f"{os.cpu_count()} CPUs, Linux {platform.release()}, Python {platform.python_version()}; ", end="")
    print(f"medians of {arguments.rounds} rounds")
    for figure, by in samples.items():
        print(f"\n{figure:24}{FIGURES[figure]:>28}{'x containerd':>14}")
        for name, values in by.items():
            median = statistics.median(values)
            shown = f"{median:.3f} ({min(values):.3f}-{max(values):.3f})"
            beside = (
                f"{median / statistics.median(by[NewContainerd.name]):14.2f}"
                if NewContainerd.name in by
                else ""
            )
            print(f"{name:24}{shown:>28}{beside}")


def _measure(program: Path, running: System, figures: list[str]) -> dict[str, float]:
    """Measure one system on its disk: the pull first, when the store is empty."""
    found = {}
    address = running.address  # type: ignore[attr-defined]
    if {"pull", "export"} & {*figures}:
        found["pull"] = running.pull().wall
        ctr = [str(new_containerd.folder() / "ctr"), "--address", address]
        found["export"] = run([*ctr, "images", "export", "/dev/null", running.reference]).wall
    for benchmark, times, figure, pattern in CALLS:
        if figure in figures:
            options = {"bench": f"^{benchmark}$", "benchtime": times, "run": "^$"}
            places = [f"-address={address}", f"-image={running.reference}"]
            output = run(
                [program, *(f"-test.{key}={value}" for key, value in options.items()), *places]
            ).output
            value = re.search(pattern, output)
            assert value, output
            found[figure] = float(value[1])
    return {figure: value for figure, value in found.items() if figure in figures}


if __name__ == "__main__":
    main()
