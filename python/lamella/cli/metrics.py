"""``lamella metrics``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lamella.cli.output import visible_json
from lamella.cli.parser import Arguments, Command, Parser

if TYPE_CHECKING:
    from lamella.cli.session import Session


def _arguments(parser: Parser) -> None:
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="Write to this file, replaced at once, instead of stdout."
    )


def _metrics(arguments: Arguments, session: Session) -> int:
    from lamella import metrics

    client = session.client
    if session.json:
        import msgspec

        text = visible_json(msgspec.json.format(msgspec.json.encode(client.metrics()), indent=2)) + "\n"
    else:
        text = metrics.exposition(client)
    if arguments.output is None:
        session.write(text)
    else:
        _replace(arguments.output, text)
    problem = metrics.recorder(client.config.state).problem
    if problem is not None:
        session.note(f"lamella: nothing is counted: {problem}")
    return 0


def _replace(name: str, text: str) -> None:
    """Write a file that readers see whole or not at all; others may read it, as node_exporter has to."""
    import os
    from pathlib import Path

    path = Path(name)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fresh.write_text(text, encoding="utf-8")
        fresh.chmod(0o644)
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


METRICS = Command(
    "metrics",
    "Print counters and gauges for Prometheus.",
    _metrics,
    _arguments,
    description="Counts what all processes have done with this store, in all namespaces, since the machine started: pulls, "
    "bytes, blobs and layers that were here already, snapshots, starts of containers, garbage collections, waits for locks, "
    "errors. What is in the store is counted now. The format is Prometheus' text.",
    examples=[
        ("what was pulled and run, and how long it took", "lamella metrics"),
        (
            "for node_exporter's textfile collector, from a timer",
            "lamella metrics --output /var/lib/node_exporter/lamella.prom",
        ),
        (
            "one number, for a script",
            "lamella --json metrics | jq '.[] | select(.name == \"lamella_images\").samples[].value'",
        ),
    ],
)
