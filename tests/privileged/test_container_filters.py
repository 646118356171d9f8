"""Listing containers by docker's filters, and by containerd's."""

from __future__ import annotations

import pytest

from lamella.docker_filters import docker_filters
from lamella.errors import InvalidArgument, NotFound, Unsupported

pytestmark = pytest.mark.privileged


@pytest.fixture
def boxes(client, image):
    """Give containers in several states: one runs, one is paused, one has ended by 3, one has never run."""
    create = client.containers.create
    boxes = {
        "web-1": create(image, ["sleep", "100"], name="web-1", labels={"job": "1", "kind": "web"}),
        "web-2": create(image, ["sleep", "100"], name="web-2", labels={"job": "2", "kind": "web"}),
        "ended": create(image, ["sh", "-c", "exit 3"], name="ended", volumes=["data:/data"]),
        "made": create(image, ["true"], name="made", network="host"),
    }
    for name in ("web-1", "web-2", "ended"):
        boxes[name].start()
    boxes["web-2"].pause()
    boxes["ended"].wait(30)
    yield boxes
    for box in boxes.values():
        box.remove(force=True)


def names(client, filters, **options):
    return [box.name for box in client.containers.list(filters=filters, **options)]


def test_dockers_words_choose(client, boxes, image):
    everything = ["web-1", "web-2", "ended", "made"]
    for filters, expected in (
        ({"status": "running"}, ["web-1"]),
        ({"status": "paused"}, ["web-2"]),
        ({"status": ["exited", "created"]}, ["ended", "made"]),
        ({"exited": 3}, ["ended"]),
        ({"exited": "0"}, []),
        ({"name": "web"}, ["web-1", "web-2"]),
        ({"name": "/web-1$"}, ["web-1"]),
        ({"label": "kind"}, ["web-1", "web-2"]),
        ({"label": ["kind=web", "job=2"]}, ["web-2"]),
        ({"id": boxes["web-1"].short_id}, ["web-1"]),
        (["status=running", "status=paused", "label=job=2"], ["web-2"]),
        ("name=1", ["web-1"]),
    ):
        assert names(client, filters) == expected, filters
    for filters, expected in (
        ({"ancestor": image.name}, everything),
        ({"ancestor": image.manifest_descriptor.digest}, everything),
        ({"ancestor": str(image.manifest_descriptor.digest)[7:19]}, everything),
        ({"ancestor": "other:1"}, []),
        ({"before": "ended"}, ["web-1", "web-2"]),
        ({"since": "web-2"}, ["ended", "made"]),
        ({"volume": "data"}, ["ended"]),
        ({"volume": "/data"}, ["ended"]),
        ({"network": "host"}, ["made"]),
        ({}, everything),
    ):
        assert names(client, filters, all=True) == expected, filters


def test_containerds_language_still_chooses(client, boxes):
    assert names(client, ["name==web-1", "labels.job==2"]) == ["web-1", "web-2"]
    assert names(client, "status==stopped", all=True) == ["ended"]


def test_prune_takes_dockers_words(client, boxes):
    assert client.containers.prune(filters={"status": "created"}) == ["made"]
    assert names(client, {}, all=True) == ["web-1", "web-2", "ended"]


@pytest.mark.parametrize(
    ("filters", "error"),
    [
        ({"health": "healthy"}, Unsupported),
        ({"colour": "red"}, InvalidArgument),
        ({"status": "gone"}, InvalidArgument),
        ({"exited": "x"}, InvalidArgument),
        ({"name": "("}, InvalidArgument),
        ({"label": 1.5}, InvalidArgument),
        ({"before": "nobody"}, NotFound),
        (["status=running", "name==box"], InvalidArgument),
    ],
)
def test_what_cannot_be_asked_is_refused(client, filters, error):
    with pytest.raises(error):
        client.containers.list(filters=filters)


def test_the_two_languages_are_told_apart():
    assert docker_filters(["label=a=b", "label=c"]) == {"label": ["a=b", "c"]}
    for text in ("name==x", "name!=x", "name~=x", "labels.a==b", "name", 'labels."a=b"==c'):
        assert docker_filters([text]) is None, text
