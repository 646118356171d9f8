"""Pull: reference -> index -> manifest -> config -> layers, each layer in one pass.

Network bytes go straight into the core's pipeline, which writes and hashes the blob, inflates, hashes the tar and applies
it, all at once; layers run in parallel. What is here already (a blob, an unpacked layer, in whatever namespace) is not
fetched and not unpacked again. Nothing becomes visible before its digests were checked: a blob by its content row, a layer by
its layer row, the image with its committed snapshots by one transaction at the end. A lease holds everything from before it
exists until then, so that garbage collection may run at any time.

Where the snapshotter does not stack layers, a folder begins as a copy of the one beneath it: blobs are fetched in parallel all
the same, and unpacked when all are here, one after the other.

Without ``keep_layers`` nothing is written but the layer folders: a blob that is not here is read from the network into the folder
alone. The manifest then carries labels that say so in place of the references to its layers, and blobs that nothing else
leads to go when the pull is done and the folders, from then on the only copy, are on disk.

Locks, all the kernel's (flock), which end with the process: one pull at a time of one manifest, in whatever namespace
(``<root>/locks/image-...``), and within it each layer takes the lock of its blob's ingest, which all namespaces share, then the
staging lock of its diffID. So what two images or two pulls of one have in common is fetched and unpacked once; who waits
says how far the other is, and goes on where it stopped if it dies. A layer that has to wait for the layers beneath it
gives its staging lock back first, so that two pulls never wait for each other.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from lamella import _core, oci, platforms
from lamella.digest import Digest, split_digest
from lamella.disk import translated
from lamella.durability import Unverified, sync, sync_if_due
from lamella.errors import (
    AlreadyExists,
    Cancelled,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unsupported,
)
from lamella.labels import (
    DISCARDED_LAYER,
    DISTRIBUTION_SOURCE,
    GC_REF_CONTENT,
    LAYERS_DISCARDED,
    PULLED_MANIFEST,
)
from lamella.locks import FileLock
from lamella.metadata import timestamp
from lamella.metadata.reachability import CONTENT, condemned
from lamella.metrics.table import BLOBS, DOWNLOADED, LAYER_SECONDS, LAYERS, PULL_SECONDS, PULLS, UNPACKED
from lamella.operations import INFO, Operation, by_result, when_ok
from lamella.policy import AnyPolicy, resolve
from lamella.reference import Reference
from lamella.tracing import in_context, span
from lamella.transfer.progress import INTERVAL, Phase, Progress, ProgressCallback, Reporter
from lamella.transfer.unpack import NoRegistry, copy_beneath, unpack_blob

if TYPE_CHECKING:
    from lamella.client import Client
    from lamella.content import Ingest
    from lamella.images import Image
    from lamella.snapshots.layers import Layer, Staging
    from lamella.transfer.endpoints import BlobReader, Source

CHUNK = 1024 * 1024
"""Bytes read from the network at a time; smaller pieces cost more system calls, larger ones only memory."""
PARALLEL_LAYERS = 5
LEASE_SECONDS = 24 * 3600
SPOILED = (DataLoss, FailedPrecondition, InvalidArgument, ResourceExhausted, Unsupported)
"""Errors after which what came of a blob is thrown away; after others the next pull goes on where this one stopped."""
_DOWNLOADED = DOWNLOADED.cell()
_PULL = Operation(
    "pull",
    "pulled %(image)s (%(result)s): %(digest)s in %(seconds).3f s",
    log="lamella.transfer",
    level=INFO,
    counts=by_result(PULLS),
    durations={result: PULL_SECONDS.series(result) for result in ("pulled", "present", "waited")},
)
_IMPORT = Operation(
    "import", "imported %(image)s: %(digest)s in %(seconds).3f s", log="lamella.transfer", level=INFO
)
_UNPACK = Operation("unpack", "unpacked %(image)s in %(seconds).3f s", log="lamella.transfer", level=INFO)
_LAYER = Operation(
    "layer",
    "the layer %(layer)s of %(image)s is here after %(seconds).3f s: blob %(blob)s, folder %(folder)s",
    log="lamella.transfer",
    durations=when_ok(LAYER_SECONDS),
)


class Pulled(msgspec.Struct, frozen=True):
    """What a pull brought: the image, as it was at that moment, and the manifest chosen for the platform.

    ``fetched``: not everything was here already.
    """

    image: Image
    manifest: oci.Descriptor
    fetched: bool


class Chosen(NamedTuple):
    """A manifest, and the indexes on the way to it, each with the entry that was followed."""

    descriptor: oci.Descriptor
    data: bytes
    indexes: list[tuple[oci.Descriptor, bytes, oci.Descriptor]]


def follow(
    reference: Reference,
    target: oci.Descriptor,
    read: Callable[[oci.Descriptor], bytes],
    platform: oci.Platform,
) -> Chosen:
    """Follow indexes from ``target`` down to the manifest for a platform; ``read`` gives a document's bytes.

    Errors: NotFound for the platform, InvalidArgument for indexes that nest too deep, Unsupported for another document.
    """
    indexes: list[tuple[oci.Descriptor, bytes, oci.Descriptor]] = []
    descriptor = target
    for _ in range(platforms.INDEX_DEPTH_MAX):
        data = read(descriptor)
        if oci.document_type(data, descriptor.media_type) in oci.MANIFEST_TYPES:
            return Chosen(descriptor, data, indexes)
        chosen = platforms.choose(oci.parse_index(data).manifests, platform)
        indexes.append((descriptor, data, chosen))
        descriptor = chosen
    raise InvalidArgument(
        f"{reference} nests image indexes more than {platforms.INDEX_DEPTH_MAX} deep, which is refused"
    )


class _LayerJob:
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


class Pull:
    """One pull of one reference. Use it once."""

    def __init__(
        self,
        client: Client,
        reference: Reference,
        registry: Source | NoRegistry,
        *,
        source: Reference | None = None,
        archive: bool = False,
        platform: oci.Platform | None = None,
        progress: ProgressCallback | None = None,
        unpack: bool = True,
        keep_layers: bool = True,
        policy: AnyPolicy | None = None,
        parallel: int = PARALLEL_LAYERS,
    ) -> None:
        """Get ready to pull ``reference``; by digest, from the repository of ``source`` if that is another.

        ``archive``: what stands where the registry does is an archive, so that nothing is downloaded, and no repository noted.
        """
        self._client = client
        self._metrics = client.database.metrics
        self._reference = reference
        self._repository = source or reference
        self._registry = registry
        self._asked = platform
        self._platform = platform or platforms.default_platform()
        self._reporter = Reporter(progress)
        self._unpack = unpack
        # Whether folders are made as their blobs come; else after those beneath them.
        self._unpack_at_once = unpack and client.snapshots.stacks
        self._keep_layers = keep_layers
        self._policy = policy
        self._parallel = max(1, parallel)
        self._result = "pulled"
        self._cancelled = threading.Event()
        self._lock = threading.Lock()
        self._open = ExitStack()
        self._source: dict[str, str] = {}
        self._archive = archive
        if not (archive or isinstance(registry, NoRegistry)):
            self._source = {DISTRIBUTION_SOURCE + self._repository.domain: self._repository.path}

    def run(self) -> Pulled:
        """Do it.

        Errors: NotFound (reference or platform), PolicyRefused, Unauthenticated, PermissionDenied, Unavailable (registry),
        InvalidArgument, Unsupported (documents), FailedPrecondition (a digest is wrong), DataLoss (a layer is
        damaged), ResourceExhausted (disk, caps), Cancelled. Whatever was complete when one was raised stays usable
        for the next try; nothing else stays visible. Twice is harmless: the second pull costs one request.
        """
        operation = _IMPORT if self._archive else _PULL
        with operation(self._metrics, image=str(self._reference)) as running:
            self._reporter.say(Progress(phase="resolving"))
            with span("lamella.resolve", image=str(self._reference)):
                target, document = resolve(
                    self._registry,
                    self._reference,
                    self._policy,
                    known=self._client.content.exists,
                    registry=self._repository.domain,
                    platform=self._platform,
                )
            pulled = self._find(target) if document is None else None
            if pulled:
                self._result = "present"
            pulled = pulled or self._fetch(target, document)
            running.result = self._result
            running.note(digest=pulled.manifest.digest)
            return pulled

    def complete(self, target: oci.Descriptor) -> Pulled:
        """Bring what is missing of a target that is known, whatever a tag says by now. Errors as :meth:`run`.

        With NoRegistry that is unpacking alone; NotFound when a blob is not here.
        """
        operation = _UNPACK if isinstance(self._registry, NoRegistry) else _PULL
        with operation(self._metrics, image=str(self._reference), digest=target.digest) as running:
            pulled = self._fetch(target, None)
            running.result = self._result
            return pulled

    def _find(self, target: oci.Descriptor) -> Pulled | None:
        """Look whether the image is here, whole, without writing anything; None if something is missing."""
        client = self._client
        try:
            image = client.images.get(self._reference)
            if image.digest != target.digest:
                return None
            descriptor, data, _ = self._choose(target, lambda wanted: client.content.read(wanted.digest))
            discarded = LAYERS_DISCARDED in client.content.info(descriptor.digest).labels
            manifest = oci.parse_manifest(data)
            parts = [manifest.config, *(manifest.layers if self._keep_layers else ())]
            sizes_differ = any(client.content.info(part.digest).size != part.size for part in parts)
            if sizes_differ or discarded == self._keep_layers:
                return None
            if not all(client.content.exists(part.digest) for part in parts):
                return None
            if self._unpack:
                config = oci.parse_config(client.content.read(manifest.config.digest))
                self._check_platform(manifest, config)
                for name in oci.chain_ids(config.rootfs.diff_ids)[-1:]:
                    with translated(f"look at the layers of {self._reference}"):
                        if not all(path.is_dir() for path in client.snapshots.layer_paths(name)):
                            return None
        except (NotFound, Unverified, DataLoss):
            return None
        return self._done(image, descriptor, manifest, fetched=False)

    def _fetch(self, target: oci.Descriptor, document: bytes | None) -> Pulled:
        """Bring here what is missing, under a lease."""
        client = self._client
        sync_if_due(client.database, client.config)  # what earlier pulls wrote; by now it costs little
        with client.leases.hold(expires_in=LEASE_SECONDS) as lease, self._open:

            def read(wanted: oci.Descriptor) -> bytes:
                client.leases.add(lease.id, "content", wanted.digest)
                return document if document is not None and wanted is target else self._document(wanted)

            descriptor, data, indexes = self._choose(target, read)
            if self._wait_for_others(descriptor, data) and (pulled := self._find(target)):
                self._result = "waited"
                return pulled
            client.leases.update_labels(lease.id, {PULLED_MANIFEST: descriptor.digest})
            for index, index_data, chosen in indexes:
                self._keep(index, index_data, _index_labels(index_data, chosen))
            manifest = oci.parse_manifest(data)
            parts = [manifest.config, *manifest.layers]
            client.leases.add_all(lease.id, [("content", part.digest) for part in parts])
            jobs = self._plan(manifest, lease.id)
            self._keep(descriptor, data, manifest_labels(manifest, keep_layers=self._keep_layers))
            self._run_jobs(jobs)
            if self._unpack:
                self._stack_layers(jobs)
            image = self._record(target, descriptor, manifest, jobs)
        if not self._keep_layers:
            sync(client.database, client.config)  # the folders have no second copy to be unpacked from
            self._drop_blobs(manifest)  # now that the lease does not hold them any more
        return self._done(image, descriptor, manifest, fetched=True)

    def _wait_for_others(self, descriptor: oci.Descriptor, data: bytes) -> bool:
        """Become the only pull of a manifest, until the end; tell whether that took waiting. Says how far the other is."""
        manifest = oci.parse_manifest(data)
        algorithm, encoded = split_digest(descriptor.digest)
        path = self._client.config.root / "locks" / f"image-{algorithm}-{encoded}"
        waits = self._metrics.waits("image")
        lock = FileLock(path, what=f"the image {descriptor.digest}", transient=True, waited=waits)
        self._open.callback(lock.release)
        return lock.acquire(waiting=lambda: self._show_waiting(*manifest.layers))

    def _show_waiting(self, *layers: oci.Descriptor) -> None:
        """Tell the callback how much of what others fetch is here; a callback that raises ends the wait."""
        for layer in layers:
            if self._reporter.due(layer.digest):
                received = min(self._client.content.received(layer.digest), layer.size)
                self._report(layer, "waiting", received=received)

    def _done(
        self, image: Image, descriptor: oci.Descriptor, manifest: oci.Manifest, *, fetched: bool
    ) -> Pulled:
        size = sum(layer.size for layer in manifest.layers)
        self._reporter.say(Progress(phase="done", received=size, size=size))
        return Pulled(image=image, manifest=descriptor, fetched=fetched)

    # Documents

    def _document(self, descriptor: oci.Descriptor) -> bytes:
        """Give a document's bytes, from the store or the registry; verified either way."""
        content = self._client.content
        if content.exists(descriptor.digest):
            content.adopt(descriptor.digest, {})
            return content.read(descriptor.digest)
        return self._registry.fetch_document(self._repository, descriptor)

    def _keep(self, descriptor: oci.Descriptor, data: bytes, labels: dict[str, str]) -> None:
        """Put a document into the store, or add labels to the one that is there."""
        labels = {**self._source, **labels}
        self._client.content.write(
            f"document-{descriptor.digest}",
            data,
            digest=descriptor.digest,
            size=descriptor.size,
            labels=labels,
        )

    def _choose(self, target: oci.Descriptor, read: Callable[[oci.Descriptor], bytes]) -> Chosen:
        """Follow indexes down to the manifest of the wanted platform; ``read`` gives a document's bytes."""
        return follow(self._reference, target, read, self._platform)

    def _plan(self, manifest: oci.Manifest, lease: str) -> list[_LayerJob]:
        """Fetch the config and lay out what each layer needs."""
        if not self._unpack:
            data = self._document(manifest.config)
            self._keep(manifest.config, data, {})
            return [_LayerJob(descriptor, None, None) for descriptor in manifest.layers]
        if manifest.config.media_type not in oci.CONFIG_TYPES:
            raise Unsupported(
                f"{self._reference} is an artifact ({manifest.config.media_type!r}), not a container image",
                hint="Fetch it without unpacking: pull --no-unpack.",
            )
        for descriptor in manifest.layers:
            oci.compression_of(descriptor)
        data = self._document(manifest.config)
        config = oci.parse_config(data)
        self._check_platform(manifest, config)
        diff_ids = config.rootfs.diff_ids
        if len(diff_ids) != len(manifest.layers):
            raise InvalidArgument(
                f"{self._reference}: the manifest has {len(manifest.layers)} layers, its config {len(diff_ids)} diffIDs"
            )
        chain = oci.chain_ids(diff_ids)
        snapshotter = self._client.config.snapshotter
        resources = [("layers", diff_id) for diff_id in diff_ids]
        labels: dict[str, str] = {}
        if chain:
            resources.append((f"snapshots/{snapshotter}", chain[-1]))
            labels[f"containerd.io/gc.ref.snapshot.{snapshotter}"] = chain[-1]
        self._client.leases.add_all(lease, resources)
        self._keep(manifest.config, data, labels)
        return [_LayerJob(*parts) for parts in zip(manifest.layers, diff_ids, chain, strict=True)]

    def _check_platform(self, manifest: oci.Manifest, config: oci.ImageConfig) -> None:
        """Hold the platform that was asked for against what the image is for: NotFound when it is another.

        An index was searched for it; a manifest that stands alone says it in its config only.
        """
        if self._asked is not None and config.os:
            offered = msgspec.structs.replace(manifest.config, platform=config.platform)
            platforms.choose([offered], self._asked)

    # Layers, in parallel

    def _run_jobs(self, jobs: list[_LayerJob]) -> None:
        """Bring every layer here; the first failure (or Ctrl-C) stops the others within a second."""
        pending: queue.SimpleQueue[_LayerJob] = queue.SimpleQueue()
        seen: set[str] = set()
        # The largest first: the last one to end is then as small as it can be.
        for job in sorted(jobs, key=lambda job: -job.descriptor.size):
            if job.descriptor.digest not in seen:
                seen.add(job.descriptor.digest)
                pending.put(job)
        failures: list[BaseException] = []

        def work() -> None:
            while not self._cancelled.is_set():
                try:
                    job = pending.get_nowait()
                except queue.Empty:
                    return
                try:
                    with _LAYER(
                        self._metrics, image=str(self._reference), layer=job.descriptor.digest
                    ) as running:
                        self._bring(job)
                        running.note(blob=job.blob, folder=job.folder)
                except BaseException as error:
                    with self._lock:
                        failures.append(error)
                    self._cancel()

        count = min(self._parallel, len(seen))
        threads = [
            threading.Thread(target=in_context(work), name=f"lamella-pull-{n}", daemon=True)
            for n in range(count)
        ]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    thread.join(INTERVAL)
                    self._reporter.deliver()
            self._reporter.deliver()
        finally:
            if any(thread.is_alive() for thread in threads):
                self._cancel()
                for thread in threads:
                    thread.join()
        if failures:
            raise next((error for error in failures if not isinstance(error, Cancelled)), failures[0])

    def _cancel(self) -> None:
        self._cancelled.set()
        self._registry.interrupt()

    def _bring(self, job: _LayerJob) -> None:
        """Bring one layer's blob and folder here, in one pass where neither is; the folder alone without ``keep_layers``."""
        content, descriptor = self._client.content, job.descriptor
        if not self._keep_layers:
            if self._unpack_at_once:
                self._stage(job)
                if job.staging is None:
                    self._report(descriptor, "exists", received=descriptor.size)
                else:
                    self._fill(job)
            return
        if not content.exists(descriptor.digest):
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
        content.adopt(descriptor.digest, self._source)
        self._stage_at_once(job)
        if job.staging is not None:
            self._unpack_blob(job)
        self._report(descriptor, "exists" if job.unpacked is None else "done", received=descriptor.size)

    def _stage_at_once(self, job: _LayerJob) -> None:
        if self._unpack_at_once:
            self._stage(job)

    def _find_layer(self, job: _LayerJob, lowers: list[str] | None = None) -> Layer | None:
        """Look for a layer's folder: one that is right on top of ``lowers``, where these are known."""
        assert job.diff_id is not None
        layer = self._client.layers.find(self._client.config.snapshotter, job.diff_id, job.chain_id)
        return layer if layer is None or lowers is None or layer.fits(lowers) else None

    def _stage(self, job: _LayerJob, lowers: list[str] | None = None) -> None:
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
        with self._lock:
            job.staging = self._open.enter_context(staging)

    def _pipeline(self, job: _LayerJob, *, blob: str | None, offset: int) -> _core.Pipeline:
        unpacks = job.staging is not None
        return _core.Pipeline(
            digest=job.descriptor.digest,
            size=job.descriptor.size,
            blob=blob,
            offset=offset,
            compression=oci.compression_of(job.descriptor) if unpacks else "none",
            layer=str(job.staging.path) if job.staging is not None else None,
            diff_id=job.diff_id if unpacks else None,
            whiteouts=self._client.snapshots.whiteouts,
        )

    def _fill(self, job: _LayerJob) -> None:
        """Unpack a layer into its staging, from the store or, where its blob is not kept, from the registry."""
        content, descriptor = self._client.content, job.descriptor
        if content.exists(descriptor.digest):
            self._note_blob(job, "hit")
            content.adopt(descriptor.digest, self._source)
            self._unpack_blob(job)
            self._report(descriptor, "done", received=descriptor.size)
        else:
            self._download(job, None)

    def _download(self, job: _LayerJob, ingest: Ingest | None) -> None:
        """Bring the blob from the registry, into the ingest if there is one, and unpack it.

        What an earlier try left in the ingest may be spoiled (a power cut leaves holes in files): where the blob comes out wrong,
        it is fetched once more from its beginning.
        """
        descriptor = job.descriptor
        self._note_blob(job, "miss")
        try:
            try:
                unpacked = self._stream(job, ingest)
            except SPOILED as error:
                if ingest is None or not ingest.offset or isinstance(error, ResourceExhausted):
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
            raise type(error)(
                f"{self._reference}: layer {descriptor.digest}: {error}", hint=error.hint
            ) from error
        if ingest is not None:
            try:
                ingest.commit(
                    size=descriptor.size,
                    digest=descriptor.digest,
                    labels=self._source,
                    verified=unpacked.digest,
                )
            except AlreadyExists:  # it came under another ref, or by another namespace, meanwhile
                self._client.content.adopt(descriptor.digest, self._source)
        self._settle(job, unpacked)
        self._report(descriptor, "done", received=descriptor.size, unpacked=unpacked.tar_size)

    def _stream(self, job: _LayerJob, ingest: Ingest | None) -> _core.Unpacked:
        """Send the blob from the registry through the pipeline, after what the ingest has of it."""
        descriptor = job.descriptor
        offset = ingest.offset if ingest is not None else 0
        blob = str(ingest.data_path) if ingest is not None else None
        pipeline = self._pipeline(job, blob=blob, offset=offset)
        try:
            with self._registry.open_blob(self._repository, descriptor, offset=offset) as stream:
                self._pump(job, stream, pipeline)
            return pipeline.finish()
        except BaseException as error:
            pipeline.abort()
            if not isinstance(error, SPOILED):
                self._check_cancelled()
            raise

    def _pump(self, job: _LayerJob, stream: BlobReader, pipeline: _core.Pipeline) -> None:
        descriptor, reporter = job.descriptor, self._reporter
        buffer = memoryview(bytearray(min(CHUNK, max(descriptor.size, 1))))
        while count := stream.readinto(buffer):
            self._check_cancelled()
            pipeline.write(buffer[:count])
            if not self._archive:
                self._metrics.add(_DOWNLOADED, count)
            if reporter.due(descriptor.digest):
                phase: Phase = "reading" if self._archive else "downloading"
                self._report(descriptor, phase, received=pipeline.received, unpacked=pipeline.unpacked)

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
        self._check_cancelled()
        self._show_waiting(layer)

    def _check_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise Cancelled(f"the pull of {self._reference} was stopped")

    def _unpack_blob(self, job: _LayerJob) -> None:
        """Unpack a layer whose blob is in the store."""
        descriptor = job.descriptor
        self._report(descriptor, "unpacking", received=descriptor.size)
        assert job.staging is not None
        self._settle(job, unpack_blob(self._client, descriptor, job.staging, job.diff_id))

    def _settle(self, job: _LayerJob, unpacked: _core.Unpacked) -> None:
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

    def _commit(self, job: _LayerJob, *, chain_id: Digest | None) -> Layer:
        assert job.staging is not None and job.unpacked is not None and job.diff_id is not None
        return job.staging.commit(
            diff_id=job.diff_id,
            chain_id=chain_id,
            disk_bytes=job.unpacked.disk_bytes,
            inodes=job.unpacked.inodes,
            opaque_root=job.unpacked.opaque_root,
        )

    def _note_blob(self, job: _LayerJob, result: str) -> None:
        if job.blob == "none":
            job.blob = result
            self._metrics.add(BLOBS.cell(result))

    def _note_folder(self, job: _LayerJob, result: str) -> None:
        job.folder = result
        self._metrics.add(LAYERS.cell(result))

    # Layers, in order

    def _stack_layers(self, jobs: list[_LayerJob]) -> None:
        """Finish, bottom first, the layers that depend on what lies beneath them."""
        lowers: list[str] = []
        for job in jobs:
            if job.layer is None or (job.unpacked is None and not job.layer.fits(lowers)):
                job.layer = self._find_layer(job, lowers) or self._finish(job, lowers)
            path = str(job.layer.path)
            lowers = (
                [path] if job.layer.opaque_root else [path, *(lower for lower in lowers if lower != path)]
            )

    def _finish(self, job: _LayerJob, lowers: list[str]) -> Layer:
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

    def _record(
        self,
        target: oci.Descriptor,
        descriptor: oci.Descriptor,
        manifest: oci.Manifest,
        jobs: list[_LayerJob],
    ) -> Image:
        """Make the image and its committed snapshots visible: one transaction, nothing written when nothing changed."""
        client = self._client
        with client.database.write():
            parent = ""
            for job in jobs if self._unpack else ():
                assert job.layer is not None and job.chain_id is not None
                labels = {"containerd.io/snapshot.ref": job.chain_id}
                client.snapshots.add_committed(job.chain_id, parent, job.layer, labels)
                parent = job.chain_id
            client.content.update_labels(
                descriptor.digest, layer_labels(manifest, keep_layers=self._keep_layers)
            )
            client.images.put(str(self._reference), target)
            # The image holds it all from now on. With our lease go those of pulls that were killed, a day before their time.
            client.leases.delete_labelled(PULLED_MANIFEST, descriptor.digest)
            return client.images.get(self._reference)

    def _drop_blobs(self, manifest: oci.Manifest) -> None:
        """Remove the layers' blobs from the namespace, but for those that something else leads to."""
        drop_unreferenced(self._client, [layer.digest for layer in manifest.layers])


