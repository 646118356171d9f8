"""Which boot of the machine this is: rows say under which one their files were written (see content.py, "Durability")."""

from __future__ import annotations

from functools import cache
from pathlib import Path


@cache
def boot_id() -> str:
    """Give the kernel's random identifier of this boot; empty where /proc does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return ""
