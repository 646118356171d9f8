"""What the metadata keeps of a container: one row, and how it is found, written and changed."""

from __future__ import annotations

from collections.abc import Iterator

from lamella.containers.id_maps import IdMaps
from lamella.containers.log_config import LogConfig
from lamella.containers.networks import Endpoint, Settings
from lamella.containers.restart_policy import RestartPolicy
from lamella.errors import AlreadyExists, NotFound
from lamella.metadata import Transaction, timestamp
from lamella.structs import Struct, asdict, decode, encode
from lamella.typings import Any


class Source(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one ``sources/N`` of the spec is: an image's view, by its key, or a volume; ``subpath``: the part that is shown."""

    image: str = ""
    snapshot: str = ""
    volume: str = ""
    subpath: str = ""


class TypedValue(Struct, frozen=True):
    """Bytes, and the type that protobuf's Any has for them."""

    type_url: str
    value: bytes


class Foreign(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What clients of containerd's API keep in a record that the library has no use for (:mod:`.foreign`)."""

    spec_type: str | None = None
    """The type of the spec where it is not the runtime spec's."""
    spec: bytes | None = None
    """The spec where it is no JSON."""
    runtime_options: TypedValue | None = None
    program: str = ""
    """The OCI runtime that the options name; empty for lamella's own."""
    extensions: dict[str, TypedValue] = {}
    sandbox: str = ""


class Extra(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the record keeps beyond the runtime spec."""

    network: str = "none"
    network_settings: Settings | None = None
    networks: list[Endpoint] = []
    """Further CNI networks."""
    exposed: list[str] = []
    """The ports that it serves, ``80/tcp``."""
    hostname: str = ""
    domainname: str = ""
    stdin: bool = False
    tty: bool = False
    stop_signal: str | None = None
    stop_timeout: float | None = None
    auto_remove: bool = False
    pool: str = ""
    """The pool in which it waits for its program."""
    manifest: str = ""
    """The digest of its image's manifest, for what stands on the container; empty in records of older releases."""
    log: LogConfig = LogConfig()
    volumes: list[str] = []
    sources: list[Source] = []
    restart: RestartPolicy = RestartPolicy()
    init: bool = False
    id_maps: IdMaps | None = None
    foreign: Foreign | None = None


class ContainerRecord(Struct, frozen=True, kw_only=True):
    """A row of the containers table."""

    id: str
    name: str
    image: str
    snapshotter: str
    snapshot_key: str
    runtime: str
    spec: str
    labels: dict[str, str]
    extra: Extra
    created_at: str
    updated_at: str


COLUMNS = ContainerRecord.__struct_fields__
_COLUMNS = ", ".join(COLUMNS)
_DOCUMENTS = {"labels": dict[str, str], "extra": Extra}
"""The columns that are JSON, and what of."""


def insert(db: Transaction, namespace: str, record: ContainerRecord) -> None:
    """Write the record of a new container."""
    db.execute(
        f"INSERT INTO containers (namespace, {_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?)",  # noqa: S608
        (namespace, *_row(record)),
    )


def change_record(db: Transaction, namespace: str, container_id: str, **fields: Any) -> None:
    """Write some fields of a container's record anew, and when that was; nothing if there is none."""
    fields.setdefault("updated_at", timestamp())
    db.execute(
        f"UPDATE containers SET {', '.join(f'{name} = ?' for name in fields)} WHERE namespace = ? AND id = ?",  # noqa: S608
        (*_encoded(fields).values(), namespace, container_id),
    )


def find_record(db: Transaction, namespace: str, container_id: str) -> ContainerRecord | None:
    """Give a container's record by its identifier."""
    return next(find_records(db, namespace, "id = ?", container_id), None)


def find_records(
    db: Transaction, namespace: str, condition: str, *bindings: str
) -> Iterator[ContainerRecord]:
    """Give the records for which a condition in SQL holds, oldest first; each is decoded when it is asked for."""
    return map(_record, _rows(db, namespace, condition, *bindings))


def reread(db: Transaction, namespace: str, record: ContainerRecord) -> ContainerRecord:
    """Give a record as it is now: the same one where it is. NotFound."""
    rows = _rows(db, namespace, "id = ?", record.id)
    if not rows:
        raise NotFound(f"there is no container {record.id} in namespace {namespace}")
    # Not decoded for nothing: to learn how takes a short-lived process 0.6 ms.
    return record if rows[0] == _row(record) else _record(rows[0])


def check_free(db: Transaction, namespace: str, name: str) -> None:
    """Raise AlreadyExists for a name, or identifier, that a container has."""
    taken = db.execute(
        "SELECT 1 FROM containers WHERE namespace = ? AND (name = ? OR id = ?)", (namespace, name, name)
    ).fetchone()
    if taken is not None:
        raise AlreadyExists(
            f"container {name} exists in namespace {namespace}",
            hint=f"Remove it (lamella containers rm {name}) or take another name.",
        )


def _rows(db: Transaction, namespace: str, condition: str, *bindings: str) -> list[tuple[Any, ...]]:
    return db.execute(
        f"SELECT {_COLUMNS} FROM containers WHERE namespace = ? AND ({condition}) ORDER BY created_at, id",  # noqa: S608
        (namespace, *bindings),
    ).fetchall()


def _record(row: tuple[Any, ...]) -> ContainerRecord:
    fields = dict(zip(COLUMNS, row, strict=True))
    for name, kind in _DOCUMENTS.items():
        fields[name] = decode(fields[name], kind)
    return ContainerRecord(**fields)


def _row(record: ContainerRecord) -> tuple[Any, ...]:
    return tuple(_encoded(asdict(record)).values())


def _encoded(fields: dict[str, Any]) -> dict[str, Any]:
    """Give the columns of fields."""
    return {name: encode(value).decode() if name in _DOCUMENTS else value for name, value in fields.items()}
