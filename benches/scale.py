"""How a store behaves as it grows: every listing, opening, preparing, collecting at 10 to 100,000 images. Prints a table.

    python benches/scale.py [--sizes 10 100 1000 10000 100000] [--folder DIR] [--markdown] [--only WORD ...]

An image has ten blobs (manifest, config, eight layers), ten snapshots (eight committed, a view, an active one); every tenth has a
container and a lease. The rows are written in bulk, as pulls would leave them. Blobs of a few bytes and layer folders are made
on disk for up to FILES_MAX images; beyond that there are rows alone, and what reads files is left out (-). Commands run in
this process with their output thrown away, so that a row shows what the store costs, not the interpreter's start.

Times are those of the processor: the stores are in memory, so that this is what an idle machine takes, and what else runs on
this one counts less. The collection of everything, which pauses for others, is the time of the clock.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import apsw
import msgspec

import lamella
from lamella import oci
from lamella.cli import main as command
from lamella.digest import Digest, digest_of
from lamella.gc import collect
from lamella.metadata import timestamp
from lamella.snapshots.folders import LayerFolders
from lamella.structs import encode

LAYERS = 8
FILES_MAX = 10_000
SIZES = [10, 100, 1_000, 10_000, 100_000]
ENOUGH_SECONDS = 0.3
SPEC = '{"ociVersion":"1.2.0","process":{"args":["/bin/true"],"cwd":"/"}}'
PLATFORM = encode(oci.Platform(os="linux", architecture="amd64")).decode()


class Built(NamedTuple):
    """A store of a size, and what there is in it to ask for."""

    client: lamella.Client
    count: int
    files: bool
    parent: str
    """The chainID of the first image."""

    def cli(self, *words: str) -> None:
        """Run a command of the command line."""
        place = ["--root", str(self.client.config.root), "--state", str(self.client.config.state)]
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as said:
            status = command([*place, *words])
        if status:
            raise SystemExit(f"{' '.join(words)}: {said.getvalue()}")


# Building


class Image:
    """What the rows of one image say."""

    def __init__(self, number: int) -> None:
        self.layers = [b"layer %d %d" % (number, place) for place in range(LAYERS)]
        self.digests = [digest_of(data) for data in self.layers]
        self.chain = oci.chain_ids(self.digests)  # the layers stand for their own tar files
        self.config = encode(
            {
                "os": "linux",
                "architecture": "amd64",
                "rootfs": {"type": "layers", "diff_ids": self.digests},
            }
        )
        described = [
            oci.Descriptor(media_type=oci.OCI_LAYER, digest=digest, size=len(data))
            for digest, data in zip(self.digests, self.layers, strict=True)
        ]
        self.manifest = encode(
            {
                "schemaVersion": 2,
                "mediaType": oci.OCI_MANIFEST,
                "config": oci.Descriptor(
                    media_type=oci.OCI_CONFIG, digest=digest_of(self.config), size=len(self.config)
                ),
                "layers": described,
            }
        )

    def blobs(self) -> list[tuple[Digest, bytes, dict[str, str]]]:
        """Give digest, bytes and labels; what refers comes after what it refers to, as in a pull."""
        config = digest_of(self.config)
        source = {"containerd.io/distribution.source.docker.io": "library/image"}
        return [
            *((digest, data, source) for digest, data in zip(self.digests, self.layers, strict=True)),
            (config, self.config, {**source, "containerd.io/gc.ref.snapshot.overlayfs": self.chain[-1]}),
            (
                digest_of(self.manifest),
                self.manifest,
                {
                    **source,
                    "containerd.io/gc.ref.content.config": config,
                    **{
                        f"containerd.io/gc.ref.content.l.{place}": digest
                        for place, digest in enumerate(self.digests)
                    },
                },
            ),
        ]


def container_id(number: int) -> str:
    """Give the identifier of an image's container."""
    return digest_of(b"box %d" % number).removeprefix("sha256:")


