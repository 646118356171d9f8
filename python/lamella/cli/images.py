"""``lamella images``: names that point at content."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from lamella.cli import output
from lamella.cli.parser import Command, Group, Parser, add_filter
from lamella.cli.pull import show_image

if TYPE_CHECKING:
    from lamella.cli.session import Session
    from lamella.images import Image


def _ls_arguments(parser: Parser) -> None:
    add_filter(parser, "name, target.digest, target.mediatype and labels")
    parser.add_argument("-q", "--quiet", dest="names_only", action="store_true", help="Print names alone.")


def _ls(arguments: argparse.Namespace, session: Session) -> int:
    images = session.client.images.list(filters=arguments.filters)
    if arguments.names_only:
        if session.json:
            session.document([image.name for image in images])
        else:
            session.write("".join(f"{output.clean(image.name)}\n" for image in images))
    elif session.json:
        session.document([_row(image) for image in images])
    else:
        session.table(
            ("NAME", "DIGEST", "PLATFORM", ">SIZE", "CREATED"),
            (
                (
                    row["name"],
                    output.short(row["digest"]),
                    row["platform"] or output.MISSING,
                    output.size(row["size"]),
                    output.age(row["created_at"]),
                )
                for row in map(_row, images)
            ),
        )
    return 0


def _row(image: Image) -> dict[str, Any]:
    """Give what a list shows; platform and size are null where the content is not here."""
    from lamella.errors import LamellaError

    platform: str | None
    size: int | None
    try:
        platform, size = str(image.platform), image.size
    except LamellaError:
        platform, size = None, None
    return {
        "name": image.name,
        "digest": image.digest,
        "media_type": image.target.media_type,
        "platform": platform,
        "size": size,
        "labels": image.labels,
        "created_at": image.created_at,
        "updated_at": image.updated_at,
    }


def _inspect_arguments(parser: Parser) -> None:
    parser.add_argument("reference", metavar="REF", help="The image.")


def _inspect(arguments: argparse.Namespace, session: Session) -> int:
    session.document(session.client.images.get(arguments.reference).inspect())
    return 0


def _rm_arguments(parser: Parser) -> None:
    parser.add_argument(
        "--sync", action="store_true", help="Also remove what nothing refers to now, as gc does."
    )
    parser.add_argument("references", metavar="REF", nargs="+", help="The images.")


def _rm(arguments: argparse.Namespace, session: Session) -> int:
    status = session.each(arguments.references, session.client.images.remove)
    if arguments.sync:
        session.client.gc()
    return status


def _tag_arguments(parser: Parser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="The image.")
    parser.add_argument("target", metavar="TARGET", help="Its other name, as docker takes it.")


def _tag(arguments: argparse.Namespace, session: Session) -> int:
    return show_image(session, session.client.images.tag(arguments.source, arguments.target))


TAG = Command(
    "tag",
    "Give an image another name.",
    _tag,
    _tag_arguments,
    description="Nothing is copied. A name that another image has is moved to this one.",
    examples=[
        ("name it for a registry of one's own", "lamella tag nginx:latest localhost:5000/nginx:tested")
    ],
)

IMAGES = Group(
    "images",
    "List, inspect and remove images.",
    (
        Command(
            "ls",
            "List the images of the namespace.",
            _ls,
            _ls_arguments,
            aliases=("list",),
            examples=[
                ("all images", "lamella images ls"),
                ("their digests, for a script", "lamella --json images ls | jq -r '.[].digest'"),
            ],
        ),
        Command(
            "inspect",
            "Show everything about an image as JSON.",
            _inspect,
            _inspect_arguments,
            description="Among other fields: digest, chain_id (the parent for snapshots of the whole image), "
            "chain_ids, diff_ids, layers and config.",
            examples=[("the parent for a snapshot", "lamella images inspect nginx:latest | jq -r .chain_id")],
        ),
        Command(
            "rm",
            "Remove images.",
            _rm,
            _rm_arguments,
            description="Removes the names. Content and snapshots that nothing else refers to go with the next 'lamella gc', "
            "or at once with --sync; by themselves where the environment has LAMELLA_GC=auto.",
            aliases=("remove", "delete"),
            examples=[("remove an image and what only it used", "lamella images rm --sync nginx:latest")],
        ),
    ),
)
