"""Logging in to a registry and out of it: credentials are tried, then kept where docker, podman, skopeo and crane look for them.

Kept means: in the helper program that docker's file names (``credHelpers``, ``credsStore``), else in the file itself
(:mod:`lamella.registry.authfile`), with mode 0600 and not encrypted.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from lamella.errors import InvalidArgument, LamellaError, NotFound, Unauthenticated, Unavailable
from lamella.reference import DEFAULT_DOMAIN, Reference
from lamella.registry import authfile, helpers
from lamella.registry.config import RegistryConfig
from lamella.registry.credentials import Credential, CredentialStore

_SERVER = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:]+\])(?::[0-9]{1,5})?\Z")


class Login(msgspec.Struct, frozen=True, kw_only=True):
    """A login that succeeded.

    ``registry``: the domain, with ``/namespace`` if it is for that alone. ``stored_in``: the file or helper program.
    ``encrypted``: whether that was left to a helper. ``identity_token``: whether a token is kept in the place of the password.
    ``checked``: whether the registry asked for credentials; one that lets everybody in takes any.
    """

    registry: str
    username: str
    stored_in: str
    encrypted: bool
    identity_token: bool
    checked: bool


def parse_server(server: str) -> tuple[str, str]:
    """Read ``HOST[:PORT][/NAMESPACE]``, or an address with ``https://``, whose path means nothing; give domain and path.

    Docker Hub has several names. Errors: InvalidArgument, which repeats no password that stands in an address.
    """
    bare = re.sub(r"^https?://", "", server)
    domain, _, path = bare.partition("/")
    if bare != server:
        path = ""
    if domain in authfile.HUB_NAMES:
        domain = DEFAULT_DOMAIN
    if not _SERVER.match(domain):
        raise InvalidArgument(
            "this is not the name of a registry",
            hint="A registry is named as in an image: ghcr.io, host:5000.",
        )
    if path:
        # By the grammar of any host: on docker.io a single component is a namespace here, and not in library/.
        path = Reference.parse(f"localhost/{path.removesuffix('/')}").path
    return domain, path


def login(
    server: str = DEFAULT_DOMAIN,
    *,
    username: str = "",
    password: str = "",
    identity_token: str = "",
    file: Path | None = None,
    config: RegistryConfig | None = None,
) -> Login:
    """Try credentials at a registry and keep them.

    A password that the registry's token server gives an identity token for is not kept, the token is. ``file``: where to keep
    them, by default where docker does, or in $REGISTRY_AUTH_FILE. ``config``: how the registry is talked to. Twice is harmless,
    and another login in its place: nothing else in the file changes.

    Errors: Unauthenticated when they are refused, Unavailable when the registry does not answer, InvalidArgument,
    FailedPrecondition for a file or helper that does not work, PermissionDenied.
    """
    domain, path = parse_server(server)
    _check_given(username, password, identity_token)
    given = Credential(
        username=username, password=password, identity_token=identity_token, source="this login"
    )
    token, checked = _try(domain, given, config or RegistryConfig())
    kept = Credential(username=username, identity_token=token) if token else given
    stored_in, encrypted = _keep(file or authfile.login_file(), domain, path, kept)
    return Login(
        registry=f"{domain}/{path}" if path else domain,
        username=username,
        stored_in=stored_in,
        encrypted=encrypted,
        identity_token=bool(kept.identity_token),
        checked=checked,
    )


def current(
    server: str = DEFAULT_DOMAIN, *, file: Path | None = None, config: RegistryConfig | None = None
) -> Login | None:
    """Try what is there for a registry already, in ``file`` or wherever a pull would look; None if nothing is.

    Errors: as :func:`login`.
    """
    domain, path = parse_server(server)
    found = CredentialStore([file] if file else None).find(domain, path)
    if found is None:
        return None
    _, checked = _try(domain, found, config or RegistryConfig())
    return Login(
        registry=f"{domain}/{path}" if path else domain,
        username=found.username,
        stored_in=found.source,
        encrypted=found.source.startswith(helpers.PREFIX),
        identity_token=bool(found.identity_token),
        checked=checked,
    )


def logout(server: str = DEFAULT_DOMAIN, *, files: Sequence[Path] | None = None) -> list[str]:
    """Forget the credentials for a registry, or for a namespace in it, wherever docker and podman would look; say where.

    ``files``: look in these alone. All places are tried before the first error is raised. NotFound when there are none; other
    errors as :func:`login`.
    """
    domain, path = parse_server(server)
    erased: list[str] = []
    failed: list[LamellaError] = []
    for file in authfile.default_files() if files is None else files:
        try:
            named = None if path else authfile.read(file).helper(domain)
            if named and helpers.erase(*named):
                erased.append(helpers.program(named[0]))
        except LamellaError as error:
            failed.append(error)
        try:
            if authfile.remove(file, domain, path):
                erased.append(str(file))
        except LamellaError as error:
            failed.append(error)
    return _told(erased, failed, f"no credentials for {f'{domain}/{path}' if path else domain} are kept")


def logout_all(*, files: Sequence[Path] | None = None) -> list[str]:
    """Forget the credentials for all registries, as :func:`logout` does for one; nothing to forget is no error."""
    erased: list[str] = []
    failed: list[LamellaError] = []
    for file in authfile.default_files() if files is None else files:
        try:
            document = authfile.read(file)
            named = [(helper, server) for server, helper in (document.cred_helpers or {}).items() if helper]
            if document.creds_store:
                named += [(document.creds_store, server) for server in helpers.servers(document.creds_store)]
        except LamellaError as error:
            failed.append(error)
            named = []
        for helper, server in named:
            try:
                if helpers.erase(helper, server):
                    erased.append(helpers.program(helper))
            except LamellaError as error:
                failed.append(error)
        try:
            if authfile.remove_all(file):
                erased.append(str(file))
        except LamellaError as error:
            failed.append(error)
    return _told(erased, failed, None)


def _told(erased: list[str], failed: list[LamellaError], nothing: str | None) -> list[str]:
    if failed:
        raise failed[0]
    if nothing and not erased:
        raise NotFound(nothing)
    return list(dict.fromkeys(erased))


def _check_given(username: str, password: str, identity_token: str) -> None:
    if identity_token:
        if password:
            raise InvalidArgument("a password and an identity token are given; one is enough")
        return
    if not username or not password:
        raise InvalidArgument(f"the {'password' if username else 'user name'} is empty")
    if ":" in username:  # RFC 7617, 2
        raise InvalidArgument("a user name with a colon cannot be sent to a registry")


def _try(domain: str, credential: Credential, config: RegistryConfig) -> tuple[str, bool]:
    """Ask the registry as somebody; give the identity token it offers for his password, and whether it asked who he is."""
    from lamella.registry.exchange import Exchange
    from lamella.registry.failures import discard, is_page, page_error

    what = "logging in"
    exchange = Exchange(msgspec.structs.replace(config, credentials={domain: credential}), offline=True)
    registry = Reference(domain=domain, path="")
    try:
        response = exchange.request("GET", registry, "", {}, what=what)
        status = response.status_code
        if status in {401, 403}:
            raise Unauthenticated(exchange.error(response, registry, what).message)
        if status not in {200, 404}:
            raise exchange.error(response, registry, what)
        discard(response)
        if is_page(response):
            raise page_error(response, "/v2/")
        if status == 404:
            raise Unavailable(f"{domain} has no /v2/ (404)", hint="Is this an OCI registry?")
        return exchange.authorizer.identity_token, "Authorization" in response.request.headers
    except Unauthenticated as error:
        wrong = "identity token" if credential.identity_token else "user name or the password"
        raise Unauthenticated(
            f"{domain} refuses the {wrong}: {error.message.removeprefix(f'{what}: ')}",
            hint="Some registries want an access token for a password.",
        ) from None
    finally:
        exchange.transport.close()


def _keep(file: Path, domain: str, path: str, credential: Credential) -> tuple[str, bool]:
    """Store credentials; say where, and whether a helper has them."""
    # A helper knows registries alone: what is for a namespace stays in the file, as podman keeps it.
    named = None if path else authfile.read(file).helper(domain)
    if named:
        secret = helpers.Kept(credential.username, credential.password)
        if credential.identity_token:
            secret = helpers.Kept(helpers.TOKEN_USER, credential.identity_token)
        helpers.store(*named, secret)
        authfile.put(file, domain, path, {})  # docker lists so whom it is logged in to
        return helpers.program(named[0]), True
    login = f"{credential.username}:{credential.password}"
    entry = {"auth": base64.b64encode(login.encode()).decode()}
    if credential.identity_token:
        entry["identitytoken"] = credential.identity_token
    authfile.put(file, domain, path, entry)
    return str(file), False
