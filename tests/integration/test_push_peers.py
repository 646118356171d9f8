"""What lamella pushes the programs of the field take, and lamella what they push, by docker-registry in all its forms.

Each program finds its credentials and authorities as its users give them to it: in docker's file and in the environment.
"""

from __future__ import annotations

import base64
import json
import os
import resource
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority
from registries import Issuer, hosts_folder

import machine_image
import systems
from docker_registry import docker_registry_process
from lamella import Client, Image, oci
from lamella.registry.config import RegistryConfig
from lamella.registry.credentials import CredentialStore
from lamella.registry.server import RegistryServer

pytestmark = [pytest.mark.integration, pytest.mark.needs_program("docker-registry", "crane", "skopeo")]

KINDS = ("plain", "htpasswd", "token", "tls")
REPOSITORY = Path(__file__).resolve().parents[2]
# What `htpasswd -B` makes of ann's password.
HTPASSWD = "ann:$2y$05$GjowGl.EJeQMGxoYeAu/vuMXAVNeg5hW/.OC52ps.yQhTOcjqROyC\n"


class Registry:
    """A docker-registry, and how each program gets there."""

    def __init__(self, kind: str, address: str, folder: Path) -> None:
        self.address = address
        self._folder = folder
        self._plain = [] if kind == "tls" else ["--tls-verify=false"]
        file = folder / "config.json"
        login = base64.b64encode(b"ann:hunter2").decode()
        file.write_text(json.dumps({"auths": {address: {"auth": login}}} if kind != "plain" else {}))
        self.environ = os.environ | {"DOCKER_CONFIG": str(folder), "REGISTRY_AUTH_FILE": str(file)}
        self.config = RegistryConfig(credentials=CredentialStore([file]))
        if kind == "tls":
            self.ca = folder / "authority.pem"
            self.environ["SSL_CERT_FILE"] = str(self.ca)
            self.config = RegistryConfig(credentials=CredentialStore([file]), ca=str(self.ca))

    def run(self, *command: str | Path) -> str:
        done = subprocess.run(
            command,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if done.returncode:
            pytest.fail(
                f"{' '.join(map(str, command))} exited with {done.returncode}:\n{done.stderr[-3000:]}"
            )
        return done.stdout.strip()

    def crane(self, *words: str | Path) -> str:
        return self.run("crane", "--insecure", *words)

    def skopeo(self, verb: str, *words: str | Path, side: str = "") -> str:
        plain = [f"--{side}{option[2:]}" for option in self._plain]
        return self.run("skopeo", verb, *plain, *words)

    def podman(self, *words: str | Path) -> str:
        return self._stored("podman", "overlay", ["--runtime=runc", "--events-backend=none"], words)

    def buildah(self, *words: str | Path) -> str:
        return self._stored("buildah", "vfs", [], words)

    def _stored(self, program: str, driver: str, how: list[str], words: Any) -> str:
        store = self._folder / program
        where = [f"--root={store}/root", f"--runroot={store}/run", f"--storage-driver={driver}"]
        if program == "podman":
            where += [f"--tmpdir={store}/tmp", "--cgroup-manager=cgroupfs"]
        verb, *rest = words
        return self.run(
            program, *where, *how, verb, *(self._plain if verb in {"pull", "push", "from"} else []), *rest
        )


def opened(kind: str, folder: Path) -> Iterator[Registry]:
    """Run a docker-registry of a kind in a folder."""
    if kind == "token":
        with Issuer(folder) as issuer, docker_registry_process(folder, issuer.settings) as address:
            yield Registry(kind, address, folder)
        return
    settings = http = ""
    if kind == "htpasswd":
        (folder / "htpasswd").write_text(HTPASSWD)
        settings = f"auth: {{htpasswd: {{realm: test, path: {folder}/htpasswd}}}}\n"
    if kind == "tls":
        pair = Authority(folder).issue("registry")
        http = f", tls: {{certificate: {pair.certificate}, key: {pair.key}}}"
    with docker_registry_process(folder, settings, http=http) as address:
        yield Registry(kind, address, folder)


@pytest.fixture(params=KINDS)
def registry(request: pytest.FixtureRequest) -> Iterator[Registry]:
    with tempfile.TemporaryDirectory() as folder:  # a short path, which podman needs
        yield from opened(request.param, Path(folder))
        systems.end_pause(Path(folder, "podman/tmp"))


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory, require_program: Callable[[str], str]) -> Path:
    """The machine's image as an OCI layout, tag v1: three layers, a shell that runs."""
    require_program("skopeo")
    folder = tmp_path_factory.mktemp("layout")
    with RegistryServer() as server:
        machine_image.build().push(server.address, "machine", "v1")
        source = f"docker://{server.address}/machine:v1"
        subprocess.run(
            ["skopeo", "copy", "--quiet", "--src-tls-verify=false", source, f"oci:{folder}:v1"], check=True
        )
    return folder


