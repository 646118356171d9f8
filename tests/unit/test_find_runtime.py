"""Which program makes a container: found by the caller, by name or path; what it is given of a process."""

from __future__ import annotations

import json

import pytest

from lamella import doctor
from lamella.config import Config
from lamella.containers import runtimes
from lamella.containers.defaults import ALL_CAPABILITIES
from lamella.containers.runtimes import (
    CAPABILITY_BITS,
    bundle_for,
    find_runtime,
    installed,
    limit_capabilities,
)
from lamella.errors import InvalidArgument, NotFound, PermissionDenied


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """A PATH with runc alone on it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    (folder / "runc").write_text("#!/bin/sh\n")
    (folder / "runc").chmod(0o755)
    return folder


def test_our_own_is_no_program_and_others_are_found_by_name_or_path(programs):
    assert find_runtime("lamella") is None
    assert find_runtime("runc") == find_runtime(str(programs / "runc")) == programs / "runc"
    assert installed() == {"runc": programs / "runc"}


def test_one_that_is_not_there_is_an_error_that_names_what_is(programs):
    for name in ("crun", ""):
        with pytest.raises(NotFound) as caught:
            find_runtime(name)
        assert "lamella, runc" in str(caught.value.hint)
    with pytest.raises(NotFound):
        find_runtime(str(programs / "crun"))
    with pytest.raises(InvalidArgument):
        find_runtime("bin/runc")
    (programs / "crun").touch(0o644)
    with pytest.raises(PermissionDenied):
        find_runtime(str(programs / "crun"))


def test_the_numbers_of_capabilities_are_the_kernels():
    assert set(CAPABILITY_BITS) == set(ALL_CAPABILITIES)
    some = ("CAP_CHOWN", "CAP_SYS_CHROOT", "CAP_SYS_ADMIN", "CAP_MKNOD", "CAP_CHECKPOINT_RESTORE")
    assert [CAPABILITY_BITS[name] for name in some] == [0, 18, 21, 27, 40]


def test_a_capability_that_cannot_be_given_is_left_out(monkeypatch):
    monkeypatch.setattr(runtimes, "_own_bounding_set", lambda: 1 << 21)
    process = {
        "args": ["a"],
        "capabilities": {"bounding": ["CAP_CHOWN", "CAP_SYS_ADMIN"], "effective": ["CAP_CHOWN"]},
    }
    assert limit_capabilities(process)["capabilities"] == {"bounding": ["CAP_SYS_ADMIN"], "effective": []}
    assert process["capabilities"]["effective"] == ["CAP_CHOWN"], "the caller's own stays"
    assert limit_capabilities({"args": ["a"]}) == {"args": ["a"]}


def test_an_init_is_put_before_the_program_and_mounted_read_only(tmp_path):
    spec = json.dumps({"process": {"args": ["a", "b"]}, "mounts": []}).encode()
    assert json.loads(bundle_for(spec, [], tmp_path, init=False)[0])["mounts"] == []
    document = json.loads(bundle_for(spec, [], tmp_path, init=True)[0])
    (mount,) = document["mounts"]
    assert document["process"]["args"] == [mount["destination"], "--", "a", "b"]
    assert (mount["source"], "ro" in mount["options"]) == (str(tmp_path / "init"), True)


def test_what_is_bound_with_mapped_ids_becomes_a_source(tmp_path):
    maps = ["uidmap=0:1:1", "gidmap=0:2:1"]
    plain = {"destination": "/a", "type": "bind", "source": "/a", "options": ["rbind", "ro"]}
    mapped = {"destination": "/b", "type": "bind", "source": "/b", "options": ["rbind", *maps, "ro"]}
    spec = json.dumps({"process": {"args": ["a"]}, "mounts": [mapped, plain, mapped]}).encode()
    first = {"mount": {"type": "bind", "source": "/first", "options": ["rbind"]}, "subpath": ""}
    document, sources = bundle_for(spec, [first], tmp_path, init=False)
    found = [(mount["source"], mount["options"]) for mount in json.loads(document)["mounts"]]
    assert found == [(source, ["rbind", "ro"]) for source in ("sources/1", "/a", "sources/2")]
    bound = {"mount": {"type": "bind", "source": "/b", "options": ["rbind", *maps]}, "subpath": ""}
    assert sources == [first, bound, bound]


def test_the_environment_or_the_client_chooses_for_containers_that_name_none(monkeypatch):
    monkeypatch.delenv("LAMELLA_RUNTIME", raising=False)
    assert Config.load().runtime == "lamella"
    monkeypatch.setenv("LAMELLA_RUNTIME", "runc")
    assert (Config.load().runtime, Config.load(runtime="crun").runtime) == ("runc", "crun")


def test_doctor_names_those_that_are_there(programs):
    check = doctor.check_runtimes()
    assert (check.status, check.detail) == ("ok", f"our own; runc ({programs / 'runc'}) by --runtime")
    (programs / "runc").unlink()
    assert doctor.check_runtimes().status == "ok"
