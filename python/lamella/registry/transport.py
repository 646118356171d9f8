"""HTTP to registries: one request with its redirects and retries, and the rules on where it may go.

Two ideas live here, all below the registry's own protocol:

- *Where a request may go.* Plain HTTP only to this machine or where the caller asked for it; never from HTTPS
  down to HTTP; to a private address only if the registry itself is on one, and never away to a link-local one, where
  clouds tell a machine its secrets (the address of the connection counts, not what a name resolved to before); at most
  REDIRECTS_MAX hops. An Authorization header stays with the host it was made for.
- *What is tried again.* Connection failures, silence, 408, 429 and 5xx (:mod:`lamella.registry.patience`). Bodies are not
  drained before a retry, as urllib3 itself would: one may be endless. The waiting can be interrupted from another thread.

Proxies come from the environment (:mod:`lamella.registry.proxies`) unless a host has its own; certificates are the matter
of :mod:`lamella.registry.tls`. ~/.netrc is not read.
"""

from __future__ import annotations

import os
import ssl
import threading
import time
from collections.abc import Callable, Collection, Mapping
from importlib.util import find_spec
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

import msgspec
import requests
from urllib3.connection import HTTPConnection

from lamella._core import __version__
from lamella.errors import LamellaError, PermissionDenied, Unavailable, Unsupported
from lamella.logs import Log
from lamella.reference import is_loopback
from lamella.registry.config import RegistryConfig
from lamella.registry.connections import Adapter, Connections
from lamella.registry.failures import (
    RETRY_STATUSES,
    TRANSPORT_ERRORS,
    discard,
    explain,
    is_caused_by,
    proxy_refusal,
)
from lamella.registry.patience import Patience
from lamella.registry.proxies import describe, parse_proxy, proxy_for
from lamella.registry.sending import Body, SourceFailed, Stale
from lamella.registry.targets import (
    Address,
    Home,
    Origin,
    Tls,
    is_link_local_literal,
    is_private,
    is_private_literal,
    parse_address,
)
from lamella.registry.tls import make_context

REDIRECTS_MAX = 10

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_KEEPING_METHOD = frozenset({307, 308})
_log = Log("lamella.registry")


class _Request(NamedTuple):
    method: str
    url: str
    headers: Mapping[str, str]
    form: Mapping[str, str] | None
    body: Body | bytes | None
    silence: float
    private: Mapping[str, str]
    """Headers for the origin of the first URL alone."""


