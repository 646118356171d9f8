"""``lamella push`` and ``lamella copy``: images to a registry, from the store or from another registry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lamella.cli import output
from lamella.cli.parser import Arguments, Command, Parser
from lamella.cli.pull import add_foreign_option, add_policy_option, add_progress_option
from lamella.cli.registry_options import add_registry_options

if TYPE_CHECKING:
    from lamella.cli.session import Session
    from lamella.transfer.push import Pushed


def _add_choice(parser: Parser) -> None:
    add = parser.add_argument
    add(
        "--tag",
        metavar="TAG",
        dest="tags",
        action="append",
        default=[],
        help="Let this tag of the repository point at it, too; may be given several times.",
    )
    add("--platform", metavar="OS/ARCH[/VARIANT]", help="Take the manifest of this platform alone.")
    add("--referrers", action="store_true", help="Take along what refers to it: signatures, attestations.")
    add_foreign_option(parser, "Take along layers that their authors forbid to distribute.")
    add_progress_option(parser)
    add_registry_options(parser)


def _push_arguments(parser: Parser) -> None:
    _add_choice(parser)
    parser.add_argument(
        "--all-platforms",
        action="store_true",
        help="Fail if not all platforms of the image are here; else the one that is here is pushed.",
    )
    parser.add_argument("reference", metavar="REF", help="The image.")
    parser.add_argument("target", metavar="TARGET", nargs="?", help="Another name to push it to.")


def _push(arguments: Arguments, session: Session) -> int:
    from lamella.cli.progress import watch

    with watch(session, arguments) as callback:
        pushed = session.client.images.push(
            arguments.reference,
            arguments.target,
            tags=arguments.tags,
            platform=arguments.platform,
            all_platforms=arguments.all_platforms,
            referrers=arguments.referrers,
            foreign_layers=arguments.foreign_layers,
            progress=callback,
        )
    if pushed.left_out:
        shown = ", ".join(pushed.left_out[:5]) + (", ..." if len(pushed.left_out) > 5 else "")
        session.note(
            f"lamella: one platform was pushed: the others of {arguments.reference} are not here ({shown})"
        )
    return show_pushed(session, pushed)


def _copy_arguments(parser: Parser) -> None:
    _add_choice(parser)
    add_policy_option(parser)
    parser.add_argument("source", metavar="SOURCE", help="The image to copy.")
    parser.add_argument("target", metavar="TARGET", help="Its name in the other registry or repository.")


def _copy(arguments: Arguments, session: Session) -> int:
    from lamella.cli.progress import watch

    with watch(session, arguments) as callback:
        copied = session.client.images.copy(
            arguments.source,
            arguments.target,
            tags=arguments.tags,
            platform=arguments.platform,
            referrers=arguments.referrers,
            foreign_layers=arguments.foreign_layers,
            progress=callback,
        )
    return show_pushed(session, copied)


def show_pushed(session: Session, pushed: Pushed) -> int:
    """Print the names that an image has in a registry now."""
    if session.json:
        session.document(
            {
                "names": pushed.names,
                "digest": pushed.digest,
                "media_type": pushed.descriptor.media_type,
                "size": pushed.size,
                "blobs": pushed.blobs,
                "sent_bytes": pushed.sent_bytes,
                "left_out": pushed.left_out,
            }
        )
        return 0
    for name in pushed.names:
        if session.quiet:
            session.line(name)
        else:
            size = "" if pushed.size is None else f"  {output.size(pushed.size)}"
            session.line(f"{name}  {pushed.digest}{size}")
    return 0


PUSH = Command(
    "push",
    "Send an image to a registry.",
    _push,
    _push_arguments,
    description="The image goes to the registry of its name, or to TARGET, byte for byte as it is in the store. "
    "What the registry has is not sent, and what another repository of it has is mounted. An upload that breaks off goes on "
    "where it stopped. Prints each name, the digest, and the size of the whole.",
    examples=[
        ("an image under its own name", "lamella push registry.example.com/team/app:1.2"),
        (
            "under another one, and as the latest",
            "lamella push app:1.2 localhost:5000/team/app:1.2 --tag latest",
        ),
        ("one platform of several", "lamella push --platform linux/arm64 app:1.2"),
        ("its digest, for a script", "lamella --json push app:1.2 | jq -r .digest"),
    ],
)

COPY = Command(
    "copy",
    "Copy an image from one registry to another.",
    _copy,
    _copy_arguments,
    description="Nothing is stored here: each blob streams from one registry to the other, or is mounted where both names are "
    "in one registry. All platforms are copied, and the digest stays the same.",
    examples=[
        (
            "an image of Docker Hub to one's own registry",
            "lamella copy nginx:latest localhost:5000/nginx:latest",
        ),
        ("within a registry", "lamella copy localhost:5000/team/app:1.2 localhost:5000/prod/app:1.2"),
        ("with its signatures", "lamella copy --referrers ghcr.io/team/app:1.2 localhost:5000/app:1.2"),
    ],
)
