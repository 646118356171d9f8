"""Run the tests in two halves at once: those that change the machine, and beside them all others. ``make test`` calls it.

What a test makes that needs root (mounts, cgroups, network interfaces, loop devices) is looked for on the whole machine when it
has ended, so these run one after the other. The others make nothing of the kind but for those that are marked ``beside``: mounts
and containers, which are told apart by the mount namespace of their own that the others have. What they say comes when both
have ended. tests/conftest.py chooses.
With arguments for pytest, on one processor, or without root there is one run, as of pytest alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile

APART = ["setpriv", "--pdeathsig", "TERM", "unshare", "--mount"]


def main(arguments: list[str]) -> int:
    """Run pytest, once or twice; give the exit status of the worse run."""
    seed = [f"--hypothesis-seed={os.environ['LAMELLA_SEED']}"] if os.environ.get("LAMELLA_SEED") else []
    pytest = [sys.executable, "-m", "pytest", *seed, *arguments]
    if arguments or not _can_be_halved():
        os.execv(sys.executable, pytest)
    sys.stdout.flush()
    with tempfile.TemporaryFile() as told:
        beside = subprocess.Popen(
            [*APART, *pytest, "-p", "no:cacheprovider"],
            env=os.environ | {"LAMELLA_TEST_HALF": "others"},
            stdin=subprocess.DEVNULL,
            stdout=told,
            stderr=told,
        )
        status = subprocess.call(pytest, env=os.environ | {"LAMELLA_TEST_HALF": "privileged"})
        statuses = (status, beside.wait())
        told.seek(0)
        shutil.copyfileobj(told, sys.stdout.buffer)
    return max(abs(status) for status in statuses)


def _can_be_halved() -> bool:
    if (
        os.geteuid() != 0
        or len(os.sched_getaffinity(0)) < 2
        or not all(map(shutil.which, (APART[0], APART[3])))
    ):
        return False
    return subprocess.run([*APART, "true"], capture_output=True, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
