"""Bundles for ``lamella-oci``: on this machine's own programs, as those of the launcher's tests."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from launcher_box import Box

from oci_program import COMMAND
from waiting import until

PR_SET_CHILD_SUBREAPER = 36
HOOK_STATUS = {
    "prestart": "creating",
    "createRuntime": "creating",
    "createContainer": "creating",
    "startContainer": "created",
    "poststart": "running",
    "poststop": "stopped",
}
"""The points at which hooks run, in their order, and what a container's status is then (runtime.md, "Lifecycle")."""


@contextmanager
def reaping() -> Iterator[None]:
    """Make this process the one to which containers are left, as a shim or a conmon does."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    try:
        yield
    finally:
        libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


class OciBundle(Box):
    """One bundle, and the container that is made of it under the bundle's name."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.spec["root"] = {"path": "lower"}
        self.root = folder / "state"
        self.id = self.folder.name
        self.pids: list[int] = []

    def call(self, *args: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run the command. What a container inherits from it must not be a pipe that is read to its end."""
        command = [COMMAND, "--root", self.root, *args]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)
        assert not check or done.returncode == 0, done.stderr
        return done

    def refused(self, *args: str, **options: Any) -> str:
        """Run the command, which must fail; give what it says."""
        done = self.call(*args, check=False, **options)
        assert done.returncode == 1, (done.stdout, done.stderr)
        assert done.stderr.startswith("lamella-oci: ")
        return done.stderr

    def write(self, *args: str) -> None:
        """Write the bundle's document."""
        if args:
            self.process["args"] = list(args)
        (self.folder / "config.json").write_text(json.dumps(self.spec))

    @property
    def output(self) -> str:
        """What the container has written."""
        return (self.folder / "output").read_text()

    def create(
        self, *args: str, options: tuple[str, ...] = (), check: bool = True, before: tuple[str, ...] = ()
    ) -> str:
        """Make a container that runs ``args``; give what it or the command wrote. ``before`` runs the command."""
        self.write(*args)
        command = [*before, COMMAND, "--root", self.root, "create", "--bundle", self.folder]
        command += ["--pid-file", self.folder / "pid", *options, self.id]
        with (self.folder / "output").open("wb") as output:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                timeout=60,
                check=False,
            )
        assert not check or done.returncode == 0, self.output
        assert check or done.returncode == 1
        if check:
            self.pids.append(int((self.folder / "pid").read_text()))
        return self.output

    def start(self, *args: str) -> None:
        """Make a container and start it."""
        self.create(*args)
        self.call("start", self.id)

    def state(self) -> dict[str, Any]:
        return dict(json.loads(self.call("state", self.id).stdout))

    @property
    def status(self) -> str:
        return str(self.state()["status"])

    def wait(self) -> int:
        """Wait for the container's end and reap it; give its exit status, negative for a signal."""
        pid = self.pids.pop()
        found = until(lambda: os.waitpid(pid, os.WNOHANG)[1:] if _ended(pid) else None)
        return os.waitstatus_to_exitcode(found[0])

    def clean(self) -> None:
        """Delete the container, whatever it does, and reap it."""
        self.call("delete", "--force", self.id)
        for pid in self.pids:
            os.waitpid(pid, 0)
        self.pids.clear()

    def left(self) -> list[str]:
        """What there is of the container on the machine."""
        folders = [str(path) for path in self.root.glob("*")]
        return folders + [str(path) for path in self.cgroup_folders()]


def _ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
