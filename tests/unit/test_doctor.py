"""The doctor's checks, on made-up machines and on this one."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from lamella import _core, doctor
from lamella.config import Config
from lamella.errors import PermissionDenied
from lamella.structs import replace

V2 = "35 24 0:30 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "30 24 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n"
    "31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
    "32 30 0:28 / /sys/fs/cgroup/memory rw shared:10 - cgroup cgroup rw,memory\n"
    "33 30 0:29 / /sys/fs/cgroup/pids rw shared:11 - cgroup cgroup rw,pids\n"
    "34 30 0:31 / /sys/fs/cgroup/systemd rw shared:12 - cgroup cgroup rw,xattr,name=systemd\n"
)
HYBRID = V1 + "36 30 0:32 / /sys/fs/cgroup/unified rw shared:13 - cgroup2 cgroup2 rw\n"


class Machine(doctor.Host):
    """A tree of files in the place of the machine's."""

    def put(self, name: str, text: str) -> Machine:
        """Write a file."""
        self.path(name).parent.mkdir(parents=True, exist_ok=True)
        self.path(name).write_text(text)
        return self


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "machine")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(root=tmp_path / "root", state=tmp_path / "state")


@pytest.mark.parametrize(
    ("release", "status"),
    [
        ("6.18.44-fc-v669", "ok"),
        ("5.12.0", "ok"),
        ("5.11.0-49-generic", "fail"),
        ("4.18.0-553.el8", "fail"),
        ("10.0", "ok"),
    ],
)
def test_old_kernels_fail(machine: Machine, release: str, status: str) -> None:
    check = doctor.check_kernel(machine, release)
    assert (check.status, check.remedy is None) == (status, status == "ok")
    assert release in check.detail


def test_gvisor_is_named_whatever_release_it_calls_itself(machine: Machine) -> None:
    machine.put("/proc/version", "Linux version 4.4.0 #1 SMP Sun Jan 10 15:06:54 PST 2016\n")
    machine.put("/proc/self/mountinfo", "24 1 0:19 / / rw - overlay none rw\n")
    checks = [doctor.check_kernel(machine, "4.4.0"), doctor.check_cgroups(machine)]
    assert [check.status for check in checks] == ["warn", "warn"]
    assert "gVisor" in checks[0].detail and all("sandbox around" in (check.remedy or "") for check in checks)
    assert doctor.check_seccomp(machine).status == "ok"  # which lists no actions there


