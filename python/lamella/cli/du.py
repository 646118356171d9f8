"""``lamella du``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lamella.cli import output
from lamella.cli.parser import Arguments, Command

if TYPE_CHECKING:
    from lamella.cli.session import Session


def _du(arguments: Arguments, session: Session) -> int:
    usage = session.client.du()
    if session.json:
        session.document(usage)
        return 0
    size = output.size
    if usage.images:
        session.table(
            ("IMAGE", ">COMPRESSED", ">SHARED", ">UNPACKED", ">SHARED"),
            (
                (
                    image.name,
                    size(image.compressed_alone),
                    size(image.compressed_shared),
                    size(image.unpacked_alone),
                    size(image.unpacked_shared),
                )
                for image in usage.images
            ),
        )
        session.line("")
    if usage.containers:
        session.table(
            ("CONTAINER", "IMAGE", ">WRITTEN", ">LOGS"),
            ((box.name, box.image, size(box.writable), size(box.logs)) for box in usage.containers),
        )
        session.line("")
    if usage.snapshots:
        session.table(
            ("SNAPSHOT", "KIND", ">SIZE"),
            ((snapshot.name, snapshot.kind, size(snapshot.size)) for snapshot in usage.snapshots),
        )
        session.line("")
    store = usage.store
    session.table(
        ("STORE", ">SIZE"),
        (
            ("compressed blobs", size(store.blobs)),
            ("unpacked layers", size(store.layers)),
            ("written to snapshots", size(store.snapshots)),
            ("logs", size(store.logs)),
            ("volumes", size(store.volumes)),
            ("unfinished downloads", size(store.ingests)),
            ("metadata", size(store.metadata)),
            ("kept free for clean-up", size(store.reserve)),
            ("total", size(store.total)),
            ("'lamella gc' would free", size(usage.reclaimable)),
        ),
    )
    return 0


DU = Command(
    "du",
    "Show what takes the disk.",
    _du,
    description="COMPRESSED and UNPACKED are what an image has alone: what removing it and 'lamella gc' would free. The SHARED "
    "beside each is what other images, containers or snapshots use too. The last table is the whole store, all namespaces.",
    examples=[
        ("what is where", "lamella du"),
        (
            "the images that cost most, for a script",
            "lamella --json du | jq -r '.images | sort_by(-.unpacked_alone)[].name'",
        ),
    ],
)
