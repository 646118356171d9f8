"""Words of docker-py: rename, prune, stop_timeout, output as it comes, and what a time-out of an exec ends."""

from __future__ import annotations

import os
import tempfile
import threading

import pytest

from lamella.errors import (
    AlreadyExists,
    CommandNotFound,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    Unsupported,
)
from lamella.registry.server import RegistryServer
from layers import Built, file, tar
from waiting import cut_off, until

pytestmark = [pytest.mark.privileged, pytest.mark.rootless]


@pytest.fixture
def box(client, image):
    box = client.containers.run(image, ["sleep", "1000"], name="box", detach=True)
    yield box
    box.remove(force=True)


# Names


def test_a_renamed_container_runs_on_and_its_old_name_is_free(client, image, box):
    box.rename("other")
    box.rename("other")
    assert (box.name, box.status) == ("other", "running")
    assert client.containers.get("other") == box
    with pytest.raises(NotFound):
        client.containers.get("box")
    again = client.containers.create(image, ["true"], name="box")
    assert again.snapshot_key != box.snapshot_key
    box.stop(0)
    box.remove()
    again.start()
    assert again.wait(30) == 0
    again.remove()
    assert [info for info in client.snapshots.walk() if info.kind == "active"] == []


def test_a_name_that_is_taken_or_none_is_refused(client, image, box):
    other = client.containers.create(image, ["true"], name="other")
    with pytest.raises(AlreadyExists):
        other.rename("box")
    with pytest.raises(InvalidArgument):
        other.rename("a/b")
    assert client.containers.get("other") == other
    other.remove()
    with pytest.raises(NotFound):
        other.rename("gone")


# Removing many


def test_prune_removes_what_does_not_run(client, image, box):
    ended = client.containers.run(image, ["true"], name="ended", detach=True, labels={"job": "1"})
    ended.wait(30)
    client.containers.create(image, ["true"], name="made")
    assert client.containers.prune(filters=["labels.job==1"]) == ["ended"]
    assert client.containers.prune() == ["made"]
    assert client.containers.prune() == []
    assert client.containers.list(all=True) == [box]


# Stopping


def test_a_stop_waits_as_long_as_the_container_was_created_with(client, image):
    script = "trap 'echo asked' TERM; echo ready; while :; do sleep 0.05; done"
    box = client.containers.create(image, ["sh", "-c", script], stop_timeout=0.2)
    with box.start(attach=True) as attached:
        assert next(iter(attached)) == ("stdout", b"ready\n")
        assert box.stop() == 137
    box.remove()
    for bad in (-1, float("nan"), float("inf")):
        with pytest.raises(InvalidArgument, match="stop_timeout"):
            client.containers.create(image, ["true"], stop_timeout=bad)


# Output


def test_output_is_told_as_it_comes_and_is_in_the_result_as_well(client, image, box):
    script = "echo one; read x; echo $x >&2; exit 3"
    for run in (
        lambda **options: box.exec(["sh", "-c", script], **options),
        lambda **options: client.containers.run(image, ["sh", "-c", script], remove=True, **options),
    ):
        pieces = []
        result = run(input=b"two\n", on_output=lambda stream, data: pieces.append((stream, data)))  # noqa: B023
        assert sorted(pieces) == [("stderr", b"two\n"), ("stdout", b"one\n")]
        assert (result.exit_code, result.stdout, result.stderr, result.text) == (3, b"one\n", b"two\n", "one")


def test_an_error_of_whoever_is_told_ends_the_call_and_not_the_container(box):
    def fail(stream, data):
        raise RuntimeError(data)

    with pytest.raises(RuntimeError):
        box.exec(["echo", "x"], on_output=fail)
    assert box.exec(["echo", "y"]).text == "y"


# Time-outs of an exec


