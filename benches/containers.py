"""What containers cost, beside other programs in the same run, and whether cycles leave anything behind.

    sudo .venv/bin/python benches/containers.py                                   # ten minutes on two cores
    sudo .venv/bin/python benches/containers.py --rounds 1 --idle 1000 --cycles 10000 --no-peers

Every system and every round has a fresh ext4 of its own (fresh_disk.py), and rounds go over all systems in turn; the table has
medians over the rounds, of medians within a round, and what they are beside lamella's. All run /bin/true in the small image of
examples/machine_image.py, without a network: lamella as a library and as a command, and the programs of starters.py, of which
those that are not installed are left out (kern: pip install kern-sandbox). The library's exec is beside the others' commands.
Needs root.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lamella
from fresh_disk import fresh_disk
from lamella.registry.server import RegistryServer
from measure import CommandFailed, environment
from starters import STARTERS, RuncStarter, Starter, is_realtime, quietly
from systems import TRUE as TRUE_PATH

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import machine_image
from inventory import memory, settled

FILES, FILE_BYTES = 10_000, 20_000
"""What was installed in the container that is branched: 200 MB."""
THREADS = 8
TRUE = [TRUE_PATH]
RUN, STARTS_RATE, EXEC = "run /bin/true, ms", f"starts a second, {THREADS} threads", "exec /bin/true, ms"
LIBRARY, COMMAND = "lamella, library", "lamella, command"
Figures = dict[str, float]


def median_ms(call: Callable[[], object], times: int, after: Callable[[Any], object] | None = None) -> float:
    """Give the median time of a call after two to warm up; ``after`` gets its result, unmeasured."""
    taken = []
    for _ in range(times + 2):
        began = time.perf_counter()
        result = call()
        taken.append((time.perf_counter() - began) * 1000)
        if after is not None:
            after(result)
    return statistics.median(taken[2:])


def rate(call: Callable[[int], object], count: int) -> float:
    """Give how many calls a second several threads get done."""
    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(call, range(THREADS)))
        began = time.perf_counter()
        list(threads.map(call, range(THREADS, THREADS + count)))
        return count / (time.perf_counter() - began)


def starts(client: lamella.Client, image: lamella.Image, times: int) -> Figures:
    """Measure runs, starts from several threads at once, and execs."""
    containers = client.containers
    found = {RUN: median_ms(lambda: containers.run(image, TRUE, remove=True), times)}
    found[STARTS_RATE] = rate(lambda _: containers.run(image, TRUE, remove=True), times * 4)
    box = containers.run(image, ["/bin/sleep", "1000"], detach=True)
    found[EXEC] = median_ms(lambda: box.exec(TRUE), times)
    box.remove(force=True)
    return found


def pools(client: lamella.Client, image: lamella.Image, times: int) -> Figures:
    """Measure starts from a pool that is full each time."""
    with client.containers.pool(image, size=4, auto_remove=True) as pool:
        pool.wait()

        def refilled(taken: lamella.Container) -> None:
            taken.wait()
            taken.remove()
            pool.wait()

        found = {"start from a pool, ms": median_ms(lambda: pool.take(TRUE), times, refilled)}
        found["run in a pool, ms"] = median_ms(lambda: pool.run(TRUE), times, lambda _: pool.wait())
    return found


def command(client: lamella.Client, image: lamella.Image, times: int) -> Figures:
    """Measure ``lamella run --rm``, and Python's own start, beneath which no command in Python can be."""
    program = str(Path(sys.executable).with_name("lamella"))
    where = ["--root", str(client.config.root), "--state", str(client.config.state), "-n", "bench"]
    line = [program, *where, "run", "--rm", image.name, *TRUE]
    return {
        RUN: median_ms(lambda: quietly(line, environment()), times),
        STARTS_RATE: rate(lambda _: quietly(line, environment()), times),
        "Python's own start, ms": median_ms(
            lambda: quietly([sys.executable, "-I", "-c", "pass"], environment()), times
        ),
    }


def beside(starter: Starter, times: int) -> Figures:
    """Measure another program."""
    numbers = itertools.count()
    found = {RUN: median_ms(lambda: starter.run(f"run-{next(numbers)}"), times)}
    found[STARTS_RATE] = rate(lambda number: starter.run(f"many-{number}"), times)
    sleeping = starter.idle("idle")
    try:
        line: Callable[[], object] = lambda: quietly(starter.exec("idle"), starter.env)  # noqa: E731
        found[EXEC] = median_ms(line, times)
    finally:
        starter.stop("idle", sleeping)
    return found


def branches(client: lamella.Client, image: lamella.Image, rounds: int) -> Figures:
    """Measure freezing a container with much in it, and what stands on that."""
    box = client.containers.create(image, TRUE)
    _fill(client, box)
    began = time.perf_counter()
    base = box.commit()
    found = {"freeze 200 MB in 10,000 files, ms": (time.perf_counter() - began) * 1000}
    found["branch, ms"] = median_ms(base.branch, rounds, lambda made: made[0].remove())
    found["run on a branch, ms"] = median_ms(lambda: client.containers.run(base, TRUE, remove=True), rounds)
    running = client.containers.run(image, ["/bin/sleep", "1000"], detach=True)
    _fill(client, running)
    began = time.perf_counter()
    running.commit()
    found["commit of a running one, the same, ms"] = (time.perf_counter() - began) * 1000
    running.remove(force=True)
    return found


def _fill(client: lamella.Client, box: lamella.Container) -> None:
    top = client.snapshots.layer_paths(box.snapshot_key)[0] / "installed"
    for number in range(FILES):
        if number % 100 == 0:
            folder = top / str(number)
            folder.mkdir(parents=True)
        (folder / str(number)).write_bytes(b"x" * FILE_BYTES)


