"""An ordinary user, made for the tests: with ranges of ids or without, and programs run as that user."""

from __future__ import annotations

import fcntl
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from waiting import until

REPOSITORY = Path(__file__).resolve().parent.parent

# What users find is the machine's, but in a mount namespace of their own: anybody may make network interfaces (udev's default),
# and where the interpreter lies where only root may look, the folders above it are empty ones that all may search, but for
# the interpreter, which is shown in its place.
_SHOW = """
set -e
if [ -e /dev/net/tun ]; then
    mount -t tmpfs -o mode=755 none /dev/net
    mknod -m 666 /dev/net/tun c 10 200 2>/dev/null || umount /dev/net # nobody makes one in a user namespace
fi
if [ -n "$HIDDEN" ]; then
    keep=$(mktemp -d /tmp/lamella-shown.XXXXXX)
    trap 'rmdir "$keep"' EXIT
    mount --bind "$BASE" "$keep"
    mount -t tmpfs -o mode=755 none "$HIDDEN"
    mkdir -p "$BASE"
    mount --move "$keep" "$BASE"
    rmdir "$keep"
    trap - EXIT
fi
unset BASE HIDDEN
exec "$@"
"""
_NAME = "lamella-"
_HOME = "/tmp/lamella-home-"


class OrdinaryUser:
    """A user of the machine, and a folder of that user's."""

    def __init__(self, name: str, uid: int, gid: int, home: Path) -> None:
        self.name = name
        self.uid = uid
        self.gid = gid
        self.home = home

    def command(self, *command: str) -> list[str]:
        """Give what runs a command as the user."""
        as_user = ["setpriv", f"--reuid={self.uid}", f"--regid={self.gid}", "--clear-groups", "--", *command]
        shown = [f"BASE={sys.base_prefix}", f"HIDDEN={_hidden(Path(sys.base_prefix)) or ''}"]
        return ["unshare", "--mount", "env", *shown, "sh", "-c", _SHOW, "sh", *as_user]

    def environment(self) -> dict[str, str]:
        """Give the environment of the user's programs."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("XDG_", "PYTEST"))}
        own = {"HOME": str(self.home), "USER": self.name, "TMPDIR": str(self.home)}
        return {**kept, **own, "PYTHONDONTWRITEBYTECODE": "1"}

    def run(
        self, command: Sequence[str], *, timeout: float = 120, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as the user, in the user's folder."""
        found = subprocess.run(
            self.command(*command),
            env=self.environment(),
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check:
            assert found.returncode == 0, f"{found.stdout}\n{found.stderr}"
        return found

    def python(self, code: str, *arguments: str, timeout: float = 120) -> str:
        """Run a program of Python as the user; give what it printed."""
        return self.run([sys.executable, "-c", code, *arguments], timeout=timeout).stdout

    def lamella(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the command as the user."""
        return self.run([sys.executable, "-m", "lamella", *arguments], check=check)


def _hidden(path: Path) -> Path | None:
    """Give the topmost folder above that others than root may not search."""
    for folder in [*reversed(path.parents), path]:
        if not folder.stat().st_mode & 0o001:
            return folder
    return None


@contextmanager
def ordinary_user(*, ranges: bool = True) -> Iterator[OrdinaryUser]:
    """Make a user, with a range of ids for user namespaces or with none; nothing is left of it afterwards.

    What a run that was killed left is removed by the next one: whoever has a home's lock uses it.
    """
    _remove_those_of_the_dead()
    name = f"{_NAME}{uuid.uuid4().hex[:8]}"
    home = Path(tempfile.mkdtemp(prefix=Path(_HOME).name, dir=Path(_HOME).parent))
    settings = [] if ranges else ["-K", "SUB_UID_COUNT=0", "-K", "SUB_GID_COUNT=0"]
    lock = _locked(home)
    try:
        subprocess.run(
            ["useradd", "--no-create-home", "--home-dir", home, "--shell", "/bin/sh", *settings, name],
            check=True,
        )
        try:
            uid, gid = (int(_output("id", option, name)) for option in ("-u", "-g"))
            os.chown(home, uid, gid)
            yield OrdinaryUser(name, uid, gid, home)
        finally:
            until(lambda: _is_deleted(name))
    finally:
        shutil.rmtree(home)
        if lock is not None:
            os.close(lock)


def _is_deleted(name: str) -> bool:
    """Delete a user; False: a process of the user's, such as a helper whose caller has gone, has not ended yet (userdel(8))."""
    deleted = subprocess.run(["userdel", name], capture_output=True, text=True, check=False)
    assert deleted.returncode in (0, 8), deleted.stderr
    return deleted.returncode == 0


def _locked(home: Path) -> int | None:
    """Lock a home for as long as this process lives; None: another has it."""
    folder = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(folder)
        return None
    return folder


def _remove_those_of_the_dead() -> None:
    """Remove users, with their homes, whose makers were killed; not those that still have processes, which userdel refuses."""
    for entry in pwd.getpwall():
        if not entry.pw_name.startswith(_NAME) or not entry.pw_dir.startswith(_HOME):
            continue
        home = Path(entry.pw_dir)
        lock = _locked(home) if home.exists() else None
        if lock is None and home.exists():
            continue
        if subprocess.run(["userdel", entry.pw_name], capture_output=True, check=False).returncode == 0:
            shutil.rmtree(home, ignore_errors=True)
        if lock is not None:
            os.close(lock)


@pytest.fixture(scope="module")
def user() -> Iterator[OrdinaryUser]:
    """A user for the tests of one module, with ranges of ids."""
    with ordinary_user() as made:
        yield made


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
