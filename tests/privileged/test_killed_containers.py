"""kill -9 at every step of a container's life, of the caller, the launcher, the monitor and the container itself.

Whoever dies: nothing runs unobserved, the record can be removed or started again, and no folder, mount, cgroup or process
is left.
"""

from __future__ import annotations

import time
from contextlib import suppress

import pytest

from crashes import each_kill, image, runs
from lamella.containers.cgroups import _hierarchies
from lamella.errors import FailedPrecondition, LamellaError, NotFound
from steps import killing

pytestmark = killing


@pytest.fixture
def reference(server):
    return image().push(server)


def each(folder, reference, before, operation, *, points, everyone):
    """As each_kill; an error of ours is an answer when somebody else than the caller was killed."""

    def pull(client):
        client.images.pull(reference)
        before(client)

    def run(client):
        with suppress(LamellaError):
            operation(client)

    for client, outcome in each_kill(folder, pull, run, points=points, everyone=everyone):
        assert outcome.status <= 0, "an error that is none of ours"
        yield client, outcome
        runs(client, client.images.get(reference))


@pytest.mark.parametrize("everyone", [False, True], ids=["one", "all"])
def test_a_run(tmp_path, reference, everyone):
    def run(client):
        client.containers.run(reference, ["/bin/true"], remove=True, name="box")

    for client, _ in each(tmp_path, reference, lambda _: None, run, points=25, everyone=everyone):
        boxes = client.containers.list(all=True)
        assert [box.status for box in boxes] in ([], ["created"], ["stopped"], ["unknown"])
        for box in boxes:
            box.start()
            assert box.wait(30) == 0
            box.remove()
        run(client)


@pytest.mark.parametrize("everyone", [False, True], ids=["one", "all"])
def test_a_start(tmp_path, reference, everyone):
    def create(client):
        client.containers.create(reference, ["/bin/true"], name="box")

    def start(client):
        box = client.containers.get("box")
        box.start()
        box.wait(30)

    for client, _ in each(tmp_path, reference, create, start, points=25, everyone=everyone):
        box = client.containers.get("box")
        assert box.status in ("created", "stopped", "unknown")
        box.start()
        assert box.wait(30) == 0
        assert box.status == "stopped"


def test_a_creation_and_a_removal(tmp_path, reference):
    def create(client):
        box = client.containers.create(reference, ["/bin/true"], name="box")
        box.start()
        box.wait(30)

    def replace(client):
        client.containers.get("box").remove()
        client.containers.create(reference, ["/bin/true"], name="box", labels={"new": "1"})

    for client, _ in each(tmp_path, reference, create, replace, points=15, everyone=False):
        with suppress(NotFound):
            client.containers.get("box").remove()
        with pytest.raises(NotFound):
            client.snapshots.stat("box")
        client.containers.create(reference, ["/bin/true"], name="box")


@pytest.mark.parametrize("again", ["start", "remove"])
def test_cgroups_that_a_monitor_could_not_remove_any_more_go_with_the_next_start_or_removal(
    client, reference, again
):
    box = client.containers.create(client.images.pull(reference), ["/bin/true"])
    box.start()
    box.wait(30)
    while box.task.monitored():
        time.sleep(0.001)
    (box.task.folder / "control.sock").touch()  # what it removes last
    left = [hierarchy / box.spec["linux"]["cgroupsPath"].strip("/") for hierarchy in _hierarchies()]
    for folder in left:
        with suppress(OSError):  # a hierarchy that has no such groups
            folder.mkdir(parents=True)
    assert any(folder.is_dir() for folder in left)
    if again == "start":
        box.start()
        assert box.wait(30) == 0
    box.remove()
    assert not any(folder.is_dir() for folder in left)


def test_a_commit_and_a_branch(tmp_path, reference):
    def before(client):
        client.snapshots.prepare("work", client.images.get(reference).chain_id)
        (client.snapshots.layer_paths("work")[0] / "mine").write_text("x")

    def branch(client):
        client.snapshots.commit("base", "work")
        client.snapshots.prepare("next", "base")
        client.snapshots.view("look", "base")
        client.snapshots.remove("look")

    for client, _ in each(tmp_path, reference, before, branch, points=12, everyone=False):
        names = {info.name for info in client.snapshots.walk()} & {"work", "base", "next", "look"}
        assert ("work" in names) != ("base" in names)
        if "work" in names:
            branch(client)
        assert (client.snapshots.layer_paths("base")[0] / "mine").read_text() == "x"
        if "next" in names:
            client.snapshots.remove("next")


def test_a_commit_of_a_container_to_an_image(tmp_path, reference):
    def before(client):
        client.containers.create(reference, ["/bin/true"], name="box")
        (client.snapshots.layer_paths("box")[0] / "mine").write_text("x")

    def commit(client):
        client.containers.get("box").commit("mine:latest")

    for client, _ in each(tmp_path, reference, before, commit, points=20, everyone=False):
        commit(client)
        made = client.images.get("mine:latest")
        runs(client, made)
        assert (client.snapshots.layer_paths(made.chain_id)[0] / "mine").read_text() == "x"


def test_a_commit_of_a_running_container_does_not_leave_it_paused(tmp_path, reference):
    def before(client):
        client.containers.run(reference, ["/bin/forever"], name="box", detach=True)

    def commit(client):
        client.containers.get("box").commit("mine:latest")

    for client, _ in each(tmp_path, reference, before, commit, points=12, everyone=False):
        box = client.containers.get("box")
        if box.status == "running":  # else it was its monitor that was killed
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:  # the monitor sees the end of a connection when it comes to it
                with suppress(FailedPrecondition):
                    assert box.exec(["/bin/true"]).exit_code == 0
                    break
            else:
                pytest.fail("it is paused")
        box.remove(force=True)


