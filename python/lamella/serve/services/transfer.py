"""``containerd.services.transfer.v1.Transfer``: from a source to a destination in one call.

=================== =================== =======================================================
source              destination
=================== =================== =======================================================
``OCIRegistry``     ``ImageStore``      pull: the library's, which reads each layer once
``ImageStore``      ``OCIRegistry``     push
``ImageStore``      ``ImageStore``      tag
``ImageStore``      ``ImageExportStream`` export: the archive goes to the client over a stream
``ImageImportStream`` ``ImageStore``    import: the archive comes over one
=================== =================== =======================================================

Any other pair is Unimplemented. Progress, questions for credentials, and archives go over streams that the client has opened
(:mod:`lamella.serve.services.streaming`). Credentials come from the client alone, never from this machine's files.
"""

from __future__ import annotations

import base64
import binascii
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING

import msgspec
from google.protobuf.any_pb2 import Any
from google.protobuf.empty_pb2 import Empty

from lamella import oci, platforms
from lamella.digest import Digest, digest_of
from lamella.errors import InvalidArgument, LamellaError, NotFound, Unauthenticated, Unsupported
from lamella.labels import GC_BACK_REF_IMAGE, GC_EXPIRE
from lamella.logs import Log
from lamella.metadata import timestamp
from lamella.reference import Reference, registry_host
from lamella.registry.config import RegistryConfig
from lamella.registry.credentials import Credential, CredentialStore
from lamella.serve.api import transfer_pb2, transfer_types_pb2, types_pb2
from lamella.serve.call import Call
from lamella.serve.messages import any_as, to_descriptor
from lamella.serve.service import Service
from lamella.serve.services.streaming import OpenStream, Streaming, StreamReader, StreamWriter
from lamella.snapshots import SNAPSHOTTERS
from lamella.structs import encode
from lamella.transfer.archives.contents import Contents, Naming

if TYPE_CHECKING:
    from lamella.client import Client
    from lamella.images import Image
    from lamella.policy import Candidate
    from lamella.transfer.progress import Progress

_log = Log("lamella.serve")
ANSWER_SECONDS = 120.0
"""How long a client may take to say who it is: somebody may be typing a password."""
FLUSH_SECONDS = 1.0
_SCHEMES = ("", "http", "https")
_ENDPOINTS = (
    transfer_types_pb2.OCIRegistry,
    transfer_types_pb2.ImageStore,
    transfer_types_pb2.ImageImportStream,
    transfer_types_pb2.ImageExportStream,
)
_EVENTS = {
    "queued": "waiting",
    "waiting": "waiting",
    "downloading": "downloading",
    "uploading": "uploading",
    "checking": "extracting",
    "unpacking": "extracting",
    "mounted": "already exists",
    "exists": "already exists",
    "done": "complete",
}
"""What ctr draws, by the phase of a blob."""


