"""The monitor: streams, log, control socket, and what happens when a client, the caller or the monitor itself goes."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from base64 import b64decode
from pathlib import Path

import pytest
from launcher_box import CONTROL, STDERR, STDIN, STDOUT, Box
from oci_bundle import reaping

from inventory import children
from monitors import memory_of
from waiting import settled, until

pytestmark = [pytest.mark.privileged]
MEBIBYTE = 1 << 20


# ---- output and log


def test_stdout_and_stderr_come_apart(box: Box) -> None:
    result = box.sh("echo out; echo err >&2")
    assert (result.stdout, result.stderr) == (b"out\n", b"err\n")


def test_the_log_holds_what_was_written_line_by_line(box: Box) -> None:
    script = r"echo one; printf 'two\nthree'; read go; printf 'caf\303\251 \377\n' >&2"
    connection = box.start("/bin/sh", "-c", script, stdin=True)
    # What is not finished in a while is a record as well.
    until(lambda: box.log.exists() and len(box.log_records()) == 3)
    connection.send(STDIN, b"go\n")
    assert connection.collect().code == 0
    box.await_end()
    records = box.log_records()
    assert [record.get("log") for record in records[:3]] == ["one\n", "two\n", "three"]
    assert [record["stream"] for record in records] == ["stdout"] * 3 + ["stderr"]
    assert b64decode(records[3]["log64"]) == "café ".encode() + b"\xff\n"
    assert all(len(record["time"]) == 30 and record["time"].endswith("Z") for record in records)


def test_a_silent_container_has_no_log_file(box: Box) -> None:
    assert box.sh("true").code == 0
    assert not box.log.exists()


def test_a_log_that_cannot_be_written_does_not_stop_the_container(box: Box, tmp_path: Path) -> None:
    result = box.sh("echo hello", log={"path": str(tmp_path / "missing/log.jsonl")})
    assert (result.code, result.stdout) == (0, b"hello\n")


def test_200_mebibytes_arrive_whole_in_little_memory(box: Box) -> None:
    size = 200 * MEBIBYTE
    reply, connection = box.launch("/bin/sh", "-c", f"head -c {size} /dev/zero; echo end >&2", log=None)
    assert connection is not None
    total, most = {STDOUT: 0, STDERR: 0}, 0
    while (frame := connection.frame()) is not None:
        if frame[0] == CONTROL:
            break
        total[frame[0]] += len(frame[1])
        if total[STDOUT] % (16 * MEBIBYTE) < 65536:
            most = max(most, memory_of(reply["monitor_pid"]))
    assert total == {STDOUT: size, STDERR: 4}
    assert most < 4 * MEBIBYTE


def test_a_client_that_does_not_read_slows_the_container_down_and_loses_nothing(box: Box) -> None:
    size = 8 * MEBIBYTE
    script = f"head -c {size} /dev/zero; echo done > /tmp/done"
    reply, connection = box.launch("/bin/sh", "-c", script, log=None)
    assert connection is not None
    done = box.folder / "upper/tmp/done"
    time.sleep(0.5)
    assert not done.exists()
    assert memory_of(reply["monitor_pid"]) < 4 * MEBIBYTE
    assert box.ask(op="state")["status"] == "running"
    result = connection.collect()
    assert (result.code, len(result.stdout)) == (0, size)
    assert done.exists()


def test_a_client_that_goes_away_does_no_harm(box: Box) -> None:
    connection = box.start("/bin/sh", "-c", "head -c 8000000 /dev/zero; echo end > /tmp/end; sleep 100")
    connection.close()
    until((box.folder / "upper/tmp/end").exists)
    assert box.ask(op="state")["status"] == "running"


def test_output_still_unread_at_the_end_arrives(box: Box) -> None:
    # It ends when what nobody has read yet fits on the way: of much output the last 60000 bytes, or all of little.
    for size in (3_000_000, 60_000):
        connection = box.start("/bin/sh", "-c", f"head -c {size} /dev/zero; exit 5")
        read = 0
        while read < size - 60_000:
            kind, piece = connection.frame() or (CONTROL, b"")
            assert kind == STDOUT
            read += len(piece)
        until((box.folder / "exit.json").exists)
        result = connection.collect()
        assert (result.code, read + len(result.stdout)) == (5, size)
        box.await_end()


def test_several_clients_get_the_same_output(box: Box) -> None:
    first = box.start("/bin/cat", stdin=True)
    second = box.connect()
    assert second.ask(op="attach", stdin=False) == {"ok": True}
    first.send(STDIN, b"hello")
    assert first.frame() == second.frame() == (STDOUT, b"hello")
    first.send(STDIN, b"")
    assert first.collect().code == second.collect().code == 0


def test_a_later_client_attaches_and_feeds(box: Box) -> None:
    reply, _ = box.launch("/bin/cat", attach=False, stdin=True)
    assert "error" not in reply
    client = box.connect()
    assert client.ask(op="attach", stdin=True) == {"ok": True}
    client.send(STDIN, b"hello")
    client.send(STDIN, b"")
    assert client.collect().stdout == b"hello"


# ---- input


def test_large_input_passes_through_and_back(box: Box) -> None:
    connection = box.start("/bin/cat", stdin=True, log=None)
    data = os.urandom(4 * MEBIBYTE)

    def feed() -> None:
        for start in range(0, len(data), 50_000):
            connection.send(STDIN, data[start : start + 50_000])
        connection.send(STDIN, b"")

    feeder = threading.Thread(target=feed)
    feeder.start()
    result = connection.collect()
    feeder.join()
    assert result.stdout == data


def test_input_that_nobody_reads_does_not_fill_the_monitor(box: Box) -> None:
    reply, connection = box.launch("/bin/sleep", "100", stdin=True)
    assert connection is not None
    connection.socket.setblocking(False)
    frame = bytes([STDIN]) + (60000).to_bytes(4, "little") + bytes(60000)
    sent = 0
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline and sent < 20 * MEBIBYTE:
        try:
            sent += connection.socket.send(frame)
        except BlockingIOError:
            time.sleep(0.01)
    assert sent < 2 * MEBIBYTE
    assert memory_of(reply["monitor_pid"]) < 4 * MEBIBYTE
    assert box.ask(op="state")["status"] == "running"


def test_without_input_the_program_reads_nothing(box: Box) -> None:
    assert box.run("/bin/cat").stdout == b""


def test_input_ends_with_the_first_client_only_when_asked_for(box: Box) -> None:
    connection = box.start("/bin/cat", stdin=True, stdin_once=True)
    connection.close()
    box.await_end()
    assert box.record()["exit_code"] == 0
    connection = box.start("/bin/cat", stdin=True)
    connection.close()
    assert box.ask(op="state")["status"] == "running"


def test_a_program_that_closes_its_input_does_no_harm(box: Box) -> None:
    script = "trap 'echo on; exit' USR1; exec 0<&-; echo closed; while :; do sleep 0.05; done"
    connection = box.start("/bin/sh", "-c", script, stdin=True)
    for _ in range(5):
        connection.send(STDIN, bytes(100_000))
    assert connection.frame() == (STDOUT, b"closed\n")
    box.ask(op="kill", signal=signal.SIGUSR1)
    assert connection.collect().stdout == b"on\n"


# ---- terminal


def test_a_terminal_is_the_containers_own_and_can_be_resized(box: Box) -> None:
    box.process.update(terminal=True, consoleSize={"height": 30, "width": 90})
    script = "tty; stty size; read line; stty size; test -c /dev/console && echo yes"
    connection = box.start("/bin/sh", "-c", script, stdin=True)
    output = b""
    while output.count(b"\n") < 2:
        output += (connection.frame() or (0, b""))[1]
    assert output == b"/dev/pts/0\r\n30 90\r\n"
    assert connection.ask(op="resize", rows=40, cols=100) == {"ok": True}
    connection.send(STDIN, b"go\n")
    assert connection.collect().stdout.replace(b"\r", b"").splitlines() == [b"go", b"40 100", b"yes"]


def test_ctrl_c_on_the_terminal_reaches_the_program(box: Box) -> None:
    box.process["terminal"] = True
    script = "trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.05; done"
    connection = box.start("/bin/sh", "-c", script, stdin=True)
    assert b"ready" in (connection.frame() or (0, b""))[1]
    connection.send(STDIN, b"\x03")
    result = connection.collect()
    assert result.code == 9
    assert b"caught" in result.stdout


def test_a_terminal_without_devpts_is_refused(box: Box) -> None:
    box.process["terminal"] = True
    box.spec["mounts"] = [one for one in box.spec["mounts"] if one["type"] != "devpts"]
    box.error()


# ---- control


def test_a_held_container_is_set_up_and_runs_nothing_until_it_is_started(box: Box) -> None:
    reply, connection = box.launch("/bin/sh", "-c", "echo $$", hold=True)
    assert connection is not None
    assert box.ask(op="state")["status"] == "created"
    assert Path(f"/proc/{reply['pid']}/ns/net").exists()
    starter = box.connect()
    assert starter.ask(op="start")["pid"] == reply["pid"]
    assert connection.collect().stdout == b"1\n"
    box.await_end()


def test_a_held_container_can_be_started_once(box: Box) -> None:
    box.launch("/bin/sleep", "100", hold=True)
    assert box.ask(op="start")["ok"] is True
    assert box.ask(op="start")["error"]["kind"] == "FailedPrecondition"


def test_a_held_container_can_be_killed(box: Box) -> None:
    _, connection = box.launch("/bin/true", hold=True)
    assert connection is not None
    assert box.ask(op="kill", signal=9) == {"ok": True}
    assert connection.collect().code == 137


def test_signals_reach_the_first_process(box: Box) -> None:
    connection = box.start("/bin/sh", "-c", "trap 'exit 42' USR1; echo ready; while :; do sleep 0.05; done")
    assert connection.frame() == (STDOUT, b"ready\n")
    assert box.ask(op="kill", signal=signal.SIGUSR1) == {"ok": True}
    assert connection.collect().code == 42


def test_a_signal_can_reach_all_processes(box: Box) -> None:
    script = "trap 'exit 3' TERM; (trap 'echo child; exit 0' TERM; echo ready; while :; do sleep 0.05; done) & wait"
    connection = box.start("/bin/sh", "-c", script)
    assert connection.frame() == (STDOUT, b"ready\n")
    assert box.ask(op="kill", signal=signal.SIGTERM, all=True) == {"ok": True}
    assert connection.collect().code == 3


def test_a_paused_container_stands_still_and_can_be_killed(box: Box) -> None:
    connection = box.start("/bin/sh", "-c", "while :; do echo x; sleep 0.01; done")
    connection.frame()
    assert box.ask(op="pause") == {"ok": True}
    assert box.ask(op="state")["status"] == "paused"
    size = settled(lambda: box.log.stat().st_size)
    assert box.ask(op="resume") == {"ok": True}
    until(lambda: box.log.stat().st_size > size)
    box.ask(op="pause")
    assert box.ask(op="kill", signal=9) == {"ok": True}
    assert connection.collect().code == 137


def test_many_wait_and_all_are_told(box: Box) -> None:
    first = box.start("/bin/sh", "-c", "read go; exit 6", stdin=True)
    waiting = [box.connect() for _ in range(20)]
    for connection in waiting:
        connection.request(op="wait")
    first.send(STDIN, b"go\n")
    assert [connection.document()["exit"]["exit_code"] for connection in waiting] == [6] * 20


def test_the_record_is_written_before_anybody_is_told(box: Box) -> None:
    for _ in range(20):
        connection = box.start("/bin/true")
        result = connection.collect()
        assert box.record() == result.exit
        box.await_end()


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "fly"},
        {"op": "kill"},
        {"op": "kill", "signal": 0},
        {"op": "kill", "signal": 65},
        {"no": 1},
        {"op": "resize"},
    ],
)
def test_what_is_no_operation_is_answered_with_an_error(box: Box, operation: dict[str, object]) -> None:
    box.launch("/bin/sleep", "100", attach=False)
    assert box.ask(**operation)["error"]["kind"] == "InvalidArgument"
    assert box.ask(op="state")["status"] == "running"


@pytest.mark.parametrize(
    "garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 4096, b"\x00\xff\xff\xff\xff", b"\x02\0\0\0\0"]
)
def test_a_client_that_sends_garbage_is_dropped(box: Box, garbage: bytes) -> None:
    box.launch("/bin/sleep", "100", attach=False)
    connection = box.connect()
    connection.socket.sendall(garbage)
    assert connection.frame() is None
    assert box.ask(op="state")["status"] == "running"


def test_a_client_may_send_its_frames_in_small_pieces_and_close_its_side(box: Box) -> None:
    first = box.start("/bin/sh", "-c", "read go; exit 4", stdin=True)
    connection = box.connect()
    for byte in b"\x00\x0d\x00\x00\x00" + b'{"op":"wait"}':
        connection.socket.sendall(bytes([byte]))
    connection.socket.shutdown(socket.SHUT_WR)
    first.send(STDIN, b"go\n")
    assert connection.document()["exit"]["exit_code"] == 4


def test_another_user_may_not_command(box: Box) -> None:
    box.launch("/bin/sleep", "100", attach=False)
    socket_file = box.folder / "control.sock"
    assert socket_file.stat().st_mode & 0o777 == 0o660
    code = f"""
