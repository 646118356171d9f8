"""What can go wrong between here and a registry, as typed errors: broken connections and refusals.

An error names the host and the reason; it never quotes a header, a query string (pre-signed URLs carry secrets there)
or a body that was not scrubbed.
"""

from __future__ import annotations

import http.client
import os
import re
import socket
import ssl
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

import msgspec
import requests
import urllib3
from urllib3.util.retry import Retry

from lamella.errors import (
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    LamellaError,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unsupported,
)
from lamella.registry.config import Timeouts
from lamella.registry.pace import RATE_MIN, TooSlow
from lamella.registry.targets import Origin, Tls
from lamella.registry.tls import words

_EXPIRED = 10
_NOT_YET_VALID = 9
_OTHER_NAME = frozenset({62, 64})
"""Of a host, of an address (OpenSSL's X509_V_ERR numbers)."""
_SPEAKS_NO_TLS = frozenset(
    {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"}
)
_WANTS_CERTIFICATE = frozenset(
    {"TLSV13_ALERT_CERTIFICATE_REQUIRED", "SSLV3_ALERT_HANDSHAKE_FAILURE", "SSLV3_ALERT_BAD_CERTIFICATE"}
)
_REFUSES_CERTIFICATE = frozenset(
    {
        "TLSV1_ALERT_UNKNOWN_CA",
        "SSLV3_ALERT_BAD_CERTIFICATE",
        "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
        "SSLV3_ALERT_CERTIFICATE_EXPIRED",
        "SSLV3_ALERT_CERTIFICATE_REVOKED",
        "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
        "TLSV1_ALERT_ACCESS_DENIED",
    }
)

RETRY_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
ERROR_BODY_MAX = 64 * 1024
DOCUMENT_SECONDS = 120.0
"""How long one document may take to arrive; blobs have no such limit, only one on silence."""

TRANSPORT_ERRORS = (
    requests.RequestException,
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    OSError,
    ValueError,
)
"""What requests, urllib3 and http.client raise between them when a connection or an answer is broken."""


_TUNNEL = re.compile(r"Tunnel connection failed: ([0-9]{3})")
_SPOKE_HTTP_TO_TLS = re.compile(
    r"HTTP request to an? HTTPS server|plain HTTP request was sent to HTTPS port", re.I
)


_OUT_OF_SPACE = re.compile(r"quota|exceed\w* .*limit|insufficient storage|no space", re.I)


def retry_after(header: str | None) -> float | None:
    """Read a Retry-After header (seconds or a date) as seconds from now; None if absent or malformed."""
    if not header:
        return None
    try:
        return Retry().parse_retry_after(header)
    except (urllib3.exceptions.InvalidHeader, ValueError, OverflowError):
        return None


def read_document(
    response: requests.Response, limit: int, what: str, *, seconds: float = DOCUMENT_SECONDS
) -> bytes:
    """Read a body of at most ``limit`` bytes and close the answer.

    Errors: ResourceExhausted over the limit, DeadlineExceeded after ``seconds``, Unavailable when the connection breaks.
    """
    origin = Origin.of(response.url)
    deadline = time.monotonic() + seconds
    parts: list[bytes] = []
    size = 0
    try:
        declared = response.headers.get("Content-Length", "")
        if response.request.method != "HEAD" and declared.isdecimal() and int(declared) > limit:
            raise ResourceExhausted(f"{what} has {declared} bytes, at most {limit} are read")
        while True:
            part = response.raw.read1(64 * 1024, decode_content=True)
            if not part:
                break
            parts.append(part)
            size += len(part)
            if size > limit:
                raise ResourceExhausted(f"{what} has over {limit} bytes, more are not read")
            if time.monotonic() > deadline:
                raise DeadlineExceeded(f"{origin.netloc} took more than {seconds:g} s to send {what}")
    except LamellaError:
        raise
    except TRANSPORT_ERRORS as error:
        raise explain(error, origin, None).error from None
    finally:
        # A body that was read whole has given its connection back already.
        response.close()
    return b"".join(parts)


def is_page(response: requests.Response) -> bool:
    """Say whether an answer calls itself a web page: of a proxy, or of a network that wants a login first."""
    return response.headers.get("Content-Type", "").partition(";")[0].strip().lower() == "text/html"


def page_error(response: requests.Response, what: str) -> Unavailable:
    """Make the error of a web page where a registry should have answered, and close the answer."""
    response.close()
    return Unavailable(
        f"{Origin.of(response.url).netloc} answers the request for {what} with a web page",
        hint="Is this an OCI registry, and does nothing on the way to it ask for a login?",
    )


def discard(response: requests.Response) -> None:
    """Be done with an answer whose body is of no interest; a short one is read, so that its connection can be kept."""
    length = response.headers.get("Content-Length", "")
    bodiless = response.request.method == "HEAD" or response.status_code in {204, 304}
    if bodiless or (length.isdecimal() and int(length) <= ERROR_BODY_MAX):
        with suppress(LamellaError):
            read_document(response, ERROR_BODY_MAX, "the answer", seconds=5)
    response.close()


class _ServerError(msgspec.Struct, frozen=True):
    code: str = ""
    message: str = ""


class _ServerErrors(msgspec.Struct, frozen=True):
    """The error document of the distribution spec ("Error Codes")."""

    errors: list[_ServerError] | None = None


def error_of(response: requests.Response, what: str, said: str) -> LamellaError:  # noqa: PLR0911 - one a status
    """Make the typed error of an unsuccessful answer. ``what`` was asked for, ``said`` is :func:`refusal` of it."""
    host = Origin.of(response.url).netloc
    status = response.status_code
    told = f"{host} answers {status}" + (f" ({said})" if said else "")
    if response.request.method not in {"GET", "HEAD"} and (
        refused := _refused_change(f"{what}: {told}", status, said)
    ):
        return refused
    if status == 401:
        return Unauthenticated(f"{what}: {told}")
    if status == 403:
        return PermissionDenied(f"{what}: {told}", hint="The credentials in use do not allow this.")
    if status == 404:
        return NotFound(f"{what} is not there: {told}", hint="Check the name and the tag or digest.")
    if status == 429:
        pause = retry_after(response.headers.get("Retry-After"))
        wait = f"Try again in {pause:.0f} s" if pause else "Try again later"
        return Unavailable(
            f"{what}: {told}: too many requests", hint=f"{wait}, or log in for a higher limit."
        )
    if status in {405, 501}:
        return Unsupported(f"{what}: {told}", hint="This registry does not offer that.")
    if status in RETRY_STATUSES or status >= 500:
        return Unavailable(f"{what}: {told}", hint="The registry has a problem; try again later.")
    if status == 400 and wants_tls(said):
        return Unavailable(
            f"{host} speaks HTTPS and was asked over plain HTTP", hint="Leave --plain-http out."
        )
    return Unavailable(f"{what}: {told}, which is no answer to this request", hint="Is this an OCI registry?")


def _refused_change(told: str, status: int, said: str) -> LamellaError | None:  # noqa: PLR0911 - one a reason
    """Make the typed error of a refused push or deletion by the spec's error codes; None where the status says it all."""
    if status in {413, 507} or (status in {400, 403, 412} and _OUT_OF_SPACE.search(said)):
        return ResourceExhausted(told, hint="The registry takes no more, or nothing so large.")
    if status == 405 or (status < 500 and "UNSUPPORTED" in said):
        return Unsupported(told, hint="A mirror, or a registry that is read-only, does not allow this.")
    if "BLOB_UNKNOWN" in said or (status == 400 and "MANIFEST_UNKNOWN" in said):
        return NotFound(told, hint="The registry does not have what it refers to.")
    if "DIGEST_INVALID" in said or "SIZE_INVALID" in said:
        return DataLoss(told, hint="The registry did not receive what was sent.")
    if "MANIFEST_INVALID" in said or "TAG_INVALID" in said or "NAME_INVALID" in said:
        return InvalidArgument(told)
    if status in {409, 412}:
        return FailedPrecondition(told, hint="Tags of this repository may be immutable.")
    if status == 404 and "NAME_UNKNOWN" in said:
        return NotFound(told, hint="This registry wants the repository to be made first.")
    return None


def wants_tls(said: str) -> bool:
    """Say whether a server complains that it speaks HTTPS and was asked over plain HTTP (Go's and nginx's words)."""
    return bool(_SPOKE_HTTP_TO_TLS.search(said))


def refusal(response: requests.Response, secrets: Iterable[str] = ()) -> str:
    """Read what a server says of its refusal: short, printable, without secrets. Closes the answer."""
    try:
        body = read_document(response, ERROR_BODY_MAX, "the error message", seconds=5)
    except LamellaError:
        return ""
    try:
        errors = msgspec.json.decode(body, type=_ServerErrors).errors or []
        text = "; ".join(f"{error.code}: {error.message}".strip(": ") for error in errors[:3])
    except (msgspec.MsgspecError, UnicodeDecodeError):
        text = body.decode(errors="replace") if len(body) <= 500 and b"<" not in body else ""
    for secret in secrets:
        text = text.replace(secret, "***")
    text = "".join(char if char.isprintable() else " " for char in text)
    return " ".join(text.split())[:300]


class Unreachable(Unavailable):
    """There is no connection to the host, no TLS on it, or no word from it; callers know it as Unavailable."""

    kind = "Unavailable"


class Failure(NamedTuple):
    """A broken request as an error, and whether another try may help."""

    error: LamellaError
    passing: bool


def explain(  # noqa: PLR0911 - one a cause
    error: BaseException,
    target: Origin,
    timeouts: Timeouts | None,
    *,
    tls: Tls = Tls(),  # noqa: B008 - it is frozen
    proxy: str | None = None,
) -> Failure:
    """Say why a request got no answer, without quoting URLs or headers. ``proxy``: the one that it went through."""
    host = target.netloc
    chain = list(_chain(error))
    if _first(chain, requests.exceptions.ProxyError) or _first(chain, urllib3.exceptions.ProxyError):
        return _explain_proxy(chain, proxy or "the proxy", host)
    resolution = _first(chain, socket.gaierror)
    if resolution:
        text = f"the name {target.host!r} cannot be resolved"
        hint = "Check the registry's name and this machine's network."
        return Failure(Unreachable(text, hint=hint), passing=resolution.errno == socket.EAI_AGAIN)
    insecure = _first(chain, ssl.SSLError)
    if insecure:
        return _explain_tls(insecure, host, tls)
    if _first(chain, urllib3.exceptions.ConnectTimeoutError) and not _first(chain, ConnectionError):
        seconds = f" within {timeouts.connect:g} s" if timeouts else ""
        return Failure(Unreachable(f"no connection to {host}{seconds}"), passing=True)
    if _first(chain, TooSlow):
        return Failure(Unavailable(f"{host} sends less than {RATE_MIN} bytes a second"), passing=True)
    if _first(chain, urllib3.exceptions.ReadTimeoutError) or _first(chain, TimeoutError):
        seconds = f" for {timeouts.read:g} s" if timeouts else " for too long"
        return Failure(Unreachable(f"{host} sent nothing{seconds}"), passing=True)
    if _first(chain, ConnectionRefusedError):
        hint = f"Is a registry listening on port {target.port} there?"
        return Failure(Unreachable(f"{host} refused the connection", hint=hint), passing=True)
    if _first(chain, requests.exceptions.InvalidURL) or _first(chain, urllib3.exceptions.LocationValueError):
        return Failure(Unreachable(f"{host} is not a host that a request can be sent to"), passing=False)
    number = next((e.errno for e in reversed(chain) if isinstance(e, OSError) and e.errno), None)
    if number:
        return Failure(Unavailable(f"the connection to {host} failed: {os.strerror(number)}"), passing=True)
    return Failure(
        Unavailable(f"{host} broke the connection off before the answer was complete"), passing=True
    )


def is_caused_by(error: BaseException, kind: type[BaseException]) -> bool:
    """Say whether an error of requests has one of this kind among its causes."""
    return _first(list(_chain(error)), kind) is not None


def _explain_tls(error: ssl.SSLError, host: str, tls: Tls) -> Failure:
    reason = error.reason or ""
    if isinstance(error, ssl.SSLCertVerificationError):
        return Failure(_untrusted(error, host, tls), passing=False)
    if reason in _SPEAKS_NO_TLS:
        hint = "If it is meant to be used without TLS, say --plain-http."
        return Failure(Unreachable(f"{host} does not speak HTTPS", hint=hint), passing=False)
    if not tls.client and reason in _WANTS_CERTIFICATE:
        hint = "Name it with --cert and --key, or in the host's folder (client.cert and client.key)."
        text = f"{host} wants a client certificate ({words(reason)})"
        return Failure(Unauthenticated(text, hint=hint), passing=False)
    if tls.client and reason in _WANTS_CERTIFICATE | _REFUSES_CERTIFICATE:
        files = ", ".join(certificate for certificate, _ in tls.client)
        text = f"{host} refuses the client certificate ({words(reason)})"
        return Failure(Unauthenticated(text, hint=f"It is that of {files}."), passing=False)
    text = f"TLS with {host} failed" + (f": {words(reason)}" if reason else "")
    broke_off = isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError))
    hint = "Does the registry speak HTTPS on this port, and does it want a client certificate?"
    return Failure(Unreachable(text, hint=hint), passing=broke_off)


