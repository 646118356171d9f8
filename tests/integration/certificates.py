"""Certificates for the tests of TLS, made by openssl: an authority, and what it says of servers and clients."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path
from typing import NamedTuple


class Pair(NamedTuple):
    """A certificate and its key, in files."""

    certificate: Path
    key: Path


class Authority:
    """A certificate authority in a folder."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / f"{name}.pem"
        self._key = folder / f"{name}.key"
        self._run(
            *("req", "-x509", *_NEW_KEY, "-days", "2", "-subj", f"/CN={name}"),
            *("-keyout", str(self._key), "-out", str(self.file)),
        )

    def issue(self, name: str, *, hosts: str = "IP:127.0.0.1,DNS:localhost", days: int = 2) -> Pair:
        """Make a certificate for ``hosts``; it has expired already with ``days=-1``."""
        pair, request = (
            Pair(self.folder / f"{name}.crt.pem", self.folder / f"{name}.key.pem"),
            str(self.folder / "csr"),
        )
        self._run(
            *("req", *_NEW_KEY, "-subj", f"/CN={name}", "-addext", f"subjectAltName={hosts}"),
            *("-keyout", str(pair.key), "-out", request),
        )
        self._run(
            *("x509", "-req", "-in", request, "-CA", str(self.file), "-CAkey", str(self._key)),
            *("-days", str(days), "-copy_extensions", "copy", "-out", str(pair.certificate)),
        )
        return pair

    def _run(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)


def serving(pair: Pair, *, clients: Authority | None = None) -> ssl.SSLContext:
    """Give what a server takes that shows ``pair``, and wants a certificate of ``clients``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    if clients is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(clients.file)
    return context


_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
