"""Named and anonymous volumes, as a user of docker knows them."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

import lamella
from lamella import _core
from lamella.containers.volumes import path_in_image
from lamella.errors import FailedPrecondition, InvalidArgument, NotFound, Unsupported

pytestmark = [pytest.mark.privileged, pytest.mark.rootless]


@pytest.fixture
def base(client, small_image):
    return client.images.pull(small_image)


@pytest.fixture
def image(client, base, require_root):
    """An image that has files at /data, owned and marked in every way that a copy could lose."""
    require_root()

    def make(root):
        data = root / "data"
        (data / "sub").mkdir(parents=True)
        file = data / "sub" / "file"
        file.write_text("one\n")
        (data / "hard").hardlink_to(file)
        (data / "link").symlink_to("sub/file")
        (root / "way").symlink_to("../../../data")
        file.chmod(0o4711)
        os.setxattr(file, "user.mark", b"kept")
        os.chown(data, 1234, 5678)
        data.chmod(0o2750)

    return changed(client, base, make)


def changed(client, base, make, changes=()):
    """Make an image of what ``make`` does to the folder that holds the changes."""
    box = client.containers.create(base, ["/bin/true"], volumes=())
    make(client.snapshots.layer_paths(box.snapshot_key)[0])
    made = box.commit(f"changed:{box.short_id}", changes=changes)
    box.remove(volumes=True)
    return made


def declaring(client, base, *paths):
    return changed(client, base, lambda root: None, changes=[f'VOLUME ["{path}"]' for path in paths])


def sh(client, image, script, **options):
    result = client.containers.run(image, ["/bin/sh", "-c", script], remove=True, **options)
    assert result.exit_code == 0, result
    return result.stdout.decode()


def anonymous(client):
    return [volume.name for volume in client.volumes.list() if volume.anonymous]


def test_a_named_volume_is_made_at_first_use_and_outlives_its_container(client, base):
    sh(client, base, "echo kept >/v/file", volumes=["data:/v"])
    assert [volume.name for volume in client.volumes.list()] == ["data"]
    for volumes in (["data:/v:ro"], {"data": {"bind": "/v", "mode": "ro"}}):
        assert sh(client, base, "cat /v/file; touch /v/x 2>/dev/null || echo refused", volumes=volumes) == (
            "kept\nrefused\n"
        )
    assert sh(client, base, "cat /v/file", mounts=["type=volume,source=data,target=/v"]) == "kept\n"
    client.volumes.remove("data")
    assert client.volumes.list() == []
    with pytest.raises(NotFound):
        client.volumes.get("data")


def test_an_empty_volume_takes_the_images_content_with_owners_modes_links_and_attributes(client, image):
    client.volumes.create("data", labels={"owner": "test"})
    client.containers.create(image, ["/bin/true"], volumes=["data:/data"])
    volume = client.volumes.get("data")
    assert volume.labels == {"owner": "test"}
    status = volume.path.stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (1234, 5678, 0o2750)
    file = volume.path / "sub" / "file"
    assert (file.read_text(), file.stat().st_mode & 0o7777) == ("one\n", 0o4711)
    assert file.samefile(volume.path / "hard")
    assert (volume.path / "link").readlink() == Path("sub/file")
    assert os.getxattr(file, "user.mark") == b"kept"


def test_content_is_copied_into_an_empty_volume_only_and_not_where_nocopy_says_so(client, image):
    assert sh(client, image, "ls /data", volumes=["none:/data:nocopy"]) == ""
    sh(client, image, "echo own >/v/own", volumes=["full:/v"])
    assert sh(client, image, "ls /data", volumes=["full:/data"]) == "own\n"
    assert sh(client, image, "cat /data/hard; rm /data/hard", volumes=["data:/data"]) == "one\n"
    assert "hard" not in sh(client, image, "ls /data", volumes=["data:/data"])


def test_a_volume_that_another_container_has_is_not_filled_under_it(client, base, image):
    client.containers.create(base, ["/bin/true"], volumes=["data:/v"])
    client.containers.create(image, ["/bin/true"], volumes=["data:/data"])
    assert list(client.volumes.get("data").path.iterdir()) == []


def test_the_content_is_taken_where_the_target_leads_to_in_the_image(client, image):
    assert sh(client, image, "ls /way/", volumes=["data:/way"]).split() == ["hard", "link", "sub"]


def test_a_volume_in_use_is_not_removed(client, base):
    box = client.containers.create(base, ["/bin/true"], name="user", volumes=["data:/v"])
    with pytest.raises(FailedPrecondition, match="in use by user"):
        client.volumes.remove("data")
    assert client.volumes.prune(all=True).volumes == []
    assert client.volumes.users("data") == ["user"]
    box.remove(volumes=True)
    assert client.volumes.users("data") == []
    client.volumes.remove("data")


def test_what_the_image_declares_gets_an_anonymous_volume_that_goes_with_rm_and_volumes(client, image):
    declared = declaring(client, image, "/data", "/made")
    assert sh(client, declared, "ls /data; ls /made").split() == ["hard", "link", "sub"]
    assert anonymous(client) == []  # run removed them with the container

    box = client.containers.create(declared, ["/bin/sh", "-c", "echo x >/data/x"], volumes=["/own"])
    assert len(box.inspect()["volumes"]) == len(anonymous(client)) == 3
    box.start()
    assert box.wait(60) == 0
    box.remove()
    assert len(anonymous(client)) == 3
    report = client.volumes.prune()
    assert (len(report.volumes), anonymous(client)) == (3, [])
    assert report.bytes_freed > 0

    box = client.containers.create(declared, ["/bin/true"], volumes=["named:/data"], tmpfs=["/made"])
    assert anonymous(client) == []  # something else is mounted there
    box.remove(volumes=True)
    assert [volume.name for volume in client.volumes.list()] == ["named"]


def test_a_detached_container_that_is_removed_at_its_end_takes_its_anonymous_volumes_along(client, base):
    box = client.containers.run(base, ["/bin/true"], detach=True, remove=True, volumes=["/v", "named:/n"])
    box.wait(60)
    client.containers.remove_ended()
    assert [volume.name for volume in client.volumes.list()] == ["named"]


def test_a_container_that_cannot_be_made_leaves_no_anonymous_volume(client, base):
    with pytest.raises(InvalidArgument):
        client.containers.create(base, ["/bin/true"], volumes=["/v"], hostname="a/b")
    assert client.volumes.list() == []
    assert list((client.config.root / "volumes" / "default").iterdir()) == []


def test_an_image_cannot_hide_what_every_container_has_of_its_own(client, base):
    for path in ("/", "/proc", "/proc/../sys/fs", "/dev/shm"):
        image = declaring(client, base, path)
        with pytest.raises(InvalidArgument, match="the image asks for a volume"):
            client.containers.create(image, ["/bin/true"])
    assert client.volumes.list() == []


def test_cve_2022_23648_an_images_volume_copies_no_file_of_the_host(client, base, tmp_path):
    """containerd copied from outside of the root where an image's VOLUME had ``..`` or led there by a symlink."""
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("of the host")

    def make(root):
        (root / "absolute").symlink_to(secret)
        (root / "up").symlink_to(f"../../../../../../../..{secret}")

    image = changed(client, base, make)
    for path in (
        "/absolute",
        "/up",
        f"/../../../../../..{secret}",
        f"/bin/../../../..{secret}",
        "/absolute/../secret",
    ):
        declared = declaring(client, image, path)
        box = client.containers.create(declared, ["/bin/true"])
        for name in box.inspect()["volumes"]:
            assert list(client.volumes.get(name).path.rglob("*")) == []
        box.remove(volumes=True)


