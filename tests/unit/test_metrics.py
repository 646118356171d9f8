"""Metrics: what many processes count comes together, whatever happens to them, and Prometheus understands it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import prometheus_client
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

import lamella
from lamella import errors, metrics
from lamella.digest import digest_of
from lamella.metrics import Collector, Recorder, exposition, table

ADD = """
import sys
from pathlib import Path
from lamella.metrics import recorder, table
found = recorder(Path(sys.argv[1]))
for number in range(int(sys.argv[2])):
    found.add(table.DOWNLOADED.cell(), 3)
    found.observe(table.LOCK_WAIT.series("gc"), 0.25)
    if number % 1000 == 999:
        print(number + 1, flush=True)
"""


def adder(state: Path, count: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", ADD, str(state), str(count)], stdout=subprocess.PIPE, text=True
    )


def downloaded(state: Path) -> int:
    return Recorder(state).values()[table.DOWNLOADED.cell()]


def sample(client: lamella.Client, name: str, **labels: str):
    metric = next(metric for metric in client.metrics() if metric.name == name)
    return next(each for each in metric.samples if each.labels == labels)


def test_what_many_processes_add_is_summed_exactly(tmp_path):
    processes = [adder(tmp_path / "state", 20_000) for _ in range(6)]
    for process in processes:
        process.communicate(timeout=120)
    assert [process.returncode for process in processes] == [0] * 6
    values = Recorder(tmp_path / "state").values()
    wait = table.LOCK_WAIT.series("gc")
    assert values[table.DOWNLOADED.cell()] == 6 * 20_000 * 3
    assert values[wait.bucket(0.25)] == 6 * 20_000
    assert values[wait.total] == 6 * 20_000 * 250_000_000
    assert sum(values) == values[table.DOWNLOADED.cell()] + values[wait.bucket(0.25)] + values[wait.total]


def test_what_threads_add_is_summed_exactly_from_the_first_count_on(tmp_path):
    recorder = Recorder(tmp_path / "no" / "such")
    start = threading.Barrier(8)

    def work() -> None:
        start.wait()
        for _ in range(5000):
            recorder.add(table.DOWNLOADED.cell())

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert recorder.values()[table.DOWNLOADED.cell()] == 40_000


def test_a_kill_loses_nothing_that_was_counted(tmp_path):
    process = adder(tmp_path / "state", 100_000_000)
    assert process.stdout is not None
    said = [int(process.stdout.readline()) for _ in range(20)]
    process.send_signal(signal.SIGKILL)
    rest = process.communicate(timeout=60)[0].split()
    assert downloaded(tmp_path / "state") >= 3 * int(rest[-1] if rest else said[-1])
    before = downloaded(tmp_path / "state")
    adder(tmp_path / "state", 5).communicate(timeout=60)
    assert downloaded(tmp_path / "state") == before + 15


def test_a_forked_child_goes_on_counting(tmp_path):
    recorder = metrics.recorder(tmp_path / "state")
    recorder.add(table.DOWNLOADED.cell(), 1)
    child = os.fork()
    if child == 0:
        metrics.recorder(tmp_path / "state").add(table.DOWNLOADED.cell(), 2)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert recorder.values()[table.DOWNLOADED.cell()] == 3


def test_a_process_with_many_stores_keeps_few_files_mapped(tmp_path):
    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count(str(tmp_path))

    first = metrics.recorder(tmp_path / "0")
    for number in range(3 * metrics.RECORDERS_MAX):
        metrics.recorder(tmp_path / str(number)).add(table.DOWNLOADED.cell())
    first.add(table.DOWNLOADED.cell())  # whoever has it goes on
    metrics.recorder(tmp_path / "0").add(table.DOWNLOADED.cell())
    assert mapped() <= metrics.RECORDERS_MAX + 1
    assert downloaded(tmp_path / "0") == 3
    assert downloaded(tmp_path / "1") == 1


def test_the_file_is_private_and_the_state_folder_as_tasks_make_it(tmp_path):
    Recorder(tmp_path / "state").add(0)
    (file,) = (tmp_path / "state").iterdir()
    assert file.name == f"metrics-{table.layout()}"
    assert file.stat().st_mode & 0o7777 == 0o600
    assert (tmp_path / "state").stat().st_mode & 0o7777 == 0o711


def test_another_table_gets_a_file_of_its_own(tmp_path, monkeypatch):
    Recorder(tmp_path / "state").add(table.DOWNLOADED.cell(), 7)
    old = table.layout()
    monkeypatch.setattr(table, "TABLE", table.TABLE[1:])
    assert table.layout() != old
    recorder = Recorder(tmp_path / "state")
    assert not any(recorder.values())
    assert len(list((tmp_path / "state").iterdir())) == 2
    monkeypatch.undo()
    assert downloaded(tmp_path / "state") == 7


def test_the_name_of_the_file_changes_with_every_part_of_the_table(monkeypatch):
    names = {table.layout()}
    for changed in (
        table.Counter("lamella_pulls_total", "", result=("pulled", "present")),
        table.Counter("lamella_pulls_total", "", result=("pulled", "error", "present", "waited")),
        table.Counter("lamella_pulls_total", "", end=("pulled", "present", "waited", "error")),
        table.Counter("lamella_pull_total", "", result=("pulled", "present", "error")),
        table.Histogram("lamella_pulls_total", "", (1.0,), result=("pulled", "present", "error")),
        table.Histogram("lamella_pulls_total", "", (2.0,), result=("pulled", "present", "error")),
    ):
        monkeypatch.setattr(table, "TABLE", (changed, *table.TABLE[1:]))
        names.add(table.layout())
        monkeypatch.undo()
    assert len(names) == 7


@pytest.mark.parametrize("spoil", ["folder is a file", "another length", "not ours", "everybody may write"])
def test_where_the_file_cannot_be_shared_a_process_counts_for_itself(tmp_path, spoil):
    state = tmp_path / "state"
    if spoil == "folder is a file":
        state.write_text("")
        state /= "below"
    else:
        state.mkdir()
        file = state / f"metrics-{table.layout()}"
        if spoil == "another length":
            file.write_bytes(bytes(table.SIZE * 8 + 1))
        elif spoil == "everybody may write":
            state.chmod(0o777)
        elif os.geteuid() == 0:
            file.write_bytes(bytes(table.SIZE * 8))
            os.chown(file, 12345, -1)
        else:
            pytest.skip("needs root")
    with lamella.Client(root=tmp_path / "root", state=state) as client:
        client.snapshots.prepare("key")
        recorder = metrics.recorder(state)
        recorder.add(table.DOWNLOADED.cell(), 4)
        assert sample(client, "lamella_downloaded_bytes_total").value == 4
        assert recorder.problem


def test_the_table_follows_the_rules_for_names():
    names = [row.name for row in table.TABLE]
    assert len(set(names)) == len(names)
    for row in table.TABLE:
        assert re.fullmatch(r"lamella_[a-z_]+", row.name)
        assert row.name.endswith("_total") == isinstance(row, table.Counter)
        assert row.help.endswith(".")
        if isinstance(row, table.Histogram):
            assert row.name.endswith("_seconds")
            assert list(row.bounds) == sorted(set(row.bounds))
    cells = [
        cell
        for row in table.TABLE
        for each in row.cells.values()
        for cell in ([each] if isinstance(each, int) else range(each.first, each.total + 1))
    ]
    assert cells == list(range(table.SIZE))


def test_every_class_of_errors_has_a_kind():
    class Unverified(errors.FailedPrecondition):
        pass

    assert table.kind_of(errors.NotFound("x")) == "NotFound"
    assert table.kind_of(errors.CommandNotFound("x")) == "CommandNotFound"
    assert table.kind_of(Unverified("x")) == "FailedPrecondition"
    assert table.kind_of(KeyboardInterrupt()) == "Cancelled"
    assert table.kind_of(KeyError("x")) == "Internal"
    assert "Unauthenticated" in table.KINDS


@settings(max_examples=60)
@given(
    values=st.lists(
        st.one_of(st.floats(0, 1000), st.sampled_from(table.LOCK_WAIT.bounds), st.just(0.0)), max_size=40
    )
)
def test_a_histogram_is_the_one_that_prometheus_client_would_have(tmp_path_factory, values):
    folder = tmp_path_factory.mktemp("histogram")
    recorder = metrics.recorder(folder / "state")
    oracle = prometheus_client.Histogram(
        "lamella_lock_wait_seconds",
        "",
        ["lock"],
        buckets=table.LOCK_WAIT.bounds,
        registry=(theirs := prometheus_client.CollectorRegistry()),
    )
    for value in values:
        recorder.observe(table.LOCK_WAIT.series("layer"), value)
        oracle.labels(lock="layer").observe(value)
    ours = prometheus_client.CollectorRegistry()
    with lamella.Client(root=folder / "root", state=folder / "state") as client:
        ours.register(Collector(client))
    for suffix in ("_count", *(f"_bucket {le}" for le in (*map(str, table.LOCK_WAIT.bounds), "+Inf"))):
        name, _, le = suffix.partition(" ")
        labels = {"lock": "layer"} | ({"le": le} if le else {})
        expected = theirs.get_sample_value(f"lamella_lock_wait_seconds{name}", labels) or 0.0
        assert ours.get_sample_value(f"lamella_lock_wait_seconds{name}", labels) == expected
    total = ours.get_sample_value("lamella_lock_wait_seconds_sum", {"lock": "layer"})
    assert total == pytest.approx(sum(values), abs=1e-6)


def test_the_text_parses_and_says_what_the_data_says(client):
    client.snapshots.prepare("key")
    metrics.recorder(client.config.state).add(table.ERRORS.cell("pull", "Unavailable"), 2)
    found = client.metrics()
    families = {family.name: family for family in text_string_to_metric_families(exposition(client))}
    assert len(families) == len(found)
    for metric in found:
        family = families[metric.name.removesuffix("_total")]
        assert (family.type, family.documentation) == (metric.type, metric.help)
        values = {
            tuple(sorted(each.labels.items())): each.value
            for each in family.samples
            if each.name == metric.name
        }
        if (
            metric.type != "histogram" and metric.name != "lamella_store_bytes"
        ):  # the log of the database grows
            assert values == {tuple(sorted(each.labels.items())): each.value for each in metric.samples}
    failures = families["lamella_errors"].samples
    assert [(each.labels, each.value) for each in failures] == [
        ({"operation": "pull", "kind": "Unavailable"}, 2.0)
    ]


def test_a_registry_takes_the_collector_once_and_reads_anew_at_each_scrape(client):
    mine = prometheus_client.CollectorRegistry(auto_describe=True)
    other = prometheus_client.CollectorRegistry()
    prometheus_client.Counter("embedders_own", "Something else.", registry=mine).inc()
    mine.register(Collector(client))
    other.register(Collector(client))
    with pytest.raises(ValueError, match="Duplicated"):
        mine.register(Collector(client))
    active = {"namespace": "default", "kind": "active"}
    for count in range(1, 4):
        client.snapshots.prepare(f"key-{count}")
        assert mine.get_sample_value("lamella_snapshots", active) == count
        assert other.get_sample_value("lamella_snapshots", active) == count
    assert mine.get_sample_value("embedders_own_total") == 1


def test_the_collector_outlives_its_client_and_a_fork(client):
    client.snapshots.prepare("key")
    registry = prometheus_client.CollectorRegistry()
    registry.register(Collector(client))
    client.close()
    labels = {"namespace": "default", "kind": "active"}
    assert registry.get_sample_value("lamella_snapshots", labels) == 1
    child = os.fork()
    if child == 0:
        os._exit(0 if registry.get_sample_value("lamella_snapshots", labels) == 1 else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_gauges_are_of_all_namespaces(client, tmp_path):
    client.snapshots.prepare("key")
    client.leases.create("mine")
    client.content.write("ref", b"12345", digest=digest_of(b"12345"), size=5)
    client.content.writer("unfinished").close()
    with lamella.Client(root=tmp_path / "root", state=tmp_path / "state", namespace="other") as other:
        other.content.write("ref", b"12345", digest=digest_of(b"12345"), size=5)
        other.snapshots.view("look")
    assert sample(client, "lamella_snapshots", namespace="default", kind="active").value == 1
    assert sample(client, "lamella_snapshots", namespace="default", kind="view").value == 0
    assert sample(client, "lamella_snapshots", namespace="other", kind="view").value == 1
    assert sample(client, "lamella_leases", namespace="default").value == 1
    assert sample(client, "lamella_leases", namespace="other").value == 0
    assert sample(client, "lamella_images", namespace="default").value == 0
    assert sample(client, "lamella_blobs").value == 1
    assert sample(client, "lamella_store_bytes", kind="blobs").value == 5
    assert sample(client, "lamella_store_bytes", kind="metadata").value > 0
    assert sample(client, "lamella_ingests").value == 1


def waits(client, lock):
    return sample(client, "lamella_lock_wait_seconds", lock=lock).count


def test_waits_for_another_process_that_writes_are_counted(client):
    with lamella.Client(root=client.config.root, state=client.config.state) as other:
        thread = threading.Thread(target=other.snapshots.prepare, args=("waits",))
        with client.database.write():
            assert waits(client, "database") == 0
            thread.start()
            while not other.database._waiting_since:
                time.sleep(0.001)
        thread.join()
        assert waits(client, "database") == 1
        client.snapshots.prepare("does-not-wait")
        assert waits(client, "database") == 1


def test_waits_for_another_thread_that_writes_are_counted(client, monkeypatch):
    taken = threading.Event()

    class Watched:
        lock = client.database._lock

        def acquire(self, blocking: bool = True) -> bool:
            got = self.lock.acquire(blocking)
            if not got:
                taken.set()
            return got

        def release(self) -> None:
            self.lock.release()

    monkeypatch.setattr(client.database, "_lock", Watched())
    thread = threading.Thread(target=client.snapshots.prepare, args=("waits",))
    with client.database.write():
        thread.start()
        assert taken.wait(60)
    thread.join()
    assert waits(client, "database") == 1


def test_waits_for_an_ingest_and_a_layer_are_counted(client):
    digest = digest_of(b"12345")
    ingest = client.content.writer("ref", digest=digest, size=5)
    client.content.writer("ref", digest=digest, size=5, wait=True, waiting=ingest.close).close()
    assert waits(client, "ingest") == 1
    staging = client.layers.stage("overlayfs", digest)
    client.layers.stage("overlayfs", digest, waiting=staging.close).close()
    assert waits(client, "layer") == 1
    assert waits(client, "gc") == 0
