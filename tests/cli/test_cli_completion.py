"""The completion scripts, asked by the shells themselves."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from lamella.cli.completion import SHELLS, places, script
from lamella.cli.parser import parse

CASES = [
    ("im", {"images", "import"}),
    ("images ", {"ls", "inspect", "convert", "referrers", "rm"}),
    ("image ", {"ls", "inspect", "convert", "referrers", "rm"}),
    ("snapshots pr", {"prepare"}),
    ("--root /x snapshots com", {"commit"}),
    ("-n default --json containers sto", {"stop"}),
    ("run --netw", {"--network", "--network-alias"}),
    ("run --network ", {"none", "host", "bridge", "pasta"}),
    ("run --rm --pull al", {"always"}),
    ("completion ", {"bash", "zsh", "fish"}),
    ("graph --format d", {"dot"}),
    ("containers kill --si", {"--signal"}),
    ("snapshots ls --kind v", {"view"}),
    ("registry ", {"inspect", "tags", "catalog", "tag", "delete", "serve", "hosts"}),
]
"""What is typed, and what the shell has to offer."""


def bash(line: str, folder: Path) -> set[str]:
    """Ask bash as it asks itself: COMP_WORDS, then the function."""
    program = f"""
source {folder}/lamella.bash
COMP_LINE={_quote("lamella " + line)}
COMP_WORDS=({" ".join(_quote(word) for word in ["lamella", *line.split(" ")])})
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
compopt() {{ echo files; }}
_lamella
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    return set(_run(["bash", "--norc", "-c", program]).split())


def zsh(line: str, folder: Path) -> set[str]:
    """Ask zsh with what its completion system sets before it calls the function, and see what the function hands to it."""
    program = f"""
compdef() {{ }}
source {folder}/lamella.zsh
words=({" ".join(_quote(word) for word in ["lamella", *line.split(" ")])})
CURRENT=$#words
PREFIX=$words[CURRENT]
offer() {{ for entry; do [[ $entry == $PREFIX* ]] && print -r -- $entry; done }}
_describe() {{ local entry; for entry in ${{(P)@[-1]}}; do offer ${{entry%%:*}}; done }}
compadd() {{ shift; offer $@ }}
_files() {{ print files }}
_lamella
"""
    return set(_run(["zsh", "-f", "-c", program]).split())


def fish(line: str, folder: Path) -> set[str]:
    """Ask fish, which has a command for it."""
    program = f"source {folder}/lamella.fish; complete -C {_quote('lamella ' + line)}"
    return {entry.partition("\t")[0] for entry in _run(["fish", "--no-config", "-c", program]).splitlines()}


def _quote(text: str) -> str:
    return "'" + text + "'"


def _run(command: list[str]) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, check=False
    )
    assert done.stderr == "", done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("completion")
    for shell in SHELLS:
        (folder / f"lamella.{shell}").write_text(script(shell))
    return folder


@pytest.mark.parametrize(("line", "offered"), CASES)
def test_bash_offers(line: str, offered: set[str], scripts: Path) -> None:
    assert bash(line, scripts) == offered


@pytest.mark.needs_program("fish")
@pytest.mark.parametrize(("line", "offered"), CASES)
def test_fish_offers(line: str, offered: set[str], scripts: Path) -> None:
    assert fish(line, scripts) == offered


@pytest.mark.needs_program("zsh")
@pytest.mark.parametrize(("line", "offered"), CASES)
def test_zsh_offers(line: str, offered: set[str], scripts: Path) -> None:
    assert zsh(line, scripts) == offered


@pytest.mark.parametrize("line", ["run --rm debian:12 --pu", "content get -o ", "--root "])
def test_bash_leaves_files_and_the_words_of_other_commands_to_itself(line: str, scripts: Path) -> None:
    assert bash(line, scripts) == {"files"}


@pytest.mark.needs_program("zsh")
@pytest.mark.parametrize("line", ["run --rm debian:12 --pu", "content get -o ", "--root "])
def test_zsh_leaves_files_and_the_words_of_other_commands_to_itself(line: str, scripts: Path) -> None:
    assert zsh(line, scripts) == {"files"}


def test_every_place_is_one_that_the_parser_knows() -> None:
    for place in places():
        for name, _ in place.commands:
            with pytest.raises(BaseException, match=f"Usage: lamella {place.path}".strip()):
                parse([*place.path.split(), name, "--help"])