def test_what_its_user_paused_stays_paused_when_it_is_committed(client, reference):
    client.images.pull(reference)
    box = client.containers.run(reference, ["/bin/forever"], detach=True)
    try:
        box.commit("first:latest")
        assert box.exec(["/bin/true"]).exit_code == 0
        box.pause()
        box.commit("second:latest")
        with pytest.raises(FailedPrecondition, match="paused"):
            box.exec(["/bin/true"])
        box.resume()
        assert box.exec(["/bin/true"]).exit_code == 0
    finally:
        box.remove(force=True)


def test_a_freeze(tmp_path, reference):
    """The container has its files, before or after, and a branch that is there has them too and can be stood on."""

    def before(client):
        client.containers.run(reference, ["/bin/true"], name="box")
        (client.snapshots.layer_paths("box")[0] / "file").write_text("x")

    def freeze(client):
        client.containers.get("box").commit()

    def shows(client, source):
        runs(client, source)
        assert (client.snapshots.layer_paths(source.name)[0] / "file").read_text() == "x"

    for client, _ in each(tmp_path, reference, before, freeze, points=20, everyone=False):
        box = client.containers.get("box")
        branches = client.branches.list()
        assert len(branches) in (0, 1)
        for branch in branches:
            shows(client, branch)
        again = box.commit()
        runs(client, again)
        assert again.parent == (branches[0] if branches else None)
        assert box.start() is None
        assert box.wait(30) == 0
        box.remove()
        client.branches.remove((branches or [again])[0].name, recursive=True)
        assert client.branches.list() == []


def frozen(client, reference, *names):
    """Make a chain of branches, each with a file of its name, and a container on the last."""
    box = client.containers.create(reference, ["/bin/true"], name="box")
    for name in names:
        (client.snapshots.layer_paths(box.snapshot_key)[0] / name).write_text(name)
        box.commit(branch=name)
    return box


def test_containers_on_a_branch(tmp_path, reference):
    """All of them are there or none, and each can run."""

    def before(client):
        frozen(client, reference, "base")

    def branch(client):
        client.branches.get("base").branch(2)

    for client, _ in each(tmp_path, reference, before, branch, points=14, everyone=False):
        boxes = client.branches.get("base").containers
        assert "box" in [box.name for box in boxes]
        assert len(boxes) in (1, 2, 3)
        for box in boxes:
            assert client.snapshots.layer_paths(box.snapshot_key)[1].joinpath("base").read_text() == "base"
            box.start()
            assert box.wait(30) == 0
            box.remove()
        client.branches.remove("base")


def test_a_removal_of_branches(tmp_path, reference):
    """Those that stand on each other go together."""
    names = ["one", "two", "three"]

    def before(client):
        frozen(client, reference, *names).remove()

    def remove(client):
        client.branches.remove("one", recursive=True)

    for client, _ in each(tmp_path, reference, before, remove, points=14, everyone=False):
        left = [branch.name for branch in client.branches.list()]
        assert left in ([], names)
        for name in left:
            assert client.snapshots.layer_paths(name)[0].joinpath(name).read_text() == name
            runs(client, client.branches.get(name))
        if left:
            remove(client)


def test_an_image_of_a_branch(tmp_path, reference):
    """It is there as a whole or not at all, and so is the branch, whatever was killed."""

    def before(client):
        frozen(client, reference, "one", "two").remove()

    def commit(client):
        client.branches.get("two").commit("mine:latest")

    for client, _ in each(tmp_path, reference, before, commit, points=20, everyone=False):
        for found in client.images.list():
            runs(client, found)
        commit(client)
        made = client.images.get("mine:latest")
        runs(client, made)
        top, beneath = client.snapshots.layer_paths(made.chain_id)[:2]
        assert ((top / "two").read_text(), (beneath / "one").read_text()) == ("two", "one")
        client.branches.remove("one", recursive=True)


@pytest.mark.parametrize("everyone", [False, True], ids=["one", "all"])
def test_a_container_with_images_and_parts_of_volumes(tmp_path, reference, everyone):
    """What it mounts is held as long as it is there, and no longer."""

    def run(client):
        mounts = [
            {"type": "image", "source": reference, "target": "/image", "subpath": "bin"},
            {"type": "volume", "source": "data", "target": "/part", "subpath": "part"},
        ]
        client.volumes.create("data").path.joinpath("part").mkdir(exist_ok=True)
        client.containers.run(reference, ["/image/true"], name="box", remove=True, mounts=mounts)

    for client, _ in each(tmp_path, reference, lambda _: None, run, points=20, everyone=everyone):
        boxes = client.containers.list(all=True)
        views = [info.name for info in client.snapshots.walk() if info.kind == "view"]
        assert views == [f"{box.id}-source-0" for box in boxes]
        for box in boxes:
            box.start()
            assert box.wait(30) == 0
            box.remove()
        run(client)
        client.volumes.remove("data")


def test_a_pool(tmp_path, reference):
    """What waited is gone at the next look, whoever was killed; what was taken is a container as any other."""

    def run(client):
        with client.containers.pool(reference, size=2) as pool:
            pool.run(["/bin/true"])

    for client, _ in each(tmp_path, reference, lambda _: None, run, points=14, everyone=False):
        client.containers.list()
        for box in client.containers.list(all=True):
            box.remove(force=True)
        with client.database.read() as db:
            assert db.execute("SELECT count(*) FROM containers").fetchone() == (0,)
        run(client)
        client.gc()
        assert [path.name for path in client.config.root.glob("locks/pool-*")] == []
