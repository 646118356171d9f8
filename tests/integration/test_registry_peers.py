"""The registry server and client against the programs of the field: skopeo, crane, docker-registry, OCI's conformance."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from registries import TokenServer, push_image, read_all
from serving import Serve

import lamella
import machine_image
from docker_registry import docker_registry_process
from lamella import oci
from lamella.digest import digest_of
from lamella.errors import Unauthenticated
from lamella.reference import Reference
from lamella.registry.client import RegistryClient
from lamella.registry.config import RegistryConfig
from lamella.registry.credentials import Credential, CredentialStore
from lamella.registry.server import RegistryServer, basic_auth

pytestmark = pytest.mark.integration

ANN = Credential(username="ann", password="hunter2", source="a test")
# What `htpasswd -B` makes of ann's password.
HTPASSWD = "ann:$2y$05$GjowGl.EJeQMGxoYeAu/vuMXAVNeg5hW/.OC52ps.yQhTOcjqROyC\n"


def run(*command: str | Path) -> str:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode:
        pytest.fail(f"{' '.join(map(str, command))} exited with {done.returncode}:\n{done.stderr[-3000:]}")
    return done.stdout


def skopeo_copy(source: str, target: str, *options: str) -> None:
    plain = ["--src-tls-verify=false"] * source.startswith("docker:") + [
        "--dest-tls-verify=false"
    ] * target.startswith("docker:")
    run("skopeo", "copy", "--quiet", *plain, *options, source, target)


@pytest.fixture
def server(serve: Serve) -> Iterator[RegistryServer]:
    with serve() as opened:
        yield opened


@pytest.fixture(scope="session")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an OCI layout of an image with real layers, by skopeo from the in-process registry."""
    folder = tmp_path_factory.mktemp("layout")
    with RegistryServer() as source:
        machine_image.build().push(source.address, "machine", "latest")
        skopeo_copy(f"docker://{source.address}/machine:latest", f"oci:{folder}:latest")
    return folder


def manifest_digest(layout: Path) -> str:
    index = json.loads((layout / "index.json").read_bytes())
    return str(index["manifests"][0]["digest"])


def blobs(folder: Path) -> dict[str, str]:
    return {path.name: digest_of(path.read_bytes()) for path in (folder / "blobs/sha256").iterdir()}


@pytest.mark.needs_program("skopeo")
def test_what_skopeo_pushes_skopeo_pulls_with_the_same_digests(
    server: RegistryServer, layout: Path, tmp_path: Path
) -> None:
    reference = f"docker://{server.address}/team/app:v1"
    skopeo_copy(f"oci:{layout}:latest", reference)
    inspected = json.loads(run("skopeo", "inspect", "--tls-verify=false", reference))
    assert inspected["Digest"] == manifest_digest(layout)
    skopeo_copy(reference, f"oci:{tmp_path}/back:latest")
    assert manifest_digest(tmp_path / "back") == manifest_digest(layout)
    assert blobs(tmp_path / "back") == blobs(layout)


@pytest.mark.needs_program("skopeo")
def test_skopeo_pushes_again_without_sending_a_blob(server: RegistryServer, layout: Path) -> None:
    reference = f"docker://{server.address}/team/app:v1"
    skopeo_copy(f"oci:{layout}:latest", reference)
    server.requests.clear()
    skopeo_copy(f"oci:{layout}:latest", reference)
    assert not [request for request in server.requests if request.method in {"POST", "PATCH"}]


@pytest.mark.needs_program("skopeo")
def test_skopeo_logs_in(layout: Path) -> None:
    with RegistryServer(auth=basic_auth({"ann": "hunter2"})) as server:
        reference = f"docker://{server.address}/team/app:v1"
        skopeo_copy(f"oci:{layout}:latest", reference, "--dest-creds=ann:hunter2")
        with RegistryClient(RegistryConfig(credentials={server.address: ANN})) as client:
            descriptor, _ = client.resolve(Reference.parse(f"{server.address}/team/app:v1"))
        assert descriptor.digest == manifest_digest(layout)


@pytest.mark.needs_program("skopeo")
def test_skopeo_deletes(server: RegistryServer, layout: Path) -> None:
    reference = f"docker://{server.address}/team/app:v1"
    skopeo_copy(f"oci:{layout}:latest", reference)
    run("skopeo", "delete", "--tls-verify=false", reference)
    assert server.storage.repository("team/app").tags() == []


@pytest.mark.needs_program("skopeo", "crane")
def test_crane_validates_what_skopeo_pushed_and_copies_it(
    server: RegistryServer, layout: Path, tmp_path: Path
) -> None:
    reference = f"{server.address}/team/app:v1"
    skopeo_copy(f"oci:{layout}:latest", f"docker://{reference}")
    run("crane", "validate", "--insecure", "--remote", reference)
    run("crane", "copy", "--insecure", reference, f"{server.address}/other/app:v2")
    assert run("crane", "digest", "--insecure", f"{server.address}/other/app:v2").strip() == manifest_digest(
        layout
    )
    assert run("crane", "ls", "--insecure", f"{server.address}/other/app").split() == ["v2"]
    assert sorted(run("crane", "catalog", "--insecure", server.address).split()) == ["other/app", "team/app"]
    run("crane", "pull", "--insecure", "--format=oci", reference, tmp_path / "pulled")
    assert blobs(tmp_path / "pulled") == blobs(layout)


