"""Containers that outlive whoever started them; and what is left when their monitor, or the machine, does not."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

import lamella
from lamella.disk import make_state_folder
from lamella.errors import FailedPrecondition, Unavailable
from lamella.state import keep_state
from monitors import cgroups, kill_monitor, monitor_of
from waiting import until

pytestmark = pytest.mark.privileged
ANSWER = "echo up; read line; echo got $line; exit 9"


@pytest.fixture
def cleared(client):
    yield
    for box in client.containers.list(all=True):
        box.remove(force=True)


def starter(client, image, end: str) -> list[str]:
    """Give a command that starts a container and then does something else."""
    code = f"""
        import lamella, os, signal, sys, time
        client = lamella.Client({str(client.config.root)!r}, {str(client.config.state)!r})
        box = client.containers.run(
            {image.name!r}, ["/bin/sh", "-c", {ANSWER!r}], detach=True, name="box", stdin=True
        )
        attached = box.attach()
        print("started", flush=True)
        {end}
        time.sleep(600)
    """
    return [sys.executable, "-c", textwrap.dedent(code)]


def in_another_process(client, code: str) -> str:
    """Run code with ``box`` in a process that has nothing to do with the container; give what it prints."""
    program = f"""
        import lamella
        with lamella.Client({str(client.config.root)!r}, {str(client.config.state)!r}) as client:
            box = client.containers.get("box")
            {code}
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def kill_the_monitor(box) -> list[int]:
    """Kill it, and give the container's processes, which have to go with it."""
    pids = [int(pid) for folder in cgroups(box) for pid in (folder / "cgroup.procs").read_text().split()]
    kill_monitor(box)
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    return pids


def lose_the_state(client) -> None:
    """Do what a restart of the machine does to files."""
    for entry in client.config.state.iterdir():
        if entry.is_symlink():
            entry.unlink()
        elif entry.is_dir():
            shutil.rmtree(entry)


# The caller goes


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", "os.killpg(0, 9)", "sys.exit()"])
def test_a_container_goes_on_without_its_caller(client, image, cleared, end):
    started = subprocess.Popen(starter(client, image, end), stdout=subprocess.PIPE, start_new_session=True)
    with started:
        assert started.stdout.readline() == b"started\n"
        started.wait(30)
    box = client.containers.get("box")
    assert box.status == "running"
    until(lambda: list(box.logs()) == [("stdout", b"up\n")])
    # Another process finds it, reads what was written before it came, attaches, and hears how it ends.
    read = "print(b''.join(data for _, data in box.logs()).decode(), box.status)"
    assert in_another_process(client, read).split() == ["up", "running"]
    answer = """with box.attach(stdin=True) as attached:
                attached.write_stdin(b'me\\n')
                print(b''.join(data for _, data in attached).decode(), attached.exit.exit_code)"""
    assert in_another_process(client, answer).split() == ["got", "me", "9"]
    until(lambda: not box.task.monitored())  # long after
    end = "print(box.wait(), box.exit_code, box.status, b''.join(data for _, data in box.logs(follow=True)))"
    assert in_another_process(client, end) == "9 9 stopped b'up\\ngot me\\n'"


