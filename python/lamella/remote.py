"""What registries have, without pulling it: which tags, repositories and platforms, what an image is; tagging and deleting there.

Nothing of it touches the store. Each call connects anew; who makes many has the same from one :class:`RegistryClient`
(``client.connect()``), which :class:`Remote` asks in turn.
"""

from __future__ import annotations

import msgspec

from lamella import oci, platforms
from lamella.digest import Digest
from lamella.errors import InvalidArgument, NotFound
from lamella.reference import DEFAULT_TAG, Reference
from lamella.structs import to_builtins
from lamella.typings import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lamella.client import Client
    from lamella.registry.client import RegistryClient
    from lamella.transfer.push import Pushed


class RemoteImage(msgspec.Struct, frozen=True, kw_only=True):
    """What a reference names in its registry.

    ``target``: what the name points at, ``index`` that document if it is one. ``manifest`` and ``manifest_descriptor`` are of the
    platform that was asked for, or of this machine's; None where an index has none for it. ``config`` is None for artifacts, too.
    """

    name: str
    target: oci.Descriptor
    index: oci.Index | None
    manifest_descriptor: oci.Descriptor | None
    manifest: oci.Manifest | None
    config: oci.ImageConfig | None

    @property
    def digest(self) -> Digest:
        """The digest that the name points at."""
        return self.target.digest

    @property
    def platforms(self) -> list[str]:
        """The platforms that it is for."""
        if self.index is None:
            return [str(self.config.platform)] if self.config else []
        entries = [entry for entry in self.index.manifests if not platforms.is_attestation(entry)]
        return list(dict.fromkeys(str(entry.platform) for entry in entries if entry.platform))

    @property
    def artifact_type(self) -> str | None:
        """What an artifact is (OCI image spec, "Guidelines for Artifact Usage"); None for the image of a container."""
        if self.manifest is None:
            return self.index.artifact_type if self.index else None
        config = self.manifest.config.media_type
        return None if config in oci.CONFIG_TYPES else self.manifest.artifact_type or config

    @property
    def size(self) -> int | None:
        """Bytes of the manifest, the config and the layers, as a pull would fetch them; None without a manifest."""
        if self.manifest is None or self.manifest_descriptor is None:
            return None
        parts = [self.manifest_descriptor, self.manifest.config, *self.manifest.layers]
        return sum(part.size for part in parts)

    def inspect(self) -> dict[str, Any]:
        """Everything known as plain data, under the names of ``images inspect`` where both know it."""
        manifest = self.manifest
        document = manifest or self.index
        return {
            "name": self.name,
            "digest": self.digest,
            "target": to_builtins(self.target),
            "manifests": to_builtins(self.index.manifests) if self.index else None,
            "manifest": to_builtins(self.manifest_descriptor),
            "artifact_type": self.artifact_type,
            "platform": str(self.config.platform) if self.config else None,
            "platforms": self.platforms,
            "size": self.size,
            "diff_ids": self.config.rootfs.diff_ids if self.config else [],
            "layers": to_builtins(manifest.layers) if manifest else None,
            "annotations": (manifest.annotations if manifest else None) or {},
            "index_annotations": (self.index.annotations if self.index else None) or {},
            "subject": to_builtins(document.subject) if document else None,
            "config_descriptor": to_builtins(manifest.config) if manifest else None,
            "config": to_builtins(self.config),
        }


