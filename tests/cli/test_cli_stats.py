"""``lamella stats`` and ``lamella top``."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from program import Program

pytestmark = pytest.mark.privileged


@pytest.fixture
def box(pulled: tuple[Program, str]) -> Program:
    lamella, reference = pulled
    lamella("run", "-d", "--name", "box", "--memory", "64m", reference, "sleep", "1000").ok()
    return lamella


@pytest.mark.parametrize("words", [("stats",), ("containers", "stats")])
def test_one_reading_of_all_or_of_some(box: Program, words: tuple[str, ...]) -> None:
    for names in ((), ("box",)):
        header, row = box(*words, "--no-stream", *names).ok().out.splitlines()
        assert header.split()[:4] == ["ID", "NAME", "CPU", "%"]
        assert row.split()[1] == "box"
        assert "67.1 MB" in row
    (found,) = box("--json", *words, "--no-stream").ok().document
    assert (found["name"], found["memory"]["limit"], found["pids"]["current"]) == ("box", 64 << 20, 1)
    assert found["cpu"]["percent"] >= 0


def test_one_that_does_not_run_is_told_and_the_others_are_shown(
    box: Program, pulled: tuple[Program, str]
) -> None:
    box("containers", "create", "--name", "idle", pulled[1], "true").ok()
    done = box("stats", "--no-stream", "idle", "box")
    assert done.status == 1
    assert "container idle is not running" in done.err
    assert len(done.out.splitlines()) == 2
    assert "not running" in box("stats", "idle").err
    assert box("stats", "nobody").status == 1
    assert box("stats", "--interval", "0", "box").status == 2
    assert box("stats", "--no-stream").ok().out.count("\n") == 2


def test_a_stream_goes_on_until_the_container_ends(box: Program) -> None:
    with box.start("--json", "stats", "--interval", "0.05", "box") as running:
        assert running.stdout is not None
        first, second = (json.loads(running.stdout.readline()) for _ in range(2))
        assert first["cpu"]["percent"] is None
        assert second["cpu"]["percent"] is not None
        box("containers", "kill", "box").ok()
        assert running.wait(60) == 0
    assert "67.1 MB" not in box("stats", "--no-stream").ok().out


def test_ctrl_c_ends_a_stream(box: Program) -> None:
    with box.start("stats", "--interval", "0.05") as running:
        assert running.stdout is not None
        running.stdout.readline()
        running.send_signal(signal.SIGINT)
        assert running.wait(60) == 130


@pytest.mark.parametrize("words", [("top",), ("containers", "top")])
def test_processes_are_shown_with_both_numbers(box: Program, words: tuple[str, ...]) -> None:
    header, row = box(*words, "box").ok().out.splitlines()
    assert header.split()[:4] == ["PID", "HOST", "PID", "USER"]
    assert row.split()[0] == "1"
    assert row.endswith("sleep 1000")
    (found,) = box("--json", *words, "box").ok().document
    assert (found["pid"], found["user"], found["command"]) == (1, "root", ["sleep", "1000"])
    box("containers", "kill", "box").ok()
    box("containers", "wait", "box").ok()
    assert "not running" in box(*words, "box").err
