"""A large blob on several connections: where one is slow, never where one is fast; and right whatever happens to any of them."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from registries import Asked, Reply, ScriptedServer, read_all

from faulty_proxy import HONEST, LYING, FaultyProxy
from lamella import oci
from lamella.digest import digest_of
from lamella.errors import Cancelled, LamellaError, Unavailable
from lamella.reference import Reference
from lamella.registry import ahead, stretch
from lamella.registry.client import RegistryClient
from lamella.registry.config import RegistryConfig, Timeouts
from lamella.registry.limits import AHEAD_MAX, Limits
from lamella.registry.server import RegistryServer
from lamella.registry.stretch import Stretch
from waiting import until

BLOB = random.Random(7).randbytes(12 * 1024 * 1024 + 12345)
SLOW = 3e6
"""Bytes a second of one connection."""


@pytest.fixture(scope="module")
def server() -> Iterator[RegistryServer]:
    with RegistryServer() as running:
        running.push_blob("team/app", BLOB)
        yield running


@pytest.fixture(autouse=True)
def decisions_come_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "WINDOW", 0.05)
    monkeypatch.setattr(ahead, "WORTH", 0.1)
    monkeypatch.setattr(ahead, "GAIN", 0.5)


@pytest.fixture(autouse=True)
def no_helper_is_left() -> Iterator[None]:
    """One that was only just connecting ends when it has."""
    yield
    until(lambda: "lamella-ahead" not in {thread.name for thread in threading.enumerate()})


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Give how many answers were being read at this end, after each change. A proxy counts those just left, too."""
    lock = threading.Lock()
    read_now: set[int] = set()
    counts: list[int] = []

    def note(one: Stretch, response: Any) -> None:
        one.__dict__["response"] = response
        with lock:
            (read_now.discard if response is None else read_now.add)(id(one))
            counts.append(len(read_now))

    noted = property(lambda one: one.__dict__.get("response"), note)
    monkeypatch.setattr(Stretch, "_response", noted, raising=False)
    return counts


def client(**changes: Any) -> RegistryClient:
    settings = {"credentials": {}, "backoff": 0.001, "timeouts": Timeouts(60, 60), "attempts": 8} | changes
    return RegistryClient(RegistryConfig(**settings))


def blob() -> oci.Descriptor:
    return oci.Descriptor(oci.OCI_LAYER_GZIP, digest_of(BLOB), len(BLOB))


def reference(server: Any) -> Reference:
    return Reference.parse(f"{server.address}/team/app")


def ranges(proxy: FaultyProxy) -> list[str]:
    return [passed.range for passed in proxy.log if passed.range]


@pytest.mark.parametrize("offset", [0, 1_000_003])
def test_a_blob_on_a_slow_network_comes_on_several_connections(offset: int, server: RegistryServer) -> None:
    limits = Limits()
    with (
        FaultyProxy(server.address, bandwidth=SLOW) as proxy,
        client(limits=limits) as registry,
        registry.open_blob(reference(proxy), blob(), offset=offset) as stream,
    ):
        assert read_all(stream) == BLOB[offset:]
        assert stream.offset == len(BLOB)
        assert stream.readinto(bytearray(10)) == 0
        assert proxy.most_connections > 3
        assert len(ranges(proxy)) > 3
    assert (limits._used, limits._shares, limits._ahead) == (0, 0, 0)


class Clock:
    """Stands in for the module ``time``: nothing takes any but what says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    stands_in = Clock()
    for module in (ahead, stretch):
        monkeypatch.setattr(module, "time", stands_in)
    return stands_in


def test_a_blob_on_a_fast_network_is_one_request(server: RegistryServer, clock: Clock) -> None:
    """A reader that is slower than the network finds its bytes there."""
    server.requests.clear()
    with client() as registry, registry.open_blob(reference(server), blob()) as stream:
        buffer = memoryview(bytearray(1 << 16))
        while stream.readinto(buffer):
            clock.now += 0.01
    assert len(server.requests) == 1


def test_no_more_connections_than_the_limit_says(
    server: RegistryServer, reading: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the reader goes on late, when a helper has its place already."""
    take = ahead.Ahead.take

    def take_late(one: ahead.Ahead, *arguments: Any) -> int:
        alone, count = one._alone, take(one, *arguments)
        if alone and count:
            threading.Event().wait(0.1)
        return count

    monkeypatch.setattr(ahead.Ahead, "take", take_late)
    with FaultyProxy(server.address, bandwidth=SLOW) as proxy:
        with (
            client(limits=Limits(connections=1)) as registry,
            registry.open_blob(reference(proxy), blob()) as stream,
        ):
            assert read_all(stream) == BLOB
        proxy.settle()
        assert len(proxy.log) == 1
    with FaultyProxy(server.address, bandwidth=SLOW) as proxy:
        with (
            client(limits=Limits(connections=3)) as registry,
            registry.open_blob(reference(proxy), blob()) as stream,
        ):
            assert read_all(stream) == BLOB
        assert 2 <= max(reading) <= 3


