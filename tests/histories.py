"""Random histories: trees of files that follow one another, and what a layer holds of each step.

A history is a list of trees; nothing else is true. Every step from one tree to the next is written as a layer, by one of several
writers (writers.py); whoever unpacks the layers must get the last tree, whoever wrote them (unpackers.py).

What an archive may leave open is chosen at random: the order of its entries, whether it names the folders above them, whether an
emptied folder is marked opaque, whether a new name of an old file is a link into a lower layer or the file once more. What
readers are known to disagree about is left to the tests that name such a rule.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from random import Random
from typing import Literal, NamedTuple

Kind = Literal["file", "folder", "symlink", "character device", "block device", "fifo"]
NODES: tuple[Kind, ...] = ("character device", "block device", "fifo")
Tree = dict[bytes, "Node"]
"""Paths without a leading slash, the root is empty. Names that have the same Node are hard links."""

NAMES = [
    b"a",
    b"b",
    b"c",
    b"lib",
    b".dot",
    b".whx",
    b"-rf",
    b"two words",
    b"new\nline",
    b"eq=al",
    b"back\\slash",
    b"%2f",
]
ODD_NAMES = ["ünïcode".encode(), b"\xff\xfe\x80", b"latin-\xe9", b"\x01\x7f", b"*?[", b"tab\t"]
LONG_NAMES = [b"n" * 101, b"long-" * 51]
MODES = [0o644, 0o755, 0o600, 0o4755, 0o2711, 0o1777, 0o000, 0o6777]
CAPABILITY = struct.pack(
    "<5I", 0x02000001, 1 << 13, 0, 0, 0
)  # cap_net_raw=ep, version 2 (linux/capability.h)
OPAQUE = b".wh..wh..opq"


class Form(NamedTuple):
    """What archives of a history can hold."""

    fine_times: bool = True
    """Before 1970, and with nanoseconds."""
    large_ids: bool = True
    """Above 2,097,151: seven octal digits."""
    long_names: bool = True
    xattrs: bool = True
    loose: bool = True
    """Hard links into lower layers, paths by way of a lower layer's symlink, entries that are overwritten, odd spellings."""
    as_files: bool = False
    """Packed from a folder that holds whiteouts as files, by a program that copies nodes with several names."""


@dataclass(frozen=True, eq=False)
class Node:
    """An inode."""

    kind: Kind
    mode: int
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 1_600_000_000 * 10**9
    xattrs: Mapping[str, bytes] = field(default_factory=dict)
    size: int = 0
    data: tuple[tuple[int, bytes], ...] = ()
    """Pieces of a file; the rest are holes."""
    target: bytes = b""
    device: tuple[int, int] = (0, 0)


def parent(path: bytes) -> bytes:
    return path.rpartition(b"/")[0]


def join(folder: bytes, name: bytes) -> bytes:
    return folder + b"/" + name if folder else name


def ancestors(path: bytes) -> Iterable[bytes]:
    """Give the folders above a path, the root last."""
    while path:
        path = parent(path)
        yield path


def beneath(tree: Iterable[bytes], folder: bytes) -> list[bytes]:
    return [path for path in tree if path and (not folder or path.startswith(folder + b"/"))]


def acl(mode: int, user: int) -> bytes:
    """Give a POSIX ACL (linux/posix_acl_xattr.h) that agrees with a mode, whose group bits are the mask."""
    owner, mask, other = mode >> 6 & 7, mode >> 3 & 7, mode & 7
    entries = [(1, owner, -1), (2, 5, user), (4, 5, -1), (16, mask, -1), (32, other, -1)]
    return struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", tag, permissions, identity & 0xFFFFFFFF) for tag, permissions, identity in entries
    )


def history(random: Random, form: Form, *, layers: int, changes: int) -> list[Tree]:
    """Give the trees after each layer."""
    tree: Tree = {b"": Node("folder", 0o755)}
    trees = []
    for _ in range(layers):
        garden = Garden(random, form, dict(tree))
        for _ in range(random.randint(1, changes)):
            garden.change()
        tree = garden.tree
        trees.append(tree)
    return trees


