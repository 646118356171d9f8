"""Task and log folders of containers that are gone: what a process leaves that was killed in the middle of a removal.

A container's row is there before its folders and goes before them, so that a folder without a row belongs to nobody.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import msgspec

from lamella.config import Config
from lamella.containers.task import Task
from lamella.disk import names_in
from lamella.errors import FailedPrecondition
from lamella.metadata import Database


def orphaned_tasks(database: Database, config: Config) -> Iterator[Task]:
    """Give the tasks of all namespaces that have a folder and no container."""
    found = {
        (namespace, container)
        for top in (config.state / "tasks", config.root / "containers")
        for namespace in names_in(top)
        for container in names_in(top / namespace)
    }
    # Read after the folders: a container that is made meanwhile has its row by now.
    with database.read() as db:
        known = {(row[0], row[1]) for row in db.execute("SELECT namespace, id FROM containers")}
    for namespace, container in sorted(found - known):
        yield Task(msgspec.structs.replace(config, namespace=namespace), container)


def remove_orphaned_tasks(database: Database, config: Config, *, dry_run: bool) -> int:
    """Remove them, but for one whose monitor still lives; return how many there were."""
    count = 0
    for task in orphaned_tasks(database, config):
        if dry_run:
            count += not task.running()
            continue
        with suppress(FailedPrecondition):
            task.remove()
            count += 1
    return count