import os, socket
folder = os.open({str(box.folder)!r}, os.O_PATH)
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
s = socket.socket(socket.AF_UNIX)
try:
    s.connect(f'/proc/self/fd/{{folder}}/control.sock')
    print(s.recv(1))
except OSError as error:
    print(error.errno)
"""

    def attempt() -> bytes:
        return subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout

    assert attempt() == b"13\n"
    socket_file.chmod(0o777)  # and whoever gets past the file's mode is hung up on
    assert attempt() in (b"b''\n", b"104\n")
    assert box.ask(op="state")["status"] == "running"


# ---- who dies first


def test_the_container_outlives_its_caller(box: Box) -> None:
    (box.folder / "config.json").write_text(
        json.dumps({**box.spec, "process": {**box.process, "args": ["/bin/cat"]}})
    )
    code = f"""
import sys, os, signal
sys.path.insert(0, {str(Path(__file__).parent)!r})
from launcher_box import launch
import json, socket
ours, theirs = socket.socketpair()
reply = launch(json.loads({json.dumps(box.request(attach=True, stdin=True))!r}), [theirs.fileno()])
print(json.dumps(reply), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    caller = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert caller.returncode == -9, caller.stderr
    assert "error" not in json.loads(caller.stdout)
    client = box.connect()
    assert client.ask(op="attach", stdin=True) == {"ok": True}
    client.send(STDIN, b"still here")
    client.send(STDIN, b"")
    assert client.collect().stdout == b"still here"


def test_a_caller_that_goes_away_before_the_reply_leaves_no_container(box: Box, tmp_path: Path) -> None:
    other = Box(tmp_path)
    try:
        reply, _ = other.launch("/bin/sleep", "100", attach=False)
        (box.folder / "config.json").write_text(
            json.dumps({**box.spec, "process": {**box.process, "args": ["/bin/cat"]}})
        )
        request = os.memfd_create("request")
        os.write(request, json.dumps(box.request(attach=False, stdin=True)).encode())
        reading, writing = os.pipe()
        os.close(reading)
        high = [fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, 100) for one in (request, writing)]
        actions = [(os.POSIX_SPAWN_DUP2, one, target) for one, target in zip(high, (3, 4), strict=True)]
        others = children()
        with (
            reaping()
        ):  # the monitor is known by that alone: it may not have begun when the launcher has ended
            os.posix_spawn(f"/proc/{reply['monitor_pid']}/exe", ["launcher"], {}, file_actions=actions)
            for one in (*high, request, writing):
                os.close(one)
            while left := children() - others:
                os.waitpid(left.pop(), 0)
        assert box.cgroup_folders() == []
        assert not (box.folder / "control.sock").exists()
    finally:
        other.end()