class Transfer(Service):
    """From a source to a destination, each of a type of transfer_types.proto."""

    descriptor = transfer_pb2.DESCRIPTOR.services_by_name["Transfer"]

    def Transfer(self, request: transfer_pb2.TransferRequest, call: Call) -> Empty:
        """Do it. Unsupported for other pairs, NotFound for a stream that is not open; else errors as the library's methods."""
        progress = request.options.progress_stream
        with _telling(self._claim(call, progress) if progress else None, call.client) as tell:
            source, destination = _endpoint(request.source), _endpoint(request.destination)
            match source, destination:
                case transfer_types_pb2.OCIRegistry(), transfer_types_pb2.ImageStore():
                    self._pull(call, source, destination, tell)
                case transfer_types_pb2.ImageStore(), transfer_types_pb2.ImageStore():
                    _tag(call, source, destination)
                case transfer_types_pb2.ImageStore(), transfer_types_pb2.OCIRegistry():
                    self._push(call, source, destination, tell)
                case transfer_types_pb2.ImageStore(), transfer_types_pb2.ImageExportStream():
                    self._export(call, source, destination, tell)
                case transfer_types_pb2.ImageImportStream(), transfer_types_pb2.ImageStore():
                    self._import(call, source, destination, tell)
                case _:
                    raise Unsupported(
                        f"method Transfer not implemented for {request.source.type_url[:200]} "
                        f"to {request.destination.type_url[:200]}"
                    )
        return Empty()

    def _pull(
        self,
        call: Call,
        source: transfer_types_pb2.OCIRegistry,
        store: transfer_types_pb2.ImageStore,
        tell: _Teller,
    ) -> None:
        """Pull, each platform that is asked for.

        An image that is no index comes whatever it is for, and is unpacked if it is for Linux, as with containerd.
        """
        where = f"OCI Registry ({source.reference})"
        tell.status(f"Resolving from {where}")
        reference = Reference.parse(source.reference)
        name = next((name for name, _ in _names(store, None)), "")
        wanted = _platforms(store.platforms)
        unpacks = {str(_platform(each.platform)): each.snapshotter for each in store.unpacks}

        has_one = False

        def resolved(candidate: Candidate) -> None:
            nonlocal has_one
            target = candidate.descriptor  # where it is not there, nothing is pulled
            has_one = target.media_type in oci.MANIFEST_TYPES
            tell.status(f"Pulling from {where}")
            tell.begin(name, target, "fetching image content")

        def pull(snapshotter: str | None, platform: oci.Platform | None) -> Image:
            return self._used(client, snapshotter).images.pull(
                reference,
                name=name,
                platform=platform,
                all_platforms=platform is None,
                metadata=store.all_metadata,
                unpack=snapshotter is not None,
                progress=tell.take,
                policy=resolved,
            )

        with self._with_registry(call, source) as client:
            for platform in (*wanted,) or (None,):
                try:
                    image = pull(unpacks.get(str(platform)), platform)
                except NotFound:
                    if platform is None or not has_one:
                        raise
                    image = pull(None, None)  # and it is unpacked below
                else:
                    unpacks.pop(str(platform), None)
            for other, snapshotter in unpacks.items():
                if not has_one or image.config.os in ("", "linux"):
                    self._used(client, snapshotter).images.unpack(name, platform=other)
        saved = _save(call, store, image.target)
        tell.end()
        for each in saved:
            tell.event("saved", each.name, target=each.target)
        tell.status(f"Completed pull from {where}")

    def _push(
        self,
        call: Call,
        source: transfer_types_pb2.ImageStore,
        registry: transfer_types_pb2.OCIRegistry,
        tell: _Teller,
    ) -> None:
        """Push. Of several platforms all of the image has to be here; without any, what is."""
        where = f"OCI Registry ({registry.reference})"
        image = call.client.images.get(source.name, exact=True)
        reference = Reference.parse(registry.reference)
        wanted = _platforms(source.platforms)
        with self._with_registry(call, registry) as client:
            tell.status(f"Pushing to {where}")
            tell.begin(image.name, image.target, "pushing content", there=False)
            client.images.push(
                image.name,
                reference,
                platform=wanted[0] if len(wanted) == 1 else None,
                all_platforms=len(wanted) > 1,
                progress=tell.take,
            )
        tell.end()
        tell.event("pushed content", image.name, target=image.target)
        tell.status(f"Completed push to {where}")

    def _export(
        self,
        call: Call,
        source: transfer_types_pb2.ImageStore,
        archive: transfer_types_pb2.ImageExportStream,
        tell: _Teller,
    ) -> None:
        stream = self._claim(call, archive.stream)
        with closing(stream):
            tell.status("Exporting")
            if any(each.is_prefix for each in source.extra_references):
                raise Unsupported("prefix lookup on export not implemented")
            names = [*filter(None, [source.name]), *(each.name for each in source.extra_references)]
            images = call.client.images
            references = [_literal(images.get(name, exact=True).name) for name in names]
            writer = StreamWriter(stream)
            images.export(
                references,
                writer,  # type: ignore[arg-type]  # it is only written to
                only=[] if archive.all_platforms else _platforms(archive.platforms),
                all_platforms=archive.all_platforms,
                docker_manifest=not archive.skip_compatibility_manifest,
            )
            writer.finish()
            stream.close(wait=FLUSH_SECONDS)
        tell.status("Completed export")

    def _import(
        self,
        call: Call,
        archive: transfer_types_pb2.ImageImportStream,
        store: transfer_types_pb2.ImageStore,
        tell: _Teller,
    ) -> None:
        """Import. One platform is kept alone; of several, or none, all that the archive has, whichever is unpacked."""
        from lamella.transfer.imports import Import

        with closing(self._claim(call, archive.stream)) as stream:
            tell.status("Importing")
            wanted = _platforms(store.platforms)
            unpacks = {str(_platform(each.platform)): each.snapshotter for each in store.unpacks}
            platform = wanted[0] if len(wanted) == 1 else None
            snapshotter = unpacks.pop(str(platform or platforms.own_platform()), None)
            naming = _Naming(store=store)
            client = self._used(call.client, snapshotter)
            imported = Import(
                client,
                naming=naming,
                platform=platform,
                unpack=snapshotter is not None,
                policy=client.policy,
            ).run(StreamReader(stream))  # type: ignore[arg-type]  # it is only read
        for other, snapshotter in unpacks.items():
            for image in imported:
                self._used(client, snapshotter).images.unpack(image.name, platform=other)
        if archive.force_compress:
            imported = [
                _compressed(client, image) if image.digest in naming.made else image for image in imported
            ]
        if client.durable:
            client.sync()
        with client.database.write():
            for image in imported:
                if call.lease:
                    client.leases.add(call.lease, "content", image.digest)
                _put(call, image.name, image.target, _labels(store, image.name))
        for image in imported:
            tell.event("saved", image.name, target=image.target)
        tell.status("Completed import")

    def _used(self, client: Client, snapshotter: str | None) -> Client:
        """Give the client with a snapshotter; none is the server's own. InvalidArgument for one that is not here."""
        if snapshotter and snapshotter not in SNAPSHOTTERS and not self.server.backend:
            raise InvalidArgument(f"snapshotter not loaded: {snapshotter[:200]}")
        return client.using(snapshotter if snapshotter in SNAPSHOTTERS else None)

    @contextmanager
    def _with_registry(self, call: Call, registry: transfer_types_pb2.OCIRegistry) -> Iterator[Client]:
        """Give the call's client, talking to registries as the client of the service says, and showing it that if it wants."""
        resolver = registry.resolver
        if resolver.default_scheme not in _SCHEMES:
            raise InvalidArgument(f"{resolver.default_scheme[:80]!r} is no scheme of a registry")
        client = call.client
        config = client.registry = client.registry or RegistryConfig()
        credentials: CredentialStore | Mapping[str, Credential] = {}
        if resolver.auth_stream:
            credentials = _AskedFor(self._claim(call, resolver.auth_stream), registry.reference)
        listener = None
        if resolver.http_debug:
            logs = self._claim(call, resolver.logs_stream) if resolver.logs_stream else None
            listener = _Listener(logs, resolver.http_debug)
        with closing(listener) if listener is not None else nullcontext():
            yield client.using(
                registry=msgspec.structs.replace(
                    config,
                    plain_http=config.plain_http or resolver.default_scheme == "http",
                    hosts_dir=resolver.host_dir or config.hosts_dir,
                    headers={**config.headers, **resolver.headers},
                    credentials=credentials,
                    listener=listener,
                )
            )

    def _claim(self, call: Call, id: str) -> OpenStream:
        streaming = next(each for each in self.server.services if isinstance(each, Streaming))
        return streaming.claim(call, id)


