"""A layer folder is shared by whoever has its diffID, and right for each of them: else it is kept for one chain."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from histories import acl
from lamella.registry.server import RegistryServer
from layers import Built, Entry, file, folder, hardlink, opaque, tar, whiteout
from tree import read_tree

pytestmark = pytest.mark.privileged

Found = dict[str, dict[str, Any]]
ROOT = folder("./")


@pytest.fixture
def unpack(client: Any) -> Iterator[Callable[..., tuple[list[Path], Found]]]:
    """Give a function that unpacks an image of layers (bottom first): its folders, nearest first, and what they show."""
    with RegistryServer() as server:

        def unpack(*layers: bytes) -> tuple[list[Path], Found]:
            image = client.images.pull(Built(*layers).push(server, tag=f"image-{len(client.images.list())}"))
            with client.snapshots.mounted(image.chain_id) as top:
                return client.snapshots.layer_paths(image.chain_id), read_tree(top)

        yield unpack
        assert client.fsck(verify_layers=True).findings == []


def layer(*entries: Entry) -> bytes:
    return tar(ROOT, *entries)


def test_a_layer_that_names_its_folders_is_one_folder_wherever_it_stands(unpack):
    shared = layer(
        folder("etc", mode=0o750), file("etc/x", b"shared"), whiteout("gone"), folder("o"), opaque("o")
    )
    below = [layer(folder("etc"), file("etc/x", b"below"), file("gone"), folder("o"), file("o/in"))]
    other = [layer(folder("other"), file("other/y")), *below]
    (first, *_), seen = unpack(*below, shared)
    (_, second, *_), above = unpack(*other, shared, layer(folder("etc", mode=0o700), file("etc/z")))
    (alone,), whole = unpack(shared)
    assert first == second == alone
    assert seen["etc"]["mode"] == whole["etc"]["mode"] == "0o750"
    assert above["etc"]["mode"] == "0o700"
    for tree in (seen, above):
        assert tree["etc/x"]["content"] == whole["etc/x"]["content"]
        assert "gone" not in tree
        assert "o/in" not in tree


def test_a_layer_that_stands_twice_in_one_image_shows_what_it_did_each_time(unpack):
    again = layer(folder("etc", mode=0o711), file("etc/x", b"again"), whiteout("gone"))
    between = layer(folder("etc", mode=0o700), file("etc/x", b"between"), file("etc/y"), file("gone"))
    base = layer(folder("etc"), file("etc/base"))
    paths, seen = unpack(base, again, between, again)
    assert len(paths) == 3
    assert seen.keys() == {".", "etc", "etc/x", "etc/y", "etc/base"}
    assert seen["etc"]["mode"] == "0o711"
    _, once = unpack(base, again)
    _, without = unpack(base, again, between)
    assert seen["etc/x"] == once["etc/x"] != without["etc/x"]
    assert without["gone"]["kind"] == "file"


def test_a_folder_that_a_layer_does_not_name_is_what_it_is_beneath_in_each_chain(unpack):
    upper = layer(file("etc/x"))
    attributes = [
        {"mode": 0o711, "uid": 5},
        {"mode": 0o1777, "gid": 70_000, "mtime": 1},
        {"mode": 0o711, "uid": 5},
    ]
    found = [
        unpack(layer(folder("etc", **some), file(str(number))), upper)
        for number, some in enumerate(attributes)
    ]
    assert len({paths[0] for paths, _ in found}) == 3
    for (_, seen), some in zip(found, attributes, strict=True):
        etc = seen["etc"]
        assert (int(etc["mode"], 8), etc["uid"], etc["gid"]) == (
            some["mode"],
            some.get("uid", 0),
            some.get("gid", 0),
        )
        assert etc["mtime_ns"] == some.get("mtime", 1_700_000_000) * 10**9
    (again, _), _ = unpack(layer(folder("etc", **attributes[0]), file("0")), upper)
    assert again == found[0][0][0], "one chain, one folder"


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 2, 0, 3)])
def test_an_unnamed_root_is_what_it_is_beneath_and_shared_where_nobody_names_it(unpack, order):
    upper = tar(folder("etc"), file("etc/x"))
    bases = [
        tar(folder("./", mode=0o700)),
        tar(folder("./", mtime=5)),
        tar(folder("one")),
        tar(folder("two")),
    ]
    found = {number: unpack(bases[number], upper) for number in order}
    roots = [
        (found[number][1]["."]["mode"], found[number][1]["."]["mtime_ns"] // 10**9) for number in range(4)
    ]
    assert roots == [("0o700", 1_700_000_000), ("0o755", 5), ("0o755", 0), ("0o755", 0)]
    tops = [found[number][0][0] for number in range(4)]
    assert tops[2] == tops[3]
    assert len(set(tops)) == 3


def test_a_hard_link_into_a_lower_layer_leads_to_the_file_of_its_own_chain(unpack):
    upper = layer(folder("new"), hardlink("new/link", "old"))
    found = [
        unpack(layer(file("old", text, mode=mode)), upper)
        for text, mode in ((b"one", 0o4755), (b"two", 0o600))
    ]
    assert found[0][0][0] != found[1][0][0]
    for (paths, seen), text, mode in zip(found, (b"one", b"two"), ("0o4755", "0o600"), strict=True):
        assert (paths[0] / "new/link").read_bytes() == text
        assert seen["new/link"]["mode"] == mode
        assert seen["new/link"]["names"] == ["new/link", "old"]


def test_what_is_kept_for_one_chain_is_no_reason_to_unpack_another_layer_anew(unpack):
    bound, shared = layer(file("etc/x")), layer(folder("srv"), file("srv/y"))
    first, _ = unpack(layer(folder("etc", mode=0o700)), bound, shared)
    second, seen = unpack(layer(folder("etc", mode=0o711)), bound, shared)
    assert first[0] == second[0]
    assert first[1] != second[1]
    assert seen["etc"]["mode"] == "0o711"


def test_what_the_host_has_as_a_default_acl_is_in_no_layer_and_no_container(client, tmp_path):
    (tmp_path / "root").mkdir(exist_ok=True)
    os.setxattr(tmp_path / "root", "system.posix_acl_default", acl(0o777, 1234))
    with RegistryServer() as server:
        image = client.images.pull(Built(layer(folder("etc"), file("etc/x"))).push(server))
    client.snapshots.prepare("work", image.chain_id)
    with client.snapshots.mounted("work") as top:
        (top / "etc/y").write_text("")
        (top / "new").mkdir()
        assert [path for path, entry in read_tree(top).items() if entry["xattrs"]] == []
