"""Devices of this machine as docker names them."""

import os
import stat

import pytest

from lamella.containers.devices import devices_and_rules, parse_device, parse_rule
from lamella.containers.options import Options
from lamella.errors import InvalidArgument, NotFound, Unsupported


def test_a_device_is_described_by_its_node():
    [device], access = parse_device("/dev/null:/dev/nothing:rw")
    assert (device.type, device.path, device.major, device.minor, access) == ("c", "/dev/nothing", 1, 3, "rw")
    assert parse_device("/dev/null:r")[1] == "r"
    assert parse_device("/dev/null")[1] == "rwm"
    with pytest.raises(NotFound):
        parse_device("/dev/absent")
    for bad in (
        "/dev/null:/x:q",
        "/dev/null:/x:rr",
        "/dev/null:/x:rw:y",
        "/etc/passwd",
        "/dev/null:x",
        "null",
    ):
        with pytest.raises(InvalidArgument):
            parse_device(bad)


@pytest.mark.privileged
def test_a_folder_stands_for_all_nodes_in_it(tmp_path):
    (tmp_path / "card" / "deep").mkdir(parents=True)
    os.mknod(tmp_path / "card" / "b", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mknod(tmp_path / "card" / "deep" / "a", stat.S_IFBLK | 0o600, os.makedev(7, 1))
    (tmp_path / "card" / "file").touch()
    (tmp_path / "card" / "link").symlink_to("b")
    (tmp_path / "way").symlink_to("card")
    nodes, access = parse_device(f"{tmp_path}/way:/dev/card/:r")
    assert [(node.type, node.path, node.major) for node in nodes] == [
        ("c", "/dev/card/b", 1),
        ("b", "/dev/card/deep/a", 7),
    ]
    assert access == "r"
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFound, match="no device node"):
        parse_device(f"{tmp_path}/empty")


def test_a_symlink_is_followed_and_the_name_stays(tmp_path):
    (tmp_path / "link").symlink_to("/dev/null")
    [device], _ = parse_device(f"{tmp_path}/link")
    assert (device.path, device.major, device.minor) == (f"{tmp_path}/link", 1, 3)


def test_a_cdi_device_is_refused_by_its_name():
    with pytest.raises(Unsupported, match=r"nvidia\.com/gpu=all") as caught:
        parse_device("nvidia.com/gpu=all")
    assert "/etc/cdi" in caught.value.hint


def test_rules_of_the_devices_controller():
    rule = parse_rule("c 1:3 rwm")
    assert (rule.allow, rule.type, rule.major, rule.minor, rule.access) == (True, "c", 1, 3, "rwm")
    rule = parse_rule("a *:* r")
    assert (rule.type, rule.major, rule.minor) == ("a", None, None)
    _, rules = devices_and_rules(Options(devices=["/dev/null:/dev/x:r"], device_cgroup_rules="b 8:* rw"))
    assert [(r.type, r.major, r.access) for r in rules[-2:]] == [("c", 1, "r"), ("b", 8, "rw")]
    for bad in (
        "",
        "c 1:3",
        "d 1:3 r",
        "c 1 r",
        "c 1:3 x",
        "c 1:3 rr",
        "c -1:3 r",
        "c 1:3 r ",
        "c 4294967296:0 r",
    ):
        with pytest.raises(InvalidArgument):
            parse_rule(bad)
