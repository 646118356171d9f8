"""Bad values for every kind of field of a message of containerd's API, found by its descriptors."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from lamella.digest import digest_of
from lamella.serve.api import types_pb2

ESCAPED = "lamella-escaped"
"""What a value that looks like a path leads to: a file of that name may be nowhere."""
SPEC = "types.containerd.io/opencontainers/runtime-spec/1/"
FOREIGN_WORDS = b"words of another namespace"
FOREIGN = digest_of(FOREIGN_WORDS)
ABSENT = "sha256:" + "0" * 64
HUGE = 1024 * 1024
_NOT_UTF8 = "\x7fnot utf-8\x7f"
_WIRE_NOT_UTF8 = b"\xff\xfe" + b"\xff" * (len(_NOT_UTF8) - 2)

Change = Callable[[Any], None]
"""Spoils a message."""


def wire(message: Message) -> bytes:
    """Give a message's bytes, with those that are no UTF-8 where it is to have some."""
    return message.SerializeToString().replace(_NOT_UTF8.encode(), _WIRE_NOT_UTF8)


def _strings(good: str) -> Iterator[tuple[str, str]]:
    """Give what a string can be instead, by a word for it."""
    yield "empty", ""
    yield "huge", "x" * HUGE
    yield "long", "y" * 5000
    yield "nul", "a\0b"
    yield "newline", "a\nb"
    yield "control", "a\x1b[2Jb"
    yield "up", f"../../../../../../../../{ESCAPED}"
    yield "absolute", f"/{ESCAPED}/../{ESCAPED}"
    yield "dots", ".."
    yield "spaces", " a b "
    yield "unicode", "ä☃\U0001f600"
    yield "format", "%s%n%(x)s{0}${HOME}`id`"
    yield "not-utf-8", _NOT_UTF8
    yield "foreign", FOREIGN if good.startswith("sha256:") else "foreign"
    if good.startswith("sha256:"):
        yield "absent", ABSENT
        yield "short", good[:20]
        yield "upper", good.upper()
        yield "algorithm", "md5:" + "0" * 32
        yield "digest-up", "sha256:../../" + "0" * 58