def fill(client: lamella.Client, count: int, *, files: bool) -> str:
    """Write the rows of ``count`` images, and their files; give the chainID of the first."""
    root, now = client.config.root, timestamp()
    blobs_folder = root / "blobs" / "sha256"
    blobs_folder.mkdir(parents=True)
    folders = LayerFolders(root, "overlayfs")
    folders.remove(
        folders.create(work=False)
    )  # the first one makes the folder of all, in the form that this user can read
    snapshots = folders.top
    rows: dict[str, list[tuple[Any, ...]]] = {}

    def add(table: str, *values: Any) -> None:
        rows.setdefault(table, []).append(values)

    content = snapshot = 0
    with Bulk(root / "metadata.db") as bulk:
        bulk.insert("namespaces", [("default", "{}", now, now)])
        for number in range(count):
            image = Image(number)
            for digest, data, labels in image.blobs():
                content += 1
                add("blobs", digest, len(data), now, "", 1)
                text = msgspec.json.encode(labels, order="sorted").decode()
                add("content", content, "default", digest, text, now, now)
                for key, value in labels.items():
                    kind, _, rest = key.removeprefix("containerd.io/gc.ref.").partition(".")
                    if key.startswith("containerd.io/gc."):
                        scope = rest if kind == "snapshot" else ""
                        add("gc_labels", content * 4, kind, "default", scope, value)
                if files:
                    blobs_folder.joinpath(digest[7:]).write_bytes(data)
            first = snapshot + 1
            for place, (digest, chain) in enumerate(zip(image.digests, image.chain, strict=True)):
                snapshot += 1
                folder = f"{snapshot:016x}"
                add("layers", folder, "overlayfs", digest, None, 4096, 1, 0, now, "", 1)
                add(
                    "snapshots", snapshot, "default", "overlayfs", chain, "committed",
                    snapshot - 1 if place else None, folder, "{}", now, now,
                )  # fmt: skip
                if files or number == 0:
                    (snapshots / folder / "fs").mkdir(parents=True)
            top = snapshot
            snapshot += 1
            add(
                "snapshots", snapshot, "default", "overlayfs", f"view-{number}", "view", top, None,
                '{"containerd.io/gc.root":"x"}', now, now,
            )  # fmt: skip
            add("gc_labels", snapshot * 4 + 1, "root", "default", "", "x")
            snapshot += 1
            folder = f"{snapshot:016x}"
            add("layers", folder, "overlayfs", None, None, 0, 1, 0, now, "", 1)
            add(
                "snapshots", snapshot, "default", "overlayfs", f"active-{number}", "active", top, folder,
                "{}", now, now,
            )  # fmt: skip
            if files or number == 0:
                (snapshots / folder / "fs").mkdir(parents=True)
                (snapshots / folder / "work").mkdir(parents=True)
            manifest = digest_of(image.manifest)
            name = f"docker.io/library/image-{number}:latest"
            add(
                "images", number + 1, "default", name, oci.OCI_MANIFEST, manifest, len(image.manifest), "{}",
                "{}", PLATFORM, 7000, now, now,
            )  # fmt: skip
            if number % 10 == 0:
                add(
                    "containers", number + 1, "default", container_id(number), f"box-{number}", name, "overlayfs",
                    f"active-{number}", "lamella", SPEC, "{}", "{}", now, now,
                )  # fmt: skip
                add("leases", number + 1, "default", f"lease-{number}", "{}", now, None)
                add("lease_resources", number + 1, "content", manifest)
            if number == 0:
                parent = image.chain[-1]
            if number % 10_000 == 9_999:
                bulk.write(rows)
        assert first
        bulk.write(rows)
    return parent


