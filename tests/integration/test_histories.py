"""Random histories of trees, written as layers by several programs: whoever unpacks them gets the tree that was meant.

lamella does it in its two forms, layer folders under an overlay and one plain folder; GNU tar, umoci and containerd are the
oracles. The other way round, what lamella makes of the steps is unpacked by all of them. A case is named by its seed:
LAMELLA_SEED repeats the choice, LAMELLA_NIGHTLY=1 makes many more.
"""

from __future__ import annotations

import copy
import io
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pytest

import systems
import unpackers
from chance import seeds
from histories import Tree, history, set_attributes, write_tree
from layers import Built
from steps import patience
from tree import differences, read_tree
from unpackers import Allowance, Found, Layout
from writers import WRITERS

pytestmark = [pytest.mark.privileged, pytest.mark.integration, patience]

OLD_SPARSE = ("gnu-tar-gnu", "gnu-tar-oldgnu")
"""Neither umoci nor containerd knows their type 'S'."""


class Case(NamedTuple):
    seed: int
    writer: str
    trees: list[Tree]
    layers: list[bytes]
    image: Built
    meant: Found

    @property
    def tag(self) -> str:
        return f"seed-{self.seed}"

    @property
    def loose(self) -> bool:
        return WRITERS[self.writer].form.loose

    def holds(self, name: str) -> bool:
        """Tell whether a layer has an entry of that very name."""
        return any(
            name in tarfile.open(fileobj=io.BytesIO(layer), errors="surrogateescape").getnames()
            for layer in self.layers
        )

    def wrong(self, found: Found, *allowances: Allowance, meant: Found | None = None) -> list[str]:
        """Give what differs from what was meant."""
        meant, found = copy.deepcopy((meant or self.meant, found))
        for allow in allowances:
            allow(meant, found)
        return [f"seed {self.seed}, {self.writer}: {line}" for line in differences(meant, found)]


def tree_of(folder: Path, tree: Tree) -> Found:
    folder.mkdir()
    write_tree(str(folder), {}, tree)
    found = read_tree(folder)
    shutil.rmtree(folder)
    return found


def make(seed: int, folder: Path) -> Case:
    random = Random(seed)
    name = random.choice(sorted(WRITERS))
    writer = WRITERS[name]
    trees = history(random, writer.form, layers=random.randint(1, 4), changes=20)
    layers = []
    for before, after in zip([{}, *trees], trees, strict=False):
        work = folder / "work"
        work.mkdir()
        layers.append(writer.write(random, writer.form, before, after, work))
        shutil.rmtree(work)
    image = Built(*layers, compression=random.choice(["none", "gzip"]))
    return Case(seed, name, trees, layers, image, tree_of(folder / "meant", trees[-1]))


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    folder = tmp_path_factory.mktemp("histories")
    return [make(seed, folder) for seed in seeds(24, nightly=1000)]


@pytest.fixture(scope="module")
def layout(cases: list[Case], tmp_path_factory: pytest.TempPathFactory) -> Layout:
    layout = Layout(tmp_path_factory.mktemp("layout"))
    for case in cases:
        layout.add(case.tag, case.image)
    return layout


def test_shared_layer_folders_show_the_tree_that_was_meant(cases: list[Case], client: Any) -> None:
    from lamella.registry.server import RegistryServer

    with RegistryServer() as server:
        for case in cases:
            image = client.images.pull(case.image.push(server, tag=case.tag))
            with client.snapshots.mounted(image.chain_id) as top:
                found = read_tree(top)
            assert case.wrong(found, unpackers.names_that_part) == []
    assert client.fsck(verify_layers=True).findings == []


def test_one_plain_folder_holds_the_tree_that_was_meant(cases: list[Case], tmp_path: Path) -> None:
    for case in cases:
        folder = tmp_path / case.tag
        folder.mkdir()
        assert case.wrong(unpackers.plain(case.layers, folder)) == []
        if case.writer in ("lamella", *OLD_SPARSE) or "sparse" in case.writer:
            for path, node in case.trees[-1].items():
                room = sum(len(data) // 4096 * 4096 + 4096 for _, data in node.data)
                taken = os.lstat(os.fsencode(folder) + b"/" + path).st_blocks * 512
                assert node.kind != "file" or taken <= room + 4096, (case.seed, path)
        shutil.rmtree(folder)


def test_gnu_tar_extracts_the_first_layer_as_it_was_meant(cases: list[Case], tmp_path: Path) -> None:
    for case in cases:
        if case.loose:  # it gives a folder that it meets under two spellings its attributes too early
            continue
        folder = tmp_path / case.tag
        folder.mkdir()
        found = unpackers.gnu_tar(case.layers[0], folder)
        assert case.wrong(found, meant=tree_of(tmp_path / "first", case.trees[0])) == []


@pytest.mark.needs_program("umoci")
def test_umoci_unpacks_the_tree_that_was_meant(cases: list[Case], layout: Layout, tmp_path: Path) -> None:
    for case in cases:
        if case.writer not in OLD_SPARSE:
            found = unpackers.umoci(layout, case.tag, tmp_path / case.tag)
            assert case.wrong(found, *unpackers.UMOCI) == []
            shutil.rmtree(tmp_path / case.tag)


@pytest.fixture
def containerd(tmp_path: Path, layout: Layout) -> Iterator[unpackers.Containerd]:
    with systems.Containerd(tmp_path, "", Path()) as running:
        yield unpackers.Containerd(running, layout)


@pytest.mark.needs_program("containerd", "ctr")
def test_containerd_unpacks_the_tree_that_was_meant(
    containerd: unpackers.Containerd, cases: list[Case], tmp_path: Path
) -> None:
    for case in cases:
        # It resolves neither links nor symlinks in lower layers, and overlayfs has no opaque mark for a root.
        if (
            case.loose
            or case.writer in OLD_SPARSE
            or case.holds("./.wh..wh..opq")
            or case.holds(".wh..wh..opq")
        ):
            continue
        try:
            found = containerd.unpack(case.tag, tmp_path / case.tag)
        except unpackers.Refused as refused:
            # It looks beneath for what a folder is like that a layer enters before it names it, also where a file stands there.
            assert "not a directory" in str(refused), case.seed
            continue
        assert case.wrong(found, *unpackers.CONTAINERD) == []


def test_what_an_overlay_records_of_each_step_makes_the_tree_that_was_meant(
    cases: list[Case], client: Any, tmp_path: Path
) -> None:
    for case in cases:
        parent, layers = "", []
        for number, (before, after) in enumerate(zip([{}, *case.trees], case.trees, strict=False)):
            key = f"{case.tag}-{number}"
            client.snapshots.prepare(key, parent)
            with client.snapshots.mounted(key) as top:
                write_tree(str(top), before, after)
                set_attributes(os.fsencode(top), after[b""])
            with client.snapshots.diff(key) as changes:
                changes.pack(str(tmp_path / "layer"), compression="none")
            layers.append((tmp_path / "layer").read_bytes())
            parent = f"{key}-committed"
            client.snapshots.commit(parent, key)
        folder = tmp_path / case.tag
        folder.mkdir()
        assert case.wrong(unpackers.plain(layers, folder), unpackers.names_that_part) == []
        shutil.rmtree(folder)