def test_the_launcher_leaves_no_child_to_its_caller(box: Box) -> None:
    reply, _ = box.launch("/bin/sleep", "100", attach=False)
    status = Path(f"/proc/{reply['monitor_pid']}/stat").read_text().rpartition(")")[2].split()
    assert int(status[1]) != os.getpid()
    assert int(status[3]) == reply["monitor_pid"]  # a session of its own


@pytest.mark.parametrize("uid", [0, 1000])
def test_a_killed_monitor_takes_the_container_with_it_and_the_bundle_can_be_started_again(
    box: Box, uid: int
) -> None:
    box.process["user"] = {"uid": uid, "gid": uid}
    reply, connection = box.launch("/bin/sh", "-c", "sleep 1000 & sleep 1000")
    assert connection is not None
    pids = box.cgroup_file("pids", "cgroup.procs").split()
    os.kill(reply["monitor_pid"], signal.SIGKILL)
    until(lambda: not any(Path("/proc", pid).exists() for pid in pids))
    assert not box.monitored()
    assert not (box.folder / "exit.json").exists()
    assert box.sh("echo again").stdout == b"again\n"
    assert box.cgroup_folders() == []


def test_a_terminated_monitor_hands_the_signal_on(box: Box) -> None:
    reply, connection = box.launch(
        "/bin/sh", "-c", "trap 'exit 11' TERM; echo ready; while :; do sleep 0.05; done"
    )
    assert connection is not None
    assert connection.frame() == (STDOUT, b"ready\n")
    os.kill(reply["monitor_pid"], signal.SIGTERM)
    assert connection.collect().code == 11