@pytest.fixture
def client(tmp_path: Path, registry: Registry) -> Iterator[Client]:
    with Client(tmp_path / "root", tmp_path / "state", registry=registry.config) as opened_client:
        yield opened_client


@pytest.fixture
def pushed(client: Client, layout: Path, registry: Registry) -> tuple[str, str]:
    """What lamella pushed: the name and the digest."""
    client.images.import_(layout, base_name="machine", unpack=False)
    done = client.images.push("machine:v1", f"{registry.address}/team/app:v1", tags=["stable"])
    return done.names[0], done.digest


def digest_of_layout(layout: Path) -> str:
    return str(json.loads((layout / "index.json").read_bytes())["manifests"][0]["digest"])


def runs(client: Client, image: Image) -> bool:
    return client.containers.run(image, ["/bin/sh", "-c", "echo ran"], remove=True).stdout == b"ran\n"


# What lamella pushes


def test_crane_validates_and_skopeo_reads_what_was_pushed(
    pushed: tuple[str, str], client: Client, layout: Path, registry: Registry, tmp_path: Path
) -> None:
    name, digest = pushed
    assert digest == digest_of_layout(layout)
    registry.crane("validate", "--remote", name)
    assert (
        registry.crane("digest", name)
        == registry.crane("digest", f"{registry.address}/team/app:stable")
        == digest
    )
    seen = json.loads(registry.skopeo("inspect", f"docker://{name}"))
    assert (seen["Digest"], sorted(seen["RepoTags"])) == (digest, ["stable", "v1"])
    registry.skopeo("copy", "--quiet", f"docker://{name}", f"oci:{tmp_path}/back:v1", side="src-")
    assert sorted(path.name for path in (tmp_path / "back/blobs/sha256").iterdir()) == sorted(
        path.name for path in (layout / "blobs/sha256").iterdir()
    )
    again = client.images.push("machine:v1", name)
    assert (again.digest, again.sent_bytes) == (digest, 0)


@pytest.mark.privileged
@pytest.mark.rootless
@pytest.mark.needs_program("podman", "conmon", "runc")
def test_podman_pulls_and_runs_what_was_pushed(pushed: tuple[str, str], registry: Registry) -> None:
    name, digest = pushed
    registry.podman("pull", "--quiet", name)
    assert json.loads(registry.podman("image", "inspect", name))[0]["Digest"] == digest
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    limits = ["--ulimit", f"nofile={limit}:{limit}", "--ulimit", "nproc=1024:1024", "--network=none"]
    assert registry.podman("run", "--rm", *limits, name, "/bin/sh", "-c", "echo ran") == "ran"
    registry.podman("rmi", "--all", "--force")


