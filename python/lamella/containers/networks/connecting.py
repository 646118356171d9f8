"""Plugging a container into a network, and out of it, while it runs or not.

The container's record says which networks it has from its next start on. One that runs is plugged in or out at once, under the
lock of its task's folder (against starts and removals) and the file beside its pin (against its monitor, which lets go
of all networks at its end). Meanwhile the record of what is plugged in names the interface as ``unfinished``. Whoever finds that
and nobody at work (a process was killed) asks the container's record: if that has the network it stays, else it is taken away.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from lamella import _core
from lamella.config import Config
from lamella.containers.networks import (
    Endpoint,
    Settings,
    endpoints_of,
    kind_of,
    record_path,
    with_endpoints,
)
from lamella.containers.networks.attachment import Record, Release, attached, is_pinned, pin_path, read
from lamella.containers.networks.cni import files_of, plug_in, prepare, undone_after_error, unplug
from lamella.containers.networks.files import ISOLATED_RESOLV_CONF
from lamella.containers.networks.joining import join, own_maps
from lamella.containers.networks.naming import names_path, tell
from lamella.containers.record import change_record, find_record
from lamella.containers.task import Task
from lamella.disk import names_in, translated
from lamella.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)
from lamella.locks import FileLock, FolderLock, is_locked
from lamella.metadata import Database
from lamella.structs import replace
from lamella.typings import TYPE_CHECKING

if TYPE_CHECKING:
    from lamella.client import Client
    from lamella.containers.container import Container
    from lamella.containers.record import ContainerRecord

_SUFFIX = ".lock"
_REFUSED = {
    "host": "it has the host's network",
    "container": "it has the network of another container",
    "pasta": "it has the host's address, by pasta",
}


def connect_network(client: Client, container: Container, endpoint: Endpoint) -> None:
    """Give a container one more network; see :meth:`lamella.containers.networks.collection.Network.connect`."""
    if kind_of(endpoint.network) != "cni":
        raise InvalidArgument(f"network {endpoint.network!r} is none that a container can be plugged into")
    with _held(container) as record:
        endpoints = _endpoints(record, endpoint.network)
        if any(each.network == endpoint.network for each in endpoints):
            raise AlreadyExists(f"container {record.name} is connected to network {endpoint.network}")
        plug = prepare(client.config, endpoint)
        with _at_work(client, record, container.task) as plugged:
            if plugged is not None:
                plugged.unfinished = plugged.free_interface()
                settings = record.extra.network_settings or Settings()
                plug_in(client.config, plugged, plug, settings, publishes=False)
                _complete_resolv_conf(container.task, record, plugged, settings)
            _write(client.database, client.config, record, [*endpoints, endpoint])


def disconnect_network(client: Client, container: Container, network: str, *, force: bool = False) -> None:
    """Take a network from a container; see :meth:`lamella.containers.networks.collection.Network.disconnect`."""
    with _held(container) as record:
        endpoints = _endpoints(record, network)
        left = [each for each in endpoints if each.network != network]
        if left == endpoints:
            raise NotFound(f"container {record.name} is not connected to network {network}")
        with _at_work(client, record, container.task) as plugged:
            attachment = plugged.find(network) if plugged is not None else None
            if plugged is None or attachment is None:
                _write(client.database, client.config, record, left)
            else:
                plugged.unfinished = attachment.interface
                plugged.write(client.config)
                _write(client.database, client.config, record, left)
                unplug(client.config, plugged, attachment.interface, force=force)


def tell_again(client: Client, container: Container) -> None:
    """Tell the others of a running container's networks what it is called by now. Harmless twice."""
    with (
        suppress(NotFound),
        _held(container) as record,
        _at_work(client, record, container.task) as plugged,
    ):
        if plugged is not None:
            tell(client.config, record, plugged)


@contextmanager
def _held(container: Container) -> Iterator[ContainerRecord]:
    """Keep starts and removals away; give the record, which is read again at the end, too."""
    with container.task.held(container.refresh):
        try:
            yield container.record
        finally:
            container.refresh()


def _endpoints(record: ContainerRecord, network: str) -> list[Endpoint]:
    kind = kind_of(record.extra.network)
    if kind in _REFUSED:
        hint = "Plug that one in." if kind == "container" else "Create it with a network of its own."
        raise FailedPrecondition(
            f"container {record.name} has nothing to do with network {network}: {_REFUSED[kind]}", hint=hint
        )
    return endpoints_of(record.extra)


def _write(
    database: Database, config: Config, record: ContainerRecord, endpoints: Sequence[Endpoint]
) -> None:
    """Write which networks a container has from now on."""
    extra = with_endpoints(record.extra, endpoints)
    with database.write() as db:
        change_record(db, config.namespace, record.id, extra=extra)


