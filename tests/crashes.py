"""What a store has to be after a kill -9, whichever moment it was, and how it is found empty again."""

from __future__ import annotations

import shutil
import time
import urllib.request
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

import lamella
import lamella.fsck.store
from lamella.gc import collect
from layers import Built, file, folder, hardlink, program, tar, whiteout
from steps import Outcome, kills


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have fsck not wait for others to finish what it sees half done: there are none."""
    monkeypatch.setattr(lamella.fsck.store, "_PAUSES", (0.0,))


@pytest.fixture
def server() -> Iterator[Any]:
    from lamella.registry.server import RegistryServer

    with RegistryServer() as running:
        yield running


def image(*, filling: bytes = b"") -> Built:
    """Build an image whose upper layers cannot do without the lower ones; it can run ``/bin/true`` and ``/bin/forever``."""
    base = tar(
        folder("bin"),
        file("bin/true", program(), mode=0o755),
        file("bin/forever", program(None), mode=0o755),
        folder("etc"),
        file("etc/passwd", b"x"),
    )
    middle = tar(file("data/filling", filling), file("data/gone"))  # a parent folder that it does not name
    upper = tar(hardlink("bin/same", "bin/true"), whiteout("data/gone"))  # a link into a lower layer
    return Built(base, middle, upper)


def open_client(place: Path, namespace: str = "default") -> lamella.Client:
    return lamella.Client(root=place / "root", state=place / "state", namespace=namespace)


def each_kill(
    folder: Path,
    before: Callable[[lamella.Client], object],
    operation: Callable[[lamella.Client], object],
    *,
    points: int,
    everyone: bool = False,
    wrong: frozenset[str] = frozenset(),
) -> Iterator[tuple[lamella.Client, Outcome]]:
    """Kill ``operation`` at chosen steps, each time in a store of its own; give the store, opened again and found in order.

    ``wrong``: kinds of damage that ``before`` made, which may be there still.
    """
    places = (folder / str(number) for number in count(1))
    place = folder

    def scene() -> Callable[[], None]:
        nonlocal place
        place = next(places)
        place.mkdir()
        with open_client(place) as client:
            before(client)

        def run() -> None:
            with open_client(place) as own:
                operation(own)

        return run

    for outcome in kills(scene, points=points, everyone=everyone):
        with open_client(place) as client:
            assert [finding for finding in client.fsck().findings if finding.kind not in wrong] == []
            yield client, outcome
            client.gc()
            report = client.fsck()
            assert [*report.findings, *report.leftovers] == []
            empty(client)
        shutil.rmtree(place)


def empty(client: lamella.Client) -> None:
    """Remove everything by the store's own means, collect, and check that nothing whatever is left."""
    remove_all(client)
    client.gc()
    collect(client.database, client.config, ingest_seconds=0)
    nothing_is_left(client)


def remove_all(client: lamella.Client) -> None:
    """Remove what a namespace has: containers, images, leases, snapshots that are roots."""
    for box in client.containers.list(all=True):
        box.remove(force=True)
    for image in client.images.list():
        client.images.remove(image.name)
    for lease in client.leases.list():
        assert lease.expires_at is not None, f"nobody will ever end {lease}"
        client.leases.delete(lease.id)
    for info in reversed(list(client.snapshots.walk())):
        if info.kind != "committed" or "containerd.io/gc.root" in info.labels:
            client.snapshots.remove(info.name)


def nothing_is_left(client: lamella.Client) -> None:
    """Check that a store has no row and no file any more."""
    left = [
        str(path)
        for top, pattern in [
            (client.config.root, "blobs/*/*"),
            (client.config.root, "ingest/*"),
            (client.config.root, "snapshots/*/*"),
            (client.config.root, "containers/*/*"),
            (client.config.root, "locks/*"),
            (client.config.root, "events/*"),
            (client.config.state, "tasks/*/*"),
        ]
        for path in top.glob(pattern)
    ]
    assert left == []
    with client.database.read() as db:
        for table in ("blobs", "content", "layers", "snapshots", "containers", "images", "leases"):
            assert db.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,), table


def complete_blobs(client: lamella.Client) -> set[str]:
    with client.database.read() as db:
        return {row[0] for row in db.execute("SELECT digest FROM blobs")}


def unpacked_layers(client: lamella.Client) -> set[str]:
    with client.database.read() as db:
        return {row[0] for row in db.execute("SELECT diff_id FROM layers WHERE diff_id IS NOT NULL")}


def partial_blobs(client: lamella.Client) -> dict[str, int]:
    """Give how many bytes there are of each layer whose download was cut off."""
    return {
        status.expected: status.offset
        for status in client.content.ingests()
        if status.ref.startswith("layer-") and status.offset
    }


def quiet(server: Any) -> None:
    """Wait until the server is done with the dead, and forget what they asked for.

    Who connects after them is let in after them; from then on it is a matter of their connections' ends.
    """
    with urllib.request.urlopen(f"http://{server.address}/v2/") as answer:
        answer.read()
    while server._server._idle:
        time.sleep(0.001)
    server.requests.clear()


def blob_requests(server: Any) -> dict[str, list[str | None]]:
    """Give the Range of each request for a blob, by digest; and forget them."""
    asked: dict[str, list[str | None]] = {}
    for request in list(server.requests):
        if request.method == "GET" and "/blobs/" in request.path:
            asked.setdefault(request.path.rpartition("/")[2], []).append(request.range)
    server.requests.clear()
    return asked


def runs(client: lamella.Client, image: lamella.Image) -> None:
    """Check that a container starts from an image and ends well."""
    assert client.containers.run(image, ["/bin/true"], remove=True, timeout=30).exit_code == 0
    assert client.containers.run(image, ["/bin/same"], remove=True, timeout=30).exit_code == 0
