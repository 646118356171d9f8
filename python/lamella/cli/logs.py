"""``lamella logs``: what a container wrote."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Literal

from lamella.cli.parser import Arguments, Command, Parser
from lamella.cli.session import LastOutput
from lamella.cli.values import argument, parse_moment

if TYPE_CHECKING:
    from lamella.cli.session import Session

_PIECE = 64 * 1024


def _arguments(parser: Parser) -> None:
    add = parser.add_argument
    add("-f", "--follow", action="store_true", help="Go on until the container has ended.")
    moments = "RFC 3339, seconds since 1970, or how long ago, such as 10m"
    add(
        "--since",
        metavar="TIME",
        type=argument(_parse_time),
        help=f"Only what came at this time or later: {moments}.",
    )
    add(
        "--until",
        metavar="TIME",
        type=argument(_parse_time),
        help="Only what came before this time or at it.",
    )
    add(
        "-n",
        "--tail",
        metavar="LINES",
        type=argument(_parse_tail),
        default="all",
        help="Only the last lines, this many (default: all).",
    )
    add("-t", "--timestamps", action="store_true", help="Put the time in front of each line.")
    add("--stream", choices=("stdout", "stderr"), help="Only what was written there.")
    add("container", metavar="CONTAINER", help="Name or id.")


def _parse_time(text: str) -> str:
    from lamella.containers.logs import parse_moment as parse_exact
    from lamella.errors import InvalidArgument

    with suppress(InvalidArgument):
        return parse_exact(text, "the time") or ""  # to the nanosecond, as -t shows it
    return parse_moment(text)


def _parse_tail(text: str) -> int | Literal["all"]:
    if text in ("all", "-1"):
        return "all"
    if text.isascii() and text.isdigit():
        return int(text)
    raise ValueError(f"{text!r} is neither a number of lines nor 'all'")


def _logs(arguments: Arguments, session: Session) -> int:
    container = session.client.containers.get(arguments.container)
    pieces = container.logs(
        follow=arguments.follow,
        since=arguments.since,
        until=arguments.until,
        tail=arguments.tail,
        timestamps=arguments.timestamps,
        stream=arguments.stream,
    )
    last = LastOutput()
    for stream, data in pieces if arguments.follow else _joined(pieces):
        session.bytes(data, error=stream == "stderr")
        last.add(data)
    if container.exit_code:
        last.explain(session)
    return 0


def _joined(pieces: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
    """Join what goes to the same stream: a line written alone takes ten times as long."""
    waiting: list[bytes] = []
    stream, size = "", 0
    for name, data in pieces:
        if name != stream or size > _PIECE:
            if waiting:
                yield stream, b"".join(waiting)
            stream, waiting, size = name, [], 0
        waiting.append(data)
        size += len(data)
    if waiting:
        yield stream, b"".join(waiting)


LOGS = Command(
    "logs",
    "Show what a container wrote.",
    _logs,
    _arguments,
    json=False,
    description="What it wrote to stdout goes to stdout, the rest to stderr. The log is kept until the container is removed; by "
    "default its last 50 MiB (--log-opt of run and containers create).",
    examples=[
        ("as it comes, from the last ten lines on", "lamella logs -f -n 10 web"),
        ("the errors of the last five minutes", "lamella logs --since 5m --stream stderr web"),
    ],
)