@pytest.mark.needs_program("skopeo", "crane")
def test_crane_pushes_an_index_and_the_client_reads_it(server: RegistryServer, layout: Path) -> None:
    run("crane", "push", "--insecure", "--index", layout, f"{server.address}/team/index:v1")
    run("crane", "validate", "--insecure", "--remote", f"{server.address}/team/index:v1")
    reference = Reference.parse(f"{server.address}/team/index:v1")
    with RegistryClient(RegistryConfig(credentials={})) as client:
        descriptor, data = client.resolve(reference)
        assert descriptor.media_type == oci.OCI_INDEX
        (entry,) = oci.parse_index(data).manifests
        manifest = oci.parse_manifest(client.fetch_document(reference, entry))
        for layer in manifest.layers:
            with client.open_blob(reference, layer) as stream:
                assert digest_of(read_all(stream)) == layer.digest


@pytest.mark.needs_program("skopeo")
def test_skopeo_gets_a_token() -> None:
    with TokenServer({"ann": "hunter2"}) as tokens, RegistryServer(auth=tokens.guard) as server:
        pushed = push_image(server)
        reference = f"docker://{server.address}/team/app:latest"
        inspected = run("skopeo", "inspect", "--raw", "--tls-verify=false", "--creds=ann:hunter2", reference)
        assert digest_of(inspected.encode()) == pushed.digest
        assert tokens.asked[0].authorization == ANN.basic


@pytest.mark.needs_program("skopeo", "docker-registry")
def test_the_client_pulls_from_docker_registry(docker_registry: str, layout: Path) -> None:
    # Other tests have pushed the same layers there in other forms, which skopeo remembers and would take instead.
    target = f"docker://{docker_registry}/registry-peers/app:v1"
    skopeo_copy(f"oci:{layout}:latest", target, "--preserve-digests")
    reference = Reference.parse(f"{docker_registry}/registry-peers/app:v1")
    with RegistryClient(RegistryConfig(credentials={})) as client:
        check_pull(client, reference, layout)
        known = client.resolve(reference, known=lambda digest: digest == manifest_digest(layout))
        assert known[1] is None
        assert known[0].digest == manifest_digest(layout)


def check_pull(client: RegistryClient, reference: Reference, layout: Path) -> None:
    """Pull everything, each blob in a thread and from an offset on, and compare the digests."""
    descriptor, data = client.resolve(reference)
    assert descriptor.digest == manifest_digest(layout)
    manifest = oci.parse_manifest(data)
    client.fetch_document(reference, manifest.config)
    wrong: list[Any] = []

    def fetch(layer: oci.Descriptor, offset: int) -> None:
        try:
            with client.open_blob(reference, layer, offset=offset) as stream:
                rest = read_all(stream)
            whole = (layout / "blobs/sha256" / layer.digest.partition(":")[2]).read_bytes()
            assert rest == whole[offset:]
        except BaseException as error:
            wrong.append(error)

    threads = [
        threading.Thread(target=fetch, args=(layer, offset))
        for layer in manifest.layers
        for offset in (0, layer.size // 2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.needs_program("skopeo", "docker-registry")
def test_the_client_logs_in_to_docker_registry_with_the_file_that_skopeo_wrote(
    layout: Path, tmp_path: Path
) -> None:
    password_file = tmp_path / "htpasswd"
    password_file.write_text(HTPASSWD)
    settings = f"auth: {{htpasswd: {{realm: test, path: {password_file}}}}}\n"
    with docker_registry_process(tmp_path, settings) as address:
        check_login(layout, tmp_path, address)


def check_login(layout: Path, tmp_path: Path, address: str) -> None:
    file = tmp_path / "auth.json"
    run("skopeo", "login", "--tls-verify=false", f"--authfile={file}", "-u", "ann", "-p", "hunter2", address)
    skopeo_copy(f"oci:{layout}:latest", f"docker://{address}/team/app:v1", f"--authfile={file}")
    reference = Reference.parse(f"{address}/team/app:v1")
    with RegistryClient(RegistryConfig(credentials=CredentialStore([file]))) as client:
        check_pull(client, reference, layout)
    with RegistryClient(RegistryConfig(credentials={})) as client, pytest.raises(Unauthenticated):
        client.resolve(reference)
    wrong = Credential(username="ann", password="wrong")
    with (
        RegistryClient(RegistryConfig(credentials={address: wrong})) as client,
        pytest.raises(Unauthenticated),
    ):
        client.resolve(reference)


@pytest.mark.needs_program("oci-conformance")
@pytest.mark.parametrize("kind", ["folder", "store"])
def test_the_conformance_program_of_the_specification_passes_with_everything_on(
    kind: str, client: lamella.Client, tmp_path: Path
) -> None:
    """``dev`` turns on what is not in the latest release of the specification; what is off even then is turned on by name."""
    with RegistryServer(sparse=True, client=client if kind == "store" else None) as server:
        settings = {
            "OCI_REGISTRY": server.address,
            "OCI_TLS": "disabled",
            "OCI_RESULTS_DIR": str(tmp_path),
            "OCI_VERSION": "dev",
            "OCI_DATA_SPARSE": "true",
        }
        done = subprocess.run(
            ["oci-conformance"],
            env=os.environ | settings,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=250,
            check=False,
        )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-3000:]
    configuration, _, _ = done.stdout.partition("Configuration:")[2].partition("Result")
    assert re.findall(r"^ .*\bfalse$", configuration, re.MULTILINE) == []
    cases = ElementTree.parse(tmp_path / "junit.xml").iter("testcase")
    statuses = Counter(case.get("status") for case in cases)
    assert set(statuses) == {"passed"}
    assert statuses["passed"] > 800
