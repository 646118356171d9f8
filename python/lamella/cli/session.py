"""What every command needs: the global options, the client, and where output goes.

Results go to stdout, everything else (errors, remarks, progress) to stderr. Text that comes from outside, such as a
label or a message of a registry, is shown with its control characters made visible, so that it cannot drive the
reader's terminal. The bytes of a container pass untouched, and those of a blob where stdout is no terminal.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property

from lamella import logs
from lamella.cli import EXIT_ERROR
from lamella.cli.output import clean, one_line, table, visible_json, visible_lines
from lamella.cli.parser import Arguments
from lamella.errors import LamellaError
from lamella.typings import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from lamella.client import Client


_REPORT_DEFECT = "Run it again with 'lamella -v' in front, and report what that shows."


_LAST_MAX = 4096


class LastOutput:
    """The last bytes that a program wrote, by which one sees how it failed."""

    def __init__(self) -> None:
        self._bytes = b""

    def add(self, data: bytes) -> None:
        """Take what it wrote next."""
        self._bytes = (self._bytes + data[-_LAST_MAX:])[-_LAST_MAX:]

    def explain(self, session: Session) -> None:
        """Note what may be the reason where the program was refused something."""
        from lamella.ids import explain_failure

        if reason := explain_failure(self._bytes):
            session.note(f"hint: {reason}")


class OutputClosed(Exception):
    """The reader of stdout or stderr went away, as ``head`` does."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self.stream = stream

    def silence(self) -> None:
        """Send what is still buffered nowhere, so that the interpreter doesn't complain at its end."""
        try:
            number = self.stream.fileno()
        except (OSError, ValueError):
            return
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, number)
        os.close(sink)


