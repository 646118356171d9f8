"""``lamella completion``: scripts for bash, zsh and fish, made from the parsers themselves.

A script is static: it holds the names of all commands and options, and starts nothing while the reader types. Each
shell gets the same three tables in its own words: which command word leads to which place, which options take a value
and of what kind, and what may stand at a place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from lamella.cli.argparser import FullParser, takes_value
from lamella.cli.commands import entries
from lamella.cli.parser import PROGRAM, REST, Arguments, Command, Group, Parser, top_parser

if TYPE_CHECKING:
    from lamella.cli.session import Session

SHELLS = ("bash", "zsh", "fish")
_FILES = frozenset({"FILE", "DIR", "SRC:DST[:ro]", "DEVICE[:PATH[:rwm]]"})


class Option(NamedTuple):
    """One option: its names, and the words that may follow it."""

    names: tuple[str, ...]
    help: str
    value: bool
    choices: tuple[str, ...]
    files: bool


class Place(NamedTuple):
    """Where the reader may be: at the top, behind a noun, or behind a command."""

    path: str
    commands: tuple[tuple[str, str], ...]
    """Names of what may follow and a line about each."""
    leads: tuple[tuple[tuple[str, ...], str], ...]
    """Words, aliases too, and the place each leads to."""
    options: tuple[Option, ...]
    words: tuple[str, ...]
    """What a positional argument may be, if that is known."""
    rest: bool
    """Behind the first positional argument everything belongs to another command."""


def places() -> list[Place]:
    """Walk through all parsers."""
    rows = entries()
    found = [
        Place(
            "",
            tuple((entry.name, entry.summary) for entry in rows),
            tuple(((entry.name, *entry.aliases), entry.name) for entry in rows),
            _options(top_parser().full()),
            (),
            rest=False,
        )
    ]
    for entry in rows:
        noun = entry.load()
        if isinstance(noun, Group):
            found.append(
                Place(
                    entry.name,
                    tuple((verb.name, verb.summary) for verb in noun.commands),
                    tuple(
                        ((verb.name, *verb.aliases), f"{entry.name} {verb.name}") for verb in noun.commands
                    ),
                    _options(noun.parser(entry.name).full()),
                    (),
                    rest=False,
                )
            )
            found += [_place(f"{entry.name} {verb.name}", verb) for verb in noun.commands]
        else:
            found.append(_place(entry.name, noun))
    return found


def _place(path: str, command: Command) -> Place:
    parser = command.parser(path).full()
    positionals = list(parser.positionals())
    words = tuple(str(choice) for action in positionals for choice in action.choices or ())
    return Place(
        path, (), (), _options(parser), words, rest=any(action.nargs == REST for action in positionals)
    )


def _options(parser: FullParser) -> tuple[Option, ...]:
    return tuple(
        Option(
            tuple(action.option_strings),
            action.help or "",
            takes_value(action),
            tuple(str(choice) for choice in action.choices or ()),
            action.metavar in _FILES,
        )
        for action in parser.options()
    )


def script(shell: str) -> str:
    """Give the completion script for ``bash``, ``zsh`` or ``fish``."""
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](places())


def _quote(text: str) -> str:
    """Quote for bash and zsh."""
    return "'" + text.replace("'", "'\\''") + "'"


def _leads(found: list[Place]) -> list[tuple[str, str]]:
    """Give the patterns ``place:word`` of a case branch, and where they lead."""
    return [
        ("|".join(_quote(f"{place.path}:{word}") for word in words), target)
        for place in found
        for words, target in place.leads
    ]


def _values(found: list[Place]) -> list[tuple[str, str]]:
    """Give the patterns ``place:option`` of a case branch for options with a value, and what the value may be."""
    rows = []
    for place in found:
        for option in place.options:
            if option.value:
                pattern = "|".join(_quote(f"{place.path}:{name}") for name in option.names)
                rows.append((pattern, "@files" if option.files else " ".join(option.choices)))
    return rows


_WALK = """\
    # Find the place that the words so far lead to.
    while [ "$i" -lt "$end" ]; do
        word=${words[i]}
        i=$((i + 1))
        case $place:$word in
@LEADS@
            *:--) ;;
            *:-*)
                if _lamella_value "$place" "$word"; then
                    [ "${words[i]}" = '=' ] && i=$((i + 1))
                    if [ "$i" -ge "$end" ]; then asked=1; else i=$((i + 1)); fi
                fi
                ;;
            *) _lamella_rest "$place" && rest=1 && break ;;
        esac
    done
"""


def _tables(found: list[Place]) -> str:
    values = "\n".join(f"        {pattern}) choices={_quote(kind)} ;;" for pattern, kind in _values(found))
    rest = "|".join(_quote(place.path) for place in found if place.rest)
    return f"""\
# Does the option at this place take a value? Sets choices.
_lamella_value() {{
    case $1:$2 in
{values}
        *) return 1 ;;
    esac
}}

# Does everything behind the first argument belong to another command?
_lamella_rest() {{
    case $1 in
        {rest}) return 0 ;;
    esac
    return 1
}}
"""


def _walk(found: list[Place]) -> str:
    leads = "\n".join(
        f"            {pattern}) place={_quote(target)} ;;" for pattern, target in _leads(found)
    )
    return _WALK.replace("@LEADS@", leads)


def _names(options: tuple[Option, ...]) -> list[str]:
    return [name for option in options for name in option.names]


def _bash(found: list[Place]) -> str:
    offers = "\n".join(
        f"        {_quote(place.path)}) words={_quote(' '.join([*(name for name, _ in place.commands), *place.words]))}"
        f" options={_quote(' '.join(_names(place.options)))} ;;"
        for place in found
    )
    return f"""\
