"""What killed processes leave of containers: task and log folders of those that are gone, networks of those that have ended.

A container's row is there before its folders and goes before them, so that a folder without a row belongs to nobody.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from lamella.config import Config
from lamella.containers.task import Task
from lamella.disk import names_in
from lamella.errors import FailedPrecondition, LamellaError, Unavailable
from lamella.locks import is_locked
from lamella.logs import Log
from lamella.metadata import Database
from lamella.structs import replace

_log = Log("lamella.containers")


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
        yield Task(replace(config, namespace=namespace), container)


def remove_orphaned_tasks(database: Database, config: Config, *, dry_run: bool) -> int:
    """Remove them, but for one whose monitor still lives; return how many there were."""
    count = 0
    for task in orphaned_tasks(database, config):
        if dry_run:
            count += not task.running()
            continue
        with suppress(FailedPrecondition, Unavailable):
            task.remove()
            count += 1
    return count


def remove_empty_cgroups(database: Database) -> None:
    """Remove the cgroups that a killed client has kept for a namespace's containers. Harmless while there are some."""
    from lamella.containers.cgroups import remove_parents

    with database.read() as db:
        namespaces = [row[0] for row in db.execute("SELECT name FROM namespaces")]
    for namespace in namespaces:
        remove_parents(namespace)


def collect_networks(config: Config) -> None:
    """Let the plugins of the store's own networks drop what belongs to no container, and drop what they cannot."""
    if any(name.endswith(".conflist") for name in names_in(config.root / "networks")):
        from lamella.containers.networks.cni import collect

        collect(config)
    if names_in(config.state / "networks" / "leases"):
        from lamella.containers.networks.leases import drop_orphaned_leases

        drop_orphaned_leases(config)


def stale_networks(config: Config) -> Iterator[Task]:
    """Give the tasks of all namespaces that do not run, are not being started, and are still plugged in."""
    if not names_in(config.root / "networks" / "attached"):
        return
    from lamella.containers.networks.attachment import attached

    for namespace, container, _ in attached(config):
        task = Task(replace(config, namespace=namespace), container)
        if not is_locked(task.folder) and not task.monitored():
            yield task


def unfinished_networks(config: Config) -> list[tuple[str, str]]:
    """Give namespace and container of those that run and were being plugged in or out by a process that was killed."""
    if not any(name.endswith(".lock") for name in names_in(config.state / "networks")):
        return []
    from lamella.containers.networks.connecting import unfinished

    return list(unfinished(config))


def release_stale_networks(database: Database, config: Config, *, dry_run: bool = False) -> int:
    """Take away what killed monitors have left of networks, and put right what was being connected; return how many there were.

    What fails is logged, and tried again the next time.
    """
    count = 0
    for namespace, container in unfinished_networks(config):
        count += dry_run or finish_network(database, config, namespace, container)
    for task in stale_networks(config):
        try:
            count += dry_run or task.release_network()
        except LamellaError as error:
            _left_behind(task.folder.name, error)
    return count


def finish_network(database: Database, config: Config, namespace: str, container: str) -> bool:
    """Put right what :func:`unfinished_networks` gave. What fails is logged, and False."""
    from lamella.containers.networks.connecting import finish

    try:
        return finish(database, replace(config, namespace=namespace), container)
    except LamellaError as error:
        _left_behind(container, error)
        return False


def _left_behind(container: str, error: LamellaError) -> None:
    _log.warning(
        "the network of the container %(container)s is left behind: %(reason)s",
        container=container,
        reason=str(error),
    )
