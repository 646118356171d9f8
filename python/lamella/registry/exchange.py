"""One request about a repository, answered: where its registry is, as whom it is asked, how a refusal is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import NamedTuple

import requests

from lamella import oci
from lamella.errors import LamellaError, PermissionDenied, Unauthenticated, Unavailable
from lamella.reference import DEFAULT_DOMAIN, DEFAULT_REGISTRY_HOST, Reference, is_loopback
from lamella.registry.auth import Authorizer, Identity, parse_challenges, repository_scope
from lamella.registry.config import RegistryConfig
from lamella.registry.credentials import CredentialStore
from lamella.registry.failures import error_of, is_page, page_error, read_document, refusal, wants_tls
from lamella.registry.sending import Body
from lamella.registry.targets import Origin
from lamella.registry.transport import Patience, Transport

LOOKUP_SECONDS = 10.0
"""Seconds after which credentials that are refused are looked for anew: somebody may have logged in, or they have expired."""


class Exchange:
    """Sends requests about the repositories that references name. Safe to use from several threads."""

    def __init__(self, config: RegistryConfig, *, offline: bool = False) -> None:
        self.transport = Transport(config)
        self.authorizer = Authorizer(self.transport, offline=offline)
        self._config = config
        self._credentials = CredentialStore() if config.credentials is None else config.credentials
        self._looking_up = threading.Lock()
        self._origins: dict[str, Origin] = {}
        self._heard: set[Origin] = set()
        self._identities: dict[tuple[Origin, str], Identity] = {}

    def __repr__(self) -> str:
        return f"Exchange({self._config})"

    def document(
        self, reference: Reference, path: str, what: str, accept: str, *, limit: int = oci.DOCUMENT_MAX
    ) -> tuple[bytes, Mapping[str, str]]:
        """Fetch a document and the headers of the answer; a body that breaks off is fetched again."""
        patience = self.transport.patience()
        while True:
            response = self.request("GET", reference, path, {"Accept": accept}, what=what, patience=patience)
            if response.status_code != 200:
                raise self.error(response, reference, what)
            try:
                data = read_document(response, limit, what)
                if is_page(response):
                    raise page_error(response, what)
                return data, response.headers
            except Unavailable as error:
                self.transport.check_interrupted()
                patience.spend(error)

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
    ) -> requests.Response:
        """Send a request about the reference's repository, with the credentials that the registry asks for.

        A reference with an empty path is the registry itself. ``path`` is below the repository's, or an address that the
        registry gave (of an upload): one at another host gets no credentials. ``scopes`` are what the request needs to be
        allowed (:func:`lamella.registry.auth.repository_scope`); None: to pull. The rest is as in
        :meth:`lamella.registry.transport.Transport.request`.
        """
        origin = self._origin(reference.domain)
        if scopes is None:
            scopes = (repository_scope(reference.path, "pull"),) if reference.path else ()
        if "://" not in path:
            path = f"/v2/{reference.path}/{path}" if reference.path else f"/v2/{path}"
        asked = _Asked(method, path, headers, what, scopes, body, silence, patience)
        response = self._authorized(asked, reference, origin)
        if response.status_code != 400 or origin in self._heard:
            self._heard.add(origin)
            return response
        if origin.scheme == "https" or self._config.plain_http:
            return response
        # This machine is asked over plain HTTP; a registry on it may have TLS all the same.
        said = refusal(response)
        if not wants_tls(said):
            raise error_of(response, what, said)
        secure = origin._replace(scheme="https", port=443 if origin.port == 80 else origin.port)
        response = self._authorized(asked, reference, secure)
        self._origins[reference.domain] = secure
        return response

    def _authorized(self, asked: _Asked, reference: Reference, origin: Origin) -> requests.Response:
        if Origin.of(asked.url(origin)) != origin:
            return self._send(asked, origin, None)
        identity = self._identities.get((origin, reference.path)) or Identity(origin, None)
        if identity.credential and identity.credential.good_until <= time.time():
            identity = self._identify(reference, origin)
        authorization = self.authorizer.header(identity, asked.scopes)
        response = self._send(asked, origin, authorization)
        if response.status_code != 401 or Origin.of(response.url) != origin:
            return response
        challenges = parse_challenges(response.headers.get("WWW-Authenticate", ""))
        identity = self._identify(reference, origin)
        said = refusal(response, self.authorizer.secrets(identity))
        answer = self.authorizer.answer(identity, asked.scopes, challenges, authorization)
        if answer is None:
            error = error_of(response, asked.what, said)
            error.hint = self._login_hint(reference, identity)
            raise error
        return self._send(asked, origin, answer)

    def _send(self, asked: _Asked, origin: Origin, authorization: str | None) -> requests.Response:
        return self.transport.request(
            asked.method,
            asked.url(origin),
            home=origin,
            headers=asked.headers,
            authorization=authorization,
            body=asked.body,
            silence=asked.silence,
            patience=asked.patience,
        )

    def _origin(self, domain: str) -> Origin:
        """Say where the registry of a domain is, and over which scheme it is asked."""
        known = self._origins.get(domain)
        if known is None:
            host = DEFAULT_REGISTRY_HOST if domain == DEFAULT_DOMAIN else domain
            scheme = "http" if self._config.plain_http or is_loopback(domain) else "https"
            known = self._origins.setdefault(domain, Origin.of(f"{scheme}://{host}"))
        return known

    def _identify(self, reference: Reference, origin: Origin) -> Identity:
        """Look for credentials; a helper program may be asked, so once for each repository while they are good."""
        key = (origin, reference.path)
        now = time.monotonic()
        with self._looking_up:
            identity = self._identities.get(key)
            if identity is None or identity.found_at + LOOKUP_SECONDS <= now:
                if isinstance(self._credentials, CredentialStore):
                    credential = self._credentials.find(reference.domain, reference.path)
                else:
                    credential = self._credentials.get(reference.domain)
                identity = self._identities[key] = Identity(origin, credential, now)
        return identity

    def error(self, response: requests.Response, reference: Reference, what: str) -> LamellaError:
        """Make the typed error of an unsuccessful answer, with what the reader can do about it."""
        origin = self._origin(reference.domain)
        identity = self._identities.get((origin, reference.path)) or Identity(origin, None)
        error = error_of(response, what, refusal(response, self.authorizer.secrets(identity)))
        if isinstance(error, Unauthenticated) or (
            isinstance(error, PermissionDenied) and identity.credential is None
        ):
            error.hint = self._login_hint(reference, identity)
        return error

    def _login_hint(self, reference: Reference, identity: Identity) -> str:
        missing = ""
        if reference.domain == DEFAULT_DOMAIN:
            # Docker Hub answers alike for what is private and what does not exist.
            missing = "The image does not exist or is private. "
        if identity.credential:
            return f"{missing}The credentials from {identity.credential.source} give no access to it."
        problems = self._credentials.problems if isinstance(self._credentials, CredentialStore) else []
        noted = f" ({'; '.join(problems)})" if problems else ""
        return f"{missing}Log in to {reference.domain}; no credentials for it were found{noted}."


class _Asked(NamedTuple):
    """One request to a registry, before it is known as whom it is sent."""

    method: str
    path: str
    headers: Mapping[str, str]
    what: str
    scopes: tuple[str, ...]
    body: Body | bytes | None
    silence: float
    patience: Patience | None

    def url(self, origin: Origin) -> str:
        """Give where it goes: an address of its own, or a path at the registry."""
        return self.path if "://" in self.path else f"{origin}{self.path}"
