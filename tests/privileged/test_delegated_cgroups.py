"""Containers of an ordinary user to whom a cgroup was delegated: limits, their update, pause, statistics.

Nobody delegates cgroups of v1. Where there are some nothing is here: the contract's test_unified.py has a machine with v2 alone.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from users import OrdinaryUser
from waiting import until

pytestmark = [pytest.mark.privileged, pytest.mark.needs_program("setpriv", "unshare")]

TOP = Path("/sys/fs/cgroup")
ID = 61234
"""A user who has no entry in /etc/passwd, and no ranges: /etc may be read-only."""

PROGRAM = """
import sys, lamella
from lamella.errors import LamellaError
reference, folder = sys.argv[1:]
client = lamella.Client(root=folder + "/root", state=folder + "/state", snapshotter="native")
image = client.images.pull(reference, plain_http=True)
options = dict(memory="64m", pids_limit=20, cpus=0.5, runtime={runtime!r})
box = client.containers.create(image, ["/bin/sleep", "600"], **options)
try:
    box.start()
{steps}
except LamellaError as error:
    print(type(error).__name__, error, error.hint)
finally:
    box.remove(force=True)
"""


@pytest.fixture
def user() -> Iterator[OrdinaryUser]:
    home = Path(tempfile.mkdtemp(prefix="lamella-home-", dir="/tmp"))
    os.chown(home, ID, ID)
    yield OrdinaryUser("lamella-delegate", ID, ID, home)
    shutil.rmtree(home)


@pytest.fixture
def delegated() -> Iterator[Path]:
    """Give a cgroup as systemd's ``Delegate=`` makes one."""
    (TOP / "cgroup.subtree_control").write_text("+cpu +io +memory +pids")
    folder = TOP / f"lamella-test-{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    for name in ("", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"):
        os.chown(folder / name, ID, ID)
    yield folder
    for path in (*folder.glob("*/"), folder):
        until(lambda path=path: _removed(path))


def _removed(cgroup: Path) -> bool:
    try:
        cgroup.rmdir()
    except OSError as error:
        assert error.errno == errno.EBUSY
        return False  # a helper is about to end there
    return True


def told(
    user: OrdinaryUser, within: Path | None, reference: str, steps: str, runtime: str = "lamella"
) -> list[str]:
    """Run a program as the user, from within a cgroup; give the lines that it printed."""
    lines = "".join(f"    {line}\n" for line in steps.strip().splitlines())
    code = PROGRAM.format(steps=lines, runtime=runtime)
    enter = f"echo 0 >{within}/cgroup.procs; " if within is not None else ""
    command = user.command(sys.executable, "-c", code, reference, str(user.home))
    found = subprocess.run(
        ["sh", "-c", f'{enter}exec "$@"', "sh", *command],
        env=user.environment(),
        cwd=user.home,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout.splitlines()


if (TOP / "cgroup.controllers").exists():

    @pytest.mark.needs_program("runc", "crun")
    @pytest.mark.parametrize("runtime", ["lamella", "runc", "crun"])
    def test_limits_hold_are_changed_and_outlive_a_restart(
        user: OrdinaryUser, delegated: Path, small_image: str, runtime: str
    ) -> None:
        steps = """
import time
while box.stats().pids.current != 1:  # of a runtime, too, while it ends
    time.sleep(0.01)
print(box.stats().memory.limit, box.stats().pids.limit)
box.update(memory="96m", memory_swap="96m")
print(box.stats().memory.limit)
box.restart(timeout=0)
print(box.stats().memory.limit, box.stats().memory.usage > 0)
"""
        assert told(user, delegated, small_image, steps, runtime) == [
            f"{64 << 20} 20",
            f"{96 << 20}",
            f"{96 << 20} True",
        ]

    def test_it_is_paused_and_goes_on(user: OrdinaryUser, delegated: Path, small_image: str) -> None:
        steps = """
box.pause()
try:
    box.exec(["/bin/true"])
except LamellaError as error:
    print(type(error).__name__, "paused" in str(error))
box.resume()
print(box.exec(["/bin/echo", "on"]).stdout)
[branch] = box.branch()
print(branch.status)
branch.remove()
"""
        assert told(user, delegated, small_image, steps) == [
            "FailedPrecondition True",
            r"b'on\n'",
            "created",
        ]

    def test_what_takes_too_much_memory_is_ended_and_that_is_told(
        user: OrdinaryUser, delegated: Path, small_image: str
    ) -> None:
        steps = """
script = "x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done"
result = client.containers.run(image, ["/bin/sh", "-c", script], memory="16m", remove=True)
print(result.exit_code, result.oom_killed)
"""
        assert told(user, delegated, small_image, steps) == ["137 True"]

    def test_without_one_limits_are_refused_with_who_can_give_one(
        user: OrdinaryUser, small_image: str
    ) -> None:
        [line] = told(user, None, small_image, "print('started')")
        assert line.startswith("PermissionDenied ") and "Delegate=yes" in line
