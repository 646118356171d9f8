"""How a command line becomes a call: argparse, built for the chosen command alone, with help texts of our own.

A :class:`Command` is a value that says how one command is named, parsed and run; a :class:`Group` holds the verbs of a
noun (``images ls``). Each lives in the module of its noun, which is imported only when that noun is on the command
line: the table of ``lamella.cli.commands`` knows every name without importing one.

Our help text instead of argparse's keeps one form over all Python versions and groups options by what they are for.
Building a parser of forty options takes 0.3 ms with a formatter that doesn't ask for the width of the terminal
and 7.6 ms with argparse's own, which asks at each option. And argparse asks gettext for translations of its few texts, which
looks for catalogues each time, and imports ``locale`` for it: 1.5 ms of every command, for texts that we do not show.

What commands are is written as plain classes: a NamedTuple takes 0.4 ms to make, all of them a fortieth of a short command.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence

from lamella.cli import EXIT_ERROR, EXIT_OURS, EXIT_USAGE
from lamella.typings import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from lamella.cli.session import Session

argparse._ = str  # type: ignore[attr-defined]
PROGRAM = "lamella"
REST = argparse.PARSER
"""``nargs`` of a positional that takes one word and then everything that follows, options too."""
SNAPSHOTTERS = ("overlayfs", "native")
"""As in lamella.snapshots, which help and completion do without."""
_HELP_COLUMN = 28


class UsageError(Exception):
    """The command line is wrong; ``status`` is the exit status."""

    status = EXIT_USAGE

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class HelpRequested(Exception):
    """``--help`` was on the command line; carries the text."""


_formatter = argparse.HelpFormatter(PROGRAM, width=100)
"""What argparse asks at each option whether its metavar is well formed: one is enough, for it writes none of our help."""


class _Help(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        raise HelpRequested(parser.format_help())


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises instead of exiting and writes help in our form."""

    def __init__(
        self,
        prog: str,
        *,
        usage: str = "",
        summary: str = "",
        description: str = "",
        examples: Sequence[tuple[str, str]] = (),
        sections: Sequence[tuple[str, Sequence[tuple[str, str]]]] = (),
    ) -> None:
        super().__init__(prog=prog, add_help=False, allow_abbrev=False)
        self.forms = usage
        self.summary = summary
        self.text = description
        self.examples = examples
        self.sections = sections
        self.add_argument("-h", "--help", action=_Help, nargs=0, help="Show this text.")

    def _get_formatter(self) -> argparse.HelpFormatter:
        return _formatter

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """Parse what follows the command. Options may stand anywhere, unless a command of the user's own is among the words."""
        own_command = any(action.nargs == REST for action in self.positionals())
        if own_command or "--" in words:  # which argparse forgets between its two looks
            return self.parse_args(words)
        return self.parse_intermixed_args(words)

    def error(self, message: str) -> NoReturn:
        """Raise UsageError, which names the command and where to read more."""
        raise UsageError(f"{self.prog}: {message}", hint=f"See '{self.prog} --help'.")

    def format_help(self) -> str:
        """Give the help text, wrapped to the terminal."""
        from lamella.cli.output import terminal_width, wrap

        width = terminal_width()
        parts = [f"Usage: {self.prog} {self.forms or self._forms()}".rstrip()]
        parts += [wrap(text, width) for text in (self.summary, *self.text.split("\n\n")) if text]
        for title, rows in (*self.sections, *self._option_sections()):
            lines = [line for name, text in rows for line in _entry(name, text, width)]
            parts.append("\n".join([f"{title}:", *lines]))
        if self.examples:
            lines = [line for text, command in self.examples for line in (f"  # {text}", f"  $ {command}")]
            parts.append("\n".join(["Examples:", *lines]))
        return "\n\n".join(parts) + "\n"

    def _forms(self) -> str:
        words = ["[OPTIONS]"]
        for action in self.positionals():
            name = str(action.metavar or action.dest.upper())
            words.append(
                {"?": f"[{name}]", "+": f"{name}...", "*": f"[{name}...]"}.get(str(action.nargs), name)
            )
        return " ".join(words)

    def positionals(self) -> Iterator[argparse.Action]:
        """Give the arguments that are no options."""
        return (action for action in self._actions if not action.option_strings)

    def options(self) -> Iterator[argparse.Action]:
        """Give the options that a reader may see."""
        for action in self._actions:
            if action.option_strings and action.help is not argparse.SUPPRESS:
                yield action

    def _option_sections(self) -> Iterator[tuple[str, Sequence[tuple[str, str]]]]:
        arguments = [
            (str(action.metavar or action.dest.upper()), action.help or "") for action in self.positionals()
        ]
        if arguments and not self.sections:
            yield "Arguments", arguments
        for group in self._action_groups:
            rows = [
                (_option_name(action), action.help or "")
                for action in group._group_actions
                if action.option_strings and action.help is not argparse.SUPPRESS
            ]
            if rows:
                yield ("Options" if group is self._optionals else str(group.title)), rows


