"""Writers of layers: each makes an archive of one step of a history (histories.py)."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import NamedTuple

from histories import Form, Tree, ancestors, step, write_tree
from lamella import _core

TYPES = {
    "file": tarfile.REGTYPE,
    "folder": tarfile.DIRTYPE,
    "symlink": tarfile.SYMTYPE,
    "character device": tarfile.CHRTYPE,
    "block device": tarfile.BLKTYPE,
    "fifo": tarfile.FIFOTYPE,
}


class Writer(NamedTuple):
    form: Form
    write: Callable[[Random, Form, Tree, Tree, Path], bytes]
    """Give the layer of the step between two trees; the folder is empty and for whatever it takes."""


def by_tarfile(format: int, random: Random, form: Form, before: Tree, after: Tree, folder: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format, encoding="utf-8") as archive:
        for _, node, link, name in step(random, form, before, after):
            info = tarfile.TarInfo(os.fsdecode(name))
            info.mode, info.uid, info.gid = node.mode, node.uid, node.gid
            info.mtime = node.mtime_ns // 10**9
            info.type = tarfile.LNKTYPE if link is not None else TYPES[node.kind]
            info.linkname = os.fsdecode(node.target if link is None else link)
            info.devmajor, info.devminor = node.device
            if format == tarfile.PAX_FORMAT:
                info.pax_headers = {
                    f"SCHILY.xattr.{name}": os.fsdecode(data) for name, data in node.xattrs.items()
                }
                if node.mtime_ns % 10**9 or node.mtime_ns < 0:
                    info.pax_headers["mtime"] = decimal(node.mtime_ns)
            content = bytearray(node.size if info.isreg() else 0)
            for offset, data in node.data if info.isreg() else ():
                content[offset : offset + len(data)] = data
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def decimal(nanoseconds: int) -> str:
    sign = "-" if nanoseconds < 0 else ""
    return f"{sign}{abs(nanoseconds) // 10**9}.{abs(nanoseconds) % 10**9:09}"


def by_gnu_tar(
    options: Sequence[str], random: Random, form: Form, before: Tree, after: Tree, folder: Path
) -> bytes:
    entries = step(random, form, before, after)
    content: Tree = {entry.path: entry.node for entry in entries}
    above = {path: after[path] for entry in entries for path in ancestors(entry.path) if path not in content}
    write_tree(str(folder), {}, above | content)
    names = b"".join(b"./" + entry.path + b"\0" for entry in entries)
    command = [
        "tar",
        "-c",
        "-f-",
        "-C",
        folder,
        "--numeric-owner",
        "--no-recursion",
        "--null",
        "-T-",
        *options,
    ]
    return subprocess.run(command, input=names, capture_output=True, check=True).stdout


def by_lamella(random: Random, form: Form, before: Tree, after: Tree, folder: Path) -> bytes:
    trees = []
    for name, tree in (("before", before), ("after", after)):
        (folder / name).mkdir()
        write_tree(str(folder / name), {}, tree)
        trees.append(str(folder / name))
    changes = _core.diff_trees(trees[1], trees[0] if before else None)
    changes.pack(str(folder / "layer"), compression="none")
    return (folder / "layer").read_bytes()


WHOLE = Form(loose=False, as_files=True)
OLD = Form(fine_times=False, large_ids=False, long_names=False, xattrs=False)
XATTRS = ("--xattrs", "--xattrs-include=*", "--sparse")
WRITERS = {
    "pax": Writer(Form(), partial(by_tarfile, tarfile.PAX_FORMAT)),
    "gnu": Writer(Form(fine_times=False, xattrs=False), partial(by_tarfile, tarfile.GNU_FORMAT)),
    "ustar": Writer(OLD, partial(by_tarfile, tarfile.USTAR_FORMAT)),
    "gnu-tar-pax-sparse-0.0": Writer(
        WHOLE, partial(by_gnu_tar, ["--format=posix", "--sparse-version=0.0", *XATTRS])
    ),
    "gnu-tar-pax-sparse-0.1": Writer(
        WHOLE, partial(by_gnu_tar, ["--format=posix", "--sparse-version=0.1", *XATTRS])
    ),
    "gnu-tar-pax-sparse-1.0": Writer(
        WHOLE, partial(by_gnu_tar, ["--format=posix", "--sparse-version=1.0", *XATTRS])
    ),
    "gnu-tar-gnu": Writer(
        WHOLE._replace(fine_times=False, xattrs=False), partial(by_gnu_tar, ["--format=gnu", "--sparse"])
    ),
    "gnu-tar-oldgnu": Writer(
        WHOLE._replace(fine_times=False, xattrs=False), partial(by_gnu_tar, ["--format=oldgnu", "--sparse"])
    ),
    "gnu-tar-ustar": Writer(
        OLD._replace(loose=False, as_files=True), partial(by_gnu_tar, ["--format=ustar"])
    ),
    "lamella": Writer(Form(loose=False), by_lamella),
}
