"""Changing limits of containers: of those that run, of those that do not, and never by half."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path

import pytest

from lamella.errors import InvalidArgument, LamellaError, NotFound, ResourceExhausted
from waiting import until

pytestmark = pytest.mark.privileged
MEBIBYTE = 1 << 20


@pytest.fixture
def box(client, small_image):
    client.images.pull(small_image)
    box = client.containers.create(
        small_image, ["sleep", "1000"], name="box", memory="32m", pids_limit=10, restart_policy="always"
    )
    yield box
    box.remove(force=True)


def resources(box):
    return box.spec["linux"]["resources"]


def test_a_running_container_has_its_new_limits_at_once_and_at_its_next_start(client, box):
    box.start()
    box.update(memory="64m", pids_limit=20, cpus=0.5, cpuset="0")
    for again in (False, True):
        if again:
            box.stop(0)
            box.start()
        used = box.stats()
        assert (used.memory.limit, used.pids.limit) == (64 * MEBIBYTE, 20)
        assert os.sched_getaffinity(box.pid) == {0}
    assert resources(client.containers.get("box"))["cpu"] == {"quota": 50_000, "period": 100_000, "cpus": "0"}
    box.restart(0)  # by the monitor, from the bundle
    assert box.stats().pids.limit == 20
    box.update(pids_limit=30)
    box.restart(0)
    assert box.stats().pids.limit == 30
    box.update(memory=-1, pids_limit=-1)
    assert box.stats().pids.limit is None
    assert box.stats().memory.limit > 64 * MEBIBYTE


def test_one_that_does_not_run_starts_with_them_whoever_starts_it(client, box):
    other = client.containers.get("box")
    box.update(pids_limit=20)
    assert resources(box)["pids"] == {"limit": 20}
    other.start()
    assert other.stats().pids.limit == 20
    assert resources(other)["pids"] == {"limit": 20}


def test_what_is_refused_changes_nothing_of_the_record_the_bundle_or_the_kernel(client, box):
    box.start()
    before = (resources(box), (box.task.folder / "config.json").read_bytes(), box.stats().memory.limit)
    for limits, error in (
        ({"memory": "128m", "pids_limit": 20, "cpuset": "9999"}, InvalidArgument),
        ({"memory": "1m"}, InvalidArgument),
        ({"pids_limit": 50, "memory_swap": "16m"}, InvalidArgument),
        ({}, InvalidArgument),
    ):
        with pytest.raises(error):
            box.update(**limits)
    with pytest.raises(TypeError, match="colour"):
        box.update(colour="red")
    box = client.containers.get("box")
    after = (resources(box), (box.task.folder / "config.json").read_bytes(), box.stats().memory.limit)
    assert after == before
    assert box.stats().pids.limit == 10


def test_less_memory_than_is_in_use_is_refused_and_kills_nobody(client, small_image):
    script = "x=$(printf %16777216s x); y=$x$x; echo ready; read x"
    with client.images.pull(small_image) and client.containers.create(
        small_image, ["sh", "-c", script], memory="256m", stdin=True
    ).start(attach=True) as attached:
        assert next(iter(attached)) == ("stdout", b"ready\n")
        (box,) = client.containers.list()
        with pytest.raises(LamellaError, match=r"memory\.limit"):
            box.update(memory="8m")
        assert (box.status, box.stats().memory.limit) == ("running", 256 * MEBIBYTE)
        assert resources(client.containers.get(box.id))["memory"]["limit"] == 256 * MEBIBYTE
        box.remove(force=True)


def test_a_record_that_cannot_be_written_takes_the_kernels_limits_back(client, box, monkeypatch):
    box.start()
    real = type(client.database).write
    limits = []

    @contextmanager
    def write(database):
        with real(database) as db:
            yield db
            limits.append(box.stats().pids.limit)
            raise ResourceExhausted("the disk is full")

    monkeypatch.setattr(type(client.database), "write", write)
    with pytest.raises(ResourceExhausted):
        box.update(pids_limit=20)
    assert (limits, box.stats().pids.limit) == ([20], 10)
    assert resources(client.containers.get("box"))["pids"] == {"limit": 10}


def test_one_that_was_removed_is_not_found_and_nothing_is_left_of_it(client, box):
    other = client.containers.get("box")
    box.remove()
    with pytest.raises(NotFound):
        other.update(pids_limit=20)
    assert not Path(other.task.folder).exists()
    assert not Path(other.task.log_folder).exists()


# Restart policy


def test_a_policy_can_be_given_to_one_that_runs_and_taken_from_it(client, small_image, tmp_path):
    client.images.pull(small_image)
    end = tmp_path / "shared/end"
    end.parent.mkdir()
    box = client.containers.create(
        small_image,
        ["sh", "-c", "while ! rm /shared/end; do sleep 0.02; done; exit 3"],
        name="end",
        volumes=[f"{end.parent}:/shared"],
    )
    stale = client.containers.get("end")
    box.start()
    box.update(restart_policy="always")
    assert str(client.containers.get("end").record.extra.restart) == "always"
    for count in (1, 2):
        end.touch()  # not by an exec, which its end might come before
        until(lambda: box.restart_count == count and box.status == "running")  # noqa: B023
    box.update(restart_policy={"Name": "no"})
    end.touch()
    assert box.wait(30) == 3
    assert box.status == "stopped"
    box.update(restart_policy="always")
    box.start()
    assert stale.stop(0) == 137  # by an object that does not know of the policy yet
    assert box.status == "stopped"
    box.remove()


def test_a_policy_is_changed_with_the_limits_or_not_at_all(client, box, monkeypatch):
    box.start()
    with pytest.raises(InvalidArgument):
        box.update(restart_policy="sometimes", pids_limit=20)
    with pytest.raises(InvalidArgument):
        box.update(restart_policy="no", pids_limit=-7)
    assert (str(box.record.extra.restart), box.stats().pids.limit) == ("always", 10)
    once = client.containers.create(box.image, ["true"], auto_remove=True)
    with pytest.raises(InvalidArgument, match="removed at its end"):
        once.update(restart_policy="always")
    once.update(restart_policy="no")
    once.remove()
