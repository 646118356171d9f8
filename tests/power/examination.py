"""What has to be true of a store after a power cut; the promises are in ARCHITECTURE.md, "Durability"."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from lamella import _core
from lamella.client import Client
from lamella.digest import digest_of
from lamella.errors import FailedPrecondition, LamellaError
from lamella.fsck import FsckReport
from lamella.images import Image
from lamella.snapshots import Mount
from tree import differences, read_tree

Tree = dict[str, dict[str, Any]]
PULL_MENDS = {"dangling-image", "missing-layer", "unverified-layer"}
"""Findings that fsck may leave, because the blob that it would need was lost as well: the pull that follows fetches it."""


class Original:
    """An image as it is: what it looks like as a container's file system, and each of its layers, by diffID."""

    def __init__(self, client: Client, reference: str, mount_point: Path) -> None:
        self.reference = reference
        image = client.images.pull(reference)
        self.tree = container_tree(client, image, mount_point)
        folders = client.snapshots.layer_paths(image.chain_id)
        self.layers = dict(zip(image.diff_ids, map(read_tree, reversed(folders)), strict=True))


def container_tree(client: Client, image: Image, mount_point: Path) -> Tree:
    """Mount a view of an image and read it."""
    return mounted_tree(
        client.snapshots.view("look", image.chain_id), mount_point, lambda: client.snapshots.remove("look")
    )


def mounted_tree(mounts: list[Mount], mount_point: Path, then: Any) -> Tree:
    mount_point.mkdir(exist_ok=True)
    _core.mount([(each.type, each.source, each.options) for each in mounts], str(mount_point))
    try:
        return read_tree(mount_point)
    finally:
        _core.unmount(str(mount_point))
        then()


def examine(
    top: Path,
    mount_point: Path,
    originals: list[Original],
    *,
    synced: list[Original],
    written: dict[str, bytes] | None,
    repair: bool,
) -> None:
    """Hold a store against the promises, then mend it and hold it against the originals.

    ``synced``: what a sync has returned for; ``written``: files of the snapshot "mine", if one has returned for it.
    ``repair``: mend by fsck, then by pulls; else by pulls alone.
    """
    layers = {diff_id: tree for original in originals for diff_id, tree in original.layers.items()}
    # The state is not on the disk: a machine that starts has none, and this process keeps a file of it open.
    with Client(top / "root", mount_point.parent / "state") as client:
        _synced_rows_are_complete(client, layers)
        for original in synced:
            _is_complete(client, original, mount_point)
        if written is not None:
            mine = client.snapshots.layer_paths("mine")[0]
            assert {name: (mine / name).read_bytes() for name in written} == written
        _nothing_spoiled_is_read(client)
        _snapshots_can_be_used_or_say_why(client, layers)
        if repair:
            left = _unmended(client.fsck(repair=True))
            assert {finding.kind for finding in left} <= PULL_MENDS, left
        for original in originals:
            image = client.images.pull(original.reference)
            assert differences(original.tree, container_tree(client, image, mount_point)) == []
            for part in (image.manifest.config, *image.manifest.layers):
                assert digest_of(client.content.read(part.digest)) == part.digest
        _remove_what_is_lost(client)
        assert client.fsck().findings == []


def _synced_rows_are_complete(client: Client, layers: dict[str, Tree]) -> None:
    with client.database.read() as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []
        blobs = db.execute("SELECT digest, size FROM blobs WHERE synced").fetchall()
        folders = db.execute("SELECT id, snapshotter, diff_id FROM layers WHERE synced").fetchall()
    for digest, size in blobs:
        data = (client.config.root / "blobs" / digest.replace(":", "/")).read_bytes()
        assert (len(data), digest_of(data)) == (size, digest)
    for layer, snapshotter, diff_id in folders:
        if diff_id is not None:
            found = read_tree(client.config.root / "snapshots" / snapshotter / layer / "fs")
            assert differences(layers[diff_id], found) == []


def _is_complete(client: Client, original: Original, mount_point: Path) -> None:
    """An image that was synced is usable as it is, without a registry."""
    image = client.images.get(original.reference)
    assert differences(original.tree, container_tree(client, image, mount_point)) == []
    for part in (image.target, image.manifest.config, *image.manifest.layers):
        if part not in image.manifest.layers or not image.layers_discarded:
            assert digest_of(client.content.read(part.digest)) == part.digest


def _nothing_spoiled_is_read(client: Client) -> None:
    for info in list(client.content.walk()):
        try:
            data = client.content.read(info.digest)
        except LamellaError:
            assert not client.content.exists(info.digest)
        else:
            assert digest_of(data) == info.digest


def _snapshots_can_be_used_or_say_why(client: Client, layers: dict[str, Tree]) -> None:
    for info in list(client.snapshots.walk()):
        try:
            if info.kind == "committed":
                client.snapshots.prepare("try", info.name)
                client.snapshots.remove("try")
            folders = client.snapshots.layer_paths(info.name)
        except LamellaError:
            continue
        by_id = {folder.parent.name: folder for folder in folders}
        with client.database.read() as db:
            rows = db.execute("SELECT id, diff_id FROM layers WHERE diff_id IS NOT NULL").fetchall()
        for layer, diff_id in rows:
            if layer in by_id:
                assert differences(layers[diff_id], read_tree(by_id[layer])) == [], info


def _remove_what_is_lost(client: Client) -> None:
    """Do what fsck says about a committed snapshot that was lost while others stand on it: remove them, and it goes."""
    for finding in _unmended(client.fsck(repair=True)):
        assert finding.kind == "missing-layer", finding
        with client.database.read() as db:
            rows = db.execute(
                "SELECT name FROM snapshots WHERE layer = ?", (finding.name.rpartition("/")[2],)
            ).fetchall()
        for (name,) in rows:
            with suppress(FailedPrecondition):  # the one beneath
                client.snapshots.remove(name)
    assert _unmended(client.fsck(repair=True)) == []


def _unmended(report: FsckReport) -> list[Any]:
    return [finding for finding in report.findings if not finding.mended]