def drop_unreferenced(client: Client, digests: Iterable[Digest]) -> None:
    """Remove blobs from the client's namespace, but for those that something leads to, or that are not here."""
    content, namespace = client.content, client.config.namespace
    with client.database.write() as db:
        nodes = {}
        for digest in digests:
            row = db.execute(
                "SELECT number FROM content WHERE namespace = ? AND digest = ?", (namespace, digest)
            ).fetchone()
            if row is not None:
                nodes[row[0] * 4 + CONTENT] = digest
        for node in condemned(db, list(nodes), timestamp()):
            content.delete(nodes[node])


def _index_labels(data: bytes, chosen: oci.Descriptor) -> dict[str, str]:
    return {
        f"containerd.io/gc.ref.content.m.{number}": str(entry.digest)
        for number, entry in enumerate(oci.parse_index(data).manifests)
        if entry.digest == chosen.digest
    }


def manifest_labels(manifest: oci.Manifest, *, keep_layers: bool) -> dict[str, str]:
    """Give the labels by which garbage collection knows what a manifest needs."""
    labels = {f"{GC_REF_CONTENT}.config": str(manifest.config.digest)}
    if keep_layers:
        labels |= {
            f"{GC_REF_CONTENT}.l.{number}": str(layer.digest) for number, layer in enumerate(manifest.layers)
        }
    return labels


def layer_labels(manifest: oci.Manifest, *, keep_layers: bool) -> dict[str, str]:
    """Give the changes of labels that say whether a manifest's layers are kept: they are referred to, or named as dropped."""
    labels = {LAYERS_DISCARDED: "" if keep_layers else timestamp()}
    for number, layer in enumerate(manifest.layers):
        labels[f"{GC_REF_CONTENT}.l.{number}"] = str(layer.digest) if keep_layers else ""
        labels[f"{DISCARDED_LAYER}{number}"] = "" if keep_layers else str(layer.digest)
    return labels
