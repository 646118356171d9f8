"""Transcripts of shell commands: run, made alike where a machine or a moment shows, and compared with what is expected.

A file of commands has one a line. ``[2.4]`` before a command: only for that version. ``#``: a comment.
A transcript has each command after ``$ ``, then what it printed, and its exit status unless that is 0.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

SECONDS = 120.0
PRELUDE = """
ctr() { "$CTR" --address "$ADDRESS" "$@"; }
awaited() { for i in {1..900}; do grep -qs "$1" "$2" && return; sleep 0.1; done; }
fed() { (echo "$1"; awaited "$1" fed) | "${@:2}" >fed; local status=$?; cat fed; rm fed; return $status; }
nerdctl() { "$NERDCTL" --address "$ADDRESS" --data-root "$PWD/nerdctl" --insecure-registry --cgroup-manager cgroupfs "$@"; }
"""
"""``awaited``: waits until a word has come in a file. ``fed``: runs a command whose input is a line, and ends once it came back:
ctr tells of the end at once, and nobody hears it before the process runs."""
_ALIKE: tuple[tuple[str, str], ...] = (
    (r"time=\"[^\"]*\" ", ""),
    # ctr's own progress, which looks once more when all is done
    (r"(?m)^level=error msg=\"failed to get content info\" error=\"context canceled\"\n", ""),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", "<time>"),
    (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)? \+0000 UTC( m=\S+)?", "<time>"),
    (r"(About an?|\d+|Less than a) (second|minute)s?( ago)?", "<while>"),
    (r"\b\d+(\.\d+)? ?(KiB|MiB|GiB|kB|MB|B)\b", "<size>"),
    (r"\b\d+(\.\d+)?m?s\b", "<while>"),
    (r"\b\d+( +)(CREATED|RUNNING|PAUSED|STOPPED)\b", r"<pid>\1\2"),
    (r"(lowerdir|upperdir|workdir)=[^,\s]+", r"\1=<folders>"),
    (r"index=off,?", ""),
    (r"=<folders>,(?=\s)", "=<folders>"),
    (r"(?<= )/\S+/snapshots/\S+", "<folder>"),
    (r"[ \t]+", " "),
    (r"(?m) $", ""),
)
"""What is another at each run, or on each machine."""


def commands(file: Path, version: str) -> Iterator[str]:
    """Give the commands of a file for a version."""
    for line in file.read_text().splitlines():
        found = re.fullmatch(r"(?:\[(\S+)\] )?([^#].*)", line)
        if found and found[1] in (None, version):
            yield found[2]


def run(file: Path, version: str, folder: Path, variables: Mapping[str, str]) -> str:
    """Run the commands in a folder; give the transcript. ``variables``: what is set for each, and put in place of its value.

    What does not end in two minutes is ended. What a command starts and leaves behind may write on.
    """
    known: dict[str, str] = {}
    pieces = []
    for command in commands(file, version):
        with (folder / ".output").open("w+b") as output:
            process = subprocess.Popen(
                ["bash", "-c", PRELUDE + command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=dict(variables),
                start_new_session=True,
            )
            try:
                status = f"[{process.wait(SECONDS)}]\n"
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                status = "[it does not end]\n"
            output.seek(0)
            text = output.read().decode(errors="replace")
        if text and not text.endswith("\n"):
            text += "\n"
        pieces.append(
            f"$ {command}\n{_alike(text, folder, variables, known)}{status.removeprefix('[0]' + chr(10))}"
        )
    return "".join(pieces)


def _alike(text: str, folder: Path, variables: Mapping[str, str], known: dict[str, str]) -> str:
    text = text.replace(str(folder), "FOLDER")
    for name in ("IMAGE", "REGISTRY", "HOST", "NAMESPACE", "ADDRESS"):
        text = text.replace(variables[name], f"${name}")
    for pattern, shown in _ALIKE:
        text = re.sub(pattern, shown, text)
    # Labels come in any order.
    text = re.sub(
        r"[\w./-]+=[^,\s]*(,[\w./-]+=[^,\s]*)+", lambda found: ",".join(sorted(found[0].split(","))), text
    )
    # A digest is another on each machine, but the same one within a transcript.
    return re.sub(r"\b[0-9a-f]{64}\b", lambda found: known.setdefault(found[0], f"<{len(known) + 1}>"), text)