def _option_name(action: argparse.Action) -> str:
    short = [name for name in action.option_strings if not name.startswith("--")]
    long = [name for name in action.option_strings if name.startswith("--")]
    name = ", ".join(short + long) if short else f"    {', '.join(long)}"
    if takes_value(action):
        choices = "|".join(map(str, action.choices)) if action.choices else ""
        name += f" {action.metavar or choices or action.dest.upper()}"
    return name


def takes_value(action: argparse.Action) -> bool:
    """Say whether an option is followed by a value."""
    return action.nargs != 0


def _entry(name: str, text: str, width: int) -> list[str]:
    from lamella.cli.output import wrap

    lines = wrap(text, max(30, width - _HELP_COLUMN)).splitlines() or [""]
    head = f"  {name}"
    if len(head) > _HELP_COLUMN - 2:
        return [head, *(" " * _HELP_COLUMN + line for line in lines if line)]
    first, *more = lines
    return [f"{head:<{_HELP_COLUMN}}{first}".rstrip(), *(" " * _HELP_COLUMN + line for line in more)]


Handler = Callable[[argparse.Namespace, "Session"], int]


def _no_arguments(parser: Parser) -> None:
    """Leave the parser as it is."""


class Command:
    """One command: ``run`` gets the parsed arguments and the session and returns the exit status.

    ``runs_program``: that is, or will be, the status of a program in a container, from which errors of ours are told apart.
    """

    def __init__(
        self,
        name: str,
        summary: str,
        run: Handler,
        arguments: Callable[[Parser], None] = _no_arguments,
        *,
        usage: str = "",
        description: str = "",
        examples: Sequence[tuple[str, str]] = (),
        aliases: tuple[str, ...] = (),
        json: bool = True,
        runs_program: bool = False,
    ) -> None:
        self.name, self.summary, self.run, self.arguments = name, summary, run, arguments
        self.usage, self.description, self.examples = usage, description, examples
        self.aliases, self.json, self.runs_program = aliases, json, runs_program

    @property
    def error_status(self) -> int:
        """The exit status of an error."""
        return EXIT_OURS if self.runs_program else EXIT_ERROR

    @property
    def usage_status(self) -> int:
        """The exit status of a wrong command line."""
        return EXIT_OURS if self.runs_program else EXIT_USAGE

    def parser(self, prog: str) -> Parser:
        """Build the parser of this command."""
        parser = Parser(
            prog, usage=self.usage, summary=self.summary, description=self.description, examples=self.examples
        )
        self.arguments(parser)
        if self.json:
            _add_json(parser)
        return parser


class Group:
    """The verbs of one noun."""

    def __init__(self, name: str, summary: str, commands: tuple[Command, ...], description: str = "") -> None:
        self.name, self.summary, self.commands, self.description = name, summary, commands, description

    def parser(self, prog: str) -> Parser:
        """Build the parser that picks the verb."""
        parser = Parser(
            prog,
            usage="COMMAND [ARGUMENTS...]",
            summary=self.summary,
            description=self.description,
            sections=[("Commands", [(command.name, command.summary) for command in self.commands])],
        )
        parser.add_argument("words", nargs=REST).required = False
        _add_json(parser)
        return parser

    def names(self) -> dict[str, Command]:
        """Give every verb by its names."""
        return {name: command for command in self.commands for name in (command.name, *command.aliases)}


def _add_json(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="Print JSON.")


def add_filter(parser: Parser, fields: str) -> None:
    """Add ``--filter``; ``fields`` says what may be asked for."""
    parser.add_argument(
        "--filter",
        metavar="FILTER",
        dest="filters",
        action="append",
        default=[],
        help=f"Only what matches, in containerd's language, by {fields}; of several one is enough.",
    )


