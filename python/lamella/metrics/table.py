"""The table of what is counted: names, meanings, label values, buckets. Everything else follows from it.

Each row is a counter or a histogram, and has cells in the file that all processes share (:mod:`lamella.metrics`): a counter one
for each combination of its label values; a histogram, for each, one a bucket, one for what lies above the last, and one for the
sum, in billionths of the unit. Rows come in the order of the file, whose name changes with the table.

Names follow Prometheus' rules: base units, ``_total`` for what only grows. Labels have few values, all of them known here: no
image, container or registry is ever one, for each combination costs a time series for good.
"""

from __future__ import annotations

from itertools import product
from math import prod

from lamella import errors
from lamella.digest import digest_of, split_digest
from lamella.lazy import cached_property

NANO = 1_000_000_000


class Counter:
    """A row whose values only grow. With ``sparse``, combinations that never came up are not shown."""

    type = "counter"

    def __init__(self, name: str, help: str, *, sparse: bool = False, **labels: tuple[str, ...]) -> None:
        self.name, self.help, self.sparse = name, help, sparse
        self.labels, self.values = tuple(labels), tuple(labels.values())
        self.size = prod(map(len, self.values))
        self.first = 0
        """Its first cell, once the table is there."""

    @cached_property
    def cells(self) -> dict[tuple[str, ...], int]:
        """The cell of each combination of label values; made when it is asked for, as most of them never are by a process."""
        return {values: self.first + at for at, values in enumerate(product(*self.values))}

    def cell(self, *values: str) -> int:
        """Give the index of the cell of some label values."""
        return self.cells[values]


class Series:
    """One histogram: its first cell and the upper bounds of its buckets, which are included in them."""

    __slots__ = ("bounds", "first")

    def __init__(self, first: int, bounds: tuple[float, ...]) -> None:
        self.first, self.bounds = first, bounds

    def bucket(self, value: float) -> int:
        """Give the cell of the bucket that a value falls into."""
        cell = self.first
        for bound in self.bounds:  # as quick as bisect for a dozen, without its import
            if value <= bound:
                break
            cell += 1
        return cell

    @property
    def total(self) -> int:
        """The cell of the sum."""
        return self.first + len(self.bounds) + 1


class Histogram:
    """A row of distributions of durations in seconds. ``sparse`` as for a counter."""

    type = "histogram"

    def __init__(
        self,
        name: str,
        help: str,
        bounds: tuple[float, ...],
        *,
        sparse: bool = False,
        **labels: tuple[str, ...],
    ) -> None:
        self.name, self.help, self.bounds, self.sparse = name, help, bounds, sparse
        self.labels, self.values = tuple(labels), tuple(labels.values())
        self._each = len(bounds) + 2
        self.size = self._each * prod(map(len, self.values))
        self.first = 0
        """Its first cell, once the table is there."""

    @cached_property
    def cells(self) -> dict[tuple[str, ...], Series]:
        """The histogram of each combination of label values."""
        combinations = enumerate(product(*self.values))
        return {values: Series(self.first + at * self._each, self.bounds) for at, values in combinations}

    def series(self, *values: str) -> Series:
        """Give the histogram of some label values."""
        return self.cells[values]


_TRANSFER = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_STARTS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_ROWS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0)
_WAITS = (0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 30.0, 60.0, 300.0)
_SWEEPS = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0)
_CALLS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0, 300.0)

