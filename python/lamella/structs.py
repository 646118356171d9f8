"""Values with named fields, and the JSON in which they are kept and sent.

A :class:`Struct` is declared and used as one of msgspec is, and its JSON is the same, as are the words for what is malformed. It
is there for what every command does: importing msgspec and making its classes takes 12 ms of a command's 60. So all that a run of
a container handles stands on this module; where many documents are read and a moment more does not matter, msgspec does it.

    class Exit(Struct, frozen=True):
        exit_code: int
        signal: int | None = None

    encode(Exit(exit_code=1))               # b'{"exit_code":1,"signal":null}'
    decode(b'{"exit_code":1}', Exit)        # Exit(exit_code=1, signal=None)

Annotations stay text until something is decoded. What they name has to be in their module; ``Any`` and ``Literal`` are those of
:mod:`lamella.typings`.
"""

from __future__ import annotations

import sys
from _json import (  # what ``json`` stands on; itself it compiles patterns that nothing here needs
    encode_basestring,
    make_encoder,
    make_scanner,
)

from lamella.typings import TYPE_CHECKING, Any, ClassVar, Self, TypeVar, dataclass_transform

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    _Reader = Callable[[Any], Any]
_Value = TypeVar("_Value")
_UNION = type(int | None)
_SPACE = " \t\n\r"


class Malformed(ValueError):
    """Bytes that are no JSON, or JSON that is not what its type says; tells what and where."""


