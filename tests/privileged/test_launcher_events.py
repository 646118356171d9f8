"""What a monitor tells of its task, line by line (lamella/events/spool.py takes it in)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from launcher_box import Box, Connection

pytestmark = pytest.mark.privileged


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    return tmp_path / "events/spool"


def target(spool: Path) -> dict[str, str]:
    return {"spool": str(spool), "namespace": "ns", "container": "box-id"}


def told(spool: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in spool.read_text().splitlines() if line]


def topics(spool: Path) -> list[str]:
    return [event["topic"] for event in told(spool)]


def ends(connection: Connection | None) -> None:
    assert connection is not None
    connection.collect()


def test_a_run_is_told_whole(box: Box, spool: Path) -> None:
    result = box.run("/bin/sh", "-c", "exit 3", events=target(spool))
    events = told(spool)
    assert [event["topic"] for event in events] == ["/tasks/create", "/tasks/start", "/tasks/exit"]
    assert {(event["namespace"], event["event"]["container_id"]) for event in events} == {("ns", "box-id")}
    create, start, end = (event["event"] for event in events)
    assert create["bundle"] == str(box.folder)
    assert create["pid"] == start["pid"] == end["pid"]
    assert (end["id"], end["exit_status"], end["exited_at"]) == ("box-id", 3, result.exit["exited_at"])
    assert [event["at"] for event in events] == sorted(event["at"] for event in events)


def test_a_held_container_is_created_before_it_starts(box: Box, spool: Path) -> None:
    _, connection = box.launch("/bin/true", hold=True, events=target(spool))
    assert topics(spool) == ["/tasks/create"]
    assert box.ask(op="start")["ok"] is True
    ends(connection)
    assert topics(spool) == ["/tasks/create", "/tasks/start", "/tasks/exit"]


def test_a_held_container_that_is_killed_was_never_started(box: Box, spool: Path) -> None:
    _, connection = box.launch("/bin/true", hold=True, events=target(spool))
    assert box.ask(op="kill", signal=9) == {"ok": True}
    ends(connection)
    assert topics(spool) == ["/tasks/create", "/tasks/exit"]
    assert told(spool)[-1]["event"]["exit_status"] == 137


def test_a_held_program_that_is_not_there_ends_with_127(box: Box, spool: Path) -> None:
    (box.lower / "program").write_text("#!/no/such\n")
    (box.lower / "program").chmod(0o755)
    _, connection = box.launch("/program", hold=True, events=target(spool))
    assert box.ask(op="start")["error"]["exit_code"] == 127
    ends(connection)
    assert topics(spool) == ["/tasks/create", "/tasks/exit"]
    assert told(spool)[-1]["event"]["exit_status"] == 127


def test_a_start_that_fails_is_not_told(box: Box, spool: Path) -> None:
    assert box.error("/no/such", events=target(spool))["exit_code"] == 127
    assert not spool.exists()


def test_the_end_of_an_exec_that_ends_with_the_container_stands_before_it(box: Box, spool: Path) -> None:
    box.start("/bin/sleep", "100", events=target(spool))
    assert box.exec("/bin/sleep", "100").document()["ok"] is True
    assert box.ask(op="kill", signal=9) == {"ok": True}
    box.await_end()
    events = [event["event"] for event in told(spool) if event["topic"] == "/tasks/exit"]
    assert [(event["id"] == "box-id", event["exit_status"]) for event in events] == [
        (False, 137),
        (True, 137),
    ]


def test_an_exec_that_ends_at_once_has_started_before(box: Box, spool: Path) -> None:
    box.start("/bin/sleep", "100", events=target(spool))
    for _ in range(20):
        box.exec("/bin/true").collect()
    one = ["/tasks/exec-added", "/tasks/exec-started", "/tasks/exit"]
    assert topics(spool)[2:] == one * 20
    ids = [event["event"].get("exec_id") or event["event"]["id"] for event in told(spool)[2:]]
    assert len(set(ids)) == 20
    assert ids == [each for each in dict.fromkeys(ids) for _ in one]


def test_an_exec_whose_output_is_held_open_is_told_when_it_ends(box: Box, spool: Path) -> None:
    box.start("/bin/sleep", "100", events=target(spool))
    box.exec("/bin/sh", "-c", "sleep 100 &").collect()
    (end,) = (event["event"] for event in told(spool) if event["topic"] == "/tasks/exit")
    assert end["exit_status"] == 0


def test_without_a_target_nothing_is_told(box: Box, spool: Path) -> None:
    assert box.run("/bin/true").code == 0
    assert not spool.parent.exists()


def test_a_target_that_is_not_absolute_is_refused(box: Box) -> None:
    assert box.error("/bin/true", events=target(Path("spool")))["kind"] == "InvalidArgument"


def test_the_spool_is_not_open_in_the_container_or_in_an_exec(box: Box, spool: Path) -> None:
    script = "ls -l /proc/self/fd"
    assert b"spool" not in box.sh(script, events=target(spool)).stdout
