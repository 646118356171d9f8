#!/usr/bin/env python3
"""lamella beside crane and skopeo, in one run: a real image from, to and between registries, without unpacking it.

    sudo .venv/bin/python benches/transfers.py --rounds 5

The registries are Debian's docker-registry on loopback. Each figure of each system and round gets a fresh ext4 of its own, on
which the registry stands too that is sent to, an empty one.

* download: into a content store that exists (lamella), a tarball as ``docker save`` makes it (crane), an OCI layout (crane,
  skopeo)
* push: what the download made
* copy: from one registry to another
* here: a pull of what is here already; crane and skopeo have none
* serving: ``crane pull`` from three registries, of which lamella's serves a content store

The library's figures begin after ``import lamella`` and count what the first call imports; for ``here`` that was done. A
command's begin with its process. Nobody syncs what it writes; lamella notes that in its database, and hashes a blob again before
it believes it after another boot. Needs root and the packages of .ci/run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from fresh_disk import fresh_disk
from measure import Cost, environment, run
from systems import LamellaCommand, LamellaLibrary, Registry, System, free_port, wait_until_listening

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
import real_image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Self

NAME = "debian-real"
SCRIPT = """
import sys, time
import lamella
root, state, *names = sys.argv[1:]
with lamella.Client(root=root, state=state) as client:
    before = time.perf_counter()
    client.images.{call}
    print(time.perf_counter() - before)
"""
TWICE = """
import sys, time
import lamella
root, state, name, times = sys.argv[1:]
costs = []
with lamella.Client(root=root, state=state) as client:
    for _ in range(int(times) + 1):
        before = time.perf_counter()
        client.images.pull(name, unpack=False)
        costs.append(time.perf_counter() - before)
