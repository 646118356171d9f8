"""Foreign layers: those whose authors forbid to distribute them, and which registries and archives therefore need not have.

They are touched only when that was allowed, by one option everywhere (``foreign_layers``, ``--foreign-layers``). Without it a
manifest that is pulled and needs some that are not here is refused before anything of it is fetched; and what merely comes along
(other platforms, what is pushed, copied, exported) comes without them, as its manifest allows, since that names their addresses.
With it they come from the registry or archive if that has them, else from those addresses (:mod:`lamella.registry.foreign`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lamella import oci
from lamella.digest import Digest
from lamella.errors import NotFound, PermissionDenied
from lamella.reference import Reference
from lamella.registry.targets import Origin

if TYPE_CHECKING:
    from lamella.registry.client import RegistryClient
    from lamella.transfer.endpoints import BlobReader, Source


class ForeignLayersToo:
    """A source whose foreign layers come from their own addresses where it does not have them. The rest is the source's.

    ``archive``: references name no registry that anything came from, and that the addresses could be next to.
    """

    def __init__(self, source: Source, registry: RegistryClient, *, archive: bool = False) -> None:
        self._source = source
        self._registry = registry
        self._archive = archive
        self.resolve = source.resolve
        self.fetch_document = source.fetch_document
        self.referrers = source.referrers

    def open_blob(self, reference: Reference, descriptor: oci.Descriptor, *, offset: int = 0) -> BlobReader:
        """Open a blob. Errors: those of the source, and of :meth:`lamella.registry.client.RegistryClient.open_foreign`."""
        try:
            return self._source.open_blob(reference, descriptor, offset=offset)
        except (NotFound, PermissionDenied):
            if not (oci.is_foreign(descriptor) and descriptor.urls):
                raise
        origin = None if self._archive else reference
        return self._registry.open_foreign(origin, descriptor, offset=offset)

    def interrupt(self) -> None:
        """End what other threads are reading with Cancelled, for good."""
        self._source.interrupt()
        self._registry.interrupt()


def refused(name: str, layers: Sequence[oci.Descriptor], verb: str = "pull") -> PermissionDenied:
    """Make the error for an image that needs foreign layers which were not allowed to the command ``verb``."""
    hosts: set[str] = set()
    for layer in layers:
        for url in layer.urls or ():
            try:
                hosts.add(Origin.of(url).netloc)
            except (PermissionDenied, ValueError):
                hosts.add("an address that is refused anyway")
    digests: list[Digest] = [layer.digest for layer in layers]
    count = f"the foreign layer {digests[0]}" if len(digests) == 1 else f"{len(digests)} foreign layers"
    where = f"; they name {', '.join(sorted(hosts)[:5])}" if hosts else ""
    return PermissionDenied(
        f"{name} needs {count}, which registries must not distribute and was not allowed{where}",
        hint=f"If you trust who made the image, fetch them, too: {verb} --foreign-layers (foreign_layers=True).",
    )
