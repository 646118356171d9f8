"""``lamella registry catalog|tags|inspect|tag|delete``: what registries have, looked at and managed there without a pull."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lamella.cli.parser import Arguments, Command, Parser
from lamella.cli.registry_options import add_registry_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lamella.cli.session import Session


def _list(session: Session, names: Sequence[str]) -> int:
    if session.json:
        session.document(names)
    else:
        for name in names:
            session.line(name)
    return 0


def _catalog_arguments(parser: Parser) -> None:
    add_registry_options(parser)
    parser.add_argument("domain", metavar="DOMAIN", help="The registry, such as localhost:5000.")


def _catalog(arguments: Arguments, session: Session) -> int:
    return _list(session, session.client.remote.repositories(arguments.domain))


def _tags_arguments(parser: Parser) -> None:
    add_registry_options(parser)
    parser.add_argument("repository", metavar="REPOSITORY", help="The repository: an image without a tag.")


def _tags(arguments: Arguments, session: Session) -> int:
    return _list(session, session.client.remote.tags(arguments.repository))


def _inspect_arguments(parser: Parser) -> None:
    parser.add_argument(
        "--platform",
        metavar="OS/ARCH[/VARIANT]",
        help="Of an index, show the image for this platform, not this machine's.",
    )
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument(
        "--digest", action="store_true", help="Print the digest alone, by a request without a body."
    )
    shown.add_argument("--manifest", action="store_true", help="Print the index or manifest as it is.")
    shown.add_argument("--config", action="store_true", help="Print the image's config as it is.")
    add_registry_options(parser)
    parser.add_argument("reference", metavar="REF", help="The image.")


def _inspect(arguments: Arguments, session: Session) -> int:
    remote, ref, platform = session.client.remote, arguments.reference, arguments.platform
    if arguments.digest:
        digest = remote.resolve(ref, platform=platform).digest
        if session.json:
            session.document(digest)
        else:
            session.line(digest)
    elif arguments.manifest or arguments.config:
        read = remote.manifest if arguments.manifest else remote.config
        session.blob(read(ref, platform=platform))
    else:
        session.document(remote.inspect(ref, platform=platform).inspect())
    return 0


def _tag_arguments(parser: Parser) -> None:
    add_registry_options(parser)
    parser.add_argument("reference", metavar="REF", help="The image.")
    parser.add_argument("tags", metavar="TAG", nargs="+", help="What else its repository shall call it.")


def _tag(arguments: Arguments, session: Session) -> int:
    from lamella.cli.push import show_pushed

    return show_pushed(session, session.client.remote.tag(arguments.reference, *arguments.tags))


def _delete_arguments(parser: Parser) -> None:
    parser.add_argument(
        "--manifest",
        action="store_true",
        help="Delete what a tag points at, with all its tags, not the tag alone.",
    )
    add_registry_options(parser)
    parser.add_argument("references", metavar="REF", nargs="+", help="The images, each with a tag or digest.")


def _delete(arguments: Arguments, session: Session) -> int:
    remote = session.client.remote
    return session.each(
        arguments.references, lambda reference: remote.delete(reference, manifest=arguments.manifest)
    )


CATALOG = Command(
    "catalog",
    "List the repositories of a registry.",
    _catalog,
    _catalog_arguments,
    description="Private registries tell, most of those that serve the public do not.",
    examples=[("all of them", "lamella registry catalog localhost:5000")],
)

TAGS = Command(
    "tags",
    "List the tags of a repository.",
    _tags,
    _tags_arguments,
    aliases=("ls",),
    examples=[
        ("all tags", "lamella registry tags ghcr.io/team/app"),
        ("the newest release", "lamella registry tags ghcr.io/team/app | grep '^v[0-9]' | sort -V | tail -1"),
    ],
)

INSPECT = Command(
    "inspect",
    "Show what a registry has under a name, without pulling it.",
    _inspect,
    _inspect_arguments,
    description="JSON as of 'lamella images inspect': digest, platforms, layers, config, size of a pull, and the entries of an "
    "index (manifests). Documents are fetched, no layer.",
    examples=[
        ("is what runs here still the newest", "lamella registry inspect --digest nginx:latest"),
        ("which platforms there are", "lamella registry inspect nginx:latest | jq -r '.platforms[]'"),
        (
            "the environment of one",
            "lamella registry inspect --platform linux/arm64 --config nginx | jq .config.Env",
        ),
        ("the manifest, byte for byte", "lamella registry inspect --manifest nginx:latest | sha256sum"),
    ],
)

TAG = Command(
    "tag",
    "Give an image further tags in its registry.",
    _tag,
    _tag_arguments,
    description="The image is not pulled, and nothing but its manifest is sent. A tag that points at another image is moved. To "
    "another repository or registry: 'lamella copy'.",
    examples=[
        ("release what was tested", "lamella registry tag registry.example.com/team/app:1.2 stable latest")
    ],
)

DELETE = Command(
    "delete",
    "Delete tags and images in a registry.",
    _delete,
    _delete_arguments,
    description="By a tag, that tag; by a digest, the manifest with all tags that point at it. Some registries delete manifests "
    "alone, and some nothing unless they are set up for it. The space is free when the registry has collected its garbage.",
    aliases=("rm",),
    examples=[
        ("a tag", "lamella registry delete localhost:5000/team/app:old"),
        (
            "the image that it points at, as skopeo does",
            "lamella registry delete --manifest localhost:5000/team/app:old",
        ),
        ("by digest", "lamella registry delete localhost:5000/team/app@sha256:..."),
    ],
)
