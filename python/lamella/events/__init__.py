"""Events: what happened in the store, in one order that every process sees.

An event has a number, a time, a namespace, a topic and fields; topics and fields are containerd's (api/events), with ``name``
beside a container's id::

    /images/create       name, labels                    also update; delete has the name alone
    /content/create      digest, size                    update: digest, labels; delete: digest
    /snapshot/prepare    key, parent, snapshotter        of views, too
    /snapshot/commit     key, name, snapshotter          key is empty for a layer that was unpacked
    /snapshot/update     key, labels, snapshotter        not in containerd
    /snapshot/remove     key, snapshotter
    /containers/create   id, image, runtime.name, name   update: id, image, labels, snapshot_key, name; delete: id, name
    /namespaces/create   name, labels                    also update; delete has the name alone
    /tasks/create        container_id, bundle, pid       these all with name
    /tasks/start         container_id, pid
    /tasks/exec-added    container_id, exec_id
    /tasks/exec-started  container_id, exec_id, pid
    /tasks/paused        container_id                    /tasks/resumed, too
    /tasks/oom           container_id
    /tasks/exit          container_id, id, pid, exit_status, exited_at    id is that of the container, or of the exec
    /tasks/delete        container_id, exit_status, exited_at             at its removal, or before it starts again

Those of the store are rows that SQL triggers write (metadata/schema.py): an event is committed with its change, and events
stand in the order of commits. Those of tasks come from monitors through a file (:mod:`lamella.events.spool`); an exit stands
before the removal of its container. A monitor that is killed tells no exit, and nobody makes one up (/tasks/delete has none
then). Out of memory is told when the kernel kills, at most once a second. A task's time is that of its monitor's line, so that
times, unlike numbers, may step back a little. The newest 32,768 events are kept. :mod:`lamella.events.stream` follows them.
"""

from __future__ import annotations

from lamella.typings import TYPE_CHECKING

if TYPE_CHECKING:
    from lamella.events.stream import Event as Event
    from lamella.events.stream import EventStream as EventStream

__all__ = ["Event", "EventStream"]


def __getattr__(name: str) -> object:
    """Load what following takes when somebody follows: starting a container needs the spool's half alone."""
    if name not in __all__:
        raise AttributeError(f"module 'lamella.events' has no attribute {name!r}")
    from lamella.events import stream

    return getattr(stream, name)
