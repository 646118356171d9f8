"""Unpacking without a registry: a pull that has to do with what the content store holds."""

from __future__ import annotations

from typing import NoReturn

from lamella import oci
from lamella.errors import NotFound
from lamella.reference import Reference


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

    def interrupt(self) -> None:
        """Do nothing: nobody waits for a server."""

    def _missing(self, descriptor: oci.Descriptor) -> NotFound:
        return NotFound(
            f"the blob {descriptor.digest} of {self._name} is not in the content store, or damaged",
            hint=f"Fetch it: lamella pull {self._name}",
        )
