"""Where the state of containers is for a user who is not root, when nobody says.

It is in the login session's folder, as the XDG specification has it, or in the store where there is none: in a job of cron or
of a batch system, after su, or where XDG_RUNTIME_DIR names what is not there or another user's. A store's containers are in
one state, though, from wherever one looks: two would run one container twice, on one writable layer. So who starts one leaves
word::

    <root>/state    a symlink to the state in which a container was started last; followed while there are tasks

Sources: the XDG Base Directory Specification 0.8 on XDG_RUNTIME_DIR.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from lamella.config import Config
from lamella.disk import names_in

_LINK = "state"


def user_state(root: Path) -> Path:
    """Give the state of a store: where containers of it are, else of the session, else in the store."""
    return _kept(root) or _of_session() or root / "run/lamella"


def keep_state(config: Config) -> None:
    """Write down that containers of the store are in this state. Harmless twice; OSError where it cannot be written."""
    if os.geteuid() == 0:  # has one place for it
        return
    link, state = f"{config.root}/{_LINK}", str(config.state)
    if _target(link) == state:
        return
    fresh = f"{link}.{os.urandom(4).hex()}"
    os.symlink(state, fresh)  # noqa: PTH211 (on the way to every container)
    os.replace(fresh, link)  # noqa: PTH105


def _kept(root: Path) -> Path | None:
    state = _target(f"{root}/{_LINK}")
    if not state or not _is_ours(state):  # another may have made a folder there since, in /tmp
        return None
    tasks = f"{state}/tasks"
    return Path(state) if any(names_in(f"{tasks}/{namespace}") for namespace in names_in(tasks)) else None


def _of_session() -> Path | None:
    run = os.environ.get("XDG_RUNTIME_DIR", "")
    return Path(run, "lamella") if os.path.isabs(run) and _is_ours(run) else None  # noqa: PTH117


def _is_ours(folder: str) -> bool:
    try:
        status = os.stat(folder)  # noqa: PTH116
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()


def _target(link: str) -> str:
    try:
        return os.readlink(link)  # noqa: PTH115
    except OSError:
        return ""
