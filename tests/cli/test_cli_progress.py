"""Progress, on stderr: bars on a terminal, lines for a log, and what is left of them."""

from __future__ import annotations

import json
import random
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from terminal import Terminal

from gate import Gate
from lamella import Progress
from lamella.cli.commands import SECTIONS, find
from lamella.cli.parser import Group
from lamella.cli.progress import INTERVAL, Lines, Whole, duration
from lamella.registry.server import RegistryServer
from lamella.transfer.totals import Totals
from layers import Built, file, tar

if TYPE_CHECKING:
    from program import Program

MB = 1_000_000


@pytest.fixture
def held() -> Iterator[Callable[..., AbstractContextManager[tuple[str, Gate]]]]:
    """Give a context in which a registry sends so many bytes of an image a connection, and no more.

    A layer is too small for parts of it to be fetched on further connections.
    """

    @contextmanager
    def serve(layers: int = 3, size: int = 2 * MB, limit: int = MB) -> Iterator[tuple[str, Gate]]:
        built = Built(
            *(tar(file(f"{number}", random.Random(number).randbytes(size))) for number in range(layers)),
            compression="none",
        )
        with RegistryServer() as server:
            built.push(server)
            with Gate(server.address, limit) as gate:
                yield f"{gate.address}/made:latest", gate

    return serve


def is_at_work(screen: list[str]) -> bool:
    return any("left" in line for line in screen)


# On a terminal


@pytest.mark.privileged
@pytest.mark.rootless
def test_a_terminal_shows_every_layer_and_the_whole(lamella: Program, held: Any) -> None:
    with held() as (reference, gate), Terminal(lamella.argv("--json", "pull", reference)) as terminal:
        *bars, whole, last = terminal.wait_for(is_at_work)
        assert last == ""
        assert len(bars) == 3
        assert all(
            re.search(r"^sha256:[0-9a-f]{12} (fetching|queued) .* [0-9.]+ [kM]?B of 2\.01 MB$", line)
            for line in bars
        )
        assert re.fullmatch(
            r"total: [0-9.]+ [kM]?B of 6\.02 MB, 0/3 layers, [0-9.]+ [kM]?B/s, [0-9hms]+ left", whole
        )
        gate.open()
        status, out = terminal.end()
        assert (status, terminal.screen()) == (0, [""])
    document = json.loads(out)
    for layer in document["layers"]:
        assert layer["digest"][:19].encode() in terminal.raw


@pytest.mark.privileged
@pytest.mark.rootless
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, -15), (signal.SIGINT, 130), (signal.SIGKILL, -9)]
)
def test_a_pull_that_is_ended_leaves_the_terminal_as_it_was(
    lamella: Program, held: Any, number: signal.Signals, status: int
) -> None:
    with held() as (reference, gate), Terminal(lamella.argv("pull", reference)) as terminal:
        terminal.wait_for(is_at_work)
        terminal.process.send_signal(number)
        assert terminal.end() == (status, b"")
        assert not gate.is_open
        hidden, shown = terminal.raw.rfind(b"\x1b[?25l"), terminal.raw.rfind(b"\x1b[?25h")
        assert hidden <= shown
        *_, last = terminal.screen()  # where a shell goes on
        assert last == ""


@pytest.mark.privileged
@pytest.mark.rootless
@pytest.mark.parametrize("columns", [60, 40, 16])
def test_a_narrow_terminal_shows_what_fits(lamella: Program, held: Any, columns: int) -> None:
    """The screen itself fails for lines that are wider than the terminal."""
    with held() as (reference, gate), Terminal(lamella.argv("pull", reference), columns=columns) as terminal:
        screen = terminal.wait_for(lambda screen: any("%" in line or "B/s" in line for line in screen))
        assert len(screen) == 5
        assert sum(line.startswith("sha256:") for line in screen) == 3
        assert ("fetching" in screen[0]) is (columns >= 40)
        assert screen[3].startswith("total: ")
        assert ("B/s" in screen[3]) is (columns >= 40)
        gate.open()
        assert terminal.end()[0] == 0


@pytest.mark.privileged
@pytest.mark.rootless
@pytest.mark.parametrize("lines", [24, 4])
def test_many_layers_leave_room_for_those_at_work_and_the_whole(
    lamella: Program, held: Any, lines: int
) -> None:
    with (
        held(layers=50, size=300_000, limit=MB) as (reference, gate),
        Terminal(lamella.argv("pull", reference), lines=lines) as terminal,
    ):
        screen = terminal.wait_for(
            lambda screen: (
                is_at_work(screen) and sum("fetching" in line for line in screen) == min(5, lines - 3)
            )
        )
        assert len(screen) == lines - 1
        assert re.match(r"total: .* [kM]?B of 15\.\d MB, \d+/50 layers, ", screen[-2])
        gate.open()
        assert terminal.end()[0] == 0
        assert terminal.screen() == [""]


