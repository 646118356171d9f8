"""``lamella top``: the processes of a container."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lamella.cli import output
from lamella.cli.parser import Arguments, Command, Parser

if TYPE_CHECKING:
    from lamella.cli.session import Session


def _arguments(parser: Parser) -> None:
    parser.add_argument("container", metavar="CONTAINER", help="Name or id.")


def _top(arguments: Arguments, session: Session) -> int:
    processes = session.client.containers.get(arguments.container).top()
    if session.json:
        session.document(processes)
    else:
        session.table(
            (">PID", ">HOST PID", "USER", "STATE", ">CPU", ">MEMORY", "COMMAND"),
            (
                (
                    str(process.pid),
                    str(process.host_pid),
                    process.user,
                    process.state,
                    f"{process.cpu:.2f}s",
                    output.size(process.memory),
                    " ".join(process.command),
                )
                for process in processes
            ),
        )
    return 0


TOP = Command(
    "top",
    "Show the processes of a running container.",
    _top,
    _arguments,
    description="PID is the number in the container, HOST PID ours; CPU is processor time since the process's start. Nothing has "
    "to be in the image for it.",
    examples=[("what it runs", "lamella top web")],
)
