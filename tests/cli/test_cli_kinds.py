"""Every kind of content through the command, with docker-registry on the other side."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from lamella import Reference, oci
from lamella.digest import digest_of
from lamella.registry.client import RegistryClient
from lamella.registry.config import RegistryConfig
from lamella.structs import convert, replace
from lamella.transfer.stored import FileReader
from layers import Built, file, tar

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from program import Program

pytestmark = [pytest.mark.privileged, pytest.mark.rootless, pytest.mark.needs_program("docker-registry")]

SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"


class Repository:
    """A repository of docker-registry, filled by our own client."""

    def __init__(self, client: RegistryClient, name: str, folder: Path) -> None:
        self.name = name
        self._client = client
        self._folder = folder

    def blob(
        self, data: bytes, /, media_type: str = "application/octet-stream", **fields: Any
    ) -> oci.Descriptor:
        descriptor = oci.Descriptor(media_type, digest_of(data), len(data), **fields)
        path = self._folder / descriptor.digest
        path.write_bytes(data)
        bare = oci.Descriptor(media_type, descriptor.digest, descriptor.size)
        self._client.put_blob(
            Reference.parse(self.name), bare, lambda offset: FileReader(path.open("rb"), bare, offset)
        )
        return descriptor

    def document(self, tag: str, document: dict[str, Any] | bytes) -> oci.Descriptor:
        data = document if isinstance(document, bytes) else oci.encode({"schemaVersion": 2, **document})
        descriptor = oci.Descriptor(oci.document_type(data, None), digest_of(data), len(data))
        self._client.put_manifest(Reference.parse(self.name), descriptor, data, [tag])
        return descriptor

    def image(self, tag: str, **platform: Any) -> oci.Descriptor:
        made = Built(tar(file("platform", repr(platform).encode())))
        made.platform = platform or made.platform
        for data in (*made.layers, made.config):
            self.blob(data)
        described = self.document(tag, made.manifest)
        parsed = convert(platform, oci.Platform) if platform else oci.Platform(**made.platform)
        return replace(described, platform=parsed)


@pytest.fixture
def repository(docker_registry: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Repository]:
    name = f"{docker_registry}/kinds/{digest_of(request.node.name.encode())[7:20]}"
    (tmp_path / "sent").mkdir()
    with RegistryClient(RegistryConfig(credentials={})) as client:
        yield Repository(client, name, tmp_path / "sent")


def test_an_artifact_as_oras_makes_it_is_pulled_listed_read_copied_and_exported(
    lamella: Program, repository: Repository, tmp_path: Path
) -> None:
    titles = {"Chart.yaml": b"name: app\n", "data.bin": bytes(range(256)) * 300}
    layers = [
        repository.blob(
            data, "application/vnd.foreign-aid+any", annotations={"org.opencontainers.image.title": title}
        )
        for title, data in titles.items()
    ]
    document = {
        "mediaType": oci.OCI_MANIFEST,
        "artifactType": "application/vnd.acme.thing",
        "config": repository.blob(b"{}", oci.OCI_EMPTY, data="e30="),
        "layers": layers,
        "annotations": {"org.opencontainers.image.created": "2024-01-01T00:00:00Z"},
    }
    thing = repository.document("1", document)
    name = f"{repository.name}:1"
    refused = lamella("pull", name)
    assert (refused.status, "'application/vnd.acme.thing'" in refused.err, "--no-unpack" in refused.err) == (
        1,
        True,
        True,
    )
    lamella("pull", "--no-unpack", name).ok()
    (row,) = lamella("--json", "images", "ls").ok().document
    assert (row["digest"], row["platforms"], row["size"]) == (
        thing.digest,
        [],
        thing.size + 2 + sum(map(len, titles.values())),
    )
    shown = lamella("images", "inspect", name).ok().document
    assert (shown["artifact_type"], shown["annotations"]) == (
        document["artifactType"],
        document["annotations"],
    )
    read = {
        layer["annotations"]["org.opencontainers.image.title"]: lamella(
            "content", "get", layer["digest"], "-o", str(tmp_path / "out")
        ).ok()
        and (tmp_path / "out").read_bytes()
        for layer in shown["layers"]
    }
    assert read == titles
    assert "artifact" in lamella("run", "--rm", name, "true").err
    assert (
        lamella("--json", "push", name, f"{repository.name}-pushed:1").ok().document["digest"] == thing.digest
    )
    assert (
        lamella("--json", "copy", name, f"{repository.name}-copied:1").ok().document["digest"] == thing.digest
    )
    assert (
        "docker-archive" in lamella("export", "--format", "docker", "-o", str(tmp_path / "a.tar"), name).err
    )
    lamella("export", "-o", str(tmp_path / "a.tar"), name).ok()
    lamella("images", "rm", "--sync", name).ok()
    assert lamella("--json", "content", "ls").ok().document == []
    (row,) = lamella("--json", "import", str(tmp_path / "a.tar")).ok().document
    assert (row["digest"], row["unpacked"]) == (thing.digest, False)


def test_several_platforms_are_pulled_by_one_command_and_an_index_shows_its_annotations(
    lamella: Program, repository: Repository
) -> None:
    entries = [
        repository.image("v6", os="linux", architecture="arm", variant="v6"),
        repository.image("v7", os="linux", architecture="arm", variant="v7"),
        repository.image("huge", **{"os": "linux", "architecture": "s390x", "os.features": ["huge"]}),
        repository.image("old", **{"os": "windows", "architecture": "amd64", "os.version": "10.0.17763.2"}),
        repository.image("new", **{"os": "windows", "architecture": "amd64", "os.version": "10.0.20348.9"}),
    ]
    inner = repository.document("inner", {"mediaType": oci.OCI_INDEX, "manifests": entries})
    repository.document(
        "all",
        {"mediaType": oci.OCI_INDEX, "manifests": [inner, *entries], "annotations": {"of": "the index"}},
    )
    name = f"{repository.name}:all"
    wanted = ["linux/arm/v6", "linux/arm", "linux(+huge)/s390x", "windows(10.0.26100)/amd64"]
    options = [word for platform in wanted for word in ("--platform", platform)]
    lamella("pull", "--no-unpack", *options, name).ok()
    shown = lamella("images", "inspect", name).ok().document
    assert shown["platforms"] == ["linux/arm/v6", "linux/arm/v7", "linux/s390x", "windows/amd64"]
    assert shown["index_annotations"] == {"of": "the index"}
    here = {row["digest"] for row in lamella("--json", "content", "ls").ok().document}
    assert {entry.digest for entry in entries} & here == {entries[n].digest for n in (0, 1, 2, 4)}
    for platform in ("linux/s390x", "windows(10.0.14393)/amd64", "linux/arm/v5"):
        assert (
            f"no manifest for {platform}" in lamella("pull", "--no-unpack", "--platform", platform, name).err
        )


@pytest.mark.parametrize("says", ["type", "content"])
def test_schema_1_is_refused_by_name(lamella: Program, says: str) -> None:
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    data = json.dumps({"schemaVersion": 1, "name": "a", "tag": "1", "fsLayers": [], "history": []}).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", SCHEMA1 if says == "type" else "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            for command in (["pull"], ["run", "--rm"]):
                refused = lamella(*command, f"127.0.0.1:{server.server_port}/a:1")
                assert refused.status != 0 and "Docker schema 1" in refused.err
            copied = lamella("copy", f"127.0.0.1:{server.server_port}/a:1", "127.0.0.1:1/a:1")
            assert "Docker schema 1" in copied.err
        finally:
            server.shutdown()
            thread.join()
