"""The capability sets of a container's processes, in each of the ways in which one comes to be: exactly Docker's.

Source: capabilities(7); Docker's documentation, "Runtime privilege and Linux capabilities".
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from lamella.containers.defaults import ALL_CAPABILITIES, CAPABILITIES

pytestmark = pytest.mark.privileged

DOCKER = {
    "CAP_CHOWN": 0, "CAP_DAC_OVERRIDE": 1, "CAP_FOWNER": 3, "CAP_FSETID": 4, "CAP_KILL": 5, "CAP_SETGID": 6, "CAP_SETUID": 7,
    "CAP_SETPCAP": 8, "CAP_NET_BIND_SERVICE": 10, "CAP_NET_RAW": 13, "CAP_SYS_CHROOT": 18, "CAP_MKNOD": 27,
    "CAP_AUDIT_WRITE": 29, "CAP_SETFCAP": 31,
}  # fmt: skip
"""Docker's default capabilities, by their numbers in linux/capability.h."""
NET_ADMIN, CHOWN = 12, 0
USUAL = sum(1 << number for number in DOCKER.values())
OURS = int(Path("/proc/self/status").read_text().partition("CapBnd:")[2].split()[0], 16)
"""What this process may give away at all: a sandbox may lack some."""
PROGRAM = "/probe/calls"
STATUS = [PROGRAM, "status", "Cap", "NoNewPrivs"]


def sets(stdout):
    """Give the five sets, and whether new privileges are ruled out."""
    found = dict(line.split(":\t") for line in stdout.decode().splitlines())
    inheritable, permitted, effective, bounding, ambient = (
        int(found[f"Cap{name}"], 16) for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")
    )
    assert (inheritable, ambient) == (0, 0), (
        "CVE-2022-24769: what is inheritable, programs gain by their file's"
    )
    return permitted, effective, bounding, found["NoNewPrivs"]


@pytest.fixture
def program(compiled, tmp_path):
    """Give a program that says what it may, with ``mode`` and ``capabilities`` of its file."""

    def make(mode=0o755, capabilities=None):
        tmp_path.chmod(0o755)
        file = tmp_path / "calls"
        file.write_bytes((compiled("calls") / "calls").read_bytes())
        file.chmod(mode)
        if capabilities is not None:
            os.setxattr(file, "security.capability", capabilities)
        return [f"{file}:{PROGRAM}:ro"]

    return make


def test_the_default_set_is_dockers():
    assert set(CAPABILITIES) == set(DOCKER)
    assert len(ALL_CAPABILITIES) == 41


@pytest.mark.parametrize(
    ("options", "permitted", "bounding"),
    [
        ({}, USUAL, USUAL),
        ({"init": True}, USUAL, USUAL),
        ({"tty": True}, USUAL, USUAL),
        ({"network": "host"}, USUAL, USUAL),
        ({"user": "1000:1000"}, 0, USUAL),
        ({"user": "1000", "cap_add": ["NET_ADMIN"]}, 0, USUAL | 1 << NET_ADMIN),
        ({"cap_add": ["net_admin"]}, USUAL | 1 << NET_ADMIN, USUAL | 1 << NET_ADMIN),
        ({"cap_drop": ["CAP_CHOWN"]}, USUAL & ~(1 << CHOWN), USUAL & ~(1 << CHOWN)),
        ({"cap_drop": ["ALL"]}, 0, 0),
        ({"cap_drop": ["ALL"], "cap_add": ["CHOWN"]}, 1 << CHOWN, 1 << CHOWN),
        ({"cap_add": ["ALL"]}, OURS, OURS),
        ({"cap_add": ["ALL"], "cap_drop": ["CHOWN"]}, OURS & ~(1 << CHOWN), OURS & ~(1 << CHOWN)),
        ({"privileged": True}, OURS, OURS),
    ],
    ids=str,
)
def test_a_container_has_these_and_no_others_also_in_an_exec(
    client, image, program, options, permitted, bounding
):
    run = {**options, "volumes": program()}
    result = client.containers.run(image, STATUS, remove=True, **run)
    assert sets(result.stdout.replace(b"\r", b"")) == (permitted, permitted, bounding, "0")
    container = client.containers.run(image, ["/bin/sleep", "600"], detach=True, **run)
    try:
        assert sets(container.exec(STATUS).stdout) == (permitted, permitted, bounding, "0")
        assert sets(container.exec(STATUS, user="4242").stdout) == (0, 0, bounding, "0")
    finally:
        container.remove(force=True)


@pytest.mark.parametrize("rule_out", [False, True])
def test_a_set_user_id_program_gains_what_the_bounding_set_has_unless_that_is_ruled_out(
    client, image, program, rule_out
):
    options = {
        "user": "1000",
        "no_new_privileges": rule_out,
        "cap_drop": ["CHOWN"],
        "volumes": program(0o4755),
    }
    bounding = USUAL & ~(1 << CHOWN)
    gained = 0 if rule_out else bounding
    expected = (gained, gained, bounding, str(int(rule_out)))
    assert sets(client.containers.run(image, STATUS, remove=True, **options).stdout) == expected
    container = client.containers.run(image, ["/bin/sleep", "600"], detach=True, **options)
    try:
        assert sets(container.exec(STATUS).stdout) == expected
    finally:
        container.remove(force=True)


def test_a_program_with_inheritable_capabilities_gains_none(client, image, program):
    """CVE-2022-24769, in an exec CVE-2022-29162: containers had them inheritable, so that such a file gave them to anybody."""
    effective = 0x02000001  # VFS_CAP_REVISION_2 with the effective bit
    inherited = struct.pack("<5I", effective, 0, 0xFFFFFFFF, 0, 0xFFFFFFFF)
    volumes = program(capabilities=inherited)
    assert sets(client.containers.run(image, STATUS, remove=True, user="1000", volumes=volumes).stdout)[
        :2
    ] == (0, 0)
    permitted = struct.pack("<5I", 0x02000001, 1 << DOCKER["CAP_NET_RAW"], 0, 0, 0)
    volumes = program(capabilities=permitted)
    found = sets(client.containers.run(image, STATUS, remove=True, user="1000", volumes=volumes).stdout)
    assert found[0] == 1 << DOCKER["CAP_NET_RAW"], (
        "a file's permitted ones count, so that the check above can fail"
    )
