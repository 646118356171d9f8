"""Commands of containerd's clients, unchanged, against ``lamella serve``: they print what they print with containerd 2.4.

``ctr/NAME.txt`` and ``nerdctl/NAME.txt`` are the commands, ``VERSION/NAME.txt`` beside them what they print: recorded from
containerd by ``LAMELLA_UPDATE_GOLDEN=1 pytest tests/serve/test_transcripts.py -k containerd``. Where lamella is to differ,
``INTENDED`` says so with a reason, and docs/serve-peers.md tells its users.
"""

from __future__ import annotations

import difflib
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transcripts
from daemons import Daemon

import layers
from chance import NIGHTLY
from lamella import oci
from lamella.digest import digest_of
from lamella.platforms import own_platform

HERE = Path(__file__).resolve().parent
RECORDS = os.environ.get("LAMELLA_UPDATE_GOLDEN") == "1" or NIGHTLY
"""Whether containerd is asked again: what it prints does not change from day to day."""
INTENDED: dict[str, str] = {
    "ctr images pull --plain-http --platform linux/riscv64 $HOST/both:latest >/dev/null 2>&1": (
        "an index that has nothing for the platform is not pulled; containerd makes an image of the index alone"
    ),
}
"""Commands whose output may differ, each with the reason."""

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.needs_program("script"),
    pytest.mark.timeout(900),
]


def _cases(program: str, *versions: str) -> pytest.MarkDecorator:
    """Have a test run for each file of a program's commands, each version of it, and against both daemons."""
    return pytest.mark.parametrize(
        ("daemon", "version", "name"),
        [
            (daemon, version, name)
            for daemon in ("lamella", *(["containerd"] if RECORDS else []))
            for version in versions
            for name in sorted(file.stem for file in (HERE / program).glob("*.txt"))
        ],
        indirect=["daemon"],
    )


@pytest.fixture(scope="module")
def registry(small_image_registry: Any) -> Any:
    """The small image, and an index of it and of an image for another platform."""
    import machine_image

    here, there = machine_image.build(), layers.Built(layers.tar(layers.file("there")))
    there.platform = {"os": "linux", "architecture": "s390x"}
    here.push(small_image_registry.address, "both", "here")
    there.push(small_image_registry, "both", "there")
    manifests = [
        oci.Descriptor(media_type=oci.OCI_MANIFEST, digest=digest_of(data), size=len(data), platform=platform)
        for data, platform in (
            (here.manifest, own_platform()),
            (there.manifest, oci.Platform(os="linux", architecture="s390x")),
        )
    ]
    index = oci.encode({"schemaVersion": 2, "mediaType": oci.OCI_INDEX, "manifests": manifests})
    small_image_registry.push_manifest("both", "latest", index)
    return small_image_registry


@_cases("ctr", "1.6", "2.4")
def test_ctr(
    daemon: Daemon,
    ctr_program: Callable[[str], Path],
    version: str,
    name: str,
    registry: Any,
    tmp_path: Path,
) -> None:
    variables = {"CTR": str(ctr_program(version)), "FIFOS": f"--fifo-dir {tmp_path}/fifo"}
    _check(daemon, HERE / "ctr" / f"{name}.txt", version, variables, registry.address, tmp_path)


@_cases("nerdctl", "2.0")
def test_nerdctl(
    daemon: Daemon,
    nerdctl_program: Path,
    version: str,
    name: str,
    registry: Any,
    tmp_path: Path,
) -> None:
    variables = {"NERDCTL": str(nerdctl_program), "LC_ALL": "C.UTF-8"}
    _check(daemon, HERE / "nerdctl" / f"{name}.txt", version, variables, registry.address, tmp_path)


def _check(
    daemon: Daemon, commands: Path, version: str, more: dict[str, str], registry: str, folder: Path
) -> None:
    """Run the commands, and compare with what they are expected to print."""
    namespace = f"{commands.stem}-{version}"
    variables = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "ADDRESS": daemon.address,
        "HOST": registry,
        "REGISTRY": f"{registry}/{namespace}",
        "IMAGE": f"{registry}/machine:latest",
        "NAMESPACE": namespace,
        "CONTAINERD_NAMESPACE": namespace,
        "CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS": "1",
    }
    try:
        got = transcripts.run(commands, version, folder, variables | more)
    finally:
        _end_containers(daemon, namespace)
    expected = commands.parent / version / commands.name
    if daemon.name == "containerd" and os.environ.get("LAMELLA_UPDATE_GOLDEN") == "1":
        expected.parent.mkdir(exist_ok=True)
        expected.write_text(got)
    want = expected.read_text()
    if daemon.name == "lamella":
        got, want = _without_words(got), _without_words(want)
    lines = (want.splitlines(), got.splitlines())
    differences = list(difflib.unified_diff(*lines, "expected", "got", lineterm="", n=4))
    assert not differences, "\n" + "\n".join(differences)


def _end_containers(daemon: Daemon, namespace: str) -> None:
    """End what runs yet, and remove it: there is nothing unless a command failed."""
    ctr = ["ctr", "--address", daemon.address, "--namespace", namespace]
    done = subprocess.run([*ctr, "containers", "ls", "-q"], capture_output=True, text=True, check=False)
    for container in done.stdout.split():
        for command in (["tasks", "rm", "--force"], ["containers", "rm"]):
            subprocess.run([*ctr, *command, container], capture_output=True, check=False)


def _without_words(transcript: str) -> str:
    """Leave out how an error is worded, and what is to differ."""
    pieces = re.split(r"(?m)^(?=\$ )", transcript)
    text = "".join(piece for piece in pieces if piece.partition("\n")[0].removeprefix("$ ") not in INTENDED)
    return re.sub(r"(?m)^(ctr: |level=)(?!.*grpc).*", r"\1...", text)
