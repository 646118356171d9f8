"""Leases: protection from garbage collection, for a while.

A lease names resources of its namespace; what it names, and what that refers to, is kept until the lease is deleted or
expires. Take one before looking whether something is there, name the thing, then look: it cannot go away any more. A
resource need not exist yet. A lease with the label ``containerd.io/gc.flat`` keeps only what it names itself.

=========================== ==========================================================================
type                        resource
=========================== ==========================================================================
``content``                 a digest; the blob itself also when other namespaces drop it
``snapshots/<snapshotter>`` a snapshot's key or name
``layers``                  a diffID: the unpacked folders of that layer
``ingests``                 a ref: kept also when it is older than a day
``images``                  an image's name: kept also when it has expired, with its content
=========================== ==========================================================================
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress

import msgspec

from lamella.config import Config, check_key
from lamella.digest import parse_digest
from lamella.errors import AlreadyExists, InvalidArgument, NotFound
from lamella.filters import compile_filters
from lamella.labels import GC_EXPIRE, check_labels, decode_labels, encode_labels, merge_labels
from lamella.metadata import Database, Transaction, timestamp
from lamella.metadata.clock import parse_time
from lamella.reserve import frees_space, with_reserve

DAY = 86400
KINDS = ("content", "ingests", "images", "layers", "snapshots")
"""What a resource's type begins with."""


class Lease(msgspec.Struct, frozen=True):
    """A lease as it was when it was read. Times are RFC 3339; ``expires_at`` is None for one that stays."""

    id: str
    labels: dict[str, str]
    created_at: str
    expires_at: str | None

    @property
    def expired(self) -> bool:
        """True when it protects nothing any more; the next garbage collection deletes it."""
        return self.expires_at is not None and self.expires_at <= timestamp()


class Resource(msgspec.Struct, frozen=True):
    """What a lease protects."""

    type: str
    id: str


