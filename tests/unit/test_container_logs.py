"""Reading a container's log: whole lines, in order, each once, while somebody writes and puts files aside."""

from __future__ import annotations

import base64
import json
import os
import threading
import time
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from lamella.containers import logs
from lamella.containers.log_config import LogConfig, parse_log_config
from lamella.containers.logs import read_log, select, with_times
from lamella.errors import InvalidArgument, Unsupported
from lamella.structs import decode, encode


class Writer:
    """Writes as the monitor does (rust/launcher/src/monitor/log_file.rs), one second a record."""

    def __init__(self, folder: Path, *, max_size: int = 10**9, max_file: int = 5) -> None:
        self.path = folder / "log.jsonl"
        self.max_size, self.max_file = max_size, max_file
        self.second = 0

    def write(self, text: str | bytes, stream: str = "stdout") -> None:
        record: dict[str, Any] = {"time": self.at(self.second), "stream": stream}
        self.second += 1
        if isinstance(text, bytes):
            record["log64"] = base64.b64encode(text).decode()
        else:
            record["log"] = text
        self.raw(json.dumps(record, separators=(",", ":")).encode() + b"\n")

    def raw(self, line: bytes) -> None:
        if self.path.exists() and 0 < self.path.stat().st_size > self.max_size - len(line):
            self.rotate()
        with self.path.open("ab") as file:
            file.write(line)

    def rotate(self) -> None:
        numbers = sorted(int(path.suffix[1:]) for path in self.path.parent.glob("log.jsonl.*"))
        if self.max_file > 1:
            numbers.append((numbers[-1] if numbers else 0) + 1)
            self.path.rename(f"{self.path}.{numbers[-1]}")
        else:
            self.path.unlink()
        for number in numbers[: max(0, len(numbers) + 1 - self.max_file)]:
            Path(f"{self.path}.{number}").unlink()

    @staticmethod
    def at(second: int) -> str:
        return f"2026-03-01T12:{second // 60 % 60:02}:{second % 60:02}.000000000Z"

    def read(self, **options: Any) -> list[str]:
        return [line.data.decode() for line in read_log(self.path, select(**options), name="box")]


@pytest.fixture
def writer(tmp_path: Path) -> Writer:
    return Writer(tmp_path)


def test_a_log_that_is_not_there_is_empty(writer: Writer) -> None:
    assert writer.read() == writer.read(tail=3) == []


def test_text_and_bytes_come_back_with_their_streams(writer: Writer) -> None:
    writer.write("out\n")
    writer.write(b"\xff\x00", "stderr")
    found = [(line.stream, line.data) for line in read_log(writer.path, select(), name="box")]
    assert found == [("stdout", b"out\n"), ("stderr", b"\xff\x00")]
    assert writer.read(stream="stdout") == ["out\n"]


def test_files_that_were_put_aside_are_read_first_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    writer = Writer(tmp_path, max_size=200, max_file=100)
    for number in range(60):
        writer.write(f"{number}\n")
    assert len(list(tmp_path.iterdir())) > 11  # .2 is before .10
    assert writer.read() == [f"{number}\n" for number in range(60)]


@pytest.mark.parametrize("rubbish", [b"\n", b'{"time":"2026', b"\0" * 600_000, b"[]", b'"\xff"'])
def test_what_is_no_record_is_passed_over_and_what_is_not_finished_waits(
    writer: Writer, rubbish: bytes
) -> None:
    writer.write("one\n")
    with writer.path.open("ab") as file:
        file.write(rubbish)
    assert writer.read() == ["one\n"]
    assert writer.read(tail=5) == ["one\n"]
    with writer.path.open("ab") as file:
        file.write(b"\n")
    writer.write("two\n")
    assert writer.read() == ["one\n", "two\n"]
    assert writer.read(tail=1) == ["two\n"]
    assert writer.read(tail=2) == ["one\n", "two\n"]


@pytest.mark.parametrize("size", [10**9, 300])
def test_tail_counts_lines_over_files_and_blocks(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "_BLOCK", 211)
    writer = Writer(tmp_path, max_size=size, max_file=1000)
    lines = [f"{number} {'x' * (number % 7)}\n" for number in range(40)]
    for line in lines:
        writer.write(line)
    for count in (0, 1, 2, 7, 39, 40, 41, 1000):
        assert writer.read(tail=count) == lines[len(lines) - count if count < len(lines) else 0 :]
    assert writer.read(tail="all") == lines


