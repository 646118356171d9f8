"""From image config and options to the runtime spec."""

import pytest

from lamella import oci
from lamella.containers import defaults
from lamella.containers.mounts import parse_mounts
from lamella.containers.options import Options
from lamella.containers.spec import build_spec, merge
from lamella.errors import InvalidArgument, NotFound
from lamella.structs import read_json

IMAGE = oci.RunConfig(
    env=["PATH=/bin", "A=image"], entrypoint=["/entry"], cmd=["cmd"], working_dir="/srv", user=""
)


def spec(image=IMAGE, network_path="", files=None, **options):
    own = Options(**options)
    document, hostname = build_spec(
        image,
        own,
        container_id="0123456789abcdef" * 4,
        namespace="ns",
        files_folder="/root/containers/ns/id",
        network_path=network_path,
        mounts=parse_mounts(own),
        read_file=lambda path, limit: (files or {}).get(path),
    )
    read = read_json(document)
    assert hostname == read.get("hostname", "")
    return read


@pytest.mark.parametrize(
    ("options", "args"),
    [
        ({}, ["/entry", "cmd"]),
        ({"command": ["x"]}, ["/entry", "x"]),
        ({"command": []}, ["/entry", "cmd"]),
        ({"entrypoint": ["/own"]}, ["/own"]),
        ({"entrypoint": [], "command": ["x", "y"]}, ["x", "y"]),
        ({"entrypoint": "/own -a", "command": "b 'c d'"}, ["/own", "-a", "b", "c d"]),
    ],
)
def test_entrypoint_and_command_combine_as_in_docker(options, args):
    assert spec(**options)["process"]["args"] == args


def test_a_container_without_a_command_is_refused():
    for image, options in (
        (oci.RunConfig(), {}),
        (IMAGE, {"entrypoint": [], "command": None}),
        (IMAGE, {"command": [""], "entrypoint": []}),
    ):
        with pytest.raises(InvalidArgument, match="command"):
            spec(image, **options)


def test_the_environment_is_the_images_and_then_the_callers():
    env = spec(
        environment={"A": "own", "B": "b"},
        hostname="box",
        files={"etc/passwd": b"root:x:0:0::/home/root:/bin/sh\n"},
    )
    assert env["process"]["env"] == ["PATH=/bin", "HOSTNAME=box", "A=own", "B=b", "HOME=/home/root"]
    assert "PATH=/usr/local/sbin" in spec(oci.RunConfig(cmd=["x"]))["process"]["env"][0]
    assert "TERM=xterm" in spec(tty=True)["process"]["env"]


def test_an_entry_of_the_images_environment_that_is_no_variable_is_left_out():
    env = spec(oci.RunConfig(cmd=["x"], env=["PATH=/bin", "NONSENSE", "=x", ""]))["process"]["env"]
    assert env == ["PATH=/bin", "HOSTNAME=0123456789ab", "HOME=/"]


def test_the_working_folder_is_normal_and_absolute():
    assert spec()["process"]["cwd"] == "/srv"
    assert spec(working_dir="/a/../b/.")["process"]["cwd"] == "/b"
    with pytest.raises(InvalidArgument):
        spec(working_dir="relative")


def test_limits_and_the_cgroup_path():
    linux = spec(memory="64m", cpus=0.5, pids_limit=7, cpuset="0")["linux"]
    assert linux["cgroupsPath"] == "/lamella/ns/" + "0123456789abcdef" * 4
    assert linux["resources"]["memory"] == {"limit": 64 << 20, "swap": 64 << 20}
    assert linux["resources"]["cpu"] == {"quota": 50_000, "period": 100_000, "cpus": "0"}
    assert linux["resources"]["pids"] == {"limit": 7}
    for absent in ("memory", "cpu", "pids"):
        assert absent not in spec()["linux"]["resources"]


def test_devices_are_denied_but_for_the_usual_ones():
    rules = spec()["linux"]["resources"]["devices"]
    assert rules[0] == {"allow": False, "access": "rwm"}
    assert all(rule["type"] == "c" or rule["access"] == "m" for rule in rules[1:])
    with_null = spec(devices=["/dev/null:/dev/nothing:r"])["linux"]
    assert with_null["devices"][0]["path"] == "/dev/nothing"
    assert with_null["resources"]["devices"][-1] == {
        "allow": True,
        "type": "c",
        "major": 1,
        "minor": 3,
        "access": "r",
    }


def test_network_namespaces():
    kinds = lambda document: {n["type"]: n.get("path", "") for n in document["linux"]["namespaces"]}  # noqa: E731
    assert kinds(spec()) == dict.fromkeys(["mount", "pid", "uts", "ipc", "cgroup", "network"], "")
    assert "network" not in kinds(spec(network_path="host"))


def test_own_mounts_replace_the_default_ones_and_parents_come_first(tmp_path):
    mounts = spec(volumes=[f"{tmp_path}:/etc/hosts", f"{tmp_path}:/a/b"], tmpfs=["/a", "/dev/shm"])["mounts"]
    order = [mount["destination"] for mount in mounts]
    assert order.count("/etc/hosts") == order.count("/dev/shm") == 1
    assert order.index("/a") < order.index("/a/b")
    assert {mount["destination"]: mount["type"] for mount in mounts}["/dev/shm"] == "tmpfs"


def test_every_filesystem_but_dev_is_nodev_and_dev_is_the_launchers():
    for mount in spec()["mounts"]:
        assert mount["destination"] in ("/dev", "/dev/pts") or "nodev" in mount["options"]


