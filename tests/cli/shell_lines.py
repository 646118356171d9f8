"""Find the ``lamella`` command lines in text that a reader would type into a shell."""

from __future__ import annotations

import re
import shlex

_SUBSTITUTION = re.compile(r"[$<]\(([^()]*)\)")
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
_BEFORE = frozenset({"sudo", "time", "exec", "$", "#", "!"})


def commands(text: str) -> list[list[str]]:
    """Give the words behind ``lamella`` of each of its calls, those inside ``$(...)`` and behind pipes too."""
    found: list[list[str]] = []
    for line in text.replace("\\\n", " ").splitlines():
        found += _of_line(line.strip())
    return found


def _of_line(line: str) -> list[list[str]]:
    found: list[list[str]] = []
    while match := _SUBSTITUTION.search(line):
        found += _of_line(match.group(1))
        line = f"{line[: match.start()]}SUBSTITUTED{line[match.end() :]}"
    if "lamella" not in line:
        return found
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if word and not set(word) <= set("|&;<>"):
            words.append(word)
            continue
        while words and (words[0] in _BEFORE or _ASSIGNMENT.match(words[0])):
            words = words[1:]
        if words and words[0].rpartition("/")[2] == "lamella":
            found.append(words[1:])
        words = []
    return found
