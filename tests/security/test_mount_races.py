"""Paths of mounts that lead elsewhere, or change while a container starts: nothing of the host is mounted, made or seen."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import pytest

from lamella.errors import InvalidArgument, LamellaError
from lamella.registry.server import RegistryServer
from layers import Built, file, folder, program, symlink, tar

pytestmark = pytest.mark.privileged

SECONDS = 4
PATIENCE = 120


@pytest.fixture
def swapping(compiled):
    """``with swapping(one, other)`` swaps what two paths name as fast as it can."""

    @contextmanager
    def call(one, other):
        process = subprocess.Popen([compiled("races") / "races", "swap", one, other])
        try:
            yield
        finally:
            process.kill()
            process.wait()

    return call


@pytest.fixture
def outside(tmp_path):
    """A folder of the host that no container may see, and nothing may be made in."""
    top = tmp_path / "outside"
    top.mkdir()
    (top / "file").write_text("of the host")
    return top


def results(client, image, script, *, both: Callable[[list[Any]], object], **options):
    """Run a container again and again, for a while and until both sides of a race were seen; give what each says."""
    found: list[Any] = []
    began = time.monotonic()
    while (passed := time.monotonic() - began) < SECONDS or (passed < PATIENCE and not both(found)):
        try:
            done = client.containers.run(image, ["/bin/sh", "-c", script], remove=True, **options)
            found.append(done.stdout.decode())
        except LamellaError as error:
            found.append(error)
    return found


def lines_of(found):
    return {line for text in found for line in str(text).splitlines()}


def errors_of(found):
    return [error for error in found if not isinstance(error, str)]


def test_a_source_that_is_swapped_while_it_is_bound_is_mounted_as_what_it_was_found_to_be(
    client, image, tmp_path, swapping
):
    """The check and the mount are of one descriptor: no file is taken for a folder, and every start works."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("in the folder")
    (tmp_path / "plain").write_text("a file")
    (tmp_path / "source").symlink_to("folder")
    (tmp_path / "other").symlink_to("plain")
    script = "for at in /m*; do cat $at/file 2>/dev/null || cat $at; echo; done"
    volumes = [f"{tmp_path}/source:/m{number}" for number in range(48)]  # as many chances in each start
    with swapping(tmp_path / "source", tmp_path / "other"):
        found = results(client, image, script, both=lambda found: len(lines_of(found)) > 1, volumes=volumes)
    assert lines_of(found) == {"in the folder", "a file"}


def test_cve_2021_25741_a_part_of_a_volume_that_is_swapped_for_a_symlink_never_shows_the_host(
    client, image, outside, swapping
):
    """Kubernetes looked a subPath up, and mounted it by its name when a symlink had taken its place (CVE-2023-3676 and
    CVE-2024-10220 are of the same class)."""
    volume = client.volumes.create("data")
    (volume.path / "part").mkdir()
    (volume.path / "part" / "file").write_text("of the volume")
    (volume.path / "link").symlink_to(outside)
    mount = {"type": "volume", "source": "data", "target": "/x", "volume-subpath": "part"}
    with swapping(volume.path / "part", volume.path / "link"):
        found = results(
            client,
            image,
            "cat /x/file",
            both=lambda found: 0 < len(errors_of(found)) < len(found),
            mounts=[mount],
        )
    shown = {text for text in found if isinstance(text, str)}
    assert shown == {"of the volume"}
    errors = errors_of(found)
    assert errors, "one side of the race was not seen"
    assert all("leads out" in str(error) or "part" in str(error) for error in errors)


@pytest.mark.parametrize(
    ("source", "target"), [("mine", "at/deep"), ("mine/file", "at/deep/file")], ids=["folder", "file"]
)
def test_cve_2021_30465_a_target_that_another_container_swaps_for_a_symlink_stays_in_the_root(
    client, image, tmp_path, outside, swapping, source, target
):
    """runc looked the target of a mount up, then mounted by its name; a container that shared a volume put a symlink there.

    A file to mount on is made as a plain name of a folder that was found, and mounted on by that folder: a symlink that takes
    its place between the two is an error.
    """
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    volume = client.volumes.create("data")
    (volume.path / "at").mkdir()
    (volume.path / "link").symlink_to(outside)
    before = sorted(outside.rglob("*"))
    options = {
        "volumes": ["data:/shared", f"{tmp_path}/{source}:/shared/{target}"],
        "tmpfs": ["/shared/at/memory"],
    }
    with swapping(volume.path / "at", volume.path / "link"):
        script = "cat /shared/at/deep/file 2>/dev/null; true"
        found = results(client, image, script, both=lambda found: "mine" in found, **options)
    assert sorted(outside.rglob("*")) == before
    assert {text for text in found if isinstance(text, str)} <= {"mine", ""}
    assert "mine" in found


