"""TLS with registries: whose certificates are believed, and which ones are shown.

Believed are the system's authorities (or those that SSL_CERT_FILE, SSL_CERT_DIR, REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE
name, or certifi's where there are none), and besides these what a :class:`~lamella.registry.targets.Tls` names.
"""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import requests
import urllib3

from lamella.errors import InvalidArgument, PermissionDenied
from lamella.logs import Log
from lamella.registry.targets import Tls

_BUNDLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_log = Log("lamella.registry")


def make_context(tls: Tls) -> ssl.SSLContext:
    """Read the files that ``tls`` names into a context for connections.

    Of several client certificates with keys of one kind OpenSSL shows the first. Errors, each with the file's name:
    InvalidArgument for one that is not there, is no PEM, or does not fit; PermissionDenied.
    """
    context = urllib3.util.ssl_.create_urllib3_context()
    if tls.skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        _trust_known(context)
        for file in tls.ca:
            _trust(context, file, "CA file")
    for certificate, key in reversed(tls.client):
        _show(context, certificate, key or certificate)
    return context


def words(reason: str) -> str:
    """Write a reason of OpenSSL's (``KEY_VALUES_MISMATCH``) as people do."""
    return reason.replace("_", " ").lower()


def _trust_known(context: ssl.SSLContext) -> None:
    for name in _BUNDLES:
        bundle = os.environ.get(name)
        if bundle:
            _trust(context, bundle, f"{name} file")
            return
    context.load_default_certs()
    paths = ssl.get_default_verify_paths()
    has_folder = paths.capath is not None and any(Path(paths.capath).iterdir())
    if paths.cafile is None and not has_folder:
        context.load_verify_locations(requests.certs.where())


def _trust(context: ssl.SSLContext, file: str, what: str) -> None:
    if Path(file).is_dir():
        context.load_verify_locations(capath=file)
        return
    _check_readable(file, what)
    try:
        context.load_verify_locations(cafile=file)
    except ssl.SSLError:
        raise _no_pem(file, what, "certificates") from None


def _show(context: ssl.SSLContext, certificate: str, key: str) -> None:
    _check_readable(certificate, "client certificate")
    _check_readable(key, "client key")
    try:
        if Path(key).stat().st_mode & 0o004:
            _log.warning("the client key %(file)s can be read by every user of this machine", file=key)
        context.load_cert_chain(certificate, key, password=_no_password)
    except _Encrypted:
        raise InvalidArgument(
            f"the client key {key} is encrypted",
            hint="Take the passphrase off (openssl pkey -in KEY -out NEW).",
        ) from None
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise InvalidArgument(
                f"the client key {key} does not belong to the certificate {certificate}",
                hint="Name the two that were made together.",
            ) from None
        for file, what in ((certificate, "CERTIFICATE"), (key, "PRIVATE KEY")):
            if f"{what}-----" not in Path(file).read_text(errors="replace"):
                raise _no_pem(
                    file, f"client {'key' if file == key else 'certificate'}", f"a {what.lower()}"
                ) from None
        raise InvalidArgument(
            f"the client certificate {certificate} with the key {key} cannot be used: {words(error.reason or 'damaged')}"
        ) from None


def _check_readable(file: str, what: str) -> None:
    try:
        with Path(file).open("rb") as stream:
            stream.read(1)
    except PermissionError:
        raise PermissionDenied(
            f"the {what} {file} cannot be read", hint="Give this user the right to."
        ) from None
    except OSError as error:
        raise InvalidArgument(
            f"the {what} {file} cannot be read: {error.strerror}", hint="Check its name."
        ) from None


def _no_pem(file: str, what: str, content: str) -> InvalidArgument:
    return InvalidArgument(
        f"the {what} {file} holds no {content.removeprefix('a ')} in PEM form",
        hint="Convert DER with 'openssl x509 -inform der' or 'openssl pkey -inform der'.",
    )


class _Encrypted(Exception):
    pass


def _no_password() -> str:
    """Stand for the passphrase of a key: without this OpenSSL would ask the terminal."""
    raise _Encrypted
