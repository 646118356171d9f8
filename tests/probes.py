"""Programs that try things from inside containers, and what they are to look for on the host.

They are compiled here: images have no compiler, and static ones need no library of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import subprocess
import uuid
from pathlib import Path

import pytest

from lamella.errors import NotFound
from monitors import monitor_of

LIBC = ctypes.CDLL(None, use_errno=True)
SOURCES = Path(__file__).with_name("security")
NET_RAW = {"raw_socket", "packets"}
"""Docker gives a container's root CAP_NET_RAW: these tries of reach.c work in its own network."""


@pytest.fixture(scope="session")
def compiled(tmp_path_factory, require_program):
    """``compiled("calls")`` gives a folder that everybody may enter, with tests/security/calls.c as a static program."""
    compiler = require_program("cc")
    made = {}

    def build(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            folder.chmod(0o755)
            source = SOURCES / f"{name}.c"
            command = [compiler, "-static", "-O1", "-Wall", "-Werror", "-o", folder / name, source]
            subprocess.run(command, check=True)
            made[name] = folder
        return made[name]

    return build


def opens(path, flags=0):
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK | flags))
    except OSError:
        return False
    return True


def _disk():
    """Give the number of a block device that root may open here: that of the root file system, where it can be."""
    numbers = [
        path.stat().st_rdev for path in Path("/dev").iterdir() if path.is_block_device() and opens(path)
    ]
    root = os.stat("/").st_dev  # noqa: PTH116
    return root if root in numbers or not numbers else numbers[0]


@pytest.fixture
def bait(client, small_image, tmp_path):
    """Put up on the host what the tries look for, and give it as their arguments."""
    name = f"lamella-reach-{uuid.uuid4().hex[:8]}"
    secret = tmp_path / name
    secret.write_text("secret")
    shm = Path("/dev/shm", name)
    shm.write_text("secret")
    key = 0x10000000 | (uuid.uuid4().int & 0xFFFFFFF)
    disk = _disk()
    try:
        image = client.images.get(small_image)
    except NotFound:
        image = client.images.pull(small_image)
    with contextlib.ExitStack() as stack:
        stack.callback(shm.unlink)
        made = [LIBC.shmget(key, 4096, 0o1666), LIBC.semget(key, 1, 0o1666), LIBC.msgget(key, 0o1666)]
        stack.callback(LIBC.shmctl, made[0], 0, None)
        stack.callback(LIBC.semctl, made[1], 0, 0)
        stack.callback(LIBC.msgctl, made[2], 0, None)
        assert min(made) >= 0
        queue = f"/{name}".encode()
        os.close(LIBC.mq_open(queue, os.O_CREAT | os.O_RDONLY, 0o666, None))
        stack.callback(LIBC.mq_unlink, queue)
        abstract = stack.enter_context(socket.socket(socket.AF_UNIX))
        abstract.bind(f"\0{name}")
        abstract.listen(64)
        loopback = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=64))
        victim = stack.enter_context(subprocess.Popen(["/bin/sleep", "1000"], env={"SECRET": name}))
        stack.callback(victim.kill)
        other = client.containers.run(image, ["/bin/sleep", "1000"], detach=True)
        stack.callback(other.remove, force=True)
        config = client.config
        task = config.state / "tasks" / config.namespace / other.id
        maps = Path(f"/proc/{victim.pid}/maps").read_text()
        yield [
            f"secret={secret}",
            f"state={config.state}",
            f"store={config.root}",
            f"pid={victim.pid}",
            f"monitor={monitor_of(other)}",
            f"control={_short(task / 'control.sock', stack)}",
            f"address={maps.partition('-')[0]}",
            f"disk_major={os.major(disk)}",
            f"disk_minor={os.minor(disk)}",
            f"ipc={key}",
            f"queue={queue.decode()}",
            f"shm={shm}",
            f"abstract={name}",
            f"port={loopback.getsockname()[1]}",
        ]
    assert secret.read_text() == "secret"


def _short(path, stack):
    """Give a path to a socket that fits into its address."""
    folder = os.open(path.parent, os.O_PATH)
    stack.callback(os.close, folder)
    return f"/proc/{os.getpid()}/fd/{folder}/{path.name}"


def reached(stdout):
    """Give the names of the tries of reach.c that worked."""
    found = dict(line.split(" ", 1) for line in stdout.decode().splitlines())
    assert len(found) > 100
    assert "ended" not in {words.split()[0] for words in found.values()}, found
    return {name for name, answer in found.items() if answer == "reached"}
