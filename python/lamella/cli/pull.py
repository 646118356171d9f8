"""``lamella pull``."""

from __future__ import annotations

from lamella.cli import output
from lamella.cli.parser import Arguments, Command, Parser
from lamella.cli.registry_options import add_registry_options
from lamella.typings import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lamella.cli.session import Session
    from lamella.containers.branches import Branch
    from lamella.images import Image


PULL_CHOICES = ("missing", "always", "never")


def add_pull_options(parser: Parser, *, when: bool = False) -> None:
    """Add the options that say how an image is fetched, and with ``when`` also in which case."""
    add = parser.add_argument
    chosen = "Choose this platform, not this machine's"
    if when:
        add("--platform", metavar="OS/ARCH[/VARIANT]", help=f"{chosen}.")
        add(
            "--pull",
            choices=PULL_CHOICES,
            default="missing",
            help="When to fetch the image (default: missing).",
        )
    else:
        add(
            "--platform",
            metavar="OS/ARCH[/VARIANT]",
            dest="platforms",
            action="append",
            help=f"{chosen}; may be given several times.",
        )
    add_policy_option(parser)
    add_progress_option(parser)
    add_registry_options(parser)


def add_policy_option(parser: Parser) -> None:
    """Add the option that says which images may come here; the session's client has it then."""
    parser.add_argument(
        "--policy", metavar="FILE", help="Fetch only what this policy lets in (LAMELLA_POLICY)."
    )


def add_foreign_option(parser: Parser, text: str) -> None:
    """Add the option that lets foreign layers come along (:mod:`lamella.transfer.foreign`)."""
    parser.add_argument("--foreign-layers", action="store_true", help=text)


def add_progress_option(parser: Parser) -> None:
    """Add the options that say how progress is shown (:func:`lamella.cli.progress.watch`)."""
    parser.add_argument(
        "--progress",
        choices=("auto", "tty", "plain", "none"),
        default="auto",
        help="On stderr: bars (tty), lines for a log (plain), or none; auto: bars on a terminal.",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="No progress and no remarks on stderr.")


def fetch(
    session: Session,
    reference: str,
    arguments: Arguments,
    *,
    platform: str | None = None,
    unpack: bool = True,
    keep_layers: bool = True,
    sync: bool | None = None,
    **options: Any,
) -> Image:
    """Pull an image and show progress, as ``--progress`` says."""
    from lamella.cli.progress import watch

    with watch(session, arguments) as callback:
        return session.client.images.pull(
            reference,
            platform=platform,
            unpack=unpack,
            keep_layers=keep_layers,
            sync=sync,
            progress=callback,
            **options,
        )


def find_source(session: Session, reference: str, arguments: Arguments) -> Image | Branch:
    """Give what a container is to stand on: a branch with ``--branch``, else an image (:func:`find_or_fetch`)."""
    if arguments.branch:
        return session.client.branches.get(reference)
    return find_or_fetch(session, reference, arguments)


def find_or_fetch(session: Session, reference: str, arguments: Arguments) -> Image:
    """Give an image of the store, fetched first where ``--pull`` and ``--platform`` ask for it."""
    from lamella.errors import NotFound

    keep_layers = True
    try:
        image = session.client.images.get(reference, platform=arguments.platform)
        keep_layers = arguments.pull != "always" or not image.layers_discarded
    except NotFound:
        if arguments.pull == "never":
            raise
        if arguments.pull != "always":
            session.note(f"lamella: {reference} is not here and is fetched")
    else:
        if arguments.pull == "never" or (arguments.pull == "missing" and _fits(image, arguments.platform)):
            return _unpacked(session, image)
    return fetch(session, reference, arguments, platform=arguments.platform, keep_layers=keep_layers)


def _unpacked(session: Session, image: Image) -> Image:
    """Unpack an image that came without that: by a push to the registry that serves this store, or an import."""
    from lamella.errors import NotFound

    parent = image.chain_id
    try:
        session.client.snapshots.stat(parent)
    except NotFound:
        return session.client.images.unpack(image.name)
    return image


def show_image(session: Session, image: Image) -> int:
    """Print an image that is here now."""
    if session.json:
        session.document(image.inspect())
    elif session.quiet:
        session.line(image.name)
    else:
        session.line(f"{image.name}  {image.digest}  {output.size(image.size)}")
    return 0


def _fits(image: Image, platform: str | None) -> bool:
    if platform is None:
        return True
    from lamella.errors import NotFound
    from lamella.platforms import normalize, parse_platform

    try:
        return normalize(image.platform) == parse_platform(platform)
    except NotFound:
        return False


def _arguments(parser: Parser) -> None:
    add_pull_options(parser)
    parser.add_argument(
        "--all-platforms",
        action="store_true",
        help="Fetch the whole index, and unpack this machine's part of it.",
    )
    parser.add_argument(
        "--referrers", action="store_true", help="Bring along what refers to the image, such as signatures."
    )
    add_foreign_option(
        parser,
        "Also fetch layers that must not be distributed: from the registry, or the addresses that the image names.",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--no-unpack", action="store_true", help="Fetch the content and make no snapshots.")
    what.add_argument(
        "--discard-layers",
        action="store_true",
        help="Keep the unpacked layers alone, not the compressed ones, until a pull without this.",
    )
    parser.add_argument(
        "--sync", action="store_true", help="Return when what came is on disk and survives a power cut."
    )
    parser.add_argument(
        "reference",
        metavar="REF",
        help="The image, as docker takes it: nginx, host:5000/a/b:tag, a@sha256:...",
    )


def _pull(arguments: Arguments, session: Session) -> int:
    for platform in arguments.platforms or [None]:
        image = fetch(
            session,
            arguments.reference,
            arguments,
            platform=platform,
            unpack=not arguments.no_unpack,
            keep_layers=not arguments.discard_layers,
            sync=arguments.sync or None,
            all_platforms=arguments.all_platforms,
            referrers=arguments.referrers,
            foreign_layers=arguments.foreign_layers,
        )
    return show_image(session, image)


PULL = Command(
    "pull",
    "Fetch an image and unpack its layers.",
    _pull,
    _arguments,
    description="Each layer is read once: it is stored, checked, inflated and unpacked as it arrives. "
    "What the store has already is neither fetched nor unpacked again; an interrupted pull goes on where it stopped. "
    "Progress is shown on stderr if that is a terminal, or as --progress says.",
    examples=[
        ("an image of Docker Hub", "lamella pull nginx:latest"),
        ("one of a registry on this machine", "lamella pull localhost:5000/debian:12"),
        ("with half the disk: to run, not to push or export", "lamella pull --discard-layers nginx:latest"),
        ("the content alone, for another platform", "lamella pull --platform linux/arm64 --no-unpack alpine"),
        ("all platforms, to push or export them", "lamella pull --all-platforms --no-unpack alpine"),
        ("an artifact, such as a chart", "lamella pull --no-unpack localhost:5000/charts/app:1"),
    ],
)
