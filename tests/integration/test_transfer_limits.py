"""What is taken of the network together: uploads and downloads, and blobs that stream through."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from registries import read_all

from lamella import oci
from lamella.digest import digest_of
from lamella.errors import Cancelled
from lamella.reference import Reference
from lamella.registry.blob import BlobStream
from lamella.registry.client import RegistryClient
from lamella.registry.config import RegistryConfig, Timeouts
from lamella.registry.limits import Limits
from lamella.registry.server import RegistryServer

BLOBS = [random.Random(n).randbytes(300_000 + n) for n in range(8)]
DESCRIPTORS = [oci.Descriptor(oci.OCI_LAYER_GZIP, digest_of(data), len(data)) for data in BLOBS]


def at(server: RegistryServer, repository: str = "team/app") -> Reference:
    return Reference.parse(f"{server.address}/{repository}")


def client(limits: Limits) -> RegistryClient:
    return RegistryClient(
        RegistryConfig(credentials={}, backoff=0.001, timeouts=Timeouts(5, 5), limits=limits)
    )


class Source:
    """A blob as it is here. ``open`` counts how many are read at once."""

    open: set[Source] = set()
    most = 0

    def __init__(self, data: bytes, offset: int) -> None:
        self.rest = memoryview(data)[offset:]

    def __enter__(self) -> Source:
        Source.open.add(self)
        Source.most = max(Source.most, len(Source.open))
        return self

    def __exit__(self, *_: object) -> None:
        Source.open.remove(self)

    def readinto(self, buffer: bytearray | memoryview) -> int:
        threading.Event().wait(0.01)  # for the others to come by
        count = min(len(buffer), len(self.rest), 100_000)
        memoryview(buffer)[:count] = self.rest[:count]
        self.rest = self.rest[count:]
        return count


def sources(number: int) -> Callable[[int], Source]:
    return lambda offset: Source(BLOBS[number], offset)


def test_no_more_blobs_are_sent_at_once_than_the_limit_says() -> None:
    Source.most, limits = 0, Limits(connections=2)
    with RegistryServer() as server, client(limits) as registry, ThreadPoolExecutor(8) as pool:
        sent = pool.map(lambda n: registry.put_blob(at(server), DESCRIPTORS[n], sources(n)), range(8))
        assert list(sent) == ["sent"] * 8
        assert all(registry.has_blob(at(server), descriptor) for descriptor in DESCRIPTORS)
    assert Source.most == 2
    assert (limits._used, limits._shares) == (0, 0)


@pytest.mark.parametrize("direction", ["down", "up", "through"])
def test_every_byte_of_a_blob_is_paid_for_piece_by_piece(
    direction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits, paid = Limits(bandwidth=100_000), list[int]()
    monkeypatch.setattr(limits, "pay", lambda count, _: paid.append(count))
    blob, data = DESCRIPTORS[0], BLOBS[0]
    with RegistryServer() as server, client(limits) as registry:
        if direction == "up":
            registry.put_blob(at(server), blob, sources(0))
        else:
            server.push_blob("team/app", data)
            if direction == "down":
                with registry.open_blob(at(server), blob) as stream:
                    assert read_all(stream) == data
            else:
                registry.put_blob(
                    at(server, "other"),
                    blob,
                    lambda offset: registry.open_blob(at(server), blob, offset=offset),
                )
    assert sum(paid) == len(data) * (2 if direction == "through" else 1)
    assert max(paid) <= limits.piece == 10_000


@pytest.mark.parametrize("connections", [1, 3])
def test_blobs_that_stream_through_do_not_wait_for_each_other(connections: int) -> None:
    """Each has a connection at both ends; two limits of one kind, each half taken, would hold all up."""
    limits, most = Limits(connections=connections), list[int]()

    def stream(number: int) -> str:
        def opened(offset: int) -> BlobStream:
            most.append(limits._used)
            return registry.open_blob(at(source), DESCRIPTORS[number], offset=offset)

        return registry.put_blob(at(destination), DESCRIPTORS[number], opened)

    with (
        RegistryServer() as source,
        RegistryServer() as destination,
        client(limits) as registry,
        ThreadPoolExecutor(8) as pool,
    ):
        for data in BLOBS:
            source.push_blob("team/app", data)
        assert list(pool.map(stream, range(8), timeout=120)) == ["sent"] * 8
    assert max(most) <= connections
    assert (limits._used, limits._shares) == (0, 0)


def test_who_waits_for_a_connection_to_send_can_be_stopped() -> None:
    limits = Limits(connections=1)
    with RegistryServer() as server, client(limits) as registry, limits.share(lambda: None):
        timer = threading.Timer(0.1, registry.interrupt)
        timer.start()
        with pytest.raises(Cancelled):
            registry.put_blob(at(server), DESCRIPTORS[0], sources(0))
        timer.join()
    assert (limits._used, limits._shares) == (0, 0)
