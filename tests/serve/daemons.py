"""Servers of containerd's API as processes: ``lamella serve``, and containerd 2.4 as what it has to be like."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Daemon(NamedTuple):
    """A server that listens. ``name``: ``lamella``, or ``containerd``; ``folder``: where its root and state are."""

    name: str
    address: str
    folder: Path


@contextlib.contextmanager
def lamella_serve(*options: str) -> Iterator[Daemon]:
    """Run ``lamella serve`` with a store of its own, until it is told to end by SIGTERM."""
    with tempfile.TemporaryDirectory(prefix="lamella-serve-") as name:
        folder = Path(name)
        with lamella_process(folder, *options) as address:
            yield Daemon("lamella", address, folder)


@contextlib.contextmanager
def lamella_process(folder: Path, *options: str) -> Iterator[str]:
    """Run ``lamella serve`` on the store in a folder; give the address. It has to end well."""
    places = ["--root", f"{folder}/root", "--state", f"{folder}/state"]
    with (folder / "serve.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "lamella", *places, "serve", "--address", f"{folder}/c.sock", *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
        )
    assert process.stdout is not None
    with process.stdout:
        try:
            line = process.stdout.readline()
            assert line, (folder / "serve.log").read_text()
            yield line.decode().strip()
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                status = process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                status = process.wait()
    assert status == 0, (folder / "serve.log").read_text()[-4000:]


@contextlib.contextmanager
def containerd() -> Iterator[Daemon]:
    """Run containerd 2.4 (tools/new_containerd.py)."""
    import systems

    # Its sockets' paths have at most 107 characters.
    with (
        tempfile.TemporaryDirectory(prefix="containerd-") as name,
        systems.NewContainerd(Path(name), "", Path()) as system,
    ):
        yield Daemon("containerd", system.address, Path(name))
