"""Branches: containers that are frozen, what stands on them, and what becomes of it all."""

from __future__ import annotations

import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from lamella.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound

pytestmark = pytest.mark.privileged

SCRIPT = "echo new > /new && rm /etc/passwd && mkdir /made && echo x > /made/file"


@pytest.fixture
def box(client, image):
    """Give a container that has written and ended."""
    client.containers.run(image, ["/bin/sh", "-c", SCRIPT], name="box", environment={"A": "b"}, check=True)
    return client.containers.get("box")


def shell(client, source, script):
    return client.containers.run(
        source, ["/bin/sh", "-c", script], remove=True, timeout=30, check=True
    ).stdout


def test_a_branch_has_what_the_container_had_and_each_container_on_it_its_own_layer(client, image, box):
    base = box.commit()
    assert (base.image, base.container_id, base.parent) == (image, box.id, None)
    assert base.name.startswith("box-")
    for number in range(3):
        script = f"cat /new /made/file; test ! -e /etc/passwd && test ! -e /mine && echo {number} > /mine"
        assert shell(client, base, script) == b"new\nx\n"
    assert shell(client, image, "ls -d /etc/passwd") == b"/etc/passwd\n"
    assert client.fsck().findings == []


def test_the_container_goes_on_with_a_new_layer_on_top(client, box):
    base = box.commit()
    assert [str(change) for change in box.changes()] in ([], ["C /"])
    assert [container.name for container in base.containers] == ["box"]
    box.start()
    assert box.wait(30) != 0  # its passwd is gone already
    second = shell(client, box.commit(), "cat /new")
    assert second == b"new\n"


def test_branches_form_a_tree(client, box):
    base = box.commit(branch="base", labels={"stage": "1"})
    assert box.commit(branch="next").parent == base
    other = base.create(["/bin/sh", "-c", "echo other > /other"], name="other")
    other.start()
    assert other.wait(30) == 0
    other.commit(branch="side")
    assert [branch.name for branch in client.branches.list()] == ["base", "next", "side"]
    assert [branch.name for branch in base.children] == ["next", "side"]
    assert [branch.name for branch in client.branches.list(filters=["labels.stage==1"])] == ["base"]
    assert [branch.name for branch in client.branches.list(filters=["parent==base"])] == ["next", "side"]
    assert dict(base.labels) == {"stage": "1"}
    assert client.branches.get("side").inspect()["containers"] == ["other"]
    assert client.branches.get("side").size > 0


def test_what_is_stood_on_is_not_removed_and_a_tree_goes_as_a_whole(client, box):
    base = box.commit(branch="base")
    with pytest.raises(FailedPrecondition, match="container box stands on the branch base"):
        base.remove(recursive=True)
    box.commit(branch="next")
    box.remove()
    with pytest.raises(FailedPrecondition, match="branch next stands on"):
        base.remove()
    client.gc()
    assert len(client.branches.list()) == 2
    holder = client.branches.get("next").create(["/bin/true"], name="holder")
    with pytest.raises(FailedPrecondition, match="holder"):
        base.remove(recursive=True)
    assert len(client.branches.list()) == 2
    holder.remove()
    base.remove(recursive=True)
    assert client.branches.list() == []
    with pytest.raises(NotFound, match="base"):
        base.remove()
    client.gc()
    assert client.fsck().findings == []


def test_a_branch_outlives_its_container_and_the_name_of_its_image(client, image, box):
    base = box.commit()
    box.remove()
    client.images.remove(image.name)
    client.gc()
    assert base.image.chain_id == image.chain_id
    assert shell(client, base, "cat /new") == b"new\n"
    with pytest.raises(NotFound):
        base.branch()
    made = base.commit("made:1")
    base.remove()
    client.gc()
    assert shell(client, made, "cat /new /made/file") == b"new\nx\n"


def test_many_branches_at_once(client, box):
    base = box.commit()

    def one(number):
        return shell(client, base, f"cat /new; echo {number} > /new; cat /new")

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(one, range(24))) == [f"new\n{number}\n".encode() for number in range(24)]
    boxes = box.branch(5)
    assert len({each.id for each in boxes}) == 5
    assert all(len(each.changes()) <= 1 and each.command == box.command for each in boxes)


def test_containers_like_one_have_its_options_and_an_identity_of_their_own(client, image):
    box = client.containers.create(
        image,
        ["/bin/sh", "-c", "hostname; cat /etc/hostname; echo $A; echo $A > /mark"],
        environment={"A": "b"},
        memory="64m",
        labels={"x": "y"},
    )
    (twin,) = box.branch()
    assert twin.spec["linux"]["resources"]["memory"] == box.spec["linux"]["resources"]["memory"]
    assert twin.spec["linux"]["cgroupsPath"] == f"/lamella/default/{twin.id}"
    assert twin.labels == box.labels
    for each in (twin, box):
        each.start()
    for each in (twin, box):
        assert each.wait(30) == 0
        assert b"".join(data for _, data in each.logs()) == f"{each.short_id}\n{each.short_id}\nb\n".encode()


