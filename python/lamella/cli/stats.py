"""``lamella stats``: what running containers use."""

from __future__ import annotations

import time

from lamella.cli import EXIT_ERROR, output
from lamella.cli.parser import Arguments, Command, Parser, UsageError
from lamella.cli.values import argument, parse_duration
from lamella.typings import TYPE_CHECKING

if TYPE_CHECKING:
    from lamella.cli.session import Session
    from lamella.containers.container import Container
    from lamella.containers.statistics import Statistics

_HEADERS = (
    "ID",
    "NAME",
    ">CPU %",
    ">MEMORY",
    ">LIMIT",
    ">MEM %",
    ">NET IN",
    ">NET OUT",
    ">READ",
    ">WRITTEN",
    ">PIDS",
)
_CLEAR = "\x1b[H\x1b[J"
_SNAPSHOT_SECONDS = 0.5
"""What the processor's share is measured over where there is no stream."""


def _arguments(parser: Parser) -> None:
    add = parser.add_argument
    add("--no-stream", action="store_true", help="Show it once.")
    add(
        "--interval",
        metavar="DURATION",
        type=argument(parse_duration),
        default=1.0,
        help="Time between two readings (default: 1s).",
    )
    add("containers", metavar="CONTAINER", nargs="*", help="Names or ids; all that run when none is given.")


def _stats(arguments: Arguments, session: Session) -> int:
    if arguments.interval <= 0:
        raise UsageError("lamella stats: --interval has to be longer than nothing")
    containers = session.client.containers
    chosen = [containers.get(name) for name in arguments.containers]
    if arguments.no_stream:
        failed: list[Exception] = []
        first, _ = _read(chosen or containers.list(), failed)
        if first:
            time.sleep(_SNAPSHOT_SECONDS)
        again, _ = _read([container for container, _ in first], [])
        before = {container.id: reading for container, reading in first}
        # One that has ended in between is shown as it was.
        after = before | {container.id: _with_percent(reading, before) for container, reading in again}
        if session.json:
            session.document(list(after.values()))
        else:
            session.write(_table(list(after.values())))
        for error in failed:
            session.fail(error)
        return EXIT_ERROR if failed else 0
    return _follow(arguments, session, chosen)


def _follow(arguments: Arguments, session: Session, chosen: list[Container]) -> int:
    from lamella.errors import FailedPrecondition

    before: dict[str, Statistics] = {}
    begun = False
    while True:
        readings, gone = _read(chosen or session.client.containers.list(), [])
        if chosen and gone and not readings:
            if not begun:
                raise FailedPrecondition(
                    f"container {gone[0].name} is not running", hint="See 'lamella ps -a'."
                )
            return 0
        begun = True
        present = {container.id: _with_percent(reading, before) for container, reading in readings}
        if session.json:
            for reading in present.values():
                session.record(reading)
        else:
            session.write((_CLEAR if session.stdout_is_terminal else "") + _table(list(present.values())))
        session.flush()
        before = present
        time.sleep(arguments.interval)


def _read(
    containers: list[Container], failed: list[Exception]
) -> tuple[list[tuple[Container, Statistics]], list[Container]]:
    """Read all; give the readings and the containers that do not run, whose errors go to ``failed``."""
    from lamella.errors import FailedPrecondition

    readings, gone = [], []
    for container in containers:
        try:
            readings.append((container, container.stats()))
        except FailedPrecondition as error:
            gone.append(container)
            failed.append(error)
    return readings, gone


def _with_percent(reading: Statistics, before: dict[str, Statistics]) -> Statistics:
    from lamella.containers.statistics import with_percent

    return with_percent(reading, before.get(reading.id))


def _table(readings: list[Statistics]) -> str:
    return output.table(_HEADERS, (_row(reading) for reading in readings))


def _row(reading: Statistics) -> tuple[str, ...]:
    memory, networks = reading.memory, reading.networks.values()
    return (
        reading.id[:12],
        reading.name,
        output.MISSING if reading.cpu.percent is None else f"{reading.cpu.percent:.2f}",
        output.size(memory.usage),
        output.size(memory.limit),
        f"{memory.percent:.2f}",
        output.size(sum(network.rx_bytes for network in networks)),
        output.size(sum(network.tx_bytes for network in networks)),
        output.size(reading.io.read_bytes),
        output.size(reading.io.write_bytes),
        str(reading.pids.current),
    )


STATS = Command(
    "stats",
    "Show what running containers use.",
    _stats,
    _arguments,
    description="Processor (100 is one whole processor), memory without file cache that can be given back, network, block "
    "devices and processes; again after each interval until Ctrl-C or the end of the named containers. With --json an object a "
    "line and container, and one list with --no-stream.",
    examples=[
        ("watch all that run", "lamella stats"),
        ("one reading, for a script", "lamella stats --no-stream --json web | jq '.[0].memory.usage'"),
    ],
)