_ENDS = ("ok", "error")
OPERATIONS = (
    *("pull", "push", "copy", "import", "export", "convert", "unpack"),
    *("prepare", "view", "commit", "remove", "start", "exec", "gc"),
)
KINDS = tuple(name for name in errors.__all__ if name != "LamellaError")
CODES = (
    *("OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS"),
    *(
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
    ),
    *("INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"),
)
"""gRPC's status codes, by their numbers."""
_SERVICES = {
    "containerd.services.containers.v1.Containers": "Get List ListStream Create Update Delete",
    "containerd.services.content.v1.Content": "Info Update List Delete Read Status ListStatuses Write Abort",
    "containerd.services.diff.v1.Diff": "Apply Diff",
    "containerd.services.events.v1.Events": "Publish Forward Subscribe",
    "containerd.services.images.v1.Images": "Get List Create Update Delete",
    "containerd.services.introspection.v1.Introspection": "Plugins Server PluginInfo",
    "containerd.services.leases.v1.Leases": "Create Delete List AddResource DeleteResource ListResources",
    "containerd.services.namespaces.v1.Namespaces": "Get List Create Update Delete",
    "containerd.services.sandbox.v1.Store": "Create Update Delete List Get",
    "containerd.services.snapshots.v1.Snapshots": "Prepare View Mounts Commit Remove Stat Update List Usage Cleanup",
    "containerd.services.streaming.v1.Streaming": "Stream",
    "containerd.services.tasks.v1.Tasks": "Create Start Delete DeleteProcess Get List Kill Exec ResizePty CloseIO Pause Resume"
    " ListPids Update Metrics Wait",
    "containerd.services.transfer.v1.Transfer": "Transfer",
    "containerd.services.version.v1.Version": "Version",
    "grpc.health.v1.Health": "Check List Watch",
    "grpc.reflection.v1.ServerReflection": "ServerReflectionInfo",
    "grpc.reflection.v1alpha.ServerReflection": "ServerReflectionInfo",
}
RPCS = tuple(f"{service}/{name}" for service, names in _SERVICES.items() for name in names.split())
"""What ``lamella serve`` has methods for; its own table says the same, which takes protobuf to read."""
REMOVED = ("leases", "images", "content", "blobs", "snapshots", "layers", "ingests", "orphans")