class Transport:
    """Sends requests for one registry client. Safe to use from several threads."""

    def __init__(self, config: RegistryConfig) -> None:
        self.timeouts = config.timeouts
        self.limits = config.limits
        self._plain_http = config.plain_http
        self._allow_private = config.allow_private
        self._attempts = config.attempts
        self._backoff = config.backoff
        self._headers = config.headers
        self._listener = config.listener
        self._connections = Connections()
        self._private_homes: set[tuple[str, int]] = set()
        self._contexts: dict[Tls, ssl.SSLContext] = {}
        self._unchecked: set[Origin] = set()
        user_agent = config.user_agent or f"lamella/{__version__}"
        self._home = self._session(user_agent, self._note_home)
        self._near = self._session(user_agent, self._refuse_link_local)
        self._away = self._session(user_agent, self._refuse_private)

    def _session(self, user_agent: str, check: Callable[[HTTPConnection], None]) -> requests.Session:
        session = requests.Session()
        session.headers.clear()
        # Registries serve what the digest was made of; a transfer coding on top would only cost time.
        session.headers.update({"User-Agent": user_agent, "Accept-Encoding": "identity"})
        session.auth = _leave_alone
        adapter = Adapter(self._connections, self.timeouts.read, check)
        session.mount("https://", adapter)
        session.mount("http://", adapter)
        return session

    def close(self) -> None:
        """Close all connections; a request under way ends with Cancelled. Harmless twice."""
        self.interrupt()
        self._home.close()
        self._near.close()
        self._away.close()

    def interrupt(self) -> None:
        """End every request and every wait of this transport with Cancelled, from any thread and for good."""
        self._connections.stop()

    @property
    def interrupted(self) -> bool:
        """Say whether :meth:`interrupt` or :meth:`close` was called."""
        return self._connections.stopped.is_set()

    @property
    def stopped(self) -> threading.Event:
        """Give what is set by :meth:`interrupt`, for waits."""
        return self._connections.stopped

    def check_interrupted(self) -> None:
        """Raise Cancelled after :meth:`interrupt`, FailedPrecondition in a process that was forked off."""
        self._connections.check()

    def patience(self, attempts: int | None = None) -> Patience:
        """Give a new count of attempts: of so many as the settings say, unless ``attempts`` says another number."""
        return Patience(self._attempts if attempts is None else attempts, self._backoff, self.stopped)

    def request(
        self,
        method: str,
        url: str,
        *,
        home: Home,
        headers: Mapping[str, str] | None = None,
        authorization: str | None = None,
        form: Mapping[str, str] | None = None,
        body: Body | bytes | None = None,
        silence: float = 0,
        patience: Patience | None = None,
    ) -> requests.Response:
        """Send one request and give the answer with its body unread, whatever its status.

        ``home`` is the registry on whose behalf it is sent; ``authorization`` goes only to the origin of ``url``, and the
        home's own headers only to the home. With ``form`` (a POST) redirects are not followed. ``body`` is sent again after a
        redirect, and with another try. ``silence``: seconds that the answer may take beyond what the settings say. ``patience``
        None: a fresh one.
        Errors: Unavailable (no answer), PermissionDenied (a forbidden target), Unauthenticated (TLS wants a certificate),
        InvalidArgument (a file for TLS), Unsupported (a kind of proxy), Cancelled, and what the body raises.
        """
        patience = patience or self.patience(home.attempts)
        private = {**self._headers, **dict(home.headers)} if Origin.of(url) == home.origin else {}
        if authorization:
            private["Authorization"] = authorization
        sent = _Request(method, url, headers or {}, form, body, silence, private)
        while True:
            try:
                response = self._follow(sent, home)
            except _Broken as broken:
                patience.spend(broken.error)
                _log.debug("trying again: %(reason)s", host=home.origin.netloc, reason=broken.error.message)
                continue
            if response.status_code not in RETRY_STATUSES or not patience.spend_status(response.raw):
                return response
            discard(response)

    def check_target(self, url: str, home: Home) -> Origin:
        """Give the origin of ``url`` if a request for ``home`` may go there; PermissionDenied otherwise."""
        target, origin = Origin.of(url), home.origin
        if target.scheme == "http":
            if origin.scheme == "https":
                raise PermissionDenied(
                    f"{origin.netloc} sends on from HTTPS to plain HTTP at {target.netloc}, which is refused"
                )
            # A home on another machine that is reached without TLS was asked for by name.
            if not self._plain_http and is_loopback(origin.netloc) and not is_loopback(target.netloc):
                raise PermissionDenied(
                    f"{origin.netloc} sends on to {target}, and plain HTTP to another machine was not asked for",
                    hint="Use --plain-http if the network in between is trusted.",
                )
        away = (target.host, target.port) != (origin.host, origin.port)
        if away and not self._may_be_private(origin) and is_private_literal(target.host):
            raise _private(target.netloc)
        if away and not self._allow_private and is_link_local_literal(target.host):
            raise _private(target.netloc)
        return target

    def _follow(self, request: _Request, home: Home) -> requests.Response:
        owner = Origin.of(request.url)
        for _ in range(REDIRECTS_MAX + 1):
            target = self.check_target(request.url, home)
            response = self._send(request, target, home)
            location = response.headers.get("Location")
            if response.status_code not in _REDIRECTS or not location:
                return response
            discard(response)
            if request.form is not None:
                raise PermissionDenied(
                    f"{target.netloc} redirects a request that carries credentials, which is refused"
                )
            if request.method not in {"GET", "HEAD"} and response.status_code not in _KEEPING_METHOD:
                raise Unavailable(
                    f"{target.netloc} redirects {request.method} by {response.status_code}, which would make it a GET",
                    hint="Name the registry by the address that it redirects to.",
                )
            request = request._replace(url=_joined(request.url, location))
            if Origin.of(request.url) != owner:
                # Not even if a later hop leads back: what is in between chose that hop.
                request = request._replace(private={})
        raise Unavailable(f"{owner.netloc} redirects more than {REDIRECTS_MAX} times")

    def _send(self, request: _Request, target: Origin, home: Home) -> requests.Response:
        self.check_interrupted()
        origin = home.origin
        at_home = (target.host, target.port) == (origin.host, origin.port)
        session = self._away
        if at_home or self._allow_private:
            session = self._home
        elif self._may_be_private(origin):
            session = self._near
        # A client certificate says who one is, as credentials do.
        tls = home.tls if at_home else msgspec.structs.replace(home.tls, client=())
        proxy = self._proxy(home, target)
        timeouts = self.timeouts._replace(connect=home.connect_timeout or self.timeouts.connect)
        if home.silence is not None:
            timeouts = timeouts._replace(read=min(home.silence, timeouts.read))
        context = self._context(tls, target)
        while True:
            try:
                prepared = session.prepare_request(
                    requests.Request(
                        request.method,
                        request.url,
                        headers={**request.headers, **request.private},
                        data=request.form or request.body,
                    )
                )
                if self._listener is not None:
                    self._listener.head(_head_of(prepared, request.private))
                began = time.monotonic()
                # Not session.send: even with allow_redirects=False it reads the whole body of a redirect.
                response = session.get_adapter(request.url).send(
                    prepared,
                    stream=True,
                    timeout=(timeouts.connect, timeouts.read + request.silence),
                    verify=context,  # type: ignore[arg-type]  # see Adapter
                    proxies={"all": proxy} if proxy else {},
                )
                break
            except SourceFailed as failed:
                raise failed.error from None
            except _PrivateAddress:
                raise _private(target.netloc) from None
            except TRANSPORT_ERRORS as error:
                self.check_interrupted()
                if is_caused_by(error, Stale):
                    continue
                failure = explain(error, target, timeouts, tls=tls, proxy=proxy and describe(proxy))
                if self._listener is not None:
                    self._listener.line(f"{request.method} {_shown(request.url)}: {failure.error.message}")
                raise (_Broken(failure.error) if failure.passing else failure.error) from None
        if response.status_code == 407 and proxy:
            discard(response)
            raise proxy_refusal(describe(proxy), target.netloc, 407)
        seconds = time.monotonic() - began
        if self._listener is not None:
            self._listener.head(_head_of_answer(response))
            self._listener.line(
                f"{request.method} {_shown(request.url)}: {response.status_code} in {seconds:.3f} s"
            )
        _log.debug(
            "%(method)s %(host)s%(path)s: %(status)d in %(seconds).3f s",
            method=request.method,
            host=target.netloc,
            # What a registry sends on to may be signed, in the query or the path; queries are not logged at all.
            path=urlsplit(request.url).path if target == origin else "/...",
            status=response.status_code,
            seconds=seconds,
        )
        return response

    def _context(self, tls: Tls, target: Origin) -> ssl.SSLContext | None:
        """Give the context for connections to ``target``, None for those without TLS."""
        if target.scheme != "https":
            return None
        context = self._contexts.get(tls)
        if context is None:
            context = self._contexts.setdefault(tls, make_context(tls))
        if tls.skip_verify and target not in self._unchecked:
            self._unchecked.add(target)
            _log.warning("the certificate of %(host)s is not checked", host=target.netloc)
        return context

    @staticmethod
    def _proxy(home: Home, target: Origin) -> str | None:
        proxy = parse_proxy(home.proxy, "proxy") if home.proxy else proxy_for(target, os.environ)
        if proxy and proxy.startswith("socks") and find_spec("socks") is None:
            raise Unsupported(
                f"{describe(proxy)} is a SOCKS proxy, for which a package is missing",
                hint="Install it: pip install PySocks",
            )
        return proxy

    def _may_be_private(self, home: Origin) -> bool:
        return (
            self._allow_private
            or (home.host, home.port) in self._private_homes
            or is_private_literal(home.host)
        )

    def _note_home(self, connection: HTTPConnection) -> None:
        address = _peer(connection)
        if address is not None and is_private(address):
            self._private_homes.add((connection.host.lower().strip("[]"), connection.port))

    def _refuse_link_local(self, connection: HTTPConnection) -> None:
        address = _peer(connection)
        if address is not None and address.is_link_local:  # such as a cloud's service for its machines
            raise _PrivateAddress

    def _refuse_private(self, connection: HTTPConnection) -> None:
        address = _peer(connection)
        if address is not None and is_private(address):
            raise _PrivateAddress


