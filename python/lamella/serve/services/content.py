"""``containerd.services.content.v1.Content``: blobs by digest, and ingests, the writes in progress.

A write is one stream. It holds the ingest's lock from its first message to its end, whatever the end is; what was written stays
for the next write of the same ref. With a lease in its headers the ingest, and then the blob, are held by that lease.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

from google.protobuf.empty_pb2 import Empty

from lamella.content import ContentInfo, Ingest, IngestStatus
from lamella.digest import Digest
from lamella.errors import AlreadyExists, InvalidArgument, NotFound
from lamella.labels import GC_ROOT
from lamella.metadata import timestamp
from lamella.serve.api import content_pb2
from lamella.serve.call import Call, Conversation, FileRange
from lamella.serve.messages import batches, from_digest, label_changes, mask_paths, to_timestamp
from lamella.serve.service import Service
from lamella.serve.status import OutOfRange


class Content(Service):
    """Blobs by digest, and writes in progress."""

    descriptor = content_pb2.DESCRIPTOR.services_by_name["Content"]

    # What is here

    def Info(self, request: content_pb2.InfoRequest, call: Call) -> content_pb2.InfoResponse:
        """Give size, labels and times of a blob. NotFound."""
        return content_pb2.InfoResponse(info=_info(call.client.content.info(from_digest(request.digest))))

    def List(
        self, request: content_pb2.ListContentRequest, call: Call
    ) -> Iterator[content_pb2.ListContentResponse]:
        """Give the blobs that match the filters, by ``digest``, ``size`` and ``labels``."""
        found = call.client.content.walk(filters=request.filters)
        for batch in batches(map(_info, found)):
            yield content_pb2.ListContentResponse(info=batch)

    def Read(self, request: content_pb2.ReadContentRequest, call: Call) -> Iterator[FileRange]:
        """Give a blob's bytes from ``offset``; all that follow for a size of 0. OutOfRange beyond the end; NotFound."""
        descriptor, length = call.client.content.descriptor(from_digest(request.digest))
        offset = max(0, request.offset)
        if offset > length:
            os.close(descriptor)
            raise OutOfRange(f"read past object length {length} bytes")
        size = request.size if 0 < request.size <= length - offset else length - offset
        yield FileRange(descriptor, offset, size)

    # Changes

    def Update(self, request: content_pb2.UpdateRequest, call: Call) -> content_pb2.UpdateResponse:
        """Set labels: those that the mask names, or, without one, all. NotFound, InvalidArgument."""
        content = call.client.content
        digest = from_digest(request.info.digest)
        with call.client.database.write():
            present = content.info(digest).labels
            changes = label_changes(mask_paths(request.update_mask, "labels"), request.info.labels, present)
            return content_pb2.UpdateResponse(info=_info(content.update_labels(digest, changes)))

    def Delete(self, request: content_pb2.DeleteContentRequest, call: Call) -> Empty:
        """Take a blob out of the namespace. NotFound."""
        call.client.content.delete(from_digest(request.digest))
        return Empty()

    # Ingests

    def Status(self, request: content_pb2.StatusRequest, call: Call) -> content_pb2.StatusResponse:
        """Say how far an ingest is. NotFound."""
        return content_pb2.StatusResponse(status=_status(call.client.content.status(request.ref)))

    def ListStatuses(
        self, request: content_pb2.ListStatusesRequest, call: Call
    ) -> content_pb2.ListStatusesResponse:
        """Say how far those ingests are that match the filters, by ``ref``."""
        found = call.client.content.ingests(filters=request.filters)
        return content_pb2.ListStatusesResponse(statuses=map(_status, found))

    def Abort(self, request: content_pb2.AbortRequest, call: Call) -> Empty:
        """Throw an ingest away. NotFound; Unavailable while somebody writes to it, which containerd does not ask."""
        call.client.content.abort(request.ref)
        return Empty()

    def Write(
        self, call: Call
    ) -> Conversation[content_pb2.WriteContentResponse, content_pb2.WriteContentRequest]:
        """Write to an ingest: STAT tells where it is, WRITE appends, COMMIT makes it a blob and ends the stream.

        An offset that is given must be the ingest's; 0 starts over. Unavailable while another writes to the ref, AlreadyExists
        when the expected blob is here, FailedPrecondition for the wrong size or digest, OutOfRange for another offset.
        """
        request = yield []
        if request is None:
            return
        if not request.ref:
            raise InvalidArgument("first message must have a reference")
        write = _Write(call, request, root=self.server.backend)
        with write.ingest:
            while request is not None:
                response = write.answer(request)
                if request.action == content_pb2.COMMIT:
                    call.send(response)
                    return
                call.expect(write.continuation(), "data", write.ingest)
                request = yield [response]


