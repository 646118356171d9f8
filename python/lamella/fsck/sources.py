"""Where content can be fetched again from, and fetching it.

A pull labels what it brings with the repositories that have it (``containerd.io/distribution.source.<domain>``). They are asked
by digest, one after the other, with the credentials and rules of a pull. A registry that cannot be reached is asked
SILENT_MAX times and then left alone for the rest of the check.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from lamella.digest import Digest
from lamella.errors import (
    AlreadyExists,
    Cancelled,
    DataLoss,
    FailedPrecondition,
    LamellaError,
    NotFound,
    Unavailable,
)
from lamella.labels import DISTRIBUTION_SOURCE
from lamella.oci import DOCUMENT_MAX, OCI_LAYER, Descriptor
from lamella.reference import Reference
from lamella.transfer.progress import Progress, Reporter

if TYPE_CHECKING:
    from lamella.client import Client
    from lamella.content import Ingest
    from lamella.images import Image
    from lamella.registry.client import RegistryClient

SILENT_MAX = 2
"""How often in a row a registry may be silent before it is not asked any more."""
_ATTEMPTS = 2
_TIMEOUTS = (10.0, 30.0)
_CHUNK = 1024 * 1024


class Sources:
    """The registries that a check may ask: none with ``fetch=False``. Usable from several threads; close it."""

    def __init__(self, client: Client, reporter: Reporter, *, fetch: bool, plain_http: bool) -> None:
        self.fetch = fetch
        self._client = client
        self._reporter = reporter
        self._plain_http = plain_http
        self._lock = threading.Lock()
        self._registry: RegistryClient | None = None
        self._silent: dict[str, int] = {}

    def close(self) -> None:
        """Close all connections. Harmless twice."""
        if self._registry is not None:
            self._registry.close()

    def interrupt(self) -> None:
        """End what other threads are fetching with Cancelled."""
        if self._registry is not None:
            self._registry.interrupt()

    def fetch_blob(
        self, client: Client, digest: Digest, size: int, sources: Iterable[Reference], *, document: bool
    ) -> str:
        """Fetch a blob whose row is there and whose file is not; say where it came from.

        ``document``: it is an index or a manifest, as far as one knows. NotFound says why no source gave it.
        """

        def fetch(source: Reference) -> None:
            for as_document in (document, not document):
                try:
                    if as_document:
                        self._fetch_document(client, digest, size, source)
                    else:
                        self._fetch_bytes(client, digest, size, source)
                    return
                except NotFound:  # the other endpoint may have it
                    if as_document is not document or size > DOCUMENT_MAX:
                        raise

        return self._from_one_of(sources, fetch)

    def complete(
        self, client: Client, image: Image, sources: Iterable[Reference], *, unpack: bool, keep_layers: bool
    ) -> str:
        """Fetch what an image lacks, and with ``unpack`` its layer folders; say where it came from. NotFound as above."""
        from lamella.transfer.pull import Pull

        try:
            platform = image.platform
        except LamellaError:
            platform = None

        def fetch(source: Reference) -> None:
            with self._open() as registry:
                Pull(
                    client,
                    Reference.parse(image.name),
                    registry,
                    source=source,
                    platform=platform,
                    progress=self._reporter.say,
                    unpack=unpack,
                    keep_layers=keep_layers,
                ).complete(image.target)

        return self._from_one_of(sources, fetch)

    def _from_one_of(self, sources: Iterable[Reference], fetch: Callable[[Reference], None]) -> str:
        """Fetch from the first source that gives it, and say which one that was. NotFound says why none did."""
        failures = []
        for source in sources:
            try:
                self._check_alive(source)
                fetch(source)
            except Cancelled:
                raise
            except LamellaError as error:
                failures.append(self._failed(source, error))
            else:
                self._silent.pop(source.domain, None)
                return source.name
        raise NotFound("; ".join(failures) or "no registry is known to have it")

    def _open(self) -> RegistryClient:
        from lamella.registry.config import Timeouts

        return self._client.connect(
            plain_http=self._plain_http, timeouts=Timeouts(*_TIMEOUTS), attempts=_ATTEMPTS
        )

    def _shared(self) -> RegistryClient:
        with self._lock:
            if self._registry is None:
                self._registry = self._open()
            return self._registry

    def _fetch_document(self, client: Client, digest: Digest, size: int, source: Reference) -> None:
        """Fetch an index or manifest; the manifests endpoint wants to know the types that one takes, all of them."""
        _, data = self._shared().resolve(Reference(domain=source.domain, path=source.path, digest=digest))
        client.content.write(f"document-{digest}", data, digest=digest, size=size)

    def _fetch_bytes(self, client: Client, digest: Digest, size: int, source: Reference) -> None:
        descriptor = Descriptor(media_type=OCI_LAYER, digest=digest, size=size)
        say = self._reporter
        try:
            ingest = client.content.writer(
                f"layer-{digest}", size=size, digest=digest, wait=True, shared=True
            )
        except AlreadyExists:  # somebody pulled it meanwhile
            return
        with ingest:
            try:
                resumed = ingest.offset
                self._receive(ingest, source, descriptor)
                try:
                    ingest.commit(size=size, digest=digest)
                except FailedPrecondition:
                    if not resumed:
                        raise
                    ingest.truncate(0)  # what an earlier try had left may have been spoiled
                    self._receive(ingest, source, descriptor)
                    ingest.commit(size=size, digest=digest)
            except AlreadyExists:
                pass
            except (FailedPrecondition, DataLoss):  # nobody is to go on from wrong bytes
                ingest.discard()
                raise
        say.say(Progress(phase="done", digest=digest, received=size, size=size))

    def _receive(self, ingest: Ingest, source: Reference, descriptor: Descriptor) -> None:
        say, size = self._reporter, descriptor.size
        buffer = memoryview(bytearray(min(_CHUNK, max(size, 1))))
        with self._shared().open_blob(source, descriptor, offset=ingest.offset) as stream:
            while count := stream.readinto(buffer):
                ingest.write(buffer[:count])
                if say.due(descriptor.digest):
                    say.say(
                        Progress(
                            phase="downloading",
                            digest=descriptor.digest,
                            received=ingest.offset,
                            size=size,
                        )
                    )

    def _check_alive(self, source: Reference) -> None:
        if self._silent.get(source.domain, 0) >= SILENT_MAX:
            raise Unavailable(f"{source.domain} was silent {SILENT_MAX} times and is not asked any more")

    def _failed(self, source: Reference, error: LamellaError) -> str:
        if isinstance(error, Unavailable):
            self._silent[source.domain] = self._silent.get(source.domain, 0) + 1
        return f"{source.name}: {error.message}"


def sources_of(labels: Iterable[Mapping[str, str]]) -> list[Reference]:
    """Give the repositories that labels of content name, each once, in their order."""
    found: dict[Reference, None] = {}
    for each in labels:
        for key, value in sorted(each.items()):
            if not key.startswith(DISTRIBUTION_SOURCE):
                continue
            for path in value.split(","):
                try:
                    named = Reference.parse(f"{key.removeprefix(DISTRIBUTION_SOURCE)}/{path}")
                except LamellaError:  # somebody else's label
                    continue
                found[Reference(domain=named.domain, path=named.path)] = None
    return list(found)


def image_sources(client: Client, image: Image) -> list[Reference]:
    """Give the repositories that an image came from; where even its target has no row, the one of its name."""
    try:
        labels = [client.content.info(image.digest).labels]
    except NotFound:
        named = Reference.parse(image.name)
        return [Reference(domain=named.domain, path=named.path)]
    with suppress(LamellaError):
        labels.append(client.content.info(image.manifest_descriptor.digest).labels)
    return sources_of(labels)


def merged(*lists: Iterable[Reference]) -> list[Reference]:
    """Put lists together, each repository once."""
    return list(dict.fromkeys(source for each in lists for source in each))
