"""ctr's commands, unchanged, against ``lamella serve``: what they print is what they print with containerd 2.4.

``ctr/NAME.txt`` are the commands, ``ctr/VERSION/NAME.txt`` what they print: recorded from containerd by
``LAMELLA_UPDATE_GOLDEN=1 pytest tests/serve/test_ctr_transcripts.py -k containerd``. Where lamella is to differ,
``INTENDED`` says so with a reason, and docs/serve-peers.md tells its users.
"""

from __future__ import annotations

import difflib
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import transcripts
from daemons import Daemon

HERE = Path(__file__).resolve().parent / "ctr"
NAMES = sorted(file.stem for file in HERE.glob("*.txt"))
SERVED = ["about", "leases"]
RECORDS = os.environ.get("LAMELLA_UPDATE_GOLDEN") == "1" or os.environ.get("LAMELLA_NIGHTLY") == "1"
"""Whether containerd is asked again: what it prints does not change from day to day."""
INTENDED: dict[str, str] = {}
"""Commands whose output may differ, each with the reason."""

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_program("script")]


@pytest.mark.parametrize(
    ("daemon", "name"),
    [*(("lamella", name) for name in SERVED), *(("containerd", name) for name in NAMES if RECORDS)],
    indirect=["daemon"],
)
def test_ctr(
    daemon: Daemon, ctr_program: tuple[str, Path], name: str, small_image_registry: Any, tmp_path: Path
) -> None:
    version, program = ctr_program
    expected = HERE / version / f"{name}.txt"
    address = small_image_registry.address
    namespace = f"{name}-{version}"
    variables = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "CTR": str(program),
        "ADDRESS": daemon.address,
        "REGISTRY": f"{address}/{namespace}",
        "IMAGE": f"{address}/machine:latest",
        "NAMESPACE": namespace,
        "CONTAINERD_NAMESPACE": namespace,
        "CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS": "1",
        "FIFOS": f"--fifo-dir {tmp_path}/fifo",
    }
    try:
        got = transcripts.run(HERE / f"{name}.txt", version, tmp_path, variables)
    finally:
        _end_containers([str(program), "--address", daemon.address, "--namespace", namespace])
    if daemon.name == "containerd" and os.environ.get("LAMELLA_UPDATE_GOLDEN"):
        expected.parent.mkdir(exist_ok=True)
        expected.write_text(got)
    want = expected.read_text()
    if daemon.name == "lamella":
        got, want = _without_words(got), _without_words(want)
    differences = list(
        difflib.unified_diff(want.splitlines(), got.splitlines(), "expected", "got", lineterm="", n=4)
    )
    assert not differences, "\n" + "\n".join(differences)


def _end_containers(ctr: list[str]) -> None:
    """End what runs yet, and remove it: there is nothing unless a command failed."""
    done = subprocess.run([*ctr, "containers", "ls", "-q"], capture_output=True, text=True, check=False)
    for container in done.stdout.split():
        for command in (["tasks", "rm", "--force"], ["containers", "rm"]):
            subprocess.run([*ctr, *command, container], capture_output=True, check=False)


def _without_words(transcript: str) -> str:
    """Leave out how an error is worded, and what is to differ."""
    pieces = re.split(r"(?m)^(?=\$ )", transcript)
    text = "".join(piece for piece in pieces if piece.partition("\n")[0].removeprefix("$ ") not in INTENDED)
    return re.sub(r"(?m)^(ctr: |level=)(?!.*grpc).*", r"\1...", text)
