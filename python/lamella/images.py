"""Images: names in a namespace that point at a descriptor.

An image is purely descriptive: it owns no files and no snapshots. Removing one lets garbage collection take what nothing else
refers to. Names are canonical references (``docker.io/library/nginx:latest``); methods take them as docker does (``nginx``).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial

from lamella import oci
from lamella.config import check_key
from lamella.digest import Digest
from lamella.errors import AlreadyExists, FailedPrecondition, InvalidArgument, LamellaError, NotFound
from lamella.labels import GC_EXPIRE, LAYERS_DISCARDED, check_labels, decode_labels, encode_labels
from lamella.lazy import cached_property
from lamella.logs import Log
from lamella.metadata import Transaction, timestamp
from lamella.reference import Reference
from lamella.reserve import frees_space
from lamella.structs import Struct, decode, encode, replace, to_builtins
from lamella.typings import TYPE_CHECKING, Any, BinaryIO, Literal

if TYPE_CHECKING:
    from lamella.client import Client
    from lamella.filters import Fields
    from lamella.policy import AnyPolicy
    from lamella.transfer.discover import Referrer
    from lamella.transfer.endpoints import Source
    from lamella.transfer.progress import ProgressCallback
    from lamella.transfer.push import Pushed

_COLUMNS = "name, media_type, digest, size, annotations, labels, platform, total_size, created_at, updated_at"

_log = Log("lamella")


class _Here(Struct):
    """What an image's row says beside the platform: all that are here, where they are several."""

    here: list[str] = []