def _endpoint(message: Any) -> object:
    """Unpack a source or destination; the Any itself where it is of no type that is known."""
    for kind in _ENDPOINTS:
        found = any_as(message, kind)
        if found is not None:
            return found
    return message


def _platforms(messages: Iterable[types_pb2.Platform]) -> list[oci.Platform]:
    """Give each of the platforms once."""
    return list({encode(each): each for each in map(_platform, messages)}.values())


def _platform(message: types_pb2.Platform) -> oci.Platform:
    return platforms.normalize(
        oci.Platform(
            os=message.os,
            architecture=message.architecture,
            variant=message.variant or None,
            os_version=message.os_version or None,
            os_features=[*message.os_features] or None,
        )
    )


# Images


def _compressed(client: Client, image: Image) -> Image:
    """Compress those layers of an imported image that are not, under the same name; a digest in it becomes the new one."""
    from lamella.transfer.convert import Convert

    converted = Convert(client, image, _literal(image.name), compression="gzip", all_platforms=True).run()
    base, _, digest = image.name.rpartition("@")
    if not base or digest != image.digest:
        return converted
    with client.database.write():
        client.images.remove(image.name)
        client.images.put(f"{base}@{converted.digest}", converted.target)
        return client.images.get(f"{base}@{converted.digest}", exact=True)