_FILTERS: tuple[tuple[str, list[str]], ...] = (
    ("empty", [""]),
    ("no-value", ["labels."]),
    ("no-operator", ["name foo"]),
    ("no-pattern", ["name~=("]),
    ("slow-pattern", ['labels."slow"~=/^(a+)+$/']),
    ("wide-pattern", ["name~=/(((a{1,1000}){1,1000}){1,1000})/"]),
    ("no-end", ['name=="abc']),
    ("nul", ["name==a\0b"]),
    ("up", [f"../../{ESCAPED}"]),
    ("huge", ["name==" + "x" * HUGE]),
    ("deep", ["a" + ".a" * 5000 + "==b"]),
    ("many", ["name==none"] * 10_000),
    ("not-utf-8", [f"name=={_NOT_UTF8}"]),
)
_MASKS: tuple[tuple[str, list[str]], ...] = (
    ("empty", [""]),
    ("unknown", ["nosuch"]),
    ("no-key", ["labels."]),
    ("dot", ["."]),
    ("nul", ["labels.a\0b"]),
    ("huge", ["labels." + "x" * HUGE]),
    ("many", [f"labels.{number}" for number in range(10_000)]),
    ("case", ["Labels"]),
    ("id", ["id"]),
    ("created-at", ["created_at"]),
)
_MAPS: tuple[tuple[str, dict[str, str]], ...] = (
    ("none", {}),
    ("no-key", {"": "x"}),
    ("no-value", {"x": ""}),
    ("huge-key", {"x" * HUGE: "x"}),
    ("huge-value", {"x": "x" * HUGE}),
    ("long", {"x": "x" * 4096}),
    ("nul", {"a\0b": "c\0d"}),
    ("newline", {"a\nb": "c\nd"}),
    ("up", {f"../../{ESCAPED}": f"../../{ESCAPED}"}),
    ("unicode", {"ä☃": "\U0001f600"}),
    ("not-utf-8", {"x": _NOT_UTF8}),
    ("many", {f"x{number}": "y" for number in range(10_000)}),
    ("gc-expire", {"containerd.io/gc.expire": "not a time"}),
    ("gc-ref", {"containerd.io/gc.ref.content": "../x", "containerd.io/gc.ref.snapshot.nosuch": "x"}),
    ("snapshot-ref", {"containerd.io/snapshot.ref": f"../../{ESCAPED}"}),
)
_ANYS: tuple[tuple[str, AnyMessage], ...] = (
    ("no-type", AnyMessage(value=b"x")),
    ("unknown", AnyMessage(type_url="no.such.Type", value=b"\xff\xff\xff")),
    ("url", AnyMessage(type_url="https://example.com/../containerd.types.Mount", value=b"\xff\xff\xff")),
    (
        "wrong-type",
        AnyMessage(type_url="containerd.types.Mount", value=types_pb2.Mount(type="bind").SerializeToString()),
    ),
    ("truncated", AnyMessage(type_url="containerd.types.transfer.ImageStore", value=b"\x0a\x7fx")),
    ("huge-type", AnyMessage(type_url="x" * HUGE)),
    ("nul-type", AnyMessage(type_url="a\0b")),
)
_NO_JSON: tuple[tuple[str, bytes], ...] = (
    ("no-value", b""),
    ("garbage", b"\xff\xfe\x00"),
    ("list", b"[]"),
    ("null", b"null"),
    ("half", b'{"process":'),
    ("deep", b"[" * 100_000),
    ("wrong-types", b'{"process": 7, "args": {}, "linux": [], "memory": "much", "cpu": 3, "user": []}'),
    ("huge", json.dumps({"x": "y" * HUGE}).encode()),
)


def _set(name: str, value: object) -> Change:
    return lambda message: setattr(message, name, value)


def _set_list(name: str, values: Sequence[object]) -> Change:
    def change(message: Any) -> None:
        message.ClearField(name)
        getattr(message, name).extend(values)

    return change


def _set_map(name: str, values: Mapping[str, Any]) -> Change:
    def change(message: Any) -> None:
        message.ClearField(name)
        for key, value in values.items():
            if isinstance(value, Message):
                getattr(message, name)[key].CopyFrom(value)
            else:
                getattr(message, name)[key] = value

    return change


def _below(name: str, change: Change, index: int | None = None) -> Change:
    def apply(message: Any) -> None:
        inner = getattr(message, name)
        change(inner if index is None else inner[index])

    return apply


def _packed(change: Change) -> Change:
    """Have the message spoiled that an Any holds."""

    def apply(packed: Any) -> None:
        inner = _unpacked(packed)
        assert inner is not None
        change(inner)
        packed.value = inner.SerializeToString()

    return apply


def _unpacked(packed: AnyMessage) -> Message | None:
    try:
        kind = descriptor_pool.Default().FindMessageTypeByName(packed.type_url)
    except KeyError:
        return None
    return message_factory.GetMessageClass(kind).FromString(packed.value)


def _copy(value: Message) -> Change:
    return lambda message: message.CopyFrom(value)


def changes(message: Any) -> Iterator[tuple[str, str, Change]]:
    """Give each field of a good message with each word for what it can be instead, and what makes it so."""
    if isinstance(message, AnyMessage):
        yield from _of_any(message)
        return
    for field in message.DESCRIPTOR.fields:
        for path, word, change in _of_field(message, field):
            yield f"{field.name}{path}", word, change


def _of_any(message: AnyMessage) -> Iterator[tuple[str, str, Change]]:
    for word, value in _ANYS:
        yield "", word, _copy(value)
    if message.type_url.startswith(SPEC):
        for word, data in _NO_JSON:
            yield ".value", word, _set("value", data)
        return
    inner = _unpacked(message)
    if inner is not None:
        yield "", "cut", _set("value", b"\x0a\x7fx")
        for path, word, change in changes(inner):
            yield f".{path}", word, _packed(change)


