"""``lamella volumes`` and ``-v``."""

from __future__ import annotations

import pytest


def test_volumes_are_made_listed_and_removed(lamella):
    assert lamella("volumes", "create", "--label", "a=b", "data").ok().out == "data\n"
    listed = lamella("--json", "volumes", "ls").ok().document
    assert [(each["name"], each["labels"], each["containers"]) for each in listed] == [
        ("data", {"a": "b"}, [])
    ]
    assert "data" in lamella("volumes", "ls").ok().out
    assert lamella("volume", "inspect", "data").ok().document["anonymous"] is False
    assert lamella("volumes", "ls", "-q", "--filter", "labels.a==c").ok().out == ""
    anonymous = lamella("volumes", "create").ok().out.strip()
    assert lamella("volumes", "prune").ok().out.splitlines()[0] == anonymous
    assert lamella("volumes", "rm", "data").ok().out == "data\n"
    assert "no volume" in lamella("volumes", "rm", "data").err


@pytest.mark.privileged
@pytest.mark.rootless
def test_run_mounts_volumes_and_rm_takes_anonymous_ones_when_asked(pulled):
    lamella, image = pulled
    lamella("run", "--rm", "-v", "data:/d", "-v", "/gone", image, "/bin/sh", "-c", "echo kept >/d/file").ok()
    found = lamella(
        "run", "--rm", "--mount", "type=volume,src=data,dst=/d,ro", image, "/bin/cat", "/d/file"
    ).ok()
    assert found.out == "kept\n"
    assert lamella("volumes", "ls", "-q").ok().out == "data\n"
    lamella("containers", "create", "--name", "box", "-v", "/own", "-v", "data:/d", image, "/bin/true").ok()
    assert "in use by box" in lamella("volumes", "rm", "data").err
    lamella("containers", "rm", "-v", "box").ok()
    assert lamella("volumes", "ls", "-q").ok().out == "data\n"
