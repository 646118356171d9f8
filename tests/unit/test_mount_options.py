"""Volumes, mounts and tmpfs as docker writes them."""

import pytest

from lamella.containers.mounts import ImageMount, VolumeMount, parse_mounts, volume_bind
from lamella.containers.options import Options
from lamella.containers.runtime_spec import Mount
from lamella.errors import InvalidArgument, NotFound, Unsupported


def of(text):
    [mount] = parse_mounts(Options(mounts=[text]))
    return mount


def test_one_string_is_one_item_of_an_option_that_takes_several(tmp_path):
    mounts = parse_mounts(Options(volumes=f"{tmp_path}:/a", tmpfs="/run:size=1m"))
    assert [mount.destination for mount in mounts] == ["/a", "/run"]


def test_volumes_by_mapping_take_any_path(tmp_path):
    source = tmp_path / "a:b"
    source.mkdir()
    volumes = {str(source): {"bind": "/x", "mode": "ro"}, str(tmp_path): "/y"}
    first, second = parse_mounts(Options(volumes=volumes))
    assert (first.source, first.destination) == (str(source), "/x")
    assert "rro" in first.options
    assert (second.source, second.destination) == (str(tmp_path), "/y")
    for entry in (5, {"mode": "ro"}, {"bind": "/x", "mode": None}):
        with pytest.raises(InvalidArgument, match="malformed"):
            parse_mounts(Options(volumes={str(tmp_path): entry}))


def test_a_volume_of_a_path_with_a_colon_says_what_takes_it():
    with pytest.raises(InvalidArgument) as caught:
        parse_mounts(Options(volumes=["/tmp/a:b:/x"]))
    assert "type=bind" in str(caught.value.hint)


def test_volumes_become_recursive_private_binds(tmp_path):
    [plain, readonly] = parse_mounts(Options(volumes=[f"{tmp_path}:/data", f"{tmp_path}:/ro:ro"]))
    assert (plain.destination, plain.source, plain.options) == (
        "/data",
        str(tmp_path),
        ["rbind", "rnodev", "rprivate"],
    )
    assert readonly.options == ["rbind", "rro", "rnodev", "rprivate"]
    [mapped] = parse_mounts(Options(volumes={str(tmp_path): {"bind": "/x", "mode": "ro"}}))
    assert (mapped.destination, mapped.options) == ("/x", ["rbind", "rro", "rnodev", "rprivate"])


def test_a_file_has_nothing_beneath_that_a_mount_of_it_could_be_about(tmp_path):
    (tmp_path / "file").touch()
    [mount] = parse_mounts(Options(volumes=[f"{tmp_path}/file:/file:ro"]))
    assert mount.options == ["bind", "ro", "nodev", "rprivate"]


def test_mount_strings_read_as_docker_writes_them(tmp_path):
    [bind] = parse_mounts(Options(mounts=[f"type=bind,source={tmp_path},target=/x,readonly"]))
    assert (bind.type, bind.destination, bind.options) == (
        "bind",
        "/x",
        ["rbind", "rro", "rnodev", "rprivate"],
    )
    [tmpfs] = parse_mounts(Options(mounts=["type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=1777"]))
    assert tmpfs.options == ["nosuid", "nodev", "noexec", "size=1048576", "mode=1777"]


def test_tmpfs_targets_take_options():
    [mount] = parse_mounts(Options(tmpfs=["/run:size=1m,exec"]))
    assert (mount.type, mount.destination) == ("tmpfs", "/run")
    assert "noexec" not in mount.options
    assert "size=1m" in mount.options


@pytest.mark.parametrize(
    "volume", ["x", "", ":", "/a:", "/tmp:relative", "/tmp:/", "/tmp:/a/..", "/tmp:/x:fast", "/tmp:/a:ro:x"]
)
def test_a_malformed_volume_is_refused(volume):
    with pytest.raises(InvalidArgument):
        parse_mounts(Options(volumes=[volume]))


