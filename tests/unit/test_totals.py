"""How far, how fast, how long: what the reports of single blobs add up to, by a clock that the test moves."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from lamella import oci
from lamella.digest import Digest
from lamella.transfer.progress import PULSE, Progress, Reporter
from lamella.transfer.totals import WINDOW, Totals

MB = 1_000_000


class Watched:
    """A reporter with a clock of its own, and what its callback got."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.seen: list[Progress] = []
        self.reporter = Reporter(self.seen.append, clock=lambda: self.now)

    def expect(self, **sizes: int) -> None:
        self.reporter.expect(
            oci.Descriptor(media_type="layer", digest=Digest(name), size=size) for name, size in sizes.items()
        )

    def say(self, name: str, phase: Any, received: int = 0, size: int = 100 * MB) -> Totals:
        self.reporter.say(Progress(phase=phase, digest=name, received=received, size=size))
        return self.total

    def move(
        self, name: str, *, start: int = 0, rate: int = 10 * MB, seconds: float, step: float = 0.1
    ) -> int:
        """Let a blob grow at a rate; give where it stands."""
        received = start
        for _ in range(round(seconds / step)):
            self.now += step
            received += round(rate * step)
            self.say(name, "downloading", received)
        return received

    @property
    def total(self) -> Totals:
        return self.seen[-1].total


@pytest.fixture
def watched() -> Watched:
    return Watched()


def test_what_is_expected_counts_before_it_begins(watched: Watched) -> None:
    watched.expect(a=30 * MB, b=70 * MB)
    assert [(report.phase, report.digest, report.size) for report in watched.seen] == [
        ("queued", "a", 30 * MB),
        ("queued", "b", 70 * MB),
    ]
    assert {report.total for report in watched.seen} == {Totals(blobs=2, size=100 * MB)}


def test_blobs_and_bytes_that_are_there_are_done(watched: Watched) -> None:
    watched.expect(a=30 * MB, b=70 * MB, c=MB)
    watched.say("a", "exists", 0, 30 * MB)
    total = watched.say("c", "mounted", 0, MB)
    assert (total.done, total.blobs, total.received, total.size) == (2, 3, 31 * MB, 101 * MB)
    assert (total.moved, total.rate, total.seconds_left) == (0, 0.0, None)


def test_the_rate_is_that_of_the_bytes_and_tells_the_time_left(watched: Watched) -> None:
    watched.expect(a=100 * MB)
    watched.say("a", "downloading")
    watched.move("a", seconds=2)
    assert watched.total.rate == pytest.approx(10 * MB)
    assert watched.total.seconds_left == pytest.approx(8)


def test_there_is_no_rate_before_it_can_be_told(watched: Watched) -> None:
    """A buffer that comes at once would else be 10 GB a second."""
    watched.expect(a=100 * MB)
    watched.say("a", "downloading")
    watched.now += 0.001
    total = watched.say("a", "downloading", 10 * MB)
    assert (total.rate, total.seconds_left) == (0.0, None)
    watched.now += 0.999
    assert watched.say("a", "downloading", 10 * MB).rate == pytest.approx(10 * MB)


def test_the_rate_follows_the_last_seconds(watched: Watched) -> None:
    watched.say("a", "downloading")
    stands = watched.move("a", rate=MB, seconds=20)
    assert watched.total.rate == pytest.approx(MB)
    watched.move("a", start=stands, rate=4 * MB, seconds=WINDOW + 1)
    assert watched.total.rate == pytest.approx(4 * MB)


def test_blobs_at_once_add_up(watched: Watched) -> None:
    watched.expect(a=100 * MB, b=100 * MB)
    watched.say("a", "downloading")
    watched.say("b", "downloading")
    for tenth in range(1, 21):
        watched.now += 0.1
        watched.say("a", "downloading", tenth * MB)
        watched.say("b", "downloading", tenth * 2 * MB)
    assert watched.total.rate == pytest.approx(30 * MB)
    assert watched.total.seconds_left == pytest.approx((200 - 60) / 30)


def test_what_is_resumed_counts_as_received_and_not_as_speed(watched: Watched) -> None:
    watched.expect(a=100 * MB)
    watched.say("a", "downloading", 80 * MB)
    watched.move("a", start=80 * MB, rate=MB, seconds=2)
    assert (watched.total.received, watched.total.moved) == (82 * MB, 2 * MB)
    assert watched.total.rate == pytest.approx(MB)
    assert watched.total.seconds_left == pytest.approx(18)


def test_what_another_pull_brings_counts_as_received_and_not_as_speed(watched: Watched) -> None:
    watched.expect(a=100 * MB)
    for second in range(1, 5):
        watched.now += 1
        watched.say("a", "waiting", second * 10 * MB)
    assert watched.total == Totals(blobs=1, received=40 * MB, size=100 * MB)
    total = watched.say("a", "done", 100 * MB)
    assert (total.received, total.moved, total.rate, total.seconds_left) == (100 * MB, 0, 0.0, 0.0)


def test_time_without_anything_on_its_way_does_not_slow_the_rate_down(watched: Watched) -> None:
    watched.expect(a=20 * MB, b=100 * MB)
    watched.say("a", "downloading", 0, 20 * MB)
    watched.move("a", seconds=2)
    watched.say("a", "done", 20 * MB, 20 * MB)
    watched.now += 60  # somebody holds the lock of the other one
    assert watched.say("b", "waiting").rate == 0.0
    watched.say("b", "downloading")
    watched.move("b", seconds=1)
    assert watched.total.rate == pytest.approx(10 * MB)


