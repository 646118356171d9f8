"""``containerd.services.containers.v1.Containers``: the records of containers, the library's own among them."""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf.any_pb2 import Any
from google.protobuf.empty_pb2 import Empty

from lamella.config import is_own_runtime
from lamella.containers.foreign import (
    create_record,
    delete_record,
    foreign_of,
    get_record,
    labels_of,
    new_record,
    spec_of,
    update_record,
    with_foreign,
    with_spec,
)
from lamella.containers.record import ContainerRecord, TypedValue
from lamella.errors import InvalidArgument, NotFound
from lamella.filters import Fields, compile_filters
from lamella.serve.api import containers_pb2, runc_options_pb2
from lamella.serve.call import Call
from lamella.serve.messages import any_as, to_timestamp
from lamella.serve.service import Service
from lamella.structs import replace
from lamella.typings import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_REPLACED = ("labels", "spec", "extensions", "image", "snapshotkey")
"""What an update without a mask replaces."""


class Containers(Service):
    """The records of containers."""

    descriptor = containers_pb2.DESCRIPTOR.services_by_name["Containers"]

    def Get(
        self, request: containers_pb2.GetContainerRequest, call: Call
    ) -> containers_pb2.GetContainerResponse:
        """Give one. NotFound."""
        return containers_pb2.GetContainerResponse(
            container=_message(_shown(get_record(call.client, request.id), call))
        )

    def List(
        self, request: containers_pb2.ListContainersRequest, call: Call
    ) -> containers_pb2.ListContainersResponse:
        """Give those that match the filters, by ``id``, ``image``, ``runtime.name``, ``labels``. InvalidArgument."""
        return containers_pb2.ListContainersResponse(containers=self._list(request, call))

    def ListStream(
        self, request: containers_pb2.ListContainersRequest, call: Call
    ) -> Iterator[containers_pb2.ListContainerMessage]:
        """Give the same, one by one."""
        for container in self._list(request, call):
            yield containers_pb2.ListContainerMessage(container=container)

    def _list(
        self, request: containers_pb2.ListContainersRequest, call: Call
    ) -> Iterator[containers_pb2.Container]:
        matches = compile_filters(request.filters)
        for record in call.client.containers.records():
            shown = _shown(record, call)
            if matches(_fields(shown)):
                yield _message(shown)

    def Create(
        self, request: containers_pb2.CreateContainerRequest, call: Call
    ) -> containers_pb2.CreateContainerResponse:
        """Keep a new one. AlreadyExists, InvalidArgument."""
        asked = request.container
        record = new_record(
            asked.id,
            runtime=asked.runtime.name,
            spec=_value(asked.spec) if asked.HasField("spec") else None,
            image=asked.image,
            snapshotter=asked.snapshotter,
            snapshot_key=asked.snapshot_key,
            labels=dict(asked.labels),
            runtime_options=_value(asked.runtime.options) if asked.runtime.HasField("options") else None,
            program=_program(asked.runtime),
            extensions=_extensions(asked.extensions),
            sandbox=asked.sandbox,
        )
        return containers_pb2.CreateContainerResponse(container=_message(create_record(call.client, record)))

    def Update(
        self, request: containers_pb2.UpdateContainerRequest, call: Call
    ) -> containers_pb2.UpdateContainerResponse:
        """Change what the mask names; without one replace what may be. NotFound, InvalidArgument."""
        asked = request.container
        if not asked.id:
            raise InvalidArgument("must specify a container id")

        def change(record: ContainerRecord) -> ContainerRecord:
            paths = list(request.update_mask.paths)
            if not paths:
                for name, old, new in (
                    ("Snapshotter", record.snapshotter, asked.snapshotter),
                    ("Runtime.Name", record.runtime, asked.runtime.name),
                ):
                    if old != new:
                        raise InvalidArgument(f"container.{name} field is immutable")
                paths = list(_REPLACED)
            for path in paths:
                record = _changed(record, asked, path)
            return record

        return containers_pb2.UpdateContainerResponse(
            container=_message(_shown(update_record(call.client, asked.id, change), call))
        )

    def Delete(self, request: containers_pb2.DeleteContainerRequest, call: Call) -> Empty:
        """Delete one and what is left of its task, not its snapshot. NotFound, FailedPrecondition while it runs."""
        delete_record(call.client, request.id)
        return Empty()


