"""``lamella logs``: streams, choices, following, Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from program import Program

pytestmark = [pytest.mark.privileged, pytest.mark.rootless]


@pytest.fixture
def box(pulled: tuple[Program, str]) -> Program:
    lamella, reference = pulled
    script = "for i in 1 2 3; do echo out $i; echo err $i >&2; done"
    lamella("run", "--name", "box", reference, "sh", "-c", script)
    return lamella


@pytest.mark.parametrize("words", [("logs",), ("containers", "logs")])
def test_each_stream_goes_to_its_own(box: Program, words: tuple[str, ...]) -> None:
    done = box(*words, "box").ok()
    assert (done.out, done.err) == ("out 1\nout 2\nout 3\n", "err 1\nerr 2\nerr 3\n")
    done = box(*words, "--stream", "stderr", "-n", "1", "box").ok()
    assert (done.out, done.err) == ("", "err 3\n")


def test_tail_times_and_moments(box: Program) -> None:
    assert box("logs", "--tail", "all", "box").ok().out == "out 1\nout 2\nout 3\n"
    assert box("logs", "--tail", "0", "box").ok().out == ""
    line = box("logs", "-t", "--stream", "stdout", "-n", "1", "box").ok().out
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z out 3\n", line)
    moment = line.split()[0]
    found = box("logs", "--since", moment, "--until", moment, "--stream", "stdout", "box").ok().out
    assert found.endswith("out 3\n")  # what was written at once has one time
    assert box("logs", "--since", "1h", "--stream", "stdout", "box").ok().out.count("\n") == 3
    assert box("logs", "--until", "1h", "box").ok().out == ""


@pytest.mark.parametrize(
    "words", [("--tail", "-5"), ("--tail", "x"), ("--since", "yesterday"), ("--stream", "stdin"), ("--json",)]
)
def test_what_cannot_be_asked_for_is_wrong_usage(box: Program, words: tuple[str, ...]) -> None:
    assert box("logs", *words, "box").status == 2


def test_following_shows_output_as_it_comes_and_ends_with_the_container(pulled: tuple[Program, str]) -> None:
    lamella, reference = pulled
    script = "echo first; read line; echo $line; read line"
    lamella("run", "-d", "-i", "--name", "box", reference, "sh", "-c", script).ok()
    with lamella.start("logs", "-f", "box") as running:
        assert running.stdout is not None
        assert os.read(running.stdout.fileno(), 100) == b"first\n"
        assert running.poll() is None
        lamella("containers", "kill", "box").ok()
        assert running.wait(30) == 0


def test_ctrl_c_ends_following_and_not_the_container(pulled: tuple[Program, str]) -> None:
    lamella, reference = pulled
    lamella("run", "-d", "--name", "box", reference, "sh", "-c", "echo first; sleep 600").ok()
    with lamella.start("logs", "-f", "box") as running:
        assert running.stdout is not None
        assert os.read(running.stdout.fileno(), 100) == b"first\n"
        running.send_signal(signal.SIGINT)
        assert running.wait(30) == 130
        assert running.stderr is not None
        assert b"Traceback" not in running.stderr.read()
    assert lamella("ps", "-q").ok().out.strip()


def test_options_of_run_say_what_is_kept(pulled: tuple[Program, str]) -> None:
    lamella, reference = pulled
    script = "i=0; while [ $i -lt 1000 ]; do echo $i; i=$((i+1)); done"
    options = ("--log-driver", "json-file", "--log-opt", "max-size=10k", "--log-opt", "max-file=2")
    lamella("run", "--name", "small", *options, reference, "sh", "-c", script).ok()
    lines = lamella("logs", "small").ok().out.split()
    assert 0 < len(lines) < 1000
    assert lines[-1] == "999"
    lamella("run", "--name", "none", "--log-driver", "none", reference, "echo", "x").ok()
    done = lamella("logs", "none")
    assert (done.status, done.out) == (1, "")
    assert "keeps no log" in done.err
    done = lamella("run", "--rm", "--log-opt", "mode=blocking", reference, "true")
    assert done.status == 125
    assert "mode" in done.err
