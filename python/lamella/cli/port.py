"""``lamella port``: where the ports of a container are published."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lamella.cli.parser import Arguments, Command, Parser

if TYPE_CHECKING:
    from lamella.cli.session import Session


def _arguments(parser: Parser) -> None:
    parser.add_argument("container", metavar="CONTAINER", help="Name or id.")
    parser.add_argument("port", metavar="PORT[/PROTO]", nargs="?", help="This port of the container alone.")


def _port(arguments: Arguments, session: Session) -> int:
    from lamella.containers.networks.ports import published_at

    container = session.client.containers.get(arguments.container)
    ports = container.ports
    if arguments.port is not None:
        ports = published_at(ports, arguments.port, container.name)
    if session.json:
        session.document(ports)
        return 0
    for name, bindings in ports.items():
        for binding in bindings:
            address = binding["HostIp"]
            place = f"[{address}]" if ":" in address else address
            front = "" if arguments.port is not None else f"{name} -> "
            session.line(f"{front}{place}:{binding['HostPort']}")
    return 0


PORT = Command(
    "port",
    "Show where the ports of a container are published.",
    _port,
    _arguments,
    description="What `ps` shows in short; nothing is published while it does not run.",
    examples=[
        ("all of them", "lamella port web"),
        ("that of one", "curl http://$(lamella port web 80)/"),
    ],
)
