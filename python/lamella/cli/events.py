"""``lamella events``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from lamella.cli.parser import Arguments, Command, Parser
from lamella.cli.values import argument, parse_moment

if TYPE_CHECKING:
    from lamella.cli.session import Session

_LOOK_SECONDS = 0.5
"""How often a command that has nothing to say looks whether anybody still listens."""


def _arguments(parser: Parser) -> None:
    add = parser.add_argument
    start = parser.add_mutually_exclusive_group().add_argument
    start("--since", metavar="WHEN", type=argument(parse_moment), help="Begin with what happened then.")
    start("--after", metavar="NUMBER", type=int, help="Begin after the event of this number.")
    add("--until", metavar="WHEN", type=argument(parse_moment), help="End with what happened then.")
    add("--no-follow", action="store_true", help="End with the newest event; begin with the oldest one kept.")
    add("-A", "--all-namespaces", action="store_true", help="Show the events of all namespaces.")
    add(
        "filters",
        metavar="FILTER",
        nargs="*",
        help="Only what matches, in containerd's language, by topic, namespace and event.FIELD; of several one is enough.",
    )


def _events(arguments: Arguments, session: Session) -> int:
    import msgspec

    from lamella.cli.session import OutputClosed
    from lamella.errors import DeadlineExceeded

    stream = session.client.events(
        filters=arguments.filters,
        since=arguments.after if arguments.after is not None else arguments.since,
        until=arguments.until,
        follow=not arguments.no_follow,
        all_namespaces=arguments.all_namespaces,
        timeout=_LOOK_SECONDS,
    )
    with stream:
        while True:
            try:
                event = next(stream)
            except StopIteration:
                return 0
            except DeadlineExceeded:
                if _reader_is_gone():
                    raise OutputClosed(sys.stdout) from None
                continue
            if session.json:
                session.record(event)
            else:
                data = msgspec.json.encode(event.event).decode()
                session.line(f"{event.timestamp} {event.namespace} {event.topic} {data}")
            session.flush()


def _reader_is_gone() -> bool:
    """Say whether nobody reads stdout any more, as after ``lamella events | grep -m1 exit``: a pipe says it unasked."""
    import select

    try:
        waiter = select.poll()
        waiter.register(sys.stdout, 0)
        return bool(waiter.poll(0))
    except (OSError, ValueError):  # it is no file
        return False


EVENTS = Command(
    "events",
    "Follow what happens.",
    _events,
    _arguments,
    description="A line an event, as ctr prints them: time, namespace, topic and fields; with --json an object a line, with the "
    "event's number. Topics and fields are containerd's: /images/create, /snapshot/prepare, /tasks/exit, and so on.\n\n"
    "WHEN is a time such as 2026-03-01T12:00:00Z, seconds since 1970, or a duration: 10m is ten minutes ago. The newest 32,768 "
    "events are kept; to read on without a gap or a repetition, give --after the last number that was seen.",
    examples=[
        ("follow everything", "lamella events -A"),
        ("containers that ended badly", "lamella events 'topic==/tasks/exit,event.exit_status!=0'"),
        ("what happened in the last hour", "lamella events --since 1h --no-follow"),
    ],
)
