"""Snapshots mounted for the length of a block, and compared with each other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import lamella
from lamella.errors import NotFound

pytestmark = pytest.mark.privileged


def mount_points(client):
    return [
        line.split()[4]
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if str(client.config.state) in line
    ]


def nothing_left(client):
    assert mount_points(client) == []
    assert list((client.config.state / "mounts").iterdir()) == []
    assert [info.name for info in client.snapshots.walk(kind="view")] == []


def test_a_committed_snapshot_is_readable_in_the_block_and_gone_after_it(client, image):
    with client.snapshots.mounted(image.chain_id) as folder:
        assert (folder / "etc/passwd").read_text().startswith("root:")
        assert (folder / "bin/sh").exists()
        with pytest.raises(OSError, match="Read-only"):
            (folder / "new").write_text("x")
        assert client.fsck().findings == []
    assert not folder.exists()
    nothing_left(client)


def test_what_is_mounted_outlives_its_image_and_a_collection(client, image):
    with client.snapshots.mounted(image.chain_id) as folder:
        client.images.remove(image.name)
        client.gc()
        assert (folder / "etc/passwd").read_text().startswith("root:")
    client.gc()
    assert list(client.snapshots.walk()) == []
    nothing_left(client)


def test_an_active_snapshot_is_writable_and_an_error_in_the_block_leaves_nothing(client, image):
    client.snapshots.prepare("work", image.chain_id)
    with pytest.raises(ZeroDivisionError), client.snapshots.mounted("work") as folder:
        (folder / "new").write_text("x")
        raise ZeroDivisionError
    assert [str(change) for change in client.snapshots.changes("work")] == ["C /", "A /new"]
    with pytest.raises(NotFound), client.snapshots.mounted("absent"):
        pass
    nothing_left(client)


def test_what_a_killed_process_had_mounted_goes_with_the_next_collection(client, image):
    code = f"""
        import lamella, time
        with lamella.Client({str(client.config.root)!r}, {str(client.config.state)!r}) as client:
            with client.snapshots.mounted({image.chain_id!r}):
                print(flush=True)
                time.sleep(100)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE)
    try:
        process.stdout.readline()
        assert len(mount_points(client)) == 1
        client.gc()
        assert client.fsck().findings == []
        assert len(mount_points(client)) == 1
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    assert [finding.kind for finding in client.fsck().findings] == ["mount"]
    assert client.gc(dry_run=True).orphans == 1
    assert client.gc().orphans == 1
    nothing_left(client)


def test_two_snapshots_are_compared_whatever_they_stand_on(client, image, tmp_path):
    for key, text in (("one", "1"), ("two", "2")):
        client.snapshots.prepare(key, image.chain_id)
        with client.snapshots.mounted(key) as folder:
            (folder / "branch").write_text(text)
            (folder / key).mkdir()
    assert client.snapshots.changes("one", "one") == []
    changes = {str(change) for change in client.snapshots.changes("two", "one")}
    assert {"C /branch", "D /one", "A /two"} <= changes
    assert changes <= {"C /", "C /branch", "D /one", "A /two"}
    assert "A /two" in {str(change) for change in client.snapshots.changes("two", image.chain_id)}
    with client.snapshots.diff("two", "one") as found:
        found.pack(str(tmp_path / "layer"), compression="none")
    listed = subprocess.run(["tar", "-tf", tmp_path / "layer"], capture_output=True, text=True, check=True)
    assert {"branch", ".wh.one", "two/"} <= set(listed.stdout.split())
    nothing_left(client)


def test_a_running_containers_snapshot_can_be_compared_and_goes_on(client, image):
    with lamella.Client(client.config.root, client.config.state) as other:
        box = client.containers.create(image, ["/bin/sleep", "300"], name="box")
        box.start()
        try:
            box.exec(["/bin/sh", "-c", "echo x > /new"], check=True)
            assert "A /new" in {str(change) for change in other.snapshots.changes("box", image.chain_id)}
            box.exec(["/bin/sh", "-c", "echo y >> /new; cat /new"], check=True)
        finally:
            box.remove(force=True)
    nothing_left(client)
