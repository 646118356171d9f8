"""``lamella networks``: the networks that containers can be plugged into."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lamella.cli.parser import Arguments, Command, Group, Parser

if TYPE_CHECKING:
    from lamella.cli.session import Session


def _ls(arguments: Arguments, session: Session) -> int:
    networks = session.client.networks.list()
    if session.json:
        session.document([network.inspect() for network in networks])
    else:
        session.table(
            ("NAME", "PLUGINS", "SUBNETS", "CONTAINERS", "FILE"),
            (
                (
                    network.name,
                    ",".join(network.plugins),
                    ",".join(network.subnets) or "-",
                    str(len(network.attachments)),
                    str(network.path),
                )
                for network in networks
            ),
        )
    return 0


def _inspect_arguments(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", help="The network.")


def _inspect(arguments: Arguments, session: Session) -> int:
    session.document(session.client.networks.get(arguments.name).inspect())
    return 0


def _create_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add(
        "--subnet",
        metavar="CIDR",
        action="append",
        default=[],
        help="Give addresses of this subnet; twice for IPv4 and IPv6. A free one without it.",
    )
    add("--gateway", metavar="ADDRESS", help="The host's address in it (default: the first).")
    add("--ip-range", metavar="CIDR", help="Give addresses of this part of the subnet alone.")
    add("--internal", action="store_true", help="Let nothing out of it and no port in.")
    add("--mtu", metavar="BYTES", type=int, help="Set the largest size of a packet.")
    add("name", metavar="NAME", help="Its name.")


def _create(arguments: Arguments, session: Session) -> int:
    network = session.client.networks.create(
        arguments.name,
        subnet=arguments.subnet,
        gateway=arguments.gateway,
        ip_range=arguments.ip_range,
        internal=arguments.internal,
        mtu=arguments.mtu,
    )
    if session.json:
        session.document(network.inspect())
    else:
        session.line(network.name)
    return 0


def _rm_arguments(parser: Parser) -> None:
    parser.add_argument("names", metavar="NAME", nargs="+", help="The networks.")


def _rm(arguments: Arguments, session: Session) -> int:
    return session.each(arguments.names, lambda name: session.client.networks.get(name).remove())


def _connect_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add("--alias", metavar="NAME", action="append", default=[], help="Be found by this name, too.")
    add("--ip", metavar="ADDRESS", help="Take this address.")
    add("--ip6", metavar="ADDRESS", help="Take this IPv6 address.")
    add("--mac-address", metavar="MAC", help="Take this MAC address.")
    add("network", metavar="NETWORK", help="The network.")
    add("container", metavar="CONTAINER", help="Name or id.")


def _connect(arguments: Arguments, session: Session) -> int:
    session.client.networks.get(arguments.network).connect(
        arguments.container,
        aliases=arguments.alias,
        ip=arguments.ip,
        ip6=arguments.ip6,
        mac_address=arguments.mac_address,
    )
    return 0


def _disconnect_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add("-f", "--force", action="store_true", help="Also when a plugin fails.")
    add("network", metavar="NETWORK", help="The network.")
    add("container", metavar="CONTAINER", help="Name or id.")


def _disconnect(arguments: Arguments, session: Session) -> int:
    session.client.networks.get(arguments.network).disconnect(arguments.container, force=arguments.force)
    return 0


def _check(arguments: Arguments, session: Session) -> int:
    problems = session.client.networks.check()
    if session.json:
        session.document(problems)
    else:
        for problem in problems:
            session.line(
                f"{problem.container[:12]} {problem.network} {problem.interface or '-'}: {problem.reason}"
            )
    return 1 if problems else 0


def _prune(arguments: Arguments, session: Session) -> int:
    removed = session.client.networks.prune()
    if session.json:
        session.document(removed)
    else:
        session.write("".join(f"{name}\n" for name in removed))
    return 0


NETWORKS = Group(
    "networks",
    "List, make, connect and remove networks.",
    (
        Command(
            "ls",
            "List CNI networks.",
            _ls,
            aliases=("list",),
            description="Those of /etc/cni/net.d (or the folder that NETCONFPATH names), and those that were made here. "
            "none, host, container:NAME and pasta are always there.",
            examples=[("all networks", "lamella networks ls")],
        ),
        Command(
            "inspect",
            "Show everything about a network.",
            _inspect,
            _inspect_arguments,
            examples=[("who is plugged in", "lamella networks inspect bridge")],
        ),
        Command(
            "create",
            "Make a bridge network and print its name.",
            _create,
            _create_arguments,
            description="Containers in it reach each other, the host and, but for --internal, what the host reaches. It takes "
            "the CNI plugins (Debian: containernetworking-plugins).",
            examples=[
                ("one with a free subnet", "lamella networks create web"),
                ("one that leads nowhere", "lamella networks create --internal --subnet 10.77.0.0/24 lab"),
            ],
        ),
        Command(
            "connect",
            "Plug a container into a network.",
            _connect,
            _connect_arguments,
            description="At once if it runs, and at its further starts. Containers of a network find each other by name, alias "
            "and the first twelve characters of the id.",
            examples=[("by another name, too", "lamella networks connect --alias db web postgres")],
        ),
        Command(
            "disconnect",
            "Unplug a container from a network.",
            _disconnect,
            _disconnect_arguments,
            description="At once if it runs, and for its further starts. Ports that are published there are free then.",
            examples=[("leave it", "lamella networks disconnect web postgres")],
        ),
        Command(
            "check",
            "Ask whether running containers are connected as they were.",
            _check,
            description="By the command CHECK of CNI's plugins, and by whether pasta lives. The exit status is 1 when "
            "something is wrong.",
            examples=[("after somebody changed the firewall", "lamella networks check")],
        ),
        Command(
            "rm",
            "Remove networks that were made here.",
            _rm,
            _rm_arguments,
            aliases=("remove", "delete"),
            examples=[("remove it and its bridge", "lamella networks rm web")],
        ),
        Command(
            "prune",
            "Remove networks that were made here and have no container that runs.",
            _prune,
            examples=[("all that nobody uses", "lamella networks prune")],
        ),
    ),
)
