"""``containerd.services.diff.v1.Diff``: layers onto mounts, and what differs in two sets of mounts as a layer."""

from __future__ import annotations

from lamella.oci import OCI_LAYER_GZIP
from lamella.serve.api import diff_pb2
from lamella.serve.call import Call
from lamella.serve.messages import from_descriptor, from_mounts, to_descriptor
from lamella.serve.service import Service
from lamella.transfer import differ


class Diff(Service):
    """Layers onto mounts, and what differs in two sets of mounts as a layer. Mounts are those of this machine."""

    descriptor = diff_pb2.DESCRIPTOR.services_by_name["Diff"]

    def Apply(self, request: diff_pb2.ApplyRequest, call: Call) -> diff_pb2.ApplyResponse:
        """Apply a layer of the content store; give the archive in it. Errors as :func:`lamella.transfer.differ.apply`.

        Payloads are for stream processors, of which there is none here: nerdctl sends them with each layer, also with those that
        need none. An encrypted layer is refused by its media type.
        """
        applied = differ.apply(
            call.client, from_descriptor(request.diff), from_mounts(request.mounts), sync=request.sync_fs
        )
        return diff_pb2.ApplyResponse(applied=to_descriptor(applied))

    def Diff(self, request: diff_pb2.DiffRequest, call: Call) -> diff_pb2.DiffResponse:
        """Put what ``right`` changes of ``left`` into the content store. Errors as :func:`lamella.transfer.differ.diff`."""
        found = differ.diff(
            call.client,
            from_mounts(request.left),
            from_mounts(request.right),
            media_type=request.media_type or OCI_LAYER_GZIP,
            ref=request.ref or None,
            labels=dict(request.labels),
            latest=request.source_date_epoch.seconds if request.HasField("source_date_epoch") else None,
            lease=call.lease,
        )
        return diff_pb2.DiffResponse(diff=to_descriptor(found))
