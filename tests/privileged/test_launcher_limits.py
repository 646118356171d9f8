"""Limits that the container's cgroup enforces. What needs a hierarchy or controller that is missing here is skipped."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from launcher_box import PYTHON, STDOUT, Box

pytestmark = [pytest.mark.privileged]
ROOT = Path("/sys/fs/cgroup")
UNIFIED = (ROOT / "cgroup.controllers").exists()
MEBIBYTE = 1 << 20


def controller(name: str) -> str:
    """Give the folder of a controller's hierarchy, or skip."""
    if UNIFIED:
        if name not in (ROOT / "cgroup.controllers").read_text().split():
            pytest.skip(f"this machine has no cgroup controller {name}")
        return ""
    if not (ROOT / name).is_dir():
        pytest.skip(f"this machine has no cgroup controller {name}")
    return name


def test_a_container_that_takes_too_much_memory_is_killed_and_that_is_reported(box: Box) -> None:
    controller("memory")
    box.linux["resources"] = {"memory": {"limit": 32 * MEBIBYTE, "swap": 32 * MEBIBYTE}}
    result = box.run(PYTHON, "-I", "-S", "-c", f"x = b'1' * {128 * MEBIBYTE}")
    assert result.exit["oom_killed"] is True
    assert result.code == 137
    assert box.record()["oom_killed"] is True


def test_a_container_within_its_memory_is_not_reported(box: Box) -> None:
    controller("memory")
    box.linux["resources"] = {"memory": {"limit": 256 * MEBIBYTE}}
    assert box.run(PYTHON, "-I", "-S", "-c", f"x = b'1' * {16 * MEBIBYTE}").exit["oom_killed"] is False


def test_there_are_no_more_processes_than_allowed(box: Box) -> None:
    controller("pids")
    box.linux["resources"] = {"pids": {"limit": 10}}
    code = """
import time
made = 0
try:
    for _ in range(30):
        if os.fork() == 0:
            time.sleep(5)
            os._exit(0)
        made += 1
except OSError as error:
    print(json.dumps([made, errno.errorcode[error.errno]]))
"""
    assert box.python(code) == [9, "EAGAIN"]


def test_cpu_limits_are_set(box: Box) -> None:
    folder = controller("cpu")
    box.linux["resources"] = {"cpu": {"quota": 25000, "period": 50000, "shares": 512}}
    box.start("/bin/sleep", "100")
    if UNIFIED:
        assert box.cgroup_file(folder, "cpu.max") == "25000 50000"
        assert box.cgroup_file(folder, "cpu.weight") == "59"
    else:
        assert box.cgroup_file(folder, "cpu.cfs_quota_us") == "25000"
        assert box.cgroup_file(folder, "cpu.cfs_period_us") == "50000"
        assert box.cgroup_file(folder, "cpu.shares") == "512"


def test_the_cpu_set_is_the_one_of_the_spec(box: Box) -> None:
    controller("cpuset")
    box.linux["resources"] = {"cpu": {"cpus": "0"}}
    assert box.python("print(json.dumps(sorted(os.sched_getaffinity(0))))") == [0]


def test_devices_are_denied_but_for_the_allowed_ones(box: Box) -> None:
    # A bind mount of a host folder that is not nodev: only the device filter is in the way.
    box.spec["mounts"].append(
        {"destination": "/host-dev", "type": "bind", "source": "/dev", "options": ["bind", "dev"]}
    )
    nodes = [name for name in ("mem", "kmsg", "loop0", "vda", "sda", "fuse") if Path("/dev", name).exists()]
    paths = [f"/host-dev/{name}" for name in nodes]
    code = f"print(json.dumps([attempt(os.open, x, os.O_RDONLY) for x in {paths!r} + ['/host-dev/null']]))"
    box.set_capabilities("CAP_SYS_RAWIO", "CAP_DAC_OVERRIDE", "CAP_SYSLOG")
    *denied, allowed = box.python(code)
    assert denied == ["EPERM"] * len(nodes)
    assert allowed == "ok"


def test_a_node_that_a_container_makes_itself_opens_only_what_is_allowed(box: Box) -> None:
    nodes = {"type": "tmpfs", "source": "tmpfs", "destination": "/nodes", "options": ["dev", "nosuid"]}
    box.spec["mounts"].append(nodes)
    box.set_capabilities("CAP_MKNOD", "CAP_SYS_RAWIO", "CAP_DAC_OVERRIDE")
    devices = [
        ("mem", 0o20600, 1, 1),
        ("tty", 0o20600, 4, 0),
        ("disk", 0o60600, 254, 0),
        ("null", 0o20600, 1, 3),
    ]
    code = f"""
results = []
for name, kind, major, minor in {devices!r}:
    made = attempt(os.mknod, '/nodes/' + name, kind, os.makedev(major, minor))
    results.append([made, attempt(os.open, '/nodes/' + name, os.O_RDONLY)])
print(json.dumps(results))
"""
    *denied, allowed = box.python(code)
    assert denied == [["ok", "EPERM"]] * 3
    assert allowed == ["ok", "ok"]