class Leases:
    """The leases of one namespace."""

    def __init__(self, database: Database, config: Config) -> None:
        self._database = database
        self._namespace = config.namespace

    def create(
        self,
        id: str | None = None,
        *,
        expires_in: float | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Lease:
        """Create a lease that ends after ``expires_in`` seconds, or never.

        Without ``id`` it gets a random one. As in containerd the label ``containerd.io/gc.expire`` (RFC 3339) sets the
        end too. An ``id`` is any text, as there: its clients make some up that are no identifiers. AlreadyExists;
        InvalidArgument for an empty or very long id, a malformed label or time.
        """
        lease_id = check_key(id, "lease", "the id of a lease") if id is not None else os.urandom(8).hex()
        checked = check_labels(labels or {})
        expires_at = None
        if expires_in is not None:
            if not expires_in > 0:
                raise InvalidArgument(f"a lease cannot expire in {expires_in} seconds")
            try:
                expires_at = timestamp(expires_in)
            except (OverflowError, ValueError):
                raise InvalidArgument(f"a lease cannot expire in {expires_in} seconds") from None
        elif GC_EXPIRE in checked:
            expires_at = parse_time(checked[GC_EXPIRE])
        with self._database.write() as db:
            row = db.execute(
                """
                INSERT INTO leases (namespace, id, labels, created_at, expires_at) VALUES (?, ?, ?, ?, ?)
                ON CONFLICT DO NOTHING RETURNING id, labels, created_at, expires_at
                """,
                (self._namespace, lease_id, encode_labels(checked), timestamp(), expires_at),
            ).fetchone()
        if row is None:
            raise AlreadyExists(f"lease {lease_id} exists in namespace {self._namespace}")
        return _lease(*row)

    def get(self, id: str) -> Lease:
        """Return one lease. NotFound."""
        with self._database.read() as db:
            row = db.execute(
                "SELECT id, labels, created_at, expires_at FROM leases WHERE namespace = ? AND id = ?",
                (self._namespace, id),
            ).fetchone()
        if row is None:
            raise self._missing(id)
        return _lease(*row)

    def delete(self, id: str, *, synchronous: bool = False) -> None:
        """Delete a lease. With ``synchronous`` what it protected is collected before this returns. NotFound."""
        self._delete(id)
        if synchronous:
            from lamella.gc import collect

            with_reserve(self._database.config.root, lambda: collect(self._database, self._database.config))

    @frees_space
    def delete_labelled(self, key: str, value: str) -> None:
        """Delete the leases that have a label of this value. Twice is harmless."""
        with self._database.write() as db:
            db.execute(
                """
                DELETE FROM leases WHERE namespace = ?
                    AND EXISTS (SELECT 1 FROM json_each(leases.labels) WHERE key = ? AND value = ?)
                """,
                (self._namespace, key, value),
            )

    @frees_space
    def _delete(self, id: str) -> None:
        with self._database.write() as db:
            row = db.execute(
                "DELETE FROM leases WHERE namespace = ? AND id = ? RETURNING number", (self._namespace, id)
            ).fetchone()
        if row is None:
            raise self._missing(id)

    def update_labels(self, id: str, changes: Mapping[str, str]) -> Lease:
        """Set labels; an empty value removes one. The end stays. NotFound; InvalidArgument. Twice is harmless."""
        with self._database.write() as db:
            lease = self.get(id)
            labels = encode_labels(merge_labels(lease.labels, changes))
            db.execute(
                "UPDATE leases SET labels = ? WHERE namespace = ? AND id = ?", (labels, self._namespace, id)
            )
            return self.get(id)

    def add(self, lease_id: str, type: str, resource_id: str) -> None:
        """Protect a resource. NotFound for the lease; InvalidArgument for a malformed resource. Twice is harmless."""
        self.add_all(lease_id, [(type, resource_id)])

    def add_all(self, lease_id: str, resources: Iterable[tuple[str, str]]) -> None:
        """Protect several resources, (type, id) each, at once. Errors as :meth:`add`."""
        checked = [_check_resource(*resource) for resource in resources]
        with self._database.write() as db:
            number = self._number(db, lease_id)
            db.executemany(
                "INSERT OR IGNORE INTO lease_resources VALUES (?, ?, ?)",
                [(number, *each) for each in checked],
            )

    def remove(self, lease_id: str, type: str, resource_id: str) -> None:
        """Protect a resource no longer. Errors as :meth:`add`. Twice is harmless."""
        checked = _check_resource(type, resource_id)
        with self._database.write() as db:
            number = self._number(db, lease_id)
            db.execute(
                "DELETE FROM lease_resources WHERE lease = ? AND type = ? AND resource = ?",
                (number, *checked),
            )

    def resources(self, lease_id: str) -> list[Resource]:
        """Return what a lease protects, sorted. NotFound."""
        with self._database.read() as db:
            number = self._number(db, lease_id)
            rows = db.execute(
                "SELECT type, resource FROM lease_resources WHERE lease = ? ORDER BY type, resource",
                (number,),
            ).fetchall()
        return [Resource(type=row[0], id=row[1]) for row in rows]

    def list(self, *, filters: Iterable[str] = ()) -> list[Lease]:
        """Return the leases, sorted by identifier, those that expired included. Filters know ``id`` and ``labels``."""
        match = compile_filters([*filters])
        with self._database.read() as db:
            rows = db.execute(
                "SELECT id, labels, created_at, expires_at FROM leases WHERE namespace = ? ORDER BY id",
                (self._namespace,),
            ).fetchall()
        leases = [_lease(*row) for row in rows]
        return [lease for lease in leases if match({"id": lease.id, "labels": lease.labels})]

    @contextmanager
    def hold(self, *, expires_in: float = DAY, labels: Mapping[str, str] | None = None) -> Iterator[Lease]:
        """Give a lease for the length of a ``with`` block. If the process dies it ends after ``expires_in`` seconds."""
        lease = self.create(expires_in=expires_in, labels=labels)
        try:
            yield lease
        finally:
            with suppress(NotFound):  # somebody deleted it, or it expired
                self.delete(lease.id)

    def _number(self, db: Transaction, lease_id: str) -> int:
        row = db.execute(
            "SELECT number FROM leases WHERE namespace = ? AND id = ?", (self._namespace, lease_id)
        ).fetchone()
        if row is None:
            raise self._missing(lease_id)
        return int(row[0])

    def _missing(self, lease_id: str) -> NotFound:
        return NotFound(f"there is no lease {lease_id!r} in namespace {self._namespace}")


def _lease(id: str, labels: str, created_at: str, expires_at: str | None) -> Lease:
    return Lease(id=id, labels=decode_labels(labels), created_at=created_at, expires_at=expires_at)


def _check_resource(type: str, resource: str) -> tuple[str, str]:
    kind, _, snapshotter = type.partition("/")
    if not resource:
        raise InvalidArgument(f"the {type} resource of a lease has no name")
    if type in ("content", "layers"):
        parse_digest(resource)
    elif type not in ("ingests", "images") and not (
        kind == "snapshots" and snapshotter and "/" not in snapshotter
    ):
        raise InvalidArgument(
            f"a lease does not protect {type!r}",
            hint="The types are content, ingests, images, layers and snapshots/<snapshotter>.",
        )
    return type, resource
