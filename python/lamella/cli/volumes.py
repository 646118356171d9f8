"""``lamella volumes``: folders that outlive the containers which mount them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lamella.cli import output
from lamella.cli.parser import SUPPRESS, Arguments, Command, Group, Parser, add_filter
from lamella.cli.values import argument, parse_labels, parse_pair

if TYPE_CHECKING:
    from lamella.cli.session import Session

_FIELDS = "name, label, driver and dangling (no container has it) as dangling=true; or name, labels, anonymous, dangling"


def _ls_arguments(parser: Parser) -> None:
    add_filter(parser, _FIELDS)
    parser.add_argument("-q", "--quiet", dest="names_only", action="store_true", help="Print names alone.")
    parser.add_argument("-s", "--size", action="store_true", help="Measure what they take on disk.")


def _ls(arguments: Arguments, session: Session) -> int:
    from lamella.containers.volumes import inspect

    volumes = session.client.volumes
    found = volumes.list(filters=arguments.filters)
    if arguments.names_only:
        names = [volume.name for volume in found]
        if session.json:
            session.document(names)
        else:
            session.write("".join(f"{name}\n" for name in names))
    elif session.json:
        session.document(
            [
                inspect(volume, volumes.users(volume.name))
                | ({"size": volume.size} if arguments.size else {})
                for volume in found
            ]
        )
    else:
        sizes = ("SIZE",) if arguments.size else ()
        session.table(
            ("NAME", "CONTAINERS", "CREATED", *sizes, "LABELS"),
            (
                (
                    volume.name[:12] if volume.anonymous else volume.name,
                    " ".join(volumes.users(volume.name)),
                    output.age(volume.created_at) if volume.created_at else "",
                    *((output.size(volume.size),) if arguments.size else ()),
                    output.pairs(volume.labels),
                )
                for volume in found
            ),
        )
    return 0


def _create_arguments(parser: Parser) -> None:
    parser.add_argument(
        "--label", metavar="KEY=VALUE", type=argument(parse_pair), action="append", help="Attach a label."
    )
    parser.add_argument("-d", "--driver", metavar="DRIVER", help="local is the only one.")
    parser.add_argument("-o", "--opt", metavar="KEY=VALUE", action="append", help=SUPPRESS)
    parser.add_argument("name", metavar="NAME", nargs="?", help="Its name; without one it is anonymous.")


def _create(arguments: Arguments, session: Session) -> int:
    from lamella.containers.volumes import inspect

    volume = session.client.volumes.create(
        arguments.name,
        labels=parse_labels(arguments.label),
        driver=arguments.driver,
        driver_opts=dict(text.partition("=")[::2] for text in arguments.opt or ()),
    )
    if session.json:
        session.document(inspect(volume, session.client.volumes.users(volume.name)))
    else:
        session.line(volume.name)
    return 0


def _rm_arguments(parser: Parser) -> None:
    parser.add_argument("-f", "--force", action="store_true", help="Do not mind one that is not there.")
    parser.add_argument("names", metavar="NAME", nargs="+", help="The volumes.")


def _rm(arguments: Arguments, session: Session) -> int:
    return session.each(
        arguments.names, lambda name: session.client.volumes.remove(name, missing_ok=arguments.force)
    )


def _inspect_arguments(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", help="The volume.")


def _inspect(arguments: Arguments, session: Session) -> int:
    session.document(session.client.volumes.inspect(arguments.name))
    return 0


def _prune_arguments(parser: Parser) -> None:
    parser.add_argument("-a", "--all", action="store_true", help="Also those that have a name.")
    add_filter(parser, _FIELDS)


def _prune(arguments: Arguments, session: Session) -> int:
    report = session.client.volumes.prune(all=arguments.all, filters=arguments.filters)
    if session.json:
        session.document(report)
    else:
        session.write("".join(f"{name}\n" for name in report.volumes))
        session.line(f"freed {output.size(report.bytes_freed)}")
    return 0


VOLUMES = Group(
    "volumes",
    "List, make and remove volumes.",
    (
        Command(
            "ls",
            "List volumes.",
            _ls,
            _ls_arguments,
            aliases=("list",),
            examples=[
                ("all of them", "lamella volumes ls"),
                ("those that nobody has", "lamella volumes ls --filter dangling=true"),
            ],
        ),
        Command(
            "create",
            "Make an empty volume and print its name.",
            _create,
            _create_arguments,
            description="Not needed before use: 'run -v NAME:/DIR' makes the volume, with what the image has there. One that is "
            "there already is left as it is.",
            examples=[
                ("one with a label", "lamella volumes create --label owner=ci cache"),
                ("mount it", "lamella run --rm -v cache:/var/cache debian:12 ls /var/cache"),
            ],
        ),
        Command(
            "rm",
            "Remove volumes with all that is in them.",
            _rm,
            _rm_arguments,
            description="A volume that a container has, running or not, is not removed.",
            aliases=("remove", "delete"),
            examples=[("remove one", "lamella volumes rm cache")],
        ),
        Command(
            "inspect",
            "Show everything about a volume as JSON.",
            _inspect,
            _inspect_arguments,
            description="Fields: name, path (where its files are on this machine), labels, created_at, anonymous, containers "
            "and size in bytes.",
            examples=[("where its files are", "lamella volumes inspect cache | jq -r .path")],
        ),
        Command(
            "prune",
            "Remove the anonymous volumes that no container has.",
            _prune,
            _prune_arguments,
            examples=[
                ("what containers left", "lamella volumes prune"),
                ("everything of one owner", "lamella volumes prune --all --filter label=owner=ci"),
            ],
        ),
    ),
)
