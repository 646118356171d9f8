"""Digests: ``algorithm:hex``, validated before one becomes a path (OCI image spec, descriptor.md, "Digests")."""

from __future__ import annotations

from lamella import _core
from lamella.errors import InvalidArgument, Unsupported
from lamella.typings import NewType

Digest = NewType("Digest", str)
"""A string that passed :func:`parse_digest`."""

HEX_LENGTHS = {"sha256": 64, "sha384": 96, "sha512": 128}
_HEX = frozenset("0123456789abcdef")


def parse_digest(value: str) -> Digest:
    """Return ``value`` as a Digest; InvalidArgument if malformed, Unsupported for another algorithm."""
    algorithm, separator, encoded = value.partition(":")
    if not separator or not algorithm or not encoded:
        raise InvalidArgument(
            f"{value[:200]!r} is not a digest", hint="A digest reads sha256:<64 hex digits>."
        )
    length = HEX_LENGTHS.get(algorithm)
    if length is None:
        raise Unsupported(f"digest algorithm {algorithm[:40]!r} is not one of {', '.join(HEX_LENGTHS)}")
    if len(encoded) != length or not _HEX.issuperset(encoded):
        raise InvalidArgument(
            f"{value[:200]!r} is not a digest", hint=f"{algorithm} takes {length} lower-case hex digits."
        )
    return Digest(value)


def digest_of(data: bytes, algorithm: str = "sha256") -> Digest:
    """Hash ``data``. By the core, since hashlib takes 3 ms to import, for OpenSSL's sake; Unsupported for another algorithm."""
    return Digest(_core.digest_of(data, algorithm))


def split_digest(digest: Digest) -> tuple[str, str]:
    """Return algorithm and hex digits."""
    algorithm, _, encoded = digest.partition(":")
    return algorithm, encoded
