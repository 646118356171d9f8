"""``lamella additional-stores``: images that all users of the machine use without copying them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lamella.cli.parser import Arguments, Command, Group, Parser

if TYPE_CHECKING:
    from lamella.cli.session import Session


def _ls_arguments(parser: Parser) -> None:
    parser.add_argument(
        "stores", metavar="DIR", nargs="*", help="The stores; those of --additional-store by default."
    )


def _ls(arguments: Arguments, session: Session) -> int:
    from lamella.additional import AdditionalStore
    from lamella.config import Config

    stores = arguments.stores or Config.load(**session.location).additional_stores
    found = [
        (str(store.path), name, str(target.digest))
        for store in map(AdditionalStore, stores)
        for name, target in sorted(store.images().items())
    ]
    if session.json:
        session.document([{"store": store, "name": name, "digest": digest} for store, name, digest in found])
    else:
        session.table(("STORE", "IMAGE", "DIGEST"), found)
    return 0


def _images(parser: Parser) -> None:
    parser.add_argument("store", metavar="DIR", help="The additional store.")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="The images.")


def _add(arguments: Arguments, session: Session) -> int:
    from lamella.additional import AdditionalStore

    store = AdditionalStore.create(arguments.store)
    for image in arguments.images:
        session.line(store.add(session.client, image).familiar_name)
    return 0


def _rm(arguments: Arguments, session: Session) -> int:
    from lamella.additional import AdditionalStore

    store = AdditionalStore(arguments.store)
    for image in arguments.images:
        store.remove(image)
    return 0


def _mount_arguments(parser: Parser) -> None:
    parser.add_argument("store", metavar="DIR", help="The additional store.")
    parser.add_argument("target", metavar="FOLDER", help="Where it is shown; made if it is not there.")
    parser.add_argument("--user", metavar="NAME", required=True, help="Whose ids the files have there.")


def _mount(arguments: Arguments, session: Session) -> int:
    from lamella.additional import AdditionalStore

    AdditionalStore(arguments.store).mount(arguments.target, user=arguments.user)
    return 0


ADDITIONAL_STORES = Group(
    "additional-stores",
    "List, fill and empty stores of images for all users.",
    (
        Command(
            "ls",
            "List the images of additional stores.",
            _ls,
            _ls_arguments,
            aliases=("list",),
            examples=[("what one holds", "lamella additional-stores ls /srv/images")],
        ),
        Command(
            "add",
            "Copy images of this store there, for everybody to read; the additional store is made if there is none.",
            _add,
            _images,
            examples=[("for all users", "lamella additional-stores add /srv/images python:3.13")],
        ),
        Command(
            "rm",
            "Remove images from an additional store.",
            _rm,
            _images,
            aliases=("remove",),
            examples=[("nobody uses it any more", "lamella additional-stores rm /srv/images python:3.13")],
        ),
        Command(
            "mount",
            "Show an additional store to a user, read-only and with that user's ids: files have the owners of the image. "
            "umount ends it.",
            _mount,
            _mount_arguments,
            examples=[
                (
                    "ann uses /srv/for-ann, where files have their owners",
                    "lamella additional-stores mount /srv/images /srv/for-ann --user ann",
                ),
            ],
        ),
    ),
)