@pytest.mark.privileged
@pytest.mark.rootless
def test_no_color_is_heard(lamella: Program, small_image: str) -> None:
    colour = re.compile(rb"\x1b\[(?:\d+;)*(?:3|4|9|10)\d[;m\d]")
    with Terminal(lamella.argv("pull", small_image)) as terminal:
        assert terminal.end()[0] == 0
        assert colour.search(terminal.raw)
    lamella("images", "rm", "--sync", small_image).ok()
    with Terminal(lamella.argv("pull", small_image), NO_COLOR="1") as terminal:
        assert terminal.end()[0] == 0
        assert b"total: " in terminal.raw
        assert not colour.search(terminal.raw)


@pytest.mark.privileged
@pytest.mark.rootless
def test_a_terminal_that_cannot_move_its_cursor_gets_lines(lamella: Program, small_image: str) -> None:
    with Terminal(lamella.argv("pull", "--progress", "tty", small_image), TERM="dumb") as terminal:
        assert terminal.end()[0] == 0
        *lines, whole, last = terminal.screen()
    assert b"\x1b" not in terminal.raw
    assert len(lines) == 3
    assert all(re.fullmatch(r"sha256:[0-9a-f]{12}: done, [0-9.]+ [kM]?B", line) for line in lines)
    assert re.fullmatch(r"total: .* MB of .* MB, 3/3 layers, .*/s, in \d+\.\d s", whole)
    assert last == ""


@pytest.mark.privileged
@pytest.mark.rootless
@pytest.mark.parametrize(
    "words", [("-q", "pull"), ("pull", "--progress", "none"), ("-q", "pull", "--progress", "tty")]
)
def test_nothing_is_shown_to_who_wants_none(
    lamella: Program, small_image: str, words: tuple[str, ...]
) -> None:
    with Terminal(lamella.argv(*words, small_image)) as terminal:
        status, out = terminal.end()
        assert (status, terminal.raw) == (0, b"")
    assert out.decode().startswith(small_image)


# Elsewhere