class Garden:
    """A tree that changes at random."""

    def __init__(self, random: Random, form: Form, tree: Tree) -> None:
        self.random = random
        self.form = form
        self.tree = tree
        longest = 251 if form.as_files else 255
        self.names = NAMES + ODD_NAMES + [name[:longest] for name in LONG_NAMES if form.long_names]

    def change(self) -> None:
        choices = [self.add] * 8 + [self.link, self.alter] * 3 + [self.remove, self.swap] * 2 + [self.refill]
        self.random.choice(choices)()

    def add(self, path: bytes | None = None) -> None:
        path = path or self._free_name()
        if path is not None:
            self.tree[path] = self._node()

    def link(self) -> None:
        kinds = ("file", "symlink") if self.form.as_files else ("file", "symlink", *NODES)
        files = [path for path, node in self.tree.items() if node.kind in kinds]
        path = self._free_name()
        if files and path is not None:
            self.tree[path] = self.tree[self.random.choice(files)]

    def remove(self) -> None:
        if path := self._some_path():
            self._take(path)

    def swap(self) -> None:
        """Put something else in a place."""
        if path := self._some_path():
            self._take(path)
            self.add(path)

    def alter(self) -> None:
        """Give an inode other attributes, the root included."""
        old = self.tree[self.random.choice(list(self.tree))]
        new = replace(
            self._node(old.kind), size=old.size, data=old.data, target=old.target, device=old.device
        )
        self.tree |= {path: new for path, node in self.tree.items() if node is old}

    def refill(self) -> None:
        """Empty a folder and put something new into it."""
        folder = self.random.choice(self._folders())
        for path in beneath(self.tree, folder):
            del self.tree[path]
        self.add(join(folder, self.random.choice(self.names)))

    def _take(self, path: bytes) -> None:
        for inner in beneath(self.tree, path):
            del self.tree[inner]
        del self.tree[path]

    def _folders(self) -> list[bytes]:
        return [path for path, node in self.tree.items() if node.kind == "folder"]

    def _some_path(self) -> bytes | None:
        paths = [path for path in self.tree if path]
        return self.random.choice(paths) if paths else None

    def _free_name(self) -> bytes | None:
        folder = self.random.choice(self._folders())
        path = join(folder, self.random.choice(self.names))
        too_long = len(path) > (1000 if self.form.long_names else 90)
        return None if path in self.tree or too_long else path

    def _node(self, kind: Kind | None = None) -> Node:
        random = self.random
        kind = kind or random.choice(["file"] * 5 + ["folder"] * 5 + ["symlink"] * 2 + [*NODES])
        mode = 0o777 if kind == "symlink" else random.choice(MODES) | (0o700 if kind == "folder" else 0)
        node = Node(kind, mode, self._owner(), self._owner(), self._time(), self._xattrs(kind, mode))
        if kind == "file":
            return replace(node, **self._content())
        if kind == "symlink":
            folders = [b"/" + path for path in self._folders() if len(path) < 99 or self.form.long_names]
            return replace(
                node, target=random.choice([*folders, b"a", b"/lib/b", b"../../c", b"\xff dangling"])
            )
        if kind.endswith("device"):
            return replace(node, device=(random.randint(1, 0xFFF), random.randint(0, 0xFFFFF)))
        return node

    def _owner(self) -> int:
        large = [70_000, 3_000_000_000, 2**32 - 2] if self.form.large_ids else []
        return self.random.choice([0, 0, 1000, 65_534, 65_536, *large])

    def _time(self) -> int:
        fine = [-1, -1_500_000_001, -(10**9), 123, 1_700_000_000_123_456_789, 2**33 * 10**9 + 999_999_999]
        whole = [10**9, 1_234_567_890 * 10**9, 2**32 * 10**9]
        return self.random.choice(whole + (fine if self.form.fine_times else []))

    def _content(self) -> dict[str, object]:
        size = self.random.choice([0, 1, 511, 512, 513, 5000, 300_000])
        if size < 300_000 or self.random.random() < 0.3:
            return {"size": size, "data": ((0, self.random.randbytes(size)),)}
        starts = sorted(self.random.sample(range(0, size - 4096, 8192), self.random.randint(0, 12)))
        return {"size": size, "data": tuple((at, self.random.randbytes(4096)) for at in starts)}

    def _xattrs(self, kind: Kind, mode: int) -> dict[str, bytes]:
        if not self.form.xattrs or self.random.random() < 0.6:
            return {}
        found = {"trusted.some": self.random.choice([b"v", b"\0\xff\n=", b"x" * 300])}
        if kind in ("file", "folder"):
            found["user.some ü"] = self.random.choice([b"value", b"12 a=b\n"])
        if kind in ("file", "folder") and self.random.random() < 0.5:
            found["system.posix_acl_access"] = acl(mode, self.random.choice([1, 70_000]))
        if kind == "folder" and self.random.random() < 0.5:
            found["system.posix_acl_default"] = acl(0o750, 1234)
        if kind == "file" and self.random.random() < 0.5:
            found["security.capability"] = CAPABILITY
        chosen = self.random.sample(sorted(found), self.random.randint(1, len(found)))
        return {name: found[name] for name in chosen}


