#!/usr/bin/env python3
"""What containers cost: starts, execs, pools, branches, idle ones, and whether cycles leave anything behind.

    sudo .venv/bin/python benches/containers.py --idle 1000 --cycles 10000

Medians of single calls of the library in milliseconds, on a store of its own below --folder; bare runc on the same root beside
them, where it is installed (benches/peers.py has ctr and podman). The image is examples/machine_image.py's. Needs root.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lamella
from lamella.registry.server import RegistryServer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
import machine_image

FILES, FILE_BYTES = 10_000, 20_000
"""What was installed in the container that is branched: 200 MB."""
THREADS, STARTS = 8, 200
TRUE = ["/bin/true"]


def median_ms(call: Callable[[], object], rounds: int, after: Callable[[Any], object] | None = None) -> float:
    """Give the median time of a call; ``after`` gets its result, unmeasured."""
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        result = call()
        taken.append((time.perf_counter() - began) * 1000)
        if after is not None:
            after(result)
    return statistics.median(taken)


def starts(client: lamella.Client, image: lamella.Image, rounds: int) -> dict[str, float]:
    """Measure runs, execs, pools, and starts from several threads at once."""
    containers = client.containers
    found = {"run /bin/true": median_ms(lambda: containers.run(image, TRUE, remove=True), rounds)}
    box = containers.run(image, ["/bin/sleep", "1000"], detach=True)
    found["exec /bin/true"] = median_ms(lambda: box.exec(TRUE), rounds)
    box.remove(force=True)
    with containers.pool(image, size=rounds) as pool:
        pool.wait()

        def refilled(taken: lamella.Container) -> None:
            taken.wait()
            taken.remove()
            pool.wait()

        found["start from a pool"] = median_ms(lambda: pool.take(TRUE), rounds, refilled)
        found["run in a pool"] = median_ms(lambda: pool.run(TRUE), rounds, lambda _: pool.wait())
    began = time.perf_counter()
    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(lambda _: containers.run(image, TRUE, remove=True), range(STARTS)))
    found[f"starts a second, {THREADS} threads"] = STARTS / (time.perf_counter() - began)
    return found


def branches(client: lamella.Client, image: lamella.Image, rounds: int) -> dict[str, float]:
    """Measure freezing a container with much in it, and what stands on that."""
    box = client.containers.create(image, TRUE)
    _fill(client, box)
    began = time.perf_counter()
    base = box.commit()
    found = {"freeze, 200 MB in 10,000 files": (time.perf_counter() - began) * 1000}
    found["branch"] = median_ms(base.branch, rounds, lambda made: made[0].remove())
    found["run on a branch"] = median_ms(lambda: client.containers.run(base, TRUE, remove=True), rounds)
    running = client.containers.run(image, ["/bin/sleep", "1000"], detach=True)
    _fill(client, running)
    began = time.perf_counter()
    running.commit()
    found["copy of a running one, the same"] = (time.perf_counter() - began) * 1000
    running.remove(force=True)
    return found


def _fill(client: lamella.Client, box: lamella.Container) -> None:
    top = client.snapshots.layer_paths(box.snapshot_key)[0] / "installed"
    for number in range(FILES):
        if number % 100 == 0:
            folder = top / str(number)
            folder.mkdir(parents=True)
        (folder / str(number)).write_bytes(b"x" * FILE_BYTES)


def idle(client: lamella.Client, image: lamella.Image, count: int) -> dict[str, float]:
    """Start many that do nothing, and see what their monitors hold: proportional set size, KiB each."""
    boxes = [client.containers.run(image, ["/bin/sleep", "10000"], detach=True) for _ in range(count)]
    held = [_memory(_parent(box.pid or 0)) for box in boxes]
    for box in boxes:
        box.remove(force=True)
    return {f"KiB of ours for each of {count} idle": statistics.mean(held)}


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _memory(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def cycles(client: lamella.Client, image: lamella.Image, count: int) -> dict[str, float]:
    """Start and remove many, one after the other; what there is more of afterwards. Others on the machine disturb it."""
    for _ in range(100):
        client.containers.run(image, TRUE, remove=True)
    before = _inventory(client)
    for _ in range(count):
        client.containers.run(image, TRUE, remove=True)
    after = _inventory(client)
    return {f"more {name} after {count} cycles": after[name] - before[name] for name in before}


def _inventory(client: lamella.Client) -> dict[str, int]:
    gc.collect()
    state = str(client.config.state)
    ours = [path for path in Path("/proc").glob("[0-9]*/cmdline") if state in _read(path)]
    return {
        "KiB": _memory(os.getpid()),
        "descriptors": len(os.listdir("/proc/self/fd")),  # noqa: PTH208 (names are enough)
        "mounts": _read(Path("/proc/self/mountinfo")).count(str(client.config.root)),
        "cgroups": sum(1 for _ in Path("/sys/fs/cgroup").glob("*/lamella/bench/*")),
        "processes": len(ours),
        "folders": sum(1 for _ in (client.config.root / "snapshots" / "overlayfs").iterdir()),
    }


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def bare_runc(client: lamella.Client, image: lamella.Image, folder: Path, rounds: int) -> dict[str, float]:
    """Measure runc itself: no snapshot, no log, nothing that outlives it."""
    if shutil.which("runc") is None or os.sched_getscheduler(0) != os.SCHED_OTHER:
        print("left out: runc: it is not here, or cannot put real-time processes (chrt) into its cgroup")
        return {}
    bundle = folder / "bundle"
    bundle.mkdir()
    subprocess.run(["runc", "spec", "--bundle", bundle], check=True)
    spec = json.loads((bundle / "config.json").read_text())
    spec["process"] |= {"args": TRUE, "terminal": False}
    (bundle / "config.json").write_text(json.dumps(spec))
    client.snapshots.prepare("bare", parent=image.chain_id)
    with client.snapshots.mounted("bare") as root:
        (bundle / "rootfs").symlink_to(root)
        spec["root"]["path"] = str(root)
        (bundle / "config.json").write_text(json.dumps(spec))
        command = ["runc", "--root", folder / "runc", "run", "--bundle", bundle, "bench"]
        taken = median_ms(lambda: subprocess.run(command, check=True, stdin=subprocess.DEVNULL), rounds)
    client.snapshots.remove("bare")
    return {"runc run /bin/true, bare": taken}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=50, help="calls of each kind (default: 50)")
    parser.add_argument("--idle", type=int, default=100, help="idle containers at once (default: 100)")
    parser.add_argument("--cycles", type=int, default=500, help="starts and removals (default: 500)")
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="where the store is made")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("needs root")
    with (
        tempfile.TemporaryDirectory(prefix="lamella-bench-", dir=arguments.folder) as name,
        RegistryServer() as server,
    ):
        folder = Path(name)
        machine_image.build().push(server.address, "machine", "latest")
        with lamella.Client(root=folder / "root", state=folder / "state", namespace="bench") as client:
            image = client.images.pull(f"{server.address}/machine:latest")
            found: dict[str, float] = {}
            for figures in (
                lambda: bare_runc(client, image, folder, arguments.rounds),
                lambda: starts(client, image, arguments.rounds),
                lambda: branches(client, image, arguments.rounds),
                lambda: idle(client, image, arguments.idle),
                lambda: cycles(client, image, arguments.cycles),
            ):
                fresh = figures()
                found |= fresh
                for what, value in fresh.items():
                    print(f"{what:40} {value:10.2f}", flush=True)
            for box in client.containers.list(all=True):
                box.remove(force=True)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
