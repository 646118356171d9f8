"""How a command line becomes a call, with help texts of our own.

A :class:`Command` is a value that says how one command is named, parsed and run; a :class:`Group` holds the verbs of a
noun (``images ls``). Each lives in the module of its noun, which is imported only when that noun is on the command
line: the table of ``lamella.cli.commands`` knows every name without importing one.

A command declares its arguments as for argparse. A line of nothing but options in full and a program's own words is read here.
Every other, and whatever is wrong or asks for help, argparse looks at (:mod:`lamella.cli.argparser`): its import, and making
eighty options, are 3 ms of a short command, a twentieth.

What commands are is written as plain classes: a NamedTuple takes 0.4 ms to make, all of them a fortieth of a short command.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lamella.cli import EXIT_ERROR, EXIT_OURS, EXIT_USAGE
from lamella.typings import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from lamella.cli.argparser import FullParser
    from lamella.cli.session import Session

PROGRAM = "lamella"
REST = "A..."  # argparse.PARSER
"""``nargs`` of a positional that takes one word and then everything that follows, options too."""
SNAPSHOTTERS = ("overlayfs", "native")
"""As in lamella.snapshots, which help and completion do without."""
SUPPRESS = "==SUPPRESS=="  # argparse.SUPPRESS
"""``help`` of an option that nobody is told of."""


class UsageError(Exception):
    """The command line is wrong; ``status`` is the exit status."""

    status = EXIT_USAGE

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class HelpRequested(Exception):
    """``--help`` was on the command line; carries the text."""


class Arguments:
    """What was read: an attribute for each argument."""

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...
        def __setattr__(self, name: str, value: Any) -> None: ...

    def __repr__(self) -> str:
        return f"Arguments({', '.join(f'{name}={value!r}' for name, value in self.__dict__.items())})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Arguments) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]


class Argument:
    """One argument, as it was declared: ``settings`` are those of argparse's ``add_argument``."""

    def __init__(self, group: ArgumentGroup, names: tuple[str, ...], settings: dict[str, Any]) -> None:
        self.group, self.names, self.settings = group, names, settings
        self.required = True
        """A positional: whether a line without it is wrong."""

    @property
    def dest(self) -> str:
        """The attribute that has its value."""
        names = self.names
        long = next((name for name in names if name.startswith("--")), names[0])
        return str(self.settings.get("dest") or long.lstrip("-").replace("-", "_"))

    @property
    def default(self) -> Any:
        """Its value where it is not given."""
        default = self.settings.get("default", False if self.settings.get("action") == "store_true" else None)
        return (
            self.settings["type"](default)
            if isinstance(default, str) and "type" in self.settings
            else default
        )

    @property
    def is_usual(self) -> bool:
        """Whether :meth:`Parser.read` reads it by itself: an option that is there or not, or that has one value each time."""
        kind = self.settings.get("action", "store")
        return (
            kind in ("store", "store_true", "append")
            and "nargs" not in self.settings
            and not self.group.exclusive
        )

    def value(self, text: str) -> Any:
        """Give the value that a text stands for. ValueError, or what else its type raises, where it stands for none."""
        value = self.settings["type"](text) if "type" in self.settings else text
        if "choices" in self.settings and value not in self.settings["choices"]:
            raise ValueError(text)
        return value


class ArgumentGroup:
    """Arguments that help shows together, or of which one at most is given."""

    def __init__(self, parser: Parser | None = None, title: str = "", *, exclusive: bool = False) -> None:
        self._parser, self.title, self.exclusive = parser, title, exclusive

    def add_argument(self, *names: str, **settings: Any) -> Argument:
        """Declare an argument, as for argparse."""
        argument = Argument(self, names, settings)
        (self._parser or cast("Parser", self)).declare(argument)
        return argument


