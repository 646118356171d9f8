"""What tasks do, on its way from their monitors into the table of events.

A monitor outlives whoever started the container and never touches the database: it appends a line of JSON to a file of
the store (rust/launcher/src/monitor/events.rs), and whoever has to do with events takes the file in::

    <root>/events/spool                  {"at":...,"namespace":...,"topic":...,"event":{...}}, empty lines between them
    <root>/events/taken-<time>-<random>  one that is being taken in

A monitor opens the spool, holds it with a shared flock, sees that the path still leads to it, writes once, and closes it. To
take it in is to rename it, to wait until no monitor holds it (one that comes later sees the renaming), to insert its lines
and its name in one write transaction, and to remove it. Whoever is killed in between leaves a file that the next one
takes in, or only removes when its name is in ``drained_spools``: each line is an event once. What is no event is passed over.

Taken in is by those who follow events, by garbage collection, before a container's row goes, and after a start or exec when
the spool has grown (SPOOL_LARGE). A spool that nobody takes in is written up to a bound (the monitor's).
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from lamella.config import Config
from lamella.disk import is_there, translated
from lamella.errors import InvalidArgument, LamellaError
from lamella.metadata import Database, Transaction
from lamella.metadata.clock import parse_time
from lamella.structs import Malformed, Struct, decode, encode
from lamella.typings import Any

SPOOL_LARGE = 256 * 1024
"""Bytes of a spool that are taken in by whoever notices."""
WRITERS_SECONDS = 0.1
"""How long a monitor may take for its write, which takes microseconds, before its file is left for the next time."""
STOPPED_SECONDS = 10.0
"""How long the events of all tasks may wait for a monitor that was stopped in its write. It loses that line then."""

_FOLDER = "events"
_SPOOL = "spool"
_TAKEN = "taken-"
_HEX = frozenset("0123456789abcdef")


class _Line(Struct, frozen=True):
    at: str
    namespace: str
    topic: str
    event: dict[str, Any]


def spool_path(root: Path) -> Path:
    """Say where monitors write; neither the file nor its folder need be there."""
    return root / f"{_FOLDER}/{_SPOOL}"


def record(db: Transaction, at: str, namespace: str, topic: str, data: Mapping[str, Any]) -> None:
    """Add an event, as part of a write transaction."""
    db.execute(
        "INSERT INTO events (at, namespace, topic, data) VALUES (?, ?, ?, ?)",
        (at, namespace, topic, encode(data).decode()),
    )


def drain(database: Database, config: Config) -> None:
    """Bring all events that monitors have written into the table. Twice is harmless."""
    spools = take(config.root)
    if spools:
        take_in(database, spools)


def drain_if_large(database: Database, config: Config) -> None:
    """Do that if much has come together. Never fails: whoever calls this has something else to do."""
    with suppress(OSError, LamellaError):
        if os.stat(f"{config.root}/{_FOLDER}/{_SPOOL}").st_size > SPOOL_LARGE:  # noqa: PTH116 (after each start)
            drain(database, config)


def take(root: Path) -> list[str]:
    """Give the paths to take in, oldest first, the present spool among them; no monitor writes to them any more."""
    # Strings: those who follow come here 25 times a second, and so does the end of each container.
    folder = f"{root}/{_FOLDER}"
    with translated("take in the events of tasks"):
        try:
            names = os.listdir(folder)  # noqa: PTH208
        except FileNotFoundError:
            return []
        if _SPOOL in names:
            name = f"{_TAKEN}{time.time_ns():020}-{os.urandom(8).hex()}"
            try:
                os.rename(f"{folder}/{_SPOOL}", f"{folder}/{name}")  # noqa: PTH104
                names.append(name)
            except FileNotFoundError:  # another was faster
                names = os.listdir(folder)  # noqa: PTH208
        found = []
        for name in sorted([name for name in names if _is_taken(name)]):
            if not _is_complete(folder, name):
                break  # the later ones wait with it, for the order
            found.append(f"{folder}/{name}")
        return found


def _is_taken(name: str) -> bool:
    """Say whether a name is one that :func:`take` gave: the time in 20 digits, and 16 hex digits."""
    time_text, dash, random_text = name.removeprefix(_TAKEN).partition("-")
    return (
        name.startswith(_TAKEN)
        and (len(time_text), dash, len(random_text)) == (20, "-", 16)
        and _HEX.issuperset(random_text)
        and time_text.isascii()
        and time_text.isdigit()
    )


def _is_complete(folder: str, name: str) -> bool:
    """Wait a little until no monitor holds a file that was renamed."""
    if time.time_ns() - int(name.split("-")[1]) > STOPPED_SECONDS * 1e9:
        return True
    try:
        descriptor = os.open(f"{folder}/{name}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return True  # it was taken in meanwhile
    try:
        deadline = time.monotonic() + WRITERS_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.001)
            else:
                return True
    finally:
        os.close(descriptor)


def take_in(database: Database, spools: Sequence[str]) -> None:
    """Insert the lines of files that :func:`take` gave, in one transaction, or as part of the one that is open."""
    with database.write() as db:
        for (name,) in db.execute("SELECT name FROM drained_spools").fetchall():
            if not is_there(f"{database.config.root}/{_FOLDER}/{name}"):
                db.execute("DELETE FROM drained_spools WHERE name = ?", (name,))
        for path in spools:
            with translated("take in the events of tasks"):
                try:
                    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
                        text = file.readall()
                except FileNotFoundError:
                    continue  # another took it in
            new = db.execute(
                "INSERT INTO drained_spools VALUES (?) ON CONFLICT DO NOTHING RETURNING name",
                (path.rpartition("/")[2],),
            ).fetchone()
            if new is not None:
                _insert(db, text)
        database.after_commit(lambda: _remove(spools))


def _remove(spools: Sequence[str]) -> None:
    for path in spools:
        with suppress(OSError):  # the next one does it
            os.unlink(path)  # noqa: PTH108


def _insert(db: Transaction, text: bytes) -> None:
    names: dict[tuple[str, str], str | None] = {}
    for piece in text.split(b"\n"):
        if not piece:
            continue
        try:
            line = decode(piece, _Line)
            key = line.namespace, str(line.event["container_id"])
            at = parse_time(line.at)
        except (Malformed, InvalidArgument, KeyError):
            continue  # half of one, which a full disk left, or no event at all
        if key not in names:
            row = db.execute("SELECT name FROM containers WHERE namespace = ? AND id = ?", key).fetchone()
            names[key] = row[0] if row is not None else None
        name = names[key]
        record(
            db, at, line.namespace, line.topic, line.event if name is None else {**line.event, "name": name}
        )
