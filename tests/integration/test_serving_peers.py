"""What the store serves and takes, with the programs of the field as clients: crane, skopeo, podman, buildah, umoci,
containerd, and docker-registry as a mirror of it.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import lamella
import systems
from docker_registry import docker_registry_process
from lamella.digest import digest_of
from lamella.registry.server import RegistryServer, basic_auth, htpasswd

pytestmark = pytest.mark.integration

NGINX = "docker.io/library/nginx:latest"
# What `htpasswd -B` makes of ann's password.
HTPASSWD = "ann:$2y$05$GjowGl.EJeQMGxoYeAu/vuMXAVNeg5hW/.OC52ps.yQhTOcjqROyC\n"


def run(*command: str | Path, fails: bool = False, **options: Any) -> str:
    """Run a program; give its output, or, where it is to fail, what it said."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False, **options
    )
    if bool(done.returncode) != fails:
        pytest.fail(f"{' '.join(map(str, command))} exited with {done.returncode}:\n{done.stderr[-3000:]}")
    return done.stderr if fails else done.stdout


@pytest.fixture
def stored(client: lamella.Client, small_image: str) -> lamella.Client:
    """Have an image in the store, as if it were nginx."""
    client.images.pull(small_image, unpack=False)
    client.images.tag(small_image, "nginx")
    client.images.remove(small_image)
    return client


@pytest.fixture
def serving(stored: lamella.Client) -> Iterator[RegistryServer]:
    with RegistryServer(client=stored) as server:
        yield server


@pytest.fixture
def layout(stored: lamella.Client, tmp_path: Path, require_program: Callable[[str], str]) -> Path:
    """Make an OCI layout of that image, by skopeo."""
    require_program("skopeo")
    with RegistryServer(client=stored, read_only=True) as server:
        source = f"docker://{server.address}/nginx"
        run("skopeo", "copy", "--quiet", "--src-tls-verify=false", source, f"oci:{tmp_path}/layout:latest")
    return tmp_path / "layout"


def blobs(folder: Path) -> dict[str, str]:
    return {path.name: digest_of(path.read_bytes()) for path in (folder / "blobs/sha256").iterdir()}


@pytest.mark.needs_program("crane")
def test_crane_does_all_it_can_with_the_images_of_the_store(
    serving: RegistryServer, stored: lamella.Client, layout: Path, tmp_path: Path
) -> None:
    address, digest = serving.address, stored.images.get("nginx").digest

    def crane(*words: str | Path) -> str:
        return run("crane", words[0], "--insecure", *words[1:])

    for path in ("nginx", "library/nginx", "docker.io/library/nginx"):
        assert crane("digest", f"{address}/{path}").strip() == digest
    crane("validate", "--remote", f"{address}/nginx")
    crane("pull", "--format=oci", f"{address}/nginx", tmp_path / "pulled")
    assert blobs(tmp_path / "pulled") == blobs(layout)
    crane("push", layout, f"{address}/team/app:v1")
    crane("copy", f"{address}/nginx", f"{address}/team/other:v1")
    crane("tag", f"{address}/team/app:v1", "v2")
    assert crane("ls", f"{address}/team/app").split() == ["v1", "v2"]
    assert crane("catalog", address).split() == ["library/nginx", "team/app", "team/other"]
    names = [image.name for image in stored.images.list()]
    assert names == sorted(
        [f"{address}/team/app:v1", f"{address}/team/app:v2", f"{address}/team/other:v1", NGINX]
    )
    crane("delete", f"{address}/team/app:v1")
    assert crane("ls", f"{address}/team/app").split() == ["v2"]
    crane("delete", f"{address}/team/app@{digest}")
    assert crane("ls", f"{address}/team/app").split() == []
    stored.gc()
    crane("validate", "--remote", f"{address}/team/other:v1")


@pytest.mark.needs_program("crane")
def test_crane_is_told_why_a_read_only_registry_takes_nothing(stored: lamella.Client, layout: Path) -> None:
    with RegistryServer(client=stored, read_only=True) as server:
        for words in (
            ("push", str(layout), f"{server.address}/team/app:v1"),
            ("copy", f"{server.address}/nginx", f"{server.address}/team/app:v1"),
            ("delete", f"{server.address}/nginx"),
        ):
            assert "read-only" in run("crane", words[0], "--insecure", *words[1:], fails=True)
    assert [image.name for image in stored.images.list()] == [NGINX]


