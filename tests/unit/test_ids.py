"""Why a user has one id, and which failures that explains."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from lamella import _core, ids

ONE = [(0, 1000, 1)]
MANY = [*ONE, (1, 100000, 65536)]


@pytest.fixture
def user(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Make this a user who has no ranges."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(_core, "helper_maps", lambda: (ONE, ONE, ["/etc/subuid gives this user no ids"]))
    return monkeypatch


@pytest.mark.parametrize(
    ("output", "explained"),
    [
        (b"chown: /srv: Invalid argument\n", True),
        (b"su: cannot set groups: Operation not permitted\n", True),
        (b'error: failed switching to "postgres": operation not permitted\n', True),
        (b"cat: /srv: No such file or directory\n", False),
        (b"", False),
    ],
)
def test_what_the_kernel_says_of_ids_that_are_not_there_is_explained(user, output, explained):
    reason = ids.explain_failure(b"something else", output)
    assert (reason is not None) == explained
    if reason is not None:
        assert "/etc/subuid gives this user no ids" in reason and "usermod" in reason


def test_nothing_is_explained_to_who_has_ranges(user):
    user.setattr(_core, "helper_maps", lambda: (MANY, MANY, []))
    assert ids.explain_failure(b"chown: /srv: Invalid argument\n") is None


@pytest.mark.needs_program("unshare")
@pytest.mark.parametrize(
    ("options", "said"), [([], "None"), (["--user", "--map-root-user"], "maps no other")]
)
def test_the_root_of_a_namespace_with_one_id_is_told_so(options, said):
    if options and subprocess.run(["unshare", *options, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user namespace can be made here")
    if not options and os.geteuid() != 0:
        pytest.skip("this is not root")
    command = [sys.executable, "-c", "from lamella.ids import one_id; print(one_id())"]
    found = subprocess.run(["unshare", *options, *command], capture_output=True, text=True, check=True)
    assert said in found.stdout