@dataclass_transform()
class Struct:
    """A base for values with named fields: its subclasses' annotations. What stands in the class is a field's default.

    Arguments of a subclass: ``frozen``: its values cannot be changed, and can be keys. ``kw_only``: fields have no places.
    ``rename``: their names in JSON, ``"camel"``, ``"pascal"``, or those of some fields; a subclass has its base's, too.
    ``omit_defaults``: JSON leaves out a field that has its default. A list or dict that is a default is a new one each time.
    """

    __struct_fields__: ClassVar[tuple[str, ...]] = ()
    _pairs: ClassVar[tuple[tuple[str, str], ...]] = ()
    """Of each field the name in JSON and its own."""
    __match_args__ = ()
    _known: ClassVar[frozenset[str]] = frozenset()
    _defaults: ClassVar[dict[str, Any]] = {}
    _blank: ClassVar[dict[str, Any]] = {}
    """All fields in their order, with their defaults; None for those that have none."""
    _required: ClassVar[frozenset[str]] = frozenset()
    _fresh: ClassVar[dict[str, Any]] = {}
    """The defaults that cannot be the class's attributes: lists and dicts, and functions, which would be methods."""
    _omits: ClassVar[bool] = False
    _form: ClassVar[str] = ""
    _renamed: ClassVar[dict[str, str]] = {}
    _hints: ClassVar[dict[str, tuple[Any, str]]] = {}
    """The annotation of each field, and its module."""
    _readers: ClassVar[dict[str, tuple[str, _Reader]]]
    """By the name in JSON: the field and what reads it. Of the class itself, once one was decoded."""

    def __init_subclass__(
        cls,
        *,
        frozen: bool = False,
        kw_only: bool = False,
        rename: str | Mapping[str, str] = "",
        omit_defaults: bool = False,
    ) -> None:
        own = cls.__annotations__
        if rename and isinstance(rename, str):
            cls._form = rename
        elif rename:
            cls._renamed = cls._renamed | dict(rename)
        cls._omits = omit_defaults or cls._omits
        cls._hints = cls._hints | {name: (hint, cls.__module__) for name, hint in own.items()}
        fresh, required = dict(cls._fresh), set(cls._required)
        for name in own:
            if name not in cls.__dict__:
                required.add(name)
            elif type(default := cls.__dict__[name]) in (list, dict) or hasattr(default, "__get__"):
                fresh[name] = default
                delattr(cls, name)
        cls._fresh, cls._required = fresh, frozenset(required)
        cls.__struct_fields__ = (*cls.__struct_fields__, *own)
        cls._defaults = {
            name: fresh[name] if name in fresh else getattr(cls, name)
            for name in cls.__struct_fields__
            if name not in required
        }
        cls._blank = dict.fromkeys(cls.__struct_fields__) | cls._defaults
        cls._pairs = tuple([(cls._encoded(name), name) for name in cls.__struct_fields__])
        cls.__match_args__ = () if kw_only else cls.__struct_fields__  # type: ignore[misc, assignment]
        cls._known = frozenset(cls.__struct_fields__)
        if frozen:
            cls.__setattr__ = cls.__delattr__ = _refuse  # type: ignore[assignment, method-assign]
            if "__hash__" not in cls.__dict__:
                cls.__hash__ = _hash  # type: ignore[method-assign, assignment]

    @classmethod
    def _encoded(cls, name: str) -> str:
        if name in cls._renamed or not cls._form:
            return cls._renamed.get(name, name)
        words = name.split("_")
        first = words[0].capitalize() if cls._form == "pascal" else words[0]
        return "".join([first, *[word.capitalize() for word in words[1:]]])

    def __init__(self, *values: Any, **fields: Any) -> None:
        kind = type(self)
        if values:
            fields = kind._by_name(values, fields)
        if not (fields.keys() <= kind._known and fields.keys() >= kind._required):
            unknown = sorted(fields.keys() - kind._known)
            missing = [name for name in kind.__struct_fields__ if name in kind._required - fields.keys()]
            raise TypeError(
                f"Unexpected keyword argument '{unknown[0]}'"
                if unknown
                else f"Missing required argument '{missing[0]}'"
            )
        own = self.__dict__
        for name, default in kind._fresh.items():
            if name not in fields:
                own[name] = default.copy() if type(default) in (list, dict) else default
        own.update(fields)

    @classmethod
    def _by_name(cls, values: tuple[Any, ...], fields: dict[str, Any]) -> dict[str, Any]:
        if len(values) > len(cls.__match_args__):
            raise TypeError("Extra positional arguments provided")
        positional = dict(zip(cls.__match_args__, values, strict=False))
        if twice := positional.keys() & fields.keys():
            raise TypeError(f"Argument '{min(twice)}' given by name and position")
        return positional | fields

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return astuple(self) == astuple(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        fields = [f"{name}={getattr(self, name)!r}" for name in self.__struct_fields__]
        return f"{type(self).__name__}({', '.join(fields)})"

    def __replace__(self, **changes: Any) -> Self:
        return replace(self, **changes)


def _refuse(self: Struct, *_: object) -> None:
    raise AttributeError(f"immutable type: '{type(self).__name__}'")


def _hash(self: Struct) -> int:
    return hash(astuple(self))


def asdict(value: Any) -> dict[str, Any]:
    """Give the fields of a Struct, of msgspec's, too, by name."""
    if isinstance(value, Struct):
        return value._blank | value.__dict__
    return {name: getattr(value, name) for name in value.__struct_fields__}


def astuple(value: Any) -> tuple[Any, ...]:
    """Give the fields of a Struct, of msgspec's, too, in their order."""
    return tuple([getattr(value, name) for name in value.__struct_fields__])


def replace(value: _Value, **changes: Any) -> _Value:
    """Give a copy of a Struct, of msgspec's, too, with some fields changed. TypeError for one that it doesn't have."""
    if not isinstance(value, Struct):
        return type(value)(**asdict(value) | changes)
    if unknown := changes.keys() - value._known:
        raise TypeError(f"Unexpected keyword argument '{min(unknown)}'")
    copy = object.__new__(type(value))
    copy.__dict__.update(value.__dict__ | changes)
    return copy


def to_builtins(value: Any) -> Any:
    """Give a value as JSON has it: dicts by the names in JSON, lists, strings, numbers. TypeError for what has none."""
    if isinstance(value, str):
        return str(value)
    if value is None or isinstance(value, int | float):
        return value
    if isinstance(value, dict):
        return {key: to_builtins(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_builtins(item) for item in value]
    return to_builtins(_simpler(value))


def encode(value: Any) -> bytes:
    """Give the JSON of a value, compact, UTF-8.

    TypeError for what has none, ValueError for infinity, UnicodeEncodeError for text that is no Unicode.
    """
    text = "".join(_encode(value, 0))
    try:
        return text.encode()
    except UnicodeEncodeError:
        _encode_checking(value, 0)
        raise


def _check(text: str) -> str:
    """Give a string of JSON; raise the error of this text alone."""
    text.encode()
    return encode_basestring(text)


def _simpler(value: Any) -> Any:
    """Give a value that JSON knows for one that it doesn't."""
    if isinstance(value, Struct):
        return _shown(value)
    if isinstance(value, set | frozenset):
        return list(value)
    if isinstance(value, bytes | bytearray | memoryview):
        from binascii import b2a_base64

        return b2a_base64(value, newline=False).decode()
    if hasattr(value, "__struct_fields__"):
        import msgspec

        return msgspec.to_builtins(value, enc_hook=to_builtins)
    raise TypeError(f"Encoding objects of type {type(value).__name__} is unsupported")


_encode: Any = make_encoder(None, _simpler, encode_basestring, None, ":", ",", False, False, False)
_encode_checking: Any = make_encoder(None, _simpler, _check, None, ":", ",", False, False, False)


def _shown(value: Struct) -> dict[str, Any]:
    """Give the fields of a Struct that JSON shows, by their names there. A field that the value lacks has the class's default."""
    kind, own = type(value), value.__dict__
    if kind._omits:
        defaults = kind._defaults
        return {
            encoded: item
            for encoded, name in kind._pairs
            if name in own
            and (item := own[name]) is not (default := defaults.get(name, kind))
            and (type(item) is not type(default) or item != default)
        }
    fields = kind._blank | own
    if not (kind._form or kind._renamed):
        return fields
    return {encoded: fields[name] for encoded, name in kind._pairs}


def decode(data: bytes | str, kind: type[_Value]) -> _Value:
    """Read JSON as a type: a Struct, ``dict[str, int]``, ``list[str]`` ...; fields that a Struct doesn't have are passed over.

    :class:`Malformed` for what is no JSON in UTF-8, is nested too deep, or not of the type.
    """
    return convert(read_json(data), kind)


def read_json(data: bytes | str) -> Any:
    """Read JSON as it is. Errors as :func:`decode`."""
    try:
        text = (data if isinstance(data, str) else bytes(data).decode()).strip(_SPACE)
        value, end = _scanned(text)
    except StopIteration as stop:
        raise Malformed(f"JSON is malformed: invalid character or end (character {stop.value})") from None
    except (ValueError, RecursionError) as error:
        raise Malformed(f"JSON is malformed: {error}") from None
    if end != len(text):
        raise Malformed(f"JSON is malformed: trailing characters (character {end})")
    if "\\ud" in text or "\\uD" in text:
        _check_surrogates(value)
    return value


def _scanned(text: str) -> tuple[Any, int]:
    try:
        return _scan(text, 0)
    except SystemError:  # until Python 3.12 it does not import the exception that it raises, and raises none
        import json.decoder  # noqa: F401

        return _scan(text, 0)


def _check_surrogates(value: Any) -> None:
    """Refuse halves of characters, which only an escape can have brought in."""
    try:
        encode(value)
    except UnicodeEncodeError:
        raise Malformed("JSON is malformed: half of a surrogate pair") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


class _Scanning:
    """What the scanner asks for: its numbers, and no constants that are not JSON."""

    strict = True
    object_hook = object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = staticmethod(_refuse_constant)


_scan = make_scanner(_Scanning)  # type: ignore[arg-type]


def convert(value: Any, kind: type[_Value]) -> _Value:
    """Read what JSON was decoded to as a type; :class:`Malformed` says where it is not one."""
    try:
        converted: _Value = _reader(kind, "")(value)
    except _Mismatch as error:
        where = "".join(reversed(error.path))
        raise Malformed(error.text + (f" - at `${where}`" if where else "")) from None
    return converted


class _Mismatch(Exception):
    def __init__(self, text: str, expected: str = "") -> None:
        super().__init__(text)
        self.text = text
        self.expected = expected
        self.path: list[str] = []

    def under(self, step: str) -> _Mismatch:
        self.path.append(step)
        return self


_NAMES = {
    str: "str",
    int: "int",
    float: "float",
    bool: "bool",
    type(None): "null",
    dict: "object",
    list: "array",
}
_readers: dict[Any, _Reader] = {object: lambda value: value}


def _mismatch(expected: str, value: Any) -> _Mismatch:
    return _Mismatch(f"Expected `{expected}`, got `{_NAMES[type(value)]}`", expected)


def _reader(hint: Any, module: str) -> _Reader:
    """Give what reads a type, which may be text of a module."""
    key = (hint, module) if isinstance(hint, str) else hint
    found = _readers.get(key)
    if found is None:
        if isinstance(hint, str):
            hint = eval(hint, sys.modules[module].__dict__)  # noqa: S307 (an annotation of ours)
        found = _readers[key] = _new_reader(hint)
    return found


def _new_reader(hint: Any) -> _Reader:  # noqa: PLR0911 (one for each form)
    origin, arguments = getattr(hint, "__origin__", hint), getattr(hint, "__args__", ())
    if isinstance(hint, _UNION):
        return _union(arguments)
    if hint is float:
        return _read_float
    if hint is bytes:
        return _read_bytes
    if origin is list or origin is tuple:
        return _read_list(origin, _reader(arguments[0], "") if arguments else _readers[object])
    if origin is dict:
        return _read_dict(_reader(arguments[1], "") if arguments else _readers[object])
    if isinstance(hint, type) and issubclass(hint, Struct):
        return hint_reader(hint)
    if hint in _NAMES:
        return _exactly(hint)
    raise TypeError(f"Type {hint!r} is not supported")


def _exactly(kind: type) -> _Reader:
    def read(value: Any) -> Any:
        if type(value) is not kind:
            raise _mismatch(_NAMES[kind], value)
        return value

    return read


def _read_float(value: Any) -> float:
    if type(value) not in (float, int):
        raise _mismatch("float", value)
    return float(value)


def _read_bytes(value: Any) -> bytes:
    from binascii import Error, a2b_base64

    if type(value) is not str:
        raise _mismatch("bytes", value)
    try:
        return a2b_base64(value, strict_mode=True)
    except (Error, ValueError):
        raise _Mismatch("Invalid base64 encoded string") from None


def _read_list(kind: type, item: _Reader) -> _Reader:
    def read(value: Any) -> Any:
        if type(value) is not list:
            raise _mismatch("array", value)
        done: list[Any] = []
        try:
            for element in value:
                done.append(item(element))
        except _Mismatch as error:
            raise error.under(f"[{len(done)}]") from None
        return done if kind is list else tuple(done)

    return read


def _read_dict(item: _Reader) -> _Reader:
    def read(value: Any) -> dict[str, Any]:
        if type(value) is not dict:
            raise _mismatch("object", value)
        try:
            return {key: item(element) for key, element in value.items()}
        except _Mismatch as error:
            raise error.under("[...]") from None

    return read


def hint_reader(kind: type[Struct]) -> _Reader:
    """Give what reads a Struct; what its fields are is looked at when the first one is read."""

    def read(value: Any) -> Struct:
        if type(value) is not dict:
            raise _mismatch("object", value)
        if "_readers" not in kind.__dict__:
            kind._readers = {encoded: (name, _reader(*kind._hints[name])) for encoded, name in kind._pairs}
        fields = {}
        for encoded, element in value.items():
            if encoded in kind._readers:
                name, reader = kind._readers[encoded]
                try:
                    fields[name] = reader(element)
                except _Mismatch as error:
                    raise error.under(f".{encoded}") from None
        if not fields.keys() >= kind._required:
            missing = [name for name in kind.__struct_fields__ if name in kind._required - fields.keys()]
            raise _Mismatch(f"Object missing required field `{kind._encoded(missing[0])}`")
        return kind(**fields)

    return read


def _union(kinds: tuple[Any, ...]) -> _Reader:
    """Read one of several types, which JSON tells apart: at most one is neither of Python's own nor None."""
    others = [kind for kind in kinds if kind is not type(None)]
    optional = len(others) < len(kinds)
    readers = [_reader(kind, "") for kind in others]

    def read(value: Any) -> Any:
        if value is None and optional:
            return None
        expected = []
        for reader in readers:
            try:
                return reader(value)
            except _Mismatch as error:
                if error.path or not error.expected:
                    raise
                expected.append(error.expected)
        raise _mismatch(" | ".join([*expected, *(["null"] if optional else [])]), value)

    return read