@pytest.mark.needs_program("crane")
def test_garbage_is_collected_all_the_time_while_crane_pushes(
    serving: RegistryServer, stored: lamella.Client, layout: Path
) -> None:
    stored.images.remove("nginx")
    end = threading.Event()

    def collect() -> None:
        while not end.is_set():
            stored.gc()

    collector = threading.Thread(target=collect)
    collector.start()
    try:
        for number in range(5):
            target = f"{serving.address}/team/app-{number}:v1"
            run("crane", "push", "--insecure", layout, target)
            run("crane", "validate", "--insecure", "--remote", target)
            run("crane", "delete", "--insecure", f"{serving.address}/team/app-{number}@{digest(layout)}")
    finally:
        end.set()
        collector.join()
    stored.gc()
    assert list(stored.content.walk()) == []
    assert stored.fsck().clean


def runs(client: lamella.Client, image: lamella.Image) -> bool:
    """Unpack an image that was pushed, and run it."""
    client.images.unpack(image.name)
    return client.containers.run(image, ["/bin/sh", "-c", "echo ran"], remove=True).stdout == b"ran\n"


def digest(layout: Path) -> str:
    return str(json.loads((layout / "index.json").read_bytes())["manifests"][0]["digest"])


@pytest.mark.needs_program("skopeo", "umoci")
@pytest.mark.parametrize("secured", [False, True])
def test_umoci_unpacks_what_skopeo_pushed_and_pulled(
    secured: bool, stored: lamella.Client, layout: Path, tmp_path: Path, authority: Path, tls: Any
) -> None:
    (tmp_path / "htpasswd").write_text(HTPASSWD)
    guard = htpasswd(tmp_path / "htpasswd") if secured else basic_auth({"ann": "hunter2"})
    with RegistryServer(client=stored, auth=guard, tls=tls if secured else None) as server:
        target = f"docker://{server.address}/team/app:v1"
        certificates = tmp_path / "certs"
        certificates.mkdir()
        (certificates / "ca.crt").write_bytes((authority / "cert.pem").read_bytes())

        def options(side: str) -> list[str]:
            how = f"cert-dir={certificates}" if secured else "tls-verify=false"
            return [f"--{side}{how}", f"--{side}creds=ann:hunter2"]

        run("skopeo", "copy", "--quiet", *options("dest-"), f"oci:{layout}:latest", target)
        run("skopeo", "copy", "--quiet", *options("src-"), target, f"oci:{tmp_path}/back:v1")
        assert json.loads(run("skopeo", "inspect", *options(""), target))["Digest"] == digest(layout)
        wrong = [*options("")[:1], "--creds=ann:wrong"]
        assert "authentication" in run("skopeo", "inspect", *wrong, target, fails=True)
    assert blobs(tmp_path / "back") == blobs(layout)
    run("umoci", "unpack", "--rootless", "--image", f"{tmp_path}/back:v1", tmp_path / "bundle")
    assert (tmp_path / "bundle/rootfs/bin/sh").exists()


def test_lamella_pulls_from_one_store_into_another_and_pushes_back(
    serving: RegistryServer, stored: lamella.Client, tmp_path: Path
) -> None:
    address, digest = serving.address, stored.images.get("nginx").digest
    with lamella.Client(tmp_path / "other", tmp_path / "other-state") as other:
        other.images.pull(f"{address}/nginx", unpack=False)
        other.images.push(f"{address}/nginx", f"{address}/team/app:v1", tags=["stable"])
        serving.requests.clear()
        other.images.copy(f"{address}/team/app:v1", f"{address}/prod/app:v1")
        assert not [request for request in serving.requests if request.method in {"PATCH"}]
        assert [image.name for image in other.images.list()] == [f"{address}/nginx:latest"]
    for name in ("team/app:v1", "team/app:stable", "prod/app:v1"):
        assert stored.images.get(f"{address}/{name}").digest == digest
    stored.images.remove("nginx")
    stored.gc()
    assert stored.fsck().clean


@pytest.mark.privileged
@pytest.mark.rootless
@pytest.mark.needs_program("crane")
def test_what_was_pushed_runs(serving: RegistryServer, stored: lamella.Client, layout: Path) -> None:
    run("crane", "push", "--insecure", layout, f"{serving.address}/team/app:v1")
    image = stored.images.get(f"{serving.address}/team/app:v1")
    assert runs(stored, image)