def _untrusted(error: ssl.SSLCertVerificationError, host: str, tls: Tls) -> Unreachable:
    if error.verify_code in {_EXPIRED, _NOT_YET_VALID}:
        text = f"the certificate of {host} is not trusted: {error.verify_message}"
        return Unreachable(text, hint="The registry needs a new one; or is this machine's clock wrong?")
    if error.verify_code in _OTHER_NAME:
        text = f"the certificate of {host} is for another name: {error.verify_message}"
        return Unreachable(text, hint="Use the name that the certificate is for.")
    known = f"Neither {', '.join(tls.ca)} nor the system vouches for it" if tls.ca else ""
    hint = f"{known}; is it another CA's?" if known else "Name its CA's file with --ca, or in SSL_CERT_FILE."
    return Unreachable(f"the certificate of {host} is not trusted: {error.verify_message}", hint=hint)


def _explain_proxy(chain: list[BaseException], proxy: str, host: str) -> Failure:
    refused = next((match for error in chain if (match := _TUNNEL.search(str(error)))), None)
    if refused is None:
        hint = "Check HTTPS_PROXY, HTTP_PROXY and NO_PROXY."
        return Failure(Unreachable(f"{proxy} gives no connection to {host}", hint=hint), passing=True)
    status = int(refused[1])
    return Failure(proxy_refusal(proxy, host, status), passing=status in RETRY_STATUSES)


def proxy_refusal(proxy: str, host: str, status: int) -> LamellaError:
    """Make the error of a proxy that does not let a request through."""
    if status == 407:
        hint = "Put them into the proxy's URL: http://USER:PASSWORD@HOST:PORT."
        return Unauthenticated(f"{proxy} wants credentials before it connects to {host}", hint=hint)
    if status == 403:
        hint = "Ask who runs the proxy to allow it, or name the host in NO_PROXY."
        return PermissionDenied(f"{proxy} refuses to connect to {host}", hint=hint)
    return Unreachable(f"{proxy} answers {status} and gives no connection to {host}")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Walk an error's causes; requests and urllib3 keep them in args and in ``reason``, too."""
    seen: set[int] = set()
    waiting: list[Any] = [error]
    while waiting:
        current = waiting.pop(0)
        if not isinstance(current, BaseException) or id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        waiting += [*current.args, getattr(current, "reason", None), current.__cause__, current.__context__]


_Error = TypeVar("_Error", bound=BaseException)


def _first(chain: list[BaseException], kind: type[_Error]) -> _Error | None:
    return next((error for error in chain if isinstance(error, kind)), None)
