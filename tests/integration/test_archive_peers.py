"""Archives between lamella and the programs of the field: what they write is read here, and they read what is written here."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import lamella
import machine_image
import systems
from archives import Pipe
from lamella import Client
from lamella.registry.server import RegistryServer
from tree import read_tree

pytestmark = pytest.mark.integration

NAME = "docker.io/library/machine:v1"
Run = Callable[..., bytes]


def run(*command: str | Path, data: bytes | None = None) -> bytes:
    done = subprocess.run(command, input=data or b"", capture_output=True, timeout=120, check=False)
    if done.returncode:
        pytest.fail(
            f"{' '.join(map(str, command))} exited with {done.returncode}:\n{done.stderr.decode()[-3000:]}"
        )
    return done.stdout


def skopeo(source: str, target: str, *options: str) -> None:
    # It gives the files of such an archive to their owner there, root, which is one of a user namespace for who is not root.
    archive = source.startswith("oci-archive:") and os.geteuid() != 0
    as_root = ["unshare", "--map-root-user"] if archive else []
    run(*as_root, "skopeo", "copy", "--quiet", *options, source, target)


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory, require_program: Callable[[str], str]) -> Path:
    """The machine's image as an OCI layout, tag v1."""
    require_program("skopeo")
    folder = tmp_path_factory.mktemp("layout")
    with RegistryServer() as server:
        machine_image.build().push(server.address, "machine", "v1")
        skopeo(f"docker://{server.address}/machine:v1", f"oci:{folder}:v1", "--src-tls-verify=false")
    return folder


@pytest.fixture(scope="module")
def digest(layout: Path) -> str:
    return str(json.loads((layout / "index.json").read_bytes())["manifests"][0]["digest"])


@pytest.fixture
def podman(require_program: Callable[[str], str]) -> Iterator[Run]:
    require_program("podman")
    with tempfile.TemporaryDirectory() as folder, systems.Podman(Path(folder), "", Path()) as running:

        def command(*words: str | Path, data: bytes | None = None) -> bytes:
            return run(*running.command(*map(str, words)), data=data)

        yield command
        command("rmi", "--all", "--force")


@pytest.fixture
def containerd() -> Iterator[Run]:
    with tempfile.TemporaryDirectory() as folder, systems.Containerd(Path(folder), "", Path()) as running:

        def ctr(*words: str | Path, data: bytes | None = None) -> bytes:
            return run(*running.ctr(*map(str, words)), data=data)

        yield ctr


@pytest.fixture
def image(client: Client, layout: Path) -> lamella.Image:
    """The image in the store."""
    return client.images.import_(layout, base_name="machine")[0]


def contents(client: Client, image: lamella.Image) -> dict[str, Any]:
    with client.snapshots.mounted(image.chain_id) as folder:
        return read_tree(folder)


def rendered(client: Client, found: list[lamella.Image], original: lamella.Image) -> None:
    assert all(image.diff_ids == original.diff_ids for image in found)
    assert {image.chain_id for image in found} == {original.chain_id}


# What others write


@pytest.mark.needs_program("skopeo")
@pytest.mark.parametrize("target", ["oci-archive:{0}/x:machine:v1", "oci:{0}/x:machine:v1"])
def test_oci_layouts_of_skopeo(
    client: Client, layout: Path, digest: str, tmp_path: Path, target: str
) -> None:
    skopeo(f"oci:{layout}:v1", target.format(tmp_path))
    (image,) = client.images.import_(tmp_path / "x")
    assert (image.name, image.digest) == (NAME, digest)


@pytest.mark.needs_program("skopeo")
@pytest.mark.parametrize("whole", [[], ["--all"]])
def test_a_directory_of_skopeo(
    client: Client, layout: Path, digest: str, tmp_path: Path, whole: list[str]
) -> None:
    skopeo(f"oci:{layout}:v1", f"dir:{tmp_path}/x", *whole)
    (image,) = client.images.import_(tmp_path / "x", names=["machine:v1"])
    assert (image.name, image.digest) == (NAME, digest)


@pytest.mark.privileged
@pytest.mark.needs_program("skopeo", "crane", "containerd", "ctr", "runc")
@pytest.mark.parametrize("writer", ["skopeo", "crane", "crane-legacy"])
@pytest.mark.parametrize("way", ["file", "pipe"])
def test_docker_archives_get_the_digest_that_containerd_gives_them(
    client: Client, layout: Path, tmp_path: Path, containerd: Run, image: lamella.Image, writer: str, way: str
) -> None:
    path = tmp_path / "archive"
    if writer == "skopeo":
        skopeo(f"oci:{layout}:v1", f"docker-archive:{path}:team/app:v1", "--additional-tag=team/app:v2")
        names = ["docker.io/team/app:v1", "docker.io/team/app:v2"]
    else:
        with RegistryServer() as server:
            skopeo(f"oci:{layout}:v1", f"docker://{server.address}/team/app:v1", "--dest-tls-verify=false")
            kind = "legacy" if writer == "crane-legacy" else "tarball"
            run("crane", "pull", "--insecure", f"--format={kind}", f"{server.address}/team/app:v1", path)
            names = [f"{server.address}/team/app:v1"]
    found = client.images.import_(path if way == "file" else Pipe(path.read_bytes()))
    assert [each.name for each in found] == names
    rendered(client, found, image)
    containerd("images", "import", "--no-unpack", path)
    listed = containerd("images", "ls").decode().splitlines()[1:]
    assert {line.split()[0]: line.split()[2] for line in listed} == {each.name: each.digest for each in found}


