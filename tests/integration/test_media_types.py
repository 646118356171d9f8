"""The same image in every form that a registry may hold it in, as skopeo and crane make them: one unpacked result."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import machine_image
from tree import differences, read_tree

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.integration, pytest.mark.privileged]

DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"


@pytest.fixture
def original(client: Any, small_image: str) -> Any:
    """Give the image in its first form: an OCI manifest with gzip layers."""
    return client.images.pull(small_image)


@pytest.mark.needs_program("skopeo")
def test_docker_schema_2_gives_the_same_snapshots(client: Any, original: Any, small_image: str) -> None:
    reference = small_image.replace("/machine:", "/machine-schema2:")
    copy = [
        "skopeo",
        "copy",
        "--quiet",
        "--src-tls-verify=false",
        "--dest-tls-verify=false",
        "--format",
        "v2s2",
    ]
    subprocess.run([*copy, f"docker://{small_image}", f"docker://{reference}"], check=True)
    image = client.images.pull(reference)
    assert image.target.media_type == DOCKER_MANIFEST
    assert image.chain_id == original.chain_id


@pytest.mark.needs_program("skopeo", "crane")
def test_zstd_layers_give_the_same_tree(
    original: Any,
    client: Any,
    small_image: str,
    other_client: Any,
    mounted: Callable[..., Path],
    tmp_path: Path,
) -> None:
    # By way of a layout: into a registry skopeo would rather mount the gzip blobs that it remembers to be there.
    layout, reference = tmp_path / "layout", small_image.replace("/machine:", "/machine-zstd:")
    copy = ["skopeo", "copy", "--quiet", "--src-tls-verify=false", "--dest-compress-format", "zstd"]
    subprocess.run([*copy, f"docker://{small_image}", f"oci:{layout}:latest"], check=True)
    subprocess.run(["crane", "--insecure", "push", layout, reference], check=True, capture_output=True)
    image = other_client.images.pull(reference)
    assert [layer.media_type.rpartition("+")[2] for layer in image.layers] == ["zstd"] * 3
    assert image.chain_id == original.chain_id
    wrong = differences(read_tree(mounted(client, original)), read_tree(mounted(other_client, image)))
    assert not wrong, wrong


def test_plain_layers_give_the_same_tree(
    original: Any, client: Any, small_image_registry: Any, other_client: Any, mounted: Callable[..., Path]
) -> None:
    address = small_image_registry.address
    machine_image.build(compress=False).push(address, "machine", "plain")
    image = other_client.images.pull(f"{address}/machine:plain")
    assert {layer.media_type for layer in image.layers} == {machine_image.PLAIN_LAYER_TYPE}
    assert image.chain_id == original.chain_id
    wrong = differences(read_tree(mounted(client, original)), read_tree(mounted(other_client, image)))
    assert not wrong, wrong


@pytest.mark.needs_program("crane")
def test_an_index_gives_the_manifest_of_this_machines_platform(
    client: Any, original: Any, small_image_registry: Any
) -> None:
    address = small_image_registry.address
    repository = f"{address}/machine"
    foreign = "linux/s390x" if original.config.architecture != "s390x" else "linux/amd64"
    crane = ["crane", "--insecure"]
    change = [
        *crane,
        "mutate",
        "--set-platform",
        foreign,
        f"{repository}:latest",
        "-t",
        f"{repository}:foreign",
    ]
    subprocess.run(change, check=True, capture_output=True)
    members = ["-m", f"{repository}:foreign", "-m", f"{repository}:latest"]
    append = [*crane, "index", "append", *members, "-t", f"{repository}:index"]
    subprocess.run(append, check=True, capture_output=True)

    image = client.images.pull(f"{repository}:index")
    assert image.target.media_type == OCI_INDEX
    assert image.manifest_descriptor.digest == original.digest
    assert image.config.architecture == original.config.architecture


@pytest.fixture
def other_client(tmp_path: Path) -> Any:
    """Give a client on a second store, so that nothing is shared with the first."""
    import lamella

    with lamella.Client(root=tmp_path / "other-root", state=tmp_path / "other-state") as opened:
        yield opened


@pytest.fixture
def mounted(tmp_path: Path) -> Any:
    """Mount views of images read-only; all are unmounted at the end."""
    from lamella import _core

    made: list[tuple[Any, str, Path]] = []

    def mount(client: Any, image: Any) -> Path:
        key = f"view-{len(made)}"
        target = tmp_path / key
        target.mkdir()
        mounts = client.snapshots.view(key, parent=image.chain_id)
        made.append((client, key, target))
        _core.mount([(entry.type, entry.source, entry.options) for entry in mounts], str(target))
        return target

    yield mount
    for client, key, target in made:
        _core.unmount(str(target))
        client.snapshots.remove(key)
