"""Who a request is sent as: HTTP Basic, and the bearer tokens of the distribution project.

The first answer 401 of a registry carries a challenge (RFC 7235). ``Basic`` is answered with the user's password.
``Bearer`` names a token server (``realm``), a ``service`` and a ``scope``; the token is fetched there, with the user's
credentials if there are any, anonymously if not, and with an identity token by OAuth 2. Tokens are kept for each realm,
service and set of scopes, and renewed before they expire.

A scope reads ``repository:NAME:pull,push``. What a request needs and what a challenge names are asked for together: a
registry that answers a push with a challenge to pull means the first of the two. A request that needs none asks for none:
what a challenge to a login names is an example.

A token goes to the registry that asked for it, credentials to that registry and its realm, and nowhere else.
"""

from __future__ import annotations

import re
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import msgspec
import requests

from lamella.errors import LamellaError, PermissionDenied, Unauthenticated, Unavailable
from lamella.reference import is_loopback
from lamella.registry.credentials import Credential
from lamella.registry.failures import error_of, read_document, refusal
from lamella.registry.targets import Home, Origin
from lamella.registry.transport import Transport

CHALLENGE_MAX = 16 * 1024
TOKEN_MAX = 1024 * 1024
TOKEN_SECONDS = 60.0
"""How long a token lasts whose server does not say (distribution spec, token authentication)."""
RENEW_BEFORE = 20.0
"""Seconds before its end at which a token is renewed; a quarter of its life if that is shorter."""
CLIENT_ID = "lamella"

_TOKEN68 = re.compile(r"[A-Za-z0-9\-._~+/]+=*\Z")
_WORD = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_PARAMETER = re.compile(rf'\s*({_WORD})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s",]+))\s*')
_SCHEME = re.compile(rf"\s*({_WORD})(?=\s|,|\Z)\s*")


class Challenge(msgspec.Struct, frozen=True):
    """One entry of a WWW-Authenticate header: the scheme in lower case, and its parameters."""

    scheme: str
    parameters: dict[str, str]


class Identity(msgspec.Struct, frozen=True):
    """For whom a registry is asked: its host, the credentials for it if there are any, and when these were looked for."""

    home: Home
    credential: Credential | None
    found_at: float = 0.0

    @property
    def origin(self) -> Origin:
        """Give what tokens and credentials belong to."""
        return self.home.origin

    def __repr__(self) -> str:
        return f"Identity({self.origin}, {self.credential})"


def parse_challenges(header: str) -> list[Challenge]:
    """Read a WWW-Authenticate header, several challenges in one too (RFC 7235, 4.1). What is malformed ends the list."""
    challenges: list[Challenge] = []
    header = header[:CHALLENGE_MAX]
    position = 0
    while position < len(header):
        if header[position] in ", \t":
            position += 1
            continue
        parameter = _PARAMETER.match(header, position)
        if parameter and challenges:
            name, quoted, plain = parameter.groups()
            value = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else plain
            challenges[-1].parameters.setdefault(name.lower(), value)
            position = parameter.end()
            continue
        scheme = _SCHEME.match(header, position)
        if not scheme:
            break
        challenges.append(Challenge(scheme[1].lower(), {}))
        position = scheme.end()
    return challenges


def repository_scope(path: str, *actions: str) -> str:
    """Write the scope of what is to be done in a repository: ``pull``, ``push``, ``delete``."""
    return f"repository:{path}:{','.join(actions)}"


def union(scopes: Iterable[str]) -> tuple[str, ...]:
    """Put scopes together: one for each resource, with every action that any of them names, in a stable order."""
    actions: dict[str, dict[str, None]] = {}
    for scope in scopes:
        resource, _, wanted = scope.rpartition(":")
        # A scope without a resource is a word of its own: "aws" is the one of public.ecr.aws.
        actions.setdefault(resource or scope, {}).update(dict.fromkeys(wanted.split(",") if resource else ()))
    return tuple(
        f"{resource}:{','.join(wanted)}" if wanted else resource for resource, wanted in actions.items()
    )


