"""Transfers as iterators: what the loop sees, what it gets in the end, and what is left when it is left early."""

from __future__ import annotations

import io
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from registries import RawServer, read_head

import lamella
from archives import Pipe, docker_of, tar_of
from gate import ONE_CONNECTION, Gate, one_connection  # noqa: F401
from lamella import oci
from lamella.errors import Cancelled, InvalidArgument, NotFound
from lamella.registry.server import RegistryServer
from lamella.transfer.archives.tar import header
from layers import Built, file, tar

pytestmark = [
    pytest.mark.integration,
    pytest.mark.privileged,
    pytest.mark.usefixtures("one_connection"),
]


class Endless(io.RawIOBase):
    """Some bytes, and zeros after them without an end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.given = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data, self._data = self._data[: len(buffer)], self._data[len(buffer) :]
        data = data or bytes(len(buffer))
        buffer[: len(data)] = data
        self.given += len(data)
        return len(data)


LIMIT = 2 << 20
"""Bytes of an answer that the gate lets through."""


@pytest.fixture
def server() -> Iterator[RegistryServer]:
    with RegistryServer() as running:
        yield running


other = server  # one more


@pytest.fixture(scope="module")
def large() -> Built:
    """An image one of whose layers does not come through the gate."""
    import random

    return Built(
        tar(file("small", b"small")),
        tar(file("big", random.Random(1).randbytes(5 << 20))),
        compression="none",
    )


@pytest.fixture
def gated(server: RegistryServer, large: Built) -> Iterator[tuple[Gate, str]]:
    """Give the gate before the large image, and the reference that leads through it."""
    large.push(server)
    with Gate(server.address, limit=LIMIT) as gate:
        yield gate, f"{gate.address}/made:latest"


def is_untouched(client: lamella.Client) -> bool:
    """Say whether nothing has a name, nothing is held for a transfer, and none of its threads is left."""
    return (
        client.images.list() == []
        and list(client.snapshots.walk()) == []
        and list(client.leases.list()) == []
        and [thread for thread in threading.enumerate() if thread.name.startswith("lamella-transfer")] == []
    )


def test_the_loop_sees_every_layer_to_its_end_and_the_result_is_there_afterwards(
    client: lamella.Client, server: RegistryServer, large: Built
) -> None:
    reference = large.push(server)
    transfer = lamella.Transfer(client.images.pull, reference)
    seen = list(transfer)
    assert transfer.result() == client.images.get(reference)
    assert {report.digest for report in seen if report.phase == "done" and report.digest} == {
        descriptor.digest for descriptor in large.descriptors
    }
    size = sum(descriptor.size for descriptor in large.descriptors)
    total = seen[-1].total
    assert (total.blobs, total.done, total.received, total.size) == (2, 2, size, size)
    assert (total.moved, total.seconds_left) == (size, 0.0)


def test_every_transfer_has_this_form(
    client: lamella.Client, server: RegistryServer, other: RegistryServer, large: Built, tmp_path: Path
) -> None:
    images, name = client.images, large.push(server)
    size = sum(descriptor.size for descriptor in large.descriptors)
    path = tmp_path / "archive.tar"
    calls: dict[Callable[[], lamella.Transfer[Any]], bool] = {  # whether all of it is moved
        lambda: lamella.Transfer(images.pull, name, unpack=False): True,
        lambda: lamella.Transfer(images.push, name, f"{other.address}/pushed:1"): True,
        lambda: lamella.Transfer(images.copy, name, f"{other.address}/copied:1"): True,
        lambda: lamella.Transfer(images.export, name, path): True,
        lambda: lamella.Transfer(images.import_, path, names=["imported:1"]): False,
        lambda: lamella.Transfer(images.convert, name, "converted:1", compression="gzip"): False,
    }
    for call, moves in calls.items():
        transfer = call()
        reports = list(transfer)
        assert all(report.total.received <= report.total.size for report in reports)
        first, last = next(report for report in reports if report.digest), reports[-1]
        assert transfer.result()
        assert first.total.blobs == last.total.blobs  # all are known before the first one comes
        assert last.total.done == last.total.blobs >= 2
        assert last.total.received == last.total.size >= size
        assert last.total.moved == (last.total.size if moves else 0)
    assert {image.familiar_name for image in images.list()} >= {"imported:1", "converted:1"}


def test_files_of_a_stream_and_the_layers_that_they_are_count_once(client: lamella.Client) -> None:
    """An archive of docker's names its layers by anything; their digests are known when they were read."""
    image = Built(*(tar(file("data", bytes([number]) * 300_000)) for number in range(3)), compression="none")
    archive = Pipe(tar_of(docker_of(image, "app:1")))
    *_, last = lamella.Transfer(client.images.import_, archive)
    size = sum(descriptor.size for descriptor in image.descriptors)
    assert (last.total.blobs, last.total.done, last.total.received, last.total.size) == (3, 3, size, size)