@pytest.mark.privileged
@pytest.mark.rootless
@pytest.mark.needs_program("buildah")
def test_buildah_builds_on_what_was_pushed(
    pushed: tuple[str, str], client: Client, registry: Registry, tmp_path: Path
) -> None:
    name, digest = pushed
    (tmp_path / "added").write_text("by buildah\n")
    container = registry.buildah("from", "--quiet", name)
    assert json.loads(registry.buildah("inspect", container))["FromImageDigest"] == digest
    registry.buildah("copy", "--quiet", container, tmp_path / "added", "/added")
    registry.buildah("commit", "--quiet", container, "localhost/built:v1")
    registry.buildah("push", "--quiet", "localhost/built:v1", f"docker://{registry.address}/team/built:v1")
    registry.buildah("rm", container)
    registry.buildah("rmi", "--all", "--force")
    image = client.images.pull(f"{registry.address}/team/built:v1")
    assert image.diff_ids[:3] == client.images.get("machine:v1").diff_ids
    assert client.containers.run(image, ["/bin/cat", "/added"], remove=True).stdout == b"by buildah\n"


# What others push


def by_crane(registry: Registry, layout: Path, name: str) -> str:
    return registry.crane("push", layout, name).rpartition("@")[2]


def by_skopeo(registry: Registry, layout: Path, name: str) -> str:
    digest = layout.parent / "digest"
    registry.skopeo(
        "copy", "--quiet", f"--digestfile={digest}", f"oci:{layout}:v1", f"docker://{name}", side="dest-"
    )
    return digest.read_text().strip()


def by_skopeo_as_docker(registry: Registry, layout: Path, name: str) -> str:
    digest = layout.parent / "digest"
    options = ("--quiet", "--format=v2s2", f"--digestfile={digest}")
    registry.skopeo("copy", *options, f"oci:{layout}:v1", f"docker://{name}", side="dest-")
    return digest.read_text().strip()


def by_podman(registry: Registry, layout: Path, name: str) -> str:
    digest = layout.parent / "digest"
    loaded = registry.podman("pull", "--quiet", f"oci:{layout}:v1")
    registry.podman("push", "--quiet", f"--digestfile={digest}", loaded, f"docker://{name}")
    registry.podman("rmi", "--all", "--force")
    return digest.read_text().strip()


def by_buildah(registry: Registry, layout: Path, name: str) -> str:
    digest = layout.parent / "digest"
    loaded = registry.buildah("pull", "--quiet", f"oci:{layout}:v1")
    registry.buildah("push", "--quiet", f"--digestfile={digest}", loaded, f"docker://{name}")
    registry.buildah("rmi", "--all", "--force")
    return digest.read_text().strip()


def by_umoci(registry: Registry, layout: Path, name: str) -> str:
    """Let umoci change the image, since it knows no registries, and skopeo carry it there."""
    changed = layout.parent / "changed"
    registry.run("cp", "-r", layout, changed)
    registry.run("umoci", "config", "--image", f"{changed}:v1", "--config.label", "by=umoci")
    registry.run("umoci", "gc", "--layout", changed)
    return by_skopeo(registry, changed, name)


WRITERS = [by_crane, by_skopeo, by_skopeo_as_docker, by_podman, by_buildah, by_umoci]


@pytest.mark.privileged
@pytest.mark.rootless
@pytest.mark.needs_program("podman", "conmon", "runc", "buildah", "umoci")
@pytest.mark.parametrize("write", WRITERS)
def test_what_others_push_is_pulled_and_runs(
    write: Callable[[Registry, Path, str], str],
    client: Client,
    registry: Registry,
    layout: Path,
    tmp_path: Path,
) -> None:
    mine = tmp_path / "mine"
    registry.run("cp", "-r", layout, mine)
    digest = write(registry, mine, f"{registry.address}/team/theirs:v1")
    image = client.images.pull(f"{registry.address}/team/theirs:v1")
    assert image.digest == digest == registry.crane("digest", f"{registry.address}/team/theirs:v1")
    config = oci.parse_config((layout / "blobs/sha256" / config_of(layout)).read_bytes())
    assert image.diff_ids == config.rootfs.diff_ids
    assert runs(client, image)
    # And on to the next repository, as it is.
    assert client.images.push(image.name, f"{registry.address}/team/mine:v1").digest == digest
    registry.crane("validate", "--remote", f"{registry.address}/team/mine:v1")