def _names(
    store: transfer_types_pb2.ImageStore, target: oci.Descriptor | None
) -> Iterator[tuple[str, dict[str, str]]]:
    """Give the names, with their labels, that a store's message asks for; those with a digest once the ``target`` is known.

    A further one goes with the first, as containerd's image store has it. NotFound where there is none.
    """
    if store.name:
        yield store.name, _labels(store, store.name)
    elif not any(not each.is_prefix or each.add_digest for each in store.extra_references):
        raise NotFound("no image name found")
    for each in store.extra_references:
        if each.add_digest and target is not None:
            name = f"{each.name}@{target.digest}"
        elif not (each.is_prefix or each.add_digest):
            name = each.name
        else:
            continue
        yield name, _labels(store, name)


def _labels(store: transfer_types_pb2.ImageStore, name: str) -> dict[str, str]:
    """Give the labels of one of the images of a store's message."""
    if store.name in ("", name):
        return dict(store.labels)
    return {**store.labels, GC_BACK_REF_IMAGE: store.name, GC_EXPIRE: timestamp()}


def _save(call: Call, store: transfer_types_pb2.ImageStore, target: oci.Descriptor) -> list[Image]:
    """Let all names of a store's message point at a target, which the call's lease keeps, too."""
    with call.client.database.write():
        if call.lease:
            call.client.leases.add(call.lease, "content", target.digest)
        return [_put(call, name, target, labels) for name, labels in _names(store, target)]


def _put(call: Call, name: str, target: oci.Descriptor, labels: dict[str, str]) -> Image:
    images = call.client.images
    if call.lease and GC_EXPIRE in labels:
        call.client.leases.add(call.lease, "images", name)
    try:
        present = images.get(name, exact=True)
    except NotFound:
        return images.create(name, target, labels=labels)
    if (present.target, present.labels) == (target, labels):
        return present
    return images.update(name, target=target, labels=labels)


def _tag(
    call: Call, source: transfer_types_pb2.ImageStore, destination: transfer_types_pb2.ImageStore
) -> None:
    with call.client.database.write():  # so that the source's content cannot go in between
        _save(call, destination, call.client.images.get(source.name, exact=True).target)


class _Literal(Reference, frozen=True):
    """A name as it stands, canonical or none at all."""

    text: str = ""

    @property
    def canonical(self) -> str:
        """Give the name."""
        return self.text


def _literal(name: str) -> _Literal:
    try:
        parsed = Reference.parse(name)
    except InvalidArgument:
        parsed = Reference(domain="", path=name)
    return _Literal(parsed.domain, parsed.path, parsed.tag, parsed.digest, name)


class _Naming(Naming, frozen=True):
    """How a store's message calls the images of an archive: containerd's rules (core/transfer/image, core/images/archive)."""

    store: transfer_types_pb2.ImageStore = transfer_types_pb2.ImageStore()
    made: set[Digest] = set()
    """What the archive had no document of: images and the index of docker's."""

    def choose(self, contents: Contents) -> dict[Reference, oci.Descriptor]:
        """Give names with what they point at, in the archive's order; nothing where nothing has a name."""
        found: dict[Reference, oci.Descriptor] = {}
        if any(self._of_index("")):
            index = _index(contents)
            if contents.index is None:
                self.made.add(index.digest)
            for name in self._of_index(f"@{index.digest}"):
                found[_literal(name)] = index
        for entry in contents.entries:
            names = entry.names
            if contents.index is None:  # a docker-archive, which has them as docker shows them
                self.made.add(entry.target.digest)
                names = [str(Reference.parse(name)) for name in names]
            for name in self._of_entry(entry.target.digest, names, entry.tag):
                found[_literal(name)] = entry.target
        return found

    def _of_index(self, digest: str) -> Iterator[str]:
        if self.store.name:
            yield self.store.name
        for each in self.store.extra_references:
            if each.add_digest:
                yield each.name + digest
            elif not each.is_prefix:
                yield each.name

    def _of_entry(self, digest: Digest, names: Sequence[str], tag: str | None) -> Iterator[str]:
        for each in self.store.extra_references:
            if not each.is_prefix or not each.name:
                continue
            called = [name for name in names if _prefixed(name, each) == name]
            if not names and tag:
                called = [name for name in [_prefixed(tag, each)] if name]
            yield from called
            if each.add_digest and not (called and each.skip_named_digest):
                yield f"{each.name}@{digest}"


