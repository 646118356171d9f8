"""Where a container's cgroup is: below a parent, delegated to a user, beside the v1 hierarchies, and within a container's."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from launcher_box import Box, Connection, launch

import lamella
from lamella.containers.defaults import ALL_CAPABILITIES
from monitors import hierarchies
from waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.privileged]
ROOT = Path("/sys/fs/cgroup")
UNIFIED = (ROOT / "cgroup.controllers").exists()
PIDS = ROOT if UNIFIED else ROOT / "pids"
MEBIBYTE = 1 << 20
NOBODY = 65534
REPOSITORY = Path(__file__).resolve().parents[2]


def v2() -> Path:
    """Give the mount point of cgroup v2, or skip."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    found = next((Path(mount[1]) for mount in mounts if mount[2] == "cgroup2"), None)
    if found is None:
        pytest.skip("no cgroup v2 hierarchy is mounted")
    return found


@pytest.mark.parametrize(
    "runtime", ["lamella", pytest.param("runc", marks=pytest.mark.needs_program("runc"))]
)
def test_a_container_is_in_the_parent_that_is_named_and_leaves_it(
    client: Any, image: Any, parent: str, runtime: str
) -> None:
    if UNIFIED:
        (ROOT / "cgroup.subtree_control").write_text("+pids")
    (PIDS / parent).mkdir()
    (PIDS / parent / "pids.max").write_text("7")
    container = client.containers.run(
        image, ["/bin/sleep", "600"], detach=True, cgroup_parent=f"/{parent}", runtime=runtime
    )
    try:
        assert f"/{parent}/{container.id}" in Path(f"/proc/{container.pid}/cgroup").read_text()
        # runc start comes back before its init, a program of several threads, has become ours.
        until(lambda: container.stats().pids.current == 1)
        container.restart(timeout=0)
        others = {top for top in hierarchies() if (top / parent).is_dir()} - {PIDS}
    finally:
        container.remove(force=True)
    assert list((PIDS / parent).glob(container.id)) == []
    assert (PIDS / parent / "pids.max").read_text() == "7\n"
    # What it made itself on the way is gone.
    assert [top for top in others if (top / parent).is_dir()] == []


@pytest.mark.parametrize(("cgroupns", "shown"), [("private", "/"), ("host", "/lamella/default/")])
def test_the_cgroup_namespace_is_private_or_the_hosts(
    client: Any, image: Any, cgroupns: str, shown: str
) -> None:
    result = client.containers.run(image, ["/bin/cat", "/proc/self/cgroup"], remove=True, cgroupns=cgroupns)
    line = next(line for line in result.stdout.decode().splitlines() if UNIFIED or ":pids:" in line)
    path = line.rpartition(":")[2]
    assert path.startswith(shown)
    assert cgroupns == "host" or path == "/"


@pytest.mark.skipif(UNIFIED, reason="cgroup v2 has neither")
def test_how_it_swaps_and_whether_it_is_killed_is_set(client: Any, image: Any) -> None:
    container = client.containers.run(
        image,
        ["/bin/sleep", "600"],
        detach=True,
        memory="64m",
        memory_swappiness=7,
        oom_kill_disable=True,
    )
    try:
        folder = ROOT / "memory/lamella/default" / container.id
        assert (folder / "memory.swappiness").read_text() == "7\n"
        assert "oom_kill_disable 1\n" in (folder / "memory.oom_control").read_text()
    finally:
        container.remove(force=True)


@pytest.mark.skipif(UNIFIED, reason="a hybrid machine has both")
def test_huge_pages_are_limited_on_a_hybrid_machine_whose_v2_hierarchy_has_them(
    client: Any, image: Any
) -> None:
    beside = ROOT / "unified"
    if "hugetlb" not in (beside / "cgroup.controllers").read_text().split():
        pytest.skip("the v2 hierarchy has no controller hugetlb")
    limits = [{"pageSize": "2MB", "limit": 4 * MEBIBYTE}]
    patch = {
        "linux": {"resources": {"hugepageLimits": limits, "unified": {"hugetlb.2MB.rsvd.max": "2097152"}}}
    }
    container = client.containers.run(image, ["/bin/sleep", "600"], detach=True, memory="64m", spec=patch)
    try:
        folder = beside / "lamella/default" / container.id
        assert (folder / "hugetlb.2MB.max").read_text() == f"{4 * MEBIBYTE}\n"
        assert (folder / "hugetlb.2MB.rsvd.max").read_text() == "2097152\n"
        assert str(container.pid) in (folder / "cgroup.procs").read_text().split()
        memory = ROOT / "memory/lamella/default" / container.id / "memory.limit_in_bytes"
        assert memory.read_text() == f"{64 * MEBIBYTE}\n"
        added = container.exec(["/bin/sh", "-c", "cat /proc/self/cgroup"]).stdout.decode().splitlines()
        assert "0::/" in added
    finally:
        container.remove(force=True)
    assert not folder.exists()


