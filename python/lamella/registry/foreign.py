"""Foreign layers from the addresses that the image itself names for them (OCI image spec, descriptor.md, ``urls``).

Whoever made the image chose these addresses, not the registry that has its manifest. So nothing of the registry goes there: no
credentials, whatever the host there asks for (CVE-2020-15157), no headers, no client certificate. HTTPS alone, unless plain HTTP
was asked for, or both are on this machine. An address of a private network is refused unless the registry itself is in one
(:mod:`lamella.registry.transport`); redirects keep to the same rules. What comes is held to its size here, and to its digest by
the reader, as what comes from a registry is.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping

import msgspec
import requests

from lamella.errors import (
    Cancelled,
    DataLoss,
    LamellaError,
    NotFound,
    PermissionDenied,
    Unauthenticated,
)
from lamella.oci import Descriptor
from lamella.reference import is_loopback
from lamella.registry.failures import discard, error_of, refusal
from lamella.registry.patience import Patience
from lamella.registry.targets import Home, Origin
from lamella.registry.transport import Transport

ADDRESSES_MAX = 8
"""Addresses of one layer that are tried at most."""
NOWHERE = Home(origin=Origin("https", "registry.invalid", 443))
"""The registry of what came from none (RFC 2606, "invalid")."""


class Addresses:
    """Where one layer may be had, in the order of its descriptor; one that fails is not asked again while another is left.

    ``home``: the registry that the manifest came from. ``plain_http``: HTTP without TLS was asked for. NotFound if there is
    no address. Safe to use from several threads.
    """

    def __init__(self, transport: Transport, home: Home, descriptor: Descriptor, *, plain_http: bool) -> None:
        self._transport = transport
        # Of the registry's settings those alone that say how anything is reached on its behalf.
        self._home = Home(
            origin=home.origin, tls=msgspec.structs.replace(home.tls, client=()), proxy=home.proxy
        )
        self._descriptor = descriptor
        self._plain_http = plain_http
        self._left = (descriptor.urls or [])[:ADDRESSES_MAX]
        self._failures: list[str] = []
        self._given: weakref.WeakKeyDictionary[requests.Response, str] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()
        if not self._left:
            raise NotFound(
                f"the foreign layer {descriptor.digest} names no address that it could be had from"
            )

    def open_at(self, start: int, end: int, patience: Patience) -> requests.Response:
        """Ask for the layer from one offset to another; see :class:`lamella.registry.stretch.Way`."""
        while True:
            url, is_last = self._left[0], len(self._left) == 1
            try:
                response = self._ask(url, start, end, patience if is_last else self._transport.patience(1))
            except Cancelled:
                raise
            except LamellaError as error:
                if not self._go_on(url, error):
                    raise self._with_others(error) from None
            else:
                self._given[response] = url
                return response

    def pass_over(self, response: requests.Response, error: LamellaError) -> bool:
        """Ask for it elsewhere after an answer that was wrong or broke off; False if there is no other address."""
        return not isinstance(error, Cancelled) and self._go_on(self._given[response], error)

    def _go_on(self, url: str, error: LamellaError) -> bool:
        with self._lock:
            if self._left[0] == url and len(self._left) > 1:
                del self._left[0]
                self._failures.append(error.message)
            return self._left[0] != url

    def _ask(self, url: str, start: int, end: int, patience: Patience) -> requests.Response:
        descriptor = self._descriptor
        what = f"the foreign layer {descriptor.digest}"
        home = self._home_for(url, what)
        headers: Mapping[str, str] = {"Accept": "*/*"}
        if start > 0 or end < descriptor.size:
            headers = {**headers, "Range": f"bytes={start}-{end - 1 if end < descriptor.size else ''}"}
        response = self._transport.request("GET", url, home=home, headers=headers, patience=patience)
        if response.status_code in {200, 206}:
            return response
        if response.status_code == 416:
            discard(response)
            raise DataLoss(f"{what} ends before byte {start}, its descriptor says {descriptor.size}")
        error = error_of(response, what, refusal(response))
        if isinstance(error, Unauthenticated | PermissionDenied):
            error.hint = "An address that an image names for a layer is shown no credentials."
        raise error

    def _home_for(self, url: str, what: str) -> Home:
        """Give the registry as whose guest an address is asked; PermissionDenied for plain HTTP that nobody asked for."""
        target, origin = Origin.of(url), self._home.origin
        if target.scheme == "http" and not self._plain_http and not is_loopback(target.netloc):
            raise PermissionDenied(
                f"{what} would come from {target} without TLS, which was not asked for",
                hint="Use --plain-http if the network in between is trusted.",
            )
        # So that what begins with TLS cannot lead to where there is none, also where the registry has none.
        return self._home.at(origin._replace(scheme=target.scheme))

    def _with_others(self, error: LamellaError) -> LamellaError:
        if self._failures:
            error.message = f"{error.message}; asked before: {'; '.join(dict.fromkeys(self._failures))}"
            error.args = (error.message,)
        return error
