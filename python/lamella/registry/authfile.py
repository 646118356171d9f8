"""The files in which docker and podman keep credentials: where they are, what they hold, and how one is changed.

All have the same form::

    {
        "auths": {
            KEY: {"auth": base64 of user:password, "identitytoken": TOKEN}, ...
        },
        "credHelpers": {HOST: NAME, ...}, "credsStore": NAME,       programs docker-credential-NAME that are asked instead
        ...                                                         what else docker keeps there, which stays as it is
    }

A KEY is a registry (``example.com``, ``https://index.docker.io/v1/`` for Docker Hub) or, for podman and lamella, a namespace or
repository in one (``example.com/team``). ``HttpHeaders`` are for docker's own daemon, and are sent to no registry.

A file is changed by putting another in its place, mode 0600, so that readers see one or the other; a lock file beside it
(``config.json.lock``), which is there while a change is under way, keeps those apart who change it at once.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from lamella.disk import make_private_folder, storage_error
from lamella.errors import FailedPrecondition, InvalidArgument, LamellaError
from lamella.reference import DEFAULT_DOMAIN

HUB_KEY = "https://index.docker.io/v1/"
"""Docker Hub in docker's file; podman, skopeo and crane read it, too."""
HUB_NAMES = ("index.docker.io", "docker.io", "registry-1.docker.io")
_HUB_ALIASES = (HUB_KEY, *HUB_NAMES, "https://index.docker.io/v1")
_HINT = "Another file can be named: --authfile FILE, or REGISTRY_AUTH_FILE."
_FILE_MAX = 16 * 1024 * 1024


