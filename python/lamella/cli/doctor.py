"""``lamella doctor``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lamella.cli import EXIT_ERROR
from lamella.cli.parser import Arguments, Command

if TYPE_CHECKING:
    from lamella.cli.session import Session

_MARKS = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}


def _doctor(arguments: Arguments, session: Session) -> int:
    import msgspec

    from lamella import doctor
    from lamella.config import Config

    checks = doctor.examine(Config.load(**session.location))
    failed = any(check.status == "fail" for check in checks)
    if session.json:
        session.document({"ok": not failed, "checks": msgspec.to_builtins(checks)})
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            session.line(f"{_MARKS[check.status]}  {check.name:<{width}}  {check.detail}")
            if check.remedy:
                session.line(f"      {'':<{width}}  -> {check.remedy}")
    return EXIT_ERROR if failed else 0


DOCTOR = Command(
    "doctor",
    "Check what this machine offers.",
    _doctor,
    description="Each line says what was looked at and what was found; where something is missing, what to do. "
    "The exit status is 1 when a check failed; warnings do not count.",
    examples=[("before the first container", "lamella doctor")],
)
