"""Who may do what with a registry: guards."""

from __future__ import annotations

import base64
import binascii
import hmac
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from lamella.errors import InvalidArgument, LamellaError, NotFound, PermissionDenied, Unsupported
from lamella.logs import Log

_BCRYPT = ("$2y$", "$2b$", "$2a$")
_BCRYPT_BYTES = 72
"""What bcrypt looks at of a password; so does htpasswd."""
_KNOWN_MAX = 1000
_log = Log("lamella.registry")


class Access(msgspec.Struct, frozen=True):
    """What somebody wants to do: ``pull``, ``push`` or ``delete`` in a repository; ``""`` is the registry itself.

    ``domain`` is whose repository it is where the registry is asked as a mirror of another one.
    """

    repository: str
    action: str
    authorization: str | None
    domain: str | None = None

    @property
    def user(self) -> str | None:
        """Who it says he is, by a Basic authorization; whether that is true, a guard knows."""
        return _basic(self.authorization).partition(b":")[0].decode("utf-8", "backslashreplace") or None

    def __repr__(self) -> str:
        return f"Access({self.repository!r}, {self.action!r})"


Guard = Callable[[Access], str | None]
"""Gives None to allow an access, else the WWW-Authenticate challenge of the 401 answer."""


def basic_auth(users: Mapping[str, str], realm: str = "registry") -> Guard:
    """Make a guard that lets the users of ``users`` (name to password) do everything and nobody else anything."""

    def guard(access: Access) -> str | None:
        given = _basic(access.authorization)
        # Every user is compared, so that the time taken tells nothing.
        allowed = [
            hmac.compare_digest(given, f"{name}:{password}".encode()) for name, password in users.items()
        ]
        return None if any(allowed) else f'Basic realm="{realm}"'

    return guard


def htpasswd(path: Path, realm: str = "registry") -> Guard:
    """Make a guard that lets the users of a file do everything and nobody else anything; it follows changes of the file.

    The file is that of ``htpasswd -B``: a line ``NAME:HASH`` a user, the hash bcrypt's; other hashes can be broken.
    Errors: NotFound and PermissionDenied for the file, InvalidArgument for a line, Unsupported without the bcrypt package.
    """
    return _PasswordFile(path, realm)


class _PasswordFile:
    def __init__(self, path: Path, realm: str) -> None:
        try:
            import bcrypt
        except ImportError:
            raise Unsupported(
                "password files need the bcrypt package", hint="Install it: pip install 'lamella[serve-auth]'"
            ) from None
        self._check = bcrypt.checkpw
        self._nobody = bcrypt.hashpw(os.urandom(16).hex().encode(), bcrypt.gensalt(10))
        self._path = path
        self._challenge = f'Basic realm="{realm}"'
        self._lock = threading.Lock()
        self._hashing = threading.Lock()
        self._key = os.urandom(32)
        self._stamp: tuple[int, int, int] | None = None
        self._users: dict[bytes, bytes] = {}
        self._known: set[bytes] = set()
        self._follow()

    def __call__(self, access: Access) -> str | None:
        name, _, password = _basic(access.authorization).partition(b":")
        if not name:
            return self._challenge
        with self._lock:
            try:
                self._follow()
            except LamellaError as error:
                _log.warning("nobody is let in: %(reason)s", reason=str(error))
                return self._challenge
            exists = name in self._users
            hashed = self._users[name] if exists else self._stand_in(name)
            known = self._digest(name, hashed, password)
            if exists and known in self._known:
                return None
        # One at a time: a hash takes a tenth of a second of a core, and a pull has dozens of requests. Who is known does
        # not wait for those that try.
        with self._hashing:
            if exists and known in self._known:
                return None
            try:
                right = self._check(password[:_BCRYPT_BYTES], hashed)
            except ValueError:  # a malformed hash, or a NUL in the password
                right = False
            if not right or not exists:
                return self._challenge
            if len(self._known) >= _KNOWN_MAX:
                self._known.clear()
            self._known.add(known)
            return None

    def _stand_in(self, name: bytes) -> bytes:
        """Give an unknown user some user's hash, always the same, so that neither the time nor its absence tells who is known."""
        hashes = [*self._users.values()] or [self._nobody]
        return hashes[int.from_bytes(self._digest(name)) % len(hashes)]

    def _digest(self, *parts: bytes) -> bytes:
        return hmac.digest(self._key, b"\0".join(parts), "sha256")

    def _follow(self) -> None:
        """Read the file if it is another one than it was."""
        try:
            found = self._path.stat()
            stamp = found.st_ino, found.st_mtime_ns, found.st_size
            if stamp != self._stamp:
                self._users = _read_users(self._path)
                self._stamp = stamp
                self._known.clear()
        except FileNotFoundError:
            raise NotFound(f"there is no password file {self._path}") from None
        except OSError as error:
            raise PermissionDenied(
                f"the password file {self._path} cannot be read: {error.strerror}"
            ) from None


def _read_users(path: Path) -> dict[bytes, bytes]:
    users = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        name, _, hashed = line.strip().partition(b":")
        if not name or name.startswith(b"#"):
            continue
        if not hashed.startswith(tuple(prefix.encode() for prefix in _BCRYPT)):
            raise InvalidArgument(
                f"line {number} of {path} has no bcrypt hash", hint=f"Make it anew: htpasswd -B {path} NAME"
            )
        users[name] = hashed
    return users


def _basic(authorization: str | None) -> bytes:
    """Give ``NAME:PASSWORD`` of a Basic authorization (RFC 7617); nothing for another."""
    scheme, _, encoded = (authorization or "").partition(" ")
    if scheme.lower() != "basic":
        return b""
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return b""
