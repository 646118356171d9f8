"""Logs of containers: kept while nobody looks, followed by whoever wants, and never in the way of the container."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import lamella
from chance import NIGHTLY
from lamella.errors import FailedPrecondition
from monitors import memory_of, monitor_of
from waiting import settled, until

pytestmark = [pytest.mark.privileged, pytest.mark.rootless]
MEBIBYTE = 1 << 20


@pytest.fixture
def start(client, image):
    boxes = []

    def call(script: str, **options: Any):
        box = client.containers.create(image, ["/bin/sh", "-c", script], **options)
        boxes.append(box)
        box.start()
        return box

    yield call
    for box in boxes:
        box.remove(force=True)


def text(pieces: Iterator[tuple[str, bytes]], stream: str | None = None) -> str:
    return b"".join(data for name, data in pieces if stream in (None, name)).decode()


def size_of(folder: Path) -> int:
    """Give the bytes of the logs in a folder, in which they are renamed and removed meanwhile."""
    sizes: dict[int, int] = {}
    for file in folder.glob("log*"):
        with suppress(FileNotFoundError):
            status = file.stat()
            sizes[status.st_ino] = status.st_size
    return sum(sizes.values())


def numbers(count: int, *, pause_every: int = 0) -> str:
    """Give a script that writes numbers, a line each."""
    pause = f"[ $((i % {pause_every})) = 0 ] && sleep 0.01; " if pause_every else ""
    return f"i=0; while [ $i -lt {count} ]; do echo $i; {pause}i=$((i+1)); done"


# What is kept


def test_a_burst_of_lines_is_kept_as_whole_lines(start, tmp_path):
    (tmp_path / "lines").write_text("".join(f"line {number} of many\n" for number in range(30000)))
    box = start("cat /data/lines", volumes=[f"{tmp_path}:/data:ro"])
    assert box.wait(60) == 0
    assert text(box.logs()) == (tmp_path / "lines").read_text()
    records = [json.loads(line) for line in box.task.log_path.read_text().splitlines()]
    assert len(records) >= 30000
    assert all(record["log"].count("\n") <= 1 for record in records)
    # A line may be in two where its rest kept the monitor waiting for 0.2 s: on a machine with much to do.
    for before, record in pairwise(records):
        if not record["log"].endswith("\n"):
            times = [datetime.fromisoformat(each["time"]) for each in (before, record)]
            assert (times[1] - times[0]).total_seconds() > 0.15


def test_a_prompt_is_seen_before_its_line_ends(start):
    box = start("printf 'continue? '; read answer", stdin=True)
    until(lambda: text(box.logs()) == "continue? ")
    box.kill()


def test_bytes_of_any_kind_come_back(start, tmp_path):
    data = os.urandom(300_000)
    (tmp_path / "data").write_bytes(data)
    box = start("cat /data/data >&2", volumes=[f"{tmp_path}:/data:ro"])
    assert box.wait(60) == 0
    assert b"".join(piece for _, piece in box.logs(stream="stderr")) == data


def test_a_log_is_kept_up_to_its_cap_and_what_is_kept_has_no_gap(start):
    box = start(numbers(20000), log_config={"config": {"max-size": "50k", "max-file": 3}})
    assert box.wait(60) == 0
    files = sorted(box.task.log_folder.glob("log.jsonl*"))
    assert len(files) == 3
    assert all(file.stat().st_size <= 50 * 1024 for file in files)
    lines = [int(line) for line in text(box.logs()).split()]
    assert lines == list(range(lines[0], 20000))
    assert text(box.logs(tail=1500)).split() == [str(number) for number in range(20000 - 1500, 20000)]


def test_a_container_keeps_its_log_over_starts_and_loses_it_with_its_removal(start):
    box = start("echo again")
    for _ in range(2):
        box.wait(30)
        box.start()
    box.wait(30)
    assert text(box.logs()) == "again\n" * 3
    folder = box.task.log_folder
    box.remove()
    assert not folder.exists()


def test_with_driver_none_nothing_is_kept(start):
    box = start("echo x", log_config={"type": "none"})
    assert box.wait(30) == 0
    assert list(box.task.log_folder.glob("log*")) == []
    with pytest.raises(FailedPrecondition, match="keeps no log"):
        box.logs()


@pytest.mark.needs_root  # a mount
def test_a_full_disk_stops_the_log_and_not_the_container(client, start, tmp_path, caplog):
    point = tmp_path / "small"
    box = client.containers.create(
        client.images.list()[0],
        ["/bin/sh", "-c", "read x; " + numbers(6000) + "; read x; echo last"],
        stdin=True,
    )
    try:
        # The log's folder is a disk of its own, of a quarter of what it is to hold.
        box.task.log_folder.mkdir(parents=True)
        point.mkdir()
        lamella._core.mount([("tmpfs", "tmpfs", ["size=128k"])], str(box.task.log_folder))
        with box.start(attach=True) as attached:
            attached.write_stdin(b"\n")
            output = b""
            for _, data in attached:
                output += data
                if output.endswith(b"5999\n"):
                    break
            assert output == b"".join(b"%d\n" % number for number in range(6000))
            kept = text(box.logs()).split()
            assert 0 < len(kept) < 6000
            assert kept == [str(number) for number in range(len(kept))]
            subprocess.run(["mount", "-o", "remount,size=8m", box.task.log_folder], check=True)
            attached.write_stdin(b"\n")
            assert list(attached) == [("stdout", b"last\n")]
        assert text(box.logs()).split() == [*kept, "last"]
        assert "could not be logged" in caplog.text
    finally:
        box.kill() if box.status == "running" else None
        lamella._core.unmount(str(box.task.log_folder))
        box.remove(force=True)


# Following


def test_following_goes_from_the_start_to_the_end_and_over_files(start):
    box = start(numbers(5000, pause_every=100), log_config={"config": {"max-size": "20k", "max-file": 100}})
    assert text(box.logs(follow=True)).split() == [str(number) for number in range(5000)]
    assert box.wait(60) == 0
    assert text(box.logs(follow=True)).split() == [str(number) for number in range(5000)]  # an ended one, too


def test_the_last_word_is_never_missed(start):
    box = start("true")
    box.wait(30)
    for number in range(40):
        box.start()
        assert text(box.logs(follow=True, tail=0)) == "", number
    last = start("echo a; echo b >&2; printf c")
    for _ in range(40):
        followed = "".join(sorted(data.decode() for _, data in last.logs(follow=True)))
        assert followed.endswith("c"), followed
        assert followed.count("a\n") == followed.count("b\n") == followed.count("c")
        last.start()


def test_what_was_never_started_has_nothing_to_follow(client, image):
    box = client.containers.create(image, ["/bin/true"])
    assert list(box.logs(follow=True)) == []
    box.remove()


def test_following_ends_when_the_monitor_was_killed(start):
    box = start("echo here; sleep 600")
    pieces = box.logs(follow=True)
    assert next(pieces) == ("stdout", b"here\n")
    os.kill(monitor_of(box), signal.SIGKILL)
    assert list(pieces) == []


def test_following_ends_with_a_stop_as_docker_has_it_and_goes_over_restarts(start):
    box = start("echo begun; sleep 100", restart_policy="always")
    pieces = box.logs(follow=True)
    assert next(pieces) == ("stdout", b"begun\n")
    box.restart(0)
    assert next(pieces) == ("stdout", b"begun\n")
    box.stop(0)
    assert list(pieces) == []
    box.start()
    assert list(pieces) == []
    until(lambda: text(box.logs()).split() == ["begun"] * 3)


def test_following_ends_with_the_removal(start):
    box = start("echo here; sleep 600")
    pieces = box.logs(follow=True)
    assert next(pieces) == ("stdout", b"here\n")
    box.remove(force=True)
    assert list(pieces) == []


def test_a_follower_that_stands_still_holds_up_nobody(start):
    box = start(numbers(30000), log_config={"config": {"max-size": "100k", "max-file": 2}})
    pieces = box.logs(follow=True)
    next(pieces)
    assert box.wait(60) == 0
    rest = [int(data) for _, data in pieces]
    assert rest[-1] == 29999


def test_many_follow_at_once(start):
    box = start("sleep 0.3; " + numbers(2000, pause_every=50))
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(text(box.logs(follow=True)))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == ["".join(f"{number}\n" for number in range(2000))] * 8


# Size


def test_gigabytes_of_output_grow_neither_monitor_nor_reader_nor_disk(client, image, tmp_path):
    (tmp_path / "lines").write_text(
        "a line of an ordinary length, as programs write them\n" * 300_000
    )  # 16 MB
    script = f"i=0; while [ $i -lt {128 if NIGHTLY else 16} ]; do cat /data/lines; i=$((i+1)); done"
    box = client.containers.create(image, ["/bin/sh", "-c", script], volumes=[f"{tmp_path}:/data:ro"])
    try:
        box.start()
        monitor, most = monitor_of(box), 0
        code = f"""
            import lamella, re
            from pathlib import Path

            def most():
                # ru_maxrss is what the process had before execve(2), too: that of these tests.
                return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

            with lamella.Client({str(client.config.root)!r}, {str(client.config.state)!r}) as client:
                box = client.containers.get({box.id!r})
                next(box.logs(follow=True, tail=1), None)
                before = most()
                count = sum(len(data) for _, data in box.logs(follow=True))
                print(most() - before, count)
        """
        reader = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE)
        while box.status == "running":
            try:
                most = max(most, memory_of(monitor))
            except (AssertionError, OSError):  # it has ended
                break
            # Five of ten, and one that may be removed while it is looked at.
            assert size_of(box.task.log_folder) <= 61 * MEBIBYTE
            time.sleep(0.05)
        assert box.wait(600) == 0
        out, _ = reader.communicate(timeout=600)
        grown, count = map(int, out.split())
        assert most < 4 * MEBIBYTE
        assert grown * 1024 < 8 * MEBIBYTE
        assert count > 10 * MEBIBYTE
    finally:
        box.remove(force=True)


def test_a_container_whose_attached_client_does_not_read_can_be_removed_when_it_has_ended(
    client, image, tmp_path
):
    (tmp_path / "zeros").write_bytes(bytes(3_000_000))
    box = client.containers.create(
        image, ["/bin/sh", "-c", "cat /data/zeros; sleep 600"], volumes=[f"{tmp_path}:/data:ro"]
    )
    attached = box.start(attach=True)
    try:
        # The client is behind, and the container stands still.
        until(lambda: size_of(box.task.log_folder) >= 256 * 1024)
        settled(lambda: size_of(box.task.log_folder))
        box.kill()
        assert box.wait(30) == 137
        assert sum(len(data) for _, data in box.logs(follow=True)) >= 256 * 1024
        box.remove()
        assert sum(len(data) for _, data in attached) >= 256 * 1024
        assert attached.exit.exit_code == 137
    finally:
        attached.close()


def test_limits_of_the_reader_are_its_own(start):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    box = start(numbers(500), log_config={"config": {"max-size": "1k", "max-file": 500}})
    box.wait(30)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 200), hard))
    try:
        assert text(box.logs()).split() == [str(number) for number in range(500)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