def _of_field(message: Any, field: FieldDescriptor) -> Iterator[tuple[str, str, Change]]:
    name, kind = field.name, field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        yield from _of_map(name, kind)
    elif kind is not None and kind.full_name == FieldMask.DESCRIPTOR.full_name:
        for word, values in _MASKS:
            yield "", word, _below(name, _set_list("paths", values))
    elif kind is not None and kind.full_name == "google.protobuf.Timestamp":
        for word, seconds, nanos in (
            ("far", 2**62, 0),
            ("past", -(2**62), 0),
            ("nanos", 0, -1),
            ("nanos-far", 0, 2**31 - 1),
        ):
            yield (
                "",
                word,
                _below(name, lambda at, s=seconds, n=nanos: (_set("seconds", s)(at), _set("nanos", n)(at))),
            )
    elif kind is not None and field.is_repeated:
        yield "", "none", lambda message: message.ClearField(name)
        empty = message_factory.GetMessageClass(kind)()
        yield "", "empty", _set_list(name, [empty])
        yield "", "many", _set_list(name, [empty] * 1000)
        if len(getattr(message, name)):
            for path, word, change in changes(getattr(message, name)[0]):
                yield f".{path}", word, _below(name, change, 0)
    elif kind is not None:
        if field.containing_oneof is None and message.HasField(name):
            yield "", "none", lambda message: message.ClearField(name)
            for path, word, change in changes(getattr(message, name)):
                yield f".{path}", word, _below(name, change)
        else:
            empty = message_factory.GetMessageClass(kind)()
            yield "", "empty", _below(name, _copy(empty))
    elif field.is_repeated:
        if name == "filters":
            values = _FILTERS
        else:
            values = tuple((word, [value]) for word, value in _strings(""))
            values += (("many", ["x"] * 10_000),)
        for word, items in values:
            yield "", word, _set_list(name, items)
    else:
        for word, value in _scalars(message, field):
            # What a folder's parent has may be of any size: such a mount is no bad one.
            if (field.full_name, word) != ("containerd.types.Mount.source", "dots"):
                yield "", word, _set(name, value)


def _of_map(name: str, kind: Descriptor) -> Iterator[tuple[str, str, Change]]:
    if kind.fields_by_name["value"].message_type is None:
        for word, values in _MAPS:
            yield "", word, _set_map(name, values)
        return
    for word, key in (("no-key", ""), ("huge-key", "x" * HUGE), ("nul", "a\0b"), ("up", f"../../{ESCAPED}")):
        yield "", word, _set_map(name, {key: AnyMessage(type_url="x")})
    for word, value in _ANYS:
        yield "", f"any-{word}", _set_map(name, {"x": value})


def _scalars(message: Any, field: FieldDescriptor) -> Iterator[tuple[str, Any]]:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_STRING:
            yield from _strings(getattr(message, field.name))
        case FieldDescriptor.CPPTYPE_STRING:
            yield from (("empty", b""), ("huge", b"x" * HUGE), ("garbage", b"\xff\0\xfe"))
        case FieldDescriptor.CPPTYPE_ENUM:
            yield from (("unknown", 99), ("negative", -1))
        case FieldDescriptor.CPPTYPE_INT32:
            yield from (("negative", -1), ("least", -(2**31)), ("most", 2**31 - 1))
        case FieldDescriptor.CPPTYPE_INT64:
            yield from (("negative", -1), ("least", -(2**63)), ("most", 2**63 - 1))
        case FieldDescriptor.CPPTYPE_UINT32:
            yield "most", 2**32 - 1
        case FieldDescriptor.CPPTYPE_UINT64:
            yield "most", 2**64 - 1
        case FieldDescriptor.CPPTYPE_BOOL:
            yield "other", not getattr(message, field.name)
        case other:
            raise AssertionError(f"no values for {field.full_name}, of the kind {other}")
