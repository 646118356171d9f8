"""What is promised holds under gVisor, too, which has a part of the kernel's interfaces: no ID-mapped mounts, no attributes of
mounts that are attached nowhere, no cgroups where nobody has mounted any.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import gvisor
from outcomes import Outcome, count_passed, deselecting, read_outcomes

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.beside,
    pytest.mark.needs_program(gvisor.PROGRAM),
    pytest.mark.timeout(1000),
]

TESTS = (
    "tests/contract/test_content_store.py",
    "tests/contract/test_native.py",
    "tests/contract/test_overlayfs.py",
    "tests/contract/test_runtimes.py",
)
NOT_THERE = {
    "Runc": "it starts no container without a cgroup",
    "MappedIds": "no mount shows other ids than are stored",
    "the_map_that_the_labels_say": "the same",
    "a_folder_of_a_parent_is_renamed_or_gives_exdev": "its overlays rename such folders",
    "attributes_of_every_kind_are_in_the_commit": "holes of files count as blocks",
    "128_layers_can_be_mounted": "the options of an overlay have a page, and folders no relative names",
    "the_root_folder_may_have_any_name": "nothing protects a colon in the options of an overlay",
    "ignores_no_signal": "/proc does not tell which signals a program ignores",
    "loopback_alone_and_the_hosts": "/sys does not tell which network devices there are",
    "running_out_of_memory": "no cgroups",
    "pause_stops_everything": "the same",
    "processes_and_statistics": "the same",
    "limits_hold": "the same",
    "what_it_wrote_can_be_seen_copied_and_committed": "the same: a commit pauses",
    "a_removed_container_leaves_nothing": "the same: it asks for the container's own",
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    report = "/scratch/home/report.xml"
    pytest_there = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
    pytest_there += [*TESTS, "-k", f"{deselecting(NOT_THERE)} and (TestLauncher or not test_runtimes)"]
    script = f'"$@" >&2; exec cat {report}'
    found = gvisor.run(tmp_path_factory.mktemp("gvisor"), "sh", "-c", script, "sh", *pytest_there)
    assert found.returncode == 0, found.stderr[-3000:]
    return read_outcomes(found.stdout)


@pytest.mark.parametrize(
    ("module", "count"),
    [("test_content_store", 95), ("test_native", 80), ("test_overlayfs", 90), ("test_runtimes", 29)],
)
def test_the_contracts_are_kept(outcomes: list[Outcome], module: str, count: int) -> None:
    assert count_passed(outcomes, module) >= count


@pytest.mark.parametrize("as_user", [False, True], ids=["root", "a user with one id"])
def test_the_main_job_is_done_from_beginning_to_end(tmp_path: Path, as_user: bool) -> None:
    found = gvisor.run(tmp_path, sys.executable, "examples/demo.py", as_user=as_user)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "stdout: hello from Linux" in found.stdout
    assert found.stdout.endswith("left: 0 blobs, 0 snapshots, 0 containers\n")


PROTECTED = """
import json, sys
sys.path[:0] = ["examples"]
import lamella, machine_image
from lamella.errors import LamellaError
from lamella.registry.server import RegistryServer

client, told = lamella.Client("/scratch/home/root", state="/scratch/home/state"), {}
with RegistryServer() as server:
    machine_image.build().push(server.address, "machine", "latest")
    image = client.images.pull(f"{server.address}/machine:latest")
script = "cat /proc/self/mountinfo; for file in /proc/sys/kernel/x /sys/x /etc/hosts; do echo >>$file; done"
result = client.containers.run(image, ["/bin/sh", "-c", script], read_only=True, remove=True)
told["mounts"], told["refused"] = result.stdout.decode(), result.stderr.decode()
try:
    client.containers.run(image, ["/bin/true"], userns="auto", remove=True)
except LamellaError as error:
    told["ids"] = [type(error).__name__, error.message, error.hint]
told["left"] = [len(client.containers.list(all=True)), open("/proc/self/mountinfo").read().count("lamella")]
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    found = gvisor.run(tmp_path_factory.mktemp("gvisor"), sys.executable, "-c", PROTECTED)
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


def test_mounts_of_a_container_have_their_attributes(told: dict[str, Any]) -> None:
    mounts = {}
    for line in told["mounts"].splitlines():
        fields = line.split()
        if len(fields) > 6 and "-" in fields:
            mounts[fields[4]] = set(fields[5].split(","))
    assert {"ro", "nodev"} <= mounts["/"]
    assert {"nosuid", "nodev", "noexec"} <= mounts["/proc"]
    assert {"ro", "nosuid", "nodev", "noexec"} <= mounts["/sys"]
    assert {"nosuid", "nodev"} <= mounts["/dev"] and "nodev" not in mounts["/dev/null"]
    assert {"ro", "nosuid", "noexec"} <= mounts["/dev/null"]
    assert {"nosuid", "nodev", "noexec"} <= mounts["/etc/hosts"]
    assert "ro" in mounts["/proc/sys"]
    assert not [point for point in mounts if "rootfs" in point]  # where copies waited
    assert told["refused"].count("ead-only") == 2, told["refused"]  # /etc/hosts is the container's own


def test_ids_of_its_own_are_refused_by_name_and_nothing_stays(told: dict[str, Any]) -> None:
    kind, message, hint = told["ids"]
    assert (kind, told["left"]) == ("Unsupported", [0, 0])
    assert "mount_setattr" in message and "userns" in hint


def test_the_doctor_names_it(tmp_path: Path) -> None:
    found = gvisor.run(
        tmp_path, sys.executable, "-m", "lamella", "--root=/scratch/home/root", "--json", "doctor"
    )
    checks = {check["name"]: check for check in json.loads(found.stdout)["checks"]}
    assert checks["kernel"]["detail"].startswith("gVisor")
    assert all(checks[name]["remedy"] for name in ("kernel", "cgroups"))
    failed = [check for check in checks.values() if check["status"] == "fail"]
    assert (failed, found.returncode) == ([], 0)
