"""File systems of a test's own: loop devices and mounts, which are gone at its end."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def run(*command: object) -> str:
    """Run a program of the system; its output when it succeeds, its complaint as an error otherwise."""
    done = subprocess.run([str(word) for word in command], check=False, capture_output=True, text=True)
    if done.returncode:
        raise AssertionError(f"{' '.join(map(str, command))}: {done.stdout}{done.stderr}")
    return done.stdout.strip()


@contextmanager
def loop_device(file: Path | str) -> Iterator[str]:
    """Attach a file to a loop device."""
    device = run("losetup", "--find", "--show", file)
    try:
        yield device
    finally:
        run("losetup", "--detach", device)


@contextmanager
def mounted(device: str, folder: Path, *options: str) -> Iterator[Path]:
    """Mount a device; it is gone at the end, if need be by a lazy unmount."""
    folder.mkdir(exist_ok=True)
    run("mount", *(("-o", ",".join(options)) if options else ()), device, folder)
    try:
        yield folder
    finally:
        unmount(folder)
        wait_until_unused(device)


def wait_until_unused(device: str) -> None:
    """Wait until nobody has a device mounted; whoever made a mount namespace (every container's start does) holds a copy.

    Who opens one for itself alone is told: a file system lets go of its device some time after it has left /sys.
    """
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            os.close(os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
        except OSError as error:
            if error.errno != errno.EBUSY:
                return
            time.sleep(0.01)
        else:
            return


def unmount(folder: Path) -> None:
    """Unmount; whatever holds the place for a moment is waited for, whatever holds it longer is left behind lazily."""
    for _ in range(50):
        if subprocess.run(["umount", folder], check=False, capture_output=True).returncode == 0:
            return
        time.sleep(0.05)
    with suppress(AssertionError):
        run("umount", "--lazy", folder)


@contextmanager
def small_ext4(top: Path, megabytes: int, *options: str) -> Iterator[Path]:
    """Give a fresh ext4 of a few megabytes. ``options`` are for mkfs."""
    image = top / "image"
    with image.open("wb") as file:
        file.truncate(megabytes * 1024 * 1024)
    with loop_device(image) as device:
        run("mkfs.ext4", "-q", "-b", 4096, *options, device)
        with mounted(device, top / "fs") as folder:
            yield folder
