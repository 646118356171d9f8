"""What is done to a running container: ``exec``, ``attach``, ``pause``, ``resume``, ``diff``, ``commit``."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest
from test_cli_run import TRAP, wait_for

from waiting import settled, until

if TYPE_CHECKING:
    from pathlib import Path

    from program import Program

pytestmark = [pytest.mark.privileged, pytest.mark.rootless]


@pytest.fixture
def box(pulled: tuple[Program, str]) -> Program:
    """Give the command on a store with the running container ``box``."""
    lamella, reference = pulled
    lamella("run", "-d", "--name", "box", "-e", "A=own", reference, "sleep", "300").ok()
    return lamella


def test_exec_passes_output_and_status_through(box: Program) -> None:
    done = box("containers", "exec", "box", "sh", "-c", "echo out $A; echo err >&2; exit 42")
    assert (done.status, done.out, done.err) == (42, "out own\n", "err\n")
    assert box("--json", "containers", "inspect", "box").document["status"] == "running"


@pytest.mark.needs_ids
def test_exec_takes_options_before_the_container(box: Program) -> None:
    words = ["-e", "B=b", "-w", "/bin", "-u", "12:34", "box", "sh", "-c", "echo $A $B; pwd; id -u; id -g"]
    assert box("container", "exec", *words).ok().out.split() == ["own", "b", "/bin", "12", "34"]


def test_exec_connects_stdin_only_with_i(box: Program) -> None:
    assert box.process("containers", "exec", "-i", "box", "cat", input=b"fed").stdout == b"fed"
    assert box.process("containers", "exec", "box", "cat", input=b"fed").stdout == b""


def test_exec_kills_at_the_time_out_and_the_container_goes_on(box: Program) -> None:
    done = box("containers", "exec", "--timeout", "0.3s", "box", "sh", "-c", "sleep 200 & sleep 200")
    assert done.status == 124
    left = box("containers", "exec", "box", "sh", "-c", "cat /proc/[0-9]*/cmdline").ok().out
    assert "sleep\x00200" not in left
    assert "sleep\x00300" in left


def test_signals_reach_what_was_executed_and_not_the_container(box: Program) -> None:
    with box.start("containers", "exec", "box", "sh", "-c", TRAP.format(name="TERM")) as running:
        assert running.stdout is not None
        wait_for(running.stdout, b"ready\n")
        running.send_signal(signal.SIGTERM)
        assert running.stdout.read() == b"got-TERM\n"
        assert running.wait(timeout=60) == 7
    assert box("--json", "containers", "inspect", "box").document["status"] == "running"


@pytest.mark.parametrize(("program", "status"), [("nonsense", 127), ("/etc", 126)])
def test_exec_of_what_cannot_run_gives_the_status_of_a_shell(box: Program, program: str, status: int) -> None:
    done = box("containers", "exec", "box", program)
    assert (done.status, done.out) == (status, "")
    assert program in done.err


def test_exec_without_a_command_is_wrong_usage(box: Program) -> None:
    assert box("containers", "exec", "box").status == 125


def test_exec_needs_a_running_container(box: Program) -> None:
    box("containers", "kill", "box").ok()
    box("containers", "wait", "box").ok()
    done = box("containers", "exec", "box", "true")
    assert done.status == 125
    assert "is not running" in done.err


def test_attach_shows_output_until_the_end(pulled: tuple[Program, str]) -> None:
    lamella, reference = pulled
    lamella("run", "-d", "-i", "--name", "cat", reference, "sh", "-c", "cat; exit 5").ok()
    done = lamella.process("containers", "attach", "-i", "cat", input=b"through\n")
    assert (done.returncode, done.stdout) == (5, b"through\n")


@pytest.mark.needs_root  # a cgroup freezes it
def test_pause_freezes_and_resume_thaws(pulled: tuple[Program, str]) -> None:
    lamella, reference = pulled
    lamella(
        "run", "-d", "--name", "ticks", reference, "sh", "-c", "while :; do echo x; sleep 0.02; done"
    ).ok()
    assert lamella("containers", "pause", "ticks").ok().out == "ticks\n"
    before = settled(lambda: lamella("containers", "logs", "ticks").ok().out)
    lamella("containers", "resume", "ticks").ok()
    until(lambda: lamella("containers", "logs", "ticks").ok().out != before)


@pytest.mark.needs_root  # a cgroup freezes it
def test_what_a_container_changed_is_shown_and_can_become_an_image(box: Program) -> None:
    box("containers", "exec", "box", "sh", "-c", "echo x > /new; rm /etc/passwd").ok()
    lines = box("containers", "diff", "box").ok().out.splitlines()
    assert {"A /new", "C /etc", "D /etc/passwd"} <= set(lines)
    document = box("--json", "container", "diff", "box").document
    assert {"kind": "added", "path": "/new"} in document
    words = ["-m", "a note", "-a", "me", "-c", 'CMD ["cat", "/new"]', "box", "made:1"]
    assert box("containers", "commit", *words).ok().out.startswith("docker.io/library/made:1  sha256:")
    assert box("run", "--rm", "made:1").ok().out == "x\n"
    history = box("--json", "images", "inspect", "made:1").document["config"]["history"]
    assert history[-1]["comment"] == "a note"
    assert box("containers", "commit", "-c", "RUN x", "box", "made:2").status == 1
    assert box("containers", "commit", "box", "UPPER").status == 1


def test_a_snapshots_changes_are_shown_or_written_as_a_layer(box: Program, tmp_path: Path) -> None:
    box("containers", "exec", "box", "sh", "-c", "echo x > /new").ok()
    assert "A /new" in box("snapshots", "diff", "box").ok().out.splitlines()
    layer = tmp_path / "layer.tar.zst"
    written = box("--json", "snapshots", "diff", "-o", str(layer), "--compression", "zstd", "box").document
    assert written["size"] == layer.stat().st_size
    assert layer.read_bytes()[:4] == b"\x28\xb5\x2f\xfd"
    assert box("snapshots", "diff", "absent").status == 1


@pytest.mark.needs_root  # a mount that others see
def test_a_snapshot_is_mounted_until_it_is_unmounted(box: Program, tmp_path: Path) -> None:
    parent = box("--json", "snapshots", "info", "box").document["parent"]
    box("snapshots", "prepare", "work", parent).ok()
    target = tmp_path / "target"
    target.mkdir()
    assert box("snapshots", "mount", parent, str(target)).status == 1
    box("snapshots", "mount", "work", str(target)).ok()
    try:
        (target / "new").write_text("x")
    finally:
        assert box("snapshots", "unmount", str(target)).ok().out == f"{target}\n"
    assert list(target.iterdir()) == []
    assert box("snapshots", "diff", "work").ok().out == "C /\nA /new\n"
    assert "A /new" in box("snapshots", "diff", "work", "box").ok().out
