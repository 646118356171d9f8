"""Import: the images of an archive, or of a folder, into the store.

Of each image the manifest for the platform is pulled, with the archive in the place of the registry: its layers are read,
checked, stored and unpacked in one pass. What else the archive has of it (other platforms, what refers to it) is
copied before, so that a name appears when all is there, or not at all.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, BinaryIO

from lamella import oci, platforms
from lamella.digest import Digest
from lamella.errors import NotFound
from lamella.logs import Log
from lamella.policy import AnyPolicy, resolve
from lamella.reference import Reference
from lamella.transfer.archives.contents import Naming
from lamella.transfer.archives.source import Archive, open_archive
from lamella.transfer.archives.stash import Stash
from lamella.transfer.copying import Copy
from lamella.transfer.foreign import ForeignLayersToo, refused
from lamella.transfer.progress import ProgressCallback, Reporter
from lamella.transfer.pull import IMPORT, LEASE_SECONDS, Pull, drop_unreferenced, follow
from lamella.transfer.stored import StoreDestination

if TYPE_CHECKING:
    from lamella.client import Client
    from lamella.images import Image
    from lamella.registry.client import RegistryClient
    from lamella.transfer.endpoints import Source

_log = Log("lamella.transfer")


class Import:
    """One import into a client's namespace. Use it once.

    ``platform``: keep and unpack this one alone; else the archive's are all kept, and that of this machine is unpacked, if there
    is one. ``keep_layers``: as in a pull; without it no other platform is kept. Foreign layers come along that the archive has;
    others with ``foreign_layers``, from their own addresses by that client. An image that lacks some is kept and not unpacked.
    """

    def __init__(
        self,
        client: Client,
        *,
        naming: Naming,
        platform: oci.Platform | None = None,
        unpack: bool = True,
        keep_layers: bool = True,
        foreign_layers: RegistryClient | None = None,
        progress: ProgressCallback | None = None,
        policy: AnyPolicy | None = None,
    ) -> None:
        self._client = client
        self._naming = naming
        self._asked = platform
        self._unpack = unpack
        self._keep_layers = keep_layers
        self._foreign_layers = foreign_layers
        self._policy = policy
        self._reporter = Reporter(progress)

    def run(self, source: str | os.PathLike[str] | BinaryIO) -> list[Image]:
        """Do it; give the images in the archive's order.

        Errors: NotFound (file, image, platform, content that the archive names and does not hold), PolicyRefused,
        InvalidArgument, Unsupported (documents, names), DataLoss and FailedPrecondition (damaged), ResourceExhausted (disk,
        caps), Cancelled. An image that failed is not visible; those before it are. Twice is harmless.
        """
        client = self._client
        done: dict[Digest, Reference] = {}
        stored: list[Digest] = []
        try:
            with (
                client.leases.hold(expires_in=LEASE_SECONDS) as lease,
                open_archive(
                    source, self._naming, Stash(client, lease.id, self._reporter, stored)
                ) as archive,
            ):
                for name, target in archive.images.items():
                    resolve(
                        archive, name, self._policy, known=lambda _: True, registry=None, platform=self._asked
                    )
                    if target.digest in done:
                        client.images.put(str(name), target)
                    else:
                        self._bring(archive, lease.id, name, target)
                        done[target.digest] = name
        finally:
            drop_unreferenced(client, stored)
        return [client.images.get(name) for name in archive.images]

    def _bring(self, archive: Archive, lease: str, name: Reference, target: oci.Descriptor) -> None:
        """Import one image."""
        if self._asked is None and self._keep_layers:
            own = self._own(archive, name, target) if self._unpack else None
            if own is None:
                with IMPORT(self._client.database.metrics, image=str(name), digest=target.digest):
                    self._copy(archive, lease, name, target, None)
                return
            self._copy(archive, lease, name, target, own)
        else:
            self._check_foreign(archive, name, target)
        Pull(
            self._client,
            name,
            self._source(archive),
            platform=self._asked,
            progress=self._reporter,
            unpack=self._unpack,
            keep_layers=self._keep_layers,
            foreign_layers=self._foreign_layers is not None,
            archive=True,
        ).run()

    def _source(self, archive: Archive) -> Source:
        registry = self._foreign_layers
        return archive if registry is None else ForeignLayersToo(archive, registry, archive=True)

    def _absent(self, archive: Archive, manifest: oci.Manifest) -> list[oci.Descriptor]:
        """Give the foreign layers that an image lacks, and that may not be fetched."""
        if self._foreign_layers is not None:
            return []
        exists = self._client.content.exists
        return [
            layer
            for layer in manifest.layers
            if oci.is_foreign(layer) and not archive.has(layer) and not exists(layer.digest)
        ]

    def _check_foreign(self, archive: Archive, name: Reference, target: oci.Descriptor) -> None:
        """Refuse the one image that is asked for where it lacks foreign layers."""
        wanted = self._asked or platforms.default_platform()
        chosen = follow(name, target, lambda each: archive.fetch_document(name, each), wanted)
        absent = self._absent(archive, oci.parse_manifest(chosen.data))
        if absent:
            raise refused(str(name), absent, "import")

    def _own(self, archive: Archive, name: Reference, target: oci.Descriptor) -> Digest | None:
        """Find the manifest that can be unpacked; None where the archive has but other platforms, or an artifact."""
        try:
            chosen = follow(
                name,
                target,
                lambda wanted: archive.fetch_document(name, wanted),
                platforms.default_platform(),
            )
        except NotFound:
            return None
        manifest = oci.parse_manifest(chosen.data)
        if manifest.config.media_type not in oci.CONFIG_TYPES:
            return None
        if absent := self._absent(archive, manifest):
            error = refused(str(name), absent, "import")
            _log.warning(
                "%(reason)s; it is kept and not unpacked. %(hint)s",
                reason=error.message,
                hint=error.hint or "",
            )
            return None
        return chosen.descriptor.digest

    def _copy(
        self, archive: Archive, lease: str, name: Reference, target: oci.Descriptor, own: Digest | None
    ) -> None:
        """Copy all that the archive has of an image but the manifest that is pulled; if none is, name the image."""

        def others(index: oci.Index) -> list[oci.Descriptor]:
            return [entry for entry in index.manifests if entry.digest != own and archive.has(entry)]

        def copy(root: oci.Descriptor, names: Sequence[Reference] = ()) -> None:
            destination = StoreDestination(self._client, lease)
            what = f"the import of {name}"
            walk = Copy(
                self._source(archive),
                destination,
                self._reporter,
                what=what,
                choose=others,
                referrers=True,
                phase="reading",
                foreign=archive.has if self._foreign_layers is None else True,
            )
            walk.run(name, root, archive.fetch_document(name, root), names)

        if target.digest != own:
            copy(target, [name] if own is None else [])
        for referrer in archive.referrers(name, own) if own else ():
            copy(referrer)
