"""Where a user's containers have their cgroups, and which of their parents are ours, on trees of plain folders."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lamella.containers import cgroups


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Give the top of a v2 hierarchy in which ``user@1000.service`` and all beneath it belongs to this process's user."""
    session = tmp_path / "user.slice/user-1000.slice/user@1000.service/app.slice/shell.scope"
    session.mkdir(parents=True)
    for folder in (session, *session.parents):
        if folder.is_relative_to(tmp_path):
            (folder / "cgroup.procs").write_text("")
    mine = tmp_path / "user.slice/user-1000.slice/user@1000.service"

    def user(self, **_):
        status = real(self)
        owner = 1000 if self.is_relative_to(mine) else 0
        return os.stat_result((*status[:4], owner, *status[5:10]))

    real = Path.stat
    monkeypatch.setattr(Path, "stat", user)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    return tmp_path


def test_a_users_containers_are_in_the_topmost_cgroup_that_was_given_to_the_user(tree):
    own = "user.slice/user-1000.slice/user@1000.service/app.slice/shell.scope"
    assert cgroups._delegated_below(tree, own) == "/user.slice/user-1000.slice/user@1000.service"


def test_who_is_in_no_cgroup_of_the_users_own_has_none(tree):
    assert cgroups._delegated_below(tree, "user.slice") == ""
    assert cgroups._delegated_below(tree, "") == ""
    assert cgroups._delegated_below(tree, "not/there") == ""


def test_the_parents_that_are_removed_are_those_from_the_name_lamella_on():
    ours = cgroups._ours(Path("user.slice/lamella/default/box"))
    assert list(map(str, ours)) == ["user.slice/lamella/default", "user.slice/lamella"]
    assert cgroups._ours(Path("builds/1/box")) == []


def test_a_killed_monitors_cgroup_goes_and_a_parent_of_somebody_else_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(cgroups, "_hierarchies", lambda: [tmp_path])
    for path in ("builds/1/box", "lamella/default/box"):
        (tmp_path / path).mkdir(parents=True)
        cgroups.remove_cgroups(f"/{path}")
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["builds", "builds/1"]