def test_who_starts_a_container_has_no_child_and_hears_of_none(client, image):
    code = f"""
        import lamella, os, signal
        heard = []
        signal.signal(signal.SIGCHLD, lambda *_: heard.append("SIGCHLD"))
        with lamella.Client({str(client.config.root)!r}, {str(client.config.state)!r}) as client:
            client.containers.run({image.name!r}, ["/bin/true"], remove=True)
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            print("no child", heard)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "no child []\n"


def test_a_container_goes_on_when_its_callers_terminal_is_closed(client, image, cleared):
    pid, terminal = pty.fork()
    if pid == 0:
        command = starter(client, image, "")
        os.execv(command[0], command)
    with os.fdopen(terminal, "rb", buffering=0) as shown:
        assert b"started" in shown.readline()
    # Closed: the kernel hangs up on the whole session.
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == signal.SIGHUP
    box = client.containers.get("box")
    time.sleep(0.2)
    assert box.status == "running"
    assert box.exec(["/bin/echo", "there"]).stdout == b"there\n"
    box.kill()
    assert box.wait(30) == 137


def test_out_of_memory_is_in_the_record_long_after(client, image, cleared):
    script = "x=a; while :; do x=$x$x; done"
    client.containers.run(image, ["/bin/sh", "-c", script], memory="16m", detach=True, name="box")
    box = client.containers.get("box")
    box.wait(60)
    until(lambda: not box.task.monitored())
    document = client.containers.get("box").inspect()
    assert (document["oom_killed"], document["exit_code"]) == (True, 137)


# The monitor goes


@pytest.fixture
def busy(client, image, cleared):
    """Give a container with daemons of its own, and of an exec."""
    script = "sleep 600 & (sleep 600 &) ; echo up; exec sleep 600"
    limit = "64m" if os.geteuid() == 0 else None  # others have a cgroup where one was delegated
    box = client.containers.run(image, ["/bin/sh", "-c", script], detach=True, name="box", memory=limit)
    until(lambda: list(box.logs()))
    box.exec(["/bin/sh", "-c", "sleep 600 >/dev/null 2>&1 & exit"])
    return box


def test_a_killed_monitor_takes_every_process_with_it(client, busy):
    pids = kill_the_monitor(busy)
    assert len(set(pids)) >= 4
    until(lambda: busy.status == "unknown")
    assert str(client.config.root) not in Path("/proc/self/mountinfo").read_text()
    with pytest.raises(FailedPrecondition, match="no exit status"):
        busy.wait(1)
    with pytest.raises(FailedPrecondition):
        busy.exec(["/bin/true"])
    assert busy.stop() is None
    assert list(busy.logs(follow=True)) == [("stdout", b"up\n")]


def test_gc_takes_what_a_killed_monitor_has_left_and_the_container_stays(client, busy):
    kill_the_monitor(busy)
    assert cgroups(busy)
    client.gc()
    assert cgroups(busy) == []
    assert busy.status == "unknown"
    client.gc()
    busy.start()
    assert busy.status == "running"
    client.gc()
    assert cgroups(busy)  # what runs keeps its own


@pytest.mark.parametrize("lost", [False, True], ids=["bundle", "no bundle"])
def test_processes_among_the_hosts_are_ended_where_their_monitor_was_killed(client, image, cleared, lost):
    """No PID namespace ends them with the first one."""
    box = client.containers.run(
        image, ["/bin/sh", "-c", "sleep 600 & echo $!; wait"], detach=True, name="box", pid_mode="host"
    )
    [(_, said)] = until(lambda: list(box.logs()))
    program = Path(f"/proc/{int(said)}/exe")
    monitor = monitor_of(box)
    if lost:
        lose_the_state(client)
    os.kill(monitor, signal.SIGKILL)
    until(lambda: box.status == "unknown")
    assert program.exists()
    box.start()
    until(lambda: not program.exists())  # of a zombie, which init has yet to reap, it leads nowhere
    assert box.status == "running"


@pytest.mark.parametrize("action", ["start", "remove", "restart", "force"])
def test_what_a_killed_monitor_has_left_goes_with_the_next_action(client, busy, action):
    kill_the_monitor(busy)
    if action in ("start", "restart"):
        getattr(busy, action)()
        assert busy.status == "running"
        until(lambda: len(list(busy.logs())) == 2)
        busy.kill()
        busy.wait(30)
    busy.remove(force=action == "force")
    assert cgroups(busy) == []
    assert not busy.task.folder.exists()
    assert client.containers.list(all=True) == []


# The machine goes


def test_an_exit_status_and_the_log_outlive_the_machine(client, image, cleared):
    box = client.containers.create(image, ["/bin/sh", "-c", "echo said; exit 6"], name="box")
    box.start()
    assert box.wait(30) == 6
    until(lambda: not box.task.monitored())
    before = box.inspect()
    lose_the_state(client)
    with lamella.Client(client.config.root, client.config.state) as other:
        found = other.containers.get("box")
        assert (found.status, found.exit_code, found.wait(1)) == ("stopped", 6, 6)
        assert {**found.inspect(), "exited_at": before["exited_at"]} == before
        assert list(found.logs()) == [("stdout", b"said\n")]
        found.start()
        assert found.wait(30) == 6
        until(lambda: not found.task.monitored())
        lose_the_state(other)
        with other.events(timeout=20) as stream:
            found.remove()
            topics = [next(stream).topic for _ in range(3)]
        assert topics == ["/tasks/delete", "/containers/delete", "/snapshot/remove"]
        assert not found.task.log_folder.exists()


def test_what_ran_when_the_machine_went_is_unknown_and_can_be_started_or_removed(client, busy):
    kill_the_monitor(busy)
    client.gc()  # the machine takes the cgroups with it
    lose_the_state(client)
    assert (busy.status, busy.exit_code, busy.pid) == ("unknown", None, None)
    with pytest.raises(FailedPrecondition):
        busy.wait(1)
    busy.start()
    assert busy.status == "running"
    assert busy.exit_code is None
    kill_the_monitor(busy)
    client.gc()
    lose_the_state(client)
    busy.remove()
    assert client.containers.list(all=True) == []


@pytest.mark.rootless
def test_what_runs_on_without_its_state_folder_is_not_started_twice(client, busy):
    """With a user's last session goes /run/user/UID, and his containers go on: two would write to one layer."""
    monitor = monitor_of(busy)
    lose_the_state(client)
    assert [box.status for box in (busy, *client.containers.list())] == ["running", "running"]
    assert client.gc().orphans == 0
    operations = (
        busy.start,
        busy.stop,
        busy.pause,
        busy.attach,
        busy.restart,
        busy.wait,
        lambda: busy.exec(["/bin/true"]),
        busy.remove,
        lambda: busy.remove(force=True),
    )
    for operation in operations:
        with pytest.raises(Unavailable, match="the container runs and cannot be reached") as refused:
            operation()
        assert f"kill -KILL {monitor}. " in refused.value.hint
    assert busy.status == "running"
    assert not busy.task.folder.exists()
    os.kill(monitor, signal.SIGKILL)
    until(lambda: busy.status == "unknown")
    busy.start()
    assert busy.exec(["/bin/echo", "again"]).stdout == b"again\n"
    busy.remove(force=True)
    assert not busy.task.log_folder.exists()


