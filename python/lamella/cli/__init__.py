"""The command ``lamella``.

``parser`` turns the command line into a call and imports nothing but the chosen command's module; ``session`` holds
what every command needs (the global options, the client, where output goes); one module a noun holds the commands,
each with its arguments, help, examples and handler. Handlers call the library and print; they decide nothing that a
caller of the library would miss.

Exit status: 0 for success, 1 for an error, 2 for a wrong command line, 124 when a time-out passed, 130 after Ctrl-C, 141
when the reader of the output went away. ``run``, ``start -a``, ``exec`` and ``attach`` give that of the program in the
container (128 + n when signal n ended it), 126 for one that cannot be run and 127 for one that is not there; so that these
can be told apart, what goes wrong with such a command itself, and with ``create``, is 125, a wrong command line too: as in
docker and podman.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
"""As in typing, which :func:`command` is to import, like all else, after it has said when garbage is looked for."""
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

    from lamella.cli.parser import Invocation
    from lamella.cli.session import Session

EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_TIMEOUT = 124
EXIT_OURS = 125
"""An error of a command whose exit status is that of a container's program otherwise."""
EXIT_INTERRUPTED = 130
EXIT_PIPE = 141
GARBAGE = 100_000
"""Objects after which a command looks for garbage: what it imports is none, and looking takes a twentieth of a short command."""


def command() -> NoReturn:
    """Run the command line of this process, which ends with it."""
    import gc  # of which there is a module of ours, too

    gc.set_threshold(GARBAGE)
    _end_process(main())


def _end_process(status: int) -> NoReturn:
    """End the process without taking the interpreter apart, object by object: 4 ms of a short command.

    What others have registered for the end is done, and threads that are no daemons are waited for.
    """
    import atexit
    from contextlib import suppress

    if "threading" in sys.modules:
        sys.modules["threading"]._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # what there was to say about it was said
            stream.flush()
    os._exit(status)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (by default that of this process) and return its exit status."""
    from lamella.cli.parser import HelpRequested, UsageError, parse
    from lamella.cli.session import OutputClosed, Session, report

    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115
    session = None
    try:
        try:
            invocation = parse([_text(word) for word in (sys.argv[1:] if argv is None else argv)])
            session = Session(
                invocation.settings, invocation.arguments, error_status=invocation.command.error_status
            )
            status = _call(invocation, session)
        except HelpRequested as request:
            session = session or Session()
            session.write(str(request))
            status = 0
        except UsageError as error:
            report(str(error), error.hint, program="")  # it names the command
            status = error.status
        if session is not None:
            session.flush()
    except OutputClosed as closed:
        closed.silence()
        status = EXIT_PIPE
    except KeyboardInterrupt:
        status = EXIT_INTERRUPTED
    finally:
        if session is not None:
            session.close()
    return status


def _text(word: str) -> str:
    """Give a word of the command line as the UTF-8 that it is, whatever the locale made of it."""
    from lamella.cli.parser import UsageError

    try:
        return word if word.isascii() else os.fsencode(word).decode()
    except UnicodeDecodeError:
        raise UsageError(f"lamella: the argument {os.fsencode(word)!r} is not UTF-8") from None


def _call(invocation: Invocation, session: Session) -> int:
    """Run a handler; turn its errors into a line on stderr and an exit status."""
    from lamella.cli.parser import UsageError
    from lamella.cli.session import OutputClosed
    from lamella.errors import LamellaError

    try:
        return invocation.command.run(invocation.arguments, session)
    except (LamellaError, OSError) as error:
        session.fail(error)
        return session.status_of(error)
    except UsageError as error:
        error.status = invocation.command.usage_status
        raise
    except OutputClosed:
        raise
    except Exception as error:
        session.fail(error)
        return session.error_status