class Bulk:
    """The database without its triggers and indexes, which are made anew at the end: 20 times as fast."""

    def __init__(self, path: Path) -> None:
        self._db = apsw.Connection(str(path))
        self._db.execute(
            "PRAGMA synchronous = OFF; PRAGMA foreign_keys = OFF; PRAGMA cache_size = -1048576"
        ).fetchall()
        self._made = self._db.execute(
            "SELECT type, name, sql FROM sqlite_master WHERE type IN ('index', 'trigger') AND sql IS NOT NULL"
        ).fetchall()

    def __enter__(self) -> Bulk:
        self._db.execute("BEGIN IMMEDIATE")
        for kind, name, _ in self._made:
            self._db.execute(f"DROP {kind} {name}")
        return self

    def __exit__(self, *_: object) -> None:
        for _, _, sql in self._made:
            self._db.execute(str(sql))
        self._db.execute("COMMIT")
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        self._db.close()

    def insert(self, table: str, rows: Iterable[tuple[Any, ...]]) -> None:
        """Insert whole rows."""
        columns = self._db.execute(f"SELECT count(*) FROM pragma_table_info('{table}')").fetchone()
        assert columns is not None
        self._db.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * int(columns[0]))})", rows)

    def write(self, rows: dict[str, list[tuple[Any, ...]]]) -> None:
        """Insert the rows of several tables, and forget them."""
        for table, values in rows.items():
            self.insert(table, values)
        rows.clear()


# Measuring

Row = tuple[str, Callable[[Built], object], bool]


def prepare(built: Built) -> None:
    """Make a snapshot on an image, ask for its mounts, remove it."""
    snapshots = built.client.snapshots
    snapshots.prepare("work", parent=built.parent)
    snapshots.mounts("work")
    snapshots.remove("work")


def open_and_close(built: Built) -> None:
    """Open the store as a process does that is started for one command."""
    config = built.client.config
    with lamella.Client(config.root, config.state) as client:
        client.namespaces.list()


def refused(built: Built) -> None:
    """Try to delete a namespace that has something in it."""
    try:
        built.client.namespaces.delete("default")
    except lamella.errors.FailedPrecondition:
        return
    raise AssertionError


GC_ALL, GC_WAIT = "gc of everything", "  a writer's longest wait meanwhile"
ROWS: list[Row] = [
    ("open, list namespaces, close", open_and_close, False),
    ("prepare, mounts, remove", prepare, False),
    ("images.get", lambda built: built.client.images.get("image-0"), False),
    ("images ls", lambda built: built.cli("images", "ls"), False),
    ("images inspect", lambda built: built.cli("images", "inspect", "image-0"), True),
    ("content ls", lambda built: built.cli("content", "ls"), False),
    (
        "content ls --filter",
        lambda built: built.cli("content", "ls", "--filter", 'labels."containerd.io/gc.ref.content.config"'),
        False,
    ),
    ("snapshots ls", lambda built: built.cli("snapshots", "ls"), False),
    ("snapshots tree", lambda built: built.cli("snapshots", "tree"), True),
    ("leases ls", lambda built: built.cli("leases", "ls"), False),
    ("containers ls -a", lambda built: built.cli("containers", "ls", "-a"), False),
    ("namespaces rm (refused)", refused, False),
    ("du", lambda built: built.client.du(), False),
    ("gc with nothing to do", lambda built: collect(built.client.database, built.client.config), False),
    ("gc --dry-run", lambda built: built.client.gc(dry_run=True), False),
    ("fsck", lambda built: built.client.fsck(), True),
]

WRITER = """
import select, sys, time
import lamella
longest, count = 0.0, 0
with lamella.Client(sys.argv[1], sys.argv[2]) as client:
    print("ready", flush=True)
    while not select.select([sys.stdin], [], [], 0.001)[0]:
        started = time.perf_counter()
        client.leases.delete(client.leases.create("writer").id)
        longest, count = max(longest, (time.perf_counter() - started) / 2), count + 1
print(longest, count)
"""


