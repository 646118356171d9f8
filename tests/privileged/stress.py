"""A worker of test_stress.py: ``stress.py SETTINGS`` does what it is told to one store, and says on stdout how it went.

Whatever else happens to the store meanwhile, what a worker holds may not disappear under it: what an active snapshot, a
container, a running task or a lease names. Each operation says which errors others may cause; any other ends the worker.
"""

from __future__ import annotations

import faulthandler
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

import lamella
from lamella.errors import AlreadyExists, FailedPrecondition, NotFound

BUSY_SECONDS = 20.0
"""Whoever waits longer for others' transactions has found a defect, on the slowest machine."""


class Settings(msgspec.Struct):
    """What a worker is to do: everything at random for ``seconds``, or pull each reference once (0)."""

    root: str
    state: str
    namespace: str
    name: str
    seed: int
    references: list[str]
    discarded: list[str] = []
    seconds: float = 0.0
    threads: int = 1


class Report(msgspec.Struct):
    """How often each operation was done, how often it could not be, and how long writers waited (seconds)."""

    done: dict[str, int] = {}
    refused: dict[str, int] = {}
    waits: list[float] = []


class Worker:
    """One thread of a worker, with names of its own."""

    def __init__(self, client: lamella.Client, settings: Settings, number: int) -> None:
        self.client = client
        self.settings = settings
        self.random = random.Random(settings.seed * 100 + number)
        self.name = f"{settings.name}-{number}"
        self.report = Report()
        self.held: dict[str, lamella.Container] = {}
        self.operations: list[tuple[Callable[[], None], tuple[type[Exception], ...]]] = [
            (self.pull, ()),
            (self.pull, ()),
            (self.pull_discarded, ()),
            (self.pull_packed, ()),
            (self.unpack, (NotFound,)),
            (self.run, (NotFound,)),
            (self.run, (NotFound,)),
            (self.branch, (NotFound,)),
            (self.branch, (NotFound,)),
            (self.make_image, (NotFound,)),
            (self.start, (NotFound,)),
            (self.stop, ()),
            (self.take_over, ()),
            (self.lease, (NotFound,)),
            (self.lease, (NotFound,)),
            (self.remove_image, (NotFound,)),
            (self.remove_image, (NotFound,)),
            (self.collect, ()),
            (self.check, ()),
            (self.look, (NotFound,)),
            (self.sync, ()),
            (self.write, ()),
            (self.write, ()),
            (self.write, ()),
        ]

    def work(self) -> None:
        """Do operations until the time is over, then put away what is held."""
        end = time.monotonic() + self.settings.seconds
        while time.monotonic() < end:
            operation, expected = self.random.choice(self.operations)
            count = self.report.done
            try:
                operation()
            except expected:
                count = self.report.refused
            count[operation.__name__] = count.get(operation.__name__, 0) + 1
            self.check_held()
        for name in list(self.held):
            self.held.pop(name).remove(force=True)

    def check_held(self) -> None:
        """See that the containers that are held run on."""
        for box in self.held.values():
            assert box.status == "running", f"{box.name} is {box.status}"

    def reference(self) -> str:
        return self.random.choice(self.settings.references)

    # Operations

    def pull(self) -> None:
        self.client.images.pull(self.reference())

    def pull_packed(self) -> None:
        self.client.images.pull(self.reference(), unpack=False)

    def pull_discarded(self) -> None:
        self.client.images.pull(self.random.choice(self.settings.discarded), keep_layers=False)

    def unpack(self) -> None:
        self.client.images.unpack(self.reference())

    def run(self) -> None:
        """Run a container: once it is there, its image may go without hurting it."""
        box = self.client.containers.create(self.reference(), ["/bin/true"], name=f"run-{self.name}")
        try:
            box.start()
            assert box.wait(60) == 0
        except NotFound as error:
            raise AssertionError(f"a container that was there lost something: {error}") from error
        finally:
            box.remove(force=True)

    def branch(self) -> None:
        """Prepare on an image, write, commit, prepare on that, look at all of it, remove all of it."""
        snapshots = self.client.snapshots
        work, base, view = (f"{kind}-{self.name}" for kind in ("work", "base", "view"))
        snapshots.prepare(work, self.client.images.get(self.reference()).chain_id)
        try:
            own, *below = snapshots.layer_paths(work)
            (own / "mine").write_text(self.name)
            snapshots.commit(base, work)
            snapshots.prepare(work, base)
            snapshots.view(view, base)
            time.sleep(self.random.random() * 0.05)
            assert snapshots.layer_paths(work)[1:] == [own, *below]
            assert (own / "mine").read_text() == self.name
            assert all(path.is_dir() for path in below)
            assert any((path / "bin/true").is_file() for path in below)
        except NotFound as error:
            raise AssertionError(f"a snapshot that was there lost something: {error}") from error
        finally:
            for key in (view, work, base):
                with suppress(NotFound):
                    snapshots.remove(key)

    def make_image(self) -> None:
        """Make an image of a container, run it, and remove both. The image that it stands on may go before."""
        name = f"made-{self.name}:latest"
        box = self.client.containers.create(self.reference(), ["/bin/true"], name=f"make-{self.name}")
        try:
            (self.client.snapshots.layer_paths(box.snapshot_key)[0] / "mine").write_text(self.name)
            made = box.commit(name)
        finally:
            box.remove()
        try:
            assert self.client.containers.run(made, ["/bin/true"], remove=True).exit_code == 0
        except NotFound as error:
            raise AssertionError(f"an image that was made lost something: {error}") from error
        self.client.images.remove(name)

    def start(self) -> None:
        """Start a container that goes on for a while."""
        if len(self.held) < 2:
            name = f"held-{self.name}-{self.random.randrange(1_000_000)}"
            labels = {"worker": str(os.getpid())}
            box = self.client.containers.create(self.reference(), ["/bin/forever"], name=name, labels=labels)
            try:
                box.start()
            except NotFound as error:
                raise AssertionError(f"a container that was there lost something: {error}") from error
            self.held[name] = box

    def stop(self) -> None:
        if self.held:
            name = self.random.choice(list(self.held))
            self.held.pop(name).remove(force=True)

    def take_over(self) -> None:
        """Remove what workers left that were killed: it runs on until somebody does."""
        for box in self.client.containers.list(all=True):
            if not Path("/proc", box.labels.get("worker", "self")).exists():
                assert box.status != "unknown", f"{box.name} has lost its monitor"
                box.remove(force=True)

    def lease(self) -> None:
        """Lease an image's parts, see which are there then, and that they stay."""
        client = self.client
        image = client.images.get(self.reference())
        with client.leases.hold(expires_in=600) as lease:
            parts = [image.target, image.manifest.config, *image.layers]
            client.leases.add_all(lease.id, [("content", part.digest) for part in parts])
            client.leases.add(lease.id, f"snapshots/{client.config.snapshotter}", image.chain_id)
            there = [part for part in parts if client.content.exists(part.digest)]
            try:
                layers = client.snapshots.layer_paths(image.chain_id)
            except NotFound:
                layers = []
            time.sleep(self.random.random() * 0.1)
            try:
                for part in there:
                    assert len(client.content.read(part.digest)) == part.size
                assert client.snapshots.layer_paths(image.chain_id) == layers if layers else True
            except NotFound as error:
                raise AssertionError(f"what was leased went: {error}") from error
            assert all(path.is_dir() for path in layers)

    def remove_image(self) -> None:
        self.client.images.remove(self.random.choice([*self.settings.references, *self.settings.discarded]))

    def collect(self) -> None:
        self.client.gc(dry_run=self.random.random() < 0.2)

    def check(self) -> None:
        report = self.client.fsck(repair=self.random.random() < 0.3)
        assert report.findings == [], report.findings

    def look(self) -> None:
        """List everything and add it up."""
        client = self.client
        client.images.list()
        client.containers.list(all=True)
        list(client.snapshots.walk())
        list(client.content.walk())
        client.leases.list()
        client.du()
        client.images.get(self.reference()).inspect()

    def sync(self) -> None:
        self.client.sync()

    def write(self) -> None:
        """Measure how long a small transaction takes while everybody writes."""
        began = time.perf_counter()
        with suppress(AlreadyExists):
            self.client.leases.create(f"lease-{self.name}", expires_in=60)
        self.report.waits.append(time.perf_counter() - began)
        with suppress(NotFound, FailedPrecondition):
            self.client.leases.delete(f"lease-{self.name}")


def pull_all(client: lamella.Client, settings: Settings) -> None:
    """Pull every reference once, in an order of one's own, and run what came."""
    order = list(settings.references)
    random.Random(settings.seed).shuffle(order)
    for reference in order:
        image = client.images.pull(reference)
        result = client.containers.run(image, ["/bin/true"], remove=True, name=f"run-{settings.name}")
        assert result.exit_code == 0


def main() -> int:
    faulthandler.register(signal.SIGUSR1)  # says where all threads are
    settings = msgspec.json.decode(sys.argv[1], type=Settings)
    failures: list[BaseException] = []
    with lamella.Client(Path(settings.root), Path(settings.state), settings.namespace) as client:
        client.database.busy_seconds = BUSY_SECONDS
        if not settings.seconds:
            pull_all(client, settings)
            return 0
        workers = [Worker(client, settings, number) for number in range(settings.threads)]

        def run(worker: Worker) -> None:
            try:
                worker.work()
            except BaseException as error:
                traceback.print_exc()
                failures.append(error)

        threads = [threading.Thread(target=run, args=(worker,)) for worker in workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    sys.stdout.buffer.write(msgspec.json.encode([worker.report for worker in workers]))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
