"""Records that clients of containerd's API keep: made, changed and deleted as they are, with no snapshot of their own.

It is the record that the library's own containers have, too: what is made here is listed, started and removed there, and the
reverse. Its name is its identifier. What the library has no use for is kept as it came, in ``extra.foreign``; the spec is kept
byte by byte, in the row's ``spec`` where it is JSON.

Rules and messages: containerd, core/metadata/containers.go.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from lamella.config import check_identifier
from lamella.containers.container import Container
from lamella.containers.log_config import LogConfig
from lamella.containers.record import (
    ContainerRecord,
    Extra,
    Foreign,
    TypedValue,
    change_record,
    check_free,
    find_record,
    insert,
)
from lamella.containers.restart_policy import COUNT_LABEL, policy_of_labels
from lamella.errors import FailedPrecondition, InvalidArgument, NotFound
from lamella.labels import check_labels
from lamella.metadata import Transaction, timestamp
from lamella.structs import Malformed, asdict, read_json, replace
from lamella.typings import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lamella.client import Client

SPEC_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
"""The type of a spec that is the runtime spec's JSON."""
_NO_SPEC = "{}"
_FIXED = {"id", "name", "created_at"}


def new_record(
    container_id: str,
    *,
    runtime: str,
    spec: TypedValue | None,
    image: str = "",
    snapshotter: str = "",
    snapshot_key: str = "",
    labels: dict[str, str] | None = None,
    runtime_options: TypedValue | None = None,
    program: str = "",
    extensions: dict[str, TypedValue] | None = None,
    sandbox: str = "",
) -> ContainerRecord:
    """Give a checked record; ``program``: the OCI runtime that the options name. InvalidArgument."""
    check_identifier(container_id, "container ID")
    if spec is None:
        raise InvalidArgument("container.Spec must be set")
    now = timestamp()
    record = ContainerRecord(
        id=container_id,
        name=container_id,
        image=image,
        snapshotter=snapshotter,
        snapshot_key=snapshot_key,
        runtime=runtime,
        spec=_NO_SPEC,
        labels=labels or {},
        extra=Extra(
            # What it writes goes where its client says, and nowhere besides.
            log=LogConfig(driver="none"),
            foreign=Foreign(
                runtime_options=runtime_options, extensions=extensions or {}, sandbox=sandbox, program=program
            ),
        ),
        created_at=now,
        updated_at=now,
    )
    return _with_restarts(check_record(with_spec(record, spec)))


def check_record(record: ContainerRecord) -> ContainerRecord:
    """Give it back, or raise InvalidArgument for what containerd takes for no container."""
    if any(not key for key in foreign_of(record).extensions):
        raise InvalidArgument("container.Extension keys must not be zero-length")
    if not record.runtime:
        raise InvalidArgument("container.Runtime.Name must be set")
    if record.snapshot_key and not record.snapshotter:
        raise InvalidArgument("container.Snapshotter must be set if container.SnapshotKey is set")
    return replace(record, labels=check_labels(record.labels))


def foreign_of(record: ContainerRecord) -> Foreign:
    """Give what such clients keep in a record; nothing in one that the library made."""
    return record.extra.foreign or Foreign()


def spec_of(record: ContainerRecord) -> TypedValue:
    """Give the spec as it came."""
    foreign = foreign_of(record)
    value = record.spec.encode() if foreign.spec is None else foreign.spec
    return TypedValue(type_url=SPEC_TYPE if foreign.spec_type is None else foreign.spec_type, value=value)


def labels_of(client: Client, record: ContainerRecord) -> dict[str, str]:
    """Give the labels as such clients read them: one says how often the restart policy has run it again since its start.

    containerd's restart plugin writes it into the record; here it is what the monitor tells.
    """
    restarted = Container(client, record).restart_count if record.extra.restart else 0
    return record.labels | {COUNT_LABEL: str(restarted)} if restarted else record.labels


def with_spec(record: ContainerRecord, spec: TypedValue) -> ContainerRecord:
    """Give the record with another spec: of the runtime spec's JSON the text is kept, of anything else the bytes."""
    text = _json_text(spec.value)
    foreign = replace(
        foreign_of(record),
        spec_type=None if spec.type_url == SPEC_TYPE else spec.type_url,
        spec=spec.value if text is None else None,
    )
    return replace(
        record,
        spec=_NO_SPEC if text is None else text,
        extra=replace(record.extra, foreign=foreign),
    )


def with_foreign(record: ContainerRecord, **changes: Any) -> ContainerRecord:
    """Give the record with other fields of ``extra.foreign``."""
    foreign = replace(foreign_of(record), **changes)
    return replace(record, extra=replace(record.extra, foreign=foreign))


def _json_text(value: bytes) -> str | None:
    try:
        text = value.decode()
        return text if isinstance(read_json(text), dict) and "\0" not in text else None
    except (UnicodeDecodeError, Malformed):
        return None


def create_record(client: Client, record: ContainerRecord) -> ContainerRecord:
    """Keep a new record. AlreadyExists."""
    namespace = client.config.namespace
    with client.database.write() as db:
        check_free(db, namespace, record.id)
        insert(db, namespace, record)
    return record


def get_record(client: Client, container_id: str) -> ContainerRecord:
    """Give the record of exactly that identifier. NotFound."""
    with client.database.read() as db:
        return _get(db, client, container_id)


def _get(db: Transaction, client: Client, container_id: str) -> ContainerRecord:
    namespace = client.config.namespace
    record = find_record(db, namespace, container_id)
    if record is None:
        raise NotFound(f"container {container_id[:200]!r} in namespace {namespace!r}: not found")
    return record


def update_record(
    client: Client, container_id: str, change: Callable[[ContainerRecord], ContainerRecord]
) -> ContainerRecord:
    """Have ``change`` give another record for one, checked; its identifier, name and creation stay. NotFound, InvalidArgument."""
    namespace = client.config.namespace
    with client.database.write() as db:
        before = _get(db, client, container_id)
        record = _with_restarts(check_record(change(before)))
        record = replace(record, updated_at=timestamp())
        changed = {name: value for name, value in asdict(record).items() if name not in _FIXED}
        change_record(db, namespace, container_id, **changed)
        if record.extra.restart != before.extra.restart:
            Container(client, record).task.set_restart_policy(record.extra.restart)
    return record


def _with_restarts(record: ContainerRecord) -> ContainerRecord:
    """Give a record with the restart policy that its labels say: clients of containerd's API have no other word for it."""
    if record.extra.foreign is None:
        return record
    return replace(record, extra=replace(record.extra, restart=policy_of_labels(record.labels)))


def delete_record(client: Client, container_id: str) -> None:
    """Delete a record and what is left of its last run; its snapshot is its client's.

    NotFound; FailedPrecondition while it runs.
    """
    container = Container(client, get_record(client, container_id))
    container.task.remove(forget=partial(container.forget, keep_snapshot=True), stop=_refuse)


def _refuse() -> None:
    raise FailedPrecondition("the container has a running task", hint="Kill and delete that first.")
