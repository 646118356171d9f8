"""The help text of each command, word for word. LAMELLA_UPDATE_GOLDEN=1 writes the files anew."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lamella.cli.completion import places
from lamella.cli.parser import HelpRequested, parse

GOLDEN = Path(__file__).parent / "help"
PATHS = [place.path for place in places()]


@pytest.mark.parametrize("path", PATHS)
def test_help_is_as_recorded(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(HelpRequested) as caught:
        parse([*path.split(), "--help"])
    text = str(caught.value)
    file = GOLDEN / f"{'-'.join(['lamella', *path.split()])}.txt"
    if os.environ.get("LAMELLA_UPDATE_GOLDEN") == "1":
        GOLDEN.mkdir(exist_ok=True)
        file.write_text(text)
    assert text == file.read_text(), "run with LAMELLA_UPDATE_GOLDEN=1 and look at the difference"


def test_no_recorded_help_is_left_of_a_command_that_is_gone() -> None:
    names = {"-".join(["lamella", *path.split()]) for path in PATHS}
    assert {file.stem for file in GOLDEN.glob("*.txt")} == names


def test_help_fits_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(HelpRequested) as caught:
        parse(["run", "--help"])
    prose = str(caught.value).partition("Examples:")[0]
    assert max(len(line) for line in prose.splitlines()) <= 80
