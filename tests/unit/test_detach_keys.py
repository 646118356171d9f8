"""The keys that leave a container's terminal."""

from __future__ import annotations

import pytest

from lamella.cli import values
from lamella.containers.detach_keys import DetachKeys, parse_detach_keys
from lamella.errors import InvalidArgument


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("ctrl-p,ctrl-q", b"\x10\x11"),
        ("ctrl-@,CTRL-A,ctrl-z", b"\x00\x01\x1a"),
        ("ctrl-[,ctrl-\\,ctrl-],ctrl-^,ctrl-_", b"\x1b\x1c\x1d\x1e\x1f"),
        ("a,B,DEL", b"aB\x7f"),
        ("", b""),
    ],
)
def test_keys_are_written_as_for_docker(text, keys):
    assert parse_detach_keys(text) == keys


@pytest.mark.parametrize("text", ["ctrl-", "ctrl-1", "ab", "a,", "ctrl-p ctrl-q", "ä", "shift-a"])
def test_what_is_no_key_is_refused(text):
    with pytest.raises(InvalidArgument, match="detach keys"):
        parse_detach_keys(text)


def test_the_default_is_dockers():
    assert parse_detach_keys("ctrl-p,ctrl-q") == values.DETACH_KEYS


def typed(keys, *pieces):
    looking = DetachKeys(keys)
    return [looking.pass_on(piece) for piece in pieces]


def test_keys_are_found_in_one_piece_and_in_several():
    assert typed(b"\x10\x11", b"ab\x10\x11cd") == [(b"ab", True)]
    assert typed(b"\x10\x11", b"a\x10", b"\x11") == [(b"a", False), (b"", True)]
    assert typed(b"x", b"axb") == [(b"a", True)]


def test_what_was_held_back_is_passed_on_when_it_was_no_beginning():
    assert typed(b"\x10\x11", b"a\x10", b"b") == [(b"a", False), (b"\x10b", False)]
    # A second ctrl-p may begin the keys anew.
    assert typed(b"\x10\x11", b"\x10\x10", b"\x11") == [(b"\x10", False), (b"", True)]
    assert typed(b"aab", b"aa", b"a", b"b") == [(b"", False), (b"a", False), (b"", True)]


def test_without_keys_everything_passes():
    assert typed(b"", b"\x10\x11") == [(b"\x10\x11", False)]
