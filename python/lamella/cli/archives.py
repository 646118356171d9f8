"""``lamella import`` and ``lamella export``: images from and to files."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING, Any

from lamella.cli import output
from lamella.cli.parser import Arguments, Command, Parser, UsageError
from lamella.cli.pull import add_foreign_option, add_policy_option, add_progress_option

if TYPE_CHECKING:
    from lamella.cli.session import Session
    from lamella.images import Image

STREAM = "-"


def _import_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add(
        "-t",
        "--tag",
        metavar="NAME",
        action="append",
        dest="names",
        default=[],
        help="Call the image so, not as the archive does.",
    )
    add("--base-name", metavar="NAME", help="Put this before what is but a tag in the archive.")
    add(
        "--image",
        metavar="NAME",
        help="Take this one of several: a name or tag of the archive's, or a digest.",
    )
    add("--digests", action="store_true", help="Also name each image by its digest.")
    add("--platform", metavar="OS/ARCH[/VARIANT]", help="Keep and unpack this platform alone.")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--no-unpack", action="store_true", help="Keep the content and make no snapshots.")
    what.add_argument(
        "--discard-layers",
        action="store_true",
        help="Keep the unpacked layers alone, not the compressed ones.",
    )
    add_policy_option(parser)
    add_foreign_option(
        parser, "Fetch layers that must not be distributed from their own addresses if FILE lacks them."
    )
    add("--plain-http", action="store_true", help="Allow HTTP without TLS for these.")
    add_progress_option(parser)
    add("--sync", action="store_true", help="Return when what came is on disk and survives a power cut.")
    add("-i", "--input", metavar="FILE", help="Read this file (as docker load has it).")
    add("file", metavar="FILE", nargs="?", help="The archive or folder; - or nothing for stdin.")


def _import(arguments: Arguments, session: Session) -> int:
    from lamella.cli.progress import watch

    if arguments.file is not None and arguments.input is not None:
        raise UsageError("lamella import: two files are given", hint="Give FILE, or -i FILE.")
    source: Any = arguments.file or arguments.input or STREAM
    if source == STREAM:
        source = sys.stdin.buffer
        if source.isatty():
            raise UsageError("lamella import: stdin is a terminal", hint="Give a FILE, or pipe one in.")
    with watch(session, arguments) as callback:
        images = session.client.images.import_(
            source,
            names=arguments.names,
            base_name=arguments.base_name,
            image=arguments.image,
            digests=arguments.digests,
            platform=arguments.platform,
            unpack=not arguments.no_unpack,
            keep_layers=not arguments.discard_layers,
            foreign_layers=arguments.foreign_layers,
            sync=arguments.sync or None,
            progress=callback,
        )
    rows = [_row(session, image) for image in images]
    if session.json:
        session.document(rows)
    else:
        for row in rows:
            if session.quiet:
                session.line(row["name"])
            else:
                unpacked = "" if row["unpacked"] else "  not unpacked"
                session.line(f"{row['name']}  {row['digest']}  {output.size(row['size'])}{unpacked}")
    return 0


def _row(session: Session, image: Image) -> dict[str, Any]:
    """Give what is shown of an image that came; platform and size are null where no manifest of it is here."""
    from lamella.errors import LamellaError

    shown: dict[str, Any] = {
        "name": image.name,
        "digest": image.digest,
        "media_type": image.target.media_type,
    }
    shown |= {"platform": None, "size": None, "unpacked": False}
    try:
        shown["size"] = image.size
        shown["platform"] = str(image.platform)
        shown["unpacked"] = bool(session.client.snapshots.stat(image.chain_id))
    except LamellaError:
        pass  # of another platform, or no image of files at all
    return shown


IMPORT = Command(
    "import",
    "Take images from a file or a folder.",
    _import,
    _import_arguments,
    description="Reads OCI layouts (a folder or a tar) and what docker save, podman save, skopeo, crane, buildah, kaniko and "
    "ctr write, also compressed by gzip, zstd, bzip2 or xz. All of the archive is kept; the image for this machine is unpacked.",
    examples=[
        ("what docker has", "docker save nginx | lamella import -"),
        ("a file, under a name of one's own", "lamella import --tag app:tested build.tar.gz"),
        ("one image of a layout with many", "lamella import --image v2 --base-name example.com/app ./layout"),
    ],
)


def _export_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add("-o", "--output", metavar="FILE", default=STREAM, help="Write to this file (default: - for stdout).")
    add(
        "--format",
        choices=("oci", "oci-dir", "docker"),
        default="oci",
        help="An OCI archive that docker reads, too (default), an OCI layout in a folder, or a docker-archive.",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--platform", metavar="OS/ARCH[/VARIANT]", help="Write this platform alone.")
    which.add_argument(
        "--all-platforms", action="store_true", help="Write all, or nothing if one is not here."
    )
    add("--referrers", action="store_true", help="Also write what refers to the images: signatures, SBOMs.")
    add_foreign_option(parser, "Also write layers that must not be distributed.")
    add(
        "--compress",
        choices=("none", "gzip", "zstd"),
        help="Compress the whole (default: as the name of FILE says, .gz or .zst).",
    )
    add_progress_option(parser)
    add("references", metavar="REF", nargs="+", help="The images.")


def _export(arguments: Arguments, session: Session) -> int:
    from lamella.cli.progress import watch

    target: Any = arguments.output
    if target == STREAM:
        if session.stdout_is_terminal and arguments.format != "oci-dir":
            raise UsageError("lamella export: stdout is a terminal", hint="Send it to a file: -o FILE.")
        target = _Stdout(session)
    with watch(session, arguments) as callback:
        exported = session.client.images.export(
            arguments.references,
            target,
            format=arguments.format,
            platform=arguments.platform,
            all_platforms=arguments.all_platforms,
            referrers=arguments.referrers,
            foreign_layers=arguments.foreign_layers,
            compression=arguments.compress,
            progress=callback,
        )
    if target is not arguments.output:
        session.flush()
    elif session.json:
        session.document(
            [
                {"name": name, "digest": root.digest, "media_type": root.media_type}
                for name, root in exported.items()
            ]
        )
    elif not session.quiet:
        for name, root in exported.items():
            session.line(f"{name}  {root.digest}")
    return 0


class _Stdout(io.RawIOBase):
    """The session's stdout as a file; a reader that went away is what it always is."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        self._session.bytes(data)
        return len(data)


EXPORT = Command(
    "export",
    "Write images to a file or a folder.",
    _export,
    _export_arguments,
    description="What is written has the digests of the store, and is read by docker load, podman load, ctr images import, "
    "skopeo, crane, buildah and umoci. The same images always give the same bytes. A file gets its name when it is whole.",
    examples=[
        ("into a file", "lamella export -o app.tar app:v1 app:v2"),
        ("straight to podman", "lamella export app:v1 | podman load"),
        (
            "into an OCI layout, to which more can be added",
            "lamella export --format oci-dir -o ./layout app:v1",
        ),
    ],
)
