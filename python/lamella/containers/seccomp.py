"""The seccomp section of a spec: the default profile, widened by capabilities as Docker does, or the caller's own.

The default profile is the launcher's (``lamella._core.default_seccomp``), which has it compiled already; a section equal to it
costs nothing to load. Source: seccomp(2); OCI runtime spec, config-linux.md, "Seccomp".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from lamella import _core
from lamella.errors import InvalidArgument, NotFound
from lamella.structs import Malformed, decode
from lamella.typings import Any

UNCONFINED = "unconfined"


def seccomp_section(
    profile: str | Path | Mapping[str, Any] | None, *, capabilities: Sequence[str], privileged: bool
) -> dict[str, Any] | None:
    """Give the ``linux.seccomp`` object, None for no confinement.

    ``profile``: None for the default, ``"unconfined"``, the path of a JSON file, or the object itself.
    """
    if profile == UNCONFINED or (profile is None and privileged):
        return None
    if profile is None:
        return _default(tuple(capabilities))
    if isinstance(profile, Mapping):
        return dict(profile)
    try:
        data = Path(profile).read_bytes()
    except FileNotFoundError:
        raise NotFound(f"seccomp profile {profile} is not there") from None
    try:
        return decode(data, dict[str, Any])
    except Malformed as error:
        raise InvalidArgument(f"seccomp profile {profile} is not a JSON object: {error}") from None


@lru_cache(maxsize=16)
def _default(capabilities: tuple[str, ...]) -> dict[str, Any]:
    return decode(_core.default_seccomp(capabilities), dict[str, Any])
