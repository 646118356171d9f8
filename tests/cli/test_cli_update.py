"""``lamella update``, and the limits of ``lamella run``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from program import Program

pytestmark = pytest.mark.privileged


def resources(lamella: Program, name: str) -> Any:
    return lamella("containers", "inspect", name).ok().document["spec"]["linux"]["resources"]


@pytest.mark.parametrize("words", [("update",), ("containers", "update")])
def test_limits_of_several_are_changed_at_once(pulled: tuple[Program, str], words: tuple[str, ...]) -> None:
    lamella, reference = pulled
    for name in ("one", "two"):
        lamella("run", "-d", "--name", name, "-m", "64m", reference, "sleep", "1000").ok()
    done = lamella(*words, "--memory", "128m", "--cpus", "0.5", "--pids-limit", "9", "one", "two").ok()
    assert done.out == "one\ntwo\n"
    for used in lamella("--json", "stats", "--no-stream").ok().document:
        assert (used["memory"]["limit"], used["pids"]["limit"]) == (128 << 20, 9)
    lamella(*words, "--memory", "-1", "--cpus", "0", "one").ok()
    assert resources(lamella, "one")["memory"]["limit"] == -1
    assert resources(lamella, "two")["cpu"]["quota"] == 50_000
    assert lamella(*words, "one").status == 2
    assert lamella(*words, "--memory", "1m", "one").status == 1


def test_run_takes_dockers_words_for_limits(pulled: tuple[Program, str]) -> None:
    lamella, reference = pulled
    limits = "-m 64m --memory-swap -1 --memory-reservation 32m --cpu-shares 512 --cpu-quota 20000 --cpu-period 50000 "
    limits += "--cpuset-cpus 0 --cpuset-mems 0 --pids-limit 9"
    lamella("run", "--name", "box", *limits.split(), reference, "true").ok()
    found = resources(lamella, "box")
    assert found["memory"] == {"limit": 64 << 20, "swap": -1, "reservation": 32 << 20}
    cpu = {"shares": 512, "quota": 20_000, "period": 50_000, "cpus": "0", "mems": "0"}
    assert (found["cpu"], found["pids"]) == (cpu, {"limit": 9})


def test_a_rate_needs_a_device(pulled: tuple[Program, str]) -> None:
    lamella, reference = pulled
    done = lamella("run", "--device-read-bps", "/dev/null:1m", reference, "true")
    assert done.status == 125
    assert "no block device" in done.err
