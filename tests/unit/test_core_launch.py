"""Starting the launcher: request in, reply out, nothing left behind. What it does with a request is tested elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from inventory import children, descriptors
from lamella import _core, errors


def test_a_request_that_is_no_document_is_answered_with_an_error_and_leaves_no_child() -> None:
    with contextlib.suppress(errors.LamellaError):
        _core.helper_maps()  # the helper of who is not root stays, with the sockets that lead to it
    open_before, children_before = descriptors(), children()
    reply = json.loads(_core.launch(b"this is no request"))
    assert reply["error"]["kind"] in errors.__all__
    assert reply["error"]["message"]
    assert children() - children_before == set()
    # One more the first time: the sealed copy of the launcher.
    assert len(descriptors() - open_before) in (0, 1)
    now = descriptors()
    _core.launch(b"{}")
    assert descriptors() - now == set()


def test_a_copy_of_the_launcher_that_is_made_ahead_is_the_one_that_is_started() -> None:
    script = """
import os, time
from lamella import _core
count = lambda: sum("lamella-launcher" in os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd"))
_core.prepare_launch()
_core.prepare_launch()
deadline = time.monotonic() + 60
while (len(os.listdir("/proc/self/task")) > 1 or not count()) and time.monotonic() < deadline:
    time.sleep(0.001)
assert count() == 1
assert b"error" in _core.launch(b"{}")
assert count() == 1
"""
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.needs_root
def test_a_copy_of_the_launcher_that_somebody_took_mode_or_owner_from_is_made_anew() -> None:
    """A container reaches it when its program is /proc/self/exe, and is root there as here."""
    _core.launch(b"{}")
    for change in (lambda file: file.chmod(0), lambda file: os.chown(file, 1, 1)):
        (copy,) = [
            path for path in Path("/proc/self/fd").iterdir() if "lamella-launcher" in os.path.realpath(path)
        ]
        with contextlib.suppress(PermissionError):  # since Linux 6.3 a seal forbids the first
            change(copy)
        assert json.loads(_core.launch(b"{}"))["error"]["kind"]


def test_a_descriptor_that_is_not_open_is_named() -> None:
    with pytest.raises(errors.LamellaError, match="descriptor 99999"):
        _core.launch(b"{}", [99_999])


def test_the_default_seccomp_profile_is_a_document_of_the_runtime_spec() -> None:
    profile = json.loads(_core.default_seccomp([]))
    assert profile["defaultAction"].startswith("SCMP_ACT_")
    assert profile["syscalls"]
    assert json.loads(_core.default_seccomp(["CAP_SYS_ADMIN"])) != profile


@pytest.mark.parametrize("closed", ["", "os.closerange(0, 2)", "os.closerange(0, 3)"])
def test_the_launcher_starts_whichever_descriptors_are_free(closed: str) -> None:
    program = f"""
import os
import subprocess
import sys
out = os.dup(1)
{closed}
from lamella import _core
for _ in range(2):
    os.write(out, _core.launch(b"{{}}"))
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.stdout.count('"error"') == 2, ended.stderr
