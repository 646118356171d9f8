"""Push and copy: what is in the store, or in another registry, goes to a repository of a registry.

Both are the walk of :mod:`lamella.transfer.copying`; what they bring to it is the registry as a destination, and the choice of
what is pushed. A copy is not stored: each blob streams from one registry to the other through memory, or is mounted
where both repositories are in one registry.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from lamella import oci, platforms
from lamella.digest import Digest
from lamella.errors import (
    FailedPrecondition,
    InvalidArgument,
    LamellaError,
    NotFound,
    PermissionDenied,
)
from lamella.labels import DISTRIBUTION_SOURCE
from lamella.operations import INFO, Operation
from lamella.policy import AnyPolicy, resolve
from lamella.reference import Reference
from lamella.transfer.copying import Copied, Copy
from lamella.transfer.endpoints import BlobReader, Source
from lamella.transfer.progress import Progress, ProgressCallback, Reporter
from lamella.transfer.stored import FileReader, StoreSource

if TYPE_CHECKING:
    from lamella.client import Client
    from lamella.registry.client import RegistryClient

_PUSH = Operation(
    "push", "pushed %(image)s as %(target)s in %(seconds).3f s", log="lamella.transfer", level=INFO
)
_COPY = Operation(
    "copy", "copied %(image)s to %(target)s in %(seconds).3f s", log="lamella.transfer", level=INFO
)

Origins = Callable[[oci.Descriptor], Sequence[str]]
"""Says which repositories of the destination's registry may have a blob."""


class Pushed(msgspec.Struct, frozen=True, kw_only=True):
    """What a push or copy left in a registry: the names of ``descriptor``, which it has now.

    ``size``: bytes of all that it leads to, where they were known (None for a copy of what was there). ``blobs``: how many were
    ``sent``, ``mounted``, or ``exists``, none where only names were given; ``sent_bytes``: of those that were sent.
    ``left_out``: the platforms of an index that are not in the store, for which one manifest alone was pushed.
    """

    names: list[str]
    descriptor: oci.Descriptor
    size: int | None = None
    blobs: dict[str, int] = {}
    sent_bytes: int = 0
    left_out: list[str] = []

    @property
    def digest(self) -> Digest:
        """The digest that all names have now."""
        return self.descriptor.digest


class RegistryDestination:
    """Puts content into the repository of a reference; ``root`` gets all the ``tags``. Made for one transfer.

    ``origins``: where a blob may be mounted from.
    """

    def __init__(
        self,
        registry: RegistryClient,
        repository: Reference,
        root: Digest,
        tags: Sequence[str] = (),
        *,
        origins: Origins = lambda _: (),
    ) -> None:
        self._registry = registry
        self._repository = repository
        self._root = root
        self._tags = tags
        self._origins = origins
        self._named = False
        self._lock = threading.Lock()
        self._put: set[Digest] = set()

    def has(self, descriptor: oci.Descriptor) -> bool:
        """Ask for a blob or manifest; a manifest that is there has all that it leads to."""
        if descriptor.media_type in oci.INDEX_TYPES | oci.MANIFEST_TYPES:
            return self._registry.has_manifest(self._repository, descriptor)
        return self._registry.has_blob(self._repository, descriptor)

    def put_blob(
        self,
        descriptor: oci.Descriptor,
        open_at: Callable[[int], BlobReader],
        sent: Callable[[int], None],
    ) -> str:
        """Mount a blob or send it; for the second time always the latter: what was mounted proved to be missing."""
        with self._lock:
            again = descriptor.digest in self._put
            self._put.add(descriptor.digest)
        mount = None if again else self._nearest(self._origins(descriptor))
        return self._registry.put_blob(self._repository, descriptor, open_at, sent, mount=mount)

    def put_document(self, descriptor: oci.Descriptor, data: bytes) -> None:
        """Store a document, the root under its tags at once."""
        is_root = descriptor.digest == self._root
        tags = self._tags if is_root else ()
        self._registry.put_manifest(self._repository, descriptor, data, tags)
        self._named = self._named or is_root

    def name(self, reference: Reference, descriptor: oci.Descriptor, data: bytes) -> None:
        """Let a tag point at the root, unless that is done."""
        if not self._named and reference.tag:
            self._registry.put_manifest(self._repository, descriptor, data, [reference.tag])

    def interrupt(self) -> None:
        """End everything with Cancelled."""
        self._registry.interrupt()

    def _nearest(self, repositories: Sequence[str]) -> str | None:
        """Choose the repository that has most in common with ours, whoever may push here may most probably read there."""
        ours = self._repository.path.split("/")

        def common(path: str) -> int:
            return sum(1 for _ in _while_equal(path.split("/"), ours))

        others = [path for path in repositories if path and path != self._repository.path]
        return max(others, key=common, default=None)


def _while_equal(one: Sequence[str], other: Sequence[str]) -> Iterator[str]:
    for left, right in zip(one, other, strict=False):
        if left != right:
            return
        yield left