class Image:
    """One image of one namespace, as it was when it was read. Its documents are read from the content store on demand."""

    def __init__(
        self,
        client: Client,
        *,
        name: str,
        target: oci.Descriptor,
        labels: Mapping[str, str],
        created_at: str,
        updated_at: str,
        platform: oci.Platform | None = None,
        here: Sequence[str] = (),
        size: int | None = None,
        wanted: oci.Platform | None = None,
    ) -> None:
        self._client = client
        self.name = name
        self.target = target
        self.labels = dict(labels)
        self.created_at = created_at
        self.updated_at = updated_at
        self._recorded = (platform, size)
        self._here = here
        self._wanted = wanted

    def __repr__(self) -> str:
        return f"<lamella.Image {self.name} {self.target.digest[:19]}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Image) and (self.name, self.target) == (other.name, other.target)

    def __hash__(self) -> int:
        return hash((self.name, self.target.digest))

    @property
    def digest(self) -> Digest:
        """The digest of what the name points at (an index or a manifest)."""
        return self.target.digest

    @property
    def familiar_name(self) -> str:
        """The name as docker shows it: ``nginx:latest``; one that is no canonical reference as it is."""
        try:
            reference = Reference.parse(self.name)
        except InvalidArgument:
            return self.name
        return reference.familiar if str(reference) == self.name else self.name

    @cached_property
    def manifest_descriptor(self) -> oci.Descriptor:
        """The manifest that is used on this machine: the target itself, or the one of the index whose blobs are here.

        For an image that was asked for by platform (``images.get(ref, platform=...)``), that one's. NotFound when it is not here.
        """
        from lamella import platforms

        descriptor = self.target
        for _ in range(platforms.INDEX_DEPTH_MAX):
            data = self._client.content.read(descriptor.digest)
            if oci.document_type(data, descriptor.media_type) in oci.MANIFEST_TYPES:
                return descriptor
            present = [m for m in oci.parse_index(data).manifests if self._client.content.exists(m.digest)]
            # Of several the whole ones: another may be on its way here, or damaged.
            here = [entry for entry in present if self._is_whole(entry)] or present
            if not here:
                break
            try:
                descriptor = platforms.choose(here, self._wanted or platforms.default_platform())
            except NotFound:
                if self._wanted:
                    break
                descriptor = here[0]
        of = f" for {self._wanted}" if self._wanted else ""
        option = f"--platform {self._wanted} " if self._wanted else ""
        raise NotFound(
            f"no manifest of {self.name}{of} is in the content store",
            hint=f"Fetch it: lamella pull {option}{self.name}",
        )

    def _is_whole(self, entry: oci.Descriptor) -> bool:
        """Say whether all that a manifest of an index leads to is here."""
        if entry.media_type not in oci.MANIFEST_TYPES:
            return True
        content = self._client.content
        try:
            manifest = oci.parse_manifest(content.read(entry.digest))
            parts = [manifest.config, *(layer for layer in manifest.layers if not oci.is_foreign(layer))]
            if LAYERS_DISCARDED in content.info(entry.digest).labels:
                parts = parts[:1]
        except LamellaError:
            return False
        return all(content.exists(part.digest) for part in parts)

    @cached_property
    def manifest(self) -> oci.Manifest:
        """The manifest document. NotFound when its blob is not here."""
        return oci.parse_manifest(self._client.content.read(self.manifest_descriptor.digest))

    @cached_property
    def config(self) -> oci.ImageConfig:
        """The image config. NotFound when its blob is not here."""
        return oci.parse_config(self._client.content.read(self.manifest.config.digest))

    @property
    def layers(self) -> list[oci.Descriptor]:
        """The layers' descriptors, bottom first."""
        return self.manifest.layers

    @property
    def diff_ids(self) -> list[Digest]:
        """The digests of the uncompressed layers, bottom first."""
        return self.config.rootfs.diff_ids

    @property
    def chain_ids(self) -> list[Digest]:
        """The names of the image's committed snapshots, bottom first."""
        return oci.chain_ids(self.diff_ids)

    @property
    def chain_id(self) -> Digest:
        """The name of the committed snapshot that holds the whole image; the parent for views and active snapshots."""
        chain = self.chain_ids
        if not chain:
            kind = self.artifact_type
            what = f"is an artifact ({kind!r}), not a container image" if kind else "has no layers"
            raise FailedPrecondition(f"{self.name} {what}, so that there is no snapshot of it")
        return chain[-1]

    @property
    def size(self) -> int:
        """Bytes of the manifest, config and layers as they are stored and transferred."""
        recorded = self._recorded[1]
        return self._read_size() if recorded is None else recorded

    def _read_size(self) -> int:
        manifest = self.manifest
        parts = [self.manifest_descriptor, manifest.config, *manifest.layers]
        return sum({part.digest: part.size for part in parts}.values())

    @property
    def platform(self) -> oci.Platform:
        """The platform of the manifest that is here; without words for an artifact."""
        return self._recorded[0] or (oci.Platform() if self.artifact_type else self.config.platform)

    @property
    def platforms(self) -> list[str]:
        """The platforms that are here with all that belongs to them, such as ``linux/arm64``, in the order of the index."""
        platform = self._recorded[0]
        if platform is None:
            return self._read_platforms()
        return [*self._here] or [str(platform)] if platform.os else []

    def _index_annotations(self) -> dict[str, str]:
        """Give the annotations of what the name points at, where that is an index."""
        if self.manifest_descriptor.digest == self.target.digest:
            return {}
        return oci.parse_index(self._client.content.read(self.target.digest)).annotations or {}

    def _read_platforms(self) -> list[str]:
        from lamella import platforms

        content = self._client.content

        seen: set[Digest] = set()

        def found(descriptor: oci.Descriptor, depth: int) -> Iterator[str]:
            # Each index once: every level may name the next one ten thousand times.
            if descriptor.digest in seen or not content.exists(descriptor.digest):
                return
            if platforms.is_attestation(descriptor):
                return
            data = content.read(descriptor.digest)
            if oci.document_type(data, descriptor.media_type) in oci.INDEX_TYPES:
                seen.add(descriptor.digest)
                for entry in oci.parse_index(data).manifests if depth else ():
                    yield from found(entry, depth - 1)
                return
            manifest = oci.parse_manifest(data)
            if manifest.config.media_type in oci.CONFIG_TYPES and self._is_whole(descriptor):
                config = oci.parse_config(content.read(manifest.config.digest))
                yield str(descriptor.platform or config.platform)

        return list(dict.fromkeys(filter(None, found(self.target, platforms.INDEX_DEPTH_MAX))))

    @property
    def artifact_type(self) -> str | None:
        """What an artifact is (OCI image spec, "Guidelines for Artifact Usage"); None for the image of a container."""
        config = self.manifest.config.media_type
        return None if config in oci.CONFIG_TYPES else self.manifest.artifact_type or config

    @property
    def layers_discarded(self) -> bool:
        """Whether the compressed layers were dropped once they were unpacked (``pull(keep_layers=False)``)."""
        return LAYERS_DISCARDED in self._client.content.info(self.manifest_descriptor.digest).labels

    def inspect(self) -> dict[str, Any]:
        """Everything known about the image as plain data (the fields of ``lamella images inspect``)."""
        artifact_type, manifest = self.artifact_type, self.manifest
        diff_ids = [] if artifact_type else self.diff_ids
        chain_ids = oci.chain_ids(diff_ids)
        return {
            "name": self.name,
            "digest": self.digest,
            "target": to_builtins(self.target),
            "manifest": to_builtins(self.manifest_descriptor),
            "artifact_type": artifact_type,
            "platform": str(self.platform),
            "platforms": self._read_platforms(),
            "size": self.size,
            "chain_id": chain_ids[-1] if chain_ids else None,
            "chain_ids": chain_ids,
            "diff_ids": diff_ids,
            "layers": to_builtins(self.layers),
            "layers_discarded": self.layers_discarded,
            "annotations": manifest.annotations or {},
            "index_annotations": self._index_annotations(),
            "subject": to_builtins(manifest.subject),
            "config_descriptor": to_builtins(manifest.config),
            "config": None if artifact_type else to_builtins(self.config),
            "labels": self.labels,
            "created_at": self.created_at,
            "updated_at": self.updated_at,
        }


