"""kill -9 at every step of a repair and of a sync: the store is no worse than before, and the next one does the rest."""

from __future__ import annotations

import os
import shutil

import pytest

from crashes import each_kill, image, quiet, runs
from lamella.digest import digest_of
from lamella.disk import TRASH
from layers import Built, file, program, tar
from steps import killing

pytestmark = [*killing, pytest.mark.rootless]
WRONG = frozenset(
    {
        "damaged-blob",
        "missing-blob",
        "missing-layer",
        "unverified-layer",
        "unverifiable",
        "dangling-image",
    }
)


def test_a_repair_of_every_kind_of_damage(tmp_path, server):
    first = image().push(server, "first")
    other = Built(tar(file("bin/true", program(), mode=0o755)), tar(file("bin/same", program(), mode=0o755)))
    second = other.push(server, "second")

    def before(client):
        """Damage everything of the first image, and the layers alone of the second; leave what killed processes leave."""
        root = client.config.root
        one, two = client.images.pull(first), client.images.pull(second)
        client.snapshots.prepare("work")
        client.snapshots.commit("mine", "work")
        for number, layer in enumerate(one.layers):
            path = root / "blobs" / layer.digest.replace(":", "/")
            path.unlink()
            if number:
                path.write_bytes(b"damaged")
        shutil.rmtree(client.snapshots.layer_paths(two.chain_id)[0].parent)
        with client.database.write() as db:
            db.execute("UPDATE layers SET boot_id = 'x' WHERE diff_id = ?", (two.diff_ids[0],))
            db.execute("UPDATE layers SET boot_id = 'x' WHERE diff_id IS NULL")
        orphan = digest_of(b"orphan")
        (root / "blobs" / orphan.replace(":", "/")).write_bytes(b"orphan")
        (root / "ingest" / f"{TRASH}00").write_bytes(b"x")
        (root / "ingest" / ("0" * 64)).mkdir()
        for name in ("0" * 16, f"{TRASH}{'1' * 16}"):
            (root / "snapshots" / "overlayfs" / name / "fs").mkdir(parents=True)
        for top in (client.config.state / "tasks", root / "containers"):
            (top / "default" / ("a" * 64)).mkdir(parents=True)

    def repair(client):
        client.fsck(repair=True)

    for client, _ in each_kill(tmp_path, before, repair, points=20, wrong=WRONG):
        left = [finding for finding in client.fsck(repair=True).findings if not finding.mended]
        assert {finding.kind for finding in left} <= {"dangling-image"}
        quiet(server)
        runs(client, client.images.get(second))
        assert not server.requests
        runs(client, client.images.pull(first))
        assert [finding.kind for finding in client.fsck().findings] == []
        assert client.snapshots.stat("mine").kind == "committed"


def test_a_sync(tmp_path, server):
    reference = image(filling=os.urandom(10_000)).push(server)

    def unsynced(client):
        with client.database.read() as db:
            query = "SELECT count(*) FROM (SELECT synced FROM blobs UNION ALL SELECT synced FROM layers) WHERE NOT synced"
            return db.execute(query).fetchone()[0]

    def sync(client):
        client.sync()

    for client, _ in each_kill(tmp_path, lambda client: client.images.pull(reference), sync, points=8):
        left = unsynced(client)
        assert client.sync() == left
        assert unsynced(client) == 0
        runs(client, client.images.get(reference))
