"""``lamella leases``: what protects objects from garbage collection for a while."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lamella.cli import output
from lamella.cli.parser import Arguments, Command, Group, Parser, add_filter
from lamella.cli.values import argument, parse_duration, parse_labels, parse_pair

if TYPE_CHECKING:
    from lamella.cli.session import Session
    from lamella.leases import Lease


def _ls_arguments(parser: Parser) -> None:
    add_filter(parser, "id and labels")


def _ls(arguments: Arguments, session: Session) -> int:
    leases = session.client.leases.list(filters=arguments.filters)
    if session.json:
        session.document([_document(lease) for lease in leases])
    else:
        session.table(
            ("ID", "CREATED", "EXPIRES", "LABELS"),
            (
                (
                    lease.id,
                    output.age(lease.created_at),
                    lease.expires_at or "never",
                    output.pairs(lease.labels),
                )
                for lease in leases
            ),
        )
    return 0


def _document(lease: Lease) -> dict[str, Any]:
    return {
        "id": lease.id,
        "created_at": lease.created_at,
        "expires_at": lease.expires_at,
        "labels": dict(lease.labels),
    }


def _create_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add(
        "--expires",
        metavar="DURATION",
        type=argument(parse_duration),
        help="End after this time, such as 24h.",
    )
    add("--label", metavar="KEY=VALUE", type=argument(parse_pair), action="append", help="Attach a label.")
    add("id", metavar="ID", nargs="?", help="The name of the lease; a random one without it.")


def _create(arguments: Arguments, session: Session) -> int:
    lease = session.client.leases.create(
        arguments.id, expires_in=arguments.expires, labels=parse_labels(arguments.label)
    )
    if session.json:
        session.document(_document(lease))
    else:
        session.line(lease.id)
    return 0


def _rm_arguments(parser: Parser) -> None:
    parser.add_argument(
        "--sync", action="store_true", help="Also remove what nothing refers to now, as gc does."
    )
    parser.add_argument("ids", metavar="ID", nargs="+", help="The leases.")


def _rm(arguments: Arguments, session: Session) -> int:
    status = session.each(arguments.ids, session.client.leases.delete)
    if arguments.sync:
        session.client.gc()
    return status


LEASES = Group(
    "leases",
    "Protect objects from garbage collection.",
    (
        Command(
            "ls",
            "List leases.",
            _ls,
            _ls_arguments,
            aliases=("list",),
            examples=[("all leases", "lamella leases ls")],
        ),
        Command(
            "create",
            "Create a lease and print its id.",
            _create,
            _create_arguments,
            examples=[("a lease for a day", "lamella leases create --expires 24h import-job")],
        ),
        Command(
            "rm",
            "Remove leases.",
            _rm,
            _rm_arguments,
            description="What only they held goes with the next 'lamella gc', or at once with --sync.",
            aliases=("remove", "delete"),
            examples=[("end a lease", "lamella leases rm import-job")],
        ),
    ),
)
