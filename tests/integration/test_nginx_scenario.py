"""The example of the documents: nginx, a read-only view of it, a container with a snapshot of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lamella.errors import NotFound

if TYPE_CHECKING:
    from conftest import Pulled

pytestmark = [pytest.mark.integration, pytest.mark.real_image, pytest.mark.privileged]


def test_deleting_the_container_deletes_its_active_snapshot_and_nothing_else(pulled: Pulled) -> None:
    client, image = pulled.client, pulled.image
    client.snapshots.view("nginx-readonly-snapshot", parent=image.chain_id)
    try:
        before = {info.name: info for info in client.snapshots.walk()}
        box = client.containers.create(image, ["nginx", "-v"], name="nginx-container-abc123")
        added = {info.name: info for info in client.snapshots.walk() if info.name not in before}
        assert [(info.kind, info.parent) for info in added.values()] == [("active", image.chain_id)]
        box.start()
        assert box.wait(timeout=60) == 0
        box.remove()
        assert {info.name: info for info in client.snapshots.walk()} == before
        assert before["nginx-readonly-snapshot"].kind == "view"
        assert [info.kind for info in before.values()].count("committed") == len(image.layers)
        assert client.images.get(pulled.reference).digest == image.digest
        assert all(client.content.exists(layer.digest) for layer in image.layers)
        with pytest.raises(NotFound):
            client.containers.get("nginx-container-abc123")
    finally:
        client.snapshots.remove("nginx-readonly-snapshot")
