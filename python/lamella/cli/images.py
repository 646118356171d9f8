"""``lamella images``: names that point at content."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lamella.cli import output
from lamella.cli.parser import Arguments, Command, Group, Parser, add_filter
from lamella.cli.pull import add_foreign_option, add_progress_option, show_image
from lamella.cli.registry_options import add_registry_options

if TYPE_CHECKING:
    from lamella.cli.session import Session
    from lamella.images import Image
    from lamella.transfer.discover import Referrer


def _ls_arguments(parser: Parser) -> None:
    add_filter(parser, "name, target.digest, target.mediatype and labels")
    parser.add_argument("-q", "--quiet", dest="names_only", action="store_true", help="Print names alone.")


def _ls(arguments: Arguments, session: Session) -> int:
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
                    ",".join(row["platforms"]) or output.MISSING,
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
        platform, platforms, size = str(image.platform), image.platforms, image.size
    except LamellaError:
        platform, platforms, size = None, [], None
    return {
        "name": image.name,
        "digest": image.digest,
        "media_type": image.target.media_type,
        "platform": platform,
        "platforms": platforms,
        "size": size,
        "labels": image.labels,
        "created_at": image.created_at,
        "updated_at": image.updated_at,
    }


def _inspect_arguments(parser: Parser) -> None:
    parser.add_argument("reference", metavar="REF", help="The image.")


def _inspect(arguments: Arguments, session: Session) -> int:
    session.document(session.client.images.get(arguments.reference).inspect())
    return 0


def _referrers_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add("--type", metavar="TYPE", dest="artifact_type", help="Only those of this artifact type.")
    add("--tree", action="store_true", help="Show what refers to these, too, as a tree.")
    add("--local", action="store_true", help="Show what is here; ask no registry.")
    add("--platform", metavar="OS/ARCH[/VARIANT]", help="What refers to the manifest for this platform.")
    add_registry_options(parser)
    add("reference", metavar="REF", help="The image.")


def _referrers(arguments: Arguments, session: Session) -> int:
    found = session.client.images.referrers(
        arguments.reference,
        artifact_type=arguments.artifact_type,
        platform=arguments.platform,
        deep=arguments.tree,
        local=arguments.local,
    )
    if session.json:
        session.document(found)
    else:
        session.table(("DIGEST", "TYPE", ">SIZE"), _referrer_rows(found, "", nested=False))
    return 0


def _referrer_rows(found: Sequence[Referrer], indent: str, *, nested: bool) -> Iterator[tuple[str, str, str]]:
    for number, each in enumerate(found, 1):
        branch, below = ("└─ ", "   ") if number == len(found) else ("├─ ", "│  ")
        head, rest = (indent + branch, indent + below) if nested else ("", "")
        # Whole, as they are wanted for the next command.
        yield head + each.digest, each.artifact_type or each.media_type, output.size(each.size)
        yield from _referrer_rows(each.referrers, rest, nested=True)


def _convert_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add("--compression", choices=("gzip", "zstd", "none"), help="Compress the layers by this.")
    add("--level", type=int, metavar="N", help="How much: gzip 1 to 9, zstd 1 to 19.")
    add("--format", choices=("oci", "docker"), help="Write OCI's documents, or docker's (schema 2).")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--platform",
        metavar="OS/ARCH[/VARIANT]",
        help="Convert this platform's image of an index, not this machine's.",
    )
    which.add_argument("--all-platforms", action="store_true", help="Convert the whole index.")
    layers = parser.add_mutually_exclusive_group()
    layers.add_argument("--layers", metavar="LIST", help="Keep these layers: 0-2, or 0,3. The lowest is 0.")
    layers.add_argument(
        "--drop-top", type=int, metavar="N", default=0, help="Leave out the N uppermost layers."
    )
    add_foreign_option(parser, "Make layers that must not be distributed layers like others.")
    add_progress_option(parser)
    add("source", metavar="SOURCE", help="The image.")
    add("target", metavar="TARGET", help="What the result is called; may be the same.")


def _convert(arguments: Arguments, session: Session) -> int:
    from lamella.cli.progress import watch

    with watch(session, arguments) as callback:
        image = session.client.images.convert(
            arguments.source,
            arguments.target,
            compression=arguments.compression,
            level=arguments.level,
            format=arguments.format,
            platform=arguments.platform,
            all_platforms=arguments.all_platforms,
            layers=arguments.layers,
            drop_top=arguments.drop_top,
            foreign_layers=arguments.foreign_layers,
            progress=callback,
        )
    return show_image(session, image)


def _rm_arguments(parser: Parser) -> None:
    parser.add_argument(
        "--sync", action="store_true", help="Also remove what nothing refers to now, as gc does."
    )
    parser.add_argument("references", metavar="REF", nargs="+", help="The images.")


def _rm(arguments: Arguments, session: Session) -> int:
    status = session.each(arguments.references, session.client.images.remove)
    if arguments.sync:
        session.client.gc()
    return status


def _tag_arguments(parser: Parser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="The image.")
    parser.add_argument("target", metavar="TARGET", help="Its other name, as docker takes it.")


def _tag(arguments: Arguments, session: Session) -> int:
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
    "List, inspect, convert and remove images.",
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
            "convert",
            "Make another form of an image: its compression, its documents, some of its layers.",
            _convert,
            _convert_arguments,
            description="The result is a new image; layers that have the right form already are shared with the old one, and the "
            "snapshots are the same. The same image gives the same result on every machine.",
            examples=[
                (
                    "smaller to push, quicker to pull",
                    "lamella images convert --compression zstd app:1 app:1-zstd",
                ),
                (
                    "for what knows docker's documents alone",
                    "lamella images convert --format docker app:1 app:1-docker",
                ),
                ("without what the last step added", "lamella images convert --drop-top 1 app:1 app:base"),
            ],
        ),
        Command(
            "referrers",
            "List what refers to an image, such as signatures.",
            _referrers,
            _referrers_arguments,
            description="Asks the image's registry: by its API, or for the list that stands in for it (tag sha256-...). "
            "'lamella pull --referrers' brings along what is listed.",
            examples=[
                (
                    "all of them, and what refers to them",
                    "lamella images referrers --tree ghcr.io/acme/app:1",
                ),
                (
                    "the digests of the signatures",
                    "lamella --json images referrers --type application/vnd.dev.cosign.simplesigning.v1+json "
                    "ghcr.io/acme/app:1 | jq -r '.[].digest'",
                ),
            ],
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
