"""Docker's and podman's file of credentials: how it is changed."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.errors import FailedPrecondition, NotFound
from lamella.registry import authfile

ENTRY = {"auth": "YW5uOnNlY3JldA=="}
DOCKERS = """{
\t"auths": {
\t\t"z.io": {
\t\t\t"auth": "Ym9iOng=",
\t\t\t"email": "é@z.io"
\t\t},
\t\t"a.io": {}
\t},
\t"HttpHeaders": {
\t\t"X-Meta": "1"
\t},
\t"credHelpers": {
\t\t"h.io": "pass"
\t},
\t"unknown": [
\t\t1,
\t\tnull,
\t\t1.5
\t]
}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "home" / ".docker" / "config.json"


def written(file: Path) -> Any:
    return json.loads(file.read_bytes())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_file_that_is_not_there_is_made_for_its_owner_alone(file: Path) -> None:
    previous = os.umask(0)
    try:
        authfile.put(file, "a.io", "", ENTRY)
    finally:
        os.umask(previous)
    assert written(file) == {"auths": {"a.io": ENTRY}}
    assert mode(file) == 0o600
    assert mode(file.parent) == mode(file.parent.parent) == 0o700
    assert [path.name for path in file.parent.iterdir()] == ["config.json"]


def test_nothing_else_of_the_file_changes(file: Path) -> None:
    file.parent.mkdir(parents=True)
    file.write_text(DOCKERS)
    authfile.put(file, "new.io", "", ENTRY)
    expected = json.loads(DOCKERS)
    expected["auths"]["new.io"] = ENTRY
    assert json.dumps(written(file)) == json.dumps(expected)  # the order, too
    assert authfile.remove(file, "new.io")
    assert file.read_text() == DOCKERS


def test_a_file_that_others_could_read_is_closed_to_them(file: Path) -> None:
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    file.chmod(0o644)
    authfile.put(file, "a.io", "", ENTRY)
    assert mode(file) == 0o600


def test_a_symlink_stays_and_what_it_leads_to_is_changed(file: Path, tmp_path: Path) -> None:
    target = tmp_path / "dotfiles" / "docker.json"
    target.parent.mkdir()
    target.write_text('{"auths": {}}')
    file.parent.mkdir(parents=True)
    file.symlink_to(target)
    authfile.put(file, "a.io", "", ENTRY)
    assert file.is_symlink()
    assert written(target) == {"auths": {"a.io": ENTRY}}
    assert mode(target) == 0o600


@pytest.mark.needs_root
def test_a_file_of_another_user_stays_his_when_root_changes_it(file: Path) -> None:
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    os.chown(file, 1234, 4321)
    authfile.put(file, "a.io", "", ENTRY)
    assert (file.stat().st_uid, file.stat().st_gid) == (1234, 4321)


@pytest.mark.parametrize("text", ["{", "[]", '"x"', '{"auths": 5}', "\xff", '{"auths": ["a"]}'])
def test_a_file_that_is_none_is_left_alone(text: str, file: Path) -> None:
    file.parent.mkdir(parents=True)
    file.write_text(text, encoding="latin-1")
    with pytest.raises(FailedPrecondition, match="not a valid") as caught:
        authfile.put(file, "a.io", "", ENTRY)
    assert "--authfile" in str(caught.value.hint)
    with pytest.raises(FailedPrecondition):
        authfile.remove(file, "a.io")
    assert file.read_text(encoding="latin-1") == text
    assert [path.name for path in file.parent.iterdir()] == ["config.json"]


@pytest.mark.parametrize("text", ["", " \n", "{}", "null", '{"auths": null}'])
def test_an_empty_file_is_as_good_as_none(text: str, file: Path) -> None:
    file.parent.mkdir(parents=True)
    file.write_text(text)
    if text == "null":
        with pytest.raises(FailedPrecondition):
            authfile.put(file, "a.io", "", ENTRY)
        return
    authfile.put(file, "a.io", "", ENTRY)
    assert written(file) == {"auths": {"a.io": ENTRY}}


def test_a_failure_leaves_the_old_file_and_nothing_beside_it(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authfile.put(file, "a.io", "", ENTRY)
    before = file.read_bytes()

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="cannot be written: No space"):
        authfile.put(file, "b.io", "", ENTRY)
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == ["config.json"]


def test_a_place_that_cannot_be_written_is_told_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FailedPrecondition) as caught:
        authfile.put(tmp_path / "file" / "config.json", "a.io", "", ENTRY)
    assert "--authfile" in str(caught.value.hint)
    with pytest.raises(NotFound, match="cannot be written"):
        authfile.put(Path("/proc/lamella-test/config.json"), "a.io", "", ENTRY)


@pytest.mark.parametrize(
    "alias", ["docker.io", "index.docker.io", "https://index.docker.io/v1/", "registry-1.docker.io"]
)
def test_docker_hub_has_one_entry_whatever_it_was_called_before(alias: str, file: Path) -> None:
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"auths": {alias: {"auth": "b2xkOm9sZA=="}, "docker.io/team": ENTRY}}))
    authfile.put(file, "docker.io", "", ENTRY)
    assert written(file)["auths"] == {"docker.io/team": ENTRY, "https://index.docker.io/v1/": ENTRY}
    assert authfile.remove(file, "docker.io")
    assert written(file)["auths"] == {"docker.io/team": ENTRY}
    assert not authfile.remove(file, "docker.io")


def test_a_namespace_has_an_entry_of_its_own(file: Path) -> None:
    authfile.put(file, "a.io", "", ENTRY)
    authfile.put(file, "a.io", "team", {"auth": "eDp5"})
    assert list(written(file)["auths"]) == ["a.io", "a.io/team"]
    assert authfile.remove(file, "a.io")
    assert list(written(file)["auths"]) == ["a.io/team"]
    assert authfile.remove_all(file) == ["a.io/team"]
    assert authfile.remove_all(file) == []


def test_who_changes_the_file_at_once_with_others_loses_nothing(file: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from lamella.registry import authfile\n"
        "for number in range(20): authfile.put(Path(sys.argv[1]), f'{sys.argv[2]}{number}.io', '', {})"
    )
    others = [subprocess.Popen([sys.executable, "-c", code, file, name]) for name in "abcd"]
    assert [other.wait(60) for other in others] == [0, 0, 0, 0]
    assert set(written(file)["auths"]) == {f"{name}{number}.io" for name in "abcd" for number in range(20)}
    assert [path.name for path in file.parent.iterdir()] == ["config.json"]


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(document=st.dictionaries(st.text(max_size=8), _json, max_size=5), text=st.booleans())
def test_whatever_a_file_holds_it_is_refused_or_only_its_entry_changes(
    document: dict[str, Any], text: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.json"
        file.write_text(json.dumps(document, ensure_ascii=text))
        before = file.read_bytes()
        try:
            authfile.put(file, "a.io", "", ENTRY)
        except FailedPrecondition:
            assert file.read_bytes() == before
            return
        others = {key: value for key, value in document.items() if key != "auths"}
        assert written(file) == others | {"auths": (document.get("auths") or {}) | {"a.io": ENTRY}}