def test_an_import_that_is_left_stops_reading(client: lamella.Client) -> None:
    size = 1 << 40
    stream = Endless(header(f"blobs/sha256/{'0' * 64}", size))
    for progress in lamella.Transfer(client.images.import_, stream):
        if progress.received > LIMIT:
            break
    given = stream.given
    time.sleep(0.05)
    assert given == stream.given < size
    assert is_untouched(client)
    assert client.content.ingests() == []


def test_a_pull_of_what_is_here_is_all_there(
    client: lamella.Client, server: RegistryServer, large: Built
) -> None:
    reference = large.push(server)
    client.images.pull(reference)
    *_, last = lamella.Transfer(client.images.pull, reference)
    assert (last.phase, last.total.done, last.total.blobs, last.total.moved) == ("done", 2, 2, 0)


def test_without_a_loop_the_result_is_waited_for(
    client: lamella.Client, server: RegistryServer, large: Built
) -> None:
    reference = large.push(server)
    assert lamella.Transfer(client.images.pull, reference).result().familiar_name == reference


def test_errors_are_raised_where_the_loop_would_end(client: lamella.Client, server: RegistryServer) -> None:
    transfer = lamella.Transfer(client.images.pull, f"{server.address}/nothing:1")
    phases = []
    with pytest.raises(NotFound):
        for progress in transfer:
            phases.append(progress.phase)
    assert phases == ["resolving"]
    with pytest.raises(NotFound):
        transfer.result()
    with pytest.raises(InvalidArgument):
        lamella.Transfer(client.images.pull, "UPPER").result()


@pytest.mark.parametrize("how", ["break", "error", "close", "with"])
def test_leaving_the_loop_cancels_the_transfer_and_the_next_one_goes_on(
    client: lamella.Client, server: RegistryServer, gated: tuple[Gate, str], large: Built, how: str
) -> None:
    gate, reference = gated
    transfer = lamella.Transfer(client.images.pull, reference)
    big = large.descriptors[1]

    def is_written(progress: lamella.Progress) -> bool:
        """Say whether some of the large layer is on disk: what is received is written a little later."""
        return bool(progress.received) and client.content.received(big.digest) > 0

    if how == "break":
        for progress in transfer:
            if is_written(progress):
                break
    elif how == "error":
        with pytest.raises(ZeroDivisionError):
            for progress in transfer:
                if is_written(progress):
                    raise ZeroDivisionError
    elif how == "close":
        reports = iter(transfer)
        while not is_written(next(reports)):
            pass
        transfer.close()
    else:
        with transfer:
            reports = iter(transfer)
            while not is_written(next(reports)):
                pass
    assert not gate.is_open
    assert is_untouched(client)
    with pytest.raises(Cancelled):
        transfer.result()
    (left,) = (ingest for ingest in client.content.ingests() if ingest.ref == f"layer-{big.digest}")
    assert 0 < left.offset < big.size
    client.content.writer(
        left.ref, size=big.size, digest=big.digest, shared=True
    ).close()  # nobody has its lock
    gate.open()
    server.requests.clear()
    client.images.pull(reference)
    assert f"bytes={left.offset}-" in [request.range for request in server.requests]
    assert client.content.ingests() == []


def test_a_transfer_that_nobody_began_does_nothing(client: lamella.Client, server: RegistryServer) -> None:
    with lamella.Transfer(client.images.pull, f"{server.address}/made:latest") as transfer:
        pass
    with pytest.raises(Cancelled):
        list(transfer)
    assert not server.requests


def test_a_request_that_is_not_answered_does_not_hold_the_close_up(client: lamella.Client) -> None:
    asked = threading.Event()

    def silent(connection: socket.socket, number: int) -> None:
        read_head(connection)
        asked.set()
        registry.closing.wait()

    with RawServer(silent) as registry:
        for progress in lamella.Transfer(client.images.pull, f"{registry.address}/made:latest"):
            assert progress.phase == "resolving"
            assert asked.wait(60)
            break
        assert not registry.closing.is_set()
        assert is_untouched(client)


