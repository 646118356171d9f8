"""``lamella content``: blobs by digest, and writes in progress."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamella.cli import output
from lamella.cli.parser import Arguments, Command, Group, Parser, UsageError, add_filter
from lamella.cli.values import argument, parse_labels, parse_pair

if TYPE_CHECKING:
    from lamella.cli.session import Session
    from lamella.content import ContentInfo

_PIECE = 1024 * 1024


def _ls_arguments(parser: Parser) -> None:
    parser.add_argument("-q", "--quiet", dest="names_only", action="store_true", help="Print digests alone.")
    add_filter(parser, "digest, size and labels")


def _ls(arguments: Arguments, session: Session) -> int:
    infos = session.client.content.walk(filters=arguments.filters)
    if arguments.names_only:
        digests = [info.digest for info in infos]
        if session.json:
            session.document(digests)
        else:
            session.write("".join(f"{digest}\n" for digest in digests))
    elif session.json:
        session.document([_document(info) for info in infos])
    else:
        session.table(
            ("DIGEST", ">SIZE", "CREATED", "LABELS"),
            (
                (info.digest, output.size(info.size), output.age(info.created_at), output.pairs(info.labels))
                for info in infos
            ),
        )
    return 0


def _document(info: ContentInfo) -> dict[str, Any]:
    return {
        "digest": info.digest,
        "size": info.size,
        "labels": dict(info.labels),
        "created_at": info.created_at,
        "updated_at": info.updated_at,
    }


def _get_arguments(parser: Parser) -> None:
    parser.add_argument("-o", "--output", metavar="FILE", help="Write to a file, not to stdout.")
    parser.add_argument("digest", metavar="DIGEST", help="The blob.")


def _get(arguments: Arguments, session: Session) -> int:
    with session.client.content.open(arguments.digest) as blob:
        if arguments.output:
            with Path(arguments.output).open("wb") as file:
                while piece := blob.read(_PIECE):
                    file.write(piece)
        else:
            if session.stdout_is_terminal and session.client.content.info(arguments.digest).size > _PIECE:
                raise UsageError(
                    "lamella content get: the blob is large and stdout is a terminal",
                    hint="Send it to a file: -o FILE.",
                )
            while piece := blob.read(_PIECE):
                session.blob(piece)
    return 0


def _label_arguments(parser: Parser) -> None:
    parser.add_argument("digest", metavar="DIGEST", help="The blob.")
    parser.add_argument(
        "labels",
        metavar="KEY=VALUE",
        nargs="+",
        type=argument(parse_pair),
        help="Set a label; an empty value deletes it.",
    )


def _label(arguments: Arguments, session: Session) -> int:
    content = session.client.content
    content.update_labels(arguments.digest, parse_labels(arguments.labels))
    info = content.info(arguments.digest)
    if session.json:
        session.document(_document(info))
    else:
        session.line(output.pairs(info.labels))
    return 0


def _rm_arguments(parser: Parser) -> None:
    parser.add_argument("digests", metavar="DIGEST", nargs="+", help="The blobs.")


def _rm(arguments: Arguments, session: Session) -> int:
    return session.each(arguments.digests, session.client.content.delete)


def _active(arguments: Arguments, session: Session) -> int:
    ingests = session.client.content.ingests()
    if session.json:
        session.document(
            [
                {
                    "ref": ingest.ref,
                    "offset": ingest.offset,
                    "size": ingest.total or None,
                    "started_at": ingest.started_at,
                    "updated_at": ingest.updated_at,
                }
                for ingest in ingests
            ]
        )
    else:
        session.table(
            ("REF", ">RECEIVED", ">SIZE", "UPDATED"),
            (
                (
                    ingest.ref,
                    output.size(ingest.offset),
                    output.size(ingest.total or None),
                    output.age(ingest.updated_at),
                )
                for ingest in ingests
            ),
        )
    return 0


CONTENT = Group(
    "content",
    "List, read and remove blobs.",
    (
        Command(
            "ls",
            "List the blobs of the namespace.",
            _ls,
            _ls_arguments,
            aliases=("list",),
            examples=[
                ("all blobs", "lamella content ls"),
                (
                    "those of one source",
                    "lamella content ls --filter 'labels.\"containerd.io/distribution.source.docker.io\"'",
                ),
            ],
        ),
        Command(
            "get",
            "Write a blob to stdout.",
            _get,
            _get_arguments,
            json=False,
            examples=[
                (
                    "read a manifest",
                    'lamella content get "$(lamella images inspect nginx | jq -r .digest)" | jq',
                ),
                ("keep a layer", "lamella content get -o layer.tar.gz sha256:..."),
            ],
        ),
        Command(
            "label",
            "Set and delete labels of a blob.",
            _label,
            _label_arguments,
            examples=[
                (
                    "keep a blob from garbage collection",
                    "lamella content label sha256:... containerd.io/gc.root=kept",
                )
            ],
        ),
        Command(
            "active",
            "List writes in progress, and those that were interrupted.",
            _active,
            description="A pull that is repeated goes on where an interrupted one stopped.",
            examples=[("what is being fetched", "lamella content active")],
        ),
        Command(
            "rm",
            "Remove blobs from the namespace.",
            _rm,
            _rm_arguments,
            aliases=("remove", "delete"),
            examples=[("remove a blob", "lamella content rm sha256:...")],
        ),
    ),
)