def test_a_running_container_is_copied_and_what_it_writes_later_is_not_seen(client, image):
    script = "while :; do echo x >> /log; : > /new.$i; i=$((i + 1)); done"
    box = client.containers.run(image, ["/bin/sh", "-c", script], detach=True, name="box")
    try:
        for _ in range(5):
            base = box.commit()
            assert box.status == "running"
            first = shell(client, base, "wc -c < /log; ls / | wc -l")
            box.exec(["/bin/sh", "-c", "echo more >> /log"], check=True, timeout=30)
            assert shell(client, base, "wc -c < /log; ls / | wc -l") == first
            assert base.parent is None
    finally:
        box.remove(force=True)
    assert client.fsck().findings == []


def test_a_container_that_is_paused_stays_so(client, image):
    box = client.containers.run(image, ["/bin/sleep", "300"], detach=True)
    try:
        box.pause()
        box.commit()
        with pytest.raises(FailedPrecondition, match="paused"):
            box.exec(["/bin/true"], timeout=30)
        box.resume()
        box.exec(["/bin/true"], check=True, timeout=30)
    finally:
        box.remove(force=True)


def test_a_container_that_is_started_and_frozen_at_once_is_one_or_the_other(client, image):
    box = client.containers.create(image, ["/bin/sh", "-c", "echo x >> /log"], name="box")
    errors = []

    def start():
        for _ in range(10):
            try:
                box.start()
                box.wait(30)
            except BaseException as error:
                errors.append(error)
                raise

    thread = threading.Thread(target=start)
    thread.start()
    branches = []
    while thread.is_alive():
        branches.append(box.commit())
        if len(branches) > 30:
            break
    thread.join()
    assert errors == []
    assert shell(client, box.commit(), "wc -l < /log") == b"10\n"
    for branch in branches:
        shell(client, branch, "test ! -e /log || wc -l < /log")


def test_an_image_of_a_branch_has_a_layer_for_each_or_one_for_all(client, image, box):
    box.commit()
    second = client.branches.list()[0].create(["/bin/sh", "-c", "rm /new; echo two > /two"])
    second.start()
    assert second.wait(30) == 0
    top = second.commit()
    layered, squashed = top.commit("made:1", message="both"), top.commit("made:2", squash=True)
    assert layered.diff_ids[:-2] == squashed.diff_ids[:-1] == image.diff_ids
    assert len(layered.config.history) == len(image.config.history) + 2
    assert layered.config.history[-1]["comment"] == "both"
    direct = second.commit("made:3")
    assert direct.diff_ids[:-1] == layered.diff_ids  # the container itself has written nothing since
    for made in (layered, squashed, direct):
        assert (
            shell(client, made, "cat /two /made/file; test ! -e /new; test ! -e /etc/passwd") == b"two\nx\n"
        )
    assert top.commit("made:4").layers == layered.layers
    assert client.leases.list() == []


def test_a_stack_that_is_too_deep_is_refused_and_squashing_goes_on(client, image, monkeypatch):
    monkeypatch.setattr("lamella.snapshots.overlayfs._MAX_LAYERS", len(image.diff_ids) + 3)
    box = client.containers.create(image, ["/bin/sh", "-c", "echo x >> /log"], name="box")
    for _ in range(3):
        box.start()
        assert box.wait(30) == 0
        last = box.commit()
    with pytest.raises(FailedPrecondition, match="layers") as caught:
        box.commit()
    assert "squash" in caught.value.hint
    assert last.containers == [box]
    assert shell(client, last.commit("flat:1", squash=True), "wc -l < /log") == b"3\n"


def test_names_and_labels_are_checked_and_nothing_is_left(client, image, box):
    box.commit(branch="taken")
    with pytest.raises(AlreadyExists, match="taken"):
        box.commit(branch="taken")
    for bad in (
        {"branch": "a/b"},
        {"labels": {"containerd.io/gc.flat": "x"}},
        {"message": "x"},
        {"squash": True},
    ):
        with pytest.raises(InvalidArgument):
            box.commit(**bad)
    with pytest.raises(InvalidArgument):
        box.commit("image:1", branch="x")
    with pytest.raises(NotFound, match="no branch"):
        client.branches.get(image.chain_id)
    assert len(client.branches.list()) == 1
    box.remove()
    with pytest.raises(NotFound):
        box.commit()
    assert not box.task.folder.exists()


def test_what_a_container_freezes_that_was_never_started_is_its_image(client, image):
    box = client.containers.create(image, ["/bin/true"])
    assert shell(client, box.commit(), "ls -d /etc/passwd") == b"/etc/passwd\n"
    assert box.status == "created"
    shutil.rmtree(client.config.state)  # as a restart of the machine
    assert box.status == "created"
    box.remove()
    assert not box.task.folder.exists()


def test_a_freeze_forgets_nothing_of_a_run_before_the_machine_restarted(client, image):
    client.containers.run(image, ["/bin/sh", "-c", "echo new > /new; exit 3"], name="box")
    box = client.containers.get("box")
    while box.task.monitored():  # it takes its cgroups away
        time.sleep(0.01)
    shutil.rmtree(client.config.state)  # is in memory
    before = (box.status, box.exit_code)
    assert shell(client, box.commit(), "cat /new") == b"new\n"
    assert (box.status, box.exit_code) == before
