"""The binding of layers and trees: resolve, read_file, disk_usage, remove_tree. Their rules are tested in Rust."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from lamella import _core, errors


def entry(name: str, content: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content


def folder(name: str, mode: int) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, type=tarfile.DIRTYPE, mode=mode)


def unpack(path: Path, entries: Iterable[tuple[tarfile.TarInfo, bytes]]) -> _core.Unpacked:
    path.mkdir()
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for info, content in entries:
            archive.addfile(info, io.BytesIO(content))
    blob = gzip.compress(stream.getvalue())
    digest = f"sha256:{hashlib.sha256(blob).hexdigest()}"
    pipeline = _core.Pipeline(digest=digest, size=len(blob), compression="gzip", layer=str(path))
    pipeline.write(blob)
    return pipeline.finish()


def test_a_layer_that_depends_on_lower_ones_says_so(tmp_path: Path) -> None:
    lower, upper = tmp_path / "lower", tmp_path / "upper"
    unpack(lower, [folder("etc", 0o711), entry("etc/passwd", b"root")])
    found = unpack(
        upper, [entry("etc/hosts", b"x"), entry("link", type=tarfile.LNKTYPE, linkname="etc/passwd")]
    )
    assert found.deferred
    assert _core.resolve(str(upper), [str(lower)], found.deferred) is True
    assert _core.resolve(str(upper), [str(lower)], found.deferred) is True
    assert (upper / "etc").stat().st_mode & 0o7777 == 0o711
    assert (upper / "link").read_bytes() == b"root"


def test_a_layer_that_names_its_folders_depends_on_nothing(tmp_path: Path) -> None:
    unpack(tmp_path / "lower", [folder(".", 0o755)])
    found = unpack(tmp_path / "upper", [folder(".", 0o755), folder("etc", 0o755), entry("etc/hosts")])
    assert not found.deferred
    assert _core.resolve(str(tmp_path / "upper"), [str(tmp_path / "lower")], found.deferred) is False


def test_a_link_to_nothing_is_an_invalid_argument(tmp_path: Path) -> None:
    found = unpack(tmp_path / "upper", [entry("link", type=tarfile.LNKTYPE, linkname="missing")])
    with pytest.raises(errors.InvalidArgument, match="'missing' is in no layer"):
        _core.resolve(str(tmp_path / "upper"), [], found.deferred)


def test_files_are_read_from_the_merged_view(tmp_path: Path) -> None:
    lower, upper = tmp_path / "lower", tmp_path / "upper"
    unpack(lower, [entry("etc/passwd", b"lower"), entry("etc/group", b"group"), entry("gone", b"x")])
    unpack(upper, [entry("etc/passwd", b"upper"), entry(".wh.gone")])
    layers = [str(upper), str(lower)]
    assert _core.read_file(layers, "/etc/passwd", 100) == b"upper"
    assert _core.read_file(layers, "etc/group", 100) == b"group"
    assert _core.read_file(layers, "gone", 100) is None
    assert _core.read_file(layers, "etc", 100) is None
    with pytest.raises(errors.ResourceExhausted, match="longer than 4 bytes"):
        _core.read_file(layers, "etc/passwd", 4)
    with pytest.raises(errors.NotFound):
        _core.read_file([str(tmp_path / "none")], "etc/passwd", 4)


def test_names_that_are_not_utf8_can_be_read(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    (tmp_path / "layer").mkdir()
    (tmp_path / "layer" / name).write_bytes(b"x")
    assert _core.read_file([str(tmp_path / "layer")], name, 10) == b"x"


def test_trees_are_counted_and_removed(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "f").write_bytes(b"x" * 10_000)
    (tree / "a" / "g").hardlink_to(tree / "a" / "f")
    (tree / "s").symlink_to(tmp_path)
    size, inodes = _core.disk_usage(str(tree))
    assert inodes == 5
    assert size >= 10_000
    _core.remove_tree(str(tree))
    assert list(tmp_path.iterdir()) == []
    _core.remove_tree(str(tree))
    with pytest.raises(errors.NotFound):
        _core.disk_usage(str(tree))


def test_the_top_directory_flag_says_whether_it_is_there(tmp_path: Path) -> None:
    assert _core.set_top_directory(str(tmp_path)) in (True, False)
    with pytest.raises(errors.NotFound):
        _core.set_top_directory(str(tmp_path / "none"))
