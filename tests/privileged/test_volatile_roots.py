"""The root of a container that is removed at its end is not synced to disk, for nothing of it is to be there; all else stays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from waiting import until

if TYPE_CHECKING:
    from lamella import Client, Container, Image

pytestmark = pytest.mark.privileged

ROOT = [
    "/bin/sh",
    "-c",
    "while read device folder rest; do [ $folder != / ] || echo $rest; done < /proc/mounts",
]
COUNT = ["/bin/sh", "-c", "echo run >> /runs; while read line; do echo $line; done < /runs; sleep 100"]


def is_volatile(text: bytes) -> bool:
    assert b"upperdir=" in text
    return b"volatile" in text


def test_only_the_root_of_what_is_removed_at_its_end_is_volatile(client: Client, image: Image) -> None:
    assert is_volatile(client.containers.run(image, ROOT, remove=True).stdout)
    kept = client.containers.run(image, ROOT, name="kept")
    assert not is_volatile(kept.stdout)
    client.containers.get("kept").remove()
    detached = client.containers.run(image, COUNT, detach=True, remove=True)
    assert is_volatile(detached.exec(ROOT).stdout)
    detached.remove(force=True)


def test_a_run_knows_from_the_making_of_its_snapshot_what_its_root_is_mounted_from(
    client: Client, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = client.containers.create(image, ROOT)
    monkeypatch.setattr(type(client.snapshots), "mounts", None)
    assert is_volatile(client.containers.run(image, ROOT, remove=True).stdout)
    with pytest.raises(TypeError):
        made.start()
    made.remove()


@pytest.mark.parametrize("removed", [False, True])
def test_the_root_of_what_waits_in_a_pool_is_volatile_where_all_of_it_is_removed(
    client: Client, image: Image, removed: bool
) -> None:
    with client.containers.pool(image, size=1, auto_remove=removed) as pool:
        assert is_volatile(pool.run(ROOT).stdout) == removed


def await_runs(box: Container, count: int) -> None:
    """Wait until the program has written that it was run so many times, and not more."""
    assert until(lambda: (found := _runs(box)) >= count and found) == count


def _runs(box: Container) -> int:
    return box.exec(["/bin/sh", "-c", "while read line; do echo $line; done < /runs"]).stdout.count(b"run\n")


def test_it_is_run_again_on_what_it_has_written(client: Client, image: Image) -> None:
    box = client.containers.create(image, COUNT, auto_remove=True)
    box.start()
    await_runs(box, 1)
    box.restart(timeout=0)
    await_runs(box, 2)
    box.stop(0)
    box.start()
    await_runs(box, 3)
    box.remove(force=True)


def test_what_it_has_written_is_read_and_committed_while_it_runs_and_afterwards(
    client: Client, image: Image
) -> None:
    box = client.containers.create(image, COUNT, auto_remove=True)
    box.start()
    await_runs(box, 1)
    while_it_runs = box.commit()
    box.stop(0)
    with client.snapshots.mounted(box.snapshot_key) as root:
        assert (root / "runs").read_text() == "run\n"
    afterwards = box.commit()
    for base in (while_it_runs, afterwards):
        found = client.containers.run(base, ["/bin/sh", "-c", "read line < /runs; echo $line"], remove=True)
        assert found.stdout == b"run\n"
    box.remove(force=True)
