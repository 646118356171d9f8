"""``lamella containers exec`` and ``attach``: joining a container that runs."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from lamella.cli.options import add_process_options, environment
from lamella.cli.parser import REST, Command, Parser, UsageError
from lamella.cli.values import argument, parse_duration

if TYPE_CHECKING:
    from lamella.cli.session import Session
    from lamella.containers.container import Attached


class _Added:
    """A command that an exec added, for :func:`lamella.cli.streams.follow`: signals go to it alone."""

    def __init__(self, name: str, attached: Attached) -> None:
        self.name = name
        self._attached = attached

    def kill(self, signal: str | int = "SIGKILL") -> None:
        """Send it a signal; SIGKILL to everything that it started, too."""
        from lamella.containers.container import signal_number

        number = signal_number(signal)
        self._attached.kill(number, all=number == signal_number("SIGKILL"))


def _exec_arguments(parser: Parser) -> None:
    add_process_options(parser)
    parser.add_argument(
        "--timeout",
        metavar="DURATION",
        type=argument(parse_duration),
        help="Kill it and what it started after this time (exit status 124).",
    )
    parser.add_argument("words", metavar="CONTAINER", nargs=REST, help="Name or id, then the command.")


def _exec(arguments: argparse.Namespace, session: Session) -> int:
    words = arguments.words[1:] if arguments.words[0] == "--" else arguments.words
    if len(words) < 2:
        raise UsageError(
            "lamella containers exec: the command is missing", hint="Write CONTAINER COMMAND [ARG...]."
        )
    if arguments.interactive and arguments.tty and not sys.stdin.isatty():
        raise UsageError(
            "lamella containers exec: -t needs a terminal, and stdin is none", hint="Leave -t out."
        )

    from lamella.cli.streams import Signals, follow

    container = session.client.containers.get(words[0])
    with Signals() as signals:
        attached = container.start_exec(
            words[1:],
            environment=environment(arguments),
            working_dir=arguments.workdir,
            user=arguments.user,
            stdin=arguments.interactive,
            tty=arguments.tty,
        )
        with attached:
            return follow(
                session,
                _Added(f"{container.name}: {words[1]}", attached),
                attached,
                signals,
                stdin=arguments.interactive,
                tty=arguments.tty,
                timeout=arguments.timeout,
            )


EXEC = Command(
    "exec",
    "Run one more command in a running container.",
    _exec,
    _exec_arguments,
    usage="[OPTIONS] CONTAINER COMMAND [ARGUMENTS...]",
    json=False,
    description="Environment, folder and user are the container's own where nothing else is said. Output and signals pass "
    "through; stdin with -i. The exit status is the command's, as for run. The container goes on.",
    examples=[
        ("look around", "lamella containers exec -it web sh"),
        ("bounded in time", "lamella containers exec --timeout 30s web nginx -t"),
    ],
)


def _attach_arguments(parser: Parser) -> None:
    parser.add_argument(
        "-i", "--interactive", action="store_true", help="Connect stdin, if it was made with -i."
    )
    parser.add_argument("container", metavar="CONTAINER", help="Name or id.")


def _attach(arguments: argparse.Namespace, session: Session) -> int:
    from lamella.cli.streams import Signals, follow

    container = session.client.containers.get(arguments.container)
    with Signals() as signals, container.attach(stdin=arguments.interactive) as attached:
        return follow(
            session,
            container,
            attached,
            signals,
            stdin=arguments.interactive,
            tty=container.spec["process"].get("terminal", False),
        )


ATTACH = Command(
    "attach",
    "Join the streams of a running container until its end.",
    _attach,
    _attach_arguments,
    json=False,
    description="Shows what it writes from now on; signals pass through. The exit status is the container's.",
    examples=[("see what it says", "lamella containers attach web")],
)
