"""``lamella namespaces``: what separates the users of one store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lamella.cli import output
from lamella.cli.parser import Arguments, Command, Group, Parser
from lamella.cli.values import argument, parse_labels, parse_pair

if TYPE_CHECKING:
    from lamella.cli.session import Session
    from lamella.namespaces import Namespace


def _ls(arguments: Arguments, session: Session) -> int:
    namespaces = session.client.namespaces.list()
    if session.json:
        session.document([_document(namespace) for namespace in namespaces])
    else:
        session.table(
            ("NAME", "CREATED", "LABELS"),
            ((ns.name, output.age(ns.created_at), output.pairs(ns.labels)) for ns in namespaces),
        )
    return 0


def _document(namespace: Namespace) -> dict[str, Any]:
    return {
        "name": namespace.name,
        "labels": namespace.labels,
        "created_at": namespace.created_at,
        "updated_at": namespace.updated_at,
    }


def _create_arguments(parser: Parser) -> None:
    parser.add_argument(
        "--label", metavar="KEY=VALUE", type=argument(parse_pair), action="append", help="Attach a label."
    )
    parser.add_argument("name", metavar="NAME", help="The name of the namespace.")


def _create(arguments: Arguments, session: Session) -> int:
    namespace = session.client.namespaces.create(arguments.name, labels=parse_labels(arguments.label))
    if session.json:
        session.document(_document(namespace))
    else:
        session.line(namespace.name)
    return 0


def _rm_arguments(parser: Parser) -> None:
    parser.add_argument("names", metavar="NAME", nargs="+", help="The namespaces.")


def _rm(arguments: Arguments, session: Session) -> int:
    return session.each(arguments.names, session.client.namespaces.delete)


NAMESPACES = Group(
    "namespaces",
    "List, create and remove namespaces.",
    (
        Command(
            "ls",
            "List namespaces.",
            _ls,
            aliases=("list",),
            examples=[("all namespaces", "lamella namespaces ls")],
        ),
        Command(
            "create",
            "Create a namespace.",
            _create,
            _create_arguments,
            description="Not needed before use: a namespace appears with the first object that is put into it.",
            examples=[("one for the tests", "lamella namespaces create --label owner=ci tests")],
        ),
        Command(
            "rm",
            "Remove empty namespaces.",
            _rm,
            _rm_arguments,
            aliases=("remove", "delete"),
            examples=[("remove one", "lamella namespaces rm tests")],
        ),
    ),
)
