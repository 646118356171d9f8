"""How slowly an answer may come, with a clock of the test's own."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest

from lamella.registry import pace
from lamella.registry.pace import RATE_MIN, TooSlow

WINDOW = 60.0


class Line(io.RawIOBase):
    """Brings so many bytes after so many seconds, and stands in for the module ``time``."""

    def __init__(self, *pieces: tuple[float, int]) -> None:
        super().__init__()
        self.now = 1000.0
        self.pieces = list(pieces)

    def monotonic(self) -> float:
        return self.now

    def readinto(self, _: Any) -> int:
        if not self.pieces:
            return 0
        seconds, count = self.pieces.pop(0)
        self.now += seconds
        return count


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    def make(*pieces: tuple[float, int]) -> Any:
        source = Line(*pieces)
        monkeypatch.setattr(pace, "time", source)
        return pace._Pace(source, WINDOW), source

    yield make


def read(paced: Any) -> int:
    count = 0
    while piece := paced.readinto(bytearray(8192)):
        count += piece
    return count


def test_the_wait_for_the_first_byte_does_not_count(line: Any) -> None:
    paced, _ = line((59.0, 1), (59.0, 8192), (1.0, 8192))
    with pytest.raises(TooSlow):
        read(paced)
    paced, _ = line((3600.0, 1), *[(1.0, RATE_MIN)] * 600)
    assert read(paced) == 1 + 600 * RATE_MIN


@pytest.mark.parametrize(("rate", "right"), [(RATE_MIN - 1, False), (RATE_MIN, True), (RATE_MIN * 100, True)])
def test_a_drip_is_given_up_after_as_long_as_silence_is(rate: int, right: bool, line: Any) -> None:
    paced, source = line((0.0, 1), *[(1.0, rate)] * 300)
    if right:
        assert read(paced) == 1 + 300 * rate
        return
    with pytest.raises(TooSlow):
        read(paced)
    assert source.now == 1000.0 + WINDOW


def test_each_stretch_of_time_is_judged_by_what_came_in_it(line: Any) -> None:
    paced, source = line((0.0, 1), *[(1.0, 1 << 20)] * 60, *[(1.0, 10)] * 100)
    with pytest.raises(TooSlow):
        read(paced)
    assert source.now == 1000.0 + 2 * WINDOW


def test_the_readers_own_pauses_do_not_count(line: Any) -> None:
    paced, source = line(*[(0.1, 10)] * 500)
    while paced.readinto(bytearray(8192)):
        source.now += 10


def test_the_end_is_no_drip(line: Any) -> None:
    paced, _ = line((0.0, 1), (59.0, 10), (59.0, 0))
    assert read(paced) == 11
