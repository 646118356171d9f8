"""``lamella serve``: containerd's API on a socket."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lamella.cli.parser import Arguments, Command, Parser, UsageError
from lamella.errors import Unsupported

if TYPE_CHECKING:
    from lamella.cli.session import Session

GRACE_SECONDS = 3.0
"""How long calls that are under way may go on after a signal."""


def _arguments(parser: Parser) -> None:
    add = parser.add_argument
    add(
        "--address",
        metavar="PATH",
        help="The path of the socket (default: containerd.sock in the state folder).",
    )
    add(
        "--uid",
        metavar="UID",
        type=int,
        help="Let this user connect: the socket's owner (default: who runs this).",
    )
    add(
        "--gid",
        metavar="GID",
        type=int,
        help="Let this group connect: the socket's (default: root's; of an ordinary user, none).",
    )
    add(
        "--debug",
        action="store_true",
        help="Log each call on stderr: its method, namespace, status and milliseconds.",
    )
    add(
        "--backend",
        action="store_true",
        help="For a containerd that uses this as its snapshotter and content store: what it makes stays until it removes it.",
    )


def _serve(arguments: Arguments, session: Session) -> int:
    from lamella.cli.serving import until_signalled

    try:
        from lamella.serve import Server, systemd
    except ImportError as error:
        raise Unsupported(
            f"lamella serve needs what is not installed: {error}", hint="pip install 'lamella[serve]'"
        ) from None

    if arguments.debug:
        session.log_steps("lamella.serve")
    listener = systemd.inherited_listener()
    if listener is not None and arguments.address is not None:
        raise UsageError("lamella serve: --address, and a socket that systemd passes, exclude each other")
    with (
        until_signalled() as wait,
        Server(
            client=session.client,
            address=arguments.address,
            uid=arguments.uid,
            gid=arguments.gid,
            backend=arguments.backend,
            listener=listener,
        ) as server,
    ):
        if session.json:
            session.document({"address": str(server.address)})
        else:
            session.line(str(server.address))
        session.flush()
        session.note("serving containerd's API until Ctrl-C")
        systemd.notify("READY=1")
        wait()
        systemd.notify("STOPPING=1")
        server.stop(GRACE_SECONDS)
    return 0


SERVE = Command(
    "serve",
    "Serve containerd's API on a socket, for ctr, nerdctl and Go programs.",
    _serve,
    _arguments,
    description="The store speaks containerd's gRPC API until Ctrl-C: what is made over the socket is there for "
    "lamella and the library, and the reverse. It keeps nothing of its own: containers go on when it ends, and "
    "the next one finds them. Prints the path of the socket once it listens; ctr --address PATH then uses it. "
    "Needs pip install lamella[serve].",
    examples=[
        ("offer the store to ctr", "lamella serve --address /run/lamella/containerd.sock"),
        ("let a group use it, too", "lamella serve --gid 999"),
    ],
)
