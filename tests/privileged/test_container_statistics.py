"""What running containers use, and which processes they have."""

from __future__ import annotations

import pytest

from lamella.containers.processes import ProcessInfo
from lamella.errors import FailedPrecondition, InvalidArgument
from waiting import until

pytestmark = pytest.mark.privileged
MEBIBYTE = 1 << 20


@pytest.fixture
def start(client, small_image):
    """Start a shell script in a container."""
    client.images.pull(small_image)
    started = []

    def call(script: str, **options):
        box = client.containers.run(small_image, ["/bin/sh", "-c", script], detach=True, **options)
        started.append(box)
        return box

    yield call
    for box in started:
        box.remove(force=True)


def test_a_reading_says_what_a_container_uses(start):
    box = start("while :; do :; done", memory="64m", pids_limit=7, network="none")
    until(lambda: box.stats().cpu.usage > 10_000_000)
    found = box.stats()
    assert (found.id, found.name) == (box.id, box.name)
    assert 0 < found.memory.usage < 64 * MEBIBYTE
    assert found.memory.limit == 64 * MEBIBYTE
    assert (found.pids.current, found.pids.limit) == (1, 7)
    assert found.networks == {}
    assert found.cpu.percent is None


def test_a_stream_gives_the_processors_share_and_ends_with_the_container(start):
    box = start("while :; do :; done")
    shares: list[float | None] = []
    killed = False
    for found in box.stats(stream=True, interval=0.05):
        shares.append(found.cpu.percent)
        # Another may have had the processor meanwhile; and after the kill another reading may come.
        if not killed and ((found.cpu.percent or 0) > 1 or len(shares) == 1000):
            box.kill()
            killed = True
    assert shares[0] is None
    assert max(share or 0 for share in shares[1:]) > 1
    with pytest.raises(FailedPrecondition, match="not running"):
        box.stats()
    with pytest.raises(FailedPrecondition, match="not running"):
        box.stats(stream=True)


@pytest.mark.parametrize("interval", [0, -1, float("inf"), float("nan")])
def test_an_interval_has_to_be_a_time(start, interval):
    with pytest.raises(InvalidArgument, match="interval"):
        start("sleep 100").stats(stream=True, interval=interval)


def test_file_cache_that_can_be_given_back_is_not_counted_as_use(start):
    script = 'x=$(printf %1048576s x); for i in 1 2 3 4 5 6 7 8; do echo $x$x$x$x >>/file; echo "$x$x" >>/file; done; read x'
    box = start(script, stdin=True)
    found = until(lambda: found if (found := box.stats().memory).cache >= 8 * MEBIBYTE else None)
    assert found.peak >= found.cache
    assert found.usage < found.peak


def test_processes_have_their_numbers_on_both_sides_their_users_and_commands(client, start):
    box = start("sleep 1000 & sleep 1001 & wait", user="nobody")

    def asleep(count: int) -> list[ProcessInfo] | None:  # what the shell has forked is a shell at first
        found = sorted(box.top(), key=lambda process: process.pid)
        return found if sum("sleep" in process.command[0] for process in found) == count else None

    until(lambda: asleep(2))
    with box.start_exec(["/bin/sleep", "1002"], user="0"):
        found = until(lambda: asleep(3))
        assert (len(found), found[0].pid) == (4, 1)
        assert found[0].host_pid == box.pid
        assert {process.user for process in found[:3]} == {"nobody"}
        by_command = {" ".join(process.command): process for process in found}
        added = by_command["/bin/sleep 1002"]
        assert (added.user, added.uid) == ("root", 0)
        assert by_command["sleep 1000"].parent == box.pid
        assert all(process.host_pid != process.pid for process in found)
        box.kill()
    box.wait(30)
    with pytest.raises(FailedPrecondition, match="not running"):
        box.top()
