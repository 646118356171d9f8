"""gVisor: a kernel that is a program (https://gvisor.dev/docs/). What runs there sees the files of this machine, and what it
writes is gone with it. It has no network but loopback, and no cgroups.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PROGRAM = "runsc"

_SETUP = """
set -e
mkdir /scratch
mount -t tmpfs none /scratch
mkdir -m 700 /scratch/home
export HOME=/scratch/home TMPDIR=/scratch/home
cd "$0"
"""
"""Its root lies on an overlay, where no other one can have its upper folder."""
_AS_USER = """
folder=$PWD
while [ "$folder" != / ]; do chmod a+rx "$folder"; folder=$(dirname "$folder"); done
chmod a+rx "$HOME/.." /root
chown 4242:4242 "$HOME"
exec setpriv --reuid 4242 --regid 4242 --clear-groups "$@"
"""
"""A user who is in no file of users; who may read the repository there, whoever may here."""


def run(
    folder: Path, *command: str, as_user: bool = False, seconds: float = 900
) -> subprocess.CompletedProcess[str]:
    """Run a command in the repository there; what it needs to know of itself is in ``folder``."""
    script = _SETUP + (_AS_USER if as_user else 'exec "$@"')
    options = (f"-root={folder}", "-network=none", "-ignore-cgroups")
    return subprocess.run(
        [PROGRAM, *options, "do", "sh", "-c", script, str(REPOSITORY), *command],
        env={"PATH": os.environ["PATH"]},  # what is chosen for this run of the tests is not for one there
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
