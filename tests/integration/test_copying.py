"""The walk that push, copy, export and import share, between two stores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from registries import push_image

from lamella import Client, Reference, oci
from lamella.digest import digest_of
from lamella.errors import DataLoss, NotFound, ResourceExhausted
from lamella.registry.server import RegistryServer
from lamella.transfer import copying
from lamella.transfer.copying import Copied, Copy
from lamella.transfer.progress import Progress, Reporter
from lamella.transfer.stored import StoreDestination, StoreSource


@pytest.fixture
def clients(tmp_path: Path) -> Any:
    opened = [Client(root=tmp_path / name, state=tmp_path / f"{name}-state") for name in ("here", "there")]
    yield opened
    for client in opened:
        client.close()


def copy(here: Client, there: Client, name: str, progress: Any = None) -> Copied:
    reference = Reference.parse(name)
    source = StoreSource(here)
    root, data = source.resolve(reference)
    assert data is not None
    with there.leases.hold() as lease:
        ends = source, StoreDestination(there, lease.id)
        return Copy(*ends, Reporter(progress)).run(reference, root, data, [reference])


def test_all_that_an_image_leads_to_comes_along_and_survives_collection(clients: list[Client]) -> None:
    here, there = clients
    with RegistryServer() as server:
        push_image(server, layers=3)
        name = f"{server.address}/team/app:latest"
        image = here.images.pull(name, unpack=False)
    seen: list[Progress] = []
    copied = copy(here, there, name, seen.append)
    there.gc()
    assert there.images.get(name).digest == image.digest == copied.descriptor.digest
    assert copied.blobs == {"sent": 4, "mounted": 0, "exists": 0}
    for info in here.content.walk():
        assert there.content.read(info.digest) == here.content.read(info.digest)
    assert {progress.phase for progress in seen} >= {"done"}
    assert copy(here, there, name).blobs == {"sent": 0, "mounted": 0, "exists": 4}


def test_what_refers_to_an_image_comes_along_and_goes_with_it(clients: list[Client]) -> None:
    here, there = clients
    with RegistryServer() as server:
        subject = push_image(server)
        empty = server.push_blob("team/app", b"{}", "application/vnd.oci.empty.v1+json")
        note = server.push_blob("team/app", b"signed", "text/plain")
        manifest = oci.Manifest(config=empty, layers=[note], subject=subject, artifact_type="test/signature")
        referrer = server.push_manifest("team/app", "signature", manifest)
        names = [f"{server.address}/team/app:{tag}" for tag in ("latest", "signature")]
        for name in names:
            here.images.pull(name, unpack=False)
    # the one that only pulled the image and its signature, each by its name, knows nothing of their relation
    source, reference = StoreSource(here), Reference.parse(names[0])
    here.content.update_labels(referrer.digest, {"containerd.io/gc.bref.content.subject": subject.digest})
    root, data = source.resolve(reference)
    assert data is not None
    with there.leases.hold() as lease:
        Copy(source, StoreDestination(there, lease.id), Reporter(None), referrers=True).run(
            reference, root, data, [reference]
        )
    there.gc()
    assert there.content.read(note.digest) == b"signed"
    found = StoreSource(there).referrers(reference, subject.digest)
    assert [(one.digest, one.artifact_type) for one in found] == [(referrer.digest, "test/signature")]
    assert not StoreSource(there).referrers(reference, subject.digest, artifact_type="test/other")
    there.images.remove(names[0])
    there.gc()
    assert not list(there.content.walk())


def test_a_blob_that_is_missing_leaves_no_name(clients: list[Client]) -> None:
    here, there = clients
    with RegistryServer() as server:
        push_image(server)
        name = f"{server.address}/team/app:latest"
        image = here.images.pull(name, unpack=False)
    here.content.delete(image.layers[0].digest)
    with pytest.raises(NotFound):
        copy(here, there, name)
    assert not there.images.list()


def test_a_damaged_blob_is_not_taken(clients: list[Client]) -> None:
    here, there = clients
    with RegistryServer() as server:
        push_image(server)
        name = f"{server.address}/team/app:latest"
        image = here.images.pull(name, unpack=False)
    layer = image.layers[0].digest
    path = here.content.path(layer)
    path.chmod(0o600)
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(DataLoss):
        copy(here, there, name)
    assert not there.images.list()
    assert not there.content.exists(layer)


def test_a_callback_that_raises_ends_it(clients: list[Client]) -> None:
    here, there = clients
    with RegistryServer() as server:
        push_image(server)
        name = f"{server.address}/team/app:latest"
        here.images.pull(name, unpack=False)

    def fail(_: Progress) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        copy(here, there, name, fail)
    assert not there.images.list()


class Documents:
    """A source of nothing but documents, of which it notes the fetched ones."""

    def __init__(self, *documents: bytes) -> None:
        self.documents = {digest_of(data): data for data in documents}
        self.fetched: list[str] = []

    def fetch_document(self, reference: Reference, descriptor: oci.Descriptor) -> bytes:
        self.fetched.append(descriptor.digest)
        return self.documents[descriptor.digest]

    def referrers(self, reference: Reference, digest: str, **_: Any) -> list[oci.Descriptor]:
        return [
            described(data)
            for data in self.documents.values()
            if (s := oci.subject_of(data)) and s.digest == digest
        ]

    def interrupt(self) -> None:
        pass


def described(data: bytes) -> oci.Descriptor:
    return oci.Descriptor(oci.document_type(data, None), digest_of(data), len(data))


@pytest.mark.parametrize("by", ["entries", "referrers"])
def test_documents_that_are_too_much_for_memory_together_are_refused_before_they_are_fetched(
    clients: list[Client], by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = oci.Descriptor(oci.OCI_EMPTY, digest_of(b"{}"), 2)
    index: dict[str, Any] = {"schemaVersion": 2, "mediaType": oci.OCI_INDEX, "manifests": []}
    alone = oci.encode(index)
    subject = described(alone) if by == "referrers" else None
    large = [
        oci.encode(
            {"schemaVersion": 2, "mediaType": oci.OCI_MANIFEST, "config": empty, "layers": [], "subject": subject,
             "annotations": {"filling": f"{number}" * 100_000}}
        )
        for number in range(5)
    ]  # fmt: skip
    root = (
        alone
        if by == "referrers"
        else oci.encode({**index, "manifests": [described(data) for data in large]})
    )
    source: Any = Documents(root, *large)
    monkeypatch.setattr(copying, "DOCUMENTS_SIZE_MAX", 350_000)
    with clients[1].leases.hold() as lease, pytest.raises(ResourceExhausted, match="350000 bytes"):
        Copy(source, StoreDestination(clients[1], lease.id), Reporter(None), referrers=by == "referrers").run(
            Reference.parse("a"), described(root), root, [Reference.parse("a")]
        )
    assert source.fetched == [described(data).digest for data in large[:3]]
    assert not list(clients[1].content.walk())
