"""Values on the command line, and text for people."""

from __future__ import annotations

import time

import pytest

from lamella.cli import output, values
from lamella.sizes import format_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("10", 10),
        ("1.5", 1.5),
        ("30s", 30),
        ("5m", 300),
        ("1h30m", 5400),
        ("2d", 172800),
        ("0.5s", 0.5),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert values.parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "-1", "soon", "5x", "nan", "inf", "m5", "1h 30m"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        values.parse_duration(text)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-03-01T12:00:00Z", "2026-03-01T12:00:00.000000Z"),
        ("2026-03-01T12:00:00.5+02:00", "2026-03-01T10:00:00.500000Z"),
        ("2026-03-01T12:00", "2026-03-01T10:00:00.000000Z"),
        ("2026-03-01", "2026-02-28T22:00:00.000000Z"),
        ("1772366400", "2026-03-01T12:00:00.000000Z"),
        ("1772366400.25", "2026-03-01T12:00:00.250000Z"),
        ("10m", "2026-03-01T11:50:00.000000Z"),
        ("1h30m", "2026-03-01T10:30:00.000000Z"),
    ],
)
def test_moments_are_read_as_docker_reads_them(
    text: str, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "CAT-2")
    time.tzset()
    monkeypatch.setattr(time, "time_ns", lambda: 1_772_366_400_000_000_000)
    try:
        assert values.parse_moment(text) == moment
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("text", ["", "soon", "nan", "inf", "1e300", "-5m", "2026-13-01"])
def test_what_is_no_moment_is_said(text: str) -> None:
    with pytest.raises(ValueError, match="is not a time such as"):
        values.parse_moment(text)


@pytest.mark.parametrize(
    ("text", "count"), [("512m", 512 << 20), ("1.5g", 3 << 29), ("64KiB", 65536), ("10", 10)]
)
def test_sizes_are_read_as_docker_reads_them(text: str, count: int) -> None:
    assert values.parse_size(text) == count


@pytest.mark.parametrize("text", ["TERM", "sigterm", "SIGTERM", "15"])
def test_signals_by_any_name(text: str) -> None:
    assert values.parse_signal(text) == "SIGTERM"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (9_994, "9.99 kB"),
        (71_234_567, "71.2 MB"),
        (100_000, "100 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (240 * 1000**3, "240 GB"),
        (7 * 1000**6, "7000 PB"),
    ],
)
def test_sizes_have_three_digits(count: int, text: str) -> None:
    assert format_size(count) == text


@pytest.mark.parametrize(
    ("timestamp", "text"),
    [
        ("2025-01-01T00:00:00Z", "0 seconds ago"),
        ("2024-12-31T23:59:59Z", "1 second ago"),
        ("2024-12-31T23:59:00.123456789Z", "59 seconds ago"),
        ("2024-12-31T22:59:00+00:00", "1 hour ago"),
        ("2024-12-20T00:00:00Z", "1 week ago"),
        ("2022-12-20T00:00:00Z", "2 years ago"),
        ("2025-01-02T00:00:00Z", "in the future"),
        ("never", "-"),
        (None, "-"),
    ],
)
def test_ages(timestamp: str | None, text: str) -> None:
    assert output.age(timestamp, now=1_735_689_600.0) == text


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    text = output.table(("NAME", ">SIZE", "KIND"), [("a", "1 B", "view"), ("longer", "12.3 MB", "active")])
    assert text == "NAME       SIZE  KIND\na           1 B  view\nlonger  12.3 MB  active\n"


def test_a_table_without_rows_still_has_its_headings() -> None:
    assert output.table(("NAME", ">SIZE"), []) == "NAME  SIZE\n"


def test_text_from_outside_cannot_drive_the_terminal() -> None:
    evil = "a\x1b[2Jb\u202ec\nd\x9b"
    assert output.clean(evil) == "a\\x1b[2Jb\\u202ec\\nd\\x9b"
    assert "\x1b" not in output.table(("A",), [(evil,)])
    assert output.one_line("two\n  lines\x07") == "two lines\\x07"


def test_digests_are_cut_and_other_names_are_not() -> None:
    assert output.short("sha256:" + "a" * 64) == "sha256:" + "a" * 12
    assert output.short("nginx-readonly-snapshot") == "nginx-readonly-snapshot"
    assert output.short("") == "-"