def test_a_missing_source_is_an_error_and_nothing_is_made(tmp_path):
    with pytest.raises(NotFound):
        parse_mounts(Options(volumes=[f"{tmp_path}/absent:/x"]))
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_is_no_path_is_the_name_of_a_volume(tmp_path):
    for options in (
        Options(volumes=["data:/x:ro,nocopy"]),
        Options(volumes={"data": {"bind": "/x", "mode": "ro,nocopy"}}),
        Options(mounts=["type=volume,source=data,target=/x,readonly,volume-nocopy"]),
    ):
        [mount] = parse_mounts(options)
        assert mount == VolumeMount(name="data", destination="/x", options=["ro"], copy=False)
    assert volume_bind(mount, str(tmp_path)).options == ["rbind", "rro", "rnodev", "rprivate"]
    for options in (Options(volumes=["/x"]), Options(mounts=["type=volume,target=/x"])):
        assert parse_mounts(options) == [VolumeMount(name="", destination="/x", options=[])]


@pytest.mark.parametrize(
    "options",
    [
        {"volumes": ["../data:/x"]},
        {"volumes": ["a/b:/x"]},
        {"volumes": ["data:x"]},
        {"volumes": ["data:/"]},
        {"volumes": ["/tmp:/x:nocopy"]},
        {"mounts": ["type=bind,source=data,target=/x"]},
        {"mounts": ["type=volume,source=../..,target=/x"]},
        {"mounts": ["type=bind,source=/tmp,target=/x,volume-nocopy"]},
    ],
)
def test_a_malformed_volume_name_or_option_is_refused(options):
    with pytest.raises(InvalidArgument):
        parse_mounts(Options(**options))


@pytest.mark.parametrize("name", ["volume-driver=nfs", "volume-opt=type=nfs"])
def test_drivers_of_volumes_are_refused_by_name(name):
    assert of("type=volume,source=data,target=/x,volume-driver=local").name == "data"
    with pytest.raises(Unsupported, match="driver") as caught:
        of(f"type=volume,source=data,target=/x,{name}")
    assert caught.value.hint


def test_an_image_is_mounted_read_only_and_whole_or_in_part():
    assert of("type=image,source=tools:1,target=/x") == ImageMount(
        image="tools:1", destination="/x", options=["ro"]
    )
    expected = ImageMount(image="tools:1", destination="/x", options=["ro"], subpath="a/b")
    assert of("type=image,source=tools:1,target=/x,image-subpath=a/./b/") == expected
    assert of({"type": "image", "source": "tools:1", "target": "/x", "subpath": "a/b"}) == expected
    assert of(Mount(destination="/x", type="image", source="tools:1")).image == "tools:1"
    assert volume_bind(expected, "sources/0").options == ["rbind", "rro", "rnodev", "rprivate"]
    with pytest.raises(InvalidArgument, match="no source"):
        of("type=image,target=/x")


@pytest.mark.parametrize("path", ["/a", "..", "a/../../b", "../b"])
@pytest.mark.parametrize("kind", ["image", "volume"])
def test_a_part_that_leads_out_by_its_text_is_refused(kind, path):
    with pytest.raises(InvalidArgument, match="beneath"):
        of(f"type={kind},source=x,target=/x,{kind}-subpath={path}")


def test_a_part_of_a_volume_takes_no_content_of_the_image():
    mount = of("type=volume,source=data,target=/x,volume-subpath=a/b")
    assert (mount.subpath, mount.copy) == ("a/b", False)
    with pytest.raises(InvalidArgument, match="anonymous"):
        of("type=volume,target=/x,volume-subpath=a")


def test_labels_are_for_a_volume_that_is_made():
    assert of("type=volume,source=d,target=/x,volume-label=a=1,volume-label=b=").labels == {"a": "1", "b": ""}


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ("bind-nonrecursive", ["bind", "nodev", "rprivate"]),
        ("bind-recursive=disabled,readonly", ["bind", "ro", "nodev", "rprivate"]),
        ("bind-recursive=writable,readonly", ["rbind", "ro", "rnodev", "rprivate"]),
        (
            "bind-recursive=readonly,readonly,bind-propagation=rprivate",
            ["rbind", "rro", "rprivate", "rnodev"],
        ),
        ("consistency=cached", ["rbind", "rnodev", "rprivate"]),
        *(
            (f"bind-propagation={word}", ["rbind", word, "rnodev"])
            for word in ("private", "rslave", "shared")
        ),
    ],
)
def test_how_a_bind_mount_recurses_and_spreads_is_said_in_dockers_words(tmp_path, fields, options):
    assert of(f"type=bind,source={tmp_path},target=/x,{fields}").options == options


