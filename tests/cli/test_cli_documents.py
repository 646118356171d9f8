"""The command lines of README and docs are ones that the real parser takes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from shell_lines import commands

from lamella.cli.parser import HelpRequested, UsageError, parse

REPOSITORY = Path(__file__).resolve().parents[2]
_BLOCK = re.compile(r"^```(?:sh|bash|shell|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"^ {4,}(?:\$ )?(lamella .*)$", re.MULTILINE)
DOCUMENTS = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")])


def test_command_lines_are_found_in_shell_text() -> None:
    text = """
$ sudo lamella -q pull nginx   # fetch
A=1 .venv/bin/lamella ps -a | grep x > lamella.txt && lamella gc
lamella snapshots prepare work "$(lamella images inspect nginx | jq -r .chain_id)"
lamella run --rm \\
    nginx sh -c 'a | b'
pip install lamella
"""
    assert commands(text) == [
        ["-q", "pull", "nginx"],
        ["ps", "-a"],
        ["gc"],
        ["images", "inspect", "nginx"],
        ["snapshots", "prepare", "work", "SUBSTITUTED"],
        ["run", "--rm", "nginx", "sh", "-c", "a | b"],
    ]


@pytest.mark.parametrize("document", DOCUMENTS, ids=[str(path.relative_to(REPOSITORY)) for path in DOCUMENTS])
def test_every_command_line_of_the_documents_parses(document: Path) -> None:
    wrong = []
    text = document.read_text()
    for block in [*_BLOCK.findall(text), *_INDENTED.findall(text)]:
        for words in commands(block):
            try:
                parse(words)
            except HelpRequested:
                pass
            except UsageError as error:
                wrong.append(f"lamella {' '.join(words)}\n    {error}")
    assert not wrong, "\n".join(wrong)
