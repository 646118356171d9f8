#!/usr/bin/env python3
"""How a pull behaves on extreme layers: one of 2 GB, 200, 300,000 small files, 4 GiB of holes or zeros. Prints a table.

    sudo .venv/bin/python benches/extreme_layers.py [--rounds N] [--only CASE ...] [--write docs/layers.md]

Every command and round gets a fresh ext4 of its own; the registry is Debian's docker-registry on loopback. Beside lamella's cold
pull stand ``igzip -dc BLOB | tar -x`` of each layer in order (``zstd -dc``, or ``tar`` alone) and ``umoci unpack`` of the image.
Medians of the rounds. Needs root and the packages of .ci/run. The images are made once (benches/extreme_images.py).
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import signal
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import extreme_images
from bound import inflate_tool, layer_blobs
from extreme_images import real_image
from fresh_disk import fresh_disk
from measure import CommandFailed, Cost, run
from systems import LamellaCommand, Registry, System, Umoci

TAR = "tar -x --xattrs --xattrs-include=* --same-permissions --same-owner --numeric-owner"
MARKS = ("<!-- benches/extreme_layers.py -->\n", "<!-- end -->\n")
HEADER = (
    "layers", "blobs", "lamella", "CPU", "peak", "tar", "CPU", "lamella : tar", "CPU", "umoci", "lamella : umoci"
)  # fmt: skip


class Tar(System):
    """The best plain tools, layer by layer into one folder: inflate into a pipe, GNU tar behind it. Whiteouts become files."""

    name = "inflate + tar"
    programs = ("tar", "zstd")

    def pull(self) -> Cost:
        """Unpack."""
        tree = self.disk / "tree"
        tree.mkdir()
        lines = [f"{_opened(blob)} -C '{tree}'" for blob in layer_blobs(self.layout)]
        return run(["sh", "-c", "set -ef\n" + "\n".join(lines)])


def _opened(blob: Path) -> str:
    with blob.open("rb") as file:
        magic = file.read(4)
    if magic.startswith(b"\x1f\x8b"):
        return f"{inflate_tool()} -dc '{blob}' | {TAR} -f -"
    return f"zstd -dcq '{blob}' | {TAR} -f -" if magic == b"\x28\xb5\x2f\xfd" else f"{TAR} -f '{blob}'"


class Again(LamellaCommand):
    """The pull of an image whose layers came with another one."""

    name = "lamella, layers here"


class Case(NamedTuple):
    """A row of the table."""

    title: str
    layout: Callable[[], Path]
    systems: tuple[type[System], ...] = (LamellaCommand, Tar, Umoci)


def _made(name: str, title: str, *systems: type[System]) -> Case:
    return Case(title, lambda: extreme_images.ensure(name), *([systems] if systems else []))


CASES = {
    "real": Case("the real image (5 layers, gzip)", real_image.ensure),
    "zstd": _made("zstd", "the same, zstd", LamellaCommand, Tar),
    "plain": _made("plain", "the same, plain tar"),
    "again": Case("the same, another name, layers here", real_image.ensure, (Again,)),
    "large": _made("large", "one layer of 2 GB"),
    "stacked": _made("stacked", "200 layers"),
    "small": _made("small", "300,000 files of 0.2 to 4 kB"),
    "sparse": _made("sparse", "a sparse file of 4 GiB"),
    "zeros": _made("zeros", "4 GiB of zeros, not sparse"),
}


def measure(case: Case, rounds: int, folder: Path) -> dict[type[System], list[Cost]]:
    """Measure a case; what fails has no figures, and says why."""
    layout = case.layout()
    costs: dict[type[System], list[Cost]] = {system: [] for system in case.systems}
    with _registry(folder, layout) as references:
        for number in range(1, rounds + 1):
            for system, found in costs.items():
                if missing := system.missing():
                    _say(f"left out: {system.name}: not installed: {', '.join(missing)}")
                    continue
                _say(f"{case.title}, round {number}: {system.name}")
                try:
                    found.append(_measure_one(system, references, layout, folder))
                    _say(
                        f"  {found[-1].wall:.2f} s, CPU {found[-1].cpu:.2f} s, peak {found[-1].peak / 1e6:.0f} MB"
                    )
                except CommandFailed as error:
                    _say(f"FAILED: {system.name}: {error}")
    return costs


@contextmanager
def _registry(folder: Path, layout: Path) -> Iterator[list[str]]:
    """Serve an image under two names; the registry's copy of it is gone afterwards."""
    with (
        tempfile.TemporaryDirectory(prefix="registry-", dir=folder) as work,
        Registry(Path(work), layout, ("image", "again")) as registry,
    ):
        yield registry.references