def test_a_device_that_is_allowed_works(box: Box) -> None:
    box.linux["devices"] = [{"type": "c", "path": "/dev/kmsg", "major": 1, "minor": 11}]
    box.linux["resources"] = {
        "devices": [{"allow": True, "type": "c", "major": 1, "minor": 11, "access": "rw"}]
    }
    assert box.python("print(json.dumps(attempt(os.open, '/dev/kmsg', os.O_WRONLY)))") == "ok"


def test_limits_of_a_running_container_can_be_changed(box: Box) -> None:
    folder = controller("pids")
    box.linux["resources"] = {"pids": {"limit": 10}}
    box.start("/bin/sleep", "100")
    answer = box.ask(op="update", resources={"pids": {"limit": 20}, "memory": {"limit": 64 * MEBIBYTE}})
    assert answer == {"ok": True, "warnings": []}
    assert box.cgroup_file(folder, "pids.max") == "20"
    memory = "memory.max" if UNIFIED else "memory.limit_in_bytes"
    assert box.cgroup_file("" if UNIFIED else "memory", memory) == str(64 * MEBIBYTE)
    assert "error" in box.ask(op="update", resources={"devices": [{"allow": True}]})


def test_a_change_that_the_kernel_refuses_half_way_changes_nothing(box: Box) -> None:
    controller("cpuset")
    folder = controller("pids")
    box.linux["resources"] = {"pids": {"limit": 10}, "memory": {"limit": 64 * MEBIBYTE}}
    box.start("/bin/sleep", "100")
    change = {"memory": {"limit": 128 * MEBIBYTE}, "pids": {"limit": 20}, "cpu": {"cpus": "9999"}}
    error = box.ask(op="update", resources=change)["error"]
    assert error["kind"] == "InvalidArgument"
    assert error["hint"].startswith("choose among 0")
    memory = "memory.max" if UNIFIED else "memory.limit_in_bytes"
    assert box.cgroup_file("" if UNIFIED else "memory", memory) == str(64 * MEBIBYTE)
    assert box.cgroup_file(folder, "pids.max") == "10"
    if not UNIFIED:
        assert not Path(ROOT, "cpuset", box.cgroup.strip("/")).exists()


def test_a_running_container_gets_limits_of_controllers_that_it_had_none_of(box: Box) -> None:
    controller("cpuset")
    folder = controller("cpu")
    connection = box.start("/bin/sh", "-c", "sleep 100 & echo x; read x", stdin=True)
    assert connection.frame() == (STDOUT, b"x\n")
    pid = box.ask(op="state")["pid"]
    assert box.ask(op="update", resources={"cpu": {"cpus": "0", "quota": 50000}}) == {
        "ok": True,
        "warnings": [],
    }
    assert os.sched_getaffinity(pid) == {0}
    assert box.cgroup_file("" if UNIFIED else "cpuset", "cpuset.cpus") == "0"
    name, value = ("cpu.max", "50000 100000") if UNIFIED else ("cpu.cfs_quota_us", "50000")
    assert box.cgroup_file(folder, name) == value
    if not UNIFIED:
        assert len(box.cgroup_file("cpuset", "cgroup.procs").split()) == 2


def test_memory_grows_together_with_memory_and_swap(box: Box) -> None:
    folder = controller("memory")
    box.linux["resources"] = {"memory": {"limit": 32 * MEBIBYTE, "swap": 32 * MEBIBYTE}}
    box.start("/bin/sleep", "100")
    for size in (64 * MEBIBYTE, 16 * MEBIBYTE):
        answer = box.ask(op="update", resources={"memory": {"limit": size, "swap": size}})
        assert answer["ok"] is True, answer
        memory = "memory.max" if UNIFIED else "memory.limit_in_bytes"
        assert box.cgroup_file(folder, memory) == str(size)