def config_of(layout: Path) -> str:
    manifest = (layout / "blobs/sha256" / digest_of_layout(layout).partition(":")[2]).read_bytes()
    return oci.parse_manifest(manifest).config.digest.partition(":")[2]


# Between registries


@pytest.mark.parametrize(
    ("registry", "there"),
    [("htpasswd", "token"), ("tls", "htpasswd"), ("token", "plain")],
    indirect=["registry"],
)
def test_a_copy_uses_the_credentials_of_each_end(
    there: str, pushed: tuple[str, str], registry: Registry, tmp_path: Path
) -> None:
    name, digest = pushed
    folder = tmp_path / "there"
    folder.mkdir()
    for other in opened(there, folder):
        both = tmp_path / "both.json"
        auths = [
            json.loads((Path(one.environ["DOCKER_CONFIG"]) / "config.json").read_bytes())
            for one in (registry, other)
        ]
        both.write_text(
            json.dumps({"auths": {k: v for one in auths for k, v in one.get("auths", {}).items()}})
        )
        config = RegistryConfig(credentials=CredentialStore([both]), ca=registry.config.ca)
        with Client(tmp_path / "other", tmp_path / "other-state", registry=config) as client:
            target = f"{other.address}/copied/app:v1"
            copied = client.images.copy(name, target, tags=["2", "3"])
            assert (copied.digest, copied.blobs["sent"]) == (digest, 4)
            assert not [*client.content.walk(), *client.images.list(), *client.content.ingests()]
        for tag in ("v1", "2", "3"):
            assert other.crane("digest", f"{other.address}/copied/app:{tag}") == digest
        other.crane("validate", "--remote", target)


@pytest.mark.parametrize("registry", ["plain"], indirect=True)
def test_a_pull_through_mirror_gives_what_was_pushed_behind_it_and_gets_no_push(
    pushed: tuple[str, str], registry: Registry, tmp_path: Path
) -> None:
    _, digest = pushed
    with docker_registry_process(
        tmp_path / "mirror", f"proxy: {{remoteurl: 'http://{registry.address}'}}\n"
    ) as mirror:
        text = f'server = "http://{registry.address}"\n[host."http://{mirror}"]\ncapabilities = ["pull", "resolve"]\n'
        config = RegistryConfig(
            credentials={}, hosts_dir=hosts_folder(tmp_path / "hosts", "registry.test:5000", text)
        )
        with Client(tmp_path / "other", tmp_path / "other-state", registry=config) as client:
            image = client.images.pull("registry.test:5000/team/app:v1", unpack=False)
            assert image.digest == digest
            assert registry.crane("digest", f"{mirror}/team/app:v1") == digest
            registry.crane("validate", "--remote", f"{mirror}/team/app:v1")
            assert client.images.push(image.name, "registry.test:5000/team/app:v2").digest == digest
    assert sorted(registry.crane("ls", f"{registry.address}/team/app").split()) == ["stable", "v1", "v2"]


@pytest.mark.real_image
@pytest.mark.privileged
@pytest.mark.rootless
@pytest.mark.needs_ids  # podman's
@pytest.mark.needs_program("podman", "conmon", "runc")
@pytest.mark.parametrize("registry", ["plain"], indirect=True)
def test_the_real_image_is_whole_for_crane_and_runs_in_podman(
    registry: Registry, client: Client, real_image_ref: str
) -> None:
    name = f"{registry.address}/real/debian:1"
    image = client.images.pull(real_image_ref, unpack=False)
    assert client.images.push(real_image_ref, name).digest == image.digest == registry.crane("digest", name)
    registry.crane("validate", "--remote", name)
    assert client.images.push(real_image_ref, name).sent_bytes == 0
    registry.podman("pull", "--quiet", name)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    limits = ["--ulimit", f"nofile={limit}:{limit}", "--ulimit", "nproc=1024:1024", "--network=none"]
    program = "import numpy; print(int(numpy.ones(42).sum()))"
    assert registry.podman("run", "--rm", *limits, name, "python3", "-c", program) == "42"
    registry.podman("rmi", "--all", "--force")
