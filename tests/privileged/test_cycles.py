"""Starting and removing containers, again and again, leaves nothing that there would be more and more of.

Some hundred cycles as a rule, 10,000 with ``LAMELLA_NIGHTLY=1``.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from chance import NIGHTLY
from inventory import settled
from lamella import Client

if TYPE_CHECKING:
    from pathlib import Path

    from lamella import Image

pytestmark = [pytest.mark.privileged, pytest.mark.timeout(3600)]

CYCLES = 10_000 if NIGHTLY else 250
THREADS = 4
ROUNDS = 3
"""So often at most: an allocator may take much at a time, once; what leaks grows each time."""
GROWTH_KIB = 4096
"""What the memory of a process may swing by: arenas that the allocator keeps, and 2 MiB of pages of the database."""


@pytest.mark.parametrize("threads", [1, THREADS])
def test_cycles_of_start_and_remove_leave_nothing_to_grow(
    tmp_path: Path, small_image: str, threads: int
) -> None:
    # In a namespace of its own, by which cgroups are told from those of others.
    with Client(
        root=tmp_path / "root", state=tmp_path / "state", namespace=f"cycles-{os.getpid()}"
    ) as client:
        before, after = _cycled(client, client.images.pull(small_image), threads)
    assert after.pop("KiB") - before.pop("KiB") < GROWTH_KIB
    assert after == before


def _cycled(client: Client, found: Image, threads: int) -> tuple[dict[str, int], dict[str, int]]:
    """Give what there is before and after the cycles."""

    def cycle(number: int) -> None:
        result = client.containers.run(found, ["/bin/sh", "-c", f"echo {number}"], remove=True)
        assert result.stdout == f"{number}\n".encode()

    with ThreadPoolExecutor(threads) as pool:
        # What is imported, compiled and cached once; and SQLite keeps a descriptor of who copied the log back, for the next.
        list(pool.map(cycle, range(250)))
        for _ in range(ROUNDS):
            before = settled(client)
            list(pool.map(cycle, range(CYCLES // threads)))
            after = settled(client)
            if after["KiB"] - before["KiB"] < GROWTH_KIB:
                break
        return before, after