def test_the_pause_between_two_blobs_does_not_hide_the_rate(watched: Watched) -> None:
    watched.say("a", "downloading", 0, 20 * MB)
    watched.move("a", seconds=2)
    watched.now += 0.2
    assert watched.say("a", "done", 20 * MB, 20 * MB).rate == pytest.approx(20 * MB / 2.2)
    watched.now += 0.5
    assert watched.say("b", "queued").rate > 9 * MB


def test_a_server_that_falls_silent_slows_the_rate_down_and_that_is_told(watched: Watched) -> None:
    watched.expect(a=100 * MB)
    watched.say("a", "downloading")
    watched.move("a", seconds=5)
    rates = [watched.total.rate]
    while watched.now < 1000 + 5 + 2 * WINDOW:
        watched.now += 0.1
        watched.reporter.deliver()  # as the owner does every tenth of a second
    pulse = [report for report in watched.seen if not report.digest]
    assert 2 * WINDOW / PULSE - 1 <= len(pulse) <= 2 * WINDOW / PULSE
    assert {(report.phase, report.received, report.size) for report in pulse} == {
        ("downloading", 50 * MB, 100 * MB)
    }
    rates += [report.total.rate for report in pulse]
    assert rates == sorted(rates, reverse=True)
    assert (watched.total.rate, watched.total.seconds_left) == (0.0, None)
    watched.move("a", start=50 * MB, seconds=WINDOW)
    assert watched.total.rate == pytest.approx(10 * MB)


def test_nothing_is_told_where_nothing_is_on_its_way(watched: Watched) -> None:
    watched.expect(a=MB)
    told = len(watched.seen)
    watched.now += 10 * PULSE
    watched.reporter.deliver()
    assert len(watched.seen) == told


def test_a_blob_that_begins_anew_is_moved_twice(watched: Watched) -> None:
    watched.say("a", "downloading", 50 * MB)
    watched.say("a", "downloading", 60 * MB)
    watched.say("a", "downloading", 0)
    total = watched.say("a", "downloading", 20 * MB)
    assert (total.received, total.moved) == (20 * MB, 30 * MB)


def test_what_has_ended_stays_so_while_it_is_unpacked(watched: Watched) -> None:
    watched.expect(a=20 * MB)
    watched.say("a", "done", 20 * MB, 20 * MB)
    total = watched.say("a", "unpacking", 0, 20 * MB)
    assert (total.done, total.received) == (1, 20 * MB)
    assert watched.say("a", "done", 20 * MB, 20 * MB) == total


def test_the_time_left_is_unknown_until_it_is_known_what_will_come(watched: Watched) -> None:
    watched.say("a", "reading", 0)
    watched.now += 1
    total = watched.say("a", "reading", 10 * MB)
    assert total.rate == pytest.approx(10 * MB)
    assert total.seconds_left is None
    watched.expect(a=100 * MB)
    watched.now += 1
    assert watched.say("a", "reading", 20 * MB).seconds_left == pytest.approx(8)


def test_what_is_found_later_makes_the_whole_larger(watched: Watched) -> None:
    watched.expect(a=10 * MB)
    watched.say("a", "done", 10 * MB, 10 * MB)
    assert watched.total.seconds_left == 0.0
    watched.expect(a=10 * MB, signature=MB)
    assert (watched.total.blobs, watched.total.done, watched.total.size) == (2, 1, 11 * MB)
    assert watched.total.seconds_left is None


def test_a_blob_that_gets_its_digest_later_is_one_blob(watched: Watched) -> None:
    watched.say("abc/layer.tar", "reading", 0, 10 * MB)
    watched.say("abc/layer.tar", "reading", 9 * MB, 10 * MB)
    watched.reporter.rename("abc/layer.tar", "sha256:a")
    total = watched.say("sha256:a", "reading", 10 * MB, 10 * MB)
    assert (total.blobs, total.received, total.size, total.moved) == (1, 10 * MB, 10 * MB, 10 * MB)
    watched.say("def/layer.tar", "reading", 10 * MB, 10 * MB)
    watched.reporter.rename("def/layer.tar", "sha256:a")
    assert watched.say("sha256:a", "done", 10 * MB, 10 * MB) == Totals(
        blobs=1, done=1, received=10 * MB, size=10 * MB, moved=10 * MB
    )


def test_a_part_of_a_transfer_is_added_up_with_the_rest(watched: Watched) -> None:
    watched.say("a", "done", MB, MB)
    part = Reporter.of(watched.reporter)
    part.say(Progress(phase="done", digest="b", received=MB, size=MB))
    assert watched.total.done == 2


def test_reports_of_other_threads_wait_for_the_owner_and_bring_the_newest_totals(watched: Watched) -> None:
    def work() -> None:
        for received in range(0, 10 * MB + 1, MB):
            watched.reporter.say(Progress(phase="downloading", digest="a", received=received, size=10 * MB))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert watched.seen == []
    watched.reporter.deliver()
    assert [(report.received, report.total.received) for report in watched.seen] == [(10 * MB, 10 * MB)]
