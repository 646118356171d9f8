"""A start and a removal of one container at once: one of them comes first, and the other sees it."""

from __future__ import annotations

import threading

import pytest

from crashes import image as built
from lamella.containers.task import Task
from lamella.errors import FailedPrecondition, NotFound
from layers import Built, file, program, tar

pytestmark = pytest.mark.privileged


@pytest.fixture
def box(client, server):
    forever = Built(tar(file("forever", program(None), mode=0o755)))
    return client.containers.create(client.images.pull(forever.push(server)), ["/forever"], name="box")


class Paused:
    """A start in another thread, that stops before it calls a method."""

    def __init__(self, box, monkeypatch, method):
        self.there, self.go = threading.Event(), threading.Event()
        self.error = None
        real = getattr(Task, method)

        def wait(task, *arguments, **options):
            if threading.current_thread() is self.thread:
                self.there.set()
                assert self.go.wait(30)
            return real(task, *arguments, **options)

        def start():
            try:
                box.start()
            except Exception as error:
                self.error = error

        monkeypatch.setattr(Task, method, wait)
        self.thread = threading.Thread(target=start)
        self.thread.start()
        assert self.there.wait(30)

    def finish(self):
        self.go.set()
        self.thread.join(30)


def remove_meanwhile(box, start, **options):
    """Remove while the start is paused; let that go on once the removal waits for it. Give what the removal raised."""
    errors = []

    def remove():
        try:
            box.remove(**options)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=remove)
    thread.start()
    thread.join(0.3)
    start.finish()
    thread.join(30)
    return errors


def test_what_is_being_started_is_not_removed(client, box, monkeypatch):
    start = Paused(box, monkeypatch, "_launch")
    (error,) = remove_meanwhile(box, start)
    assert isinstance(error, FailedPrecondition)
    assert start.error is None
    assert client.containers.get("box").status == "running"
    assert client.snapshots.stat("box").kind == "active"
    assert client.fsck().findings == []
    box.remove(force=True)


def test_what_is_being_started_is_ended_by_force(client, box, monkeypatch):
    start = Paused(box, monkeypatch, "_launch")
    assert remove_meanwhile(box, start, force=True) == []
    assert start.error is None
    assert client.containers.list(all=True) == []
    assert not box.task.folder.exists()


@pytest.mark.parametrize("method", ["_make_folders", "_exclusive"])
def test_what_was_removed_is_not_started(client, box, monkeypatch, method):
    start = Paused(box, monkeypatch, method)
    box.remove()
    start.finish()
    assert isinstance(start.error, NotFound)
    assert not box.task.folder.exists()
    assert not box.task.log_folder.exists()
    assert client.fsck().leftovers == []


def test_a_container_that_was_never_started_is_removed_where_no_state_can_be_written(
    client, server, tmp_path
):
    import lamella

    (tmp_path / "file").write_text("")
    client.images.pull(built().push(server))
    with lamella.Client(client.config.root, tmp_path / "file" / "state") as other:
        (image,) = other.images.list()
        other.containers.create(image, ["/bin/true"]).remove()
        assert other.containers.list(all=True) == []
