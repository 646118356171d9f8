"""What a list of images knows without reading documents, and when what it knows is renewed."""

from __future__ import annotations

import pytest

from lamella import oci
from lamella.digest import digest_of
from lamella.errors import InvalidArgument
from lamella.structs import read_json
from layers import Built, file, tar

pytestmark = [pytest.mark.integration, pytest.mark.privileged]

LAYER = tar(file("a", b"a" * 1000))


@pytest.fixture
def server():
    from lamella.registry.server import RegistryServer

    with RegistryServer() as running:
        yield running


def test_a_list_gives_platform_and_size_without_reading_documents(client, server, monkeypatch):
    built = Built(LAYER)
    image = client.images.pull(built.push(server))
    monkeypatch.setattr(type(client.content), "read", lambda *_, **__: pytest.fail("a document was read"))
    (listed,) = client.images.list()
    assert str(listed.platform) == "/".join(built.platform.values())
    assert listed.size == len(built.manifest) + len(built.config) + len(built.layers[0])
    assert listed == image


def test_what_the_list_knows_is_what_the_documents_say(client, server):
    built = Built(LAYER)
    built.platform |= {"variant": "v9"}
    image = client.images.pull(built.push(server))
    assert image.platform == image.config.platform
    assert image.platform.variant == "v9"


def test_a_tag_that_moves_gets_the_size_of_its_new_image(client, server):
    first = client.images.pull(Built(LAYER).push(server))
    second = client.images.pull(Built(LAYER, tar(file("b", b"b" * 5000))).push(server))
    (listed,) = client.images.list()
    assert listed.size == second.size > first.size


def test_an_image_whose_documents_come_later_is_known_when_it_is_put_again(client, server):
    built = Built(LAYER)
    reference = built.push(server)
    target = oci.Descriptor(
        media_type=oci.OCI_MANIFEST, digest=digest_of(built.manifest), size=len(built.manifest)
    )
    client.images.put(reference, target)
    with client.database.read() as db:
        assert db.execute("SELECT platform, total_size FROM images").fetchall() == [(None, None)]
    client.images.pull(reference)
    with client.database.read() as db:
        ((platform, size),) = db.execute("SELECT platform, total_size FROM images").fetchall()
    assert read_json(platform)["os"] == "linux"
    assert size == client.images.get(reference).size


def test_a_list_can_be_filtered_as_containerd_filters_images(client, server):
    image = client.images.pull(Built(LAYER).push(server, "one"), unpack=False)
    client.images.pull(Built(LAYER, LAYER).push(server, "two"), unpack=False)
    client.images.put(image.name, image.target, {"stage": "test"})

    def names(*filters):
        return [found.name.rpartition("/")[2] for found in client.images.list(filters=filters)]

    assert names() == ["one:latest", "two:latest"]
    assert names("labels.stage==test") == names(f"target.digest=={image.digest}") == ["one:latest"]
    assert names("name~=/one/", 'labels."stage"!=test') == ["one:latest", "two:latest"]
    assert names(f"target.mediatype!={image.target.media_type}") == []
    with pytest.raises(InvalidArgument):
        client.images.list(filters=["name=="])
