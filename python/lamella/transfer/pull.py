"""Pull: reference -> index -> manifest -> config -> layers, each layer in one pass (:mod:`lamella.transfer.layers`).

Nothing becomes visible before its digests were checked: a blob by its content row, a layer by its layer row, the image with its
committed snapshots by one transaction at the end. A lease holds everything from before it exists until then, so that garbage
collection may run at any time.

Without ``keep_layers`` nothing is written but the layer folders: a blob that is not here is read from the network into the folder
alone. The manifest then carries labels that say so in place of the references to its layers, and blobs that nothing else
leads to go when the pull is done and the folders, from then on the only copy, are on disk.

Locks, all the kernel's (flock), which end with the process: one pull at a time of one manifest, in whatever namespace
(``<root>/locks/image-...``), and within it those of its layers. So what two images or two pulls of one have in common is fetched
and unpacked once; who waits says how far the other is, and goes on where it stopped if it dies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from lamella import _core, oci, platforms
from lamella.digest import Digest, split_digest
from lamella.disk import translated
from lamella.durability import Unverified, sync, sync_if_due
from lamella.errors import (
    Cancelled,
    DataLoss,
    InvalidArgument,
    NotFound,
    Unsupported,
)
from lamella.ids import tell_once
from lamella.labels import (
    DISCARDED_LAYER,
    DISTRIBUTION_SOURCE,
    GC_REF_CONTENT,
    LAYERS_DISCARDED,
    PULLED_MANIFEST,
    SUBJECT,
)
from lamella.locks import FileLock
from lamella.metadata import timestamp
from lamella.metadata.reachability import CONTENT, condemned
from lamella.metrics.table import DOWNLOADED, PULL_SECONDS, PULLS
from lamella.operations import INFO, Operation, by_result
from lamella.policy import AnyPolicy, resolve
from lamella.reference import Reference
from lamella.structs import replace
from lamella.tracing import in_context, span
from lamella.transfer.copying import Copy
from lamella.transfer.foreign import refused
from lamella.transfer.layers import LayerJob, Layers
from lamella.transfer.progress import Progress, ProgressCallback, Reporter
from lamella.transfer.stored import StoreDestination
from lamella.transfer.unpack import NoRegistry
from lamella.transfer.workers import PARALLEL

if TYPE_CHECKING:
    from lamella.additional import AdditionalStore
    from lamella.client import Client
    from lamella.images import Image
    from lamella.transfer.endpoints import Source

LEASE_SECONDS = 24 * 3600
_PULL = Operation(
    "pull",
    "pulled %(image)s (%(result)s): %(digest)s in %(seconds).3f s",
    log="lamella.transfer",
    level=INFO,
    counts=by_result(PULLS),
    durations={result: PULL_SECONDS.series(result) for result in ("pulled", "present", "waited")},
)
IMPORT = Operation(
    "import", "imported %(image)s: %(digest)s in %(seconds).3f s", log="lamella.transfer", level=INFO
)
_UNPACK = Operation("unpack", "unpacked %(image)s in %(seconds).3f s", log="lamella.transfer", level=INFO)


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


class Pull:
    """One pull of one reference. Use it once."""

    def __init__(
        self,
        client: Client,
        reference: Reference,
        registry: Source | NoRegistry,
        *,
        source: Reference | None = None,
        name: str = "",
        archive: bool = False,
        platform: oci.Platform | None = None,
        progress: ProgressCallback | Reporter | None = None,
        unpack: bool = True,
        keep_layers: bool = True,
        all_platforms: bool = False,
        metadata: bool = False,
        referrers: bool = False,
        foreign_layers: bool = False,
        policy: AnyPolicy | None = None,
        parallel: int = PARALLEL,
    ) -> None:
        """Get ready to pull ``reference``; by digest, from the repository of ``source`` if that is another.

        ``name``: what the image is called, as it stands; the reference by default.
        ``metadata``: bring the manifests and configs of an index's other platforms, without their layers.
        ``foreign_layers``: fetch these, too (:mod:`lamella.transfer.foreign`), which the ``registry`` then has to be able to.

        ``archive``: what stands where the registry does is an archive, so that nothing is downloaded, and no repository noted.
        """
        self._client = client
        self._metrics = client.database.metrics
        self._reference = reference
        self._name = name or str(reference)
        self._repository = source or reference
        self._registry = registry
        self._asked = platform
        self._platform = platform or platforms.default_platform()
        self._reporter = Reporter.of(progress)
        self._unpack = unpack
        self._keep_layers = keep_layers
        self._all_platforms = all_platforms
        self._metadata = metadata and not all_platforms
        self._referrers = referrers
        self._foreign_layers = foreign_layers
        self._policy = policy
        self._result = "pulled"
        self._locks = ExitStack()
        self._source: dict[str, str] = {}
        self._archive = archive
        if not (archive or isinstance(registry, NoRegistry)):
            self._source = {DISTRIBUTION_SOURCE + self._repository.domain: self._repository.path}
        self._additional: list[AdditionalStore] = []
        if client.config.additional_stores:
            from lamella.additional import stores_of

            self._additional = stores_of(client)
        self._layers = Layers(
            client,
            registry,
            self._repository,
            self._reporter,
            name=str(reference),
            labels=self._source,
            unpack=unpack,
            keep=keep_layers,
            downloads=not archive,
            additional=self._additional,
            parallel=max(1, parallel),
        )

    def run(self) -> Pulled:
        """Do it.

        Errors: NotFound (reference or platform), PolicyRefused, Unauthenticated, PermissionDenied (also for foreign layers that
        were not allowed), Unavailable (registry),
        InvalidArgument, Unsupported (documents), FailedPrecondition (a digest is wrong), DataLoss (a layer is
        damaged), ResourceExhausted (disk, caps), Cancelled. Whatever was complete when one was raised stays usable
        for the next try; nothing else stays visible. Twice is harmless: the second pull costs one request.
        """
        operation = IMPORT if self._archive else _PULL
        with operation(self._metrics, image=str(self._reference)) as running:
            self._reporter.say(Progress(phase="resolving"))
            with span("lamella.resolve", image=str(self._reference)):
                target, document = resolve(
                    self._registry,
                    self._reference,
                    self._policy,
                    known=self._knows,
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
        content = self._client.content
        try:
            image = self._image()
            if image.digest != target.digest or self._referrers:  # of which there may be more by now
                return None
            if (self._metadata or self._all_platforms) and not self._leads_to_all(target, set()):
                return None
            if self._only_copies:
                return Pulled(image=image, manifest=target, fetched=False)
            chosen = self._choose(target, lambda wanted: content.read(wanted.digest))
            manifest = oci.parse_manifest(chosen.data)
            if not (self._is_kept(chosen) and self._has(chosen.descriptor, manifest)):
                return None
        except (NotFound, Unverified, DataLoss):
            return None
        return self._done(image, chosen.descriptor, manifest, fetched=False)

    def _is_kept(self, chosen: Chosen) -> bool:
        """Say whether the indexes lead to the manifest by their labels, too; it may be here for the sake of another image."""
        return all(
            _index_labels(data, entry).items() <= self._client.content.info(index.digest).labels.items()
            for index, data, entry in chosen.indexes
        )

    def _has(self, descriptor: oci.Descriptor, manifest: oci.Manifest) -> bool:
        """Say whether a manifest's config, and its layers as far as they are wanted, are here, and unpacked."""
        client = self._client
        parts = [manifest.config, *(manifest.layers if self._keep_layers else ())]
        sizes_differ = any(client.content.info(part.digest).size != part.size for part in parts)
        discarded = LAYERS_DISCARDED in client.content.info(descriptor.digest).labels
        if sizes_differ or discarded == self._keep_layers:
            return False
        if not all(client.content.exists(part.digest) for part in parts):
            return False
        if not self._unpack:
            return True
        config = oci.parse_config(client.content.read(manifest.config.digest))
        self._check_platform(manifest, config)
        with translated(f"look at the layers of {self._reference}"):
            return all(
                path.is_dir()
                for name in oci.chain_ids(config.rootfs.diff_ids)[-1:]
                for path in client.snapshots.layer_paths(name)
            )

    def _fetch(self, target: oci.Descriptor, document: bytes | None) -> Pulled:
        """Bring here what is missing, under a lease."""
        client = self._client
        if self._unpack:
            _core.prepare_unpacking(client.config.confine)  # while the registry is asked for documents
        sync_if_due(client.database, client.config)  # what earlier pulls wrote; by now it costs little
        with client.leases.hold(expires_in=LEASE_SECONDS) as lease, self._locks, self._layers:

            def read(wanted: oci.Descriptor) -> bytes:
                client.leases.add(lease.id, "content", wanted.digest)
                return document if document is not None and wanted is target else self._document(wanted)

            if self._only_copies:
                return self._fetch_all(target, read, lease.id)
            descriptor, data, indexes = self._choose(target, read)
            self._check_foreign(oci.parse_manifest(data))
            if self._wait_for_others(descriptor, oci.parse_manifest(data).layers) and (
                pulled := self._find(target)
            ):
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
            with self._describing(target, read, lease.id, own=descriptor):
                self._layers.bring(jobs)
            if self._unpack:
                self._layers.stack(jobs)
                if any(job.unpacked is not None for job in jobs):
                    tell_once(client.config)
            self._copy_others(target, read, lease.id, own=descriptor)
            image = self._record(target, descriptor, manifest, jobs)
        if not self._keep_layers:
            sync(client.database, client.config)  # the folders have no second copy to be unpacked from
            self._drop_blobs(manifest)  # now that the lease does not hold them any more
        return self._done(image, descriptor, manifest, fetched=True)

    @property
    def _only_copies(self) -> bool:
        """Whether no manifest is more to this pull than the others."""
        return self._all_platforms and not self._unpack

    def _fetch_all(
        self, target: oci.Descriptor, read: Callable[[oci.Descriptor], bytes], lease: str
    ) -> Pulled:
        """Bring here all that a target leads to, without unpacking anything."""
        client = self._client
        if self._wait_for_others(target, ()) and (pulled := self._find(target)):
            self._result = "waited"
            return pulled
        client.leases.update_labels(lease, {PULLED_MANIFEST: target.digest})
        self._copy_others(target, read, lease, own=None)
        with client.database.write():
            client.images.put(self._name, target)
            client.leases.delete_labelled(PULLED_MANIFEST, target.digest)
            return Pulled(image=self._image(), manifest=target, fetched=True)

    def _copy_others(
        self,
        target: oci.Descriptor,
        read: Callable[[oci.Descriptor], bytes],
        lease: str,
        *,
        own: oci.Descriptor | None,
    ) -> None:
        """Copy what is wanted of an image beside its ``own`` manifest: those for other platforms, and what refers to it."""
        if not (self._all_platforms or self._referrers):
            return
        destination = StoreDestination(self._client, lease, self._source)
        source = _StoreFirst(self._registry, read)

        def others(index: oci.Index) -> list[oci.Descriptor]:
            wanted = index.manifests if self._all_platforms else ()
            return [entry for entry in wanted if own is None or entry.digest != own.digest]

        def copy(root: oci.Descriptor) -> None:
            walk = Copy(
                source,
                destination,
                self._reporter,
                what=f"the pull of {self._reference}",
                choose=others,
                referrers=self._referrers,
                foreign=self._foreign_layers,
                phase="downloading",
            )
            copied = walk.run(self._repository, root, read(root))
            self._metrics.add(DOWNLOADED.cell(), copied.sent_bytes)

        if target.digest != (own and own.digest):
            copy(target)
        if own is not None and self._referrers:
            for referrer in self._registry.referrers(self._repository, own.digest):
                copy(referrer)

    @contextmanager
    def _describing(
        self,
        target: oci.Descriptor,
        read: Callable[[oci.Descriptor], bytes],
        lease: str,
        *,
        own: oci.Descriptor,
    ) -> Iterator[None]:
        """Copy the metadata of other platforms beside the block, if it is wanted: many small requests, one after the other."""
        if not self._metadata or target.digest == own.digest:
            yield
            return
        from concurrent.futures import ThreadPoolExecutor

        def others(index: oci.Index) -> list[oci.Descriptor]:
            return [entry for entry in index.manifests if entry.digest != own.digest]

        walk = Copy(
            _StoreFirst(self._registry, read),
            StoreDestination(self._client, lease, self._source),
            Reporter.of(None),  # the callback is called from one thread alone
            what=f"the pull of {self._reference}",
            choose=others,
            layers=False,
            phase="downloading",
        )
        with ThreadPoolExecutor(1) as beside:
            copied = beside.submit(in_context(lambda: walk.run(self._repository, target, read(target))))
            try:
                yield
            except Cancelled:
                copied.result()  # which may have failed, and so ended the block
                raise
            self._metrics.add(DOWNLOADED.cell(), copied.result().sent_bytes)

    def _leads_to_all(self, target: oci.Descriptor, seen: set[Digest]) -> bool:
        """Say whether what is wanted of all that a document leads to is here, and kept by it; each document is ``seen`` once."""
        content = self._client.content
        seen.add(target.digest)
        labels = content.info(target.digest).labels
        for name, child in oci.references(content.read(target.digest), target.media_type):
            if name.startswith("l.") and not self._all_platforms:
                continue
            if oci.is_foreign(child) and not self._foreign_layers:
                continue
            if labels.get(f"{GC_REF_CONTENT}.{name}") != child.digest or not content.exists(child.digest):
                return False
            is_document = child.media_type in oci.INDEX_TYPES | oci.MANIFEST_TYPES
            if is_document and child.digest not in seen and not self._leads_to_all(child, seen):
                return False
        return True

    def _image(self) -> Image:
        return self._client.images.get(self._name, platform=self._asked, exact=True)

    def _wait_for_others(self, what: oci.Descriptor, layers: Sequence[oci.Descriptor]) -> bool:
        """Become the only pull of a manifest, until the end; tell whether that took waiting. Says how far the other is."""
        algorithm, encoded = split_digest(what.digest)
        path = self._client.config.root / "locks" / f"image-{algorithm}-{encoded}"
        waits = self._metrics.waits("image")
        lock = FileLock(path, what=f"the image {what.digest}", transient=True, waited=waits)
        self._locks.callback(lock.release)
        return lock.acquire(waiting=lambda: self._layers.show_waiting(*layers))

    def _done(
        self, image: Image, descriptor: oci.Descriptor, manifest: oci.Manifest, *, fetched: bool
    ) -> Pulled:
        size = sum(layer.size for layer in manifest.layers)
        if not fetched:
            self._layers.show_present(*manifest.layers)
        self._reporter.say(Progress(phase="done", received=size, size=size))
        return Pulled(image=image, manifest=descriptor, fetched=fetched)

    # Documents

    def _document(self, descriptor: oci.Descriptor) -> bytes:
        """Give a document's bytes, from the store, an additional one or the registry; verified either way."""
        content = self._client.content
        if content.exists(descriptor.digest):
            content.adopt(descriptor.digest, {})
            return content.read(descriptor.digest)
        found = self._document_elsewhere(descriptor)
        return found if found is not None else self._registry.fetch_document(self._repository, descriptor)

    def _knows(self, digest: Digest) -> bool:
        """Say whether a document is here, or in an additional store."""
        return self._client.content.exists(digest) or any(
            store.blob(digest).is_file() for store in self._additional
        )

    def _document_elsewhere(self, descriptor: oci.Descriptor) -> bytes | None:
        if not self._additional:
            return None
        from lamella.additional import document

        return document(self._additional, descriptor)

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

    def _check_foreign(self, manifest: oci.Manifest) -> None:
        """Refuse to fetch foreign layers that were not allowed; what is here, or in an archive, is not fetched."""
        if self._foreign_layers or self._archive or isinstance(self._registry, NoRegistry):
            return
        exists = self._client.content.exists
        absent = [layer for layer in manifest.layers if oci.is_foreign(layer) and not exists(layer.digest)]
        if absent:
            raise refused(str(self._reference), absent)

    def _plan(self, manifest: oci.Manifest, lease: str) -> list[LayerJob]:
        """Fetch the config and lay out what each layer needs."""
        if not self._unpack:
            data = self._document(manifest.config)
            self._keep(manifest.config, data, {})
            return [LayerJob(descriptor, None, None) for descriptor in manifest.layers]
        if manifest.config.media_type not in oci.CONFIG_TYPES:
            raise Unsupported(
                f"{self._reference} is an artifact ({manifest.artifact_type or manifest.config.media_type!r}), "
                "not a container image",
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
        return [LayerJob(*parts) for parts in zip(manifest.layers, diff_ids, chain, strict=True)]

    def _check_platform(self, manifest: oci.Manifest, config: oci.ImageConfig) -> None:
        """Hold the platform that was asked for against what the image is for: NotFound when it is another.

        An index was searched for it; a manifest that stands alone says it in its config only.
        """
        if self._asked is not None and config.os:
            offered = replace(manifest.config, platform=config.platform)
            platforms.choose([offered], self._asked)

    def _record(
        self,
        target: oci.Descriptor,
        descriptor: oci.Descriptor,
        manifest: oci.Manifest,
        jobs: list[LayerJob],
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
            client.images.put(self._name, target)
            # The image holds it all from now on. With our lease go those of pulls that were killed, a day before their time.
            client.leases.delete_labelled(PULLED_MANIFEST, descriptor.digest)
            return self._image()

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


class _StoreFirst:
    """A source of whose documents those are taken from the store that are here."""

    def __init__(self, source: Source | NoRegistry, read: Callable[[oci.Descriptor], bytes]) -> None:
        self._read = read
        self.resolve = source.resolve
        self.open_blob = source.open_blob
        self.referrers = source.referrers
        self.interrupt = source.interrupt

    def fetch_document(self, reference: Reference, descriptor: oci.Descriptor) -> bytes:
        """See :class:`lamella.transfer.endpoints.Source`."""
        return self._read(descriptor)


def _index_labels(data: bytes, chosen: oci.Descriptor) -> dict[str, str]:
    return {
        f"containerd.io/gc.ref.content.m.{number}": str(entry.digest)
        for number, entry in enumerate(oci.parse_index(data).manifests)
        if entry.digest == chosen.digest
    }


def manifest_labels(manifest: oci.Manifest, *, keep_layers: bool) -> dict[str, str]:
    """Give the labels by which garbage collection knows what a manifest needs."""
    labels = {f"{GC_REF_CONTENT}.config": str(manifest.config.digest)}
    if manifest.subject is not None:
        labels[SUBJECT] = str(manifest.subject.digest)
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