def idle(client: lamella.Client, image: lamella.Image, count: int) -> Figures:
    """Start many that do nothing, and see what each holds, in KiB.

    Ours: the proportional set size of its monitor. Its memory cgroup: its program, and what the kernel keeps for it. The machine:
    what is no longer available, all of these and what no cgroup is charged for; others on the machine disturb that.
    """
    before = _available()
    boxes = [client.containers.run(image, ["/bin/sleep", "10000"], detach=True) for _ in range(count)]
    held = [memory(_parent(box.pid or 0)) for box in boxes]
    charged = [box.stats().memory.usage / 1024 for box in boxes]
    machine = (before - _available()) / count
    for box in boxes:
        box.remove(force=True)
    return {
        f"KiB of ours, each of {count} idle": statistics.mean(held),
        f"KiB of its memory cgroup, each of {count} idle": statistics.mean(charged),
        f"KiB of the machine, each of {count} idle": machine,
    }


def _available() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def cycles(client: lamella.Client, image: lamella.Image, count: int) -> Figures:
    """Start and remove many, one after the other; what there is more of afterwards. Others on the machine disturb it."""
    for _ in range(100):
        client.containers.run(image, TRUE, remove=True)
    before = settled(client)
    for _ in range(count):
        client.containers.run(image, TRUE, remove=True)
    after = settled(client)
    return {f"more {name} after {count} cycles": after[name] - before[name] for name in before}


def measure(
    kind: str, image: lamella.Image, client: lamella.Client, arguments: argparse.Namespace, *, first: bool
) -> Figures:
    """Measure lamella, as a library or as a command."""
    if kind == COMMAND:
        return command(client, image, arguments.times)
    found = starts(client, image, arguments.times) | pools(client, image, arguments.times)
    found |= branches(client, image, arguments.times)
    if first:  # these are sums and counts, which rounds do not mend
        found |= idle(client, image, arguments.idle) if arguments.idle else {}
        found |= cycles(client, image, arguments.cycles)
    return found


def rounds(arguments: argparse.Namespace, folder: Path) -> dict[str, dict[str, list[float]]]:
    """Give every figure of every system, one value a round."""
    samples: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    others = [] if arguments.no_peers else _present()
    with RegistryServer() as server:
        machine_image.build().push(server.address, "machine", "latest")
        reference = f"{server.address}/machine:latest"
        for number in range(1, arguments.rounds + 1):
            for kind in (LIBRARY, COMMAND):
                _say(f"round {number}, load {os.getloadavg()[0]:.1f}: {kind}")
                with (
                    fresh_disk(folder) as disk,
                    lamella.Client(root=disk / "root", state=disk / "state", namespace="bench") as client,
                ):
                    image = client.images.pull(reference)
                    for name, value in measure(kind, image, client, arguments, first=number == 1).items():
                        samples[kind][name].append(value)
            for starter in others:
                _say(f"round {number}, load {os.getloadavg()[0]:.1f}: {starter.name}")
                try:
                    with (
                        fresh_disk(folder) as disk,
                        _root(folder, reference)
                        if starter.needs_root
                        else contextlib.nullcontext(Path()) as root,
                        starter(disk, reference, root) as running,
                    ):
                        for name, value in beside(running, arguments.times).items():
                            samples[starter.name][name].append(value)
                except CommandFailed as error:
                    _say(f"FAILED: {starter.name}: {error}")
    return samples


def _present() -> list[type[Starter]]:
    found = []
    for starter in STARTERS:
        if missing := starter.missing():
            _say(f"left out: {starter.name}: not installed: {', '.join(missing)}")
        elif starter is RuncStarter and is_realtime():
            _say(f"left out: {starter.name}: it cannot put real-time processes (chrt) into its cgroup")
        else:
            found.append(starter)
    return found


@contextlib.contextmanager
def _root(folder: Path, reference: str) -> Iterator[Path]:
    """Mount the image's root, writable, for those that have no images."""
    with (
        tempfile.TemporaryDirectory(prefix="root-", dir=folder) as name,
        lamella.Client(root=Path(name, "root"), state=Path(name, "state")) as client,
    ):
        client.snapshots.prepare("root", parent=client.images.pull(reference).chain_id)
        with client.snapshots.mounted("root") as root:
            yield root


def _print_table(samples: dict[str, dict[str, list[float]]]) -> None:
    ours = samples[LIBRARY]
    for name in dict.fromkeys(name for by in samples.values() for name in by):
        print(f"\n{name}")
        for system, by in samples.items():
            if name not in by:
                continue
            value = statistics.median(by[name])
            spread = f"({min(by[name]):.1f}-{max(by[name]):.1f})" if len(by[name]) > 1 else ""
            ratio = (
                f"{value / statistics.median(ours[name]):8.2f} x"
                if name in ours and system != LIBRARY
                else ""
            )
            print(f"  {system:22}{value:10.2f} {spread:16}{ratio}")


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is measured (default: 3)")
    parser.add_argument("--times", type=int, default=50, help="calls of each kind in a round (default: 50)")
    parser.add_argument("--idle", type=int, default=1000, help="idle containers at once (default: 1000)")
    parser.add_argument("--cycles", type=int, default=1000, help="starts and removals (default: 1000)")
    parser.add_argument("--no-peers", action="store_true", help="lamella alone")
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="where the file systems are made")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("needs root: it makes file systems and mounts them")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="lamella-bench-", dir=arguments.folder) as name:
        samples = rounds(arguments, Path(name))
    _print_table(samples)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(samples, indent=2) + "\n")


if __name__ == "__main__":
    main()