def test_a_line_in_pieces_is_one_line_of_a_tail(writer: Writer) -> None:
    for text, stream in [
        ("zero\n", "stdout"),
        ("one ", "stdout"),
        ("err ", "stderr"),
        ("one\n", "stdout"),
        ("err\n", "stderr"),
        ("two", "stdout"),
    ]:
        writer.write(text, stream)
    assert writer.read(tail=1) == ["two"]
    assert writer.read(tail=2) == ["err\n", "two"]  # its beginning stands before a line that is not wanted
    assert writer.read(tail=3) == ["one ", "err ", "one\n", "err\n", "two"]
    assert writer.read(tail=2, stream="stdout") == ["one ", "one\n", "two"]
    assert writer.read(tail=1, stream="stderr") == ["err ", "err\n"]


def test_since_and_until_take_their_own_moment_in(writer: Writer) -> None:
    for number in range(10):
        writer.write(f"{number}\n")
    start = datetime(2026, 3, 1, 12, tzinfo=UTC)
    assert writer.read(since=start + timedelta(seconds=7)) == ["7\n", "8\n", "9\n"]
    assert writer.read(until=Writer.at(1)) == ["0\n", "1\n"]
    assert writer.read(since=start.timestamp() + 4, until="2026-03-01T13:00:05+01:00") == ["4\n", "5\n"]
    assert writer.read(until=start.astimezone(timezone(timedelta(hours=-8))), tail=5) == ["0\n"]
    assert writer.read(since=Writer.at(2), until=Writer.at(5), tail=2) == ["4\n", "5\n"]
    assert writer.read(since=Writer.at(8), tail=5) == ["8\n", "9\n"]


def test_times_stand_in_front_of_lines_and_not_within_one(writer: Writer) -> None:
    for text, stream in [("a", "stdout"), ("e\n", "stderr"), ("b\n", "stdout"), ("c\n", "stdout")]:
        writer.write(text, stream)
    texts = [data.decode() for _, data in with_times(read_log(writer.path, select(), name="box"))]
    at = [Writer.at(second) for second in range(4)]
    assert texts == [f"{at[0]} a", f"{at[1]} e\n", "b\n", f"{at[3]} c\n"]


class Follower:
    """Reads in a thread until it is told that all is there."""

    def __init__(self, writer: Writer, **options: Any) -> None:
        self.lines: list[str] = []
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._run, args=(writer, options))
        self.thread.start()

    def _run(self, writer: Writer, options: dict[str, Any]) -> None:
        for line in read_log(writer.path, select(**options), name="box", is_complete=self.ended.is_set):
            self.lines.append(line.data.decode())

    def finish(self) -> list[str]:
        self.ended.set()
        self.thread.join(30)
        assert not self.thread.is_alive()
        return self.lines


def test_a_follower_sees_every_line_once_while_files_are_put_aside(tmp_path: Path) -> None:
    writer = Writer(tmp_path, max_size=400, max_file=10**6)
    follower = Follower(writer)
    for number in range(3000):
        writer.write(f"{number}\n")
        if number % 500 == 0:
            time.sleep(0.02)
    assert follower.finish() == [f"{number}\n" for number in range(3000)]


def test_followers_that_begin_at_any_moment_miss_nothing_after_it(tmp_path: Path) -> None:
    writer = Writer(tmp_path, max_size=300, max_file=10**6)
    followers = []
    for number in range(1200):
        if number % 100 == 50:
            followers.append((number, Follower(writer, tail=1)))
        writer.write(f"{number}\n")
    for begun, follower in followers:
        lines = follower.finish()
        first = int(lines[0])
        assert first >= begun - 1
        assert lines == [f"{number}\n" for number in range(first, 1200)]


def test_a_follower_that_is_too_slow_is_told_what_it_missed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = Writer(tmp_path, max_size=300, max_file=2)
    for number in range(3):
        writer.write(f"{number}\n")
    lines = read_log(writer.path, select(), name="box", is_complete=lambda: True)
    assert next(lines).data == b"0\n"
    for number in range(3, 50):
        writer.write(f"{number}\n")
    rest = [int(line.data) for line in lines]
    assert rest == [1, 2, 3, *range(rest[3], 50)]
    assert rest[3] > 4
    assert "removed before it was read" in caplog.text


