"""Containers of a user who is not root: the whole contract, with ranges of ids and with one id, overlayfs and native."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from xml.etree import ElementTree

import pytest

from networking import Machine
from users import REPOSITORY, OrdinaryUser, ordinary_user

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.needs_program(
        "useradd", "userdel", "newuidmap", "newgidmap", "setpriv", "unshare", "ip", "pasta", "cc"
    ),
]


@pytest.fixture(scope="module", params=[True, False], ids=["ranges", "one id"])
def user(request: pytest.FixtureRequest) -> Iterator[OrdinaryUser]:
    with ordinary_user(ranges=request.param) as made:
        yield made


@pytest.fixture
def machine() -> Iterator[Machine]:
    """Give a machine of its own network, whose ports nobody else has."""
    made = Machine()
    made.enter()
    made.ip("address", "add", "2001:db8::2/64", "dev", "up0", "nodad")
    made.ip("route", "add", "default", "via", "2001:db8::1")
    try:
        yield made
    finally:
        made.leave()


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("suite", "least"), [("contract/user_containers.py", 50), ("security/user_breakouts.py", 15)]
)
def test_what_is_promised_of_a_users_containers_holds(
    user: OrdinaryUser, machine: Machine, suite: str, least: int
) -> None:
    report = user.home / "report.xml"
    options = ["-q", "-p", "no:cacheprovider", f"--basetemp={user.home}/pytest", f"--junitxml={report}"]
    program = ["env", "LAMELLA_REQUIRE_ALL=0", sys.executable, "-m", "pytest", *options]
    user.run([*program, str(REPOSITORY / "tests" / suite)], timeout=1100)
    counts = ElementTree.parse(report).getroot()[0].attrib
    assert int(counts["skipped"]) == 0
    assert int(counts["tests"]) >= least


@pytest.mark.parametrize("snapshotter", ["overlayfs", "native"])
@pytest.mark.parametrize("network", ["none", "host"])
def test_the_command_runs_a_container_and_leaves_nothing(
    user: OrdinaryUser, small_image: str, snapshotter: str, network: str
) -> None:
    user.lamella("--snapshotter", snapshotter, "pull", "--plain-http", small_image)
    command = ["--snapshotter", snapshotter, "run", "--rm", "--network", network, small_image]
    script = "id -u; touch /made && echo made; echo to-stderr >&2; exit 3"
    found = user.lamella(*command, "/bin/sh", "-c", script, check=False)
    assert (found.returncode, found.stdout, found.stderr) == (3, "0\nmade\n", "to-stderr\n")
    assert user.lamella("ps", "--all", "--quiet").stdout == ""
