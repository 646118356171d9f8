"""Every kind of error in Rust is a class of lamella.errors."""

from __future__ import annotations

import re
from pathlib import Path

from lamella import errors

SOURCE = Path(__file__).parents[2] / "rust" / "core" / "src" / "error.rs"


def test_every_kind_of_the_core_is_a_class_here() -> None:
    table = re.search(r"^kinds! \{(.*?)^\}", SOURCE.read_text(), re.DOTALL | re.MULTILINE)
    assert table
    kinds = re.findall(r"^    (\w+),$", table[1], re.MULTILINE)
    assert len(kinds) > 10
    for kind in kinds:
        assert kind in errors.__all__
        assert issubclass(getattr(errors, kind), errors.LamellaError)