def test_a_follower_of_an_older_file_is_told_of_those_that_went_behind_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = Writer(tmp_path, max_size=300, max_file=3)
    for number in range(8):
        writer.write(f"{number}\n")
    lines = read_log(writer.path, select(), name="box", is_complete=lambda: True)
    assert next(lines).data == b"0\n"
    for number in range(8, 50):
        writer.write(f"{number}\n")
    rest = [int(line.data) for line in lines]
    assert rest == [1, 2, 3, *range(rest[3], 50)]
    assert "removed before it was read" in caplog.text


def test_what_is_written_between_the_last_look_and_the_renaming_is_read(
    writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    following = logs._Reader._following

    def write_first(self: Any, file: Any) -> Any:
        if writer.second == 1:
            writer.write("two\n")
            writer.rotate()
            writer.write("three\n")
        return following(self, file)

    monkeypatch.setattr(logs._Reader, "_following", write_first)
    writer.write("one\n")
    assert writer.read() == ["one\n", "two\n", "three\n"]


def test_a_record_counts_when_its_newline_is_there(writer: Writer) -> None:
    writer.write("one\n")
    writer.write("two\n")
    os.truncate(writer.path, writer.path.stat().st_size - 1)
    assert writer.read() == writer.read(tail=1) == ["one\n"]


def test_output_that_could_not_be_logged_is_told_in_its_place(
    writer: Writer, caplog: pytest.LogCaptureFixture
) -> None:
    writer.write("one\n")
    writer.raw(b'{"time":"2026-03-01T12:00:01.000000000Z","stream":"lamella","lost":77}\n')
    writer.write("two\n")
    assert writer.read() == writer.read(tail=2) == ["one\n", "two\n"]
    assert "77 bytes of its output could not be logged" in caplog.text


def test_what_was_taken_back_is_not_read(writer: Writer) -> None:
    writer.write("one\n")
    ended = threading.Event()
    lines = read_log(writer.path, select(), name="box", is_complete=ended.is_set)
    assert next(lines).data == b"one\n"
    length = writer.path.stat().st_size
    with writer.path.open("ab") as file:
        file.write(b'{"time":"2026-03-01T12:00:09.000000000Z","stream":"stdout","lo')

    def take_back() -> None:
        time.sleep(0.1)  # by now the half one was looked at
        os.truncate(writer.path, length)
        writer.write("two\n")
        ended.set()

    thread = threading.Thread(target=take_back)
    thread.start()
    assert [line.data for line in lines] == [b"two\n"]
    thread.join()


def test_a_follower_ends_at_until(writer: Writer) -> None:
    writer.write("one\n")
    found = list(read_log(writer.path, select(until=time.time()), name="box", is_complete=lambda: False))
    assert [line.data for line in found] == [b"one\n"]


@pytest.mark.parametrize(
    "options",
    [
        {"stream": "stdin"},
        {"tail": -1},
        {"tail": "some"},
        {"tail": True},
        {"since": "yesterday"},
        {"until": 1e300},
        {"since": [1]},
    ],
)
def test_what_cannot_be_asked_for_is_an_invalid_argument(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        select(**options)


def test_the_log_is_configured_in_dockers_words() -> None:
    assert parse_log_config(None) == LogConfig(driver="json-file", max_size=10 << 20, max_file=5)
    assert parse_log_config({"type": "none"}).driver == "none"
    found = parse_log_config({"Type": "json-file", "Config": {"max-size": "1m", "max-file": "3"}})
    assert (found.max_size, found.max_file) == (1 << 20, 3)
    assert parse_log_config({"config": {"max-size": -1}}).max_size is None
    for config in (LogConfig(), found, LogConfig(max_size=None)):
        assert decode(encode(config), LogConfig) == config


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ("json-file", InvalidArgument),
        ({"type": "syslog"}, Unsupported),
        ({"driver": "none"}, InvalidArgument),
        ({"config": {"labels": "a"}}, Unsupported),
        ({"type": "none", "config": {"max-size": "1m"}}, Unsupported),
        ({"config": {"max-size": "0"}}, InvalidArgument),
        ({"config": {"max-size": "big"}}, InvalidArgument),
        ({"config": {"max-file": 0}}, InvalidArgument),
        ({"config": {"max-file": "x"}}, InvalidArgument),
    ],
)
def test_another_driver_option_or_value_is_refused(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        parse_log_config(value)