class Entry(msgspec.Struct, frozen=True):
    """What ``auths`` has for one key; null is as good as nothing."""

    auth: str | None = None
    username: str | None = None
    password: str | None = None
    identitytoken: str | None = None
    registrytoken: str | None = None

    def __repr__(self) -> str:
        return "Entry()"

    def login(self) -> tuple[str, str]:
        """Give user and password; InvalidArgument if ``auth`` is malformed."""
        if not self.auth:
            return self.username or "", self.password or ""
        try:
            decoded = base64.b64decode(self.auth, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            raise InvalidArgument("not base64") from None
        username, _, password = decoded.partition(":")
        return username, password.rstrip("\0")


class AuthFile(msgspec.Struct, frozen=True):
    """What a file says of credentials."""

    auths: dict[str, Entry | None] | None = None
    cred_helpers: dict[str, str] | None = msgspec.field(default=None, name="credHelpers")
    creds_store: str | None = msgspec.field(default=None, name="credsStore")

    @property
    def entries(self) -> dict[str, Entry]:
        """Give the entries by :func:`normal_key`; one that is written so already goes before its aliases."""
        found = {key: entry for key, entry in (self.auths or {}).items() if entry is not None}
        normal = {normal_key(key): entry for key, entry in found.items()}
        return normal | {key: entry for key, entry in found.items() if key in normal}

    def helper(self, domain: str) -> tuple[str, str] | None:
        """Give the helper that is to be asked about a registry, and by which name; None if there is none.

        One for the registry goes before the one for all, also if it is empty, which says that ``auths`` counts.
        """
        names = _HUB_ALIASES if domain == DEFAULT_DOMAIN else (domain, f"https://{domain}")
        for name in names:
            if name in (self.cred_helpers or {}):
                chosen = (self.cred_helpers or {})[name]
                return (chosen, HUB_KEY if domain == DEFAULT_DOMAIN else name) if chosen else None
        return (self.creds_store, server_key(domain)) if self.creds_store else None


def default_files(environ: Mapping[str, str] | None = None) -> list[Path]:
    """List the files that may hold credentials, the most explicit first; they need not exist."""
    env = os.environ if environ is None else environ
    home = _home(env)
    files = [login_file(env)]
    docker = Path(env.get("DOCKER_CONFIG") or home / ".docker") / "config.json"
    if docker not in files:
        files.append(docker)
    # Where podman keeps them until the machine is turned off, and for good (containers-auth.json(5)).
    if env.get("XDG_RUNTIME_DIR"):
        files.append(Path(env["XDG_RUNTIME_DIR"]) / "containers/auth.json")
    else:
        files.append(Path(f"/run/containers/{os.getuid()}/auth.json"))
    files.append(Path(env.get("XDG_CONFIG_HOME") or home / ".config") / "containers/auth.json")
    return files


def login_file(environ: Mapping[str, str] | None = None) -> Path:
    """Give the file that a login is written to: $REGISTRY_AUTH_FILE, or else docker's own."""
    env = os.environ if environ is None else environ
    if env.get("REGISTRY_AUTH_FILE"):
        return Path(env["REGISTRY_AUTH_FILE"])
    home = _home(env)
    return Path(env.get("DOCKER_CONFIG") or home / ".docker") / "config.json"


def _home(env: Mapping[str, str]) -> Path:
    """Give the home; of a user without one (an id that /etc/passwd does not have) what is not there, as adduser(8) calls it."""
    try:
        return Path(env["HOME"]) if env.get("HOME") else Path.home()
    except RuntimeError:
        return Path("/nonexistent")


def normal_key(key: str) -> str:
    """Reduce ``https://host/v1/`` to ``host``; podman's ``host/namespace`` stays as it is."""
    for scheme in ("https://", "http://"):
        if key.startswith(scheme):
            return key.removeprefix(scheme).partition("/")[0]
    return key.removesuffix("/")


def server_key(domain: str, path: str = "") -> str:
    """Give the key under which a login to a registry, or to a namespace or repository in it, is kept."""
    if path:
        return f"{domain}/{path}"
    return HUB_KEY if domain == DEFAULT_DOMAIN else domain


def is_key_of(key: str, domain: str, path: str = "") -> bool:
    """Say whether a key means this registry, or this namespace or repository in it, however it is written."""
    names = HUB_NAMES if domain == DEFAULT_DOMAIN else (domain,)
    return normal_key(key) in {f"{name}/{path}" if path else name for name in names}


def read(file: Path) -> AuthFile:
    """Read a file; an empty one if it is not there.

    Errors: FailedPrecondition if it is no such file (its content is not repeated: it could be a secret), PermissionDenied
    and others of the disk.
    """
    data = _data(file)
    try:
        return msgspec.json.decode(data, type=AuthFile) if data.strip() else AuthFile()
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise _malformed(file) from None


def put(file: Path, domain: str, path: str, entry: Mapping[str, str]) -> None:
    """Give a registry, or a namespace in it, an entry in the place of any that it had; nothing else in the file changes.

    What is missing above the file is made, mode 0700. Harmless twice. Errors as :func:`read`.
    """
    with _changed(file) as auths:
        for key in [key for key in auths if is_key_of(key, domain, path)]:
            del auths[key]
        auths[server_key(domain, path)] = dict(entry)


def remove(file: Path, domain: str, path: str = "") -> bool:
    """Take the entries of a registry, or of a namespace in it, out of a file; say whether there were any.

    Harmless twice. Errors as :func:`read`.
    """
    if not any(is_key_of(key, domain, path) for key in read(file).auths or {}):
        return False
    with _changed(file) as auths:
        for key in [key for key in auths if is_key_of(key, domain, path)]:
            del auths[key]
    return True


def remove_all(file: Path) -> list[str]:
    """Take all entries out of a file and give their keys. Errors as :func:`read`."""
    if not read(file).auths:
        return []
    with _changed(file) as auths:
        keys = list(auths)
        auths.clear()
    return keys


def _data(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.read(_FILE_MAX)
    except (FileNotFoundError, NotADirectoryError):
        return b""
    except OSError as error:
        raise _disk_error(error, f"{file} cannot be read") from None


@contextmanager
def _changed(file: Path) -> Iterator[dict[str, Any]]:
    """Give ``auths`` to change; then write the file anew, with everything else as it was, where a symlink leads to."""
    import json

    from lamella.locks import FileLock

    try:
        target = file.resolve()
        make_private_folder(target.parent)
        with FileLock(target.with_name(target.name + ".lock"), what=str(file), transient=True):
            data = _data(target)
            try:
                document = json.loads(data) if data.strip() else {}
                auths = document.get("auths") or {}
                yield auths
                document["auths"] = auths
            except (ValueError, AttributeError, TypeError):
                raise _malformed(file) from None
            # As docker writes it: a file that people edit changes in one place only.
            _replace(target, (json.dumps(document, indent="\t", ensure_ascii=False) + "\n").encode())
    except LamellaError as error:
        raise type(error)(error.message, hint=_HINT) from None
    except OSError as error:
        raise _disk_error(error, f"{file} cannot be written") from None


def _replace(target: Path, data: bytes) -> None:
    """Put a file in the place of another, for its owner's eyes alone; on disk when this returns."""
    import tempfile

    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            with suppress(FileNotFoundError):
                before = target.stat()
                if (before.st_uid, before.st_gid) != (os.geteuid(), os.getegid()):
                    os.fchown(stream.fileno(), before.st_uid, before.st_gid)  # root changes a user's file
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).replace(target)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise


def _malformed(file: Path) -> FailedPrecondition:
    return FailedPrecondition(f"{file} is not a valid docker config file", hint=f"Mend it. {_HINT}")


def _disk_error(error: OSError, what: str) -> LamellaError:
    return type(storage_error(error, ""))(f"{what}: {error.strerror}", hint=_HINT)
