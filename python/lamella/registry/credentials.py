"""Credentials for registries, from where docker and podman keep them, and from what the clouds have on a machine.

Files, the first that knows the registry wins::

    $REGISTRY_AUTH_FILE
    $DOCKER_CONFIG/config.json, or ~/.docker/config.json
    $XDG_RUNTIME_DIR/containers/auth.json, or /run/containers/UID/auth.json
    $XDG_CONFIG_HOME/containers/auth.json, or ~/.config/containers/auth.json

In a file (:mod:`lamella.registry.authfile`) the entry of the repository or of a namespace above it goes first, then the
helper program that the file names for the registry or for all, then the registry's own entry.

Registries of Amazon (:mod:`lamella.registry.ecr`) and Google (:mod:`lamella.registry.google`) that no file knows are asked with
what the machine has for those clouds.

Secrets are in no repr and in no error.
"""

from __future__ import annotations

import base64
import math
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from lamella.errors import InvalidArgument, LamellaError
from lamella.logs import Log
from lamella.reference import DEFAULT_DOMAIN
from lamella.registry import authfile, helpers
from lamella.registry.authfile import HUB_NAMES, AuthFile, Entry

if TYPE_CHECKING:
    from lamella.registry.ecr import Ecr
    from lamella.registry.google import Google

_log = Log("lamella.registry")


class Credential(msgspec.Struct, frozen=True, kw_only=True):
    """A user name and password, or a token, and where it was found.

    An identity token (OAuth 2 refresh token) is for the token server, a registry token is itself the bearer token.
    ``good_until``: when it has to be looked for anew (seconds since 1970).
    """

    username: str = ""
    password: str = ""
    identity_token: str = ""
    registry_token: str = ""
    source: str = "the caller"
    good_until: float = math.inf

    def __repr__(self) -> str:
        what = "token" if self.identity_token or self.registry_token else "password"
        return f"Credential({what} from {self.source})"

    __str__ = __repr__

    def __rich_repr__(self) -> list[tuple[str, str]]:
        return [("source", self.source)]

    @property
    def basic(self) -> str | None:
        """Give the value of an Authorization header for HTTP Basic (RFC 7617), None where only a token is known."""
        if not self.password and (self.identity_token or not self.username):
            return None
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()

    @property
    def secrets(self) -> tuple[str, ...]:
        """Give the strings that must appear nowhere."""
        basic = self.basic
        encoded = basic.removeprefix("Basic ") if basic else ""
        secrets = (self.password, self.identity_token, self.registry_token, encoded)
        return tuple(secret for secret in secrets if secret)


class CredentialStore:
    """Looks credentials up by registry and repository. Safe to use from several threads.

    It keeps no secret but what a cloud gives for some hours.
    """

    def __init__(
        self, files: Sequence[Path] | None = None, *, helper_timeout: float = helpers.TIMEOUT
    ) -> None:
        """Use ``files`` in that order, or the ones that docker and podman would use."""
        self.files = list(authfile.default_files() if files is None else files)
        self.problems: list[str] = []
        self._helper_timeout = helper_timeout
        self._lock = threading.Lock()
        self._clouds: tuple[Ecr, Google] | None = None

    def find(self, domain: str, path: str = "") -> Credential | None:
        """Give what the first source that knows ``domain`` (and the repository ``path``) has, None if none does.

        A file that cannot be read and a helper that fails do not stop a pull of a public image: they are noted in
        :attr:`problems`, in words without secrets. Errors, where a registry lets nobody in without its cloud's credentials and
        these cannot be had: Unauthenticated, PermissionDenied, Unavailable.
        """
        keys = list(_keys(domain, path))
        for file in self.files:
            found = self._find_in(file, keys, domain)
            if found:
                return found
        return self._find_in_clouds(domain)

    def _find_in_clouds(self, domain: str) -> Credential | None:
        with self._lock:
            if self._clouds is None:
                from lamella.registry.ecr import Ecr
                from lamella.registry.google import Google

                self._clouds = (Ecr(), Google(self._note))
            return next((found for cloud in self._clouds if (found := cloud.find(domain))), None)

    def _find_in(self, file: Path, keys: list[str], domain: str) -> Credential | None:
        try:
            document = authfile.read(file)
        except LamellaError as error:
            self._note(error.message)
            return None
        entries = document.entries
        # Helpers know registries alone; who logged in to a namespace meant that.
        for key in (key for key in keys if "/" in key):
            found = self._credential(entries.get(key), file, key)
            if found:
                return found
        found = self._ask(document, domain, file)
        if found:
            return found
        for key in (key for key in keys if "/" not in key):
            found = self._credential(entries.get(key), file, key)
            if found:
                return found
        return None

    def _credential(self, entry: Entry | None, file: Path, key: str) -> Credential | None:
        if entry is None:
            return None
        try:
            username, password = entry.login()
        except InvalidArgument:
            self._note(f"the auth of {key} in {file} is not base64")
            return None
        token, registry_token = entry.identitytoken or "", entry.registrytoken or ""
        if username == helpers.TOKEN_USER and password:
            username, password, token = "", "", password
        if not (username or password or token or registry_token):
            return None
        return Credential(
            username=username,
            password=password,
            identity_token=token,
            registry_token=registry_token,
            source=str(file),
        )

    def _ask(self, document: AuthFile, domain: str, file: Path) -> Credential | None:
        """Get credentials from the helper that a file names."""
        named = document.helper(domain)
        if named is None:
            return None
        try:
            return from_helper(*named, timeout=self._helper_timeout)
        except LamellaError as error:
            self._note(f"{file}: {error.message}")
            return None

    def _note(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)
            _log.warning("%(reason)s", reason=problem)


def from_helper(helper: str, server: str, *, timeout: float = helpers.TIMEOUT) -> Credential | None:
    """Get what a helper has for a server, None if nothing. Errors as :func:`lamella.registry.helpers.get`."""
    kept = helpers.get(helper, server, timeout=timeout)
    if kept is None:
        return None
    source = helpers.program(helper)
    if kept.username == helpers.TOKEN_USER:
        return Credential(identity_token=kept.secret, source=source)
    return Credential(username=kept.username, password=kept.secret, source=source)


def _keys(domain: str, path: str) -> Iterator[str]:
    """Give the keys an entry may have, the most specific first."""
    names = list(HUB_NAMES) if domain == DEFAULT_DOMAIN else [domain]
    parts = path.split("/") if path else []
    for count in range(len(parts), 0, -1):
        for name in names:
            yield "/".join([name, *parts[:count]])
    yield from names
