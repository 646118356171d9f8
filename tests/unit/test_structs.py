"""Values and their JSON: as msgspec's, which is the oracle."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys

import hypothesis
import msgspec
import pytest
from hypothesis import strategies as st

from lamella.structs import (
    Malformed,
    Struct,
    asdict,
    astuple,
    convert,
    decode,
    encode,
    read_json,
    replace,
)
from lamella.typings import Any, Literal

Form = Literal["a", "b"]


class Inner(Struct, frozen=True, rename="camel"):
    media_type: str
    disk_size: int | None = None


class Outer(Struct, kw_only=True, omit_defaults=True, rename={"os_version": "os.version"}):
    name: str
    inner: Inner | None = None
    inners: list[Inner] = []
    labels: dict[str, str] = {}
    extra: dict[str, Any] | None = None
    ratio: float = 0.5
    count: int | str | None = None
    os_version: str = ""
    ready: bool = False
    sizes: tuple[int, ...] = ()
    data: bytes = b""
    form: Form = "a"


class TheirInner(msgspec.Struct, frozen=True, rename="camel"):
    media_type: str
    disk_size: int | None = None


class TheirOuter(msgspec.Struct, kw_only=True, omit_defaults=True, rename={"os_version": "os.version"}):
    name: str
    inner: TheirInner | None = None
    inners: list[TheirInner] = []
    labels: dict[str, str] = {}
    extra: dict[str, Any] | None = None
    ratio: float = 0.5
    count: int | str | None = None
    os_version: str = ""
    ready: bool = False
    sizes: tuple[int, ...] = ()
    data: bytes = b""
    form: str = "a"


TEXT = st.text(max_size=4)
NUMBER = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False, width=16)
SCALAR = st.none() | st.booleans() | NUMBER | TEXT | st.sampled_from(["YQ==", "a"])
JSON = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3)
)
INNER = st.fixed_dictionaries(
    {"mediaType": st.just("x") | SCALAR}, optional={"diskSize": SCALAR, "other": JSON}
)
FIELDS = {
    "inner": INNER | JSON,
    "inners": st.lists(INNER, max_size=3) | JSON,
    "labels": st.dictionaries(TEXT, TEXT, max_size=3) | JSON,
    "extra": st.dictionaries(TEXT, JSON, max_size=3) | JSON,
    "ratio": NUMBER | JSON,
    "count": SCALAR | JSON,
    "os.version": TEXT | JSON,
    "ready": st.booleans() | JSON,
    "sizes": st.lists(st.integers(0, 9), max_size=3) | JSON,
    "data": st.just("YQ==") | JSON,
    "form": st.just("b") | JSON,
    "unknown": JSON,
}
OUTER = st.fixed_dictionaries({}, optional={"name": TEXT, **FIELDS}) | st.fixed_dictionaries(
    {"name": TEXT}, optional=FIELDS
)


def by(read: Any, document: bytes, kind: Any) -> tuple[Any, str]:
    """Give what reading gave, as text, and what was said otherwise."""
    try:
        return repr(read(document, kind)).replace("Their", ""), ""
    except (Malformed, msgspec.ValidationError) as error:
        return None, str(error)


@hypothesis.settings(max_examples=300, derandomize=True)
@hypothesis.given(OUTER)
def test_a_document_is_read_and_written_and_refused_as_by_msgspec(document):
    data = json.dumps(document).encode()
    theirs, reason = by(lambda data, kind: msgspec.json.decode(data, type=kind), data, TheirOuter)
    ours, said = by(decode, data, Outer)
    assert ours == theirs
    assert said == reason
    if not reason:
        value = decode(data, Outer)
        assert msgspec.json.decode(encode(value), type=TheirOuter) == msgspec.json.decode(
            data, type=TheirOuter
        )
        assert decode(encode(value), Outer) == value


@hypothesis.settings(max_examples=150, derandomize=True)
@hypothesis.given(st.binary(max_size=20) | JSON.map(lambda value: json.dumps(value).encode()))
def test_bytes_are_json_or_none_as_for_msgspec(data):
    try:
        theirs: Any = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        theirs = Malformed
    try:
        ours: Any = read_json(data)
    except Malformed:
        ours = Malformed
    assert ours == theirs


@hypothesis.settings(max_examples=300, derandomize=True)
@hypothesis.given(
    st.recursive(st.none() | st.booleans() | st.integers() | TEXT | st.binary(max_size=4), st.lists)
)
def test_a_value_is_written_as_by_msgspec(value):
    assert encode({"value": value}) == msgspec.json.encode({"value": value})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" ",
        b"{",
        b"[1,]",
        b"nul",
        b"NaN",
        b"[Infinity]",
        b"1 2",
        b'"\xff"',
        b"\xef\xbb\xbf1",
        rb'"\ud800"',
        b"[" * 100_000,
    ],
)
def test_what_is_no_json_is_malformed(data):
    with pytest.raises(Malformed):
        read_json(data)


@pytest.mark.parametrize(
    "data", ['{"a', "{1}", '{"a":1', '{"a" 1}', "[1", "[1 2]", r'"\x"', r'"\u12"', '"\n"']
)
def test_what_is_no_json_is_malformed_to_who_never_imported_json(data):
    """Its scanner, before Python 3.12, knows its own exception only when somebody has imported it."""
    with pytest.raises(Malformed) as here:
        read_json(data)
    program = "\n".join(
        [
            "import sys",
            "from lamella.structs import Malformed, read_json",
            "imported = 'json.decoder' in sys.modules",
            "try: read_json(sys.argv[1])",
            "except Malformed as error: print(imported, error)",
        ]
    )
    done = subprocess.run([sys.executable, "-c", program, data], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == (f"False {here.value}\n", "")


def test_fields_have_places_names_and_defaults_of_their_own():
    one, two = Outer(name="a"), Outer(name="b", labels={"x": "y"})
    one.labels["p"] = "q"
    assert (two.labels, Outer(name="c").labels) == ({"x": "y"}, {})
    assert Inner("x", 5) == Inner(media_type="x", disk_size=5) != Inner("x")
    assert (asdict(Inner("x")), astuple(Inner("x"))) == ({"media_type": "x", "disk_size": None}, ("x", None))
    assert repr(Inner("x")) == "Inner(media_type='x', disk_size=None)"
    match Inner("x", 5):
        case Inner(name, size):
            assert (name, size) == ("x", 5)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (Inner, "Missing required argument 'media_type'"),
        (lambda: Inner("x", size=1), "Unexpected keyword argument 'size'"),
        (lambda: Inner("x", 1, 2), "Extra positional arguments"),
        (lambda: Inner("x", media_type="y"), "by name and position"),
        (lambda: Outer("x"), "Extra positional arguments"),
        (lambda: replace(Inner("x"), size=1), "Unexpected keyword argument 'size'"),
    ],
)
def test_a_value_needs_its_fields_and_no_others(make, reason):
    with pytest.raises(TypeError, match=reason):
        make()


def test_a_frozen_value_cannot_be_changed_and_is_a_key():
    value = Inner("x")
    with pytest.raises(AttributeError):
        value.disk_size = 1
    with pytest.raises(AttributeError):
        del value.media_type
    assert {value: 1}[Inner("x")] == 1
    with pytest.raises(TypeError):
        hash(Outer(name="a"))


def test_copies_are_equal_and_a_changed_one_is_not():
    value = Outer(name="a", inner=Inner("x"), sizes=(1,))
    assert pickle.loads(pickle.dumps(value)) == copy.deepcopy(value) == replace(value) == value
    assert replace(value, name="b") == Outer(name="b", inner=Inner("x"), sizes=(1,))


def test_a_default_that_is_a_function_stays_one():
    class Closing(Struct, frozen=True):
        close: Any = lambda: "closed"

    assert Closing().close() == "closed"


def test_a_subclass_has_the_fields_and_the_names_of_its_base():
    class Base(Struct, rename="camel", omit_defaults=True, kw_only=True):
        some_size: int | None = None

    class Derived(Base, rename={"io_limit": "ioLimit2"}):
        io_limit: int
        other_limit: int = 3

    assert (
        encode(Derived(io_limit=1, some_size=2, other_limit=4))
        == b'{"someSize":2,"ioLimit2":1,"otherLimit":4}'
    )
    assert encode(Derived(io_limit=1)) == b'{"ioLimit2":1}'
    assert convert({"someSize": 5, "ioLimit2": 1}, Derived) == Derived(some_size=5, io_limit=1)


def test_text_has_to_be_unicode_and_values_to_have_a_form_in_json():
    with pytest.raises(UnicodeEncodeError) as caught:
        encode({"a": ["fine", "not\udcff"]})
    assert caught.value.object == "not\udcff"
    with pytest.raises(TypeError):
        encode({"a": object()})