@pytest.mark.parametrize(
    "fields",
    [
        "bind-recursive=writable",
        "bind-recursive=readonly,readonly",
        "bind-recursive=maybe",
        "bind-propagation=sideways",
        "volume-subpath=a",
        "tmpfs-size=1m",
        "image-subpath=a",
    ],
)
def test_what_does_not_fit_a_bind_mount_is_refused(tmp_path, fields):
    with pytest.raises(InvalidArgument):
        of(f"type=bind,source={tmp_path},target=/x,{fields}")


def test_the_source_of_a_bind_mount_is_never_made(tmp_path):
    with pytest.raises(Unsupported, match="never made"):
        of(f"type=bind,source={tmp_path}/new,target=/x,bind-create-src")
    assert list(tmp_path.iterdir()) == []


def test_a_path_with_a_comma_stands_in_quotes(tmp_path):
    (tmp_path / "a,b").mkdir()
    assert of(f'type=bind,"source={tmp_path}/a,b",target=/x').source == f"{tmp_path}/a,b"


def test_docker_pys_mounts_are_read(tmp_path):
    bind = {
        "Target": "/x",
        "Source": str(tmp_path),
        "Type": "bind",
        "ReadOnly": True,
        "BindOptions": {"Propagation": "rslave"},
    }
    assert of(bind).options == ["rbind", "rro", "rslave", "rnodev"]
    volume = {
        "Target": "/x",
        "Source": "data",
        "Type": "volume",
        "ReadOnly": False,
        "VolumeOptions": {"NoCopy": True, "Labels": {"a": "1", "b": "2"}, "DriverConfig": None},
    }
    assert of(volume) == VolumeMount(
        name="data", destination="/x", options=[], copy=False, labels={"a": "1", "b": "2"}
    )
    tmpfs = {
        "Target": "/x",
        "Source": None,
        "Type": "tmpfs",
        "TmpfsOptions": {"SizeBytes": 4096, "Mode": 0o1770},
    }
    assert of(tmpfs).options == ["nosuid", "nodev", "noexec", "size=4096", "mode=1770"]
    assert (
        of({"Type": "image", "Source": "a", "Target": "/x", "ImageOptions": {"Subpath": "b"}}).subpath == "b"
    )


def test_memory_has_a_size_an_owner_a_mode_and_a_number_of_files():
    [mount] = parse_mounts(Options(tmpfs=["/t:size=64m,mode=0700,uid=5,gid=6,nr_inodes=10,exec,ro"]))
    assert mount.options == [
        "nosuid",
        "nodev",
        "size=64m",
        "mode=0700",
        "uid=5",
        "gid=6",
        "nr_inodes=10",
        "exec",
        "ro",
    ]
    fields = "tmpfs-size=1k,tmpfs-mode=700,tmpfs-uid=5,tmpfs-gid=6,tmpfs-nr-inodes=9,tmpfs-exec"
    assert of(f"type=tmpfs,target=/t,{fields}").options[2:] == [
        "size=1024", "mode=700", "uid=5", "gid=6", "nr_inodes=9", "exec",
    ]  # fmt: skip
    for bad in ("mode=9", "uid=me", "colour=blue", "size", "rprivate", "mode=70000"):
        with pytest.raises(InvalidArgument):
            parse_mounts(Options(tmpfs=[f"/t:{bad}"]))


def test_two_mounts_do_not_have_one_target(tmp_path):
    with pytest.raises(InvalidArgument, match="two mounts"):
        parse_mounts(Options(volumes=[f"{tmp_path}:/x"], tmpfs=["/x/../x/"]))


def test_words_of_docker_that_mean_nothing_here_are_read(tmp_path, monkeypatch):
    [mount] = parse_mounts(Options(volumes=[f"{tmp_path}:/x:ro,z,cached"]))
    assert mount.options == ["rbind", "rro", "rnodev", "rprivate"]
    monkeypatch.setattr("os.path.exists", lambda path: True)
    with pytest.raises(Unsupported, match="SELinux"):
        parse_mounts(Options(volumes=[f"{tmp_path}:/x:Z"]))
