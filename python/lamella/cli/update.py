"""``lamella update``: other limits for containers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lamella.cli.options import add_limits, limits
from lamella.cli.parser import Arguments, Command, Parser, UsageError

if TYPE_CHECKING:
    from lamella.cli.session import Session


def _arguments(parser: Parser) -> None:
    add_limits(parser.add_argument)
    parser.add_argument(
        "--restart",
        metavar="POLICY",
        help="What follows its next end: no, on-failure[:N], always or unless-stopped.",
    )
    parser.add_argument("containers", metavar="CONTAINER", nargs="+", help="Names or ids.")


def _update(arguments: Arguments, session: Session) -> int:
    wanted = limits(arguments)
    if arguments.restart is not None:
        wanted["restart_policy"] = arguments.restart
    if not wanted:
        raise UsageError(
            "lamella update: there is nothing to change", hint="Give a limit, such as --memory 512m."
        )
    containers = session.client.containers
    return session.each(arguments.containers, lambda name: containers.get(name).update(**wanted))


UPDATE = Command(
    "update",
    "Change the limits and restart policy of containers.",
    _update,
    _arguments,
    description="At once for one that runs, and for its further starts. All limits that are given change, or none; what is not "
    "given stays. A limit ends with --memory -1, --pids-limit -1, --cpus 0.",
    examples=[
        ("more memory for one that runs", "lamella update --memory 2g web"),
        ("no further run once it ends", "lamella update --restart no web"),
        ("bounds for several", "lamella update --cpus 0.5 --pids-limit 100 one two"),
    ],
)
