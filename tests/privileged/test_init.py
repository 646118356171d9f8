"""Containers with an init: signals, zombies, exit statuses, terminals; and that its file is out of everybody's reach."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest
from launcher_box import PYTHON, Box

from lamella.errors import CommandNotExecutable, CommandNotFound
from waiting import until

pytestmark = [pytest.mark.privileged, pytest.mark.rootless]


@pytest.fixture
def run(client, image):
    def call(*command: str, **options: Any):
        return client.containers.run(image, list(command), remove=True, init=True, **options)

    return call


@pytest.fixture
def start(client, image):
    boxes = []

    def call(script: str, **options: Any):
        boxes.append(
            client.containers.run(image, ["/bin/sh", "-c", script], detach=True, init=True, **options)
        )
        return boxes[-1]

    yield call
    for box in boxes:
        box.remove(force=True)


def output(box) -> str:
    return b"".join(data for _, data in box.logs()).decode()


@pytest.mark.needs_ids
def test_the_command_runs_beneath_the_init_with_its_environment_folder_user_and_streams(run):
    script = "read name < /proc/1/comm; echo $name $$ $A; pwd; id -u; cat; echo err >&2; exit 7"
    result = run(
        "/bin/sh", "-c", script, environment={"A": "b"}, working_dir="/etc", user="12:34", input=b"in\n"
    )
    assert result.stdout.decode().split() == ["lamella-init", "2", "b", "/etc", "12", "in"]
    assert (result.exit_code, result.stderr) == (7, b"err\n")


def test_the_exit_status_of_a_signal_is_128_and_its_number(run):
    assert run("/bin/sh", "-c", "kill -9 $$").exit_code == 137
    assert run("/bin/sh", "-c", "kill -USR1 $$").exit_code == 138


def test_signals_are_passed_on(start):
    box = start("trap 'echo got; exit 5' USR1; echo up; while :; do sleep 0.02; done")
    until(lambda: output(box) == "up\n")
    box.kill("SIGUSR1")
    assert box.wait(30) == 5
    assert output(box) == "up\ngot\n"


def test_a_command_without_a_handler_ends_at_sigterm_as_it_would_outside(start):
    # As the first process of a PID namespace it would ignore the signal, and stop() would have to wait and kill.
    box = start("exec sleep 600")
    until(lambda: b"sleep" in Path(f"/proc/{box.pid}/cmdline").read_bytes())
    assert box.stop(timeout=60) == 143


def test_orphans_are_reaped(start):
    # Each inner shell leaves a child behind, which ends a little later.
    box = start("for i in 1 2 3 4 5 6 7 8; do sh -c 'sleep 0.05 & exit'; done; echo left; exec sleep 600")
    until(lambda: output(box) == "left\n")

    def states() -> list[str]:
        found = box.exec(["/bin/sh", "-c", "cat /proc/[0-9]*/stat 2>/dev/null"]).stdout.decode()
        return re.findall(r"\) (\S)", found)

    until(lambda: states().count("Z") == 0 and len(states()) <= 4)
    for _ in range(3):
        box.exec(["/bin/sh", "-c", "sleep 0.05 & exit"])
    until(lambda: states().count("Z") == 0 and len(states()) <= 4)


def test_without_init_orphans_stay_when_the_command_does_not_reap(client, image):
    box = client.containers.run(image, ["/bin/sleep", "600"], detach=True)
    try:
        box.exec(["/bin/sh", "-c", "sh -c 'sleep 0.02 & exit'"])

        def zombies() -> int:
            found = box.exec(["/bin/sh", "-c", "cat /proc/[0-9]*/stat 2>/dev/null"]).stdout.decode()
            return len(re.findall(r"\) Z", found))

        until(zombies)
    finally:
        box.remove(force=True)


def test_a_program_that_cannot_be_run_is_told_as_without_init(client, image, run):
    with pytest.raises(CommandNotFound, match="nonsense"):
        run("nonsense")
    with pytest.raises(CommandNotExecutable):
        run("/etc/passwd")
    box = client.containers.create(image, ["/tool"], name="tool", init=True)
    try:
        tool = client.snapshots.layer_paths("tool")[0] / "tool"
        tool.write_text("#!/no/such/interpreter\n")
        tool.chmod(0o755)
        with pytest.raises(CommandNotFound, match="/tool") as caught:
            box.start()
        assert "interpreter" in str(caught.value.hint)
        assert box.status == "created"
    finally:
        box.remove()


@pytest.mark.needs_root  # a cgroup
def test_it_goes_with_restarts_limits_and_the_strictest_rights(client, image, run):
    assert (
        run("/bin/true", cap_drop=["ALL"], no_new_privileges=True, read_only=True, user="65534").exit_code
        == 0
    )
    assert run("/bin/sh", "-c", "x=a; while :; do x=$x$x; done", memory="16m").oom_killed
    box = client.containers.create(
        image,
        ["/bin/sh", "-c", "echo run >> /n; [ $(wc -l < /n) -eq 3 ]"],
        init=True,
        restart_policy="on-failure",
    )
    try:
        box.start()
        assert box.wait(60) == 0
        assert box.restart_count == 2
    finally:
        box.remove(force=True)


def test_without_init_nothing_of_it_is_there(client, image):
    result = client.containers.run(image, ["/bin/sh", "-c", "cat /proc/1/comm; echo $$"], remove=True)
    assert result.stdout.decode().split() == ["sh", "1"] or b"cat" in result.stdout


# Terminals


def test_job_control_works_on_a_terminal(box: Box) -> None:
    box.process["terminal"] = True
    code = """
