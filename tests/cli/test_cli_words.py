"""Docker's words at the top: what ``lamella containers`` has as verbs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from lamella.cli.containers import CONTAINERS
from lamella.cli.parser import parse

if TYPE_CHECKING:
    from pathlib import Path

    from program import Program


WORDS = """
    create start exec attach wait kill stop restart pause resume unpause rename rm logs stats top update
"""


@pytest.mark.parametrize("word", WORDS.split())
def test_a_word_of_docker_is_the_verb_of_containers(word: str) -> None:
    rest = {"create": ["image"], "exec": ["box", "true"], "rename": ["box", "other"]}.get(word, ["box"])
    assert parse([word, *rest]).command is CONTAINERS.names()[word]
    assert parse(["containers", word, *rest]).command is CONTAINERS.names()[word]


@pytest.mark.privileged
@pytest.mark.rootless
def test_a_life_in_dockers_words(pulled: tuple[Program, str]) -> None:
    lamella, reference = pulled
    lamella("create", "--name", "box", "--stop-timeout", "0.1s", reference, "sleep", "1000").ok()
    lamella("start", "box").ok()
    assert lamella("exec", "box", "echo", "hello").ok().out == "hello\n"
    assert lamella("exec", "box", "sh", "-c", "exit 7").status == 7
    assert lamella("exec", "box", "nonsense").status == 127
    if os.geteuid() == 0:  # they take a cgroup
        lamella("pause", "box").ok()
        lamella("unpause", "box").ok()
    lamella("rename", "box", "other").ok()
    lamella("restart", "-t", "0", "other").ok()
    lamella("stop", "other").ok()
    assert lamella("wait", "other").ok().out == "137\n"
    assert lamella("containers", "prune").ok().out == "other\n"
    assert lamella("--json", "containers", "prune").ok().document == []
    lamella("create", "--name", "box", reference, "true").ok()
    assert lamella("rm", "box").ok().out == "box\n"


@pytest.mark.privileged
def test_run_takes_a_patch_of_the_spec_and_other_masks(pulled: tuple[Program, str], tmp_path: Path) -> None:
    lamella, reference = pulled
    patch = tmp_path / "patch.json"
    patch.write_text('{"hostname": "patched", "process": {"cwd": "/tmp"}}')
    done = lamella("run", "--rm", "--spec", str(patch), reference, "sh", "-c", "echo $(uname -n) $PWD").ok()
    assert done.out == "patched /tmp\n"
    patch.write_text("[]")
    assert lamella("run", "--spec", str(patch), reference, "true").status == 125
    assert lamella("run", "--spec", str(tmp_path / "none"), reference, "true").status == 125
    masked = ["--security-opt", "mask=/etc/passwd"]
    assert lamella("run", "--rm", *masked, reference, "cat", "/etc/passwd").ok().out == ""
    write = ["sh", "-c", "echo 1 >/proc/sys/kernel/domainname"]
    assert lamella("run", "--rm", reference, *write).status != 0
    lamella("run", "--rm", "--security-opt", "systempaths=unconfined", reference, *write).ok()


@pytest.mark.privileged
def test_run_says_where_the_cgroup_is_and_who_sees_it(pulled: tuple[Program, str]) -> None:
    lamella, reference = pulled
    seen = ["--cgroupns", "host", reference, "cat", "/proc/self/cgroup"]
    assert "/lamella-parent/" in lamella("run", "--rm", "--cgroup-parent", "/lamella-parent", *seen).ok().out
    assert "/lamella/default/" in lamella("run", "--rm", *seen).ok().out
    assert "/lamella" not in lamella("run", "--rm", reference, "cat", "/proc/self/cgroup").ok().out
    assert (
        "blkio_weight_device"
        in lamella("run", "--blkio-weight-device", "/dev/null:300", reference, "true").err
    )
    assert "memory_swappiness" in lamella("run", "--memory-swappiness", "101", reference, "true").err
