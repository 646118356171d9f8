"""``lamella containers exec`` and ``attach``: joining a container that runs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from lamella.cli.options import add_process_options, add_signal_option, add_terminal_options, process_options
from lamella.cli.parser import REST, Arguments, Command, Parser, UsageError
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
    add = parser.add_argument
    add("-d", "--detach", action="store_true", help="Leave it running; what it writes goes nowhere.")
    add("--privileged", action="store_true", help="Give it all capabilities.")
    add_terminal_options(parser)
    add(
        "--timeout",
        metavar="DURATION",
        type=argument(parse_duration),
        help="Kill it and what it started after this time (exit status 124).",
    )
    add("words", metavar="CONTAINER", nargs=REST, help="Name or id, then the command.")


def _exec(arguments: Arguments, session: Session) -> int:
    words = arguments.words[1:] if arguments.words[0] == "--" else arguments.words
    if len(words) < 2:
        raise UsageError(
            "lamella containers exec: the command is missing", hint="Write CONTAINER COMMAND [ARG...]."
        )
    if arguments.detach and arguments.timeout is not None:
        raise UsageError(
            "lamella containers exec: --timeout needs a command in the foreground", hint="Leave -d out."
        )
    stdin = arguments.interactive and not arguments.detach
    if stdin and arguments.tty and not sys.stdin.isatty():
        raise UsageError(
            "lamella containers exec: -t needs a terminal, and stdin is none", hint="Leave -t out."
        )

    from lamella.cli.streams import Signals, follow

    container = session.client.containers.get(words[0])
    with Signals() as signals:
        attached = container.start_exec(
            words[1:], stdin=stdin, privileged=arguments.privileged, **process_options(arguments)
        )
        with attached:
            if arguments.detach:
                return 0
            status = follow(
                session,
                _Added(f"{container.name}: {words[1]}", attached),
                attached,
                signals,
                stdin=stdin,
                tty=arguments.tty,
                timeout=arguments.timeout,
                detach_keys=arguments.detach_keys,
            )
    return status or 0


EXEC = Command(
    "exec",
    "Run one more command in a running container.",
    _exec,
    _exec_arguments,
    usage="[OPTIONS] CONTAINER COMMAND [ARGUMENTS...]",
    runs_program=True,
    json=False,
    description="Environment, folder and user are the container's own where nothing else is said. Output and signals pass "
    "through; stdin with -i. The exit status is the command's, as for run; 125 for an error of lamella itself. The container "
    "goes on, and so does the command with -d, or when the detach keys are typed on its terminal.",
    examples=[
        ("look around", "lamella containers exec -it web sh"),
        ("in the background, as root", "lamella containers exec -d -u root web nginx -s reload"),
        ("bounded in time", "lamella containers exec --timeout 30s web nginx -t"),
    ],
)


def _attach_arguments(parser: Parser) -> None:
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "-i", "--interactive", action="store_true", help="Connect stdin, also where it is no terminal."
    )
    what.add_argument("--no-stdin", action="store_true", help="Do not connect stdin.")
    add_terminal_options(parser)
    add_signal_option(parser)
    add("container", metavar="CONTAINER", help="Name or id.")


def _attach(arguments: Arguments, session: Session) -> int:
    from lamella.cli.streams import Signals, follow

    container = session.client.containers.get(arguments.container)
    tty = container.record.extra.tty
    stdin = arguments.interactive
    if not stdin and not arguments.no_stdin:
        stdin = container.record.extra.stdin and sys.stdin.isatty()
    with Signals(proxy=arguments.sig_proxy) as signals, container.attach(stdin=stdin) as attached:
        status = follow(
            session,
            container,
            attached,
            signals,
            stdin=stdin,
            tty=tty,
            detach_keys=arguments.detach_keys,
        )
    return status or 0


ATTACH = Command(
    "attach",
    "Join the streams of a running container until its end.",
    _attach,
    _attach_arguments,
    json=False,
    runs_program=True,
    description="Shows what it writes from now on; signals pass through, and what is typed if it was made with -i. The exit "
    "status is the container's, 125 for an error of lamella itself, 0 when the detach keys are typed on its terminal: it goes "
    "on then.",
    examples=[
        ("see what it says", "lamella containers attach web"),
        ("leave it by Ctrl-C", "lamella containers attach --sig-proxy=false web"),
    ],
)
