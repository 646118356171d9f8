"""Look at the branches of a store after a power cut: ``branches_after.py TOP [SYNCED...]``, names of branches that were synced.

A process of its own: it starts containers, and keeps files of the state folder open.
"""

from __future__ import annotations

import sys
from pathlib import Path

from workloads import WRITTEN

from lamella.client import Client
from lamella.containers.branches import Branch
from lamella.errors import LamellaError


def main(top: Path, synced: set[str]) -> None:
    with Client(top / "root", top / "state") as client:
        client.containers.list()  # lets go of what waited in a pool
        client.gc()
        client.fsck(repair=True)
        branches = {branch.name: branch for branch in client.branches.list()}
        assert synced <= set(branches) <= {"one", "two"}, branches
        if "two" in branches:
            assert branches["two"].parent == branches["one"]
        for name in synced:
            folder = client.snapshots.layer_paths(name)[0]
            assert {file: (folder / file).read_bytes() for file in WRITTEN} == WRITTEN
        lost = [branch for branch in branches.values() if not stands(client, branch)]
        assert synced.isdisjoint(branch.name for branch in lost), lost
        for box in client.containers.list(all=True):
            try:
                box.start()
                assert box.wait(timeout=60) in (0, 7)
            except LamellaError as error:
                assert error.hint, error
            box.remove(force=True)
        for branch in [branch for branch in client.branches.list() if branch.parent is None]:
            branch.remove(recursive=True)
        assert client.branches.list() == []
        # Blobs of the image that nobody synced may be gone. The image names them, or, before it was there, the lease of who
        # made it, until that expires.
        for image in client.images.list():
            if image.name.startswith("made:"):
                client.images.remove(image.name)
        for lease in client.leases.list():
            client.leases.delete(lease.id)
        client.gc()
        client.fsck(repair=True)
        report = client.fsck()
        assert report.findings == [], report.findings


def stands(client: Client, branch: Branch) -> bool:
    """Say whether a container can stand on a branch: it is there as a whole, or says that it is not."""
    assert branch.inspect()
    try:
        result = client.containers.run(branch, ["sh", "-c", "exit 7"], remove=True, timeout=20)
    except LamellaError as error:
        assert error.hint, error
        return False
    assert result.exit_code == 7
    return True


if __name__ == "__main__":
    main(Path(sys.argv[1]), set(sys.argv[2:]))
