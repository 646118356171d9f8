"""Changing the limits and the restart policy of a container: of its record, and at once of what runs. As a whole, or not at all.

The bundle's folder is locked meanwhile, so that no start or removal comes between, and the record's row is written in one
transaction with the monitor's word that the kernel took every limit. A process that is killed in between leaves limits that hold
until the container's next start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress

from lamella.containers.limits import Limits, changed
from lamella.containers.record import change_record
from lamella.containers.restart_policy import RestartPolicy, parse_restart_policy
from lamella.containers.runtime_spec import Resources
from lamella.errors import InvalidArgument, LamellaError
from lamella.structs import Malformed, convert, encode, read_json, to_builtins
from lamella.typings import TYPE_CHECKING, Any

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


def update_container(
    client: Client,
    task: Task,
    container_id: str,
    options: Mapping[str, Any],
    restart_policy: RestartPolicy | str | Mapping[str, Any] | None,
) -> list[str]:
    """Change limits of a container's record, and of its processes if it runs; return what the kernel could not do.

    ``restart_policy`` holds from its next end on. Twice is harmless. Errors: NotFound, InvalidArgument, Unavailable when it uses
    more than the new limit, and what else the monitor reports; after one all is as it was.
    """
    try:
        limits = Limits(**options)
    except TypeError as error:
        raise TypeError(str(error).replace("Limits.", "container.update() ")) from None
    policy = None if restart_policy is None else parse_restart_policy(restart_policy)
    undo: list[Callable[[], object]] = []
    try:
        with task.held(lambda: client.containers.get(container_id)), client.database.write() as db:
            key = (client.config.namespace, container_id)
            texts = db.execute(
                "SELECT spec, extra FROM containers WHERE namespace = ? AND id = ?", key
            ).fetchone()
            spec, extra = map(read_json, texts)
            before = spec["linux"].get("resources") or {}
            sections = _sections(before, limits)
            if not sections and policy is None:
                raise InvalidArgument("there is nothing to change", hint="Give a limit, such as memory.")
            spec["linux"]["resources"] = before | sections
            old_policy = convert(extra.get("restart", {}), RestartPolicy)
            if policy is not None:
                if policy and extra.get("auto_remove"):
                    raise InvalidArgument(
                        "a container that is run again cannot be removed at its end",
                        hint="It was created with auto_remove (--rm).",
                    )
                extra["restart"] = to_builtins(policy)
            change_record(db, *key, spec=encode(spec).decode(), extra=extra)
            warnings = task.update(sections) if sections else []
            limits_before = {name: _NO_LIMITS[name] | before.get(name, {}) for name in sections}
            undo.append(lambda: task.update(limits_before))
            if policy is not None:
                task.set_restart_policy(policy)
                undo.append(lambda: task.set_restart_policy(old_policy))
    except BaseException:
        for step in undo:  # the kernel and the monitor took it, and the disk did not
            with suppress(LamellaError):
                step()
        raise
    return warnings


def _sections(before: Sections, limits: Limits) -> Sections:
    """Give the sections that change, whole; what the record has of them beyond our options stays."""
    try:
        known = {name: before[name] for name in _NO_LIMITS if name in before}
        present = convert(known, Resources)
    except Malformed as error:
        raise InvalidArgument(f"the container's own limits are malformed: {error}") from None
    new = to_builtins(changed(present, limits))
    return {name: before.get(name, {}) | section for name, section in new.items()}