@pytest.mark.privileged
@pytest.mark.rootless
def test_without_a_terminal_nothing_is_shown_unless_it_is_asked_for(
    lamella: Program, small_image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")  # whoever runs this
    assert lamella("pull", small_image).ok().err == ""
    said = lamella("pull", "--progress", "plain", small_image).ok().err.splitlines()
    assert [line.partition(": ")[2] for line in said[:-1]] == ["there already"] * 3
    assert re.fullmatch(r"total: .* MB of .* MB, 3/3 layers, in [0-9.]+ s", said[-1])
    assert "\x1b[2K" in lamella("pull", "--progress", "tty", small_image).ok().err


@pytest.mark.privileged
@pytest.mark.rootless
def test_lines_go_to_stderr_and_the_document_to_stdout(lamella: Program, small_image: str) -> None:
    result = lamella("--json", "pull", "--progress", "plain", small_image).ok()
    assert result.document["layers"]
    assert "3/3 layers" in result.err


@pytest.mark.privileged
@pytest.mark.rootless
def test_every_transfer_says_what_it_does(pulled: tuple[Program, str], tmp_path: Any) -> None:
    lamella, reference = pulled
    archive = str(tmp_path / "archive.tar")
    with RegistryServer() as server:
        for words, whole in (
            (("push", "--progress", "plain", reference, f"{server.address}/app:1"), "4/4 blobs"),
            (
                ("copy", "--progress", "plain", f"{server.address}/app:1", f"{server.address}/copy:1"),
                "4/4 blobs",
            ),
            (("export", "--progress", "plain", "-o", archive, reference), "4/4 blobs"),
            (("import", "--progress", "plain", "--tag", "imported", archive), "3/3 layers"),
            (
                ("images", "convert", "--progress", "plain", "--compression", "zstd", reference, "converted"),
                "3/3 layers",
            ),
        ):
            said = lamella(*words).ok().err
            assert whole in said.splitlines()[-1], words
            assert said.startswith("sha256:"), words
    assert lamella("fsck", "--progress", "plain").ok().err == ""


def test_every_command_that_transfers_has_the_option() -> None:
    found = set()
    for _, entries in SECTIONS:
        for entry in entries:
            noun = find(entry.name)
            commands = (
                [(f"{noun.name} {verb.name}", verb) for verb in noun.commands]
                if isinstance(noun, Group)
                else [(noun.name, noun)]
            )
            found |= {
                name
                for name, command in commands
                if any(
                    "--progress" in action.option_strings for action in command.parser(name).full().options()
                )
            }
    assert found == {
        "pull",
        "push",
        "copy",
        "import",
        "export",
        "images convert",
        "run",
        "containers create",
        "create",
        "fsck",
    }


def test_another_word_is_a_wrong_command_line(lamella: Program) -> None:
    result = lamella("pull", "--progress", "fancy", "nginx")
    assert result.status == 2
    assert "'auto', 'tty', 'plain', 'none'" in result.err


# Lines and words, by a clock that the test moves


class Log:
    def __init__(self) -> None:
        self.now = 0.0
        self.said: list[str] = []
        self.lines = Lines(self.said.append, clock=lambda: self.now)

    def show(self, name: str, phase: Any, count: int = 0, size: int = 10 * MB, **total: Any) -> list[str]:
        """Take a report in; give what is said because of it."""
        before = len(self.said)
        whole = Totals(**({"blobs": 2, "size": 20 * MB} | total))
        self.lines.show(Progress(phase=phase, digest=name, received=count, size=size, total=whole))
        return self.said[before:]


def test_a_log_has_a_line_for_each_event_and_none_for_each_report() -> None:
    log = Log()
    assert log.show("", "resolving") == []
    assert log.show("a", "queued") == []
    assert log.show("a", "downloading", MB) == []
    assert log.show("a", "downloading", 2 * MB) == []
    assert log.show("b", "waiting") == ["b: waiting"]
    assert log.show("b", "waiting", MB) == []
    assert log.show("a", "done", 10 * MB) == ["a: done, 10.0 MB"]
    assert log.show("a", "unpacking", 10 * MB) == ["a: unpacking"]
    assert log.show("a", "done", 10 * MB) == ["a: done, 10.0 MB"]
    assert log.show("b", "exists", 10 * MB) == ["b: there already"]


def test_a_log_says_where_the_whole_stands_every_few_seconds_and_at_the_end() -> None:
    log = Log()
    said = []
    for tenth in range(1, 151):
        log.now = tenth / 10
        said += log.show(
            "a", "downloading", tenth * 10_000, received=tenth * 10_000, rate=1e5, seconds_left=75
        )
    assert said == [
        f"total: {size} of 20.0 MB, 0/2 layers, 100 kB/s, 1m15s left"
        for size in ("500 kB", "1.00 MB", "1.50 MB")
    ]
    assert INTERVAL == 5
    log.now = 20.0
    log.show("a", "done", received=20 * MB, done=2, moved=10 * MB, rate=9e9, seconds_left=0.0)
    log.said.clear()
    log.lines.end()
    assert log.said == ["total: 20.0 MB of 20.0 MB, 2/2 layers, 500 kB/s, in 20.0 s"]


def test_a_log_of_nothing_is_empty() -> None:
    log = Log()
    log.now = 60.0
    assert log.show("", "resolving", blobs=0, size=0) == []
    log.lines.end()
    assert log.said == []


def test_names_of_archives_cannot_drive_a_terminal() -> None:
    assert Log().show("\x1b[2Jlayer", "done") == ["\\x1b[2Jlayer: done, 10.0 MB"]


def test_what_does_not_fit_gives_way_to_a_percentage() -> None:
    whole = Whole()
    total = Totals(blobs=5, done=2, received=71 * MB, size=235 * MB, rate=12e6, seconds_left=13.6)
    whole.take(Progress(phase="downloading", digest="a", total=total))
    assert whole.line() == whole.line(60) == "total: 71.0 MB of 235 MB, 2/5 layers, 12.0 MB/s, 14s left"
    assert whole.line(50) == "total: 30%, 2/5 layers, 12.0 MB/s, 14s left"
    assert whole.line(36) == "total: 30%, 2/5 layers, 12.0 MB/s"
    assert whole.line(5) == "total: 30%"


def test_configs_make_the_layers_blobs() -> None:
    whole = Whole()
    config = "application/vnd.oci.image.config.v1+json"
    whole.take(Progress(phase="done", digest="a", media_type=config, total=Totals(blobs=1, done=1)))
    assert "1/1 blobs" in whole.line()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "1s"),
        (59.4, "59s"),
        (60, "1m00s"),
        (200, "3m20s"),
        (3599, "59m59s"),
        (3600, "1h00m"),
        (86399, "23h59m"),
        (183_600, "2d03h"),
        (9e9, "104166d16h"),
    ],
)
def test_time_is_shown_in_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text
