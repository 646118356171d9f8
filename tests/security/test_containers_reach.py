"""What a container's root, with Docker's default capabilities, tries against the machine, through the library."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

pytestmark = pytest.mark.privileged

PYTHON = os.path.realpath("/usr/bin/python3")
PREAMBLE = """
import errno, json, os, stat
def attempt(call, *arguments):
    try:
        call(*arguments)
        return 'done'
    except OSError as error:
        return errno.errorcode[error.errno]
"""
TOUCH_STDIN = """
mode = os.fstat(0).st_mode
print(json.dumps([stat.S_ISCHR(mode), attempt(os.fchmod, 0, stat.S_IMODE(mode)), attempt(os.fchown, 0, 0, 0),
    attempt(os.chmod, '/proc/self/fd/0', stat.S_IMODE(mode)), os.read(0, 1) == b'',
    os.read(os.open('/dev/stdin', os.O_RDONLY), 1) == b'']))
"""
"""Gives the node what it has already, so that it does the machine no harm where it succeeds."""


@pytest.fixture
def python(client, image):
    def call(code, volumes=(), **options):
        command = [PYTHON, "-c", PREAMBLE + code]
        result = client.containers.run(
            image, command, remove=True, volumes=["/usr:/usr:ro", *volumes], **options
        )
        assert result.exit_code == 0, result
        return json.loads(result.stdout)

    return call


@pytest.mark.needs_program("/usr/bin/python3")
def test_the_hosts_null_device_is_not_changed_through_a_standard_input(python):
    assert python(TOUCH_STDIN) == [True, "EROFS", "EROFS", "EROFS", True, True]


@pytest.mark.needs_program("/usr/bin/python3")
def test_nor_through_the_standard_input_of_an_exec(client, image):
    container = client.containers.run(image, ["/bin/sleep", "60"], detach=True, volumes=["/usr:/usr:ro"])
    try:
        result = container.exec([PYTHON, "-c", PREAMBLE + TOUCH_STDIN])
        assert json.loads(result.stdout) == [True, "EROFS", "EROFS", "EROFS", True, True]
    finally:
        container.remove(force=True)


@pytest.mark.needs_program("/usr/bin/python3")
def test_a_device_node_opens_nothing_wherever_it_is_made_even_if_the_devices_controller_allows_it(
    python, tmp_path
):
    (tmp_path / "volume").mkdir()
    code = """
results = {}
for folder in ('/', '/dev', '/dev/shm', '/tmp', '/volume', '/scratch'):
    os.makedirs(folder, exist_ok=True)
    node = os.path.join(folder, 'node')
    os.mknod(node, 0o20666, os.makedev(1, 3))
    results[folder] = attempt(os.open, node, os.O_RDONLY)
print(json.dumps(results))
"""
    results = python(code, volumes=[f"{tmp_path}/volume:/volume"], tmpfs=["/scratch"])
    assert len(results) == 6
    assert set(results.values()) == {"EACCES"}


@pytest.mark.needs_program("/usr/bin/python3")
def test_a_volume_gives_device_nodes_only_where_that_is_asked_for(python, tmp_path):
    os.mknod(tmp_path / "null", 0o20666 | stat.S_IFCHR, os.makedev(1, 3))
    code = "print(json.dumps(attempt(os.open, '/volume/null', os.O_RDONLY)))"
    assert python(code, volumes=[f"{tmp_path}:/volume"]) == "EACCES"
    assert python(code, volumes=[f"{tmp_path}:/volume:dev"]) == "done"
    assert python(code, volumes=["/dev:/volume:ro"]) == "done"


def test_other_users_reach_neither_the_store_nor_the_tasks_whatever_the_umask_is(client, image):
    before = os.umask(0)
    try:
        container = client.containers.run(image, ["/bin/sleep", "60"], detach=True)
    finally:
        os.umask(before)
    try:
        config = client.config
        assert stat.S_IMODE(config.root.stat().st_mode) & 0o077 == 0
        task = config.state / "tasks" / config.namespace / container.id
        assert not stat.S_IMODE(task.stat().st_mode) & 0o077
        for folder in (config.state, *_between(config.state, task)):
            assert not stat.S_IMODE(folder.stat().st_mode) & 0o022, folder
    finally:
        container.remove(force=True)


def test_what_a_container_writes_to_its_hosts_file_does_not_fill_the_state_folder(client, image):
    container = client.containers.run(
        image, ["/bin/sh", "-c", "echo marked >>/etc/hosts; exec sleep 60"], detach=True
    )
    try:
        mounts = {mount["destination"]: mount for mount in container.spec["mounts"]}
        for name in ("hosts", "hostname", "resolv.conf"):
            source = Path(mounts[f"/etc/{name}"]["source"])
            assert source.is_relative_to(client.config.root)
            assert source.is_file()
        assert not list(client.config.state.rglob("hosts"))
    finally:
        container.remove(force=True)
    assert not source.exists()


def _between(top: Path, folder: Path) -> list[Path]:
    return [parent for parent in folder.parents if parent.is_relative_to(top)]