class Remote:
    """The registries as a client reaches them.

    References are those of a pull (text or :class:`Reference`). Errors of all methods: NotFound, Unauthenticated,
    PermissionDenied, Unavailable, InvalidArgument for a name that is none; of those that read a document, those of
    :meth:`lamella.registry.client.RegistryClient.resolve`. ``plain_http`` allows HTTP without TLS to any host.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def resolve(
        self,
        ref: str | Reference,
        *,
        platform: str | oci.Platform | None = None,
        plain_http: bool = False,
    ) -> oci.Descriptor:
        """Give what a reference points at; with ``platform`` its manifest for that one.

        One request without a body where the registry answers it in full, which registries do not count as a pull.
        """
        reference = _parsed(ref)
        with self._client.connect(plain_http=plain_http) as registry:
            if platform is not None:
                return _Reader(registry, reference).follow(platform)[0]
            return registry.resolve(reference, known=lambda _: True)[0]

    def inspect(
        self,
        ref: str | Reference,
        *,
        platform: str | oci.Platform | None = None,
        plain_http: bool = False,
    ) -> RemoteImage:
        """Say what a reference names, and of an index what its image for ``platform`` is, else for this machine.

        NotFound also when it has no image for ``platform``. At most its documents are fetched, no layer.
        """
        reference = _parsed(ref)
        with self._client.connect(plain_http=plain_http) as registry:
            reader = _Reader(registry, reference)
            index = None
            if reader.root.media_type in oci.INDEX_TYPES:
                index = oci.parse_index(reader.data)
            descriptor = manifest = config = None
            try:
                descriptor, data = reader.follow(platform)
            except NotFound:
                if platform is not None or index is None:
                    raise
            else:
                manifest = oci.parse_manifest(data)
                if manifest.config.media_type in oci.CONFIG_TYPES:
                    config = oci.parse_config(registry.fetch_document(reference, manifest.config))
            return RemoteImage(
                name=str(reference),
                target=reader.root,
                index=index,
                manifest_descriptor=descriptor,
                manifest=manifest,
                config=config,
            )

    def manifest(
        self,
        ref: str | Reference,
        *,
        platform: str | oci.Platform | None = None,
        plain_http: bool = False,
    ) -> bytes:
        """Give the index or manifest that a reference names, with ``platform`` the manifest for that one, as it is."""
        reference = _parsed(ref)
        with self._client.connect(plain_http=plain_http) as registry:
            reader = _Reader(registry, reference)
            return reader.data if platform is None else reader.follow(platform)[1]

    def config(
        self,
        ref: str | Reference,
        *,
        platform: str | oci.Platform | None = None,
        plain_http: bool = False,
    ) -> bytes:
        """Give the config of an image as it is: of an index that of ``platform``, else of this machine's."""
        reference = _parsed(ref)
        with self._client.connect(plain_http=plain_http) as registry:
            _, data = _Reader(registry, reference).follow(platform)
            return registry.fetch_document(reference, oci.parse_manifest(data).config)

    def tags(self, repository: str | Reference, *, plain_http: bool = False) -> list[str]:
        """List the tags of a repository, in the registry's order. InvalidArgument for a name with a tag or digest."""
        reference = _parsed(repository)
        if reference.digest or (isinstance(repository, str) and _has_tag(repository, reference)):
            raise InvalidArgument(
                f"{repository} is an image, and a repository is what has tags",
                hint=f"Leave out what is behind the name: {reference.name}",
            )
        with self._client.connect(plain_http=plain_http) as registry:
            return registry.tags(reference)

    def repositories(self, domain: str, *, plain_http: bool = False) -> list[str]:
        """List the repositories of a registry (``host:5000``), in its order. Unsupported where it does not tell."""
        if "/" in domain:
            raise InvalidArgument(
                f"{domain} is not a registry", hint=f"Name the host alone: {domain.partition('/')[0]}"
            )
        Reference.parse(f"{domain}/x")
        with self._client.connect(plain_http=plain_http) as registry:
            return registry.repositories(domain)

    def tag(self, ref: str | Reference, *tags: str, plain_http: bool = False) -> Pushed:
        """Let other tags of the repository point at what a reference names: a push of that which sends its manifest alone.

        A tag that points at something else is moved. Errors: also FailedPrecondition (a tag that must not move), Unsupported
        (read-only). Twice is harmless. To another repository: ``images.copy``.
        """
        from lamella.transfer.push import Pushed, names_of

        reference = _parsed(ref)
        if not tags:
            raise InvalidArgument("no tag is named")
        names = names_of(Reference(domain=reference.domain, path=reference.path), tags)
        with self._client.connect(plain_http=plain_http) as registry:
            found = registry.tag(reference, [name.tag for name in names if name.tag])
        return Pushed(names=[str(name) for name in names], descriptor=found)

    def delete(self, ref: str | Reference, *, manifest: bool = False, plain_http: bool = False) -> None:
        """Remove a tag from a registry or, by digest, a manifest with all the tags that it has there.

        ``manifest``: by a tag, too, the manifest that it points at. What a manifest leads to goes when the registry collects
        garbage. A tag has to be named: ``latest`` is not meant by itself. Errors: also Unsupported where the registry does
        not delete, or no tags.
        """
        reference = _parsed(ref)
        if isinstance(ref, str) and not reference.digest and not _has_tag(ref, reference):
            raise InvalidArgument(
                f"{ref} does not say which image is to be deleted",
                hint=f"Name the tag or the digest: {reference.name}:{DEFAULT_TAG}",
            )
        with self._client.connect(plain_http=plain_http) as registry:
            registry.delete(reference, manifest=manifest)


class _Reader:
    """Reads the documents that a reference leads to; the first one when it is made."""

    def __init__(self, registry: RegistryClient, reference: Reference) -> None:
        self._registry = registry
        self._reference = reference
        self.root, self.data = registry.resolve(reference)

    def follow(self, platform: str | oci.Platform | None) -> tuple[oci.Descriptor, bytes]:
        """Go down to the manifest for a platform, or for this machine; one that is in no index is for any."""
        from lamella.transfer.pull import follow

        def read(descriptor: oci.Descriptor) -> bytes:
            if descriptor == self.root:
                return self.data
            return self._registry.fetch_document(self._reference, descriptor)

        if isinstance(platform, str):
            platform = platforms.parse_platform(platform)
        chosen = follow(self._reference, self.root, read, platform or platforms.default_platform())
        return chosen.descriptor, chosen.data


def _parsed(ref: str | Reference) -> Reference:
    return ref if isinstance(ref, Reference) else Reference.parse(ref)


def _has_tag(text: str, reference: Reference) -> bool:
    """Say whether a reference's text has a tag, and not only the one that is meant where none is."""
    return reference.tag is not None and text.partition("@")[0].endswith(f":{reference.tag}")
