"""A machine of its own that boots in seconds: Debian's user-mode Linux, a kernel that is a process of this one.

It has what the machine beneath cannot be given for a test: cgroup v2 alone, with the controllers ``cpu``, ``io``, ``memory``
and ``pids``, every capability, and Linux 6.1 (overlayfs before the new mount API). ``cpuset`` and ``hugetlb`` it lacks. Its root
is the host's, read-only, and so is the repository, wherever it lies; ``/tmp``, ``/run`` and ``/dev/shm`` are its own, in memory,
and one folder of the host is at ``/mnt``. With ``disk`` its ``/tmp`` is an ext4, whose files can be shown with mapped ids:
those in memory can since Linux 6.3.
The kernel and all that it runs are processes of a pid namespace, which ends with whoever started it. It has one processor, and
takes what others leave of that: what is in no hurry can be started early (``Machine``) and asked for late.
Source: https://docs.kernel.org/virt/uml/user_mode_linux_howto_v2.html.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

from outcomes import Outcome, read_outcomes

REPOSITORY = Path(__file__).resolve().parent.parent
KERNEL = "linux.uml"
PROGRAMS = (KERNEL, "busybox", "unshare", "setpriv", "ip", "mkfs.ext4")
MODULES = Path("/usr/lib/uml/modules")
MEMORY = "3072M"
DISK = 4 << 30
"""Bytes that the disk seems to have; what is not written takes none."""
NICENESS = 5
PATIENCE = 10
"""So many times as long as elsewhere is waited there: it is slow, and may have to wait itself."""

_INIT = """#!/bin/sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp LC_ALL=C.UTF-8
export LAMELLA_TEST_PATIENCE={patience}
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs tmpfs /run
mount -t {temporary} /tmp
mkdir -p /dev/pts /dev/shm /dev/mqueue
mount -t devpts -o newinstance,ptmxmode=666 devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t mqueue mqueue /dev/mqueue
mount -t hostfs -o {folder} none /mnt
ip link set lo up
hostname user-mode
for module in {modules}; do busybox insmod $module; done
ulimit -n 1024
mkdir -p {repository}
mount -t hostfs -o ro,{repository} none {repository}
cd {repository}
{command} >/mnt/output 2>&1
echo $? >/mnt/status
umount /mnt
echo o >/proc/sysrq-trigger
sleep 60
"""


class Machine:
    """A machine that boots, runs one command in the repository as root, and ends; ``folder`` is its ``/mnt``."""

    def __init__(self, folder: Path, command: list[str], *, disk: bool = False) -> None:
        self._folder = folder
        modules = sorted(map(str, MODULES.glob("*/kernel/fs/overlayfs/overlay.ko")))
        init = folder / "init"
        init.write_text(
            _INIT.format(
                patience=PATIENCE,
                folder=folder,
                modules=" ".join(modules),
                repository=shlex.quote(str(REPOSITORY)),
                command=shlex.join(command),
                temporary="ext4 /dev/ubda" if disk else "tmpfs tmpfs",
            )
        )
        init.chmod(0o755)
        kernel = [
            KERNEL,
            f"mem={MEMORY}",
            "root=/dev/root",
            "rootfstype=hostfs",
            "rootflags=/",
            "ro",
            "quiet",
        ]
        # Without hundreds of terminals in /dev, of which a privileged container would get each.
        kernel += [f"init={init}", f"uml_dir={folder}", "con=null", "con0=fd:0,fd:1", "pty.legacy_count=0"]
        if disk:
            kernel.append(f"ubd0={_new_disk(folder / 'disk')}")
        # A killed caller takes it along, too.
        apart = [
            "nice",
            f"-n{NICENESS}",
            "setpriv",
            "--pdeathsig",
            "KILL",
            "unshare",
            "--pid",
            "--fork",
            "--kill-child",
        ]
        with (folder / "console").open("wb") as console:
            self._process = subprocess.Popen(
                [*apart, *kernel],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                env={"PATH": "/usr/bin:/bin", "HOME": str(folder), "TMPDIR": "/dev/shm"},
            )

    def output(self, seconds: float) -> str:
        """Wait for the command's end, and give its output.

        AssertionError when the machine does not come to it within ``seconds``, which ends it.
        """
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self.end()
        output = self._folder / "output"
        told = output.read_text(errors="replace") if output.exists() else ""
        console = (self._folder / "console").read_text(errors="replace")
        assert (self._folder / "status").exists(), (
            f"the machine does not come to an end:\n{console[-3000:]}\n{told[-3000:]}"
        )
        return told

    def end(self) -> None:
        """End it, wherever it is; harmless when it has ended."""
        self._process.kill()
        self._process.wait()
        (self._folder / "disk").unlink(missing_ok=True)


def _new_disk(path: Path) -> Path:
    with path.open("wb") as file:
        file.truncate(DISK)
    subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", path], check=True)
    return path


class Tests:
    """A run of pytest on a machine of its own."""

    __test__ = False

    def __init__(self, folder: Path, *arguments: str, disk: bool = False) -> None:
        self._folder = folder
        command = [sys.executable, "-m", "pytest", "-q", "--color=no", "-p", "no:cacheprovider"]
        command += ["--basetemp=/tmp/pytest", f"--timeout={300 * PATIENCE}"]
        command += ["-o", "tmp_path_retention_policy=none"]  # what tests leave would fill the memory
        command += ["--junitxml=/mnt/results.xml", *arguments]
        self._machine = Machine(folder, command, disk=disk)

    def outcomes(self, seconds: float) -> tuple[list[Outcome], str]:
        """Wait for its end; give how each test ended, and the output. AssertionError: it does not end within ``seconds``."""
        output = self._machine.output(seconds)
        results = self._folder / "results.xml"
        assert results.exists(), output[-3000:]
        return read_outcomes(results.read_text()), output

    def end(self) -> None:
        """End it, wherever it is; harmless when it has ended."""
        self._machine.end()
