"""How tests ended that ran elsewhere: on another machine, under another kernel."""

from __future__ import annotations

from dataclasses import dataclass
from xml.etree import ElementTree


@dataclass(frozen=True)
class Outcome:
    """How one test ended there: ``passed``, ``skipped`` or ``failed``, and why."""

    module: str
    name: str
    how: str
    why: str


def read_outcomes(report: str) -> list[Outcome]:
    """Read what ``pytest --junitxml`` has written."""
    return [_outcome(case) for case in ElementTree.fromstring(report).iter("testcase")]


def _outcome(case: ElementTree.Element) -> Outcome:
    module, name = case.get("classname", ""), case.get("name", "")
    for kind, how in (("failure", "failed"), ("error", "failed"), ("skipped", "skipped")):
        found = case.find(kind)
        if found is not None:
            return Outcome(module, name, how, found.text or found.get("message") or "")
    return Outcome(module, name, "passed", "")
