"""Waiting for what another process or thread brings about."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Protocol, TypeVar


class _Result(Protocol):
    stdout: bytes


_Found = TypeVar("_Found")
_Told = TypeVar("_Told", bound=_Result)
PATIENCE = float(os.environ.get("LAMELLA_TEST_PATIENCE", "1"))
"""How many times as long as elsewhere it may take on this machine."""


def until(condition: Callable[[], _Found], *, seconds: float = 60) -> _Found:
    """Wait until something holds, and give it; a test fails where it does not within ``seconds``."""
    deadline = time.monotonic() + seconds * PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.005)
    return found


def cut_off(call: Callable[[float], _Told]) -> _Told:
    """Give the result of a command that its time-out ended, after it had said something: a slow machine gets a longer one.

    ``call`` takes the time-out, in seconds.
    """
    for seconds in (2, 20):
        if (result := call(seconds)).stdout:
            break
    return result


def settled(look: Callable[[], _Found], *, seconds: float = 60) -> _Found:
    """Wait until what is seen stays the same for a moment, and give it: what was on its way has arrived.

    A test fails where it still changes after ``seconds``.
    """

    def same() -> tuple[_Found] | None:
        before = look()
        time.sleep(0.1)
        return (before,) if look() == before else None

    return until(same, seconds=seconds)[0]
