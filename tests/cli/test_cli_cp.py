"""``lamella cp`` and ``lamella containers export``."""

from __future__ import annotations

import io
import tarfile

import pytest


@pytest.mark.privileged
@pytest.mark.rootless
def test_files_go_in_and_out_and_an_archive_by_stdin_and_stdout(pulled, tmp_path):
    lamella, image = pulled
    lamella("containers", "create", "--name", "box", image, "/bin/true").ok()
    (tmp_path / "file").write_text("data")
    lamella("cp", str(tmp_path / "file"), "box:/etc").ok()
    lamella("containers", "cp", "box:/etc/file", str(tmp_path / "back")).ok()
    assert (tmp_path / "back").read_text() == "data"
    out = lamella.process("cp", "box:/etc/file", "-")
    with tarfile.open(fileobj=io.BytesIO(out.stdout)) as archive:
        assert archive.getnames() == ["file"]
    done = lamella.process("cp", "-", "box:/bin", input=out.stdout)
    assert (done.returncode, done.stderr) == (0, b"")
    lamella("cp", "box:/bin/file", str(tmp_path / "again")).ok()
    root = lamella.process("containers", "export", "box").stdout
    lamella("containers", "export", "-o", str(tmp_path / "root.tar"), "box").ok()
    assert (tmp_path / "root.tar").read_bytes() == root
    with tarfile.open(fileobj=io.BytesIO(root)) as archive:
        assert archive.extractfile("bin/file").read() == b"data"
    assert "cannot open" in lamella("cp", "box:/absent", str(tmp_path / "x")).err


@pytest.mark.parametrize("words", [("a", "b"), ("a:/x", "b:/y"), ("-", "-"), ("./a:b", "/c:d")])
def test_one_side_has_to_be_a_container(lamella, words):
    assert lamella("cp", *words).status == 2
