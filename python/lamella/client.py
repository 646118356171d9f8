"""The client: one open store, seen from one namespace.

A client owns a database connection, and keeps the cgroups that its containers' were in, and nothing else: no process, no
thread, no socket. It may be used from several threads. After a fork the child must open its own; a client that notices it was
inherited raises FailedPrecondition.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import TracebackType

from lamella.config import Config, check_identifier
from lamella.lazy import cached_property
from lamella.metadata import Database
from lamella.reserve import fill, frees_space
from lamella.state import check_state
from lamella.structs import replace
from lamella.typings import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datetime import datetime

    from lamella.containers.branches import Branches
    from lamella.containers.collection import Containers
    from lamella.containers.networks.collection import Networks
    from lamella.containers.volumes import Volumes
    from lamella.content import ContentStore
    from lamella.du import DiskUsage
    from lamella.events import EventStream
    from lamella.fsck import FsckReport
    from lamella.gc import GcReport
    from lamella.images import Images
    from lamella.leases import Leases
    from lamella.metrics import Metric
    from lamella.namespaces import Namespaces
    from lamella.policy import AnyPolicy
    from lamella.registry.client import RegistryClient
    from lamella.registry.config import RegistryConfig
    from lamella.remote import Remote
    from lamella.snapshots.layers import LayerStore
    from lamella.snapshots.recorded import RecordedSnapshotter
    from lamella.transfer.progress import ProgressCallback


class Client:
    """Open the store under ``root``, creating it when it is not there; ``state`` is where its running containers are.

    ``durable``: a pull returns only when what it brought survives a power cut (:mod:`lamella.durability`); without it that
    happens a little later. ``auto_gc``: what images and containers leave is collected when they go (:mod:`lamella.autogc`);
    None: as the environment's LAMELLA_GC says, ``auto`` or ``manual`` (the default). ``snapshotter``: ``overlayfs``, or
    ``native``, which copies; None: as LAMELLA_SNAPSHOTTER says, else the former. ``registry``: how registries are talked to.
    ``additional_stores``: where images are looked for that are not here (:mod:`lamella.additional`); None: as
    LAMELLA_ADDITIONAL_STORES says, with ``:`` between them. ``policy``: which images may come here
    (:mod:`lamella.policy`); None: as the file says that LAMELLA_POLICY names, else all. ``confine``: a root's layers are unpacked
    by a process that can do nothing else, as those of others always are; None: as LAMELLA_CONFINE says, ``no`` or ``yes`` (the
    default).

    Errors: PermissionDenied when the store cannot be opened, FailedPrecondition when a newer lamella made it, or the state is
    another store's (:mod:`lamella.state`), InvalidArgument for a malformed namespace.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        state: str | os.PathLike[str] | None = None,
        namespace: str | None = None,
        snapshotter: str | None = None,
        *,
        runtime: str | None = None,
        durable: bool = False,
        auto_gc: bool | None = None,
        additional_stores: Sequence[str | os.PathLike[str]] | None = None,
        confine: bool | None = None,
        registry: RegistryConfig | None = None,
        policy: AnyPolicy | None = None,
    ) -> None:
        self.durable = durable
        self.registry = registry
        self._policy = policy
        self.config = Config.load(
            root=root,
            state=state,
            namespace=namespace,
            snapshotter=snapshotter,
            runtime=runtime,
            auto_gc=auto_gc,
            additional_stores=additional_stores,
            confine=confine,
        )
        check_state(self.config)
        self.database = Database(self.config)
        self._cgroup_parents: dict[str, bool] = {}

    def __repr__(self) -> str:
        return f"<lamella.Client root={str(self.config.root)!r} namespace={self.config.namespace!r}>"

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the store. Containers go on. Harmless twice."""
        _remove_cgroup_parents(self._cgroup_parents)
        self.database.close()

    def keeps_cgroup_parents(self) -> bool:
        """Say whether the cgroups that a namespace's containers are in are to outlive the next one, which is attached.

        They do from the second on: to make and remove them each time is a tenth of a short run. They go when the client is
        closed, or the process ends; those that a killed one leaves by garbage collection, or when another container ends there.
        """
        namespace, kept = self.config.namespace, self._cgroup_parents
        if namespace not in kept:
            kept[namespace] = False
        elif not kept[namespace]:
            if not any(kept.values()):
                import weakref

                weakref.finalize(self.database, _remove_cgroup_parents, kept)
            kept[namespace] = True
        return kept[namespace]

    def using(
        self,
        snapshotter: str | None = None,
        *,
        namespace: str | None = None,
        registry: RegistryConfig | None = None,
    ) -> Client:
        """Give a client of this store with another snapshotter or namespace, or that talks to registries in another way.

        Itself if all are its own. They close together. InvalidArgument for a malformed namespace.
        """
        snapshotter = self.config.snapshotter if snapshotter is None else snapshotter
        namespace = self.config.namespace if namespace is None else check_identifier(namespace, "namespace")
        registry = self.registry if registry is None else registry
        own = (self.config.snapshotter, self.config.namespace)
        if (snapshotter, namespace) == own and registry is self.registry:
            return self
        other = object.__new__(type(self))
        other.durable, other.database, other.registry = self.durable, self.database, registry
        other._policy = self._policy
        other._cgroup_parents = self._cgroup_parents
        other.config = replace(self.config, snapshotter=snapshotter, namespace=namespace)
        return other

    def connect(self, *, plain_http: bool = False, **changes: Any) -> RegistryClient:
        """Give what talks to registries; a context manager.

        By this client's settings, and with ``changes`` of them (fields of :class:`lamella.registry.config.RegistryConfig`).
        ``plain_http`` allows what it names; it takes nothing away that the settings allow.
        """
        from lamella.registry.client import RegistryClient
        from lamella.registry.config import RegistryConfig
        from lamella.transfer.cancellation import current

        config = self.registry = (
            self.registry or RegistryConfig()
        )  # one, for the limits that all transfers share
        changes["plain_http"] = plain_http or config.plain_http
        registry = RegistryClient(replace(config, **changes))
        if (cancellation := current.get()) is not None:
            cancellation.add(registry.interrupt)
        return registry

    @frees_space
    def gc(self, *, dry_run: bool = False, wait: bool = True) -> GcReport:
        """Remove what nothing refers to; with ``dry_run`` only say what would go.

        While another process collects it waits, or raises Unavailable without ``wait``. Twice is harmless.
        """
        from lamella.containers.orphans import (
            collect_networks,
            release_stale_networks,
            remove_empty_cgroups,
            remove_orphaned_tasks,
        )
        from lamella.gc import collect
        from lamella.snapshots.mounting import remove_stale_mounts

        if not dry_run:
            from lamella.durability import sync_if_due
            from lamella.events.spool import drain

            drain(self.database, self.config)
            sync_if_due(self.database, self.config)
            self.containers.remove_ended()
            self.containers.put_right()
        report = collect(self.database, self.config, dry_run=dry_run, wait=wait)
        if not dry_run:
            fill(self.config.root)
            collect_networks(self.config)
            remove_empty_cgroups(self.database)
        report.orphans += release_stale_networks(self.database, self.config, dry_run=dry_run)
        report.orphans += remove_orphaned_tasks(self.database, self.config, dry_run=dry_run)
        report.orphans += remove_stale_mounts(self.database, self.config, dry_run=dry_run)
        if (self.config.root / "volumes").is_dir():
            from lamella.containers.volumes import remove_leftovers

            report.orphans += remove_leftovers(self.config, dry_run=dry_run)
        return report

    def last_gc(self) -> GcReport | None:
        """Return what the last collection of the store did, whoever ran it, but for the names; None when there was none."""
        from lamella.gc import last_report

        return last_report(self.config.root)

    def events(
        self,
        *,
        filters: Sequence[str] = (),
        since: int | str | datetime | None = None,
        until: str | datetime | None = None,
        follow: bool = True,
        all_namespaces: bool = False,
        timeout: float | None = None,
    ) -> EventStream:
        """Follow what happens in the store, whichever process does it: an iterator over :class:`lamella.events.Event`.

        It begins after this call; with ``since`` after the event of that number, or at a time (RFC 3339 text, or a datetime
        with a zone). It waits for what comes; with ``follow=False`` it ends with the newest event (and begins with the oldest
        that is kept), with ``until`` at that time. Another waits at most ``timeout`` seconds for an event
        (DeadlineExceeded, after which one may go on). ``filters`` are containerd's, by ``topic``, ``namespace`` and
        ``event.FIELD`` (``event.labels."a.b"``). Topics and fields: :mod:`lamella.events`.

        The stream is a context and has ``close()``; it does not depend on this client any more. The newest 32,768 events are
        kept. Errors: DataLoss when those after ``since``, or those that come next, were dropped already;
        InvalidArgument for a filter, time or number.
        """
        from lamella.events import EventStream

        return EventStream(
            self.config,
            filters=filters,
            since=since,
            until=until,
            follow=follow,
            all_namespaces=all_namespaces,
            timeout=timeout,
        )

    def du(self) -> DiskUsage:
        """Say what the images, snapshots and containers take on disk, and what :meth:`gc` would free."""
        from lamella.du import usage

        return usage(self)

    def sync(self) -> int:
        """Wait until everything that is complete in the store is on disk; return how many objects that was news for."""
        from lamella.durability import sync

        return sync(self.database, self.config)

    def metrics(self) -> list[Metric]:
        """Return what all processes have done with this store since the boot, and what is in it, over all namespaces.

        See :mod:`lamella.metrics` for a collector that gives the same to a prometheus_client registry.
        """
        from lamella.metrics import read

        return read(self.config)

    def fsck(
        self,
        *,
        repair: bool = False,
        verify_layers: bool = False,
        fetch: bool = True,
        plain_http: bool = False,
        jobs: int = 2,
        progress: ProgressCallback | None = None,
    ) -> FsckReport:
        """Look for damage, in all namespaces; mend what can be mended with ``repair``, without a network with ``fetch=False``.

        See :func:`lamella.fsck.check`.
        """
        from lamella.fsck import check

        return check(
            self,
            repair=repair,
            verify_layers=verify_layers,
            fetch=fetch,
            plain_http=plain_http,
            jobs=jobs,
            progress=progress,
        )

    @cached_property
    def policy(self) -> AnyPolicy | None:
        """Which images may come here; None: all. NotFound and InvalidArgument of the file that LAMELLA_POLICY names."""
        path = os.environ.get("LAMELLA_POLICY")
        if self._policy is not None or not path:
            return self._policy
        from lamella.policy import load

        return load(path)

    @cached_property
    def content(self) -> ContentStore:
        """The blobs of this namespace."""
        from lamella.content import ContentStore

        return ContentStore(self.database, self.config)

    @cached_property
    def layers(self) -> LayerStore:
        """The unpacked layers, shared by all namespaces."""
        from lamella.snapshots.layers import LayerStore

        return LayerStore(self.database, self.config)

    @cached_property
    def snapshots(self) -> RecordedSnapshotter:
        """The snapshots of this namespace."""
        from lamella.snapshots import snapshotter

        return snapshotter(self.database, self.config)

    @cached_property
    def images(self) -> Images:
        """The images of this namespace."""
        from lamella.images import Images

        return Images(self)

    @cached_property
    def remote(self) -> Remote:
        """What registries have: looked at, tagged and deleted there."""
        from lamella.remote import Remote

        return Remote(self)

    @cached_property
    def containers(self) -> Containers:
        """The containers of this namespace."""
        from lamella.containers.collection import Containers

        return Containers(self)

    @cached_property
    def networks(self) -> Networks:
        """The CNI networks of this machine and of this store."""
        from lamella.containers.networks.collection import Networks

        return Networks(self)

    @cached_property
    def volumes(self) -> Volumes:
        """The volumes of this namespace."""
        from lamella.containers.volumes import Volumes

        return Volumes(self)

    @cached_property
    def branches(self) -> Branches:
        """The frozen writable layers of containers of this namespace, on which others stand."""
        from lamella.containers.branches import Branches

        return Branches(self)

    @cached_property
    def leases(self) -> Leases:
        """What protects work in progress from garbage collection."""
        from lamella.leases import Leases

        return Leases(self.database, self.config)

    @cached_property
    def namespaces(self) -> Namespaces:
        """The namespaces of this store."""
        from lamella.namespaces import Namespaces

        return Namespaces(self.database)


def _remove_cgroup_parents(kept: dict[str, bool]) -> None:
    """Remove the cgroups that namespaces' containers were in. Harmless twice, and while others have containers in them."""
    for namespace in [name for name, is_kept in kept.items() if is_kept]:
        from lamella.containers.cgroups import remove_parents

        kept[namespace] = False
        remove_parents(namespace)
