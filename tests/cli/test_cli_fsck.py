"""``lamella fsck`` and ``lamella pull --sync``."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.privileged]


def test_a_store_in_order_gives_status_0(pulled):
    lamella, _ = pulled
    done = lamella("fsck").ok()
    assert done.out.rstrip().endswith("nothing is wrong")
    assert lamella("--json", "fsck").ok().document["findings"] == []


def test_damage_gives_status_1_until_it_is_mended(pulled):
    lamella, reference = pulled
    image = lamella("--json", "images", "inspect", reference).ok().document
    digest = image["layers"][0]["digest"]
    path = lamella.root / "blobs" / digest.replace(":", "/")
    path.chmod(0o600)
    path.write_bytes(b"damaged")
    orphan = lamella.root / "snapshots" / "overlayfs" / "0123456789abcdef"
    orphan.mkdir()

    found = lamella("--json", "fsck")
    assert found.status == 1
    assert [(f["kind"], f["mended"]) for f in found.document["findings"]] == [("damaged-blob", False)]
    assert [(f["kind"], f["mended"]) for f in found.document["leftovers"]] == [("orphan-folder", False)]
    text = lamella("fsck")
    assert text.status == 1
    assert f"wrong: damaged-blob {digest}" in text.out
    assert f"lamella pull {reference}" in text.out

    repaired = lamella("fsck", "--repair")
    assert repaired.status == 1  # the image has to be pulled
    assert f"mended: damaged-blob {digest}" in repaired.out
    assert not orphan.exists()
    lamella("-q", "pull", reference).ok()
    lamella("fsck").ok()


def test_what_a_killed_process_left_is_named_and_gives_status_0(pulled):
    lamella, _ = pulled
    orphan = lamella.root / "snapshots" / "overlayfs" / "0123456789abcdef"
    orphan.mkdir()
    assert "left over: orphan-folder overlayfs/0123456789abcdef" in lamella("fsck").ok().out
    assert "removed: orphan-folder" in lamella("fsck", "--repair").ok().out
    assert not orphan.exists()
    assert "left over" not in lamella("fsck").ok().out


def test_pull_with_sync_leaves_nothing_unsynced(lamella, small_image):
    from lamella import Client

    lamella("-q", "pull", "--sync", small_image).ok()
    with Client(lamella.root, lamella.state) as client, client.database.read() as db:
        assert db.execute("SELECT count(*), min(synced) FROM blobs").fetchone()[1] == 1
        assert db.execute("SELECT count(*), min(synced) FROM layers").fetchone()[1] == 1
