import pytest

from lamella.containers.defaults import CAPABILITIES
from lamella.containers.limits import memory_limits, parse_cpus, parse_size
from lamella.containers.options import (
    CreateOptions,
    Options,
    VolumeMount,
    parse_capabilities,
    parse_command,
    parse_device,
    parse_environment,
    parse_mounts,
    parse_ulimit,
    volume_bind,
)
from lamella.errors import InvalidArgument, NotFound


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (5, 5),
        ("5", 5),
        ("1k", 1024),
        ("1K", 1024),
        ("2kb", 2048),
        ("512m", 512 << 20),
        ("1.5g", 3 << 29),
        ("64KiB", 65536),
    ],
)
def test_sizes_read_as_docker_reads_them(text, size):
    assert parse_size(text, "memory") == size


@pytest.mark.parametrize("text", ["", "m", "five", "1x", "-1", -1, "1e400", "nan"])
def test_a_malformed_size_is_refused(text):
    with pytest.raises(InvalidArgument):
        parse_size(text, "memory")


def test_a_string_command_is_split_as_a_shell_would():
    assert parse_command("sh -c 'echo hi'") == ["sh", "-c", "echo hi"]
    assert parse_command(["a b"]) == ["a b"]
    with pytest.raises(InvalidArgument):
        parse_command("'open")
    with pytest.raises(InvalidArgument):
        parse_command(["a\0b"])


def test_an_environment_name_alone_takes_the_callers_value(monkeypatch):
    monkeypatch.setenv("TAKEN", "here")
    monkeypatch.delenv("ABSENT", raising=False)
    assert parse_environment(["A=1", "B=", "TAKEN", "ABSENT"]) == {"A": "1", "B": "", "TAKEN": "here"}
    assert parse_environment({"A": "1", "TAKEN": None}) == {"A": "1", "TAKEN": "here"}


@pytest.mark.parametrize("value", [["=x"], {"a=b": "c"}, ["A=\0"], {"": "x"}])
def test_a_malformed_environment_is_refused(value):
    with pytest.raises(InvalidArgument):
        parse_environment(value)


def test_numbers_are_values_of_variables_too():
    assert parse_environment({"A": 1, "B": 0.5}) == {"A": "1", "B": "0.5"}


def test_a_fraction_of_a_byte_is_refused():
    with pytest.raises(InvalidArgument, match=r"memory 1\.5 is not a size"):
        parse_size(1.5, "memory")


def test_one_string_is_one_item_of_an_option_that_takes_several(tmp_path):
    mounts = parse_mounts(Options(volumes=f"{tmp_path}:/a", tmpfs="/run:size=1m"))
    assert [mount.destination for mount in mounts] == ["/a", "/run"]
    assert parse_capabilities("NET_ADMIN", "ALL", privileged=False) == ["CAP_NET_ADMIN"]


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


def test_capabilities_are_dockers_by_default():
    assert parse_capabilities(None, None, privileged=False) == sorted(CAPABILITIES)


@pytest.mark.parametrize("name", ["NET_ADMIN", "net_admin", "CAP_NET_ADMIN"])
def test_a_capability_is_added_under_any_of_its_names(name):
    assert "CAP_NET_ADMIN" in parse_capabilities([name], None, privileged=False)


def test_dropping_all_keeps_only_what_is_added():
    assert parse_capabilities(["CHOWN"], ["ALL"], privileged=False) == ["CAP_CHOWN"]
    assert parse_capabilities(None, ["ALL"], privileged=False) == []
    assert "CAP_CHOWN" not in parse_capabilities(["ALL"], ["CHOWN"], privileged=False)


def test_an_unknown_capability_is_refused():
    with pytest.raises(InvalidArgument, match="FLY"):
        parse_capabilities(["FLY"], None, privileged=False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nofile=1024", ("RLIMIT_NOFILE", 1024, 1024)),
        ("nofile=1:2", ("RLIMIT_NOFILE", 1, 2)),
        ("core=unlimited", ("RLIMIT_CORE", 2**64 - 1, 2**64 - 1)),
    ],
)
def test_ulimits_read_as_docker_writes_them(text, expected):
    limit = parse_ulimit(text)
    assert (limit.type, limit.soft, limit.hard) == expected


@pytest.mark.parametrize("text", ["nofile", "nofile=", "nofile=a", "nofile=2:1", "nofile=-2"])
def test_a_malformed_ulimit_is_refused(text):
    with pytest.raises(InvalidArgument):
        parse_ulimit(text)


def test_cpus_become_a_quota():
    limits = parse_cpus("1.5")
    assert (limits.quota, limits.period) == (150_000, 100_000)
    for bad in ("0", "-1", "many", "nan"):
        with pytest.raises(InvalidArgument):
            parse_cpus(bad)


def test_an_unknown_ulimit_is_refused_with_those_that_are_known():
    with pytest.raises(InvalidArgument, match="nofiles") as caught:
        parse_ulimit("nofiles=5")
    assert "nofile" in caught.value.hint


def test_memory_alone_allows_no_swap_beyond_it():
    limits = memory_limits(Options(memory="64m"))
    assert (limits.limit, limits.swap) == (64 << 20, 64 << 20)
    for bad in (Options(memory="1m"), Options(memory_swap="1g"), Options(memory="64m", memory_swap="32m")):
        with pytest.raises(InvalidArgument):
            memory_limits(bad)


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
        {"mounts": ["type=volume,source=data,target=/x,volume-driver=nfs"]},
        {"mounts": ["type=bind,source=/tmp,target=/x,volume-nocopy"]},
    ],
)
def test_a_malformed_volume_name_or_option_is_refused(options):
    with pytest.raises(InvalidArgument):
        parse_mounts(Options(**options))


def test_a_device_is_described_by_its_node():
    device, access = parse_device("/dev/null:/dev/nothing:rw")
    assert (device.type, device.path, device.major, device.minor, access) == ("c", "/dev/nothing", 1, 3, "rw")
    with pytest.raises(NotFound):
        parse_device("/dev/absent")
    for bad in ("/dev/null:/x:q", "/dev/null:/x:rw:y", "/etc/passwd", "/dev/null:x"):
        with pytest.raises(InvalidArgument):
            parse_device(bad)


def test_the_typed_keywords_are_the_fields_of_options():
    assert set(CreateOptions.__annotations__) == set(Options.__struct_fields__) - {"command"}
