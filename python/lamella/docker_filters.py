"""docker's language of filters: ``status=exited``, ``label=job=7``, or docker-py's mapping of them.

Of one word several values are alternatives, but for labels, which are all to be there; what is said by different words holds
together. Source: docker's reference of ``docker ps --filter``. The other language is containerd's (:mod:`lamella.filters`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from lamella.errors import InvalidArgument

T = TypeVar("T")
Filters = Sequence[str] | Mapping[str, Any]
_FORM = re.compile(r"([a-z-]+)=(?!=)(.*)", re.DOTALL)
"""What is no filter of containerd: that has two signs for an operator, ``name==box``."""


def docker_filters(filters: Filters) -> dict[str, list[str]] | None:
    """Return filters by their words where they are docker's, None where they are containerd's. InvalidArgument for both."""
    if isinstance(filters, Mapping):
        return {word: _values(value) for word, value in filters.items()}
    texts = [filters] if isinstance(filters, str) else list(filters)
    matched = [_FORM.fullmatch(text) for text in texts]
    if not any(matched):
        return None
    found: dict[str, list[str]] = {}
    for text, match in zip(texts, matched, strict=True):
        if match is None:
            raise InvalidArgument(
                f"the filter {text!r} is not of the same language as the others",
                hint="Write all of them as docker's (status=running) or as containerd's (status==running).",
            )
        found.setdefault(match[1], []).append(match[2])
    return found


def matching(
    filters: Mapping[str, Sequence[str]], words: Mapping[str, Callable[[str], Callable[[T], bool]]]
) -> Callable[[T], bool]:
    """Make one predicate of filters; ``words`` make one of each value. InvalidArgument for another word."""
    predicates = []
    for word, values in filters.items():
        if word not in words:
            raise InvalidArgument(f"there is no filter {word!r}", hint=f"Known: {', '.join(words)}.")
        predicates.append((all if word == "label" else any, [words[word](value) for value in values]))
    return lambda item: all(join(choice(item) for choice in choices) for join, choices in predicates)


def has_label(labels: Mapping[str, str], value: str) -> bool:
    """Tell whether labels have ``KEY``, or ``KEY=VALUE``."""
    key, equals, wanted = value.partition("=")
    return key in labels and (not equals or labels[key] == wanted)


def _values(value: object) -> list[str]:
    if isinstance(value, bool):
        return [str(value).lower()]
    if isinstance(value, str | int):
        return [str(value)]
    if isinstance(value, Iterable):
        return [str(item) for item in value]
    raise InvalidArgument(f"{value!r} is no value of a filter", hint="Give text, or a list of texts.")
