"""Starting the launcher: request in, reply out, nothing left behind. What it does with a request is tested elsewhere."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from lamella import _core, errors


def children() -> str:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text()


def test_a_request_that_is_no_document_is_answered_with_an_error_and_leaves_no_child() -> None:
    open_before, children_before = sorted(os.listdir("/proc/self/fd")), children()
    reply = json.loads(_core.launch(b"this is no request"))
    assert reply["error"]["kind"] in errors.__all__
    assert reply["error"]["message"]
    assert children() == children_before
    # One more the first time: the sealed copy of the launcher.
    assert len(os.listdir("/proc/self/fd")) - len(open_before) in (0, 1)
    now = len(os.listdir("/proc/self/fd"))
    _core.launch(b"{}")
    assert len(os.listdir("/proc/self/fd")) == now


def test_a_descriptor_that_is_not_open_is_named() -> None:
    with pytest.raises(errors.LamellaError, match="descriptor 99999"):
        _core.launch(b"{}", [99_999])


def test_the_default_seccomp_profile_is_a_document_of_the_runtime_spec() -> None:
    profile = json.loads(_core.default_seccomp([]))
    assert profile["defaultAction"].startswith("SCMP_ACT_")
    assert profile["syscalls"]
    assert json.loads(_core.default_seccomp(["CAP_SYS_ADMIN"])) != profile