class _Write:
    """One stream that writes, with what its client expects so far."""

    def __init__(self, call: Call, request: content_pb2.WriteContentRequest, *, root: bool) -> None:
        self._client = call.client
        self._root = root
        self._lease = call.lease
        self._total = 0
        self._expected: Digest | None = None
        self._expect(request)
        if self._lease:
            self._client.leases.add(self._lease, "ingests", request.ref)
        if self._expected:
            self._hold(self._expected)
        self.ingest: Ingest = self._client.content.writer(
            request.ref, size=self._total, digest=self._expected, adopt=False
        )

    def answer(self, request: content_pb2.WriteContentRequest) -> content_pb2.WriteContentResponse:
        """Do what one message asks for."""
        ingest = self.ingest
        expected = self._expect(request)
        if request.expected and self._is_here(expected):
            ingest.discard()
            raise AlreadyExists(f"blob with expected digest {request.expected} exists")
        if request.action == content_pb2.STAT:
            status = ingest.status()
            return content_pb2.WriteContentResponse(
                action=request.action,
                started_at=to_timestamp(status.started_at),
                updated_at=to_timestamp(status.updated_at),
                offset=ingest.offset,
                total=self._total,
                digest=ingest.digest(),
            )
        if not ingest.poured():
            if request.offset not in (0, ingest.offset):
                raise OutOfRange(f"write @{request.offset} must occur at current offset {ingest.offset}")
            if request.offset == 0 and ingest.offset > 0:
                ingest.truncate(0)
            if data := request.data:
                ingest.write(data)
        if request.action == content_pb2.COMMIT:
            self._commit(dict(request.labels))
        return content_pb2.WriteContentResponse(
            action=request.action, offset=ingest.offset, digest=ingest.digest()
        )

    def continuation(self) -> content_pb2.WriteContentRequest:
        """Give the request that goes on where the ingest is, without its data."""
        return content_pb2.WriteContentRequest(action=content_pb2.WRITE, offset=self.ingest.offset)

    def _expect(self, request: content_pb2.WriteContentRequest) -> Digest | None:
        if request.expected:
            self._expected = from_digest(request.expected)
        if request.total > 0:
            self._total = request.total
        return self._expected

    def _is_here(self, digest: Digest | None) -> bool:
        with suppress(NotFound):
            return digest is not None and self._client.content.info(digest) is not None
        return False

    def _commit(self, labels: dict[str, str]) -> None:
        self._hold(self._expected or self.ingest.digest())
        if self._root:
            labels.setdefault(GC_ROOT, timestamp())
        self.ingest.commit(size=self._total, digest=self._expected, labels=labels)
        if self._lease:
            self._client.leases.remove(self._lease, "ingests", self.ingest.ref)

    def _hold(self, digest: Digest) -> None:
        """Have the lease keep a blob, before it is looked for or made: it cannot be collected in between."""
        if self._lease:
            self._client.leases.add(self._lease, "content", digest)


def _info(info: ContentInfo) -> content_pb2.Info:
    return content_pb2.Info(
        digest=info.digest,
        size=info.size,
        labels=info.labels,
        created_at=to_timestamp(info.created_at),
        updated_at=to_timestamp(info.updated_at),
    )


def _status(status: IngestStatus) -> content_pb2.Status:
    return content_pb2.Status(
        ref=status.ref,
        offset=status.offset,
        total=status.total,
        expected=status.expected,
        started_at=to_timestamp(status.started_at),
        updated_at=to_timestamp(status.updated_at),
    )
