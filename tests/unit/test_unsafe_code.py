"""Unsafe Rust stands in one module of each crate."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_each_crate_allows_unsafe_code_in_its_sys_module_alone() -> None:
    places = [
        source.relative_to(ROOT).as_posix()
        for folder in ("rust", "fuzz")
        for source in (ROOT / folder).rglob("*.rs")
        if re.search(r"(allow|warn|expect)\(\s*unsafe_code", source.read_text())
    ]
    assert sorted(places) == [
        "rust/core/src/sys.rs",
        "rust/launcher/src/sys/mod.rs",
        "rust/py/src/sys.rs",
        "rust/serve/src/sys.rs",
    ]
