"""``lamella fsck`` and ``lamella pull --sync``."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.privileged, pytest.mark.rootless]


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

    offline = lamella("fsck", "--repair", "--no-fetch")
    assert offline.status == 1
    assert f"wrong: damaged-blob {digest}" in offline.out
    assert f"removed its bytes; it was not to be fetched; fetch it: lamella pull {reference}" in offline.out
    assert not orphan.exists()
    repaired = lamella("fsck", "--repair").ok()
    assert f"mended: missing-blob {digest}" in repaired.out
    assert f"fetched it from {reference.removesuffix(':latest')}" in repaired.out
    lamella("fsck").ok()


def test_layers_are_compared_with_their_blobs_where_it_is_asked_for(pulled):
    lamella, reference = pulled
    image = lamella("--json", "images", "inspect", reference).ok().document
    folders = [path / "fs" for path in (lamella.root / "snapshots" / "overlayfs").iterdir()]
    victim = max(
        (file for folder in folders for file in folder.rglob("*") if file.is_file()),
        key=lambda f: f.stat().st_size,
    )
    victim.unlink()
    lamella("fsck").ok()
    assert "wrong: damaged-layer" in lamella("fsck", "--verify-layers").out
    assert "mended: damaged-layer" in lamella("fsck", "--verify-layers", "--repair").ok().out
    assert lamella("--json", "fsck", "--verify-layers").ok().document["layers_compared"] == len(
        image["layers"]
    )


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
