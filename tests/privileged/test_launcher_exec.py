"""Processes that an exec adds to a running container."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from launcher_box import PRELUDE, PYTHON, STDIN, STDOUT, Box, Connection

from waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.privileged]


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    box = Box(tmp_path)
    reply, _ = box.launch("/bin/sleep", "1000", attach=False)
    assert "error" not in reply, reply
    yield box
    box.end()


def started(connection: Connection) -> dict[str, Any]:
    document = connection.document()
    assert document.get("ok") is True, document
    return document


def python(box: Box, code: str, **changes: Any) -> Any:
    connection = box.exec(PYTHON, "-I", "-S", "-c", PRELUDE + code, **changes)
    started(connection)
    result = connection.collect()
    assert result.code == 0, result
    return json.loads(result.stdout)


def test_it_runs_in_the_containers_namespaces_and_root(box: Box) -> None:
    pid = box.ask(op="state")["pid"]
    kinds = ("mnt", "pid", "uts", "ipc", "net", "cgroup")
    inside = python(box, f"print(json.dumps({{k: os.readlink('/proc/self/ns/' + k) for k in {kinds!r}}}))")
    assert inside == {kind: str(Path(f"/proc/{pid}/ns/{kind}").readlink()) for kind in kinds}
    assert python(box, "print(json.dumps([os.getcwd(), os.path.exists('/boot'), os.getpid() > 1]))") == [
        "/",
        False,
        True,
    ]


def test_it_has_the_containers_privileges_and_filter(box: Box) -> None:
    code = """