PULLS = Counter(
    "lamella_pulls_total",
    "Pulls by how they ended. pulled: something was missing; present: everything was here; waited: another pull was bringing it.",
    result=("pulled", "present", "waited", "error"),
)
PULL_SECONDS = Histogram(
    "lamella_pull_duration_seconds",
    "Duration of the pulls that did not fail.",
    _TRANSFER,
    result=("pulled", "present", "waited"),
)
DOWNLOADED = Counter("lamella_downloaded_bytes_total", "Bytes of layers that came from registries.")
BLOBS = Counter(
    "lamella_blob_requests_total",
    "Blobs of layers that pulls needed. hit: it was in the store; miss: it came from the registry; waited: another pull was"
    " fetching it.",
    result=("hit", "miss", "waited"),
)
LAYERS = Counter(
    "lamella_layer_requests_total",
    "Unpacked layers that pulls needed. shared: it was here; unpacked: it was not; waited: another pull was unpacking it.",
    result=("shared", "unpacked", "waited"),
)
LAYER_SECONDS = Histogram(
    "lamella_layer_duration_seconds",
    "Time from a layer's turn in a pull until its blob and folder were here, also when both were already.",
    _TRANSFER,
)
UNPACKED = Counter(
    "lamella_unpacked_bytes_total", "Bytes of layers as uncompressed archives that were unpacked."
)
SNAPSHOTS = Counter(
    "lamella_snapshot_operations_total",
    "Operations on snapshots that succeeded. mounts: the mounts of a snapshot were asked for.",
    operation=("prepare", "view", "commit", "mounts", "remove"),
)
PREPARE_SECONDS = Histogram(
    "lamella_snapshot_prepare_duration_seconds", "Time to make a snapshot.", _ROWS, kind=("active", "view")
)
STARTS = Counter("lamella_container_starts_total", "Starts of containers.", result=_ENDS)
START_SECONDS = Histogram(
    "lamella_container_start_duration_seconds",
    "Time to start a container: from the call until its program runs.",
    _STARTS,
)
EXECS = Counter("lamella_execs_total", "Commands that were added to running containers.", result=_ENDS)
EXEC_SECONDS = Histogram(
    "lamella_exec_start_duration_seconds",
    "Time to start a command in a running container: from the call until it runs.",
    _STARTS,
)
GC_RUNS = Counter("lamella_gc_runs_total", "Garbage collections, without dry runs.", result=_ENDS)
GC_SECONDS = Histogram("lamella_gc_duration_seconds", "Duration of garbage collections.", _SWEEPS)
GC_PAUSE = Histogram(
    "lamella_gc_pause_seconds",
    "How long one transaction of a garbage collection kept other writers waiting.",
    _ROWS,
)
GC_REMOVED = Counter("lamella_gc_removed_total", "What garbage collections removed.", kind=REMOVED)
GC_FREED = Counter("lamella_gc_freed_bytes_total", "Bytes on disk that garbage collections freed.")
TRANSACTION = Histogram(
    "lamella_transaction_duration_seconds",
    "How long one transaction, of anything but a garbage collection, kept other writers waiting.",
    _ROWS,
)
LOCK_WAIT = Histogram(
    "lamella_lock_wait_seconds",
    "How long those waited who found a lock taken. database: another wrote; image, ingest, layer: another pulled the image,"
    " fetched the blob, unpacked the layer; gc: another collected.",
    _WAITS,
    lock=("database", "image", "ingest", "layer", "gc"),
)
REQUESTS = Counter(
    "lamella_registry_requests_total",
    "Requests that the registry over the store answered, by the class of the status.",
    status=("2xx", "3xx", "4xx", "5xx"),
)
SERVED = Counter(
    "lamella_registry_served_bytes_total", "Bytes of blobs that the registry over the store sent."
)
RECEIVED = Counter(
    "lamella_registry_received_bytes_total", "Bytes of blobs that were pushed to the registry over the store."
)
CALLS = Counter(
    "lamella_serve_requests_total",
    "Calls that lamella serve answered, by gRPC's status codes; what never came up is not shown.",
    sparse=True,
    method=RPCS,
    code=CODES,
)
CALL_SECONDS = Histogram(
    "lamella_serve_request_duration_seconds",
    "Duration of the calls that lamella serve answered, from their headers to the end of the answer.",
    _CALLS,
    sparse=True,
    method=RPCS,
)
ERRORS = Counter(
    "lamella_errors_total",
    "Operations that raised an error, by the class of lamella.errors; what never came up is not shown.",
    sparse=True,
    operation=OPERATIONS,
    kind=KINDS,
)

TABLE: tuple[Counter | Histogram, ...] = (
    PULLS,
    PULL_SECONDS,
    DOWNLOADED,
    BLOBS,
    LAYERS,
    LAYER_SECONDS,
    UNPACKED,
    SNAPSHOTS,
    PREPARE_SECONDS,
    STARTS,
    START_SECONDS,
    EXECS,
    EXEC_SECONDS,
    GC_RUNS,
    GC_SECONDS,
    GC_PAUSE,
    GC_REMOVED,
    GC_FREED,
    TRANSACTION,
    LOCK_WAIT,
    REQUESTS,
    SERVED,
    RECEIVED,
    CALLS,
    CALL_SECONDS,
    ERRORS,
)  # fmt: skip


def _place() -> int:
    start = 0
    for row in TABLE:
        row.first = start
        start += row.size
    return start


SIZE = _place()
"""Cells of the whole table."""


def layout() -> str:
    """Give a short name for what the cells mean: another table, another name."""
    rows = [(row.name, row.labels, row.values, getattr(row, "bounds", ())) for row in TABLE]
    return split_digest(digest_of(repr(rows).encode()))[1][:16]


def kind_of(error: BaseException) -> str:
    """Give the class of lamella.errors that an error is counted as."""
    for each in type(error).__mro__:
        if each.__name__ in KINDS and each.__module__ == errors.__name__:
            return each.__name__
    return "Cancelled" if isinstance(error, KeyboardInterrupt) else "Internal"
