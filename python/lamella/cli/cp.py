"""``lamella cp`` and ``lamella containers export``: a container's files, in and out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lamella.cli.parser import Arguments, Command, Parser, UsageError
from lamella.cli.values import argument, parse_duration

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lamella.cli.session import Session


def _arguments(parser: Parser) -> None:
    add = parser.add_argument
    add("-a", "--archive", action="store_true", help="Keep the owners (uid and gid).")
    add("-L", "--follow-link", action="store_true", help="Follow a symlink that is the source.")
    add("-q", "--quiet", action="store_true", help="Say nothing of what was left out (sockets, devices).")
    add(
        "--timeout",
        metavar="DURATION",
        type=argument(parse_duration),
        help="Give up after this time; what was copied stays.",
    )
    add("source", metavar="SOURCE", help="CONTAINER:PATH, a path here, or - for an archive on stdin.")
    add("target", metavar="TARGET", help="CONTAINER:PATH, a path here, or - for an archive on stdout.")


def _split(text: str) -> tuple[str, str] | None:
    """Give container and path; None for a path of this machine."""
    container, colon, path = text.partition(":")
    return (container, path) if colon and container and not container.startswith((".", "/")) else None


def _cp(arguments: Arguments, session: Session) -> int:
    source, target = _split(arguments.source), _split(arguments.target)
    if (source is None) == (target is None):
        raise UsageError(
            "lamella cp: one of SOURCE and TARGET has to be CONTAINER:PATH",
            hint="A path here that has a ':' in it begins with / or ./.",
        )
    containers = session.client.containers
    options = {
        "archive": arguments.archive,
        "follow_link": arguments.follow_link,
        "timeout": arguments.timeout,
    }
    if target is not None:
        container = containers.get(target[0])
        if arguments.source == "-":
            from lamella.containers.files import put_archive_from

            put_archive_from(container, target[1], sys.stdin.buffer.fileno(), timeout=arguments.timeout)
        else:
            container.copy_in(arguments.source, target[1], **options)
    elif source is not None:
        container = containers.get(source[0])
        if arguments.target == "-":
            del options["archive"]  # it keeps the owners in any case
            with container.get_archive(source[1], **options)[0] as pieces:
                _write("lamella cp", pieces)
        else:
            container.copy_out(source[1], arguments.target, **options)
    return 0


def _write(name: str, pieces: Iterable[bytes]) -> None:
    out = sys.stdout.buffer
    if out.isatty():
        raise UsageError(
            f"{name}: the archive would go to the terminal", hint="Send it to a file or a program."
        )
    for piece in pieces:
        out.write(piece)
    out.flush()


def _export_arguments(parser: Parser) -> None:
    parser.add_argument("-o", "--output", metavar="FILE", help="Write to this file, not to stdout.")
    parser.add_argument("container", metavar="CONTAINER", help="Name or id.")


def _export(arguments: Arguments, session: Session) -> int:
    container = session.client.containers.get(arguments.container)
    with container.export() as pieces:
        if arguments.output is None:
            _write("lamella containers export", pieces)
            return 0
        with Path(arguments.output).open("wb") as file:
            for piece in pieces:
                file.write(piece)
    return 0


CP = Command(
    "cp",
    "Copy files into a container, or out of it.",
    _cp,
    _arguments,
    description="The container may run, be paused or not run. As with docker: a folder that is there gets the source by its name "
    "in it, or what is in the source where that ends with /. ; a folder that is not becomes a copy of it; a file replaces a "
    "file. What is copied in belongs to root, what is copied out to you, unless -a keeps the owners. With - for a path here it "
    "is a tar archive.",
    examples=[
        ("a file into a sandbox", "lamella cp ./main.py sandbox:/src/"),
        ("what it made", "lamella cp sandbox:/src/build ./build"),
        ("the content of a folder, by another program", "tar -c . | lamella cp - sandbox:/src"),
        ("look into an archive", "lamella cp sandbox:/etc - | tar -t"),
    ],
)
EXPORT = Command(
    "export",
    "Write the root of a container as a tar archive.",
    _export,
    _export_arguments,
    description="Without what is mounted in it; names in order. An image is made by 'lamella containers commit'.",
    examples=[("look into it", "lamella containers export web | tar -t")],
)