class Collected(NamedTuple):
    """A collection of everything, and what it was like for somebody who wrote meanwhile."""

    seconds: float
    longest_wait: float
    """Seconds of the writer's longest transaction."""


def collect_everything(built: Built) -> Collected:
    """Remove all images and what stands on them, and collect while another process writes."""
    client = built.client
    with client.database.write() as db:
        for table in ("images", "leases", "containers"):
            db.execute(f"DELETE FROM {table}")
        db.execute("DELETE FROM snapshots WHERE kind <> 'committed'")
    place = [str(client.config.root), str(client.config.state)]
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, *place], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdin is not None and writer.stdout is not None
        writer.stdout.readline()
        started = time.perf_counter()
        report = collect(client.database, client.config)
        seconds = time.perf_counter() - started
        writer.stdin.close()
        longest, _ = map(float, writer.stdout.read().split())
    if report.blobs != built.count * (LAYERS + 2):
        raise SystemExit(f"the collection is not whole: {report}")
    return Collected(seconds, longest)


def seconds_of(action: Callable[[], object]) -> float:
    """Measure until it took long enough, at most 100 times; the least, since what else the machine does only adds."""
    times: list[float] = []
    while not times or (sum(times) < ENOUGH_SECONDS and len(times) < 100):
        started = time.process_time()
        action()
        times.append(time.process_time() - started)
    return min(times)


def measure(size: int, folder: Path, wanted: list[str]) -> Iterator[tuple[str, float | None]]:
    """Build a store of a size and give the seconds of each row; None for what cannot be measured at that size."""
    files = size <= FILES_MAX
    with lamella.Client(folder / "root", folder / "state") as client:
        started = time.perf_counter()
        parent = fill(client, size, files=files)
        yield "(building it here)", time.perf_counter() - started
        built = Built(client, size, files, parent)
        for name, action, reads_files in ROWS:
            if wanted and not any(word in name for word in wanted):
                continue
            yield name, None if reads_files and not files else seconds_of(lambda: action(built))  # noqa: B023
        if not wanted or any(word in GC_ALL for word in wanted):
            collected = collect_everything(built) if files else None
            yield GC_ALL, collected and collected.seconds
            yield GC_WAIT, collected and collected.longest_wait


def shown(seconds: float | None) -> str:
    """Give a time in the unit that fits."""
    if seconds is None:
        return "-"
    if seconds < 0.0995:
        return f"{seconds * 1000:.2g} ms" if seconds < 0.00995 else f"{seconds * 1000:.0f} ms"
    return f"{seconds:.2g} s" if seconds < 9.95 else f"{seconds:.0f} s"


def main() -> None:
    """Measure every size and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, metavar="IMAGES")
    parser.add_argument(
        "--folder", type=Path, help="where the stores are made (default: /dev/shm, or a temporary folder)"
    )
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="WORD", help="only rows with one of these words"
    )
    arguments = parser.parse_args()
    in_memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    table: dict[str, list[str]] = {}
    for size in arguments.sizes:
        folder = Path(tempfile.mkdtemp(prefix="lamella-scale-", dir=arguments.folder or in_memory))
        try:
            for name, seconds in measure(size, folder, arguments.only):
                table.setdefault(name, []).append(shown(seconds))
                print(f"{size:>7}  {name:<36} {shown(seconds)}", file=sys.stderr, flush=True)
        finally:
            shutil.rmtree(folder)
    lines = [
        ["images", *(f"{size:,}" for size in arguments.sizes)],
        *([name, *row] for name, row in table.items()),
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    bar = "|" if arguments.markdown else ""
    for number, line in enumerate(lines):
        cells = [
            line[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)),
        ]
        print(f"{bar} {f' {bar} '.join(cells)} {bar}".strip() if bar else "  ".join(cells))
        if bar and not number:
            print("|" + "|".join(["---", *["---:"] * len(arguments.sizes)]) + "|")


if __name__ == "__main__":
    main()
