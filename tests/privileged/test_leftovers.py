"""What the check for leftovers takes for its own, where two halves of the tests run at once."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.privileged
START = """
import sys, lamella
with lamella.Client(sys.argv[1], sys.argv[2]) as client:
    client.containers.run(sys.argv[3], ["/bin/sleep", "600"], detach=True, name="box", memory="64m", runtime=sys.argv[4])
"""


@pytest.mark.needs_program("runc")
@pytest.mark.parametrize("runtime", ["lamella", "runc"])
@pytest.mark.parametrize("apart", [[], ["unshare", "--mount"]], ids=["ours", "theirs"])
def test_the_cgroups_of_a_container_are_the_halfs_whose_mount_namespace_its_monitor_is_in(
    nothing_left_after_the_session: Any,
    client: Any,
    image: Any,
    monkeypatch: pytest.MonkeyPatch,
    apart: list[str],
    runtime: str,
) -> None:
    check = type(nothing_left_after_the_session).look.__globals__  # of the conftest.py above this folder's
    monkeypatch.setitem(check, "HALF", "privileged")
    monkeypatch.setitem(check, "REQUIRE_ALL", True)
    places = [str(client.config.root), str(client.config.state), image.name, runtime]
    subprocess.run([*apart, sys.executable, "-c", START, *places], check=True)
    box = client.containers.get("box")
    try:
        found = [text for text in nothing_left_after_the_session.look().values() if box.id in text]
    finally:
        box.remove(force=True)
    assert bool([text for text in found if text.startswith("cgroup")]) == (not apart)
