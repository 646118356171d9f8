"""Where a store lives and which namespace and snapshotter are used when nothing else is said.

``root`` keeps what must survive a reboot, ``state`` what must not; both belong to each other::

    <root>   0700  metadata.db  blobs/  ingest/  snapshots/  containers/  locks/
    <state>  0711  tasks/<namespace>/<container>/

Sources, the first that is set wins: the argument, the environment (LAMELLA_ROOT, LAMELLA_STATE, LAMELLA_NAMESPACE,
LAMELLA_SNAPSHOTTER, LAMELLA_RUNTIME, LAMELLA_GC, LAMELLA_ADDITIONAL_STORES, LAMELLA_CONFINE), the default (/var/lib/lamella for
root, the XDG base directory otherwise; of ``state`` :mod:`lamella.state`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from lamella.errors import FailedPrecondition, InvalidArgument
from lamella.structs import Struct

DEFAULT_NAMESPACE = "default"
DEFAULT_SNAPSHOTTER = "overlayfs"
DEFAULT_RUNTIME = "lamella"
CONTAINERD_RUNTIMES = ("io.containerd.runc.v2", "io.containerd.runc.v1", "io.containerd.lamella.v1")
"""What clients of containerd's API call a runtime that takes the runtime spec: lamella's own launcher does."""
IDENTIFIER_MAX = 76
_IDENTIFIER_CHARS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
_IDENTIFIER_SEPARATORS = frozenset("-._")


class Config(Struct, frozen=True, kw_only=True):
    """The settings of one client. ``auto_gc``: collect garbage without being asked (:mod:`lamella.autogc`).

    ``additional_stores``: where images are looked for that are not here (:mod:`lamella.additional`).
    ``confine``: layers are unpacked by a process that can do nothing else; it is so anyway for who is not root.
    ``runtime`` makes the containers for which no other is named (:mod:`lamella.containers.runtimes`).
    """

    root: Path
    state: Path
    namespace: str = DEFAULT_NAMESPACE
    snapshotter: str = DEFAULT_SNAPSHOTTER
    runtime: str = DEFAULT_RUNTIME
    auto_gc: bool = False
    additional_stores: tuple[Path, ...] = ()
    confine: bool = True

    @classmethod
    def load(
        cls,
        *,
        root: str | os.PathLike[str] | None = None,
        state: str | os.PathLike[str] | None = None,
        namespace: str | None = None,
        snapshotter: str | None = None,
        runtime: str | None = None,
        auto_gc: bool | None = None,
        additional_stores: Sequence[str | os.PathLike[str]] | None = None,
        confine: bool | None = None,
    ) -> Config:
        """Combine arguments, environment and defaults.

        Raise InvalidArgument for a malformed one, FailedPrecondition for a user without a home who names no root.
        """
        env = os.environ
        chosen_root = _folder(root or env.get("LAMELLA_ROOT") or default_root(), "root")
        return cls(
            root=chosen_root,
            state=_folder(state or env.get("LAMELLA_STATE") or _default_state(chosen_root), "state"),
            namespace=check_identifier(
                namespace or env.get("LAMELLA_NAMESPACE") or DEFAULT_NAMESPACE, "namespace"
            ),
            snapshotter=snapshotter or env.get("LAMELLA_SNAPSHOTTER") or DEFAULT_SNAPSHOTTER,
            runtime=runtime or env.get("LAMELLA_RUNTIME") or DEFAULT_RUNTIME,
            auto_gc=_auto_gc(env.get("LAMELLA_GC", "")) if auto_gc is None else auto_gc,
            confine=_confine(env.get("LAMELLA_CONFINE", "")) if confine is None else confine,
            additional_stores=tuple(
                _folder(path, "additional store")
                for path in (
                    filter(None, env.get("LAMELLA_ADDITIONAL_STORES", "").split(":"))
                    if additional_stores is None
                    else additional_stores
                )
            ),
        )


def default_root() -> Path:
    """Say which store is meant when nobody names one. FailedPrecondition for a user without a home."""
    if os.geteuid() == 0:
        return Path("/var/lib/lamella")
    data_home = os.environ.get("XDG_DATA_HOME")
    if data_home:
        return Path(data_home, "lamella")
    try:
        return Path.home() / ".local/share/lamella"
    except RuntimeError:
        raise FailedPrecondition(
            f"user {os.geteuid()} has no home: HOME is not set, and /etc/passwd does not know the user",
            hint="Set HOME, or choose where the store is: --root, LAMELLA_ROOT or Client(root=...).",
        ) from None


def _default_state(root: Path) -> Path:
    from lamella.state import default_state

    return default_state(root)


def is_own_runtime(name: str) -> bool:
    """Say whether a runtime's name, as containers are recorded with, stands for lamella's own launcher."""
    return name == DEFAULT_RUNTIME or name in CONTAINERD_RUNTIMES


def _auto_gc(text: str) -> bool:
    if text not in ("", "auto", "manual"):
        raise InvalidArgument(f"LAMELLA_GC is {text!r}", hint="Set it to auto, or to manual (the default).")
    return text == "auto"


def _confine(text: str) -> bool:
    if text not in ("", "yes", "no"):
        raise InvalidArgument(f"LAMELLA_CONFINE is {text!r}", hint="Set it to no, or to yes (the default).")
    return text != "no"


def _folder(path: str | os.PathLike[str], what: str) -> Path:
    folder = Path(path).absolute()
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise InvalidArgument(
            f"the {what} folder {str(folder)!r} is not UTF-8", hint="Choose another."
        ) from None
    return folder


KEY_MAX = 4096


def check_key(key: str, what: str, missing: str) -> str:
    """Return ``key`` if it may name a snapshot or an ingest: not empty, Unicode, no NUL, at most 4096 bytes.

    InvalidArgument otherwise; ``what`` and ``missing`` are how messages call it and say that it is empty.
    """
    if not key:
        raise InvalidArgument(f"{missing} is empty")
    try:
        length = len(key.encode())
    except UnicodeEncodeError:
        raise InvalidArgument(f"the {what} {key[:40]!r} is not valid Unicode") from None
    if "\0" in key or length > KEY_MAX:
        raise InvalidArgument(f"the {what} {key[:40]!r} has a NUL or more than {KEY_MAX} bytes")
    return key


def check_identifier(value: str, what: str) -> str:
    """Return ``value`` if it may name a namespace, container or lease; raise InvalidArgument otherwise.

    Letters and digits, single ``-``, ``.`` or ``_`` between them, at most 76 characters (containerd's rule). Such a
    name is safe as a path component.
    """
    if not value:
        raise InvalidArgument(f"the {what} is empty")
    if len(value) > IDENTIFIER_MAX:
        raise InvalidArgument(
            f"the {what} {value[:20]!r}... has {len(value)} characters, at most {IDENTIFIER_MAX} fit"
        )
    previous_separator = True
    for char in value:
        separator = char in _IDENTIFIER_SEPARATORS
        if (separator and previous_separator) or not (separator or char in _IDENTIFIER_CHARS):
            break
        previous_separator = separator
    else:
        if not previous_separator:
            return value
    raise InvalidArgument(
        f"the {what} {value!r} is malformed",
        hint="Use letters and digits, with single '-', '.' or '_' between them.",
    )
