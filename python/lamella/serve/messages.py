"""What several services convert between the library's values and containerd's messages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp

from lamella.digest import Digest, parse_digest
from lamella.errors import InvalidArgument, Unsupported
from lamella.metadata.clock import format_time
from lamella.oci import Descriptor
from lamella.serve.api import types_pb2
from lamella.snapshots import Mount

if TYPE_CHECKING:
    from google.protobuf.field_mask_pb2 import FieldMask

SPEC_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
"""The type of an Any that holds a runtime spec, as JSON."""
_Message = TypeVar("_Message", bound=Message)


def to_timestamp(text: str | None) -> Timestamp | None:
    """Give the message for one of the library's RFC 3339 times; None (an unset field) for none."""
    if not text:
        return None
    moment = Timestamp()
    moment.FromJsonString(text)
    return moment


def from_timestamp(moment: Timestamp) -> str:
    """Give a time as the library keeps it. InvalidArgument for one that is beyond year 9999."""
    return format_time(moment.seconds * 1_000_000 + moment.nanos // 1000)


def from_digest(text: str) -> Digest:
    """Give a digest. InvalidArgument for what is none, and for one of an algorithm that is not there."""
    try:
        return parse_digest(text)
    except Unsupported as error:
        raise InvalidArgument(error.message) from None


def to_descriptor(descriptor: Descriptor) -> types_pb2.Descriptor:
    """Give the message for a descriptor; it has no field for a platform."""
    return types_pb2.Descriptor(
        media_type=descriptor.media_type,
        digest=str(descriptor.digest),
        size=descriptor.size,
        annotations=descriptor.annotations or {},
    )


def from_descriptor(message: types_pb2.Descriptor) -> Descriptor:
    """Give a descriptor. InvalidArgument for a malformed digest or a negative size."""
    if message.size < 0:
        raise InvalidArgument(f"the descriptor of {message.digest[:80]!r} has the size {message.size}")
    return Descriptor(
        media_type=message.media_type,
        digest=from_digest(message.digest),
        size=message.size,
        annotations=dict(message.annotations) or None,
    )


def to_mounts(mounts: Iterable[Mount]) -> list[types_pb2.Mount]:
    """Give the messages for what a snapshotter gave."""
    return [types_pb2.Mount(type=each.type, source=each.source, options=each.options) for each in mounts]


def from_mounts(messages: Iterable[types_pb2.Mount]) -> list[Mount]:
    """Give mounts; their targets are left out."""
    return [Mount(type=each.type, source=each.source, options=list(each.options)) for each in messages]


def any_of(message: Message) -> Any:
    """Pack a message as containerd does: the type's bare name, without a host in front."""
    return Any(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString(deterministic=True))


def any_as(message: Any, kind: type[_Message]) -> _Message | None:
    """Unpack a message of that type; None for another. InvalidArgument for damaged bytes."""
    name = kind.DESCRIPTOR.full_name
    if message.type_url.rpartition("/")[2] != name:
        return None
    try:
        return kind.FromString(message.value)
    except DecodeError:
        raise InvalidArgument(f"what was sent as {name} is none") from None


def masked(
    paths: Sequence[str], field: str, present: Mapping[str, str], asked: Mapping[str, str]
) -> dict[str, str]:
    """Give a map after an update by a mask: ``field`` replaces it, ``field.KEY`` one key, which goes if it has no value."""
    if field in paths:
        return dict(asked)
    merged = {**present, **{key: asked.get(key, "") for key in _keys(paths, field)}}
    return {key: value for key, value in merged.items() if value}


def label_changes(
    paths: Sequence[str], labels: Mapping[str, str], present: Mapping[str, str]
) -> dict[str, str]:
    """Give the changes of ``present`` labels that a mask asks for: of its keys; with ``labels`` in it, or without one, of all."""
    if not paths or "labels" in paths:
        return dict.fromkeys(present, "") | dict(labels)
    return {key: labels.get(key, "") for key in _keys(paths, "labels")}


def _keys(paths: Sequence[str], field: str) -> list[str]:
    return [path.removeprefix(f"{field}.") for path in paths if path.startswith(f"{field}.")]


def mask_paths(mask: FieldMask, *allowed: str) -> list[str]:
    """Give a field mask's paths. InvalidArgument for one that is no name that is allowed, nor anything below it (``name.KEY``).

    Of a name that ends with a dot only what is below it is allowed.
    """
    for path in mask.paths:
        if not any(path == name or path.startswith(f"{name.removesuffix('.')}.") for name in allowed):
            raise InvalidArgument(f"cannot update the field {path[:200]!r}")
    return list(mask.paths)


def batches(items: Iterable[_Message], size: int = 100) -> Iterator[list[_Message]]:
    """Cut what a listing streams into messages of ``size`` items, as containerd does."""
    batch: list[_Message] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
