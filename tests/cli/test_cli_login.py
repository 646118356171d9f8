"""``lamella login`` and ``logout``."""

from __future__ import annotations

import json
import os
import pty
import select
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lamella.registry.server import RegistryServer, basic_auth

if TYPE_CHECKING:
    from collections.abc import Iterator

    from program import Program

PASSWORD = "hunter2-very-secret"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a user without credentials his file."""
    for name in ("DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    return tmp_path / ".docker" / "config.json"


@pytest.fixture
def server() -> Iterator[str]:
    with RegistryServer(auth=basic_auth({"ann": PASSWORD})) as opened:
        yield opened.address


def login(lamella: Program, *words: str, password: str = PASSWORD, ending: str = "\n") -> Any:
    return lamella.process("login", *words, input=(password + ending).encode())


@pytest.mark.parametrize("ending", ["", "\n", "\r\n"])
def test_a_password_comes_by_stdin(ending: str, lamella: Program, server: str, file: Path) -> None:
    done = login(lamella, "-u", "ann", "--password-stdin", server, ending=ending)
    assert (done.returncode, done.stdout) == (0, f"logged in to {server} as ann\n".encode())
    assert b"not encrypted" in done.stderr
    assert list(json.loads(file.read_text())["auths"]) == [server]
    out = lamella("logout", server).ok()
    assert out.out == f"removed from {file}\n"
    again = lamella("logout", server)
    assert (again.status, again.out, again.err) == (1, "", f"lamella: no credentials for {server} are kept\n")


def test_it_says_what_it_did_in_json(lamella: Program, server: str, file: Path) -> None:
    done = lamella("-q", "--json", "login", "-u", "ann", "-p", PASSWORD, server).ok()
    assert done.document == {
        "registry": server,
        "username": "ann",
        "stored_in": str(file),
        "encrypted": False,
        "identity_token": False,
        "checked": True,
    }
    assert done.err == ""
    assert lamella("--json", "logout", server).ok().document == {"erased_from": [str(file)]}
    assert lamella("--json", "logout", "--all").ok().document == {"erased_from": []}


def test_a_password_on_the_command_line_works_with_a_warning(
    lamella: Program, server: str, file: Path
) -> None:
    done = lamella("login", "-u", "ann", "-p", PASSWORD, server).ok()
    assert "warning: a password on the command line" in done.err
    assert PASSWORD not in done.out + done.err


def test_wrong_credentials_are_one_line_and_status_1(lamella: Program, server: str, file: Path) -> None:
    done = lamella("-q", "login", "-u", "ann", "-p", "wrong", server)
    assert (done.status, done.out) == (1, "")
    message, hint = done.err.splitlines()
    assert message.startswith(f"lamella: {server} refuses the user name or the password")
    assert hint.startswith("hint: ")
    assert "wrong" not in done.err
    assert not file.exists()


def test_what_is_kept_is_tried_when_nothing_is_given(lamella: Program, server: str, file: Path) -> None:
    lamella("-q", "login", "-u", "ann", "-p", PASSWORD, server).ok()
    before = file.read_bytes()
    assert lamella("login", server).ok().out == f"logged in to {server} as ann\n"
    assert file.read_bytes() == before
    document = json.loads(before)
    document["auths"][server]["auth"] = "YW5uOm9sZA=="
    file.write_text(json.dumps(document))
    done = lamella.process("login", server)  # refused by now, and there is no terminal to ask on
    assert done.returncode == 2
    assert b"refuses the user name or the password" in done.stderr
    assert b"no terminal" in done.stderr


def test_one_file_is_named_for_login_pull_and_logout(
    lamella: Program, server: str, file: Path, tmp_path: Path
) -> None:
    named = tmp_path / "named.json"
    done = lamella("--json", "login", "--authfile", str(named), "-u", "ann", "-p", PASSWORD, server).ok()
    assert done.document["stored_in"] == str(named)
    assert not file.exists()
    without = lamella("pull", f"{server}/team/app")
    assert "401" in without.err
    missing = lamella("pull", "--authfile", str(named), f"{server}/team/app")
    assert "is not there" in missing.err
    assert lamella("logout", "--authfile", str(named), server).ok().out == f"removed from {named}\n"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--password-stdin", "h.io"], "takes --username"),
        (["-u", "ann", "h.io"], "no terminal"),
        (["-u", "ann", "-p", "x", "--password-stdin", "h.io"], "exclude each other"),
    ],
)
def test_what_cannot_be_asked_for_is_wrong_usage(
    words: list[str], why: str, lamella: Program, file: Path
) -> None:
    done = lamella.process("login", *words)
    assert done.returncode == 2
    assert why in done.stderr.decode()


def test_a_password_that_is_no_text_is_wrong_usage(lamella: Program, file: Path) -> None:
    done = lamella.process("login", "-u", "ann", "--password-stdin", "h.io", input=b"\xff\xfe")
    assert (done.returncode, b"not UTF-8" in done.stderr) == (2, True)


def test_logging_out_of_all_and_of_one_is_wrong_usage(lamella: Program, file: Path) -> None:
    assert lamella("logout", "--all", "h.io").status == 2


def test_a_terminal_is_asked_and_shows_no_password(lamella: Program, server: str, file: Path) -> None:
    ours, theirs = pty.openpty()
    try:
        with lamella.start(
            "login", server, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
        ) as running:
            seen = _read_until(ours, b"Username: ")
            os.write(ours, b"ann\n")
            seen += _read_until(ours, b"Password: ")
            os.write(ours, PASSWORD.encode() + b"\n")
            seen += _read_until(ours, b"logged in to ")
            assert running.wait(timeout=60) == 0
    finally:
        os.close(ours)
        os.close(theirs)
    assert PASSWORD.encode() not in seen
    assert list(json.loads(file.read_text())["auths"]) == [server]


def test_a_terminal_that_ends_gives_no_password(lamella: Program, server: str, file: Path) -> None:
    ours, theirs = pty.openpty()
    try:
        with lamella.start(
            "login", "-u", "ann", server, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
        ) as running:
            _read_until(ours, b"Password: ")
            os.write(ours, b"\x04")
            _read_until(ours, b"no password was given")
            assert running.wait(timeout=60) == 2
    finally:
        os.close(ours)
        os.close(theirs)
    assert not file.exists()


def _read_until(descriptor: int, text: bytes) -> bytes:
    seen = b""
    deadline = time.monotonic() + 60
    while text not in seen:
        assert select.select([descriptor], [], [], max(0, deadline - time.monotonic()))[0], seen
        seen += os.read(descriptor, 4096)
    return seen


def test_logging_in_needs_no_store(lamella: Program, server: str, file: Path) -> None:
    lamella("-q", "login", "-u", "ann", "-p", PASSWORD, server).ok()
    lamella("logout", server).ok()
    assert not (lamella.root / "metadata.db").exists()
