"""Collecting by --sync, by LAMELLA_GC=auto, and what the last collection was."""

from __future__ import annotations

import re

import pytest

from lamella.registry.server import RegistryServer
from layers import Built, file, tar

pytestmark = [pytest.mark.privileged, pytest.mark.rootless]


def blobs(lamella):
    return len(list((lamella.root / "blobs" / "sha256").glob("*")))


def test_images_rm_sync_leaves_nothing_behind(pulled):
    lamella, reference = pulled
    assert lamella("images", "rm", "--sync", reference).ok().out == f"{reference}\n"
    assert blobs(lamella) == 0
    assert list((lamella.root / "snapshots" / "overlayfs").iterdir()) == []


def test_leases_rm_sync_collects_what_they_held(pulled):
    lamella, reference = pulled
    digest = lamella("--json", "images", "inspect", reference).ok().document["digest"]
    lamella("leases", "create", "mine").ok()
    from lamella import Client

    with Client(lamella.root, lamella.state) as client:
        client.leases.add("mine", "content", digest)
    lamella("images", "rm", "--sync", reference).ok()
    assert blobs(lamella) > 0
    lamella("leases", "rm", "--sync", "mine").ok()
    assert blobs(lamella) == 0


def test_a_machine_that_pulls_and_removes_all_day_does_not_fill_its_disk(lamella, monkeypatch):
    monkeypatch.setenv("LAMELLA_GC", "auto")
    with RegistryServer() as server:
        for number in range(3):
            reference = Built(tar(file("a", b"%d" % number))).push(server)  # the same tag each time
            lamella("-q", "pull", reference).ok()
            assert blobs(lamella) == 3
            monkeypatch.setattr("lamella.autogc.SHARE", 1e9)
        lamella("images", "rm", reference).ok()
    assert blobs(lamella) == 0


def test_the_last_collection_is_shown(pulled):
    lamella, reference = pulled
    assert lamella("gc", "--last").ok().out == "nothing was collected yet\n"
    assert lamella("--json", "gc", "--last").ok().document is None
    lamella("images", "rm", reference).ok()
    report = lamella("--json", "gc").ok().document
    last = lamella("--json", "gc", "--last").ok().document
    assert last == {**report, "names": []}
    text = lamella("gc", "--last").ok().out
    assert re.match(r"\d+ seconds? ago: removed ", text)
    assert "longest transaction" in lamella("-v", "gc", "--last").ok().out
    assert lamella("gc", "--last", "--dry-run").status == 2