def test_huge_pages_are_limited_in_a_v2_hierarchy(box: Box) -> None:
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    root = next((mount[1] for mount in mounts if mount[2] == "cgroup2"), None)
    if root is None or "hugetlb" not in Path(root, "cgroup.controllers").read_text().split():
        pytest.skip("no cgroup v2 hierarchy has the controller hugetlb")
    box.linux["resources"] = {"hugepageLimits": [{"pageSize": "2MB", "limit": 4 * MEBIBYTE}]}
    connection = box.start("/bin/sleep", "100", cgroup_root=root)
    file = Path(root, box.cgroup.strip("/"), "hugetlb.2MB.max")
    assert file.read_text().strip() == str(4 * MEBIBYTE)
    change = {"hugepageLimits": [{"pageSize": "2MB", "limit": 2 * MEBIBYTE}]}
    assert box.ask(op="update", resources=change) == {"ok": True, "warnings": []}
    assert file.read_text().strip() == str(2 * MEBIBYTE)
    change["hugepageLimits"].append({"pageSize": "3MB", "limit": 3 * MEBIBYTE})
    change["hugepageLimits"][0]["limit"] = 0
    assert "/sys/kernel/mm/hugepages" in box.ask(op="update", resources=change)["error"]["hint"]
    assert file.read_text().strip() == str(2 * MEBIBYTE)
    box.ask(op="kill", signal=9)
    assert connection.collect().code == 137


def test_a_controller_that_is_missing_is_an_error_that_leaves_nothing(box: Box, tmp_path: Path) -> None:
    if UNIFIED and "hugetlb" in (ROOT / "cgroup.controllers").read_text():
        pytest.skip("this machine has the hugetlb controller")
    # The machine's own hierarchies, but for the one of huge pages and that of v2, which may have it.
    root = ROOT if UNIFIED else tmp_path / "cgroup"
    if not UNIFIED:
        root.mkdir()
        for folder in ROOT.iterdir():
            if folder.name not in ("hugetlb", "unified"):
                (root / folder.name).symlink_to(folder)
    box.linux["resources"] = {"hugepageLimits": [{"pageSize": "2MB", "limit": 1}]}
    assert "hugetlb" in box.error(cgroup_root=str(root))["message"]


def test_a_memory_limit_too_small_to_start_is_reported(box: Box) -> None:
    controller("memory")
    box.linux["resources"] = {"memory": {"limit": 4096, "swap": 4096}}
    reply, connection = box.launch("/bin/true")
    assert connection is not None
    if "error" in reply:
        assert reply["error"]["kind"] in ("FailedPrecondition", "ResourceExhausted", "CommandNotExecutable")
    else:  # it was killed while exec loaded the program
        assert connection.collect().exit["oom_killed"] is True


def test_a_container_without_a_cgroup_path_runs_and_takes_no_limits(box: Box) -> None:
    del box.linux["cgroupsPath"]
    assert box.sh("echo x").stdout == b"x\n"
    box.linux["resources"] = {"pids": {"limit": 1}}
    assert box.error()["kind"] == "InvalidArgument"


def test_groups_that_the_container_makes_are_removed_too(box: Box) -> None:
    if UNIFIED:
        pytest.skip("the folder is seen through one mount there")
    box.spec["mounts"].append(
        {
            "destination": "/sys/fs/cgroup",
            "type": "cgroup",
            "source": "cgroup",
            "options": ["nosuid", "noexec", "nodev"],
        }
    )
    connection = box.start("/bin/sh", "-c", "mkdir -p /sys/fs/cgroup/pids/a/b && echo made")
    assert connection.frame() == (STDOUT, b"made\n")
    connection.collect()
    box.await_end()
    assert box.cgroup_folders() == []


def test_a_container_runs_in_a_v2_hierarchy_with_its_device_filter(box: Box) -> None:
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    root = next((mount[1] for mount in mounts if mount[2] == "cgroup2"), None)
    if root is None:
        pytest.skip("no cgroup v2 hierarchy is mounted")
    box.spec["mounts"].append(
        {"destination": "/host-dev", "type": "bind", "source": "/dev", "options": ["bind", "dev"]}
    )
    code = """
print(json.dumps([attempt(os.open, x, os.O_RDONLY) for x in ('/host-dev/kmsg', '/host-dev/null')]
    + [l for l in open('/proc/self/cgroup').read().split() if l.startswith('0::')]))
"""
    assert box.python(code, cgroup_root=root) == ["EPERM", "ok", "0::/"]
    connection = box.start("/bin/sh", "-c", "echo ready; while :; do sleep 0.01; done", cgroup_root=root)
    assert connection.frame() == (STDOUT, b"ready\n")
    folder = Path(root, box.cgroup.strip("/"))
    assert box.ask(op="state")["pid"] in [int(pid) for pid in (folder / "cgroup.procs").read_text().split()]
    assert box.ask(op="pause") == {"ok": True}
    assert "frozen 1" in (folder / "cgroup.events").read_text()
    assert box.ask(op="resume") == {"ok": True}
    added = box.exec("/bin/sh", "-c", "sleep 1000 & sleep 1000")
    assert added.document()["ok"] is True
    added.request(op="kill", signal=9, all=True)
    assert added.collect().code == 137
    box.ask(op="kill", signal=9)
    assert connection.collect().code == 137
    box.await_end()
    assert not folder.exists()