@pytest.fixture
def delegated(parent: str) -> Iterator[Path]:
    """Give a v2 cgroup that belongs to another user, as systemd's Delegate= makes one, with a process of its own in it."""
    top = v2()
    folder = top / parent
    folder.mkdir()
    if controllers := (top / "cgroup.controllers").read_text().split():
        (top / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in controllers))
    for path in (
        folder,
        *(folder / name for name in ("cgroup.procs", "cgroup.subtree_control", "cgroup.threads")),
    ):
        os.chown(path, NOBODY, NOBODY)
    yield folder


def as_nobody(box: Box, within: Path | None, **changes: Any) -> dict[str, Any]:
    """Start a box as another user from within a cgroup; give the reply, and how it ended."""
    box.spec["mounts"] = [one for one in box.spec["mounts"] if not one["source"].startswith("/root")]
    (box.folder / "config.json").write_text(json.dumps(box.spec))
    for folder in (box.folder, *box.folder.parents[:3]):
        folder.chmod(0o755)
    for path in (box.folder, *box.folder.rglob("*")):
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    request = box.request(attach=True, **changes)
    request["rootfs"][0]["options"].append("userxattr")
    ours, theirs = socket.socketpair()
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if within is not None:
                (within / "cgroup.procs").write_text("0")
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            os.write(writing, json.dumps(launch(request, [theirs.fileno()])).encode())
        finally:
            os._exit(0)
    theirs.close()
    os.close(writing)
    os.waitpid(pid, 0)
    with os.fdopen(reading, "rb") as file:
        reply = dict(json.loads(file.read()))
    box.connections.append(Connection(ours))
    return reply


def test_a_user_has_limits_within_a_cgroup_that_was_delegated(box: Box, delegated: Path) -> None:
    there = (delegated / "cgroup.controllers").read_text().split()
    limits = {
        "pids": ({"pids": {"limit": 7}}, "pids.max", 7),
        "hugetlb": (
            {"hugepageLimits": [{"pageSize": "2MB", "limit": 4 * MEBIBYTE}]},
            "hugetlb.2MB.max",
            4 * MEBIBYTE,
        ),
    }
    limit = next((limit for controller, limit in limits.items() if controller in there), None)
    if limit is None:
        pytest.skip("the v2 hierarchy has neither controller")
    box.linux["cgroupsPath"] = f"/{delegated.name}/lamella/default/box"
    box.linux["resources"], file, value = limit
    box.process["args"] = ["/bin/sleep", "600"]
    reply = as_nobody(box, delegated, cgroup_root=str(delegated.parent))
    assert "error" not in reply, reply
    folder = delegated / "lamella/default/box"
    assert (folder / file).read_text() == f"{value}\n"
    assert str(reply["pid"]) in (folder / "cgroup.procs").read_text().split()
    # Who asked was in it: a cgroup with processes has no controllers for those beneath it.
    assert str(reply["monitor_pid"]) in (delegated / "init/cgroup.procs").read_text().split()
    # Its monitor is in a user namespace in which the machine's root is nobody: it obeys who started it.
    own = box.connections[0]
    assert own.ask(op="pause") == {"ok": True}
    assert "frozen 1" in (folder / "cgroup.events").read_text()
    assert own.ask(op="resume") == {"ok": True}
    own.ask(op="kill", signal=9)
    assert own.collect().code == 137
    box.await_end()
    assert not (delegated / "lamella").exists()


def test_limits_without_a_cgroup_of_the_users_own_are_refused_with_what_to_do(box: Box) -> None:
    box.linux["resources"] = {"pids": {"limit": 5}}
    error = as_nobody(box, None)["error"]
    assert error["kind"] == "PermissionDenied"
    assert "Delegate=yes" in error["hint"]


def test_without_limits_a_user_needs_no_cgroup(box: Box) -> None:
    box.process["args"] = ["/bin/true"]
    reply = as_nobody(box, None)
    assert reply["warnings"] == []
    assert box.connections[0].collect().code == 0


