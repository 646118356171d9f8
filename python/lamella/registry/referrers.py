"""What refers to a manifest: signatures, attestations, documents (distribution spec 1.1, "Listing Referrers").

Registries list them by an API. Those that do not know it answer an error; there whoever pushes a referrer keeps the list, an
index under the tag ``<algorithm>-<hex>`` (spec, "Referrers Tag Schema").

A long list comes in pages, each of which names the next one in its Link header. Of that address the query alone is taken:
registry and path stay those that were asked first, so that no list leads the client, or its credentials, anywhere else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from urllib.parse import urlencode, urlsplit

import requests

from lamella import oci
from lamella.digest import Digest, split_digest
from lamella.errors import InvalidArgument, NotFound, ResourceExhausted, Unavailable
from lamella.reference import Reference
from lamella.registry.exchange import Exchange
from lamella.registry.failures import discard, read_document

REFERRERS_MAX = 10_000
"""Referrers of one manifest that are listed at most."""
PAGES_MAX = 100

_NOT_OFFERED = frozenset({400, 404, 405, 406, 501})
"""How registries without the API answer, as they were seen to; one that has it answers 200, also for an unknown digest."""


class Referrers:
    """Lists referrers; keeps in mind which repositories have no API. Safe to use from several threads."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._without: set[tuple[str, str]] = set()

    def list(
        self, reference: Reference, digest: Digest, artifact_type: str | None = None
    ) -> list[oci.Descriptor]:
        """See :meth:`lamella.registry.client.RegistryClient.referrers`."""
        what = f"referrers of {digest} in {reference.name}"
        found: dict[Digest, oci.Descriptor] = {}
        for data in self._pages(reference, digest, artifact_type, what):
            for descriptor in oci.parse_index(data).manifests:
                # Registries need not filter, and the fallback's index cannot.
                if artifact_type in (None, descriptor.artifact_type):
                    found.setdefault(descriptor.digest, descriptor)
            if len(found) > REFERRERS_MAX:
                raise ResourceExhausted(f"{what}: there are over {REFERRERS_MAX}, more are not read")
        return [*found.values()]

    def _pages(
        self, reference: Reference, digest: Digest, artifact_type: str | None, what: str
    ) -> Iterator[bytes]:
        repository = (reference.domain, reference.path)
        query = urlencode({"artifactType": artifact_type} if artifact_type else {})
        seen: set[str] = set()
        while repository not in self._without:
            if query in seen or len(seen) >= PAGES_MAX:
                raise Unavailable(f"{what}: the pages of the list do not come to an end")
            seen.add(query)
            path = f"referrers/{digest}" + (f"?{query}" if query else "")
            page = self._page(reference, path, what)
            if page is None and len(seen) == 1:
                self._without.add(repository)
                break
            if page is None:
                raise Unavailable(f"{what}: the list breaks off after {len(seen) - 1} pages")
            data, following = page
            yield data
            if following is None:
                return
            query = following
        yield from self._tagged(reference, digest, what)

    def _page(self, reference: Reference, path: str, what: str) -> tuple[bytes, str | None] | None:
        """Fetch one page, and the query of the next one; None where the API is not offered."""
        exchange = self._exchange
        patience = exchange.transport.patience()
        while True:
            headers = {"Accept": oci.OCI_INDEX}
            response = exchange.request("GET", reference, path, headers, what=what, patience=patience)
            media_type = response.headers.get("Content-Type", "").partition(";")[0].strip()
            if response.status_code in _NOT_OFFERED or (
                response.status_code == 200 and media_type != oci.OCI_INDEX
            ):
                discard(response)
                return None
            if response.status_code != 200:
                raise exchange.error(response, reference, what)
            try:
                return read_document(response, oci.DOCUMENT_MAX, what), next_query(response.headers)
            except Unavailable as error:
                exchange.transport.check_interrupted()
                patience.spend(error)

    def _tagged(self, reference: Reference, digest: Digest, what: str) -> Iterator[bytes]:
        tag = fallback_tag(digest)
        try:
            data, headers = self._exchange.document(reference, f"manifests/{tag}", what, oci.OCI_INDEX)
        except NotFound:
            return
        if oci.document_type(data, headers.get("Content-Type")) not in oci.INDEX_TYPES:
            raise InvalidArgument(f"{what}: the tag {tag}, which is to list them, is no index")
        yield data


def fallback_tag(digest: Digest) -> str:
    """Give the tag of the list of a manifest's referrers, for registries that do not keep one themselves."""
    algorithm, encoded = split_digest(digest)
    return f"{algorithm[:32]}-{encoded[:64]}"


def next_query(headers: Mapping[str, str]) -> str | None:
    """Read the query of the next page out of the Link header (RFC 8288)."""
    for link in requests.utils.parse_header_links(headers.get("Link", "")):
        if link.get("rel") == "next":
            try:
                return urlsplit(link["url"]).query
            except ValueError:
                return None
    return None
