"""Names given to images that are here: what moves, what stays, what garbage collection makes of it."""

from __future__ import annotations

import pytest

from lamella.errors import InvalidArgument, NotFound
from lamella.labels import GC_EXPIRE
from lamella.registry.server import RegistryServer
from layers import Built, file, tar

pytestmark = [pytest.mark.integration, pytest.mark.privileged]


@pytest.fixture
def image(client):
    with RegistryServer() as server:
        yield client.images.pull(Built(tar(file("a"))).push(server))


def test_a_tag_is_the_same_image_under_another_name(client, image):
    tagged = client.images.tag(image.name, "team/app:stable")
    assert (tagged.name, tagged.target) == ("docker.io/team/app:stable", image.target)
    assert (tagged.platform, tagged.size) == (image.platform, image.size)
    assert [found.name for found in client.images.list()] == sorted([image.name, tagged.name])


def test_what_a_tag_names_outlives_the_name_that_it_was_made_of(client, image):
    client.images.tag(image.name, "kept")
    client.images.remove(image.name, sync=True)
    kept = client.images.get("kept")
    assert kept.chain_id == image.chain_id
    assert client.content.exists(kept.layers[0].digest)
    assert client.snapshots.stat(kept.chain_id).kind == "committed"


def test_a_name_that_another_image_has_is_moved(client, image):
    with RegistryServer() as server:
        other = client.images.pull(Built(tar(file("b"))).push(server, "other"))
    client.images.put(other.name, other.target, {"stage": "old"})
    moved = client.images.tag(image.name, other.name)
    assert (moved.name, moved.digest, moved.labels) == (other.name, image.digest, {})
    client.gc()
    assert not client.content.exists(other.digest)


def test_labels_come_along_but_for_the_end_of_the_image(client, image):
    client.images.put(image.name, image.target, {"stage": "test", GC_EXPIRE: "2000-01-01T00:00:00Z"})
    tagged = client.images.tag(image.name, "kept")
    assert tagged.labels == {"stage": "test"}
    client.gc()
    assert [found.name for found in client.images.list()] == [tagged.name]


def test_an_image_can_be_tagged_as_itself_and_twice(client, image):
    assert client.images.tag(image.name, image.name) == image
    first = client.images.tag(image.name, "twice")
    second = client.images.tag(image.name, "twice")
    assert second == first


def test_a_target_with_a_digest_and_a_source_that_is_not_here_are_refused(client, image):
    with pytest.raises(InvalidArgument, match="digest"):
        client.images.tag(image.name, f"app@{image.digest}")
    with pytest.raises(NotFound, match="elsewhere"):
        client.images.tag("elsewhere", "app")
    assert [found.name for found in client.images.list()] == [image.name]
