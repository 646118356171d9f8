"""What tasks do, as events: told by monitors, whoever is there, in the right order, and never falsely."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

import pytest

import lamella
import waiting
from lamella.errors import CommandNotFound, FailedPrecondition
from lamella.events import EventStream, spool
from monitors import monitor_of

pytestmark = [pytest.mark.privileged, pytest.mark.rootless]

OF_A_RUN = ["/snapshot/prepare", "/containers/create", "/tasks/create", "/tasks/start"]
OF_A_REMOVAL = ["/tasks/delete", "/containers/delete", "/snapshot/remove"]


@pytest.fixture
def stream(client, image):
    with client.events(timeout=60) as opened:
        yield opened


@pytest.fixture
def box(client, image):
    """Give a container that runs until it is told otherwise."""
    container = client.containers.run(image, ["/bin/sleep", "600"], detach=True, name="box")
    yield container
    container.remove(force=True)


def until(stream: EventStream, topic: str) -> list[lamella.Event]:
    """Take events up to one of a topic."""
    events = []
    while not events or events[-1].topic != topic:
        events.append(next(stream))
    return events


def topics(events: list[lamella.Event]) -> list[str]:
    return [event.topic for event in events]


def test_a_run_tells_its_whole_life_in_order(client, image, stream):
    result = client.containers.run(image, ["/bin/sh", "-c", "exit 3"], remove=True, name="box")
    events = until(stream, "/snapshot/remove")
    assert topics(events) == [*OF_A_RUN, "/tasks/exit", *OF_A_REMOVAL]
    _, container, create, start, end, gone, *_ = (event.event for event in events)
    box = {"container_id": container["id"], "name": "box"}
    assert result.container_id == container["id"]
    bundle = client.config.state / "tasks/default" / container["id"]
    nowhere = {"stdin": "", "stdout": "", "stderr": ""}
    assert create == {**box, "pid": start["pid"], "bundle": str(bundle), "io": nowhere}
    assert start == {**box, "pid": start["pid"]}
    assert end == {
        **box,
        "id": container["id"],
        "pid": start["pid"],
        "exit_status": 3,
        "exited_at": end["exited_at"],
    }
    assert gone == {**box, "exit_status": 3, "exited_at": end["exited_at"], "pid": start["pid"]}
    assert [event.number for event in events] == list(range(events[0].number, events[0].number + 8))


def test_an_exit_is_told_before_anybody_who_waits_knows_of_it(client, image):
    for _ in range(10):
        container = client.containers.run(image, ["/bin/true"], detach=True)
        assert container.wait() == 0
        assert b"/tasks/exit" in spool.spool_path(client.config.root).read_bytes()
        container.remove()


def test_exec_tells_its_start_and_its_end(client, stream, box):
    until(stream, "/tasks/start")
    assert box.exec(["/bin/sh", "-c", "exit 4"]).exit_code == 4
    events = until(stream, "/tasks/exit")
    assert topics(events) == ["/tasks/exec-added", "/tasks/exec-started", "/tasks/exit"]
    added, started, ended = (event.event for event in events)
    assert added == {"container_id": box.id, "name": "box", "exec_id": added["exec_id"]}
    assert started == {**added, "pid": started["pid"]}
    assert (ended["id"], ended["pid"], ended["exit_status"]) == (added["exec_id"], started["pid"], 4)
    assert box.exec(["/bin/true"]).exit_code == 0
    assert next(stream).event["exec_id"] != added["exec_id"]


@pytest.mark.needs_root  # a cgroup
def test_an_exec_that_could_not_be_started_tells_nothing(client, stream, box):
    until(stream, "/tasks/start")
    with pytest.raises(CommandNotFound):
        box.exec(["/no/such"])
    box.pause()
    box.resume()
    assert next(stream).topic == "/tasks/paused"


def test_a_container_that_could_not_be_started_had_no_task(client, image, stream):
    with pytest.raises(CommandNotFound):
        client.containers.run(image, ["/no/such"])
    assert topics(until(stream, "/snapshot/remove")) == [
        "/snapshot/prepare", "/containers/create", "/containers/delete", "/snapshot/remove",
    ]  # fmt: skip


@pytest.mark.needs_root  # a cgroup
def test_pause_and_resume_are_told_once_each(client, stream, box):
    until(stream, "/tasks/start")
    for action in (box.pause, box.pause, box.resume, box.resume, box.pause):
        action()
    box.kill()
    assert topics(until(stream, "/tasks/exit")) == [
        "/tasks/paused", "/tasks/resumed", "/tasks/paused", "/tasks/resumed", "/tasks/exit",
    ]  # fmt: skip


@pytest.mark.needs_root  # a cgroup
def test_out_of_memory_is_told_before_the_exit_it_causes(client, image, stream):
    client.containers.run(
        image, ["/bin/sh", "-c", "x=a; while :; do x=$x$x; done"], memory="16m", remove=True
    )
    told = topics(until(stream, "/tasks/exit"))
    assert told[-2:] == ["/tasks/oom", "/tasks/exit"]


@pytest.mark.needs_root  # a cgroup
def test_out_of_memory_is_told_while_the_container_goes_on(client, image, stream):
    # The kernel takes the largest: what the first process has started.
    script = "(x=a; while :; do x=$x$x; done); exec sleep 600"
    container = client.containers.run(image, ["/bin/sh", "-c", script], memory="24m", detach=True)
    try:
        event = until(stream, "/tasks/oom")[-1]
        assert event.event["container_id"] == container.id
        assert container.status == "running"
    finally:
        container.remove(force=True)
    assert topics(until(stream, "/tasks/exit")).count("/tasks/oom") == 0


@pytest.mark.needs_root  # a cgroup
def test_out_of_memory_again_and_again_is_told_once_a_second(client, image, stream):
    script = "for i in 1 2 3 4 5 6 7 8 9 10; do (x=a; while :; do x=$x$x; done); done; exit 0"
    result = client.containers.run(image, ["/bin/sh", "-c", script], memory="16m", remove=True)
    assert result.exit_code == 0
    told = topics(until(stream, "/tasks/exit")).count("/tasks/oom")
    assert 1 <= told <= 2 + result.duration


def test_a_second_start_gives_the_first_exit_up(client, image, stream):
    container = client.containers.create(image, ["/bin/true"])
    for _ in range(2):
        container.start()
        container.wait()
    container.remove()
    run = ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]
    assert topics(until(stream, "/snapshot/remove")) == [
        "/snapshot/prepare", "/containers/create", *run, *run, "/containers/delete", "/snapshot/remove",
    ]  # fmt: skip


def test_a_monitor_that_was_killed_tells_no_exit_and_none_is_made_up(client, stream, box):
    until(stream, "/tasks/start")
    os.kill(monitor_of(box), signal.SIGKILL)
    waiting.until(lambda: box.status == "unknown")
    client.gc()
    box.remove()
    events = until(stream, "/snapshot/remove")
    assert topics(events) == OF_A_REMOVAL
    assert events[0].event == {"container_id": box.id, "name": "box"}


def test_a_container_outlives_its_caller_and_its_end_is_told_to_whoever_follows(client, image, stream):
    code = (
        "import sys, lamella\n"
        "client = lamella.Client(root=sys.argv[1], state=sys.argv[2])\n"
        "client.containers.run(sys.argv[3], ['/bin/sleep', '0.2'], detach=True, name='box')\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, client.config.root, client.config.state, image.name], check=True
    )
    assert topics(until(stream, "/tasks/exit")) == [*OF_A_RUN, "/tasks/exit"]
    box = client.containers.get("box")
    box.wait(60)  # which knows of the end a little later
    box.remove()


def test_processes_that_run_containers_at_once_tell_each_life_whole_and_in_order(client, image, stream):
    code = (
        "import sys, lamella\n"
        "client = lamella.Client(root=sys.argv[1], state=sys.argv[2])\n"
        "for _ in range(5): client.containers.run(sys.argv[3], ['/bin/true'], remove=True)\n"
    )
    arguments = [client.config.root, client.config.state, image.name]
    processes = [subprocess.Popen([sys.executable, "-c", code, *arguments]) for _ in range(4)]
    try:
        lives: dict[str, list[str]] = {}
        numbers = []
        while sum("/containers/delete" in life for life in lives.values()) < 20:
            event = next(stream)
            numbers.append(event.number)
            container = event.event.get("container_id") or event.event.get("id")
            if container is not None:
                lives.setdefault(container, []).append(event.topic)
    finally:
        assert [process.wait(60) for process in processes] == [0] * 4
    run = [*OF_A_RUN[1:], "/tasks/exit", *OF_A_REMOVAL[:2]]
    assert list(lives.values()) == [run] * 20
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def test_events_of_other_namespaces_stay_there(client, image, stream, small_image):
    with lamella.Client(root=client.config.root, state=client.config.state, namespace="other") as other:
        other.containers.run(other.images.pull(small_image), ["/bin/true"], remove=True)
    client.containers.run(image, ["/bin/true"], remove=True)
    assert {event.namespace for event in until(stream, "/snapshot/remove")} == {"default"}


def test_a_container_cannot_reach_the_spool(client, image):
    script = f"ls -d {client.config.root} /proc/*/fd/* 2>/dev/null; cat /proc/self/mountinfo"
    out = client.containers.run(image, ["/bin/sh", "-c", script], remove=True).stdout.decode()
    mine = [line for line in out.splitlines() if "events" in line or line == str(client.config.root)]
    assert mine == []


def test_a_spool_that_cannot_be_written_harms_no_container(client, image, stream):
    (client.config.root / "events").mkdir(exist_ok=True)
    (client.config.root / "events/spool").mkdir()
    result = client.containers.run(image, ["/bin/sh", "-c", "echo out; exit 5"])
    assert (result.stdout, result.exit_code) == (b"out\n", 5)
    (client.config.root / "events/spool").rmdir()
    client.containers.get(result.container_id).remove()
    assert topics(until(stream, "/snapshot/remove")) == [*OF_A_RUN[:2], *OF_A_REMOVAL]


@pytest.mark.needs_root  # a mount
def test_a_full_disk_harms_no_container_and_spoils_no_later_event(tmp_path, client, image):
    from lamella import _core

    small = client.config.root / "events"
    small.mkdir(exist_ok=True)
    _core.mount([("tmpfs", "tmpfs", ["size=8k", "mode=700"])], str(small))
    try:
        ballast = small / "ballast"
        ballast.write_bytes(b"x" * 4096)
        path = spool.spool_path(client.config.root)
        path.write_bytes(b"x" * 4000)  # room for a part of a line
        container = client.containers.create(image, ["/bin/true"], name="box")
        container.start()
        assert container.wait() == 0
        ballast.unlink()
        container.start()
        assert container.wait() == 0
        container.remove()
    finally:
        _core.unmount(str(small))
    with client.events(follow=False, filters=["topic~=^/tasks/"]) as events:
        told = topics(list(events))
    assert told[-4:] == ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]


def test_collection_takes_the_spool_in(client, image):
    container = client.containers.run(image, ["/bin/true"], detach=True)
    container.wait()
    client.gc()
    assert list((client.config.root / "events").iterdir()) == []
    container.remove()


def test_a_pull_and_a_removal_tell_what_they_brought_and_took(client, small_image, small_image_registry):
    def collected(**options: Any) -> list[lamella.Event]:
        with client.events(follow=False, **options) as events:
            return list(events)

    image = client.images.pull(small_image)
    pulled = collected()
    layers = len(image.manifest.layers)
    # Content comes as it arrives, the image and its snapshots together at the end.
    assert topics(pulled).count("/content/create") == layers + 2
    assert topics(pulled).count("/snapshot/commit") == layers
    assert topics(pulled).count("/images/create") == 1
    assert {"/images/create", "/snapshot/commit"} >= set(topics(pulled)[-1:])
    client.images.remove(small_image)
    client.gc()
    removed = topics(collected(since=pulled[-1].number))
    assert removed[0] == "/images/delete"
    assert removed.count("/content/delete") == layers + 2
    assert removed.count("/snapshot/remove") == layers


def test_a_running_container_keeps_a_removal_from_telling_anything(client, stream, box):
    until(stream, "/tasks/start")
    with pytest.raises(FailedPrecondition):
        box.remove()
    box.kill()
    assert next(stream).topic == "/tasks/exit"
