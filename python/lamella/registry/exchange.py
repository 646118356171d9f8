"""One request about a repository, answered: it goes to the first of the repository's hosts that can answer it.

A host that gives no answer, or refuses, is passed over for the next one, at once; only the last one, which is the registry
itself unless a file says otherwise, gets all the patience. A host that cannot be reached is not asked again by the same
exchange, nor by others of this process for a while: a dead mirror costs one short time-out. Each host is asked with the
credentials for its own name.

What a host may be asked its capabilities say, as in containerd: what is named by digest may come from anywhere, since it is
checked; what a tag means is believed of hosts with ``resolve`` alone. A push goes to one host.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import msgspec
import requests

from lamella import oci
from lamella.errors import (
    Cancelled,
    InvalidArgument,
    LamellaError,
    NotFound,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from lamella.logs import Log
from lamella.reference import DEFAULT_DOMAIN, Reference
from lamella.registry.auth import Authorizer, Identity, parse_challenges, repository_scope
from lamella.registry.config import RegistryConfig
from lamella.registry.credentials import CredentialStore
from lamella.registry.failures import (
    discard,
    error_of,
    is_page,
    page_error,
    read_document,
    refusal,
    wants_tls,
)
from lamella.registry.hosts import PULL, PUSH, REFERRERS, RESOLVE, Host, Hosts
from lamella.registry.outages import Outages
from lamella.registry.patience import Patience
from lamella.registry.sending import Body
from lamella.registry.targets import Home, Origin
from lamella.registry.transport import Transport

LOOKUP_SECONDS = 10.0
"""Seconds after which credentials that are refused are looked for anew: somebody may have logged in, or they have expired."""

_log = Log("lamella.registry")
_Check = Callable[[bytes, Mapping[str, str]], object]


class Exchange:
    """Sends requests about the repositories that references name. Safe to use from several threads."""

    def __init__(self, config: RegistryConfig, *, offline: bool = False) -> None:
        self.transport = Transport(config)
        self.authorizer = Authorizer(self.transport, offline=offline)
        self.hosts = Hosts(config)
        self.plain_http = config.plain_http
        self._config = config
        self._headers = config.headers
        self._credentials = CredentialStore() if config.credentials is None else config.credentials
        self._looking_up = threading.Lock()
        self._spoken: dict[Origin, Origin] = {}
        self._identities: dict[tuple[Origin, str, str], Identity] = {}
        self._outages = Outages()
        self._given: weakref.WeakKeyDictionary[requests.Response, tuple[_Asked, Host]] = (
            weakref.WeakKeyDictionary()
        )
        self._passed_over: dict[tuple[str, str, str], dict[Host, LamellaError]] = {}

    def __repr__(self) -> str:
        return f"Exchange({self._config})"

    def document(
        self,
        reference: Reference,
        path: str,
        what: str,
        accept: str,
        *,
        limit: int = oci.DOCUMENT_MAX,
        scopes: tuple[str, ...] | None = None,
        check: _Check = lambda *_: None,
    ) -> tuple[bytes, Mapping[str, str]]:
        """Fetch a document and the headers of the answer; a body that breaks off is fetched again.

        ``scopes`` to push ask the host that is pushed to. ``check`` raises DataLoss for a document that is not the one;
        where another host is left, that one is asked then.
        """
        patience = self.transport.patience()
        while True:
            response = self.request(
                "GET",
                reference,
                path,
                {"Accept": accept},
                what=what,
                scopes=scopes,
                patience=patience,
                expected={200},
            )
            try:
                data = read_document(response, limit, what)
                if is_page(response):
                    raise page_error(response, what)
                check(data, response.headers)
            except LamellaError as error:
                self.transport.check_interrupted()
                if self.pass_over(response, error):
                    continue
                if not isinstance(error, Unavailable):
                    raise
                patience.spend(error)
            else:
                return data, response.headers

    def request(
        self,
        method: str,
        reference: Reference,
        path: str,
        headers: Mapping[str, str],
        *,
        what: str,
        scopes: tuple[str, ...] | None = None,
        body: Body | bytes | None = None,
        silence: float = 0,
        patience: Patience | None = None,
        expected: set[int] | None = None,
    ) -> requests.Response:
        """Send a request about the reference's repository, with the credentials that the host asks for.

        A reference with an empty path is the registry itself. ``path`` is below the repository's, or an address that the
        registry gave (of an upload): one at another host gets no credentials. ``scopes`` are what the request needs to be
        allowed (:func:`lamella.registry.auth.repository_scope`); None: to pull. ``patience`` is for the last host. What that one
        answers with a status that is not ``expected`` is raised as an error, which names what the others said; None: nothing is.
        The rest is as in :meth:`lamella.registry.transport.Transport.request`.
        """
        asked = _Asked(method, reference, path, headers, what, scopes, body, silence)
        *others, last = self._able(asked)
        passed_over = self._passed_over.get(asked.key, {})
        failures: list[LamellaError] = []
        for host in others:
            error = passed_over.get(host) or self._outages.of(host.home) or self._out_of(asked, host)
            if isinstance(error, requests.Response):
                return error
            failures.append(error)
        try:
            response = self._ask(asked, last.patient, patience)
            if expected is not None and response.status_code not in expected:
                raise self._refused(response, asked, last)
        except LamellaError as error:
            raise _with_others(error, failures) from None
        self._given[response] = asked, last
        return response

    def pass_over(self, response: requests.Response, error: LamellaError) -> bool:
        """Ask for this no more the host that gave an answer whose body was not what was asked for, or broke off.

        False if there is no other host: the caller decides whether to ask that one again.
        """
        asked, host = self._given[response]
        if isinstance(error, Cancelled) or host is self._able(asked)[-1]:
            return False
        _log.debug("asking the next host: %(reason)s", host=host.home.origin.netloc, reason=error.message)
        self._passed_over.setdefault(asked.key, {})[host] = error
        return True

    def error(self, response: requests.Response, reference: Reference, what: str) -> LamellaError:
        """Make the typed error of an unsuccessful answer, with what the reader can do about it."""
        asked, host = self._given[response]
        return self._refused(response, asked._replace(reference=reference, what=what), host)

    def _able(self, asked: _Asked) -> Sequence[Host]:
        """Give the hosts that may be asked, in order."""
        reference, capability = asked.reference, asked.capability
        # What a tag means is asked in order to have it: containerd asks a host for both, too.
        needed = {PULL, RESOLVE} if capability == RESOLVE else {capability}
        if not reference.path:
            return [self.hosts.own(reference.domain)]
        hosts = self.hosts.serving(reference.domain, reference.path, by_digest=reference.digest is not None)
        able = [host for host in hosts if needed <= host.capabilities]
        if not able:
            raise NotFound(
                f"{asked.what}: no host of {reference.domain} is there to {capability} from",
                hint=f"{hosts[-1].source} gives that capability to none; see 'lamella registry hosts {reference.domain}'.",
            )
        return able[:1] if capability == PUSH else able

    def _out_of(self, asked: _Asked, host: Host) -> requests.Response | LamellaError:
        """Ask a host that is not the last: give its answer, or why the next one is to be asked."""
        try:
            response = self._ask(asked, self._outages.as_asked(host), None)
            error = self._refused(response, asked, host) if response.status_code >= 400 else None
        except (Cancelled, InvalidArgument):  # a file for TLS that is not right is to be put right
            raise
        except LamellaError as raised:
            self._outages.note(host.home, raised)
            error = raised
        else:
            self._outages.end(host.home)
        if error is not None:
            _log.debug("asking the next host: %(reason)s", host=host.home.origin.netloc, reason=error.message)
            return error
        self._given[response] = asked, host
        return response

    def _ask(self, asked: _Asked, host: Host, patience: Patience | None) -> requests.Response:
        """Ask a host, over the other scheme where the likelier one is not what it speaks."""
        guess = host.home.origin
        known = self._spoken.get(guess)
        if known is not None or not host.guessed:
            return self._authorized(asked, host, known or guess, patience)
        other = guess.over("http" if guess.scheme == "https" else "https")
        if guess.scheme == "http":
            response = self._authorized(asked, host, guess, patience)
            if response.status_code != 400:
                self._spoken[guess] = guess
                return response
            if asked.method == "HEAD":  # whose answer has no body to say what is wrong
                discard(response)
                response = self._authorized(asked._replace(method="GET"), host, guess, patience)
            if not wants_tls(refusal(response)):
                # It is the registry's answer, and read: have it once more for the caller.
                self._spoken[guess] = guess
                return self._authorized(asked, host, guess, patience)
            response = self._authorized(asked, host, other, patience)
            self._spoken[guess] = other
            return response
        try:
            response = self._authorized(asked, host, guess, Patience(1, 0, self.transport.stopped))
            self._spoken[guess] = guess
        except Unavailable as error:
            try:
                response = self._authorized(asked, host, other, patience)
            except Unavailable:
                raise error from None
            if response.status_code == 400 and wants_tls(refusal(response)):
                raise error from None
            self._spoken[guess] = other
        return response

    def _authorized(
        self, asked: _Asked, host: Host, origin: Origin, patience: Patience | None
    ) -> requests.Response:
        home = host.home.at(origin)
        identity = self._known(host, home)
        if identity.credential and identity.credential.good_until <= time.time():
            identity = self._identify(host, home)
        scopes = asked.scopes
        if scopes is None:
            scopes = (repository_scope(host.path, "pull"),) if host.path else ()
        url = host.url(asked.path, origin=origin)

        def send(authorization: str | None) -> requests.Response:
            return self.transport.request(
                asked.method,
                url,
                home=home,
                headers=asked.headers,
                authorization=authorization,
                body=asked.body,
                silence=asked.silence,
                patience=patience,
            )

        if Origin.of(url) != origin:
            return send(None)
        authorization = self.authorizer.header(identity, scopes)
        response = send(authorization)
        if response.status_code != 401 or Origin.of(response.url) != origin:
            return response
        challenges = parse_challenges(response.headers.get("WWW-Authenticate", ""))
        with response:
            identity = self._identify(host, home)
            said = refusal(response, self._secrets(identity))
        answer = self.authorizer.answer(identity, scopes, challenges, authorization)
        if answer is None:
            error = error_of(response, asked.what, said)
            error.hint = self._login_hint(host, identity)
            raise error
        return send(answer)

    def _known(self, host: Host, home: Home) -> Identity:
        known = self._identities.get((home.origin, host.domain, host.path))
        return msgspec.structs.replace(known, home=home) if known else Identity(home, None)

    def _identify(self, host: Host, home: Home) -> Identity:
        """Look for credentials; a helper program may be asked, so once for each repository while they are good."""
        key = (home.origin, host.domain, host.path)
        now = time.monotonic()
        with self._looking_up:
            identity = self._identities.get(key)
            if identity is None or identity.found_at + LOOKUP_SECONDS <= now:
                if isinstance(self._credentials, CredentialStore):
                    credential = self._credentials.find(host.domain, host.path)
                else:
                    credential = self._credentials.get(host.domain)
                identity = self._identities[key] = Identity(home, credential, now)
        return identity

    def _secrets(self, identity: Identity) -> list[str]:
        """Give what must appear in no error about a host."""
        own = [*self._headers.values(), *(value for _, value in identity.home.headers)]
        return self.authorizer.secrets(identity) + own

    def _refused(self, response: requests.Response, asked: _Asked, host: Host) -> LamellaError:
        home = host.home
        identity = self._known(host, home.at(self._spoken.get(home.origin, home.origin)))
        error = error_of(response, asked.what, refusal(response, self._secrets(identity)))
        if isinstance(error, Unauthenticated) or (
            isinstance(error, PermissionDenied) and identity.credential is None
        ):
            error.hint = self._login_hint(host, identity)
        return error

    def _login_hint(self, host: Host, identity: Identity) -> str:
        missing = ""
        if host.domain == DEFAULT_DOMAIN:
            # Docker Hub answers alike for what is private and what does not exist.
            missing = "The image does not exist or is private. "
        if identity.credential:
            return f"{missing}The credentials from {identity.credential.source} give no access to it."
        problems = self._credentials.problems if isinstance(self._credentials, CredentialStore) else []
        noted = f" ({'; '.join(problems)})" if problems else ""
        login = f"Log in to {host.domain} (lamella login {host.domain})"
        return f"{missing}{login}; no credentials for it were found{noted}."


class _Asked(NamedTuple):
    """One request about a repository, before it is known which host gets it."""

    method: str
    reference: Reference
    path: str
    headers: Mapping[str, str]
    what: str
    scopes: tuple[str, ...] | None
    body: Body | bytes | None
    silence: float

    @property
    def key(self) -> tuple[str, str, str]:
        """Give what was asked for."""
        return self.reference.domain, self.reference.path, self.path

    @property
    def capability(self) -> str:
        """Say what a host must be able to do."""
        kind, _, name = self.path.partition("/")
        if self.method not in {"GET", "HEAD"} or any(
            "push" in scope.rpartition(":")[2].split(",") for scope in self.scopes or ()
        ):
            return PUSH
        if kind == "referrers":
            return REFERRERS
        return RESOLVE if kind == "tags" or (kind == "manifests" and ":" not in name) else PULL


def _with_others(error: LamellaError, failures: Sequence[LamellaError]) -> LamellaError:
    """Add what other hosts said to the error of the last one."""
    if failures:
        told = "; ".join(dict.fromkeys(failure.message for failure in failures))
        error.message = f"{error.message}; asked before: {told}"
        error.args = (error.message,)
    return error