def _prefixed(name: str, prefix: transfer_types_pb2.ImageReference) -> str:
    """Put the prefix before what is but a tag; give nothing for a whole name that has another one, unless it may."""
    if not any(mark in name for mark in "/:@"):
        return f"{prefix.name}:{name}"
    is_below = name.startswith(prefix.name) and name[len(prefix.name) :][:1] in ("", "/", ":", "@")
    return name if prefix.allow_overwrite or is_below else ""


def _index(contents: Contents) -> oci.Descriptor:
    """Give the index of all that an archive holds; one is made where it has none."""
    if contents.index is not None:
        return contents.index
    entries = [entry.target for entry in contents.entries]
    data = oci.encode({"schemaVersion": 2, "mediaType": oci.OCI_INDEX, "manifests": entries})
    index = oci.Descriptor(media_type=oci.OCI_INDEX, digest=digest_of(data), size=len(data))
    contents.made[index.digest] = data
    return index


# Credentials


class _AskedFor(CredentialStore):
    """Credentials that a client is asked for over its stream, when a registry wants some."""

    def __init__(self, stream: OpenStream, reference: str) -> None:
        super().__init__(files=[])
        self._stream = stream
        self._reference = reference

    def find(self, domain: str, path: str = "") -> Credential | None:
        """Ask. Unauthenticated when no answer comes, InvalidArgument for one that is none."""
        host = registry_host(domain)
        try:
            self._stream.send(transfer_types_pb2.AuthRequest(host=host, reference=self._reference))
            message = self._stream.receive(ANSWER_SECONDS)
        except LamellaError as error:
            raise Unauthenticated(f"the client gives no credentials for {host}: {error.message}") from None
        if message is None:
            return None
        answer = any_as(message, transfer_types_pb2.AuthResponse)
        if answer is None:
            raise InvalidArgument(f"{message.type_url[:200]!r} came where credentials were expected")
        return _credential(answer)


def _credential(answer: transfer_types_pb2.AuthResponse) -> Credential | None:
    if not answer.secret:
        return None
    match answer.authType:
        case transfer_types_pb2.CREDENTIALS:
            return Credential(username=answer.username, password=answer.secret, source="the client")
        case transfer_types_pb2.REFRESH:
            return Credential(identity_token=answer.secret, source="the client")
        case transfer_types_pb2.HEADER:
            return _from_header(answer.secret)
    return None


def _from_header(header: str) -> Credential:
    """Give the credentials that an Authorization header has. InvalidArgument for another than Basic and Bearer."""
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "bearer" and value:
        return Credential(registry_token=value.strip(), source="the client")
    if scheme.lower() == "basic":
        with suppress(binascii.Error, UnicodeDecodeError):
            username, colon, password = base64.b64decode(value, validate=True).decode().partition(":")
            if colon:
                return Credential(username=username, password=password, source="the client")
    raise InvalidArgument("the header that the client gives for the registry is neither Basic nor Bearer")


# What is said to registries


class _Listener:
    """Shows a client what is said to registries: heads, or a line for each request; into the server's log without a stream.

    A client that does not listen is no reason to stop.
    """

    def __init__(self, stream: OpenStream | None, which: int) -> None:
        self._stream = stream
        self._writer = StreamWriter(stream) if stream is not None else None
        self._heads = which in (transfer_types_pb2.DEBUG, transfer_types_pb2.BOTH)
        self._lines = which in (transfer_types_pb2.TRACE, transfer_types_pb2.BOTH)
        self._lock = threading.Lock()

    def head(self, text: str) -> None:
        """Show the head of a request or an answer."""
        if self._heads:
            self._show(text)

    def line(self, text: str) -> None:
        """Show what came of a request."""
        if self._lines:
            self._show(text + "\n")

    def _show(self, text: str) -> None:
        if self._writer is None:
            _log.debug("%(text)s", text=text)
            return
        with self._lock, suppress(LamellaError):
            self._writer.write(text.encode(errors="replace"))
            self._writer.flush()

    def close(self) -> None:
        """End the stream. Harmless twice."""
        if self._stream is not None:
            self._stream.close(wait=FLUSH_SECONDS)


# Progress


@contextmanager
def _telling(stream: OpenStream | None, client: Client) -> Iterator[_Teller]:
    """Tell a client how far it is, until the end; all of it is on its way then."""
    try:
        yield _Teller(stream, client)
    finally:
        if stream is not None:
            stream.close(wait=FLUSH_SECONDS)


