"""Published weaknesses of other tools that take a whole pull or a container; each is the promise that it does not hold here.

rust/core/tests/core/advisories.rs has those of reading and unpacking an archive.
"""

from __future__ import annotations

import lzma
import os
import random
import re
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

import lamella
from inventory import thread_names
from lamella import oci
from lamella.digest import digest_of
from lamella.errors import CommandNotFound, DataLoss, FailedPrecondition, LamellaError, Unsupported
from layers import Built, file, folder, program, tar
from waiting import until

pytestmark = pytest.mark.privileged

TOOLS = [
    "bunzip2",
    "bzip2",
    "gunzip",
    "gzip",
    "igzip",
    "pigz",
    "sh",
    "tar",
    "unpigz",
    "unxz",
    "unzstd",
    "xz",
    "zstd",
]


def with_blob(built: Built, blob: bytes, media_type: str = oci.OCI_LAYER_GZIP) -> Built:
    """Exchange the last layer for a blob."""
    built.layers[-1] = blob
    built.descriptors[-1] = oci.Descriptor(media_type=media_type, digest=digest_of(blob), size=len(blob))
    return built


def stages() -> list[str]:
    """Give the threads of pipelines that are in this process."""
    return [name for name in thread_names() if name.startswith("lamella-")]


def test_a_layer_that_does_not_unpack_holds_up_no_pull_beside_it_or_after_it(
    server: Any, tmp_path: Path
) -> None:
    """CVE-2021-20291, containers/storage: a layer that xz could not unpack left the store locked for good."""
    common = tar(folder("data"), file("data/big", random.Random(1).randbytes(8 << 20)))
    # Each its own: a layer that is unpacked already is not unpacked again for an image whose blob is damaged.
    lasts = [tar(file("data/last", random.Random(number).randbytes(4 << 20))) for number in range(2, 8)]
    blobs = [Built(last).layers[0] for last in lasts]
    damaged = bytearray(blobs[2])
    damaged[len(damaged) // 2] ^= 0xFF
    hostile = {
        "xz": with_blob(Built(common, lasts[0]), lzma.compress(lasts[0])),
        "named-xz": with_blob(Built(common, lasts[1]), lzma.compress(lasts[1]), oci.OCI_LAYER + "+xz"),
        "damaged": with_blob(Built(common, lasts[2]), bytes(damaged)),
        "cut": with_blob(Built(common, lasts[3]), blobs[3][:-100]),
        "another": with_blob(Built(common, lasts[4]), blobs[5]),
    }
    images = hostile | {"good": Built(common, lasts[5])}
    references = {name: built.push(server, name) for name, built in images.items()}

    def pull(name: str) -> None:
        with lamella.Client(root=tmp_path / "root", state=tmp_path / "state") as client:
            try:
                results[name] = client.images.pull(references[name]).name
            except LamellaError as error:
                results[name] = type(error)

    expected = dict.fromkeys(hostile, DataLoss) | {
        "named-xz": Unsupported,
        "another": FailedPrecondition,
        "good": references["good"],
    }
    for _ in range(2):
        results: dict[str, object] = dict.fromkeys(references, "it waits for ever")
        # Who waits for ever must not keep this process from its end.
        pulls = [threading.Thread(target=pull, args=[name], daemon=True) for name in references]
        for each in pulls:
            each.start()
        for each in pulls:
            each.join(60)
        assert results == expected
        with lamella.Client(root=tmp_path / "root", state=tmp_path / "state") as client:
            assert [image.name for image in client.images.list()] == [references["good"]]
            report = client.fsck(verify_layers=True)
            assert (report.findings, report.leftovers) == ([], [])
            client.images.remove(references["good"])
            client.gc(wait=False)
    until(lambda: not stages())  # one that has ended is in /proc for a moment still


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
def test_no_program_of_the_image_or_of_path_is_run_to_unpack_or_to_pack(
    client: Any, server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: str
) -> None:
    """CVE-2026-41567, docker: the program that decompressed an archive was looked for in the container's file system."""
    trace = tmp_path / "ran"
    script = f"#!{os.path.realpath('/bin/sh')}\necho $0 >> {trace}\n".encode()
    traps = tmp_path / "traps"
    traps.mkdir()
    for name in TOOLS:
        (traps / name).write_bytes(script)
        (traps / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{traps}:{os.environ['PATH']}")
    tools = [file(f"{place}/{name}", script, mode=0o755) for place in ("bin", "usr/bin") for name in TOOLS]
    built = Built(
        tar(folder("bin"), folder("usr"), folder("usr/bin"), *tools, file("bin/true", program(), mode=0o755)),
        compression=compression,
    )
    monkeypatch.chdir(tmp_path)
    image = client.images.pull(built.push(server))
    client.images.unpack(image.name)
    container = client.containers.run(image, ["/bin/true"], detach=True)
    assert container.wait() == 0
    made = container.commit("made:latest", compression=compression)
    container.remove()
    assert client.containers.run(made, ["/bin/true"], remove=True).exit_code == 0
    assert client.fsck(verify_layers=True).findings == []
    assert not trace.exists(), trace.read_text()


def test_an_image_without_layers_gets_no_root_of_the_host(client: Any, server: Any) -> None:
    """CVE-2026-24054, Kata: for want of a layer a folder of the host was bound as the root, and its disk given to the guest."""
    image = client.images.pull(Built().push(server))
    for call in (client.containers.run, client.containers.create):
        with pytest.raises(FailedPrecondition, match="has no layers"):
            call(image, ["/bin/true"])
    assert list(client.snapshots.walk()) == []
    assert client.containers.list(all=True) == []
    assert client.fsck().findings == []


@pytest.mark.parametrize("layer", [b"", tar()], ids=["no-bytes", "no-entries"])
def test_an_image_of_empty_layers_gets_an_empty_root_of_its_own(
    client: Any, server: Any, layer: bytes
) -> None:
    """CVE-2026-24054 again, for an image whose layers hold nothing."""
    image = client.images.pull(Built(layer).push(server))
    container = client.containers.create(image, ["/bin/true"])
    store = client.config.root
    for mount in client.snapshots.mounts(container.snapshot_key):
        named = [value for option in mount.options for value in option.partition("=")[2].split(":")]
        folders = [Path(value) for value in named if value.startswith("/")]
        assert mount.type == "overlay"
        assert folders and all(path.is_relative_to(store / "snapshots") for path in folders)
        assert all(stat.S_ISDIR(path.lstat().st_mode) for path in folders)
    with client.snapshots.mounted(container.snapshot_key) as root:
        assert list(root.iterdir()) == []
    with pytest.raises(CommandNotFound, match="/bin/true"):
        container.start()
    container.remove()


def test_every_advisory_of_the_documentation_has_the_test_that_is_named_there() -> None:
    """And is named in the source of one; every other test that the page names is there, too."""
    repository = Path(__file__).resolve().parents[2]
    page = (repository / "docs/security.md").read_text()
    folders = (repository / "tests", repository / "rust")
    text = "\n".join(
        path.read_text()
        for top in folders
        for path in top.rglob("*.*")
        if path.suffix in (".c", ".py", ".rs")
    )
    defined = set(re.findall(r"(?:def|fn) (\w+)|TRY\((\w+)\)", text))
    names = {name for pair in defined for name in pair}
    rows = re.findall(r"^\| ((?:CVE|GHSA)-[^|]*) \|.*\| (.*) \|$", page, re.M)
    assert len(rows) >= 30
    for advisories, tests in rows:
        for advisory in advisories.split(", "):
            assert advisory in text or advisory.lower().replace("-", "_") in text, advisory
        assert re.findall(r"`(\w+)`", tests), advisories
    tests_named = {name for _, tests in rows for name in re.findall(r"`(\w+)`", tests)} - {"sockets"}
    assert tests_named | set(re.findall(r"`(test_\w+)`", page)) <= names