class Invocation:
    """A parsed command line: what to call with which arguments, and the global options."""

    def __init__(self, command: Command, arguments: argparse.Namespace, settings: argparse.Namespace) -> None:
        self.command, self.arguments, self.settings = command, arguments, settings


def top_parser() -> Parser:
    """Build the parser of what comes before the command."""
    from lamella.cli.commands import SECTIONS

    parser = Parser(
        PROGRAM,
        usage="[OPTIONS] COMMAND [ARGUMENTS...]",
        summary="Pull OCI images, keep their content, snapshot them and run containers on them, without a daemon.",
        sections=[(title, [(entry.name, entry.summary) for entry in entries]) for title, entries in SECTIONS],
        examples=[
            ("fetch an image and run a program in it", "lamella run --rm nginx:latest nginx -v"),
            ("say what this machine lacks, and the remedy", "lamella doctor"),
            ("read about one command", "lamella run --help"),
        ],
    )
    add = parser.add_argument
    add("--root", metavar="DIR", help="Keep images, content and snapshots here (LAMELLA_ROOT).")
    add("--state", metavar="DIR", help="Keep the state of running containers here (LAMELLA_STATE).")
    add(
        "-n",
        "--namespace",
        metavar="NAME",
        help="Work in this namespace (LAMELLA_NAMESPACE; default: default).",
    )
    add(
        "--snapshotter",
        metavar="NAME",
        choices=SNAPSHOTTERS,
        help="Use this snapshotter: overlayfs, or native, which copies (LAMELLA_SNAPSHOTTER; default: overlayfs).",
    )
    add("--json", action="store_true", help="Print JSON.")
    volume = parser.add_mutually_exclusive_group()
    volume.add_argument("-q", "--quiet", action="store_true", help="No progress and no remarks on stderr.")
    volume.add_argument(
        "-v",
        "--verbose",
        action="count",
        default=0,
        help="Log what is done, and show tracebacks of errors; -vv: every step.",
    )
    add("--version", action="store_true", help="Show the version and exit.")
    add("words", nargs=REST).required = False
    return parser


def parse(argv: Sequence[str]) -> Invocation:
    """Parse a command line without running anything.

    Only the module of the chosen command is imported. Errors: UsageError; HelpRequested when help was asked for.
    """
    from lamella.cli.commands import find

    top = top_parser()
    settings = top.parse_args(list(argv))
    words = _words(settings)
    if settings.version and not words:
        words = ["version"]
    if not words:
        raise UsageError("lamella: a command is missing", hint=f"See '{PROGRAM} --help'.")
    noun = find(words[0])
    prog = f"{PROGRAM} {noun.name}"
    rest = words[1:]
    if isinstance(noun, Group):
        chosen = noun.parser(prog).parse_args(rest)
        settings.json |= chosen.json
        words = _words(chosen)
        verbs = noun.names()
        if not words:
            raise UsageError(f"{prog}: a command is missing", hint=f"See '{prog} --help'.")
        if words[0] not in verbs:
            raise unknown(words[0], verbs, prog)
        noun, rest = verbs[words[0]], words[1:]
        prog += f" {noun.name}"
    try:
        arguments = noun.parser(prog).read(rest)
    except UsageError as error:
        error.status = noun.usage_status
        if noun.runs_program and "unrecognized arguments" in str(error):
            from lamella.containers.docker_words import explain_option

            reasons = [reason for word in str(error).split() if (reason := explain_option(word))]
            error.hint = "; ".join(reasons) or error.hint
        raise
    settings.json |= getattr(arguments, "json", False)
    settings.quiet |= getattr(arguments, "quiet", False)
    if settings.json and not noun.json:
        wrong = UsageError(f"{prog}: --json has no meaning here", hint=f"See '{prog} --help'.")
        wrong.status = noun.usage_status
        raise wrong
    return Invocation(noun, arguments, settings)


def _words(namespace: argparse.Namespace) -> list[str]:
    """Give the words from the command on; a ``--`` before it only ends the options."""
    words: list[Any] = list(namespace.words or ())
    return words[1:] if words[:1] == ["--"] else words


def unknown(word: str, known: Sequence[str] | dict[str, Command], prog: str = PROGRAM) -> UsageError:
    """Make the error for a command that does not exist, with the nearest one as a hint."""
    from difflib import get_close_matches

    near = get_close_matches(word, list(known), n=1)
    hint = f"Did you mean '{prog} {near[0]}'?" if near else f"See '{prog} --help'."
    return UsageError(f"{prog}: {word!r} is not a command", hint=hint)