class Entry(NamedTuple):
    """An entry of a layer: an inode, or another name of an entry before it or of a lower layer's."""

    path: bytes
    node: Node
    link: bytes | None = None
    name: bytes = b""
    """The path as it is written."""


def step(random: Random, form: Form, before: Tree, after: Tree) -> list[Entry]:
    """Give the entries that make the one tree into the other."""
    new = {path: node for path, node in after.items() if before.get(path) is not node}
    links: dict[bytes, bytes] = {}
    for path, node in list(new.items()):
        if node.kind == "folder":
            continue
        names = [name for name, other in after.items() if other is node]
        below = [name for name in names if before.get(name) is node]
        if below and form.loose and random.random() < 0.5:
            links[path] = random.choice(below)
        elif below:
            new |= dict.fromkeys(names, node)
    # A group is linked down as a whole or not at all.
    links = {path: target for path, target in links.items() if target not in new}
    marks = _marks(random, before, after, new)
    named = [folder for path in [*new, *marks] for folder in ancestors(path) if folder not in new]
    chosen = {folder: after[folder] for folder in dict.fromkeys(named) if random.random() < 0.5}
    order = _order(random, before, [*new, *marks, *chosen])
    spell = _spelling(random, before, after, {*new, *chosen}) if form.loose else lambda path: path or b"."
    first: dict[Node, bytes] = {}
    entries = []
    for path in order:
        node = marks.get(path) or chosen.get(path) or new[path]
        target = links.get(path)
        if target is None and node.kind != "folder" and first.setdefault(node, path) != path:
            target = first[node]
        name = spell(path)
        if (
            form.loose
            and path in new
            and (before.get(path) or node).kind != "folder"
            and random.random() < 0.1
        ):
            entries.append(Entry(path, Node("file", 0o600, size=5, data=((0, b"noise"),)), name=name))
        entries.append(Entry(path, node, target and spell(target), name))
    return entries


def _spelling(random: Random, before: Tree, after: Tree, written: set[bytes]) -> Callable[[bytes], bytes]:
    """Give a function that writes a path in one of the ways that lead to the same place."""
    symlinks = {
        path: resolve(before, path)
        for path, node in before.items()
        if node.kind == "symlink" and after.get(path) is node and path not in written
    }
    stays = {
        path
        for path in before
        if before[path].kind == "folder" and path in after and after[path].kind == "folder"
    }

    def spell(path: bytes) -> bytes:
        ways = [
            (link, folder)
            for link, folder in symlinks.items()
            if folder in stays and path in beneath([path], folder)
        ]
        if ways and random.random() < 0.5:
            link, folder = random.choice(ways)
            path = link + path[len(folder) :] if folder else join(link, path)
        slash = random.choice([b"/"] * 8 + [b"//", b"/./"])
        return random.choice([b"", b"", b"./", b"/"]) + path.replace(b"/", slash) or b"."

    return spell


def resolve(tree: Tree, path: bytes) -> bytes | None:
    """Give what a path of a tree leads to, if it is there."""
    found, left, symlinks = b"", path.split(b"/"), 0
    while left:
        name = left.pop(0)
        if name in (b"", b".", b".."):
            found = parent(found) if name == b".." else found
            continue
        node = tree.get(join(found, name))
        if node is None or (left and node.kind not in ("folder", "symlink")):
            return None
        if node.kind != "symlink":
            found = join(found, name)
            continue
        symlinks += 1
        if symlinks > 40:
            return None
        if node.target.startswith(b"/"):
            found = b""
        left = node.target.split(b"/") + left
    return found


