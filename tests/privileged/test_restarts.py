"""Containers that are run again: by their policy, by their user, and never against their user's will."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import lamella
from chance import NIGHTLY
from lamella.errors import CommandNotFound, FailedPrecondition, InvalidArgument, LamellaError
from monitors import cgroups, memory_of, monitor_of
from waiting import until

pytestmark = [pytest.mark.privileged, pytest.mark.rootless]


@pytest.fixture
def create(client, image):
    boxes = []

    def call(script: str, **options: Any):
        boxes.append(client.containers.create(image, ["/bin/sh", "-c", script], **options))
        return boxes[-1]

    yield call
    for box in boxes:
        box.remove(force=True)


def output(box) -> str:
    return b"".join(data for _, data in box.logs()).decode()


COUNT = "n=$(cat /n 2>/dev/null || echo 0); n=$((n+1)); echo $n > /n; echo run $n; "


# Policies


def test_a_failure_is_tried_again_until_it_succeeds(create):
    box = create(COUNT + "[ $n -eq 3 ] || exit 7", restart_policy="on-failure")
    box.start()
    assert box.wait(60) == 0
    assert (box.status, box.exit_code, box.restart_count) == ("stopped", 0, 2)
    assert output(box) == "run 1\nrun 2\nrun 3\n"


def test_a_failure_is_tried_again_only_so_often(create):
    box = create(COUNT + "exit 7", restart_policy={"Name": "on-failure", "MaximumRetryCount": 2})
    box.start()
    assert box.wait(60) == 7
    assert (box.restart_count, output(box)) == (2, "run 1\nrun 2\nrun 3\n")
    document = box.inspect()
    assert (document["restart_policy"], document["restart_count"]) == ("on-failure:2", 2)
    box.start()  # counts anew
    assert box.wait(60) == 7
    assert output(box).count("run") == 6


def test_without_a_policy_the_first_end_is_the_end(create):
    box = create(COUNT + "exit 7")
    box.start()
    assert box.wait(60) == 7
    assert (box.restart_count, box.inspect()["last_run"]) == (0, None)


@pytest.mark.parametrize("policy", ["always", "unless-stopped"])
def test_always_runs_again_after_success_too_until_it_is_stopped(create, policy):
    box = create(COUNT, restart_policy=policy)
    box.start()
    until(lambda: box.restart_count >= 3)
    assert box.stop() == 0
    assert box.status == "stopped"
    count = output(box).count("run")
    time.sleep(1)
    assert output(box).count("run") == count
    assert box.wait(1) == 0


@pytest.mark.parametrize("end", ["stop", "kill", "signal"])
def test_what_its_user_ends_is_not_run_again(create, end):
    box = create("trap 'exit 3' TERM; echo up; while :; do sleep 0.02; done", restart_policy="always")
    box.start()
    until(lambda: output(box))
    if end == "stop":
        assert box.stop() == 3
    elif end == "kill":
        box.kill()
        assert box.wait(30) == 137
    else:
        os.kill(monitor_of(box), signal.SIGTERM)  # as when the machine is shut down
        assert box.wait(30) == 3
    assert (box.status, box.restart_count) == ("stopped", 0)


def test_another_signal_does_not_end_the_policy(create):
    script = "trap 'exit 5' USR1; " + COUNT + "while :; do sleep 0.02; done"
    box = create(script, restart_policy="on-failure")
    box.start()
    until(lambda: output(box) == "run 1\n")
    box.kill("SIGUSR1")
    until(lambda: output(box) == "run 1\nrun 2\n")
    assert box.inspect()["last_run"]["exit"]["exit_code"] == 5


def test_a_policy_that_is_none_and_one_with_remove_are_refused(client, image):
    for policy in ("sometimes", "always:3", "on-failure:x", {"name": "always"}, 7):
        with pytest.raises(InvalidArgument):
            client.containers.create(image, ["true"], restart_policy=policy)
    for detach in (False, True):
        with pytest.raises(InvalidArgument, match="removed at its end"):
            client.containers.run(image, ["true"], remove=True, restart_policy="always", detach=detach)
    assert client.containers.list(all=True) == []


# Between two runs


@pytest.fixture
def waiting(create):
    """Give a container that waits for a run that is more than a second away; a run that finds /stay is the last."""
    box = create(COUNT + "[ -e /stay ] && exec sleep 600; exit 4", restart_policy="always")
    box.start()
    until(lambda: box.restart_count >= 5 and box.status == "restarting")
    return box


@contextmanager
def held(box) -> Iterator[None]:
    """Hold the next run of a container back that waits for it, for however long the block takes."""
    with ExitStack() as stack:

        def hold() -> bool:
            stack.close()  # of a run that had begun in the meantime
            with suppress(LamellaError):
                stack.enter_context(box.task.frozen())
            return box.status == "restarting"

        until(hold)
        yield


def test_a_container_that_waits_says_so(client, waiting):
    with held(waiting):
        says_that_it_waits(client, waiting)


def says_that_it_waits(client, waiting) -> None:
    assert waiting in client.containers.list()
    document = waiting.inspect()
    assert (document["status"], document["exit_code"], document["pid"]) == ("restarting", 4, None)
    assert document["last_run"]["next_run_at"] > document["last_run"]["exit"]["exited_at"]
    until(lambda: cgroups(waiting) == [])  # which go once the end is told
    for action in (
        lambda: waiting.exec(["/bin/true"]),
        waiting.attach,
        waiting.pause,
        lambda: waiting.kill("SIGHUP"),
    ):
        with pytest.raises(FailedPrecondition, match="waits to be run again"):
            action()
    with pytest.raises(FailedPrecondition, match="running"):
        waiting.start()
    with pytest.raises(FailedPrecondition, match="running"):
        waiting.remove()


def test_the_next_run_waits_for_who_holds_a_container_between_two(waiting):
    with held(waiting):
        runs = output(waiting).count("run")
        asks = threading.Thread(target=waiting.restart)
        asks.start()
        time.sleep(0.3)
        assert (waiting.status, output(waiting).count("run")) == ("restarting", runs)
    asks.join(30)
    until(lambda: output(waiting).count("run") > runs)


def test_one_that_waits_can_be_committed_and_goes_on(client, waiting):
    images = [waiting.commit(), waiting.commit("kept:1"), waiting.commit(pause=False)]
    for image in images:
        assert client.containers.run(image, ["cat", "/n"], remove=True).stdout.strip().isdigit()
    runs = output(waiting).count("run")
    waiting.restart()
    until(lambda: output(waiting).count("run") > runs)


def test_stopping_one_that_waits_ends_it_as_its_last_run_did(waiting):
    assert waiting.stop() == 4
    assert (waiting.status, waiting.wait(1)) == ("stopped", 4)


def test_one_that_waits_can_be_removed_by_force(client, waiting):
    folder = waiting.task.folder
    waiting.remove(force=True)
    assert client.containers.list(all=True) == []
    assert not folder.exists()


def test_one_that_waits_can_be_restarted_at_once(client, waiting):
    (client.snapshots.layer_paths(waiting.snapshot_key)[0] / "stay").touch()
    count = output(waiting).count("run")
    waiting.restart()
    until(lambda: output(waiting).count("run") > count)
    assert (waiting.status, waiting.restart_count) == ("running", 0)


def test_a_monitor_that_is_killed_between_two_runs_leaves_what_can_be_started_again(client, waiting):
    os.kill(_monitor_pid(waiting), signal.SIGKILL)
    until(lambda: waiting.status == "unknown")
    with pytest.raises(FailedPrecondition):
        waiting.wait(1)
    waiting.start()
    until(lambda: waiting.restart_count >= 1)
    waiting.stop()


def _monitor_pid(box) -> int:
    import msgspec

    from lamella.containers.monitor import Connection

    connection = Connection.open(box.task.folder)
    connection.request({"op": "state"})
    frame = connection.receive()
    connection.close()
    return int(msgspec.json.decode(frame[1])["monitor_pid"])


# What stays, and what is made anew


def test_who_waits_is_attached_or_follows_stays_over_all_runs(create):
    box = create(COUNT + "sleep 0.1; [ $n -eq 4 ] || exit 1", restart_policy="on-failure")
    attached = box.start(attach=True)
    found: dict[str, Any] = {}
    threads = [
        threading.Thread(target=lambda: found.update(followed=b"".join(d for _, d in box.logs(follow=True)))),
        threading.Thread(target=lambda: found.update(exit=box.wait(60))),
    ]
    for thread in threads:
        thread.start()
    with attached:
        assert b"".join(data for _, data in attached) == b"run 1\nrun 2\nrun 3\nrun 4\n"
        assert attached.exit.exit_code == 0
    for thread in threads:
        thread.join(60)
    assert found == {"followed": b"run 1\nrun 2\nrun 3\nrun 4\n", "exit": 0}


@pytest.mark.needs_root  # a cgroup
def test_a_run_has_its_snapshot_again_and_processes_memory_and_limits_of_its_own(create):
    script = COUNT + "touch /dev/shm/x$n; ls /dev/shm; cat /proc/self/mounts | wc -l; [ $n -eq 3 ] || exit 1"
    box = create(script, restart_policy="on-failure", memory="64m", tmpfs=["/tmp"])
    box.start()
    assert box.wait(60) == 0
    lines = output(box).split("\n")
    assert [line for line in lines if line.startswith("x")] == ["x1", "x2", "x3"]
    assert len({line for line in lines if line.isdigit()}) == 1
    box.remove()
    assert cgroups(box) == []


def test_a_network_namespace_that_is_given_by_its_path_stays_and_others_are_made_anew(create):
    other = create("sleep 600")
    other.start()
    path = f"/proc/{other.pid}/ns/net"

    def join(spec: dict[str, Any]) -> None:
        for namespace in spec["linux"]["namespaces"]:
            if namespace["type"] == "network":
                namespace["path"] = path

    script = COUNT + "ls -l /proc/self/ns/net /proc/self/ns/ipc; [ $n -eq 3 ] || exit 1"
    box = create(script, restart_policy="on-failure", spec=join)
    box.start()
    assert box.wait(60) == 0
    names = re.findall(r"-> (\w+):\[(\d+)\]", output(box))
    assert [name for name, _ in names] == ["ipc", "net"] * 3 or [name for name, _ in names] == [
        "net",
        "ipc",
    ] * 3
    assert {number for name, number in names if name == "net"} == {str(Path(path).stat().st_ino)}


def test_exec_works_in_every_run(create):
    box = create(COUNT + "while ! [ -e /go$n ]; do sleep 0.02; done; exit 1", restart_policy="always")
    box.start()
    for number in range(1, 4):
        until(lambda number=number: output(box).endswith(f"run {number}\n") and box.status == "running")
        assert box.exec(["/bin/sh", "-c", "cat /n; touch /go$(cat /n)"]).stdout == b"%d\n" % number


def test_input_goes_to_the_present_run(create):
    box = create(COUNT + "read line; echo got $line; exit 1", restart_policy="always", stdin=True)
    with box.start(attach=True) as attached:
        pieces = iter(attached)
        for number in range(1, 4):
            text = b""
            while f"run {number}\n".encode() not in text:
                text += next(pieces)[1]
            attached.write_stdin(b"line %d\n" % number)
            while f"got line {number}\n".encode() not in text:
                text += next(pieces)[1]
        box.kill()


def test_events_tell_of_every_run(client, create):
    box = create(COUNT + "[ $n -eq 3 ] || exit 6", restart_policy="on-failure")
    with client.events(timeout=30) as stream:
        box.start()
        box.wait(60)
        box.remove()
        events = []
        while not events or events[-1].topic != "/containers/delete":
            events.append(next(stream))
    tasks = [event for event in events if event.topic.startswith("/tasks/")]
    run = ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]
    assert [event.topic for event in tasks] == run * 3
    assert [event.event["exit_status"] for event in tasks if event.topic == "/tasks/delete"] == [6, 6, 0]
    pids = [event.event["pid"] for event in tasks if event.topic == "/tasks/start"]
    assert len(set(pids)) == 3


@pytest.mark.needs_root  # a cgroup
def test_out_of_memory_is_a_failure_that_is_tried_again(create):
    box = create(
        COUNT + "[ $n -eq 2 ] && exit; x=a; while :; do x=$x$x; done",
        restart_policy="on-failure",
        memory="16m",
    )
    box.start()
    assert box.wait(60) == 0
    last = box.inspect()["last_run"]["exit"]
    assert (last["exit_code"], last["oom_killed"], box.restart_count) == (137, True, 1)


def test_a_program_that_is_gone_in_a_later_run_is_told_and_tried_again(client, create, image):
    box = client.containers.create(image, ["/tool"], restart_policy="always", name="tool")
    tool = client.snapshots.layer_paths("tool")[0] / "tool"
    try:
        tool.write_text("#!/bin/sh\necho ran; rm /tool\n")
        tool.chmod(0o755)
        box.start()
        until(lambda: (box.inspect()["last_run"] or {}).get("error"))
        last = box.inspect()["last_run"]
        assert "/tool" in last["error"]
        assert last["exit"]["exit_code"] == 127
        tool.write_text("#!/bin/sh\necho ran again\n")
        tool.chmod(0o755)
        until(lambda: "ran again" in output(box))
    finally:
        box.remove(force=True)


# Restart by the user


def test_restart_ends_and_starts_again(create):
    box = create("trap 'echo bye; exit 0' TERM; " + COUNT + "while :; do sleep 0.02; done")
    box.start()
    first = box.pid
    until(lambda: output(box))
    monitor = monitor_of(box)
    box.restart()
    assert box.status == "running"
    assert box.pid != first
    assert monitor_of(box) == monitor
    until(lambda: output(box) == "run 1\nbye\nrun 2\n")
    assert box.restart_count == 0
    assert box.stop() == 0
    assert box.status == "stopped"  # it has no policy


@pytest.mark.needs_root  # a cgroup
def test_restart_kills_what_ignores_it_and_starts_what_does_not_run(create):
    box = create(COUNT + "trap '' TERM; while :; do sleep 0.02; done")
    box.restart()
    until(lambda: output(box) == "run 1\n")
    box.restart(timeout=0.1)
    until(lambda: output(box) == "run 1\nrun 2\n")
    box.pause()
    box.restart(timeout=0.1)
    until(lambda: output(box) == "run 1\nrun 2\nrun 3\n")
    box.kill()


def test_a_restart_that_fails_says_why(client, image):
    box = client.containers.create(image, ["/tool"], name="tool")
    tool = client.snapshots.layer_paths("tool")[0] / "tool"
    tool.write_text("#!/bin/sh\nrm /tool; echo up; sleep 600\n")
    tool.chmod(0o755)
    try:
        box.start()
        until(lambda: output(box))
        with pytest.raises(CommandNotFound, match="/tool"):
            box.restart(timeout=0.1)
        until(lambda: box.status == "stopped")
        assert box.exit_code == 127
    finally:
        box.remove(force=True)


def test_restart_and_stop_at_once_end_in_a_stop(create):
    box = create("trap 'echo asked' TERM; echo up; while :; do sleep 0.02; done")
    box.start()
    # Before it is up the signal is lost, as the first process's is that it does not expect.
    until(lambda: output(box))
    thread_errors: list[Exception] = []

    def restart() -> None:
        try:
            box.restart(timeout=30)
        except FailedPrecondition as error:
            thread_errors.append(error)

    thread = threading.Thread(target=restart)
    thread.start()
    until(lambda: "asked" in output(box))
    box.kill()
    thread.join(30)
    assert box.wait(30) == 137
    assert (box.status, len(thread_errors)) == ("stopped", 1)


@pytest.mark.needs_root  # a monitor's descriptors
def test_many_restarts_grow_nothing(create):
    box = create("exec sleep 600")
    box.start()
    monitor = monitor_of(box)

    def descriptors() -> int:
        return len(os.listdir(f"/proc/{monitor}/fd"))

    for _ in range(100):  # until the allocator has what it takes: what comes then is some pages, once
        box.restart(timeout=0)
    memory, before = memory_of(monitor), descriptors()
    further = 2000 if NIGHTLY else 400
    for _ in range(further):
        box.restart(timeout=0)
    until(lambda: descriptors() <= before)
    assert memory_of(monitor) <= memory + further * 256
    box.kill()


def test_a_terminal_keeps_its_size(create):
    box = create("sleep 600", restart_policy="always", tty=True, stdin=True)

    def size() -> tuple[int, int]:
        descriptor = os.open(f"/proc/{box.pid}/fd/0", os.O_RDWR | os.O_NOCTTY)
        try:
            return tuple(os.get_terminal_size(descriptor))
        finally:
            os.close(descriptor)

    with box.start(attach=True) as attached:
        attached.resize(33, 77)
        until(lambda: size() == (77, 33))
        box.restart(timeout=0)
        assert size() == (77, 33)
        box.kill()


def test_another_process_sees_and_ends_the_policy(client, create):
    box = create(COUNT + "exit 1", restart_policy="always")
    box.start()
    with lamella.Client(client.config.root, client.config.state) as other:
        found = other.containers.get(box.id)
        until(lambda: found.restart_count >= 2)
        assert found.stop() == 1
    assert box.status == "stopped"