class Parser(ArgumentGroup):
    """What one command takes."""

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
        super().__init__()
        self.prog = prog
        self.forms = usage
        self.summary = summary
        self.text = description
        self.examples = examples
        self.sections = sections
        self.arguments: list[Argument] = []
        self.groups: list[ArgumentGroup] = []
        self._options: dict[str, Argument] = {}
        self._words: list[Argument] = []

    def add_argument_group(self, title: str) -> ArgumentGroup:
        """Give a group of arguments, which help shows under a title of its own."""
        self.groups.append(ArgumentGroup(self, title))
        return self.groups[-1]

    def add_mutually_exclusive_group(self) -> ArgumentGroup:
        """Give a group of arguments of which a line has one at most."""
        self.groups.append(ArgumentGroup(self, exclusive=True))
        return self.groups[-1]

    def declare(self, argument: Argument) -> None:
        """Take an argument in."""
        self.arguments.append(argument)
        if not argument.names[0].startswith("-"):
            self._words.append(argument)
            return
        for name in argument.names:
            self._options[name] = argument

    def full(self) -> FullParser:
        """Give argparse's parser of the same arguments."""
        from lamella.cli.argparser import FullParser

        return FullParser(self)

    def read(self, words: Sequence[str]) -> Arguments:
        """Parse what follows the command. Options may stand anywhere, unless a command of the user's own is among the words.

        UsageError for a line that is wrong, HelpRequested for one that asks for help.
        """
        return self._read_usual(words) or self.full().read(words, mixed=True)

    def parse_args(self, words: Sequence[str]) -> Arguments:
        """Parse as :meth:`read`, but for options between the words of a list."""
        return self._read_usual(words) or self.full().read(words, mixed=False)

    def _read_usual(self, words: Sequence[str]) -> Arguments | None:  # noqa: PLR0911 (each is a reason to leave it to argparse)
        """Read options in full and a user's own command, as argparse would; None for what is anything else."""
        if [argument.settings.get("nargs") for argument in self._words] != [REST]:
            return None
        given: dict[str, Any] = {}
        place = 0
        while place < len(words) and words[place].startswith("-"):
            name, equals, text = words[place].partition("=")
            argument = self._options.get(name)
            place += 1
            if argument is None or not argument.is_usual:
                return None
            kind, dest = argument.settings.get("action", "store"), argument.dest
            if kind == "store_true":
                if equals:
                    return None
                given[dest] = True
                continue
            if not equals and place < len(words) and not words[place].startswith("-"):
                text = words[place]
                place += 1
            if not text or (equals and not name.startswith("--")):
                return None
            try:
                value = argument.value(text)
            except Exception:  # argparse says what is wrong with it
                return None
            given[dest] = [*(given.get(dest) or argument.default or ()), value] if kind == "append" else value
        if place == len(words):
            return None
        found = {argument.dest: argument.default for argument in self.arguments}
        return Arguments(**found | given | {self._words[0].dest: list(words[place:])})


Handler = Callable[[Arguments, "Session"], int]


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

    def __init__(self, command: Command, arguments: Arguments, settings: Arguments) -> None:
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
    add(
        "--additional-store",
        metavar="DIR",
        action="append",
        dest="additional_stores",
        help="Look there for images that are not here; also several times (LAMELLA_ADDITIONAL_STORES, with ':').",
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


def _words(namespace: Arguments) -> list[str]:
    """Give the words from the command on; a ``--`` before it only ends the options."""
    words: list[Any] = list(namespace.words or ())
    return words[1:] if words[:1] == ["--"] else words


def unknown(word: str, known: Sequence[str] | dict[str, Command], prog: str = PROGRAM) -> UsageError:
    """Make the error for a command that does not exist, with the nearest one as a hint."""
    from difflib import get_close_matches

    near = get_close_matches(word, list(known), n=1)
    hint = f"Did you mean '{prog} {near[0]}'?" if near else f"See '{prog} --help'."
    return UsageError(f"{prog}: {word!r} is not a command", hint=hint)
