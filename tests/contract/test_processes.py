"""One store and many processes: work is done once, nothing in use is lost, the dead are taken over from."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import workers

from lamella.digest import digest_of
from stores import Store

HERE = Path(__file__).parent


class Processes:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.all: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, *arguments: float) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(HERE / "workers.py"), str(self.root), name, *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), *sys.path])}
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
        self.all.append(process)
        return process

    def join(self) -> None:
        said = [process.communicate(timeout=120)[1].decode() for process in self.all]
        assert [process.returncode for process in self.all] == [0] * len(self.all), "\n".join(said)


@pytest.fixture
def processes(store: Store) -> Iterator[Processes]:
    running = Processes(store.root)
    yield running
    for process in running.all:
        process.kill()
        process.communicate()


def lines(store: Store, name: str) -> int:
    return len((store.root.parent / name).read_text().splitlines())


def test_each_blob_is_downloaded_once_and_each_layer_unpacked_once(store, processes):
    for seed in range(4):
        processes.start("download_all", seed)
    processes.join()
    for number in range(len(workers.BLOBS)):
        assert lines(store, f"downloads-{number}") == 1
        assert lines(store, f"unpacks-{number}") == 1
    assert len(list(store.content.walk())) == len(workers.BLOBS)
    store.check(clean=True)
    assert list(store.root.glob("locks/*")) == []


def test_who_waits_takes_over_from_one_that_is_killed(store, processes):
    dying = processes.start("die_while_writing")
    deadline = time.monotonic() + 60
    while not (store.root.parent / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    data, digest = workers.BLOBS[0], digest_of(workers.BLOBS[0])
    assert store.content.status("blob-0").offset == 2000
    os.kill(dying.pid, signal.SIGKILL)
    with store.content.writer("blob-0", size=len(data), digest=digest, wait=True) as ingest:
        assert ingest.offset == 2000
        ingest.write(data[2000:])
        ingest.commit()
    with store.layers.stage("overlayfs", digest):
        assert store.layers.find("overlayfs", digest) is None
    dying.wait()
    assert store.gc(dry_run=True).orphans == 1
    store.content.update_labels(digest, {"containerd.io/gc.root": "x"})
    store.gc()
    assert store.content.read(digest) == data
    store.check(clean=True)


def test_collecting_while_others_pull_and_run_loses_nothing_in_use(store, processes):
    for seed in range(3):
        processes.start("pull_and_run", seed, 4.0)
    processes.start("collect", 4.0)
    processes.join()
    assert lines(store, "rounds") == 3
    store.gc(ingest_seconds=0)
    store.check(clean=True)
    assert list(store.content.walk()) == []


def test_a_fight_for_keys_leaves_a_consistent_store(store, processes):
    for seed in range(4):
        processes.start("fight_for_keys", seed, 150)
    processes.join()
    names = [info.name for info in store.snapshots.walk()]
    assert set(names) <= set(workers.KEYS)
    store.check(clean=True)
    for info in reversed(list(store.snapshots.walk())):
        store.snapshots.remove(info.name)
    assert store.layer_folders() == set()