def _marks(random: Random, before: Tree, after: Tree, new: Tree) -> Tree:
    """Give the whiteouts and opaque markers for what is gone."""

    def stays(folder: bytes) -> bool:
        return all(folder in tree and tree[folder].kind == "folder" for tree in (before, after))

    gone = [path for path in before if path not in after and stays(parent(path))]
    rewritten = [
        folder
        for folder in before
        if stays(folder) and beneath(before, folder) and all(path in new for path in beneath(after, folder))
    ]
    opaque = {folder for folder in rewritten if random.random() < 0.4}
    marks = {join(folder, OPAQUE): Node("file", 0o600) for folder in opaque}
    for path in gone:
        if not opaque.intersection(ancestors(path)):
            marks[join(parent(path), b".wh." + path.rpartition(b"/")[2])] = Node("file", 0o600)
    return marks


def _order(random: Random, before: Tree, paths: list[bytes]) -> list[bytes]:
    """Put folders before what is in them, or after it where that says the same; the rest in any order."""
    if random.random() < 0.4:
        return sorted(paths)
    weights: dict[bytes, float] = {}

    def key(path: bytes) -> list[float]:
        line = [path, *ancestors(path)][::-1][1:]
        late = path not in before or before[path].kind == "folder"
        return [weights.setdefault(folder, random.random()) for folder in line] + (
            [2.0] if late and is_late else []
        )

    is_late = random.random() < 0.3
    return sorted(paths, key=key)


def write_tree(top: str, before: Tree, after: Tree) -> None:
    """Turn a folder that holds one tree into another one, by ordinary system calls."""
    root = os.fsencode(top)
    place = {path: join(root, path) for path in {*before, *after}}
    touched: set[bytes] = set()
    for path in sorted(before, reverse=True):
        new = after.get(path)
        if new is before[path] or (new and new.kind == before[path].kind == "folder"):
            continue
        touched.add(parent(path))
        (os.rmdir if before[path].kind == "folder" else os.unlink)(place[path])
    names = {node: path for path, node in after.items() if before.get(path) is node and node.kind != "folder"}
    for path in sorted(after):
        node = after[path]
        if before.get(path) is node:
            continue
        touched.add(parent(path))
        if node.kind == "folder":
            touched.add(path)
            if path and (path not in before or before[path].kind != "folder"):
                os.mkdir(place[path])  # noqa: PTH102
        elif node in names:
            os.link(place[names[node]], place[path], follow_symlinks=False)
        else:
            names[node] = path
            _make(place[path], node)
            set_attributes(place[path], node)
    for path in sorted(touched, reverse=True):
        if path in after and after[path].kind == "folder":
            set_attributes(place[path] if path else root, after[path])


def _make(path: bytes, node: Node) -> None:
    match node.kind:
        case "file":
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            for offset, data in node.data:
                os.pwrite(descriptor, data, offset)
            os.ftruncate(descriptor, node.size)
            os.close(descriptor)
        case "symlink":
            os.symlink(node.target, path)  # noqa: PTH211
        case "fifo":
            os.mkfifo(path)
        case kind:
            letter = 0o020000 if kind == "character device" else 0o060000
            os.mknod(path, letter | 0o600, os.makedev(*node.device))


def set_attributes(path: bytes, node: Node) -> None:
    """Set all that a node says of an inode that is there."""
    os.chown(path, node.uid, node.gid, follow_symlinks=False)
    for name in os.listxattr(path, follow_symlinks=False):
        if name not in node.xattrs and not name.startswith("trusted.overlay."):
            os.removexattr(path, name, follow_symlinks=False)
    for name, value in node.xattrs.items():
        os.setxattr(path, name, value, follow_symlinks=False)
    if node.kind != "symlink":
        os.chmod(path, node.mode)  # noqa: PTH101
    os.utime(path, ns=(node.mtime_ns, node.mtime_ns), follow_symlinks=False)