def test_a_path_is_walked_inside_the_image(tmp_path):
    root = tmp_path / "root"
    (root / "a" / "b").mkdir(parents=True)
    (root / "file").write_text("")
    for name, target in (("abs", "/a"), ("up", "../../a/b"), ("loop", "loop"), ("out", str(tmp_path))):
        (root / name).symlink_to(target)
    assert path_in_image(root, "/abs/b") == path_in_image(root, "/up") == root / "a" / "b"
    assert path_in_image(root, "/a/../../../a/./b/..") == root / "a"
    for path in ("/loop", "/out", "/file", "/absent", "/file/x", "/out/root/a"):
        assert path_in_image(root, path) is None


def test_many_containers_may_share_a_volume_that_none_has_seen_before(client, image):
    with lamella.Client(client.config.root, client.config.state) as other:
        results = []

        def use(opened, number):
            for turn in range(5):
                results.append(
                    sh(opened, image, f"echo >/data/n{number}-{turn}; cat /data/hard", volumes=["data:/data"])
                )

        threads = [
            threading.Thread(target=use, args=(opened, at)) for at, opened in enumerate((client, other))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == ["one\n"] * 10
    assert len(list(client.volumes.get("data").path.glob("n*"))) == 10


def test_namespaces_have_their_own_volumes_and_are_not_empty_with_them(client, base):
    with lamella.Client(client.config.root, client.config.state, "other") as other:
        other.volumes.create("data")
        assert client.volumes.list() == []
        with pytest.raises(FailedPrecondition, match="volumes"):
            client.namespaces.delete("other")
        other.volumes.remove("data")
        client.namespaces.delete("other")


def test_creating_twice_is_harmless_and_filters_choose(client, base):
    first = client.volumes.create("one", labels={"a": "b"})
    assert client.volumes.create("one", labels={"a": "c"}) == first
    client.volumes.create("two")
    client.containers.create(base, ["/bin/true"], volumes=["two:/v"])
    for text, names in (("labels.a==b", ["one"]), ("dangling==false", ["two"]), ("name~=^t", ["two"])):
        assert [volume.name for volume in client.volumes.list(filters=[text])] == names
    assert client.volumes.prune(all=True, filters=["name==two"]).volumes == []


def test_dockers_filters_choose_too_and_inspect_tells_all(client, base):
    client.volumes.create("one", labels={"a": "b", "c": "d"})
    client.volumes.create("two", driver="local")
    client.containers.create(base, ["/bin/true"], name="box", volumes=["two:/v"])
    for filters, names in (
        (["label=a=b"], ["one"]),
        (["label=a", "label=c"], ["one"]),
        (["label=a", "label=x"], []),
        ({"label": ["a"]}, ["one"]),
        ({"dangling": False}, ["two"]),
        (["dangling=1"], ["one"]),
        (["name=o", "driver=local"], ["one", "two"]),
        (["name=on", "name=tw", "dangling=false"], ["two"]),
        (["driver=nfs"], []),
    ):
        assert [volume.name for volume in client.volumes.list(filters=filters)] == names, filters
    for bad in (["colour=blue"], ["name=a", "name==b"]):
        with pytest.raises(InvalidArgument):
            client.volumes.list(filters=bad)
    told = client.volumes.inspect("two")
    assert (told["name"], told["containers"], told["driver"], told["size"] > 0) == (
        "two",
        ["box"],
        "local",
        True,
    )
    client.volumes.remove("three", missing_ok=True)
    for options in ({"driver": "nfs"}, {"driver_opts": {"type": "nfs"}}):
        with pytest.raises(Unsupported, match="driver"):
            client.volumes.create("three", **options)


def test_what_a_killed_process_left_is_taken_by_gc_and_named_by_fsck(client):
    client.volumes.create("data")
    top = client.config.root / "volumes" / "default"
    for name in (".new-0123456789abcdef", ".trash-0123456789abcdef"):
        (top / name / "data").mkdir(parents=True)
    assert [volume.name for volume in client.volumes.list()] == ["data"]
    report = client.fsck()
    assert (report.clean, [item.kind for item in report.leftovers]) == (True, ["stale-volume"] * 2)
    assert client.gc(dry_run=True).orphans >= 2
    client.gc()
    assert [path.name for path in top.iterdir()] == ["data"]


def test_a_volume_whose_record_a_power_cut_spoiled_is_still_there_and_is_not_pruned(client):
    volume = client.volumes.create("data")
    (volume.path.parent / "volume.json").write_bytes(b"")
    (volume.path / "file").write_text("x")
    assert (client.volumes.get("data").labels, client.volumes.prune().volumes) == ({}, [])
    assert client.du().store.volumes >= _core.disk_usage(str(volume.path))[0] > 0


def test_fsck_names_a_container_whose_volume_is_gone(client, base):
    client.containers.create(base, ["/bin/true"], name="box", volumes=["data:/v"])
    client.volumes.get("data").path.parent.rename(client.config.root / "elsewhere")
    [finding] = client.fsck().findings
    assert (finding.kind, finding.name) == ("dangling-container", "default/box")
