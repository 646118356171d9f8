"""Many processes on one store, of which some are killed: no lost object, no double download, no orphan.

A minute, ten in the nightly form (LAMELLA_NIGHTLY=1). What the workers do is in stress.py. The choices of all of them follow from
one seed, which a failure shows and LAMELLA_SEED repeats; how they meet does not.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from contextlib import ExitStack, suppress
from pathlib import Path

import msgspec
import pytest
from stress import Report, Settings

from chance import NIGHTLY, SEED
from crashes import nothing_is_left, open_client, quiet, remove_all
from lamella.gc import collect
from layers import Built, file, folder, hardlink, program, tar, whiteout

pytestmark = [pytest.mark.privileged, pytest.mark.timeout(1200)]
HERE = Path(__file__).parent
SECONDS = 600.0 if NIGHTLY else 45.0
NAMESPACES = ["default", "two", "three"]
WORKERS = 8
PULLERS = 10
GRACE = 120.0
"""Seconds that a worker may take to finish what it has begun when its time is over."""
_AUDIT = """
CREATE TABLE stress_arrivals (name TEXT NOT NULL);
CREATE TRIGGER stress_blobs AFTER INSERT ON blobs BEGIN INSERT INTO stress_arrivals VALUES (new.digest); END;
CREATE TRIGGER stress_layers AFTER INSERT ON layers WHEN new.diff_id IS NOT NULL
    BEGIN INSERT INTO stress_arrivals VALUES (new.diff_id); END;
