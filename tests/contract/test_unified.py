"""Containers where cgroup v2 is all there is, with every controller that they are limited by: on a machine of its own.

What runs there are tests that run on this machine too, with whatever cgroups it has; crun's only there, where this one has v1.
The machines are slow, and each has one processor: they start before the other tests of this folder (conftest.py), and how it went
there is looked at after all tests.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import user_mode
from outcomes import Outcome, deselecting, of_module

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.beside,
    pytest.mark.needs_program(*user_mode.PROGRAMS, "crun", "runc"),
    pytest.mark.timeout(3000),
]
SECONDS = 2900

TESTS = (
    "tests/contract/test_runtimes.py",
    "tests/privileged/test_container_cgroups.py",
    "tests/privileged/test_container_statistics.py",
    "tests/privileged/test_launcher_limits.py",
)
OF_USERS = "tests/privileged/test_delegated_cgroups.py"
"""What an ordinary user does with a cgroup that was delegated; it runs there only, where this machine has v1."""
NOT_THERE = {
    "test_file_cache_that_can_be_given_back_is_not_counted_as_use": "its files are in memory alone",
    "test_a_program_sees_the_same": "it does not come to its end in its time there",
    "test_an_ulimit_that_cannot_be_raised_so_far_is_a_warning_or_refused": "root may raise any",
    "MappedIds": "what is in memory alone can be shown with mapped ids since Linux 6.3",
    "mapped_ids": "the same",
    "with_ids_of_its_own": "the same",
    "test_a_runtime_joins_networks": "the same",
}
SKIPPED = (
    "cgroup v2 has neither",
    "v1 has a hierarchy for each controller",
    "a hybrid machine has both",
    "the folder is seen through one mount there",
    "the v2 hierarchy has no controller hugetlb",
    "no cgroup v2 hierarchy has the controller hugetlb",
    "this machine has no cgroup controller cpuset",
)
"""Why tests may be skipped there: they are about v1, or about a controller that the machine has not."""
CRUN = 36
"""So many tests has the contract, at least."""


ON_DISK = "TestCrunWithMappedIds or with_mapped_ids or with_ids_of_its_own or file_cache"
"""What takes files on a disk, and runs on a second machine that has one."""


def start(folder: Path) -> tuple[user_mode.Tests, user_mode.Tests]:
    """Start both machines; what they need of this one is there."""
    (folder / "memory").mkdir()
    (folder / "on-disk").mkdir()
    return (
        user_mode.Tests(folder / "memory", *TESTS, OF_USERS, "-k", deselecting(NOT_THERE)),
        user_mode.Tests(folder / "on-disk", *TESTS, "-k", ON_DISK, disk=True),
    )


@pytest.fixture(scope="module")
def outcomes(machines: tuple[user_mode.Tests, user_mode.Tests]) -> list[Outcome]:
    found, output = machines[0].outcomes(SECONDS)
    assert found, output
    return found


@pytest.mark.parametrize("module", [*(Path(path).stem for path in TESTS)])
def test_all_that_containers_promise_holds_with_cgroup_v2_alone(outcomes: list[Outcome], module: str) -> None:
    of_it = of_module(outcomes, module)
    assert sum(outcome.how == "passed" for outcome in of_it) > 5
    failed = [f"{outcome.name}\n{outcome.why}" for outcome in of_it if outcome.how == "failed"]
    assert not failed, f"{len(failed)} tests failed there:\n" + "\n\n".join(failed)
    skipped = {outcome.why.rpartition(": ")[2] for outcome in of_it if outcome.how == "skipped"}
    assert skipped <= set(SKIPPED)


def test_a_user_has_limits_within_a_cgroup_that_was_delegated(outcomes: list[Outcome]) -> None:
    of_it = of_module(outcomes, Path(OF_USERS).stem)
    assert [f"{outcome.name}\n{outcome.why}" for outcome in of_it if outcome.how != "passed"] == []
    assert len(of_it) >= 6


def test_crun_keeps_the_whole_contract(outcomes: list[Outcome]) -> None:
    ran = [outcome for outcome in outcomes if outcome.module.endswith("TestCrun")]
    assert len([outcome for outcome in ran if outcome.how == "passed"]) >= CRUN


def test_crun_keeps_the_whole_contract_with_ids_of_its_own(
    machines: tuple[user_mode.Tests, user_mode.Tests],
) -> None:
    """What is shown with mapped ids there lies on a disk, and so does the file whose cache is counted."""
    ran, output = machines[1].outcomes(SECONDS)
    assert [f"{outcome.name}\n{outcome.why}" for outcome in ran if outcome.how == "failed"] == [], output
    passed = [outcome for outcome in ran if outcome.how == "passed"]
    assert sum(outcome.module.endswith("TestCrunWithMappedIds") for outcome in passed) >= CRUN
    assert any("file_cache" in outcome.name for outcome in passed)
