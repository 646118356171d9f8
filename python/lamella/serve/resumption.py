"""What goes on after the machine has restarted: containers that their clients' labels say run, and that have no task.

While a container has a monitor, that follows its restart policy; no monitor outlives the machine. containerd's restart plugin
looks every ten seconds; here it is looked once, when a server starts. As there (core/runtime/restart, Reconcile) those of
``always`` and ``unless-stopped`` are started, which nobody has stopped; of ``on-failure`` nobody knows how they ended.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from lamella.client import Client
from lamella.containers.container import Container
from lamella.containers.lifecycle import Lifecycle
from lamella.containers.record import ContainerRecord
from lamella.containers.task import Paths
from lamella.errors import AlreadyExists, LamellaError
from lamella.logs import Log

LOG_LABEL = "containerd.io/restart.loguri"
"""Where the output goes: a URI, as a client gives it for a task's streams."""
_POLICIES = ("always", "unless-stopped")
_log = Log("lamella.serve")


def is_due(record: ContainerRecord) -> bool:
    """Tell whether a client's labels say that this is to run."""
    return record.extra.foreign is not None and record.extra.restart.name in _POLICIES


def resume(client: Client, ended: Callable[[], bool] = lambda: False) -> list[str]:
    """Start what is due in a client's namespace and has no task; give the identifiers. One that cannot be is logged, and left.

    Twice is harmless. ``ended``: asked before each, whether to leave the rest.
    """
    started = []
    for record in list(filter(is_due, client.containers.records())):
        if ended():
            break
        task = Lifecycle(client, Container(client, record))
        try:
            if task.exists():
                continue
            place = record.labels.get(LOG_LABEL, "")
            task.create([], Paths(stdout=place, stderr=place))
            task.start()
        except AlreadyExists:
            continue  # its client was faster
        except LamellaError as error:
            _log.warning(
                "container %(container)s, which its restart policy says runs: %(error)s",
                container=record.id,
                error=error,
            )
        else:
            started.append(record.id)
            _log.info(
                "started container %(container)s, which its restart policy says runs", container=record.id
            )
    return started


class Resumption:
    """Does that for all namespaces on a thread of its own, from its making to its end or to :meth:`stop`."""

    def __init__(self, client: Client, client_of: Callable[[str], Client]) -> None:
        self._ended = threading.Event()
        self._client, self._client_of = client, client_of
        self._thread = threading.Thread(target=self._run, name="serve-resume")
        self._thread.start()

    def _run(self) -> None:
        try:
            for namespace in self._client.namespaces.list():
                resume(self._client_of(namespace.name), self._ended.is_set)
        except LamellaError as error:
            _log.warning(
                "containers that restart policies say run are not looked for: %(error)s", error=error
            )

    def stop(self) -> None:
        """Start no more of them, and wait until the thread has ended. Harmless twice."""
        self._ended.set()
        self._thread.join()
