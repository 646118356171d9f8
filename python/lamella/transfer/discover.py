"""Discover: what refers to an image, and what refers to that, as a source lists it."""

from __future__ import annotations

import msgspec

from lamella import oci
from lamella.digest import Digest
from lamella.errors import ResourceExhausted
from lamella.reference import Reference
from lamella.transfer.endpoints import Source

LISTS_MAX = 1000
"""Manifests whose referrers are asked for at most."""
DEPTH_MAX = 32
"""How long a chain of manifests that refer to one another may be; a signature of a signature is the third."""


class Referrer(oci.Descriptor, frozen=True, rename="camel", omit_defaults=True):
    """A manifest that refers to another, and what refers to it in turn, where that was asked for."""

    referrers: list[Referrer] = msgspec.field(default_factory=list)


def discover(
    source: Source,
    reference: Reference,
    digest: Digest,
    *,
    artifact_type: str | None = None,
    deep: bool = False,
) -> list[Referrer]:
    """List what refers to ``digest``, of ``artifact_type`` if given; with ``deep`` also what refers to these, and so on.

    A manifest that was listed before, as only a source that lies can have it, is not gone into again. Errors: those of
    :meth:`lamella.transfer.endpoints.Source.referrers`; ResourceExhausted for more than LISTS_MAX of them, or a chain of more
    than DEPTH_MAX.
    """
    seen: set[Digest] = set()

    def below(subject: Digest, depth: int) -> list[Referrer]:
        seen.add(subject)
        if depth > DEPTH_MAX:
            raise ResourceExhausted(
                f"over {DEPTH_MAX} manifests refer to {digest} in {reference.name}, one to the other"
            )
        if len(seen) > LISTS_MAX:
            raise ResourceExhausted(f"over {LISTS_MAX} manifests refer to {digest} in {reference.name}")
        listed = source.referrers(reference, subject, artifact_type=artifact_type)
        return [
            _referrer(each, below(each.digest, depth + 1) if deep and each.digest not in seen else [])
            for each in listed
        ]

    return below(digest, 0)


def _referrer(descriptor: oci.Descriptor, referrers: list[Referrer]) -> Referrer:
    fields = {name: getattr(descriptor, name) for name in descriptor.__struct_fields__}
    return Referrer(**fields, referrers=referrers)
