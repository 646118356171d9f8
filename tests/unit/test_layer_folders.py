"""The folder of all layers is there with what is said of them, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lamella.snapshots import folders


class Killed(BaseException):
    pass


@pytest.fixture(autouse=True)
def of_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "needs_user_attributes", lambda: True)


def made(root: Path) -> folders.LayerFolders:
    found = folders.LayerFolders(root, "overlayfs")
    found.create(work=True)
    return found


def test_a_users_folder_is_marked_when_it_is_there(tmp_path: Path) -> None:
    if made(tmp_path).has_user_attributes() is None:
        pytest.skip("needs a file system with user.* attributes")
    assert made(tmp_path).has_user_attributes() is True
    assert [path.name for path in (tmp_path / "snapshots").iterdir()] == ["overlayfs"]


def test_who_is_killed_before_the_mark_leaves_nothing_decided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if made(tmp_path / "other").has_user_attributes() is None:
        pytest.skip("needs a file system with user.* attributes")

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "setxattr", killed)
        with pytest.raises(Killed):
            made(tmp_path)
    assert folders.LayerFolders(tmp_path, "overlayfs").has_user_attributes() is None
    assert made(tmp_path).has_user_attributes() is True
