"""Making the container that a command line describes: what ``run`` and ``containers create`` share."""

from __future__ import annotations

from pathlib import Path

from lamella.cli.options import command, container_options, reference
from lamella.cli.parser import Arguments
from lamella.cli.pull import find_source
from lamella.errors import AlreadyExists
from lamella.typings import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lamella.cli.session import Session
    from lamella.containers.container import Container


def create_container(session: Session, arguments: Arguments) -> Container:
    """Make the container, its image fetched first where that is to be; its id goes where ``--cidfile`` says.

    Errors: AlreadyExists when that file is there, and those of fetching and making.
    """
    options = container_options(arguments)
    if arguments.snapshotter is not None:
        session.settings.snapshotter = arguments.snapshotter  # the image is to be unpacked for it
    if arguments.cidfile is None:
        return _create(session, arguments, options)
    path = Path(arguments.cidfile)
    try:
        file = path.open("x")
    except FileExistsError:
        raise AlreadyExists(
            f"the file {path} exists",
            hint="It may name another container: remove it, or choose another file.",
        ) from None
    with file:
        try:
            container = _create(session, arguments, options)
        except BaseException:
            path.unlink()
            raise
        file.write(container.id)
    return container


def _create(session: Session, arguments: Arguments, options: dict[str, Any]) -> Container:
    image = find_source(session, reference(arguments), arguments)
    return session.client.containers.create(image, command(arguments) or None, **options)
