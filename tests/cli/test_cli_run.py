"""``lamella run`` and ``containers``: exit statuses, streams, signals, terminals, what is left."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from typing import TYPE_CHECKING

import pytest

from waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from program import Program

pytestmark = [pytest.mark.privileged, pytest.mark.rootless]

TRAP = "trap 'echo got-{name}; exit 7' {name}; echo ready; while :; do sleep 0.05; done"


def containers(lamella: Program) -> list[str]:
    return [str(row["name"]) for row in lamella("--json", "ps", "-a").ok().document]


def actives(lamella: Program) -> list[str]:
    return lamella("snapshots", "ls", "-q", "--kind", "active").ok().out.split()


def wait_for(stream: object, text: bytes) -> bytes:
    """Read a pipe until it has said something."""
    seen = b""
    while text not in seen:
        piece = os.read(stream.fileno(), 4096)  # type: ignore[attr-defined]
        assert piece, seen
        seen += piece
    return seen


def test_run_passes_output_and_status_through_and_leaves_nothing(pulled: tuple[Program, str]) -> None:
    lamella, reference = pulled
    done = lamella("run", "--rm", reference, "sh", "-c", "echo out; echo err >&2; exit 42")
    assert (done.status, done.out, done.err) == (42, "out\n", "err\n")
    assert (containers(lamella), actives(lamella)) == ([], [])


def test_run_fetches_an_image_that_is_not_here(lamella: Program, small_image: str) -> None:
    done = lamella("run", "--rm", small_image, "echo", "hi").ok()
    assert (done.out, done.err) == ("hi\n", f"lamella: {small_image} is not here and is fetched\n")
    again = lamella("run", "--rm", small_image, "echo", "hi").ok()
    assert (again.out, again.err) == ("hi\n", "")


def test_run_never_fetches_when_told_so(lamella: Program, small_image: str) -> None:
    done = lamella("run", "--rm", "--pull", "never", small_image, "echo", "hi")
    assert (done.status, done.out) == (125, "")
    assert "is not in namespace default" in done.err


def test_run_of_a_local_image_loads_neither_requests_nor_rich(pulled: tuple[Program, str]) -> None:
    lamella, reference = pulled
    code = (
        "import sys\nfrom lamella.cli import main\nstatus = main(sys.argv[1:])\n"
        "print(' '.join(sys.modules), file=sys.stderr)\nsys.exit(status)"
    )
    words = [*lamella.options, "run", "--rm", reference, "true"]
    done = subprocess.run(
        [lamella.argv()[0], "-c", code, *words], capture_output=True, text=True, timeout=60, check=True
    )
    loaded = set(done.stderr.split())
    assert "lamella.containers.container" in loaded
    assert not loaded & {
        *(
            "requests",
            "urllib3",
            "rich",
            "ssl",
            "logging",
            "subprocess",
            "dataclasses",
            "zstandard",
            "shutil",
        ),
        *(
            "lamella.registry.client",
            "lamella.transfer.pull",
            "lamella.cli.progress",
            "lamella.cli.completion",
        ),
    }


@pytest.mark.parametrize(
    ("words", "status"),
    [(["no-such-program"], 127), (["/etc/passwd"], 126), (["/etc"], 126), (["/nowhere/at/all"], 127)],
)
def test_a_program_that_cannot_run_gives_the_status_of_a_shell(
    words: list[str], status: int, pulled: tuple[Program, str]
) -> None:
    lamella, reference = pulled
    done = lamella("run", reference, *words)
    assert (done.status, done.out) == (status, "")
    assert done.err.startswith("lamella: ")
    assert words[0] in done.err
    assert (containers(lamella), actives(lamella)) == ([], [])


def test_a_name_that_is_taken_is_an_error_and_harms_nobody(pulled: tuple[Program, str]) -> None:
    lamella, reference = pulled
    lamella("run", "--name", "box", reference, "true").ok()
    done = lamella("run", "--rm", "--name", "box", reference, "true")
    assert done.status == 125
    assert "box" in done.err
    assert containers(lamella) == ["box"]


def test_without_rm_the_container_stays_with_its_status_and_log(pulled: tuple[Program, str]) -> None:
    lamella, reference = pulled
    assert (
        lamella("run", "--name", "box", reference, "sh", "-c", "echo out; echo err >&2; exit 3").status == 3
    )
    (row,) = lamella("--json", "ps", "-a").ok().document
    assert (row["name"], row["status"], row["exit_code"], row["image"]) == ("box", "stopped", 3, reference)
    assert row["command"] == ["sh", "-c", "echo out; echo err >&2; exit 3"]
    assert "stopped (3)" in lamella("ps", "-a").ok().out
    assert lamella("ps").ok().out.splitlines()[1:] == []
    logs = lamella("containers", "logs", "box").ok()
    assert (logs.out, logs.err) == ("out\n", "err\n")
    assert lamella("containers", "logs", "--stream", "stderr", "box").ok().err == "err\n"
    assert lamella("containers", "wait", "box").ok().out == "3\n"
    document = lamella("containers", "inspect", "box").ok().document
    assert document["spec"]["process"]["args"][0] == "sh"
    assert document["snapshot_key"] in actives(lamella)
    assert lamella("containers", "rm", "box").ok().out == "box\n"
    assert (containers(lamella), actives(lamella)) == ([], [])


@pytest.mark.needs_ids
def test_options_shape_the_container(pulled: tuple[Program, str], tmp_path: Path) -> None:
    lamella, reference = pulled
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/note").write_text("from the host\n")
    script = (
        "pwd; id -u; hostname; echo $GREETING $PASSED; cat /mnt/note; "
        "touch /mnt/x 2>/dev/null || echo ro-mount; touch /x 2>/dev/null || echo ro-root; touch /scratch/x && echo rw"
    )
    limits = ("--memory", "64m", "--cpus", "0.5", "--pids-limit", "20")  # they take a cgroup
    done = lamella(
        *("run", "--rm", "-w", "/etc", "-u", "65534", "--hostname", "boxy", "-e", "GREETING=hi"),
        *("-v", f"{tmp_path}/shared:/mnt:ro", "--read-only", "--tmpfs", "/scratch:mode=1777"),
        *(limits if os.geteuid() == 0 else ()),
        *(reference, "sh", "-c", script),
    ).ok()
    assert done.out.split("\n") == [
        "/etc",
        "65534",
        "boxy",
        "hi",
        "from the host",
        "ro-mount",
        "ro-root",
        "rw",
        "",
    ]


def test_entrypoint_is_replaced(pulled: tuple[Program, str]) -> None:
    lamella, reference = pulled
    assert lamella("run", "--rm", "--entrypoint", "echo", reference, "a", "b").ok().out == "a b\n"


def test_stdin_reaches_the_container_only_with_i(pulled: tuple[Program, str]) -> None:
    lamella, reference = pulled
    data = os.urandom(300_000)
    done = lamella.process("run", "--rm", "-i", reference, "cat", input=data)
    assert (done.returncode, done.stdout == data, done.stderr) == (0, True, b"")
    without = lamella.process("run", "--rm", reference, "cat", input=b"ignored")
    assert (without.returncode, without.stdout) == (0, b"")


def test_a_container_that_does_not_read_its_stdin_still_ends(pulled: tuple[Program, str]) -> None:
    lamella, reference = pulled
    done = lamella.process("run", "--rm", "-i", reference, "echo", "done", input=b"x" * 3_000_000)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"done\n", b"")


def test_output_comes_while_the_container_runs(pulled: tuple[Program, str]) -> None:
    lamella, reference = pulled
    with lamella.start("run", "--rm", "-i", reference, "sh", "-c", "echo first; cat; echo last") as running:
        assert running.stdin is not None
        assert running.stdout is not None
        assert wait_for(running.stdout, b"first\n") == b"first\n"
        running.stdin.write(b"middle\n")
        running.stdin.flush()
        assert wait_for(running.stdout, b"middle\n") == b"middle\n"
        running.stdin.close()
        assert running.stdout.read() == b"last\n"
        assert running.wait(timeout=60) == 0


@pytest.mark.parametrize("name", ["INT", "TERM", "HUP", "QUIT", "USR1", "USR2"])
def test_signals_reach_the_container(name: str, pulled: tuple[Program, str]) -> None:
    lamella, reference = pulled
    with lamella.start("run", "--rm", reference, "sh", "-c", TRAP.format(name=name)) as running:
        assert running.stdout is not None
        wait_for(running.stdout, b"ready\n")
        running.send_signal(getattr(signal, f"SIG{name}"))
        assert running.stdout.read() == f"got-{name}\n".encode()
        assert running.wait(timeout=60) == 7
    assert containers(lamella) == []


def test_the_third_interrupt_kills_a_container_that_ignores_them(pulled: tuple[Program, str]) -> None:
    lamella, reference = pulled
    with lamella.start(
        "run", "--rm", reference, "sh", "-c", "trap 'echo no' INT; echo ready; while :; do sleep 0.05; done"
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        wait_for(running.stdout, b"ready\n")
        for _ in range(2):
            running.send_signal(signal.SIGINT)
            wait_for(running.stdout, b"no\n")
        running.send_signal(signal.SIGINT)
        assert running.wait(timeout=60) == 137
        assert b"ignores the signal and is killed" in running.stderr.read()
    assert containers(lamella) == []


def test_a_time_out_kills_and_gives_124(pulled: tuple[Program, str]) -> None:
    lamella, reference = pulled
    for seconds in (1, 10, 50):
        words = ("run", "--rm", "--timeout", f"{seconds}s", reference, "sh", "-c", "echo begun; sleep 1000")
        done = lamella(*words)
        assert done.status == 124
        assert f"ran longer than {seconds} s and was killed" in done.err
        assert containers(lamella) == []
        if done.out:  # else the machine was too slow for it
            break
    assert done.out == "begun\n"


def test_the_end_of_the_reader_ends_the_container(pulled: tuple[Program, str]) -> None:
    lamella, reference = pulled
    with lamella.start("run", "--rm", reference, "sh", "-c", "while :; do echo y; done") as running:
        assert running.stdout is not None
        assert running.stderr is not None
        wait_for(running.stdout, b"y\n")
        running.stdout.close()
        assert running.wait(timeout=60) == 141
        assert running.stderr.read() == b""
        running.stdout = None
    assert containers(lamella) == []


def test_a_detached_container_goes_on_and_is_found_by_name_and_id(pulled: tuple[Program, str]) -> None:
    lamella, reference = pulled
    container_id = lamella("run", "-d", "--name", "web", reference, "sleep", "1000").ok().out.strip()
    try:
        assert lamella("ps", "-q").ok().out.strip() == container_id
        (row,) = lamella("--json", "ps").ok().document
        assert (row["id"], row["status"], row["name"]) == (container_id, "running", "web")
        assert row["pid"] > 0
        busy = lamella("containers", "rm", "web")
        assert (busy.status, "running" in busy.err) == (1, True)
        late = lamella("containers", "wait", "--timeout", "0.1", "web")
        assert (late.status, late.out) == (124, "")
        assert (
            lamella("containers", "stop", "-t", "0.2s", container_id[:12]).ok().out.strip()
            == container_id[:12]
        )
        assert lamella("--json", "containers", "wait", "web").ok().document == [
            {"container": "web", "exit_code": 137}
        ]
    finally:
        lamella("containers", "rm", "-f", "web").ok()
    assert containers(lamella) == []


def test_stop_waits_as_long_as_it_is_told(
    pulled: tuple[Program, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lamella.containers.container import Container

    lamella, reference = pulled
    lamella("containers", "create", "--name", "web", reference, "true").ok()
    asked: list[float | None] = []
    monkeypatch.setattr(Container, "stop", lambda container, timeout: asked.append(timeout))
    lamella("containers", "stop", "-t", "1m", "web").ok()
    lamella("containers", "stop", "web").ok()
    assert asked == [60.0, None]  # the container's own


def test_kill_sends_the_signal_that_is_named(pulled: tuple[Program, str]) -> None:
    lamella, reference = pulled
    lamella("run", "-d", "--name", "web", reference, "sh", "-c", TRAP.format(name="USR1")).ok()
    try:
        until(lambda: lamella("containers", "logs", "web").ok().out == "ready\n")
        lamella("containers", "kill", "-s", "usr1", "web").ok()
        assert lamella("containers", "wait", "--timeout", "20s", "web").ok().out == "7\n"
        assert lamella("containers", "logs", "web").ok().out == "ready\ngot-USR1\n"
    finally:
        lamella("containers", "rm", "-f", "web").ok()


def test_a_detached_container_with_rm_is_gone_after_its_end(pulled: tuple[Program, str]) -> None:
    lamella, reference = pulled
    lamella("run", "-d", "--rm", "--name", "brief", reference, "true").ok()
    until(lambda: containers(lamella) == [])
    assert actives(lamella) == []


def test_create_and_start_with_streams(pulled: tuple[Program, str]) -> None:
    lamella, reference = pulled
    created = lamella(
        "containers", "create", "-i", "--name", "box", reference, "sh", "-c", "cat; exit 5"
    ).ok()
    assert len(created.out.strip()) == 64
    assert lamella("--json", "ps", "-a").ok().document[0]["status"] == "created"
    done = lamella.process("containers", "start", "-a", "-i", "box", input=b"hello\n")
    assert (done.returncode, done.stdout) == (5, b"hello\n")
    lamella("containers", "rm", "box").ok()


def test_start_without_a_names_what_it_started(pulled: tuple[Program, str]) -> None:
    lamella, reference = pulled
    lamella("containers", "create", "--name", "box", reference, "true").ok()
    assert lamella("containers", "start", "box").ok().out == "box\n"
    assert lamella("containers", "wait", "--timeout", "20s", "box").ok().out == "0\n"
    missing = lamella("containers", "start", "nowhere")
    assert (missing.status, "nowhere" in missing.err) == (125, True)
    lamella("containers", "rm", "box").ok()


def test_a_terminal_of_its_own_with_our_size_raw_keys_and_resize(
    pulled: tuple[Program, str], require_program: Callable[[str], str]
) -> None:
    lamella, reference = pulled
    script = (
        "test -t 0 && test -t 1 && echo terminal; until [ \"$(stty size)\" != '0 0' ]; do sleep 0.02; done; stty size; "
        "echo ready; read line; echo line=$line; trap 'stty size; echo resized' WINCH; "
        "trap 'echo got-INT; exit 9' INT; echo waiting; while :; do sleep 0.05; done"
    )
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 77, 0, 0))
    before = termios.tcgetattr(theirs)
    stty = f"{require_program('stty')}:/bin/stty:ro"
    try:
        with lamella.start(
            *("run", "--rm", "-it", "-v", stty, reference, "sh", "-c", script),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        ) as running:
            assert b"terminal\r\n33 77\r\n" in _read_until(ours, b"ready\r\n")
            os.write(ours, b"typed\r")
            assert b"line=typed\r\n" in _read_until(ours, b"waiting\r\n")
            fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 60, 0, 0))
            running.send_signal(signal.SIGWINCH)
            assert b"20 60\r\n" in _read_until(ours, b"resized\r\n")
            os.write(ours, b"\x03")
            _read_until(ours, b"got-INT\r\n")
            assert running.wait(timeout=60) == 9
        assert termios.tcgetattr(theirs) == before
    finally:
        os.close(ours)
        os.close(theirs)
    assert containers(lamella) == []


def _read_until(descriptor: int, text: bytes) -> bytes:
    seen = b""
    deadline = time.monotonic() + 60
    while text not in seen:
        assert select.select([descriptor], [], [], max(0, deadline - time.monotonic()))[0], seen
        seen += os.read(descriptor, 4096)
    return seen


def test_a_terminal_is_refused_where_stdin_is_none(pulled: tuple[Program, str]) -> None:
    lamella, reference = pulled
    done = lamella.process("run", "--rm", "-it", reference, "true")
    assert done.returncode == 125
    assert done.stderr.startswith(b"lamella run: -t needs a terminal")


def test_ctrl_c_during_a_pull_gives_130(lamella: Program) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection and never answers
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with lamella.start("pull", f"{address}/a:b") as pulling:
            accepted, _ = silent.accept()
            with accepted:
                # Once it waits for the answer: the import system swallows an interrupt while it lets go of a lock.
                assert accepted.recv(1)
                pulling.send_signal(signal.SIGINT)
                assert pulling.wait(timeout=60) == 130
                assert pulling.stderr is not None
                assert b"Traceback" not in pulling.stderr.read()


def test_the_id_goes_to_a_file_that_must_not_be_there(pulled: tuple[Program, str], tmp_path: Path) -> None:
    lamella, reference = pulled
    file = tmp_path / "id"
    lamella("run", "--cidfile", str(file), reference, "true").ok()
    (row,) = lamella("--json", "ps", "-a").ok().document
    assert file.read_text() == row["id"]
    for words in (("run", "--rm"), ("create",)):
        done = lamella(*words, "--cidfile", str(file), reference, "true")
        assert (done.status, str(file) in done.err) == (125, True)
    assert file.read_text() == row["id"]
    other = tmp_path / "other"
    assert lamella("create", "--cidfile", str(other), "--name", "x", "-m", "1", reference).status == 125
    assert not other.exists()


def test_labels_and_variables_come_from_files(pulled: tuple[Program, str], tmp_path: Path) -> None:
    lamella, reference = pulled
    (tmp_path / "env").write_text("A=file\nB=file\n")
    (tmp_path / "labels").write_text("# remark\nstage=test\nmore=0\n")
    words = ("--env-file", str(tmp_path / "env"), "-e", "B=own", "--label-file", str(tmp_path / "labels"))
    done = lamella(
        "run", "--name", "box", *words, "--label", "more=1", reference, "sh", "-c", "echo $A $B"
    ).ok()
    assert done.out == "file own\n"
    labels = lamella("containers", "inspect", "box").ok().document["labels"]
    assert labels.items() >= {"stage": "test", "more": "1"}.items()
    done = lamella("run", "--env-file", str(tmp_path / "none"), reference, "true")
    assert (done.status, "there is no file" in done.err) == (125, True)


def test_a_wrong_command_line_of_run_is_told_from_the_status_of_a_program(
    pulled: tuple[Program, str],
) -> None:
    lamella, reference = pulled
    assert lamella("run", "--no-such-option", reference, "true").status == 125
    assert lamella("--json", "exec", "box", "true").status == 125
    assert lamella("ps", "--no-such-option").status == 2
    assert lamella("run", "--rm", reference, "sh", "-c", "exit 2").status == 2
    assert lamella("start", "nobody", "nothing").status == 125
