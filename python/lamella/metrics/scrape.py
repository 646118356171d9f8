"""Reading the metrics: the counters that all processes share, and gauges of what is in the store now.

Gauges are counted when they are asked for, over all namespaces, in one read transaction of a connection of its own, so that
neither the caller's threads nor its forks get in the way. That reads the indexes of the tables, not their rows: a store
with 100,000 images, blobs, snapshots and containers takes a tenth of a second. Whether a task runs is looked up in the state
folder for those that say so.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path

import msgspec

from lamella.config import Config
from lamella.disk import TRASH, names_in
from lamella.metadata import Database, Transaction
from lamella.metrics import recorder
from lamella.metrics.table import NANO, TABLE, Counter, Histogram
from lamella.structs import replace
from lamella.typings import Literal


class Bucket(msgspec.Struct, frozen=True):
    """How many values of a histogram were at most ``le`` seconds."""

    le: float
    count: int


class Sample(msgspec.Struct, frozen=True, omit_defaults=True):
    """One time series. A counter or gauge has a ``value``; a histogram ``count``, ``sum`` (seconds) and ``buckets``."""

    labels: dict[str, str]
    value: int | None = None
    count: int | None = None
    sum: float | None = None
    buckets: Sequence[Bucket] = ()


class Metric(msgspec.Struct, frozen=True):
    """One metric with its time series."""

    name: str
    type: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...]
    samples: list[Sample]


def read(config: Config) -> list[Metric]:
    """Return all metrics of the store and state folder of ``config``. Errors are those of opening the store."""
    values = recorder(config.state).values()
    return [*(_counted(row, values) for row in TABLE), *_gauges(config)]


def rows() -> list[Metric]:
    """Return all metrics without their time series, and without looking at a store."""
    counted = [Metric(row.name, row.type, row.help, row.labels, []) for row in TABLE]  # type: ignore[arg-type]
    return [*counted, *(Metric(name, "gauge", text, labels, []) for name, labels, text in _GAUGES)]


def _counted(row: Counter | Histogram, values: list[int]) -> Metric:
    samples = []
    for words, cell in row.cells.items():
        labels = dict(zip(row.labels, words, strict=True))
        if isinstance(cell, int):
            if values[cell] or not row.sparse:
                samples.append(Sample(labels, values[cell]))
        else:
            *counts, beyond = accumulate(values[cell.first : cell.total])
            if row.sparse and not beyond:
                continue
            buckets = [Bucket(le, count) for le, count in zip(cell.bounds, counts, strict=True)]
            samples.append(
                Sample(labels, count=beyond, sum=values[cell.total] / NANO, buckets=tuple(buckets))
            )
    return Metric(row.name, row.type, row.help, row.labels, samples)  # type: ignore[arg-type]


# Name, labels, meaning.
_GAUGES: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("lamella_images", ("namespace",), "Images in the store."),
    ("lamella_snapshots", ("namespace", "kind"), "Snapshots in the store."),
    ("lamella_containers", ("namespace",), "Containers in the store, running or not."),
    ("lamella_running_containers", ("namespace",), "Containers that run now."),
    ("lamella_leases", ("namespace",), "Leases, expired ones too until garbage collection."),
    ("lamella_blobs", (), "Blobs in the store."),
    ("lamella_unpacked_layers", (), "Layer folders in the store that were unpacked."),
    ("lamella_ingests", (), "Writes of blobs that are in progress or were left unfinished."),
    (
        "lamella_store_bytes",
        ("kind",),
        "What the store takes on disk. blobs: compressed; layers: unpacked; snapshots: committed by somebody, without what"
        " active ones hold; metadata: the database.",
    ),
)


def _gauges(config: Config) -> Iterator[Metric]:
    with Database(config) as own, own.read() as db:
        found = _counts(db)
    found["lamella_running_containers"] = _running(config)
    found["lamella_ingests"] = {(): _entries(config.root / "ingest")}
    found["lamella_store_bytes"]["metadata",] = _length(config.root / "metadata.db")
    for name, labels, text in _GAUGES:
        samples = [
            Sample(dict(zip(labels, words, strict=True)), count)
            for words, count in sorted(found[name].items())
        ]
        yield Metric(name, "gauge", text, labels, samples)


def _counts(db: Transaction) -> dict[str, dict[tuple[str, ...], int]]:
    """Count rows. A namespace that has none of a kind is there with zero."""
    namespaces = [row[0] for row in db.execute("SELECT name FROM namespaces")]
    found: dict[str, dict[tuple[str, ...], int]] = {}
    for table in ("images", "containers", "leases"):
        query = f"SELECT namespace, count(*) FROM {table} GROUP BY namespace"  # noqa: S608 (constants)
        counts = dict.fromkeys(((name,) for name in namespaces), 0)
        found[f"lamella_{table}"] = counts | {(name,): count for name, count in db.execute(query)}
    kinds = dict.fromkeys(
        ((name, kind) for name in namespaces for kind in ("active", "committed", "view")), 0
    )
    query = "SELECT namespace, kind, count(*) FROM snapshots GROUP BY namespace, kind"
    found["lamella_snapshots"] = kinds | {(name, kind): count for name, kind, count in db.execute(query)}
    blobs, blob_bytes = db.execute("SELECT count(*), coalesce(sum(size), 0) FROM blobs").fetchone()
    layers, layer_bytes, snapshot_bytes = db.execute(
        """
        SELECT count(diff_id), coalesce(sum(iif(diff_id IS NULL, 0, disk_bytes)), 0),
            coalesce(sum(iif(diff_id IS NULL, disk_bytes, 0)), 0)
        FROM layers
        """
    ).fetchone()
    found["lamella_blobs"] = {(): blobs}
    found["lamella_unpacked_layers"] = {(): layers}
    found["lamella_store_bytes"] = {
        ("blobs",): blob_bytes,
        ("layers",): layer_bytes,
        ("snapshots",): snapshot_bytes,
    }
    return found


def _running(config: Config) -> dict[tuple[str, ...], int]:
    """Count the tasks that run. A monitor writes ``pid`` when the program runs and takes it away at the end."""
    from lamella.containers.task import Task

    found: dict[tuple[str, ...], int] = {}
    for namespace in names_in(config.state / "tasks"):
        folder = config.state / "tasks" / namespace
        seen = replace(config, namespace=namespace)
        begun = (name for name in names_in(folder) if os.access(f"{folder}/{name}/pid", os.F_OK))
        found[namespace,] = sum(Task(seen, name).running() for name in begun)
    return found


def _entries(folder: Path) -> int:
    return sum(not name.startswith(TRASH) for name in names_in(folder))


def _length(path: Path) -> int:
    """Give the bytes of the database and its log."""
    length = 0
    for each in (path, Path(f"{path}-wal")):
        with suppress(FileNotFoundError):
            length += each.stat().st_size
    return length