def test_seccomp_is_the_default_widened_by_capabilities_or_off():
    default = spec()["linux"]["seccomp"]
    assert default["defaultAction"] in ("SCMP_ACT_ERRNO", "SCMP_ACT_KILL_PROCESS")
    allowed = lambda profile: {  # noqa: E731
        name
        for rule in profile["syscalls"]
        if rule["action"] == "SCMP_ACT_ALLOW" and not rule.get("args")
        for name in rule["names"]
    }
    assert "mount" not in allowed(default)
    assert "mount" in allowed(spec(cap_add=["SYS_ADMIN"])["linux"]["seccomp"])
    assert "seccomp" not in spec(seccomp="unconfined")["linux"]
    assert "seccomp" not in spec(privileged=True)["linux"]
    assert spec(seccomp={"defaultAction": "SCMP_ACT_ALLOW"})["linux"]["seccomp"] == {
        "defaultAction": "SCMP_ACT_ALLOW"
    }


def test_a_seccomp_profile_that_is_missing_or_malformed_is_refused(tmp_path):
    with pytest.raises(NotFound):
        spec(seccomp=tmp_path / "absent")
    bad = tmp_path / "bad"
    bad.write_text("[]")
    with pytest.raises(InvalidArgument):
        spec(seccomp=bad)


def test_a_patch_changes_the_document_in_place_or_by_return():
    assert spec(spec=lambda document: document["process"].update(cwd="/x"))["process"]["cwd"] == "/x"
    assert spec(spec=lambda document: {**document, "hostname": "patched"})["hostname"] == "patched"


@pytest.mark.parametrize(
    "options",
    [{"command": ["a\udcff"]}, {"environment": {"A": "\udcff"}}, {"annotations": {"\udcff": "x"}}],
)
def test_what_is_no_unicode_is_refused_by_its_text(options):
    with pytest.raises(InvalidArgument, match=r"udcff.*not valid Unicode"):
        spec(**options)


@pytest.mark.parametrize("hostname", ["a" * 65, "a/b", "a\nb", "ä"])
def test_a_malformed_hostname_is_refused(hostname):
    with pytest.raises(InvalidArgument):
        spec(hostname=hostname)


def test_a_merge_patch_changes_members_removes_those_that_are_none_and_replaces_lists():
    changed = spec(
        spec={"hostname": None, "process": {"args": ["x"], "user": {"umask": 18}}, "annotations": {"a": "b"}}
    )
    assert "hostname" not in changed
    assert changed["process"]["args"] == ["x"]
    assert changed["process"]["user"] == {"uid": 0, "gid": 0, "umask": 18, "additionalGids": [0]}
    assert (changed["process"]["cwd"], changed["annotations"]) == ("/srv", {"a": "b"})


# The examples of RFC 7386, appendix A.
@pytest.mark.parametrize(
    ("document", "patch", "result"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merging_is_that_of_the_rfc(document, patch, result):
    assert merge(document, patch) == result


def test_a_cgroup_is_made_in_the_parent_that_is_named():
    name = "0123456789abcdef" * 4
    for given in ("/builds/1", "builds/1/", "//builds//1"):
        assert spec(cgroup_parent=given)["linux"]["cgroupsPath"] == f"/builds/1/{name}"
    for wrong in ("", "/", "/a/../b", "a/./b", "a\0b"):
        with pytest.raises(InvalidArgument, match="cgroup_parent"):
            spec(cgroup_parent=wrong)


def test_paths_of_proc_and_sys_are_masked_unless_others_are_given():
    assert "/proc/kcore" in spec()["linux"]["maskedPaths"]
    assert "maskedPaths" not in spec(privileged=True)["linux"]
    assert "maskedPaths" not in spec(masked_paths=[])["linux"]
    changed = spec(masked_paths=["/secret"], readonly_paths=["/proc/sys"], privileged=True)["linux"]
    assert (changed["maskedPaths"], changed["readonlyPaths"]) == (["/secret"], ["/proc/sys"])
    with pytest.raises(InvalidArgument, match="masked_paths"):
        spec(masked_paths=["secret"])


def test_how_hot_processors_get_is_masked_where_the_machine_counts_it(tmp_path):
    """GHSA-6fw5-f8r9-fgfm: the counts told a container what others compute."""
    for name in ("cpu0/thermal_throttle", "cpu0/topology", "cpu1/topology"):
        (tmp_path / name).mkdir(parents=True)
    found = defaults.masked_paths(str(tmp_path))
    assert found == [*defaults.MASKED_PATHS, f"{tmp_path}/cpu0/thermal_throttle"]
    assert spec()["linux"]["maskedPaths"] == defaults.masked_paths()


@pytest.mark.parametrize(
    ("user", "machine_shows_them", "expected"),
    [(0, False, "mqueue"), (0, True, "bind"), (1000, True, "bind"), (1000, False, None)],
)
def test_message_queues_are_those_of_the_ipc_namespace(monkeypatch, user, machine_shows_them, expected):
    """Root alone may mount the machine's: others are shown what the machine has at /dev/mqueue."""
    shown = {"/dev/shm", "/dev/mqueue"} if machine_shows_them else {"/dev/shm"}
    monkeypatch.setattr("os.geteuid", lambda: user)
    for look in ("os.path.ismount", "os.path.isdir"):
        monkeypatch.setattr(look, lambda path: path in shown)

    def queues(**options):
        mounts = spec(**options)["mounts"]
        return next((mount["type"] for mount in mounts if mount["destination"] == "/dev/mqueue"), None)

    assert queues(ipc_mode="host") == expected
    assert queues() == "mqueue"