# bash completion for {PROGRAM}. Load it with: source <({PROGRAM} completion bash)

{_tables(found)}
# What may stand at a place? Sets words and options.
_lamella_offer() {{
    case $1 in
{offers}
    esac
}}

_lamella() {{
    local place='' word choices='' options='' asked='' rest='' i=1 end=$COMP_CWORD
    local current=${{COMP_WORDS[COMP_CWORD]}}
    local words=("${{COMP_WORDS[@]}}")
{_walk(found)}
    COMPREPLY=()
    [ "$current" = '=' ] && current=''
    if [ -n "$rest" ] || {{ [ -n "$asked" ] && [ "$choices" = '@files' ]; }}; then
        compopt -o default
        return
    fi
    if [ -n "$asked" ]; then
        COMPREPLY=($(compgen -W "$choices" -- "$current"))
        return
    fi
    local words=''
    _lamella_offer "$place"
    case $current in
        -*) COMPREPLY=($(compgen -W "$options" -- "$current")) ;;
        *) COMPREPLY=($(compgen -W "$words" -- "$current")) ;;
    esac
}}

complete -F _lamella {PROGRAM}
"""


def _zsh(found: list[Place]) -> str:
    def described(rows: list[tuple[str, str]]) -> str:
        return " ".join(_quote(f"{name.replace(':', chr(92) + ':')}:{text}") for name, text in rows)

    offers = "\n".join(
        f"        {_quote(place.path)})\n"
        f"            commands=({described([*place.commands, *((word, '') for word in place.words)])})\n"
        f"            options=({described([(name, option.help) for option in place.options for name in option.names])})\n"
        "            ;;"
        for place in found
    )
    return f"""\
#compdef {PROGRAM}
# zsh completion for {PROGRAM}. Load it with: source <({PROGRAM} completion zsh)
# or put it into a folder of $fpath under the name _{PROGRAM}.

{_tables(found)}
_lamella() {{
    local place='' word choices='' asked='' rest='' i=2 end=$CURRENT
    local -a commands options
{_walk(found)}
    if [ -n "$rest" ] || {{ [ -n "$asked" ] && [ "$choices" = '@files' ]; }}; then
        _files
        return
    fi
    if [ -n "$asked" ]; then
        compadd -- ${{=choices}}
        return
    fi
    case $place in
{offers}
    esac
    if [[ $PREFIX == -* ]]; then
        _describe -o option options
    else
        _describe command commands
    fi
}}

if [ "$funcstack[1]" = _lamella ]; then
    _lamella "$@"
else
    compdef _lamella {PROGRAM}
fi
"""


def _fish(found: list[Place]) -> str:
    def quote(text: str) -> str:
        return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

    leads = []
    for place in found:
        for words, target in place.leads:
            patterns = " ".join(quote(f"{place.path}:{word}") for word in words)
            leads.append(f"            case {patterns}\n                set place {quote(target)}")
    values = " ".join(
        quote(f"{place.path}:{name}")
        for place in found
        for option in place.options
        if option.value
        for name in option.names
    )
    rest = " ".join(quote(f"{place.path}") for place in found if place.rest)
    lines = []
    for place in found:
        at = f"complete -c {PROGRAM} -n {quote(f'__lamella_at {quote(place.path)}')}"
        lines += [f"{at} -f -a {quote(name)} -d {quote(text)}" for name, text in place.commands]
        lines += [f"{at} -f -a {quote(word)}" for word in place.words]
        for option in place.options:
            names = " ".join(
                f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names
            )
            value = ""
            if option.value:
                choices = quote(" ".join(option.choices))
                value = " -r -F" if option.files else f" -x -a {choices}" if option.choices else " -x"
            lines.append(f"{at} {names}{value} -d {quote(option.help)}")
    newline = "\n"
    return f"""\
# fish completion for {PROGRAM}. Load it with: {PROGRAM} completion fish | source

# Find the place that the words so far lead to; nothing where a word belongs to another command.
function __lamella_place
    set -l words (commandline -opc)
    set -e words[1]
    set -l place ''
    set -l skip 0
    for word in $words
        if test $skip -eq 1
            set skip 0
            continue
        end
        switch "$place:$word"
{newline.join(leads)}
            case {values}
                set skip 1
            case '*:-*'
                continue
            case '*'
                contains -- "$place" {rest}; and return 1
        end
    end
    echo -- "$place"
end

function __lamella_at
    set -l place (__lamella_place); or return 1
    test "$place" = "$argv[1]"
end

complete -c {PROGRAM} -f -n 'not __lamella_place >/dev/null; and false'
{newline.join(lines)}
"""


def _arguments(parser: Parser) -> None:
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help="bash, zsh or fish.")


def _completion(arguments: Arguments, session: Session) -> int:
    session.write(script(arguments.shell))
    return 0


COMPLETION = Command(
    "completion",
    "Print a completion script for a shell.",
    _completion,
    _arguments,
    json=False,
    examples=[
        ("bash, in ~/.bashrc", "source <(lamella completion bash)"),
        ("zsh, in ~/.zshrc behind compinit", "source <(lamella completion zsh)"),
        ("fish, once", "lamella completion fish > ~/.config/fish/completions/lamella.fish"),
    ],
)
