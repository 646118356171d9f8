"""``containerd.services.snapshots.v1.Snapshots``: how layers combine, and the mounts that show it.

``containerd.io/snapshot.ref`` on what is prepared names the committed snapshot that it is to become. Where that is here the
answer is AlreadyExists, and the client need not fetch the layer: containerd's rule for remote snapshotters. What the library
unpacked for an image counts, too, in whatever namespace: its layers are shared, and a chainID says all that is in one.

As in containerd an active snapshot is kept by a label, a lease or a container, or else collected: a client that dies leaves none.
"""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf.empty_pb2 import Empty

from lamella.errors import AlreadyExists, InvalidArgument
from lamella.gc import collect
from lamella.labels import COLLECTABLE
from lamella.serve.api import snapshots_pb2
from lamella.serve.call import Call
from lamella.serve.messages import batches, label_changes, mask_paths, to_mounts, to_timestamp
from lamella.serve.service import Service
from lamella.snapshots import SNAPSHOTTERS, SnapshotInfo, snapshotter
from lamella.snapshots.recorded import RecordedSnapshotter

SNAPSHOT_REF = "containerd.io/snapshot.ref"

_KINDS = {
    "view": snapshots_pb2.VIEW,
    "active": snapshots_pb2.ACTIVE,
    "committed": snapshots_pb2.COMMITTED,
}


class Snapshots(Service):
    """How layers combine, and the mounts that show it. Every call names a snapshotter: InvalidArgument for none that is here."""

    descriptor = snapshots_pb2.DESCRIPTOR.services_by_name["Snapshots"]

    def _snapshotter(self, call: Call, name: str) -> RecordedSnapshotter:
        """Give a snapshotter; what it makes is a root of garbage collection only where clients cannot say so themselves."""
        backend = self.server.backend
        if not name:
            raise InvalidArgument("snapshotter argument missing")
        if name not in SNAPSHOTTERS and not backend:
            raise InvalidArgument(f"snapshotter not loaded: {name[:200]}")
        client = call.client
        used = client.using(name if name in SNAPSHOTTERS else None)
        return snapshotter(client.database, used.config, roots=backend)

    # Life

    def Prepare(
        self, request: snapshots_pb2.PrepareSnapshotRequest, call: Call
    ) -> snapshots_pb2.PrepareSnapshotResponse:
        """Make an active snapshot. NotFound for the parent, InvalidArgument for one that is not committed, AlreadyExists."""
        snapshots = self._snapshotter(call, request.snapshotter)
        labels = dict(request.labels)
        target = labels.get(SNAPSHOT_REF)
        if target and snapshots.adopt(target, request.parent, {SNAPSHOT_REF: target}):
            _hold(call, request.snapshotter, target)
            raise AlreadyExists(f"target snapshot {target!r} is here")
        _hold(call, request.snapshotter, request.key)
        if not self.server.backend:
            labels[COLLECTABLE] = "true"
        mounts = snapshots.prepare(request.key, request.parent, labels)
        return snapshots_pb2.PrepareSnapshotResponse(mounts=to_mounts(mounts))

    def View(
        self, request: snapshots_pb2.ViewSnapshotRequest, call: Call
    ) -> snapshots_pb2.ViewSnapshotResponse:
        """Make a view. Errors as :meth:`Prepare`."""
        snapshots = self._snapshotter(call, request.snapshotter)
        _hold(call, request.snapshotter, request.key)
        mounts = snapshots.view(request.key, request.parent, dict(request.labels))
        return snapshots_pb2.ViewSnapshotResponse(mounts=to_mounts(mounts))

    def Commit(self, request: snapshots_pb2.CommitSnapshotRequest, call: Call) -> Empty:
        """Freeze an active snapshot under a name, on a parent where it has none. As the library's method."""
        snapshots = self._snapshotter(call, request.snapshotter)
        _hold(call, request.snapshotter, request.name)
        snapshots.commit(request.name, request.key, dict(request.labels), parent=request.parent)
        return Empty()

    def Remove(self, request: snapshots_pb2.RemoveSnapshotRequest, call: Call) -> Empty:
        """Remove a snapshot. NotFound; FailedPrecondition while it has children."""
        self._snapshotter(call, request.snapshotter).remove(request.key)
        return Empty()

    def Update(
        self, request: snapshots_pb2.UpdateSnapshotRequest, call: Call
    ) -> snapshots_pb2.UpdateSnapshotResponse:
        """Set labels: those that the mask names, or, without one, all. NotFound, InvalidArgument."""
        snapshots = self._snapshotter(call, request.snapshotter)
        name = request.info.name
        with call.client.database.write():
            changes = label_changes(
                mask_paths(request.update_mask, "labels"), request.info.labels, _labels(snapshots.stat(name))
            )
            return snapshots_pb2.UpdateSnapshotResponse(info=_info(snapshots.update(name, changes)))

    def Cleanup(self, request: snapshots_pb2.CleanupRequest, call: Call) -> Empty:
        """Remove what a crash left on disk, of all snapshotters: leftovers are nobody's."""
        self._snapshotter(call, request.snapshotter)
        collect(call.client.database, call.client.config, leftovers_only=True)
        return Empty()

    # Looking

    def Mounts(self, request: snapshots_pb2.MountsRequest, call: Call) -> snapshots_pb2.MountsResponse:
        """Say what to mount to see an active snapshot or a view. NotFound; FailedPrecondition for a committed one."""
        mounts = self._snapshotter(call, request.snapshotter).mounts(request.key)
        return snapshots_pb2.MountsResponse(mounts=to_mounts(mounts))

    def Stat(
        self, request: snapshots_pb2.StatSnapshotRequest, call: Call
    ) -> snapshots_pb2.StatSnapshotResponse:
        """Give what is known of a snapshot. NotFound."""
        info = self._snapshotter(call, request.snapshotter).stat(request.key)
        return snapshots_pb2.StatSnapshotResponse(info=_info(info))

    def List(
        self, request: snapshots_pb2.ListSnapshotsRequest, call: Call
    ) -> Iterator[snapshots_pb2.ListSnapshotsResponse]:
        """Give the snapshots that match the filters, by ``name``, ``parent``, ``kind`` and ``labels``; parents first."""
        found = self._snapshotter(call, request.snapshotter).walk(filters=request.filters)
        for batch in batches(map(_info, found)):
            yield snapshots_pb2.ListSnapshotsResponse(info=batch)

    def Usage(self, request: snapshots_pb2.UsageRequest, call: Call) -> snapshots_pb2.UsageResponse:
        """Say what a snapshot takes on disk, without its parents. NotFound."""
        usage = self._snapshotter(call, request.snapshotter).usage(request.key)
        return snapshots_pb2.UsageResponse(size=usage.size, inodes=usage.inodes)


def _hold(call: Call, snapshotter: str, key: str) -> None:
    """Have the lease keep a snapshot, before it is there: it cannot be collected in between."""
    if call.lease and key:
        call.client.leases.add(call.lease, f"snapshots/{snapshotter}", key)


def _info(info: SnapshotInfo) -> snapshots_pb2.Info:
    return snapshots_pb2.Info(
        name=info.name,
        parent=info.parent,
        kind=_KINDS[info.kind],
        labels=_labels(info),
        created_at=to_timestamp(info.created_at),
        updated_at=to_timestamp(info.updated_at),
    )


def _labels(info: SnapshotInfo) -> dict[str, str]:
    """Give the labels that clients see."""
    return {key: value for key, value in info.labels.items() if key != COLLECTABLE}
