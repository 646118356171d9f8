"""Leaving a container that goes on: the detach keys, ``--sig-proxy``, ``exec -d``."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from test_cli_run import _read_until

from waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from program import Program

pytestmark = [pytest.mark.privileged, pytest.mark.rootless]

KEYS = b"\x10\x11"
SHELL = ("sh", "-c", "echo ready; while read line; do echo got=$line; done")


@contextmanager
def on_terminal(lamella: Program, *words: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Start the command on a terminal of its own; give the process and our end of the terminal."""
    ours, theirs = pty.openpty()
    try:
        with lamella.start(*words, stdin=theirs, stdout=theirs, stderr=theirs) as running:
            yield running, ours
    finally:
        os.close(ours)
        os.close(theirs)


def status(lamella: Program, name: str) -> str:
    return str(lamella("containers", "inspect", name).ok().document["status"])


def test_the_detach_keys_leave_a_container_that_goes_on(pulled: tuple[Program, str]) -> None:
    lamella, reference = pulled
    with on_terminal(lamella, "run", "-it", "--name", "box", reference, *SHELL) as (running, ours):
        _read_until(ours, b"ready\r\n")
        os.write(ours, b"one\r")
        _read_until(ours, b"got=one\r\n")
        os.write(ours, KEYS)
        assert b"left box, which goes on" in _read_until(ours, b"goes on\r\n")
        assert running.wait(timeout=60) == 0
    assert status(lamella, "box") == "running"
    with on_terminal(lamella, "attach", "box") as (running, ours):
        os.write(ours, b"two\r")
        _read_until(ours, b"got=two\r\n")
        os.write(ours, KEYS[:1])
        os.write(ours, b"three\r")  # what were not the keys is the container's
        _read_until(ours, b"three\r\n")
        os.write(ours, KEYS)
        assert running.wait(timeout=60) == 0
    assert status(lamella, "box") == "running"


def test_one_that_was_to_be_removed_is_removed_at_its_own_end(pulled: tuple[Program, str]) -> None:
    lamella, reference = pulled
    with on_terminal(lamella, "run", "--rm", "-it", "--name", "box", reference, *SHELL) as (running, ours):
        _read_until(ours, b"ready\r\n")
        os.write(ours, KEYS)
        assert running.wait(timeout=60) == 0
    assert status(lamella, "box") == "running"
    lamella("kill", "box").ok()
    until(lambda: lamella("--json", "ps", "-a").ok().document == [])


def test_other_keys_can_be_chosen_and_none_at_all(pulled: tuple[Program, str]) -> None:
    lamella, reference = pulled
    lamella("create", "-it", "--name", "box", reference, *SHELL).ok()
    with on_terminal(lamella, "start", "-ai", "--detach-keys", "ctrl-a,d", "box") as (running, ours):
        _read_until(ours, b"ready\r\n")
        os.write(ours, KEYS + b"\r")
        _read_until(ours, b"got=")
        os.write(ours, b"\x01d")
        assert running.wait(timeout=60) == 0
    with on_terminal(lamella, "attach", "--detach-keys", "", "box") as (running, ours):
        os.write(ours, KEYS + b"\r")
        _read_until(ours, b"got=")
        lamella("kill", "box").ok()
        assert running.wait(timeout=60) == 137
    done = lamella("run", "--detach-keys", "ctrl-1", reference, "true")
    assert (done.status, "ctrl-1" in done.err) == (125, True)


def test_the_detach_keys_leave_a_command_that_goes_on(pulled: tuple[Program, str]) -> None:
    lamella, reference = pulled
    lamella("run", "-d", "--name", "box", reference, "sleep", "300").ok()
    with on_terminal(lamella, "exec", "-it", "box", *SHELL) as (running, ours):
        _read_until(ours, b"ready\r\n")
        os.write(ours, KEYS)
        _read_until(ours, b"goes on\r\n")
        assert running.wait(timeout=60) == 0
    assert b"echo ready" in lamella("exec", "box", "sh", "-c", "cat /proc/[0-9]*/cmdline").ok().out.encode()


def test_without_sig_proxy_a_signal_ends_the_command_alone(pulled: tuple[Program, str]) -> None:
    lamella, reference = pulled
    script = ("sh", "-c", "echo ready; exec sleep 300")
    with lamella.start("run", "--rm", "--sig-proxy=false", "--name", "box", reference, *script) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"ready\n"
        running.send_signal(signal.SIGINT)
        assert running.wait(timeout=60) == 130
    assert status(lamella, "box") == "running"
    with lamella.start("attach", "--sig-proxy=false", "box") as running:
        until(lambda: running.poll() is None and b"box" in _command_line(running.pid))
        running.send_signal(signal.SIGTERM)
        assert running.wait(timeout=60) != 0
    assert status(lamella, "box") == "running"


def _command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def test_exec_detached_returns_at_once_and_the_command_goes_on(pulled: tuple[Program, str]) -> None:
    lamella, reference = pulled
    lamella("run", "-d", "--name", "box", reference, "sleep", "300").ok()
    script = "i=0; while [ $i -lt 20000 ]; do echo lost; i=$((i+1)); done; echo done > /end; sleep 200"
    done = lamella("exec", "-d", "box", "sh", "-c", script).ok()
    assert done.out == ""
    until(lambda: lamella("exec", "box", "cat", "/end").out == "done\n")
    assert lamella("exec", "-d", "box", "nonsense").status == 127
    assert lamella("exec", "-d", "--timeout", "1s", "box", "true").status == 125


def all_capabilities() -> int:
    """Give root's capabilities here; a user's container has all of those of its user namespace."""
    if os.geteuid() != 0:
        return (1 << int(Path("/proc/sys/kernel/cap_last_cap").read_text()) + 1) - 1
    lines = Path("/proc/self/status").read_text().splitlines()
    (own,) = (line for line in lines if line.startswith("CapEff"))
    return int(own.split()[1], 16)


def test_exec_privileged_has_all_capabilities_and_exec_reads_variables(
    pulled: tuple[Program, str], tmp_path: Path
) -> None:
    lamella, reference = pulled
    lamella("run", "-d", "--name", "box", "--cap-drop", "ALL", reference, "sleep", "300").ok()
    show = (
        "sh",
        "-c",
        "while read name value; do case $name in CapEff:) echo $value;; esac; done < /proc/self/status; echo $A $B",
    )
    variables = tmp_path / "variables"
    variables.write_text("A=file\nB=file\n")
    words = ("exec", "--env-file", str(variables), "-e", "B=own")
    assert lamella(*words, "box", *show).ok().out == "0000000000000000\nfile own\n"
    out = lamella(*words, "--privileged", "-u", "0", "box", *show).ok().out
    assert int(out.split()[0], 16) == all_capabilities()
    variables.write_text("A=1\nno good=1\n")
    done = lamella(*words, "box", *show)
    assert (done.status, "line 2" in done.err) == (125, True)