@contextmanager
def _at_work(client: Client, record: ContainerRecord, task: Task) -> Iterator[Record | None]:
    """Keep the monitor away from a container's networks; give what it is plugged into, None when it does not run.

    What is unfinished at the end of the block, or was before, is put right.
    """
    config = client.config
    with _lock(config, record.id):
        if not task.running():  # by now; the monitor says so before it lets go of the networks
            yield None
            return
        plugged = read(record_path(config, record.id)) or Record(
            container=record.id,
            release=Release(namespace=pin_path(config, record.id)),
        )
        plugged.names = names_path(config, record.id)
        if not is_pinned(plugged.release.namespace):
            _take_namespace(config, record, task, plugged)
        put_right = partial(_finish, client.database, config, record.id, plugged)
        put_right()
        with undone_after_error(record, put_right):
            yield plugged
        put_right()


@contextmanager
def _lock(config: Config, container: str) -> Iterator[None]:
    """Keep others away. The file stays where something is left unfinished, for :func:`unfinished`."""
    path = Path(pin_path(config, container) + _SUFFIX)
    with FileLock(path, what="the container's network"):
        try:
            yield
        finally:
            plugged = read(record_path(config, container))
            if plugged is None or not plugged.unfinished:
                path.unlink(missing_ok=True)


def _take_namespace(config: Config, record: ContainerRecord, task: Task, plugged: Record) -> None:
    """Keep the namespace of a container that was not plugged in, also for further runs by its restart policy."""
    pid = task.pid()
    if pid is None:
        raise FailedPrecondition(
            f"container {record.name} is between two runs, and has no network just now", hint="Try it again."
        )
    # Refused for one that has none of its own: it would be the machine that is plugged in.
    join(record.spec, plugged.release.namespace)
    plugged.write(config)
    plugged.take(config, pid, with_owner=own_maps(record.spec) is not None)
    if task.pid() != pid:
        raise FailedPrecondition(f"container {record.name} has just ended", hint="Try it again.")
    task.join_network(plugged.release.namespace)


def _finish(database: Database, config: Config, container: str, plugged: Record) -> None:
    """Put right what is unfinished. Harmless twice."""
    if not plugged.unfinished:
        return
    with database.read() as db:
        record = find_record(db, config.namespace, container)
    wanted = [endpoint.network for endpoint in endpoints_of(record.extra)] if record is not None else []
    for attachment in plugged.attachments:
        if attachment.interface == plugged.unfinished and attachment.network not in wanted:
            _core.await_strays(container)
            unplug(config, plugged, attachment.interface)
            break
    if record is not None:
        tell(config, record, plugged)
    plugged.unfinished = ""
    plugged.write(config)


def _complete_resolv_conf(task: Task, record: ContainerRecord, plugged: Record, settings: Settings) -> None:
    """Name resolvers in a container that had no network before, unless it has changed the file."""
    path = task.log_folder / "resolv.conf"
    with translated(f"write {path}"), suppress(FileNotFoundError):
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "r+b") as file:
            if file.read(len(ISOLATED_RESOLV_CONF) + 1) == ISOLATED_RESOLV_CONF:
                file.seek(0)
                file.write(files_of(record, plugged, settings)["resolv.conf"])
                file.truncate()


def unfinished(config: Config) -> Iterator[tuple[str, str]]:
    """Give namespace and container of what killed processes have left half plugged in or out, and runs."""
    left = {
        name.removesuffix(_SUFFIX) for name in names_in(config.state / "networks") if name.endswith(_SUFFIX)
    }
    if not left:
        return
    for container in left - {container for _, container, _ in attached(config)}:
        _discard_lock(config, container)
    for namespace, container, path in attached(config):
        if container in left and (plugged := read(path)) is not None and plugged.unfinished:
            task = Task(replace(config, namespace=namespace), container)
            if task.monitored() and not is_locked(task.folder):
                yield namespace, container


def _discard_lock(config: Config, container: str) -> None:
    """Remove the file of a lock that was taken for nothing, unless it is held."""
    lock = FileLock(
        Path(pin_path(config, container) + _SUFFIX), what="the container's network", transient=True
    )
    if lock.try_acquire():
        lock.release()


def finish(database: Database, config: Config, container: str) -> bool:
    """Put right what :func:`unfinished` gave, in the namespace of ``config``. False when somebody is at work by now."""
    task = Task(config, container)
    folder = FolderLock(task.folder, what="the container's task")
    if not folder.try_acquire():
        return False
    try:
        with _lock(config, container):
            plugged = read(record_path(config, container))
            if plugged is None or not plugged.unfinished or not task.running():
                return False
            _finish(database, config, container, plugged)
            return True
    finally:
        folder.release()
