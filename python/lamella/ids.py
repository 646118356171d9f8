"""Which ids users have in their user namespaces, and what is told of one who has a single one: what needs a second one fails.

The kernel answers a program that takes an id which is not mapped with EINVAL, and one that sets its groups where it may not with
EPERM (user_namespaces(7)); neither names the reason. So it is told beside what the program says.

On disk::

    <root>/one-id    the reason that was told last, so that it is told once
"""

from __future__ import annotations

import os
from pathlib import Path

from lamella.config import Config
from lamella.errors import InvalidArgument, LamellaError
from lamella.logs import Log
from lamella.typings import TYPE_CHECKING

if TYPE_CHECKING:
    from lamella.containers.id_maps import IdMaps

GIVE_IDS = (
    "An administrator installs uidmap (newuidmap, newgidmap) and gives ids that nobody has: "
    "usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER."
)
_REFUSED = (b"operation not permitted", b"invalid argument")
"""How programs in C, Go and Python call EPERM and EINVAL, in small letters."""
_log = Log("lamella.ids")


def one_id() -> str | None:
    """Say why this user has one id; None for root, for who has ranges, and where no user namespace can be made."""
    if os.geteuid() == 0:
        return _root_of_one()
    from lamella import _core

    try:
        maps = _core.helper_maps()
    except LamellaError:
        return None
    return "; ".join(maps[2]) or None if maps is not None else None


def _root_of_one() -> str | None:
    """Say why root has one id: of a user namespace that somebody else has made, as by unshare -r."""
    try:
        lines = Path("/proc/self/uid_map").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    if sum(int(line.split()[2]) for line in lines) != 1:
        return None
    return "the user namespace around maps no other"


def maps_of_user(name: str) -> IdMaps:
    """Give the maps of a user's namespace: the user's own id and group are 0, the ranges follow.

    InvalidArgument: there is no such user.
    """
    import pwd

    from lamella import _core
    from lamella.containers.id_maps import IdMaps

    try:
        user = pwd.getpwnam(name)
    except KeyError:
        raise InvalidArgument(f"there is no user {name!r}", hint="Give the name of a user.") from None
    texts = []
    for file, own, arguments in (("subuid", user.pw_uid, []), ("subgid", user.pw_gid, ["-g"])):
        try:
            listed = Path("/etc", file).read_text(encoding="utf-8", errors="replace")
        except OSError:
            listed = ""
        extents = _core.user_extents(own, name, user.pw_uid, listed, "")
        if len(extents) == 1:  # they may come from elsewhere (subid in nsswitch.conf)
            extents = _core.user_extents(own, name, user.pw_uid, "", _printed("getsubids", *arguments, name))
        texts.append(",".join(":".join(map(str, extent)) for extent in extents))
    return IdMaps(users=texts[0], groups=texts[1])


def _printed(*command: str) -> str:
    """Give what a program prints; nothing where it is not there, or does not come to an end."""
    import subprocess

    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout


def explain_failure(*output: bytes) -> str | None:
    """Give the reason why a program of a container may have failed with this output: it took an id that the user has not."""
    if not any(text in each.lower() for each in output for text in _REFUSED):
        return None
    reason = one_id()
    if reason is None:
        return None
    wanted = "If it wanted another user or group (chown, su, a service that gives up root)"
    return f"{wanted}: this user has one id ({reason}). {GIVE_IDS}"


def tell_once(config: Config) -> None:
    """Warn, once in a store and reason, that what is unpacked there has one owner. Harmless twice."""
    reason = one_id()
    if reason is None:
        return
    told = config.root / "one-id"
    try:
        if told.read_text() == reason:
            return
    except OSError:
        pass
    _log.warning(
        "this user has one id (%(reason)s), so that to programs in containers all files are root's, and no program can become "
        "another user. The true owners are kept. %(remedy)s",
        reason=reason,
        remedy=GIVE_IDS,
    )
    try:
        told.write_text(reason)
    except OSError as error:
        _log.debug("cannot write %(path)s: %(error)s", path=told, error=error)