def _joined(base: str, location: str) -> str:
    try:
        return urljoin(base, location)
    except ValueError:
        raise Unavailable(f"{Origin.of(base).netloc} redirects to a malformed address") from None


_SECRET = frozenset({"authorization", "cookie", "set-cookie", "proxy-authorization"})
_ADDRESSES = frozenset({"location", "content-location", "link"})


def _head_of(request: requests.PreparedRequest, private: Mapping[str, str]) -> str:
    secret = _SECRET | {name.lower() for name in private}
    url = urlsplit(request.url or "")
    path = _shown(str(request.path_url))
    return _head(f"{request.method} {path} HTTP/1.1", {"Host": url.netloc, **request.headers}, secret)


def _head_of_answer(response: requests.Response) -> str:
    status = f"HTTP/1.1 {response.status_code} {response.reason or ''}".rstrip()
    return _head(status, response.headers, _SECRET)


def _head(first: str, headers: Mapping[str, str], secret: Collection[str]) -> str:
    lines = [first]
    for name, value in headers.items():
        shown = value if isinstance(value, str) else bytes(value).decode("latin-1")
        if name.lower() in _ADDRESSES:
            shown = _shown(shown)
        lines.append(f"{name}: {'...' if name.lower() in secret else shown}")
    return "\r\n".join([*lines, "", ""])


def _shown(address: str) -> str:
    """Leave out queries, in which addresses are signed."""
    path, mark, _ = address.partition("?")
    return path + (mark and "?...")


def _private(netloc: str) -> PermissionDenied:
    return PermissionDenied(
        f"the registry sends on to {netloc}, an address of a private network, which is refused",
        hint="A registry in the same private network may do so; a public one may not.",
    )


def _peer(connection: HTTPConnection) -> Address | None:
    sock = connection.sock
    try:
        return parse_address(sock.getpeername()[0]) if sock is not None else None
    except (OSError, ValueError):
        return None


def _leave_alone(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Add no credentials: without this requests would look them up in ~/.netrc and in the URL."""
    return request


class _PrivateAddress(Exception):
    pass


class _Broken(Exception):
    def __init__(self, error: LamellaError) -> None:
        self.error = error
