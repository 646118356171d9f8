"""Pools: containers that wait for their program, what they are once it runs, and what becomes of those that nobody took."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import lamella
from lamella.errors import CommandNotFound, FailedPrecondition, InvalidArgument, Unavailable

pytestmark = [pytest.mark.privileged, pytest.mark.rootless]


def rows(client):
    with client.database.read() as db:
        return db.execute("SELECT count(*) FROM containers").fetchone()[0]


@pytest.mark.needs_root  # a cgroup
def test_what_is_run_in_a_pool_is_what_is_run_without(client, image):
    options = {
        "environment": {"A": "b"},
        "working_dir": "/etc",
        "user": "12:34",
        "memory": "64m",
        "hostname": "box",
    }
    command = ["/bin/sh", "-c", "pwd; id -u; id -g; hostname; echo $A; exit 3"]
    with client.containers.pool(image, size=2, **options) as pool:
        assert pool.wait(60)
        pooled = pool.run(command)
    plain = client.containers.run(image, command, remove=True, **options)
    assert (pooled.exit_code, pooled.stdout, pooled.stderr) == (plain.exit_code, plain.stdout, plain.stderr)
    assert pooled.stdout == b"/etc\n12\n34\nbox\nb\n"
    assert rows(client) == 0


def test_program_and_environment_come_with_the_start(client, image):
    with client.containers.pool(image, size=1, environment={"A": "1", "B": "1"}) as pool:
        seen = pool.run(["env"], environment={"B": "2", "C": "3"}, check=True).stdout.split()
        assert {b"A=1", b"B=2", b"C=3"} <= set(seen)
        assert b"B=1" not in seen
        long = "x" * 100_000  # longer than a message between the monitor and its process
        assert pool.run(["echo", long], check=True).stdout == long.encode() + b"\n"
        assert (
            pool.run(environment={"PATH": "/bin"}).exit_code == 0
        )  # the image's own command: a shell without input


def test_a_container_that_was_taken_is_as_any_other(client, image):
    with client.containers.pool(image, size=2) as pool:
        assert pool.wait(60)
        assert client.containers.list(all=True) == []
        box = pool.take(["/bin/sleep", "300"], environment={"A": "b"})
        assert box.status == "running"
        assert box.command == ["/bin/sleep", "300"]
        assert client.containers.list() == [box]
        assert box.exec(["/bin/sh", "-c", "echo $A"], check=True, timeout=30).stdout == b"b\n"
    assert client.containers.list() == [box]  # it outlives its pool
    assert box.stop(0) == 137
    box.start()
    assert box.exec(["/bin/true"], timeout=30).exit_code == 0
    box.remove(force=True)
    assert rows(client) == 0


def test_each_has_a_layer_of_its_own_also_on_a_branch(client, image):
    client.containers.run(image, ["/bin/sh", "-c", "echo tool > /tool"], name="box", check=True)
    base = client.containers.get("box").commit()
    with client.containers.pool(base, size=3) as pool:
        for _ in range(5):
            assert pool.run(["/bin/sh", "-c", "cat /tool /mine; echo x > /mine"]).stdout == b"tool\n"


def test_threads_take_different_ones_and_more_are_made(client, image):
    seen, errors = set(), []
    with client.containers.pool(image, size=3) as pool:

        def take():
            try:
                for _ in range(8):
                    seen.add(pool.run(["hostname"], check=True).stdout)
            except BaseException as error:
                errors.append(error)
                raise

        threads = [threading.Thread(target=take) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert len(seen) == 24
        assert pool.wait(60)
        assert pool.ready == 3
    assert rows(client) == 0


def test_a_program_that_is_not_there_is_named_and_nothing_is_left(client, image):
    with client.containers.pool(image, size=1) as pool:
        with pytest.raises(CommandNotFound, match="absent"):
            pool.run(["absent"])
        assert pool.run(["/bin/true"]).exit_code == 0
    assert rows(client) == 0
    assert list(client.snapshots.walk(kind="active")) == []


def test_input_init_and_time_outs(client, image):
    with client.containers.pool(image, size=1, stdin=True, init=True) as pool:
        assert pool.run(["cat"], input=b"in").stdout == b"in"
        late = pool.run(["/bin/sleep", "300"], timeout=0.3)
        assert (late.timed_out, late.exit_code) == (True, 137)
    with client.containers.pool(image, size=1) as pool, pytest.raises(InvalidArgument, match="stdin"):
        pool.run(["cat"], input=b"in")


def test_what_waits_holds_nothing_of_the_host(client, image):
    with client.containers.pool(image, size=1) as pool:
        assert pool.wait(60)
        container = pool._ready[0].container
        folder = Path(f"/proc/{container.pid}/fd")
        targets = {path.name: str(path.readlink()) for path in folder.iterdir()}
        assert len(targets) == 4, targets
        assert next(target for name, target in targets.items() if int(name) > 2).startswith("socket:")
        status = Path(f"/proc/{container.pid}/status").read_text()
        assert "Seccomp:\t2" in status
        with pytest.raises(FailedPrecondition):
            container.exec(["/bin/true"])


def test_nonsense_is_refused(client, image):
    for size, options in ((0, {}), (2, {"name": "box"}), (1, {"memory": "x"})):
        with pytest.raises(InvalidArgument):
            client.containers.pool(image, size=size, **options)
    pool = client.containers.pool(image, size=1)
    pool.close()
    pool.close()
    with pytest.raises(FailedPrecondition, match="closed"):
        pool.take(["/bin/true"])
    assert rows(client) == 0
    assert [path.name for path in client.config.root.glob("locks/pool-*")] == []


def test_a_pool_that_cannot_make_more_says_so_to_who_takes(client, image, monkeypatch):
    def fail():
        raise Unavailable("no more")

    with client.containers.pool(image, size=1) as pool:
        assert pool.wait(60)
        with monkeypatch.context() as patched:
            patched.setattr(pool, "_make", fail)
            assert pool.run(["/bin/true"]).exit_code == 0
            with pytest.raises(Unavailable, match="no more"):
                pool.run(["/bin/true"])
        assert pool.run(["/bin/true"]).exit_code == 0
        assert pool.wait(60)
    assert rows(client) == 0


CHILD = """
import sys, time, lamella
client = lamella.Client(root=sys.argv[1], state=sys.argv[2])
pool = client.containers.pool(sys.argv[3], size=3)
assert pool.wait(60)
taken = pool.take(["/bin/sleep", "300"])
pool.wait(60)
print(taken.id, flush=True)
time.sleep(300)
"""


def test_what_a_killed_pool_leaves_goes_at_the_next_look_and_what_was_taken_stays(client, image):
    arguments = [sys.executable, "-c", CHILD, client.config.root, client.config.state, image.name]
    with subprocess.Popen([str(word) for word in arguments], stdout=subprocess.PIPE, text=True) as child:
        taken = child.stdout.readline().strip()
        assert rows(client) == 4
        assert [box.id for box in client.containers.list()] == [taken]
        assert rows(client) == 4  # its pool lives
        child.send_signal(signal.SIGKILL)
    with lamella.Client(root=client.config.root, state=client.config.state) as other:
        assert [box.id for box in other.containers.list(all=True)] == [taken]
    assert rows(client) == 1
    box = client.containers.get(taken)
    assert box.status == "running"
    box.remove(force=True)
    deadline = time.monotonic() + 60
    while any(Path("/sys/fs/cgroup").glob(f"*/lamella/default/{taken}")) and time.monotonic() < deadline:
        time.sleep(0.05)
    client.gc()
    assert [path.name for path in client.config.root.glob("locks/pool-*")] == []
    assert client.fsck().findings == []
