"""Every way out of a layer folder that we know of, pulled as an image: each ends inside the store or in an error.

The table, breakouts.json, is that of the core's own tests (rust/core/tests/core/breakouts.rs), which try it on single folders
and stacks of them. An attempt has layers of entries (kind, name, argument, fields), bottom first. ``{outside}`` is the host's
folder, ``{up}`` the way to it from anywhere by way of the parents. An attempt is either ``refused`` with an error, or the
image ``shows`` files with a content, or (null) nothing there.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import lamella._core as core
from host import Host
from lamella import errors
from layers import Built

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.privileged

ATTEMPTS = json.loads(Path(__file__).with_name("breakouts.json").read_text())
TYPES = {
    "file": tarfile.REGTYPE,
    "folder": tarfile.DIRTYPE,
    "symlink": tarfile.SYMTYPE,
    "hardlink": tarfile.LNKTYPE,
    "fifo": tarfile.FIFOTYPE,
    "device": tarfile.CHRTYPE,
    "longname": tarfile.GNUTYPE_LONGNAME,
    "longlink": tarfile.GNUTYPE_LONGLINK,
}
MODES = {"folder": 0o755, "symlink": 0o777}


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    from lamella.registry.server import RegistryServer

    with RegistryServer() as running:
        yield running


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """Give a host whose folder is the working folder too: no relative name may be looked for there."""
    made = Host(tmp_path)
    monkeypatch.chdir(made.outside)
    return made


def placed(text: str, host: Host) -> str:
    return text.replace("{outside}", str(host.outside)).replace(
        "{up}", "/".join([".."] * 20) + str(host.outside)
    )


def archive(entries: list[list[Any]], host: Host) -> bytes:
    """Give the tar of a layer of the table."""
    data = b""
    records: dict[str, str] = {}
    for kind, *arguments in entries:
        fields = arguments.pop() if isinstance(arguments[-1], dict) else {}
        if kind == "pax":
            records = {key: placed(value, host) for key, value in fields.items()}
            continue
        name, *rest = (placed(part, host) if isinstance(part, str) else part for part in arguments)
        content = rest[0].encode() if kind == "file" else b""
        if kind.startswith("long"):
            name, content = "extension", name.encode() + b"\0"
        info = tarfile.TarInfo(name)
        info.type = TYPES[kind]
        info.mode = int(fields.get("mode", "0"), 8) or MODES.get(kind, 0o644)
        info.uid, info.gid = fields.get("uid", 0), fields.get("gid", 0)
        info.mtime = fields.get("mtime", 1_700_000_000)
        info.size = len(content)
        if kind.endswith("link") and not kind.startswith("long"):
            info.linkname = rest[0]
        if kind == "device":
            info.devmajor, info.devminor = rest
        info.pax_headers, records = records, {}
        data += info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
        data += content + bytes(-len(content) % tarfile.BLOCKSIZE)
    return data + bytes(2 * tarfile.BLOCKSIZE)


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=lambda attempt: attempt["name"])
def test_a_pull_ends_inside_the_store_or_in_an_error(
    client: Any, server: Any, host: Host, attempt: Any
) -> None:
    reference = Built(*(archive(layer, host) for layer in attempt["layers"])).push(server)
    store = client.config.root
    if "refused" in attempt:
        with pytest.raises(getattr(errors, attempt["refused"])) as caught:
            client.images.pull(reference)
        assert isinstance(caught.value, errors.LamellaError)
        assert client.images.list() == []
        assert list(client.snapshots.walk()) == []
    else:
        image = client.images.pull(reference)
        paths = [str(path) for path in client.snapshots.layer_paths(image.chain_id)]
        for path, content in attempt["shows"].items():
            found = core.read_file(paths, placed(path, host), 1000)
            assert found == (None if content is None else content.encode()), path
    assert host.differences(store) == []
    report = client.fsck(verify_layers=True)
    assert (report.findings, report.leftovers) == ([], [])
    # What it takes to remove it all again.
    for image in client.images.list():
        client.images.remove(image.name)
    client.gc()
    assert [path for path in (store / "snapshots").rglob("*") if path.name == "fs"] == []
    assert host.differences(store) == []


def test_the_table_has_every_kind_of_attempt() -> None:
    kinds = {entry[0] for attempt in ATTEMPTS for layer in attempt["layers"] for entry in layer}
    assert kinds == {*TYPES, "pax"}
    assert len({attempt["name"] for attempt in ATTEMPTS}) == len(ATTEMPTS)
    assert {"refused" in attempt for attempt in ATTEMPTS} == {True, False}