@pytest.mark.parametrize("memory", [AHEAD_MAX, 3 << 20])
@pytest.mark.parametrize("faults", [(), ("truncated", "cut", "503")])
def test_several_blobs_keep_to_the_limit_together_whatever_becomes_of_helpers(
    memory: int,
    faults: tuple[str, ...],
    server: RegistryServer,
    reading: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lamella.registry import limits as module

    monkeypatch.setattr(module, "AHEAD_MAX", memory)
    limits = Limits(connections=12)

    def fetch(_: int) -> bool:
        with registry.open_blob(reference(proxy), blob()) as stream:
            return read_all(stream) == BLOB

    with (
        FaultyProxy(server.address, bandwidth=SLOW, seed=2, faults=faults, rate=0.4) as proxy,
        client(attempts=12, limits=limits) as registry,
        ThreadPoolExecutor(4) as pool,
    ):
        assert all(pool.map(fetch, range(4)))
    assert 4 < max(reading) <= 12
    assert reading[-1] == 0
    assert (limits._used, limits._shares, limits._ahead) == (0, 0, 0)


def test_a_bandwidth_is_no_reason_for_more_connections(
    server: RegistryServer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pay(count: int, _: Any) -> None:
        clock.now += count / 6e6

    limits = Limits(bandwidth=6e6)
    monkeypatch.setattr(limits, "pay", pay)
    server.requests.clear()
    with client(limits=limits) as registry, registry.open_blob(reference(server), blob()) as stream:
        assert read_all(stream) == BLOB
    assert clock.now > 1002
    assert len(server.requests) == 1


def test_what_helpers_bring_is_paid_for_too(server: RegistryServer, monkeypatch: pytest.MonkeyPatch) -> None:
    limits, paid = Limits(bandwidth=1e9), list[tuple[str, int]]()
    monkeypatch.setattr(limits, "pay", lambda count, _: paid.append((threading.current_thread().name, count)))
    with (
        FaultyProxy(server.address, bandwidth=SLOW) as proxy,
        client(limits=limits) as registry,
        registry.open_blob(reference(proxy), blob()) as stream,
    ):
        assert read_all(stream) == BLOB
    assert sum(count for _, count in paid) >= len(BLOB)
    assert "lamella-ahead" in {name for name, _ in paid}


def slowly(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), 200_000):
        yield data[start : start + 200_000]
        threading.Event().wait(0.02)


def test_a_server_that_gives_no_ranges_is_read_to_its_end() -> None:
    length = {"Content-Length": str(len(BLOB))}
    with (
        ScriptedServer(lambda _: Reply(200, length, slowly(BLOB))) as scripted,
        client() as registry,
        registry.open_blob(reference(scripted), blob()) as stream,
    ):
        assert read_all(stream) == BLOB
    assert 1 < len(scripted.asked) <= 1 + 2 * ahead.FIRST_HELPERS


@pytest.mark.parametrize("answer", [403, 404, 429, 500, "another range", "the rest", "too little"])
def test_helpers_that_get_wrong_answers_leave_it_to_the_reader(answer: Any) -> None:
    def script(asked: Asked) -> Reply:
        start, _, end = asked.headers.get("range", "bytes=0-").removeprefix("bytes=").partition("-")
        last = int(end or len(BLOB) - 1)
        if not end:
            headers = {"Content-Length": str(len(BLOB) - int(start))}
            if int(start):
                headers["Content-Range"] = f"bytes {start}-{last}/{len(BLOB)}"
            return Reply(206 if int(start) else 200, headers, slowly(BLOB[int(start) :]))
        if isinstance(answer, int):
            return Reply(answer)
        if answer == "another range":
            headers = {"Content-Range": f"bytes {int(start) + 1}-{last}/{len(BLOB)}"}
            return Reply(206, headers, BLOB[int(start) + 1 : last + 1])
        if answer == "the rest":
            headers = {"Content-Range": f"bytes {start}-{len(BLOB) - 1}/{len(BLOB)}"}
            return Reply(206, headers, BLOB[int(start) :])
        headers = {"Content-Range": f"bytes {start}-{int(start) + 9}/{len(BLOB)}"}
        return Reply(206, headers, BLOB[int(start) : int(start) + 10])

    with (
        ScriptedServer(script) as scripted,
        client(attempts=2) as registry,
        registry.open_blob(reference(scripted), blob()) as stream,
    ):
        assert read_all(stream) == BLOB
    assert len(scripted.asked) > 1


def test_what_the_reader_meets_itself_is_its_error() -> None:
    """The connection breaks for good at the same byte for all."""
    wall = 5_000_000

    def script(asked: Asked) -> Reply:
        start, _, end = asked.headers.get("range", "bytes=0-").removeprefix("bytes=").partition("-")
        first, last = int(start), int(end or len(BLOB) - 1)
        headers = {"Content-Length": str(last + 1 - first)}
        if "range" in asked.headers:
            headers["Content-Range"] = f"bytes {first}-{last}/{len(BLOB)}"
        body = BLOB[first : min(last + 1, max(wall, first))]
        return Reply(206 if "range" in asked.headers else 200, headers, slowly(body))

    limits = Limits()
    with ScriptedServer(script) as scripted, client(attempts=3, limits=limits) as registry:
        received = bytearray()
        with registry.open_blob(reference(scripted), blob()) as stream:
            buffer = memoryview(bytearray(1 << 16))
            with pytest.raises(Unavailable, match="broke off"):
                while count := stream.readinto(buffer):
                    received += buffer[:count]
        assert received == BLOB[:wall]
    assert (limits._used, limits._shares, limits._ahead) == (0, 0, 0)


@pytest.mark.parametrize("seed", [1, 2, 4, 6])
def test_parts_through_faults_are_right(seed: int, server: RegistryServer) -> None:
    """With each of these seeds the first answer breaks off before the reader comes to what helpers bring."""
    faults = [fault for fault in HONEST if fault not in {"stalled", "dripping"}]
    with (
        FaultyProxy(server.address, bandwidth=SLOW, seed=seed, faults=faults, rate=0.5) as proxy,
        client(attempts=12) as registry,
        registry.open_blob(reference(proxy), blob()) as stream,
    ):
        assert read_all(stream) == BLOB
        assert proxy.met.total()


def test_wrong_bytes_in_a_part_are_for_the_digest_to_find(server: RegistryServer) -> None:
    with (  # with this seed the first answer is wrong before the reader comes to what helpers bring
        FaultyProxy(server.address, bandwidth=SLOW, seed=1, faults=LYING, rate=1) as proxy,
        client() as registry,
    ):
        try:
            with registry.open_blob(reference(proxy), blob()) as stream:
                data = read_all(stream)
        except LamellaError:
            return
        assert len(data) == len(BLOB)
        assert digest_of(data) != digest_of(BLOB)


@pytest.mark.parametrize("what", ["stream", "client"])
def test_an_interruption_ends_readers_and_helpers(what: str, server: RegistryServer) -> None:
    limits = Limits()
    with (
        FaultyProxy(server.address, bandwidth=1e6) as proxy,
        client(limits=limits) as registry,
        registry.open_blob(reference(proxy), blob()) as stream,
    ):
        buffer = memoryview(bytearray(1 << 16))
        while proxy.most_connections < 3:
            assert stream.readinto(buffer)
        proxy.bandwidth = 1e3  # from now on all wait for what does not come in time
        timer = threading.Timer(0.1, stream.interrupt if what == "stream" else registry.interrupt)
        timer.start()
        with pytest.raises(Cancelled):
            while stream.readinto(buffer):
                pass
        timer.join()
    assert (limits._used, limits._shares, limits._ahead) == (0, 0, 0)


def test_a_stream_that_is_left_in_the_middle_leaves_nothing(server: RegistryServer) -> None:
    limits = Limits()
    with FaultyProxy(server.address, bandwidth=2e6) as proxy, client(limits=limits) as registry:
        with registry.open_blob(reference(proxy), blob()) as stream:
            while proxy.most_connections < 3:
                assert stream.readinto(bytearray(1 << 16))
            assert 0 < limits._ahead <= AHEAD_MAX
        assert (limits._used, limits._shares, limits._ahead) == (0, 0, 0)


def test_streams_that_are_read_in_turns_by_one_thread_all_get_to_their_end(
    server: RegistryServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the memory for parts ahead is all another one's."""
    from lamella.registry import limits as module

    monkeypatch.setattr(module, "AHEAD_MAX", 3 << 20)
    with FaultyProxy(server.address, bandwidth=SLOW) as proxy, client() as registry:
        streams = [registry.open_blob(reference(proxy), blob()) for _ in range(3)]
        received = [bytearray() for _ in streams]
        buffer = memoryview(bytearray(1 << 16))
        while any(len(data) < len(BLOB) for data in received):
            for stream, data in zip(streams, received, strict=True):
                data.extend(buffer[: stream.readinto(buffer)])
        for stream in streams:
            stream.close()
        assert all(data == BLOB for data in received)
