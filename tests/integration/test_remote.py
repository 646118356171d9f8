"""What registries have, looked at and managed without a pull: against the in-process registry, scripted ones, and the peers."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from registries import Asked, Reply, ScriptedServer, hosts_folder, push_image

from lamella import Client, oci
from lamella.digest import digest_of
from lamella.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unauthenticated,
    Unsupported,
)
from lamella.registry.config import RegistryConfig, Timeouts
from lamella.registry.credentials import Credential
from lamella.registry.server import RegistryServer, basic_auth
from lamella.remote import Remote

QUICK = RegistryConfig(credentials={}, backoff=0.001, timeouts=Timeouts(5, 5))


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with Client(root=tmp_path / "root", state=tmp_path / "state", registry=QUICK) as opened:
        yield opened


@pytest.fixture
def remote(client: Client) -> Remote:
    return client.remote


@pytest.fixture
def server() -> Iterator[RegistryServer]:
    with RegistryServer() as opened:
        yield opened


def push_index(server: RegistryServer, *platforms: str, tag: str = "latest") -> oci.Descriptor:
    entries = []
    for name in platforms:
        system, architecture = name.split("/")
        settings = {"os": system, "architecture": architecture, "config": {"Env": [f"FOR={name}"]}}
        config = server.push_blob("team/app", json.dumps(settings).encode(), oci.OCI_CONFIG)
        layer = server.push_blob("team/app", random.Random(name).randbytes(5000), oci.OCI_LAYER_GZIP)
        manifest = server.push_manifest("team/app", None, oci.Manifest(config=config, layers=[layer]))
        platform = oci.Platform(os=system, architecture=architecture)
        entries.append(oci.Descriptor(manifest.media_type, manifest.digest, manifest.size, platform=platform))
    return server.push_manifest("team/app", tag, oci.Index(manifests=entries, annotations={"a": "b"}))


def methods(server: RegistryServer) -> list[str]:
    return [f"{asked.method} {asked.path}" for asked in server.requests]


# Looking


def test_a_name_is_resolved_by_one_request_without_a_body(remote: Remote, server: RegistryServer) -> None:
    pushed = push_image(server)
    server.requests.clear()
    assert remote.resolve(f"{server.address}/team/app").digest == pushed.digest
    assert methods(server) == ["HEAD /v2/team/app/manifests/latest"]


def test_an_image_is_described_without_a_layer(
    remote: Remote, client: Client, server: RegistryServer
) -> None:
    pushed = push_image(server, layers=3)
    server.requests.clear()
    found = remote.inspect(f"{server.address}/team/app:latest")
    assert (found.digest, found.target.size, found.index) == (pushed.digest, pushed.size, None)
    assert found.platforms == ["linux/amd64"]
    assert len(methods(server)) == 2
    described = found.inspect()
    image = client.images.pull(f"{server.address}/team/app:latest", unpack=False).inspect()
    of_the_store = {"chain_id", "chain_ids", "labels", "layers_discarded", "created_at", "updated_at"}
    assert {key: value for key, value in described.items() if key != "manifests"} == {
        key: value for key, value in image.items() if key not in of_the_store
    }


def test_of_an_index_all_is_told_and_one_platform_in_full(remote: Remote, server: RegistryServer) -> None:
    index = push_index(server, "linux/amd64", "linux/s390x")
    name = f"{server.address}/team/app:latest"
    found = remote.inspect(name, platform="linux/s390x")
    assert (found.digest, found.platforms) == (index.digest, ["linux/amd64", "linux/s390x"])
    assert found.index is not None
    assert found.index.manifests[1].digest == found.inspect()["manifest"]["digest"]
    assert found.config is not None
    assert found.config.run.env == ["FOR=linux/s390x"]
    assert remote.resolve(name, platform="linux/s390x").digest == found.index.manifests[1].digest
    assert json.loads(remote.config(name, platform="linux/s390x"))["architecture"] == "s390x"
    for raw, expected in (
        (remote.manifest(name), index.digest),
        (remote.manifest(name, platform="linux/s390x"), found.index.manifests[1].digest),
    ):
        assert digest_of(raw) == expected
    with pytest.raises(NotFound, match="riscv64"):
        remote.inspect(name, platform="linux/riscv64")


def test_an_index_without_an_image_for_this_machine_is_told_all_the_same(
    remote: Remote, server: RegistryServer
) -> None:
    push_index(server, "plan9/mips")
    described = remote.inspect(f"{server.address}/team/app").inspect()
    assert described["platforms"] == ["plan9/mips"]
    assert described["index_annotations"] == {"a": "b"}
    assert (described["manifest"], described["size"], described["config"]) == (None, None, None)


def test_an_artifact_is_told_by_its_type(remote: Remote, server: RegistryServer) -> None:
    subject = push_image(server)
    empty = server.push_blob("team/app", b"{}", oci.OCI_EMPTY)
    manifest = oci.Manifest(config=empty, layers=[empty], subject=subject, artifact_type="test/one")
    server.push_manifest("team/app", "note", manifest)
    described = remote.inspect(f"{server.address}/team/app:note").inspect()
    assert (described["artifact_type"], described["config"]) == ("test/one", None)
    assert described["subject"]["digest"] == subject.digest


def test_tags_and_repositories_are_listed_page_by_page(
    remote: Remote, server: RegistryServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lamella.registry.client.PAGE", 2)
    for name in ("a", "b", "c/d", "e", "f"):
        push_image(server, name, layers=0)
    for tag in ("1", "2", "3"):
        push_image(server, "a", tag, layers=0)
    assert remote.repositories(server.address) == ["a", "b", "c/d", "e", "f"]
    assert remote.tags(f"{server.address}/a") == ["1", "2", "3", "latest"]
    with pytest.raises(NotFound):
        remote.tags(f"{server.address}/nothing")


@pytest.mark.parametrize("name", ["team/app:latest", "team/app:1", "team/app@" + digest_of(b"")])
def test_a_name_of_an_image_is_no_repository(remote: Remote, name: str) -> None:
    with pytest.raises(InvalidArgument, match="is an image"):
        remote.tags(f"localhost:1/{name}")


@pytest.mark.parametrize("status", [404, 405, 501])
def test_a_registry_that_does_not_list_says_so(remote: Remote, status: int) -> None:
    with (
        ScriptedServer(lambda _: Reply(status)) as scripted,
        pytest.raises(Unsupported, match="does not list its repositories"),
    ):
        remote.repositories(scripted.address)
    with pytest.raises(InvalidArgument, match="not a registry"):
        remote.repositories("localhost:1/team/app")


def test_a_list_that_breaks_off_is_read_again(remote: Remote) -> None:
    answers = iter([Reply(200, {"Content-Length": "100"}, b'{"tags":['), Reply(200, {}, b'{"tags":["1"]}')])
    with ScriptedServer(lambda _: next(answers)) as scripted:
        assert remote.tags(f"{scripted.address}/team/app") == ["1"]


# Tagging


def test_a_tag_is_set_by_the_manifest_alone(remote: Remote, server: RegistryServer) -> None:
    one, two = push_image(server, tag="1"), push_image(server, tag="2")
    server.requests.clear()
    pushed = remote.tag(f"{server.address}/team/app:1", "2", "stable")
    assert pushed.digest == one.digest != two.digest
    assert pushed.names == [f"{server.address}/team/app:{tag}" for tag in ("2", "stable")]
    assert {asked.method for asked in server.requests} == {"GET", "PUT"}
    repository = server.storage.repository("team/app")
    assert {repository.manifest(tag).digest for tag in ("1", "2", "stable")} == {one.digest}
    by_digest = f"{server.address}/team/app@{two.digest}"
    assert remote.tag(by_digest, "2").digest == repository.manifest("2").digest == two.digest


def test_an_index_is_tagged_as_a_whole(remote: Remote, server: RegistryServer) -> None:
    index = push_index(server, "linux/amd64", "linux/s390x")
    assert remote.tag(f"{server.address}/team/app", "all").descriptor == index


def test_what_is_no_tag_is_refused_before_anything_is_asked(remote: Remote) -> None:
    with pytest.raises(InvalidArgument, match="not a tag"):
        remote.tag("localhost:1/team/app:1", "ok", "not a tag")
    with pytest.raises(InvalidArgument):
        remote.tag("localhost:1/team/app:1")


def test_what_is_written_is_read_where_it_is_written_to_and_not_from_a_mirror(
    client: Client, server: RegistryServer, tmp_path: Path
) -> None:
    new = push_image(server, tag="1")
    with RegistryServer() as mirror:
        push_image(mirror, tag="1", layers=1)
        text = f'server = "http://{server.address}"\n[host."http://{mirror.address}"]\ncapabilities = ["pull", "resolve"]\n'
        client.registry = RegistryConfig(
            credentials={}, hosts_dir=hosts_folder(tmp_path / "hosts", "registry.test:5000", text)
        )
        name = "registry.test:5000/team/app:1"
        assert client.remote.resolve(name).digest != new.digest
        assert client.remote.tag(name, "2").digest == new.digest
        client.remote.delete(name, manifest=True)
        assert mirror.storage.repository("team/app").tags() == ["1"]
    assert server.storage.repository("team/app").tags() == []


# Deleting


def test_a_tag_goes_alone_and_a_manifest_with_all_its_tags(remote: Remote, server: RegistryServer) -> None:
    for tag in ("1", "3"):
        push_image(server, tag=tag)
    name = f"{server.address}/team/app"
    remote.tag(f"{name}:1", "2", "4")
    repository = server.storage.repository("team/app")
    remote.delete(f"{name}:2")
    assert repository.tags() == ["1", "3", "4"]
    remote.delete(f"{name}:1", manifest=True)
    assert repository.tags() == ["3"]
    digest = repository.manifest("3").digest
    with pytest.raises(FailedPrecondition):
        remote.delete(f"{name}:3@{digest_of(repository.manifest('3').data, 'sha512')[:-1]}0")
    remote.delete(f"{name}:3@{digest}")
    assert repository.tags() == []
    with pytest.raises(NotFound):
        remote.delete(f"{name}:3")


def test_latest_is_not_deleted_unless_it_is_named(remote: Remote, server: RegistryServer) -> None:
    push_image(server)
    with pytest.raises(InvalidArgument, match="does not say which") as raised:
        remote.delete(f"{server.address}/team/app")
    assert "team/app:latest" in (raised.value.hint or "")
    assert server.storage.repository("team/app").tags() == ["latest"]


def test_who_may_not_is_told_apart_from_a_registry_that_does_not(client: Client, tmp_path: Path) -> None:
    with RegistryServer(auth=basic_auth({"ann": "hunter2"})) as server:
        name = f"{server.address}/team/app:1"
        push_image(server, tag="1")
        for call in (client.remote.inspect, client.remote.delete, client.remote.tags):
            with pytest.raises(Unauthenticated) as raised:
                call(name if call != client.remote.tags else f"{server.address}/team/app")
            assert "lamella login" in (raised.value.hint or "")
        ann = Credential(username="ann", password="hunter2")
        client.registry = RegistryConfig(credentials={server.address: ann})
        assert client.remote.repositories(server.address) == ["team/app"]
        client.remote.delete(name)
    with RegistryServer(read_only=True) as server:
        push_image(server, tag="1")
        for change in (
            client.remote.delete,
            lambda name: client.remote.delete(name, manifest=True),
            lambda name: client.remote.tag(name, "2"),
        ):
            with pytest.raises(Unsupported, match="read-only"):
                change(f"{server.address}/team/app:1")


@pytest.mark.parametrize("first", [True, False])
def test_a_registry_that_takes_a_tag_for_a_wrong_digest_deletes_manifests_alone(
    client: Client, first: bool
) -> None:
    """As docker-registry answers; whether or not it is the first that is asked of it, when also the scheme is found out."""
    refusal = (
        b'{"errors":[{"code":"DIGEST_INVALID","message":"provided digest did not match uploaded content"}]}'
    )

    def script(asked: Asked) -> Reply:
        return Reply(200, {}, b'{"tags":[]}') if asked.method == "GET" else Reply(400, {}, refusal)

    from lamella.reference import Reference

    with ScriptedServer(script) as scripted, client.connect() as registry:
        reference = Reference.parse(f"{scripted.address}/team/app:1")
        if not first:
            registry.tags(reference)
        with pytest.raises(Unsupported) as raised:
            registry.delete(reference)
    assert "--manifest" in (raised.value.hint or "")


# With docker-registry, crane and skopeo


def run(*command: str) -> str:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode:
        pytest.fail(f"{' '.join(command)} exited with {done.returncode}:\n{done.stderr[-3000:]}")
    return done.stdout


def crane(*words: str) -> str:
    return run("crane", words[0], "--insecure", *words[1:])


@pytest.mark.integration
@pytest.mark.needs_program("crane", "skopeo", "docker-registry")
def test_all_of_it_is_as_crane_and_skopeo_tell_it(
    client: Client, docker_registry: str, small_image: str, require_program: Callable[[str], str]
) -> None:
    name = f"{docker_registry}/remote/app"
    client.images.copy(small_image, f"{name}:1", tags=["2"])
    remote = client.remote
    assert remote.resolve(f"{name}:1").digest == crane("digest", f"{name}:1").strip()
    assert remote.manifest(f"{name}:1").decode() == crane("manifest", f"{name}:1")
    assert remote.config(f"{name}:1").decode() == crane("config", f"{name}:1")
    seen: dict[str, Any] = json.loads(run("skopeo", "inspect", "--tls-verify=false", f"docker://{name}:1"))
    described = remote.inspect(f"{name}:1").inspect()
    assert (described["digest"], [layer["digest"] for layer in described["layers"]]) == (
        seen["Digest"],
        seen["Layers"],
    )
    assert described["platform"] == f"{seen['Os']}/{seen['Architecture']}"
    remote.tag(f"{name}:2", "stable")
    assert sorted(remote.tags(name)) == sorted(crane("ls", name).split()) == ["1", "2", "stable"]
    listed = json.loads(run("skopeo", "list-tags", "--tls-verify=false", f"docker://{name}"))["Tags"]
    assert sorted(listed) == ["1", "2", "stable"]
    assert remote.repositories(docker_registry) == crane("catalog", docker_registry).split()
    with pytest.raises(Unsupported) as raised:
        remote.delete(f"{name}:2")
    assert "--manifest" in (raised.value.hint or "")
    remote.delete(f"{name}:2", manifest=True)
    with pytest.raises(NotFound):
        remote.inspect(f"{name}:1")
