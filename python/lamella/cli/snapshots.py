"""``lamella snapshots``: views, active and committed snapshots of one namespace and snapshotter."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from lamella.cli import output
from lamella.cli.changes import add_compression_option, show_changes
from lamella.cli.parser import Arguments, Command, Group, Parser, add_filter
from lamella.cli.values import argument, parse_labels, parse_pair

if TYPE_CHECKING:
    from lamella.cli.session import Session
    from lamella.snapshots import Mount, SnapshotInfo

KINDS = ("view", "active", "committed")


def _ls_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add("--kind", choices=KINDS, help="Only snapshots of this kind.")
    add("--parent", metavar="NAME", help="Only children of this snapshot.")
    add_filter(parser, "name, parent, kind and labels")
    add("-q", "--quiet", dest="names_only", action="store_true", help="Print names alone.")


def _ls(arguments: Arguments, session: Session) -> int:
    infos = sorted(
        session.client.snapshots.walk(
            kind=arguments.kind, parent=arguments.parent, filters=arguments.filters
        ),
        key=lambda info: info.name,
    )
    if arguments.names_only:
        names = [info.name for info in infos]
        if session.json:
            session.document(names)
        else:
            session.write("".join(f"{output.clean(name)}\n" for name in names))
    elif session.json:
        session.document([_document(info) for info in infos])
    else:
        session.table(
            ("NAME", "PARENT", "KIND", "CREATED"),
            (
                (info.name, output.short(info.parent), info.kind, output.age(info.created_at))
                for info in infos
            ),
        )
    return 0


def _document(info: SnapshotInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "parent": info.parent or None,
        "kind": info.kind,
        "labels": dict(info.labels),
        "created_at": info.created_at,
        "updated_at": info.updated_at,
    }


def _tree_arguments(parser: Parser) -> None:
    parser.add_argument(
        "root_key", metavar="NAME", nargs="?", help="Only this snapshot and what stands on it."
    )


def _tree(arguments: Arguments, session: Session) -> int:
    infos = {info.name: info for info in session.client.snapshots.walk()}
    root = session.client.snapshots.stat(arguments.root_key).name if arguments.root_key else None
    children = _children(infos.values())
    roots = [root] if root else sorted(name for name, info in infos.items() if info.parent not in infos)
    rows: list[tuple[str, str, str]] = []
    nodes: list[dict[str, Any]] = []
    with session.client.database.read():  # one for all: three statements a snapshot otherwise
        for name, depth, branch in output.tree(roots, children):
            info = infos[name]
            size = session.client.snapshots.usage(name).size if info.kind != "view" else 0
            rows.append((f"{branch}{output.short(name)}", info.kind, output.size(size)))
            nodes.append(_document(info) | {"size": size, "depth": depth})
    if session.json:
        session.document(nodes)
    else:
        session.table(("NAME", "KIND", ">SIZE"), rows)
    return 0


def _children(infos: Iterable[SnapshotInfo]) -> dict[str, list[str]]:
    children: dict[str, list[str]] = {}
    for info in infos:
        if info.parent:
            children.setdefault(info.parent, []).append(info.name)
    return {parent: sorted(names) for parent, names in children.items()}


def _info_arguments(parser: Parser) -> None:
    parser.add_argument("key", metavar="KEY", help="The snapshot.")


def _info(arguments: Arguments, session: Session) -> int:
    snapshots = session.client.snapshots
    info = snapshots.stat(arguments.key)
    usage = snapshots.usage(arguments.key)
    session.document(_document(info) | {"usage": {"size": usage.size, "inodes": usage.inodes}})
    return 0


def _make_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add("--label", metavar="KEY=VALUE", type=argument(parse_pair), action="append", help="Attach a label.")
    add("key", metavar="KEY", help="The name of the new snapshot.")
    add(
        "parent",
        metavar="PARENT",
        nargs="?",
        default="",
        help="A committed snapshot, such as an image's chain_id.",
    )


def _prepare(arguments: Arguments, session: Session) -> int:
    labels = parse_labels(arguments.label)
    return _show(session, session.client.snapshots.prepare(arguments.key, arguments.parent, labels=labels))


def _view(arguments: Arguments, session: Session) -> int:
    labels = parse_labels(arguments.label)
    return _show(session, session.client.snapshots.view(arguments.key, arguments.parent, labels=labels))


def _commit_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add("--label", metavar="KEY=VALUE", type=argument(parse_pair), action="append", help="Attach a label.")
    add("name", metavar="NAME", help="The name of the committed snapshot.")
    add("key", metavar="KEY", help="The active snapshot, whose key is given up.")


def _commit(arguments: Arguments, session: Session) -> int:
    session.client.snapshots.commit(arguments.name, arguments.key, labels=parse_labels(arguments.label))
    if session.json:
        session.document(_document(session.client.snapshots.stat(arguments.name)))
    else:
        session.line(arguments.name)
    return 0


def _mounts(arguments: Arguments, session: Session) -> int:
    from lamella import _core
    from lamella.snapshots.mounting import entering

    mounts = session.client.snapshots.mounts(arguments.key)
    status = _show(session, mounts)
    if not session.json and _core.helper_maps() is not None:
        session.note("# to enter it without root, at /mnt:")
        session.line(entering(mounts))
    return status


def _show(session: Session, mounts: Iterable[Mount]) -> int:
    if session.json:
        session.document([{"type": m.type, "source": m.source, "options": list(m.options)} for m in mounts])
    else:
        session.table(
            ("TYPE", "SOURCE", "OPTIONS"), ((m.type, m.source, ",".join(m.options)) for m in mounts)
        )
    return 0


def _mount_arguments(parser: Parser) -> None:
    parser.add_argument("key", metavar="KEY", help="The snapshot.")
    parser.add_argument("target", metavar="FOLDER", help="Where to mount it.")


def _mount(arguments: Arguments, session: Session) -> int:
    from lamella.snapshots import mount

    mount(session.client.snapshots.mounts(arguments.key), arguments.target)
    return 0


def _unmount_arguments(parser: Parser) -> None:
    parser.add_argument("targets", metavar="FOLDER", nargs="+", help="The folders.")


def _unmount(arguments: Arguments, session: Session) -> int:
    from lamella.snapshots import unmount

    return session.each(arguments.targets, unmount)


def _usage_arguments(parser: Parser) -> None:
    parser.add_argument("keys", metavar="KEY", nargs="*", help="The snapshots; all without one.")


def _usage(arguments: Arguments, session: Session) -> int:
    snapshots = session.client.snapshots
    keys = arguments.keys or sorted(info.name for info in snapshots.walk())
    found = [(key, snapshots.usage(key)) for key in keys]
    if session.json:
        session.document([{"name": key, "size": usage.size, "inodes": usage.inodes} for key, usage in found])
    else:
        session.table(
            ("NAME", ">SIZE", ">INODES"),
            ((key, output.size(usage.size), str(usage.inodes)) for key, usage in found),
        )
    return 0


def _diff_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add("-o", "--output", metavar="FILE", help="Write the changes to this file, as a layer.")
    add_compression_option(parser, what="the layer")
    add("key", metavar="KEY", help="The snapshot.")
    add("base", metavar="BASE", nargs="?", help="What to compare it with; its parent without this.")


def _diff(arguments: Arguments, session: Session) -> int:
    if arguments.output is None:
        return show_changes(session, session.client.snapshots.changes(arguments.key, arguments.base))
    with session.client.snapshots.diff(arguments.key, arguments.base) as changes:
        packed = changes.pack(
            arguments.output, compression=arguments.compression, threads=os.cpu_count() or 1
        )
    if session.json:
        names = ("digest", "size", "diff_id", "tar_size")
        session.document({name: getattr(packed, name) for name in names})
    else:
        session.line(packed.digest)
    return 0


def _rm_arguments(parser: Parser) -> None:
    parser.add_argument("keys", metavar="KEY", nargs="+", help="The snapshots.")


def _rm(arguments: Arguments, session: Session) -> int:
    return session.each(arguments.keys, session.client.snapshots.remove)


SNAPSHOTS = Group(
    "snapshots",
    "List, make and remove snapshots.",
    (
        Command(
            "ls",
            "List snapshots.",
            _ls,
            _ls_arguments,
            aliases=("list",),
            examples=[
                ("all snapshots", "lamella snapshots ls"),
                ("the writable ones", "lamella snapshots ls --kind active"),
                ("by label", "lamella snapshots ls --filter 'labels.stage==test'"),
            ],
        ),
        Command(
            "tree",
            "Draw which snapshot stands on which.",
            _tree,
            _tree_arguments,
            description="Sizes are what a snapshot holds itself, without its parents.",
            examples=[("the whole forest", "lamella snapshots tree")],
        ),
        Command(
            "info",
            "Show everything about a snapshot as JSON.",
            _info,
            _info_arguments,
            examples=[("what is known of a snapshot", "lamella snapshots info nginx-container-abc123")],
        ),
        Command(
            "prepare",
            "Make an active (writable) snapshot and show its mounts.",
            _prepare,
            _make_arguments,
            description="Nothing is mounted. Without PARENT the snapshot is empty.",
            examples=[
                (
                    "a writable copy of an image",
                    'lamella snapshots prepare work "$(lamella images inspect nginx | jq -r .chain_id)"',
                )
            ],
        ),
        Command(
            "view",
            "Make a read-only snapshot and show its mounts.",
            _view,
            _make_arguments,
            description="Nothing is mounted. Without PARENT the snapshot is empty.",
            examples=[
                (
                    "look into an image",
                    'lamella snapshots view nginx-readonly-snapshot "$(lamella images inspect nginx | jq -r .chain_id)"',
                )
            ],
        ),
        Command(
            "commit",
            "Turn an active snapshot into a committed one, which can be a parent.",
            _commit,
            _commit_arguments,
            description="Labels are those given here; the key of the active snapshot vanishes.",
            examples=[("freeze the work", "lamella snapshots commit base work")],
        ),
        Command(
            "mounts",
            "Show the mounts of a view or an active snapshot.",
            _mounts,
            _info_arguments,
            examples=[("type, source and options", "lamella snapshots mounts work --json")],
        ),
        Command(
            "mount",
            "Mount a view or an active snapshot on a folder.",
            _mount,
            _mount_arguments,
            description="It stays until it is unmounted, and takes root. Make a view of a committed snapshot first.",
            examples=[("write to the work", "lamella snapshots mount work /mnt")],
        ),
        Command(
            "unmount",
            "Unmount what is mounted on folders.",
            _unmount,
            _unmount_arguments,
            aliases=("umount",),
            examples=[("the work", "lamella snapshots unmount /mnt")],
        ),
        Command(
            "usage",
            "Show the bytes and inodes that snapshots hold themselves.",
            _usage,
            _usage_arguments,
            examples=[("what the work wrote so far", "lamella snapshots usage work")],
        ),
        Command(
            "diff",
            "Show what a snapshot changes of its parent, or of another snapshot.",
            _diff,
            _diff_arguments,
            description="A: added, C: changed, D: deleted. A folder is there when something in it is. With -o the changes "
            "are written as a layer; equal changes give equal bytes.",
            examples=[
                ("what the work wrote", "lamella snapshots diff work"),
                ("as a layer", "lamella snapshots diff -o layer.tar.gz work"),
                ("what two branches differ in", "lamella snapshots diff branch-2 branch-1"),
            ],
        ),
        Command(
            "rm",
            "Remove snapshots.",
            _rm,
            _rm_arguments,
            description="A snapshot that others stand on cannot be removed.",
            aliases=("remove", "delete"),
            examples=[("throw the work away", "lamella snapshots rm work")],
        ),
    ),
)