class Authorizer:
    """Answers challenges and remembers the answers. Safe to use from several threads.

    With ``offline`` token servers are asked for an identity token too, which they may give in exchange for a password;
    :attr:`identity_token` is the last one that came.
    """

    def __init__(
        self, transport: Transport, *, offline: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.identity_token = ""
        self._transport = transport
        self._offline = offline
        self._clock = clock
        self._lock = threading.Lock()
        self._challenges: dict[tuple[Origin, str], Challenge] = {}
        self._tokens: dict[_TokenKey, _Token] = {}
        self._fetching: weakref.WeakValueDictionary[_TokenKey, threading.Lock] = weakref.WeakValueDictionary()

    def header(self, identity: Identity, scopes: tuple[str, ...]) -> str | None:
        """Give the Authorization header that this registry is known to want for ``scopes``; None before it has asked.

        What a registry said of a repository holds for everything that is done there. None, too, if no token can be had by
        now: the registry's answer to a request without one says what is wrong, or is in order.
        """
        with self._lock:
            challenge = self._challenges.get((identity.origin, _resource(scopes)))
        try:
            return self._answer(challenge, identity, scopes, rejected=None) if challenge else None
        except Unauthenticated:
            return None

    def answer(
        self, identity: Identity, scopes: tuple[str, ...], challenges: list[Challenge], rejected: str | None
    ) -> str | None:
        """Give the header that answers a 401, None if nothing but ``rejected`` can be offered.

        Errors: Unauthenticated when the token server refuses, PermissionDenied for a realm that credentials must not
        go to, Unavailable when it does not answer.
        """
        by_scheme = {challenge.scheme: challenge for challenge in reversed(challenges)}
        for scheme in ("bearer", "basic"):
            challenge = by_scheme.get(scheme)
            if challenge is None or (scheme == "bearer" and not challenge.parameters.get("realm")):
                continue
            header = self._answer(challenge, identity, scopes, rejected=rejected)
            if header is not None and header != rejected:
                with self._lock:
                    self._challenges[identity.origin, _resource(scopes)] = challenge
                return header
        return None

    def secrets(self, identity: Identity) -> list[str]:
        """Give what must not appear in an error about this registry."""
        with self._lock:
            tokens = [token.value for token in self._tokens.values()]
        return tokens + list(identity.credential.secrets if identity.credential else ())

    def _answer(
        self, challenge: Challenge, identity: Identity, scopes: tuple[str, ...], *, rejected: str | None
    ) -> str | None:
        credential = identity.credential
        if challenge.scheme == "basic":
            return credential.basic if credential else None
        if credential and credential.registry_token:
            return f"Bearer {credential.registry_token}"
        parameters = challenge.parameters
        key = _TokenKey(
            identity.origin,
            parameters["realm"],
            parameters.get("service", ""),
            union([*scopes, *parameters.get("scope", "").split()]) if scopes else (),
        )
        with self._lock:
            fetching = self._fetching.setdefault(key, threading.Lock())
        # One thread fetches, the others wait for its token.
        with fetching:
            token = self._tokens.get(key)
            if token is None or token.renew_at <= self._clock() or f"Bearer {token.value}" == rejected:
                token = self._fetch(key, identity)
                with self._lock:
                    now = self._clock()
                    self._tokens = {old: kept for old, kept in self._tokens.items() if kept.renew_at > now}
                    self._tokens[key] = token
        return f"Bearer {token.value}"

    def _fetch(self, key: _TokenKey, identity: Identity) -> _Token:
        home, credential = identity.origin, identity.credential
        realm = self._transport.check_target(key.realm, identity.home)
        if (
            credential
            and realm.scheme != "https"
            and not is_loopback(realm.netloc)
            and realm.host != home.host
        ):
            raise PermissionDenied(
                f"{home.netloc} sends credentials on to {realm} without TLS, which is refused",
                hint="Its token server must speak HTTPS.",
            )
        started = self._clock()
        response = self._ask(key, identity)
        what = f"a token of {realm.netloc} for {home.netloc}"
        if response.status_code != 200:
            secrets = credential.secrets if credential else ()
            raise _token_error(
                error_of(response, what, refusal(response, secrets)), response.status_code, credential
            )
        try:
            data = read_document(response, TOKEN_MAX, what)
            # Not strictly: there are servers that write the seconds as a string.
            answer = msgspec.json.decode(data, type=_TokenAnswer, strict=False)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise Unavailable(f"{realm.netloc} answers a request for a token with something else") from None
        value = answer.token or answer.access_token
        if not value or not _TOKEN68.match(value):
            raise Unavailable(f"{realm.netloc} gives a malformed token for {home.netloc}")
        self.identity_token = answer.refresh_token or self.identity_token
        lasts = answer.expires_in if answer.expires_in and answer.expires_in > 0 else TOKEN_SECONDS
        age = _age(answer.issued_at, response.headers.get("Date"))
        # Nobody gives tokens that have ended: such a date is wrong, as the zero time of some servers is.
        lasts -= age if age < lasts else 0
        return _Token(value, started + lasts - min(RENEW_BEFORE, lasts / 4))

    def _ask(self, key: _TokenKey, identity: Identity) -> requests.Response:
        """Ask for a token as the distribution project's token authentication and its OAuth 2 describe."""
        home, credential = identity.home, identity.credential
        if credential and credential.identity_token:
            form = {
                "grant_type": "refresh_token",
                "refresh_token": credential.identity_token,
                "service": key.service,
                "scope": " ".join(key.scopes),
                "client_id": CLIENT_ID,
            }
            return self._transport.request("POST", key.realm, home=home, form=form)
        query = [("service", key.service), *(("scope", scope) for scope in key.scopes)]
        if credential and credential.username:
            query.append(("account", credential.username))
            if self._offline:
                query += [("client_id", CLIENT_ID), ("offline_token", "true")]
        url = _with_query(key.realm, [(name, value) for name, value in query if value])
        basic = credential.basic if credential else None
        return self._transport.request("GET", url, home=home, authorization=basic)


class _TokenKey(msgspec.Struct, frozen=True):
    """A token is good for one realm, service and set of scopes, and is sent to one registry."""

    origin: Origin
    realm: str
    service: str
    scopes: tuple[str, ...]


class _Token(msgspec.Struct, frozen=True):
    value: str
    renew_at: float

    def __repr__(self) -> str:
        return "_Token()"


class _TokenAnswer(msgspec.Struct, frozen=True):
    token: str | None = None
    access_token: str | None = None
    refresh_token: str | None = None
    expires_in: float | None = None
    issued_at: str | None = None

    def __repr__(self) -> str:
        return "_TokenAnswer()"


def _resource(scopes: tuple[str, ...]) -> str:
    """Give what the first scope is about: a repository, or nothing for the registry itself."""
    return scopes[0].rpartition(":")[0] if scopes else ""


def _age(issued_at: str | None, date: str | None) -> float:
    """Give the seconds since a token was issued, by its server's own clock (Date); 0 if it says neither."""
    if not issued_at or not date:
        return 0.0
    try:
        issued = datetime.fromisoformat(issued_at)
        issued = issued if issued.tzinfo else issued.replace(tzinfo=UTC)
        return max((parsedate_to_datetime(date) - issued).total_seconds(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _with_query(url: str, query: list[tuple[str, str]]) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(query=urlencode(parse_qsl(parts.query) + query), fragment=""))


def _token_error(error: LamellaError, status: int, credential: Credential | None) -> LamellaError:
    if status not in {400, 401, 403}:
        return error if isinstance(error, Unavailable) else Unavailable(error.message, hint=error.hint)
    if credential is None:
        return Unauthenticated(error.message, hint="The registry gives no anonymous access; log in to it.")
    return Unauthenticated(
        f"the credentials from {credential.source} are refused: {error.message}", hint="Log in again."
    )
