"""How tests ended that ran elsewhere: on another machine, under another kernel."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from xml.etree import ElementTree


@dataclass(frozen=True)
class Outcome:
    """How one test ended there: ``passed``, ``skipped`` or ``failed``, and why."""

    module: str
    name: str
    how: str
    why: str


def deselecting(names: Iterable[str]) -> str:
    """Give the expression for ``pytest -k`` that leaves out what has one of these in its name."""
    return " and ".join(f"not {name}" for name in names)


def of_module(outcomes: Iterable[Outcome], module: str) -> list[Outcome]:
    """Give those of one module of tests."""
    return [outcome for outcome in outcomes if module in outcome.module.split(".")]


def count_passed(outcomes: Iterable[Outcome], module: str) -> int:
    """Count the tests of a module. AssertionError names those that did not pass, skipped ones too."""
    of_it = of_module(outcomes, module)
    unlike = [f"{outcome.name}: {outcome.how}\n{outcome.why}" for outcome in of_it if outcome.how != "passed"]
    assert not unlike, f"{len(unlike)} tests ended otherwise there:\n" + "\n\n".join(unlike)
    return len(of_it)


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