def names_of(target: Reference, tags: Sequence[str]) -> list[Reference]:
    """Give the names that a pushed image gets: the target's own, and the target's repository with each of ``tags``."""
    given = [target.tag] if target.tag else []
    repository = f"{target.domain}/{target.path}"
    return [Reference.parse(f"{repository}:{tag}") for tag in dict.fromkeys([*given, *tags])]


def push(
    client: Client,
    registry: RegistryClient,
    source: str | Reference,
    target: Reference | None = None,
    *,
    tags: Sequence[str] = (),
    platform: oci.Platform | None = None,
    all_platforms: bool = False,
    referrers: bool = False,
    foreign_layers: bool = False,
    progress: ProgressCallback | None = None,
) -> Pushed:
    """Push an image of the store. See :meth:`lamella.images.Images.push`."""
    image = client.images.get(source)
    here = Reference.parse(image.name)
    target = target or here
    names = names_of(target, tags)
    chosen = _Chosen(client, image.target)
    root, left_out = chosen.root(platform, all_platforms=all_platforms, name=image.name)
    _check_digest(target, root)
    data = client.content.read(root.digest)
    origins = _stored_origins(client, target.domain, [image.target.digest, root.digest])
    destination = RegistryDestination(
        registry, target, root.digest, [name.tag for name in names if name.tag], origins=origins
    )
    with _PUSH(client.database.metrics, image=image.name, target=str(target)) as running:
        reporter = Reporter(progress)
        copied = Copy(
            _KeptSource(client),
            destination,
            reporter,
            what=f"the push of {here.familiar}",
            referrers=referrers,
            foreign=foreign_layers,
        ).run(here, root, data, names)
        running.note(digest=root.digest)
    size = chosen.size(root)
    reporter.say(Progress(phase="done", received=size, size=size))
    chosen.note_source(root, {DISTRIBUTION_SOURCE + target.domain: target.path})
    return _pushed(target, names, copied, size, left_out)


def copy(
    client: Client,
    registry: RegistryClient,
    source: Source,
    origin: Reference,
    target: Reference,
    *,
    tags: Sequence[str] = (),
    platform: oci.Platform | None = None,
    referrers: bool = False,
    foreign_layers: bool = False,
    progress: ProgressCallback | None = None,
    policy: AnyPolicy | None = None,
) -> Pushed:
    """Copy an image from a source to a registry. See :meth:`lamella.images.Images.copy`."""
    reporter = Reporter(progress)
    names = names_of(target, tags)
    with _COPY(client.database.metrics, image=str(origin), target=str(target)) as running:
        reporter.say(Progress(phase="resolving"))
        root, data = resolve(source, origin, policy, known=None, registry=origin.domain, platform=platform)
        if data is None:
            data = source.fetch_document(origin, root)
        if platform is not None:
            root, data = _follow(source, origin, root, data, platform)
        _check_digest(target, root)
        origins: Origins = lambda _: [origin.path] if origin.domain == target.domain else []  # noqa: E731
        destination = RegistryDestination(
            registry, target, root.digest, [name.tag for name in names if name.tag], origins=origins
        )
        copied = Copy(
            source,
            destination,
            reporter,
            what=f"the copy of {origin.familiar}",
            referrers=referrers,
            foreign=foreign_layers,
        ).run(origin, root, data, names)
        running.note(digest=root.digest)
    reporter.say(Progress(phase="done"))
    return _pushed(target, names, copied, None, [])


def _pushed(
    target: Reference, names: Sequence[Reference], copied: Copied, size: int | None, left_out: list[str]
) -> Pushed:
    by_digest = f"{target.domain}/{target.path}@{copied.descriptor.digest}"
    return Pushed(
        names=[str(name) for name in names] or [by_digest],
        descriptor=copied.descriptor,
        size=size,
        blobs=copied.blobs,
        sent_bytes=copied.sent_bytes,
        left_out=left_out,
    )


def _check_digest(target: Reference, root: oci.Descriptor) -> None:
    if target.digest and target.digest != root.digest:
        raise InvalidArgument(
            f"what would be pushed has the digest {root.digest}, not the {target.digest} of {target.name}",
            hint="Name a tag, or nothing behind the repository's name.",
        )


def _follow(
    source: Source, reference: Reference, root: oci.Descriptor, data: bytes, platform: oci.Platform
) -> tuple[oci.Descriptor, bytes]:
    """Go down to the manifest of a platform."""
    for _ in range(platforms.INDEX_DEPTH_MAX):
        if oci.document_type(data, root.media_type) in oci.MANIFEST_TYPES:
            return root, data
        root = _bare(platforms.choose(oci.parse_index(data).manifests, platform))
        data = source.fetch_document(reference, root)
    raise InvalidArgument(
        f"{reference} nests image indexes more than {platforms.INDEX_DEPTH_MAX} deep, which is refused"
    )


def _bare(entry: oci.Descriptor) -> oci.Descriptor:
    return oci.Descriptor(media_type=entry.media_type, digest=entry.digest, size=entry.size)