def test_a_time_out_ends_sessions_orphans_and_stopped_processes_of_the_exec_and_nothing_else(box):
    script = """
        setsid sh -c 'sleep 1001 & kill -STOP $$' &
        (sh -c 'sleep 1002 &' &)
        setsid sh -c '(setsid sleep 1003 &) ; sleep 1004' &
        trap '' TERM HUP INT
        echo ready
        sleep 1005
    """
    with box.start_exec(["sleep", "1006"]):
        result = cut_off(lambda seconds: box.exec(["sh", "-c", script], timeout=seconds))
        assert (result.timed_out, result.exit_code, result.text) == (True, 137, "ready")
        found = until(lambda: found if len(found := box.top()) <= 2 else None)
        assert [process.command for process in found] == [["sleep", "1000"], ["sleep", "1006"]]


# Execs that nobody waits for, and containers that remove themselves


def test_an_exec_that_is_left_goes_on_unheard(box):
    left = box.exec(
        ["sh", "-c", "echo heard by nobody; echo $WORD > /tmp/left; sleep 100"],
        environment=["WORD=x"],
        detach=True,
    )
    assert left is None
    until(lambda: box.exec(["cat", "/tmp/left"]).stdout == b"x\n")
    with pytest.raises(CommandNotFound):
        box.exec("nonsense", detach=True)
    for option in ({"timeout": 1}, {"check": True}, {"input": b""}, {"on_output": print}):
        with pytest.raises(InvalidArgument, match="waited for"):
            box.exec("true", detach=True, **option)


def test_a_container_that_removes_itself_is_gone_at_the_next_look_after_its_end(client, image):
    box = client.containers.create(image, ["true"], name="once", auto_remove=True)
    assert client.containers.list(all=True) == [box]
    box.start()
    assert box.wait(30) == 0
    assert client.containers.list(all=True) == []
    assert client.containers.run(image, ["true"], auto_remove=True).exit_code == 0
    assert client.containers.list(all=True) == []
    with pytest.raises(InvalidArgument, match="removed at its end"):
        client.containers.create(image, ["true"], auto_remove=True, restart_policy="always")


# Which image, and where its root is kept


def test_an_image_for_another_architecture_is_refused_before_anything_is_made(client, tmp_path):
    made = Built(tar(file("x")))
    made.platform = {"os": "linux", "architecture": "sparc64"}
    with RegistryServer() as server:
        name = client.images.pull(made.push(server), platform="linux/sparc64").name
    for image, options in ((name, {}), (name, {"platform": "linux/sparc64"}), (client.images.get(name), {})):
        with pytest.raises(Unsupported, match="sparc64"):
            client.containers.create(image, ["/x"], **options)
    with pytest.raises(NotFound, match="is for linux/sparc64, not for linux/s390x"):
        client.containers.create(name, ["/x"], platform="linux/s390x")
    assert client.containers.list(all=True) == []


def test_a_platform_chooses_from_an_index(client, small_image):
    image = client.images.pull(small_image)
    box = client.containers.create(small_image, ["true"], platform=str(image.platform))
    assert box.record.extra.manifest == image.manifest_descriptor.digest
    box.remove()


def test_a_container_can_have_another_snapshotter_than_its_client(client, image):
    with pytest.raises(NotFound, match="not unpacked for the native snapshotter"):
        client.containers.create(image, ["true"], snapshotter="native")
    client.using("native").images.unpack(image.name)
    box = client.containers.create(image, ["sh", "-c", "echo x > /x; exit 3"], snapshotter="native")
    assert box.inspect()["snapshotter"] == "native"
    box.start()
    assert box.wait(30) == 3
    again = client.containers.get(box.id)
    assert [str(change) for change in again.changes() if change.path == "/x"] == ["A /x"]
    branch = again.commit()
    with pytest.raises(InvalidArgument, match="belongs to the native snapshotter"):
        client.containers.create(branch, ["true"], snapshotter="overlayfs")
    with pytest.raises(InvalidArgument, match="platform"):
        client.containers.create(branch, ["true"], platform="linux/amd64")
    again.remove()
    with pytest.raises(Unsupported, match="zfs"):
        client.containers.create(image, ["true"], snapshotter="zfs")


