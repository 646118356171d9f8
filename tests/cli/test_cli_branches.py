"""``lamella containers commit`` without an image, ``containers branch``, ``branches`` and ``run --branch``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from program import Program

pytestmark = [pytest.mark.privileged, pytest.mark.rootless]


def test_a_container_is_frozen_branched_listed_exported_and_removed(pulled: tuple[Program, str]) -> None:
    lamella, reference = pulled
    lamella("run", "--name", "box", reference, "sh", "-c", "echo new > /new").ok()
    name = lamella("containers", "commit", "--label", "a=b", "box").ok().out.strip()
    assert lamella("run", "--rm", "--branch", name, "cat", "/new").ok().out == "new\n"
    second = lamella("--json", "containers", "commit", "--branch", "second", "box").ok().document
    assert (second["name"], second["parent"], second["containers"]) == ("second", name, ["box"])
    assert lamella("branches", "ls", "-q").ok().out.split() == [name, "second"]
    assert lamella("branches", "ls", "-q", "--filter", "labels.a==b").ok().out.split() == [name]
    rows = lamella("branches", "tree").ok().out.splitlines()[1:]
    assert rows[0].startswith(name)
    assert rows[1].startswith("└─ second")
    assert "box" in rows[1]
    assert [node["depth"] for node in lamella("--json", "branches", "tree", name).ok().document] == [0, 1]
    assert json.loads(lamella("branches", "inspect", name).ok().out)["labels"] == {"a": "b"}

    lamella("branches", "commit", "-c", 'CMD ["cat", "/new"]', name, "made:1").ok()
    assert lamella("run", "--rm", "made:1").ok().out == "new\n"
    made = lamella("containers", "branch", "-n", "2", "--start", "box").ok().out.split()
    assert len(made) == 2

    refused = lamella("branches", "rm", "-r", name)
    assert refused.status == 1
    assert "container" in refused.err
    lamella("containers", "wait", *made).ok()
    lamella("containers", "rm", "box", *made).ok()
    assert lamella("branches", "rm", name).status == 1
    lamella("branches", "rm", "-r", name).ok()
    assert lamella("branches", "ls", "-q").ok().out == ""


def test_what_is_for_an_image_is_refused_for_a_branch_and_the_reverse(pulled: tuple[Program, str]) -> None:
    lamella, reference = pulled
    lamella("containers", "create", "--name", "box", reference, "true").ok()
    assert lamella("containers", "commit", "--squash", "box").status == 2
    assert lamella("containers", "commit", "--branch", "x", "box", "image:1").status == 2
    missing = lamella("run", "--branch", "absent", "true")
    assert missing.status == 125
    assert "branches ls" in missing.err