print(sorted(costs[1:])[int(times) // 2])
"""
TIMES = 9
"""Pulls of what is here, one after the other; the median is one round's figure."""


class Transfers(System):
    """What is measured of a system; ``push`` and ``here`` come after ``pull``."""

    lacks: ClassVar[frozenset[str]] = frozenset()
    """Figures that are not measured of it."""

    def push(self, target: str) -> Cost:
        """Push to a name in an empty registry."""
        raise NotImplementedError

    def copy(self, target: str) -> Cost:
        """Copy the image from its registry to a name in an empty one."""
        raise NotImplementedError

    def here(self) -> Cost:
        """Pull :data:`TIMES` times; the cost has the median's wall time."""
        raise NotImplementedError


class Library(LamellaLibrary, Transfers):
    """lamella in a process that has imported it."""

    def __enter__(self) -> Self:
        """Make the store, as is done once a machine."""
        self._script("import sys, lamella; lamella.Client(root=sys.argv[1], state=sys.argv[2]).close()")
        return self

    def pull(self) -> Cost:
        """Fetch the image into the content store."""
        return self._timed(SCRIPT.format(call="pull(*names, unpack=False)"), self.reference)

    def push(self, target: str) -> Cost:
        """Push from the content store."""
        return self._timed(SCRIPT.format(call="push(*names)"), self.reference, target)

    def copy(self, target: str) -> Cost:
        """Copy without storing."""
        return self._timed(SCRIPT.format(call="copy(*names)"), self.reference, target)

    def here(self) -> Cost:
        """Pull again in the same process, after once for the imports."""
        return self._timed(TWICE, self.reference, str(TIMES - 1))

    def _timed(self, script: str, *arguments: str) -> Cost:
        cost = self._script(script, *arguments)
        return cost._replace(wall=float(cost.output))


class Command(LamellaCommand, Transfers):
    """The commands, the interpreter's start included."""

    def __enter__(self) -> Self:
        """Make the store, as is done once a machine."""
        run(self.command("images", "ls"))
        return self

    def pull(self) -> Cost:
        """Fetch the image into the content store."""
        return run(self.command("pull", "--no-unpack", self.reference))

    def push(self, target: str) -> Cost:
        """Push from the content store."""
        return run(self.command("push", self.reference, target))

    def copy(self, target: str) -> Cost:
        """Copy without storing."""
        return run(self.command("copy", self.reference, target))

    def here(self) -> Cost:
        """Run the command again."""
        return sorted(self.pull() for _ in range(TIMES))[TIMES // 2]


class Crane(Transfers):
    """crane with its tarballs."""

    name = "crane"
    programs = ("crane",)
    lacks = frozenset({"here"})
    form: ClassVar[str] = "tarball"

    def pull(self) -> Cost:
        """Fetch the image."""
        return self._crane("pull", f"--format={self.form}", self.reference, f"{self.disk}/image")

    def push(self, target: str) -> Cost:
        """Push what was fetched."""
        return self._crane("push", f"{self.disk}/image", target)

    def copy(self, target: str) -> Cost:
        """Copy."""
        return self._crane("copy", self.reference, target)

    @staticmethod
    def _crane(command: str, *arguments: str) -> Cost:
        return run(["crane", command, *arguments])


class CraneLayout(Crane):
    """crane with OCI layouts, which it can write and read in parallel."""

    name = "crane, OCI layout"
    lacks = frozenset({"here", "copy"})
    form = "oci"


class Skopeo(Transfers):
    """skopeo with OCI layouts."""

    name = "skopeo"
    programs = ("skopeo",)
    lacks = frozenset({"here"})

    def pull(self) -> Cost:
        """Fetch the image."""
        return self._copy(f"docker://{self.reference}", f"oci:{self.disk}/layout:latest")

    def push(self, target: str) -> Cost:
        """Push what was fetched."""
        return self._copy(f"oci:{self.disk}/layout:latest", f"docker://{target}")

    def copy(self, target: str) -> Cost:
        """Copy."""
        return self._copy(f"docker://{self.reference}", f"docker://{target}")

    @staticmethod
    def _copy(source: str, target: str) -> Cost:
        tls = [f"--{side}-tls-verify=false" for side in ("src", "dest")]
        return run(["skopeo", "copy", "--quiet", *tls, source, target])


SYSTEMS: tuple[type[Transfers], ...] = (Library, Command, Crane, CraneLayout, Skopeo)


class Sample(NamedTuple):
    """One figure in one round."""

    wall: float
    """Seconds."""
    cpu: float
    """Seconds; of the client alone."""
    peak: int
    """Bytes of the client."""
    requests: int
    """That docker-registry answered, or both of them did; of one pull for ``here``."""


Samples = dict[str, list[Sample]]
"""System, then one sample a round."""


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="how often each is measured (default: 5)")
    parser.add_argument("--only", action="append", choices=FIGURES, help="this figure; may be repeated")
    parser.add_argument("--systems", action="append", help="those whose name contains this; may be repeated")
    parser.add_argument("--json", metavar="FILE", help="write all figures there, too")
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="where the file systems are made")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("needs root: it makes file systems and mounts them")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    layout = real_image.ensure()
    samples: dict[str, Samples] = defaultdict(lambda: defaultdict(list))
    with tempfile.TemporaryDirectory(prefix="lamella-bench-", dir=arguments.folder) as name:
        folder = Path(name)
        systems = _present(arguments.systems or [""])
        with Registry(folder, layout, [NAME]) as registry:
            for number in range(1, arguments.rounds + 1):
                for figure in arguments.only or FIGURES:
                    print(f"round {number}: {figure}", file=sys.stderr)
                    able = [system for system in systems if figure not in system.lacks]
                    FIGURES[figure](folder, registry, able, samples[figure])
    if arguments.json:
        Path(arguments.json).write_text(
            json.dumps(
                {
                    figure: {name: [sample._asdict() for sample in of] for name, of in by.items()}
                    for figure, by in samples.items()
                },
                indent=2,
            )
            + "\n"
        )
    print(f"{os.cpu_count()} CPUs, Linux {platform.release()}, Python {platform.python_version()}; ", end="")
    print(f"medians of {arguments.rounds} rounds")
    for figure, by in samples.items():
        _print_table(figure, by)


def _present(words: list[str]) -> list[type[Transfers]]:
    present = []
    for system in SYSTEMS:
        if missing := system.missing():
            print(f"left out: {system.name}: not installed: {', '.join(missing)}", file=sys.stderr)
        elif any(word in system.name for word in words):
            present.append(system)
    return present


def _measure_pull(folder: Path, registry: Registry, systems: list[type[Transfers]], samples: Samples) -> None:
    for system in systems:
        with fresh_disk(folder) as disk, system(disk, registry.references[0], folder) as running:
            before = registry.requests()
            cost = running.pull()
            samples[system.name].append(Sample(*cost[:3], registry.requests() - before))


def _measure_here(folder: Path, registry: Registry, systems: list[type[Transfers]], samples: Samples) -> None:
    for system in systems:
        with fresh_disk(folder) as disk, system(disk, registry.references[0], folder) as running:
            running.pull()
            before = registry.requests()
            cost = running.here()
            samples[system.name].append(Sample(*cost[:3], (registry.requests() - before) // TIMES))


def _measure_push(folder: Path, registry: Registry, systems: list[type[Transfers]], samples: Samples) -> None:
    for system in systems:
        with (
            fresh_disk(folder) as disk,
            system(disk, registry.references[0], folder) as running,
            _empty_registry(disk) as target,
        ):
            running.pull()
            cost = running.push(target.references[0])
            samples[system.name].append(Sample(*cost[:3], target.requests()))


def _measure_copy(folder: Path, registry: Registry, systems: list[type[Transfers]], samples: Samples) -> None:
    for system in systems:
        with (
            fresh_disk(folder) as disk,
            system(disk, registry.references[0], folder) as running,
            _empty_registry(disk) as target,
        ):
            before = registry.requests()
            cost = running.copy(target.references[0])
            requests = registry.requests() - before + target.requests()
            samples[system.name].append(Sample(*cost[:3], requests))


def _measure_serving(folder: Path, registry: Registry, _: object, samples: Samples) -> None:
    servers: dict[str, Callable[[Path, Registry], contextlib.AbstractContextManager[str]]] = {
        "docker-registry": lambda _, registry: contextlib.nullcontext(registry.address),
        "lamella registry serve": _lamella_serves,
        "crane registry serve": _crane_serves,
    }
    for name, serve in servers.items():
        with fresh_disk(folder) as disk, serve(disk, registry) as address:
            cost = Crane(disk, f"{address}/{NAME}:latest", folder).pull()
            samples[name].append(Sample(*cost[:3], 0))


FIGURES = {
    "download": _measure_pull,
    "push": _measure_push,
    "copy": _measure_copy,
    "here": _measure_here,
    "serving": _measure_serving,
}


def _empty_registry(disk: Path) -> Registry:
    folder = disk / "target"
    folder.mkdir()
    return Registry(folder, None, [NAME])


@contextlib.contextmanager
def _lamella_serves(disk: Path, registry: Registry) -> Iterator[str]:
    """Serve a content store that has the image."""
    port = free_port()
    with Command(disk, registry.references[0], disk) as lamella:
        lamella.pull()
        run(lamella.command("tag", registry.references[0], f"{NAME}:latest"))
        with _serving(port, *lamella.command("registry", "serve", "--listen", f"127.0.0.1:{port}")):
            yield f"127.0.0.1:{port}"


@contextlib.contextmanager
def _crane_serves(disk: Path, registry: Registry) -> Iterator[str]:
    """Serve a folder that crane has copied the image to."""
    port = free_port()
    address = f"127.0.0.1:{port}"
    content = disk / "content"
    content.mkdir()
    with _serving(port, "crane", "registry", "serve", "--address", address, "--disk", str(content)):
        Crane(disk, registry.references[0], disk).copy(f"{address}/{NAME}:latest")
        yield address


@contextlib.contextmanager
def _serving(port: int, *command: str) -> Iterator[None]:
    quiet = subprocess.DEVNULL
    server = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, env=environment())
    try:
        wait_until_listening(port, server)
        yield
    finally:
        server.terminate()
        server.wait(20)


def _print_table(figure: str, samples: Samples) -> None:
    print(f"\n{figure:24}{'seconds':>24}{'x crane':>9}{'CPU':>9}{'peak':>9}{'requests':>10}")
    beside = samples.get(Crane.name) or samples.get("docker-registry")
    for name, of in samples.items():
        walls = [sample.wall for sample in of]
        median = statistics.median(walls)
        print(
            f"{name:24}",
            f"{f'{median:.3f} ({min(walls):.3f}-{max(walls):.3f})':>23}",
            f"{median / statistics.median(sample.wall for sample in beside):9.2f}" if beside else f"{'-':>9}",
            f"{statistics.median(sample.cpu for sample in of):7.2f} s",
            f"{max(sample.peak for sample in of) / 1e6:6.0f} MB",
            f"{max(sample.requests for sample in of) or '-':>10}",
            sep="",
        )


if __name__ == "__main__":
    main()
