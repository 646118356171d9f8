"""Containers where mount_setattr(2) is not to be had, by a kernel (gVisor, tests/contract/test_gvisor.py) or by a filter around:
mounts get their attributes by mount(2), which takes that they are attached. What mounts promise holds, on this kernel, too.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from outcomes import Outcome, count_passed, deselecting, read_outcomes

pytestmark = [pytest.mark.privileged, pytest.mark.needs_root, pytest.mark.timeout(900)]

TESTS = (
    "tests/privileged/test_image_mounts.py",
    "tests/privileged/test_launcher.py",
    "tests/privileged/test_launcher_security.py",
    "tests/privileged/test_mounts.py",
)
NOT_THERE = {
    "ids_of_its_own": "ID-mapped mounts take the call",
    "user_namespace": "the same",
    "runc_mounts": "runc makes the call itself for what is mounted beneath a source",
    "in_place_of_proc": "mount(2) needs paths of descriptors, which /proc gives",
}

# Loads the number of the call, and answers 442 with ENOSYS (seccomp(2)); the number is the same on all architectures.
WITHOUT = """
import ctypes, os, struct, sys
steps = [(0x20, 0, 0, 0), (0x15, 0, 1, 442), (0x06, 0, 0, 0x50000 | 38), (0x06, 0, 0, 0x7fff0000)]
program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
header = struct.pack("HL", len(steps), ctypes.addressof(program))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(22, 2, header, 0, 0) == 0, os.strerror(ctypes.get_errno())
os.execvp(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    report = tmp_path_factory.mktemp("without") / "report.xml"
    command = [sys.executable, "-c", WITHOUT, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += [f"--junitxml={report}", *TESTS, "-k", deselecting(NOT_THERE)]
    ran = subprocess.run(
        command,
        cwd=Path(__file__).parents[2],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert report.exists(), ran.stdout[-3000:] + ran.stderr[-3000:]
    return read_outcomes(report.read_text())


@pytest.mark.parametrize("module", [Path(path).stem for path in TESTS])
def test_what_mounts_promise_holds(outcomes: list[Outcome], module: str) -> None:
    assert count_passed(outcomes, module) >= 10
