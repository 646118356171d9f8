"""containerd's filter language, by its own examples (pkg/filters) and by properties."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.errors import InvalidArgument
from lamella.filters import FILTER_MAX, compile_filters

OBJECT = {
    "name": "docker.io/library/nginx:latest",
    "kind": "active",
    "empty": "",
    "labels": {
        "foo": "true",
        "more complex label \\ \t": "present",
        "containerd.io/gc.root": "2025-01-01T00:00:00Z",
        "dotted.key": "yes",
        "numbers": "1,2",
        "quote": 'a"b',
        "path": "/var/lib|x",
        "equals": "=",
    },
}

MATCH = [
    "",
    "name",
    "name==docker.io/library/nginx:latest",
    'name=="docker.io/library/nginx:latest"',
    '"name"==docker.io/library/nginx:latest',
    "name~=nginx",
    "name~=^docker.io/",
    "name~=^docker\\.io/.*:latest$",
    'name~="ng[io]nx:(latest|stable)"',
    "name~=/library\\/nginx/",
    "name~=|library/nginx|",
    "name!=nginx",
    "kind==active,name~=nginx",
    " kind == active, name ~= nginx ",
    "labels.foo",
    "labels.foo==true",
    'labels."foo"',
    'labels."more complex label \\\\ \\t"',
    'labels."more complex label \\\\ \\t"==present',
    'labels."containerd.io/gc.root"',
    'labels."containerd.io/gc.root"~=^2025-',
    "labels.dotted.key==yes",
    'labels."dotted.key"==yes',
    'labels.numbers=="1,2"',
    'labels.quote=="a\\"b"',
    'labels.quote=="a\\x22b"',
    'labels.quote=="a\\u0022b"',
    'labels.quote=="a\\042b"',
    "labels.path~=|^/var/lib\\|x$|",
    "labels.path~=/^\\/var/",
    "empty",
    'empty==""',
    "missing!=x",
    'missing~=""',
    "labels.missing!=x",
    'missing~="^$"',
    "labels.equals===",
]
NO_MATCH = [
    "missing",
    "labels",
    "labels.missing",
    "name.more",
    "name==nginx",
    'missing==""',
    "name!=docker.io/library/nginx:latest",
    "kind==active,name~=apache",
    "kind==view,name~=nginx",
    "labels.foo==false",
    "labels.foo!=true",
    'missing!=""',
    "name~=^nginx",
    "labels.dotted==yes",
    "labels==x",
]
MALFORMED = [
    "=",
    "name=",
    "name==",
    "name=nginx",
    ",",
    "name,",
    ",name",
    "name,,kind",
    "name==a b",
    'name==a"b',
    'name=="a',
    'name=="a"b',
    'name=="\\z"',
    'name=="\\x2"',
    'name=="\\ud800"',
    'name=="\\U00110000"',
    'name=="\\9"',
    'name=="\\',
    '"name',
    ".name",
    "name.",
    "labels..a",
    "labels.a-b",
    "1name",
    "_name",
    "name~=(",
    "name~=/open",
    "name~=|open",
    "name~=|a|b",
    "name!",
    "name~nginx",
    "näme",
]


@pytest.mark.parametrize("text", MATCH)
def test_it_matches(text):
    assert compile_filters([text])(OBJECT)


@pytest.mark.parametrize("text", NO_MATCH)
def test_it_does_not_match(text):
    assert not compile_filters([text])(OBJECT)


@pytest.mark.parametrize("text", MALFORMED)
def test_it_is_malformed(text):
    with pytest.raises(InvalidArgument) as caught:
        compile_filters([text])
    assert caught.value.hint or "pattern" in str(caught.value)


def test_the_error_tells_the_place():
    with pytest.raises(InvalidArgument, match="character 13"):
        compile_filters(["kind==a,name="])


def test_no_filter_matches_everything():
    assert compile_filters([])({})
    assert compile_filters([""])({})
    assert compile_filters(["kind==view", ""])(OBJECT)


def test_several_filters_are_alternatives():
    assert compile_filters(["kind==view", "kind==active"])(OBJECT)
    assert not compile_filters(["kind==view", "kind==committed"])(OBJECT)


def test_one_filter_may_come_as_it_is():
    assert compile_filters("kind==active")(OBJECT)


def test_no_pattern_takes_more_time_than_the_value_is_long():
    match = compile_filters(["name~=/^(a+)+$/"])  # exponential for whoever goes back
    assert not match({"name": "a" * 4000 + "b"})
    assert match({"name": "a" * 4000})


def test_patterns_are_those_of_re2():
    match = compile_filters([r"name~=/\A\pL[[:alpha:]]+\z/"])
    assert match({"name": "äbc"})
    assert not match({"name": "äb1"})


def test_a_filter_that_is_too_long_is_refused():
    with pytest.raises(InvalidArgument):
        compile_filters(["name==" + "x" * FILTER_MAX])


def test_one_malformed_filter_spoils_the_list():
    with pytest.raises(InvalidArgument):
        compile_filters(["kind==active", "name="])


def quote(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\0", "\\x00") + '"'


@given(st.text(), st.text(min_size=1))
def test_any_quoted_value_and_label_key_is_found_again(value, key):
    fields = {"labels": {key: value}}
    selector = f"labels.{quote(key)}"
    assert compile_filters([f"{selector}=={quote(value)}"])(fields)
    assert not compile_filters([f"{selector}!={quote(value)}"])(fields)
    assert compile_filters([selector])(fields)


@given(st.text(alphabet='abn.,=!~"\\/| x1_', max_size=30))
def test_no_text_gives_another_error_than_malformed(text):
    with suppress(InvalidArgument):
        compile_filters([text])({"a": "b", "n": {"a": "b"}})
