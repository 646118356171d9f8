"""kill -9 at every step of an import and an export; a full disk, Ctrl-C and garbage collection in the middle of one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from archives import Pipe, layout_of, tar_of
from crashes import each_kill, image, runs
from lamella import Client, _core
from lamella.digest import digest_of
from lamella.errors import NotFound, ResourceExhausted
from steps import patience

pytestmark = [pytest.mark.privileged, pytest.mark.rootless, pytest.mark.beside, patience]
FILLING = os.urandom(2_500_000)  # more than two of the pieces in which it is read
NAME = "example.com/app:v1"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "app.tar"
    path.write_bytes(tar_of(layout_of(image(filling=FILLING), NAME)))
    return path


def nothing(client: Client) -> None:
    pass


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("way", ["file", "pipe"])
def test_a_second_import_does_what_is_left_to_do(tmp_path: Path, archive: Path, way: str) -> None:
    def bring(client: Client) -> Any:
        source = archive if way == "file" else Pipe(archive.read_bytes())
        return client.images.import_(source)[0]

    for client, _ in each_kill(tmp_path, nothing, bring, points=24):
        try:
            found = client.images.get(NAME)
        except NotFound:
            found = bring(client)
        runs(client, found)
        assert client.fsck(verify_layers=True).findings == []


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("form", ["oci", "oci-dir"])
def test_what_an_export_leaves_has_not_the_name_or_is_whole(tmp_path: Path, archive: Path, form: Any) -> None:
    out = tmp_path / "out"

    def prepare(client: Client) -> None:
        client.images.import_(archive, unpack=False)
        subprocess.run(["rm", "-rf", out], check=True)
        out.mkdir()

    def write(client: Client) -> None:
        client.images.export(NAME, out / "x", format=form)

    for client, _ in each_kill(tmp_path, prepare, write, points=16):
        if (out / "x").exists() if form == "oci" else (out / "x/index.json").exists():
            (found,) = client.images.import_(out / "x", names=["back"])
            runs(client, found)
        write(client)
        (found,) = client.images.import_(out / "x", names=["again"])
        assert found.digest == client.images.get(NAME).digest


@pytest.mark.parametrize("way", ["file", "pipe"])
@pytest.mark.needs_root  # a mount
def test_an_image_that_does_not_fit_on_the_disk_leaves_nothing(
    tmp_path: Path, archive: Path, way: str
) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    _core.mount([("tmpfs", "tmpfs", ["size=4m", "mode=700"])], str(folder))
    try:
        with Client(root=folder / "root", state=tmp_path / "state") as client:
            (folder / "ballast").write_bytes(bytes(1_500_000))
            with pytest.raises(ResourceExhausted):
                client.images.import_(archive if way == "file" else Pipe(archive.read_bytes()))
            assert not client.images.list()
            client.gc()
            assert not list(client.content.walk())
            # Of a layer whose digest is known the next try can make use.
            assert all(left.ref.startswith("layer-") for left in client.content.ingests())
            assert way == "file" or not client.content.ingests()
    finally:
        _core.unmount(str(folder))


def test_ctrl_c_while_nothing_comes_from_a_pipe(tmp_path: Path, archive: Path) -> None:
    where = ["--root", str(tmp_path / "root"), "--state", str(tmp_path / "state")]
    program = Path(sys.executable).with_name("lamella")
    data = archive.read_bytes()
    with subprocess.Popen(
        [program, *where, "import", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as running:
        assert running.stdin is not None
        running.stdin.write(data[: len(data) // 2])
        running.stdin.flush()
        deadline = time.monotonic() + 60
        while not list((tmp_path / "root").glob("ingest/*/data")) and time.monotonic() < deadline:
            time.sleep(0.01)
        running.send_signal(signal.SIGINT)
        assert running.wait(60) == 130
        running.stdin.close()
    with Client(root=tmp_path / "root", state=tmp_path / "state") as client:
        assert not client.images.list()
        assert not client.content.ingests()
        assert not client.leases.list()


def test_garbage_is_collected_after_every_piece(client: Client, archive: Path) -> None:
    class Collecting(Pipe):
        def readinto(self, buffer: Any) -> int:
            client.gc()
            return super().readinto(buffer)

    (found,) = client.images.import_(
        Collecting(archive.read_bytes(), 300_000), progress=lambda _: client.gc() and None
    )
    runs(client, found)
    for layer in found.layers:
        assert digest_of(client.content.read(layer.digest)) == layer.digest
