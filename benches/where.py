#!/usr/bin/env python3
"""Where a cold pull of the real image spends its time: CPU by thread, system calls, faults, switches.

    sudo .venv/bin/python benches/where.py

Three pulls, each on a fresh ext4 of its own, in a process of its own: one by itself (faults, switches), one under
``perf record`` (CPU by the name of the thread, and by symbol), one under ``strace -c`` (system calls; it slows the pull
down, which changes few counts). Prints text. Needs root, perf (Debian: linux-perf), strace, and what benches/peers.py needs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

from fresh_disk import fresh_disk
from measure import run
from systems import LIBRARY_PULL, Registry

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
import real_image

USAGE = """
usage = resource.getrusage(resource.RUSAGE_SELF)
print(f"{usage.ru_utime:.2f} s user, {usage.ru_stime:.2f} s system, {usage.ru_minflt} page faults,")
print(f"{usage.ru_nvcsw} waits, {usage.ru_nivcsw} times made to wait")
"""
SAMPLES_A_SECOND = "4999"


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--symbols", type=int, default=25, help="how many symbols to name (default: 25)")
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="where the file systems are made")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("needs root: it makes file systems and mounts them")
    if missing := [tool for tool in ("perf", "strace") if shutil.which(tool) is None]:
        raise SystemExit(f"not installed: {', '.join(missing)}")
    layout = real_image.ensure()
    with tempfile.TemporaryDirectory(prefix="lamella-bench-", dir=arguments.folder) as name:
        folder = Path(name)
        with Registry(folder, layout) as registry:
            _profile(folder, registry.references[0], arguments.symbols)


def _profile(folder: Path, reference: str, symbols: int) -> None:
    data, calls = folder / "perf.data", folder / "calls"
    wrappers: dict[str, list[str | Path]] = {
        "faults and switches": [],
        "CPU": ["perf", "record", "-q", "-F", SAMPLES_A_SECOND, "-e", "cpu-clock", "-o", data],
        "system calls": ["strace", "-f", "-c", "-U", "calls,errors,name", "-S", "calls", "-o", calls],
    }
    for what, wrapper in wrappers.items():
        with fresh_disk(folder) as disk:
            store = [f"{disk}/root", f"{disk}/state", reference]
            cost = run([*wrapper, sys.executable, "-c", LIBRARY_PULL + USAGE, *store])
        print(f"\n== {what}")
        if what == "CPU":
            _report(data, "comm")
            _report(data, "comm,symbol", most=symbols)
        elif what == "system calls":
            print(calls.read_text())
        else:
            print(cost.output)


def _report(data: Path, keys: str, most: int | None = None) -> None:
    report = run(
        ["perf", "report", "-i", data, "--stdio", "-F", f"overhead,{keys}", "--percent-limit", "0.4"]
    )
    lines = [line for line in report.output.splitlines() if line.strip() and not line.startswith("#")]
    print("\n".join(lines[:most]), end="\n\n")


if __name__ == "__main__":
    main()
