"""Limits on connections and bandwidth, with a clock of the test's own."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from lamella.errors import Cancelled, InvalidArgument
from lamella.registry import limits as module
from lamella.registry.limits import AHEAD_MAX, PIECE_MAX, TURN, Limits


class Clock:
    """Stands in for the module ``time``: sleeping is what makes its time go on."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.naps: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    stands_in = Clock()
    monkeypatch.setattr(module, "time", stands_in)
    yield stands_in


def nothing() -> None:
    pass


def stop() -> None:
    raise Cancelled("stopped")


def test_without_a_bandwidth_nobody_waits(clock: Clock) -> None:
    limits = Limits()
    limits.pay(1 << 40, stop)
    assert clock.naps == []
    assert limits.piece == PIECE_MAX


@pytest.mark.parametrize("bandwidth", [1, 999, 1000, 50_000, 1e6, 1e9])
def test_what_is_moved_takes_as_long_as_the_bandwidth_says(bandwidth: float, clock: Clock) -> None:
    limits = Limits(bandwidth=bandwidth)
    moved, began = 0, clock.now
    for _ in range(20):
        moved += limits.piece
        limits.pay(limits.piece, nothing)
    assert clock.now - began == pytest.approx(moved / bandwidth)


def test_time_in_which_nothing_moved_is_not_made_up_for(clock: Clock) -> None:
    limits = Limits(bandwidth=1000)
    limits.pay(100, nothing)
    clock.now += 3600
    before = clock.now
    limits.pay(1000, nothing)
    assert clock.now - before == pytest.approx(1)


def test_those_who_pay_in_turns_wait_alike(clock: Clock) -> None:
    """Each turn of one is behind one of every other, also when another pays for much at once."""
    limits = Limits(bandwidth=1000)
    ends = []
    for count in (100, 100, 5000, 100):
        clock.now = 1000.0
        limits.pay(count, nothing)
        ends.append(clock.now - 1000.0)
    assert ends == pytest.approx([0.1, 0.2, 5.2, 5.3])


def test_a_wait_is_looked_at_often_and_can_be_ended(clock: Clock) -> None:
    limits = Limits(bandwidth=10)
    with pytest.raises(Cancelled):
        limits.pay(10_000, stop)
    assert clock.naps == []
    limits = Limits(bandwidth=10)
    limits.pay(100, nothing)
    assert max(clock.naps) <= TURN


@pytest.mark.parametrize(
    "wrong",
    [
        {"connections": 0},
        {"connections": -1},
        {"bandwidth": 0},
        {"bandwidth": -1.0},
        {"bandwidth": float("nan")},
    ],
)
def test_limits_that_would_let_nothing_through_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidArgument):
        Limits(**wrong)  # type: ignore[arg-type]


def test_a_blob_waits_until_another_gives_its_connection_back() -> None:
    limits = Limits(connections=2)
    first, second = limits.share(nothing), limits.share(nothing)
    with pytest.raises(Cancelled):
        limits.share(stop)
    got = threading.Event()

    def wait() -> None:
        with limits.share(nothing):
            got.set()

    thread = threading.Thread(target=wait)
    thread.start()
    assert not got.wait(0.05)
    second.close()
    assert got.wait(60)
    thread.join()
    first.close()
    assert (limits._used, limits._shares) == (0, 0)


def test_what_is_left_over_is_divided_evenly() -> None:
    limits = Limits(connections=8)
    first = limits.share(nothing)
    assert sum(first.more() for _ in range(20)) == 7
    assert not first.crowded()
    waiting = threading.Thread(target=lambda: shares.append(limits.share(nothing)))
    shares: list[module.Share] = []
    waiting.start()
    while not first.crowded():
        pass
    while first.crowded():
        first.less()
    waiting.join()
    assert first._held == 4
    assert sum(shares[0].more() for _ in range(20)) == 3
    assert not first.more()
    first.close()
    first.close()
    assert sum(shares[0].more() for _ in range(20)) == 4
    shares[0].close()
    assert (limits._used, limits._shares) == (0, 0)


def test_one_blob_more_than_connections_still_leaves_each_with_one() -> None:
    limits = Limits(connections=1)
    with limits.share(nothing) as share:
        assert not share.more()
        assert not share.crowded()


def test_memory_ahead_is_bounded_and_given_back() -> None:
    limits = Limits()
    half = AHEAD_MAX // 2
    assert limits.reserve_ahead(half)
    assert limits.reserve_ahead(half)
    assert not limits.reserve_ahead(1)
    limits.release_ahead(half)
    assert limits.reserve_ahead(half)