@pytest.mark.skipif(UNIFIED, reason="v1 has a hierarchy for each controller")
def test_a_container_within_a_container_has_its_cgroup_within_that_ones(box: Box) -> None:
    usual = ["nosuid", "noexec", "nodev"]
    box.spec["mounts"] += [
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": usual},
        {"destination": "/work", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
    ]
    for place in (REPOSITORY, Path(sys.prefix)):
        box.spec["mounts"].append(
            {
                "destination": f"/inner{place}",
                "type": "bind",
                "source": str(place),
                "options": ["rbind", "ro"],
            }
        )
    box.linux.pop("seccomp")
    box.linux["maskedPaths"] = box.linux["readonlyPaths"] = []
    box.set_capabilities(*ALL_CAPABILITIES)
    box.linux["resources"] = {"memory": {"limit": 256 * MEBIBYTE}}
    site = next(path for path in sys.path if path.endswith("site-packages"))
    code = f"""
import sys
sys.path[:0] = ['/inner{REPOSITORY}/tests/privileged', '/inner{REPOSITORY}/python', '/inner{site}']
from pathlib import Path
from launcher_box import Box
inner = Box(Path('/work'))
inner.linux['resources'] = {{'memory': {{'limit': 64 << 20}}}}
inner.spec['mounts'] = [one for one in inner.spec['mounts'] if one['type'] != 'sysfs']
inner.start('/bin/sleep', '600')
found = sorted(str(path) for path in Path('/sys/fs/cgroup/memory').rglob('memory.limit_in_bytes') if 'box' in str(path))
print(json.dumps([path + ' ' + Path(path).read_text().strip() for path in found]), flush=True)
inner.end()
"""
    box.process["env"].append("HOME=/work")
    found = box.python(code)
    assert len(found) == 1, found
    assert found[0].endswith(f"memory.limit_in_bytes {64 * MEBIBYTE}")
    assert found[0].startswith("/sys/fs/cgroup/memory/lamella/launcher-tests/box-")
    assert box.cgroup_folders() == []


def parents_of(namespace: str) -> list[Path]:
    """Give the cgroups that a namespace's containers are in."""
    return [path for top in hierarchies() if (path := top / "lamella" / namespace).is_dir()]


def test_a_client_that_runs_several_keeps_what_their_cgroups_are_in_until_it_is_closed(
    client: lamella.Client, small_image: str
) -> None:
    name = f"kept-{uuid.uuid4().hex[:8]}"
    with lamella.Client(root=client.config.root, state=client.config.state, namespace=name) as other:
        copy = other.images.pull(small_image)
        other.containers.run(copy, ["/bin/true"], remove=True)
        until(lambda: not parents_of(name))
        other.containers.run(copy, ["/bin/true"], remove=True)
        assert parents_of(name)
        assert [folder for parent in parents_of(name) for folder in parent.iterdir() if folder.is_dir()] == []
    assert not parents_of(name)


def test_what_a_killed_client_keeps_goes_with_the_next_container_or_by_garbage_collection(
    client: lamella.Client, small_image: str
) -> None:
    name = f"kept-{uuid.uuid4().hex[:8]}"
    script = """
import os, sys, lamella
root, state, name, image = sys.argv[1:]
client = lamella.Client(root=root, state=state, namespace=name)
for _ in range(2):
    client.containers.run(image, ["/bin/true"], remove=True)
os._exit(0)
"""
    where = [str(client.config.root), str(client.config.state), name, small_image]
    other = client.using(namespace=name)
    copy = other.images.pull(small_image)
    for remove in (lambda: other.containers.run(copy, ["/bin/true"]).container_id, client.gc):
        subprocess.run([sys.executable, "-c", script, *where], check=True)
        assert parents_of(name)
        remove()
        until(lambda: not parents_of(name))
    for box in other.containers.list(all=True):
        box.remove()


def test_a_client_that_nobody_closes_takes_them_away_when_its_process_ends(
    client: lamella.Client, small_image: str
) -> None:
    name = f"kept-{uuid.uuid4().hex[:8]}"
    client.using(namespace=name).images.pull(small_image)
    script = """
import sys, lamella
client = lamella.Client(root=sys.argv[1], state=sys.argv[2], namespace=sys.argv[3])
for _ in range(3):
    client.containers.run(sys.argv[4], ["/bin/true"], remove=True)
"""
    where = [str(client.config.root), str(client.config.state), name, small_image]
    subprocess.run([sys.executable, "-c", script, *where], check=True)
    assert not parents_of(name)