class Session:
    """One run of the command."""

    def __init__(
        self,
        settings: Arguments | None = None,
        arguments: Arguments | None = None,
        *,
        error_status: int = EXIT_ERROR,
    ) -> None:
        self.error_status = error_status
        self.settings = settings or Arguments()
        self._arguments = arguments or Arguments()
        self.json = bool(getattr(settings, "json", False))
        self.quiet = bool(getattr(settings, "quiet", False))
        self.verbose = int(getattr(settings, "verbose", 0))
        self._stop_logging: Callable[[], None] | None = None
        logs.show_warning = None if self.verbose else self._warn
        if self.verbose:
            from lamella.cli.verbose import start_logging

            self._stop_logging = start_logging(every_step=self.verbose > 1)

    def log_steps(self, name: str) -> None:
        """Show every step of one logger, whatever ``-v`` shows of the others. Once."""
        from lamella.cli.verbose import start_logging

        before, stop = self._stop_logging, start_logging(name, every_step=True, handled=bool(self.verbose))

        def stop_both() -> None:
            stop()
            if before is not None:
                before()

        self._stop_logging = stop_both

    @property
    def location(self) -> dict[str, Any]:
        """Give the global options that say which store and namespace is meant (arguments of Client and Config.load)."""
        names = ("root", "state", "namespace", "snapshotter", "additional_stores")
        return {name: getattr(self.settings, name, None) for name in names}

    @cached_property
    def client(self) -> Client:
        """The client, opened when it is first used."""
        from lamella.cli.registry_options import registry_config
        from lamella.client import Client

        policy = None
        if path := getattr(self._arguments, "policy", None):
            from lamella.policy import load

            policy = load(path)
        return Client(**self.location, registry=registry_config(self._arguments), policy=policy)

    def close(self) -> None:
        """Close the client if it was opened."""
        client = self.__dict__.pop("client", None)
        if client is not None:
            client.close()
        logs.show_warning = None
        if self._stop_logging is not None:
            self._stop_logging()

    @property
    def stdout_is_terminal(self) -> bool:
        """Say whether a person would see what is written to stdout."""
        return sys.stdout.isatty()

    def each(self, names: Sequence[str], action: Callable[[str], object]) -> int:
        """Do something to each name and print those that it worked for; an error doesn't keep from the others.

        Returns the exit status: that of the error where only one thing was asked for.
        """
        done = []
        status = 0
        for name in names:
            try:
                action(name)
            except LamellaError as error:
                self.fail(error)
                status = self.status_of(error) if len(names) == 1 else self.error_status
                continue
            done.append(name)
            if not self.json:
                self.line(name)
        if self.json:
            self.document(done)
        return status

    def status_of(self, error: Exception) -> int:
        """Give the exit status of an error: a program's own where it says so."""
        return int(getattr(error, "exit_code", self.error_status))

    def write(self, text: str) -> None:
        """Write text to stdout."""
        stream = sys.stdout
        try:
            stream.write(text)
        except UnicodeEncodeError:
            encoding = stream.encoding or "ascii"
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except BrokenPipeError:
            raise OutputClosed(stream) from None

    def line(self, text: str) -> None:
        """Write one line to stdout, control characters made visible."""
        self.write(clean(text) + "\n")

    def table(self, headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Write a table to stdout; a heading that starts with ``>`` is for a column that is set to the right."""
        self.write(table(headers, rows))

    def document(self, value: object) -> None:
        """Write a value as indented JSON to stdout."""
        import msgspec

        from lamella.structs import encode

        self.write(visible_json(msgspec.json.format(encode(value), indent=2)) + "\n")

    def record(self, value: object) -> None:
        """Write a value as JSON on one line to stdout."""
        from lamella.structs import encode

        self.write(visible_json(encode(value)) + "\n")

    def note(self, text: str) -> None:
        """Write a remark to stderr unless the reader wants quiet."""
        if not self.quiet:
            _to_stderr(one_line(text) + "\n")

    def _warn(self, text: str) -> None:
        self.note(f"lamella: warning: {text}")

    def blob(self, data: bytes) -> None:
        """Write bytes that a registry chose to stdout: as they are, but for a terminal with control characters visible."""
        if self.stdout_is_terminal:
            self.write(visible_lines(data))
        else:
            self.bytes(data)

    def bytes(self, data: bytes | memoryview, *, error: bool = False) -> None:
        """Write bytes to stdout or stderr as they are, at once."""
        stream = sys.stderr if error else sys.stdout
        try:
            stream.flush()
            _write_all(stream, data)
        except BrokenPipeError:
            raise OutputClosed(stream) from None

    def flush(self) -> None:
        """Write out what is buffered."""
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            raise OutputClosed(sys.stdout) from None

    def fail(self, error: Exception) -> None:
        """Write the error that is being handled to stderr, behind what went to stdout before it.

        What is neither ours nor the system's is a defect, and says so.
        """
        self.flush()
        self._traceback()
        if isinstance(error, LamellaError):
            report(error.message, error.hint)
        elif not isinstance(error, OSError):
            report(f"a defect: {type(error).__name__}: {error}", None if self.verbose else _REPORT_DEFECT)
        else:
            subject = f"{error.filename}: " if error.filename is not None else ""
            report(f"{subject}{error.strerror or error}")

    def _traceback(self) -> None:
        """Show where the error that is being handled came from, if the reader asked for it with -v."""
        if self.verbose:
            import traceback

            _to_stderr(visible_lines(traceback.format_exc().encode("utf-8", "backslashreplace")))


def _write_all(stream: TextIO, data: bytes | memoryview) -> None:
    """Write all bytes, also where the terminal or pipe was left non-blocking by another program."""
    rest = memoryview(data)
    while rest:
        try:
            stream.buffer.write(rest)
            stream.buffer.flush()
        except BlockingIOError as error:
            import select

            rest = rest[error.characters_written :]
            select.select([], [stream], [])
            continue
        return


def report(message: str, hint: str | None = None, *, program: str = "lamella: ") -> None:
    """Write an error to stderr: one line, and one for what the reader can do."""
    _to_stderr(f"{program}{one_line(message)}\n" + (f"hint: {one_line(hint)}\n" if hint else ""))


def _to_stderr(text: str) -> None:
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (OSError, UnicodeEncodeError):
        return  # nobody reads it, and there is no other place to say so
