"""The main job on real input: a Debian image out of Debian's own registry, beside what umoci makes of it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tree import differences, read_tree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Pulled

pytestmark = [pytest.mark.integration, pytest.mark.real_image, pytest.mark.privileged]


@pytest.fixture
def mounted_view(pulled: Pulled, tmp_path: Path) -> Iterator[Path]:
    """Mount a view of the image's top snapshot."""
    from lamella import _core

    target = tmp_path / "view"
    target.mkdir()
    mounts = pulled.client.snapshots.view("view-of-the-real-image", parent=pulled.image.chain_id)
    try:
        _core.mount([(mount.type, mount.source, mount.options) for mount in mounts], str(target))
        yield target
    finally:
        _core.unmount(str(target))
        pulled.client.snapshots.remove("view-of-the-real-image")


@pytest.mark.needs_program("umoci")
def test_the_unpacked_tree_equals_umocis_file_by_file(
    mounted_view: Path, real_image_layout: Path, tmp_path: Path
) -> None:
    image = f"{real_image_layout}:latest"
    subprocess.run(
        ["umoci", "unpack", "--image", image, tmp_path / "bundle"], check=True, capture_output=True
    )
    expected = read_tree(tmp_path / "bundle" / "rootfs")
    found = read_tree(mounted_view)
    assert len(expected) > 10_000
    kinds = {entry["kind"] for entry in expected.values()}
    assert {"file", "folder", "symlink", "character device"} <= kinds, (
        "the image lost what makes it worth comparing"
    )
    assert any("names" in entry for entry in expected.values()), "the image has no hard links"
    assert any(entry["xattrs"] for entry in expected.values()), "the image has no extended attributes"
    wrong = differences(expected, found)
    assert not wrong, f"{len(wrong)} differences, umoci / lamella:\n" + "\n".join(wrong[:40])


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["python3", "-c", "import numpy; print(numpy.arange(6).sum())"], "15\n"),
        (["nginx", "-v"], "nginx version: nginx/1."),
        (["node", "-e", "console.log(1+1)"], "2\n"),
        (["gcc", "--version"], "gcc (Debian "),
        (["git", "--version"], "git version 2."),
        (
            [
                "sh",
                "-c",
                "echo 'int main(){return 7;}' > /tmp/a.c && gcc /tmp/a.c -o /tmp/a && { /tmp/a; echo $?; }",
            ],
            "7\n",
        ),
    ],
    ids=["python3", "nginx", "node", "gcc", "git", "compile"],
)
def test_run_prints_what_the_program_in_the_image_prints(
    lamella: Callable[..., subprocess.CompletedProcess[str]],
    pulled: Pulled,
    command: list[str],
    expected: str,
) -> None:
    done = lamella("run", "--rm", pulled.reference, *command)
    assert (done.stdout + done.stderr).startswith(expected)
    assert list(pulled.client.containers.list(all=True)) == []


def test_run_in_the_library_gives_status_and_separate_streams(pulled: Pulled) -> None:
    result = pulled.client.containers.run(
        pulled.image, ["sh", "-c", "echo out; echo err >&2; exit 3"], remove=True
    )
    assert (result.exit_code, result.stdout, result.stderr) == (3, b"out\n", b"err\n")


def test_a_second_pull_makes_at_most_three_requests_and_writes_no_blob(
    pulled: Pulled, monkeypatch: pytest.MonkeyPatch
) -> None:
    import requests

    sent: list[str] = []
    original = requests.adapters.HTTPAdapter.send

    def count(self: Any, request: Any, **options: Any) -> Any:
        sent.append(f"{request.method} {request.url}")
        return original(self, request, **options)

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", count)
    before = _files(pulled.root / "blobs")
    again = pulled.client.images.pull(pulled.reference)
    assert again.digest == pulled.image.digest
    assert 1 <= len(sent) <= 3, sent
    assert _files(pulled.root / "blobs") == before


def test_fsck_finds_every_layer_as_its_blob_says_and_mends_what_is_spoiled_from_the_registry(
    real_image_ref: str, client: Any
) -> None:
    image = client.images.pull(real_image_ref)
    report = client.fsck(verify_layers=True)
    assert report.findings == []
    assert report.layers_compared == len(image.layers)
    bad = [image.digest, image.manifest.config.digest, min(image.layers, key=lambda layer: layer.size).digest]
    victim = client.snapshots.layer_paths(image.chain_id)[-1] / "etc/passwd"
    for digest in bad:
        path = client.config.root / "blobs" / digest.replace(":", "/")
        path.chmod(0o600)
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    victim.write_bytes(victim.read_bytes().swapcase())
    report = client.fsck(repair=True, verify_layers=True)
    assert sorted(finding.kind for finding in report.findings) == ["damaged-blob"] * 3 + ["damaged-layer"]
    assert report.clean
    assert client.fsck(verify_layers=True).findings == []


def test_disk_usage_is_what_du_counts(real_image_ref: str, client: Any) -> None:
    image = client.images.pull(real_image_ref)
    usage = client.du()
    counted = subprocess.run(
        ["du", "-s", "--block-size=1", str(client.config.root)], check=True, capture_output=True, text=True
    )
    assert usage.store.total == pytest.approx(int(counted.stdout.split()[0]), rel=0.001)
    assert usage.images[0].compressed_alone == image.size
    assert usage.images[0].unpacked_alone == usage.store.layers


def test_deleting_the_image_lets_gc_take_everything_but_nothing_before(
    real_image_ref: str, client: Any, tmp_path: Path
) -> None:
    image = client.images.pull(real_image_ref)
    assert client.gc().blobs == 0
    box = client.containers.create(image, ["sleep", "60"], name="holds-on")
    client.images.remove(real_image_ref)
    client.gc()
    box.start()
    box.kill()
    box.wait(timeout=60)
    box.remove()
    client.gc()
    assert _files(tmp_path / "root" / "blobs") == {}
    assert list((tmp_path / "root" / "snapshots" / "overlayfs").iterdir()) == []
    assert list(client.images.list()) == []


def _files(top: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path): (status.st_ino, status.st_mtime_ns)
        for folder, _, names in os.walk(top)
        for path in (Path(folder, name) for name in names)
        for status in [os.lstat(path)]
    }
