"""``lamella registry``: the OCI registry that the library carries."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lamella.cli.parser import Command, Group, Parser
from lamella.cli.values import argument

if TYPE_CHECKING:
    from lamella.cli.session import Session


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{text!r} is not HOST:PORT")
    return host, int(port)


def _arguments(parser: Parser) -> None:
    add = parser.add_argument
    add(
        "--listen",
        metavar="HOST:PORT",
        type=argument(_address),
        default=("127.0.0.1", 5000),
        help="Listen here (default: 127.0.0.1:5000; port 0 takes a free one).",
    )
    add("--dir", metavar="DIR", help="Keep the images here; in a temporary folder without it.")


def _serve(arguments: argparse.Namespace, session: Session) -> int:
    import signal
    import threading

    from lamella.registry.server import RegistryServer

    host, port = arguments.listen
    end = threading.Event()
    previous = {
        number: signal.signal(number, lambda *_: end.set()) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        with RegistryServer(Path(arguments.dir) if arguments.dir else None, host=host, port=port) as server:
            if session.json:
                session.document({"address": server.address})
            else:
                session.line(server.address)
            session.flush()
            session.note("serving until Ctrl-C")
            end.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return 0


REGISTRY = Group(
    "registry",
    "Serve images over HTTP.",
    (
        Command(
            "serve",
            "Serve images over HTTP until Ctrl-C.",
            _serve,
            _arguments,
            description="An OCI registry for tests, mirrors and machines without a network: pull and push, no "
            "authentication, no TLS. Prints its address.",
            examples=[
                ("a registry that keeps what is pushed to it", "lamella registry serve --dir /srv/images")
            ],
        ),
    ),
)