class _Teller:
    """Tells a client what a transfer does: containerd's events, each blob below what leads to it.

    A client that does not listen is no reason to stop.
    """

    def __init__(self, stream: OpenStream | None, client: Client) -> None:
        self._stream = stream
        self._content = client.content
        self._root: tuple[str, oci.Descriptor] | None = None
        self._known: dict[Digest, oci.Descriptor] = {}
        self._parents: dict[Digest, list[str]] = {}
        self._told: set[Digest] = set()
        self._there = True

    def event(
        self,
        event: str,
        name: str = "",
        *,
        parents: Iterable[str] = (),
        progress: int = 0,
        total: int = 0,
        target: oci.Descriptor | None = None,
    ) -> None:
        """Send one event."""
        if self._stream is None:
            return
        message = transfer_types_pb2.Progress(
            event=event, name=name, parents=parents, progress=progress, total=total
        )
        if target is not None:
            message.desc.CopyFrom(to_descriptor(target))
        with suppress(LamellaError):
            self._stream.send(message)

    def status(self, event: str) -> None:
        """Say what the whole does."""
        self.event(event)

    def begin(self, name: str, target: oci.Descriptor, event: str, *, there: bool = True) -> None:
        """Say what is transferred, below whose name all is shown; ``there``: a document of it that is here has arrived."""
        if self._root is None:
            self._root = name, target
            self._there = there
            self.event(event, name, target=target)

    def take(self, progress: Progress) -> None:
        """Pass on what the library reports."""
        if self._stream is None or not progress.digest or self._root is None:
            return
        digest = Digest(progress.digest)
        if digest not in self._parents:
            self._look()
            self._parents.setdefault(digest, [])  # what leads to it may come after it
        blob = self._known.get(digest) or oci.Descriptor(
            media_type=progress.media_type, digest=digest, size=progress.size
        )
        event = _EVENTS.get(progress.phase, progress.phase)
        if event == "complete" and progress.unpacked:
            event = "extracted"
        done = event in ("complete", "extracted", "already exists")
        self._told.add(digest)
        self._blob(event, blob, progress.size if done else progress.received)

    def end(self) -> None:
        """Say that the documents have arrived, as far as that was not said yet."""
        if self._stream is not None:
            self._there = True
            self._look()

    def _blob(self, event: str, blob: oci.Descriptor, done: int) -> None:
        assert self._root is not None
        parents = self._parents.get(blob.digest) or [self._root[0]]
        self.event(event, _key(blob), parents=parents, progress=done, total=blob.size, target=blob)

    def _look(self) -> None:
        """Read what leads to what in the documents that are here by now, and tell of them."""
        if self._root is None:
            return
        name, target = self._root
        waiting = [(target, name)]
        seen: set[Digest] = set()
        while waiting:
            descriptor, parent = waiting.pop(0)
            self._known[descriptor.digest] = descriptor
            parents = self._parents.setdefault(descriptor.digest, [])
            if parent not in parents:
                parents.append(parent)
            is_document = descriptor.media_type in oci.INDEX_TYPES | oci.MANIFEST_TYPES
            is_layer = not is_document and descriptor.media_type not in oci.CONFIG_TYPES
            if is_layer or descriptor.digest in seen or not self._content.exists(descriptor.digest):
                continue
            seen.add(descriptor.digest)
            if self._there and descriptor.digest not in self._told:
                self._told.add(descriptor.digest)
                self._blob("complete", descriptor, descriptor.size)
            elif descriptor.digest not in self._told:
                self._blob("waiting", descriptor, 0)
            if is_document:
                with suppress(LamellaError):
                    data = self._content.read(descriptor.digest)
                    key = _key(descriptor)
                    waiting += [(child, key) for _, child in oci.references(data, descriptor.media_type)]


def _key(descriptor: oci.Descriptor) -> str:
    """Give the name under which containerd's clients show a blob."""
    kind = "layer"
    if descriptor.media_type in oci.INDEX_TYPES:
        kind = "index"
    elif descriptor.media_type in oci.MANIFEST_TYPES:
        kind = "manifest"
    elif descriptor.media_type in oci.CONFIG_TYPES:
        kind = "config"
    return f"{kind}-{descriptor.digest}"