def _changed(record: ContainerRecord, asked: containers_pb2.Container, path: str) -> ContainerRecord:
    """Give the record with one field of a mask changed. InvalidArgument for one that cannot be."""
    field, dot, key = path.partition(".")
    if dot and not key:
        raise InvalidArgument(f"the path {path[:200]!r} of the mask names no key")
    if field == "labels":
        # A label that has no value there goes: an empty one is none.
        labels = record.labels | {key: asked.labels.get(key, "")} if key else dict(asked.labels)
        return replace(record, labels=labels)
    if field == "extensions":
        given = _extensions(asked.extensions)
        if key:
            kept = {name: value for name, value in foreign_of(record).extensions.items() if name != key}
            given = kept | ({key: given[key]} if key in given else {})
        return with_foreign(record, extensions=given)
    if path == "spec":
        if not asked.HasField("spec"):
            raise InvalidArgument("container.Spec must be set")
        return with_spec(record, _value(asked.spec))
    plain = {"image": {"image": asked.image}, "snapshotkey": {"snapshot_key": asked.snapshot_key}}
    if path not in plain:
        raise InvalidArgument(f"cannot update {path[:200]!r} field on {asked.id[:200]!r}")
    return replace(record, **plain[path])


def _shown(record: ContainerRecord, call: Call) -> ContainerRecord:
    """Give a record with the labels that clients see."""
    labels = labels_of(call.client, record)
    return record if labels is record.labels else replace(record, labels=labels)


def _message(record: ContainerRecord) -> containers_pb2.Container:
    foreign = foreign_of(record)
    runtime = containers_pb2.Container.Runtime(name=record.runtime)
    if foreign.runtime_options is not None:
        runtime.options.CopyFrom(_any(foreign.runtime_options))
    return containers_pb2.Container(
        id=record.id,
        labels=record.labels,
        image=record.image,
        runtime=runtime,
        spec=_any(spec_of(record)),
        snapshotter=record.snapshotter,
        snapshot_key=record.snapshot_key,
        created_at=to_timestamp(record.created_at),
        updated_at=to_timestamp(record.updated_at),
        extensions={key: _any(value) for key, value in foreign.extensions.items()},
        sandbox=foreign.sandbox,
    )


def _fields(record: ContainerRecord) -> Fields:
    return {
        "id": record.id,
        "image": record.image,
        "runtime": {"name": record.runtime},
        "labels": record.labels,
    }


def _program(runtime: containers_pb2.Container.Runtime) -> str:
    """Give the OCI runtime that runs it; empty for our own. NotFound for a kind of runtime that there is not."""
    options = any_as(runtime.options, runc_options_pb2.Options)
    return options.binary_name if options is not None else ""


def check_runtime(record: ContainerRecord) -> None:
    """Raise NotFound for a kind of runtime that lamella has not: containerd would start a shim by its name."""
    name = record.runtime
    if name.startswith("io.containerd.") and not is_own_runtime(name):
        raise NotFound(
            f"the runtime {name!r} is not here",
            hint="Take io.containerd.runc.v2, which is lamella's own launcher; its option BinaryName names another OCI runtime.",
        )


def _value(message: Any) -> TypedValue:
    return TypedValue(type_url=message.type_url, value=message.value)


def _any(value: TypedValue) -> Any:
    return Any(type_url=value.type_url, value=value.value)


def _extensions(extensions: Mapping[str, Any]) -> dict[str, TypedValue]:
    return {key: _value(value) for key, value in extensions.items()}