def test_nothing_is_left(box: Box) -> None:
    reply, connection = box.launch("/bin/sh", "-c", "sleep 1000 & echo x")
    assert connection is not None
    connection.collect()
    box.await_end()
    assert box.cgroup_folders() == []
    assert not (box.folder / "control.sock").exists()
    assert not (box.folder / "pid").exists()
    until(lambda: not Path("/proc", str(reply["monitor_pid"])).exists())
    assert not Path("/proc", str(reply["pid"])).exists()


def test_zombies_of_helpers_are_reaped(box: Box) -> None:
    reply, _ = box.launch("/bin/sleep", "100", attach=False)
    for _ in range(5):
        box.exec("/bin/true").collect()
    # Who has made a process may end after it.
    children_of_it = Path(f"/proc/{reply['monitor_pid']}/task/{reply['monitor_pid']}/children")
    until(lambda: children_of_it.read_text().split() == [str(reply["pid"])])


def test_the_monitors_descriptors_do_not_grow(box: Box) -> None:
    reply, _ = box.launch("/bin/sleep", "100", attach=False)
    folder = Path(f"/proc/{reply['monitor_pid']}/fd")
    box.exec("/bin/true").collect()
    before = len(list(folder.iterdir()))
    for _ in range(10):
        box.exec("/bin/true").collect()
        box.ask(op="state")
    for connection in box.connections:
        connection.close()
    until(lambda: len(list(folder.iterdir())) <= before)


def test_an_idle_monitor_is_small(box: Box) -> None:
    reply, connection = box.launch("/bin/sleep", "100")
    assert connection is not None
    assert memory_of(reply["monitor_pid"]) < MEBIBYTE
