"""containerd with lamella as its snapshotter and content store, over ``proxy_plugins``: it pulls and runs, lamella has it all."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import daemons
import pytest

import lamella

pytestmark = pytest.mark.needs_root

PLUGINS = """
[proxy_plugins.{snapshotter}]
type = "snapshot"
address = "{address}"
[proxy_plugins.lamella-content]
type = "content"
address = "{address}"
"""
UNPACKS = """
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
platform = "linux"
snapshotter = "{snapshotter}"
"""
"""What containerd 2 has to be told besides, so that its transfer service unpacks with it."""

Ctr = Callable[..., str]


@pytest.fixture
def backend(require_root: Callable[[], None]) -> Iterator[daemons.Daemon]:
    require_root()
    with daemons.lamella_serve("--backend") as daemon:
        yield daemon


@pytest.fixture(params=["Debian's, version 2", "2.4, version 2", "2.4, version 3"])
def ctr(
    request: pytest.FixtureRequest, backend: daemons.Daemon, require_program: Callable[[str], str]
) -> Iterator[Ctr]:
    """containerd's client, connected to one that keeps nothing itself."""
    import new_containerd
    import systems

    which, _, version_of_config = request.param.partition(", version ")
    base: type[systems.Containerd] = systems.NewContainerd if which == "2.4" else systems.Containerd
    if which == "2.4" and not new_containerd.folder().is_dir():
        pytest.skip(f"needs containerd {new_containerd.VERSION}: tools/new_containerd.py builds it")
    for program in ("containerd", "ctr", "runc"):
        require_program(program)
    settings_ = PLUGINS + (UNPACKS if which == "2.4" else "")

    class Proxied(base):  # type: ignore[valid-type, misc]
        disabled = (*base.disabled, "io.containerd.content.v1.content")
        version = int(version_of_config)
        settings = settings_.format(snapshotter="lamella", address=backend.address)

    with (
        tempfile.TemporaryDirectory(prefix="containerd-") as folder,
        Proxied(Path(folder), "", Path()) as system,
    ):
        fifos = f"{folder}/fifo"

        def run(*words: str, status: int = 0) -> str:
            done = subprocess.run(
                [part.replace("FIFOS", fifos) for part in system.ctr(*words)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                env=system.environment(),
                text=True,
                timeout=60,
                check=False,
            )
            assert done.returncode == status, done.stderr
            return done.stdout

        yield run


def test_a_containerd_pulls_and_runs_with_what_lamella_keeps(
    ctr: Ctr, backend: daemons.Daemon, small_image: str
) -> None:
    with lamella.Client(root=backend.folder / "root", state=backend.folder / "state") as client:
        ctr("images", "pull", "--plain-http", "--snapshotter", "lamella", small_image)
        blobs = set(ctr("content", "ls", "-q").split())
        assert len(blobs) == 5  # a manifest, a config, three layers
        assert blobs <= {str(blob.digest) for blob in client.content.walk()}
        layers = [info for info in client.snapshots.walk() if info.kind == "committed"]
        assert len(layers) == 3

        run = ["run", "--rm", "--snapshotter", "lamella", "--fifo-dir", "FIFOS", small_image]
        assert ctr(*run, "one", "/bin/sh", "-c", "echo out; : >/file; exit 3", status=3) == "out\n"
        assert "complete (4/4)" in ctr("images", "check", "--snapshotter", "lamella")
        ctr("snapshots", "--snapshotter", "lamella", "prepare", "work", _top(ctr))
        assert "/root/snapshots/" in ctr("snapshots", "--snapshotter", "lamella", "mounts", "target", "work")
        ctr("snapshots", "--snapshotter", "lamella", "commit", "made", "work")
        ctr("snapshots", "--snapshotter", "lamella", "rm", "made")

        client.gc()
        assert "complete (4/4)" in ctr("images", "check", "--snapshotter", "lamella")
        ctr("images", "rm", "--sync", small_image)
        assert ctr("content", "ls", "-q") == ""
        assert list(client.content.walk()) == []
        assert list(client.snapshots.walk()) == []


def _top(ctr: Ctr) -> str:
    rows = [line.split() for line in ctr("snapshots", "--snapshotter", "lamella", "ls").splitlines()[1:]]
    parents = {row[1] for row in rows if len(row) == 3}
    return next(row[0] for row in rows if row[0] not in parents)
