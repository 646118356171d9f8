"""``lamella events``."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from typing import IO, TYPE_CHECKING, Any

import pytest

import lamella

if TYPE_CHECKING:
    from program import Program

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z (\S+) (/\S+) (\{.*\})\n")


def read_line(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    return process.stdout.readline()


def parts(line: str) -> tuple[str, str, dict[str, Any]]:
    match = LINE.fullmatch(line)
    assert match, line
    return match[1], match[2], json.loads(match[3])


def test_a_line_an_event_as_ctr_prints_them(lamella: Program) -> None:
    lamella("namespaces", "create", "--label", "a=b", "one").ok()
    lamella("snapshots", "prepare", "key").ok()
    lines = lamella("events", "--no-follow", "-A").ok().out.splitlines(keepends=True)
    assert [parts(line) for line in lines] == [
        ("one", "/namespaces/create", {"name": "one", "labels": {"a": "b"}}),
        ("default", "/namespaces/create", {"name": "default", "labels": {}}),
        ("default", "/snapshot/prepare", {"key": "key", "parent": "", "snapshotter": "overlayfs"}),
    ]


def test_json_gives_an_object_a_line(lamella: Program) -> None:
    lamella("namespaces", "create", "one").ok()
    lamella("snapshots", "prepare", "key").ok()
    found = [
        json.loads(line) for line in lamella("--json", "events", "--no-follow", "-A").ok().out.splitlines()
    ]
    assert [list(event) for event in found] == [["number", "timestamp", "namespace", "topic", "event"]] * 3
    assert [event["number"] for event in found] == [1, 2, 3]


def test_shows_the_namespace_that_is_asked_for(lamella: Program) -> None:
    for name in ("one", "two"):
        lamella("namespaces", "create", name).ok()
    assert '"name":"one"' in lamella("-n", "one", "events", "--no-follow").ok().out
    assert '"name":"two"' not in lamella("-n", "one", "events", "--no-follow").ok().out


def test_filters_times_and_numbers(lamella: Program) -> None:
    for name in ("one", "two", "three"):
        lamella("namespaces", "create", name).ok()

    def names(*words: str) -> list[str]:
        out = lamella("--json", "events", "--no-follow", "-A", *words).ok().out
        return [json.loads(line)["event"]["name"] for line in out.splitlines()]

    assert names("event.name==two", "namespace==one") == ["one", "two"]
    assert names("--after", "1") == ["two", "three"]
    assert names("--since", "1h") == ["one", "two", "three"]
    assert names("--until", "1h") == []
    assert names("--since", "2100-01-01") == []


def test_it_follows_a_store_from_before_its_first_event_and_ctrl_c_ends_it(lamella: Program) -> None:
    with lamella.start("--json", "events", "-A", "--after", "0") as follower:
        lamella("namespaces", "create", "one").ok()
        assert json.loads(read_line(follower))["event"]["name"] == "one"
        lamella("namespaces", "create", "two").ok()
        assert json.loads(read_line(follower))["event"]["name"] == "two"
        follower.send_signal(signal.SIGINT)
        assert follower.wait(60) == 130
        assert follower.stderr is not None
        assert follower.stderr.read() == b""


def test_a_reader_that_goes_away_ends_it_with_141(lamella: Program) -> None:
    with lamella.start("events", "-A", "--after", "0") as follower:
        lamella("namespaces", "create", "one").ok()
        read_line(follower)
        pipe: IO[bytes] | None = follower.stdout
        assert pipe is not None
        pipe.close()
        lamella("namespaces", "create", "two").ok()
        assert follower.wait(60) == 141


def test_it_needs_no_event_to_see_that_its_reader_has_gone(lamella: Program) -> None:
    with lamella.start("events", "-A", "--after", "0") as follower:
        lamella("namespaces", "create", "one").ok()
        read_line(follower)
        assert follower.stdout is not None
        follower.stdout.close()
        assert follower.wait(60) == 141


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--since", "soon"], 2, "'soon' is not a time such as"),
        (["--since", "1h", "--after", "1"], 2, "not allowed with"),
        (["topic=x"], 1, "filter"),
        (["--after", "7"], 1, "there is no event 7 yet"),
    ],
)
def test_mistakes_have_a_status_and_a_line(
    lamella: Program, words: list[str], status: int, message: str
) -> None:
    done = lamella("events", "--no-follow", *words)
    assert done.status == status
    assert message in done.err


def test_a_follower_that_was_too_slow_says_what_it_missed(lamella: Program) -> None:
    with _client(lamella) as client, client.database.write() as db:
        db.executemany(
            "INSERT INTO events (at, namespace, topic, data) VALUES ('x', 'default', '/x', '{}')",
            [()] * 40_000,
        )
    done = lamella("events", "--no-follow", "--after", "1")
    assert done.status == 1
    assert re.search(r"events 2 to \d+ were dropped", done.err)
    assert "hint: " in done.err


def _client(program: Program) -> Any:
    return lamella.Client(root=program.root, state=program.state)
