"""Where the state of a store's containers is when nobody says, and whose a state folder is.

A store's containers are in one state, from wherever one looks, and a state has the containers of one store: whoever collects
garbage there takes tasks that the store does not know for leftovers, and two would give one address to two containers. So who
starts a container leaves word in both::

    <root>/state    a symlink to the state in which a container was started last; followed while there are tasks
    <state>/store   a symlink to the root of the store; another store is refused while that one is there

A user's is in the login session's folder, as the XDG specification has it, or in the store where there is none: in a job of cron
or of a batch system, after su, or where XDG_RUNTIME_DIR names what is not there or another user's. Beside that of the usual store
each other store has a folder of its own.

Sources: the XDG Base Directory Specification 0.8 on XDG_RUNTIME_DIR.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from lamella.config import Config, default_root
from lamella.disk import names_in
from lamella.errors import FailedPrecondition
from lamella.locks import FolderLock

_STATE = "state"
_STORE = "store"
_DIGITS = 12
"""So many hexadecimal digits of the root's digest tell stores apart."""


def default_state(root: Path) -> Path:
    """Give the state of a store: where containers of it are, else its folder of the machine's or the session's memory."""
    if kept := _kept(root):
        return kept
    memory = Path("/run") if os.geteuid() == 0 else _session()
    if memory is None:
        return root / "run/lamella"
    whole = os.path.realpath(root)
    with suppress(FailedPrecondition):  # a user without a home
        if whole == os.path.realpath(default_root()):
            return memory / "lamella"
    from lamella import _core

    return memory / f"lamella-{_core.digest_of(whole.encode()).partition(':')[2][:_DIGITS]}"


def keep_state(config: Config) -> None:
    """Write down that containers of the store are in this state, which is there. Harmless twice.

    FailedPrecondition when it is another store's, OSError where it cannot be written.
    """
    mark, root = f"{config.state}/{_STORE}", str(config.root)
    if _target(mark) != root:
        with FolderLock(config.state, what="the state folder"):
            check_state(config)
            _point(mark, root)
    _point(f"{root}/{_STATE}", str(config.state))


def check_state(config: Config) -> None:
    """Refuse (FailedPrecondition) a state that is another store's, unless that is gone."""
    root, owner = str(config.root), _target(f"{config.state}/{_STORE}")
    if owner in ("", root) or not os.path.exists(f"{owner}/metadata.db"):  # noqa: PTH110 (with every client)
        return
    if os.path.realpath(owner) != os.path.realpath(root):
        raise FailedPrecondition(
            f"the state folder {config.state} has the containers of the store {owner}",
            hint=f"Name another for {root}: --state, LAMELLA_STATE or Client(state=...), or none, for one of its own.",
        )


def _point(link: str, target: str) -> None:
    if _target(link) == target:
        return
    fresh = f"{link}.{os.urandom(4).hex()}"
    os.symlink(target, fresh)  # noqa: PTH211 (on the way to every container)
    os.replace(fresh, link)  # noqa: PTH105


def _kept(root: Path) -> Path | None:
    state = _target(f"{root}/{_STATE}")
    if not state or not _is_ours(state):  # another may have made a folder there since, in /tmp
        return None
    tasks = f"{state}/tasks"
    return Path(state) if any(names_in(f"{tasks}/{namespace}") for namespace in names_in(tasks)) else None


def _session() -> Path | None:
    run = os.environ.get("XDG_RUNTIME_DIR", "")
    return Path(run) if os.path.isabs(run) and _is_ours(run) else None  # noqa: PTH117


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
