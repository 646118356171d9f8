"""The layers of an image on their way here: blobs into the content store, folders into the layer store, in one pass.

Network bytes go straight into the core's pipeline, which writes and hashes the blob, inflates, hashes the tar and applies
it, all at once. What is here already, a blob or an unpacked layer, in whatever namespace, is not fetched and not unpacked again.
Layers come in parallel; those that depend on what lies beneath them are finished at the end, bottom first. Where the snapshotter
does not stack layers, all are unpacked then.

Each layer takes the lock of its blob's ingest, which all namespaces share, then the staging lock of its diffID; one that has to
wait for the layers beneath it gives the latter back first, so that two pulls never wait for each other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from lamella import _core, oci
from lamella.digest import Digest
from lamella.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    Unsupported,
)
from lamella.metrics.table import BLOBS, DOWNLOADED, LAYER_SECONDS, LAYERS, UNPACKED
from lamella.operations import Operation, when_ok
from lamella.reference import Reference
from lamella.transfer.progress import Phase, Progress, Reporter
from lamella.transfer.unpack import NoRegistry, copy_beneath, unpack_blob
from lamella.transfer.workers import Workers

if TYPE_CHECKING:
    from lamella.additional import AdditionalStore
    from lamella.client import Client
    from lamella.content import Ingest
    from lamella.snapshots.layers import Layer, Staging
    from lamella.transfer.endpoints import BlobReader, Source

CHUNK = 1024 * 1024
"""Bytes read from the network at a time; smaller pieces cost more system calls, larger ones only memory."""
SPOILED = (DataLoss, FailedPrecondition, InvalidArgument, ResourceExhausted, Unsupported)
"""Errors after which what came of a blob is thrown away; after others the next pull goes on where this one stopped."""
_DOWNLOADED = DOWNLOADED.cell()
_LAYER = Operation(
    "layer",
    "the layer %(layer)s of %(image)s is here after %(seconds).3f s: blob %(blob)s, folder %(folder)s",
    log="lamella.transfer",
    durations=when_ok(LAYER_SECONDS),
)


class LayerJob:
    """One layer of the image and how far it is."""

    def __init__(self, descriptor: oci.Descriptor, diff_id: Digest | None, chain_id: Digest | None) -> None:
        self.descriptor = descriptor
        self.diff_id = diff_id
        self.chain_id = chain_id
        self.layer: Layer | None = None
        self.staging: Staging | None = None
        self.unpacked: _core.Unpacked | None = None
        # How they were had: the results that are counted; none where they were not needed.
        self.blob = self.folder = "none"


class Layers:
    """The layers of one image on their way here. A context: what was staged and did not become a layer goes with it.

    ``labels`` go on blobs; ``keep``: into the content store, too; ``downloads``: bytes from the source count as downloaded.
    ``additional``: stores whose blobs and folders are used where they are.
    """

    def __init__(
        self,
        client: Client,
        source: Source | NoRegistry,
        repository: Reference,
        reporter: Reporter,
        *,
        name: str,
        labels: Mapping[str, str],
        unpack: bool,
        keep: bool,
        downloads: bool,
        additional: Sequence[AdditionalStore],
        parallel: int,
    ) -> None:
        self._client = client
        self._metrics = client.database.metrics
        self._source = source
        self._repository = repository
        self._reporter = reporter
        self._name = name
        self._labels = labels
        # Whether folders are made as their blobs come; else after those beneath them.
        self._unpack_at_once = unpack and client.snapshots.stacks
        self._keep = keep
        self._downloads = downloads
        self._additional = additional
        self._parallel = parallel
        self._workers = Workers(f"the pull of {name}", reporter, self._interrupt)
        self._lock = threading.Lock()
        self._at_work: set[_core.Pipeline] = set()
        self._open = ExitStack()

    def __enter__(self) -> Layers:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def _interrupt(self) -> None:
        """End what workers wait for: the registry, and what is being unpacked."""
        self._source.interrupt()
        with self._lock:
            pipelines = list(self._at_work)
        for pipeline in pipelines:
            pipeline.abort()

    def bring(self, jobs: Sequence[LayerJob]) -> None:
        """Bring every layer here, in parallel; the first failure (or Ctrl-C) stops the others within a second."""
        # Each once, and the largest first: the last one to end is then as small as it can be.
        distinct = {job.descriptor.digest: job for job in reversed(jobs)}
        largest_first = sorted(distinct.values(), key=lambda job: -job.descriptor.size)
        self._reporter.expect(job.descriptor for job in jobs)
        self._workers.run(largest_first, self._bring, parallel=self._parallel)

    def _bring(self, job: LayerJob) -> None:
        with _LAYER(self._metrics, image=self._name, layer=job.descriptor.digest) as running:
            self._fetch(job)
            running.note(blob=job.blob, folder=job.folder)

    def _fetch(self, job: LayerJob) -> None:
        """Bring one layer's blob and folder here, in one pass where neither is; the folder alone without ``keep``."""
        content, descriptor = self._client.content, job.descriptor
        if not self._keep:
            if self._unpack_at_once:
                self._stage(job)
                if job.staging is None:
                    self._report(descriptor, "exists", received=descriptor.size)
                else:
                    self._fill(job)
            return
        if not content.exists(descriptor.digest) and not self._link_blob(job):
            try:
                ingest = content.writer(
                    f"layer-{descriptor.digest}",
                    size=descriptor.size,
                    digest=descriptor.digest,
                    wait=True,
                    waiting=lambda: self._wait_for_layer(descriptor),
                    shared=True,
                )
            except AlreadyExists:
                self._note_blob(job, "waited")
            else:
                with ingest:
                    self._stage_at_once(job)
                    self._download(job, ingest)
                return
        else:
            self._note_blob(job, "hit")
        content.adopt(descriptor.digest, self._labels)
        self._stage_at_once(job)
        if job.staging is not None:
            self._unpack_blob(job)
        self._report(descriptor, "exists" if job.unpacked is None else "done", received=descriptor.size)

    def _link_blob(self, job: LayerJob) -> bool:
        """Use the blob of an additional store, if one has it."""
        if not self._additional:
            return False
        from lamella.additional import link_blob

        return link_blob(self._client, self._additional, job.descriptor)

    def _stage_at_once(self, job: LayerJob) -> None:
        if self._unpack_at_once:
            self._stage(job)

    def _find_layer(self, job: LayerJob, lowers: list[str] | None = None) -> Layer | None:
        """Look for a layer's folder: one that is right on top of ``lowers``, where these are known."""
        assert job.diff_id is not None
        layer = self._client.layers.find(self._client.config.snapshotter, job.diff_id, job.chain_id)
        return layer if layer is None or lowers is None or layer.fits(lowers) else None

    def _stage(self, job: LayerJob, lowers: list[str] | None = None) -> None:
        """Find the layer's folder, or open a new one for it."""
        assert job.diff_id is not None
        layers, snapshotter = self._client.layers, self._client.config.snapshotter
        job.layer = self._find_layer(job, lowers)
        if job.layer is not None:
            self._note_folder(job, "shared")
            return
        staging = layers.stage(snapshotter, job.diff_id, waiting=lambda: self._wait_for_layer(job.descriptor))
        job.layer = self._find_layer(job, lowers)
        if job.layer is not None:
            staging.close()
            self._note_folder(job, "waited")
            return
        if self._additional:
            from lamella.additional import link_layer

            assert job.chain_id is not None
            job.layer = link_layer(
                self._client,
                self._additional,
                staging,
                job.diff_id,
                job.chain_id,
                bound=lowers is not None,
            )
            if job.layer is not None:
                self._note_folder(job, "shared")
                return
        with self._lock:
            job.staging = self._open.enter_context(staging)

    @contextmanager
    def _pipeline(self, job: LayerJob, *, blob: str | None, offset: int) -> Iterator[_core.Pipeline]:
        """Give a pipeline that ends with the block, or when the pull is stopped."""
        unpacks = job.staging is not None
        pipeline = _core.Pipeline(
            digest=job.descriptor.digest,
            size=job.descriptor.size,
            blob=blob,
            offset=offset,
            compression=oci.compression_of(job.descriptor) if unpacks else "none",
            layer=str(job.staging.path) if job.staging is not None else None,
            diff_id=job.diff_id if unpacks else None,
            whiteouts=self._client.snapshots.whiteouts,
            confined=unpacks and self._client.config.confine,
        )
        with self._lock:
            self._at_work.add(pipeline)
        try:
            self._workers.check()  # it may have been stopped just before
            yield pipeline
        finally:
            with self._lock:
                self._at_work.discard(pipeline)
            pipeline.abort()

    def _fill(self, job: LayerJob) -> None:
        """Unpack a layer into its staging, from the store or, where its blob is not kept, from the registry."""
        content, descriptor = self._client.content, job.descriptor
        if content.exists(descriptor.digest):
            self._note_blob(job, "hit")
            content.adopt(descriptor.digest, self._labels)
            self._unpack_blob(job)
            self._report(descriptor, "done", received=descriptor.size)
        else:
            self._download(job, None)

    def _download(self, job: LayerJob, ingest: Ingest | None) -> None:
        """Bring the blob from the registry, into the ingest if there is one, and unpack it.

        What an earlier try left in the ingest may be spoiled (a power cut leaves holes in files): where the blob comes out wrong,
        it is fetched once more from its beginning.
        """
        descriptor = job.descriptor
        self._note_blob(job, "miss")
        resumed = ingest is not None and ingest.offset > 0
        try:
            try:
                unpacked = self._stream(job, ingest)
            except SPOILED as error:
                if ingest is None or not resumed or isinstance(error, ResourceExhausted):
                    raise
                ingest.truncate(0)
                if job.staging is not None:
                    job.staging.close()
                    job.staging = None
                    self._stage(job)
                unpacked = self._stream(job, ingest)
        except SPOILED as error:
            # What is here of the blob would fail the next try in the same way, or fills the disk.
            if ingest is not None:
                ingest.discard()
            raise type(error)(f"{self._name}: layer {descriptor.digest}: {error}", hint=error.hint) from error
        if ingest is not None:
            try:
                ingest.commit(
                    size=descriptor.size,
                    digest=descriptor.digest,
                    labels=self._labels,
                    verified=descriptor.digest,
                )
            except AlreadyExists:  # it came under another ref, or by another namespace, meanwhile
                self._client.content.adopt(descriptor.digest, self._labels)
        if unpacked is not None:
            self._settle(job, unpacked)
        tar_size = unpacked.tar_size if unpacked is not None else 0
        self._report(descriptor, "done", received=descriptor.size, unpacked=tar_size)

    def _stream(self, job: LayerJob, ingest: Ingest | None) -> _core.Unpacked | None:
        """Send the blob from the registry through the pipeline, after what the ingest has of it; None where it was just kept."""
        descriptor = job.descriptor
        offset = ingest.offset if ingest is not None else 0
        self._report(descriptor, self._moving, received=offset)
        if ingest is not None and job.staging is None and not offset:
            self._keep_blob(job, ingest)
            return None
        blob = str(ingest.data_path) if ingest is not None else None
        try:
            with self._pipeline(job, blob=blob, offset=offset) as pipeline:
                with self._source.open_blob(self._repository, descriptor, offset=offset) as stream:
                    self._pump(job, stream, pipeline.write, lambda: (pipeline.received, pipeline.unpacked))
                return pipeline.finish()
        except BaseException as error:
            if not isinstance(error, SPOILED):
                self._workers.check()
            raise

    def _keep_blob(self, job: LayerJob, ingest: Ingest) -> None:
        """Write a blob from its beginning into the ingest alone.

        Not through the pipeline: with nothing to inflate, a thread of its own that hashes and writes makes no blob come sooner,
        and handing the bytes to it takes an eighth of the download's CPU time.
        """
        descriptor = job.descriptor
        try:
            with self._source.open_blob(self._repository, descriptor) as stream:
                self._pump(job, stream, ingest.write, lambda: (ingest.offset, 0))
        except BaseException as error:
            if not isinstance(error, SPOILED):
                self._workers.check()
            raise
        found = ingest.digest()
        if (ingest.offset, found) != (descriptor.size, descriptor.digest):
            raise FailedPrecondition(
                f"blob {descriptor.digest}: {descriptor.size} bytes expected, {ingest.offset} with the digest {found} came",
                hint="The download is damaged or incomplete; pull it again.",
            )

    def _pump(
        self,
        job: LayerJob,
        stream: BlobReader,
        write: Callable[[memoryview], object],
        stand: Callable[[], tuple[int, int]],
    ) -> None:
        """Hand on what comes. ``stand``: how many bytes were received and unpacked."""
        descriptor, reporter = job.descriptor, self._reporter
        buffer = memoryview(bytearray(min(CHUNK, max(descriptor.size, 1))))
        while count := stream.readinto(buffer):
            self._workers.check()
            write(buffer[:count])
            if self._downloads:
                self._metrics.add(_DOWNLOADED, count)
            if reporter.due(descriptor.digest):
                received, unpacked = stand()
                self._report(descriptor, self._moving, received=received, unpacked=unpacked)

    @property
    def _moving(self) -> Phase:
        return "downloading" if self._downloads else "reading"

    def _report(
        self, descriptor: oci.Descriptor, phase: Phase, *, received: int = 0, unpacked: int = 0
    ) -> None:
        self._reporter.say(
            Progress(
                phase=phase,
                digest=descriptor.digest,
                media_type=descriptor.media_type,
                received=received,
                size=descriptor.size,
                unpacked=unpacked,
            )
        )

    def _wait_for_layer(self, layer: oci.Descriptor) -> None:
        self._workers.check()
        self.show_waiting(layer)

    def _unpack_blob(self, job: LayerJob) -> None:
        """Unpack a layer whose blob is in the store."""
        descriptor = job.descriptor
        self._report(descriptor, "unpacking", received=descriptor.size)
        assert job.staging is not None
        folder = str(job.staging.path)
        self._settle(job, unpack_blob(self._client, descriptor, folder, diff_id=job.diff_id))

    def _settle(self, job: LayerJob, unpacked: _core.Unpacked) -> None:
        """Make a layer that stands on its own visible; keep one that needs its parents for later."""
        job.unpacked = unpacked
        if job.staging is None:
            return
        self._metrics.add(UNPACKED.cell(), unpacked.tar_size)
        self._note_folder(job, "unpacked")
        if unpacked.deferred:
            job.staging.unlock()
        else:
            job.layer = self._commit(job, chain_id=None if self._unpack_at_once else job.chain_id)

    def _commit(self, job: LayerJob, *, chain_id: Digest | None) -> Layer:
        assert job.staging is not None and job.unpacked is not None and job.diff_id is not None
        return job.staging.commit(
            diff_id=job.diff_id,
            chain_id=chain_id,
            disk_bytes=job.unpacked.disk_bytes,
            inodes=job.unpacked.inodes,
            opaque_root=job.unpacked.opaque_root,
        )

    def _note_blob(self, job: LayerJob, result: str) -> None:
        if job.blob == "none":
            job.blob = result
            self._metrics.add(BLOBS.cell(result))

    def _note_folder(self, job: LayerJob, result: str) -> None:
        job.folder = result
        self._metrics.add(LAYERS.cell(result))

    def stack(self, jobs: list[LayerJob]) -> None:
        """Finish, bottom first, the layers that depend on what lies beneath them."""
        lowers: list[str] = []
        for job in jobs:
            if job.layer is None or (job.unpacked is None and not job.layer.fits(lowers)):
                job.layer = self._find_layer(job, lowers) or self._finish(job, lowers)
            path = str(job.layer.path)
            lowers = (
                [path] if job.layer.opaque_root else [path, *(lower for lower in lowers if lower != path)]
            )

    def _finish(self, job: LayerJob, lowers: list[str]) -> Layer:
        if job.unpacked is None or job.staging is None:
            # It waited for those beneath, or its folder is bound to another place in this image, or has another root.
            self._stage(job, lowers)
            if job.layer is not None:
                return job.layer
            assert job.staging is not None
            copy_beneath(self._client, job.staging, lowers)
            self._fill(job)
            if job.layer is not None:
                return job.layer
        assert job.staging is not None and job.unpacked is not None
        bound = _core.resolve(str(job.staging.path), lowers, job.unpacked.deferred)
        return self._commit(job, chain_id=job.chain_id if bound else None)

    def show_present(self, *layers: oci.Descriptor) -> None:
        """Tell the callback of layers that nothing is to be done for."""
        for layer in layers:
            self._report(layer, "exists", received=layer.size)

    def show_waiting(self, *layers: oci.Descriptor) -> None:
        """Tell the callback how much of what others fetch is here; a callback that raises ends the wait."""
        if not layers and self._reporter.due(""):
            self._reporter.say(Progress(phase="waiting"))
        for layer in layers:
            if self._reporter.due(layer.digest):
                received = min(self._client.content.received(layer.digest), layer.size)
                self._report(layer, "waiting", received=received)
