#!/usr/bin/env python3
"""lamella beside containerd, podman and umoci, in one run: pull and unpack of a real image, and start of a container.

    sudo .venv/bin/python benches/peers.py --rounds 5

Every system and round gets a fresh ext4 of its own. The registry is Debian's docker-registry on loopback.
Rounds go over all systems in turn, so that a slow moment of the machine hits all alike; the table shows
medians, and what they are beside lamella's. Needs root and the packages of .ci/run. The real image and containerd 2.4 are
built when they are not there (tools/). What is not installed is left out, and said so.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from bound import inflate_tool, measure_bound, tars_of
from fresh_disk import fresh_disk
from measure import CommandFailed, median_wall
from systems import SYSTEMS, LamellaCommand, LamellaLibrary, Registry, System

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
import real_image

Samples = dict[str, dict[str, list[float]]]
"""System, then figure, then one value a round."""


def main() -> None:
    """Run from the command line."""
    arguments = _arguments()
    if os.geteuid() != 0:
        raise SystemExit("needs root: it makes file systems and mounts them")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    wanted = [system for system in SYSTEMS if not arguments.only or _matches(system, arguments.only)]
    systems = []
    for system in wanted:
        if missing := system.missing():
            _say(f"left out: {system.name}: not installed: {', '.join(missing)}")
        else:
            systems.append(system)
    layout = real_image.ensure()
    with tempfile.TemporaryDirectory(prefix="lamella-bench-", dir=arguments.folder) as name:
        folder = Path(name)
        with Registry(folder, layout) as registry:
            samples, parts = _measure(systems, registry.references[0], layout, folder, arguments)
    figures = {
        "machine": {
            "cpus": os.cpu_count(),
            "kernel": platform.release(),
            "python": platform.python_version(),
        },
        "rounds": arguments.rounds,
        "bound": {part: statistics.median(values) for part, values in parts.items()},
        "import": _import_seconds() if any("lamella" in system.name for system in systems) else None,
        "systems": {
            name: {key: _summary(values) for key, values in by.items()} for name, by in samples.items()
        },
    }
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(figures, indent=2) + "\n")
    _print_table(figures)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured (default: 3)")
    parser.add_argument(
        "--runs", type=int, default=20, help="containers started for the run figure, a round; 0: none"
    )
    parser.add_argument(
        "--only", action="append", help="only systems whose name contains this; may be repeated"
    )
    parser.add_argument("--json", metavar="FILE", help="write all figures there, too")
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="where the file systems are made")
    return parser.parse_args()


def _matches(system: type[System], words: list[str]) -> bool:
    return any(word in system.name for word in words)


def _measure(
    systems: list[type[System]], reference: str, layout: Path, folder: Path, arguments: argparse.Namespace
) -> tuple[Samples, dict[str, list[float]]]:
    samples: Samples = defaultdict(lambda: defaultdict(list))
    parts: dict[str, list[float]] = defaultdict(list)
    memory = Path("/dev/shm") if Path("/dev/shm").is_dir() else folder
    with tempfile.TemporaryDirectory(prefix="lamella-tars-", dir=memory) as tar_folder:
        tars = tars_of(layout, Path(tar_folder))
        for number in range(1, arguments.rounds + 1):
            _say(f"round {number}: bound")
            with fresh_disk(folder) as disk:
                for part, seconds in measure_bound(layout, tars, disk).items():
                    parts[part].append(seconds)
            for system in systems:
                _say(f"round {number}: {system.name}")
                try:
                    _measure_one(system, reference, layout, folder, arguments.runs, samples[system.name])
                except CommandFailed as error:
                    _say(f"FAILED: {system.name}: {error}")
    return samples, parts


def _measure_one(
    system: type[System],
    reference: str,
    layout: Path,
    folder: Path,
    runs: int,
    figures: dict[str, list[float]],
) -> None:
    with fresh_disk(folder) as disk, system(disk, reference, layout) as running:
        cost = running.pull()
        figures["pull"].append(cost.wall)
        figures["cpu"].append(cost.cpu)
        figures["peak"].append(cost.peak)
        if running.again:
            figures["again"].append(min(running.pull().wall for _ in range(3)))
        if runs and running.runs:
            figures["run"].append(running.run(runs))


def _import_seconds() -> dict[str, float]:
    scripts = {"bare": "pass", "lamella": "import lamella; lamella.Client"}
    return {name: median_wall([sys.executable, "-c", script], 15) for name, script in scripts.items()}


def _summary(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def _print_table(figures: dict[str, Any]) -> None:
    machine, bound = figures["machine"], figures["bound"]
    print(f"{machine['cpus']} CPUs, Linux {machine['kernel']}, Python {machine['python']}; ", end="")
    print(f"medians of {figures['rounds']} rounds\n")
    print(f"bound of a cold pull: {bound['bound']:.2f} s = half the CPU time of ", end="")
    print(", ".join(f"{part} {bound[part]:.2f}" for part in ("inflate", "hash", "apply", "write")), end="")
    print(f" ({Path(inflate_tool()).name}, SHA-256, GNU tar)\n")
    systems = figures["systems"]
    command = systems.get(LamellaCommand.name, {})
    header = ("", "cold pull", "x bound", "x lamella", "CPU", "peak", "here already", "run true", "x lamella")
    print("{:22}{:>16}{:>9}{:>11}{:>9}{:>9}{:>14}{:>10}{:>11}".format(*header))
    for name, by in systems.items():
        if "pull" not in by:
            continue
        pull = by["pull"]
        ours = (systems.get(LamellaLibrary.name, {}) if name == LamellaLibrary.name else command) or {}
        cells = [
            f"{pull['median']:.2f} s ({pull['least']:.2f}-{pull['most']:.2f})",
            f"{pull['median'] / bound['bound']:.2f}",
            _ratio(pull, ours.get("pull")),
            f"{by['cpu']['median']:.2f} s",
            f"{by['peak']['median'] / 1e6:.0f} MB",
            f"{by['again']['median'] * 1e3:.0f} ms" if "again" in by else "-",
            f"{by['run']['median'] * 1e3:.1f} ms" if "run" in by else "-",
            _ratio(by.get("run"), ours.get("run")),
        ]
        print("{:20}{:>18}{:>9}{:>11}{:>9}{:>9}{:>14}{:>10}{:>11}".format(name, *cells))
    extra = figures["import"]
    if extra is None:
        return
    print(
        f"\nimport lamella: {(extra['lamella'] - extra['bare']) * 1e3:.0f} ms beyond the bare interpreter's ",
        end="",
    )
    print(f"{extra['bare'] * 1e3:.0f} ms")


def _ratio(value: dict[str, float] | None, ours: dict[str, float] | None) -> str:
    return f"{value['median'] / ours['median']:.2f}" if value and ours else "-"


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    main()