def test_root_without_cap_sys_admin_fails(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    machine.put("/proc/self/status", "Name:\tx\nCapEff:\t00000000a80425fb\n")
    assert doctor.check_privileges(machine).status == "fail"
    machine.put("/proc/self/status", "Name:\tx\nCapEff:\t000001ffffffffff\n")
    assert doctor.check_privileges(machine).status == "ok"


@pytest.mark.parametrize(
    ("notes", "status", "said"),
    [
        ([], "ok", "65537 ids"),
        (["newuidmap: No such file or directory"], "warn", "one id in a user namespace: newuidmap"),
    ],
)
def test_another_user_than_root_needs_ids(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, notes: list[str], status: str, said: str
) -> None:
    extents = [(0, 1000, 1)] if notes else [(0, 1000, 1), (1, 100000, 65536)]
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(_core, "helper_maps", lambda: (extents, extents, notes))
    check = doctor.check_privileges(machine)
    assert check.status == status
    assert said in check.detail
    assert (check.remedy is None) == (status == "ok")


def test_another_user_than_root_fails_without_user_namespaces(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise PermissionDenied("make a user namespace: Operation not permitted", hint="switch them on")

    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(_core, "helper_maps", refuse)
    check = doctor.check_privileges(machine)
    assert (check.status, check.remedy) == ("fail", "switch them on")


def test_a_user_without_a_range_of_ids_is_told_who_gives_one(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = [(0, 1000, 1)]
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(_core, "helper_maps", lambda: (one, one, ["/etc/subuid gives this user no ids"]))
    check = doctor.check_id_maps(machine)
    assert check.status == "warn"
    assert check.detail.startswith("/etc/subuid gives this user no ids; ")
    assert check.remedy is not None and "usermod" in check.remedy


def test_a_range_counts_that_the_helper_got_wherever_it_comes_from(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a directory of users, or by a name that USER is not (su, sudo)."""
    many = [(0, 1000, 1), (1, 100000, 65536)]
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(_core, "helper_maps", lambda: (many, many, []))
    monkeypatch.setenv("USER", "somebody-else")
    assert doctor.check_id_maps(machine).status == "ok"


def test_a_kernel_that_runs_nothing_from_memory_is_named(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionDenied("cannot make a sealed copy", hint="become root")

    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(_core, "launch", refuse)
    monkeypatch.setattr(_core, "helper_maps", refuse)
    assert doctor.check_launcher(machine).remedy == "become root"
    machine.put("/proc/sys/vm/memfd_noexec", "2\n")
    for check in (doctor.check_launcher(machine), doctor.check_privileges(machine)):
        assert check.status == "fail"
        assert check.remedy is not None and "sysctl -w vm.memfd_noexec" in check.remedy


def test_that_only_a_user_namespace_may_mount_is_no_warning_for_a_user(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refusing = SimpleNamespace(
        CDLL=lambda *_, **__: SimpleNamespace(syscall=lambda *_: -1), get_errno=lambda: errno.EPERM
    )
    monkeypatch.setitem(sys.modules, "ctypes", refusing)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert doctor.check_mount_api().status == "ok"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert doctor.check_mount_api().status == "warn"


@pytest.mark.parametrize(
    ("mountinfo", "unified", "mode", "controllers"),
    [
        (V2, "cpuset cpu io memory pids", "v2", {"cpu", "memory", "pids", "cpuset", "io"}),
        (V1, "", "v1", {"cpu", "cpuacct", "memory", "pids"}),
        (HYBRID, "", "hybrid", {"cpu", "cpuacct", "memory", "pids"}),
        (HYBRID, "hugetlb", "hybrid", {"cpu", "cpuacct", "memory", "pids", "hugetlb"}),
        ("24 1 8:1 / / rw - ext4 /dev/sda1 rw\n", "", "none", set()),
        ("", "", "none", set()),
    ],
)
def test_versions_of_cgroups_are_told_apart(
    mountinfo: str, unified: str, mode: str, controllers: set[str]
) -> None:
    found = doctor.parse_cgroups(mountinfo, unified)
    assert (found.mode, set(found.controllers)) == (mode, controllers)


def test_a_missing_controller_is_named(machine: Machine) -> None:
    machine.put("/proc/self/mountinfo", V2).put("/sys/fs/cgroup/cgroup.controllers", "cpu pids\n")
    check = doctor.check_cgroups(machine)
    assert (check.status, check.detail) == ("warn", "v2, without memory")


def test_cgroups_that_are_not_mounted_are_a_warning(machine: Machine) -> None:
    machine.put("/proc/self/mountinfo", "24 1 8:1 / / rw - ext4 /dev/sda1 rw\n")
    assert doctor.check_cgroups(machine).status == "warn"


def test_complete_cgroups_are_fine(machine: Machine) -> None:
    machine.put("/proc/self/mountinfo", V2).put("/sys/fs/cgroup/cgroup.controllers", "cpu memory pids\n")
    check = doctor.check_cgroups(machine)
    assert (check.status, check.detail) == ("ok", "v2 with cpu, memory, pids")


def test_user_namespaces_that_are_switched_off_name_the_switch(machine: Machine) -> None:
    machine.put("/proc/self/ns/user", "").put("/proc/sys/user/max_user_namespaces", "0\n")
    check = doctor.check_user_namespaces(machine)
    assert (check.status, check.detail) == ("warn", "user.max_user_namespaces is 0")
    machine.put("/proc/sys/user/max_user_namespaces", "15000\n")
    machine.put("/proc/sys/kernel/unprivileged_userns_clone", "0\n")
    assert doctor.check_user_namespaces(machine).remedy == (
        "Allow them: sysctl -w kernel.unprivileged_userns_clone=15000."
    )


def test_a_kernel_without_user_namespaces_is_a_warning(machine: Machine) -> None:
    assert doctor.check_user_namespaces(machine).detail == "the kernel has none"


def test_a_kernel_without_seccomp_filters_fails(machine: Machine) -> None:
    assert doctor.check_seccomp(machine).status == "fail"
    machine.put("/proc/sys/kernel/seccomp/actions_avail", "kill_process kill_thread errno allow\n")
    assert doctor.check_seccomp(machine).status == "ok"


@pytest.mark.parametrize(
    ("version", "status"), [("3.51.3", "ok"), ("3.54.1", "ok"), ("3.51.2", "fail"), ("3.40.1", "fail")]
)
def test_sqlite_with_the_wal_reset_bug_fails(version: str, status: str) -> None:
    assert doctor.check_sqlite(version).status == status


@pytest.mark.parametrize(
    ("filesystem", "status"), [("ext4", "ok"), ("nfs4", "warn"), ("overlay", "fail"), ("vfat", "fail")]
)
def test_the_stores_filesystem_matters(
    filesystem: str, status: str, machine: Machine, config: Config
) -> None:
    machine.put("/proc/self/mountinfo", f"24 1 0:99 / / rw - {filesystem} x rw\n")
    check = doctor.check_store(machine, config)
    assert check.status == status
    assert filesystem in check.detail


def test_native_snapshots_can_do_with_an_overlay_beneath(machine: Machine, config: Config) -> None:
    machine.put("/proc/self/mountinfo", "24 1 0:99 / / rw - overlay x rw\n")
    assert "--snapshotter native" in (doctor.check_store(machine, config).remedy or "")
    assert doctor.check_store(machine, replace(config, snapshotter="native")).status == "ok"


def test_a_store_that_others_can_read_is_a_warning(machine: Machine, config: Config) -> None:
    config.root.mkdir(mode=0o700)
    assert doctor.check_store(machine, config).status == "ok"
    config.root.chmod(0o755)
    check = doctor.check_store(machine, config)
    assert (check.status, "chmod 700" in (check.remedy or "")) == ("warn", True)


def test_a_file_in_the_stores_place_fails(machine: Machine, config: Config) -> None:
    config.root.write_text("")
    assert doctor.check_store(machine, config).status == "fail"


def test_the_filesystem_of_the_longest_mount_point_is_named(machine: Machine, tmp_path: Path) -> None:
    machine.put(
        "/proc/self/mountinfo",
        f"24 1 0:98 / / rw - ext4 x rw\n25 24 0:99 / {tmp_path} rw - tmpfs x rw\n26 24 0:97 / /proc rw - proc x rw\n",
    )
    assert doctor._filesystem(machine, tmp_path) == "tmpfs"


@pytest.mark.parametrize(
    ("free", "inodes", "status"),
    [
        (10_000_000_000, 1_000_000, "ok"),
        (1_000_000_000, 1_000_000, "warn"),
        (10_000_000, 1_000_000, "fail"),
        (10_000_000_000, 1000, "warn"),
        (10_000_000_000, 0, "fail"),
    ],
)
def test_little_space_is_a_warning_and_none_a_failure(
    free: int, inodes: int, status: str, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Found:
        f_blocks, f_bavail, f_frsize, f_favail, f_files = 1, free // 1000, 1000, inodes, 2_000_000

    monkeypatch.setattr(os, "statvfs", lambda path: Found)
    assert doctor.check_space(config).status == status


def test_a_file_system_that_counts_nothing_is_not_full(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Found:
        f_blocks = f_bavail = f_favail = f_files = 0
        f_frsize = 4096

    monkeypatch.setattr(os, "statvfs", lambda path: Found)
    assert doctor.check_space(config).status == "ok"


def test_a_clock_before_this_program_is_a_warning() -> None:
    assert doctor.check_clock(0).status == "warn"
    assert doctor.check_clock(1_800_000_000).status == "ok"


def test_certificates_that_are_named_and_not_there_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere/ca.pem")
    assert doctor.check_certificates().status == "warn"


def test_a_check_that_breaks_is_a_failed_check() -> None:
    def broken() -> doctor.Check:
        raise RuntimeError("oh")

    check = doctor._run("thing", broken)
    assert (check.name, check.status) == ("thing", "fail")
    assert "oh" in check.detail


@pytest.mark.privileged
def test_this_machine_passes_and_nothing_stays_behind(config: Config) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    checks = doctor.examine(config)
    assert [check for check in checks if check.status == "fail"] == []
    assert len({check.name for check in checks}) == len(checks)
    assert Path("/proc/self/mountinfo").read_text() == before
    assert not config.root.exists()
    assert not config.state.exists()
    assert list(config.root.parent.iterdir()) == []


@pytest.mark.needs_root
def test_the_overlay_check_works_wherever_the_store_is(machine: Machine, tmp_path: Path) -> None:
    machine.put("/proc/filesystems", "nodev\toverlay\n")
    root = tmp_path / "a b:c\\d"
    root.mkdir()
    answer = doctor.check_snapshotter(machine, Config(root=root, state=tmp_path / "state"))
    assert answer.status == "ok", answer
    assert list(root.iterdir()) == []


@pytest.mark.parametrize("snapshotter", ["overlayfs", "native"])
def test_a_store_that_cannot_be_written_keeps_the_check_of_the_snapshotter_from_trying(
    machine: Machine, tmp_path: Path, snapshotter: str
) -> None:
    config = Config(root=Path("/proc/self/fdinfo"), state=tmp_path / "state", snapshotter=snapshotter)
    answer = doctor.check_snapshotter(machine, config)
    assert (answer.name, answer.status) == (snapshotter, "warn")
    assert answer.remedy


def test_the_check_of_the_native_snapshotter_says_what_a_copy_takes(machine: Machine, tmp_path: Path) -> None:
    config = Config(root=tmp_path / "root", state=tmp_path / "state", snapshotter="native")
    answer = doctor.check_snapshotter(machine, config)
    assert answer.status == "ok"
    assert answer.detail.startswith("copies ")
    assert list(tmp_path.iterdir()) == []
