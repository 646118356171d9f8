"""Where the state of a user's containers is: one place for a store, from wherever one looks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lamella.config import Config
from lamella.state import keep_state, user_state


@pytest.fixture(autouse=True)
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the user's login session."""
    folder = tmp_path / "session"
    folder.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def started(root: Path, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do what the start of a container does for a user who is not root."""
    state.mkdir(parents=True, exist_ok=True)
    owner = os.geteuid()
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: owner or 1000)
        keep_state(Config(root=root, state=state))
    (state / "tasks/default/a").mkdir(parents=True, exist_ok=True)


def test_it_is_in_the_folder_of_the_session(root, session):
    assert user_state(root) == session / "lamella"


@pytest.mark.parametrize("named", ["", "relative", "/nonexistent", "file"])
def test_it_is_in_the_store_where_there_is_no_such_folder(root, tmp_path, monkeypatch, named):
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "relative").mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / named) if named == "file" else named)
    assert user_state(root) == root / "run/lamella"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert user_state(root) == root / "run/lamella"


@pytest.mark.needs_root
def test_a_folder_of_another_user_is_not_taken(root, session):
    os.chown(session, 1000, -1)
    assert user_state(root) == root / "run/lamella"


@pytest.mark.parametrize("first", ["session", "store"])
def test_it_stays_where_containers_are(root, session, monkeypatch, first):
    places = {"session": session / "lamella", "store": root / "run/lamella"}
    started(root, places[first], monkeypatch)
    assert user_state(root) == places[first]
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert user_state(root) == places[first]


def test_a_state_without_containers_is_left(root, session, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    started(root, elsewhere, monkeypatch)
    (elsewhere / "tasks/default/a").rmdir()
    assert user_state(root) == session / "lamella"
    started(root, session / "lamella", monkeypatch)
    started(root, session / "lamella", monkeypatch)
    assert (root / "state").readlink() == session / "lamella"
    assert sorted(path.name for path in root.iterdir()) == ["state"]


@pytest.mark.needs_root
def test_one_that_another_user_has_put_in_its_place_is_not_followed(root, session, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    started(root, elsewhere, monkeypatch)
    os.chown(elsewhere, 1000, -1)
    assert user_state(root) == session / "lamella"
