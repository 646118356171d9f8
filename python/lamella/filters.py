"""containerd's filter language: which content, snapshots, images, containers or leases a listing shows.

A filter is a list of selectors joined by ``,``, all of which must match; a list of filters matches where one of them
does, and an empty list matches everything. A selector names a field, alone (it is present) or with an operator::

    name==docker.io/library/nginx:latest
    kind!=view,labels."containerd.io/gc.root"
    labels.stage~="^(test|demo)$"

    filter   := selector { "," selector }
    selector := path [ ("==" | "!=" | "~=") value ]
    path     := field { "." field }
    field    := quoted | letter { letter | digit | "_" }
    value    := quoted | characters other than space, comma and double quote
    quoted   := "..." as in Go, and after ~= also /.../ and |...| for patterns full of quotes or slashes

White space may stand between any two of these.

As in containerd (pkg/filters) ``==`` wants the field to be there, ``!=`` also holds where it is not, and ``~=`` searches
anywhere in the value (a missing one is empty). Patterns are read by Rust's regex crate, nearly as by RE2, and searched for in
time linear in the value: clients of ``lamella serve`` send them, and no pattern may hold up a server.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from lamella.errors import InvalidArgument

Fields = Mapping[str, "str | Mapping[str, str]"]
"""What an object offers: plain fields, and maps (labels) whose keys are the rest of the path, joined by dots."""
Filter = Callable[[Fields], bool]

FILTER_MAX = 16 * 1024
"""Characters of one filter: labels have 4096 bytes at most, so that more is a mistake."""
_OPERATORS = ("==", "!=", "~=")
_ESCAPES = {
    "a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "\\": "\\", '"': '"', "'": "'",
}  # fmt: skip
_CODE_POINTS = {"x": 2, "u": 4, "U": 8}


def compile_filters(filters: Sequence[str]) -> Filter:
    """Parse filters into one predicate. InvalidArgument, with the place, for what does not parse."""
    if isinstance(filters, str):
        filters = [filters]
    alternatives = [_Parser(text).parse() for text in filters]
    if not alternatives or any(not selectors for selectors in alternatives):
        return lambda fields: True
    if len(alternatives) == 1:
        only = alternatives[0]
        return lambda fields: all(selector(fields) for selector in only)
    return lambda fields: any(all(selector(fields) for selector in each) for each in alternatives)


def _lookup(fields: Fields, path: list[str]) -> str | None:
    value = fields.get(path[0])
    if isinstance(value, str):
        return value if len(path) == 1 else None
    if value is None or len(path) == 1:
        return None
    return value.get(".".join(path[1:]))


def _selector(path: list[str], operator: str, value: str) -> Filter:
    if operator == "==":
        return lambda fields: _lookup(fields, path) == value
    if operator == "!=":
        return lambda fields: (_lookup(fields, path) or "") != value
    if operator == "~=":
        from lamella import _core  # not loaded by a listing that needs none

        try:
            search = _core.Pattern(value).search
        except InvalidArgument as error:
            raise InvalidArgument(
                f"the filter's pattern {value[:200]!r} is malformed: {error.message.splitlines()[-1]}"
            ) from None
        return lambda fields: search(_lookup(fields, path) or "")
    return lambda fields: _lookup(fields, path) is not None


class _Parser:
    """Recursive descent over one filter."""

    def __init__(self, text: str) -> None:
        if len(text) > FILTER_MAX:
            raise InvalidArgument(f"a filter has {len(text)} characters, at most {FILTER_MAX} are read")
        if "\0" in text:
            raise InvalidArgument(f"the filter {text[:200]!r} has a zero byte")
        self.text = text
        self.at = 0

    def parse(self) -> list[Filter]:
        selectors: list[Filter] = []
        if not self.text:
            return selectors
        while True:
            path = [self._field()]
            while self._take("."):
                path.append(self._field())
            operator = next((each for each in _OPERATORS if self._take(each)), "")
            selectors.append(_selector(path, operator, self._value(operator) if operator else ""))
            self._skip_space()
            if self.at == len(self.text):
                return selectors
            if not self._take(","):
                raise self._error("expected ',' or one of == != ~=")

    def _skip_space(self) -> None:
        rest = self.text[self.at :]
        self.at += len(rest) - len(rest.lstrip())

    def _take(self, token: str) -> bool:
        """Take a token that comes next, but for white space, which may stand between any two."""
        self._skip_space()
        if self.text.startswith(token, self.at):
            self.at += len(token)
            return True
        return False

    def _field(self) -> str:
        if self._take('"'):
            return self._quoted('"')
        start = self.at
        for char in self.text[start:]:
            if not (char.isascii() and (char.isalnum() or char == "_")):
                break
            self.at += 1
        field = self.text[start : self.at]
        if not field or not field[0].isalpha():
            self.at = start
            raise self._error("expected a field's name")
        return field

    def _value(self, operator: str) -> str:
        if self._take('"'):
            return self._quoted('"')
        if operator == "~=":
            for delimiter in "/|":
                if self._take(delimiter):
                    return self._pattern(delimiter)
        start = self.at
        for char in self.text[start:]:
            if char == "," or char.isspace():
                break
            if char == '"':
                raise self._error("a quote stands inside a value; quote all of it")
            self.at += 1
        if self.at == start:
            raise self._error('expected a value (an empty one is written "")')
        return self.text[start : self.at]

    def _pattern(self, delimiter: str) -> str:
        """Read up to the delimiter, which a backslash protects; every other backslash is the pattern's own."""
        parts: list[str] = []
        while self.at < len(self.text):
            char = self.text[self.at]
            self.at += 1
            if char == delimiter:
                return "".join(parts)
            if char == "\\" and self.at < len(self.text):
                following = self.text[self.at]
                self.at += 1
                parts.append(following if following == delimiter else char + following)
            else:
                parts.append(char)
        raise self._error(f"the closing {delimiter} is missing")

    def _quoted(self, quote: str) -> str:
        parts: list[str] = []
        while self.at < len(self.text):
            char = self.text[self.at]
            self.at += 1
            if char == quote:
                return "".join(parts)
            parts.append(self._escape() if char == "\\" else char)
        raise self._error("the closing quote is missing")

    def _escape(self) -> str:
        """Read what follows a backslash (The Go Programming Language Specification, "Rune literals")."""
        char = self.text[self.at : self.at + 1]
        self.at += 1
        if char in _ESCAPES:
            return _ESCAPES[char]
        width, base = _CODE_POINTS.get(char, 0), 16
        if char in set("01234567"):
            self.at -= 1
            width, base = 3, 8
        digits = self.text[self.at : self.at + width]
        if (
            width
            and len(digits) == width
            and set(digits) <= set("0123456789abcdefABCDEF"[: 22 if base == 16 else 8])
        ):
            self.at += width
            code = int(digits, base)
            if code <= 0x10FFFF and not 0xD800 <= code <= 0xDFFF:
                return chr(code)
        raise self._error("unknown escape")

    def _error(self, problem: str) -> InvalidArgument:
        return InvalidArgument(
            f"the filter {self.text[:200]!r} is malformed at character {self.at + 1}: {problem}",
            hint='A filter reads name==x, kind!=view, labels."a.b"~=^re, or a list of these joined by ",".',
        )
