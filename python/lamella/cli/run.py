"""``lamella run``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from lamella.cli.create import create_container
from lamella.cli.options import USAGE, add_container_options, add_signal_option, add_terminal_options
from lamella.cli.parser import Arguments, Command, Parser, UsageError
from lamella.cli.pull import add_pull_options
from lamella.cli.values import argument, parse_duration
from lamella.typings import TYPE_CHECKING

if TYPE_CHECKING:
    from lamella.cli.session import Session
    from lamella.containers.container import Container


def _arguments(parser: Parser) -> None:
    add = parser.add_argument
    add("-d", "--detach", action="store_true", help="Leave it running and print its id.")
    add(
        "--timeout",
        metavar="DURATION",
        type=argument(parse_duration),
        help="Kill it after this time (exit status 124).",
    )
    add_signal_option(parser)
    add_terminal_options(parser)
    add_pull_options(parser, when=True)
    add_container_options(parser)


def _run(arguments: Arguments, session: Session) -> int:
    if arguments.detach and arguments.timeout is not None:
        raise UsageError("lamella run: --timeout needs a container in the foreground", hint="Leave -d out.")
    if arguments.interactive and arguments.tty and not arguments.detach and not sys.stdin.isatty():
        raise UsageError("lamella run: -t needs a terminal, and stdin is none", hint="Leave -t out.")
    from lamella import _core

    _core.prepare_launch()  # by another core, while this one looks for what is to be started
    container = create_container(session, arguments)
    if arguments.detach:
        with _removed_unless_started(container):
            container.start()
        if session.json:
            session.document({"id": container.id, "name": container.name})
        else:
            session.line(container.id)
        return 0

    from lamella.cli.streams import Signals, follow

    with Signals(proxy=arguments.sig_proxy) as signals:
        with _removed_unless_started(container):
            attached = container.start(attach=True)
        assert attached is not None
        goes_on = False
        try:
            with attached:
                status = follow(
                    session,
                    container,
                    attached,
                    signals,
                    stdin=arguments.interactive,
                    tty=arguments.tty,
                    timeout=arguments.timeout,
                    detach_keys=arguments.detach_keys if arguments.timeout is None else b"",
                )
            goes_on = status is None
            return status or 0
        except KeyboardInterrupt:  # which comes here with --sig-proxy=false alone
            goes_on = True
            raise
        finally:
            if arguments.rm and not goes_on:
                container.remove(force=True, volumes=True)


@contextmanager
def _removed_unless_started(container: Container) -> Iterator[None]:
    try:
        yield
    except BaseException:
        container.remove(force=True, volumes=True)
        raise


RUN = Command(
    "run",
    "Run a command in a new container.",
    _run,
    _arguments,
    usage=USAGE,
    runs_program=True,
    description="Fetches the image if it is not here, makes a container on it, and stays until its end. Output and "
    "signals pass through; stdin with -i. Everything behind REF belongs to the command.\n\n"
    "The exit status is the command's own, 128 + n when signal n ended it, 127 when the program is not in the image, "
    "126 when it cannot be run, 125 for an error of lamella itself, 124 after --timeout. A container that ignores three "
    "Ctrl-C is killed.\n\n"
    "Ctrl-P Ctrl-Q on its terminal (-it) leaves it running, with exit status 0; `lamella attach` comes back. Not with --timeout.",
    examples=[
        ("one command, and nothing left afterwards", "lamella run --rm nginx:latest nginx -v"),
        ("a shell", "lamella run --rm -it debian:12 bash"),
        (
            "bounded: memory, processes, time",
            "lamella run --rm --memory 512m --pids-limit 100 --timeout 30s python:3 python3 -c 'print(1)'",
        ),
        ("this folder, read-only", "lamella run --rm -v ./:/src:ro -w /src python:3 python3 -m compileall ."),
        ("a volume that stays", "lamella run --rm -v cache:/var/cache debian:12 ls /var/cache"),
        ("on what another has left", "lamella run --rm --branch box-2f6a90c1d4e7 ls /"),
        ("in the background", "lamella run -d --name web --network host nginx:latest"),
    ],
)
