"""Every field of the runtime spec is supported or refused by name, as the table in docs/oci-runtime.md says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from launcher_box import Box
from spec_fields import REFUSED, SECCOMP, SUPPORTED, Field, put, rows

pytestmark = pytest.mark.privileged
PAGE = Path(__file__).resolve().parents[2] / "docs" / "oci-runtime.md"


@pytest.mark.parametrize(
    "field", [field for field in SUPPORTED if field.value is not None], ids=lambda field: field.path
)
def test_a_supported_field_is_taken(box: Box, field: Field) -> None:
    if "seccomp" in field.path:
        box.linux["seccomp"] = dict(SECCOMP)
    if "capabilities" in field.path:
        box.set_capabilities("CAP_CHOWN")
    put(box.spec, field)
    reply, connection = box.launch()
    # What this machine lacks (a controller, a device) is another matter.
    error = str(reply.get("error"))
    assert "not supported" not in error or "on a cgroup v1 machine" in error
    if "error" not in reply:
        assert connection is not None
        assert connection.collect().code == 0


@pytest.mark.parametrize("field", REFUSED, ids=lambda field: field.path)
def test_a_field_that_is_not_supported_is_refused_by_name(box: Box, field: Field) -> None:
    number = len(box.spec["mounts"])
    put(box.spec, field)
    error = box.error()
    assert error["kind"] == "Unsupported"
    assert field.path.replace("[]", f"[{number}]") in error["message"]


def test_the_page_has_every_field() -> None:
    text = PAGE.read_text()
    assert [row for row in rows() if row not in text] == []


def test_priorities_take_effect(box: Box) -> None:
    box.process["scheduler"] = {"policy": "SCHED_BATCH", "nice": 7}
    box.process["ioPriority"] = {"class": "IOPRIO_CLASS_IDLE"}
    code = "import ctypes, os; print([os.sched_getscheduler(0), os.nice(0), ctypes.CDLL(None).syscall(252, 1, 0) >> 13])"
    assert box.python(code) == [os.SCHED_BATCH, 7, 3]


def test_a_time_namespace_has_clocks_of_its_own_for_further_processes_too(box: Box) -> None:
    box.linux["namespaces"].append({"type": "time"})
    box.linux["timeOffsets"] = {
        "boottime": {"secs": 1_000_000},
        "monotonic": {"secs": 2_000_000, "nanosecs": 5},
    }
    connection = box.start("/bin/sh", "-c", "cat /proc/uptime; exec sleep 1000")
    _, output = connection.frame() or (0, b"")
    host = float(Path("/proc/uptime").read_text().split()[0])
    assert float(output.split()[0]) > host + 999_000
    further = box.exec("cat", "/proc/uptime")
    assert "error" not in further.document()
    assert float(further.collect().stdout.split()[0]) > host + 999_000
    refused = Box(box.folder.parent)
    refused.linux["timeOffsets"] = {"boottime": {"secs": 1}}
    assert "linux.timeOffsets" in refused.error()["message"]


def test_a_tmpfs_begins_with_what_the_image_has_there(box: Box) -> None:
    (box.lower / "data").mkdir(mode=0o1777)
    (box.lower / "data").chmod(0o1777)
    (box.lower / "data/file").write_text("the image's\n")
    (box.lower / "data/link").symlink_to("/etc/passwd")
    box.spec["mounts"].append(
        {"destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup", "size=1m"]}
    )
    result = box.sh("cat /data/file; readlink /data/link; stat -c %a /data; echo new > /data/file")
    assert result.stdout == b"the image's\n/etc/passwd\n1777\n"
    assert (box.lower / "data/file").read_text() == "the image's\n"
