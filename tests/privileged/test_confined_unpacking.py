"""Layers that a root has unpacked by a confined helper: what that may do, and what is left when it or its caller is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import lamella
import layers
from lamella.errors import InvalidArgument
from waiting import until

pytestmark = pytest.mark.privileged

KEPT = sum(1 << number for number in (0, 1, 3, 4, 21, 24, 27, 31))
"""CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SYS_ADMIN, SYS_RESOURCE, MKNOD, SETFCAP."""

# A pull that stops in the middle of the layer until a line comes, and is tried again after an error.
PULL = """
import sys
import lamella
from lamella import _core
root, state, reference = sys.argv[1:]
Pipeline = _core.Pipeline
class Halved:
    def __init__(self, **options):
        self.inner = Pipeline(**options)
        self.first = True
    def write(self, data):
        if self.first:
            self.first = False
            half = len(data) // 2
            self.inner.write(data[:half])
            print("halfway", flush=True)
            sys.stdin.readline()
            data = data[half:]
        self.inner.write(data)
    def __getattr__(self, name):
        return getattr(self.inner, name)
_core.Pipeline = Halved
with lamella.Client(root, state) as client:
    try:
        client.images.pull(reference, plain_http=True)
        print("pulled", flush=True)
    except lamella.errors.Unavailable as error:
        print("unavailable", "helper" in str(error), bool(error.hint), flush=True)
        sys.stdin.readline()
        client.gc()
        print(client.fsck().clean, client.images.list(), flush=True)
        _core.Pipeline = Pipeline
        client.images.pull(reference, plain_http=True)
        print(client.fsck(verify_layers=True).clean, flush=True)
"""
# Has the kernel say to this process and what it starts that it has no Landlock: landlock_create_ruleset is 444 everywhere.
NO_LANDLOCK = """
import ctypes, errno, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
code = struct.pack("HBBI" * 4, 0x20, 0, 0, 0, 0x15, 0, 1, 444, 0x06, 0, 0, 0x50000 | errno.ENOSYS, 0x06, 0, 0, 0x7FFF0000)
held = ctypes.create_string_buffer(code)
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(Program(4, ctypes.addressof(held)))) == 0
"""


@pytest.fixture
def reference(server: Any) -> str:
    one = layers.tar(layers.file("file", os.urandom(4096), uid=7), layers.device("null", 1, 3))
    return layers.Built(one, compression="none").push(server, "confined")


@contextmanager
def halfway(tmp_path: Path, reference: str, before: str = "") -> Iterator[subprocess.Popen[str]]:
    """Give a process whose pull has come to the middle of its layer."""
    command = [
        sys.executable,
        "-c",
        before + PULL,
        str(tmp_path / "root"),
        str(tmp_path / "state"),
        reference,
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "halfway\n"
            yield process
        finally:
            process.kill()


def helper_of(caller: int) -> int | None:
    """Give the process that has the memory of a pull's archive from its caller."""

    def pieces(process: Path) -> set[str]:
        with suppress(OSError):
            lines = (process / "maps").read_text().splitlines()
            return {line.split()[4] for line in lines if "memfd:lamella-pieces" in line}
        return set()

    own = pieces(Path(f"/proc/{caller}"))
    others = (int(process.name) for process in Path("/proc").glob("[0-9]*") if pieces(process) & own)
    return next((process for process in others if process != caller), None)


def status_of(process: Path) -> dict[str, str]:
    """Give what the kernel says of a process, or of a thread."""
    lines = (process / "status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def confined_threads(process: int, *, filters: int = 0) -> list[dict[str, str]]:
    """Give what the kernel says of the threads of a process that have more seccomp filters than it began with."""
    found = []
    for task in Path(f"/proc/{process}/task").iterdir():
        with suppress(OSError):
            found.append(status_of(task))
    return [status for status in found if int(status["Seccomp_filters"]) > filters]


def test_who_unpacks_has_of_root_what_that_takes_and_nothing_more(tmp_path: Path, reference: str) -> None:
    with halfway(tmp_path, reference) as process:
        helper = until(lambda: helper_of(process.pid))
        [status] = until(lambda: confined_threads(helper))
        own = int(status_of(Path("/proc/self"))["CapEff"], 16)
        assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == own & KEPT
        assert status["NoNewPrivs"] == "1"
        said, _ = process.communicate("\n")
    assert said == "pulled\n"
    with lamella.Client(tmp_path / "root", tmp_path / "state") as client:
        [folder] = client.snapshots.layer_paths(client.images.get(reference).chain_id)
        assert (folder / "file").stat().st_uid == 7
        assert (folder / "null").is_char_device()


def test_a_helper_that_is_killed_is_an_error_that_leaves_nothing_and_the_next_pull_works(
    tmp_path: Path, reference: str
) -> None:
    with halfway(tmp_path, reference) as process:
        os.kill(until(lambda: helper_of(process.pid)), signal.SIGKILL)
        said, _ = process.communicate("\n")
    assert said.splitlines() == ["unavailable True True", "True []", "True"]


def test_a_helper_that_stays_stopped_is_an_error_and_goes_on_when_it_may(
    tmp_path: Path, reference: str
) -> None:
    with halfway(tmp_path, reference) as process:
        helper = until(lambda: helper_of(process.pid))
        os.kill(helper, signal.SIGSTOP)
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "unavailable True True\n"
        os.kill(helper, signal.SIGCONT)
        said, _ = process.communicate("\n")
    assert said.splitlines() == ["True []", "True"]


def test_a_helper_ends_with_its_caller_and_the_next_pull_works(tmp_path: Path, reference: str) -> None:
    with halfway(tmp_path, reference) as process:
        helper = until(lambda: helper_of(process.pid))
    until(lambda: not Path(f"/proc/{helper}").exists())
    with lamella.Client(tmp_path / "root", tmp_path / "state") as client:
        assert client.images.list() == []
        client.images.pull(reference, plain_http=True)
        client.gc()
        assert client.fsck(verify_layers=True).clean


def test_without_landlock_the_rest_of_the_confinement_holds(tmp_path: Path, reference: str) -> None:
    with halfway(tmp_path, reference, NO_LANDLOCK) as process:
        helper = until(lambda: helper_of(process.pid))
        until(lambda: confined_threads(helper, filters=1))
        said, _ = process.communicate("\n")
    assert said == "pulled\n"


def test_the_environment_says_whether_unpacking_is_confined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value, confined in (("", True), ("no", False), ("yes", True)):
        monkeypatch.setenv("LAMELLA_CONFINE", value)
        with lamella.Client(tmp_path / "root", tmp_path / "state") as client:
            assert client.config.confine is confined
    monkeypatch.setenv("LAMELLA_CONFINE", "perhaps")
    with pytest.raises(InvalidArgument, match="LAMELLA_CONFINE"):
        lamella.Client(tmp_path / "root", tmp_path / "state")
