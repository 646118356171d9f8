"""What a container is given in its environment is told to nobody but the container, and to who asks for its record."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

import pytest

import lamella
from lamella.errors import LamellaError

pytestmark = pytest.mark.privileged

SECRET = "hunter2-and-more"


@pytest.fixture(params=["lamella", pytest.param("runc", marks=pytest.mark.needs_program("runc"))])
def box(request, tmp_path, small_image):
    """Give a running container that has the secret, with ids of its own: others of the machine pass through its folders."""
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o711)
    with lamella.Client(root=tmp_path / "root", state=tmp_path / "state") as client:
        image = client.images.pull(small_image)
        container = client.containers.run(
            image,
            ["/bin/sleep", "1000"],
            environment={"PASSWORD": SECRET},
            detach=True,
            runtime=request.param,
            userns="auto",
        )
        yield container, client
        container.remove(force=True)


def readable_by_others(path: Path, top: Path) -> bool:
    """Say whether everybody may read a file, who has got to the top of its tree."""
    if not path.stat().st_mode & stat.S_IROTH:
        return False
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in path.parents if folder.is_relative_to(top))


def test_files_that_have_a_secret_are_for_their_owners_eyes(box, tmp_path):
    found = []
    for folder, folders, files in os.walk(tmp_path):
        if "rootfs" in folders:
            folders.remove("rootfs")
        for name in files:
            path = Path(folder, name)
            if path.is_file() and SECRET.encode() in path.read_bytes():
                found.append(path)
    assert found, "the test does not see where it is kept"
    assert [path for path in found if readable_by_others(path, tmp_path)] == []


def test_no_process_outside_of_the_container_shows_a_secret(box):
    """/proc/PID/cmdline is for everybody, /proc/PID/environ for all of the same user."""
    container, _ = box
    first = Path("/proc", str(container.pid))
    shown = {}
    for process in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ"):
            try:
                inside = (process / "ns/pid").stat().st_ino == (first / "ns/pid").stat().st_ino
                if SECRET.encode() in (process / name).read_bytes():
                    shown[process.name, name] = inside
            except OSError:
                continue
    assert shown == {(first.name, "environ"): True}


def test_no_log_no_event_and_no_error_tells_a_secret(box, caplog):
    caplog.set_level(logging.DEBUG)
    container, client = box
    variables = {"PASSWORD": SECRET}
    errors = []
    for wrong in (
        lambda: container.exec(["/missing"], environment=variables),
        lambda: container.exec(["/bin/sh", "-c", "exit 3"], environment=variables, check=True),
        lambda: container.exec(["/bin/sh"], environment={"PASSWORD": f"{SECRET}\0"}),
        lambda: container.exec(["/bin/sh"], environment=[f"={SECRET}"]),
        lambda: container.exec(["/bin/sleep", "100"], environment=variables, timeout=0.1, check=True),
    ):
        with pytest.raises(LamellaError) as caught:
            wrong()
        errors.append(f"{caught.value!r} {caught.value} {caught.value.hint}")
    events = [str(event) for event in client.events(follow=False)]
    assert events
    assert SECRET not in "\n".join([caplog.text, repr(container), *errors, *events])
