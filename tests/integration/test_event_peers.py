"""Our events beside those of a real containerd, of the same life of an image and a container: topics, fields and order."""

from __future__ import annotations

import json
import select
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import systems

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.integration,
    pytest.mark.needs_program("containerd", "ctr", "runc"),
]

NOT_OURS = {"/tasks/create": {"rootfs", "io"}, "/tasks/delete": {"pid"}}
"""What containerd tells beyond: mounts, the paths of its fifos, the pid of a process that is gone."""
LIFE = ["/containers/create", "/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]

Told = list[tuple[str, dict[str, Any]]]


@pytest.fixture
def containerd() -> Iterator[Any]:
    with tempfile.TemporaryDirectory() as folder, systems.Containerd(Path(folder), "", Path()) as running:
        yield running


def theirs(containerd: Any, reference: str, fifos: Path) -> Told:
    def ctr(*words: str) -> int:
        return subprocess.run(containerd.ctr(*words), capture_output=True, check=False).returncode

    follower = subprocess.Popen(containerd.ctr("events"), stdout=subprocess.PIPE, text=True)
    assert follower.stdout is not None
    told: Told = []
    try:
        # It does not say when it has begun: give it something to tell until it does.
        while not select.select([follower.stdout], [], [], 0.2)[0]:
            ctr("namespaces", "create", "begun")
            ctr("namespaces", "remove", "begun")
        told.append(_parts(follower.stdout.readline()))
        streams = ["--fifo-dir", str(fifos)]
        assert ctr("images", "pull", "--plain-http", reference) == 0
        assert ctr("images", "label", reference, "a=b") == 0
        assert ctr("run", "--rm", *streams, reference, "one", "/bin/sh", "-c", "exit 3") == 3
        assert ctr("run", "-d", *streams, reference, "two", "/bin/sleep", "600") == 0
        assert ctr("tasks", "exec", *streams, "--exec-id", "exec", "two", "/bin/true") == 0
        assert ctr("tasks", "pause", "two") == ctr("tasks", "resume", "two") == 0
        assert ctr("tasks", "rm", "-f", "two") in (0, 1)
        assert ctr("containers", "rm", "two") == 0
        assert ctr("images", "rm", "--sync", reference) == 0
        while not _is_whole(told):
            told.append(_parts(follower.stdout.readline()))
    finally:
        follower.kill()
        follower.wait()
        follower.stdout.close()
    return told


def _is_whole(told: Told) -> bool:
    """What the shims tell of their tasks comes in their own time, perhaps after what containerd tells itself."""
    topics = [topic for topic, _ in told]
    return "/images/delete" in topics and topics.count("/tasks/delete") >= 2


def _parts(line: str) -> tuple[str, dict[str, Any]]:
    *_, topic, fields = line.split(" ", 6)
    return topic, json.loads(fields)


def ours(client: Any, reference: str) -> Told:
    image = client.images.pull(reference)
    client.images.put(image.name, image.target, {"a": "b"})
    client.containers.run(image, ["/bin/sh", "-c", "exit 3"], name="one", remove=True)
    two = client.containers.run(image, ["/bin/sleep", "600"], name="two", detach=True)
    two.exec(["/bin/true"])
    two.pause()
    two.resume()
    two.remove(force=True)
    client.images.remove(reference)
    client.gc()
    with client.events(follow=False) as events:
        return [(event.topic, event.event) for event in events]


def fields(told: Told) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for topic, event in told:
        found.setdefault(topic, set()).update(event)
    return found


def life(told: Told, container: str) -> list[str]:
    """Give what is told of one container's run, by the identifier that its creation gives."""
    (key,) = (event["id"] for topic, event in told if topic == LIFE[0] and container in event.values())
    return [
        topic for topic, event in told if key in (event.get("id"), event.get("container_id")) if topic in LIFE
    ]


def test_topics_fields_and_order_are_containerds(containerd, client, small_image, tmp_path):
    them, us = theirs(containerd, small_image, tmp_path / "fifos"), ours(client, small_image)
    theirs_by_topic, ours_by_topic = fields(them), fields(us)
    assert set(theirs_by_topic) - {"/namespaces/delete"} <= set(ours_by_topic)
    for topic, names in theirs_by_topic.items():
        if topic in ours_by_topic:
            assert names - NOT_OURS.get(topic, set()) <= ours_by_topic[topic], topic
    assert life(them, "one") == life(us, "one") == LIFE
    exits = [
        [e["exit_status"] for t, e in told if t == "/tasks/exit" and e.get("exit_status")]
        for told in (them, us)
    ]
    assert exits == [[3, 137], [3, 137]]
