"""What runs while the power goes: ``workloads.py TOP CONTROL SEED NAME FIRST SECOND [WITHOUT...]``.

TOP is on the recorded disk; FIRST and SECOND are references; CONTROL takes the marks. The rows get a boot identifier of their
own, as if the machine had been started again since. Meanwhile a second thread does what other programs on a machine do: it
makes the file system commit its journal, write some file's pages out, or sync everything, so that the disk sees the workload's
steps in pieces. WITHOUT names parts of lamella that are switched off, to show that the tests notice.
"""

from __future__ import annotations

import ctypes
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw

from lamella import durability
from lamella.client import Client
from lamella.metadata import boot, database, schema

Mark = Callable[[str], None]
WRITTEN = {"etc/mine": b"m" * 20_000, "written/file": b"w" * 3000}
"""What the workloads "commit" and "branch_containers" add to the image that they start from."""


def pull(client: Client, mark: Mark, first: str, second: str) -> None:
    client.images.pull(first)
    mark("pulled")
    time.sleep(0.1)  # nothing is synced yet: whatever gets to the disk gets there by chance


def pull_with_sync(client: Client, mark: Mark, first: str, second: str) -> None:
    client.images.pull(first, sync=True)
    mark("first synced")
    client.images.pull(second)


def sync_when_due(client: Client, mark: Mark, first: str, second: str) -> None:
    client.images.pull(first)
    durability.DUE_SECONDS = -1.0
    client.images.pull(second)
    mark("first synced")


def pull_without_layers(client: Client, mark: Mark, first: str, second: str) -> None:
    client.images.pull(first, keep_layers=False)
    mark("first synced")


def commit(client: Client, mark: Mark, first: str, second: str) -> None:
    image = client.images.pull(first, sync=True)
    mark("first synced")
    for name in ("mine", "lost"):
        client.snapshots.prepare("work", image.chain_id)
        _write_into(client, "work")
        client.snapshots.commit(name, "work")
        client.snapshots.prepare(f"on-{name}", name)
        if name == "mine":
            client.sync()
            mark("mine synced")
    client.snapshots.prepare("without-parent")
    client.snapshots.remove("on-lost")
    client.snapshots.remove("lost")


def collect(client: Client, mark: Mark, first: str, second: str) -> None:
    client.images.pull(first)
    client.images.pull(second, sync=True)
    mark("first synced")
    client.images.remove(second)
    client.gc()
    client.snapshots.prepare("work")
    client.snapshots.remove("work")


def repair(client: Client, mark: Mark, first: str, second: str) -> None:
    """Mend what an earlier power cut has left."""
    client.images.pull(first)
    image = client.images.pull(second, sync=True)
    with client.database.write() as db:
        for table in ("blobs", "layers"):
            db.execute(f"UPDATE {table} SET boot_id = 'an even earlier one', synced = 0")
    client.database.flush()
    for number, layer in enumerate(image.layers):
        blob = client.config.root / "blobs" / layer.digest.replace(":", "/")
        blob.chmod(0o600)
        os.truncate(blob, number * 100)
    for path in client.config.root.glob("snapshots/overlayfs/*/fs/etc/1"):
        path.write_bytes(b"")
    client.fsck(repair=True)
    mark("repaired")
    client.images.pull(second)
    client.images.pull(first, sync=True)
    mark("first synced")


def migrate(client: Client, mark: Mark, first: str, second: str) -> None:
    """Open a store of the first version, which brings its schema up to date."""
    root = client.config.root.parent / "old"
    root.mkdir(mode=0o700)
    connection = apsw.Connection(str(root / "metadata.db"))
    connection.execute(
        f"PRAGMA journal_mode = WAL; {schema.MIGRATIONS[0]} PRAGMA user_version = 1"
    ).fetchall()
    connection.execute(
        "INSERT INTO leases (namespace, id, created_at) VALUES ('default', 'kept', '2020-01-01T00:00:00.000000Z')"
    ).fetchall()
    connection.close()
    durability.sync_file_systems([root])
    mark("old store")
    with Client(root, client.config.state) as opened:
        opened.leases.create("new")
        opened.sync()
        mark("new synced")
        opened.leases.delete("new")


