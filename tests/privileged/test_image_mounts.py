"""Images as read-only volumes of containers."""

from __future__ import annotations

import pytest

import lamella
from lamella import durability
from lamella.errors import FailedPrecondition, InvalidArgument, LamellaError, NotFound
from lamella.metadata import boot
from layers import Built, file, folder, symlink, tar, whiteout

pytestmark = pytest.mark.privileged


@pytest.fixture
def base(client, small_image):
    return client.images.pull(small_image)


@pytest.fixture
def tools(client, server, tmp_path):
    """An image of two layers, of which the upper one deletes and replaces."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("of the host")
    below = tar(
        folder("tool"),
        file("tool/version", b"one"),
        file("tool/gone"),
        folder("tool/sub"),
        file("tool/sub/deep", b"deep"),
        symlink("way", "tool/sub"),
        symlink("absolute", str(tmp_path / "outside")),
        symlink("up", f"../../../../../../../..{tmp_path}/outside"),
        symlink("loop", "loop"),
    )
    above = tar(folder("tool"), file("tool/version", b"two"), whiteout("tool/gone"))
    return client.images.pull(Built(below, above).push(server, "tools"))


@pytest.fixture
def single(client, server):
    return client.images.pull(Built(tar(folder("d"), file("d/only", b"only"))).push(server, "single"))


def mount(image, target="/tools", **fields):
    return {"type": "image", "source": image.name, "target": target, **fields}


def sh(client, image, script, **options):
    result = client.containers.run(image, ["/bin/sh", "-c", script], remove=True, **options)
    assert result.exit_code == 0, result
    return result.stdout.decode()


def views(client):
    return [info for info in client.snapshots.walk() if info.kind == "view"]


@pytest.mark.parametrize("snapshotter", ["overlayfs", "native"])
def test_an_image_is_seen_as_its_layers_say_and_takes_no_change(tmp_path, small_image, server, snapshotter):
    below = tar(folder("t"), file("t/version", b"one"), file("t/gone"))
    built = Built(below, tar(folder("t"), file("t/version", b"two"), whiteout("t/gone")))
    config = (tmp_path / "root", tmp_path / "state")
    with lamella.Client(*config, snapshotter=snapshotter) as client:
        tools = client.images.pull(built.push(server, "tools"))
        base = client.images.pull(small_image)
        script = "ls /tools/t; cat /tools/t/version; echo x 2>/dev/null >/tools/t/x || echo refused"
        assert sh(client, base, script, mounts=[mount(tools)]) == "version\ntworefused\n"
        assert views(client) == []


def test_an_image_of_one_layer_and_several_images_at_once(client, base, tools, single):
    assert sh(
        client, base, "cat /a/d/only /b/tool/version", mounts=[mount(single, "/a"), mount(tools, "/b")]
    ) == ("onlytwo")


@pytest.mark.parametrize(
    ("subpath", "script", "output"),
    [
        ("tool", "ls /t", "sub\nversion\n"),
        ("way", "cat /t/deep", "deep"),
        ("tool/version", "cat /t", "two"),
        ("./tool//sub/", "ls /t", "deep\n"),
    ],
)
def test_a_part_of_an_image_is_mounted(client, base, tools, subpath, script, output):
    field = {"subpath": subpath}
    assert sh(client, base, script, mounts=[mount(tools, "/t", **field)]) == output
    text = f"type=image,source={tools.name},target=/t,image-subpath={subpath}"
    assert sh(client, base, script, mounts=[text]) == output


@pytest.mark.parametrize(
    "subpath", ["absolute", "up", "absolute/secret", "up/secret", "loop", "absent", "tool/version/x"]
)
def test_a_part_that_leads_out_or_nowhere_is_an_error_and_leaves_nothing(client, base, tools, subpath):
    with pytest.raises(LamellaError) as caught:
        client.containers.run(base, ["/bin/true"], remove=True, mounts=[mount(tools, subpath=subpath)])
    assert subpath in str(caught.value)
    assert (client.containers.list(all=True), views(client)) == ([], [])


def test_what_lies_beneath_a_part_is_out_of_reach_even_for_who_may_unmount(client, base, tools):
    script = "/usr/bin/umount /t && ls /t"
    options = {"mounts": [mount(tools, "/t", subpath="tool/sub")], "volumes": ["/usr:/usr:ro"]}
    assert sh(client, base, script, privileged=True, **options) == ""


def test_an_image_stays_while_a_container_has_it_whatever_is_removed(client, base, tools):
    box = client.containers.create(base, ["/bin/cat", "/tools/tool/version"], mounts=[mount(tools)])
    other = client.containers.create(base, ["/bin/cat", "/tools/tool/version"], mounts=[mount(tools)])
    client.images.remove(tools.name)
    client.gc()
    for container in (box, other, box):
        container.start()
        assert container.wait(60) == 0
    assert [data for _, data in box.logs()][-1] == b"two"
    assert client.fsck().clean
    box.remove()
    client.gc()
    other.start()
    assert other.wait(60) == 0
    other.remove()
    assert views(client) == []
    before = client.gc()
    assert before.layers == 2
    with pytest.raises(NotFound):
        client.containers.create(base, ["/bin/true"], mounts=[mount(tools)])


def test_the_view_of_a_container_that_is_gone_is_garbage(client, base, tools):
    box = client.containers.create(base, ["/bin/true"], mounts=[mount(tools)])
    with client.database.write() as db:
        db.execute("DELETE FROM containers WHERE id = ?", (box.id,))
    client.gc()
    assert views(client) == []


def test_fsck_names_a_container_whose_image_is_gone(client, base, tools):
    box = client.containers.create(base, ["/bin/true"], name="box", mounts=[mount(tools)])
    client.snapshots.remove(views(client)[0].name)
    [finding] = client.fsck().findings
    assert (finding.kind, finding.name) == ("dangling-container", "default/box")
    with pytest.raises(NotFound):
        box.start()
    box.remove()


def test_layers_that_a_power_cut_may_have_spoiled_are_unpacked_anew(client, base, tools, monkeypatch):
    box = client.containers.create(base, ["/bin/cat", "/tools/tool/version"], mounts=[mount(tools)])
    monkeypatch.setattr(boot, "boot_id", lambda: "a later one")
    monkeypatch.setattr(durability, "boot_id", boot.boot_id)
    box.start()
    assert box.wait(60) == 0
    assert [data for _, data in box.logs()] == [b"two"]
    box.remove()


def test_inspect_shows_what_is_mounted(client, base, tools, tmp_path):
    box = client.containers.create(
        base,
        ["/bin/true"],
        mounts=[mount(tools, subpath="tool")],
        volumes=["data:/data", f"{tmp_path}:/here:ro"],
        tmpfs=["/scratch"],
    )
    found = [(m["type"], m["source"], m["target"], m["subpath"], m["read_only"]) for m in box.mounts]
    assert sorted(found) == [
        ("bind", str(tmp_path), "/here", "", True),
        ("image", tools.name, "/tools", "tool", True),
        ("tmpfs", "", "/scratch", "", False),
        ("volume", "data", "/data", "", False),
    ]
    assert box.inspect()["mounts"] == box.mounts
    box.remove()


def test_containers_like_one_have_its_images_too(client, base, tools):
    box = client.containers.create(base, ["/bin/cat", "/tools/tool/version"], mounts=[mount(tools)])
    first, second = box.branch(2)
    box.remove()
    first.start()
    assert first.wait(60) == 0
    first.remove()
    second.start()
    assert second.wait(60) == 0
    second.remove()
    assert views(client) == []


def test_a_pool_has_images_too(client, base, tools):
    with client.containers.pool(base, size=1, mounts=[mount(tools)]) as pool:
        assert pool.run(["/bin/cat", "/tools/tool/version"]).stdout == b"two"
    assert views(client) == []


def test_it_is_there_again_when_the_container_is_run_again(client, base, tools):
    box = client.containers.run(
        base,
        ["/bin/sh", "-c", "cat /tools/sub/deep; exit 3"],
        detach=True,
        mounts=[mount(tools, subpath="tool")],
        restart_policy="on-failure:2",
    )
    assert box.wait(60) == 3
    assert [data for _, data in box.logs()] == [b"deep"] * 3
    box.remove()


@pytest.mark.parametrize("state", ["created", "running"])
def test_files_are_copied_out_of_it_and_not_into_it(client, base, tools, tmp_path, state):
    box = client.containers.create(base, ["/bin/sleep", "600"], mounts=[mount(tools, subpath="tool")])
    try:
        if state == "running":
            box.start()
        box.copy_out("/tools/sub/deep", tmp_path / "deep")
        assert (tmp_path / "deep").read_text() == "deep"
        with pytest.raises(LamellaError, match=r"[Rr]ead-only"):
            box.copy_in(tmp_path / "deep", "/tools/x")
    finally:
        box.remove(force=True)
    assert list(client.config.state.glob("mounts/*")) == []


def test_what_is_not_there_is_said(client, base, server):
    with pytest.raises(NotFound, match="nothing"):
        client.containers.create(base, ["/bin/true"], mounts=["type=image,source=nothing:here,target=/x"])
    client.images.pull(Built(tar(file("x"))).push(server, "packed"), unpack=False)
    name = f"{server.address}/packed:latest"
    with pytest.raises(NotFound, match="not unpacked"):
        client.containers.create(base, ["/bin/true"], mounts=[f"type=image,source={name},target=/x"])
    empty = client.images.pull(Built().push(server, "empty"))
    with pytest.raises((FailedPrecondition, InvalidArgument)):
        client.containers.create(base, ["/bin/true"], mounts=[mount(empty)])
    assert client.containers.list(all=True) == []


@pytest.mark.parametrize("snapshotter", ["overlayfs", "native"])
def test_a_container_with_ids_of_its_own_sees_images_and_parts_as_its_own(
    tmp_path, small_image, server, snapshotter
):
    below = tar(folder("t"), file("t/version", b"one"), file("t/mine", b"m", mode=0o600), symlink("way", "t"))
    images = [Built(below), Built(below, tar(folder("t"), file("t/version", b"two")))]
    with lamella.Client(tmp_path / "root", tmp_path / "state", snapshotter=snapshotter) as client:
        base = client.images.pull(small_image)
        (client.volumes.create("data").path / "part").mkdir()
        for number, built in enumerate(images):
            tools = client.images.pull(built.push(server, f"tools{number}"))
            mounts = [
                mount(tools, "/whole"),
                mount(tools, "/part", subpath="way"),
                mount(tools, "/file", subpath="way/mine"),
                {"type": "volume", "source": "data", "target": "/volume", "volume-subpath": "part"},
            ]
            script = "echo x >/volume/new; cat /part/version /file; stat -c %u /whole/t/mine /part/mine /file /volume/new"
            box = client.containers.create(base, ["/bin/sh", "-c", script], userns="auto", mounts=mounts)
            (like,) = box.branch()
            for each in (box, like):
                each.start()
                assert each.wait(60) == 0
                text = b"".join(data for _, data in each.logs()).decode()
                assert text == f"{('one', 'two')[number]}m" + "0\n" * 4
                each.remove()
        assert (client.volumes.get("data").path / "part/new").stat().st_uid == 0
        assert views(client) == []


@pytest.mark.needs_program("runc")
def test_runc_mounts_images_and_parts_as_our_launcher_does(client, base, tools, single):
    (client.volumes.create("data").path / "part").mkdir()
    mounts = [
        mount(tools, "/whole"),
        mount(tools, "/part", subpath="way"),
        mount(single, "/file", subpath="d/only"),
        {"type": "volume", "source": "data", "target": "/volume", "volume-subpath": "part"},
    ]
    script = "cat /whole/tool/version /part/deep /file; echo >/volume/new; echo 2>/dev/null >/part/x || echo refused"
    expected = "twodeeponlyrefused\n"
    for runtime in ("lamella", "runc"):
        assert sh(client, base, script, mounts=mounts, runtime=runtime) == expected
    assert (client.volumes.get("data").path / "part" / "new").exists()
    with pytest.raises(LamellaError, match="absolute"):
        client.containers.run(
            base, ["/bin/true"], remove=True, runtime="runc", mounts=[mount(tools, subpath="absolute")]
        )
