"""Manifests on their way into a repository, and out of it (distribution spec 1.1, "Pushing Manifests", "Content Management").

A manifest is stored under its digest, or by the tag that is to point at it. One that refers to another (its ``subject``) is
listed among that one's referrers: by the registry, which says so (OCI-Subject); for one that does not, whoever pushes keeps
the list, an index under a tag (:mod:`lamella.registry.referrers`), and whoever deletes takes the manifest out of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from urllib.parse import urlencode

import msgspec
import requests

from lamella import oci
from lamella.digest import Digest, digest_of, parse_digest, split_digest
from lamella.errors import DataLoss, FailedPrecondition, InvalidArgument, LamellaError, NotFound, Unsupported
from lamella.reference import Reference
from lamella.registry.auth import repository_scope
from lamella.registry.exchange import Exchange
from lamella.registry.failures import discard, is_page, page_error
from lamella.registry.referrers import fallback_tag
from lamella.registry.targets import Origin
from lamella.structs import to_builtins
from lamella.typings import Any

LISTING_TRIES = 4
"""How often an entry is put into a list that others write at the same time."""


class Publisher:
    """Stores and removes manifests. Safe to use from several threads."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def has(self, reference: Reference, descriptor: oci.Descriptor) -> bool:
        """Say whether the repository has a manifest of this digest. Errors as those of a push."""
        response = self._request(
            "HEAD", reference, f"manifests/{descriptor.digest}", {"Accept": descriptor.media_type}
        )
        discard(response)
        if response.status_code == 200:
            return response.headers.get("Docker-Content-Digest") in {None, descriptor.digest}
        if response.status_code in {404, 405}:
            return False
        raise self._exchange.error(response, reference, f"manifest {descriptor.digest} of {reference.name}")

    def put(
        self, reference: Reference, descriptor: oci.Descriptor, data: bytes, tags: Sequence[str] = ()
    ) -> None:
        """See :meth:`lamella.registry.client.RegistryClient.put_manifest`."""
        if len(tags) == 1 and split_digest(descriptor.digest)[0] == "sha256":
            self._put(reference, tags[0], descriptor, data)
            return
        query = "?" + urlencode([("tag", tag) for tag in tags]) if tags else ""
        response = self._put(reference, f"{descriptor.digest}{query}", descriptor, data)
        # The newest spec lets one request set all tags; a registry that does so names them.
        done = {tag.strip() for tag in response.headers.get("OCI-Tag", "").split(",")}
        for tag in tags:
            if tag not in done:
                self._put(reference, tag, descriptor, data)

    def _put(
        self, reference: Reference, locator: str, descriptor: oci.Descriptor, data: bytes
    ) -> requests.Response:
        place = locator.partition("?")[0]
        what = f"manifest {place} of {reference.name}"
        headers = {"Content-Type": descriptor.media_type}
        response = self._request("PUT", reference, f"manifests/{locator}", headers, body=data)
        if response.status_code not in {200, 201, 202}:
            error = self._exchange.error(response, reference, what)
            if isinstance(error, InvalidArgument) and descriptor.media_type in {
                oci.OCI_MANIFEST,
                oci.OCI_INDEX,
            }:
                error.hint = (
                    "An old registry may know Docker's formats alone: convert the image and push that."
                )
            raise error
        discard(response)
        _check_digest(response, place, descriptor.digest, what)
        subject = oci.subject_of(data)
        if subject is not None and "OCI-Subject" not in response.headers:
            entry = oci.describe_referrer(descriptor.digest, data)
            self._change_list(reference, subject.digest, lambda entries: _with(entries, entry))
        return response

    def delete(self, reference: Reference) -> None:
        """See :meth:`lamella.registry.client.RegistryClient.delete`."""
        subject = self._subject(reference) if reference.digest else None
        locator = reference.digest or reference.tag or ""
        response = self._request(
            "DELETE", reference, f"manifests/{locator}", {}, actions=("pull", "push", "delete")
        )
        if response.status_code not in {200, 202, 204}:
            error = self._exchange.error(response, reference, reference.familiar)
            if reference.digest is None and response.status_code in {400, 405}:
                # docker-registry calls a tag a digest that is wrong.
                raise Unsupported(
                    error.message,
                    hint="This registry deletes manifests alone, with all their tags: name the digest, or say --manifest.",
                )
            raise error
        discard(response)
        if subject is not None and not self._lists(reference, subject):
            self._change_list(
                reference,
                subject,
                lambda entries: [one for one in entries if one.get("digest") != reference.digest],
            )

    def _subject(self, reference: Reference) -> Digest | None:
        data, _ = self._exchange.document(
            reference, f"manifests/{reference.digest}", reference.familiar, ", ".join(sorted(_DOCUMENT_TYPES))
        )
        try:
            subject = oci.subject_of(data)
        except LamellaError:  # whatever it is, it can be removed
            return None
        return subject.digest if subject is not None else None

    # The list of referrers, where the registry keeps none

    def _lists(self, reference: Reference, subject: Digest) -> bool:
        response = self._request("GET", reference, f"referrers/{subject}", {"Accept": oci.OCI_INDEX})
        discard(response)
        return response.status_code == 200

    def _change_list(
        self,
        reference: Reference,
        subject: Digest,
        change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]],
    ) -> None:
        """Read the list, change it, write it, until a look at it finds nothing to change: others may write it, too."""
        tag = fallback_tag(subject)
        what = f"the list of referrers {tag} of {reference.name}"
        for _ in range(LISTING_TRIES):
            index = self._read_list(reference, tag, what)
            entries = index["manifests"]
            changed = change(entries)
            if changed == entries:
                return
            data = msgspec.json.encode(index | {"manifests": changed})
            response = self._request(
                "PUT", reference, f"manifests/{tag}", {"Content-Type": oci.OCI_INDEX}, body=data
            )
            if response.status_code not in {200, 201, 202}:
                raise self._exchange.error(response, reference, what)
            discard(response)
            _check_digest(response, tag, digest_of(data), what)
        raise FailedPrecondition(f"{what} is changed by others all the time", hint="Try again.")

    def _read_list(self, reference: Reference, tag: str, what: str) -> dict[str, Any]:
        try:
            scopes = (
                repository_scope(reference.path, "pull", "push"),
            )  # no mirror's: it is to be written back
            data, _ = self._exchange.document(
                reference, f"manifests/{tag}", what, oci.OCI_INDEX, scopes=scopes
            )
        except NotFound:
            return {"schemaVersion": 2, "mediaType": oci.OCI_INDEX, "manifests": []}
        oci.parse_index(data)  # so that it is well-formed; what is in it that this does not know stays
        index: dict[str, Any] = msgspec.json.decode(data)
        return index

    def _request(
        self,
        method: str,
        reference: Reference,
        path: str,
        headers: dict[str, str],
        *,
        body: bytes | None = None,
        actions: tuple[str, ...] = ("pull", "push"),
    ) -> requests.Response:
        scopes = (repository_scope(reference.path, *actions),)
        what = f"{path.partition('?')[0]} of {reference.name}"
        patience = self._exchange.transport.patience()
        while True:
            response = self._exchange.request(
                method, reference, path, headers, what=what, scopes=scopes, body=body, patience=patience
            )
            if not is_page(response):
                return response
            patience.spend(page_error(response, what))


_DOCUMENT_TYPES = oci.INDEX_TYPES | oci.MANIFEST_TYPES


def _with(entries: list[dict[str, Any]], entry: oci.Descriptor) -> list[dict[str, Any]]:
    if any(one.get("digest") == entry.digest for one in entries):
        return entries
    return [*entries, to_builtins(entry)]


def _check_digest(response: requests.Response, place: str, digest: Digest, what: str) -> None:
    """Compare what the registry says that it stored; by a tag it may use another algorithm than the descriptor."""
    said = response.headers.get("Docker-Content-Digest")
    if said is None:
        return
    try:
        stored = parse_digest(said)
    except (InvalidArgument, Unsupported):
        stored = None
    comparable = stored is None or ":" in place or split_digest(stored)[0] == split_digest(digest)[0]
    if comparable and stored != digest:
        host = Origin.of(response.url).netloc
        raise DataLoss(
            f"{host} stored {what} under another digest than {digest}",
            hint="The registry or something on the way to it changed the document.",
        )
