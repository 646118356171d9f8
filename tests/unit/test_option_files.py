"""Files of variables and labels, in docker's form."""

from __future__ import annotations

import pytest

from lamella.containers.option_files import parse_lines, read_env_files, read_label_files
from lamella.containers.options import Options, labels_of, variables_of
from lamella.errors import InvalidArgument, NotFound


def test_lines_read_as_docker_reads_them():
    text = '\ufeffA=1\r\n\n  # a remark\n  B= "b" \nC\nD=\nE=x=y#z\n'
    assert list(parse_lines(text)) == [
        ("A", "1"), ("B", ' "b" '), ("C", None), ("D", ""), ("E", "x=y#z"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"A=1\nno good=1\n", "line 2: the name has white space"),
        (b"A=1\n\n=x\n", "line 3 has no name"),
        (b"A=1\nB=\xff\n", "line 2 is not UTF-8"),
        (b"A=\0\n", "line 1 has a NUL"),
    ],
)
def test_a_bad_line_is_named_with_its_file(data, message, tmp_path):
    path = tmp_path / "variables"
    path.write_bytes(data)
    with pytest.raises(InvalidArgument, match=message) as caught:
        read_env_files(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("line", ["=hunter2", "my hunter2=x", "hunter2\0", "hunter2\0=x"])
def test_nothing_of_a_bad_line_is_told(line, tmp_path):
    path = tmp_path / "variables"
    path.write_text(f"A=1\n{line}\n")
    with pytest.raises(InvalidArgument, match="line 2") as caught:
        read_env_files(path)
    assert "hunter2" not in f"{caught.value}{caught.value.hint}"


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(NotFound, match="absent"):
        read_env_files([str(tmp_path / "absent")])
    with pytest.raises(InvalidArgument, match="directory"):
        read_env_files(tmp_path)


def test_later_files_win_and_what_is_given_one_by_one_wins_over_all(tmp_path, monkeypatch):
    monkeypatch.setenv("MINE", "mine")
    monkeypatch.delenv("NOBODYS", raising=False)
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("A=1\nB=1\nC=1\nMINE\nNOBODYS\n")
    two.write_text("B=2\nC=2\n")
    assert variables_of(["C=3"], [one, str(two)]) == {"A": "1", "B": "2", "C": "3", "MINE": "mine"}
    assert labels_of(Options(label_file=[one, two], labels={"C": "3"})) == {
        "A": "1", "B": "2", "C": "3", "MINE": "", "NOBODYS": "",
    }  # fmt: skip
    assert read_label_files(str(one))["MINE"] == ""
