"""Power cuts, simulated below the file system.

A :class:`RecordedDisk` is ext4 on a loop device on a file that a process of ours serves by FUSE (disk_server.py) and that keeps
a log of every write and every barrier. A :class:`Recording` replays the log up to any moment and gives what the disk may hold if
the power goes then: all that was written before the last completed barrier, and of what came later, block by block, any
version or none, since a disk's cache writes back in any order. Some cuts tear 4 KiB blocks into sectors.
One run gives as many power cuts as one likes.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from disk_server import RECORD

from disks import loop_device, mounted, run, unmount, wait_until_unused

SECTOR, BLOCK = 512, 4096
SIZE = 48 * 1024 * 1024


class RecordedDisk:
    """A context: ``folder`` is a fresh ext4 of SIZE bytes; after it ends, :meth:`recording` has what was written."""

    def __init__(self, top: Path, *options: str) -> None:
        self._served = top / "served"
        self._log = top / "log"
        self._options = options
        self._open = ExitStack()
        self._device = ""
        self.folder = top / "fs"
        top.mkdir(exist_ok=True)

    def __enter__(self) -> RecordedDisk:
        with ExitStack() as stack:
            self._served.mkdir()
            server = subprocess.Popen(
                [
                    sys.executable,
                    Path(__file__).with_name("disk_server.py"),
                    self._served,
                    str(SIZE),
                    self._log,
                ],
                stdin=subprocess.DEVNULL,
            )
            stack.callback(server.wait)
            stack.callback(unmount, self._served)
            deadline = time.monotonic() + 60
            while not (self._served / "disk").exists():
                assert server.poll() is None and time.monotonic() < deadline, "the disk is not served"
                time.sleep(0.01)
            device = stack.enter_context(loop_device(self._served / "disk"))
            # Written out at once, so that the kernel does not zero inode tables while a workload runs.
            now = "nodiscard,lazy_itable_init=0,lazy_journal_init=0"
            run("mkfs.ext4", "-q", "-b", BLOCK, "-E", now, "-J", "size=4", device)
            stack.enter_context(mounted(device, self.folder, *self._options))
            run("sync", "--file-system", self.folder)
            self._device = device
            self._open = stack.pop_all()
        self.mark("ready")
        return self

    def __exit__(self, *_: object) -> None:
        self.control("work")
        self._open.close()

    @property
    def control_file(self) -> Path:
        """Where the server takes orders."""
        return self._served / "control"

    def control(self, words: str) -> None:
        """Give the server an order (disk_server.py)."""
        self.control_file.write_text(words)

    def mark(self, name: str) -> None:
        """Note in the log that something is done by now."""
        self.control(f"mark {name}")

    def remount(self, *, repair: bool = False) -> None:
        """Unmount, mend the file system if that is wanted, and mount it again, with nothing of it in memory."""
        unmount(self.folder)
        wait_until_unused(self._device)
        if repair:
            done = subprocess.run(
                ["e2fsck", "-fy", self._device], check=False, capture_output=True, text=True
            )
            assert done.returncode < 4, done.stdout
        run("mount", self._device, self.folder)

    def recording(self) -> Recording:
        """Read the log."""
        return Recording(self._log.read_bytes())


class Cut(NamedTuple):
    """A disk after a power cut: when the cut came, what was done by then, what the disk holds."""

    at: int
    seed: int
    done: frozenset[str]
    image: bytes

    def __str__(self) -> str:
        return f"power cut at entry {self.at}, seed {self.seed}, after {', '.join(sorted(self.done))}"


class Recording:
    """What a disk was told, in order."""

    def __init__(self, log: bytes) -> None:
        self._entries: list[tuple[bytes, int, memoryview]] = []
        self.marks: dict[str, int] = {}
        view, at = memoryview(log), 0
        while at + RECORD.size <= len(log):
            kind, offset, size = RECORD.unpack_from(log, at)
            at += RECORD.size
            data = view[at : at + size]
            at += size
            if kind == b"M":
                self.marks[bytes(data).decode()] = len(self._entries)
            else:
                self._entries.append((kind, offset, data))

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def barriers(self) -> int:
        """How many there are from the mark "ready" on."""
        return sum(kind == b"B" for kind, _, _ in self._entries[self.marks["ready"] :])

    def cuts(self, count: int, *, seed: int, after: str = "ready") -> Iterator[Cut]:
        """Cut the power at ``count`` random moments after a mark, in the order of time."""
        moments = random.Random(seed)
        first = self.marks[after]
        # Every other one right before a barrier, when most is at stake.
        barriers = [at for at, (kind, _, _) in enumerate(self._entries) if kind == b"B" and at >= first]
        points = sorted(
            moments.choice(barriers)
            if barriers and number % 2
            else moments.randint(first, len(self._entries))
            for number in range(count)
        )
        durable = bytearray(SIZE)
        written = 0  # entries that "durable" has
        for number, at in enumerate(points):
            barrier = at
            while self._entries[barrier - 1][0] != b"B":
                barrier -= 1
            while written < barrier:
                kind, offset, data = self._entries[written]
                if kind == b"W":
                    durable[offset : offset + len(data)] = data
                written += 1
            done = frozenset(name for name, where in self.marks.items() if where <= at)
            yield Cut(
                at, seed * 10_000 + number, done, self._lose(durable, barrier, at, seed * 10_000 + number)
            )

    def _lose(self, durable: bytearray, barrier: int, at: int, seed: int) -> bytes:
        """Write some of the entries from ``barrier`` to ``at``, as a disk's cache would have."""
        choice = random.Random(seed)
        image = bytearray(durable)
        unit = choice.choice((BLOCK, BLOCK, SECTOR))
        share = choice.choice((0.0, 0.1, 0.5, 0.9, 1.0))  # of the blocks that were written at all
        versions: dict[int, list[memoryview]] = {}
        for kind, offset, data in self._entries[barrier:at]:
            assert kind == b"W" and offset % SECTOR == 0
            for start in range(0, len(data), SECTOR):
                place = offset + start
                versions.setdefault(place, []).append(data[start : start + SECTOR])
        chosen: dict[int, float] = {}
        for place, found in versions.items():
            # All sectors of a unit share their fate: which of the versions, counted from the last one, got through.
            # The superblock is never torn: ext4 does not journal every change of it, and mends it by e2fsck alone.
            shared = place // unit if place >= BLOCK else -1
            fate = chosen.get(shared)
            if fate is None:
                luck = choice.random()
                fate = chosen[shared] = luck / share if luck < share else -1.0
            if fate >= 0:
                image[place : place + SECTOR] = found[-1 - int(fate * len(found)) % len(found)]
        return bytes(image)


@contextmanager
def after(cut: Cut, folder: Path) -> Iterator[Path]:
    """Start the machine again: attach what the disk holds and mount it, whereby ext4 replays its journal.

    A file system that is damaged all the same would be a defect of the simulation: it is checked at the end.
    """
    memory = os.memfd_create(str(folder))  # the name is looked for when something is left behind
    try:
        with os.fdopen(os.dup(memory), "wb") as file:
            file.write(cut.image)
        with loop_device(f"/proc/{os.getpid()}/fd/{memory}") as device:
            with mounted(device, folder):
                yield folder
            run("e2fsck", "-fn", device)
    finally:
        os.close(memory)