# Waiting

LATER = 1.0
"""After so many seconds happens what somebody waits for by then: nobody sees that a wait has begun."""


def test_the_next_exit_is_waited_for_also_of_one_that_does_not_run_yet(client, image):
    box = client.containers.create(image, ["sh", "-c", "sleep 0.2; exit 3"], name="next")
    with pytest.raises(DeadlineExceeded, match="did not end"):
        box.wait(0.1, condition="next-exit")
    starts = threading.Timer(LATER, lambda: client.containers.get("next").start())
    starts.start()
    assert box.wait(30, condition="next-exit") == 3
    starts.join()
    starts = threading.Timer(LATER, lambda: client.containers.get("next").start())
    starts.start()
    assert box.wait(30, condition="next-exit") == 3  # not the end that was there before
    starts.join()
    box.update(restart_policy="always")
    box.start()
    assert box.wait(30, condition="next-exit") == 3
    assert box.status in ("running", "restarting")
    box.remove(force=True)
    with pytest.raises(NotFound):
        box.wait(30, condition="next-exit")
    with pytest.raises(InvalidArgument, match="condition"):
        box.wait(1, condition="healthy")


def test_a_removal_is_waited_for(client, image, box):
    with pytest.raises(DeadlineExceeded, match="was not removed"):
        box.wait(0.1, condition="removed")
    removes = threading.Timer(LATER, lambda: client.containers.get("box").remove(force=True))
    removes.start()
    assert box.wait(30, condition="removed") == 137
    removes.join()
    once = client.containers.create(image, ["sh", "-c", "exit 4"], auto_remove=True)
    once.start()
    assert once.wait(30, condition="removed") == 4
    assert client.containers.list(all=True) == []


# The machine's namespaces, and more groups


def namespaces(pid):
    return {kind: os.readlink(f"/proc/{pid}/ns/{kind}") for kind in ("pid", "ipc", "uts", "cgroup")}  # noqa: PTH115


def test_a_container_can_share_the_machines_namespaces(client, image, box):
    options = {"pid_mode": "host", "ipc_mode": "host", "uts_mode": "host", "cgroupns": "host"}
    shared = client.containers.run(image, ["sleep", "100"], detach=True, **options)
    assert namespaces(shared.pid) == namespaces("self")
    name = os.uname().nodename
    assert shared.exec(["sh", "-c", "uname -n; echo $HOSTNAME"]).text.split() == [name, name]
    assert shared.stop(0) in (137, 143)  # it is not the first process of a namespace
    shared.remove()
    assert not set(namespaces(box.pid).values()) & set(namespaces("self").values())


def test_shared_memory_of_the_machine_is_seen_with_its_ipc_namespace(client, image):
    with tempfile.NamedTemporaryFile(dir="/dev/shm", prefix="lamella-test-") as file:
        show = ["sh", "-c", f"test -e {file.name} && echo seen"]
        assert client.containers.run(image, show, remove=True, ipc_mode="host").text == "seen"
        assert client.containers.run(image, show, remove=True).text == ""


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"pid_mode": "container:x"}, Unsupported),
        ({"ipc_mode": "shareable"}, Unsupported),
        ({"uts_mode": "host", "hostname": "other"}, InvalidArgument),
        ({"group_add": ["nobody-here"]}, InvalidArgument),
        ({"group_add": [-1]}, InvalidArgument),
    ],
)
def test_modes_and_groups_that_there_are_not_are_refused(client, image, options, error):
    with pytest.raises(error):
        client.containers.create(image, ["true"], **options)


def test_groups_are_added_by_number_and_by_name(client, image):
    box = client.containers.create(image, ["true"], user="7:8", group_add=["root", 12, "34"], userns="host")
    assert box.spec["process"]["user"]["additionalGids"] == [0, 8, 12, 34]
    box.remove()