@pytest.fixture
def podman(tmp_path_factory: pytest.TempPathFactory, require_program: Callable[[str], str]) -> Any:
    """Give podman on a store of its own."""
    require_program("podman")
    with tempfile.TemporaryDirectory(prefix="podman-") as folder:
        where = ["--root", f"{folder}/root", "--runroot", f"{folder}/run", "--tmpdir", f"{folder}/tmp"]
        how = ["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "none"]
        yield lambda *words: run("podman", *where, *how, "--runtime", "runc", *words)
        systems.end_pause(Path(folder, "tmp"))
        with suppress(OSError):
            (Path(folder) / "root/libpod/bolt_state.db").unlink()


@pytest.mark.privileged
def test_podman_pulls_tags_and_pushes(serving: RegistryServer, stored: lamella.Client, podman: Any) -> None:
    address = serving.address
    podman("pull", "--quiet", "--tls-verify=false", f"{address}/nginx")
    podman("tag", f"{address}/nginx", f"{address}/team/app:podman")
    podman("push", "--quiet", "--tls-verify=false", f"{address}/team/app:podman")
    podman("rmi", "--all", "--force")
    podman("pull", "--quiet", "--tls-verify=false", f"{address}/team/app:podman")
    pushed = stored.images.get(f"{address}/team/app:podman")
    assert pushed.diff_ids == stored.images.get("nginx").diff_ids
    assert runs(stored, pushed)


@pytest.mark.privileged
@pytest.mark.rootless
@pytest.mark.needs_program("buildah")
def test_buildah_builds_on_what_is_served_and_pushes_it(
    serving: RegistryServer, stored: lamella.Client, tmp_path: Path
) -> None:
    address = serving.address
    file = tmp_path / "Containerfile"
    file.write_text(f"FROM {address}/nginx\nCOPY Containerfile /added\nLABEL built=yes\n")
    where = ["--root", f"{tmp_path}/root", "--runroot", f"{tmp_path}/run", "--storage-driver", "vfs"]
    built = f"{address}/team/built:v1"
    run(
        "buildah",
        *where,
        "build",
        "--quiet",
        "--tls-verify=false",
        "--isolation=chroot",
        "-t",
        built,
        tmp_path,
    )
    run("buildah", *where, "push", "--quiet", "--tls-verify=false", built, f"docker://{built}")
    image = stored.images.get(built)
    assert image.config.run.labels is not None
    assert image.config.run.labels["built"] == "yes"
    assert image.diff_ids[:-1] == stored.images.get("nginx").diff_ids
    assert runs(stored, image)
    result = stored.containers.run(image, ["/bin/cat", "/added"], remove=True)
    assert result.stdout == file.read_bytes()
    run("buildah", *where, "rmi", "--all", "--force")


@pytest.mark.needs_program("docker-registry", "crane")
def test_docker_registry_mirrors_the_store(
    serving: RegistryServer, stored: lamella.Client, layout: Path, tmp_path: Path
) -> None:
    with docker_registry_process(tmp_path, f"proxy: {{remoteurl: 'http://{serving.address}'}}\n") as mirror:
        run("crane", "pull", "--insecure", "--format=oci", f"{mirror}/library/nginx", tmp_path / "pulled")
    assert blobs(tmp_path / "pulled") == blobs(layout)


@pytest.fixture
def ctr() -> Iterator[Callable[..., str]]:
    with tempfile.TemporaryDirectory() as folder, systems.Containerd(Path(folder), "", Path()) as running:
        yield lambda *words: run(*running.ctr(*words))


@pytest.mark.privileged
@pytest.mark.needs_program("containerd", "ctr", "runc")
def test_containerd_pulls_pushes_and_mirrors(
    serving: RegistryServer, stored: lamella.Client, ctr: Callable[..., str], tmp_path: Path
) -> None:
    address, wanted = serving.address, stored.images.get("nginx").digest
    ctr("images", "pull", "--plain-http", f"{address}/library/nginx:latest")
    ctr("images", "tag", f"{address}/library/nginx:latest", f"{address}/team/app:ctr")
    ctr("images", "push", "--plain-http", f"{address}/team/app:ctr")
    assert stored.images.get(f"{address}/team/app:ctr").digest == wanted
    # As a mirror, which is asked about another registry's repository: of docker.io, and of one with a port in its name.
    stored.images.tag("nginx", "localhost:1/private/app:v1")
    for domain in ("docker.io", "localhost:1"):
        hosts = tmp_path / "hosts" / domain.replace(":", "_") / "hosts.toml"
        hosts.parent.mkdir(parents=True)
        hosts.write_text(
            f'server = "http://127.0.0.1:9"\n[host."http://{address}"]\n  capabilities = ["pull", "resolve"]\n'
        )
    (tmp_path / "hosts/localhost_1").rename(tmp_path / "hosts/localhost_1_")
    serving.requests.clear()
    ctr("images", "pull", "--hosts-dir", str(tmp_path / "hosts"), NGINX)
    (tmp_path / "hosts/localhost_1_").rename(tmp_path / "hosts/localhost:1")
    ctr("images", "pull", "--hosts-dir", str(tmp_path / "hosts"), "localhost:1/private/app:v1")
    assert "/v2/library/nginx/manifests/latest?ns=docker.io" in {request.path for request in serving.requests}
    listed = ctr("images", "ls", "-q").split()
    assert {NGINX, "localhost:1/private/app:v1"} <= set(listed)
    ctr("images", "rm", "--sync", *listed)
