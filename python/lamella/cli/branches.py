"""``lamella branches``: what containers have left behind when they were frozen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lamella.cli import output
from lamella.cli.changes import add_commit_options, add_compression_option
from lamella.cli.parser import Arguments, Command, Group, Parser, add_filter

if TYPE_CHECKING:
    from lamella.cli.session import Session
    from lamella.containers.branches import Branch


def _ls_arguments(parser: Parser) -> None:
    add_filter(parser, "name, parent, image and labels")
    parser.add_argument("-q", "--quiet", dest="names_only", action="store_true", help="Print names alone.")


def _ls(arguments: Arguments, session: Session) -> int:
    branches = session.client.branches.list(filters=arguments.filters)
    if arguments.names_only:
        names = [branch.name for branch in branches]
        if session.json:
            session.document(names)
        else:
            session.write("".join(f"{name}\n" for name in names))
    elif session.json:
        session.document([_document(branch) for branch in branches])
    else:
        session.table(
            ("NAME", "PARENT", "IMAGE", "CREATED", ">SIZE"),
            (
                (
                    branch.name,
                    branch.parent.name if branch.parent else "-",
                    branch.image_name,
                    output.age(branch.created_at),
                    output.size(branch.size),
                )
                for branch in branches
            ),
        )
    return 0


def _document(branch: Branch) -> dict[str, Any]:
    return branch.inspect()


def _tree_arguments(parser: Parser) -> None:
    parser.add_argument("root_name", metavar="BRANCH", nargs="?", help="Only this one and what stands on it.")


def _tree(arguments: Arguments, session: Session) -> int:
    branches = {branch.name: branch for branch in session.client.branches.list()}
    parents = {name: parent.name for name, branch in branches.items() if (parent := branch.parent)}
    children: dict[str, list[str]] = {}
    for name, above in parents.items():
        children.setdefault(above, []).append(name)
    if arguments.root_name:
        roots = [session.client.branches.get(arguments.root_name).name]
    else:
        roots = [name for name in branches if name not in parents]
    rows, nodes = [], []
    for name, depth, lines in output.tree(roots, children):
        branch = branches[name]
        boxes = ", ".join(container.name for container in branch.containers)
        rows.append((f"{lines}{name}", branch.image_name, boxes or "-", output.size(branch.size)))
        nodes.append(_document(branch) | {"depth": depth})
    if session.json:
        session.document(nodes)
    else:
        session.table(("NAME", "IMAGE", "CONTAINERS", ">SIZE"), rows)
    return 0


def _name_arguments(parser: Parser) -> None:
    parser.add_argument("branch", metavar="BRANCH", help="Its name.")


def _inspect(arguments: Arguments, session: Session) -> int:
    session.document(_document(session.client.branches.get(arguments.branch)))
    return 0


def _rm_arguments(parser: Parser) -> None:
    parser.add_argument(
        "-r", "--recursive", action="store_true", help="Remove the branches that stand on them, too."
    )
    parser.add_argument("branches", metavar="BRANCH", nargs="+", help="Their names.")


def _rm(arguments: Arguments, session: Session) -> int:
    branches = session.client.branches
    return session.each(arguments.branches, lambda name: branches.remove(name, recursive=arguments.recursive))


def _commit_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add_commit_options(parser, instructions=", such as CMD or ENV")
    add_compression_option(parser, what="the layers")
    add("--squash", action="store_true", help="Make one layer of all that is above the image.")
    add("branch", metavar="BRANCH", help="Its name.")
    add("reference", metavar="IMAGE", help="The new image's name.")


def _commit(arguments: Arguments, session: Session) -> int:
    from lamella.cli.pull import show_image

    image = session.client.branches.get(arguments.branch).commit(
        arguments.reference,
        message=arguments.message,
        author=arguments.author,
        changes=arguments.changes,
        compression=arguments.compression,
        squash=arguments.squash,
    )
    return show_image(session, image)


BRANCHES = Group(
    "branches",
    "List, export and remove frozen containers.",
    (
        Command(
            "ls",
            "List branches.",
            _ls,
            _ls_arguments,
            aliases=("list",),
            description="A branch is what `lamella containers commit` leaves: others can stand on it (run --branch).",
            examples=[("those of one image", "lamella branches ls --filter 'image~=nginx'")],
        ),
        Command(
            "tree",
            "Draw which branch stands on which, and the containers on them.",
            _tree,
            _tree_arguments,
            examples=[("what stands on one", "lamella branches tree box-2f6a90c1d4e7")],
        ),
        Command(
            "inspect",
            "Show everything about a branch as JSON.",
            _inspect,
            _name_arguments,
            examples=[("what it takes on disk", "lamella branches inspect box-2f6a90c1d4e7 | jq .size")],
        ),
        Command(
            "commit",
            "Make an image of a branch.",
            _commit,
            _commit_arguments,
            description="The image has the layers of the image beneath, and one for each branch.",
            examples=[
                ("to push it somewhere", "lamella branches commit box-2f6a90c1d4e7 registry.test/tools:1")
            ],
        ),
        Command(
            "rm",
            "Remove branches.",
            _rm,
            _rm_arguments,
            description="Those on which containers stand are not removed, nor others with branches unless --recursive is given.",
            aliases=("remove", "delete"),
            examples=[("one and all that stand on it", "lamella branches rm -r box-2f6a90c1d4e7")],
        ),
    ),
)
