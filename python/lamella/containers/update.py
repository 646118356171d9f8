"""Changing the limits of a container: of its record, and at once of what runs. A change holds as a whole, or not at all.

The bundle's folder is locked meanwhile, so that no start or removal comes between, and the record's row is written in one
transaction with the monitor's word that the kernel took every limit. A process that is killed in between leaves limits that hold
until the container's next start.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec

from lamella.containers.limits import Limits, changed
from lamella.containers.runtime_spec import Resources
from lamella.errors import InvalidArgument, LamellaError
from lamella.metadata import timestamp

if TYPE_CHECKING:
    from lamella.client import Client
    from lamella.containers.task import Task

Sections = dict[str, Any]
_NO_LIMITS: Sections = {
    "memory": {"limit": -1, "swap": -1},
    "cpu": {"quota": -1, "shares": 1024},
    "pids": {"limit": -1},
    "blockIO": {},
}
"""What undoes a section where there was none."""


def update_limits(client: Client, task: Task, container_id: str, options: Mapping[str, Any]) -> list[str]:
    """Change limits of a container's record, and of its processes if it runs; return what the kernel could not do.

    Twice is harmless. Errors: NotFound, InvalidArgument, Unavailable when it uses more than the new limit, and what else the
    monitor reports; after one all limits are as they were.
    """
    try:
        limits = Limits(**options)
    except TypeError as error:
        raise TypeError(str(error).replace("Limits.", "container.update() ")) from None
    undo: Sections | None = None
    try:
        with task.held(lambda: client.containers.get(container_id)), client.database.write() as db:
            key = (client.config.namespace, container_id)
            (text,) = db.execute("SELECT spec FROM containers WHERE namespace = ? AND id = ?", key).fetchone()
            spec = msgspec.json.decode(text)
            before = spec["linux"].get("resources") or {}
            sections = _sections(before, limits)
            if not sections:
                raise InvalidArgument("there is nothing to change", hint="Give a limit, such as memory.")
            spec["linux"]["resources"] = before | sections
            db.execute(
                "UPDATE containers SET spec = ?, updated_at = ? WHERE namespace = ? AND id = ?",
                (msgspec.json.encode(spec).decode(), timestamp(), *key),
            )
            warnings = task.update(sections)
            undo = {name: _NO_LIMITS[name] | before.get(name, {}) for name in sections}
    except BaseException:
        if undo is not None:  # the kernel took it, and the disk did not
            with suppress(LamellaError):
                task.update(undo)
        raise
    return warnings


def _sections(before: Sections, limits: Limits) -> Sections:
    """Give the sections that change, whole; what the record has of them beyond our options stays."""
    try:
        known = {name: before[name] for name in _NO_LIMITS if name in before}
        present = msgspec.convert(known, Resources)
    except msgspec.ValidationError as error:
        raise InvalidArgument(f"the container's own limits are malformed: {error}") from None
    new = msgspec.to_builtins(changed(present, limits))
    return {name: before.get(name, {}) | section for name, section in new.items()}