@pytest.mark.rootless
def test_garbage_collection_leaves_what_runs_without_its_state_folder_and_without_a_record(client, busy):
    monitor = monitor_of(busy)
    lose_the_state(client)
    with client.database.write() as db:
        db.execute("DELETE FROM containers")
    assert client.gc().orphans == 0
    assert busy.task.log_folder.exists()
    os.kill(monitor, signal.SIGKILL)
    until(lambda: not busy.task.monitored())
    assert client.gc().orphans == 1
    assert not busy.task.log_folder.exists()


@pytest.mark.rootless
def test_what_runs_on_another_machine_that_shares_the_store_is_not_started_here(client, busy):
    monitor = monitor_of(busy)
    lose_the_state(client)
    lock = busy.task.log_folder / "lock"
    lock.write_text(lock.read_text().replace(json.dumps(os.uname().nodename), '"node17"'))
    with pytest.raises(Unavailable, match="on another machine, node17"):
        busy.start()
    os.kill(monitor, signal.SIGKILL)
    until(lambda: not busy.task.monitored())


@pytest.mark.rootless
def test_what_runs_with_another_state_is_not_started_again(client, busy, tmp_path):
    with lamella.Client(client.config.root, tmp_path / "elsewhere") as other:
        found = other.containers.get("box")
        assert found.status == "running"
        for operation in (found.start, found.stop):
            with pytest.raises(Unavailable, match=f"another state folder: {client.config.state}/") as refused:
                operation()
            assert f"--state {client.config.state}," in refused.value.hint
    assert (client.config.root / "state").readlink() == client.config.state
    assert busy.exec(["/bin/echo", "here"]).stdout == b"here\n"


@pytest.mark.rootless
def test_a_state_has_the_containers_of_one_store(client, busy, tmp_path):
    """Garbage collection would take the other's containers for leftovers."""
    state = client.config.state
    with pytest.raises(FailedPrecondition, match=f"has the containers of the store {client.config.root}"):
        lamella.Client(tmp_path / "other", state)
    assert not (tmp_path / "other").exists()
    busy.remove(force=True)
    with pytest.raises(FailedPrecondition, match="has the containers of the store"):
        lamella.Client(tmp_path / "other", state)
    (client.config.root / "metadata.db").rename(tmp_path / "gone.db")
    lamella.Client(tmp_path / "other", state).close()
    (tmp_path / "gone.db").rename(client.config.root / "metadata.db")


@pytest.mark.rootless
def test_a_store_whose_state_has_become_anothers_starts_nothing_there(client, image, tmp_path):
    made = client.containers.create(image, ["/bin/true"], name="late")
    with lamella.Client(tmp_path / "other", client.config.state) as other:
        make_state_folder(other.config.state)
        keep_state(other.config)
        with pytest.raises(FailedPrecondition, match=f"has the containers of the store {tmp_path}/other"):
            made.start()
    assert not made.task.folder.exists()
    assert made.status == "created"


def test_what_was_never_started_is_created_still(client, image, cleared):
    box = client.containers.create(image, ["/bin/true"], name="box")
    lose_the_state(client) if client.config.state.exists() else None
    assert box.status == "created"


def test_an_old_exit_status_is_not_taken_for_that_of_a_later_run(client, image, cleared):
    box = client.containers.create(image, ["/bin/sh", "-c", "[ -e /x ] && exec sleep 600; touch /x; exit 4"])
    box.start()
    assert box.wait(30) == 4
    box.start()
    kill_the_monitor(box)
    client.gc()
    lose_the_state(client)
    assert (box.status, box.exit_code) == ("unknown", None)
