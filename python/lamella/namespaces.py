"""Namespaces: what separates the users of one store.

Images, content rows, snapshots, containers, volumes and leases belong to one; blobs and unpacked layers are shared beneath. A
namespace comes into being with the first thing put into it, or is created here to give it labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from lamella.config import check_identifier
from lamella.disk import names_in
from lamella.errors import AlreadyExists, FailedPrecondition, NotFound
from lamella.labels import check_labels, decode_labels, encode_labels, merge_labels
from lamella.metadata import Database, timestamp
from lamella.reserve import frees_space

_CONTENTS = ("images", "containers", "snapshots", "content", "leases")


class Namespace(msgspec.Struct, frozen=True):
    """A namespace as it was when it was read. Times are RFC 3339."""

    name: str
    labels: dict[str, str]
    created_at: str
    updated_at: str


class Namespaces:
    """The namespaces of one store."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, name: str, *, labels: Mapping[str, str] | None = None) -> Namespace:
        """Create a namespace. AlreadyExists; InvalidArgument for a malformed name or label."""
        check_identifier(name, "namespace")
        text = encode_labels(check_labels(labels or {}))
        now = timestamp()
        with self._database.write() as db:
            row = db.execute(
                "INSERT INTO namespaces VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING RETURNING *",
                (name, text, now, now),
            ).fetchone()
        if row is None:
            raise AlreadyExists(f"namespace {name} exists")
        return _namespace(*row)

    def get(self, name: str) -> Namespace:
        """Return one namespace. NotFound."""
        with self._database.read() as db:
            row = db.execute("SELECT * FROM namespaces WHERE name = ?", (name,)).fetchone()
        if row is None:
            raise _missing(name)
        return _namespace(*row)

    def list(self) -> list[Namespace]:
        """Return all namespaces, sorted by name."""
        with self._database.read() as db:
            rows = db.execute("SELECT * FROM namespaces ORDER BY name").fetchall()
        return [_namespace(*row) for row in rows]

    def update_labels(self, name: str, changes: Mapping[str, str]) -> Namespace:
        """Set labels; an empty value removes one. NotFound, InvalidArgument. Twice is harmless."""
        with self._database.write() as db:
            row = db.execute("SELECT labels FROM namespaces WHERE name = ?", (name,)).fetchone()
            if row is None:
                raise _missing(name)
            text = encode_labels(merge_labels(decode_labels(row[0]), changes))
            row = db.execute(
                "UPDATE namespaces SET labels = ?, updated_at = ? WHERE name = ? RETURNING *",
                (text, timestamp(), name),
            ).fetchone()
        return _namespace(*row)

    @frees_space
    def delete(self, name: str) -> None:
        """Delete an empty namespace. NotFound; FailedPrecondition, saying what is in it, when it is not empty."""
        with self._database.write() as db:
            if db.execute("SELECT 1 FROM namespaces WHERE name = ?", (name,)).fetchone() is None:
                raise _missing(name)
            held = [
                table
                for table in _CONTENTS
                if db.execute(f"SELECT 1 FROM {table} WHERE namespace = ? LIMIT 1", (name,)).fetchone()  # noqa: S608
            ]
            if volumes_of(self._database.config.root, name):
                held.append("volumes")
            if held:
                raise FailedPrecondition(
                    f"namespace {name} is not empty: it has {', '.join(held)}",
                    hint="Remove its containers, volumes, snapshots and images, then run lamella gc.",
                )
            db.execute("DELETE FROM namespaces WHERE name = ?", (name,))


def volumes_of(root: Path, namespace: str) -> list[str]:
    """Name the volumes of a namespace, sorted (:mod:`lamella.containers.volumes`)."""
    return sorted(name for name in names_in(root / "volumes" / namespace) if not name.startswith("."))


def _namespace(name: str, labels: str, created_at: str, updated_at: str) -> Namespace:
    return Namespace(name=name, labels=decode_labels(labels), created_at=created_at, updated_at=updated_at)


def _missing(name: str) -> NotFound:
    return NotFound(f"there is no namespace {name!r}")