def test_waiting_for_another_pull_does_not_hold_the_close_up(
    client: lamella.Client, gated: tuple[Gate, str]
) -> None:
    gate, reference = gated
    first = lamella.Transfer(client.images.pull, reference)
    reports = iter(first)
    while next(reports).received <= LIMIT // 2:
        pass
    for options in ({}, {"all_platforms": True, "unpack": False}):
        for progress in lamella.Transfer(client.images.pull, reference, **options):
            if progress.phase == "waiting":
                assert progress.total.rate == 0.0
                break
        else:
            pytest.fail("it ended")
    assert not gate.is_open
    gate.open()
    first.result()


def test_a_push_that_is_left_leaves_no_name(client: lamella.Client, large: Built) -> None:
    with RegistryServer() as source:
        name = large.push(source)
        client.images.pull(name, unpack=False)
    stuck = threading.Event()

    def script(connection: socket.socket, number: int) -> None:
        while True:
            head = read_head(connection)
            if head.startswith(b"POST"):
                connection.sendall(
                    b"HTTP/1.1 202 Accepted\r\nLocation: /v2/made/blobs/uploads/1\r\nContent-Length: 0\r\n\r\n"
                )
            elif head.startswith((b"PUT", b"PATCH")):
                stuck.set()
                registry.closing.wait()
                return
            else:
                connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

    with RawServer(script) as registry:
        for _ in lamella.Transfer(client.images.push, name, f"{registry.address}/made:1"):
            if stuck.is_set():
                break
        assert not registry.closing.is_set()
        assert list(client.leases.list()) == []


def test_a_slow_loop_holds_nobody_up_and_gets_the_latest_of_each_blob(
    client: lamella.Client, server: RegistryServer, large: Built
) -> None:
    reference = large.push(server)
    reports = iter(lamella.Transfer(client.images.pull, reference))
    next(reports)
    deadline = time.monotonic() + 60
    while not client.images.list() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert client.images.list()
    rest = list(reports)
    assert len(rest) <= len(large.descriptors) + 2  # a row a blob, and the whole
    assert {report.phase for report in rest} <= {"done", "resolving"}


def test_an_ended_loop_may_be_begun_again(
    client: lamella.Client, server: RegistryServer, large: Built
) -> None:
    transfer = lamella.Transfer(client.images.pull, large.push(server))
    assert list(transfer)
    assert list(transfer) == []


def test_ctrl_c_in_the_loop_cancels_it(client: lamella.Client, gated: tuple[Gate, str]) -> None:
    gate, reference = gated
    code = f"""
        import lamella
        {ONE_CONNECTION}
        with lamella.Client({str(client.config.root)!r}, {str(client.config.state)!r}) as client:
            try:
                for progress in lamella.Transfer(client.images.pull, {reference!r}):
                    print(max((ingest.offset for ingest in client.content.ingests()), default=0), flush=True)
            finally:
                print("leases", len(list(client.leases.list())), flush=True)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        while not int(process.stdout.readline()):
            pass
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert not gate.is_open
    assert b"KeyboardInterrupt" in errors
    assert b"leases 0" in out
    assert client.images.list() == []
    assert max(ingest.offset for ingest in client.content.ingests()) > 0


def test_an_index_grows_the_totals_as_its_manifests_are_found(
    client: lamella.Client, server: RegistryServer, large: Built
) -> None:
    """Blobs of other platforms are found once this machine's are here."""
    other = Built(tar(file("other", b"other")))
    other.platform = {"os": "linux", "architecture": "s390x"}
    entries = []
    for built in (large, other):
        built.push(server)
        manifest = server.push_manifest("made", None, built.manifest)
        platform = oci.Platform(**built.platform)
        entries.append(oci.Descriptor(manifest.media_type, manifest.digest, manifest.size, platform=platform))
    server.push_manifest("made", "all", oci.Index(manifests=entries))
    sizes = [
        report.total.blobs
        for report in lamella.Transfer(client.images.pull, f"{server.address}/made:all", all_platforms=True)
    ]
    assert sizes == sorted(sizes)
    assert sizes[-1] > len(large.descriptors)
