"""Credentials for registries, from where docker and podman keep them.

Files, the first that knows the registry wins::

    $REGISTRY_AUTH_FILE
    $DOCKER_CONFIG/config.json, or ~/.docker/config.json
    $XDG_RUNTIME_DIR/containers/auth.json
    $XDG_CONFIG_HOME/containers/auth.json, or ~/.config/containers/auth.json

All have the same form: ``auths`` maps a registry, or ``registry/namespace/repository`` (the longest match counts), to
``auth`` (base64 of user:password), ``username`` and ``password``, or ``identitytoken``; ``credHelpers`` and
``credsStore`` name programs ``docker-credential-NAME`` that are asked instead (docker's credential helper protocol).

Files are only read. Secrets are in no repr and in no error.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from lamella.logs import Log
from lamella.reference import DEFAULT_DOMAIN

HELPER_TIMEOUT = 30.0
"""Seconds that a credential helper may take."""

HELPER_OUTPUT_MAX = 1024 * 1024
_log = Log("lamella.registry")
_FILE_MAX = 16 * 1024 * 1024
_HUB_KEY = "https://index.docker.io/v1/"
_HUB_ALIASES = (
    _HUB_KEY,
    "index.docker.io",
    "docker.io",
    "registry-1.docker.io",
    "https://index.docker.io/v1",
)
_TOKEN_USER = "<token>"  # noqa: S105 - the user name by which a helper says that the secret is an identity token
_HELPER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")


class Credential(msgspec.Struct, frozen=True, kw_only=True):
    """A user name and password, or a token, and where it was found.

    An identity token (OAuth 2 refresh token) is for the token server, a registry token is itself the bearer token.
    """

    username: str = ""
    password: str = ""
    identity_token: str = ""
    registry_token: str = ""
    source: str = "the caller"

    def __repr__(self) -> str:
        what = "token" if self.identity_token or self.registry_token else "password"
        return f"Credential({what} from {self.source})"

    __str__ = __repr__

    def __rich_repr__(self) -> list[tuple[str, str]]:
        return [("source", self.source)]

    @property
    def basic(self) -> str | None:
        """Give the value of an Authorization header for HTTP Basic (RFC 7617), None without a password."""
        if not self.username and not self.password:
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
    """Looks credentials up by registry and repository. Safe to use from several threads; keeps no secret."""

    def __init__(
        self, files: Sequence[Path] | None = None, *, helper_timeout: float = HELPER_TIMEOUT
    ) -> None:
        """Use ``files`` in that order, or the ones that docker and podman would use."""
        self.files = list(default_files() if files is None else files)
        self.problems: list[str] = []
        self._helper_timeout = helper_timeout

    def find(self, domain: str, path: str = "") -> Credential | None:
        """Give what the first file that knows ``domain`` (and the repository ``path``) has, None if none does.

        A file that cannot be read and a helper that fails do not stop a pull of a public image: they are noted in
        :attr:`problems`, in words without secrets.
        """
        keys = list(_keys(domain, path))
        for file in self.files:
            found = self._find_in(file, keys, domain)
            if found:
                return found
        return None

    def _find_in(self, file: Path, keys: list[str], domain: str) -> Credential | None:
        config = self._load(file)
        if config is None:
            return None
        servers = _HUB_ALIASES if domain == DEFAULT_DOMAIN else (domain, f"https://{domain}")
        for server in servers:
            helper = config.cred_helpers.get(server)
            if helper:
                return self._ask(helper, server if domain != DEFAULT_DOMAIN else _HUB_KEY, file)
        auths = {_normal_key(key): entry for key, entry in config.auths.items()}
        for key in keys:
            entry = auths.get(key)
            credential = self._credential(entry, file, key) if entry else None
            if credential:
                return credential
        if config.creds_store:
            return self._ask(config.creds_store, _HUB_KEY if domain == DEFAULT_DOMAIN else domain, file)
        return None

    def _load(self, file: Path) -> _File | None:
        try:
            with file.open("rb") as stream:
                data = stream.read(_FILE_MAX)
            return msgspec.json.decode(data, type=_File) if data.strip() else None
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            self._note(f"{file} cannot be read: {error.strerror}")
        except (msgspec.MsgspecError, UnicodeDecodeError):
            # The decoder's message could quote a secret.
            self._note(f"{file} is not a valid docker config file")
        return None

    def _credential(self, entry: _Entry, file: Path, key: str) -> Credential | None:
        username, password = entry.username, entry.password
        if entry.auth:
            try:
                decoded = base64.b64decode(entry.auth, validate=True).decode()
            except (binascii.Error, UnicodeDecodeError):
                self._note(f"the auth of {key} in {file} is not base64")
                return None
            username, _, password = decoded.partition(":")
            password = password.rstrip("\0")
        token = entry.identitytoken
        if username == _TOKEN_USER and password:
            username, password, token = "", "", password
        if not (username or password or token):
            return None
        return Credential(username=username, password=password, identity_token=token, source=str(file))

    def _ask(self, helper: str, server: str, file: Path) -> Credential | None:
        """Get credentials from a helper program (docker-credential-helpers' protocol)."""
        if not _HELPER_NAME.match(helper):
            self._note(f"{file} names a credential helper with a malformed name")
            return None
        program = f"docker-credential-{helper}"
        output = self._run(program, server, file)
        if output is None:
            return None
        try:
            answer = msgspec.json.decode(output, type=_HelperAnswer)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            self._note(f"{program} gave an answer that is not credentials")
            return None
        if not answer.secret:
            return None
        if answer.username == _TOKEN_USER:
            return Credential(identity_token=answer.secret, source=program)
        return Credential(username=answer.username, password=answer.secret, source=program)

    def _run(self, program: str, server: str, file: Path) -> bytes | None:
        import subprocess

        try:
            done = subprocess.run(
                [program, "get"],
                input=server.encode(),
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=self._helper_timeout,
                check=False,
            )
        except FileNotFoundError:
            self._note(f"{program}, which {file} names, is not on PATH")
        except subprocess.TimeoutExpired:
            self._note(f"{program} gave no answer within {self._helper_timeout:g} s")
        except OSError as error:
            self._note(f"{program} cannot be run: {error.strerror}")
        else:
            if done.returncode == 0:
                return done.stdout[:HELPER_OUTPUT_MAX]
            if b"credentials not found" not in done.stdout:
                self._note(f"{program} failed with exit status {done.returncode}")
        return None

    def _note(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)
            _log.warning("%(reason)s", reason=problem)


class _Entry(msgspec.Struct, frozen=True):
    auth: str = ""
    username: str = ""
    password: str = ""
    identitytoken: str = ""

    def __repr__(self) -> str:
        return "_Entry()"


class _File(msgspec.Struct, frozen=True):
    auths: dict[str, _Entry] = {}
    cred_helpers: dict[str, str] = msgspec.field(default_factory=dict, name="credHelpers")
    creds_store: str = msgspec.field(default="", name="credsStore")


class _HelperAnswer(msgspec.Struct, frozen=True, rename="pascal"):
    username: str = ""
    secret: str = ""

    def __repr__(self) -> str:
        return "_HelperAnswer()"


def default_files(environ: Mapping[str, str] | None = None) -> list[Path]:
    """List the files that may hold credentials, the most explicit first; they need not exist."""
    env = os.environ if environ is None else environ
    home = Path(env["HOME"]) if env.get("HOME") else Path.home()
    files: list[Path] = []
    if env.get("REGISTRY_AUTH_FILE"):
        files.append(Path(env["REGISTRY_AUTH_FILE"]))
    files.append(Path(env.get("DOCKER_CONFIG") or home / ".docker") / "config.json")
    if env.get("XDG_RUNTIME_DIR"):
        files.append(Path(env["XDG_RUNTIME_DIR"]) / "containers/auth.json")
    files.append(Path(env.get("XDG_CONFIG_HOME") or home / ".config") / "containers/auth.json")
    return files


def _keys(domain: str, path: str) -> Iterator[str]:
    """Give the keys an entry may have, the most specific first."""
    names = [_normal_key(alias) for alias in _HUB_ALIASES] if domain == DEFAULT_DOMAIN else [domain]
    parts = path.split("/") if path else []
    for count in range(len(parts), 0, -1):
        for name in names:
            yield "/".join([name, *parts[:count]])
    yield from names


def _normal_key(key: str) -> str:
    """Reduce ``https://host/v1/`` to ``host``; podman's ``host/namespace`` stays as it is."""
    for scheme in ("https://", "http://"):
        if key.startswith(scheme):
            return key.removeprefix(scheme).partition("/")[0]
    return key.removesuffix("/")
