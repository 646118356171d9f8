"""Folders of the store, where they can be made and where they cannot."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lamella.disk import make_private_folder, translated
from lamella.errors import FailedPrecondition, LamellaError


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_a_folder_and_its_parents_are_private_whatever_the_umask_is(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        make_private_folder(tmp_path / "one/two")
        make_private_folder(tmp_path / "one/two")
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("one", "one/two")] == [0o700, 0o700]


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FailedPrecondition, match="Not a directory") as caught, translated("create it"):
        make_private_folder(tmp_path / "file")
    assert "file stands where" in str(caught.value.hint)


def test_a_folder_in_which_nothing_can_be_made_is_an_error() -> None:
    with pytest.raises(LamellaError, match="create it"), translated("create it"):
        make_private_folder(Path("/proc/lamella/store"))


def test_a_folder_is_made_whose_parent_somebody_else_makes_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mkdir = os.mkdir

    def slow(path: Path, mode: int) -> None:
        try:
            mkdir(path, mode)
        except FileNotFoundError:
            mkdir(path.parent, mode)
            raise

    monkeypatch.setattr(os, "mkdir", slow)
    make_private_folder(tmp_path / "one/two")
    assert (tmp_path / "one/two").is_dir()
