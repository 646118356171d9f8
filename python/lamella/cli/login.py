"""``lamella login`` and ``lamella logout``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lamella.cli.parser import Arguments, Command, Parser, UsageError
from lamella.cli.registry_options import add_registry_options, registry_config

if TYPE_CHECKING:
    from lamella.cli.session import Session
    from lamella.registry.login import Login

_PROGRAM = "lamella login"
_SECRET_MAX = 1024 * 1024


def _login_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add("-u", "--username", metavar="NAME", help="The user; asked for on a terminal without it.")
    add("-p", "--password", metavar="PASSWORD", help="The password, for everyone on this machine to see.")
    add("--password-stdin", action="store_true", help="Read the password from stdin.")
    add(
        "--identity-token",
        action="store_true",
        help="What is given as the password is an identity token (OAuth 2 refresh token).",
    )
    add_registry_options(parser)
    add("server", metavar="SERVER", nargs="?", default="docker.io", help="The registry (default: docker.io).")


def _login(arguments: Arguments, session: Session) -> int:
    from lamella.registry.login import login, parse_server

    parse_server(arguments.server)  # before anybody types a password
    if arguments.password is not None and arguments.password_stdin:
        raise UsageError(f"{_PROGRAM}: --password and --password-stdin exclude each other")
    if arguments.password is not None:
        session.note(
            "lamella: warning: a password on the command line can be seen by others; use --password-stdin"
        )
    done = _current(arguments, session)
    if done is not None:
        return _show(session, done)
    username = arguments.username or ""
    password = _password(arguments)
    if password is None:
        username, password = _ask(arguments)
    done = login(
        arguments.server,
        username=username,
        password="" if arguments.identity_token else password,
        identity_token=password if arguments.identity_token else "",
        file=_authfile(arguments),
        config=registry_config(arguments),
    )
    if not done.checked:
        session.note(f"lamella: {done.registry} asked for no credentials, so that these were not checked")
    if not done.encrypted:
        session.note(
            f"lamella: the credentials are in {done.stored_in}, not encrypted; a credential helper would encrypt them"
        )
    return _show(session, done)


def _show(session: Session, done: Login) -> int:
    if session.json:
        session.document(done)
    else:
        session.line(f"logged in to {done.registry}" + (f" as {done.username}" if done.username else ""))
    return 0


def _current(arguments: Arguments, session: Session) -> Login | None:
    """Try what is there already, as docker does, when nothing was said of a user or a password."""
    from lamella.errors import PermissionDenied, Unauthenticated
    from lamella.registry.login import current

    if arguments.username or arguments.password is not None or arguments.password_stdin:
        return None
    try:
        return current(arguments.server, file=_authfile(arguments), config=registry_config(arguments))
    except (Unauthenticated, PermissionDenied) as error:
        session.note(f"lamella: {error.message}")
        return None


def _password(arguments: Arguments) -> str | None:
    """Give the password that the command line or stdin has; None if it is to be asked for."""
    if not arguments.password_stdin:
        return arguments.password or None
    if not arguments.username and not arguments.identity_token:
        raise UsageError(f"{_PROGRAM}: --password-stdin takes --username", hint=f"See '{_PROGRAM} --help'.")
    try:
        return sys.stdin.buffer.read(_SECRET_MAX).decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise UsageError(f"{_PROGRAM}: the password is not UTF-8") from None


def _ask(arguments: Arguments) -> tuple[str, str]:
    """Ask for what is missing, on the terminal."""
    if not sys.stdin.isatty():
        raise UsageError(
            f"{_PROGRAM}: there is no terminal to ask for a password on",
            hint=f"Pipe it: {_PROGRAM} -u NAME --password-stdin {arguments.server}.",
        )
    from getpass import getpass

    username = arguments.username or ""
    try:
        if not username and not arguments.identity_token:
            sys.stderr.write("Username: ")
            sys.stderr.flush()
            username = sys.stdin.readline().strip()
        return username, getpass("Identity token: " if arguments.identity_token else "Password: ")
    except EOFError:
        raise UsageError(f"{_PROGRAM}: no password was given") from None


def _authfile(arguments: Arguments) -> Path | None:
    return Path(arguments.authfile) if arguments.authfile else None


LOGIN = Command(
    "login",
    "Log in to a registry.",
    _login,
    _login_arguments,
    description="The registry is asked first; what it accepts is kept where docker, podman, skopeo and crane find it: in the "
    "credential helper that ~/.docker/config.json names, else in that file ($DOCKER_CONFIG, $REGISTRY_AUTH_FILE and "
    "--authfile choose another). SERVER may go on with a namespace or repository (quay.io/team) that the login is for.\n\n"
    "Without a user and a password those that are kept already are tried, and asked for on the terminal if they are refused.",
    examples=[
        ("Docker Hub, with an access token", "lamella login -u ann --password-stdin < token"),
        (
            "a private registry of AWS, by its command line tool",
            "aws ecr get-login-password | lamella login -u AWS --password-stdin 123456789012.dkr.ecr.eu-west-1.amazonaws.com",
        ),
        ("a registry on this machine", "lamella login -u ann localhost:5000"),
    ],
)


def _logout_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add("-a", "--all", action="store_true", help="Log out of all registries.")
    add("--authfile", metavar="FILE", help="Look in this file alone.")
    add("server", metavar="SERVER", nargs="?", help="The registry (default: docker.io).")


def _logout(arguments: Arguments, session: Session) -> int:
    from lamella.registry.login import logout, logout_all

    if arguments.all and arguments.server:
        raise UsageError("lamella logout: --all and SERVER exclude each other")
    file = _authfile(arguments)
    files = [file] if file else None
    erased = (
        logout_all(files=files) if arguments.all else logout(arguments.server or "docker.io", files=files)
    )
    if session.json:
        session.document({"erased_from": erased})
    else:
        for place in erased:
            session.line(f"removed from {place}")
    return 0


LOGOUT = Command(
    "logout",
    "Log out of a registry.",
    _logout,
    _logout_arguments,
    description="Its credentials are removed from all files of docker and podman, and from the helpers that these name.",
    examples=[
        ("Docker Hub", "lamella logout"),
        ("every registry", "lamella logout --all"),
    ],
)