import os, signal, subprocess, sys, time
assert os.getpid() == 2 and os.tcgetpgrp(0) == os.getpgrp() == 2, (os.getpid(), os.tcgetpgrp(0), os.getpgrp())
print('own', flush=True)
# What a shell does with a job: a group of its own in the foreground, and back.
job = subprocess.Popen(['sleep', '600'], process_group=0)
os.tcsetpgrp(0, job.pid)
print('job', flush=True)
assert job.wait() == -signal.SIGINT
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
os.tcsetpgrp(0, os.getpgrp())
try:
    print('back', flush=True)
    time.sleep(600)
except KeyboardInterrupt:
    print('caught', flush=True)
    sys.exit(9)
"""
    connection = box.start(PYTHON, "-I", "-S", "-c", code, stdin=True, init=True)
    seen = b""

    def read_until(text: bytes) -> None:
        nonlocal seen
        while text not in seen:
            frame = connection.frame()
            assert frame is not None and frame[0] != 0, (frame, seen)
            seen += frame[1]

    read_until(b"job")
    time.sleep(0.1)
    connection.send(1, b"\x03")
    read_until(b"back")
    time.sleep(0.1)
    connection.send(1, b"\x03")
    read_until(b"caught")
    assert connection.collect().code == 9


def test_a_terminals_size_changes_beneath_an_init(box: Box) -> None:
    box.process["terminal"] = True
    script = "trap 'stty size; exit 3' WINCH; echo up; while :; do sleep 0.02; done"
    connection = box.start("/bin/sh", "-c", script, stdin=True, init=True)
    assert b"up" in (connection.frame() or (0, b""))[1]
    connection.request(op="resize", rows=40, cols=100)
    seen = b""
    while b"40 100" not in seen:
        frame = connection.frame()
        assert frame is not None
        seen += frame[1] if frame[0] else b""
    assert connection.collect().code == 3


# Its file (CVE-2019-5736)


def test_the_inits_file_can_neither_be_written_nor_harm_another_container(box: Box, tmp_path: Path) -> None:
    other = Box(tmp_path)
    code = """
import errno, fcntl, os, stat
found = {}
def attempt(name, function):
    try:
        function()
        found[name] = 'ok'
    except OSError as error:
        found[name] = errno.errorcode[error.errno]
exe = '/proc/1/exe'
found['path'] = os.readlink(exe)
attempt('write', lambda: os.open(exe, os.O_WRONLY))
attempt('read-write', lambda: os.open(exe, os.O_RDWR))
attempt('truncate', lambda: os.truncate(exe, 0))
descriptor = os.open(exe, os.O_RDONLY)
attempt('again', lambda: os.open(f'/proc/self/fd/{descriptor}', os.O_WRONLY))
for length in (1,):
    attempt('map', lambda: __import__('mmap').mmap(descriptor, 4096, 1, 2))
attempt('chmod', lambda: os.chmod(exe, 0))
attempt('link', lambda: os.link(exe, '/tmp/init', follow_symlinks=True))
attempt('chown', lambda: os.chown(exe, 1, 1))
found['descriptors'] = sorted(os.listdir('/proc/1/fd'), key=int)
found['environment'] = open('/proc/1/environ', 'rb').read().decode(errors='replace')
found['maps'] = [line.split()[-1] for line in open('/proc/1/maps') if '/' in line]
print(json.dumps(found))
"""
    try:
        _, waiting = other.launch("/bin/sleep", "600", init=True)
        assert waiting is not None
        found = box.python(code, init=True)
        assert "memfd:lamella-init" in found["path"]
        for name in ("write", "read-write", "truncate", "again"):
            assert found[name] in ("ETXTBSY", "EPERM", "EACCES"), found
        assert found["link"] != "ok"
        assert set(found["descriptors"]) <= {"0", "1", "2", "3", "4"}, found
        assert str(box.folder) not in found["environment"]
        assert not any(str(box.folder) in name for name in found["maps"])
        # Whatever it did to the file behind /proc/1/exe: others are run as before.
        assert other.ask(op="state")["status"] == "running"
        assert box.run("/bin/true", init=True).code == 0
        assert box.run("/bin/true").code == 0
    finally:
        other.end()


def test_nothing_of_the_launchers_memory_is_in_the_inits(box: Box) -> None:
    secret = "a-path-that-only-the-host-knows"
    (box.folder / secret).mkdir()
    box.spec["mounts"].append(
        {
            "destination": "/data",
            "type": "bind",
            "source": str(box.folder / secret),
            "options": ["rbind", "ro"],
        }
    )
    box.set_capabilities("CAP_SYS_PTRACE", "CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE")
    code = f"""
found, parts = False, {secret.split("-")!r}
needle = '-'.join(parts).encode()
with open('/proc/1/mem', 'rb', 0) as memory:
    for line in open('/proc/1/maps'):
        first, last = (int(part, 16) for part in line.split()[0].split('-'))
        if 'vvar' in line or 'vsyscall' in line or 'r' not in line.split()[1]:
            continue
        memory.seek(first)
        try:
            found |= needle in memory.read(last - first)
        except OSError:
            pass
print(json.dumps(found))
"""
    assert box.python(code, init=True) is False


def test_an_init_is_small(box: Box) -> None:
    reply, _ = box.launch("/bin/sleep", "600", init=True)
    until(lambda: Path(f"/proc/{reply['pid']}/comm").read_text() == "lamella-init\n")
    status = Path(f"/proc/{reply['pid']}/status").read_text()
    anonymous = int(re.search(r"RssAnon:\s+(\d+)", status)[1]) * 1024  # type: ignore[index]
    assert anonymous < 512 * 1024
