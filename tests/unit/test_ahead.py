"""Helpers of a reader: which places among the connections they and the reader have, and what becomes of those that fail."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from lamella.errors import Unavailable
from lamella.registry import ahead
from lamella.registry.ahead import Ahead
from lamella.registry.limits import Limits, Share
from waiting import until

SIZE = 1 << 30


def nothing() -> None:
    pass


class Part:
    """A stretch whose bytes come when the test says so."""

    def __init__(self, network: Network, start: int) -> None:
        self.network = network
        self.start = start
        self.ended = threading.Event()

    def __enter__(self) -> Part:
        self.network.open.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        self.network.open.remove(self)

    def readinto(self, view: memoryview) -> int:
        while self.start >= self.network.reach:
            threading.Event().wait(0.005)
            if self.network.broken.is_set() or self.ended.is_set():
                raise Unavailable("it broke off")
        return view.nbytes

    def interrupt(self) -> None:
        self.ended.set()


class Network:
    def __init__(self) -> None:
        self.broken = threading.Event()
        self.reach = 0
        """Parts that begin before it are there at once, others not at all."""
        self.open: list[Part] = []

    def part(self, start: int, _: int) -> Any:
        return Part(self, start)


@pytest.fixture
def network() -> Iterator[Network]:
    yield (made := Network())
    try:  # a helper that has said that it ends is there for a moment more
        until(lambda: "lamella-ahead" not in {thread.name for thread in threading.enumerate()})
    finally:
        made.broken.set()


def helped_by(network: Network, share: Share, limits: Limits) -> Ahead:
    return Ahead(SIZE, network.part, share, limits, leave=nothing)


def reader_with_helpers(network: Network, limits: Limits, monkeypatch: Any) -> tuple[Ahead, Share]:
    monkeypatch.setattr(ahead, "WINDOW", 0.0)
    monkeypatch.setattr(ahead, "WORTH", 0.0)
    share = limits.share(nothing)
    helped = helped_by(network, share, limits)
    helped.look(0, 1e9, 1)
    until(lambda: network.open)
    return helped, share


def read_to(helped: Ahead, offset: int, wanted: int) -> int:
    buffer = memoryview(bytearray(1 << 20))
    while offset < wanted:
        offset += helped.take(offset, buffer[: wanted - offset], nothing) or helped.gap(offset)
    return offset


def test_a_reader_whose_helpers_failed_has_a_place_of_its_own(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it had left its own to a helper, and others wait for each that is given back."""
    limits = Limits(connections=4)
    helped, share = reader_with_helpers(network, limits, monkeypatch)
    until(lambda: len(network.open) == 3)
    network.reach = helped.gap(0) + 1
    offset = read_to(helped, 0, network.reach)  # into the first part: a fourth helper
    until(lambda: len(network.open) == 4 and limits._used == 4)
    others: list[Share] = []
    waiting = [threading.Thread(target=lambda: others.append(limits.share(nothing))) for _ in range(4)]
    for thread in waiting:
        thread.start()
    until(lambda: limits._shares == 5)
    assert not others
    network.broken.set()
    until(lambda: not helped._helpers and len(others) >= 3)
    while count := helped.take(offset, memoryview(bytearray(1 << 20)), nothing):
        offset += count
    places = (share._held, limits._used, len(others))
    helped.close()
    share.close()
    for thread in waiting:
        thread.join()
    for each in others:
        each.close()
    assert places == (1, 4, 3)
    assert (limits._used, limits._shares, limits._ahead) == (0, 0, 0)


def test_a_reader_that_goes_on_alone_waits_for_the_place_of_a_helper(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = Limits(connections=2)
    helped, share = reader_with_helpers(network, limits, monkeypatch)
    network.reach = SIZE
    offset = read_to(helped, 0, helped.gap(0) + 1)
    until(lambda: helped._helpers == 2)
    monkeypatch.setattr(limits, "reserve_ahead", lambda _: False)  # no memory for any more parts
    while count := helped.take(offset, memoryview(bytearray(1 << 20)), nothing):
        offset += count
    with helped._changed:  # one of the two ends now, or both
        assert helped._helpers + 1 == limits._used == share._held <= 2
    helped.close()
    share.close()
    assert (limits._used, limits._shares, limits._ahead) == (0, 0, 0)


def test_where_no_thread_can_be_had_there_are_no_helpers(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    monkeypatch.setattr(ahead, "WINDOW", 0.0)
    limits = Limits()
    share = limits.share(nothing)
    helped = helped_by(network, share, limits)
    helped.look(0, 1e9, 1)
    assert helped.take(0, memoryview(bytearray(10)), nothing) == 0
    assert (helped.gap(0), limits._used) == (SIZE, 1)
    helped.close()


def test_where_no_memory_can_be_had_helpers_end_without_a_word(
    network: Network, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_memory(*_: int) -> None:
        raise MemoryError

    monkeypatch.setattr(ahead, "Part", no_memory)
    monkeypatch.setattr(ahead, "WINDOW", 0.0)
    limits = Limits()
    share = limits.share(nothing)
    helped = helped_by(network, share, limits)
    helped.look(0, 1e9, 1)
    until(lambda: not helped._helpers)
    assert helped.take(0, memoryview(bytearray(10)), nothing) == 0
    assert (limits._used, limits._ahead) == (1, 0)
    assert capsys.readouterr().err == ""
    helped.close()


class Clock:
    """Stands in for the module ``time``."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def measured(network: Network, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Ahead, Any]]:
    """Give helpers that never get a byte, and what lets a window pass: with so much of it waited, and so many bytes come."""
    clock, limits = Clock(), Limits(connections=64)
    monkeypatch.setattr(ahead, "time", clock)
    share = limits.share(nothing)
    helped = helped_by(network, share, limits)

    def window(waited: float, arrived: float, offset: int = 0) -> int:
        clock.now += ahead.WINDOW
        helped.look(offset, waited * ahead.WINDOW, int(arrived * ahead.WINDOW))
        return helped._helpers

    yield helped, window
    helped.interrupt()
    share.close()
    until(lambda: not helped._helpers)


def test_a_reader_that_is_slower_than_the_network_has_no_helpers(measured: Any) -> None:
    _, window = measured
    assert [window(0.4, 1e6) for _ in range(20)] == [0] * 20


def test_the_rest_has_to_be_worth_a_helper(measured: Any) -> None:
    _, window = measured
    assert window(0.9, 10e6, SIZE - int(9.9e6)) == 0
    assert window(0.9, 10e6, SIZE - int(10.1e6)) == ahead.FIRST_HELPERS


def test_more_are_tried_while_more_bring_more(measured: Any) -> None:
    """After each change a window passes in which connections begin."""
    _, window = measured
    first, most = ahead.FIRST_HELPERS, ahead.HELPERS_MAX
    assert window(0.9, 1e6) == first
    assert window(0.9, 9e6) == first
    assert window(0.9, 4e6) == min(2 * first, most)
    assert window(0.9, 4e6) == min(2 * first, most)
    assert window(0.9, 99e6) == most


def test_what_brings_no_gain_is_the_last_try(measured: Any) -> None:
    _, window = measured
    assert window(0.9, 1e6) == ahead.FIRST_HELPERS
    assert [window(0.9, 1.1e6) for _ in range(10)] == [ahead.FIRST_HELPERS] * 10
