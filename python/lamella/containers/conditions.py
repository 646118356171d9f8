"""Waiting for what is not the end of what runs now: docker's wait conditions ``next-exit`` and ``removed``.

Nobody tells it beforehand who will start a container or remove it, so that it is looked for, fifty times a second.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal

from lamella.containers.monitor import Exit
from lamella.errors import DeadlineExceeded, FailedPrecondition, NotFound

if TYPE_CHECKING:
    from lamella.client import Client
    from lamella.containers.container import Container
    from lamella.containers.task import Task

Condition = Literal["not-running", "next-exit", "removed"]
CONDITIONS = ("not-running", "next-exit", "removed")
_PAUSE = 0.02


def await_next_exit(container: Container, deadline: float | None) -> int:
    """Wait for the next end of a run, whoever starts it, and return the exit status. DeadlineExceeded; NotFound once removed."""
    before = _last_end(container.task)
    while (ended := _last_end(container.task)) is None or ended == before:
        container.refresh()
        _pause(deadline)
    return ended.exit_code


def await_removal(client: Client, container: Container, deadline: float | None) -> int | None:
    """Wait until it is removed and return its last exit status, None if it never ran. DeadlineExceeded.

    One that removes itself is removed when it has ended.
    """
    code = None
    while True:
        try:
            found = client.containers.get(container.id)
            if found.task.running():
                code = found.task.wait(deadline).exit_code
            elif (ended := _last_end(found.task)) is not None:
                code = ended.exit_code
            if found.record.extra.auto_remove:
                client.containers.remove_ended()
        except NotFound:
            return code
        except FailedPrecondition:
            pass  # it never ran, or its monitor was killed
        _pause(deadline)


def _last_end(task: Task) -> Exit | None:
    """Give how the last run that has ended did, of those since the start."""
    ended = task.exit()
    if ended is None and (restarts := task.restarts()) is not None:
        ended = restarts.exit
    return ended


def _pause(deadline: float | None) -> None:
    if deadline is not None and time.monotonic() >= deadline:
        raise DeadlineExceeded("the time-out passed")
    time.sleep(_PAUSE)