@pytest.mark.needs_program("crane")
def test_an_oci_layout_of_crane_has_no_names(
    client: Client, layout: Path, digest: str, tmp_path: Path
) -> None:
    with RegistryServer() as server:
        skopeo(f"oci:{layout}:v1", f"docker://{server.address}/app:v1", "--dest-tls-verify=false")
        run("crane", "pull", "--insecure", "--format=oci", f"{server.address}/app:v1", tmp_path / "x")
    (image,) = client.images.import_(tmp_path / "x", names=["machine:v1"])
    assert (image.name, image.digest) == (NAME, digest)


@pytest.mark.privileged
@pytest.mark.rootless
@pytest.mark.needs_program("podman", "conmon", "runc")
def test_archives_of_podman(
    client: Client, layout: Path, digest: str, tmp_path: Path, podman: Run, image: lamella.Image
) -> None:
    podman("pull", "--quiet", f"oci:{layout}:v1")
    (listed,) = json.loads(podman("images", "--format=json"))
    podman("tag", listed["Id"], "example.com/app:v1", "example.com/app:v2")
    oci = tmp_path / "oci"
    podman("save", "--quiet", "--format=oci-archive", "-o", oci, "example.com/app:v1")
    (found,) = client.images.import_(oci)
    assert found.name == "example.com/app:v1"
    for form in ("oci-dir", "docker-dir"):
        podman("save", "--quiet", f"--format={form}", "-o", tmp_path / form, "example.com/app:v1")
        rendered(client, client.images.import_(tmp_path / form, names=[form]), image)
    docker = podman("save", "--quiet", "--multi-image-archive", "example.com/app:v1", "example.com/app:v2")
    (tmp_path / "docker").write_bytes(docker)
    for source in (tmp_path / "docker", Pipe(docker)):
        two = client.images.import_(source)
        assert {each.name for each in two} == {"example.com/app:v1", "example.com/app:v2"}
        rendered(client, [found, *two], image)


@pytest.mark.privileged
@pytest.mark.rootless
@pytest.mark.needs_program("buildah")
@pytest.mark.parametrize("form", ["oci-archive", "docker-archive"])
def test_archives_of_buildah(
    client: Client, layout: Path, tmp_path: Path, image: lamella.Image, form: str
) -> None:
    store = [f"--root={tmp_path}/root", f"--runroot={tmp_path}/run", "--storage-driver=vfs"]
    pulled = run("buildah", *store, "pull", "--quiet", f"oci:{layout}:v1").decode().strip()
    path = tmp_path / "archive"
    run("buildah", *store, "push", "--quiet", pulled, f"{form}:{path}:example.com/app:v1")
    found = client.images.import_(path)
    assert [each.name for each in found] == ["example.com/app:v1"]
    rendered(client, found, image)
    run("buildah", *store, "rmi", "--all", "--force")


@pytest.mark.privileged
@pytest.mark.needs_program("containerd", "ctr", "runc")
def test_archives_of_containerd(
    client: Client, layout: Path, digest: str, tmp_path: Path, containerd: Run, image: lamella.Image
) -> None:
    skopeo(f"oci:{layout}:v1", f"oci-archive:{tmp_path}/in:example.com/app:v1")
    containerd("images", "import", "--no-unpack", tmp_path / "in")
    (tmp_path / "out").write_bytes(containerd("images", "export", "-", "example.com/app:v1"))
    (found,) = client.images.import_(tmp_path / "out")
    assert (found.name, found.digest) == ("example.com/app:v1", digest)


@pytest.mark.needs_program("umoci")
def test_a_layout_of_umoci(client: Client, layout: Path, tmp_path: Path) -> None:
    skopeo(f"oci:{layout}:v1", f"oci:{tmp_path}/layout:v1")
    run("umoci", "config", "--image", f"{tmp_path}/layout:v1", "--tag", "v2", "--config.cmd=/bin/other")
    (image,) = client.images.import_(tmp_path / "layout", base_name="machine", image="v2")
    assert image.config.run.cmd == ["/bin/other"]


# What others read


@pytest.fixture
def exported(client: Client, image: lamella.Image, tmp_path: Path) -> Path:
    client.images.export(image.name, tmp_path / "exported.tar")
    return tmp_path / "exported.tar"