class _KeptSource(StoreSource):
    """The store as the source of a push, which says so where layers were not kept."""

    def open_blob(self, reference: Reference, descriptor: oci.Descriptor, *, offset: int = 0) -> FileReader:
        """Open a blob's file. FailedPrecondition for a layer that was not kept; the rest as in StoreSource."""
        try:
            return super().open_blob(reference, descriptor, offset=offset)
        except NotFound as error:
            if self._client.images.get(reference).layers_discarded:
                raise FailedPrecondition(
                    f"{reference.familiar} cannot be pushed: it was pulled without keeping its layers ({descriptor.digest})",
                    hint=error.hint,
                ) from error
            raise


class _Chosen:
    """What of an image in the store is pushed."""

    def __init__(self, client: Client, target: oci.Descriptor) -> None:
        self._content = client.content
        self._client = client
        self._target = target
        self._whole: dict[Digest, bool] = {}

    def root(
        self, platform: oci.Platform | None, *, all_platforms: bool, name: str
    ) -> tuple[oci.Descriptor, list[str]]:
        """Choose the document to push, and name the platforms that are left out by it.

        The manifest of ``platform``; else the image as it is, if all of it is here; else the manifest that is here.
        """
        if platform is not None:
            return self._of_platform(platform), []
        missing = self._missing(self._target, 0)
        if not missing:
            return self._target, []
        if all_platforms:
            raise FailedPrecondition(
                f"{name} is not here for all its platforms: {', '.join(missing)} missing",
                hint=f"Push one platform, or fetch them: lamella pull --all-platforms --no-unpack {name}",
            )
        return _bare(self._client.images.get(name).manifest_descriptor), missing

    def _of_platform(self, platform: oci.Platform) -> oci.Descriptor:
        source = StoreSource(self._client)
        reference = Reference(domain="", path="")
        root, data = _follow(
            source, reference, self._target, self._content.read(self._target.digest), platform
        )
        config = oci.parse_manifest(data).config
        if root == self._target and config.media_type in oci.CONFIG_TYPES:
            offered = platforms.normalize(oci.parse_config(self._content.read(config.digest)).platform)
            if offered not in platforms.acceptable(platform):
                raise NotFound(f"the image is for {offered}, not for {platforms.normalize(platform)}")
        return root

    def _missing(self, descriptor: oci.Descriptor, depth: int) -> list[str]:
        """Name the entries of an index that are not here, as a whole."""
        data = self._content.read(descriptor.digest)
        if (
            depth > platforms.INDEX_DEPTH_MAX
            or oci.document_type(data, descriptor.media_type) in oci.MANIFEST_TYPES
        ):
            return []  # of the blobs of the one manifest that there is, whoever needs them will ask
        missing: list[str] = []
        for entry in oci.parse_index(data).manifests:
            # Each once: every level of indexes may name the next one ten thousand times.
            is_new = entry.digest not in self._whole
            if is_new:
                self._whole[entry.digest] = self._is_whole(entry)
            if not self._whole[entry.digest]:
                missing.append(str(entry.platform) if entry.platform else entry.digest)
            elif is_new and entry.media_type in oci.INDEX_TYPES:
                missing += self._missing(entry, depth + 1)
        return missing

    def _is_whole(self, entry: oci.Descriptor) -> bool:
        try:
            data = self._content.read(entry.digest)
            children = [child for _, child in oci.references(data, entry.media_type)]
            if entry.media_type in oci.INDEX_TYPES:
                return True
            discarded = self._content.info(entry.digest).labels
            return all(
                self._content.exists(child.digest)
                or child.digest in discarded.values()
                or oci.is_foreign(child)
                for child in children
            )
        except LamellaError:
            return False

    def size(self, root: oci.Descriptor) -> int:
        """Add up the bytes of all that a document leads to."""
        return sum(descriptor.size for descriptor in self._all(root, {}).values())

    def _all(
        self, descriptor: oci.Descriptor, found: dict[Digest, oci.Descriptor]
    ) -> dict[Digest, oci.Descriptor]:
        found[descriptor.digest] = descriptor
        if descriptor.media_type in oci.INDEX_TYPES | oci.MANIFEST_TYPES:
            data = self._content.read(descriptor.digest)
            for _, child in oci.references(data, descriptor.media_type):
                if child.digest not in found:
                    self._all(child, found)
        return found

    def note_source(self, root: oci.Descriptor, labels: dict[str, str]) -> None:
        """Note that the registry has it, so that the next push of any of it can mount it there."""
        with suppress(PermissionDenied), self._client.database.write():  # of who only reads nothing is asked
            for digest in self._all(root, {}):
                with suppress(NotFound):
                    self._content.info(digest)
                    self._content.adopt(digest, labels)


def _stored_origins(client: Client, domain: str, documents: Sequence[Digest]) -> Origins:
    """Say from the labels of the content store which repositories of a registry have a blob.

    What has none, as its blob is not kept, is where its manifest is.
    """
    label = DISTRIBUTION_SOURCE + domain

    def labelled(digest: Digest) -> list[str]:
        with suppress(NotFound):
            return [path for path in client.content.info(digest).labels.get(label, "").split(",") if path]
        return []

    def origins(descriptor: oci.Descriptor) -> list[str]:
        return labelled(descriptor.digest) or [path for one in documents for path in labelled(one)]

    return origins