def hostile(client, *entries):
    """Give an image with a program, and entries of one's own."""
    with RegistryServer() as server:
        layer = tar(folder("bin"), file("bin/true", program(), mode=0o755), *entries)
        return client.images.pull(Built(layer).push(server, "hostile"))


@pytest.mark.parametrize(
    "target", ["/proc", "/proc/self/attr", "/proc/1", "/x/../proc/sys", "/link/sys", "/link"]
)
def test_cve_2019_16884_nothing_takes_the_place_of_proc_or_of_a_part_of_it(client, tmp_path, target):
    """runc let a volume be mounted over /proc, so that what was written to /proc/self/attr went nowhere (AppArmor was off)."""
    image = hostile(client, folder("proc"), symlink("link", "proc"))
    (tmp_path / "mine").mkdir()
    for options in ({"volumes": [f"{tmp_path}/mine:{target}"]}, {"tmpfs": [target]}):
        with pytest.raises(InvalidArgument, match="the kernel's"):
            client.containers.run(image, ["/bin/true"], remove=True, **options)
    assert client.containers.list(all=True) == []


def test_what_lxcfs_replaces_of_proc_may_be_replaced_and_the_hosts_proc_shown_beside(client, image, tmp_path):
    (tmp_path / "uptime").write_text("0 0\n")
    result = client.containers.run(
        image,
        ["/bin/sh", "-c", "cat /proc/uptime; cat /host/1/comm"],
        remove=True,
        volumes=[f"{tmp_path}/uptime:/proc/uptime:ro", "/proc:/host:ro"],
    )
    assert result.stdout.startswith(b"0 0\n") and len(result.stdout) > 4


@pytest.mark.parametrize("name", ["proc", "sys"])
def test_cve_2019_19921_an_image_whose_proc_is_a_symlink_is_not_started(client, outside, name):
    """runc mounted /proc where a symlink of the image led to, in a volume that another container changed; CVE-2023-27561 was the
    same once more."""
    target = {"proc": "shared/proc", "sys": str(outside)}[name]
    image = hostile(client, symlink(name, target), folder("shared"), folder("shared/proc"))
    with pytest.raises(LamellaError, match="plain folder"):
        client.containers.run(image, ["/bin/true"], remove=True, volumes=["data:/shared"])
    assert [path.name for path in outside.iterdir()] == ["file"]


@pytest.mark.parametrize("target", ["/up/made", "/absolute/made", "/../../made", "/up/../up/made"])
def test_a_target_that_leads_up_or_away_is_made_inside_the_root(client, outside, tmp_path, target):
    image = hostile(client, symlink("up", "../../../../../../.."), symlink("absolute", str(outside)))
    (tmp_path / "mine").mkdir()
    try:
        client.containers.run(image, ["/bin/true"], remove=True, volumes=[f"{tmp_path}/mine:{target}"])
    except LamellaError as error:
        assert "absolute" in target, error  # a dangling link is no folder
    assert [path.name for path in outside.iterdir()] == ["file"]


def test_a_target_beneath_another_mount_is_made_in_that_mount(client, image, tmp_path):
    for name in ("outer", "inner"):
        (tmp_path / name).mkdir()
    (tmp_path / "inner" / "file").write_text("inner")
    volumes = [f"{tmp_path}/inner:/a/b/c", f"{tmp_path}/outer:/a/b"]
    result = client.containers.run(image, ["/bin/cat", "/a/b/c/file"], remove=True, volumes=volumes)
    assert result.stdout == b"inner"
    assert [path.name for path in (tmp_path / "outer").iterdir()] == ["c"]
    with pytest.raises(LamellaError, match=r"[Rr]ead-only"):
        client.containers.run(
            image,
            ["/bin/true"],
            remove=True,
            volumes=[f"{tmp_path}/inner:/a/b/d", f"{tmp_path}/outer:/a/b:ro"],
        )
