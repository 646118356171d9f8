"""``lamella version``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lamella.cli.parser import Arguments, Command

if TYPE_CHECKING:
    from lamella.cli.session import Session


def _version(arguments: Arguments, session: Session) -> int:
    import os
    import sys

    from lamella._core import __version__

    kernel = os.uname()
    versions = {
        "version": __version__,
        "python": ".".join(map(str, sys.version_info[:3])),
        "kernel": kernel.release,
        "architecture": kernel.machine,
    }
    if session.json:
        session.document(versions)
    else:
        session.line(
            f"lamella {__version__} (Python {versions['python']}, Linux {kernel.release} {kernel.machine})"
        )
    return 0


VERSION = Command(
    "version",
    "Show versions.",
    _version,
    examples=[("for a bug report", "lamella version && lamella doctor")],
)
