"""Where the state of a store's containers is: one place, from wherever one looks, and for no other store."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lamella.config import Config
from lamella.errors import FailedPrecondition
from lamella.state import check_state, default_state, keep_state


@pytest.fixture(autouse=True)
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the user's login session."""
    folder = tmp_path / "session"
    folder.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    return folder


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The usual store of a user who is not root."""
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner or 1000)
    monkeypatch.setattr("lamella.state._is_ours", lambda folder: _belongs_to(folder, owner))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return store(tmp_path / "data/lamella")


def _belongs_to(folder: str, owner: int) -> bool:
    return Path(folder).is_dir() and Path(folder).stat().st_uid == owner


def store(root: Path) -> Path:
    root.mkdir(parents=True)
    (root / "metadata.db").touch()
    return root


def started(root: Path, state: Path) -> None:
    """Do what the start of a container does."""
    state.mkdir(parents=True, exist_ok=True)
    keep_state(Config(root=root, state=state))
    (state / "tasks/default/a").mkdir(parents=True, exist_ok=True)


def test_it_is_in_the_folder_of_the_session(root, session):
    assert default_state(root) == session / "lamella"


@pytest.mark.parametrize("named", ["", "relative", "/nonexistent", "file"])
def test_it_is_in_the_store_where_there_is_no_such_folder(root, tmp_path, monkeypatch, named):
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "relative").mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / named) if named == "file" else named)
    assert default_state(root) == root / "run/lamella"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert default_state(root) == root / "run/lamella"


@pytest.mark.needs_root
def test_a_folder_of_another_user_is_not_taken(root, session):
    os.chown(session, 1000, -1)
    assert default_state(root) == root / "run/lamella"


@pytest.mark.parametrize("first", ["session", "store"])
def test_it_stays_where_containers_are(root, session, monkeypatch, first):
    places = {"session": session / "lamella", "store": root / "run/lamella"}
    started(root, places[first])
    assert default_state(root) == places[first]
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert default_state(root) == places[first]


def test_a_state_without_containers_is_left(root, session, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    started(root, elsewhere)
    (elsewhere / "tasks/default/a").rmdir()
    assert default_state(root) == session / "lamella"
    started(root, session / "lamella")
    started(root, session / "lamella")
    assert (root / "state").readlink() == session / "lamella"
    assert sorted(path.name for path in root.iterdir()) == ["metadata.db", "state"]
    assert sorted(path.name for path in (session / "lamella").iterdir()) == ["store", "tasks"]


@pytest.mark.needs_root
def test_one_that_another_user_has_put_in_its_place_is_not_followed(root, session, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    started(root, elsewhere)
    os.chown(elsewhere, 1000, -1)
    assert default_state(root) == session / "lamella"


@pytest.mark.needs_root
def test_roots_is_in_the_memory_of_the_machine(tmp_path):
    assert default_state(Path("/var/lib/lamella")) == Path("/run/lamella")
    assert default_state(tmp_path).parent == Path("/run")


def test_each_other_store_has_one_of_its_own_whatever_it_is_called(root, session, tmp_path):
    first, second = store(tmp_path / "first"), store(tmp_path / "second")
    (tmp_path / "link").symlink_to(first)
    states = [default_state(path) for path in (root, first, second)]
    assert states[0] == session / "lamella"
    assert len(set(states)) == 3
    assert all(path.parent == session and len(path.name) == len("lamella-") + 12 for path in states[1:])
    assert default_state(tmp_path / "link") == default_state(tmp_path / "second/../first") == states[1]


def test_a_user_without_a_home_has_one_for_the_store_that_is_named(root, session, monkeypatch):
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert default_state(root).parent == session


def test_the_state_of_another_store_is_refused_while_that_is_there(root, session, tmp_path):
    state, other = session / "lamella", store(tmp_path / "other")
    check_state(Config(root=other, state=state))
    started(root, state)
    for refused in (check_state, keep_state):
        with pytest.raises(FailedPrecondition, match=f"has the containers of the store {root}"):
            refused(Config(root=other, state=state))
    assert not (other / "state").is_symlink()
    (tmp_path / "link").symlink_to(root)
    keep_state(Config(root=tmp_path / "link", state=state))
    (root / "metadata.db").unlink()
    keep_state(Config(root=other, state=state))
    assert (state / "store").readlink() == other