"""
"""Notes how often each blob and layer came to the store."""


class Fleet:
    """The worker processes; those that are left are killed at the end."""

    def __init__(self, place: Path, references: list[str], discarded: list[str]) -> None:
        self.place = place
        self.references = references
        self.discarded = discarded
        self.started = 0
        self.killed = 0
        self.running: list[subprocess.Popen[bytes]] = []
        self.reports: list[Report] = []

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for process in self.running:
            process.kill()
            process.communicate()
        if kind is not None:  # what is to be looked at is in the store, not what runs
            for namespace in NAMESPACES:
                with open_client(self.place, namespace) as client:
                    for box in client.containers.list(all=True):
                        box.remove(force=True)

    def start(self, seconds: float = 0.0) -> None:
        """Start one more worker. Every other one has two threads, which share a client."""
        number = self.started
        self.started += 1
        settings = Settings(
            root=str(self.place / "root"),
            state=str(self.place / "state"),
            namespace=NAMESPACES[number % len(NAMESPACES)],
            name=f"w{number}",
            seed=SEED * 1000 + number,
            references=self.references,
            discarded=self.discarded,
            seconds=seconds,
            threads=1 + number % 2,
        )
        self.running.append(
            subprocess.Popen(
                [sys.executable, str(HERE / "stress.py"), msgspec.json.encode(settings).decode()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )
        )

    def kill_one(self, process: subprocess.Popen[bytes]) -> None:
        """Kill a worker; what it left is what the others go on with."""
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        _, errors = process.communicate()
        if process.returncode not in (0, -signal.SIGKILL):
            pytest.fail(f"a worker failed:\n{errors.decode()}\n{self.stacks()}", pytrace=False)
        self.killed += 1
        self.running.remove(process)

    def failed(self) -> None:
        """Say so if a worker has ended with a failure."""
        for process in self.running:
            if process.poll():
                errors = process.communicate()[1].decode()
                pytest.fail(f"a worker failed:\n{errors}\n{self.stacks()}", pytrace=False)

    def stacks(self) -> str:
        """Say where the threads of the others are, and end them."""
        others = [process for process in self.running if process.poll() is None]
        for process in others:
            process.send_signal(signal.SIGUSR1)
        time.sleep(0.5)
        texts = []
        for process in others:
            process.kill()
            texts.append(f"another one, {process.pid}:\n{process.communicate()[1].decode()}")
        return "\n".join(texts)

    def join(self) -> None:
        deadline = time.monotonic() + GRACE
        while self.running:
            self.failed()
            process = self.running[0]
            try:
                output, errors = process.communicate(timeout=0.2)
            except subprocess.TimeoutExpired:
                if time.monotonic() > deadline:
                    pytest.fail(f"workers do not come to an end\n{self.stacks()}", pytrace=False)
                continue
            if process.returncode:
                pytest.fail(f"a worker failed:\n{errors.decode()}\n{self.stacks()}", pytrace=False)
            self.reports += msgspec.json.decode(output or b"[]", type=list[Report])
            self.running.remove(process)


@pytest.fixture
def images():
    """Give images that share layers, in a pair: those that are kept whole, and those that are pulled without their blobs."""

    def built(base: bytes, number: int) -> Built:
        own = tar(folder("data"), file(f"data/{number}", random.Random(number).randbytes(200_000)))
        link = tar(hardlink("bin/same", "bin/true"), whiteout(f"data/{number - 1}"))
        return Built(base, shared[number % 2], own, link)

    def base(salt: bytes) -> bytes:
        return tar(
            folder("bin"),
            file("bin/true", program(), mode=0o755),
            file("bin/forever", program(None), mode=0o755),
            file("salt", salt + random.Random(1).randbytes(600_000)),
        )

    shared = [tar(file("usr/shared", bytes([n]) * 300_000)) for n in range(2)]
    kept = [built(base(b"kept"), number) for number in range(4)]
    shared = [tar(file("usr/shared", bytes([n + 2]) * 300_000)) for n in range(2)]
    return kept, [built(base(b"discarded"), number) for number in range(10, 12)]


def gets(server) -> tuple[Counter[str], Counter[str]]:
    """Count the requests for each blob: those from its start, and those that went on where another had stopped."""
    whole: Counter[str] = Counter()
    rest: Counter[str] = Counter()
    for request in list(server.requests):
        if request.method == "GET" and "/blobs/" in request.path:
            digest = request.path.rpartition("/")[2]
            (rest if request.range and not request.range.startswith("bytes=0-") else whole)[digest] += 1
    return whole, rest


def test_ten_processes_in_three_namespaces_fetch_and_unpack_everything_once(tmp_path, server, images):
    kept, _ = images
    references = [built.push(server, f"kept{number}") for number, built in enumerate(kept)]
    with open_client(tmp_path) as client, client.database.write() as db:
        for statement in _AUDIT.strip().split(";\n"):
            db.execute(statement)
    with Fleet(tmp_path, references, []) as fleet:
        for _ in range(PULLERS):
            fleet.start()
        fleet.join()
    whole, rest = gets(server)
    blobs = {d.digest for built in kept for d in built.descriptors} | {
        msgspec.json.decode(built.manifest)["config"]["digest"] for built in kept
    }
    assert whole == Counter(blobs)
    assert rest == Counter()
    with open_client(tmp_path) as client:
        with client.database.read() as db:
            arrived = Counter(row[0] for row in db.execute("SELECT name FROM stress_arrivals"))
        unpacked = {diff_id for built in kept for diff_id in built.diff_ids}
        assert {name: count for name, count in arrived.items() if name in blobs} == dict.fromkeys(blobs, 1)
        # One that depends on its parents has a folder for each chain.
        assert all(arrived[diff_id] >= 1 for diff_id in unpacked)
        assert client.fsck().findings == []
        assert client.gc(dry_run=True).names == []


def test_everything_at_once(tmp_path, server, images, capsys):
    kept, thin = images
    server.requests = deque()
    references = [built.push(server, f"kept{number}") for number, built in enumerate(kept)]
    discarded = [built.push(server, f"thin{number}") for number, built in enumerate(thin)]
    with open_client(tmp_path) as client, client.database.write() as db:
        for statement in _AUDIT.strip().split(";\n"):
            db.execute(statement)
    print(f"LAMELLA_SEED={SEED}")
    pick = random.Random(SEED)
    with Fleet(tmp_path, references, discarded) as fleet:
        end = time.monotonic() + SECONDS
        while (left := end - time.monotonic()) > 0:
            fleet.failed()
            while len(fleet.running) < WORKERS:
                fleet.start(left)
            time.sleep(min(left, pick.uniform(0.5, 2.5)))
            if left > 3:
                fleet.kill_one(pick.choice(fleet.running))
        fleet.join()
        with capsys.disabled():
            print(summary(fleet))
        examine(tmp_path, server, kept, thin, fleet.killed)


def examine(place: Path, server, kept: list[Built], thin: list[Built], killed: int) -> None:
    """Check the store that the workers left: nothing is wrong, everything runs, nothing came without need, all of it can go."""
    quiet_requests = list(server.requests)
    with ExitStack() as stack:
        clients = [stack.enter_context(open_client(place, namespace)) for namespace in NAMESPACES]
        first = clients[0]
        assert first.fsck().findings == []
        first.gc()
        report = first.fsck()
        assert [*report.findings, *report.leftovers] == []
        for client in clients:
            for box in client.containers.list(all=True):
                assert box.status != "unknown", f"{box.name} has lost its monitor"
            for image in client.images.list():
                result = client.containers.run(client.images.unpack(image.name), ["/bin/true"], remove=True)
                assert result.exit_code == 0
        quiet(server)
        server.requests.extend(quiet_requests)
        whole, _ = gets(server)
        with first.database.read() as db:
            arrived = Counter(row[0] for row in db.execute("SELECT name FROM stress_arrivals"))
        # A killed worker may have asked for a blob of which nothing had come yet. For the rest: asked for once, come once.
        for built in kept:
            for descriptor in built.descriptors:
                assert whole[descriptor.digest] <= arrived[descriptor.digest] + killed
        for built in thin:
            for descriptor, diff_id in zip(built.descriptors, built.diff_ids, strict=True):
                assert whole[descriptor.digest] <= arrived[diff_id] + killed
        for client in clients:
            remove_all(client)
        first.gc()
        collect(first.database, first.config, ingest_seconds=0)
        nothing_is_left(first)


def summary(fleet: Fleet) -> str:
    """Say what was done, for whoever reads the output."""
    done, refused = Counter[str](), Counter[str]()
    waits: list[float] = []
    for report in fleet.reports:
        done.update(report.done)
        refused.update(report.refused)
        waits += report.waits
    waits.sort()
    shown = ", ".join(f"{name} {count}+{refused[name]}" for name, count in sorted(done.items()))
    slowest = f"{waits[len(waits) * 99 // 100] * 1e3:.1f}, {waits[-1] * 1e3:.1f}" if waits else "none"
    return (
        f"\n{fleet.started} workers, {fleet.killed} killed; done+refused: {shown}; "
        f"a small transaction took at most (99 %, all) {slowest} ms (LAMELLA_SEED={SEED})"
    )