status = dict(l.split(':', 1) for l in open('/proc/self/status'))
print(json.dumps([status[k].strip() for k in ('CapEff', 'CapBnd', 'NoNewPrivs', 'Seccomp')] + [call(165, 0, 0, 0, 0, 0)]))
"""
    assert python(box, code) == ["00000000a80425fb", "00000000a80425fb", "1", "2", "EPERM"]


def test_it_is_in_the_containers_cgroups(box: Box) -> None:
    limit = box.cgroup_file("memory", "cgroup.procs").split()
    connection = box.exec("/bin/sleep", "100")
    pid = str(started(connection)["pid"])
    assert pid not in limit
    for controller in ("memory", "pids", "devices"):
        assert pid in box.cgroup_file(controller, "cgroup.procs").split()


def test_it_enters_a_user_namespace_too(tmp_path: Path) -> None:
    box = Box(tmp_path)
    box.linux["namespaces"].append({"type": "user"})
    for key in ("uidMappings", "gidMappings"):
        box.linux[key] = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    box.spec["mounts"] = [one for one in box.spec["mounts"] if not one["source"].startswith("/root")]
    for folder in (box.folder, tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    for name in ("upper", "work"):
        os.chown(box.folder / name, 100000, 100000)
    try:
        reply, _ = box.launch("/bin/sleep", "100", attach=False)
        assert "error" not in reply, reply
        connection = box.exec("/bin/sh", "-c", "id -u; id -g; cat /proc/self/uid_map; echo x > /made")
        started(connection)
        result = connection.collect()
        assert result.stdout.split() == [b"0", b"0", b"0", b"100000", b"65536"]
        assert (box.folder / "upper/made").stat().st_uid == 100000
        user = {"uid": 1000, "gid": 1000, "additionalGids": [5]}
        connection = box.exec("/bin/sh", "-c", "id -u; id -G", user=user)
        started(connection)
        assert connection.collect().stdout.split() == [b"1000", b"1000", b"5"]
    finally:
        box.end()


def test_streams_are_its_own_and_separate(box: Box) -> None:
    connection = box.exec("/bin/sh", "-c", "cat; echo err >&2; exit 3", stdin=True)
    started(connection)
    connection.send(STDIN, b"hello")
    connection.send(STDIN, b"")
    result = connection.collect()
    assert (result.code, result.stdout, result.stderr) == (3, b"hello", b"err\n")
    assert not box.log.exists()


def test_user_environment_and_folder_are_its_own(box: Box) -> None:
    code = "print(json.dumps([os.getuid(), os.getgroups(), os.environ['COLOUR'], os.getcwd()]))"
    user = {"uid": 1000, "gid": 1000, "additionalGids": [7]}
    env = ["PATH=/usr/bin:/bin", "COLOUR=red"]
    assert python(box, code, user=user, env=env, cwd="/tmp") == [1000, [7], "red", "/tmp"]


@pytest.mark.parametrize(("program", "code"), [("/not/there", 127), ("not-there", 127), ("/usr", 126)])
def test_a_program_that_cannot_be_run_says_why_and_the_connection_goes_on(
    box: Box, program: str, code: int
) -> None:
    connection = box.exec(program)
    assert connection.document()["error"]["exit_code"] == code
    assert connection.ask(op="state")["status"] == "running"


@pytest.mark.parametrize(
    "change", [{"cwd": "relative"}, {"args": []}, {"colour": 1}, {"user": {"uid": 4294967295, "gid": 0}}]
)
def test_what_breaks_a_rule_is_refused_before_anything_is_done(box: Box, change: dict[str, Any]) -> None:
    connection = box.connect()
    connection.request(op="exec", process={**box.process, **change})
    assert connection.document()["error"]["kind"] in ("InvalidArgument", "Unsupported")


def test_a_terminal_is_a_pair_of_the_containers_devpts(box: Box) -> None:
    connection = box.exec("/bin/sh", "-c", "tty; read x; stty size; exit 2", terminal=True, stdin=True)
    started(connection)
    said = b""
    while not said.endswith(b"\n"):  # a terminal may give a line and its end one after the other
        kind, piece = connection.frame() or (-1, b"\n")
        assert kind == STDOUT, (kind, piece, said)
        said += piece
    assert said == b"/dev/pts/0\r\n"
    assert connection.ask(op="resize", rows=12, cols=34) == {"ok": True}
    connection.send(STDIN, b"x\n")
    result = connection.collect()
    assert (result.code, result.stdout) == (2, b"x\r\n12 34\r\n")


def test_many_run_at_once(box: Box) -> None:
    results: list[bytes] = []

    def one(number: int) -> None:
        connection = box.exec("/bin/sh", "-c", f"sleep 0.05; echo {number}")
        started(connection)
        results.append(connection.collect().stdout)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(int, results)) == list(range(20))


def test_a_kill_reaches_everything_that_it_started_and_nothing_else(box: Box) -> None:
    script = "setsid sh -c 'sleep 1000 & sleep 1000' & sleep 1000"
    connection = box.exec("/bin/sh", "-c", script)
    started(connection)
    until(lambda: len(box.cgroup_file("pids", "cgroup.procs").split()) >= 5)
    connection.request(op="kill", signal=9, all=True)
    assert connection.collect().code == 137
    until(lambda: len(box.cgroup_file("pids", "cgroup.procs").split()) <= 1)
    assert box.ask(op="state")["status"] == "running"


def test_a_fork_bomb_is_killed_whole(box: Box) -> None:
    Path("/sys/fs/cgroup/pids", box.cgroup.strip("/"), "pids.max").write_text("200")
    connection = box.exec("/bin/sh", "-c", "f() { f | f & f; }; f 2>/dev/null")
    started(connection)
    time.sleep(0.3)
    connection.request(op="kill", signal=9, all=True)
    connection.collect()
    until(lambda: len(box.cgroup_file("pids", "cgroup.procs").split()) <= 1)  # or some got away


def test_what_it_leaves_running_does_not_hold_its_end_back(box: Box) -> None:
    connection = box.exec("/bin/sh", "-c", "sleep 1000 & echo started")
    started(connection)
    assert connection.collect().stdout == b"started\n"  # what it left sleeps for longer than a test may take
    assert len(box.cgroup_file("pids", "cgroup.procs").split()) == 2


def test_it_ends_with_the_container(box: Box) -> None:
    connection = box.exec("/bin/sleep", "1000")
    started(connection)
    box.ask(op="kill", signal=9)
    assert connection.collect().code == 137
    box.await_end()
    assert box.cgroup_folders() == []


def test_a_paused_or_held_container_takes_none(box: Box, tmp_path: Path) -> None:
    box.ask(op="pause")
    assert box.exec("/bin/true").document()["error"]["kind"] == "FailedPrecondition"
    box.ask(op="resume")
    held = Box(tmp_path)
    try:
        held.launch("/bin/true", hold=True)
        assert held.exec("/bin/true").document()["error"]["kind"] == "FailedPrecondition"
    finally:
        held.end()


def test_processes_of_the_container_cannot_look_into_the_one_that_enters(box: Box) -> None:
    code = """
import time
seen, end = set(), time.monotonic() + 1.5
while time.monotonic() < end:
    for name in os.listdir('/proc'):
        if not name.isdigit() or int(name) in (1, os.getpid()):
            continue
        try:
            exe = os.readlink(f'/proc/{name}/exe')
            if 'launcher' in exe:
                seen.add(('exe', exe))
            for fd in os.listdir(f'/proc/{name}/fd'):
                target = os.readlink(f'/proc/{name}/fd/{fd}')
                if target.startswith('/') and not target.startswith(('/dev/null', '/usr', '/proc', '/dev/pts')):
                    seen.add(('fd', target))
        except OSError:
            pass
print(json.dumps(sorted(seen)))
"""
    watcher = box.exec(PYTHON, "-I", "-S", "-c", PRELUDE + code)
    started(watcher)
    for _ in range(100):
        box.exec("/bin/true").collect()
    assert json.loads(watcher.collect().stdout) == []
