"""The binding of mounts."""

from __future__ import annotations

from pathlib import Path

import pytest

from lamella import _core, errors

pytestmark = pytest.mark.privileged


def test_an_overlay_is_mounted_written_and_unmounted(tmp_path: Path) -> None:
    for name in ("a", "b", "upper", "work", "point"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "file").write_text("near")
    (tmp_path / "b" / "file").write_text("far")
    options = [
        f"workdir={tmp_path}/work",
        f"upperdir={tmp_path}/upper",
        f"lowerdir={tmp_path}/a:{tmp_path}/b",
    ]
    point = tmp_path / "point"
    _core.mount([("overlay", "overlay", options)], str(point))
    try:
        assert (point / "file").read_text() == "near"
        (point / "new").write_text("x")
    finally:
        _core.unmount(str(point))
    assert list(point.iterdir()) == []
    assert (tmp_path / "upper" / "new").exists()
    _core.unmount(str(point))


def test_a_refused_mount_names_source_and_options(tmp_path: Path) -> None:
    with pytest.raises(errors.LamellaError, match="/nonexistent/layer") as caught:
        _core.mount([("overlay", "overlay", ["lowerdir=/nonexistent/layer"])], str(tmp_path))
    assert str(tmp_path) in str(caught.value)
    with pytest.raises(errors.NotFound):
        _core.mount([("bind", str(tmp_path / "none"), ["rbind", "ro"])], str(tmp_path))


@pytest.mark.parametrize("options", [["bind"], ["rbind", "ro"]])
def test_a_bind_mount_without_a_source_is_refused(tmp_path: Path, options: list[str]) -> None:
    with pytest.raises(errors.NotFound):
        _core.mount([("bind", "", options)], str(tmp_path))
    assert not tmp_path.is_mount()