def _parsed(platform: str | oci.Platform) -> oci.Platform:
    from lamella.platforms import parse_platform

    return parse_platform(platform) if isinstance(platform, str) else platform


def _collect_if_due(client: Client) -> None:
    from lamella.autogc import collect_if_due

    collect_if_due(client)


def _fields(image: Image) -> Fields:
    """Give what filters know of an image, by containerd's names."""
    target = {"digest": image.digest, "mediatype": image.target.media_type}
    return {"name": image.name, "target": target, "labels": image.labels}


def _checked(target: oci.Descriptor) -> oci.Descriptor:
    """Return what an image may point at. InvalidArgument, as containerd has it, without a size or a media type."""
    if target.size <= 0 or not target.media_type:
        what = "size" if target.size <= 0 else "media type"
        raise InvalidArgument(f"an image cannot point at {target.digest}: its {what} is missing")
    return target


class Images:
    """The images of one namespace."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def pull(
        self,
        ref: str | Reference,
        *,
        name: str = "",
        platform: str | oci.Platform | None = None,
        progress: ProgressCallback | None = None,
        plain_http: bool = False,
        unpack: bool = True,
        keep_layers: bool = True,
        all_platforms: bool = False,
        metadata: bool = False,
        referrers: bool = False,
        foreign_layers: bool = False,
        sync: bool | None = None,
        policy: AnyPolicy | None = None,
    ) -> Image:
        """Fetch an image from its registry and, unless ``unpack`` is false, unpack it into committed snapshots.

        ``name``: what the image is called, as it stands; the reference by default.
        ``platform`` is ``os/arch[/variant]``, this machine's by default; a further pull adds another one to what is here of the
        same index. With ``all_platforms`` the whole index comes with all that it leads to, and this machine's part is unpacked.
        With ``metadata`` those manifests of the index come along that are for other platforms, and their configs: what an image
        is made of elsewhere can be looked at, and its index be told from the digest.
        With ``referrers`` what refers to the image comes along, such as signatures, and stays as long. ``plain_http`` allows
        HTTP without TLS to a host that is not loopback. With ``keep_layers=False`` the disk holds the image once: the compressed
        layers are not kept, but for those that something else refers to, until a pull without it fetches them again. That holds
        for the manifest, under all names that it has in the namespace. With ``sync`` (the client's ``durable`` by default) it
        returns when what came survives a power cut. ``policy`` is asked besides the client's (:mod:`lamella.policy`), before
        anything is fetched. ``foreign_layers``: also fetch layers that must not be distributed, from the registry or else from
        the addresses that the image names (:mod:`lamella.transfer.foreign`); without it an image that needs some is refused
        (PermissionDenied), and those of other platforms are left out. Errors as :meth:`lamella.transfer.pull.Pull.run`, and
        InvalidArgument for neither unpacking nor keeping. Twice is harmless and costs one request when nothing changed.
        """
        from lamella.policy import all_of
        from lamella.transfer.foreign import ForeignLayersToo
        from lamella.transfer.pull import Pull

        if not (unpack or keep_layers):
            raise InvalidArgument("an image that is neither unpacked nor kept would not be there at all")
        reference = ref if isinstance(ref, Reference) else Reference.parse(ref)
        if all_platforms and not keep_layers:
            raise InvalidArgument("the layers of other platforms are not unpacked, and so have to be kept")
        wanted = _parsed(platform) if platform is not None else None
        with self._client.connect(plain_http=plain_http) as registry:
            pulled = Pull(
                self._client,
                reference,
                ForeignLayersToo(registry, registry) if foreign_layers else registry,
                name=name,
                platform=wanted,
                progress=progress,
                unpack=unpack,
                keep_layers=keep_layers,
                all_platforms=all_platforms,
                metadata=metadata,
                referrers=referrers,
                foreign_layers=foreign_layers,
                policy=all_of(self._client.policy, policy),
            ).run()
        if self._client.durable if sync is None else sync:
            self._client.sync()
        if pulled.fetched:
            _collect_if_due(self._client)
        return pulled.image

    def import_(
        self,
        source: str | os.PathLike[str] | BinaryIO,
        *,
        names: Sequence[str | Reference] = (),
        base_name: str | None = None,
        image: str | None = None,
        digests: bool = False,
        platform: str | oci.Platform | None = None,
        unpack: bool = True,
        keep_layers: bool = True,
        foreign_layers: bool = False,
        plain_http: bool = False,
        progress: ProgressCallback | None = None,
        sync: bool | None = None,
        policy: AnyPolicy | None = None,
    ) -> list[Image]:
        """Take images from an archive: an OCI layout (a folder or a tar), or what ``docker save`` writes; compressed or not.

        ``source`` is a path, or a binary file that is read from where it stands. All of the archive is kept, and the image for
        this machine unpacked, unless ``unpack`` is false; with ``platform`` that one is kept and unpacked alone. Images get the
        names that the archive has for them; ``names`` instead, where there is one; ``base_name`` is the repository of those
        that have but a tag there. ``image`` chooses one by its name, tag or digest. ``digests``: name each by its digest, too.
        ``foreign_layers``: fetch those that the archive does not have from their own addresses (with ``plain_http`` also without
        TLS), which is all that uses the network here; without it such an image is kept and not unpacked.
        ``keep_layers``, ``sync`` and ``policy`` as for :meth:`pull`. Errors as :meth:`lamella.transfer.imports.Import.run`.
        Twice is harmless.
        """
        from lamella import platforms
        from lamella.policy import all_of
        from lamella.transfer.archives.contents import Naming
        from lamella.transfer.imports import Import

        if not (unpack or keep_layers):
            raise InvalidArgument("an image that is neither unpacked nor kept would not be there at all")
        naming = Naming(
            names=[name if isinstance(name, Reference) else Reference.parse(name) for name in names],
            base=Reference.parse(base_name) if base_name else None,
            image=image,
            digests=digests,
        )
        with self._client.connect(plain_http=plain_http) if foreign_layers else nullcontext() as registry:
            imported = Import(
                self._client,
                naming=naming,
                platform=platforms.parse_platform(platform) if isinstance(platform, str) else platform,
                unpack=unpack,
                keep_layers=keep_layers,
                foreign_layers=registry,
                progress=progress,
                policy=all_of(self._client.policy, policy),
            ).run(source)
        if self._client.durable if sync is None else sync:
            self._client.sync()
        _collect_if_due(self._client)
        return imported

    def export(
        self,
        refs: str | Reference | Iterable[str | Reference],
        target: str | os.PathLike[str] | BinaryIO,
        *,
        format: Literal["oci", "oci-dir", "docker"] = "oci",
        platform: str | oci.Platform | None = None,
        only: Sequence[str | oci.Platform] = (),
        all_platforms: bool = False,
        referrers: bool = False,
        foreign_layers: bool = False,
        docker_manifest: bool = True,
        compression: Literal["none", "gzip", "zstd"] | None = None,
        progress: ProgressCallback | None = None,
    ) -> dict[str, oci.Descriptor]:
        """Write images into an archive: a file, or a binary stream; give their names with what they point at in there.

        ``oci`` is an OCI layout in a tar that also has docker's manifest.json, so that everything that reads images reads it;
        ``oci-dir`` the same in a folder, to which it is added; ``docker`` a docker-archive for what knows nothing else. All
        that is here of an image is written; with ``platform`` that alone, without an index around it; with ``only`` these
        within the index; ``all_platforms`` wants all that the index names. ``docker_manifest=False``: an OCI layout and no
        more. ``referrers``: also what refers to the images (signatures). ``compression`` is around the whole; None: as the
        file's name says (``.gz``, ``.zst``). ``foreign_layers``: also write layers that must not be distributed; without it
        they are left out, and refused in a docker-archive. The same images give the same bytes. Errors as
        :meth:`lamella.transfer.exports.Export.run`. Twice is harmless.
        """
        from lamella import platforms
        from lamella.transfer.exports import Export

        names = [refs] if isinstance(refs, str | Reference) else refs
        return Export(
            self._client,
            format=format,
            platform=platforms.parse_platform(platform) if isinstance(platform, str) else platform,
            only=[_parsed(each) for each in only],
            all_platforms=all_platforms,
            referrers=referrers,
            foreign_layers=foreign_layers,
            docker_manifest=docker_manifest,
            compression=compression,
            progress=progress,
        ).run([name if isinstance(name, Reference) else Reference.parse(name) for name in names], target)

    def unpack(self, ref: str | Reference, *, platform: str | oci.Platform | None = None) -> Image:
        """Unpack an image's layers from the blobs that are here, without a registry, where that was not done or is spoiled.

        NotFound when the image, its ``platform``, or one of its blobs is not here. Twice is harmless.
        """
        from lamella.transfer.pull import Pull
        from lamella.transfer.unpack import NoRegistry

        image = self.get(ref, platform=platform)
        Pull(
            self._client,
            Reference.parse(image.name),
            NoRegistry(image.name),
            platform=image.platform,
            keep_layers=not image.layers_discarded,
        ).complete(image.target)
        return image

    def push(
        self,
        ref: str | Reference,
        to: str | Reference | None = None,
        *,
        tags: Sequence[str] = (),
        platform: str | oci.Platform | None = None,
        all_platforms: bool = False,
        referrers: bool = False,
        foreign_layers: bool = False,
        progress: ProgressCallback | None = None,
        plain_http: bool = False,
    ) -> Pushed:
        """Push an image of the store to its registry or, under another name, to that of ``to``; to all ``tags`` there.

        It is pushed as it is. Of an index some of whose platforms are not in the store, the manifest that is here goes alone
        (``Pushed.left_out`` says so), with ``platform`` (``os/arch[/variant]``) the one of that; ``all_platforms`` makes what is
        missing an error. ``referrers`` go along: what refers to it (signatures, attestations) as far as that is here.
        ``foreign_layers``: send those, too, that their authors forbid to distribute. What the registry has is not sent; what
        another repository of it is known to have is mounted.

        Errors: NotFound (image, platform, repository), FailedPrecondition (layers that were not kept, missing platforms),
        Unauthenticated, PermissionDenied, Unavailable (registry), Unsupported (read-only), ResourceExhausted (too large, a
        quota), InvalidArgument (a manifest that the registry does not take; a digest in ``to`` that it is not), DataLoss
        (a damaged blob), Cancelled. Twice is harmless; after an error the next push sends what is missing.
        """
        from lamella import platforms
        from lamella.transfer.push import push

        target = Reference.parse(to) if isinstance(to, str) else to
        wanted = platforms.parse_platform(platform) if isinstance(platform, str) else platform
        with self._client.connect(plain_http=plain_http) as registry:
            return push(
                self._client,
                registry,
                ref,
                target,
                tags=tags,
                platform=wanted,
                all_platforms=all_platforms,
                referrers=referrers,
                foreign_layers=foreign_layers,
                progress=progress,
            )

    def copy(
        self,
        source: str | Reference,
        target: str | Reference,
        *,
        tags: Sequence[str] = (),
        platform: str | oci.Platform | None = None,
        referrers: bool = False,
        foreign_layers: bool = False,
        progress: ProgressCallback | None = None,
        plain_http: bool = False,
        policy: AnyPolicy | None = None,
    ) -> Pushed:
        """Copy an image from one registry to another, or within one. Nothing of it is stored; its digest stays the same.

        All platforms of an index are copied, with ``platform`` the manifest of one. ``referrers`` go along: what refers to it
        (signatures, attestations). ``foreign_layers``, too, with it, which come from the source or else from the addresses that
        the image names. ``policy`` is asked about the source besides the client's, before anything is fetched. The
        rest, and the errors, are as in :meth:`push`, and PolicyRefused; DataLoss names the source when that has other bytes
        than it says. Twice is harmless.
        """
        from lamella import platforms
        from lamella.policy import all_of
        from lamella.transfer.foreign import ForeignLayersToo
        from lamella.transfer.push import copy

        origin = Reference.parse(source) if isinstance(source, str) else source
        goal = Reference.parse(target) if isinstance(target, str) else target
        wanted = platforms.parse_platform(platform) if isinstance(platform, str) else platform
        with self._client.connect(plain_http=plain_http) as registry:
            return copy(
                self._client,
                registry,
                ForeignLayersToo(registry, registry) if foreign_layers else registry,
                origin,
                goal,
                tags=tags,
                platform=wanted,
                referrers=referrers,
                foreign_layers=foreign_layers,
                progress=progress,
                policy=all_of(self._client.policy, policy),
            )

    def referrers(
        self,
        ref: str | Reference,
        *,
        artifact_type: str | None = None,
        platform: str | oci.Platform | None = None,
        deep: bool = False,
        local: bool = False,
        plain_http: bool = False,
    ) -> list[Referrer]:
        """List what refers to an image in its registry, such as signatures; with ``local`` what of that is here.

        To what the reference names, an index in most cases; with ``platform`` to its manifest for that one. ``artifact_type``:
        those of that type alone. ``deep``: with what refers to these. Errors as :meth:`pull`, those of the registry.
        """
        from lamella.transfer.discover import discover
        from lamella.transfer.pull import follow
        from lamella.transfer.stored import StoreSource

        reference = ref if isinstance(ref, Reference) else Reference.parse(ref)

        def list_from(source: Source) -> list[Referrer]:
            target, _ = source.resolve(reference, known=lambda _: True)
            if platform is not None:
                read = partial(source.fetch_document, reference)
                target = follow(reference, target, read, _parsed(platform)).descriptor
            return discover(source, reference, target.digest, artifact_type=artifact_type, deep=deep)

        if local:
            return list_from(StoreSource(self._client))
        with self._client.connect(plain_http=plain_http) as registry:
            return list_from(registry)

    def get(
        self, ref: str | Reference, *, platform: str | oci.Platform | None = None, exact: bool = False
    ) -> Image:
        """Return an image of the store, or of an additional one. NotFound when there is none of this name.

        Some names are no canonical references: those that containerd's clients chose. Such a one is found by its own text where
        that does not name another; with ``exact`` the text alone counts.

        With ``platform`` its manifest, config and layers are those for that one; they raise NotFound where it is not here.
        """
        row = self._found(ref, exact)
        if platform is None:
            return self._image(row)
        return self._image((*row[:-4], None, None, *row[-2:]), wanted=_parsed(platform))

    def list(self, *, filters: Sequence[str] = ()) -> list[Image]:
        """Return the images of the namespace, sorted by name.

        With ``filters`` those that match one of them (:mod:`lamella.filters`): by name, target.digest, target.mediatype, labels.
        """
        from lamella.filters import compile_filters

        match = compile_filters(filters)
        with self._client.database.read() as db:
            rows = db.execute(
                f"SELECT {_COLUMNS} FROM images WHERE namespace = ? ORDER BY name",  # noqa: S608 (a constant)
                (self._client.config.namespace,),
            ).fetchall()
        images = [self._image(row) for row in rows]
        return [image for image in images if match(_fields(image))] if filters else images

    def create(
        self,
        name: str,
        target: oci.Descriptor,
        *,
        labels: Mapping[str, str] | None = None,
        at: str | None = None,
    ) -> Image:
        """Record an image whose content is, or will be, here; ``at``: when it was made (RFC 3339), now by default.

        The name is taken as it stands, canonical or not, as containerd does. AlreadyExists; InvalidArgument for an empty name
        or a target without size or media type.
        """
        checked = check_labels(labels or {})
        row = self._row_for(check_key(name, "name", "the name of an image"), _checked(target))
        with self._client.database.write() as db:
            if self._row(db, name) is not None:
                raise AlreadyExists(f"image {name} is in namespace {self._client.config.namespace}")
            self._write(db, row, checked, at or timestamp())
            return self.get(name, exact=True)

    def update(
        self,
        name: str,
        *,
        target: oci.Descriptor | None = None,
        labels: Mapping[str, str] | None = None,
        at: str | None = None,
    ) -> Image:
        """Point an image at another descriptor, or replace its labels; None leaves either as it is. ``at`` as in :meth:`create`.

        NotFound when there is none of exactly this name; else errors as :meth:`create`. Twice is harmless.
        """
        with self._client.database.write() as db:
            row = self._row(db, name)
            if row is None:
                raise self._missing(name)
            present = self._image(row)
            row = self._row_for(name, _checked(target or present.target))
            self._write(
                db, row, check_labels(present.labels if labels is None else labels), at or timestamp()
            )
            return self.get(name, exact=True)

    def put(self, name: str, target: oci.Descriptor, labels: Mapping[str, str] | None = None) -> None:
        """Point a canonical name at a descriptor; create the image when it is not there. Twice is harmless."""
        checked = None if labels is None else check_labels(labels)
        fresh = self._row_for(name, target)
        with self._client.database.write() as db:
            row = self._row(db, name)
            if row is None or checked is not None or (*row[:5], *row[6:8]) != fresh:
                kept = {} if row is None else self._image(row).labels
                self._write(db, fresh, kept if checked is None else checked, timestamp())

    def _row_for(self, name: str, target: oci.Descriptor) -> tuple[Any, ...]:
        """Give what an image's row says but for its labels and times."""
        annotations = encode_labels(target.annotations or {})
        return name, target.media_type, target.digest, target.size, annotations, *self._describe(name, target)

    def _write(self, db: Transaction, row: tuple[Any, ...], labels: Mapping[str, str], at: str) -> None:
        """Write the row of an image, which is there already or not."""
        db.execute(
            """
            INSERT INTO images (namespace, name, media_type, digest, size, annotations, platform, total_size,
                labels, created_at, updated_at)
            VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
            ON CONFLICT (namespace, name) DO UPDATE SET
              media_type = excluded.media_type, digest = excluded.digest, size = excluded.size,
              annotations = excluded.annotations, platform = excluded.platform, total_size = excluded.total_size,
              labels = excluded.labels, updated_at = excluded.updated_at
            """,
            (self._client.config.namespace, *row, encode_labels(labels), at, at),
        )

    def _row(self, db: Transaction, name: str) -> tuple[Any, ...] | None:
        """Give the row of an image of exactly this name."""
        row: tuple[Any, ...] | None = db.execute(
            f"SELECT {_COLUMNS} FROM images WHERE namespace = ? AND name = ?",  # noqa: S608 (a constant)
            (self._client.config.namespace, name),
        ).fetchone()
        return row

    def _found(self, ref: str | Reference, exact: bool) -> tuple[Any, ...]:
        """Give the row of an image, which may come from an additional store."""
        try:
            with self._client.database.read() as db:
                return self._find(db, ref, exact)
        except NotFound:
            if not self._client.config.additional_stores:
                raise
            from lamella.additional import find

            if not find(self._client, ref):
                raise
        with self._client.database.read() as db:
            return self._find(db, ref, exact)

    def _find(self, db: Transaction, ref: str | Reference, exact: bool) -> tuple[Any, ...]:
        """Give the row of the image that a reference names, or else of that name. NotFound; InvalidArgument."""
        name, invalid = str(ref), None
        if not exact:
            try:
                name = str(ref if isinstance(ref, Reference) else Reference.parse(ref))
            except InvalidArgument as error:
                invalid = error
        row = self._row(db, name) or self._row(db, str(ref))
        if row is None:
            raise invalid or self._missing(name)
        return row

    def _missing(self, name: str) -> NotFound:
        return NotFound(
            f"image {name} is not in namespace {self._client.config.namespace}",
            hint=f"Fetch it: lamella pull {name}",
        )

    def tag(self, source: str | Reference, target: str | Reference) -> Image:
        """Give the image ``source`` another name; one that has it already is moved, as with docker.

        Nothing is copied but the record, with its labels; not the time at which the source expires. Errors: NotFound when there
        is no ``source``, InvalidArgument for a target with a digest. Twice is harmless.
        """
        reference = target if isinstance(target, Reference) else Reference.parse(target)
        if reference.digest:
            raise InvalidArgument(
                f"{reference} names a digest, which no tag can be given",
                hint="Name a tag, such as app:stable.",
            )
        with self._client.database.write():  # so that the source's content cannot go in between
            image = self.get(source)
            if str(reference) != image.name:
                kept = {key: value for key, value in image.labels.items() if key != GC_EXPIRE}
                self.put(str(reference), image.target, kept)
            return self.get(reference)

    def convert(
        self,
        source: str | Reference,
        target: str | Reference,
        *,
        compression: Literal["none", "gzip", "zstd"] | None = None,
        level: int | None = None,
        format: Literal["oci", "docker"] | None = None,
        platform: str | oci.Platform | None = None,
        all_platforms: bool = False,
        layers: str | Collection[int] | None = None,
        drop_top: int = 0,
        foreign_layers: bool = False,
        progress: ProgressCallback | None = None,
    ) -> Image:
        """Make the image ``target`` of an image that is here: the same in another form.

        ``compression`` of the layers, those apart that have it already; ``level`` of it (gzip 1 to 9, zstd 1 to 19).
        ``format``: docker's documents or OCI's; zstd takes the latter. Of an index the manifest for this machine, or
        ``platform``, alone, or with ``all_platforms`` all of it. ``layers`` are the ones to keep, 0 the lowest (``"0-2"``,
        ``[0, 1, 2]``); ``drop_top`` is how many to leave out from the top. The config stays as it is but for layers that are
        left out, and so do the snapshots. Foreign layers stay what they are, at their addresses; with ``foreign_layers`` they
        become layers like others. The same image gives the same result on every machine.

        Errors: NotFound (image, platform, a blob), InvalidArgument, Unsupported for an artifact, DataLoss and
        FailedPrecondition for a damaged layer, ResourceExhausted. Twice is harmless.
        """
        from lamella import platforms
        from lamella.transfer.convert import Convert, parse_selection

        reference = target if isinstance(target, Reference) else Reference.parse(target)
        if reference.digest:
            raise InvalidArgument(f"{reference} names a digest, which the image gets only when it is made")
        if all_platforms and platform is not None:
            raise InvalidArgument("one platform and all of them exclude each other")
        image = self.get(source, platform=platform)
        if platform is not None:  # a manifest that stands alone says it in its config only
            offered = replace(image.manifest.config, platform=image.config.platform)
            platforms.choose([offered], _parsed(platform))
        return Convert(
            self._client,
            image,
            reference,
            compression=compression,
            level=level,
            format=format,
            all_platforms=all_platforms,
            layers=parse_selection(layers) if isinstance(layers, str) else layers,
            drop_top=drop_top,
            foreign_layers=foreign_layers,
            progress=progress,
        ).run()

    def _describe(self, name: str, target: oci.Descriptor) -> tuple[str | None, int | None]:
        """Give what the row keeps of the documents (reading them costs 175 us an image); None where they are not here."""
        image = Image(self._client, name=name, target=target, labels={}, created_at="", updated_at="")
        try:
            described: dict[str, Any] = to_builtins(image.platform)
            if len(here := image.platforms) > 1:
                described["here"] = here
            return encode(described).decode(), image.size
        except LamellaError:
            return None, None

    def remove(
        self, ref: str | Reference, *, sync: bool = False, digest: str | None = None, exact: bool = False
    ) -> None:
        """Remove the name, found as by :meth:`get`. NotFound when there is none, or it points at another ``digest`` than this.

        Content and snapshots stay until garbage collection; with ``sync`` it runs before this returns, and its errors come too.
        """
        self._remove(ref, digest, exact)
        if sync:
            self._client.gc()
        else:
            _collect_if_due(self._client)

    @frees_space
    def _remove(self, ref: str | Reference, digest: str | None, exact: bool) -> None:
        with self._client.database.write() as db:
            image = self._image(self._find(db, ref, exact))
            if digest and image.digest != digest:
                raise NotFound(f"image {image.name} points at {image.digest}, not at {digest}")
            db.execute(
                "DELETE FROM images WHERE namespace = ? AND name = ?",
                (self._client.config.namespace, image.name),
            )
        _log.info("removed the image %(image)s", image=image.name, namespace=self._client.config.namespace)

    def _image(self, row: tuple[Any, ...], *, wanted: oci.Platform | None = None) -> Image:
        name, media_type, digest, size, annotations, labels, platform, total_size, created_at, updated_at = (
            row
        )
        return Image(
            self._client,
            name=name,
            target=oci.Descriptor(
                media_type=media_type,
                digest=digest,
                size=size,
                annotations=decode_labels(annotations) or None,
            ),
            labels=decode_labels(labels),
            created_at=created_at,
            updated_at=updated_at,
            platform=None if platform is None else decode(platform, oci.Platform),
            here=() if platform is None else decode(platform, _Here).here,
            size=total_size,
            wanted=wanted,
        )