def run_containers(client: Client, mark: Mark, first: str, second: str) -> None:
    image = client.images.pull(first, sync=True)
    mark("first synced")
    client.containers.create(image, ["sh", "-c", "exit 7"], name="created")
    ended = client.containers.create(image, ["sh", "-c", "echo written > /file; exit 7"], name="ended")
    ended.start()
    ended.wait(timeout=60)
    running = client.containers.create(
        image, ["sh", "-c", "echo on; read x < /dev/zero; sleep 60"], name="running"
    )
    running.start()
    time.sleep(0.1)
    client.containers.run(image, ["sh", "-c", "exit 0"], remove=True, timeout=20)
    mark("all started")
    ended.remove()
    running.remove(force=True)


def branch_containers(client: Client, mark: Mark, first: str, second: str) -> None:
    """Freeze, stand on it, freeze that, make an image of it, drop it, and keep a pool."""
    image = client.images.pull(first, sync=True)
    mark("first synced")
    box = client.containers.create(image, ["sh", "-c", "exit 7"], name="box")
    _write_into(client, box.snapshot_key)
    box.commit(branch="one")
    client.sync()
    mark("one synced")
    upper, other = client.branches.get("one").branch(2)
    _write_into(client, upper.snapshot_key)
    two = upper.commit(branch="two")
    two.commit("made:latest")
    mark("two made")
    upper.remove()
    other.remove()
    two.remove()
    with client.containers.pool(client.branches.get("one"), size=1) as pool:
        pool.run(["sh", "-c", "exit 0"])
    mark("pooled")


def _write_into(client: Client, key: str) -> None:
    top = client.snapshots.layer_paths(key)[0]
    for file, data in WRITTEN.items():
        (top / file).parent.mkdir(exist_ok=True)
        (top / file).write_bytes(data)


def _without(names: list[str]) -> None:
    """Break lamella on purpose."""
    if "syncfs" in names:
        durability.sync_file_systems = lambda folders: None
    database.CHECKPOINT_PAGES = 8  # so that the log is copied back often, and written anew


@contextmanager
def disturbed(top: Path, seed: int, syncs: bool) -> Iterator[None]:
    """Have the file system write at random moments."""
    luck, stop = random.Random(seed), threading.Event()
    libc = ctypes.CDLL(None)

    def disturb() -> None:
        journal = os.open(top / "other", os.O_RDWR | os.O_CREAT, 0o600)
        while not stop.wait(luck.uniform(0, 0.004)):
            what = luck.random()
            if what < 0.6:  # commits the journal, in which the names and sizes of all files are
                os.pwrite(journal, b"x", luck.randrange(4096))
                os.fsync(journal)
            elif what < 0.9 or not syncs:
                write_out(
                    luck.choice([f"{place}/{name}" for place, _, names in os.walk(top) for name in names])
                )
            else:
                libc.syncfs(journal)
        os.close(journal)

    def write_out(path: str) -> None:
        try:
            file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError:
            return
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)  # starts to write the pages
        os.close(file)

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def main() -> None:
    top, control, seed, name, first, second, *without = sys.argv[1:]
    if "boot" not in without:
        boot.boot_id = lambda: "an earlier one"
        durability.boot_id = boot.boot_id
    _without(without)

    def mark(words: str) -> None:
        Path(control).write_text(f"mark {words}")

    with (
        Client(Path(top, "root"), Path(top, "state")) as client,
        disturbed(Path(top), int(seed), syncs=not without),
    ):
        globals()[name](client, mark, first, second)
    mark("end")


if __name__ == "__main__":
    main()
