"""``lamella registry``: other registries, and the one that the library carries."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lamella.cli.parser import Arguments, Command, Group, Parser, UsageError
from lamella.cli.registry_hosts import HOSTS
from lamella.cli.registry_remote import CATALOG, DELETE, INSPECT, TAG, TAGS
from lamella.cli.values import argument
from lamella.errors import FailedPrecondition, InvalidArgument
from lamella.reference import is_loopback

if TYPE_CHECKING:
    import ssl

    from lamella.cli.session import Session
    from lamella.registry.server import Guard

_PROGRAM = "lamella registry serve"
GRACE_SECONDS = 10.0
"""How long transfers that are under way may go on after a signal."""


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or "0.0.0.0"  # noqa: S104 (asked for, as with docker-registry and crane)
    if not colon or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{text!r} is not HOST:PORT")
    return host, int(port)


def _arguments(parser: Parser) -> None:
    add = parser.add_argument
    add(
        "--listen",
        metavar="HOST:PORT",
        type=argument(_address),
        default=("127.0.0.1", 5000),
        help="Listen here (default: 127.0.0.1:5000; :5000 is 0.0.0.0:5000, port 0 a free one).",
    )
    add("--writable", action="store_true", help="Take pushes and deletes too.")
    add(
        "--name",
        metavar="HOST[:PORT]",
        help="The registry in the names of images that are pushed here (default: where it listens).",
    )
    add("--dir", metavar="DIR", help="Serve this folder, not the store; writable. It is made if need be.")
    access = parser.add_argument_group("Access")
    add = access.add_argument
    add("--htpasswd", metavar="FILE", help="Let in the users of a password file, made by htpasswd -B.")
    add("--user", metavar="NAME", help="Let in this user alone; with --password-stdin.")
    add("--password-stdin", action="store_true", help="Read the user's password from stdin.")
    add("--tls-cert", metavar="FILE", help="Speak HTTPS, with this certificate (PEM, and its chain).")
    add("--tls-key", metavar="FILE", help="The certificate's key, if it is in a file of its own.")
    add("--tls-client-ca", metavar="FILE", help="Let in only clients with a certificate of this authority.")
    add(
        "--insecure",
        action="store_true",
        help="Allow beyond this machine: passwords without TLS, pushes without passwords.",
    )


def _serve(arguments: Arguments, session: Session) -> int:
    from lamella.cli.serving import until_signalled
    from lamella.registry.server import RegistryServer

    host, port = arguments.listen
    guard = _guard(arguments)
    tls = _tls(arguments)
    writable = bool(arguments.writable or arguments.dir)
    protected = guard is not None or arguments.tls_client_ca is not None
    _check_exposure(arguments, host, protected=protected, writable=writable)
    with (
        until_signalled() as wait,
        RegistryServer(
            Path(arguments.dir) if arguments.dir else None,
            client=None if arguments.dir else session.client,
            name=arguments.name,
            host=host,
            port=port,
            auth=guard,
            read_only=not writable,
            tls=tls,
        ) as server,
    ):
        if session.json:
            session.document({"address": server.address, "name": server.name, "writable": writable})
        else:
            session.line(server.address)
        session.flush()
        what = arguments.dir or f"the images of namespace {session.client.config.namespace}"
        session.note(f"serving {what} until Ctrl-C, {'to read and write' if writable else 'to read'}")
        if not protected and not is_loopback(host):
            session.note(f"anybody who reaches {server.address} may do that")
        wait()
        server.close(GRACE_SECONDS)
    return 0


def _wrong(message: str) -> UsageError:
    return UsageError(f"{_PROGRAM}: {message}", hint=f"See '{_PROGRAM} --help'.")


def _guard(arguments: Arguments) -> Guard | None:
    if (arguments.user is None) == arguments.password_stdin:
        raise _wrong("--user and --password-stdin go together")
    if arguments.user is not None and arguments.htpasswd is not None:
        raise _wrong("--user and --htpasswd exclude each other")
    from lamella.registry.server import basic_auth, htpasswd

    if arguments.htpasswd is not None:
        return htpasswd(Path(arguments.htpasswd))
    if arguments.user is not None:
        password = sys.stdin.read().rstrip("\r\n")
        if not password or ":" in arguments.user:
            raise InvalidArgument("a user needs a name without a colon and a password")
        return basic_auth({arguments.user: password})
    return None


def _tls(arguments: Arguments) -> ssl.SSLContext | None:
    if arguments.tls_cert is None:
        if arguments.tls_key is not None or arguments.tls_client_ca is not None:
            raise _wrong("--tls-key and --tls-client-ca need --tls-cert")
        return None
    import ssl

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(arguments.tls_cert, arguments.tls_key)
        if arguments.tls_client_ca is not None:
            context.load_verify_locations(arguments.tls_client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except ssl.SSLError as error:
        raise InvalidArgument(
            f"the certificate, its key or the authority cannot be used: {error.reason or error}",
            hint="They are PEM files; the key belongs to the certificate and has no password.",
        ) from None
    return context


def _check_exposure(arguments: Arguments, host: str, *, protected: bool, writable: bool) -> None:
    """Refuse what one should not do by accident where others can reach it."""
    if is_loopback(host) or arguments.insecure:
        return
    if protected and arguments.tls_cert is None:
        raise FailedPrecondition(
            f"passwords would go to {host} without TLS, for everybody on the way to read",
            hint="Give --tls-cert and --tls-key, or allow it with --insecure.",
        )
    if writable and not protected:
        raise FailedPrecondition(
            f"anybody who reaches {host} could push images",
            hint="Give --htpasswd or --user, with TLS, or allow it with --insecure.",
        )


REGISTRY = Group(
    "registry",
    "Look at and manage what registries have, and serve images.",
    (
        INSPECT,
        TAGS,
        CATALOG,
        TAG,
        DELETE,
        Command(
            "serve",
            "Serve the images of the store to other machines, until Ctrl-C.",
            _serve,
            _arguments,
            description="An OCI registry over the store: what is in the namespace can be pulled from here, by "
            "lamella, docker, containerd and all others. nginx and ghcr.io/team/app are pulled as "
            "HOST:PORT/nginx and HOST:PORT/ghcr.io/team/app; containerd may use it as a mirror. With --writable "
            "it takes pushes: HOST:PORT/team/app:1 is then an image of that name here. Prints its address.",
            examples=[
                ("let other machines pull what is here", "lamella registry serve --listen 0.0.0.0:5000"),
                (
                    "take pushes too, from who has a password",
                    "lamella registry serve --listen 0.0.0.0:5000 --writable --htpasswd users"
                    " --tls-cert cert.pem --tls-key key.pem",
                ),
                ("a registry in a folder of its own", "lamella registry serve --dir /srv/images"),
            ],
        ),
        HOSTS,
    ),
)