@pytest.mark.needs_program("skopeo")
def test_skopeo_reads_either_archive(
    client: Client, image: lamella.Image, exported: Path, digest: str, tmp_path: Path
) -> None:
    skopeo(f"oci-archive:{exported}:v1", f"dir:{tmp_path}/dir")
    assert run("skopeo", "manifest-digest", tmp_path / "dir/manifest.json").decode().strip() == digest
    client.images.export(image.name, tmp_path / "docker.tar", format="docker")
    for path in (exported, tmp_path / "docker.tar"):
        inspected = json.loads(run("skopeo", "inspect", "--config", f"docker-archive:{path}:{NAME}"))
        assert inspected["rootfs"]["diff_ids"] == image.diff_ids
        skopeo(f"docker-archive:{path}:{NAME}", f"oci:{tmp_path}/back-{path.name}:v1")


@pytest.mark.needs_program("skopeo", "umoci")
def test_skopeo_and_umoci_read_a_layout_in_a_folder(
    client: Client, image: lamella.Image, digest: str, tmp_path: Path
) -> None:
    client.images.tag(image.name, "other:v2")
    client.images.export(image.name, tmp_path / "layout", format="oci-dir")
    client.images.export("other:v2", tmp_path / "layout", format="oci-dir")
    for tag in ("v1", "v2"):
        assert json.loads(run("skopeo", "inspect", f"oci:{tmp_path}/layout:{tag}"))["Digest"] == digest
    assert run("umoci", "ls", "--layout", tmp_path / "layout").split() == [b"v1", b"v2"]
    run("umoci", "unpack", "--rootless", "--image", f"{tmp_path}/layout:v2", tmp_path / "bundle")
    assert (tmp_path / "bundle/rootfs/bin/sh").exists()


@pytest.mark.needs_program("crane")
def test_crane_pushes_either_archive_and_the_folder(
    client: Client, image: lamella.Image, digest: str, tmp_path: Path
) -> None:
    client.images.export(image.name, tmp_path / "layout", format="oci-dir")
    client.images.export(image.name, tmp_path / "docker.tar", format="docker")
    client.images.export(image.name, tmp_path / "oci.tar")
    with RegistryServer() as server:
        run("crane", "push", "--insecure", tmp_path / "layout", f"{server.address}/app:folder")
        assert run("crane", "digest", "--insecure", f"{server.address}/app:folder").decode().strip() == digest
        for name in ("docker.tar", "oci.tar"):
            run("crane", "validate", "--tarball", tmp_path / name)
            run("crane", "push", "--insecure", tmp_path / name, f"{server.address}/app:{name}")
            config = json.loads(run("crane", "config", "--insecure", f"{server.address}/app:{name}"))
            assert config["rootfs"]["diff_ids"] == image.diff_ids


@pytest.mark.privileged
@pytest.mark.rootless
@pytest.mark.needs_program("podman", "conmon", "runc")
@pytest.mark.parametrize("form", ["oci", "docker"])
def test_podman_loads_what_comes_from_a_pipe_and_runs_it(
    client: Client, image: lamella.Image, digest: str, podman: Run, form: str
) -> None:
    program = Path(sys.executable).with_name("lamella")
    where = ["--root", str(client.config.root), "--state", str(client.config.state)]
    data = run(program, *where, "export", "--format", form, image.name)
    assert NAME in podman("load", data=data).decode()
    if form == "oci":
        assert json.loads(podman("image", "inspect", NAME))[0]["Digest"] == digest
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    limits = ["--ulimit", f"nofile={limit}:{limit}", "--ulimit", "nproc=1024:1024", "--network=none"]
    assert podman("run", "--rm", *limits, NAME, "/bin/sh", "-c", "echo it runs") == b"it runs\n"
    back = podman("save", "--quiet", "--format=oci-archive", NAME)
    shown = json.loads(run(program, *where, "--json", "import", "--tag", "back", "-", data=back))
    assert [(row["name"], row["unpacked"]) for row in shown] == [("docker.io/library/back:latest", True)]


@pytest.mark.privileged
@pytest.mark.needs_program("containerd", "ctr", "runc")
def test_containerd_imports_it_with_the_same_digest(
    client: Client, image: lamella.Image, digest: str, exported: Path, containerd: Run
) -> None:
    containerd("images", "import", "--no-unpack", "-", data=exported.read_bytes())
    _, line = containerd("images", "ls").decode().splitlines()
    assert line.split()[:3] == [NAME, "application/vnd.oci.image.manifest.v1+json", digest]
    containerd("images", "check")


@pytest.mark.privileged
@pytest.mark.rootless
@pytest.mark.needs_program("buildah")
def test_buildah_pulls_it(exported: Path, tmp_path: Path) -> None:
    store = [f"--root={tmp_path}/root", f"--runroot={tmp_path}/run", "--storage-driver=vfs"]
    run("buildah", *store, "pull", "--quiet", f"oci-archive:{exported}:v1")
    run("buildah", *store, "rmi", "--all", "--force")
