"""How a store behaves as it grows: listing, opening, snapshots, du and gc at 10 to 100,000 objects. Prints and never judges.

The rows are written straight into the database, as pulls would leave them (an image has a manifest, a config, five layers and
five snapshots), without files: what is measured here is the metadata. LAMELLA_SCALE=1000000 adds a size.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

import lamella
from lamella import oci
from lamella.gc import collect
from lamella.metadata import timestamp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SIZES = [10, 1_000, 10_000, 100_000, *map(int, os.environ.get("LAMELLA_SCALE", "").split())]
LAYERS = 5
PLATFORM = msgspec.json.encode(oci.Platform(os="linux", architecture="amd64")).decode()


def _digest(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def _fill(client: lamella.Client, count: int) -> None:
    """Write ``count`` images, seven times as many blobs, five times as many snapshots, and ``count`` views of the first."""
    now = timestamp()
    with client.database.write() as db:
        for number in range(count):
            name = f"docker.io/library/image-{number}:latest"
            manifest, config = _digest(f"manifest {number}"), _digest(f"config {number}")
            layers = [_digest(f"layer {number} {place}") for place in range(LAYERS)]
            references = {
                f"containerd.io/gc.ref.content.l.{place}": layer for place, layer in enumerate(layers)
            }
            references["containerd.io/gc.ref.content.config"] = config
            labels = {manifest: references, config: {"containerd.io/gc.ref.snapshot.overlayfs": layers[-1]}}
            for digest in (manifest, config, *layers):
                db.execute("INSERT INTO blobs VALUES (?, 1000, ?, '', 1)", (digest, now))
                db.execute(
                    "INSERT INTO content (namespace, digest, labels, created_at, updated_at) "
                    "VALUES ('default', ?, ?, ?, ?)",
                    (digest, msgspec.json.encode(labels.get(digest, {})).decode(), now, now),
                )
            for place, layer in enumerate(layers):
                folder = f"{number * LAYERS + place:016x}"
                db.execute(
                    "INSERT INTO layers (id, snapshotter, diff_id, disk_bytes, created_at, boot_id, synced) "
                    "VALUES (?, 'overlayfs', ?, 4096, ?, '', 1)",
                    (folder, layer, now),
                )
                _snapshot(db, layer, "committed", layers[place - 1] if place else None, folder, now)
            _snapshot(db, f"view-{number}", "view", _digest(f"layer 0 {LAYERS - 1}"), None, now)
            db.execute(
                "INSERT INTO images "
                "(namespace, name, media_type, digest, size, platform, total_size, created_at, updated_at) "
                "VALUES ('default', ?, ?, ?, 1000, ?, 7000, ?, ?)",
                (name, oci.OCI_MANIFEST, manifest, PLATFORM, now, now),
            )


def _snapshot(db: Any, name: str, kind: str, parent: str | None, layer: str | None, now: str) -> None:
    labels = "{}" if kind == "committed" else '{"containerd.io/gc.root":"x"}'
    db.execute(
        "INSERT INTO snapshots (namespace, snapshotter, name, kind, parent, layer, labels, created_at, updated_at) "
        "VALUES ('default', 'overlayfs', ?, ?, (SELECT number FROM snapshots WHERE name = ?), ?, ?, ?, ?)",
        (name, kind, parent, layer, labels, now, now),
    )


@pytest.fixture(scope="module", params=SIZES, ids=lambda count: f"{count}-images")
def grown(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[lamella.Client]:
    """Give a client on a store with that many images."""
    folder: Path = tmp_path_factory.mktemp("scale")
    with lamella.Client(root=folder / "root", state=folder / "state") as client:
        _fill(client, request.param)
        # The folders that a new snapshot on the first image looks at.
        for place in range(LAYERS):
            (client.config.root / "snapshots" / "overlayfs" / f"{place:016x}" / "fs").mkdir(parents=True)
        yield client


def _few(benchmark: Any, action: Callable[[], object]) -> None:
    benchmark.pedantic(action, rounds=3, warmup_rounds=1)


def test_open_and_close(benchmark: Any, grown: lamella.Client) -> None:
    config = grown.config

    def cycle() -> None:
        with lamella.Client(root=config.root, state=config.state) as client:
            client.namespaces.list()

    benchmark(cycle)


def test_prepare_mounts_and_remove(benchmark: Any, grown: lamella.Client) -> None:
    parent = _digest(f"layer 0 {LAYERS - 1}")

    def cycle() -> None:
        grown.snapshots.prepare("work", parent=parent)
        grown.snapshots.mounts("work")
        grown.snapshots.remove("work")

    benchmark(cycle)


def test_find_an_image(benchmark: Any, grown: lamella.Client) -> None:
    benchmark(lambda: grown.images.get("image-0"))


def test_list_images_with_platform_and_size(benchmark: Any, grown: lamella.Client) -> None:
    _few(benchmark, lambda: [(str(image.platform), image.size) for image in grown.images.list()])


def test_walk_content(benchmark: Any, grown: lamella.Client) -> None:
    _few(benchmark, lambda: sum(1 for _ in grown.content.walk()))


def test_walk_snapshots(benchmark: Any, grown: lamella.Client) -> None:
    _few(benchmark, lambda: sum(1 for _ in grown.snapshots.walk()))


def test_gc_with_nothing_to_do(benchmark: Any, grown: lamella.Client) -> None:
    _few(benchmark, lambda: collect(grown.database, grown.config))


def test_du(benchmark: Any, grown: lamella.Client) -> None:
    _few(benchmark, grown.du)
