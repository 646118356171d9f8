"""What it costs to count, and to read what was counted. They print and never judge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import lamella
from lamella.metrics import Recorder, exposition, table
from lamella.operations import Operation, when_ok

pytestmark = pytest.mark.benchmark(warmup=False)
_NOTHING = Operation(
    "prepare",
    "prepared",
    log="lamella.snapshots",
    counts={"ok": table.SNAPSHOTS.cell("prepare")},
    durations=when_ok(table.PREPARE_SECONDS, "active"),
)


def test_add_to_a_counter(benchmark: Any, tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "state")
    recorder.add(0)
    benchmark(recorder.add, 0)


def test_put_a_duration_into_a_histogram(benchmark: Any, tmp_path: Path) -> None:
    recorder, series = Recorder(tmp_path / "state"), table.LOCK_WAIT.series("gc")
    benchmark(recorder.observe, series, 0.25)


def test_watch_an_operation_that_nobody_traces(benchmark: Any, tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "state")

    def operation() -> None:
        with _NOTHING(recorder, snapshot="key"):
            pass

    benchmark(operation)


def test_the_first_count_of_a_process(benchmark: Any, tmp_path: Path) -> None:
    benchmark(lambda: Recorder(tmp_path / "state").add(0))


def test_scrape_a_small_store(benchmark: Any, tmp_path: Path) -> None:
    with lamella.Client(root=tmp_path / "root", state=tmp_path / "state") as client:
        client.snapshots.prepare("key")
        benchmark(exposition, client)
