#!/usr/bin/env python3
"""lamella beside others in one run, as root and without: pull and unpack of a real image, start of a container.

    sudo .venv/bin/python benches/peers.py --rounds 5

Every system and round gets a fresh ext4 of its own. The registry is Debian's docker-registry on loopback.
Rounds go over all systems in turn, so that a slow moment of the machine hits all alike; the table shows
medians, and what they are beside lamella's. Needs root and the packages of .ci/run. The real image and containerd 2.4 are
built when they are not there (tools/). What is not installed is left out, and what does not work said in its own words.

Systems whose name ends with ``user`` run as an ordinary user that is made for it, with ranges of ids for user namespaces, or with
one id. Their CPU time and peak are those of the command alone, not of what it starts that is nobody's child (lamella's helper);
the time of a command includes what it takes to become that user, which is printed, but that of the library does not.
udocker and kern are looked for on PATH (pip install udocker kern-sandbox, where users may look).
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
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bound import inflate_tool, measure_bound, tars_of
from fresh_disk import fresh_disk
from measure import CommandFailed, median_wall
from systems import (
    SYSTEMS,
    Identity,
    LamellaCommand,
    LamellaLibrary,
    Registry,
    SingleLibrary,
    System,
    UserCommand,
    UserLibrary,
)

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import real_image
from users import OrdinaryUser, ordinary_user

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
        folder.chmod(0o711)  # users get disks beneath
        with Registry(folder, layout, ["bench/debian-real"]) as registry, ExitStack() as users:
            made: dict[Identity, OrdinaryUser | None] = {
                "root": None,
                "user": users.enter_context(ordinary_user()),
                "single": users.enter_context(ordinary_user(ranges=False)),
            }
            samples, parts = _measure(systems, made, registry.references[0], layout, folder, arguments)
            becoming = median_wall(made["user"].command("true"), 15) if made["user"] else 0.0
    figures = {
        "machine": {
            "cpus": os.cpu_count(),
            "kernel": platform.release(),
            "python": platform.python_version(),
        },
        "rounds": arguments.rounds,
        "bound": {part: statistics.median(values) for part, values in parts.items()},
        "becoming": becoming,
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
    systems: list[type[System]],
    users: dict[Identity, OrdinaryUser | None],
    reference: str,
    layout: Path,
    folder: Path,
    arguments: argparse.Namespace,
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
                with fresh_disk(folder) as disk:
                    disk.parent.chmod(0o711)
                    with system(disk, reference, layout, users[system.identity]) as running:
                        try:
                            _measure_one(running, arguments.runs, samples[system.name])
                        except CommandFailed as error:
                            _say(f"FAILED: {system.name}: {str(error).strip().splitlines()[-1]}")
    return samples, parts


def _measure_one(running: System, runs: int, figures: dict[str, list[float]]) -> None:
    cost = running.pull()
    figures["pull"].append(cost.wall)
    figures["cpu"].append(cost.cpu)
    figures["peak"].append(cost.peak)
    if running.again:
        again = min(running.pull().wall for _ in range(3))
        figures["again"].append(again)
    if runs and running.runs:
        median = running.run(runs)
        figures["run"].append(median)


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
    classes = {system.name: system for system in SYSTEMS}
    header = ("", "cold pull", "x bound", "x lamella", "x root", "CPU", "peak", "here already", "run true")
    print("{:23}{:>19}{:>9}{:>11}{:>8}{:>9}{:>9}{:>14}{:>10}{:>11}".format(*header, "x lamella"))
    for name, by in systems.items():
        if "pull" not in by:
            continue
        pull = by["pull"]
        ours = systems.get(_ours(classes[name]).name, {})
        cells = [
            f"{pull['median']:.2f} s ({pull['least']:.2f}-{pull['most']:.2f})",
            f"{pull['median'] / bound['bound']:.2f}",
            _ratio(pull, ours.get("pull")),
            _ratio(pull, systems.get(classes[name].as_root or "", {}).get("pull")),
            f"{by['cpu']['median']:.2f} s",
            f"{by['peak']['median'] / 1e6:.0f} MB",
            f"{by['again']['median'] * 1e3:.0f} ms" if "again" in by else "-",
            f"{by['run']['median'] * 1e3:.1f} ms" if "run" in by else "-",
            _ratio(by.get("run"), ours.get("run")),
        ]
        print("{:23}{:>19}{:>9}{:>11}{:>8}{:>9}{:>9}{:>14}{:>10}{:>11}".format(name, *cells))
    print(f"\nbecoming a user: {figures['becoming'] * 1e3:.0f} ms of each of a user's commands")
    extra = figures["import"]
    if extra is None:
        return
    print(
        f"\nimport lamella: {(extra['lamella'] - extra['bare']) * 1e3:.0f} ms beyond the bare interpreter's ",
        end="",
    )
    print(f"{extra['bare'] * 1e3:.0f} ms")


def _ours(system: type[System]) -> type[System]:
    """Give lamella in the form that a system is beside."""
    if system in (LamellaLibrary, UserLibrary, SingleLibrary):
        return LamellaLibrary if system is LamellaLibrary else UserLibrary
    return LamellaCommand if system.identity == "root" else UserCommand


def _ratio(value: dict[str, float] | None, ours: dict[str, float] | None) -> str:
    return f"{value['median'] / ours['median']:.2f}" if value and ours else "-"


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    main()
