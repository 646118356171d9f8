"""``run --restart``, ``run --init``, ``containers restart``: what the command line adds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from waiting import until

if TYPE_CHECKING:
    from program import Program

pytestmark = [pytest.mark.privileged, pytest.mark.rootless]
COUNT = "n=$(cat /n 2>/dev/null || echo 0); n=$((n+1)); echo $n > /n; echo run $n; "


def test_a_container_in_the_foreground_is_run_again_and_its_last_status_counts(
    pulled: tuple[Program, str],
) -> None:
    lamella, reference = pulled
    script = COUNT + "exit $((5 - n))"
    done = lamella("run", "--name", "box", "--restart", "on-failure", reference, "sh", "-c", script)
    assert (done.status, done.out) == (0, "".join(f"run {number}\n" for number in range(1, 6)))
    document = lamella("containers", "inspect", "box").ok().document
    assert (document["restart_policy"], document["restart_count"]) == ("on-failure", 4)
    done = lamella("run", "--restart", "on-failure:1", reference, "sh", "-c", COUNT + "exit 3")
    assert (done.status, done.out) == (3, "run 1\nrun 2\n")


def test_one_that_waits_is_listed_so_and_can_be_stopped(pulled: tuple[Program, str]) -> None:
    lamella, reference = pulled
    lamella("run", "-d", "--name", "box", "--restart", "always", reference, "sh", "-c", "exit 4").ok()
    until(lambda: "restarting (4)" in lamella("ps").ok().out)
    until(lambda: lamella("containers", "inspect", "box").ok().document["restart_count"] >= 5)
    done = lamella("containers", "exec", "box", "true")
    assert (done.status, "waits to be run again" in done.err) == (125, True)
    assert lamella("containers", "stop", "box").ok().out == "box\n"
    assert "stopped (4)" in lamella("ps", "-a").ok().out


def test_a_policy_and_rm_exclude_each_other(pulled: tuple[Program, str]) -> None:
    lamella, reference = pulled
    assert lamella("run", "--rm", "--restart", "always", reference, "true").status == 125
    assert lamella("run", "--rm", "--restart", "no", reference, "true").status == 0
    done = lamella("run", "--restart", "sometimes", reference, "true")
    assert (done.status, "sometimes" in done.err) == (125, True)


def test_restart_ends_and_starts(pulled: tuple[Program, str]) -> None:
    lamella, reference = pulled
    lamella("run", "-d", "--name", "box", reference, "sh", "-c", COUNT + "exec sleep 600").ok()
    until(lambda: lamella("logs", "box").ok().out == "run 1\n")
    assert lamella("containers", "restart", "-t", "0", "box").ok().out == "box\n"
    until(lambda: lamella("logs", "box").ok().out == "run 1\nrun 2\n")


def test_an_init_is_asked_for_by_its_option(pulled: tuple[Program, str]) -> None:
    lamella, reference = pulled
    script = "read name < /proc/1/comm; echo $name"
    assert lamella("run", "--rm", "--init", reference, "sh", "-c", script).ok().out == "lamella-init\n"
    assert lamella("run", "--rm", reference, "sh", "-c", script).ok().out == "sh\n"


@pytest.mark.needs_root  # a cgroup freezes it
def test_ps_takes_dockers_filters(pulled: tuple[Program, str]) -> None:
    lamella, reference = pulled
    lamella("run", "-d", "--name", "box", "--label", "job=7", reference, "sleep", "300").ok()
    lamella("create", "--name", "other", "--label", "job=7", reference, "true").ok()
    box = lamella("ps", "-q", "-f", "label=job=7").ok().out
    assert lamella("ps", "-q", "--no-trunc", "--filter", "status=running").ok().out == box
    assert "other" in lamella("ps", "--filter", "status=created").ok().out
    assert lamella("ps", "--filter", "health=healthy").status == 1
    lamella("pause", "box").ok()
    assert "paused" in lamella("ps").ok().out
    (row,) = lamella("--json", "ps", "-l").ok().document
    assert row["name"] == "other"
    assert len(lamella("ps", "-n", "2", "-q").ok().out.split()) == 2
    assert box.strip() in lamella("ps", "--no-trunc").ok().out
    lamella("update", "--restart", "on-failure:3", "box").ok()
    assert lamella("containers", "inspect", "box").ok().document["restart_policy"] == "on-failure:3"
