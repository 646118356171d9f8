"""How the work grows with the store, counted in steps of SQLite's machine: a hundred times as much is flat or linear, never more.

Times say little in a test; steps are the same on every machine. A query that loses its index shows at once.
"""

from __future__ import annotations

import pytest

import lamella
import scale
from lamella.gc import collect

SMALL, LARGE = 20, 400


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Give clients on a small and on a large store, and the name of a committed snapshot that both have."""
    opened = []
    for count in (SMALL, LARGE):
        folder = tmp_path_factory.mktemp("store")
        client = lamella.Client(folder / "root", folder / "state")
        parent = scale.fill(client, count, files=True)
        opened.append((client, parent))
    yield opened
    for client, _ in opened:
        client.close()


def steps(client, parent, action, monkeypatch):
    """Count the steps of all statements, of this connection and of those that the action opens."""
    from lamella.metadata import Database

    count = 0

    def step():
        nonlocal count
        count += 1
        return False

    connect = Database._connect

    def counted(self):
        connection = connect(self)
        connection.set_progress_handler(step, 1)
        return connection

    with monkeypatch.context() as patch:
        patch.setattr(Database, "_connect", counted)
        with lamella.Client(client.config.root, client.config.state) as fresh:
            count = 0
            action(fresh, parent)
    return count


def prepare(client, parent):
    client.snapshots.prepare("work", parent)
    client.snapshots.mounts("work")
    client.snapshots.usage("work")
    client.snapshots.remove("work")


def commit(client, parent):
    client.snapshots.prepare("work", parent)
    client.snapshots.commit("done", "work")
    client.snapshots.remove("done")


def write(client, _):
    digest = lamella.digest.digest_of(b"data")
    client.content.write("ref", b"data", digest=digest, size=4)
    client.content.update_labels(digest, {"a": "b"})
    client.content.delete(digest)


def lease(client, _):
    with client.leases.hold() as held:
        client.leases.add(held.id, "content", client.images.get("image-1").digest)


FLAT = {
    "opening": lambda client, _: client.namespaces.list(),
    "preparing": prepare,
    "committing": commit,
    "finding an image": lambda client, _: client.images.get("image-3").inspect(),
    "finding a container": lambda client, _: client.containers.get("box-10"),
    "finding a container by the start of its identifier": lambda client, _: client.containers.get(
        scale.container_id(10)[:20]
    ),
    "writing content": write,
    "a lease": lease,
    "refusing to delete a namespace": lambda client, _: _refuse(client),
}
LINEAR = {
    "listing images": lambda client, _: client.images.list(),
    "listing content": lambda client, _: list(client.content.walk()),
    "listing snapshots": lambda client, _: list(client.snapshots.walk()),
    "listing leases": lambda client, _: client.leases.list(),
    "listing containers": lambda client, _: client.containers.list(all=True),
    "collecting nothing": lambda client, _: collect(client.database, client.config),
    "disk usage": lambda client, _: client.du(),
    "checking": lambda client, _: client.fsck(),
}


def _refuse(client):
    with pytest.raises(lamella.errors.FailedPrecondition):
        client.namespaces.delete("default")


@pytest.mark.parametrize("what", FLAT)
def test_is_the_same_work_in_a_larger_store(stores, what, monkeypatch):
    small, large = (steps(*store, FLAT[what], monkeypatch) for store in stores)
    assert large <= small * 1.1, (small, large)


@pytest.mark.parametrize("what", LINEAR)
def test_grows_no_faster_than_the_store(stores, what, monkeypatch):
    small, large = (steps(*store, LINEAR[what], monkeypatch) for store in stores)
    assert large <= small * (LARGE / SMALL) * 1.2, (small, large)


def test_collecting_everything_is_linear(tmp_path, monkeypatch):
    counts = []
    for count in (5, 50):
        with lamella.Client(tmp_path / f"{count}" / "root", tmp_path / f"{count}" / "state") as client:
            scale.fill(client, count, files=False)
            with client.database.write() as db:
                for table in ("images", "leases", "containers"):
                    db.execute(f"DELETE FROM {table}")
                db.execute("DELETE FROM snapshots WHERE kind <> 'committed'")
            counts.append(steps(client, "", LINEAR["collecting nothing"], monkeypatch))
    assert counts[1] <= counts[0] * 10 * 1.2, counts
