"""``lamella containers``: records, and the tasks that run for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lamella.cli import EXIT_TIMEOUT, output
from lamella.cli.changes import add_commit_options, add_compression_option, show_changes
from lamella.cli.cp import CP, EXPORT
from lamella.cli.create import create_container
from lamella.cli.exec import ATTACH, EXEC
from lamella.cli.logs import LOGS
from lamella.cli.options import (
    USAGE,
    add_container_options,
    add_terminal_options,
)
from lamella.cli.parser import Arguments, Command, Group, Parser, UsageError
from lamella.cli.port import PORT
from lamella.cli.pull import add_pull_options, show_image
from lamella.cli.stats import STATS
from lamella.cli.top import TOP
from lamella.cli.update import UPDATE
from lamella.cli.values import argument, parse_duration, parse_labels, parse_pair, parse_signal

if TYPE_CHECKING:
    from lamella.cli.session import Session
    from lamella.containers.container import Container


_COMMAND_WIDTH = 30


def add_container_filter(parser: Parser, *short: str) -> None:
    """Add ``--filter``, in docker's words or containerd's."""
    parser.add_argument(
        *("--filter", *short),
        metavar="FILTER",
        dest="filters",
        action="append",
        default=[],
        help="Only what matches: id, name, label, status, exited, ancestor, before, since, volume or network, as status=exited; "
        "or in containerd's language, by id, name, image, status, snapshotter, runtime.name and labels.",
    )


def _ls_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add("-a", "--all", action="store_true", help="Also those that don't run.")
    add_container_filter(parser, "-f")
    add("-q", "--quiet", dest="ids_only", action="store_true", help="Print ids alone.")
    add("--no-trunc", action="store_true", help="Print ids and commands whole.")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "-n", "--last", metavar="NUMBER", type=int, help="Only the newest ones, also those that don't run."
    )
    what.add_argument(
        "-l", "--latest", dest="last", action="store_const", const=1, help="Only the newest one."
    )


def _ls(arguments: Arguments, session: Session) -> int:
    containers = session.client.containers.list(
        all=arguments.all or arguments.last is not None, filters=arguments.filters
    )
    if arguments.last is not None:
        containers = containers[-arguments.last :] if arguments.last > 0 else containers
    if arguments.ids_only:
        ids = [container.id for container in containers]
        if session.json:
            session.document(ids)
        else:
            session.write("".join(f"{container_id}\n" for container_id in ids))
    elif session.json:
        session.document([_document(container) for container in containers])
    else:
        session.table(
            ("ID", "NAME", "IMAGE", "COMMAND", "STATUS", "CREATED", "PORTS"),
            (
                (
                    container.id if arguments.no_trunc else container.short_id,
                    container.name,
                    container.image,
                    _shorten(" ".join(container.command), None if arguments.no_trunc else _COMMAND_WIDTH),
                    _status(container),
                    output.age(container.created_at),
                    ", ".join(container.shown_ports) or "-",
                )
                for container in containers
            ),
        )
    return 0


def _document(container: Container) -> dict[str, Any]:
    """Give what a list shows: everything but the runtime spec."""
    document = container.inspect()
    spec = document.pop("spec")
    return document | {"command": spec.get("process", {}).get("args", []), "ports": container.shown_ports}


def _status(container: Container) -> str:
    status = container.status
    if status == "restarting" and (restarts := container.task.restarts()) is not None:
        return f"{status} ({restarts.exit.exit_code})"
    if status == "running" and container.task.paused():
        return "paused"
    code = container.exit_code
    return f"{status} ({code})" if status == "stopped" and code is not None else status


def _shorten(text: str, width: int | None) -> str:
    return text if width is None or len(text) <= width else text[: width - 3] + "..."


def _create_arguments(parser: Parser) -> None:
    add_pull_options(parser, when=True)
    add_container_options(parser)


def _create(arguments: Arguments, session: Session) -> int:
    container = create_container(session, arguments)
    if session.json:
        session.document(_document(container))
    else:
        session.line(container.id)
    return 0


def _start_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add("-a", "--attach", action="store_true", help="Stay until its end; the exit status is the container's.")
    add("-i", "--interactive", action="store_true", help="Connect stdin, if the container was made with -i.")
    add_terminal_options(parser)
    add("containers", metavar="CONTAINER", nargs="+", help="Names or ids.")


def _start(arguments: Arguments, session: Session) -> int:
    containers = session.client.containers
    if not arguments.attach and not arguments.interactive:
        return session.each(arguments.containers, lambda name: containers.get(name).start())
    if len(arguments.containers) != 1:
        raise UsageError("lamella containers start: -a takes one container")

    from lamella.cli.streams import Signals, follow

    container = containers.get(arguments.containers[0])
    with Signals() as signals:
        attached = container.start(attach=True)
        assert attached is not None
        with attached:
            status = follow(
                session,
                container,
                attached,
                signals,
                stdin=arguments.interactive,
                tty=container.record.extra.tty,
                detach_keys=arguments.detach_keys,
            )
    return status or 0


def _names_arguments(parser: Parser) -> None:
    parser.add_argument("containers", metavar="CONTAINER", nargs="+", help="Names or ids.")


def _wait_arguments(parser: Parser) -> None:
    parser.add_argument(
        "--timeout",
        metavar="DURATION",
        type=argument(parse_duration),
        help="Give up after this time (exit status 124).",
    )
    parser.add_argument(
        "--condition",
        choices=("not-running", "next-exit", "removed"),
        default="not-running",
        help="Wait for its end (default), for the next end of a run, or for its removal.",
    )
    _names_arguments(parser)


def _wait(arguments: Arguments, session: Session) -> int:
    from lamella.errors import DeadlineExceeded

    codes = []
    for name in arguments.containers:
        try:
            code = session.client.containers.get(name).wait(arguments.timeout, condition=arguments.condition)
        except DeadlineExceeded as error:
            session.fail(error)
            return EXIT_TIMEOUT
        codes.append({"container": name, "exit_code": code})
        if not session.json:
            session.line("" if code is None else str(code))
            session.flush()
    if session.json:
        session.document(codes)
    return 0


def _kill_arguments(parser: Parser) -> None:
    parser.add_argument(
        "-s",
        "--signal",
        metavar="SIGNAL",
        type=argument(parse_signal),
        default="SIGKILL",
        help="Send this signal (default: KILL).",
    )
    _names_arguments(parser)


def _kill(arguments: Arguments, session: Session) -> int:
    containers = session.client.containers
    return session.each(arguments.containers, lambda name: containers.get(name).kill(arguments.signal))


def _stop_arguments(parser: Parser) -> None:
    parser.add_argument(
        "-t",
        "--time",
        metavar="DURATION",
        type=argument(parse_duration),
        help="Kill it after this time (default: the container's own, 10s).",
    )
    _names_arguments(parser)


def _stop(arguments: Arguments, session: Session) -> int:
    containers = session.client.containers
    return session.each(arguments.containers, lambda name: containers.get(name).stop(arguments.time))


def _restart(arguments: Arguments, session: Session) -> int:
    containers = session.client.containers
    return session.each(arguments.containers, lambda name: containers.get(name).restart(arguments.time))


def _pause(arguments: Arguments, session: Session) -> int:
    containers = session.client.containers
    return session.each(arguments.containers, lambda name: containers.get(name).pause())


def _resume(arguments: Arguments, session: Session) -> int:
    containers = session.client.containers
    return session.each(arguments.containers, lambda name: containers.get(name).resume())


def _rm_arguments(parser: Parser) -> None:
    parser.add_argument("-f", "--force", action="store_true", help="Kill those that run.")
    parser.add_argument(
        "-v", "--volumes", action="store_true", help="Also their anonymous volumes; those with a name stay."
    )
    _names_arguments(parser)


def _rm(arguments: Arguments, session: Session) -> int:
    containers = session.client.containers
    return session.each(
        arguments.containers,
        lambda name: containers.get(name).remove(force=arguments.force, volumes=arguments.volumes),
    )


def _inspect_arguments(parser: Parser) -> None:
    parser.add_argument("container", metavar="CONTAINER", help="Name or id.")


def _inspect(arguments: Arguments, session: Session) -> int:
    session.document(session.client.containers.get(arguments.container).inspect())
    return 0


def _rename_arguments(parser: Parser) -> None:
    parser.add_argument("container", metavar="CONTAINER", help="Name or id.")
    parser.add_argument("name", metavar="NAME", help="The new name.")


def _rename(arguments: Arguments, session: Session) -> int:
    session.client.containers.get(arguments.container).rename(arguments.name)
    return 0


def _prune_arguments(parser: Parser) -> None:
    parser.add_argument("-v", "--volumes", action="store_true", help="Also their anonymous volumes.")
    parser.add_argument("-f", "--force", action="store_true", help="Nothing: it never asks.")
    add_container_filter(parser)


def _prune(arguments: Arguments, session: Session) -> int:
    removed = session.client.containers.prune(filters=arguments.filters, volumes=arguments.volumes)
    if session.json:
        session.document(removed)
    else:
        session.write("".join(f"{name}\n" for name in removed))
    return 0


_LS_EXAMPLES = [
    ("what runs", "lamella ps"),
    ("everything, for a script", "lamella ps -a --json | jq -r '.[] | [.name, .status] | @tsv'"),
]


def _diff(arguments: Arguments, session: Session) -> int:
    return show_changes(session, session.client.containers.get(arguments.container).changes())


def _commit_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add_commit_options(
        parser,
        instructions=": CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME or WORKDIR",
    )
    add(
        "--no-pause",
        action="store_true",
        help="Let it run meanwhile; files that it writes may be half there.",
    )
    add_compression_option(parser, what="the layer")
    add("--squash", action="store_true", help="Give the image one layer of all that is above its image.")
    add("--branch", metavar="NAME", help="The branch's name (default: made from the container's).")
    add(
        "--label",
        metavar="KEY=VALUE",
        type=argument(parse_pair),
        action="append",
        help="Attach a label to the branch.",
    )
    add("container", metavar="CONTAINER", help="Name or id.")
    add("reference", metavar="IMAGE", nargs="?", help="The new image's name; without it a branch is made.")


def _commit(arguments: Arguments, session: Session) -> int:
    container = session.client.containers.get(arguments.container)
    if arguments.reference is None:
        if arguments.message or arguments.author or arguments.changes or arguments.squash:
            raise UsageError(
                "lamella containers commit: a branch has no message, author, changes or squashed layers",
                hint="Name an image.",
            )
        branch = container.commit(
            branch=arguments.branch, labels=parse_labels(arguments.label), pause=not arguments.no_pause
        )
        if session.json:
            session.document(branch.inspect())
        else:
            session.line(branch.name)
        return 0
    if arguments.branch is not None or arguments.label:
        raise UsageError(
            "lamella containers commit: --branch and --label are for a branch", hint="Leave IMAGE out."
        )
    image = container.commit(
        arguments.reference,
        message=arguments.message,
        author=arguments.author,
        changes=arguments.changes,
        pause=not arguments.no_pause,
        compression=arguments.compression,
        squash=arguments.squash,
    )
    return show_image(session, image)


def _branch_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add("-n", "--count", metavar="NUMBER", type=int, default=1, help="How many (default: 1).")
    add("--start", action="store_true", help="Start them too.")
    add(
        "--no-pause",
        action="store_true",
        help="Let it run meanwhile; files that it writes may be half there.",
    )
    add("container", metavar="CONTAINER", help="Name or id.")


def _branch(arguments: Arguments, session: Session) -> int:
    container = session.client.containers.get(arguments.container)
    made = container.branch(arguments.count, pause=not arguments.no_pause)
    if arguments.start:
        for each in made:
            each.start()
    if session.json:
        session.document([_document(each) for each in made])
    else:
        session.write("".join(f"{each.id}\n" for each in made))
    return 0


PS = Command("ps", "List containers.", _ls, _ls_arguments, examples=_LS_EXAMPLES)

CONTAINERS = Group(
    "containers",
    "Create, start, watch and remove containers.",
    (
        Command("ls", "List containers.", _ls, _ls_arguments, aliases=("list",), examples=_LS_EXAMPLES),
        Command(
            "create",
            "Make a container and print its id; nothing runs yet.",
            _create,
            _create_arguments,
            usage=USAGE,
            runs_program=True,
            description="Makes the record and the active snapshot. Everything behind REF belongs to the command.",
            examples=[
                ("one with a name", "lamella containers create --name nginx-container-abc123 nginx:latest"),
                ("and start it", "lamella containers start nginx-container-abc123"),
            ],
        ),
        Command(
            "start",
            "Start containers.",
            _start,
            _start_arguments,
            runs_program=True,
            examples=[
                ("in the background", "lamella containers start web"),
                ("and see what it writes", "lamella containers start -a web"),
            ],
        ),
        EXEC,
        ATTACH,
        Command(
            "wait",
            "Wait for containers to end and print their exit statuses.",
            _wait,
            _wait_arguments,
            examples=[("at most a minute", "lamella containers wait --timeout 1m web")],
        ),
        Command(
            "kill",
            "Send a signal to containers.",
            _kill,
            _kill_arguments,
            examples=[
                ("end one now", "lamella containers kill web"),
                ("reload", "lamella containers kill -s HUP web"),
            ],
        ),
        Command(
            "stop",
            "Ask containers to end, and kill those that don't in time.",
            _stop,
            _stop_arguments,
            description="Sends the container's stop signal, SIGTERM by default.",
            examples=[("with five seconds to finish", "lamella containers stop -t 5s web")],
        ),
        Command(
            "restart",
            "Stop containers and start them again.",
            _restart,
            _stop_arguments,
            description="Who is attached or follows the logs stays with the container. One that does not run is started.",
            examples=[("with little patience", "lamella containers restart -t 1s web")],
        ),
        Command(
            "pause",
            "Freeze all processes of containers.",
            _pause,
            _names_arguments,
            examples=[("hold one for a while", "lamella containers pause web")],
        ),
        Command(
            "resume",
            "Let paused containers go on.",
            _resume,
            _names_arguments,
            aliases=("unpause",),
            examples=[("go on", "lamella containers resume web")],
        ),
        LOGS,
        PORT,
        CP,
        STATS,
        TOP,
        UPDATE,
        Command(
            "diff",
            "Show what a container changed of its image.",
            _diff,
            _inspect_arguments,
            description="A: added, C: changed, D: deleted. A folder is there when something in it is.",
            examples=[("what an installer left", "lamella containers diff builder")],
        ),
        Command(
            "commit",
            "Make a branch, or an image, of what a container changed.",
            _commit,
            _commit_arguments,
            description="Without IMAGE it freezes what the container has written, and prints the name of the branch on which "
            "others can stand: at once for one that does not run; one that runs is paused while its files are copied. It is "
            "paused for an image, too. What it has mounted is no part of either.",
            examples=[
                (
                    "a branch, and a container on it",
                    "lamella run --rm --branch $(lamella containers commit box) ls /",
                ),
                (
                    "keep the state of a sandbox",
                    "lamella containers commit -m 'tools installed' sandbox tools:1",
                ),
                (
                    "with another command",
                    'lamella containers commit -c \'CMD ["nginx", "-g", "daemon off;"]\' web web:2',
                ),
            ],
        ),
        EXPORT,
        Command(
            "branch",
            "Make containers like one, each on what that has written.",
            _branch,
            _branch_arguments,
            description="Freezes the container as `lamella containers commit` does, and prints the ids of the new ones. Each has "
            "the command and the options of the first, and a writable layer of its own.",
            examples=[("a hundred that run", "lamella containers branch -n 100 --start sandbox")],
        ),
        Command(
            "rm",
            "Remove containers.",
            _rm,
            _rm_arguments,
            description="Removes the record, the active snapshot and the log; neither the image nor other snapshots nor volumes.",
            aliases=("remove", "delete"),
            examples=[
                ("one that has ended", "lamella containers rm web"),
                ("all of them", "lamella containers rm -f $(lamella ps -aq)"),
            ],
        ),
        Command(
            "rename",
            "Give a container another name.",
            _rename,
            _rename_arguments,
            description="Also one that runs. Its snapshot keeps its key, and the container its host name.",
            examples=[("keep the old one", "lamella containers rename web web-old")],
        ),
        Command(
            "prune",
            "Remove the containers that don't run.",
            _prune,
            _prune_arguments,
            description="Those that have ended, and those that were never started. Branches and images that stand on them stay, "
            "and so does a container that others stand on.",
            examples=[
                ("all of them", "lamella containers prune"),
                ("those of one job", "lamella containers prune -v --filter labels.job==42"),
            ],
        ),
        Command(
            "inspect",
            "Show everything about a container as JSON.",
            _inspect,
            _inspect_arguments,
            description="Among other fields: status, pid, exit_code, snapshot_key and spec, the OCI runtime spec.",
            examples=[("how it ended", "lamella containers inspect web | jq .exit_code")],
        ),
    ),
)
