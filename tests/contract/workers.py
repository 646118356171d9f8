"""What the processes of test_processes.py do: ``workers.py ROOT FUNCTION ARGUMENTS``."""

from __future__ import annotations

import random
import sys
import time
from contextlib import suppress
from pathlib import Path

from lamella.digest import digest_of
from lamella.errors import Aborted, AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from stores import Store

BLOBS = [bytes([number]) * 5000 for number in range(6)]
KEYS = ["a", "b", "c", "d"]


def note(root: Path, name: str) -> None:
    """Append a line to a log that all processes share."""
    with (root.parent / name).open("a") as file:
        file.write("x\n")


def download_all(root: Path, seed: int) -> None:
    """Bring every blob and layer here, as several pulls of one image do."""
    store = Store(root)
    order = list(range(len(BLOBS)))
    random.Random(seed).shuffle(order)
    for number in order:
        data, digest = BLOBS[number], digest_of(BLOBS[number])
        try:
            with store.content.writer(f"blob-{number}", size=len(data), digest=digest, wait=True) as ingest:
                note(root, f"downloads-{number}")
                for at in range(ingest.offset, len(data), 1000):
                    ingest.write(data[at : at + 1000])
                    time.sleep(0.001)
                ingest.commit()
        except AlreadyExists:
            pass
        with store.layers.stage("overlayfs", digest) as staging:
            layer = store.layers.find("overlayfs", digest)
            if layer is None:
                note(root, f"unpacks-{number}")
                (staging.path / "file").write_bytes(data)
                layer = staging.commit(diff_id=digest, disk_bytes=1, inodes=2, opaque_root=False)
            store.snapshots.add_committed(f"layer-{number}", "", layer)
    store.close()


def die_while_writing(root: Path) -> None:
    """Write half of the first blob and wait to be killed."""
    store = Store(root)
    data, digest = BLOBS[0], digest_of(BLOBS[0])
    ingest = store.content.writer("blob-0", size=len(data), digest=digest)
    ingest.write(data[:2000])
    staging = store.layers.stage("overlayfs", digest)
    (staging.path / "half").write_text("x")
    note(root, "ready")
    time.sleep(600)


def pull_and_run(root: Path, seed: int, seconds: float) -> None:
    """Pull, use and remove images of blobs and layers that others pull, use and remove, while somebody collects."""
    store = Store(root, namespace=f"ns{seed % 2}")
    random_ = random.Random(seed)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        numbers = random_.sample(range(len(BLOBS)), 3)
        digests = [digest_of(BLOBS[number]) for number in numbers]
        manifest = repr((seed, digests)).encode()
        image, key = f"image-{seed}", f"box-{seed}"
        with store.leases.hold(expires_in=600) as lease:
            store.leases.add_all(
                lease.id, [("content", digest) for digest in [*digests, digest_of(manifest)]]
            )
            store.leases.add_all(lease.id, [("layers", digest) for digest in digests])
            for number, digest in zip(numbers, digests, strict=True):
                if store.content.exists(digest):
                    store.content.adopt(digest)
                else:
                    store.content.write(
                        f"blob-{number}", BLOBS[number], digest=digest, size=len(BLOBS[number])
                    )
            labels = {f"containerd.io/gc.ref.content.l.{n}": digest for n, digest in enumerate(digests)}
            labels["containerd.io/gc.ref.snapshot.overlayfs"] = f"{image}-2"
            parent = ""
            with store.leases.hold() as chain_lease:
                store.leases.add(chain_lease.id, "snapshots/overlayfs", f"{image}-2")
                for place, digest in enumerate(digests):
                    layer = store.layers.find("overlayfs", digest)
                    if layer is None:
                        with store.layers.stage("overlayfs", digest) as staging:
                            layer = store.layers.find("overlayfs", digest)
                            if layer is None:
                                (staging.path / "file").write_bytes(digest.encode())
                                layer = staging.commit(
                                    diff_id=digest, disk_bytes=1, inodes=2, opaque_root=False
                                )
                    store.leases.add(chain_lease.id, "snapshots/overlayfs", f"{image}-{place}")
                    store.snapshots.add_committed(f"{image}-{place}", parent, layer)
                    parent = f"{image}-{place}"
                store.content.write(
                    f"manifest-{seed}",
                    manifest,
                    digest=digest_of(manifest),
                    size=len(manifest),
                    labels=labels,
                )
                with store.database.write():
                    store.image(image, digest_of(manifest))
        mounts = store.snapshots.prepare(key, f"{image}-2")
        assert mounts[0].type == "overlay"
        for digest, folder in zip(reversed(digests), store.snapshots.layer_paths(key)[1:], strict=True):
            assert (folder / "file").read_text() == digest
            assert digest_of(store.content.read(digest)) == digest
        (store.snapshots.layer_paths(key)[0] / "written").write_text("x")
        store.remove_image(image)
        time.sleep(0.001)
        assert store.snapshots.layer_paths(key)[1:][-1].is_dir()
        store.snapshots.remove(key)
        for place in (2, 1, 0):
            with suppress(NotFound):  # the collector was faster
                store.snapshots.remove(f"{image}-{place}")
    note(root, "rounds")
    store.close()


def collect(root: Path, seconds: float) -> None:
    """Collect all the time."""
    store = Store(root)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        store.gc(ingest_seconds=0)
    store.close()


def fight_for_keys(root: Path, seed: int, steps: int) -> None:
    """Do anything to a few keys that others do anything to; only errors of the contract may come."""
    store = Store(root)
    random_ = random.Random(seed)
    snapshots = store.snapshots
    for _ in range(steps):
        one, two = random_.choice(KEYS), random_.choice(KEYS)
        action = random_.choice(
            [
                lambda: snapshots.prepare(one),  # noqa: B023
                lambda: snapshots.prepare(one, two),  # noqa: B023
                lambda: snapshots.view(one, two),  # noqa: B023
                lambda: snapshots.commit(one, two),  # noqa: B023
                lambda: snapshots.remove(one),  # noqa: B023
                lambda: snapshots.remove(two),  # noqa: B023
                lambda: snapshots.update(one, {"by": str(seed)}),  # noqa: B023
                lambda: snapshots.usage(one),  # noqa: B023
                lambda: list(snapshots.walk()),
                lambda: snapshots.mounts(one),  # noqa: B023
            ]
        )
        with suppress(AlreadyExists, NotFound, InvalidArgument, FailedPrecondition, Aborted):
            action()
    store.close()


if __name__ == "__main__":
    name, *arguments = sys.argv[2:]
    globals()[name](Path(sys.argv[1]), *(float(text) if "." in text else int(text) for text in arguments))
