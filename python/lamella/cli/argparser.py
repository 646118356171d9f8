"""argparse, for what :mod:`lamella.cli.parser` leaves to it: errors, help, completion, and all but the usual forms of a line.

Our help text instead of argparse's keeps one form over all Python versions and groups options by what they are for.
Building a parser of forty options takes 0.3 ms with a formatter that doesn't ask for the width of the terminal
and 7.6 ms with argparse's own, which asks at each option. And argparse asks gettext for translations of its few texts, which
looks for catalogues each time, and imports ``locale`` for it: 1.5 ms, for texts that we do not show.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

from lamella.cli.parser import PROGRAM, REST, Arguments, HelpRequested, Parser, UsageError
from lamella.typings import Any, NoReturn

argparse._ = str  # type: ignore[attr-defined]
_HELP_COLUMN = 28
_formatter = argparse.HelpFormatter(PROGRAM, width=100)
"""What argparse asks at each option whether its metavar is well formed: one is enough, for it writes none of our help."""


class _Help(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        raise HelpRequested(parser.format_help())


class FullParser(argparse.ArgumentParser):
    """The ArgumentParser of what a :class:`Parser` declares. It raises instead of exiting and writes help in our form."""

    def __init__(self, declared: Parser) -> None:
        super().__init__(prog=declared.prog, add_help=False, allow_abbrev=False)
        self._declared = declared
        self.add_argument(
            *("-h", "--help"),
            action=_Help,
            nargs=0,
            dest=argparse.SUPPRESS,
            default=argparse.SUPPRESS,
            help="Show this text.",
        )
        groups: dict[Any, Any] = {declared: self}
        for group in declared.groups:
            groups[group] = (
                self.add_mutually_exclusive_group()
                if group.exclusive
                else self.add_argument_group(group.title)
            )
        for argument in declared.arguments:
            action = groups[argument.group].add_argument(*argument.names, **argument.settings)
            if not argument.required:
                action.required = False

    def _get_formatter(self) -> argparse.HelpFormatter:
        return _formatter

    def read(self, words: Sequence[str], *, mixed: bool) -> Arguments:
        """Parse a line; ``mixed``: options may stand between words of a list, too, as :meth:`Parser.read` has it."""
        own_command = any(action.nargs == REST for action in self.positionals())
        read = self.parse_args
        if mixed and not own_command and "--" not in words:  # which argparse forgets between its two looks
            read = self.parse_intermixed_args
        return read(words, Arguments())

    def error(self, message: str) -> NoReturn:
        """Raise UsageError, which names the command and where to read more."""
        raise UsageError(f"{self.prog}: {message}", hint=f"See '{self.prog} --help'.")

    def format_help(self) -> str:
        """Give the help text, wrapped to the terminal."""
        from lamella.cli.output import terminal_width, wrap

        width = terminal_width()
        declared = self._declared
        parts = [f"Usage: {self.prog} {declared.forms or self._forms()}".rstrip()]
        parts += [wrap(text, width) for text in (declared.summary, *declared.text.split("\n\n")) if text]
        for title, rows in (*declared.sections, *self._option_sections()):
            lines = [line for name, text in rows for line in _entry(name, text, width)]
            parts.append("\n".join([f"{title}:", *lines]))
        if declared.examples:
            lines = [
                line for text, command in declared.examples for line in (f"  # {text}", f"  $ {command}")
            ]
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
            if action.option_strings and action.help != argparse.SUPPRESS:
                yield action

    def _option_sections(self) -> Iterator[tuple[str, Sequence[tuple[str, str]]]]:
        arguments = [
            (str(action.metavar or action.dest.upper()), action.help or "") for action in self.positionals()
        ]
        if arguments and not self._declared.sections:
            yield "Arguments", arguments
        for group in self._action_groups:
            rows = [
                (_option_name(action), action.help or "")
                for action in group._group_actions
                if action.option_strings and action.help != argparse.SUPPRESS
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
