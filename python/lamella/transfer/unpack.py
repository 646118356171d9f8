"""Unpacking without a registry: one blob of the content store; a pull that has to do with what the store holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from lamella import _core, oci
from lamella.digest import Digest
from lamella.errors import NotFound
from lamella.reference import Reference

if TYPE_CHECKING:
    from lamella.client import Client
    from lamella.snapshots import Whiteouts
    from lamella.snapshots.layers import Staging


def unpack_blob(
    client: Client,
    descriptor: oci.Descriptor,
    folder: str,
    *,
    whiteouts: Whiteouts | None = None,
    diff_id: str | None = None,
) -> _core.Unpacked:
    """Unpack a layer's blob into a folder, checked against ``diff_id``. Errors are those of the core's Pipeline.

    ``whiteouts``: those of the client's snapshotter by default.
    """
    pipeline = _core.Pipeline(
        digest=descriptor.digest,
        size=descriptor.size,
        compression=oci.compression_of(descriptor),
        layer=folder,
        diff_id=diff_id,
        whiteouts=whiteouts or client.snapshots.whiteouts,
        confined=client.config.confine,
    )
    try:
        pipeline.read_from(str(client.content.path(descriptor.digest)))
        return pipeline.finish()
    except BaseException:
        pipeline.abort()
        raise


def copy_beneath(client: Client, staging: Staging, lowers: Sequence[str]) -> None:
    """Fill a staging folder with what its layer is to lie on (folders, nearest first), unless the snapshotter stacks layers."""
    if lowers and not client.snapshots.stacks:
        _core.copy_tree(lowers[0], str(staging.path))


class NoRegistry:
    """Stands where a pull has its registry, and has nothing."""

    def __init__(self, name: str) -> None:
        self._name = name

    def resolve(self, reference: Reference, *, known: object = None) -> NoReturn:
        """NotFound, as everything here."""
        raise NotFound(f"{reference} is not looked up anywhere")

    def fetch_document(self, reference: Reference, descriptor: oci.Descriptor) -> NoReturn:
        """Say that a document is not here."""
        raise self._missing(descriptor)

    def open_blob(self, reference: Reference, descriptor: oci.Descriptor, *, offset: int = 0) -> NoReturn:
        """Say that a blob is not here."""
        raise self._missing(descriptor)

    def referrers(
        self, reference: Reference, digest: Digest, *, artifact_type: str | None = None
    ) -> list[oci.Descriptor]:
        """Give none."""
        return []

    def interrupt(self) -> None:
        """Do nothing: nobody waits for a server."""

    def _missing(self, descriptor: oci.Descriptor) -> NotFound:
        return NotFound(
            f"the blob {descriptor.digest} of {self._name} is not in the content store, or damaged",
            hint=f"Fetch it: lamella pull {self._name}",
        )