def _measure_one(system: type[System], references: list[str], layout: Path, folder: Path) -> Cost:
    first, second = references
    with fresh_disk(folder) as disk:
        if system is Again:
            with LamellaCommand(disk, second, layout) as running:
                running.pull()
        with system(disk, first, layout) as running:
            return running.pull()


# The table


def row(case: Case, costs: dict[type[System], list[Cost]]) -> list[str]:
    """Give a line of the table."""
    blobs = layer_blobs(case.layout())
    size = sum(blob.stat().st_size for blob in blobs)
    ours, tar, umoci = ((costs.get(system) or costs.get(other) or []) for system, other in (
        (LamellaCommand, Again), (Tar, Tar), (Umoci, Umoci)
    ))  # fmt: skip
    return [
        case.title,
        f"{size / 1e6:.0f} MB" if size > 2e6 else f"{size / 1e6:.1f} MB",
        _seconds(ours, "wall"), _seconds(ours, "cpu"), _peak(ours),
        _seconds(tar, "wall"), _seconds(tar, "cpu"), _ratio(ours, tar, "wall"), _ratio(ours, tar, "cpu"),
        _seconds(umoci, "wall"), _ratio(ours, umoci, "wall"),
    ]  # fmt: skip


def _median(costs: list[Cost], what: str) -> float:
    return statistics.median(getattr(cost, what) for cost in costs)


def _seconds(costs: list[Cost], what: str) -> str:
    return f"{_median(costs, what):.2f} s" if costs else "-"


def _peak(costs: list[Cost]) -> str:
    return f"{max(cost.peak for cost in costs) / 1e6:.0f} MB" if costs else "-"


def _ratio(ours: list[Cost], theirs: list[Cost], what: str) -> str:
    return f"{_median(ours, what) / _median(theirs, what):.2f}" if ours and theirs else "-"


def markdown(rows: list[list[str]], rounds: int) -> str:
    """Give the whole table and the line above it."""
    table = [list(HEADER), *rows]
    widths = [max(len(line[column]) for line in table) for column in range(len(HEADER))]
    lines = []
    for line in table:
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        lines.append("| " + " | ".join(cells) + " |")
    lines.insert(1, "|---|" + "---:|" * (len(HEADER) - 1))
    medians = "one round" if rounds == 1 else f"medians of {rounds} rounds, the highest peak"
    where = f"{os.cpu_count()} CPUs, Linux {platform.release().partition('-')[0]}, Python {platform.python_version()}"
    return f"{where}; {medians}.\n\n" + "\n".join(lines) + "\n"


def put(text: str, file: Path) -> None:
    """Put the table between its marks in a document."""
    before, after = MARKS
    pattern = re.compile(re.escape(before) + ".*?" + re.escape(after), re.DOTALL)
    document, count = pattern.subn(lambda _: f"{before}{text}{after}", file.read_text())
    if count != 1:
        raise SystemExit(f"{file} has no place for the table: {before.strip()} ... {after.strip()}")
    file.write_text(document)


def main() -> None:
    """Measure every case and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured (default: 3)")
    parser.add_argument("--only", action="append", choices=CASES, help="only this case; may be repeated")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table into this document, too")
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="where the file systems are made")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("needs root: it makes file systems and mounts them")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    rows = []
    with tempfile.TemporaryDirectory(prefix="lamella-layers-", dir=arguments.folder) as name:
        for case in (CASES[word] for word in arguments.only or CASES):
            rows.append(row(case, measure(case, arguments.rounds, Path(name))))
    text = markdown(rows, arguments.rounds)
    print(text, end="")
    if arguments.write:
        put(text, arguments.write)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    main()
