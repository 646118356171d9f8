"""Folders that another user could change under us are refused."""

from __future__ import annotations

import os

import pytest

import lamella
from lamella.errors import PermissionDenied


def test_a_root_that_everybody_may_write_to_is_refused(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    root.chmod(0o1777)
    with pytest.raises(PermissionDenied, match="everybody may write") as caught:
        lamella.Client(root=root, state=tmp_path / "state").images.list()
    assert "chmod" in str(caught.value.hint)
    assert list(root.iterdir()) == []


@pytest.mark.needs_root
def test_a_root_of_another_user_is_refused(tmp_path):
    root = tmp_path / "root"
    root.mkdir(mode=0o700)
    os.chown(root, 65534, 65534)
    with pytest.raises(PermissionDenied, match="belongs to another user"):
        lamella.Client(root=root, state=tmp_path / "state").images.list()
    assert list(root.iterdir()) == []


@pytest.mark.privileged
def test_no_container_starts_with_a_state_folder_of_another_user(client, small_image, tmp_path):
    state = tmp_path / "state"
    state.mkdir(mode=0o711)
    os.chown(state, 65534, 65534)
    image = client.images.pull(small_image)
    with pytest.raises(PermissionDenied, match="belongs to another user"):
        client.containers.run(image, ["/bin/true"], remove=True)
    assert list(state.iterdir()) == []
