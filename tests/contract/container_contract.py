"""What a container does whoever makes it, as tests that a subclass runs with its own OCI runtime.

A runtime that makes containers in the place of lamella's own launcher gets the same bundle and is held to the same behaviour.
What a program sees inside is compared by :mod:`container_probe`; here is what the caller sees.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import waiting
from lamella.errors import (
    CommandFailed,
    CommandNotExecutable,
    CommandNotFound,
    DeadlineExceeded,
    FailedPrecondition,
)
from monitors import cgroups, monitor_of
from waiting import cut_off, settled, until

PATIENCE = 30.0 * waiting.PATIENCE
TERM_IS_TAKEN = "trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done"


def said(box: Any) -> bytes:
    """Give all that the log has of a container."""
    return b"".join(data for _, data in box.logs())


@contextmanager
def ignoring_a_signal_of_the_c_library() -> Iterator[None]:
    """Ignore signal 32, which the C library sets for nobody else: who started us may have."""
    sigaction = {"x86_64": 13, "aarch64": 134}[platform.machine()]
    libc = ctypes.CDLL(None, use_errno=True)
    ignore, before = struct.pack("4Q", 1, 0, 0, 0), ctypes.create_string_buffer(32)
    assert libc.syscall(sigaction, 32, ignore, before, 8) == 0
    try:
        yield
    finally:
        assert libc.syscall(sigaction, 32, before, None, 8) == 0


class ContainerContract:
    options: Mapping[str, Any] = {}
    """Those of all its containers."""

    # Fixtures of the runtime

    @pytest.fixture
    def runtime(self) -> str:
        raise NotImplementedError

    @pytest.fixture
    def run(self, client, image, runtime):
        def call(*command: str, **options: Any) -> Any:
            options = {**self.options, **options}
            return client.containers.run(image, list(command), remove=True, runtime=runtime, **options)

        return call

    @pytest.fixture
    def create(self, client, image, runtime) -> Iterator[Callable[..., Any]]:
        made = []

        def call(*command: str, **options: Any) -> Any:
            options = {**self.options, **options}
            made.append(client.containers.create(image, list(command), runtime=runtime, **options))
            return made[-1]

        yield call
        for box in made:
            box.remove(force=True)

    @pytest.fixture
    def box(self, create):
        """A container that runs, and does nothing."""
        box = create("/bin/sleep", "600")
        box.start()
        return box

    # Output and exit

    def test_streams_and_exit_status_are_told_apart(self, run):
        result = run("/bin/sh", "-c", "echo out; echo err >&2; exit 7")
        assert (result.stdout, result.stderr, result.exit_code) == (b"out\n", b"err\n", 7)

    def test_input_and_output_of_any_size_come_whole(self, run):
        data = os.urandom(1_000_000)
        assert run("/bin/cat", input=data).stdout == data
        assert run("/bin/cat").stdout == b""

    def test_a_signal_is_128_and_its_number(self, create):
        box = create("/bin/sleep", "600")
        box.start()
        box.kill("KILL")
        assert box.wait(PATIENCE) == 128 + signal.SIGKILL
        assert box.exit.signal == signal.SIGKILL

    def test_a_program_ignores_no_signal_whatever_its_caller_ignores(self, run):
        with ignoring_a_signal_of_the_c_library():
            result = run("/bin/cat", "/proc/self/status")
        [ignored] = (line for line in result.stdout.splitlines() if line.startswith(b"SigIgn:"))
        assert int(ignored.split()[1], 16) == 0

    def test_check_raises_with_the_output(self, run):
        with pytest.raises(CommandFailed, match="broken") as caught:
            run("/bin/sh", "-c", "echo out; echo broken >&2; exit 3", check=True)
        assert (caught.value.exit_code, caught.value.stdout) == (3, b"out\n")

    def test_a_time_out_ends_the_whole_tree(self, client, run):
        script = "echo early; sleep 600 & sleep 600"
        result = cut_off(lambda seconds: run("/bin/sh", "-c", script, timeout=seconds))
        assert (result.timed_out, result.exit_code, result.stdout) == (True, 137, b"early\n")
        assert client.containers.list(all=True) == []

    def test_running_out_of_memory_is_told(self, run):
        result = run("/bin/sh", "-c", "x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done", memory="16m")
        assert (result.exit_code, result.oom_killed) == (137, True)

    # The program

    @pytest.mark.parametrize(
        ("program", "error", "code"),
        [
            ("nonsense", CommandNotFound, 127),
            ("/no/such/program", CommandNotFound, 127),
            ("/etc/passwd", CommandNotExecutable, 126),
            ("/etc", CommandNotExecutable, 126),
        ],
    )
    def test_a_program_that_cannot_be_run_is_an_error_and_leaves_nothing(
        self, client, run, program, error, code
    ):
        with pytest.raises(error, match=program) as caught:
            run(program)
        assert caught.value.exit_code == code
        assert client.containers.list(all=True) == []

    def test_the_program_gets_what_the_options_say(self, run):
        script = "pwd; id -u; id -g; echo $COLOUR; hostname; umask"
        options = {"working_dir": "/srv/made", "user": "7:8", "environment": {"COLOUR": "blue"}}
        shown = run("/bin/sh", "-c", script, hostname="here", **options).stdout.decode().split()
        assert shown == ["/srv/made", "7", "8", "blue", "here", "0022"]

    # Starting and stopping

    def test_a_container_is_created_then_runs_then_has_stopped_and_can_be_started_again(self, create):
        box = create("/bin/sh", "-c", "echo run; exit 4")
        assert box.status == "created"
        for count in (1, 2):
            box.start()
            assert box.wait(PATIENCE) == 4
            assert (box.status, box.pid) == ("stopped", None)
            until(lambda count=count: said(box).count(b"run\n") == count)
        with pytest.raises(FailedPrecondition):
            box.exec(["/bin/true"])

    def test_stop_asks_first_and_kills_then(self, create):
        box = create("/bin/sh", "-c", TERM_IS_TAKEN)
        box.start()
        until(lambda: said(box))
        assert box.stop(timeout=PATIENCE) == 3
        stubborn = create("/bin/sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done")
        stubborn.start()
        until(lambda: said(stubborn))
        assert stubborn.stop(timeout=0.2) == 137

    def test_a_running_container_is_not_started_again_nor_removed(self, box):
        with pytest.raises(FailedPrecondition):
            box.start()
        with pytest.raises(FailedPrecondition):
            box.remove()
        assert box.status == "running"

    def test_restart_runs_it_again(self, box):
        first = box.pid
        box.restart(timeout=0)
        assert box.status == "running"
        assert box.pid not in (None, first)

    def test_a_policy_runs_it_again_until_it_has_been_stopped(self, create):
        box = create("/bin/sh", "-c", "echo run; exit 5", restart_policy="on-failure:2")
        box.start()
        assert box.wait(PATIENCE) == 5
        assert box.restart_count == 2
        until(lambda: said(box) == b"run\n" * 3)
        always = create("/bin/sleep", "0.05", restart_policy="always")
        always.start()
        until(lambda: always.restart_count >= 1)
        always.stop(timeout=0)
        assert always.status == "stopped"

    def test_what_ends_at_once_is_started_and_ended_in_this_order(self, client, create):
        box = create("/bin/true", restart_policy="on-failure:1")
        box.start()
        assert box.wait(PATIENCE) == 0
        box.restart()
        assert box.wait(PATIENCE) == 0
        topics = [event.topic for event in client.events(follow=False) if event.topic.startswith("/tasks/")]
        runs = [topic for topic in topics if topic in ("/tasks/start", "/tasks/exit")]
        assert runs == ["/tasks/start", "/tasks/exit"] * 2

    def test_pause_stops_everything_and_resume_lets_it_go_on(self, create):
        box = create("/bin/sh", "-c", "while :; do echo tick; sleep 0.01; done")
        box.start()
        until(lambda: said(box))
        box.pause()
        with pytest.raises(FailedPrecondition, match="paused"):
            box.exec(["/bin/true"])
        after = settled(lambda: len(said(box)))
        box.resume()
        until(lambda: len(said(box)) > after)
        box.pause()
        box.kill()
        assert box.wait(PATIENCE) == 137

    def test_an_init_reaps_and_passes_signals_on(self, create):
        script = "sh -c 'sleep 0.01 & exit 0'; trap 'exit 9' TERM; echo $$; while :; do sleep 0.05; done"
        box = create("/bin/sh", "-c", script, init=True)
        box.start()
        until(lambda: said(box))
        assert int(said(box)) != 1, "the init is the first process"
        until(lambda: all(process.state != "Z" for process in box.top()))
        assert box.stop(timeout=PATIENCE) == 9

    # More processes

    def test_an_exec_has_streams_status_and_surroundings_of_its_own(self, box):
        result = box.exec(
            ["/bin/sh", "-c", "pwd; id -u; echo $A; cat; echo err >&2; exit 5"],
            working_dir="/etc",
            user="9",
            environment={"A": "b"},
            input=b"fed\n",
        )
        assert result.stdout.decode().split() == ["/etc", "9", "b", "fed"]
        assert (result.stderr, result.exit_code) == (b"err\n", 5)
        assert box.status == "running"

    def test_many_execs_run_at_once(self, box):
        running = [box.start_exec(["/bin/cat"], stdin=True) for _ in range(6)]
        for number, streams in enumerate(running):
            streams.write_stdin(b"%d" % number)
            streams.close_stdin()
        for number, streams in enumerate(running):
            with streams:
                assert b"".join(data for _, data in streams) == b"%d" % number
                assert streams.exit.exit_code == 0

    def test_a_time_out_of_an_exec_kills_all_that_it_started_and_nothing_else(self, box):
        script = "sleep 601 & (sleep 602 & sleep 603) & echo early; sleep 604"
        result = cut_off(lambda seconds: box.exec(["/bin/sh", "-c", script], timeout=seconds))
        assert (result.timed_out, result.exit_code, result.stdout) == (True, 137, b"early\n")
        until(lambda: [process.command for process in box.top()] == [["/bin/sleep", "600"]])
        with pytest.raises(DeadlineExceeded):
            box.exec(["/bin/sleep", "605"], timeout=0.2, check=True)

    def test_an_exec_of_what_is_not_there_is_an_error_and_the_container_goes_on(self, box):
        with pytest.raises(CommandNotFound) as caught:
            box.exec(["nonsense"])
        assert caught.value.exit_code == 127
        with pytest.raises(CommandNotExecutable):
            box.exec(["/etc/passwd"])
        assert box.exec(["/bin/echo", "on"]).stdout == b"on\n"

    def test_a_terminal_has_a_size_that_can_be_changed(self, create):
        box = create("/bin/sh", "-c", "read line; echo got $line; read line", tty=True, stdin=True)
        with box.start(attach=True) as streams:
            streams.resize(31, 97)
            streams.write_stdin(b"hello\n")
            output = b""
            for _, data in streams:
                output += data
                if b"got hello" in output:
                    break
            with box.start_exec(
                ["/bin/sh", "-c", "exec </dev/console; [ -t 0 ] && echo yes"], tty=True
            ) as other:
                assert b"yes" in b"".join(data for _, data in other)
            streams.write_stdin(b"bye\n")
            list(streams)
            assert streams.exit.exit_code == 0

    # Others see it

    def test_who_attaches_gets_what_comes_and_the_log_has_all(self, create):
        box = create("/bin/sh", "-c", "echo first; read line; echo $line; echo err >&2", stdin=True)
        box.start()
        until(lambda: said(box) == b"first\n")
        with box.attach(stdin=True) as streams:
            streams.write_stdin(b"second\n")
            streams.close_stdin()
            got = list(streams)
        assert sorted(got) == [("stderr", b"err\n"), ("stdout", b"second\n")]
        assert sorted(box.logs()) == [("stderr", b"err\n"), ("stdout", b"first\n"), ("stdout", b"second\n")]

    def test_processes_and_statistics_are_those_of_the_container(self, box):
        # runc start comes back before its init, a program of several threads, has become ours.
        until(lambda: [process.command for process in box.top()] == [["/bin/sleep", "600"]])
        stats = box.stats()
        assert stats.pids.current == 1
        assert stats.memory.usage > 0

    def test_limits_hold_and_can_be_changed(self, create):
        box = create("/bin/sleep", "600", memory="64m", pids_limit=20, cpus=0.5)
        box.start()
        assert box.stats().memory.limit == 64 << 20
        box.update(memory="96m", memory_swap="96m")
        assert box.stats().memory.limit == 96 << 20
        box.restart(timeout=0)
        assert box.stats().memory.limit == 96 << 20

    def test_what_it_wrote_can_be_seen_copied_and_committed(self, client, create, runtime, tmp_path):
        box = create("/bin/sh", "-c", "echo one > /new; sleep 600")
        box.start()
        until(lambda: "new" in [change.path.strip("/") for change in box.changes()])
        (tmp_path / "in").write_text("copied")
        box.copy_in(tmp_path / "in", "/in")
        assert box.exec(["/bin/cat", "/in", "/new"]).stdout == b"copiedone\n"
        box.copy_out("/new", tmp_path / "out")
        assert (tmp_path / "out").read_text() == "one\n"
        (branch,) = box.branch()
        assert branch.record.runtime == runtime
        branch.remove()
        stone = box.commit()
        box.stop(timeout=0)
        box.remove()
        other = client.containers.run(stone, ["/bin/cat", "/new"], runtime=runtime, remove=True)
        assert other.stdout == b"one\n"
        stone.remove()

    def test_volumes_and_tmpfs_are_there_and_read_only_is_that(self, run, tmp_path):
        (tmp_path / "file").write_text("host")
        tmp_path.chmod(0o755)
        script = "cat /host/file /alone; echo x > /host/file; echo x > /alone; echo z > /root-of-it"
        script += "; echo y > /scratch/y && cat /scratch/y; cat /kept/f"
        run("/bin/sh", "-c", "echo kept > /kept/f", volumes=["data:/kept"])
        options = {
            "volumes": [f"{tmp_path}:/host:ro", f"{tmp_path}/file:/alone:ro", "data:/kept"],
            "tmpfs": ["/scratch"],
            "read_only": True,
        }
        result = run("/bin/sh", "-c", script, **options)
        assert result.stdout == b"hosthosty\nkept\n"
        assert result.stderr.lower().count(b"read-only") == 3
        assert (tmp_path / "file").read_text() == "host"

    def test_images_and_parts_of_volumes_are_mounted(self, run, small_image):
        run("/bin/sh", "-c", "mkdir /kept/part; echo part > /kept/part/f", volumes=["data:/kept"])
        mounts = [
            f"type=image,source={small_image},target=/image",
            "type=volume,source=data,target=/part,volume-subpath=part",
        ]
        script = "cat /part/f; ls /image/bin/sh; echo x > /image/x || echo refused"
        assert run("/bin/sh", "-c", script, mounts=mounts).stdout == b"part\n/image/bin/sh\nrefused\n"

    def test_a_part_of_a_volume_may_be_a_file(self, run):
        run("/bin/sh", "-c", "echo file > /kept/g", volumes=["data:/kept"])
        mounts = ["type=volume,source=data,target=/file,volume-subpath=g"]
        assert run("/bin/cat", "/file", mounts=mounts).stdout == b"file\n"

    def test_a_network_of_its_own_has_loopback_alone_and_the_hosts_is_the_hosts(self, run):
        assert run("/bin/ls", "/sys/class/net").stdout.split() == [b"lo"]
        joined = run("/bin/stat", "-L", "-c", "%i", "/proc/self/ns/net", network="host").stdout
        assert int(joined) == Path("/proc/self/ns/net").stat().st_ino

    def test_it_joins_the_network_of_another(self, box, run):
        # The namespace's own address in the kernel: that of its file.
        own = box.exec(["/bin/stat", "-L", "-c", "%i", "/proc/self/ns/net"]).stdout
        network = f"container:{box.name}"
        options = {"network": network, "userns": network} if self.options else {"network": network}
        joined = run("/bin/stat", "-L", "-c", "%i", "/proc/self/ns/net", **options)
        assert joined.stdout == own

    # Its end

    @pytest.mark.parametrize("who", ["monitor", "both"])
    def test_a_killed_monitor_takes_everything_with_it(self, box, who):
        first = box.pid
        monitor = monitor_of(box)
        children = Path(f"/proc/{monitor}/task/{monitor}/children").read_text().split()
        keepers = [int(child) for child in children if int(child) != first]
        victims = [*keepers, monitor] if who == "both" else [monitor]
        for victim in victims:
            os.kill(victim, signal.SIGKILL)
        until(lambda: not box.task.monitored())
        assert box.status == "unknown"
        box.task.put_right()
        until(lambda: not Path(f"/proc/{first}").exists())
        assert cgroups(box) == []
        box.start()
        assert box.status == "running"

    def test_a_removed_container_leaves_nothing(self, create):
        box = create("/bin/sh", "-c", "sleep 600 & sleep 600")
        box.start()
        box.start_exec(["/bin/sleep", "600"]).close()
        assert cgroups(box)
        box.remove(force=True)
        assert cgroups(box) == []
        assert not box.task.folder.exists()

    def test_the_record_says_who_makes_it(self, client, box, runtime):
        again = client.containers.get(box.id)
        assert (again.record.runtime, again.inspect()["runtime"]) == (runtime, runtime)
        assert [one.id for one in client.containers.list(filters=[f"runtime.name=={runtime}"])] == [box.id]
