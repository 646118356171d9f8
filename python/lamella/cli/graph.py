"""``lamella graph``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lamella.cli.parser import Arguments, Command, Parser

if TYPE_CHECKING:
    from lamella.cli.session import Session

FORMATS = ("mermaid", "dot")


def _arguments(parser: Parser) -> None:
    parser.add_argument(
        "--format", choices=FORMATS, default="mermaid", help="The language of the drawing (default: mermaid)."
    )
    parser.add_argument(
        "reference", metavar="REF", nargs="?", help="The image; the whole namespace without it."
    )


def _graph(arguments: Arguments, session: Session) -> int:
    from lamella import graph

    found = graph.build(session.client, arguments.reference)
    if session.json:
        session.document(graph.to_dict(found))
    else:
        session.write({"mermaid": graph.render_mermaid, "dot": graph.render_dot}[arguments.format](found))
    return 0


GRAPH = Command(
    "graph",
    "Draw what belongs to an image.",
    _graph,
    _arguments,
    description="Shows index, manifests, config and layers, the committed snapshots made of them, views, active "
    "snapshots and containers, with sizes.",
    examples=[
        ("for a Markdown file", "lamella graph nginx:latest"),
        ("as a picture", "lamella graph nginx:latest --format dot | dot -Tsvg -o nginx.svg"),
    ],
)
