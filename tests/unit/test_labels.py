"""Labels: limits, merging, the text that is stored."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.errors import InvalidArgument
from lamella.labels import LABEL_MAX, check_labels, decode_labels, encode_labels, merge_labels

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
LABELS = st.dictionaries(TEXT.filter(bool), TEXT)


def test_key_and_value_have_at_most_4096_bytes_together():
    assert check_labels({"k" * 96: "v" * 4000}) == {"k" * 96: "v" * 4000}
    with pytest.raises(InvalidArgument, match="4097 bytes"):
        check_labels({"k" * 96: "v" * 4001})


def test_bytes_count_not_characters():
    check_labels({"ü": "ü" * ((LABEL_MAX - 2) // 2)})
    with pytest.raises(InvalidArgument):
        check_labels({"ü": "ü" * ((LABEL_MAX - 2) // 2 + 1)})


@pytest.mark.parametrize(
    "labels", [{"": "v"}, {"k": 1}, {1: "v"}, {"k": None}, {"k": "\ud800"}, {"\ud800": "v"}]
)
def test_what_is_no_label_is_an_invalid_argument(labels):
    with pytest.raises(InvalidArgument):
        check_labels(labels)


def test_an_error_does_not_repeat_a_long_label():
    with pytest.raises(InvalidArgument) as caught:
        check_labels({"k" * 5000: "v"})
    assert len(str(caught.value)) < 200


def test_an_empty_value_is_no_label():
    assert check_labels({"a": "", "b": "x"}) == {"b": "x"}


def test_merging_sets_replaces_and_removes():
    assert merge_labels({"a": "1", "b": "2", "c": "3"}, {"a": "", "b": "4", "d": "5", "e": ""}) == {
        "b": "4",
        "c": "3",
        "d": "5",
    }


@given(LABELS)
def test_what_is_stored_is_what_is_read(labels):
    assert decode_labels(encode_labels(labels)) == labels


@given(LABELS, LABELS)
def test_merging_twice_is_merging_once(labels, changes):
    once = merge_labels(labels, changes)
    assert merge_labels(once, changes) == once
    assert not {key for key, value in changes.items() if not value} & once.keys()


def test_the_stored_text_has_slashes_as_they_are_and_does_not_depend_on_order():
    text = encode_labels({"containerd.io/gc.root": "x", "a": "b"})
    assert text == encode_labels({"a": "b", "containerd.io/gc.root": "x"})
    assert '"containerd.io/gc.root"' in text
    assert encode_labels({}) == "{}"
